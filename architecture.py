"""Generative models. All of them encode, decode, sample and give a loss, whatever their kind.

    encode(x)           latent of images x (B, C, H, W) in [0, 1]
    decode(z)           images in [0, 1]
    sample(n, stream)   n images from the prior, drawn from a torch.Generator
    loss(x, ...)        {name: (B,)}: the terms of the training loss, one number an image; the loss is their sum

The autoencoders are here, the flows in flows.py, the GANs in gans.py; GANs encode by optimisation.
`build(name, **settings)` makes a model, `restore(state)` one from a checkpoint of train.py or from a bare state dict.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

import flows
import gans
from experiment import UserError
from storage import load_weights, make, model_in, one_of

# --- variational autoencoders --------------------------------------------------------------


class VAE(nn.Module):
    """Variational autoencoder (Kingma and Welling 2014) with a Bernoulli likelihood and a Gaussian posterior.

    A subclass sets `encoder` (images of SHAPE to FEATURES numbers) and `decoder_input`, `unflatten`, `decoder` (latent
    to logits, with a last Sigmoid). The latent noise is always an argument: eps (B, latent) standard normal, or None
    for the latent mean, so that nothing is drawn behind the caller's back, in training mode or not.
    """

    FEATURES = 256
    SHAPE = (1, 28, 28)

    def __init__(self, latent):
        super().__init__()
        self.latent = latent
        self.fc_mu = nn.Linear(self.FEATURES, latent)
        self.fc_logvar = nn.Linear(self.FEATURES, latent)

    def posterior(self, x):
        """Mean and log-variance, each (B, latent), of q(z | x). Raises UserError for images of another size."""
        if tuple(x.shape[1:]) != self.SHAPE:
            raise UserError(f"{type(self).__name__} takes images (B, {', '.join(map(str, self.SHAPE))}), "
                            f"not {tuple(x.shape)}")
        h = self.encoder(x)
        return self.fc_mu(h), self.fc_logvar(h)

    def encode(self, x):
        """The latent mean (B, latent)."""
        return self.posterior(x)[0]

    def logits(self, z):
        """Pixel logits (B, *SHAPE) of latents (B, latent); their sigmoid is the image."""
        return self.decoder[:-1](self.unflatten(self.decoder_input(z)))

    def decode(self, z):
        """Images (B, *SHAPE) in [0, 1] of latents (B, latent)."""
        return torch.sigmoid(self.logits(z))

    def sample(self, n, stream):
        """n images from z ~ N(0, I), on the model's device; stream: a CPU torch.Generator."""
        return self.decode(self.noise(n, stream))

    def noise(self, n, stream):
        """(n, latent) standard normal draws of a CPU generator, on the model's device."""
        return torch.randn(n, self.latent, generator=stream).to(self.fc_mu.weight.device)

    def forward(self, x, eps=None):
        """(logits, mu, logvar) of images x, with latent z = mu + eps * sigma."""
        mu, logvar = self.posterior(x)
        z = mu if eps is None else mu + eps * torch.exp(0.5 * logvar)
        return self.logits(z), mu, logvar

    def reconstruct(self, x, eps=None):
        """Images (B, *SHAPE) in [0, 1] from the latents of images x; eps (B, latent), or None for the latent mean."""
        return torch.sigmoid(self(x, eps)[0])

    def loss(self, x, eps=None):
        """Negative ELBO in nats, term by term: binary cross-entropy summed over pixels, KL summed over the latent.

        KL(q || N(0, I)) = 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2), Kingma and Welling 2014, appendix B. The
        cross-entropy is taken from the logits: unlike that of probabilities it is not cut off at 100 nats a pixel.
        """
        return self.loss_and_logits(x, eps)[0]

    def loss_and_logits(self, x, eps=None):
        """The loss terms and the pixel logits they were taken from."""
        logits, mu, logvar = self(x, eps)
        bce = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)  # (B,)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)  # (B,)
        return {"bce": bce, "kl": kl}, logits

    def squared_error(self, x, eps=None):
        """Mean squared error of the reconstruction, one number an image, (B,)."""
        return (self.reconstruct(x, eps) - x).square().flatten(1).mean(1)


class ConvVAE(VAE):
    """Convolutional VAE for 1 x 28 x 28 images; 990,633 parameters with latent 20.

    The layers have the names and shapes of the published checkpoint of Constructive Counterfactuals.
    """

    def __init__(self, latent=20):
        super().__init__(latent)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU(),  # (B, 32, 14, 14)
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),  # (B, 64, 7, 7)
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 7 * 7, self.FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.decoder_input = nn.Linear(latent, 64 * 7 * 7)
        self.unflatten = nn.Unflatten(1, (64, 7, 7))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),  # (B, 32, 14, 14)
            nn.ConvTranspose2d(32, 1, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid(),
        )  # fmt: skip


class LinearVAE(VAE):
    """Fully connected VAE for 1 x 28 x 28 images: two hidden layers of 256 on each side."""

    def __init__(self, latent=20):
        super().__init__(latent)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(28 * 28, 256), nn.ReLU(), nn.Linear(256, self.FEATURES), nn.ReLU()
        )
        self.decoder_input = nn.Linear(latent, 256)
        self.unflatten = nn.ReLU()  # features stay a vector here
        self.decoder = nn.Sequential(
            nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 28 * 28), nn.Unflatten(1, (1, 28, 28)), nn.Sigmoid()
        )


class ImageVAE(VAE):
    """Convolutional VAE for square images (C, H, W) of any size, with a Gaussian likelihood of fixed deviation.

    deviation: of a pixel around its decoded value, in units of the grey scale [0, 1]. A smaller one asks for sharper
    reconstructions; the CelebA VAE of Diffeomorphic Counterfactuals weighs its KL in the same spirit.
    """

    FEATURES = 128

    def __init__(self, shape=(3, 64, 64), latent=128, width=24, deviation=0.1):
        super().__init__(latent)
        self.SHAPE, self.deviation = tuple(shape), deviation
        channels, side, halvings = shape[0], shape[1], 0
        while side % 2 == 0 and side > 8:
            side, halvings = side // 2, halvings + 1
        if shape[1] != shape[2] or side > 8:
            raise UserError(f"an ImageVAE takes squares that halve down to 8 or less, not {shape[1]} x {shape[2]}")
        widths = [width] + [2 * width] * (halvings - 1)  # from fine to coarse
        down, up = [], []
        for a, b in itertools.pairwise([channels, *widths]):
            down += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
        for a, b in itertools.pairwise([*widths[::-1], width]):
            up += [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
        size = widths[-1] * side * side
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(size, self.FEATURES), nn.ReLU())
        self.decoder_input = nn.Linear(latent, size)
        self.unflatten = nn.Unflatten(1, (widths[-1], side, side))
        self.decoder = nn.Sequential(nn.ReLU(), *up, nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())

    def loss_and_logits(self, x, eps=None):
        """({"gaussian": (B,), "kl": (B,)}, pixel logits (B, *SHAPE)): the negative ELBO in nats, term by term.

        The Gaussian log-likelihood of Kingma and Welling 2014, appendix C.2, here of fixed deviation, summed over
        pixels; the KL is that of VAE.loss.
        """
        logits, mu, logvar = self(x, eps)
        squares = ((torch.sigmoid(logits) - x) / self.deviation).square().flatten(1)
        constant = math.log(2 * math.pi * self.deviation**2)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
        return {"gaussian": 0.5 * (squares + constant).sum(1), "kl": kl}, logits


# --- making and restoring -------------------------------------------------------------------

MODELS = {"vae": ConvVAE, "linear_vae": LinearVAE, "image_vae": ImageVAE, "realnvp": flows.RealNVP,
          "glow": flows.Glow, "dcgan": gans.DCGAN, "progressive_gan": gans.ProgressiveGAN}  # fmt: skip


def build(name, /, **settings):
    """A freshly initialised model; raises UserError for a name that is not in MODELS, and settings it does not take."""
    return make(one_of(MODELS, "generative model", name), **settings)


def restore(state):
    """The model in a checkpoint: train.py's (which names its architecture) or a bare state dict of a ConvVAE.

    Raises UserError, naming the first tensor that does not fit, if the weights are another model's.
    """
    made, settings, weights = model_in(state)
    model = build(made or "vae", **(settings or {}))
    return load_weights(model, weights).eval()

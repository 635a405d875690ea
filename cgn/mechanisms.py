"""The independent mechanisms of a CGN (shape, object texture, background) and what is trained beside them.

Every generator has one signature:

    parts(labels, latents, stream)     Parts of B images; labels: three (B,), or soft (B, 10), latents: three (B, 32),
                                       both in the order shape, object, background
    Parts.image()                      composition, x = m f + (1 - m) b (Sauer and Geiger 2021, equation 3)

`CGN` is ours, `PublishedCGN` and `ConditionalGAN` have the layers of the published checkpoints, which load. Images are
(B, 3, 32, 32) in [-1, 1], masks (B, 1, 32, 32) in [0, 1].
"""

import functools
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from storage import load_weights, model_in, one_of

LATENT, CLASSES, SIDE = 32, 10, 32  # published
CLAMP = 1e-4  # masks stay this far from 0 and 1 (published); in bfloat16 1 - 1e-4 would round to 1


class Parts(NamedTuple):
    """What the mechanisms made: mask (B, 1, 32, 32), object and background (B, 3, 32, 32), all float32."""

    mask: torch.Tensor
    object: torch.Tensor
    background: torch.Tensor

    def image(self):
        return torch.lerp(self.background, self.object, self.mask)


def draw_latents(n, stream, device="cpu", shared=False):
    """Three latents (n, 32), standard normal, of a CPU generator; shared: the same one for all three mechanisms."""
    latents = torch.randn(1 if shared else 3, n, LATENT, generator=stream).to(device)
    return tuple(latents.expand(3, -1, -1))


def shuffled(labels, stream):
    """(labels, a permutation of them, another): the labels of counterfactuals (published)."""
    orders = [torch.randperm(len(labels), generator=stream).to(labels.device) for _ in range(2)]
    return labels, labels[orders[0]], labels[orders[1]]


def soft(labels):
    """Whether labels are shares of the classes, (B, 10), between which one can interpolate, and not numbers (B,)."""
    return labels.is_floating_point()


def embedded(embedding, labels):
    """The vector of each label, or the mixture of vectors that soft labels say."""
    return labels @ embedding.weight if soft(labels) else embedding(labels)


def windows(textures, stream, which=None):
    """One 32 x 32 window of each texture (B, C, H, W), or of those at `which` (B,), thought to repeat on all sides.

    No position in a texture is then anything in particular, and no global shape can hide in it.
    """
    height, width = textures.shape[2:]
    which = torch.arange(len(textures), device=textures.device) if which is None else which
    top, left = torch.randint(1 << 30, (2, len(which), 1), generator=stream).to(textures.device)
    rows, columns = (torch.arange(SIDE, device=textures.device) + start for start in (top, left))
    at = which[:, None, None]
    return textures.permute(0, 2, 3, 1)[at, (rows % height)[:, :, None], (columns % width)[:, None]].permute(0, 3, 1, 2)


# --- ours ------------------------------------------------------------------------------------------


def _normal(channels):
    return nn.BatchNorm2d(channels), nn.LeakyReLU(0.2, inplace=True)


class Shape(nn.Module):
    """Masks (B, 1, 32, 32): transposed convolutions, then a sigmoid, so that no mask is out of the gradient's reach."""

    def __init__(self, width):
        super().__init__()
        self.label = nn.Embedding(CLASSES, CLASSES)
        self.body = nn.Sequential(
            nn.Linear(LATENT + CLASSES, 2 * width * 64, bias=False), nn.Unflatten(1, (2 * width, 8, 8)),
            *_normal(2 * width), nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), *_normal(width),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), *_normal(width),
            nn.Conv2d(width, 4, 3, 1, 1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, labels, latents):
        logits = self.body(torch.cat([latents, embedded(self.label, labels)], 1)).float()
        return torch.sigmoid(4 * logits - 1).clamp(CLAMP, 1 - CLAMP)  # starts with dark masks


class Texture(nn.Module):
    """Textures (B, 3, side, side): a canvas of each class, which goes round its edges, and a shift of its colour.

    A window of it, at a random place, is an image's texture: what varies in a texture is where one looks, and the
    latent varies its tint. A canvas of one pixel is a colour. The published networks tile what they make and cut a
    window out of it, for the same reason, and cost 29 million multiplications; here there is none.
    """

    STRIDE = 10.0  # Adam moves every weight alike; a canvas has to go further than the weights of a network

    def __init__(self, side):
        super().__init__()
        self.canvas = nn.Parameter(0.05 / self.STRIDE * torch.randn(CLASSES, 3, side, side))
        self.tint = nn.Linear(LATENT, 3, bias=False)

    def forward(self, labels, latents, stream):
        """Windows (B, 3, 32, 32) in [-1, 1]."""
        tint = 0.1 * self.tint(latents).float()[:, :, None, None]
        if soft(labels):
            canvases, labels = torch.einsum("bk,kchw->bchw", labels, self.canvas), None
        else:
            canvases = self.canvas
        return torch.tanh(self.STRIDE * windows(canvases, stream, labels) + tint)


class CGN(nn.Module):
    """Three mechanisms that share nothing, each with its own embedding of the label.

    width: channels of the shape's last layers; side: of the canvases. An image costs 2.7 million multiplications, and
    63 million in the published network.
    """

    def __init__(self, width=24, side=64):
        super().__init__()
        self.shape, self.object, self.background = Shape(width), Texture(side), Texture(side)

    def parts(self, labels, latents, stream):
        return Parts(self.shape(labels[0], latents[0]), *self.textures(labels, latents, stream))

    def textures(self, labels, latents, stream):
        """(object, background) alone, for a mask that comes from elsewhere."""
        return self.object(labels[1], latents[1], stream), self.background(labels[2], latents[2], stream)


class Discriminator(nn.Module):
    """Ours: logits (B,) of images (B, channels, 32, 32) and labels; spectral norm, label projection (Miyato 2018)."""

    def __init__(self, channels=3, width=24):
        super().__init__()
        act = lambda: nn.LeakyReLU(0.2, inplace=True)
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2), spectral_norm(nn.Conv2d(4 * channels, width, 3, 1, 1)), act(),
            spectral_norm(nn.Conv2d(width, 2 * width, 4, 2, 1)), act(),
            spectral_norm(nn.Conv2d(2 * width, 4 * width, 4, 2, 1)), act(),
            nn.Flatten(), spectral_norm(nn.Linear(64 * width, 4 * width)), act(),
        )  # fmt: skip
        self.out, self.label = nn.Linear(4 * width, 1), nn.Embedding(CLASSES, 4 * width)

    def forward(self, x, labels):
        h = self.body(x).float()
        return self.out(h).squeeze(1) + (h * self.label(labels)).sum(1) / h.shape[1] ** 0.5


# --- as published ------------------------------------------------------------------------------------


def _up(a, b):
    return nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)


class PublishedCGN(nn.Module):
    """The layers of the published MNIST CGN: one embedding for all mechanisms, instance norm and clamp of the mask.

    initialisation: (kind, gain), published: orthogonal 0.1 (colored), orthogonal 0.2 (double), normal 0.03 (wildlife).
    """

    def __init__(self, initialisation=None):
        super().__init__()
        self.label_emb = nn.Embedding(CLASSES, CLASSES)
        start = lambda: (nn.Linear(LATENT + CLASSES, 4096), nn.Unflatten(1, (64, 8, 8)))
        norm = nn.InstanceNorm2d
        texture = lambda: nn.Sequential(*start(), *_up(64, 64), *_up(64, 32), nn.Conv2d(32, 3, 3, 1, 1),
                                        nn.BatchNorm2d(3), nn.Tanh())  # fmt: skip
        self.f_shape = nn.Sequential(*start(), norm(64), *_up(64, 32), norm(32), *_up(32, 1), norm(1))
        self.f_text1, self.f_text2 = texture(), texture()
        if initialisation:
            _initialise(self, *initialisation)

    def parts(self, labels, latents, stream):
        shape, object_, background = (torch.cat([z, embedded(self.label_emb, y)], 1)
                                      for y, z in zip(labels, latents, strict=True))  # fmt: skip
        return Parts(self.f_shape(shape).float().clamp(CLAMP, 1 - CLAMP),
                     windows(self.f_text1(object_).float(), stream), windows(self.f_text2(background).float(), stream))


class LinearDiscriminator(nn.Module):
    """Published for colored and double-colored: four fully connected layers of 512 on pixels and a label embedding."""

    def __init__(self, width=512):
        super().__init__()
        self.label_embedding = nn.Embedding(CLASSES, CLASSES)
        layers = [nn.Linear(CLASSES + 3 * SIDE * SIDE, width), nn.LeakyReLU(0.2)]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.Dropout(0.4), nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x, labels):
        """Logits (B,), float32, of images (B, 3, 32, 32) in [-1, 1] and labels (B,)."""
        return self.model(torch.cat([x.flatten(1), self.label_embedding(labels)], 1)).squeeze(1).float()


class ConvDiscriminator(nn.Module):
    """Published for wildlife: convolutions of 32 to 128 channels, the label as a fourth channel of the image."""

    def __init__(self, width=32):
        super().__init__()
        self.label_embedding = nn.Embedding(CLASSES, 1)
        block = lambda a, b, kernel, stride: (nn.Conv2d(a, b, kernel, stride, bias=False), nn.BatchNorm2d(b),
                                              nn.LeakyReLU(0.2))  # fmt: skip
        self.model = nn.Sequential(*block(4, width, 3, 1), *block(width, 2 * width, 3, 1),
                                   *block(2 * width, 4 * width, 4, 2), *block(4 * width, 4 * width, 4, 2),
                                   nn.AvgPool2d(3), nn.Conv2d(4 * width, 1, 1, bias=False))  # fmt: skip
        _initialise(self, "normal", 0.02)

    def forward(self, x, labels):
        """Logits (B,), float32, of images (B, 3, 32, 32) in [-1, 1] and labels (B,)."""
        label = self.label_embedding(labels).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
        return self.model(torch.cat([x, label], 1)).flatten(1).squeeze(1).float()


def _initialise(model, kind, gain):
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            start = nn.init.orthogonal_ if kind == "orthogonal" else functools.partial(nn.init.normal_, mean=0.0)
            start(module.weight, **{"gain" if kind == "orthogonal" else "std": gain})
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ConditionalGAN(nn.Module):
    """The baseline without mechanisms: a conditional DCGAN in the layers of the replication's checkpoints (width 64).

    Its one label and its one latent are those of the shape; mask and background are empty.
    """

    def __init__(self, width=64):
        super().__init__()
        self.label_emb = nn.Embedding(CLASSES, CLASSES)
        layers, before = [], LATENT + CLASSES
        for channels, stride, padding in ((4 * width, 1, 0), (2 * width, 2, 1), (width, 2, 1)):
            layers += [nn.ConvTranspose2d(before, channels, 4, stride, padding, bias=False), nn.BatchNorm2d(channels),
                       nn.ReLU()]  # fmt: skip
            before = channels
        self.model = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())

    def parts(self, labels, latents, stream):
        x = self.model(torch.cat([latents[0], embedded(self.label_emb, labels[0])], 1)[:, :, None, None]).float()
        return Parts(torch.ones_like(x[:, :1]), x, torch.zeros_like(x))


# --- making and restoring --------------------------------------------------------------------------

MODELS = {"cgn": CGN, "published_cgn": PublishedCGN, "gan": ConditionalGAN}


def build(name, **settings):
    """A freshly initialised generator; raises UserError for a name that is not in MODELS."""
    return one_of(MODELS, "generator", name)(**settings)


def restore(state):
    """The generator in a checkpoint of cgn.train, or in a published state dict, in evaluation mode."""
    made, settings, weights = model_in(state)
    if not made:
        made, settings = ("published_cgn" if "f_shape.0.weight" in weights else "gan"), {}
    return load_weights(build(made, **settings), weights).eval()

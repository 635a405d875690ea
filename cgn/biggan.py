"""BigGAN-deep: a generator of images of a class, in the layout of the published weights.

Brock, Donahue and Simonyan 2019 (Large Scale GAN Training for High Fidelity Natural Image Synthesis, ICLR, arXiv
1809.11096), appendix B. The CGN of ImageNet takes the generator four times (Sauer and Geiger 2021): it says what images
should look like, and every mechanism starts from it.

    biggan-deep-128, -256, -512   the published generators, 1,000 classes of ImageNet
    objects64                     ours for 64 x 64 pixels and 10 classes: it costs 20 million multiplications an image

    model(latents, labels, truncation)      images (B, 3, H, W) in [-1, 1]
    model.sample(n, stream)                 the same of latents, and labels, that are drawn
    measure_statistics(model, stream)       after a training from zero: what batch norm uses in evaluation

Parameters are named as in the files that the repository huggingface/pytorch-pretrained-BigGAN links to, made there from
the authors' own; `load_published` reads them, `restore` reads our checkpoints. What it is trained against is in
discriminator.py.
"""

import copy
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cgn.mechanisms import soft
from experiment import UserError
from storage import load_checkpoint, load_weights, model_in, one_of

START = 4  # height and width of the first maps (published)
BOTTLENECK = 4  # inside a block there are a quarter of the channels (published)
STATISTICS = 51  # of batch norm: for the truncations 0, 0.02, ..., 1 (published)
LEAST = 1 / (STATISTICS - 1)  # the smallest truncation; at 0 there would be one image a class


class Config(NamedTuple):
    """What a generator and its discriminator are made of."""

    resolution: int  # height and width of the images
    classes: int
    latent: int  # numbers in a latent, and in the vector of a class
    width: int  # all numbers of channels are multiples of it; ch in the paper
    layers: tuple[tuple[bool, int, int], ...]  # blocks: (whether height and width double, channels in, out), over width
    attention: int  # there is self-attention before the block with this index
    fold: int = 1  # the last maps hold squares of so many pixels a side as channels; published: single pixels
    eps: float = 1e-4  # of batch norm and spectral norm


def _published(resolution, *layers):
    deepest = ((False, 16, 16), (True, 16, 16), (False, 16, 16), (True, 16, 8), (False, 8, 8))
    return Config(resolution, 1000, 128, 128, deepest + layers, attention=8)


_UP256 = ((True, 8, 8), (False, 8, 8), (True, 8, 4), (False, 4, 4), (True, 4, 2), (False, 2, 2), (True, 2, 1))
CONFIGS = {
    "biggan-deep-128": _published(128, *_UP256[2:]),
    "biggan-deep-256": _published(256, *_UP256),
    "biggan-deep-512": _published(512, *_UP256, (False, 1, 1), (True, 1, 1)),
    "objects64": Config(64, 10, 32, 16, ((True, 8, 8), (False, 8, 8), (True, 8, 4), (True, 4, 2)), attention=2, fold=2),
}


# --- layers ------------------------------------------------------------------------------------------


class Spectral(nn.Module):
    """A fully connected layer (out, in), or a convolution (out, in, k, k) that keeps the size, with spectral norm.

    The weight is divided by its largest singular value, as a matrix (out, rest), which power iteration follows (Miyato
    et al. 2018, algorithm 1): by a step in each pass in training, unless the weight requires no gradient, and not at
    all in evaluation. Torch's old spectral norm, from which the published names come, is deprecated and cannot be
    copied after a pass; its new one has other names.
    """

    def __init__(self, *shape, eps, bias=True):
        super().__init__()
        self.eps = eps
        self.register_parameter("bias", nn.Parameter(torch.zeros(shape[0])) if bias else None)
        self.weight_orig = nn.Parameter(nn.init.orthogonal_(torch.empty(shape)))  # as in the paper
        self.register_buffer("weight_u", torch.randn(shape[0]))
        self.register_buffer("weight_v", torch.empty(math.prod(shape[1:])))
        self._iterate()

    @torch.no_grad()
    def _iterate(self):
        matrix = self.weight_orig.flatten(1)
        self.weight_v.copy_(F.normalize(matrix.T @ self.weight_u, dim=0, eps=self.eps))
        self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=self.eps))

    def weight(self):
        with torch.autocast(self.weight_orig.device.type, enabled=False):
            if self.training and self.weight_orig.requires_grad:
                self._iterate()
            u, v = self.weight_u.clone(), self.weight_v.clone()  # backward needs them as they are now
            return self.weight_orig / torch.dot(u, self.weight_orig.flatten(1) @ v)

    def forward(self, x, first=None):
        """first: how many of the outputs are wanted; without, all."""
        weight, bias = self.weight()[:first], None if self.bias is None else self.bias[:first]
        return F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, padding="same")


class BatchNorm(nn.Module):
    """Batch norm whose gain and shift are linear in a condition (B, condition), or, without one, parameters.

    In training it uses the statistics of the batch, in evaluation those that were measured for 51 truncations, linearly
    interpolated. At multiples of 0.02 that is what the published code does; between two of them the published code
    gives the nearer one the smaller weight.
    """

    def __init__(self, channels, eps, condition=None):
        super().__init__()
        self.eps, self.conditional = eps, condition is not None
        self.register_buffer("running_means", torch.zeros(STATISTICS, channels))
        self.register_buffer("running_vars", torch.ones(STATISTICS, channels))
        if self.conditional:
            self.scale, self.offset = (Spectral(channels, condition, eps=eps, bias=False) for _ in range(2))
        else:
            self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def statistics(self, truncation):
        """(means, variances), each (channels,), at a truncation in [0, 1]."""
        place = truncation * (STATISTICS - 1)
        below = min(int(place), STATISTICS - 2)
        return tuple(torch.lerp(v[below], v[below + 1], place - below) for v in (self.running_means, self.running_vars))

    def forward(self, x, truncation, condition):
        if self.conditional:
            gain, shift = 1 + self.scale(condition), self.offset(condition)  # (B, channels)
        else:
            gain, shift = self.weight[None], self.bias[None]
        if self.training:
            x = F.batch_norm(x, None, None, training=True, eps=self.eps)
        else:
            mean, variance = self.statistics(truncation)
            gain = gain * torch.rsqrt(variance + self.eps)
            shift = shift - gain * mean
        gain, shift = (value[:, :, None, None].to(x.dtype) for value in (gain, shift))
        return torch.addcmul(shift, x, gain)


# --- generator -----------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Every place of maps (B, channels, H, W), H and W even, gathers from all others (Zhang et al. 2019)."""

    def __init__(self, channels, eps):
        super().__init__()
        conv = lambda out, into: Spectral(out, into, 1, 1, eps=eps, bias=False)
        self.snconv1x1_theta, self.snconv1x1_phi = (conv(channels // 8, channels) for _ in range(2))
        self.snconv1x1_g, self.snconv1x1_o_conv = conv(channels // 2, channels), conv(channels, channels // 2)
        self.gamma = nn.Parameter(torch.zeros(1))  # the weight of what is gathered

    def forward(self, x, *_):
        queries = self.snconv1x1_theta(x).flatten(2)  # (B, channels / 8, HW)
        keys = F.max_pool2d(self.snconv1x1_phi(x), 2).flatten(2)  # (B, channels / 8, HW / 4)
        values = F.max_pool2d(self.snconv1x1_g(x), 2).flatten(2)  # (B, channels / 2, HW / 4)
        shares = torch.softmax(queries.transpose(1, 2) @ keys, 2)  # (B, HW, HW / 4)
        gathered = (values @ shares.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.gamma * self.snconv1x1_o_conv(gathered)


class Bottleneck(nn.Module):
    """The four convolutions of a block, named as published."""

    def __init__(self, into, middle, out, eps):
        super().__init__()
        self.conv_0, self.conv_3 = Spectral(middle, into, 1, 1, eps=eps), Spectral(out, middle, 1, 1, eps=eps)
        self.conv_1, self.conv_2 = (Spectral(middle, middle, 3, 3, eps=eps) for _ in range(2))


class GenBlock(Bottleneck):
    """A residual block of the generator (appendix B): x without its last channels, plus four convolutions."""

    def __init__(self, into, out, condition, up, eps):
        super().__init__(into, into // BOTTLENECK, out, eps)
        self.out, self.enlarged = out, nn.Upsample(scale_factor=2) if up else nn.Identity()
        for number in range(4):
            self.add_module(f"bn_{number}", BatchNorm(into // BOTTLENECK if number else into, eps, condition))

    def forward(self, x, truncation, condition):
        active = lambda norm, h: F.relu(norm(h, truncation, condition), inplace=True)
        h = self.conv_0(active(self.bn_0, x))
        h = self.conv_1(self.enlarged(active(self.bn_1, h)))
        h = self.conv_2(active(self.bn_2, h))
        return self.conv_3(active(self.bn_3, h)) + self.enlarged(x[:, : self.out])


class Generator(nn.Module):
    """Images of conditions (B, 2 latent): of what `BigGAN` makes out of latents and labels."""

    def __init__(self, config):
        super().__init__()
        width, eps, condition = config.width, config.eps, 2 * config.latent
        self.channels, self.fold = config.layers[0][1] * width, config.fold
        self.gen_z = Spectral(START * START * self.channels, condition, eps=eps)
        layers = [GenBlock(into * width, out * width, condition, up, eps) for up, into, out in config.layers]
        layers.insert(config.attention, SelfAttention(config.layers[config.attention][1] * width, eps))
        self.layers, last = nn.ModuleList(layers), config.layers[-1][2] * width
        self.bn = BatchNorm(last, eps)
        self.conv_to_rgb = Spectral(last, last, 3, 3, eps=eps)  # only its first channels are used (published)

    def forward(self, condition, truncation):
        h = self.gen_z(condition).view(-1, START, START, self.channels).permute(0, 3, 1, 2)  # the authors' order
        for layer in self.layers:
            h = layer(h, truncation, condition)
        h = F.relu(self.bn(h, truncation, condition), inplace=True)
        return torch.tanh(F.pixel_shuffle(self.conv_to_rgb(h, first=3 * self.fold**2), self.fold).float())


def _mixed(vectors, labels):
    """The row (classes, D) of each label, or the mixture of rows that soft labels say."""
    return labels @ vectors if soft(labels) else vectors[labels]


class BigGAN(nn.Module):
    """The generator of a Config; frozen: batch norm keeps the measured statistics in training, too.

    That is how the published CGN trains it on; an image then depends on its own latent and label only.
    """

    def __init__(self, config, frozen=False):
        super().__init__()
        self.config, self.frozen = config, frozen
        self.embeddings = nn.Linear(config.classes, config.latent, bias=False)
        nn.init.orthogonal_(self.embeddings.weight)
        self.generator = Generator(config)

    def norms(self):
        """Its batch norms."""
        return [part for part in self.modules() if isinstance(part, BatchNorm)]

    def train(self, mode=True):
        super().train(mode)
        for norm in self.norms() if self.frozen else ():
            norm.training = False
        return self

    def forward(self, latents, labels, truncation=1.0):
        """Images (B, 3, H, W) in [-1, 1], float32.

        latents: (B, latent), of truncated_noise. labels: (B,), or shares of the classes (B, classes). truncation: the
        one that the latents were drawn with, from 0.02 to 1, else UserError; it says which statistics batch norm uses.
        """
        if not LEAST <= truncation <= 1:
            raise UserError(f"the truncation must be from {LEAST:g} to 1, not {truncation}")
        condition = torch.cat([latents, _mixed(self.embeddings.weight.T, labels)], 1)
        return self.generator(condition, truncation)

    def draw(self, n, stream, truncation=1.0, labels=None):
        """(latents, labels) of n images, of a CPU torch.Generator, on the model's device; labels: given, or any."""
        device = self.embeddings.weight.device
        latents = truncated_noise(n, self.config.latent, truncation, stream)
        labels = torch.randint(self.config.classes, (n,), generator=stream) if labels is None else labels
        return latents.to(device), labels.to(device)

    def sample(self, n, stream, labels=None, truncation=1.0):
        """n images; stream: a CPU torch.Generator. labels: as in forward; without, drawn evenly from all classes."""
        return self(*self.draw(n, stream, truncation, labels), truncation)


def truncated_noise(n, dim, truncation, stream):
    """Latents (n, dim): truncation times a standard normal cut at -2 and 2 (published; section 3.1 varies the cut)."""
    uniform = torch.rand(n, dim, generator=stream, dtype=torch.float64) * 2 - 1
    normal = math.sqrt(2) * torch.erfinv(math.erf(math.sqrt(2)) * uniform)  # erf: how much is within [-2, 2]
    return (truncation * normal.clamp(-2, 2)).float()


@torch.no_grad()
def measure_statistics(model, stream, n=512, batch=64, knots=11, labels=None):
    """Fill in what batch norm uses in evaluation: standing statistics (the paper's appendix C.1); returns the model.

    At each of `knots` truncations, at least 2, evenly from 0 to 1, n images are made as in training, in batches of
    about `batch`, and mean and variance are taken over all of them; the 51 that are kept are interpolated from these.
    The same latents, scaled, serve every truncation, so that they differ in nothing else. That is knots x n images
    without gradients, 5 s for objects64 on one core. labels: as in sample. Nothing else in the model changes.
    """
    pairs = list(zip(*(part.chunk(-(-n // batch)) for part in model.draw(n, stream, labels=labels)), strict=True))
    shares = torch.tensor([len(of) / n for _, of in pairs], device=pairs[0][0].device)[:, None]
    runs = [(some * truncation, of) for truncation in torch.linspace(0, 1, knots).tolist() for some, of in pairs]
    for norm, seen in zip(model.norms(), _batch_statistics(model, runs), strict=True):
        variances, means = seen.unflatten(0, (knots, len(pairs))).unbind(2)  # (knots, batches, channels)
        mean = (shares * means).sum(1)
        variance = (shares * (variances + (means - mean[:, None]).square())).sum(1)
        for kept, measured in ((norm.running_means, mean), (norm.running_vars, variance)):
            kept.copy_(F.interpolate(measured.T[None], STATISTICS, mode="linear", align_corners=True)[0].T)
    return model


def _batch_statistics(model, runs):
    """For each batch norm (runs, 2, channels): variance and mean of its input in each of the (latents, labels)."""
    model = copy.deepcopy(model).eval()  # in evaluation, so that no spectral norm moves
    seen = {norm: [] for norm in model.norms()}

    def look(norm, inputs):
        mean = inputs[0].float().mean((0, 2, 3), keepdim=True)
        variance = (inputs[0] - mean).square().mean((0, 2, 3))  # ten times as fast as torch.var_mean
        seen[norm].append(torch.stack([variance, mean.flatten()]))

    for norm in seen:
        norm.training = True
        norm.register_forward_pre_hook(look)
    for latents, labels in runs:
        model(latents, labels)
    return [torch.stack(found) for found in seen.values()]


# --- making and restoring ------------------------------------------------------------------------------


def build(config, frozen=False):
    """A freshly initialised generator by the name of its Config; raises UserError for one that is not in CONFIGS."""
    return BigGAN(one_of(CONFIGS, "BigGAN", config), frozen)


def _blank(config, frozen=False):
    """The same with memory that nothing was written to, for weights that are to be loaded."""
    with torch.device("meta"):
        model = build(config, frozen)
    return model.to_empty(device="cpu")


def load_published(path, name):
    """A frozen generator with the weights of a published file, pytorch_model.bin, in evaluation mode.

    name: of its Config. Raises UserError for a file that is absent, truncated, of another size or of something else.
    """
    model = _blank(name, frozen=True)
    if not Path(path).is_file():
        raise UserError(f"no weights at {path}; the pytorch_model.bin of {name} is meant, which the repository "
                        "huggingface/pytorch-pretrained-BigGAN links to")
    weights = load_checkpoint(path)
    shapes = lambda weights: {key: getattr(value, "shape", None) for key, value in weights.items()}
    for other in CONFIGS if shapes(weights) != shapes(model.state_dict()) else ():
        if shapes(weights) == shapes(_blank(other).state_dict()):
            raise UserError(f"{path} holds the weights of {other}, and those of {name} are wanted")
    return load_weights(model, weights).eval()


def restore(state):
    """The generator in a checkpoint of ours, in evaluation mode; UserError if it does not say which it is."""
    made, settings, weights = model_in(state)
    if made != "biggan" or not isinstance(settings.get("config"), str):
        raise UserError("this checkpoint does not say which BigGAN it is of; published ones are read by load_published")
    return load_weights(_blank(settings["config"]), weights).eval()

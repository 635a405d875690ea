"""Normalizing flows: exact bijections between images and a latent of the same dimension.

RealNVP (Dinh et al. 2017) and Glow (Kingma and Dhariwal 2018). A layer maps (B, C, H, W) to the same number of
values: `layer(h)` gives (output, log |det Jacobian| (B,)), `layer.inverse(h)` undoes it. A flow has the verbs of every
generative model of architecture.py, and its loss is in bits per dimension, so that it compares with published ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from experiment import UserError

# --- layers -----------------------------------------------------------------------------------


class Squeeze(nn.Module):
    """(B, C, H, W) to (B, 4 C, H / 2, W / 2): each 2 x 2 block becomes four groups of channels.

    The first two groups are one diagonal of the block, the other two the other: half of the channels is one colour of
    a checkerboard on the larger grid. A coupling between these halves is RealNVP's checkerboard coupling, at a quarter
    of the cost of one that runs its network over the larger grid.
    """

    ORDER = (0, 3, 1, 2)  # top left, bottom right; top right, bottom left
    BACK = (0, 2, 3, 1)

    def forward(self, h):
        b, c, height, width = h.shape
        h = h.view(b, c, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)  # (B, 2, 2, C, H / 2, W / 2)
        h = h.reshape(b, 4, c, height // 2, width // 2)[:, self.ORDER]
        return h.reshape(b, 4 * c, height // 2, width // 2), h.new_zeros(b)

    def inverse(self, h):
        b, c, height, width = h.shape
        h = h.view(b, 4, c // 4, height, width)[:, self.BACK].view(b, 2, 2, c // 4, height, width)
        return h.permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * height, 2 * width)


class Regroup(nn.Module):
    """Swap the second and third quarter of the channels: after Squeeze, rows of the 2 x 2 blocks instead of diagonals.

    It turns the checkerboard couplings that precede it into RealNVP's channel-wise couplings.
    """

    def forward(self, h):
        first, second, third, fourth = h.chunk(4, 1)
        return torch.cat([first, third, second, fourth], 1), h.new_zeros(len(h))

    def inverse(self, h):
        return self(h)[0]


class ActNorm(nn.Module):
    """A scale and shift for each channel, set by the first training batch to mean 0 and deviation 1 (Glow, 3.1)."""

    def __init__(self, channels):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def _start(self, h):
        self.shift.copy_(-h.mean((0, 2, 3), keepdim=True))
        self.log_scale.copy_(-(h.std((0, 2, 3), keepdim=True) + 1e-6).log())
        self.ready.fill_(True)

    def forward(self, h):
        if self.training and not self.ready:
            self._start(h)
        area = h.shape[2] * h.shape[3]
        return (h + self.shift) * self.log_scale.exp(), (self.log_scale.sum() * area).expand(len(h))

    def inverse(self, h):
        return h * torch.exp(-self.log_scale) - self.shift


class Mix(nn.Module):
    """Invertible 1 x 1 convolution in its LU parametrisation (Glow, 3.2): W = P L (U + diag(s)), P fixed."""

    def __init__(self, channels):
        super().__init__()
        matrix, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.register_buffer("permutation", matrix)
        self.register_buffer("sign", upper.diagonal().sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(upper.diagonal().abs().log())

    def factors(self):
        """L and U + diag(s), (C, C)."""
        lower = self.lower.tril(-1) + torch.eye(len(self.lower)).to(self.lower)
        return lower, self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())

    def forward(self, h):
        lower, upper = self.factors()
        weight = self.permutation @ lower @ upper
        area = h.shape[2] * h.shape[3]
        return F.conv2d(h, weight[:, :, None, None]), (self.log_diagonal.sum() * area).expand(len(h))

    def inverse(self, h):
        place = "cpu" if h.device.type == "mps" else h.device  # mps has no float64
        lower, upper, permutation = (matrix.to(place).double()  # a few channels: exactness costs nothing
                                     for matrix in (*self.factors(), self.permutation))
        half = torch.linalg.solve_triangular(lower, permutation.T, upper=False, unitriangular=True)
        weight = torch.linalg.solve_triangular(upper, half, upper=True).to(h)
        return F.conv2d(h, weight[:, :, None, None])


class Coupling(nn.Module):
    """One half of the channels scales and shifts the other (RealNVP, 3.1); with swap, the second half the first.

    net: from C / 2 channels to C (log-scale and shift), or to C / 2 if only shifts are wanted (additive coupling). The
    log-scale is bounded by a learned multiple of tanh, as in RealNVP.
    """

    def __init__(self, channels, net, swap, affine=True):
        super().__init__()
        self.net, self.swap, self.affine = net, swap, affine
        if affine:
            self.bound = nn.Parameter(torch.ones(1, channels // 2, 1, 1))

    def _maps(self, given):
        """Log-scale (or None) and shift that the given half implies."""
        out = self.net(given)
        if not self.affine:
            return None, out
        log_scale, shift = out.chunk(2, 1)
        return self.bound * torch.tanh(log_scale), shift

    def _halves(self, h):
        given, moved = h.chunk(2, 1)
        return (moved, given) if self.swap else (given, moved)

    def _whole(self, given, moved):
        return torch.cat([moved, given] if self.swap else [given, moved], 1)

    def forward(self, h):
        given, moved = self._halves(h)
        log_scale, shift = self._maps(given)
        if log_scale is None:
            return self._whole(given, moved + shift), h.new_zeros(len(h))
        return self._whole(given, moved * log_scale.exp() + shift), log_scale.flatten(1).sum(1)

    def inverse(self, h):
        given, moved = self._halves(h)
        log_scale, shift = self._maps(given)
        moved = moved - shift
        return self._whole(given, moved if log_scale is None else moved * torch.exp(-log_scale))


class ResidualNet(nn.Module):
    """Weight-normalised residual network of 3 x 3 convolutions; its last layer starts at zero (RealNVP, 3.2, 3.7)."""

    def __init__(self, inputs, outputs, hidden, blocks):
        super().__init__()
        conv = lambda a, b: weight_norm(nn.Conv2d(a, b, 3, padding=1))
        self.first = conv(inputs, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), conv(hidden, hidden), nn.ReLU(), conv(hidden, hidden)) for _ in range(blocks))
        self.last = nn.Conv2d(hidden, outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, h):
        h = self.first(h)
        for block in self.blocks:
            h = h + block(h)
        return self.last(F.relu(h))


def plain_net(inputs, outputs, hidden):
    """Glow's network: 3 x 3, 1 x 1, 3 x 3 convolutions; the last starts at zero (Glow, 3.3)."""
    net = nn.Sequential(nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(),
                        nn.Conv2d(hidden, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, outputs, 3, padding=1))
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    return net


class Prior(nn.Module):
    """Whitens the half of the channels that leaves the flow, by what the other half tells of it (Glow, appendix)."""

    def __init__(self, channels):
        super().__init__()
        self.net = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)

    def _maps(self, stays):
        mean, log_scale = self.net(stays).chunk(2, 1)
        return mean, 3 * torch.tanh(log_scale / 3)

    def forward(self, stays, leaves):
        mean, log_scale = self._maps(stays)
        return (leaves - mean) * torch.exp(-log_scale), -log_scale.flatten(1).sum(1)

    def inverse(self, stays, leaves):
        mean, log_scale = self._maps(stays)
        return leaves * log_scale.exp() + mean


# --- flows --------------------------------------------------------------------------------------


class _Inside(torch.autograd.Function):
    """Clamp to [0, 1]; where it clamps, the gradient passes if a descent along it leads back inside.

    That is the projected gradient: no pixel at the border is dead, and none is pushed out further.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        stuck = ((x < 0) & (grad > 0)) | ((x > 1) & (grad < 0))
        return grad.masked_fill(stuck, 0)


class Flow(nn.Module):
    """What RealNVP and Glow share: pixels to logits and back, levels that halve the channels, the density.

    shape: (C, H, W); H and W divisible by 2 to the number of levels. bits: the images are taken to have 2^bits grey
    levels; x in [0, 1] stands for level x (2^bits - 1). Training adds uniform noise within a level (dequantisation).
    margin: the levels' range (0, 1) is squeezed to (margin, 1 - margin) before the logit (RealNVP, 4.1: 0.05).
    A subclass gives `levels`: lists of layers; every level but the last sends half of its channels to the latent.
    """

    def __init__(self, shape, bits, margin, levels, priors=None):
        super().__init__()
        self.shape, self.bits, self.margin = tuple(shape), bits, margin
        self.latent = math.prod(self.shape)
        self.levels = nn.ModuleList(nn.ModuleList(layers) for layers in levels)
        self.priors = None if priors is None else nn.ModuleList(priors)

    @staticmethod
    def check(shape, levels):
        if any(side % 2**levels for side in shape[1:]):
            raise UserError(f"a flow of {levels} levels halves the sides {levels} times: {shape[1]} x {shape[2]} "
                            "is not divisible")

    def _unit(self, x):
        """Images in [0, 1] as positions in the unit interval of grey levels: the middle of x's level."""
        levels = 2**self.bits
        return (x * (levels - 1) + 0.5) / levels

    def _logit(self, u):
        """(y, log |dy / du| (B,)) of u in (0, 1)."""
        inner = self.margin + (1 - 2 * self.margin) * u
        slope = math.log(1 - 2 * self.margin) - inner.log() - torch.log1p(-inner)
        return inner.log() - torch.log1p(-inner), slope.flatten(1).sum(1)

    def _pixels(self, y):
        levels = 2**self.bits
        u = (torch.sigmoid(y) - self.margin) / (1 - 2 * self.margin)
        return _Inside.apply((u * levels - 0.5) / (levels - 1))

    def transform(self, y):
        """(z (B, D), log |det dz / dy| (B,)) of logits y (B, C, H, W)."""
        parts, h, total = [], y, y.new_zeros(len(y))
        for number, layers in enumerate(self.levels):
            for layer in layers:
                h, change = layer(h)
                total = total + change
            if number < len(self.levels) - 1:
                h, leaves = h.chunk(2, 1)
                if self.priors:
                    leaves, change = self.priors[number](h, leaves)
                    total = total + change
                parts.append(leaves.flatten(1))
        return torch.cat([*parts, h.flatten(1)], 1), total

    def inverse(self, z):
        """Logits y (B, C, H, W) of latents z (B, D)."""
        c, height, width = self.shape
        shapes = []
        for number in range(len(self.levels)):
            c, height, width = 4 * c, height // 2, width // 2
            if number < len(self.levels) - 1:
                c //= 2
            shapes.append((c, height, width))
        parts = z.split([math.prod(shape) for shape in shapes], 1)
        h = parts[-1].view(-1, *shapes[-1])
        for number in reversed(range(len(self.levels))):
            if number < len(self.levels) - 1:
                leaves = parts[number].view(-1, *shapes[number])
                leaves = self.priors[number].inverse(h, leaves) if self.priors else leaves
                h = torch.cat([h, leaves], 1)
            for layer in reversed(self.levels[number]):
                h = layer.inverse(h)
        return h

    def encode(self, x):
        """The latent (B, D) of images x (B, C, H, W) in [0, 1]; decode gives them back. UserError for another size."""
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"this {type(self).__name__} takes images (B, {', '.join(map(str, self.shape))}), "
                            f"not {tuple(x.shape)}")
        return self.transform(self._logit(self._unit(x))[0])[0]

    def decode(self, z):
        """Images (B, C, H, W) in [0, 1] of latents z (B, D)."""
        return self._pixels(self.inverse(z))

    def sample(self, n, stream, temperature=1.0):
        """n images from z ~ N(0, temperature^2 I); stream: a CPU torch.Generator."""
        z = torch.randn(n, self.latent, generator=stream) * temperature
        return self.decode(z.to(next(self.parameters())))

    def loss(self, x, noise):
        """{"bits_per_dim": (B,)}: an upper bound of -log2 p(levels of x) / D, Theis et al. 2016, section 3.1.

        x: images in [0, 1], taken to the nearest lower of the 2^bits levels; noise: (B, C, H, W) uniform in [0, 1).
        """
        levels = 2**self.bits
        level = (x * 255).round().div(256 // levels, rounding_mode="floor") if levels < 256 else (x * 255).round()
        y, slope = self._logit((level + noise.clamp(1e-5, 1 - 1e-5)) / levels)
        z, change = self.transform(y)
        log_density = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1) + change + slope
        return {"bits_per_dim": self.bits - log_density / (self.latent * math.log(2))}


class RealNVP(Flow):
    """Multi-scale RealNVP: at each level checkerboard couplings, then channel-wise ones, between actnorms.

    couplings: of each of the two kinds, in every level. The defaults have 1.4 million parameters.
    """

    def __init__(self, shape=(1, 28, 28), bits=8, margin=0.05, levels=2, couplings=4, hidden=48, blocks=2):
        self.check(shape, levels)
        made, channels = [], shape[0]
        for _ in range(levels):
            channels *= 4
            layers = [Squeeze()]
            for kind in ("checkerboard", "channels"):
                layers += [Regroup()] * (kind == "channels")
                for k in range(couplings):
                    net = ResidualNet(channels // 2, channels, hidden, blocks)
                    layers += [ActNorm(channels), Coupling(channels, net, swap=k % 2 == 1)]
            made.append(layers)
            channels //= 2
        super().__init__(shape, bits, margin, made)


class Glow(Flow):
    """Glow: at each level steps of actnorm, invertible 1 x 1 convolution and coupling, then a learned split prior."""

    def __init__(self, shape=(3, 64, 64), bits=5, margin=0.05, levels=3, steps=8, hidden=64, affine=True):
        self.check(shape, levels)
        made, priors, channels = [], [], shape[0]
        for number in range(levels):
            channels *= 4
            layers = [Squeeze()]
            for _ in range(steps):
                net = plain_net(channels // 2, channels if affine else channels // 2, hidden)
                layers += [ActNorm(channels), Mix(channels), Coupling(channels, net, swap=False, affine=affine)]
            made.append(layers)
            channels //= 2
            if number < levels - 1:
                priors.append(Prior(channels))
        super().__init__(shape, bits, margin, made, priors)

"""Generative adversarial networks: DCGAN and a progressively grown GAN. They encode by optimisation.

Both keep a running average of the generator's weights (Karras et al. 2018, section 5), which is what decodes and
samples. The verbs are those of every generative model of architecture.py; a GAN has no likelihood, so its `loss` is
that of the game, and what is logged of its samples is a distance (tasks.py).
"""

import copy
import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

import experiment
from experiment import UserError

# --- what every GAN does -----------------------------------------------------------------------


class GAN(nn.Module):
    """A generator, its running average and a discriminator for images of `shape` (C, H, W).

    A subclass calls `_finish(generator, discriminator)`. The generator maps latents (B, latent) to tanh outputs in
    [-1, 1], which become images in [0, 1]; the discriminator sees images in [-1, 1] and gives logits (B,).
    """

    BETAS = (0.5, 0.999)  # of Adam
    DECAY = 0.995  # of the running average, a step
    PENALTY = 0.0  # weight of the R1 penalty

    def __init__(self, shape, latent):
        super().__init__()
        self.shape, self.latent = tuple(shape), latent

    def _finish(self, generator, discriminator):
        self.generator, self.discriminator = generator, discriminator
        self.average = copy.deepcopy(generator).requires_grad_(False).eval()

    def train(self, mode=True):
        super().train(mode)
        self.average.eval()  # its normalisations are averages too
        return self

    @torch.no_grad()
    def follow(self):
        """Move the running average towards the generator: after every step."""
        for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - self.DECAY)
        for mean, now in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mean.copy_(now)

    def grow(self, progress):
        """Set the resolution for this share (0 to 1) of the training; only the progressive GAN grows."""

    def decode(self, z):
        """Images (B, C, H, W) in [0, 1] of latents (B, latent)."""
        return (self.average(z) + 1) / 2

    def noise(self, n, stream):
        """(n, latent) standard normal draws of a CPU generator, on the model's device."""
        return torch.randn(n, self.latent, generator=stream).to(next(self.parameters()).device)

    def sample(self, n, stream):
        """n images from z ~ N(0, I); stream: a CPU torch.Generator."""
        return self.decode(self.noise(n, stream))

    def critic_loss(self, x, z):
        """{"critic": (B,), "penalty": (B,)} of real images x in [0, 1] and latents z of as many fakes."""
        with torch.no_grad():
            fake = self.generator(z)
        real = x * 2 - 1
        terms = {"critic": F.softplus(-self.discriminator(real)) + F.softplus(self.discriminator(fake))}
        if self.PENALTY:  # R1: the squared slope at real images (Mescheder et al. 2018); on a quarter of them
            some = real[: -(-len(real) // 4)].clone().requires_grad_()
            slope = torch.autograd.grad(self.discriminator(some).sum(), some, create_graph=True)[0]
            terms["penalty"] = (self.PENALTY / 2 * slope.square().flatten(1).sum(1)).mean().expand(len(x))
        return terms

    def generator_loss(self, z):
        """{"generator": (B,)}: the non-saturating loss (Goodfellow et al. 2014, section 3)."""
        return {"generator": F.softplus(-self.discriminator(self.generator(z)))}

    def loss(self, x, z):
        """Both players' terms, each (B,); in training each player steps on its own (tasks.py)."""
        return self.critic_loss(x, z) | self.generator_loss(z)

    def encode(self, x, starts=4, trial=40, steps=200, lr=0.1, good=1e-3):
        """Latents (B, latent) whose images are near x (B, C, H, W) in squared error, by Adam from several starts.

        All images and starts go at once: `starts` latents an image for `trial` steps, then the best of them for the
        rest, until every mean squared error is below `good`. Keeps each image's best latent. The starts are a fixed
        stream: the same images have the same latents. But an image that is below `good` already goes on improving
        while others beside it are not, so that its latent depends a little on which these are.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"this {type(self).__name__} takes images (B, {', '.join(map(str, self.shape))}), "
                            f"not {tuple(x.shape)}")
        first = self.noise(starts, experiment.generator(0, "encoding")).repeat(len(x), 1)  # (B starts, latent)
        z, errors = self._approach(first, x.repeat_interleave(starts, 0), trial, lr, good)
        best = errors.view(-1, starts).argmin(1) + starts * torch.arange(len(x), device=x.device)
        return self._approach(z[best], x, steps - trial, lr, good)[0]

    def _approach(self, z, x, steps, lr, good):
        """(best latents, their mean squared errors) met in `steps` steps of Adam from z, row by row."""
        with torch.enable_grad():
            z = z.clone(memory_format=torch.contiguous_format).requires_grad_()
            optimizer = torch.optim.Adam([z], lr, fused=True)
            best, lowest = z.detach().clone(), torch.full((len(z),), math.inf, device=z.device)
            for step in range(steps + 1):  # the last latent is tried too
                errors = (self.decode(z) - x).square().flatten(1).mean(1)
                better = errors.detach() < lowest
                lowest = torch.where(better, errors.detach(), lowest)
                best = torch.where(better.unsqueeze(1), z.detach(), best)
                if step == steps or bool((lowest < good).all()):
                    return best, lowest
                z.grad = torch.autograd.grad(errors.sum(), z)[0].contiguous()  # the fused Adam ignores strides
                optimizer.step()


# --- DCGAN ---------------------------------------------------------------------------------------


class DCGAN(GAN):
    """Deep convolutional GAN (Radford et al. 2016): strided (transposed) convolutions with batch normalisation.

    width: channels next to the image, 32 as in Diffeomorphic Counterfactuals; sides divisible by four.
    """

    def __init__(self, shape=(1, 28, 28), latent=100, width=32):
        super().__init__(shape, latent)
        channels, side = shape[0], shape[1] // 4
        if shape[1] != shape[2] or shape[1] % 4:
            raise UserError(f"a DCGAN makes squares with sides divisible by 4, not {shape[1]} x {shape[2]}")
        up = lambda a, b: nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False)
        down = lambda a, b: nn.Conv2d(a, b, 4, stride=2, padding=1, bias=False)
        generator = nn.Sequential(
            nn.Linear(latent, 2 * width * side * side, bias=False), nn.Unflatten(1, (2 * width, side, side)),
            nn.BatchNorm2d(2 * width), nn.ReLU(), up(2 * width, width), nn.BatchNorm2d(width), nn.ReLU(),
            up(width, width), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh(),
        )  # fmt: skip
        discriminator = nn.Sequential(
            down(channels, width), nn.LeakyReLU(0.2), down(width, 2 * width), nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(2 * width * side * side, 1), nn.Flatten(0),
        )  # fmt: skip
        for module in [*generator.modules(), *discriminator.modules()]:
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                nn.init.normal_(module.weight, 0, 0.02)  # section 4
        self._finish(generator, discriminator)


# --- progressive GAN --------------------------------------------------------------------------------


HE = math.sqrt(2)  # gain of a layer before a rectifier (He et al. 2015)


class _Equal(nn.Module):
    """A layer with weights N(0, 1) that are scaled at run time (equalised learning rate, Karras et al. 2018, 4.1)."""

    def __init__(self, layer, gain=HE):
        super().__init__()
        self.layer = layer
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        self.scale = gain / math.sqrt(layer.weight[0].numel())

    def forward(self, h):
        bias = self.layer.bias.view(1, -1, *[1] * (h.dim() - 2))
        return self._plain(h * self.scale) + bias

    def _plain(self, h):
        if isinstance(self.layer, nn.Linear):
            return F.linear(h, self.layer.weight)
        return F.conv2d(h, self.layer.weight, padding=self.layer.padding)


def _conv(a, b, kernel=3, gain=HE):
    return _Equal(nn.Conv2d(a, b, kernel, padding=kernel // 2), gain)


def pixel_norm(h):
    """Each position's (or latent's) features divided by their root mean square (4.2)."""
    return h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-8)


def deviation_map(h, group=4):
    """h with one more channel: the mean deviation within groups of the batch (minibatch deviation, section 3)."""
    size = group if len(h) % group == 0 else len(h)
    grouped = h.view(size, -1, *h.shape[1:])
    mean = (grouped.var(0, unbiased=False) + 1e-8).sqrt().flatten(1).mean(1)  # (B / size,)
    return torch.cat([h, mean.repeat(size).view(-1, 1, 1, 1).expand(-1, 1, *h.shape[2:])], 1)


def _widths(width, stages):
    """Channels at each resolution, coarsest first: halved beyond the second, at least 16."""
    return [max(min(16, width), width >> max(0, stage - 1)) for stage in range(stages + 1)]


class _Growing(nn.Module):
    """What generator and discriminator share: `depth`, the resolutions in use; 1.3 = the second is 30 % faded in."""

    def __init__(self, stages):
        super().__init__()
        self.stages = stages
        self.register_buffer("depth", torch.tensor(float(stages)))

    def level(self):
        """(number of the finest resolution in use, its share in the output)."""
        depth = float(self.depth)
        whole = min(math.ceil(depth), self.stages)
        return whole, depth - whole + 1


class _Generator(_Growing):
    def __init__(self, channels, base, stages, latent, width):
        super().__init__(stages)
        self.base, self.width, widths = base, width, _widths(width, stages)
        self.first = _Equal(nn.Linear(latent, width * base * base))
        self.start = _conv(width, width)
        self.blocks = nn.ModuleList(nn.ModuleList([_conv(a, b), _conv(b, b)]) for a, b in itertools.pairwise(widths))
        self.image = nn.ModuleList(_conv(a, channels, 1, gain=1.0) for a in widths)

    def forward(self, z):
        act = lambda h: pixel_norm(F.leaky_relu(h, 0.2))
        h = act(self.first(pixel_norm(z)).view(-1, self.width, self.base, self.base))
        h = act(self.start(h))
        level, share = self.level()
        before = h
        for one, two in list(self.blocks)[:level]:
            before, h = h, F.interpolate(h, scale_factor=2)
            h = act(two(act(one(h))))
        out = self.image[level](h)
        if level and share < 1:
            out = torch.lerp(F.interpolate(self.image[level - 1](before), scale_factor=2), out, share)
        return torch.tanh(F.interpolate(out, scale_factor=2 ** (self.stages - level)) if level < self.stages else out)


class _Discriminator(_Growing):
    def __init__(self, channels, base, stages, width):
        super().__init__(stages)
        widths = _widths(width, stages)
        self.image = nn.ModuleList(_conv(channels, a, 1) for a in widths)
        self.blocks = nn.ModuleList(nn.ModuleList([_conv(b, b), _conv(b, a)]) for a, b in itertools.pairwise(widths))
        self.end = _conv(width + 1, width)
        self.last = nn.Sequential(nn.Flatten(), _Equal(nn.Linear(width * base * base, width)), nn.LeakyReLU(0.2),
                                  _Equal(nn.Linear(width, 1), gain=1.0), nn.Flatten(0))  # fmt: skip

    def forward(self, x):
        act = lambda h: F.leaky_relu(h, 0.2)
        level, share = self.level()
        x = F.avg_pool2d(x, 2 ** (self.stages - level)) if level < self.stages else x
        h = act(self.image[level](x))
        for number in reversed(range(level)):
            one, two = self.blocks[number]
            h = F.avg_pool2d(act(two(act(one(h)))), 2)
            if number == level - 1 and share < 1:
                h = torch.lerp(act(self.image[level - 1](F.avg_pool2d(x, 2))), h, share)
        return self.last(act(self.end(deviation_map(h))))


class ProgressiveGAN(GAN):
    """Progressively grown GAN (Karras et al. 2018): resolutions fade in one after another.

    The sides are the base times a power of two; the base is odd or 4 (28 grows 7, 14, 28; 64 grows 4, 8, ..., 64).
    The loss is the non-saturating one with an R1 penalty: the paper's WGAN-GP needs several critic steps for each of
    the generator's.
    """

    BETAS = (0.0, 0.99)
    PENALTY = 5.0

    def __init__(self, shape=(1, 28, 28), latent=64, width=48):
        super().__init__(shape, latent)
        base, stages = shape[1], 0
        while base % 2 == 0 and base > 4:
            base, stages = base // 2, stages + 1
        if shape[1] != shape[2] or base > 16:
            raise UserError(f"a progressive GAN makes squares that halve down to 16 or less, not {shape[1:]}")
        self._finish(_Generator(shape[0], base, stages, latent, width), _Discriminator(shape[0], base, stages, width))

    def grow(self, progress):
        """Half of the training grows, in equal parts for each resolution (half fading, half settled).

        Called once an epoch (tasks.py): with few epochs hardly one of them is fading; of the six of the recipe, at 28
        pixels, none. best.pt is chosen over all epochs, whatever their resolution: a coarse one may be the best.
        """
        stages = self.generator.stages
        passed = min(progress * 2, 1.0) * (stages + 1)  # the first resolution takes one part as well
        whole = int(passed)
        depth = min(float(stages), max(0.0, whole - 1 + min(1.0, 2 * (passed - whole))))
        for part in (self.generator, self.average, self.discriminator):
            part.depth.fill_(depth)

"""Counterfactual and factual images of a batch (Chang, Adam and Goldenberg 2021, section 3), all on the device.

A counterfactual has its foreground painted over: it is no longer an image of its label. The whole box is filled, so
that the outline gives nothing away. A factual keeps the foreground, along its mask, and gets another background: its
label stays. Both take a Batch and give images (B, 3, H, W) in [-1, 1].

    counterfactual  mean, random, shuffle, tile, cagan
    factual         random, shuffle, mixed_rand, fgsm, pgd

An image whose foreground is not known has neither: `usable` says which have. Draws come from a CPU torch.Generator.
"""

import torch
import torch.nn.functional as F

from experiment import UserError
from robust_training.batch import extent
from storage import one_of

NOISE = 0.2  # of "random": deviation of a pixel around the image's colour, in [0, 1] (published)
EPS, RATE = 0.6, 1.25  # fgsm and pgd: largest change of a pixel in [-1, 1], and a step in units of it (published)
PGD_STEPS = 40  # published


def usable(batch, what):
    """Boolean (B,): the images that have such an augmentation.

    counterfactual: a foreground is known, and for "tile" some strip of background beside its box. mixed_rand: there is
    an image of another class in the batch whose background can be laid under this one: none in a batch of one.
    """
    if what == "tile":
        return batch.known & (strips(batch.rectangles)[0] > 0)
    if what == "mixed_rand":
        return batch.known & (_partners(batch).any(1))
    return batch.known


# --- counterfactuals: the foreground infilled -----------------------------------------------------


def counterfactual(name, batch, stream):
    """Images whose box is infilled in the way called `name`.

    Raises UserError for an unknown name, and for cagan if the batch has no infills.
    """
    make = one_of(COUNTERFACTUALS, "counterfactual infill", name)
    return torch.where(batch.rectangles, make(batch, stream), batch.images)


def grey(batch, stream):
    """The mean of all images: 0, which is grey (published)."""
    return torch.zeros_like(batch.images)


def noise(batch, stream):
    """One random colour an image, uniform in [0, 1], and Gaussian noise around it, cut to the range (published)."""
    b, c, h, w = batch.images.shape
    colours = torch.rand(b, c, 1, 1, generator=stream)
    pixels = (colours + NOISE * torch.randn(b, c, h, w, generator=stream)).clamp(0, 1)
    return (pixels * 2 - 1).to(batch.images.device)


def shuffled(images, region, stream):
    """The pixels of a region (B, 1, H, W) in another order, each image by itself, channels together."""
    inside = region.flatten(1)
    image, pixel = inside.nonzero(as_tuple=True)  # image by image
    orders, start = [], 0
    for size in inside.sum(1).tolist():
        orders.append(start + torch.randperm(size, generator=stream))
        start += size
    source = torch.cat(orders).to(images.device)
    made = images.flatten(2).transpose(1, 2).clone()  # (B, HW, C): the channels of a pixel lie together
    made[image, pixel] = made[image[source], pixel[source]]
    return made.transpose(1, 2).reshape(images.shape)


def strips(rectangles):
    """(area, first row, rows, first column, columns), each (B,): the largest strip of background beside the box.

    It runs along the whole height on the left or right of the box, or along the whole width above or below it. Area 0
    where the box leaves none.
    """
    height, width = rectangles.shape[2:]
    top, bottom, left, right = extent(rectangles)
    zero, high, wide = torch.zeros_like(top), torch.full_like(top, height), torch.full_like(top, width)
    choices = torch.stack([  # (4, 5, B)
        torch.stack([left * height, zero, high, zero, left]),
        torch.stack([(width - right) * height, zero, high, right, width - right]),
        torch.stack([top * width, zero, top, zero, wide]),
        torch.stack([(height - bottom) * width, bottom, height - bottom, zero, wide]),
    ])  # fmt: skip
    best = choices[:, 0].argmax(0)
    return choices[best, :, torch.arange(len(best), device=best.device)].unbind(1)


def tiled(images, rectangles):
    """Images covered by repetitions of their largest strip of background; grey where there is none."""
    b, c, h, w = images.shape
    area, row, rows, column, columns = (part[:, None] for part in strips(rectangles))
    wrap = lambda size, start, period: start + (torch.arange(size, device=images.device) - start) % period.clamp(min=1)
    y, x = wrap(h, row, rows), wrap(w, column, columns)  # (B, H), (B, W)
    source = (y[:, :, None] * w + x[:, None]).view(b, 1, h * w).clamp(0, h * w - 1)
    return images.flatten(2).gather(2, source.expand(-1, c, -1)).view(b, c, h, w) * (area > 0)[:, :, None, None]


def cagan(batch, stream):
    """What an inpainting network has painted into the box beforehand."""
    if batch.infills is None:
        raise UserError("cagan needs infills: of an inpainter (python -m robust_training.inpaint trains one) or a "
                        "folder of them (--infills)")
    return batch.infills


COUNTERFACTUALS = {
    "mean": grey,
    "random": noise,
    "shuffle": lambda batch, stream: shuffled(batch.images, batch.rectangles, stream),
    "tile": lambda batch, stream: tiled(batch.images, batch.rectangles),
    "cagan": cagan,
}


# --- factuals: the background swapped -------------------------------------------------------------


def factual(name, batch, stream, gradient=None, steps=PGD_STEPS):
    """Images with their foreground and another background, made in the way called `name`.

    gradient(images, labels): that of the classifier's loss with respect to the images, for fgsm and pgd; steps: of
    pgd. An image that is not `usable` is given back as it is. Raises UserError for an unknown name.
    """
    make = one_of(FACTUALS, "background swap", name)
    more = {"fgsm": (gradient, 1), "pgd": (gradient, steps)}.get(name, ())
    kept = batch.masks | ~usable(batch, name)[:, None, None, None]
    return torch.where(kept, batch.images, make(batch, stream, *more))


def _partners(batch):
    """(B, B), boolean: which images may lend image i their background."""
    return (batch.labels[:, None] != batch.labels) & batch.known & (strips(batch.rectangles)[0] > 0)


def mixed_rand(batch, stream):
    """The tiled background of a random image of another class in the batch; the image itself where there is none."""
    allowed = _partners(batch)
    keys = torch.rand(allowed.shape, generator=stream).to(allowed.device) * allowed
    index = keys.argmax(1)
    return tiled(batch.images[index], batch.rectangles[index])


def attack(batch, stream, gradient, steps):
    """Backgrounds moved against the classifier, at most EPS a pixel: from a random start, by the sign of the gradient.

    One step of RATE * EPS is fgsm (Wong et al. 2020); pgd takes more of the same, each cut back to EPS.
    """
    background = ~batch.masks
    start = EPS * (2 * torch.rand(batch.images.shape, generator=stream) - 1).to(batch.images.device)
    change = start * background
    for _ in range(steps):
        moved = (batch.images + change).clamp(-1, 1)
        step = RATE * EPS * gradient(moved, batch.labels).sign() * background
        change = (change + step).clamp(-EPS, EPS)
    return (batch.images + change).clamp(-1, 1)


FACTUALS = {
    "random": noise,
    "shuffle": lambda batch, stream: shuffled(batch.images, ~batch.masks, stream),
    "mixed_rand": mixed_rand,
    "fgsm": attack,
    "pgd": attack,
}


# --- baselines that change images -----------------------------------------------------------------


def grid_mask(images, stream, periods, ratio, share):
    """GridMask (Chen et al. 2020): a grid of grey squares over a random `share` of the images.

    periods: (least, most) period of the grid in pixels; the squares' side is (1 - ratio) of it. Chang et al., for 224
    pixels: periods 96 to 224, ratio .6, share .8.
    """
    b, _, h, w = images.shape
    period = torch.randint(periods[0], periods[1] + 1, (b, 1), generator=stream).to(images.device)
    offset = (torch.rand(2, b, 1, generator=stream).to(images.device) * period).long()
    hidden = (period * (1 - ratio)).round().long().clamp(min=1)
    rows, columns = ((torch.arange(size, device=images.device) + start) % period < hidden
                     for size, start in zip((h, w), offset, strict=True))
    chosen = (torch.rand(b, generator=stream) < share).to(images.device)
    grid = rows[:, None, :, None] & columns[:, None, None] & chosen[:, None, None, None]
    return images.masked_fill(grid, 0)


def mixup(images, targets, alpha, stream):
    """Mixup (Zhang et al. 2018): convex combinations of pairs, with targets (B, C) alike; shares from Beta(a, a)."""
    a, b = (torch._standard_gamma(torch.full((len(images),), alpha), generator=stream) for _ in range(2))
    share = (a / (a + b).clamp(min=1e-12)).to(images.device)
    order = torch.randperm(len(images), generator=stream).to(images.device)
    return (torch.lerp(images[order], images, share[:, None, None, None]),
            torch.lerp(targets[order], targets, share[:, None]))  # fmt: skip


def smoothed(labels, classes, smoothing):
    """Targets (B, C) of labels (B,): 1 - smoothing on the label, smoothing spread evenly over all classes."""
    return (1 - smoothing) * F.one_hot(labels, classes).float() + smoothing / classes

"""An image in the style of generated textures, on a walk through labels and latents of the texture mechanism.

    python -m cgn.stylise                                    # an image of the made set; 15 s
    python -m cgn.stylise --image FILE.jpg --size 128 --features vgg16

At every point of the walk the texture mechanism of a CGN of objects paints a texture, and the pixels of the image are
moved by Adam until its Gram matrices are those of the texture while its features stay those of the image (Gatys, Ecker
and Bethge 2016, "Image style transfer using convolutional neural networks", equations 1, 3 to 5 and 7). Sauer's blog
post of 2021 ("Counterfactual Generative Networks") has the idea. All points start from the image itself and are moved
at once, each as if it were alone: faster than one after the other, and no point carries what others left behind.
Writes stylised.png, a sheet, and stylised.gif, the whole walk, into results/cgn/.
"""

from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from tqdm import tqdm

import datasets
import experiment
import figures
from cgn import dance, losses, objects, objects64
from public_sets import open_image, to_tensor

# --- what is stylised ------------------------------------------------------------------------------
IMAGE: Path | None = None  # an image file; by default the first test image of the made set
RUN: Path = Path("runs/cgn_objects64")  # run folder of cgn.train_objects, or the published file
SIZE: experiment.Count | None = None  # side of the stylised image in pixels; by default that of the textures
SEED: experiment.Index = 0  # names the streams of classes and latents
TRUNCATION: experiment.Fraction = 1.0  # of the latents
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/cgn")  # where sheet and GIF go

# --- the walk and the style -------------------------------------------------------------------------
STOPS: Annotated[int, experiment.Check(lambda v: v >= 2, "a whole number of at least 2")] = 4  # classes on the way
POINTS: experiment.Count = 24  # textures on the way, which ends where it began
FEATURES: Literal["random", "vgg16"] = "random"  # network whose features are compared
WEIGHT: experiment.NotNegative = 10.0  # of the style beside the content
STEPS: experiment.Count = 120  # of Adam
LR: experiment.Positive = 0.03  # of Adam, on pixels in [-1, 1]

OCTAVES = 3  # the style is compared at so many sizes of the image, each half of the one before
BATCH = 12  # points at once
SHOWN = 8  # points on the sheet
PAUSE = 120  # milliseconds a frame
SMALLEST, LARGEST = 32, 1024  # sides of an image; at the last octave of the smallest, VGG16 has one pixel left


# --- textures ---------------------------------------------------------------------------------------


def walk(stops, points, classes, latent, seed):
    """(soft labels (points, classes), latents (points, latent)) of a closed way through `stops` classes.

    Between two stops the shares of the labels go linearly, the latents along a great circle. Raises UserError if there
    are fewer classes than stops.
    """
    if stops > classes:
        raise experiment.UserError(f"--stops {stops}: the generator has {classes} classes")
    order = torch.randperm(classes, generator=experiment.generator(seed, "style classes"))[:stops]
    round_trip = lambda corners: torch.cat([corners, corners[:1]])
    positions = torch.arange(points) * (stops / points)
    first, corners = positions.long(), round_trip(F.one_hot(order, classes).float())
    labels = torch.lerp(corners[first], corners[first + 1], (positions - first)[:, None])
    return labels, dance.along(round_trip(dance.anchors(stops, latent, seed, "style anchor")), positions)


@torch.no_grad()
def paint(model, labels, latents, truncation):
    """Textures (points, 3, H, W) in [-1, 1] of the texture mechanism; the other two have the same label."""
    pairs = zip(labels.split(dance.BATCH), (truncation * latents).split(dance.BATCH), strict=True)
    return torch.cat([model.parts((y,) * 3, z, truncation=truncation).object for y, z in pairs])


# --- style and content --------------------------------------------------------------------------------


def statistics(network, images):
    """(the deepest maps of the images, [Gram matrices (B, C, C) of every layer at every octave])."""
    deepest, grams = None, []
    for octave in range(OCTAVES):
        maps = network(F.avg_pool2d(images, 2**octave) if octave else images)
        deepest = maps[-1] if deepest is None else deepest
        grams += [losses.gram(layer) for layer in maps]
    return deepest, grams


def relative(values, wanted):
    """Squared distance (B,) of each of a batch from what is wanted, in units of the size of the latter."""
    return (values - wanted).square().flatten(1).mean(1) / wanted.square().flatten(1).mean(1).clamp(1e-12)


def style_loss(grams, targets):
    """Distance (B,) of Gram matrices, averaged over layers and octaves, which count alike (equations 4 and 5)."""
    return torch.stack([relative(*pair) for pair in zip(grams, targets, strict=True)]).mean(0)


def stylise(network, content, textures, weight, steps, lr):
    """(images (P, 3, H, W) in [-1, 1], style losses (steps + 1, P) before every step and at the end).

    content: (1, 3, H, W); textures: (P, 3, h, w), of any size. Minimises content + weight * style (equation 7) for each
    texture by itself, from the content on. From step to step the image is moved by a pixel to one of four places, so
    that features of every second pixel see all pixels alike; they would leave a checkerboard.
    """
    moved = lambda x, step: x.roll((step % 2, step // 2 % 2), (2, 3))
    start = content.repeat(len(textures), 1, 1, 1)  # as many as there will be images, so that rounding is the same, too
    with torch.no_grad():
        wanted = [statistics(network, moved(start, step))[0] for step in range(4)]
        targets = statistics(network, textures)[1]
    images, course = start.clone().requires_grad_(), []
    adam = torch.optim.Adam([images], lr)  # moves every pixel by itself, and so every image
    for step in range(steps + 1):
        maps, grams = statistics(network, moved(images, step))
        style = style_loss(grams, targets)
        course.append(style.detach())
        if step < steps:
            loss = relative(maps, wanted[step % 4]) + weight * style
            images.grad = torch.autograd.grad(loss.sum(), images)[0]
            adam.step()
            with torch.no_grad():
                images.clamp_(-1, 1)
    return images.detach(), torch.stack(course)


# --- files ------------------------------------------------------------------------------------------


def read_content(path, side, device):
    """The image (1, 3, side, side) in [-1, 1] that is stylised: the middle of a file, or the made set's first one."""
    if path is not None:
        pixels = to_tensor(open_image(path), (3, side, side), "square")
        return datasets.from_bytes(pixels[None].to(device))
    image = next(iter(objects64.read("original", device).first(1).batches(1)))[0].to(device)
    if image.shape[3] == side:
        return image
    return F.interpolate(image, (side, side), mode="bilinear", antialias=True, align_corners=False)


def sheet(path, content, textures, images, course):
    """The image, and points of the walk with what the image became at each, and how far it was and is from it."""
    some = torch.linspace(0, len(textures) - 1, min(SHOWN, len(textures))).round().long().tolist()
    rows = [[(one + 1) / 2 for one in part] for part in (content, textures[some], images[some])]
    losses = [f"{before:.2f} to {after:.2f}" for before, after in course[[0, -1]][:, some].T.tolist()]
    figures.image_grid(path, rows, ["" for _ in some], ["image", "texture", "stylised"],
                       [[""], ["" for _ in some], losses], "An image in the style of generated textures, with the "
                       "style loss before and after")  # fmt: skip


def film(path, content, textures, images):
    """The whole walk: image, texture and stylised image side by side."""
    fit = lambda part: F.interpolate((part + 1) / 2, dance.GIF_SIDE // 2, mode="nearest")
    frames = torch.cat([fit(part.expand(len(images), -1, -1, -1)) for part in (content, textures, images)], 3)
    figures.animation(path, frames, (3 * dance.GIF_SIDE, dance.GIF_SIDE), PAUSE)


def main(image, run, size, seed, truncation, device, results, stops, points, features, weight, steps, lr):
    device = experiment.pick_device(device)
    if size is not None and not SMALLEST <= size <= LARGEST:
        raise experiment.UserError(f"--size {size}: it must be from {SMALLEST} to {LARGEST} pixels")
    model, network = objects.load(run, device), losses.features(features, device)
    labels, latents = (part.to(device) for part in walk(stops, points, model.classes, model.latent, seed))
    textures = paint(model, labels, latents, truncation)
    content = read_content(image, size or textures.shape[3], device)
    made = [stylise(network, content, some, weight, steps, lr)
            for some in tqdm(textures.split(BATCH), desc="stylised", disable=None)]  # fmt: skip
    images, course = torch.cat([one for one, _ in made]), torch.cat([other for _, other in made], 1)
    sheet(Path(results) / "stylised.png", content, textures, images, course)
    film(Path(results) / "stylised.gif", content, textures, images)
    before, after = course[[0, -1]].mean(1).tolist()
    print(f"{Path(results)}/stylised.*: {points} textures; mean style loss {before:.3f} before, {after:.3f} after "
          f"{steps} steps")  # fmt: skip


if __name__ == "__main__":
    experiment.run(main)

"""The embedded set of part 6: MNIST digits on textured grounds that agree with their label in training.

    python -m robust_training.digits      # a sheet of every split; 10 s

It stands for IN-9 and Waterbirds, and runs anywhere. 64 x 64 RGB. Two label sets: "ten", the ten digits on ten
veined grounds, and "two", digits of 0 to 4 on stripes and of 5 to 9 on veins, as land and water birds on land and
water. In 95 % of the training images the ground is that of the label (Waterbirds' share), in the others it is another
one. Every image has its true mask. Test splits, all of the same digits in the same places and colours:

    original          the ground is that of the label
    flip              it is that of another label
    mixed_same        the digit cut out of the original along its mask, on another ground of its label
    mixed_rand        the same on the ground of any label; accuracy on mixed_same less that here is IN-9's BG-gap
    only_background   the ground alone: who is right here reads the ground
    no_background     the cut-out digit on black

Writes results/robust_training/splits.png.
"""

import functools
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from tqdm import tqdm

import datasets
import experiment
import figures
import textures
from robust_training.batch import from_masks

# --- the sheet that this script draws -------------------------------------------------------------
LABELS: Literal["ten", "two"] = "ten"  # which label set
RESULTS: Path = Path("results/robust_training")  # where the sheet goes

SIDE = 64  # pixels
AGREE = 0.95  # share of the training images whose ground is that of their label (Waterbirds)
NUMBER = {"train": 10_000, "val": 1_000, "test": 2_000}
TESTS = ("original", "flip", "mixed_same", "mixed_rand", "only_background", "no_background")
SPLITS = ("train", "val", *TESTS)
CLASSES = {"ten": tuple("0123456789"), "two": ("0 to 4", "5 to 9")}
SIZES = (40, 56)  # pixels a digit's side is drawn from; MNIST leaves a margin of a seventh around the stroke
DIM, LIGHT = 0.55, 0.6  # grounds are dark, in light whose strength in each colour is within 1 - LIGHT to 1 + LIGHT
BRIGHT = 0.65  # least value of a digit's colour: what is light is a digit
SHADOW = 0.35  # how much a digit darkens the ground beside it: part of the original, and left behind by a cut
FILLED = 100  # images that are painted over at once
EDGE = 0.3  # opacity from which a pixel is foreground


class Scenes:
    """A split in memory as a source of Batches.

    images (N, 3, 64, 64) uint8, labels and places (N,) int64, masks (N, 1, 64, 64) boolean, all on one device; seed: of
    the order of a shuffled pass. infills: (N, 3, 64, 64) uint8 after paint_over, before that None.
    """

    def __init__(self, images, labels, places, masks, seed=0):
        self.images, self.labels, self.places, self.masks, self.seed = images, labels, places, masks, seed
        self.infills = None

    def __len__(self):
        return len(self.labels)

    def batches(self, size, stream_seed=None, shares=None):
        """Batches of `size` images, the last of what is left, in the order of datasets.order_of."""
        order = datasets.order_of(len(self), self.seed, stream_seed, shares)
        for index in order.to(self.labels.device).split(size):
            infills = None if self.infills is None else datasets.from_bytes(self.infills[index])
            yield from_masks(datasets.from_bytes(self.images[index]), self.labels[index], self.places[index],
                             self.masks[index], infills)

    def first(self, n):
        """The first n images, as Scenes."""
        return Scenes(self.images[:n], self.labels[:n], self.places[:n], self.masks[:n], self.seed)

    def paint_over(self, fill):
        """Set the infills: what fill(images, rectangles) puts in the place of each foreground, once and for all."""
        batches = tqdm(self.batches(FILLED), "painting over", -(-len(self) // FILLED))
        self.infills = torch.cat([datasets.to_bytes(fill(batch.images, batch.rectangles)) for batch in batches])


# --- painting -------------------------------------------------------------------------------------


@functools.cache
def _grounds(labels):
    """Textures (places, variants, 3, 150, 150), uint8: ten places of one each, or two of ten."""
    stripes, veins = textures.procedural_textures()
    return veins[:, None] if labels == "ten" else torch.stack([stripes, veins])


def ground(labels, places, stream):
    """Windows of textures (N, 3, 64, 64) in [0, 1], one for each of places (N,), in light of a random colour."""
    kinds = _grounds(labels)
    which = torch.randint(kinds.shape[1], places.shape, generator=stream)
    windows = textures.windows(kinds.flatten(0, 1), places * kinds.shape[1] + which, SIDE, stream)
    light = 1 + LIGHT * (2 * torch.rand(len(places), 3, 1, 1, generator=stream) - 1)
    return (DIM * windows * light).clamp(0, 1)


def place_digits(digits, stream):
    """Opacities (N, 1, 64, 64) of digits (N, 1, 28, 28), of random size and place; some touch the border."""
    n = len(digits)
    size = SIZES[0] + (SIZES[1] - SIZES[0]) * torch.rand(n, generator=stream)
    margin = size / 9  # somewhat less than MNIST's own, so that no stroke is cut off
    corner = -margin + (SIDE - size + 2 * margin) * torch.rand(2, n, generator=stream)  # left, top
    theta = torch.zeros(n, 2, 3)
    for axis in range(2):
        theta[:, axis, axis] = SIDE / size
        theta[:, axis, 2] = (SIDE - 2 * corner[axis]) / size - 1
    grid = F.affine_grid(theta, (n, 1, SIDE, SIDE), align_corners=False)
    return F.grid_sample(digits, grid, align_corners=False).clamp(0, 1)


def colour_digits(n, stream):
    """n light colours, (n, 3, 1, 1)."""
    return BRIGHT + (1 - BRIGHT) * torch.rand(n, 3, 1, 1, generator=stream)


def compose(grounds, alphas, colours):
    """Digits on grounds with a soft shadow around them, (N, 3, 64, 64) in [0, 1]: the originals."""
    halo = F.avg_pool2d(alphas, 9, 1, 4)
    return torch.lerp(grounds * (1 - SHADOW * halo), colours, alphas)


def other_places(places, count, stream):
    """A place of another class for each of places (N,), below count."""
    return (places + torch.randint(1, count, places.shape, generator=stream)) % count


def paint(labels, digits, stream, agree=1.0):
    """(Scenes' images in [0, 1], places, masks, labels) of digits; the ground agrees with the label in `agree` of them.

    labels: "ten" or "two".
    """
    classes = digits.labels if labels == "ten" else (digits.labels >= 5).long()
    count, n = len(CLASSES[labels]), len(digits)
    agreeing = torch.rand(n, generator=stream) < agree
    places = torch.where(agreeing, classes, other_places(classes, count, stream))
    found = []
    for index in torch.arange(n).split(500):  # in chunks, for the memory's sake
        grounds = ground(labels, places[index], stream)
        alphas = place_digits(digits.images[index], stream)
        found.append((compose(grounds, alphas, colour_digits(len(index), stream)), alphas > EDGE))
    images, masks = (torch.cat(part) for part in zip(*found, strict=True))
    return images, places, masks, classes


# --- splits ---------------------------------------------------------------------------------------


def read(labels, split, device="cpu", root=datasets.ROOT, seed=0):
    """The Scenes of a split of SPLITS, for the label set "ten" or "two": always the same ones; seed: of their order."""
    kind = split if split in ("train", "val") else "test"
    digits = _digits(kind, root)
    stream = experiment.generator(0, f"scenes/{labels}/{kind}")
    agree = {"train": AGREE, "val": AGREE, "flip": 0.0}.get(split, 1.0)
    images, places, masks, classes = paint(labels, digits, stream, agree)
    if split in TESTS[2:]:
        images, places, masks = recomposed(labels, split, images, classes, masks)
    parts = ((images * 255).round().to(torch.uint8), classes, places, masks)
    return Scenes(*(part.to(device) for part in parts), seed=seed)


def _digits(kind, root):
    """Digits for a kind of split: val and train are disjoint parts of MNIST's training set."""
    if kind == "test":
        return datasets.draw(datasets.mnist("test", root=root), NUMBER["test"], 0, "scenes/test digits")
    drawn = datasets.draw(datasets.mnist("train", root=root), NUMBER["train"] + NUMBER["val"], 0, "scenes/digits")
    return drawn[NUMBER["val"]:] if kind == "train" else drawn[:NUMBER["val"]]


def recomposed(labels, split, images, classes, masks):
    """(images, places, masks) of a test split that is put together from the originals and their masks."""
    count, stream = len(CLASSES[labels]), experiment.generator(0, f"scenes/{labels}/{split}")
    if split == "no_background":
        return images * masks, torch.full_like(classes, -1), masks
    places = torch.randint(count, classes.shape, generator=stream) if split == "mixed_rand" else classes
    grounds = torch.cat([ground(labels, part, stream) for part in places.split(500)])
    if split == "only_background":
        return grounds, places, torch.zeros_like(masks)
    return torch.where(masks, images, grounds), places, masks


def main(labels, results):
    rows = []
    for split in SPLITS[2:]:
        scenes = read(labels, split)
        count = len(CLASSES[labels])
        chosen = [(scenes.labels == k % count).nonzero()[k // count, 0] for k in range(10)]
        rows.append([scenes.images[k] / 255 for k in chosen])
    path = Path(results) / ("splits.png" if labels == "ten" else "splits_two.png")
    figures.image_grid(path, rows, [""] * 10, [split.replace("_", "\n") for split in SPLITS[2:]], [[""] * 10] * 6,
                       "Test splits: the same digits on grounds that agree with their label, or do not")
    print(f"{path} shows ten images of each test split")


if __name__ == "__main__":
    experiment.run(main)

"""A made set in place of ImageNet: one object on one background, 64 x 64 RGB, with labels of both and true masks.

    python -m cgn.objects64      # a sheet of every split; 20 s

Ten classes: five digits of MNIST, thickened, and five drawn silhouettes. Each has one striped texture for its objects
and one veined texture for their backgrounds, of which every image shows another window in another light. So shape,
object texture and background are three independent mechanisms with a label each (Sauer and Geiger 2021), and it is
known what they are. In `train` and `val`, texture and background each agree with the shape in 95 % of the images,
independently of each other. Test splits, all of the same objects in the same places:

    original             texture and background agree with the shape
    texture_conflict     the texture is that of another class (cue conflict, Geirhos et al. 2019)
    background_conflict  the background is that of another class
    mixed_same           the object cut out of the original along its mask, on another background of its class
    mixed_rand           the same on the background of any class; mixed_same - mixed_rand is IN-9's BG-gap (Xiao 2020)
    only_background      the original's background without the object: who is right here reads the background
    counterfactual       the three labels are drawn independently: only the shape tells the shape
    silhouette           the object black on white: nothing but the shape

And one more to train on: `independent` has the shapes of the training images, and texture and background of any class,
independent of the shape and of each other, with the true labels of all three. That is what a perfect generator of
counterfactuals would give, so that who is trained on it shows how much is lost to an imperfect one.

Writes results/cgn/objects64.png.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F

import datasets
import experiment
import figures
import storage
import textures
from cgn import silhouettes

# --- the sheet that this script draws ------------------------------------------------------------
RESULTS: Path = Path("results/cgn")  # where the sheet goes

SIDE = 64  # pixels
DIGITS = (0, 2, 4, 7, 8)  # as shapes least like each other
CLASSES = ("zero", "two", "four", "seven", "eight", *silhouettes.KINDS)
COUNT = len(CLASSES)
AGREE = 0.95  # share of the training images whose texture is that of their shape, and the same for the background
CHANCE = 1 / COUNT  # the same share where labels are independent: other classes then have as much each
NUMBER = {"train": 20_000, "val": 1_000, "test": 2_000}
PAINTED = {"train": ("train", AGREE), "val": ("val", AGREE), "independent": ("train", CHANCE)}  # of whose shapes
TESTS = ("original", "texture_conflict", "background_conflict", "mixed_same", "mixed_rand", "only_background",
         "counterfactual", "silhouette")  # fmt: skip
SPLITS = (*PAINTED, *TESTS)

LARGE = 56  # pixels that a digit is enlarged to before it is thickened
AREAS = (0.09, 0.33)  # share of the image that an object should cover; it covers less where it would not fit
TURN = torch.pi / 12  # an object is turned by at most this much to either side
BEYOND = 1.5  # pixels by which the box around an object may reach over the border
EDGE = 0.5  # opacity from which a pixel is object
DIM, SLOPE = 0.5, 0.3  # backgrounds are dark, in light that changes by at most 1 -+ SLOPE along each axis
TINT, HUE = 0.12, 0.06  # strength in each colour, from 1 - this to 1 + this: of a background's light, of an object's
LIGHT = (0.8, 1.05)  # strength of an object's light
LIFT = 0.15  # objects are pale: no stripe of theirs is darker, so that none is lost on a dark background
NARROW = 0.7  # width of a stripe, as a share of what it is in the texture: 4 to 11 pixels from one to the next
CHUNK = 500  # images that are made at once


class Scenes:
    """A split in memory.

    images (N, 3, 64, 64) uint8, labels (N, 3) int64 in the order shape, object texture, background, masks
    (N, 1, 64, 64) boolean, all on one device; seed: of the order of a shuffled pass. A label is -1 where there is
    nothing to name: the texture of only_background, texture and background of silhouette. The shape of
    only_background stays that of the object which was there, the class of the image.
    """

    def __init__(self, images, labels, masks, seed=0):
        self.images, self.labels, self.masks, self.seed = images, labels, masks, seed

    def __len__(self):
        return len(self.labels)

    def batches(self, size, stream_seed=None):
        """(images (B, 3, 64, 64) float32 in [-1, 1], labels (B, 3), masks (B, 1, 64, 64)), the last of what is left.

        In the order of datasets.order_of.
        """
        order = datasets.order_of(len(self), self.seed, stream_seed)
        for index in order.to(self.labels.device).split(size):
            yield datasets.from_bytes(self.images[index]), self.labels[index], self.masks[index]

    def first(self, n):
        """The first n images, as Scenes."""
        return Scenes(self.images[:n], self.labels[:n], self.masks[:n], self.seed)


# --- shapes -----------------------------------------------------------------------------------------


def thicken(digits, stream):
    """Opacities (n, 1, 64, 64) of MNIST digits (n, 1, 28, 28), enlarged, with strokes wider by a random amount."""
    large = F.interpolate(digits, (LARGE, LARGE), mode="bicubic").clamp(0, 1)
    wide = F.max_pool2d(large, 5, 1, 2)
    share = 0.1 + 0.5 * torch.rand(len(digits), 1, 1, 1, generator=stream)
    soft = F.avg_pool2d(torch.lerp(large, wide, share), 3, 1, 1)
    return F.pad(_sharp(soft, 3), ((SIDE - LARGE) // 2,) * 4)


def _sharp(opacities, gain):
    """Edges made steeper by a factor around an opacity of a half."""
    return ((opacities - 0.5) * gain + 0.5).clamp(0, 1)


def place(stencils, stream):
    """Opacities (n, 1, 64, 64) of stencils (n, 1, 64, 64) that are turned, scaled and moved at random.

    The share of the image that an object covers is uniform over AREAS where it fits; the box around it reaches over
    the border by at most BEYOND pixels. theta maps places in the image to places in the stencil, from -1 to 1 in both.
    """
    n = len(stencils)
    centre, half = _box(stencils > EDGE)
    angle = TURN * (2 * torch.rand(n, generator=stream) - 1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([half[:, 0] * cos + half[:, 1] * sin.abs(), half[:, 0] * sin.abs() + half[:, 1] * cos], 1)
    wanted = AREAS[0] + (AREAS[1] - AREAS[0]) * torch.rand(n, generator=stream)
    room = 1 + 2 * BEYOND / SIDE
    scale = torch.minimum((wanted / stencils.mean((1, 2, 3))).sqrt(), room / turned.amax(1))
    free = (room - scale[:, None] * turned).clamp(min=0)
    middle = free * (2 * torch.rand(n, 2, generator=stream) - 1)
    turn = torch.stack([cos, sin, -sin, cos], 1).view(n, 2, 2) / scale[:, None, None]
    theta = torch.cat([turn, (centre - (turn @ middle[:, :, None])[:, :, 0])[:, :, None]], 2)
    grid = F.affine_grid(theta, (n, 1, SIDE, SIDE), align_corners=False)
    return _sharp(F.grid_sample(stencils, grid, align_corners=False), 1.5)


def _box(masks):
    """(centre (n, 2), half of width and height (n, 2)) of masks (n, 1, S, S); x, y, where the image is -1 to 1."""
    side, ends = masks.shape[-1], []
    for axis in (2, 3):  # columns, then rows, that hold any of it
        line = masks.any(axis).flatten(1).int()
        ends.append(torch.stack([line.argmax(1), side - line.flip(1).argmax(1)]))
    low, high = (torch.stack(ends, 2) * 2 / side - 1).unbind(0)
    return (low + high) / 2, (high - low) / 2


# --- painting ---------------------------------------------------------------------------------------


@functools.cache
def _canvases():
    """(stripes, veins), each (10, 3, S, S), uint8: a texture of objects and one of backgrounds for each class.

    Stripes are made finer, by NARROW, since an object is smaller than the image.
    """
    stripes, veins = textures.procedural_textures()
    return F.interpolate(stripes, scale_factor=NARROW, mode="bilinear", antialias=True), veins


def _tint(strength, n, stream):
    return 1 + strength * (2 * torch.rand(n, 3, 1, 1, generator=stream) - 1)


def paint_objects(labels, stream):
    """Object textures (n, 3, 64, 64) in [0, 1] of labels (n,): windows of stripes in a light of random strength."""
    n = len(labels)
    light = LIGHT[0] + (LIGHT[1] - LIGHT[0]) * torch.rand(n, 1, 1, 1, generator=stream)
    pale = LIFT + (1 - LIFT) * textures.windows(_canvases()[0], labels, SIDE, stream)
    return (pale * light * _tint(HUE, n, stream)).clamp(0, 1)


def paint_backgrounds(labels, stream):
    """Backgrounds (n, 3, 64, 64) in [0, 1] of labels (n,): windows of veins, dark, in light that falls from a side."""
    n, line = len(labels), torch.linspace(-1, 1, SIDE)
    across, down = SLOPE * (2 * torch.rand(2, n, 1, 1, 1, generator=stream) - 1)
    light = DIM * (1 + across * line) * (1 + down * line[:, None])
    return (textures.windows(_canvases()[1], labels, SIDE, stream) * light * _tint(TINT, n, stream)).clamp(0, 1)


def others(labels, stream):
    """Another class for each of labels (n,)."""
    return (labels + torch.randint(1, COUNT, labels.shape, generator=stream)) % COUNT


def _bytes(images):
    return (images * 255).round().to(torch.uint8)


def compose(alphas, objects, backgrounds):
    """x = m f + (1 - m) b (Sauer and Geiger 2021, equation 3), all of uint8: (N, 1 or 3, 64, 64)."""
    parts = zip(*(part.split(CHUNK) for part in (alphas, objects, backgrounds)), strict=True)
    return torch.cat([torch.lerp(b.float(), f.float(), m / 255).round().to(torch.uint8) for m, f, b in parts])


def _in_chunks(make, parts, stream):
    """make(part, stream) of parts, CHUNK at a time for the memory's sake, as uint8."""
    return torch.cat([_bytes(make(part, stream)) for part in parts.split(CHUNK)])


# --- splits -----------------------------------------------------------------------------------------


def shapes(kind, root=datasets.ROOT):
    """(opacities (N, 1, 64, 64) uint8, classes (N,)) of "train", "val" or "test": every class equally often, shuffled.

    The digits of val and of train are different ones of MNIST's training set, those of test are of its test set.
    """
    each, held_out = NUMBER[kind] // COUNT, NUMBER["val"] // COUNT
    stream = experiment.generator(0, f"objects64/{kind}/shapes")
    digits, found = datasets.mnist("test" if kind == "test" else "train", root=root), []
    for digit in DIGITS:
        own = datasets.draw(digits[datasets.of_class(digits, digit)], held_out + each, 0, "objects64/digits").images
        own = own[:each] if kind == "val" else own[held_out:]
        found.append(_in_chunks(lambda part, stream: place(thicken(part, stream), stream), own, stream))
    for name in silhouettes.KINDS:
        draw = lambda part, stream, name=name: place(silhouettes.draw(name, len(part), stream), stream)
        found.append(_in_chunks(draw, torch.empty(each), stream))
    order = torch.randperm(COUNT * each, generator=stream)
    return torch.cat(found)[order], torch.arange(COUNT).repeat_interleave(each)[order]


@functools.cache
def _originals(root):
    """(opacities, classes, object textures, backgrounds) of the test objects, of which all test splits are made."""
    alphas, classes = shapes("test", root)
    painted = (_in_chunks(make, classes, experiment.generator(0, f"objects64/test/{name}"))
               for name, make in (("objects", paint_objects), ("backgrounds", paint_backgrounds)))
    return alphas, classes, *painted


def of_shape(labels):
    """The one label (N,) that stands for an image, the shape's, of labels (N,) of a folder or (N, 3) of this set."""
    return labels if labels.ndim == 1 else labels[:, 0]


def read(split, device="cpu", root=datasets.ROOT, seed=0):
    """The Scenes of a split of SPLITS, always the same ones; seed: of their order.

    Raises UserError for another name.
    """
    storage.one_of(dict.fromkeys(SPLITS), "split", split)
    made = _painted(split, root) if split in PAINTED else _test(split, root)
    return Scenes(*(part.to(device) for part in made), seed=seed)


def _painted(split, root):
    """(images, labels, masks) in which texture and background agree with the shape as often as PAINTED says."""
    kind, share = PAINTED[split]
    alphas, classes = shapes(kind, root)
    stream = experiment.generator(0, f"objects64/{split}/paint")
    agreeing = torch.rand(2, len(classes), generator=stream) < share
    objects, backgrounds = (torch.where(agree, classes, others(classes, stream)) for agree in agreeing)
    images = compose(alphas, _in_chunks(paint_objects, objects, stream),
                     _in_chunks(paint_backgrounds, backgrounds, stream))
    return images, torch.stack([classes, objects, backgrounds], 1), alphas > 255 * EDGE


def _test(split, root):
    """(images, labels, masks) of a test split; what it does not change is as in the originals."""
    alphas, classes, objects, backgrounds = _originals(root)
    stream, masks = experiment.generator(0, f"objects64/{split}"), alphas > 255 * EDGE
    texture = background = classes
    absent = torch.full_like(classes, -1)
    if split == "only_background":
        return backgrounds.clone(), torch.stack([classes, absent, classes], 1), torch.zeros_like(masks)
    if split == "silhouette":
        return (255 - alphas).repeat(1, 3, 1, 1), torch.stack([classes, absent, absent], 1), masks
    original = compose(alphas, objects, backgrounds) if split.startswith("mixed") else None
    if split in ("texture_conflict", "counterfactual"):
        texture = others(classes, stream) if split == "texture_conflict" else _any(classes, stream)
        objects = _in_chunks(paint_objects, texture, stream)
    if split in ("background_conflict", "mixed_same", "mixed_rand", "counterfactual"):
        if split != "mixed_same":
            background = (others if split == "background_conflict" else _any)(classes, stream)
        backgrounds = _in_chunks(paint_backgrounds, background, stream)
    images = compose(alphas, objects, backgrounds) if original is None else torch.where(masks, original, backgrounds)
    return images, torch.stack([classes, texture, background], 1), masks


def _any(labels, stream):
    return torch.randint(COUNT, labels.shape, generator=stream)


def main(results):
    rows, names = [], []
    for split in SPLITS:
        scenes = read(split)
        chosen = [(scenes.labels[:, 0] == k).nonzero()[0, 0] for k in range(COUNT)]
        rows.append([scenes.images[k] / 255 for k in chosen])
        names.append(split.replace("_", "\n"))
        if split in ("train", "original"):
            rows.append([scenes.masks[k].float() for k in chosen])
            names.append("its\nmasks")
    path = Path(results) / "objects64.png"
    figures.image_grid(path, rows, list(CLASSES), names, [[""] * COUNT] * len(rows),
                       "Ten classes of objects; the test splits show the same ones")
    print(f"{path} shows ten images of each split")


if __name__ == "__main__":
    experiment.run(main)

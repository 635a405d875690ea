"""The three variants of MNIST of Counterfactual Generative Networks (Sauer and Geiger 2021, section 4.1).

    python -m cgn.data                             # a sheet of every variant; 5 s
    python -m cgn.data --textures FOLDER           # wildlife with textures of your own, or the published ones

In training the class of a digit is also that of its colour or texture; in the test set each is drawn by itself, so
that only the shape tells the class. Images are composed on the device, a batch at a time, from 32 x 32 shapes, colours
and textures: x = alpha f + (1 - alpha) b, in [-1, 1]. A folder of textures has object/ and background/ with ten
images each, taken in the order of their names. Writes results/cgn/variants.png.
"""

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

import datasets
import experiment
import figures
import storage
from cgn.mechanisms import CLASSES, SIDE
from textures import procedural_textures, read_textures

# --- the sheet that this script draws ------------------------------------------------------------
TEXTURES: Path | None = None  # folder of wildlife's textures; by default procedural stripes and veins
SEED: experiment.Index = 0  # draws digits, colours and crops
RESULTS: Path = Path("results/cgn")  # where the sheet goes

TRAINING = 50_000  # double-colored and wildlife: the first 50,000 digits train, the other 10,000 test (published)
PUBLISHED_TEXTURES = "4cc10ec041"  # digest of the textures that the authors chose from the Describable Textures
THRESHOLD = 25  # of 255: a pixel of a digit above it is object (published: 0.1)
VARIANTS = ("colored", "double_colored", "wildlife")

# Colored: mean colour of the digit of each class, on black. The published set cannot be had; these are means over the
# pixels with a mask above 0.9 in 400 samples a class of the published generator, which was trained on it.
COLORED = ((202, 30, 82), (23, 116, 119), (226, 212, 37), (15, 91, 195), (227, 127, 51),
           (148, 53, 177), (67, 222, 185), (243, 208, 208), (209, 225, 63), (165, 37, 28))  # fmt: skip
COLORED_DEVIATION = 0.02**0.5  # of a digit's colour, in [0, 1]; published: variance 0.02
# Double-colored: background of each class; the object has the same palette, moved on by four (published).
PALETTE = ((0, 100, 0), (0, 0, 139), (176, 48, 96), (255, 69, 0), (255, 255, 0),
           (222, 184, 135), (0, 255, 0), (0, 255, 255), (255, 0, 255), (100, 149, 237))  # fmt: skip
SHIFT = 4
DOUBLE_DEVIATION = 0.01  # published
LOADERS = 8  # processes that load the original's test set
TEXTURE_PAD = 3  # textures are mirrored by 3 pixels and cropped (published)


class Shapes(NamedTuple):
    """Opacities (N, 1, 32, 32), uint8, and labels (N,), int64, on one device."""

    alphas: torch.Tensor
    labels: torch.Tensor

    def __getitem__(self, index):
        return Shapes(self.alphas[index], self.labels[index])

    def __len__(self):
        return len(self.labels)

    def masks(self):
        """The true object masks, (N, 1, 32, 32), boolean."""
        return self.alphas > THRESHOLD


class Scenes(NamedTuple):
    """Images (N, 3, 32, 32) in [-1, 1], labels of shape, object and background (N,), true masks (N, 1, 32, 32)."""

    images: torch.Tensor
    labels: torch.Tensor
    objects: torch.Tensor
    backgrounds: torch.Tensor
    masks: torch.Tensor

    def __getitem__(self, index):
        return Scenes(*(part[index] for part in (self.images, self.labels, self.objects, self.backgrounds, self.masks)))

    def __len__(self):
        return len(self.labels)


class Variant:
    """One of VARIANTS on a device: its shapes, and how images are painted from them.

    textures: a folder for wildlife, or None for the procedural ones; the other variants have none. Raises UserError
    for an unknown name and for a folder that does not have one texture of each kind for every class.
    """

    def __init__(self, name, device="cpu", textures=None, root=datasets.ROOT):
        storage.one_of(dict.fromkeys(VARIANTS), "variant", name)
        if textures is not None and name != "wildlife":
            raise experiment.UserError(f"--textures is for wildlife, {name} has none")
        self.name, self.device, self.folder, self.root = name, torch.device(device), textures, root
        if name == "wildlife":
            pair = read_textures(textures) if textures is not None else procedural_textures()
            self.textures = [_windows(kind.to(device)) for kind in pair]
        self._shapes = {}
        self.palette = torch.tensor(COLORED if name == "colored" else PALETTE, device=device) / 255

    @functools.cached_property
    def textures_name(self):
        """The textures in a record: "procedural", "published", or a digest of others; None for colours."""
        if self.name != "wildlife":
            return None
        if self.folder is None:
            return "procedural"
        digest = hashlib.sha256()
        for kind in self.textures:
            digest.update(kind[:, :, ::32, ::32].cpu().contiguous().numpy().tobytes())
        name = digest.hexdigest()[:10]
        return "published" if name == PUBLISHED_TEXTURES else name

    def shapes(self, split):
        """The Shapes of "train" or "test". Colored has MNIST's own test set (published), the others hold out 10,000."""
        if split not in self._shapes:
            self._shapes[split] = self._read(split)
        return self._shapes[split]

    def _read(self, split):
        part = "test" if (self.name, split) == ("colored", "test") else "train"
        digits = datasets.mnist(part, self.device, self.root)
        if self.name != "colored":
            digits = digits[:TRAINING] if split == "train" else digits[TRAINING:]
        alphas = F.interpolate(digits.images * 255, (SIDE, SIDE)).round().to(torch.uint8)  # nearest, as published
        if self.name != "colored":  # black or white
            alphas = (alphas > THRESHOLD).to(torch.uint8) * 255
        return Shapes(alphas, digits.labels)

    def paint(self, alphas, objects, backgrounds, stream):
        """Images (B, 3, 32, 32) of opacities (B, 1, 32, 32), floats in [0, 1], and the labels of both textures.

        stream: a CPU torch.Generator for jitter and crops.
        """
        return torch.lerp(self.background(backgrounds, stream), self.object(objects, stream), alphas)

    def object(self, labels, stream):
        """The object's colour or texture, (B, 3, 1 or 32, 1 or 32)."""
        if self.name == "wildlife":
            return self._crop(self.textures[0], labels, stream)
        if self.name == "colored":
            return self._jitter(self.palette[labels], COLORED_DEVIATION, stream).clamp(-1, 1)
        return self._jitter(self.palette.roll(-SHIFT, 0)[labels], DOUBLE_DEVIATION, stream)

    def background(self, labels, stream):
        """The background's colour or texture, (B, 3, 1 or 32, 1 or 32)."""
        if self.name == "wildlife":
            return self._crop(self.textures[1], labels, stream)
        if self.name == "colored":
            return torch.full((len(labels), 3, 1, 1), -1.0, device=self.device)
        return self._jitter(self.palette[labels], DOUBLE_DEVIATION, stream)

    def _jitter(self, colours, deviation, stream):
        noise = torch.randn(colours.shape, generator=stream).to(self.device)
        return ((colours + deviation * noise) * 2 - 1)[:, :, None, None]

    def _crop(self, windows, labels, stream):
        top, left = torch.randint(windows.shape[2], (2, len(labels)), generator=stream).to(self.device)
        return datasets.from_bytes(windows[labels, :, top, left])

    def scenes(self, shapes, stream, spurious):
        """Scenes of these shapes: with colours or textures of the digit's class (spurious), or of any."""
        drawn = torch.randint(CLASSES, (2, len(shapes)), generator=stream).to(self.device)
        objects, backgrounds = (shapes.labels, shapes.labels) if spurious else drawn
        images = self.paint(shapes.alphas / 255, objects, backgrounds, stream)
        return Scenes(images, shapes.labels, objects, backgrounds, shapes.masks())

    def batch(self, shapes, size, stream, spurious=True):
        """`size` Scenes of these shapes, drawn with replacement."""
        index = torch.randint(len(shapes), (size,), generator=stream).to(self.device)
        return self.scenes(shapes[index], stream, spurious)

    def test(self):
        """The test Scenes: 10,000 digits, object and background drawn by themselves, always the same."""
        return self.scenes(self.shapes("test"), experiment.generator(0, f"{self.name}/test"), spurious=False)

    def wandering_test(self):
        """The test Scenes of double-colored as the original makes them, in which colours wander.

        It adds the jitter of each image to the palette itself, where it stays: in each of its loading processes
        every colour of object and background goes for a random walk. Colours that should be alike drift apart, and
        the tenth of the images in which nothing should be seen becomes readable. So were published numbers measured.
        """
        shapes, stream = self.shapes("test"), experiment.generator(0, f"{self.name}/wandering test")
        drawn = torch.randint(CLASSES, (2, len(shapes)), generator=stream).to(self.device)
        colours = []
        for labels, palette in zip(drawn, (self.palette.roll(-SHIFT, 0), self.palette), strict=True):
            steps = DOUBLE_DEVIATION * torch.randn(len(shapes), 3, generator=stream).to(self.device)
            chosen = F.one_hot(labels, CLASSES).float()  # (N, classes)
            walks = [torch.cumsum(a[:, :, None] * b[:, None], 0) for a, b in zip(
                chosen.chunk(LOADERS), steps.chunk(LOADERS), strict=True)]  # fmt: skip
            places = torch.cat(walks)[torch.arange(len(shapes)), labels] + palette[labels]
            colours.append((places * 2 - 1)[:, :, None, None])
        images = torch.lerp(colours[1], colours[0], shapes.alphas / 255)
        return Scenes(images, shapes.labels, *drawn, shapes.masks())

    def visible(self, scenes):
        """Boolean (N,): the object can be told from the background; double-colored can have one colour for both."""
        if self.name != "double_colored":
            return torch.ones_like(scenes.labels, dtype=torch.bool)
        return (scenes.objects + SHIFT) % CLASSES != scenes.backgrounds


def _windows(textures):
    """All 32 x 32 windows of mirrored textures (10, 3, H, W), as a view (10, 3, rows, columns, 32, 32)."""
    padded = F.pad(textures.float(), (TEXTURE_PAD,) * 4, mode="reflect").to(torch.uint8)
    return padded.unfold(2, SIDE, 1).unfold(3, SIDE, 1)


def main(textures, seed, results):
    rows, names = [], []
    for name in VARIANTS:
        variant = Variant(name, textures=textures if name == "wildlife" else None)
        for split, spurious in (("train", True), ("test", False)):
            shapes = datasets.draw(variant.shapes(split), 10, seed, "sheet")
            scenes = variant.scenes(shapes, experiment.generator(seed, f"sheet/{split}"), spurious)
            rows.append(list((scenes.images + 1) / 2))
            names.append(f"{name.replace('_', ' ')}\n{split}")
    path = Path(results) / "variants.png"
    figures.image_grid(path, rows, [""] * 10, names, [[""] * 10] * len(rows),
                       "In training colour and texture tell the class, in the test set only the shape does")
    print(f"{path} shows ten images of each variant")


if __name__ == "__main__":
    experiment.run(main)

"""Textures: one of stripes and one of veins for each of ten classes, made here, or photographs read from a folder.

Parts 5 and 6 paint digits and grounds with them. A folder of textures has object/ and background/ with ten images
each, taken in the order of their names.
"""

from pathlib import Path

import numpy
import torch
from PIL import Image

import experiment

COUNT = 10  # classes, a texture of each kind for each
SIDE = 150  # pixels; photographs are resized to it (published for wildlife MNIST)


def read_textures(folder):
    """(objects, backgrounds), each (10, 3, 150, 150), uint8, from folder/object and folder/background.

    Raises UserError, naming what is missing, unless each has one readable image for every class.
    """
    return tuple(_read(Path(folder) / kind) for kind in ("object", "background"))


def windows(canvases, chosen, side, stream):
    """Windows (n, 3, side, side) in [0, 1] at random places of canvases (K, 3, S, S), uint8: of those chosen (n,)."""
    top, left = torch.randint(canvases.shape[-1] - side + 1, (2, len(chosen)), generator=stream)
    return canvases.unfold(2, side, 1).unfold(3, side, 1)[chosen, :, top, left].float() / 255


def _read(folder):
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    numbered = {path.name.split("_")[0] for path in files}
    missing = [str(number) for number in range(COUNT) if str(number) not in numbered]
    named = 0 < len(missing) < COUNT  # otherwise the order of the names says which class they are of
    if len(files) != COUNT or named:
        raise experiment.UserError(f"{folder} should have ten textures, one for each class, and has {len(files)}"
                                   + (f"; none begins with {', '.join(missing)}" if named else ""))
    images = []
    for path in files:
        try:
            with Image.open(path) as picture:
                small = picture.convert("RGB").resize((SIDE,) * 2, Image.Resampling.NEAREST)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise experiment.UserError(f"{path} cannot be read as an image: {error}") from None
        images.append(torch.from_numpy(numpy.array(small)).permute(2, 0, 1))
    return torch.stack(images)


def procedural_textures():
    """(stripes for objects, veins for backgrounds), each (10, 3, 150, 150), uint8: one of each for every class.

    Always the same ones. Stripes differ in direction, width and their two colours; veins are the edges between the
    cells of random points, on leaf-like grounds. Hues of the two kinds overlap, as those of photographs do.
    """
    return tuple(torch.stack([make(number) for number in range(COUNT)]) for make in (_stripes, _veins))


def _grid():
    return torch.meshgrid(torch.arange(SIDE) * 1.0, torch.arange(SIDE) * 1.0, indexing="ij")


def _colours(stream, n):
    """n random colours (n, 3, 1, 1) in [0, 1]; the second of two is far from the first in brightness."""
    colours = torch.rand(n, 3, 1, 1, generator=stream)
    colours[1:] = torch.where(colours[:1].mean() > 0.5, colours[1:] * 0.4, 0.6 + colours[1:] * 0.4)
    return colours


def _finish(image, stream):
    grain = 0.04 * torch.randn(1, SIDE, SIDE, generator=stream)
    return ((image + grain).clamp(0, 1) * 255).round().to(torch.uint8)


def _stripes(number):
    stream = experiment.generator(number, "stripes")
    one, two = _colours(stream, 2)
    y, x = _grid()
    angle = torch.pi * (number + float(torch.rand((), generator=stream))) / COUNT
    period = 6 + 10 * float(torch.rand((), generator=stream))
    bend = torch.sin(2 * torch.pi * (x - y) / (60 + 40 * float(torch.rand((), generator=stream))))
    wave = torch.sin(2 * torch.pi * (x * numpy.cos(angle) + y * numpy.sin(angle)) / period + bend)
    return _finish(torch.lerp(one, two, torch.sigmoid(6 * wave)), stream)


def _veins(number):
    stream = experiment.generator(number, "veins")
    ground, vein = _colours(stream, 2)
    y, x = _grid()
    points = torch.rand(20 + 4 * number, 2, generator=stream) * (SIDE + 40) - 20
    places = torch.stack([y, x], -1).view(-1, 2)
    near = torch.cdist(places, points).topk(2, largest=False).values.view(SIDE, SIDE, 2)
    width = 1.5 + 1.5 * float(torch.rand((), generator=stream))
    line = torch.exp(-((near[..., 1] - near[..., 0]) / width).square())
    shade = 0.15 * torch.sin(x / 17 + number) * torch.sin(y / 23)
    return _finish(torch.lerp(ground + shade, vein, line), stream)

"""Data sets made from MNIST, so that every kind of experiment has a real run on any machine.

    strokes   thin or thick digits: a binary attribute, as blond hair (CelebA) or cardiomegaly (CheXpert)
    crowds    up to 20 digits on a coloured ground, with density maps: counting, as pedestrians (Mall)

    python stand_ins.py      # writes a few examples of MNIST and of both as PNG files into images/

Both follow from MNIST and a named random stream alone: the same bytes wherever they are made.
"""

import io
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image

import datasets
import experiment
import storage

IMAGES: Path = Path("images")  # where the examples go

THIN, THICK = "thin", "thick"


class Crowds(NamedTuple):
    """Images (N, 3, H, W), uint8; counts (N,), float32; density maps (N, 1, H, W), each of which sums to its count."""

    images: torch.Tensor
    labels: torch.Tensor
    densities: torch.Tensor

    def __getitem__(self, index):
        return Crowds(*(part[index] for part in (self.images, self.labels, self.densities)))

    def __len__(self):
        return len(self.labels)


# --- strokes ------------------------------------------------------------------------------------


def stroke_width(images):
    """Mean width of the strokes in pixels, (N,), of images (N, 1, H, W) in [0, 1]: twice the ink over its outline.

    A stroke of length L and width w has the area L w and an outline of about 2 L. The outline of a grey image is its
    total variation (sum of the gradient's length), which for a drawn shape is the length of its border.
    """
    right = F.pad(images, (0, 1)).diff(dim=3).square()
    down = F.pad(images, (0, 0, 0, 1)).diff(dim=2).square()
    outline = (right + down).add(1e-12).sqrt().flatten(1).sum(1)
    return 2 * images.flatten(1).sum(1) / outline


def strokes(split, device="cpu", root=datasets.ROOT):
    """Digits that are thin (label 0) or thick (1): the two fifths of MNIST with the narrowest and the widest strokes.

    The fifth between is left out, so that the label is beyond doubt; both limits are quantiles of the training set.
    Returns Digits, about 48,000 for "train" and 8,000 for "test".
    """
    train = stroke_width(datasets.mnist("train", device, root).images)
    low, high = train.quantile(0.4), train.quantile(0.6)
    digits = datasets.mnist(split, device, root)
    width = train if split == "train" else stroke_width(digits.images)
    clear = (width < low) | (width > high)
    return datasets.Digits(digits.images[clear], (width > high)[clear].long())


# --- crowds -------------------------------------------------------------------------------------

SIDE, CELLS, MOST = 64, 5, 20  # pixels a side; digits stand in cells of a 5 x 5 grid; at most 20 digits
SIZES = (11, 13, 15)  # pixels a digit's side may have
SPREAD = 2.0  # pixels, the deviation of the Gaussian that a digit is in the density map
NUMBER = {"train": 10_000, "test": 2_000}


def density_maps(rows, columns, there, side=SIDE):
    """(N, 1, side, side) maps with a Gaussian of sum 1 for each point that is `there`.

    rows, columns: (N, K) positions in pixels; there: (N, K) boolean.
    """
    def bell(centres):
        at = torch.arange(side, device=centres.device) - centres.unsqueeze(2)
        curve = torch.exp(-0.5 * (at / SPREAD) ** 2)  # (N, K, side)
        return curve / curve.sum(2, keepdim=True)

    return torch.einsum("nkh,nkw->nhw", bell(rows) * there.unsqueeze(2), bell(columns)).unsqueeze(1)


def _ground(n, stream):
    """Dark, smoothly coloured grounds, (N, 3, side, side)."""
    return F.interpolate(torch.rand(n, 3, 3, 3, generator=stream) * 0.35, SIDE, mode="bilinear", align_corners=True)


def _paste(canvas, now, digits, rows, columns, size, colours):
    """Blend digits (n, 1, 28, 28) into the images `now` (n,) of canvas (N, 3, side, side), in place.

    rows, columns (n,): where the top left corners go; colours (n, 3).
    """
    ink = F.interpolate(digits, size, mode="area").flatten(2)  # (n, 1, size^2)
    steps = torch.arange(size)
    places = ((rows[:, None] + steps)[:, :, None] * SIDE + (columns[:, None] + steps)[:, None]).flatten(1)
    flat, where = canvas.view(*canvas.shape[:2], -1), (now[:, None, None], torch.arange(3)[:, None], places[:, None])
    flat[where] = flat[where].lerp(colours.unsqueeze(2), ink)


def crowds(split, device="cpu", root=datasets.ROOT, number=None):
    """Crowds of 0 to 20 digits, each count as likely; digits from the same split of MNIST, in distinct grid cells.

    number: how many images; by default 10,000 for "train" and 2,000 for "test".
    """
    number = number or NUMBER[split]
    digits = datasets.mnist(split, "cpu", root).images
    stream = experiment.generator(0, f"crowds/{split}")
    counts = torch.randint(0, MOST + 1, (number,), generator=stream)
    cells = torch.rand(number, CELLS**2, generator=stream).argsort(1)[:, :MOST]
    sizes = torch.tensor(SIZES)[torch.randint(0, len(SIZES), (number, MOST), generator=stream)]
    room = SIDE / CELLS  # a digit's centre moves within its cell
    centre = lambda cell: (cell + 0.5 + 0.4 * (torch.rand(number, MOST, generator=stream) - 0.5)) * room
    place = lambda middle: (middle - sizes / 2).round().long().clamp(min=0).minimum(SIDE - sizes)
    rows, columns = place(centre(cells // CELLS)), place(centre(cells % CELLS))
    which = torch.randint(0, len(digits), (number, MOST), generator=stream)
    colours = 1 - 0.6 * torch.rand(number, MOST, 3, generator=stream)
    canvas = _ground(number, stream)
    for k in range(MOST):
        for size in SIZES:
            now = ((counts > k) & (sizes[:, k] == size)).nonzero().squeeze(1)
            _paste(canvas, now, digits[which[now, k]], rows[now, k], columns[now, k], size, colours[now, k])
    there = torch.arange(MOST) < counts.unsqueeze(1)
    maps = density_maps(rows + (sizes - 1) / 2, columns + (sizes - 1) / 2, there)
    return Crowds((canvas * 255).round().byte().to(device), counts.float().to(device), maps.to(device))


# --- examples as files --------------------------------------------------------------------------------


def write_png(path, image):
    """A uint8 image (C, H, W) as a PNG file, C being 1 or 3."""
    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="png")
    storage.write_atomically(path, buffer.getvalue())


def main(images):
    digits, lines, people = datasets.mnist("test"), strokes("test"), crowds("test", number=100)
    as_bytes = lambda image: (image * 255).round().byte()
    examples = {f"mnist_{label}.png": as_bytes(digits.images[digits.labels == label][0]) for label in (4, 7)}
    examples |= {f"stroke_{name}.png": as_bytes(lines.images[lines.labels == label][0])
                 for label, name in enumerate((THIN, THICK))}
    order = people.labels.argsort(stable=True)
    examples |= {"crowd_few.png": people.images[order[15]], "crowd_many.png": people.images[order[-15]]}
    for name, image in examples.items():
        write_png(Path(images) / name, image)
        print(f"{Path(images) / name}: {tuple(image.shape)}")


if __name__ == "__main__":
    experiment.run(main)

"""CelebA, CheXpert and Mall, read from their published formats, and images of the user's own.

    python public_sets.py --fetch celeba     # 1.4 GB through torchvision, which knows the MD5 sum of every part
    python public_sets.py --fetch mall       # 90 MB; its address has no published checksum: the SHA-256 is printed
    python public_sets.py --check chexpert   # reads a copy made by hand and says what was found

None is needed for anything else in this repository. Where each is put by hand is in README.md, "Data".
"""

import contextlib
import csv
import hashlib
import io
from pathlib import Path
from typing import Literal

import numpy
import torch
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

import datasets
import downloads
import experiment
import stand_ins
import storage

FETCH: Literal["celeba", "mall"] | None = None  # fetch this set into ROOT
CHECK: Literal["celeba", "chexpert", "mall"] | None = None  # read this set and say what was found
ROOT: Path = Path("data")  # where the sets lie

MALL_URL = "https://personal.ie.cuhk.edu.hk/~ccloy/files/datasets/mall_dataset.zip"
UNCERTAIN = ("ignore", "zeros", "ones")  # what becomes of CheXpert's label -1 (Irvin et al. 2019, section 3)

# --- one image ------------------------------------------------------------------------------------


def open_image(path):
    """A PIL image, wholly read; raises UserError where the file is absent or no image."""
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise experiment.UserError(f"no image at {path}") from None
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        raise experiment.UserError(f"{path} is not an image that can be read ({type(error).__name__})") from None
    return image


def to_tensor(image, shape, crop=None):
    """A PIL image of any mode and size as a uint8 tensor of shape (C, H, W), C being 1 or 3.

    Transparency is laid on white. crop: side of the centred square that is kept first, "square" for the largest one,
    or None to squash. Antialiased bilinear resizing.
    """
    channels, height, width = shape
    if image.mode in ("I", "I;16", "F"):  # 16-bit and float greys, which convert() would cut off
        grey = numpy.asarray(image, dtype=numpy.float64)
        white = 65535 if grey.max() > 255 else 1 if image.mode == "F" and grey.max() <= 1 else 255
        image = Image.fromarray((255 * grey / white).clip(0, 255).astype(numpy.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if crop:
        side = min(image.size) if crop == "square" else min(crop, *image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(numpy.array(image))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _read_all(paths, shape, crop, cache):
    """uint8 images (N, C, H, W) of the files, from the cache if it was made of the very same list of files.

    A cache that is damaged is made anew, one that cannot be written is gone without. UserError if there are no files.
    """
    if not paths:
        raise experiment.UserError(f"{cache.parent} has no images of this split")
    key = hashlib.sha256(repr((list(map(str, paths)), shape, crop)).encode()).hexdigest()[:16]
    cache = cache.with_name(f"{cache.name}_{key}.npy")
    with contextlib.suppress(Exception):  # absent, or damaged, of which numpy raises half a dozen kinds
        return torch.from_numpy(numpy.load(cache, allow_pickle=False))
    images = torch.stack([to_tensor(open_image(path), shape, crop)
                          for path in tqdm(paths, desc=f"reading {cache.parent.name}", unit="image", disable=None)])
    buffer = io.BytesIO()
    numpy.save(buffer, images.numpy())
    with contextlib.suppress(experiment.UserError):  # a folder of data may be read-only
        storage.write_atomically(cache, buffer.getvalue())
    return images


def _lines(path, what):
    """Lines of a text file of a data set; raises UserError, saying what to do, where it is absent."""
    if not path.is_file():
        raise experiment.UserError(f"{what} is not here: {path} is missing (README.md, Data, says how to get it)")
    return path.read_text().splitlines()


# --- CelebA ----------------------------------------------------------------------------------------


def celeba(split, attribute="Blond_Hair", size=64, device="cpu", root=ROOT):
    """CelebA (Liu et al. 2015) in torchvision's layout: faces with (1) or without (0) the attribute, Digits of uint8.

    split: "train", "valid" or "test", as in list_eval_partition.txt. The centre 148 x 148 of the 178 x 218 pixels is
    resized to size x size. Raises UserError for an attribute that is none of the 40, naming them.
    """
    folder = Path(root) / "celeba"
    table = _lines(folder / "list_attr_celeba.txt", "CelebA")
    names = table[1].split()
    if attribute not in names:
        raise experiment.UserError(f"CelebA has no attribute {attribute!r}; there are {', '.join(names)}")
    code = str(("train", "valid", "test").index(split))
    parts = dict(line.split() for line in _lines(folder / "list_eval_partition.txt", "CelebA"))
    rows = [line.split() for line in table[2:]]
    rows = [row for row in rows if parts.get(row[0]) == code]
    labels = torch.tensor([row[1 + names.index(attribute)] == "1" for row in rows]).long()
    paths = [folder / "img_align_celeba" / row[0] for row in rows]
    images = _read_all(paths, (3, size, size), 148, folder / f"cache_{split}_{size}")
    return datasets.Digits(images.to(device), labels.to(device))


# --- CheXpert ----------------------------------------------------------------------------------------


def chexpert(split, attribute="Cardiomegaly", uncertain="ignore", size=128, device="cpu", root=ROOT):
    """CheXpert (Irvin et al. 2019): frontal chest radiographs with (1) or without (0) a finding, Digits of uint8.

    split: "train" (train.csv) or "test" (valid.csv, the released set that radiologists labelled). attribute: the
    finding. A blank label is negative; an uncertain one (-1) leaves the image out ("ignore", the default), or counts
    as "zeros" or "ones".
    The largest centred square is resized to size x size.
    """
    if uncertain not in UNCERTAIN:
        raise experiment.UserError(f"uncertain labels can be {', '.join(UNCERTAIN)}, not {uncertain!r}")
    folder = Path(root) / "CheXpert-v1.0-small"
    file = folder / ("train.csv" if split == "train" else "valid.csv")
    rows = csv.DictReader(_lines(file, "CheXpert"))
    known = list(rows.fieldnames or ())[5:]
    if attribute not in known:
        raise experiment.UserError(f"CheXpert has no finding {attribute!r}; there are {', '.join(known)}")
    meaning = {"": 0, "0": 0, "1": 1, "-1": {"ignore": None, "zeros": 0, "ones": 1}[uncertain]}
    paths, labels = [], []
    for row in rows:
        label = meaning[row[attribute].strip().removesuffix(".0")]
        if row["Frontal/Lateral"] == "Frontal" and label is not None:
            paths.append(folder.parent / row["Path"])  # Path starts with the name of the folder
            labels.append(label)
    images = _read_all(paths, (1, size, size), "square", folder / f"cache_{split}_{size}")
    return datasets.Digits(images.to(device), torch.tensor(labels).to(device))


# --- Mall --------------------------------------------------------------------------------------------


def mall(split, size=64, device="cpu", root=ROOT):
    """Mall (Chen et al. 2012): frames of a shopping mall and the positions of the heads in them, as stand_ins.Crowds.

    split: "train" (frames 1 to 800) or "test" (the other 1,200), the split of the paper. 640 x 480 is squashed to
    size x size; each head is a Gaussian of sum 1 in the density map.
    """
    folder = Path(root) / "mall_dataset"
    file = folder / "mall_gt.mat"
    if not file.is_file():
        raise experiment.UserError(f"Mall is not here: {file} is missing (README.md, Data, says how to get it)")
    try:
        truth = loadmat(file)
        points = [numpy.asarray(frame["loc"][0, 0], dtype=float) for frame in truth["frame"][0]]
    except Exception as error:  # scipy raises many kinds for damaged files
        raise experiment.UserError(f"{file} cannot be read as Mall's annotation ({type(error).__name__})") from None
    numbers = range(0, min(800, len(points))) if split == "train" else range(800, len(points))
    paths = [folder / "frames" / f"seq_{number + 1:06d}.jpg" for number in numbers]
    images = _read_all(paths, (3, size, size), None, folder / f"cache_{split}_{size}")
    most = max((len(points[number]) for number in numbers), default=0)
    rows, columns, there = torch.zeros(len(paths), most), torch.zeros(len(paths), most), torch.zeros(len(paths), most)
    for k, number in enumerate(numbers):
        width, height = open_image(paths[k]).size
        n = len(points[number])
        columns[k, :n] = torch.from_numpy(points[number][:, 0]) * size / width
        rows[k, :n] = torch.from_numpy(points[number][:, 1]) * size / height
        there[k, :n] = 1
    inside = lambda at: at.clamp(0, size - 1)
    maps = stand_ins.density_maps(inside(rows), inside(columns), there, size)
    return stand_ins.Crowds(images.to(device), there.sum(1).to(device), maps.to(device))


# --- fetching ------------------------------------------------------------------------------------------


def fetch_celeba(root):
    try:
        from torchvision.datasets import CelebA

        CelebA(str(root), download=True)
    except Exception as error:  # every way in which a network can fail; torchvision needs gdown for it
        raise experiment.UserError(f"CelebA cannot be fetched ({str(error).splitlines()[0]}); "
                                   "README.md, Data, says how to place a copy by hand") from None


def fetch_mall(root):
    archive = Path(root) / "mall_dataset.zip"
    by_hand = "README.md, Data, says how to place a copy by hand"
    if not archive.is_file():
        downloads.download(MALL_URL, archive, by_hand, what="Mall")
    print(f"{MALL_URL}: {archive.stat().st_size:,} bytes, SHA-256 {downloads.digests(archive)['sha256']}")
    downloads.extract(archive, root)
    archive.unlink()


def main(fetch, check, root):
    if fetch:
        {"celeba": fetch_celeba, "mall": fetch_mall}[fetch](root)
    for name in filter(None, (fetch, check)):
        for split in ("train", "test"):
            found = {"celeba": celeba, "chexpert": chexpert, "mall": mall}[name](split, root=root)
            print(f"{name} {split}: {len(found):,} images {tuple(found.images.shape[1:])}, "
                  f"mean label {found.labels.double().mean():.3f}")
    if not (fetch or check):
        raise experiment.UserError("say what to do: --fetch celeba|mall or --check celeba|chexpert|mall")


if __name__ == "__main__":
    experiment.run(main)

"""Folders of images in published layouts as batches: ImageNet's, Geirhos' cue-conflict stimuli, the IN-9 test sets.

    ImageNet       ROOT/CLASS/*.JPEG, also .jpg and .png; classes are numbered in the order of their names
    cue conflict   ROOT/SHAPE/SHAPE<n>-TEXTURE<m>.png (Geirhos et al. 2019, github.com/rgeirhos/texture-vs-shape,
                   stimuli/style-transfer-preprocessed-512): 16 categories, 80 images each
    IN-9           ROOT/VARIATION/val/00_dog to 08_fish (Xiao et al. 2020, github.com/MadryLab/backgrounds_challenge)

Whatever is wrong with a folder is a UserError of one line that names it.
"""

import copy
import functools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

import datasets
import experiment
import storage
from experiment import UserError
from public_sets import open_image, to_tensor

SUFFIXES = {".jpg", ".jpeg", ".png"}  # in small or capital letters
KEPT = 2 * 2**30  # bytes: a set that takes no more than this, decoded, is decoded once and kept in memory
THREADS = min(8, os.cpu_count() or 1)  # that decode; Pillow lets others run meanwhile
CHUNK = 256  # images that are decoded at once when a set is kept

# the 16 categories of Geirhos et al., unions of ImageNet's classes, in the order of their names
CATEGORIES = ("airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat", "chair", "clock", "dog",
              "elephant", "keyboard", "knife", "oven", "truck")  # fmt: skip
STIMULUS = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")  # cat4-truck2: the shape of a cat, the texture of a truck
VARIATIONS = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t")
IN9_CLASSES = 9


class Pictures:
    """Image files with labels as a source of batches.

    paths   N files
    labels  (N,) or (N, K), int64
    size    side of the images in a batch. The centred square of an image is cut out and resized to it, which is what
            resizing the shorter side and cropping the centre does
    device  where batches and labels are
    seed    of the order of a shuffled pass and of what is mirrored in it
    share   side of that square as a share of the shorter side; ImageNet is evaluated at 0.875, 224 of 256 pixels
    flip    whether half the images of a shuffled pass are mirrored

    A set of at most KEPT bytes is decoded once, in the first pass, and kept; a larger one is decoded in every pass.
    """

    channels = 3

    def __init__(self, paths, labels, size, device="cpu", seed=0, share=1.0, flip=False):
        self.paths, self.labels, self.size = list(paths), labels.to(device), size
        self.device, self.seed, self.share, self.flip = torch.device(device), seed, share, flip

    def __len__(self):
        return len(self.paths)

    def batches(self, size, stream_seed=None):
        """(images (B, 3, S, S) float32 in [-1, 1], labels, None): None, since no masks are known.

        The last batch is of what is left. stream_seed None: in order. Else (say, the number of the epoch): shuffled,
        and mirrored where `flip` says so, by streams of this name. Raises UserError at an image that cannot be read.
        """
        order, mirrored = datasets.order_of(len(self), self.seed, stream_seed), torch.zeros(len(self), dtype=torch.bool)
        if stream_seed is not None and self.flip:
            drawn = torch.rand(len(self), generator=experiment.generator(self.seed, f"{stream_seed}/flip"))
            mirrored = drawn < 0.5
        chunks = order.split(size)
        decoded = (self._kept[index] for index in chunks) if self.is_kept() else self._decode(chunks)
        for index, images in zip(chunks, decoded, strict=True):
            images = torch.where(mirrored[index, None, None, None], images.flip(3), images)
            yield datasets.from_bytes(images.to(self.device)), self.labels[index.to(self.device)], None

    def is_kept(self):
        """Whether the decoded images stay in memory."""
        return len(self) * self.channels * self.size**2 <= KEPT

    @functools.cached_property
    def _kept(self):
        """All images, (N, 3, S, S), uint8, on the CPU."""
        chunks = torch.arange(len(self)).split(CHUNK)
        return torch.cat(list(tqdm(self._decode(chunks), "decoding", len(chunks), disable=None)))

    def _decode(self, chunks):
        """The images (n, 3, S, S), uint8, of each chunk of positions; the next chunk is decoded meanwhile."""
        with ThreadPoolExecutor(THREADS) as pool:
            ahead = None
            for chunk in (*chunks, None):
                ready, ahead = ahead, None if chunk is None else pool.map(self._read, chunk.tolist())
                if ready is not None:
                    yield torch.stack(list(ready))

    def _read(self, position):
        image = open_image(self.paths[position])
        return to_tensor(image, (3, self.size, self.size), max(1, round(self.share * min(image.size))))


class Folder(Pictures):
    """The images of ROOT/CLASS/*, as Pictures; classes: the names of the class folders, in the order of the labels.

    Raises UserError where there is no such folder, where it has no class folders, and for a class without images.
    """

    def __init__(self, root, size, device="cpu", seed=0, share=1.0, flip=False):
        self.classes, paths, labels = _tree(Path(root))
        super().__init__(paths, labels, size, device, seed, share, flip)


class Masked(Pictures):
    """The images of a folder with their masks in another one, NAME.png, white on what stands out, as Pictures.

    split: "train", or "val" for every tenth image, by name. Batches are (images, labels all 0, masks (B, 1, S, S)
    boolean). Raises UserError where a mask is missing or of another size than its image, and for fewer than ten images.
    """

    def __init__(self, images, masks, size, split="train", device="cpu", seed=0):
        paths = sorted(path for path in _files(images) if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise UserError(f"{images} has no images ({', '.join(sorted(SUFFIXES))})")
        if len(paths) < 10:
            raise UserError(f"{images} has {len(paths)} images: every tenth is held out, so that ten are needed")
        held_out = [number % 10 == 9 for number in range(len(paths))]
        paths = [path for path, out in zip(paths, held_out, strict=True) if out == (split == "val")]
        self.masks = Path(masks)
        super().__init__(paths, torch.zeros(len(paths), dtype=torch.int64), size, device, seed)

    def first(self, n):
        """The first n images, as Masked."""
        cut = copy.copy(self)
        cut.paths, cut.labels = self.paths[:n], self.labels[:n]
        return cut

    def batches(self, size, stream_seed=None):
        for both, labels, _ in super().batches(size, stream_seed):
            yield both[:, :3], labels, both[:, 3:] > 0

    channels = 4  # of what is kept of an image: its colours and its mask

    def _read(self, position):
        path = self.paths[position]
        file = self.masks / f"{path.stem}.png"
        if not file.is_file():
            raise UserError(f"no mask at {file} for {path}")
        image, mask = open_image(path), open_image(file)
        if image.size != mask.size:
            raise UserError(f"{file} is of {mask.size[0]} x {mask.size[1]} pixels, and its image of {image.size[0]} x "
                            f"{image.size[1]}")
        crop = min(image.size)
        return torch.cat([to_tensor(image, (3, self.size, self.size), crop),
                          to_tensor(mask, (1, self.size, self.size), crop)])  # fmt: skip


def _files(folder):
    """The files of a folder; UserError if there is no such folder."""
    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder}")
    return [Path(entry.path) for entry in os.scandir(folder) if entry.is_file()]


def cue_conflict(root):
    """(paths, labels (N, 2)) of Geirhos' stimuli; labels: numbers in CATEGORIES of shape and texture.

    All of them: in 80 of the 1,280 shape and texture are of one category, which shape bias leaves out. Raises
    UserError unless there are the 16 folders, and for a name that does not say its shape, which is that of its folder,
    and its texture.
    """
    classes, paths, shapes = _tree(Path(root))
    _expect(root, classes, CATEGORIES)
    labels = []
    for path, shape in zip(paths, shapes.tolist(), strict=True):
        found = STIMULUS.fullmatch(path.stem)
        if not found or found[1] != CATEGORIES[shape] or found[2] not in CATEGORIES:
            raise UserError(f"{path} should be called {CATEGORIES[shape]}<n>-<texture><m>, texture being one of the "
                            "16 categories")
        labels.append((shape, CATEGORIES.index(found[2])))
    return paths, torch.tensor(labels)


def in9(root, split):
    """(paths, labels (N,)) of a test set of the Backgrounds Challenge, ROOT/SPLIT/val; split: one of VARIATIONS.

    Raises UserError for another name, and unless there are nine class folders called 00_... to 08_...
    """
    storage.one_of(dict.fromkeys(VARIATIONS), "variation of IN-9", split)
    folder = Path(root) / split / "val"
    classes, paths, labels = _tree(folder)
    _expect(folder, [name.split("_")[0] for name in classes], [f"{k:02d}" for k in range(IN9_CLASSES)])
    return paths, labels


def _expect(root, found, wanted):
    """UserError, naming what is missing or too much, unless these are the class folders that a layout has."""
    for name in [*wanted, *found]:
        if (name in wanted) != (name in found):
            raise UserError(f"{root} should have the class folders {', '.join(wanted)}: {name} is "
                            + ("missing" if name in wanted else "none of them"))
    if len(found) != len(wanted):
        raise UserError(f"{root} has {len(found)} class folders, and {', '.join(wanted)} are wanted once each")


def _tree(root):
    """(names of the class folders, paths, labels (N,)) of ROOT/CLASS/*, in the order of their names."""
    if not root.is_dir():
        raise UserError(f"no folder {root}: it should hold one folder of images for each class")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"{root} has no class folders: images of a class belong into {root}/CLASS")
    paths, labels = [], []
    for label, name in enumerate(classes):
        own = sorted(entry.name for entry in os.scandir(root / name) if not entry.name.startswith(".")
                     and os.path.splitext(entry.name)[1].lower() in SUFFIXES)  # fmt: skip
        if not own:
            raise UserError(f"{root / name} has no images ({', '.join(sorted(SUFFIXES))})")
        paths += [root / name / file for file in own]
        labels += [label] * len(own)
    return tuple(classes), paths, torch.tensor(labels)

"""IN-9, IN-9L, Waterbirds and CCT as lists of samples, parsed from their published layouts; no pixel is read here.

    in9, in9l   Xiao et al. 2020, Noise or Signal: ROOT/bg_challenge/{train,test}/...
    wb          Sagawa et al. 2020, group DRO: ROOT/waterbird_complete95_forest2water2/, CUB's segmentations/ inside
    cct         Beery et al. 2018, CCT-20: ROOT/eccv_18_annotation_files/ and ROOT/eccv_18_all_images_sm/

`python -m robust_training.fetch --set NAME` gets what is public; photos.py reads the pixels. Whatever is wrong with a
file is a UserError of one line that names the file and the row.
"""

import csv
import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import storage
from experiment import UserError

ROOT = Path("data")
IN9 = ("dog", "bird", "wheeled vehicle", "reptile", "carnivore", "insect", "musical instrument", "primate", "fish")
CATEGORIES = {1: "opossum", 3: "raccoon", 5: "squirrel", 6: "bobcat", 7: "skunk", 8: "dog", 9: "coyote", 10: "rabbit",
              11: "bird", 16: "cat", 21: "badger", 33: "car", 34: "deer", 51: "fox", 99: "rodent"}  # fmt: skip
EMPTY = 30  # CCT's category of images without an animal, left out (published)
CLASSES = {"in9": IN9, "in9l": IN9, "wb": ("landbird", "waterbird"), "cct": tuple(CATEGORIES.values())}
TESTS = ("original", "mixed_same", "mixed_rand", "mixed_next")
SPLITS = {"in9": ("train", "val", *TESTS), "in9l": ("train", "val", *TESTS),
          "wb": ("train", "val", "test", "orig", "flip"),
          "cct": ("train", "val", "cis_test", "trans_test", "trans_val")}  # fmt: skip
PHOTOS = {".jpg", ".jpeg", ".png"}


class Sample(NamedTuple):
    """One image and what is known of its foreground.

    path    the image
    label   number of its class in CLASSES
    place   class of its background (Waterbirds: 0 land, 1 water), -1 where it is not known
    boxes   ((left, top, right, bottom), ...) in fractions of width and height, cut at the border; () without
    mask    the file that its outline is made of, or None
    kind    how the foreground is told: "boxes"; "pair" (mask is the image with the foreground blacked out); "npy"
            (mask is an array, foreground not 0); "png" (mask is a picture, foreground not black); "none"
    name    which image it is; precomputed infills are called name.jpg or name.png
    """

    path: Path
    label: int
    place: int
    boxes: tuple
    mask: Path | None
    kind: str
    name: str


class Samples(list):
    """The samples of one split; left_out counts images with animals of two categories, which have no one label."""

    left_out = 0


def read(name, split, root=ROOT):
    """The Samples of a split, one of SPLITS[name], in the order of the set's own files.

    Raises UserError for an unknown name or split, and for whatever is missing or wrong in the files.
    """
    splits = storage.one_of(SPLITS, "set", name)
    storage.one_of(dict.fromkeys(splits), f"split of {name}", split)
    if name == "wb":
        samples = _waterbirds(split, Path(root))
    elif name == "cct":
        samples = _cct(split, Path(root))
    else:
        samples = _in9(name, split, Path(root))
    if not samples:
        raise UserError(f"{name} {split} has no images in {root}: the copy is incomplete")
    return samples


# --- what the formats share -----------------------------------------------------------------------


def _there(path, name):
    """path if it is there; else UserError saying where a copy made by hand goes."""
    if not path.exists():
        raise UserError(f"{path} is missing: fetch it (python -m robust_training.fetch --set {name}) or put a copy "
                        "there by hand (README.md, Data)")
    return path


def _table(path, columns):
    """[(line number, {column: text}), ...] of a CSV file; UserError where a column is missing, by name, or a field."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            rows = [(reader.line_num, row) for row in reader] if not missing else []
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV file that can be read: {error}") from None
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}")
    for line, row in rows:
        for column in columns:
            if row[column] is None:
                raise UserError(f"{path}, line {line}: there is nothing in column {column}")
    return rows


def _fractions(box, width, height, where):
    """A box (left, top, right, bottom) in pixels as fractions, cut at the border; where: its row, for the UserError.

    Fractions hold for the image at any size, so that a box of the original fits a rescaled copy.
    """
    left, top, right, bottom = box
    cut = (max(left / width, 0.0), max(top / height, 0.0), min(right / width, 1.0), min(bottom / height, 1.0))
    if not all(map(math.isfinite, box)) or cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise UserError(f"{where}: the box ({left:g}, {top:g}, {right:g}, {bottom:g}) is empty or outside its image "
                        f"of {width:g} x {height:g} pixels")
    return cut


# --- IN-9 and IN-9L -------------------------------------------------------------------------------


def _in9(name, split, root):
    base = root / "bg_challenge"
    if split in TESTS:
        folder, masks, kind = base / "test" / split / "val", base / "test/fg_mask/val", "npy"
    else:
        variant = "original" if name == "in9" else "in9l"
        folder, masks, kind = base / "train" / variant / split, base / "train/no_fg" / split, "pair"
    if split != "val":  # validation needs none
        _there(masks, name)
    samples = Samples()
    for label, title in enumerate(IN9):
        part = f"{label:02d}_{title}"
        outlines = _names(masks / part) if (masks / part).is_dir() else set()
        for file in sorted(_names(_there(folder / part, name))):
            if Path(file).suffix.lower() not in PHOTOS:
                continue
            stem = Path(file).stem
            mask = file if kind == "pair" else _foreground_of(stem) + ".npy"
            known = mask in outlines  # not every image was segmented
            samples.append(Sample(folder / part / file, label, -1, (), masks / part / mask if known else None,
                                  kind if known else "none", f"{part}/{stem}"))
    return samples


def _names(folder):
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if not entry.name.startswith(".")}


def _foreground_of(stem):
    """The image that the foreground is of: n02_1 for n02_1 and for fg_n02_1_bg_n03_2, as mixed images are called."""
    return stem.removeprefix("fg_").split("_bg_")[0]


# --- Waterbirds -----------------------------------------------------------------------------------


def _waterbirds(split, root):
    """orig and flip are the test rows whose background agrees (95 % of the training rows do) and disagrees."""
    folder = root / "waterbird_complete95_forest2water2"
    file, outlines = _there(folder / "metadata.csv", "wb"), _there(folder / "segmentations", "wb")
    wanted = {"train": 0, "val": 1}.get(split, 2)
    samples = Samples()
    for line, row in _table(file, ("img_filename", "y", "split", "place")):
        where = f"{file}, line {line}"
        part = _code(row, "split", 3, where)
        label, place = _code(row, "y", 2, where), _code(row, "place", 2, where)
        if part != wanted or (split == "orig" and label != place) or (split == "flip" and label == place):
            continue
        name = os.path.splitext(row["img_filename"])[0]
        path, mask = folder / row["img_filename"], outlines / f"{name}.png"
        for needed in (path, mask):
            if not needed.is_file():
                raise UserError(f"{where}: {needed} is missing")
        samples.append(Sample(path, label, place, (), mask, "png", name))
    return samples


def _code(row, column, n, where):
    """A whole number below n from a column."""
    if row[column].strip() not in map(str, range(n)):
        raise UserError(f"{where}: {column} should be one of {', '.join(map(str, range(n)))}, not {row[column]!r}")
    return int(row[column])


# --- CCT ------------------------------------------------------------------------------------------


def _cct(split, root):
    """Images in the order of the file. One with several boxes is one sample; one without stays, foreground unknown.

    Where one animal of an image has no box, its foreground counts as not known: an infill would leave that animal.
    """
    title = "cis_val" if split == "val" else split
    file = _there(root / "eccv_18_annotation_files" / f"{title}_annotations.json", "cct")
    folder = _there(root / "eccv_18_all_images_sm", "cct")
    sizes, annotations = _json(file)
    found = {image: (set(), []) for image in sizes}  # the labels and the boxes in each image
    for number, annotation in enumerate(annotations, 1):
        where = f"{file}, annotation {number}"
        image, category = _fields(annotation, ("image_id", "category_id"), where)
        if not isinstance(image, str) or image not in sizes:
            raise UserError(f"{where}: its image {image!r} is not among the images of the file")
        if category == EMPTY:
            continue
        if not isinstance(category, int) or category not in CATEGORIES:
            raise UserError(f"{where}: category {category!r} is none of CCT-20's {', '.join(map(str, CATEGORIES))}")
        labels, boxes = found[image]
        labels.add(list(CATEGORIES).index(category))
        boxes.append(_corners(annotation.get("bbox"), sizes[image], where))
    return _collect(found, folder, file)


def _collect(found, folder, file):
    """Samples of {image: (labels, boxes, None for one that is missing)}, without those of two labels and of none."""
    samples, files = Samples(), _names(folder)
    for image, (labels, boxes) in found.items():
        if len(labels) == 1:
            if f"{image}.jpg" not in files:
                raise UserError(f"{file}: image {image!r} is annotated, but {folder / f'{image}.jpg'} is missing")
            known = None not in boxes
            samples.append(Sample(folder / f"{image}.jpg", *labels, -1, tuple(boxes) if known else (), None,
                                  "boxes" if known else "none", image))
        samples.left_out += len(labels) > 1
    return samples


def _json(file):
    """({image id: (width, height) of the original}, annotations) of a COCO-CameraTraps file."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is broken JSON: {error}") from None
    images, annotations = _fields(content, ("images", "annotations"), file)
    if not (isinstance(images, list) and isinstance(annotations, list)):
        raise UserError(f"{file}: images and annotations should be lists")
    sizes = {}
    for number, image in enumerate(images, 1):
        where = f"{file}, image {number}"
        name, *size = _fields(image, ("id", "width", "height"), where)
        if not isinstance(name, str) or not all(isinstance(side, (int, float)) and side > 0 for side in size):
            raise UserError(f"{where}: id should be a text, width and height numbers above 0, not {name!r}, {size}")
        sizes[name] = size
    return sizes, annotations


def _fields(entry, keys, where):
    """The values of keys in a dict; UserError for another thing than a dict or one that lacks them."""
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise UserError(f"{where}: there is no {', '.join(missing)}")
    return [entry[key] for key in keys]


def _corners(box, size, where):
    """A box [x, y, width, height] in pixels of the original as fractions; None where there is none."""
    if box is None or box == []:
        return None
    if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box)):
        raise UserError(f"{where}: bbox should be four numbers, not {box!r}")
    x, y, width, height = box
    return _fractions((x, y, x + width, y + height), *size, where)

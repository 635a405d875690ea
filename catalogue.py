"""Every data set by its name: what its images and labels are, and how they are had.

    load("crowds", "test")      a split, whole
    split("mnist", ...)         disjoint training and validation parts of the training split
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

import datasets
import public_sets
import stand_ins
import storage
from datasets import ROOT
from experiment import UserError


class DataSet(NamedTuple):
    """shape: (C, H, W). bits: 2^bits grey levels, for the flows. classes: their names, or None where it is counting.

    default: what `attribute` is where the set has many; read(split, device=, root=, ...) gives Digits or Crowds.
    """

    shape: tuple
    bits: int
    classes: tuple | None
    read: Callable
    default: str | None = None


SETS = {
    "mnist": DataSet((1, 28, 28), 8, tuple("0123456789"), datasets.mnist),
    "strokes": DataSet((1, 28, 28), 8, (stand_ins.THIN, stand_ins.THICK), stand_ins.strokes),
    "crowds": DataSet((3, 64, 64), 5, None, stand_ins.crowds),
    "celeba": DataSet((3, 64, 64), 5, ("without", "with"), public_sets.celeba, "Blond_Hair"),
    "chexpert": DataSet((1, 128, 128), 8, ("without", "with"), public_sets.chexpert, "Cardiomegaly"),
    "mall": DataSet((3, 64, 64), 5, None, public_sets.mall),
}


def find(name):
    """The DataSet of this name; raises UserError, listing the known ones."""
    return storage.one_of(SETS, "data set", name)


def class_number(name, value):
    """Index of the class that a user calls `value`: its name or its number. Raises UserError, listing the classes."""
    classes = find(name).classes
    if classes is None:
        raise UserError(f"{name} is counted, it has no classes: say --maximize or --minimize instead of a --target")
    if value in classes:
        return classes.index(value)
    if value.isdigit() and int(value) < len(classes):
        return int(value)
    raise UserError(f"{name} has no class {value!r}; there are {', '.join(classes)}")


def check_labels(name, attribute, uncertain):
    """Raise UserError if a set is asked for a choice among labels that it does not offer."""
    if attribute and not find(name).default:
        raise UserError(f"{name} has no attributes to choose from; leave out --attribute")
    if uncertain and name != "chexpert":
        raise UserError(f"{name} has no uncertain labels; leave out --uncertain")


def load(name, split, device="cpu", attribute=None, uncertain=None, root=ROOT):
    """The "train" or "test" split of a data set, as Digits or Crowds.

    attribute: which of CelebA's attributes or CheXpert's findings is the label; uncertain: see public_sets.chexpert.
    """
    check_labels(name, attribute, uncertain)
    given = {"attribute": attribute, "uncertain": uncertain}
    return find(name).read(split, device=device, root=root, **{key: value for key, value in given.items() if value})


def split(name, n, n_validation, seed, device="cpu", held_out=(), root=ROOT, **which):
    """(training, validation) parts of the training split, disjoint, drawn from the stream "split" of the seed.

    held_out: classes that have no part in either (of sets with classes). n None takes all that validation leaves.
    """
    return datasets.split(load(name, "train", device, root=root, **which), held_out, n, n_validation, seed)


def unit(images):
    """Images as float32 in [0, 1], whether they are kept as bytes or as floats."""
    return images.float() / 255 if images.dtype == torch.uint8 else images

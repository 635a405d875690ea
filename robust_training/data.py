"""Every data set of part 6 by its name: its splits as sources of Batches, and how it is trained on as published.

    source("wb", "train", ...)     a Photos or Scenes: len, labels, places, batches(size, stream_seed)
    RECIPES["wb"]                  optimiser, schedule, epochs, batch, checkpoint rule (Chang et al. 2021, their code)
"""

from typing import NamedTuple

import torch

from experiment import UserError
from robust_training import digits, formats, photos
from robust_training.losses import groups_of
from storage import one_of


class Recipe(NamedTuple):
    """How a data set is trained on.

    size       side of the images in pixels; resize: of photos.Photos
    optimiser  (name, settings of torch.optim)
    schedule   ("steps", epochs at which the rate falls to a tenth), ("plateau", patience) or ("cycle", share of rise)
    select     the rule that picks the checkpoint: a metric of the validation split, val_acc1 or val_auc, or "last"
    tests      the splits that are measured, after val
    """

    backbone: str
    size: int
    resize: str
    optimiser: tuple
    lr: float
    schedule: tuple
    epochs: int
    batch: int
    select: str
    tests: tuple


SGD = ("SGD", {"momentum": 0.9, "weight_decay": 1e-4})
IN9_TESTS = ("original", "mixed_same", "mixed_rand", "mixed_next")
RECIPES = {
    "digits": Recipe("small", digits.SIDE, "squash", ("AdamW", {"weight_decay": 1e-2}), 5e-3, ("cycle", 0.2), 6, 64,
                     "last", digits.TESTS),
    "in9": Recipe("bit", 224, "squash", SGD, 0.05, ("steps", (6, 12, 18)), 25, 32, "val_acc1", IN9_TESTS),
    "in9l": Recipe("bit", 224, "squash", SGD, 0.05, ("steps", (5, 10, 15)), 20, 32, "val_acc1", IN9_TESTS),
    "wb": Recipe("bit", 224, "squash", SGD, 8e-4, ("plateau", 1), 40, 32, "val_acc1", ("orig", "flip", "test")),
    "cct": Recipe("bit", 224, "short", ("RMSprop", {"momentum": 0.9}), 0.003, ("steps", (15, 30, 45)), 50, 64,
                  "val_auc", ("cis_test", "trans_test")),
}  # fmt: skip


def classes(name, labels="ten"):
    """Names of a set's classes; labels: "ten" or "two", of digits."""
    if name == "digits":
        return digits.CLASSES[labels]
    return one_of(formats.CLASSES, "data set", name)


def source(name, split, labels="ten", root=digits.datasets.ROOT, device="cpu", seed=0, infills=None, workers=0,
           known=True):
    """A split as a source of Batches, which stay on the CPU for photographs and on the device for digits.

    labels: of digits. seed: of the order and the augmentation. infills: folder of precomputed ones. known: whether the
    foreground is read at all. Raises UserError for what is missing.
    """
    if name == "digits":
        if infills is not None:
            raise UserError("--infills is for photographs; digits are infilled by --inpainter")
        return digits.read(labels, split, device, root, seed)
    recipe = one_of(RECIPES, "data set", name)
    samples = formats.read(name, split, root)
    return photos.Photos(samples, recipe.size, recipe.resize, train=split == "train", infills=infills,
                         known=known, workers=workers, seed=seed)  # fmt: skip


def group_shares(labels, places, count):
    """Share of each group of losses.groups_of in a split, (2 count,), float64."""
    return torch.bincount(groups_of(labels, places).cpu(), minlength=2 * count).double() / len(labels)

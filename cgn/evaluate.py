"""What a classifier reads: shape or texture, object or background, and how it does off its training images (part 5).

    python -m cgn.evaluate --run runs/ensemble_both                  # on the test splits of the made set; 10 s
    python -m cgn.evaluate --run runs/ensemble_both_imagenet --in9 data/bg_challenge/test --val IMAGENET/val
    python -m cgn.evaluate --classifier resnet50 --cue-conflict data/cue-conflict \
        --ood data/imagenet-a data/imagenet-sketch

Sauer and Geiger 2021, section 4.4, and the replication (MLRC 2021). An ensemble has five answers: its three heads,
their mean, and the mean of shape and texture, with which the published code measures the BG-gap; a classifier of
torchvision has one, which is called its mean. Of each answer:

    made set      top-1 and top-5 for the shape on every split of objects64.TESTS, for a head's own label, too; shape
                  bias where texture and shape conflict: in texture_conflict the background sides with the shape; bg_gap
    --in9         top-1 of the superclass of the highest of the 1,000 classes (a class in none is wrong; Xiao et al.
                  2020) on three variations; bg_gap = mixed_same - mixed_rand. Images are read whole, as published
    --cue-conflict  shape bias, and top-1 for the shape, by the mean probability of a category (Geirhos et al. 2019)
    --ood         top-1 and top-5 on ROOT/CLASS/*. 200 class folders are ImageNet-A's: the decision is among these
                  classes (Hendrycks et al. 2021). Any other set has the classifier's classes, such as ImageNet-Sketch
    --val         the same on ImageNet's validation split

Classes are numbered in the order of their folders' names. Every set is recorded in results/cgn/ as soon as it is
measured; one that is there with the same options, and files of the same names, is only printed.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision

import backbones
import experiment
import storage
import tables
from cgn import ensemble, fetch, folders, imagenet, objects64, scores, train_ensemble
from cgn.train_ensemble import SHARE
from experiment import UserError

# --- what is measured, and on what -------------------------------------------------------------------------
RUN: Path = Path("runs/ensemble_both")  # run folder of cgn.train_ensemble
CLASSIFIER: str | None = None  # a classifier of torchvision instead, by its name there
WEIGHTS: Path | None = None  # its published weights; by default what cgn.fetch gets under its name
IN9: Path | None = None  # folder of IN-9's variations: IN9/mixed_same/val/00_dog/* and so on
CUE_CONFLICT: Path | None = None  # folder of the cue-conflict stimuli's 16 categories
OOD: tuple[Path, ...] | None = None  # folders off the training distribution, each ROOT/CLASS/*
VAL: Path | None = None  # ImageNet's validation split, VAL/CLASS/*
SIZE: experiment.Count | None = None  # pixels of a side of images in folders; by default a run's own, else 224
BATCH: experiment.Count = 250  # images at once
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the network
RESULTS: Path = Path("results/cgn")  # where records go

CONFLICTS = ("texture_conflict", "counterfactual")  # splits whose shape bias is measured; in the second one the
# background agrees with neither
VARIATIONS = ("original", "mixed_same", "mixed_rand")  # of IN-9
GAP = ("mixed_same", "mixed_rand")  # whose difference is the BG-gap
SIDE = 224  # pixels that torchvision's classifiers were trained on
OTHER_PIXELS = ("inception_v3", "googlenet")  # whose weights expect others than ImageNet's mean and deviation


class Measured(NamedTuple):
    """What is measured: `network` from images (B, 3, S, S) in [-1, 1] to logits, on its device; what it is called.

    side: pixels that it was trained on. about: what records say of it, with the options of its training under
    "trained", None for published weights.
    """

    network: torch.nn.Module
    arm: str
    classes: int
    side: int
    seed: int
    about: dict

    @property
    def title(self):
        return self.about["run"] or self.about["classifier"]


class Set(NamedTuple):
    """What it is measured on: {split: function that gives its source}, and what is found there.

    rule(split, head, logits (N, C), labels): [(metric, value, n)]. about: what records say of the set.
    """

    sources: dict
    rule: Callable
    about: dict


# --- rules -------------------------------------------------------------------------------------------------


def accuracies(answer, labels):
    """Top-1 and, where there are so many classes, top-5."""
    return [(f"top-{k}", scores.top_k(answer, labels, k), len(labels)) for k in (1, 5) if k <= answer.shape[1]]


def of_made(split, head, answer, labels):
    """On a split of the made set, labels (N, 3)."""
    found, own = accuracies(answer, labels[:, 0]), {"texture": 1, "background": 2}.get(head, 0)
    if own and (labels[:, own] >= 0).all():
        found.append(("own label", scores.top_k(answer, labels[:, own], 1), len(labels)))
    return found + (bias(answer.softmax(1), labels) if split in CONFLICTS else [])


def of_classes(split, head, answer, labels):
    """Where class folders are the classifier's classes."""
    return accuracies(answer, labels)


def of_imagenet_a(split, head, answer, labels):
    """Where class folders are 200 of the 1,000 classes, and others cannot be decided for."""
    return accuracies(answer[:, imagenet.IN_A], labels)


def of_in9(split, head, answer, labels):
    """Where labels are superclasses of the 1,000 classes."""
    decided = imagenet.in9_of()[answer.argmax(1)]
    return [("top-1", float((decided == labels).double().mean()), len(labels))]


def of_cues(split, head, answer, labels):
    """Where labels (N, 2) are two of the 16 categories: of the shape, of the texture."""
    probabilities = scores.sixteen_classes(answer.softmax(1), imagenet.members())
    return [("top-1", scores.top_k(probabilities, labels[:, 0], 1), len(labels)), *bias(probabilities, labels)]


def bias(probabilities, labels):
    """The shape bias; n: decisions for shape or texture, of which it is a share."""
    found = scores.shape_bias(probabilities, labels[:, 0], labels[:, 1])
    return [("shape bias", found.bias, found.shape + found.texture)]


def answers_of(logits):
    """{name: logits (N, classes)} of an Ensemble's logits (N, 3, classes), or of a plain classifier's (N, classes)."""
    return {"mean": logits} if logits.ndim == 2 else ensemble.answers(logits)


def measure(network, part, device, context=None, batch=BATCH):
    """[(head, split, metric, value, n)] of a network on a Set."""
    rows = []
    for split, source in part.sources.items():
        logits, labels = train_ensemble.read(network, source(), device, context, batch)
        for head, answer in answers_of(logits).items():
            rows += [(head, split, *found) for found in part.rule(split, head, answer, labels)]
    return rows + gaps(rows)


def gaps(rows):
    """The BG-gap of each head, where both splits that it is the difference of were measured."""
    right = {row[:2]: row[3:] for row in rows if row[2] == "top-1"}
    heads = [head for head, split in right if split == GAP[0] and (head, GAP[1]) in right]
    return [(head, "bg_gap", "bg_gap", right[head, GAP[0]][0] - right[head, GAP[1]][0], right[head, GAP[1]][1])
            for head in heads]


# --- classifiers -------------------------------------------------------------------------------------------


def of_run(run, device):
    """The Measured in a run folder of train_ensemble; raises UserError if it holds something else."""
    file = run / "ckpt/best.pt"
    state = storage.load_checkpoint(file)
    network, trained = ensemble.restore(state), state.get("options", {})
    about = {"run": run.resolve().name, "classifier": None, "weights": storage.digest(file), "trained": trained}
    return Measured(network.to(device), trained.get("on", about["run"]), network.classes, network.settings["side"],
                    trained.get("seed", 0), about)


def of_torchvision(name, weights, device):
    """The Measured of a classifier's name and file of weights, whose last tensor tells how many classes it has."""
    if name in OTHER_PIXELS:
        raise UserError(f"--classifier {name} expects pixels that are scaled otherwise; take resnet50, say")
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"--classifier {name}: torchvision has none of this name; it has resnet50, say")
    if weights is None and name not in fetch.MANIFEST:
        raise UserError(f"--classifier {name} needs --weights, the .pth file that torchvision publishes for it")
    weights = weights or fetch.path_of(name)
    classes = backbones.classes_in(storage.load_checkpoint(weights))
    if not classes:
        raise UserError(f"{weights} does not end with the last layer of {name}: it is no file of its weights")
    network = backbones.load_torchvision(backbones.build(name, classes), weights).eval()
    about = {"run": None, "classifier": name, "weights": storage.digest(weights), "trained": None}
    return Measured(network.to(device), name, classes, SIDE, 0, about)


# --- sets --------------------------------------------------------------------------------------------------


def made_set(measured, device):
    """The Set of the made set's test splits; UserError unless the classifier is of its classes and pixels."""
    if (measured.classes, measured.side) != (objects64.COUNT, objects64.SIDE):
        raise UserError(f"{measured.title} tells {measured.classes} classes apart in images of {measured.side} "
                        "pixels, and is not of the made set: name folders of images, such as --val")
    return Set({split: partial(objects64.read, split, device) for split in objects64.TESTS}, of_made, {})


def named(kind, folder, paths, size):
    """What records say of a set of files: its folder's name, how many, a digest of their names; pixels of a side."""
    names = "\n".join(sorted(str(path.relative_to(folder)) for path in paths))
    return {kind: {"folder": folder.resolve().name, "images": len(paths),
                   "names": hashlib.sha256(names.encode()).hexdigest()[:32]}, "size": size}  # fmt: skip


def wants_imagenet(measured, option):
    """Raise UserError unless the classifier is of ImageNet's classes."""
    if measured.classes != imagenet.CLASSES:
        raise UserError(f"--{option} needs a classifier of ImageNet's {imagenet.CLASSES:,} classes, and "
                        f"{measured.title} tells {measured.classes} apart")


def in9_set(measured, root, size, device):
    """The Set of three variations of IN-9; raises UserError as folders.in9 does."""
    wants_imagenet(measured, "in9")
    found = {split: folders.in9(root, split) for split in VARIATIONS}
    sources = {split: partial(folders.Pictures, *pair, size, device) for split, pair in found.items()}
    return Set(sources, of_in9, named("in9", root, [path for paths, _ in found.values() for path in paths], size))


def cue_set(measured, root, size, device):
    """The Set of the cue-conflict stimuli; raises UserError as folders.cue_conflict does."""
    wants_imagenet(measured, "cue-conflict")
    paths, labels = folders.cue_conflict(root)
    source = partial(folders.Pictures, paths, labels, size, device, share=SHARE)
    return Set({"cue_conflict": source}, of_cues, named("cue_conflict", root, paths, size))


def class_set(measured, kind, root, size, device):
    """The Set of ROOT/CLASS/*; UserError unless it has the classifier's classes or, off distribution, ImageNet-A's."""
    source, rule = folders.Folder(root, size, device, share=SHARE), of_classes
    split = "val" if kind == "val" else root.resolve().name
    if kind == "ood" and len(source.classes) == len(imagenet.IN_A) != measured.classes:
        wants_imagenet(measured, "ood")
        if (source.classes[0], source.classes[-1]) != imagenet.IN_A_ENDS:
            raise UserError(f"{root} has 200 class folders which are not those of ImageNet-A, from "
                            f"{' to '.join(imagenet.IN_A_ENDS)}: nothing says which classes they are")
        rule = of_imagenet_a
    elif len(source.classes) != measured.classes:
        also = " (or 200, of ImageNet-A)" if kind == "ood" else ""
        raise UserError(f"{root} has {len(source.classes)} class folders, and {measured.title} tells "
                        f"{measured.classes} classes apart: as many folders are wanted{also}")
    return Set({split: lambda: source}, rule, named(kind, root, source.paths, size))


def sets_of(measured, in9, cue_conflict, ood, val, size, device):
    """The Sets that the options name; without any, the made set. All folders are looked at before one is measured."""
    names = ["val", *(root.resolve().name for root in ood or ())]
    twice = max(names, key=names.count)
    if names.count(twice) > 1:
        raise UserError(f"records would call two sets {twice}: rename a folder of --ood")
    if size and not (in9 or cue_conflict or ood or val):
        raise UserError("--size is of images in folders, and none is named")
    size = size or measured.side
    found = [make(measured, root, size, device) for make, root in ((in9_set, in9), (cue_set, cue_conflict)) if root]
    found += [class_set(measured, kind, root, size, device)
              for kind, root in (*(("ood", root) for root in ood or ()), ("val", val)) if root]  # fmt: skip
    return found or [made_set(measured, device)]


# --- the script --------------------------------------------------------------------------------------------


def table(rows):
    """Records of one classifier as a Markdown table in per cent: a line for each split and metric, a column a head."""
    heads = list(dict.fromkeys(row["arm"] for row in rows))
    cells = {(row["split"], row["metric"], row["arm"]): row["value"] for row in rows}
    shown = lambda value: "" if value is None else f"{100 * value:.1f}"
    lines = [(f"{split}: {metric}", *(shown(cells.get((split, metric, head))) for head in heads))
             for split, metric in dict.fromkeys(key[:2] for key in cells)]  # fmt: skip
    return tables.markdown(["%", *heads], lines)


def main(run, classifier, weights, in9, cue_conflict, ood, val, size, batch, device, precision, results):
    if classifier is None and weights is not None:
        raise UserError("--weights is for a --classifier of torchvision; a run has its own")
    device = experiment.pick_device(device)
    measured = of_torchvision(classifier, weights, device) if classifier else of_run(run, device)
    rows = []
    for part in sets_of(measured, in9, cue_conflict, ood, val, size, device):
        options = measured.about | part.about | {"precision": precision}
        records = storage.Records(results, "evaluate", options, device)
        found = records.earlier()
        if not found:
            context = experiment.in_precision(device, precision)
            for head, split, metric, value, n in measure(measured.network, part, device, context, batch):
                records.add(f"{measured.arm}, {head}", split, metric, value, n, measured.seed)
            found = records.save()
        rows += found
    print(table(rows))


if __name__ == "__main__":
    experiment.run(main)

"""Train a classifier with a head for shape, texture and background on real and counterfactual images (part 5).

    python -m cgn.train_ensemble --on real           # the plain one, on the made set; 2 min on 2 cores
    python -m cgn.train_ensemble --on both           # with the counterfactuals of cgn.generate_objects --size
    python -m cgn.train_ensemble --on independent    # the ceiling: true images, three true labels, independent
    python -m cgn.train_ensemble --folder IMAGENET --size 256 --set data/cgn/imagenet --backbone resnet50 \
        --weights data/weights/resnet50-0676ba61.pth --lr 0.001

Sauer and Geiger 2021, sections 4.3 and 4.4. Real images are those of the made set, or of --folder in ImageNet's layout.
Writes runs/ensemble_ON/ (options.json, log.jsonl, ckpt/{best,last}.pt), and to results/cgn/ the accuracy of each answer
on the validation split; cgn.evaluate measures the rest. Which weights are kept is a named rule. A run that was killed
goes on from last.pt and ends with the same bytes.
"""

import functools
from pathlib import Path
from typing import Literal

import torch

import backbones
import datasets
import experiment
import storage
import trainer
from cgn import ensemble, folders, generate_objects, objects64, scores, sets
from experiment import UserError

# --- what is trained ---------------------------------------------------------------------------------------
ON: Literal["real", "counterfactual", "both", "independent"] = "both"  # images; independent: see objects64
SET: Path = Path("data/cgn/objects")  # folder of the counterfactuals, of cgn.generate_objects --size
FOLDER: Path | None = None  # real images instead of the made set: FOLDER/train/CLASS/*, FOLDER/val/CLASS/*
SIZE: experiment.Count = 224  # pixels of a side that these images are brought to
BACKBONE: str = "small"  # a name in backbones.py, or a classifier of torchvision
WEIGHTS: Path | None = None  # torchvision's weights of the backbone; its batch norm then keeps its statistics
SEED: experiment.Index = 0  # names the streams of initialisation and order
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the network; auto: bfloat16 where there are matrix units for it
RUN: Path | None = None  # run folder; by default runs/ensemble_ON, with the folder's name, and the seed if it is not 0
RESULTS: Path = Path("results/cgn")  # where records go

# --- how -------------------------------------------------------------------------------------------------------
STEPS: experiment.Count = 2000  # of Adam
BATCH: experiment.Count = 64  # real images a step
RATIO: experiment.Positive = 1.0  # counterfactuals for each real image (published: 1); their loss counts as often
LR: experiment.Positive = 3e-3  # falling in the second half; published: SGD, 1e-3
SELECT: Literal["last", "val mean", "val shape"] = "last"  # the weights that are kept: the average at the end, or best

CHECKED = 20  # times that a rule looks at the validation split
READ = 250  # images that are read at once
SHARE = 0.875  # side of what is evaluated as a share of an image's shorter side: 224 of 256 pixels (ImageNet's)
NEVER = 1e-6  # a probability at which chance is no explanation


class Course(trainer.Training):
    """A training of an Ensemble in its folder; sources: {real, counterfactual, val: a function that reads it}."""

    def __init__(self, folder, options, model, sources, device):
        self.model, self.sources, self.device, self.chosen = model, sources, device, {"score": -1.0}
        super().__init__(folder, options)
        self.chosen = self.last.get("chosen", self.chosen)

    def begin(self):
        o = self.options
        context = experiment.in_precision(self.device, o["precision"])
        sizes = {"real": o["batch"], "counterfactual": round(o["batch"] * o["ratio"])}
        batches = {kind: functools.partial(trainer.passes, self.sources[kind](), sizes[kind])
                   for kind in kinds_of(o["on"])}  # fmt: skip
        return ensemble.Game(self.model, o["lr"], batches.get("real"), batches.get("counterfactual"), o["ratio"],
                             self.device, context, o["seed"])  # fmt: skip

    def after_step(self):
        """By a rule on the validation split, keep the running average where it is best."""
        due = self.step % max(1, self.options["steps"] // CHECKED) == 0 or self.step == self.options["steps"]
        if self.options["select"] == "last" or not due:
            return
        average = self.game.averages["ensemble"]
        logits, labels = read(average, self.sources["val"](), self.device, self.game.context)
        answer = ensemble.answers(logits)[self.options["select"].removeprefix("val ")]
        score = scores.top_k(answer, objects64.of_shape(labels), 1)
        if score > self.chosen["score"]:
            weights = {name: value.clone() for name, value in average.state_dict().items()}
            self.chosen = {"score": score, "step": self.step, "model": weights}

    def kept(self):
        return {} if self.options["select"] == "last" else {"chosen": self.chosen}

    def architecture(self):
        weights = self.chosen.get("model") or self.game.averages["ensemble"].state_dict()
        return "ensemble", self.model.settings, weights


def kinds_of(on):
    """What a step has a batch of: real images, images with three labels, or both."""
    return {"real": ("real",), "both": ("real", "counterfactual")}.get(on, ("counterfactual",))


@torch.no_grad()
def read(model, source, device, context=None, size=READ):
    """(logits, labels) of all images of a source, in order, on the CPU; the model reads them in evaluation mode.

    logits: (N, 3, classes) of an Ensemble, (N, classes) of another classifier; labels: (N,) or (N, 3), as the source
    has them. context: makes the context that the model runs in; by default it runs in float32.
    """
    was, context = model.training, context or experiment.in_precision(device, "float32")
    model.eval()
    found = []
    for images, labels, _ in source.batches(size):
        with context():
            found.append((model(images.to(device)).float().cpu(), labels.cpu()))
    model.train(was)
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


# --- sources ---------------------------------------------------------------------------------------------------


class Arrays:
    """A set on the disk as a source of (images in [-1, 1], labels (B, 3)); seed: of its order."""

    def __init__(self, images, labels, seed):
        self.images, self.labels, self.seed = images, labels, seed

    def __len__(self):
        return len(self.labels)

    def batches(self, size, stream_seed):
        for index in datasets.order_of(len(self), self.seed, stream_seed).split(size):
            index = index.numpy()
            yield (datasets.from_bytes(torch.from_numpy(self.images[index])),
                   torch.from_numpy(self.labels[index].astype("int64")))  # fmt: skip


def real_images(folder, size, seed, device):
    """({"real", "val": a function that reads it}, classes, side) of the made set, or of a folder in ImageNet's layout.

    Raises UserError for what is wrong with the folder, and where train and val are not of the same classes.
    """
    if folder is None:
        return {"real": lambda: objects64.read("train", device, seed=seed),
                "val": functools.cache(lambda: objects64.read("val", device))}, objects64.COUNT, objects64.SIDE
    train = folders.Folder(folder / "train", size, device, seed, flip=True)
    val = folders.Folder(folder / "val", size, device, share=SHARE)
    other = sorted({*train.classes} ^ {*val.classes})
    if other:
        raise UserError(f"{folder}/train and {folder}/val should have the same class folders: {other[0]} is in one of "
                        "them only")
    return {"real": lambda: train, "val": lambda: val}, len(train.classes), size


def counterfactuals(file, classes, side, seed):
    """The Arrays of a set; raises UserError where it is not there, or is of other classes or pixels than real images.

    A set does not say of how many classes it is. Its labels are drawn uniformly, so that the highest one tells: there
    are too few if it is so low that chance does not explain it.
    """
    images, labels = sets.read(file)
    if images.shape[2:] != (side, side):
        raise UserError(f"counterfactuals at {file} are of {images.shape[3]} x {images.shape[2]} pixels, and real "
                        f"images of {side} x {side}: with --folder, --size {images.shape[3]} is theirs")
    found = int(labels.max()) + 1
    if found > classes or (found / classes) ** labels.size < NEVER:
        raise UserError(f"counterfactuals at {file} are of {found} classes, and real images of {classes}: name a --set "
                        "that was made for these")
    return Arrays(images, labels, seed)


def build(backbone, weights, classes, side, seed):
    """A fresh Ensemble, with pretrained weights if there are any; UserError for what does not go together."""
    if weights is not None and backbone in backbones.BACKBONES:
        raise UserError(f"--weights is for a classifier of torchvision, and --backbone {backbone} is none")
    try:
        model = ensemble.build(backbone, classes, side, seed, frozen=weights is not None)
    except RuntimeError as error:
        raise UserError(f"--backbone {backbone} cannot read images of {side} x {side} pixels: {error}") from None
    if weights is not None:
        backbones.load_torchvision(model.backbone, weights)
    return model


def record(records, on, seed, model, source, device, context):
    """Add the accuracy of each answer on the validation split."""
    logits, labels = read(model, source, device, context)
    shapes = objects64.of_shape(labels)
    for head, answer in ensemble.answers(logits).items():
        records.add(f"{on}, {head}", "val", "top-1", scores.top_k(answer, shapes, 1), len(labels), seed)


def main(on, set, folder, size, backbone, weights, seed, device, precision, run, results, steps, batch, ratio, lr,
         select):
    if folder is not None and on == "independent":
        raise UserError("--on independent is of the made set, where all labels are known: leave --folder out")
    if round(batch * ratio) < 1:
        raise UserError(f"--ratio {ratio} of a --batch of {batch} is no counterfactual at all")
    device = experiment.pick_device(device)
    sources, classes, side = real_images(folder, size, seed, device)
    file, made_from = set / generate_objects.NAME, None
    if on in ("counterfactual", "both"):
        made_from, made = sets.about_of(file), counterfactuals(file, classes, side, seed)
        sources["counterfactual"] = lambda: made
    elif on == "independent":
        sources["counterfactual"] = lambda: objects64.read("independent", device, seed=seed)
    model = build(backbone, weights, classes, side, seed)
    name = folder and folder.resolve().name
    options = {"on": on, "set": made_from, "folder": name, "classes": classes, "size": side, "backbone": backbone,
               "weights": weights and weights.name, "seed": seed, "precision": precision, "steps": steps,
               "batch": batch, "ratio": ratio, "lr": lr, "select": select}  # fmt: skip
    words = ["ensemble", on, *([name] if name else []), *([f"seed{seed}"] if seed else [])]
    course = functools.partial(Course, model=model.to(device, memory_format=torch.channels_last), sources=sources,
                               device=device)  # fmt: skip
    path = run or Path("runs") / "_".join(words)
    best, trained = trainer.train(path, options, course)
    records = storage.Records(results, "train_ensemble", options, device)
    rows = [] if trained else records.earlier()
    if not rows:
        context = experiment.in_precision(device, precision)
        record(records, on, seed, ensemble.restore(best).to(device), sources["val"](), device, context)
        rows = records.save()
    for row in rows:
        print(f"{row['arm']}, {row['split']}: {row['metric']} {row['value']:.4f} (n = {row['n']})")
    print(f"{path}: {'trained' if trained else 'trained before'}, {steps:,} steps")


if __name__ == "__main__":
    experiment.run(main)

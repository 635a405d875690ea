"""Train a classifier with a head for shape, texture and background, and measure what each of them reads (part 5).

    python -m cgn.train_ensemble --on real                      # the plain one; 2 min on 2 cores
    python -m cgn.train_ensemble --on both                      # with counterfactuals of cgn.generate_objects --size
    python -m cgn.train_ensemble --on both --folder IMAGENET --set data/cgn/objects --backbone resnet50 \
        --weights data/weights/resnet50-0676ba61.pth --lr 0.001

Sauer and Geiger 2021, section 4.3 and 4.4. Writes runs/ensemble_NAME/ (options.json, log.jsonl, ckpt/{best,last}.pt)
and records to results/cgn/: top-1 and top-5 of each head and of their mean, the shape bias on cue conflicts, IN-9's
accuracies and BG-gap, on the made set or on folders (--in9, --cue-conflict, --ood). Which weights are kept is a named
rule. A run that was killed goes on from last.pt and ends with the same bytes.
"""

import functools
import itertools
from pathlib import Path
from typing import Literal

import torch

import backbones
import datasets
import experiment
import storage
import trainer
from cgn import ensemble, generate_objects, objects64, scores, sets

# --- what is trained ---------------------------------------------------------------------------------------
ON: Literal["real", "counterfactual", "both"] = "both"  # images it is trained on
SET: Path = Path("data/cgn/objects")  # folder of the counterfactuals, of cgn.generate_objects --size
BACKBONE: str = "small"  # a name in backbones.py, or a classifier of torchvision
WEIGHTS: Path | None = None  # torchvision's weights of the backbone; its batch norm then keeps its statistics
SEED: experiment.Index = 0  # names the streams of initialisation and order
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the network; auto: bfloat16 where there are matrix units for it
RUN: Path | None = None  # run folder; by default runs/ensemble_ON, with the seed if it is not 0
RESULTS: Path = Path("results/cgn")  # where records go

# --- how -------------------------------------------------------------------------------------------------------
STEPS: experiment.Count = 2000  # of Adam
BATCH: experiment.Count = 64  # real images a step
RATIO: experiment.Positive = 1.0  # counterfactuals for each real image (published: 1); their loss counts as often
LR: experiment.Positive = 3e-3  # falling in the second half; published: SGD, 1e-3
SELECT: Literal["last", "val mean", "val shape"] = "last"  # the weights that are kept: the average at the end, or best

CHECKED = 20  # times that a rule looks at the validation split
CONFLICTS = ("texture_conflict",)  # splits on which the shape bias is measured


class Course(trainer.Training):
    """A training of an Ensemble in its folder; sources: {kind: a function that reads it}."""

    def __init__(self, folder, options, model, sources, device):
        self.model, self.sources, self.device, self.chosen = model, sources, device, {"score": -1.0}
        super().__init__(folder, options)
        self.chosen = self.last.get("chosen", self.chosen)

    def begin(self):
        o = self.options
        context = experiment.in_precision(self.device, o["precision"])
        batches = {kind: functools.partial(trainer.passes, source(), size) for kind, source, size in (
            ("real", self.sources["real"], o["batch"]),
            ("counterfactual", self.sources["counterfactual"], round(o["batch"] * o["ratio"])))
            if o["on"] in (kind, "both")}  # fmt: skip
        return ensemble.Game(self.model, o["lr"], batches.get("real"), batches.get("counterfactual"), o["ratio"],
                             self.device, context, o["seed"])  # fmt: skip

    def after_step(self):
        """By a rule on the validation split, keep the running average where it is best."""
        due = self.step % max(1, self.options["steps"] // CHECKED) == 0 or self.step == self.options["steps"]
        if self.options["select"] == "last" or not due:
            return
        average = self.game.averages["ensemble"]
        logits, labels = read(average, self.sources["val"](), self.device)
        score = scores.top_k(ensemble.answers(logits)[self.options["select"].removeprefix("val ")], labels[:, 0], 1)
        if score > self.chosen["score"]:
            weights = {name: value.clone() for name, value in average.state_dict().items()}
            self.chosen = {"score": score, "step": self.step, "model": weights}

    def kept(self):
        return {} if self.options["select"] == "last" else {"chosen": self.chosen}

    def architecture(self):
        weights = self.chosen.get("model") or self.game.averages["ensemble"].state_dict()
        return "ensemble", self.model.settings, weights


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


@torch.no_grad()
def read(model, source, device):
    """(logits (N, 3, classes), labels (N, 3)) of a split, on the CPU, in evaluation mode."""
    was = model.training
    model.eval()
    found = [(model(images.to(device)).float().cpu(), labels.cpu()) for images, labels, _ in source.batches(250)]
    model.train(was)
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


def measure(model, splits, device):
    """[(head, split, metric, value, n)] of {split: source} of the made set."""
    rows, right = [], {}
    for split, source in splits.items():
        logits, labels = read(model, source, device)
        for head, answer in ensemble.answers(logits).items():
            own = {"texture": 1, "background": 2}.get(head, 0)
            right[head, split] = scores.top_k(answer, labels[:, 0], 1)
            rows += [(head, split, f"top-{k}", scores.top_k(answer, labels[:, 0], k), len(labels)) for k in (1, 5)]
            if own and (labels[:, own] >= 0).all():
                rows.append((head, split, "own label", scores.top_k(answer, labels[:, own], 1), len(labels)))
            if split in CONFLICTS:
                bias = scores.shape_bias(answer.softmax(1), labels[:, 0], labels[:, 1])
                rows.append((head, split, "shape bias", bias.bias, bias.shape + bias.texture))
    for head in {head for head, _ in right}:
        gap = right[head, "mixed_same"] - right[head, "mixed_rand"]
        rows.append((head, "bg_gap", "bg_gap", gap, len(splits["mixed_rand"])))
    return sorted(rows, key=lambda row: (row[0], row[1], row[2]))


def main(on, set, backbone, weights, seed, device, precision, run, results, steps, batch, ratio, lr, select):
    device = experiment.pick_device(device)
    model = ensemble.build(backbone, objects64.COUNT, objects64.SIDE, seed, frozen=weights is not None)
    if weights is not None:
        backbones.load_torchvision(model.backbone, weights)
    file = set / generate_objects.NAME
    made_from = None if on == "real" else sets.about_of(file)
    options = {"on": on, "set": made_from, "backbone": backbone, "weights": weights and weights.name, "seed": seed,
               "precision": precision, "steps": steps, "batch": batch, "ratio": ratio, "lr": lr,
               "select": select}  # fmt: skip
    path = run or Path("runs") / "_".join(["ensemble", on, *([f"seed{seed}"] if seed else [])])
    sources = {"real": lambda: objects64.read("train", device, seed=seed),
               "counterfactual": lambda: Arrays(*sets.read(file), seed),
               "val": functools.cache(lambda: objects64.read("val", device))}  # fmt: skip
    course = functools.partial(Course, model=model.to(device, memory_format=torch.channels_last), sources=sources,
                               device=device)  # fmt: skip
    best, trained = trainer.train(path, options, course)
    model = ensemble.restore(best).to(device)
    records = storage.Records(results, "train_ensemble", options, device)
    if trained or not records.earlier():
        splits = {split: objects64.read(split, device) for split in itertools.chain(["val"], objects64.TESTS)}
        for head, split, metric, value, n in measure(model, splits, device):
            records.add(f"{on}, {head}", split, metric, value, n, seed)
        records.save()
        for row in records.rows:
            if row["metric"] in ("top-1", "bg_gap", "shape bias") and row["value"] is not None:
                print(f"{row['arm']}, {row['split']}: {row['metric']} {row['value']:.4f} (n = {row['n']})")
    print(f"{path}: {'trained' if trained else 'trained before'}, {steps:,} steps")


if __name__ == "__main__":
    experiment.run(main)

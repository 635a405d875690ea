"""What part 6 makes and finds, as figures: infills and swaps, saliency before and after, accuracy, reliability.

    python -m robust_training.show      # 20 s on 2 cores, after the runs of plan.py

Writes to results/robust_training/: augmentations.png, every counterfactual and factual of a few images; saliency.png,
squared input gradients of classifiers on flipped grounds; accuracies.png and reliability.png, from the records.
"""

from pathlib import Path

import torch

import backbones
import experiment
import figures
import storage
import tables
from robust_training import augment, digits, objective, plan, report, saliency, train

SEED: experiment.Index = 5  # of the runs that are shown
IMAGES: experiment.Count = 6  # rows of the two sheets
RUNS: Path = Path("runs")  # where robust_training.train has left its runs
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/robust_training")  # where records are and figures go

POOL = 64  # images of a batch, among which mixed_rand finds its partners
BRIGHTEST = 0.995  # quantile of a map that is drawn darkest
PAIR = f"CF {plan.BEST[0]} + F {plan.BEST[1]}"
SEEN = ("plain", "Sal", "mask_o", "CF tile", "F mixed_rand", PAIR)  # arms whose maps are drawn
RELIABLE = {"plain": "orange", "Sal": "purple", "CF tile": "red", "F mixed_rand": "sky", PAIR: "blue",
            "group-DRO": "green"}  # fmt: skip


def restored(arm, seed, runs, device):
    """The classifier that an arm of the plan has trained."""
    words = f"{plan.arms()[arm]} --seed {seed}".strip()
    path = runs / f"robust_{train.name_of(report.options_of(words))}" / "ckpt/best.pt"
    if not path.exists():
        raise experiment.UserError(f"{path} is missing: python -m robust_training.train {words}")
    return backbones.restore(storage.load_checkpoint(path)).to(device)


def sheet_of_augmentations(path, seed, images, runs, device):
    """Every infill and every swap of the first images of the training set."""
    model, scenes = restored("plain", seed, runs, device), digits.read("ten", "train", device).first(POOL)
    scenes.paint_over(train.painter(runs / train.INPAINTER.name, device, "ten").fill)
    batch = next(iter(scenes.batches(POOL)))
    shown = [(batch.labels == k).nonzero()[0, 0] for k in range(images)]
    gradient = lambda some, labels: objective.loss_gradient(model, some, labels)
    columns = {"image": batch.images}
    for name in augment.COUNTERFACTUALS:
        columns[f"CF {name}"] = augment.counterfactual(name, batch, experiment.generator(seed, f"show/{name}"))
    for name in augment.FACTUALS:
        stream = experiment.generator(seed, f"show/factual {name}")
        columns[f"F {name}"] = augment.factual(name, batch, stream, gradient)
    rows = [[(made[k] + 1) / 2 for made in columns.values()] for k in shown]
    figures.image_grid(path, rows, [name.replace("_", "-") for name in columns], [f"label {k}" for k in range(images)],
                       [[""] * len(columns)] * images,
                       "Counterfactuals lose their foreground, and their label; factuals keep both on another ground")


def sheet_of_maps(path, seed, images, runs, device):
    """Squared input gradients of the true class, on flipped grounds."""
    batch = next(iter(digits.read("ten", "flip", device).batches(POOL)))
    batch = batch[torch.stack([(batch.labels == k).nonzero()[0, 0] for k in range(images)])]
    rows = [[(image + 1) / 2] for image in batch.images]
    captions = [[f"{label} on the ground of {place}"] for label, place in zip(batch.labels, batch.places, strict=True)]
    for arm in SEEN:
        model = restored(arm, seed, runs, device)
        heat = saliency.maps("grad_y", model, batch.images, batch.labels).detach().square().sum(1, keepdim=True)
        inside = (heat * batch.masks).sum((1, 2, 3)) / heat.sum((1, 2, 3))
        with torch.no_grad():
            seen = model(batch.images)[:, :10].argmax(1)
        for k, one in enumerate(heat):
            rows[k].append((one / one.flatten().quantile(BRIGHTEST)).clamp(0, 1))
            captions[k].append(f"taken for {seen[k]}, {inside[k]:.0%}")
    heat = [(i, j) for i in range(images) for j in range(1, 1 + len(SEEN))]
    columns = ["flipped ground", *(arm.replace(" + ", "\n+ ") for arm in SEEN)]
    figures.image_grid(path, rows, columns, [""] * images, captions,
                       "Where the gradient of the true class is large, and its share inside the digit", heat)


def chart_of_accuracies(path, records):
    """Accuracy on three splits of plain training, every augmentation, the penalty and the baselines."""
    found = report.by_arm(records, plan.commands(plan.arms()))
    splits = {"original": ("original", "grey"), "mixed-rand": ("mixed_rand", "sky"), "flip": ("flip", "blue")}
    arms = [arm for arm in [*plan.augmented(), "Sal", *plan.BASELINES] if arm in found]
    rows = []
    for arm in arms:
        values = [[100 * value for value in found[arm][split, "accuracy"].values()] for split, _ in splits.values()]
        rows.append((arm, [(mean.mean, mean.half, part) for part in values for mean in [tables.mean_of(part)]]))
    figures.bars(path, [(name, colour) for name, (_, colour) in splits.items()], rows,
                 "Accuracy by training: mean over the seeds, 95 % interval, and each seed", "accuracy in %", (0, 100))


def chart_of_reliability(path, records):
    """Share right by confidence, on flipped grounds; a bin counts if it holds a hundredth of the images."""
    lines = []
    for arm, colour in RELIABLE.items():
        bins = bins_of(records, plan.arms()[arm])
        if bins:
            lines.append((arm, colour, *zip(*bins, strict=True), None))
    ideal = ("as sure as right", "grey", [0, 1], [0, 1], None)
    panel = {"title": "flipped grounds, all seeds", "x_label": "confidence", "y_label": "share right",
             "lines": [ideal, *lines]}  # fmt: skip
    figures.curves(path, [panel], "Reliability: below the diagonal is overconfident")


def bins_of(records, words):
    """[(mean confidence, share right)] of the bins of an arm on flipped grounds, over its seeds."""
    wanted = {report.key(report.options_of(f"{words} --seed {seed}".strip())) for seed in plan.SEEDS}
    sums = {}
    for row in records:
        told = row["metric"] in ("confidence", "reliability") and row["split"] == "flip" and row["value"] is not None
        if told and report.key(row["options"]) in wanted:
            part = sums.setdefault(row["setting"]["bin"], {"n": 0, "confidence": 0, "reliability": 0})
            part[row["metric"]] += row["n"] * row["value"]
            part["n"] += row["n"] * (row["metric"] == "reliability")
    total = sum(part["n"] for part in sums.values())
    return [(part["confidence"] / part["n"], part["reliability"] / part["n"])
            for _, part in sorted(sums.items()) if part["n"] >= total / 100]  # fmt: skip


def main(seed, images, runs, device, results):
    if images > 10:
        raise experiment.UserError(f"--images {images}: there is one of each digit, so at most 10")
    device = experiment.pick_device(device)
    records = report.read(results)
    if not report.by_arm(records, plan.commands(plan.arms())):
        raise experiment.UserError(f"{results} has no records of the plan: run python reproduce.py first")
    chart_of_accuracies(results / "accuracies.png", records)
    chart_of_reliability(results / "reliability.png", records)
    sheet_of_augmentations(results / "augmentations.png", seed, images, runs, device)
    sheet_of_maps(results / "saliency.png", seed, images, runs, device)
    print(f"{results}/ has augmentations.png, saliency.png, accuracies.png and reliability.png")


if __name__ == "__main__":
    experiment.run(main)

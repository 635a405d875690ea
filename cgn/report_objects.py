"""README's tables of part 5 at the scale of ImageNet: published, replicated and measured here, from the records alone.

Claims 2 and 3 of the replication of Sauer and Geiger 2021 (Bagad et al. 2022), with its tables 3 and 4. Ours are of the
made set of objects; what was measured on ImageNet's folders, with whatever weights, has rows of its own as soon as its
records are there, and until then a cell that says what it takes.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import tables
from cgn import plan_objects, report, score_objects, train_ensemble, train_objects
from cgn.report import UNMEASURED

PRESET = "objects64"
PER_CENT = 100

# Inception Score and mean mask with each loss left out: the paper's ablation, the replication's.
PAPER_LOSSES = {None: (130.2, 0.3), "shape": (85.9, 0.2), "texture": (198.4, 0.9), "background": (195.6, 0.1),
                "rec": (38.4, 0.3), "target": (202.9, None)}  # fmt: skip
REPLICATED_LOSSES = {None: (156.1, 0.3), "shape": (100.8, 0.3), "texture": (186.5, 0.4), "background": (200.9, 0.1),
                     "rec": (19.3, 0.4)}  # fmt: skip
LOSSES = {None: "none", "shape": "shape", "texture": "texture", "background": "background, ground",
          "ground": "ground (ours)", "rec": "reconstruction", "target": "the BigGAN itself"}  # fmt: skip
SCORED = {"inception score": (2, 1), "mean mask": (2, 1), "mask iou": (2, 1),  # columns of ours: digits, scale
          "l1 to target": (3, 1), "shape read": (1, PER_CENT), "texture read": (1, PER_CENT),
          "background read": (1, PER_CENT)}  # fmt: skip

# Table 3 of the replication, in per cent: the shape bias of each head, and accuracy on ImageNet (of the replication, on
# IN-mini; its slides have 58.8, 22.6, 24.7, 56.5 and 79.3 instead).
TABLE_3 = {("shape", "shape bias"): (54.8, 49.1), ("texture", "shape bias"): (16.7, 20.5),
           ("background", "shape bias"): (22.9, 25.7), ("mean", "top-1"): (74.0, 56.2),
           ("mean", "top-5"): (91.7, 79.1)}  # fmt: skip
# Table 4, accuracy in per cent on IN-9, Mixed-Same, Mixed-Rand, and the gap of the last two. The first two rows are
# those of Xiao et al. 2020. The slides of the replication have 89.4, 75.4, 66.7 and 5.0, which mixes heads.
SPLITS_4 = ("original", "mixed_same", "mixed_rand", "bg_gap")
TABLE_4 = {"paper: IN": (95.6, 86.2, 78.9, 7.3), "paper: Mixed-Rand": (73.3, 71.5, 71.3, 0.2),
           "paper: SIN": (89.2, 73.1, 63.7, 9.4), "paper: IN + SIN": (94.7, 85.9, 78.5, 7.4),
           "paper: IN + CGN": (94.2, 83.4, 80.1, 3.3),
           "replication: IN-mini + CGN": (86.8, 73.2, 68.3, 4.9)}  # fmt: skip
# Top-1 off the training distribution, in per cent: the replication's IN-mini + CGN, and ResNet-50.
SHIFTED = {"ImageNet (replication: IN-mini)": (56.8, 75.6), "ImageNet-A": (1.39, 3.4), "ImageNet-Sketch": (11.8, 24.1),
           "cue conflict, called stylized": (17.19, 19.22)}  # fmt: skip
OURS = dict(zip(SHIFTED, ("val", "imagenet-a", "imagenet-sketch", "cue_conflict"), strict=True))  # splits of records
ARMS = {"real": "real", "counterfactual": "counterfactual", "both": "real + counterfactual",
        "independent": "true labels, independent"}  # fmt: skip
ANSWERS = (("real", "mean"), ("both", "mean"), ("both", "shape"), ("counterfactual", "shape"),
           ("independent", "shape"))  # columns of the last table
NEEDED = "needs ImageNet"  # in a cell


shown = functools.partial(report.shown, seeds=len(plan_objects.SEEDS))
paired = functools.partial(tables.difference, scale=PER_CENT)  # in points


class Cell(NamedTuple):
    """What a cell is of: an arm of train_ensemble, one of its answers, a split, a metric."""

    arm: str
    head: str
    split: str
    metric: str


# --- claim 2 -----------------------------------------------------------------------------------------------


def scored(records):
    """{(loss left out, or "target"): {metric: {seed of the CGN's training: value}}} of the made set."""
    found = {}
    for row in records:
        trained = row["options"].get("trained")
        if row["experiment"] == "score_objects" and row["split"] == PRESET and trained and usual(row["options"]):
            arm = "target" if row["arm"] == "target" else trained["leave_out"]
            found.setdefault(arm, {}).setdefault(row["metric"], {})[trained["seed"]] = row["value"]
    return found


def usual(options):
    """Whether a CGN, trained as its preset says, was scored at the replication's setting, by the default networks."""
    preset = {name: train_objects.PRESETS[PRESET][name] for name in ("steps", "batch", "accumulate")}
    judges = {name: Path(default(score_objects, name)).name for name in ("target", "classifier", "reader", "segmenter")}
    return ((options["count"], options["splits"], options["truncation"]) == plan_objects.SCORED_AT
            and options["seed"] == score_objects.SEED and judges.items() <= options.items()
            and preset.items() <= options["trained"].items())  # fmt: skip


def default(script, name):
    return getattr(script, name.upper())


def losses_table(records):
    """The ablation of the losses: published, replicated, and ours with what else can be measured."""
    found, lines = scored(records), []
    if not found:
        return UNMEASURED
    number = lambda value: "–" if value is None else f"{value:g}"
    for left_out, name in LOSSES.items():
        published = [number(value) for source in (PAPER_LOSSES, REPLICATED_LOSSES)
                     for value in source.get(left_out, (None, None))]
        own = found.get(left_out, {})
        if left_out == "target":  # one network: its rows are the same beside every CGN, but for its latents' seed
            own = {metric: dict([next(iter(values.items()))]) for metric, values in own.items()}
        lines.append([name, *published, *(shown(own.get(metric, {}).values(), *how) for metric, how in SCORED.items())])
    header = ["left out", "paper: score", "mask", "replication: score", "mask", "ours: score", "mask", "mask IoU",
              "L1", "shape read, %", "texture read, %", "background read, %"]
    return tables.markdown(header, lines)


def losses_claims(records):
    """A sentence for each loss on whether what is made is worse without it, by the shapes that can be read."""
    found, said = scored(records), []
    for left_out in plan_objects.LEFT_OUT:
        worse = paired(found.get(left_out, {}).get("shape read", {}), found.get(None, {}).get("shape read", {}))
        if worse is not None:
            said.append(f"{LOSSES[left_out]}: {tables.judge(worse, 'lower', points(worse))}")
    if not said:
        return UNMEASURED
    return "That fewer shapes can be read without it, for each loss:\n\n" + tables.bullets(said)


# --- claim 3 -----------------------------------------------------------------------------------------------


def measured(records):
    """{Cell: {seed: value}} of the classifiers on the made set."""
    found = {}
    for row in records:
        if row["experiment"] == "evaluate" and of_made_set(row["options"]) and row["value"] is not None:
            arm, head = row["arm"].split(", ", 1)
            trained = row["options"]["trained"]
            found.setdefault(Cell(arm, head, row["split"], row["metric"]), {})[trained["seed"]] = row["value"]
    return found


def of_made_set(options):
    """Whether what was evaluated, on the made set, is one of the plan's classifiers: trained as by default."""
    trained = options.get("trained")
    if not trained or any(options.get(name) for name in plan_objects.FOLDERS):
        return False
    names = ("folder", "backbone", "weights", "steps", "batch", "ratio", "lr", "select")
    counterfactuals = {"size": plan_objects.SIZE, "truncation": plan_objects.TRUNCATION, "factual": False}
    return all(trained[name] == default(train_ensemble, name) for name in names) and (
        trained["set"] is None or counterfactuals.items() <= trained["set"].items())


def on_folders(records, split, metric, head):
    """{arm: {seed: value}} of what was measured on folders of images, of the answer `head`.

    A classifier of torchvision has one answer, its mean, and the seed 0.
    """
    found = {}
    for row in records:
        if row["experiment"] == "evaluate" and any(row["options"].get(name) for name in plan_objects.FOLDERS):
            arm, answer = row["arm"].rsplit(", ", 1)
            wanted = head if row["options"]["trained"] else "mean"
            if (row["split"], row["metric"], answer) == (split, metric, wanted) and row["value"] is not None:
                found.setdefault(arm, {})[row["seed"]] = row["value"]
    return found


def in_one_cell(found):
    """What on_folders found, in per cent, or what it takes."""
    return "; ".join(f"{arm} {per_cent(values)}" for arm, values in found.items()) or NEEDED


def per_cent(values):
    """{seed: share} as a mean in per cent."""
    return shown(values.values(), digits=1, scale=PER_CENT)


def of(found, *key):
    return per_cent(found.get(Cell(*key), {}))


def table_3(records):
    """Shape bias of the heads, and accuracy: paper, replication, ours on ImageNet and on the made set."""
    found, lines = measured(records), []
    if not found:
        return UNMEASURED
    for (head, metric), (paper, replicated) in TABLE_3.items():
        real = on_folders(records, "cue_conflict" if metric == "shape bias" else "val", metric, head)
        made = plan_objects.CONFLICTS if metric == "shape bias" else "original"
        lines.append([f"{metric}, {head}", paper, replicated,
                      in_one_cell(real),
                      *(of(found, arm, head, made, metric) for arm in ARMS)])
    for head in ("shape", "texture", "background"):
        metric = "top-1" if head == "shape" else "own label"
        cells = [of(found, arm, head, plan_objects.CONFLICTS, metric) for arm in ARMS]
        lines.append([f"reads its own label, {head}", "–", "–", "–", *cells])
    return tables.markdown(["%", "paper", "replication", "ours, ImageNet", *(f"ours: {arm}" for arm in ARMS.values())],
                           lines)  # fmt: skip


def table_4(records):
    """How much classifiers go by the background: paper, replication, ours on IN-9 and on the made set."""
    found = measured(records)
    if not found:
        return UNMEASURED
    lines = [[name, *(f"{value:g}" for value in row)] for name, row in TABLE_4.items()]
    gaps = {split: on_folders(records, split, "bg_gap" if split == "bg_gap" else "top-1", "shape and texture")
            for split in SPLITS_4}  # fmt: skip
    for arm in gaps["original"]:
        lines.append([f"ours, IN-9: {arm}", *(per_cent(gaps[split].get(arm, {})) for split in SPLITS_4)])
    if not gaps["original"]:
        lines.append(["ours, IN-9", *["needs IN-9, weights"] * len(SPLITS_4)])
    for arm, name in ARMS.items():
        for head in ("mean", "shape and texture", "shape", "texture", "background"):
            cells = [of(found, arm, head, split, "bg_gap" if split == "bg_gap" else "top-1") for split in SPLITS_4]
            lines.append([f"ours, made set: {name}; {head}", *cells])
    return tables.markdown(["trained on; answer", "IN-9", "mixed-same", "mixed-rand", "BG-gap"], lines)


def shifted_table(records):
    """Accuracy off the training distribution."""
    found = measured(records)
    if not found:
        return UNMEASURED
    lines = [[name, cgn, resnet, in_one_cell(on_folders(records, OURS[name], "top-1", "mean")), *["–"] * len(ANSWERS)]
             for name, (cgn, resnet) in SHIFTED.items()]
    lines += [[f"made set: {split.replace('_', ' ')}", "–", "–", "–",
               *(of(found, arm, head, split, "top-1") for arm, head in ANSWERS)] for split in plan_objects.SHIFTED]
    header = ["top-1, %", "replication: IN-mini + CGN", "ResNet-50", "ours, ImageNet",
              *(f"ours: {ARMS[arm]}; {head}" for arm, head in ANSWERS)]
    return tables.markdown(header, lines)


def top_1(records, head, split):
    """{what classifiers were trained on: {seed: top-1 of an answer on a split of the made set}}."""
    return {arm: found[key] for found in [measured(records)] for arm in ARMS
            if (key := Cell(arm, head, split, "top-1")) in found}  # fmt: skip


def blocks(records):
    """{name of a generated block of README: its content}."""
    return {"part 5 claim 2": losses_table(records), "part 5 losses": losses_claims(records),
            "part 5 table 3": table_3(records), "part 5 table 4": table_4(records),
            "part 5 shifted": shifted_table(records),
            "part 5 objects claims": claims(records)}  # fmt: skip


def claims(records):
    """Sentences on the claims, from the records of the made set."""
    found, said = measured(records), []
    difference = lambda head, metric, split, one="both", other="real": paired(
        found.get(Cell(one, head, split, metric), {}), found.get(Cell(other, head, split, metric), {}))
    for sentence, claimed, *what in (
            ("That counterfactuals close the BG-gap (mean of shape and texture)", "lower", "shape and texture",
             "bg_gap", "bg_gap"),
            ("That they raise accuracy on mixed-rand (mean of all heads)", "higher", "mean", "top-1", "mixed_rand"),
            ("That they raise it where all labels are independent (mean)", "higher", "mean", "top-1", "counterfactual"),
            ("That they do so in the shape's head alone", "higher", "shape", "top-1", "counterfactual"),
            ("That they cost accuracy on original images (mean)", "lower", "mean", "top-1", "original"),
            ("That they cost it in the shape's head", "lower", "shape", "top-1", "original")):  # fmt: skip
        found_difference = difference(*what)
        if found_difference is not None:
            said.append(f"{sentence} {tables.judge(found_difference, claimed, points(found_difference))}")
    bias = paired(found.get(Cell("both", "shape", plan_objects.CONFLICTS, "shape bias"), {}),
                  found.get(Cell("both", "texture", plan_objects.CONFLICTS, "shape bias"), {}))  # fmt: skip
    if bias is not None:
        said.append(f"That the shape's head is more biased to shape than the texture's "
                    f"{tables.judge(bias, 'higher', points(bias))}")
    return tables.bullets(said) or UNMEASURED


def points(difference):
    return f"{difference:+.1f} points, {difference.n} seeds"

"""README's tables of part 6, from the records of robust_training.train and robust_training.inpaint alone."""

import experiment
import storage
import tables
from robust_training import plan, train

FOLDER = "results/robust_training"
COLUMNS = {"original": ("original", "accuracy"), "flip": ("flip", "accuracy"),
           "mixed-same": ("mixed_same", "accuracy"), "mixed-rand": ("mixed_rand", "accuracy"),
           "BG-gap": ("bg_gap", "bg_gap"), "only background": ("only_background", "accuracy"),
           "worst group": ("original+flip", "worst_group"), "ECE, flip": ("flip", "ece"),
           "background told, AUC": ("only_background against original", "auc"),
           "saliency inside": ("original, grad_y", "inside")}  # fmt: skip
SHARES = {"ECE, flip", "background told, AUC", "saliency inside"}  # of 1; the others are per cent
UNMEASURED = "Not measured yet."


def options_of(words):
    """What tells a run of the plan apart: its options, but for places and processes."""
    options = train.resolved(experiment.parse_options(train, words.split()))
    return storage.plain_options({name: value for name, value in options.items() if name not in train.APART})


def by_arm(records):
    """{arm of the plan: {(split, metric): {seed: value}}}."""
    wanted = [(arm, options_of(words)) for words, arm in plan.commands().items()]
    found = {}
    for row in records:
        if row["experiment"] == "train" and row["value"] is not None and not row["setting"]:
            own = {name: value for name, value in row["options"].items() if name != "inpainter_weights"}
            for arm in (arm for arm, options in wanted if options == own):
                found.setdefault(arm, {}).setdefault((row["split"], row["metric"]), {})[row["seed"]] = row["value"]
    return found


def accuracies(records):
    """The table of all arms: mean over the seeds with half a 95 % interval, and the paired gain over plain."""
    found = by_arm(records)
    if "plain" not in found:
        return UNMEASURED
    lines = []
    for arm in (arm for arm in plan.arms() if arm in found):
        cells = []
        for name, key in COLUMNS.items():
            values = found[arm].get(key, {})
            scale, digits = (1, 3) if name in SHARES else (100, 1)
            mean = tables.mean_of(scale * value for value in values.values()) if values else None
            cells.append("–" if mean is None else f"{mean:.{digits}f}")
        lines.append([arm, *cells, gain(found, arm), len(found[arm]["flip", "accuracy"])])
    return tables.markdown(["arm", *COLUMNS, "flip, against plain", "seeds"], lines)


def gain(found, arm):
    """Mean over the seeds that both have of the accuracy on flip, minus that of plain training, in points."""
    own, plain = (found[name]["flip", "accuracy"] for name in (arm, "plain"))
    both = own.keys() & plain.keys()
    if arm == "plain" or not both:
        return "–"
    return f"{tables.mean_of(100 * (own[seed] - plain[seed]) for seed in sorted(both)):+.1f}"


def inpainting(records):
    """How far each way to fill a hole in the ground is from what was there."""
    names = {"cagan": "inpainter, refined", "coarse": "inpainter, coarse", "ring": "mean colour around the hole",
             "mean": "grey"}  # fmt: skip
    rows = {row["arm"]: row for row in records if row["experiment"] == "inpaint" and row["metric"] == "hole l1"}
    return tables.markdown(["filled by", "L1 in the hole", "images"], [
        [name, f"{rows[arm]['value']:.3f}", rows[arm]["n"]] for arm, name in names.items() if arm in rows])


def blocks(records):
    """{name of a generated block of README: its content}."""
    return {"part 6": accuracies(records), "part 6 inpainting": inpainting(records)}

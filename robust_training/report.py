"""README's tables and sentences of part 6, from the records of its scripts alone."""

import json
from pathlib import Path

import experiment
import storage
import tables
from robust_training import inpaint, plan, train

FOLDER = "results/robust_training"
ACCURACY = ("flip", "accuracy")
COLUMNS = {"original": ("original", "accuracy"), "flip": ACCURACY,
           "mixed-same": ("mixed_same", "accuracy"), "mixed-rand": ("mixed_rand", "accuracy"),
           "BG-gap": ("bg_gap", "bg_gap"), "only background": ("only_background", "accuracy"),
           "worst group": ("original+flip", "worst_group"), "ECE, flip": ("flip", "ece"),
           "background told, AUC": ("only_background against original", "auc"),
           "saliency inside": ("original, grad_y", "inside")}  # fmt: skip
SHARES = {"ECE, flip", "background told, AUC", "saliency inside"}  # of 1; the others are per cent
SHORT = ("original", "flip", "mixed-rand", "saliency inside")  # columns of the smaller tables
UNMEASURED = "Not measured yet."


def read(folder=FOLDER):
    """All records of part 6: those of training are in a file for each seed, because they are many."""
    return [row for path in sorted(Path(folder).glob("*.jsonl")) for row in storage.read_lines(path)]


def options_of(words):
    """What tells a run of the plan apart: its options, but for places and processes."""
    options = train.resolved(experiment.parse_options(train, words.split()))
    return storage.plain_options({name: value for name, value in options.items() if name not in train.APART})


def by_arm(records, commands):
    """{arm: {(split, metric): {seed: value}}} of commands {command line: arm}."""
    wanted, found = {key(options_of(words)): arm for words, arm in commands.items()}, {}
    for row in records:
        if row["experiment"] == "train" and row["value"] is not None and not row["setting"]:
            arm = wanted.get(key(row["options"]))
            if arm is not None:
                found.setdefault(arm, {}).setdefault((row["split"], row["metric"]), {})[row["seed"]] = row["value"]
    return found


def key(options):
    """Options as something to look up; the digest of the inpainter's weights, which a plan cannot know, is left out."""
    return json.dumps({name: value for name, value in options.items() if name != "inpainter_weights"}, sort_keys=True)


# --- tables -----------------------------------------------------------------------------------------


def cell(values, name):
    """A cell of the column called `name`: the mean over the seeds with half a 95 % interval."""
    if not values:
        return "–"
    scale, digits = (1, 3) if name in SHARES else (100, 1)
    return f"{tables.mean_of(scale * value for value in values.values()):.{digits}f}"


def difference(found, arm, against, key=ACCURACY):
    """Mean over the seeds that both have of one arm minus another, in points; None if they share none."""
    return tables.difference(*(found.get(name, {}).get(key, {}) for name in (arm, against)), scale=100)


def signed(mean):
    return "–" if mean is None else f"{mean:+.1f}"


def accuracies(found, arms, columns=tuple(COLUMNS), against="plain"):
    """A table of arms with their gain on flip over one of them."""
    if against not in found:
        return UNMEASURED
    lines = []
    for arm in (arm for arm in arms if arm in found):
        cells = [cell(found[arm].get(COLUMNS[name], {}), name) for name in columns]
        gain = "–" if arm == against else signed(difference(found, arm, against))
        lines.append([arm, *cells, gain, len(found[arm][ACCURACY])])
    return tables.markdown(["arm", *columns, f"flip, against {against}", "seeds"], lines)


def crossed(found):
    """Every augmentation without and with the saliency penalty."""
    if "Sal" not in found:
        return UNMEASURED
    pairs = [pair for pair in zip(plan.augmented(), plan.with_saliency(), strict=True) if set(pair) <= set(found)]
    lines = [[one, *(cell(found[arm][key], name) for name, key in (("flip", ACCURACY), ("saliency inside",
              COLUMNS["saliency inside"])) for arm in (one, other)), signed(difference(found, other, one)),
              len(found[other][ACCURACY])] for one, other in pairs]  # fmt: skip
    return tables.markdown(["augmentation", "flip", "flip, with Sal", "saliency inside", "saliency inside, with Sal",
                            "flip, gained by Sal", "seeds"], lines)  # fmt: skip


def penalties(found):
    """The saliency penalties beside each other."""
    return accuracies(found, ["plain", "Sal", *plan.others(), f"CF {plan.BEST[0]}"], SHORT)


def searched(records):
    """[(penalty, coefficient, validation accuracy)] of the search, in its order; penalty None for plain training."""
    found = by_arm(records, plan.search())
    return [(*arm, found[arm]["val", "accuracy"][plan.SEARCH_SEED])
            for arm in plan.search().values() if arm in found]


def chosen(rows):
    """{penalty: coefficient} by the rule of plan.py, of the rows of searched()."""
    plain = next(value for name, _, value in rows if name is None)
    fits = [(name, coefficient) for name, coefficient, value in rows
            if name is not None and value >= plain - plan.TOLERANCE - 1e-9]  # fmt: skip
    return dict(sorted(fits, key=lambda pair: pair[1]))  # of one name the largest comes last


def coefficients(records):
    """The table of the search."""
    rows = searched(records)
    if not rows:
        return UNMEASURED
    taken = chosen(rows)
    return tables.markdown(["penalty", "coefficient", "validation accuracy", "taken"], [
        [name or "plain", f"{value:,g}", f"{100 * accuracy:.1f}", "yes" if taken.get(name) == value else ""]
        for name, value, accuracy in rows])  # fmt: skip


def inpainting(records):
    """How far each way to fill a hole in the ground is from what was there, by the inpainter of the default options."""
    names = {"cagan": "inpainter, refined", "coarse": "inpainter, coarse", "ring": "mean colour around the hole",
             "mean": "grey"}  # fmt: skip
    options = storage.plain_options(inpaint.options_of(**experiment.parse_options(inpaint, [])))
    rows = {row["arm"]: row for row in records
            if row["experiment"] == "inpaint" and row["metric"] == "hole l1" and row["options"] == options}  # fmt: skip
    if not rows:
        return UNMEASURED
    return tables.markdown(["filled by", "L1 in the hole", "images"], [
        [name, f"{rows[arm]['value']:.3f}", rows[arm]["n"]] for arm, name in names.items() if arm in rows])


# --- claims -----------------------------------------------------------------------------------------


def contrast(found, ours, others, key=ACCURACY):
    """Mean over the seeds of the mean of some arms minus that of others, in points; None where one is missing."""
    values = [[found.get(arm, {}).get(key, {}) for arm in arms] for arms in (ours, others)]
    seeds = set.intersection(*(set(part) for side in values for part in side))
    if not seeds:
        return None
    mean = lambda side, seed: sum(part[seed] for part in side) / len(side)
    return tables.mean_of(100 * (mean(values[0], seed) - mean(values[1], seed)) for seed in sorted(seeds))


def claims(found):
    """The claims of Chang et al., each judged by the interval of the paired difference that decides it."""
    rest = [name for name in plan.CF if name not in ("tile", "cagan")]
    pair, f_alone, cf_alone = f"CF {plan.BEST[0]} + F {plan.BEST[1]}", f"F {plan.BEST[1]}", f"CF {plan.BEST[0]}"
    rand, gap = COLUMNS["mixed-rand"], COLUMNS["BG-gap"]
    maps = {"Grad-CAM's": "bbox_o of grad_cam", "DeepLIFT's": "bbox_o of deeplift",
            "that of the log-probability": "bbox_o of grad_logp_y"}  # fmt: skip
    told = [
        ("CAGAN and tile are the best infills (flipped grounds, against the mean of the other three)",
         contrast(found, ["CF tile", "CF cagan"], [f"CF {name}" for name in rest]), "higher"),
        (f"counterfactuals ({cf_alone}) raise accuracy on flipped grounds", difference(found, cf_alone, "plain"),
         "higher"),
        (f"factuals ({f_alone}) raise it", difference(found, f_alone, "plain"), "higher"),
        ("CF + F raises accuracy where grounds are random (mixed-rand)", difference(found, pair, "plain", rand),
         "higher"),
        ("CF + F narrows the gap between grounds of the same and of a random class (BG-gap)",
         difference(found, pair, "plain", gap), "lower"),
        ("CF + F does better on flipped grounds than F alone", difference(found, pair, f_alone), "higher"),
        ("the saliency penalty alone (Sal) raises accuracy on flipped grounds", difference(found, "Sal", "plain"),
         "higher"),
        *((f"to penalise the plain input gradient is better on flipped grounds than {name}",
           difference(found, "Sal", arm), "higher") for name, arm in maps.items()),
        ("to penalise it outside the outline instead of the box, which is ours, is better",
         difference(found, "mask_o", "Sal"), "higher"),
        ("CF + F does better on flipped grounds than group-DRO, which is told the ground of every image",
         difference(found, pair, "group-DRO"), "higher"),
    ]  # fmt: skip
    numbers = lambda mean: f"{mean:+.1f} points, {mean.n} seed{'s' * (mean.n > 1)}"
    return tables.bullets(f"That {text} {tables.judge(mean, claimed, numbers(mean))}"
                          for text, mean, claimed in told if mean is not None) or UNMEASURED


def blocks(records):
    """{name of a generated block of README: its content}."""
    found = by_arm(records, plan.commands(plan.arms()))
    two = by_arm(records, plan.commands(plan.on_two()))
    return {"part 6": accuracies(found, [*plan.augmented(), *plan.BASELINES]),
            "part 6 crossed": crossed(found), "part 6 penalties": penalties(found),
            "part 6 coefficients": coefficients(records),
            "part 6 two": accuracies(two, plan.TWO, SHORT), "part 6 claims": claims(found),
            "part 6 inpainting": inpainting(records)}  # fmt: skip

"""What part 3 found: its table, its figures and the paragraph that weighs the published claims, all from records."""

import figures
import tables

ARMS = {
    "targeted": "targeted: smallest gain",
    "easy": "easy: largest gain",
    "random": "random",
    "hard": "hard: largest error",
    "gradient": "gradient: largest norm (GraNd)",
    "full": "full set",
}
NAMES = {"before": "before"} | ARMS
NEW, OTHERS = "new digit", "others"
COLUMNS = (
    ("new digits", "kept", ".0f", False), ("new digits", "samples_seen", ".0f", False),
    (NEW, "mse_sampled", ".5f"), (OTHERS, "mse_sampled", ".5f"), (NEW, "frechet", ".2f"), (OTHERS, "frechet", ".2f"),
    (NEW, "kernel_distance", ".3f"), ("all", "frechet_samples", ".1f"),
    ("new digits", "finetuning_seconds", ".1f", False),
)  # fmt: skip

# MSE on (zeros, other digits): Constructive Counterfactuals, README and logs of two runs, 512 zeros, sampled latents;
# and what the original code gives on the published checkpoint
PUBLISHED = {
    ("before", "mse_sampled"): ("0.04029, checkpoint 0.04039", "0.02212, checkpoint 0.02202"),
    ("before", "mse"): ("checkpoint 0.0377", "checkpoint 0.0191"),
    ("targeted", "mse_sampled"): ("0.02065 and 0.02094", "0.02208 and 0.02320"),
    ("random", "mse_sampled"): ("0.02065", "0.02190"),
    ("full", "mse_sampled"): ("0.01833 and 0.01823", "0.02260 and 0.02251"),
}  # fmt: skip


def main_rows(records, size):
    """The records of the main comparison at one size, the model before among them; without the sweep."""
    return [record for record in records if record["setting"] in ({"size": size}, {})]


def cell(rows, arm, split, metric, spec, with_interval=True):
    """A mean as a text; a dash where the metric is not defined or does not apply to the arm."""
    found = tables.values(rows, arm=arm, split=split, metric=metric).values()
    if not found:
        return "–"
    mean = tables.mean_of(found)
    return f"{mean:{spec}}" if with_interval else f"{mean.mean:{spec}}"


def table(records):
    """The README's tables of part 3, one for each size, from the records of one set of options."""
    options = records[0]["options"]
    parts = []
    for size in options["sizes"]:
        rows = main_rows(records, size)
        lines = [[name, *(cell(rows, arm, *column) for column in COLUMNS)] for arm, name in NAMES.items()]
        header = [f"arm, {size} new digits", "kept", "seen", "MSE new digit", "MSE others", "Fréchet new digit",
                  "Fréchet others", "kernel new digit", "Fréchet of samples", "seconds"]
        parts.append(tables.markdown(header, lines))
    parts.append(f"Mean and 95 % interval over {options['seeds']} seeds. MSE with sampled latents. Fréchet and kernel: "
                 "squared distances between test digits and their reconstructions, in the 256 features of an MNIST "
                 "classifier; of samples: between all test digits and samples from the prior. Seconds: finetuning, on "
                 "one thread.")
    return "\n\n".join(parts)


def scoring_sentence(records):
    """What the published, cumulative way of scoring does to the scores."""
    size = min(records[0]["options"]["sizes"])
    value = lambda way, metric: tables.mean(records, arm="scoring", split=way, metric=metric)
    kept, order = "within_0.01", "rank_correlation"
    return (f"Scored as published, each step on top of the last, {value('cumulative', kept):.0f} of {size} samples "
            "change by less than the threshold of 0.01 (published: 287 and 306). But two orders of the same samples, "
            f"with the same noise, rank them with a correlation of {value('cumulative', order):.2f}, and two draws of "
            f"the noise, in the same order, with one of {value('cumulative', 'noise'):.2f}. Scored each from the same "
            f"model, {value('independent', kept):.0f} change by less than 0.01, in any order "
            f"({value('independent', order).mean:.2f}).")


def published_table(records, from_published, size=512):
    """MSE as published, ours from the published checkpoint (if its records are there), and ours from our own."""
    sources = [(main_rows(rows, size), name) for rows, name in ((from_published, "ours, published checkpoint"),
                                                                (records, "ours, our checkpoint")) if rows]
    lines = []
    for column, split in enumerate((NEW, OTHERS)):
        for (arm, metric), published in PUBLISHED.items():
            ours = [f"{tables.mean(rows, arm=arm, split=split, metric=metric):.5f}" for rows, _ in sources]
            latents = ", latent mean" if metric == "mse" else ""
            lines.append([f"{'zeros' if split == NEW else 'other digits'}, {arm}{latents}", published[column], *ours])
    return tables.markdown([f"MSE, {size} zeros", "published", *(name for _, name in sources)], lines)


# --- the claims ---------------------------------------------------------------------------------------


def claims(records):
    """Which of the published claims these records bear out, as a list for each number of new digits."""
    options = records[0]["options"]
    lists = [f"With {size} new digits:\n\n" + tables.bullets(claims_at(main_rows(records, size)))
             for size in options["sizes"]]
    return "\n\n".join([f"Over {options['seeds']} seeds, by paired differences with 95 % intervals.", *lists])


def claims_at(rows):
    def gap(arm, against, split, metric="mse_sampled"):
        return tables.paired(rows, arm, against, split=split, metric=metric)

    learned, kept = (gap("targeted", "before", split) for split in (NEW, OTHERS))
    chance, hard = (gap("targeted", arm, NEW) for arm in ("random", "hard"))
    old, old_chance = (gap("targeted", arm, OTHERS) for arm in ("full", "random"))
    defined = tables.values(rows, arm="targeted", split=NEW, metric="frechet")

    def nearer(against, split):  # how the Fréchet distances differ, where there are enough digits for one
        if not defined:
            return ""
        found = gap("targeted", against, split, "frechet")
        return f", Fréchet distance {found:+.3f}, {tables.verdict(found)}"

    return [
        "That targeted finetuning teaches the new digit "
        + tables.judge(learned, "lower", f"MSE on it {learned:+.5f}"),
        "That it does so without harm to the others " + tables.judge(kept, "no higher", f"MSE {kept:+.5f}"),
        "That it keeps more of the old digits than the full set does "
        + tables.judge(old, "lower", f"MSE on the others {old:+.5f}{nearer('full', OTHERS)}; MSE against as many "
                       f"random samples {old_chance:+.5f}, {tables.verdict(old_chance)}"),
        "That its choice is better than a random one of equal size "
        + tables.judge(chance, "lower", f"MSE on the new digit {chance:+.5f}" + nearer("random", NEW)),
        "That it is better than mining the samples of highest loss "
        + tables.judge(hard, "lower", f"MSE on the new digit {hard:+.5f}"),
        "That it costs less than the full set, scoring included, " + cost(rows),
    ]


def cost(rows):
    """The claim on seconds: those of scoring and of finetuning on the targeted samples, against the full set's."""
    seconds = {(arm, metric): tables.values(rows, arm=arm, metric=metric) for arm, metric in (
        ("targeted", "finetuning_seconds"), ("targeted", "scoring_seconds"), ("full", "finetuning_seconds"))}
    by_seed = zip(*([found[seed] for seed in sorted(found)] for found in seconds.values()), strict=True)
    gaps = tables.mean_of(tuning + scoring - full for tuning, scoring, full in by_seed)
    tuning, scoring, full = (tables.mean_of(found.values()).mean for found in seconds.values())
    return tables.judge(gaps, "lower", f"{tuning:.1f} s + {scoring:.1f} s against {full:.1f} s: {gaps:+.1f} s")


# --- figures --------------------------------------------------------------------------------------------


def points(records, arm, size, split, metric):
    """(kept fraction, Mean) of an arm: the sweep, the main comparison and the full set, in order."""
    rows = [record for record in records if record["setting"].get("size") == size]
    sweep = sorted({record["setting"]["fraction"] for record in rows if "fraction" in record["setting"]})
    found = [(part, tables.mean(rows, arm=arm, split=split, metric=metric, fraction=part)) for part in sweep]
    rows = main_rows(records, size)
    for name in (arm, "full"):
        kept = tables.mean(rows, arm=name, split="new digits", metric="kept").mean / size
        found.append((kept, tables.mean(rows, arm=name, split=split, metric=metric)))
    return sorted(found)


def draw(records, size, path):
    """Fréchet distance and MSE against the kept fraction, targeted and random, on the new digit and the others."""
    panels = []
    for metric, label in (("mse_sampled", "MSE, sampled latents"), ("frechet", "Fréchet distance of reconstructions")):
        for split, title in ((NEW, "the new digit"), (OTHERS, "the other digits")):
            if not tables.values(main_rows(records, size), arm="targeted", split=split, metric=metric):
                continue  # too few test digits for a Fréchet distance
            lines = []
            for arm, colour in (("targeted", "blue"), ("random", "orange")):
                x, means = zip(*points(records, arm, size, split, metric), strict=True)
                lines.append((arm, colour, x, [m.mean for m in means], [m.half for m in means]))
            panels.append({"title": title, "x_label": "share of the new digits kept", "y_label": label,
                           "lines": lines})
    options = records[0]["options"]
    n = f"{options['seeds']} seeds, {min(options['seeds'], options['sweep_seeds'])} in the sweep"
    figures.curves(path, panels, f"Finetuning on {size} new digits (mean and 95 % interval; {n})", columns=2)

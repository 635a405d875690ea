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
NEW, OTHERS = "new digit", "others"

# Constructive Counterfactuals, README and run logs, 512 zeros: MSE with sampled latents on (zeros, other digits)
PUBLISHED = {"before": (0.04029, 0.02212), "targeted": (0.02065, 0.02208), "full": (0.01833, 0.02260)}


def main_rows(records, size):
    """The records of the main comparison at one size, the model before among them; without the sweep."""
    return [record for record in records
            if record["setting"] in ({"size": size}, {})]


def table(records):
    """The README's tables of part 3, one for each size, from the records of one set of options."""
    options = records[0]["options"]
    parts = []
    for size in options["sizes"]:
        rows = main_rows(records, size)
        mean = lambda arm, split, metric, rows=rows: tables.mean(rows, arm=arm, split=split, metric=metric)
        lines = []
        for arm, name in {"before": "before", **ARMS}.items():
            kept = f"{mean(arm, 'new digits', 'kept').mean:.0f}" if arm != "before" else ""
            seconds = f"{mean(arm, 'new digits', 'finetuning_seconds').mean:.1f}" if arm != "before" else ""
            lines.append([name, kept, f"{mean(arm, NEW, 'mse_sampled'):.5f}", f"{mean(arm, OTHERS, 'mse_sampled'):.5f}",
                          f"{mean(arm, NEW, 'frechet'):.2f}", f"{mean(arm, OTHERS, 'frechet'):.2f}",
                          f"{mean(arm, 'all', 'frechet_samples'):.1f}", seconds])
        header = [f"arm, {size} new digits", "kept", "MSE new digit", "MSE others", "Fréchet new digit",
                  "Fréchet others", "Fréchet of samples", "seconds"]
        parts.append(tables.markdown(header, lines))
    parts.append(f"Mean and 95 % interval over {options['seeds']} seeds. MSE with sampled latents. Fréchet: squared "
                 "distance between test digits and their reconstructions in the 256 features of an MNIST classifier; "
                 "of samples: between all test digits and samples from the prior. Seconds of finetuning on one thread.")
    return "\n\n".join(parts)


def scoring_sentence(records):
    """What the published, cumulative way of scoring does to the scores."""
    size = min(records[0]["options"]["sizes"])
    value = lambda way, metric: tables.mean(records, arm="scoring", split=way, metric=metric)
    low, order = "below_0.01", "rank_correlation"
    return (f"Scored as published, each step on top of the last, {value('cumulative', low):.0f} of {size} samples fall "
            "below the threshold of 0.01 (published: 287 and 306); but two orders of the same samples rank them with a "
            f"correlation of only {value('cumulative', order):.2f}. Scored each from the same model, "
            f"{value('independent', low):.0f} fall below it, in any order ({value('independent', order).mean:.2f}).")


def published_table(records, from_published, size=512):
    """MSE as published, ours from the published checkpoint (if its records are there), and ours from our own."""
    sources = [(main_rows(rows, size), name) for rows, name in ((from_published, "ours, published checkpoint"),
                                                                (records, "ours, our checkpoint")) if rows]
    lines = []
    for column, split in enumerate((NEW, OTHERS)):
        for arm, published in PUBLISHED.items():
            ours = [f"{tables.mean(rows, arm=arm, split=split, metric='mse_sampled'):.5f}" for rows, _ in sources]
            lines.append([f"{'zeros' if split == NEW else 'other digits'}, {arm}", f"{published[column]:.5f}", *ours])
    return tables.markdown(["MSE, 512 zeros", "published", *(name for _, name in sources)], lines)


# --- the claims ---------------------------------------------------------------------------------------


def claims(records):
    """One paragraph that says which of the published claims these records bear out."""
    options = records[0]["options"]
    sentences = [
        sentence.format(size=size)
        for size in options["sizes"]
        for sentence in claims_at(main_rows(records, size))
    ]
    return " ".join([f"Over {options['seeds']} seeds, by paired differences with 95 % intervals:", *sentences])


def claims_at(rows):
    gap = lambda arm, against, split, metric: tables.paired(rows, arm, against, split=split, metric=metric)
    learned = gap("targeted", "before", NEW, "mse_sampled")
    kept = gap("targeted", "before", OTHERS, "mse_sampled")
    new_random = gap("targeted", "random", NEW, "mse_sampled")
    new_frechet = gap("targeted", "random", NEW, "frechet")
    hard = gap("targeted", "hard", NEW, "mse_sampled")
    retained = gap("targeted", "full", OTHERS, "mse_sampled")
    retained_random = gap("targeted", "random", OTHERS, "mse_sampled")
    return [
        "**With {size} new digits**, the claim that targeted finetuning teaches the new digit "
        + holds(tables.verdict(learned) == "lower", f"MSE on it {learned:+.5f}"),
        "That it does so without harm to the others " + holds(tables.verdict(kept) != "higher", f"MSE {kept:+.5f}"),
        "That it keeps more of the old digits than the full set does "
        + holds(tables.verdict(retained) == "lower", f"MSE on the others {retained:+.5f}")
        + f" Against as many random samples it is {tables.verdict(retained_random)} there ({retained_random:+.5f}).",
        "That its choice is better than a random one of equal size "
        + holds(tables.verdict(new_random) == "lower", f"MSE on the new digit {new_random:+.5f}, "
                f"Fréchet distance {new_frechet:+.3f}, {tables.verdict(new_frechet)}"),
        "That it is better than mining the samples of highest loss "
        + holds(tables.verdict(hard) == "lower", f"MSE on the new digit {hard:+.5f}"),
    ]


def holds(true, numbers):
    return ("holds" if true else "does not hold") + f" ({numbers})."


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
            lines = []
            for arm, colour in (("targeted", "blue"), ("random", "orange")):
                x, means = zip(*points(records, arm, size, split, metric), strict=True)
                lines.append((arm, colour, x, [m.mean for m in means], [m.half for m in means]))
            panels.append({"title": title, "x_label": "share of the new digits kept", "y_label": label,
                           "lines": lines})
    options = records[0]["options"]
    n = f"{options['seeds']} seeds, {min(options['seeds'], options['sweep_seeds'])} in the sweep"
    figures.curves(path, panels, f"Finetuning on {size} new digits (mean and 95 % interval; {n})", columns=2)

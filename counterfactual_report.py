"""Part 4's tables and sentences for README.md, from the records of counterfactual_study.py."""

import tables

# (data set, model) and what is not by default: on MNIST fewer steps than published, and for GAN and VAE larger ones, so
# that 2 cores get through 500 images
CELLS = {
    ("mnist", "realnvp"): ("--steps", "200"), ("mnist", "dcgan"): ("--steps", "250", "--lr", "0.02"),
    ("mnist", "image_vae"): ("--steps", "250", "--lr", "0.02"), ("strokes", "glow"): (),
    ("strokes", "image_vae"): (), ("crowds", "glow"): (),
}  # fmt: skip
# distance to the helix after an attack, read off the original's box plot: median, quartiles, largest
PUBLISHED_HELIX = {"pixel": ("2.1", "0.75 to 2.8", "4.3"), "latent": ("0.03", "0 to 0.17", "0.73")}
# heading, metric, format; a column without any value is left out
COLUMNS = (("reached", "validity", ".1%"), ("oracle agrees", "oracle", ".1%"),
           ("its confidence", "oracle_confidence", ".3f"), ("its count", "oracle_count", ".2f"),
           ("10 neighbours", "neighbours", ".1%"), ("same digit", "identity", ".1%"), ("IM1", "im1", ".2f"),
           ("IM2", "im2", ".3f"), ("cFID", "fid", ".2f"), ("L1", "l1", ".4f"), ("L2", "l2", ".2f"),
           ("latent", "latent", ".1f"), ("rec. MSE", "reconstruction", ".5f"), ("steps", "steps", ".0f"),
           ("s/image", "seconds", ".3f"))  # fmt: skip
JUDGED = (("oracle", "the oracle agrees"), ("neighbours", "share of the target among neighbours"), ("im1", "IM1"))


def arms_of(records):
    """{arm: {metric: value}} of one cell's records."""
    found = {}
    for row in records:
        found.setdefault(row["arm"], {})[row["metric"]] = row["value"]
    return found


def cell(values, metric, spec):
    """Mean with the half width of its interval, of an arm's {metric: value}."""
    value, half = values.get(metric), values.get(metric + " half")
    if value is None:
        return ""
    if spec.endswith("%"):
        return f"{100 * value:.1f}" + ("" if half is None else f" ± {100 * half:.1f}") + " %"
    return f"{value:{spec}}" + ("" if half is None else f" ± {half:{spec}}")


def table(cells, data):
    """Markdown of a data set: a row for each generator, the pixel attack, real images. cells: {(data, model): rows}."""
    arms, n = {}, set()
    for (of, model), rows in cells.items():
        if of == data:
            found = arms_of(rows)
            arms[model] = found[model]
            beside = {"pixel attack": found["pixel"], "real images": found["real"]}
            n |= {row["n"] for row in rows}
    arms |= beside
    arms["pixel attack"] = {name: value for name, value in arms["pixel attack"].items()
                            if not name.startswith(("latent", "reconstruction"))}  # fmt: skip
    used = [column for column in COLUMNS if any(column[1] in values for values in arms.values())]
    body = [[arm, *(cell(values, metric, spec) for _, metric, spec in used)] for arm, values in arms.items()]
    return (tables.markdown([data, *(heading for heading, _, _ in used)], body)
            + f"\n\n{' and '.join(map(str, sorted(n)))} test images, the same for every row; mean ± half of the 95 % "
            "interval over them.")


def claims(cells):
    """For which generators latent counterfactuals beat the pixel attack under the judges, as a table of differences."""
    body, better, worse, open_ = [], [], [], []
    for (data, model), rows in cells.items():
        ours = arms_of(rows)[model]
        line = [f"{data}, {model}"]
        for metric, _ in JUDGED:
            value, half = ours.get(metric + " minus pixel"), ours.get(metric + " minus pixel half")
            if value is None:
                line.append("")
                continue
            scale, unit = (1, "") if metric == "im1" else (100, " points")
            line.append(f"{scale * value:+.2f} ± {scale * half:.2f}{unit}")
            if metric == "oracle":
                group = open_ if abs(value) <= half else better if value > 0 else worse
                group.append(f"{model} on {data}")
        body.append(line)
    name = lambda group: ", ".join(group) or "none"
    return (tables.markdown(["latent minus pixel", *(words for _, words in JUDGED)], body)
            + f"\n\nUnder the oracle latent counterfactuals beat the pixel attack for: {name(better)}. They do worse "
            f"for: {name(worse)}. Not decided: {name(open_)}.")


def helix_table(records):
    """The toy beside the original's box plot (read off its figure)."""
    arms = arms_of(records)
    names, body = {"pixel": "data space", "latent": "latent space"}, []
    for arm, values in arms.items():
        median, quartiles, largest = PUBLISHED_HELIX[arm]
        body.append([names[arm], f"{values['distance median']:.3f}", median,
                     f"{values['distance first quartile']:.3f} to {values['distance third quartile']:.3f}", quartiles,
                     f"{values['distance largest']:.2f}", largest, f"{values['validity']:.0%}"])
    return tables.markdown(["attacked in the", "median distance", "published", "quartiles", "published", "largest",
                            "published", "reached"], body)  # fmt: skip

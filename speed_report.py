"""README's section on speed, from the records of bench.py and of the benches of parts 5 and 6 in results/bench/.

    blocks(records)     {name of a generated block: its content}
"""

import tables

ATTACKS = ("fgsm", "pgd")  # background swaps of part 6 that are passes of the network


def blocks(records):
    """{name of a generated block of README.md: its content}."""
    return {"speed": bench_table(records), "speed step": step_sentence(records), "speed cgn": cgn_sentence(records),
            "speed objects": objects_sentence(records), "speed robust": robust_sentence(records)}  # fmt: skip


def bench_table(records):
    """Every ratio, with what it is a ratio of."""
    rows = [[row["arm"], row["options"]["baseline"], f"{row['value']:.1f}", row["n"], row["device"]]
            for row in records if row["metric"] == "speedup"]
    return tables.markdown(["what", "against", "times faster", "n", "device"], rows)


def step_sentence(records):
    """What one step of part 4's search costs, alone and in a batch."""
    rows = {row["metric"]: row for row in records
            if row["arm"] == "counterfactuals"}
    steps, n = rows["speedup"]["options"]["steps"], rows["speedup"]["n"]
    batched = rows["milliseconds_a_sample"]["value"] / steps
    return (f"One step in the latent space of our RealNVP takes {batched * rows['speedup']['value']:.1f} ms for one "
            f"image alone and {batched:.1f} ms an image in a batch of {n} (147 ms with the original's RealNVP on 2 "
            f"cores like these). In float64 both give the same images (a test); in float32 single pixels differ, as "
            "Adam's first steps have the gradient's sign, which rounding decides where the gradient is all but zero.")


def cgn_sentence(records):
    """Part 5 in images a second, beside what the originals' own code did on the same kind of machine."""
    rows = {row["arm"]: row["value"] for row in records
            if row["metric"] == "images_a_second"}
    ours = (f"{rows[f'cgn {what}']:,.0f}" for what in ("training", "generation", "classifier"))
    return ("Part 5 in images a second, on wildlife: {} in training a CGN, {} in generating counterfactuals, {} in "
            "training a classifier. The original's own code does 37, 800 and 1,500 on 2 cores like these; in the table "
            "its recipe runs in our code.").format(*ours)


def objects_sentence(records):
    """The CGN at the scale of ImageNet in images a second, and its share of what the device does in matrices."""
    rows = {(row["arm"], row["metric"]): row for row in records
            if row["arm"].startswith("objects, channels-last")}
    of = lambda what, metric: rows[f"objects, channels-last, {what}", metric]["value"]
    said = (f"{of(what, 'images_a_second'):,.0f} images a second in {what} "
            f"({100 * of(what, 'share_of_matrix_rate'):.0f} % of the rate of a large product of matrices)"
            for what in ("training", "generation"))
    row = next(iter(rows.values()))
    return (f"Part 5's CGN of {row['options']['config']} with {row['options']['u2net']}, on {row['device']} in "
            f"float32: {' and '.join(said)}. On a GPU, at 256 pixels: `python -m cgn.bench_objects --config "
            "biggan-deep-256 --u2net u2net --batch 8 --results results/quick/mine`.")


def robust_sentence(records):
    """What augmentation costs in part 6, as shares of a training step."""
    shares = {row["arm"]: row["value"] for row in records
              if row["metric"] == "share_of_step"}
    of = lambda kind: [share for arm, share in shares.items() if arm.startswith(kind) and arm.split()[1] not in ATTACKS]
    low, high = ([f"{100 * pick(of(kind)):.0f}" for kind in ("counterfactual", "factual")] for pick in (min, max))
    return (f"Of a training step of part 6, making counterfactuals takes {low[0]} to {high[0]} %, swapping backgrounds "
            f"{low[1]} to {high[1]} %; fgsm and pgd (5 steps), which are passes of the network itself, "
            f"{100 * shares['factual fgsm']:.0f} and {100 * shares['factual pgd']:.0f} %.")

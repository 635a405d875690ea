"""Run every experiment, and rebuild every table of README.md and the gallery from the records.

    python reproduce.py            # the committed results: about 22 h on 2 cores; what is there is not done again
    python reproduce.py --quick    # fewer samples and seeds, about 7 min; into runs/quick/ and results/quick/
    python reproduce.py --only-tables   # only the tables, from the records that are there

Prints one table, and how long the steps took. A step whose records exist with the same options is skipped; --again
measures it anew.
"""

import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ablate
import constructive_counterfactuals
import counterfactual_report
import experiment
import finetuning_report
import gallery
import growth
import published_numbers
import recipes
import speed_report
import storage
import tables
from cgn import plan, report, report_objects
from cgn.data import Variant
from robust_training import report as robust_report
from robust_training import train as robust_train
from steps import BENCHES, FAST, FULL, called, of_cgn, published_step

QUICK: bool = False  # a smaller setting of every experiment, kept apart from the committed results
ONLY_TABLES: bool = False  # run nothing: only rebuild README.md from the records
AGAIN: bool = False  # measure steps anew whose records are there
PUBLISHED: Path | None = None  # what was published: adds its VAE, and part 5's textures and checkpoints

README = Path("README.md")
TRAINS = ("train", "cgn.train", "cgn.train_gan", "cgn.train_saliency", "cgn.train_objects", "cgn.train_ensemble",
          "cgn.generate_objects")  # what only makes something for others
BY_NAME = ("cgn.score_objects", "cgn.evaluate")  # whose records hold the names of files and runs, and no folders
FILES = {"checkpoint", "classifier"}  # options of which part 5's records keep the file's name, and no folder


# --- running ---------------------------------------------------------------------------------------


def records_of(step):
    """The records that a step has left, those of its very options (a record leaves out what cannot matter)."""
    options = experiment.parse_options(importlib.import_module(step.script), step.arguments)
    own = step.script == "robust_training.train"
    found = storage.read_lines(Path(step.results) / (
        robust_train.records_file(options["seed"]) if own else storage.Records.FILE))
    if "." in step.script:  # the scripts of a package share a folder
        if step.script in BY_NAME:  # what was not given, a record may know: the digest of the weights, say
            options = {name: value for name, value in options.items() if value is not None}
        named = options.keys() if step.script in BY_NAME else FILES & options.keys()
        options |= {name: Path(options[name]).name for name in named if isinstance(options[name], (str, Path))}
        if "textures" in options:
            options["textures"] = textures_name(options.get("variant"), options["textures"])
        script = step.script if step.script in BENCHES else step.script.split(".")[1]
        found = [row for row in found if row["experiment"] == script]
    wanted = storage.plain_options(options)
    if own:  # whose records hold the recipe's values where nothing was given
        wanted = robust_report.options_of(" ".join(step.arguments))
    return [row for row in found
            if all(row["options"].get(name, value) == value for name, value in wanted.items())]


@functools.cache
def textures_name(variant, folder):
    """What a record says of the textures; they are read or made once."""
    return Variant(variant, textures=folder).textures_name if variant else None


class Progress:
    """Where in a plan a run is, and how long the rest may take: a step as long as those that were carried out."""

    def __init__(self, names):
        self.names, self.spent = list(names), []

    def place(self, name):
        """[number of the step/all of them]."""
        return f"[{self.names.index(name) + 1}/{len(self.names)}]"

    def left(self, name, seconds):
        """What is said after a step that took so many seconds."""
        self.spent.append(seconds)
        rest = len(self.names) - self.names.index(name) - 1
        minutes = rest * sum(self.spent) / len(self.spent) / 60
        return f"{seconds:.0f} s; {rest} steps left, {minutes:.0f} min at this pace, less for what is there"

    def took(self):
        """How long the steps took that were carried out."""
        done = len(self.spent)
        minutes = sum(self.spent) / 60
        return f"{minutes:.1f} min for {done} steps carried out here, {len(self.names) - done} were there"


def carry_out(name, steps, again, progress=None):
    """Run a step as its own process unless its records are there; what it prints is left to the one table."""
    progress = progress or Progress(steps)
    step = steps[name]
    command = [sys.executable, *called(step.script), *step.arguments]
    words = " ".join(["python", *command[1:]])
    # a training that nobody else wants is always called: it alone knows whether it is finished, and takes seconds then
    wanting = [step] * (step.script not in TRAINS) + [steps[user] for user in step.needed_by]
    if wanting and not again and all(map(records_of, wanting)):
        print(f"{progress.place(name)} {name}: already in {wanting[-1].results} ({words})", file=sys.stderr)
        return
    if again:  # what a killed run has left: arms of part 3, the pixel search of part 4
        (Path(step.results) / "partial.jsonl").unlink(missing_ok=True)
        shutil.rmtree(Path(step.results) / "kept", ignore_errors=True)
    print(f"{progress.place(name)} {name}: {words}", file=sys.stderr)
    started = time.perf_counter()
    if subprocess.run(command, stdout=subprocess.DEVNULL, cwd=experiment.ROOT).returncode:
        raise experiment.UserError(f"{words} failed; the steps before it are kept")
    said = progress.left(name, time.perf_counter() - started)
    print(f"{progress.place(name)} {name}: {said}", file=sys.stderr)


def needed(step):
    """The records of a step; raises UserError if it has none."""
    found = records_of(step)
    if not found:
        raise experiment.UserError(f"{step.results} has no records of python {' '.join(called(step.script))} "
                                   f"{' '.join(step.arguments)}: run it first")
    return found


# --- the one table -----------------------------------------------------------------------------------


def summary(steps, setting):
    """One table over all parts, from the records of these steps."""
    rows = []
    for part, lines in (("1", ablation_lines(needed(steps["ablate"]))),
                        ("2", construction_lines(needed(steps["constructive"]))),
                        ("3", finetuning_lines(needed(steps["targeted"]))),
                        ("4", latent_lines(steps)),
                        ("5", cgn_lines(steps) + objects_lines(steps)),
                        ("6", robust_lines(steps))):
        rows += [[part, *line] for line in lines]
    return f"Setting: {setting}\n\n" + tables.markdown(["part", "measured", "value", "samples"], rows)


def ablation_lines(records):
    main = [row for row in records if row["setting"].keys() == {"sample"}]
    n = f"{records[0]['options']['samples']} ablated samples"
    return [[f"VAE loss on the {split}, change by ablating ({arm} parameters)",
             f"{ablate.rise(main, arm, split):+.1f}", n]
            for arm in ("ablated", "random") for split in ablate.SPLITS]


def construction_lines(records):
    options = records[0]["options"]
    n = f"{options['seeds']} seeds x {options['anchors']} anchors"
    names = {"anchor": "the added zero", "unseen": "other zeros", "known": "known digits"}
    return [[f"MSE on {names[split]}, change by one step of {strength:g}", f"{value:+.4f}", n]
            for strength in options["strength"] for split in names
            for value in [tables.mean(records, arm="sign step", split=split, metric="mse_change", strength=strength)]]


def finetuning_lines(records):
    options, lines = records[0]["options"], []
    for size in options["sizes"]:
        rows, n = finetuning_report.main_rows(records, size), f"{options['seeds']} seeds x {size} zeros"
        for split in ("new digit", "others"):
            for arm in ("before", "targeted", "random", "full"):
                value = tables.mean(rows, arm=arm, split=split, metric="mse_sampled")
                lines.append([f"MSE on the {split}, {arm} ({size})", f"{value:.5f}", n])
    return lines


def latent_lines(steps):
    lines = []
    for name, step in steps.items():
        if name.startswith("latent"):
            rows = needed(step)
            model, arms = step.arguments[step.arguments.index("--model") + 1], counterfactual_report.arms_of(rows)
            for arm in (model, "pixel"):
                for metric, words in (("validity", "reached"), ("oracle", "that the oracle sees")):
                    lines.append([f"share of targets {words}, {arm} ({rows[0]['split']})",
                                  f"{arms[arm][metric]:.3f}", f"{rows[0]['n']} images"])  # fmt: skip
    return lines


def cgn_lines(steps):
    """Test accuracies, averaged over the seeds; those of CGNs that were only trained to be compared are in README."""
    found = {}
    wanted = [step for step in steps.values() if step.script == "cgn.classify"
              and not any(word.startswith("runs/retrained/") for word in step.arguments)]
    for step in wanted:
        for row in records_of(step):
            if row["split"] != "train":
                o = row["options"]
                key = row["arm"], o["variant"], row["split"], o["size"], o["ratio"]
                found.setdefault(key, {})[row["seed"]] = row["value"]
    return [[f"accuracy, trained on {arm} ({variant}, {split}; {size:,} images, {ratio} of each shape)",
             f"{tables.mean_of(values.values()):.4f}", f"{len(values)} seeds x 10,000 images"]
            for (arm, variant, split, size, ratio), values in found.items()]


def objects_lines(steps):
    """What classifiers of the made set read where background, or all labels, are independent, averaged over seeds."""
    rows = [row for step in steps.values() if step.script == "cgn.evaluate" for row in needed(step)]
    names = {"mean": "mean of the heads", "shape": "the shape's head"}
    return [[f"accuracy, {names[head]}, trained on {on} (made set, {split})",
             f"{tables.mean_of(found.values()):.4f}", f"{len(found)} seeds x 2,000 images"]
            for head, split in (("mean", "mixed_rand"), ("shape", "counterfactual"))
            for on, found in report_objects.top_1(rows, head, split).items()]


def robust_lines(steps):
    """Test accuracies on flipped grounds, averaged over the seeds."""
    found = {}
    for step in steps.values():
        if step.script == "robust_training.train":
            row = next(row for row in needed(step) if (row["split"], row["metric"]) == ("flip", "accuracy"))
            found.setdefault(row["arm"], []).append((row["value"], row["n"]))
    return [[f"accuracy on flipped grounds, {arm}", f"{tables.mean_of(value for value, _ in values):.4f}",
             f"{len(values)} seeds x {values[0][1]:,} images"] for arm, values in found.items()]


# --- README.md ----------------------------------------------------------------------------------------


def readme_blocks():
    """{name of a generated block: its content}, from the committed records."""
    ablation, construction, finetuning = (needed(FULL[name]) for name in ("ablate", "constructive", "targeted"))
    of_cgns = storage.read_lines(Path(report.FOLDER) / storage.Records.FILE)
    cells = {cell: needed(FULL[" ".join(("latent", *cell))]) for cell in counterfactual_report.CELLS}
    return {
        "part 1": ablate.table(ablation),
        "part 1 claims": ablate.claims(ablation),
        "part 2": constructive_counterfactuals.table(construction),
        "part 2 published": constructive_counterfactuals.published_table(construction),
        "part 2 models": constructive_counterfactuals.models_sentence(other_models()),
        "part 2 claims": constructive_counterfactuals.claims(construction),
        "part 3": finetuning_report.table(finetuning),
        "part 3 claims": finetuning_report.claims(finetuning),
        "part 3 scoring": finetuning_report.scoring_sentence(finetuning),
        "part 3 published": finetuning_report.published_table(finetuning, published_records()),
        **{f"part 4 {data}": counterfactual_report.table(cells, data) for data in ("mnist", "strokes", "crowds")},
        "part 4 claims": counterfactual_report.claims(cells),
        "part 4 helix": counterfactual_report.helix_table(needed(FULL["helix"])),
        **report.blocks(of_cgns),
        **report_objects.blocks(of_cgns),
        **robust_report.blocks(robust_report.read()),
        "training": training_table(),
        "reliability": reliability_table(storage.read_lines("results/reliability/metrics.jsonl")),
        "published": published_numbers.table(ablation, finetuning, of_cgns),
        "growth": growth.table(storage.read_lines("results/growth/metrics.jsonl")),
        **speed_report.blocks(storage.read_lines("results/bench/metrics.jsonl")),
    }


def other_models():
    """Part 2's records of all trained models."""
    return [row for name, step in FULL.items() if name.startswith("constructive") for row in needed(step)]


def published_records():
    """What part 3 last measured from the published checkpoint; its records are committed."""
    rows = storage.read_lines(Path("results/targeted_finetuning/published_checkpoint") / storage.Records.FILE)
    return [row for row in rows if row["options"] == rows[-1]["options"]]


def reliability_table(records):
    """How often each promise held, kinds and places put together; what two threads change is measured, not promised.

    Of each promise only the trials of one and the same options count, however many others are recorded beside them
    (a check may have been tried alone and among others): those that tried it most, the last of several such.
    """
    counts = {}
    for row in records:
        if row["metric"] != "largest relative difference":
            by_kind = row["split"] == "same seed again" or row["split"].startswith("killed")
            tried, on = (row["split"], row["arm"]) if by_kind else (row["arm"], row["split"])
            given = counts.setdefault((tried, row["metric"]), {})
            held, n, places = given.pop(options := json.dumps(row["options"]), (0, 0, {}))
            given[options] = held + round(row["value"] * row["n"]), n + row["n"], places | {on: None}
    if not counts:
        return report.UNMEASURED
    lines = []
    for (tried, metric), given in counts.items():
        held, n, places = max(reversed(given.values()), key=lambda count: count[1])
        lines.append([tried, ", ".join(places), metric, f"{held:,} of {n:,}"])
    return tables.markdown(["tried", "on", "promise", "held"], lines)


def training_table():
    runs = {"runs/vae_512_no0", "runs/mnist_cnn"} | {
        recipes.run_of(step.arguments[1], step.arguments[3]) for step in FULL.values()
        if step.script == "train" and "--data" in step.arguments}  # fmt: skip
    records = storage.read_lines("results/train/metrics.jsonl")
    rows = [[row["options"]["run"], row["split"], row["metric"], f"{row['value']:.5g}", row["n"], row["seed"]]
            for row in records if row["options"]["run"] in runs]
    return tables.markdown(["run", "measured on", "what", "value", "n", "seed"], rows)


def main(quick, only_tables, again, published):
    os.chdir(experiment.ROOT)
    if quick and published:
        raise experiment.UserError("--published belongs to the full setting: leave out --quick")
    steps = dict(FAST if quick else FULL)
    if published:
        steps["published checkpoint"] = published_step(published)
        steps |= of_cgn(plan.commands(published))
    progress = Progress(steps)
    if not only_tables:
        for name in steps:
            carry_out(name, steps, again, progress)
    if not quick:
        tables.update(README, readme_blocks())
        gallery.main(gallery.RESULTS, gallery.OUT)
    setting = "quick (few seeds and samples; the committed results are those of `make reproduce`)" if quick else "full"
    print(summary(steps, setting))
    if not only_tables:
        print(f"\n{'quick' if quick else 'full'}: {progress.took()}")


if __name__ == "__main__":
    experiment.run(main)

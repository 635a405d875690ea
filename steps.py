"""The steps of `make reproduce` and `make run`: every script with its arguments, in the order in which they can run.

    FULL                   the committed results
    FAST                   fewer samples and seeds, on runs/quick/ and into results/quick/
    published_step(FOLDER), of_cgn(commands)    what published checkpoints and textures add
    called(script)         how python calls a script
"""

from pathlib import Path
from typing import NamedTuple

import counterfactual_report
import experiment
from cgn import plan, plan_objects
from robust_training import plan as robust_plan

PUBLISHED_VAE = "vae/vae_l5_linear_512_no0.pt"
PART_5, PART_6 = "results/cgn", "results/robust_training"  # folders of records


class Step(NamedTuple):
    """One script with its arguments; results: the folder of its records; needed_by: the steps that want its run."""

    script: str
    arguments: tuple
    results: str
    needed_by: tuple = ()


def called(script):
    """How python calls a script: train.py, or -m cgn.train."""
    return ("-m", script) if "." in script else (f"{script}.py",)


FULL = {
    "vae": Step("train", (), "results/train"),
    "classifier": Step("train", ("--model", "mnist_cnn"), "results/train"),
    "ablate": Step("ablate", ("--against", "retrain"), "results/ablate"),
    "constructive": Step("constructive_counterfactuals", (), "results/constructive_counterfactuals"),
    "targeted": Step("targeted_finetuning", (), "results/targeted_finetuning"),
    "bench": Step("bench", (), "results/bench"),
}
for k in range(1, 5):  # does part 2 depend on the one model?
    other, beside = f"runs/retrained/vae_seed{k}", "results/constructive_counterfactuals/other_models"
    FULL[f"vae {k}"] = Step("train", ("--seed", str(k), "--run", other), "results/train", (f"constructive {k}",))
    FULL[f"constructive {k}"] = Step("constructive_counterfactuals", (
        "--run", other, "--anchors", "40", "--seeds", "1", "--strengths", "--several", "--results", beside), beside)
LATENT = "results/latent_counterfactuals"
for words in ("--model attribute_cnn --data strokes", "--model counting_unet --data crowds",
              *(f"--model residual_cnn --data {data} --seed 1" for data in ("mnist", "strokes", "crowds")),
              *(f"--model class_autoencoders --data {data}" for data in ("mnist", "strokes")),
              "--model progressive_gan --data strokes",  # trained, and not yet measured in part 4
              *(f"--model {model} --data {data}" for data, model in counterfactual_report.CELLS)):  # fmt: skip
    FULL[words] = Step("train", tuple(words.split()), "results/train")
for (data, model), more in counterfactual_report.CELLS.items():
    FULL[f"latent {data} {model}"] = Step("latent_counterfactuals", (
        "--dataset", data, "--model", model, "--count", "500", *more), LATENT)
FULL["helix"] = Step("latent_counterfactuals", ("--dataset", "helix"), LATENT)
PICTURES = ("--dataset mnist",
            "--dataset strokes --model glow", "--dataset crowds --model glow --maximize --index 1",
            "--dataset crowds --model glow --minimize --index 3")  # fmt: skip
for words in PICTURES:
    FULL[words] = Step("latent_counterfactuals", tuple(words.split()), LATENT)
BENCHES = ("cgn.bench", "cgn.bench_objects", "robust_training.bench")  # with records of their own


def of_cgn(commands):
    """The steps of a plan of part 5."""
    folder = lambda script: "results/bench" if script in BENCHES else PART_5
    return {name: Step(command.script, tuple(command.words.split()), folder(command.script), command.needed_by)
            for name, command in commands.items()}  # fmt: skip


FULL |= of_cgn(plan.commands()) | of_cgn(plan_objects.commands())
FULL["robust_training.inpaint"] = Step("robust_training.inpaint", (), PART_6)
FULL |= {f"robust_training.train {words}": Step("robust_training.train", tuple(words.split()), PART_6)
         for words in robust_plan.everything()}
FULL |= {"robust_training.show": Step("robust_training.show", (), PART_6),
         "robust_training.bench": Step("robust_training.bench", (), "results/bench")}  # fmt: skip
FULL["growth"] = Step("growth", (), "results/growth")
FULL |= {f"reliability, {check}": Step("reliability", ("--checks", check), "results/reliability")
         for check in ("killed", "inputs", "code", "full", "together", "again", "crashed")}  # fmt: skip
QUICK_RUN = ("--run", "runs/quick/vae_512_no0")


def small(script, folder, arguments):
    """A step of the quick setting, on the quick run and into results/quick/."""
    return Step(script, (*QUICK_RUN, "--results", f"results/quick/{folder}", *arguments.split()),
                f"results/quick/{folder}")


QUICK_CGN = ("--variant", "double_colored", "--run", "runs/quick/cgn_double_colored", "--results", "results/quick/cgn")
QUICK_OBJECTS = ("--results", "results/quick/cgn")
FAST = {
    "vae": Step("train", (*QUICK_RUN, "--results", "results/quick/train"), "results/quick/train"),
    "ablate": small("ablate", "ablate", "--samples 16 --sweep-samples 4"),
    "constructive": small("constructive_counterfactuals", "constructive_counterfactuals",
                          "--anchors 8 --seeds 2 --sweep-anchors 1 --others 256"),
    "targeted": small("targeted_finetuning", "targeted_finetuning",
                      "--sizes 512 --seeds 2 --sweep 0.1 --sweep-seeds 1 --test 3000"),
    "latent": Step("latent_counterfactuals", ("--model", "image_vae", "--count", "64", "--steps", "150", "--lr", "0.02",
                                              "--results", "results/quick/latent"), "results/quick/latent"),
    "cgn": Step("cgn.train", (*QUICK_CGN, "--steps", "300"), "results/quick/cgn"),
    "cgn, original": Step("cgn.classify", (*QUICK_CGN, "--on", "original", "--steps", "150"), "results/quick/cgn"),
    "cgn, abducted": Step("cgn.classify", (*QUICK_CGN, "--on", "abducted", "--steps", "300", "--size", "30000"),
                          "results/quick/cgn"),
    "objects, set": Step("cgn.generate_objects", (
        "--size", "5000", "--truncation", "1", "--out", "runs/quick/objects", *QUICK_OBJECTS), QUICK_OBJECTS[1],
        ("objects, both, measured",)),
    **{f"objects, {on}": Step("cgn.train_ensemble", (
        "--on", on, "--steps", "800", "--set", "runs/quick/objects", "--run", f"runs/quick/ensemble_{on}",
        *QUICK_OBJECTS), QUICK_OBJECTS[1], (f"objects, {on}, measured",)) for on in ("real", "both")},
    **{f"objects, {on}, measured": Step("cgn.evaluate", ("--run", f"runs/quick/ensemble_{on}", *QUICK_OBJECTS),
                                        QUICK_OBJECTS[1]) for on in ("real", "both")},
    **{f"robust, {arm}": Step("robust_training.train", (
        "--epochs", "3", *words.split(), "--run", f"runs/quick/robust_{arm}", "--results", "results/quick/robust"),
        "results/quick/robust") for arm, words in {
            "plain": "", "tile_mixed_rand": "--inpaint tile --f-inpaint mixed_rand"}.items()},
}  # fmt: skip


def published_step(folder):
    """Part 3 from the published checkpoint."""
    checkpoint = Path(folder) / PUBLISHED_VAE
    if not checkpoint.is_file():
        raise experiment.UserError(f"--published {folder}: there is no {PUBLISHED_VAE} in it")
    results = "results/targeted_finetuning/published_checkpoint"
    return Step("targeted_finetuning", ("--checkpoint", str(checkpoint), "--sizes", "512", "--seeds", "5", "--sweep",
                                        "--results", results), results)

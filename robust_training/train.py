"""Train a classifier by counterfactual and invariant data, or by a baseline, and measure it on shifted backgrounds.

    python -m robust_training.train                                      # plain, digits; 1 min on 2 cores
    python -m robust_training.train --inpaint tile --f-inpaint shuffle --reg bbox_o
    python -m robust_training.train --labels two --group-dro 0.01
    python -m robust_training.train --dataset wb --inpaint cagan --f-inpaint shuffle --reg bbox_o --reg-coeff 10

The last is a published run; it wants the data (robust_training.fetch) and cagan's images (--infills). Writes
runs/robust_NAME/ (options.json, log.jsonl, ckpt/{best,last}.pt), records to results/robust_training/metrics_seedN.jsonl
and a row to SET_results.tsv beside it, with the columns of the original: one for each metric of each split, then every
option; -999 where a value is missing. A run that was killed goes on after its last epoch and ends with the same bytes.
"""

from pathlib import Path
from typing import Literal

import backbones
import experiment
import storage
import trainer
from robust_training import augment, data, evaluate, fitting, inpainter, objective

# --- what is trained on ------------------------------------------------------------------------
DATASET: Literal["digits", "in9", "in9l", "wb", "cct"] = "digits"  # a name in data.RECIPES
LABELS: Literal["ten", "two"] = "ten"  # of digits: which label set
ROOT: Path = Path("data")  # where data sets lie
SEED: experiment.Index = 5  # published: 5, 10, 100
NAME: str | None = None  # of the run; by default the options that matter, as in the original's own names

# --- augmentation ------------------------------------------------------------------------------
INPAINT: Literal["none", "mean", "random", "shuffle", "tile", "cagan"] = "none"  # counterfactuals: foreground infilled
F_INPAINT: Literal["none", "random", "shuffle", "mixed_rand", "fgsm", "pgd"] = "none"  # factuals: background swapped
INPAINTER: Path = Path("runs/inpainter_digits_ten")  # cagan's network, for digits; its own for "two"
INFILLS: Path | None = None  # cagan's images, for photographs: a folder with NAME.jpg or .png for each
CF_LOSS: Literal["logp", "uniform", "uniform_except", "channels"] = "logp"  # of counterfactuals (published: logp)
CF_COEFF: experiment.NotNegative = 1.0  # its weight (published)
PGD_STEPS: experiment.Count = augment.PGD_STEPS  # of f-inpaint pgd (published)

# --- saliency ------------------------------------------------------------------------------------
REG: Literal["none", "bbox_o", "mask_o", "bbox_f1", "gs"] = "none"  # penalty on saliency maps
REG_GRAD: Literal["grad_y", "grad_sum", "grad_logp_y", "grad_logp_sum", "deeplift", "grad_cam"] = "grad_y"  # the maps
REG_COEFF: experiment.NotNegative = 10.0  # its weight (published example, at 224 pixels)

# --- baselines -----------------------------------------------------------------------------------
MIXUP: experiment.NotNegative = 0.0  # alpha of mixup; 0: none
LABEL_SMOOTHING: experiment.NotNegative = 0.0  # share that is spread over all classes
GRID_MASK: bool = False  # hide a grid of squares; periods of 96 to 224 of 224 pixels, ratio .6, share .8 (published)
GROUP_DRO: experiment.NotNegative = 0.0  # rate at which worse groups gain weight (Sagawa: 0.01, groups drawn evenly)

# --- how -----------------------------------------------------------------------------------------
BACKBONE: str | None = None  # small, bit or a classifier of torchvision; by default the data set's
WEIGHTS: Path | None = None  # pretrained weights of bit (BiT-S-R50x1.npz) or a checkpoint of train.py
EPOCHS: experiment.Count | None = None  # by default, like the next three, those of the data set's recipe
BATCH: experiment.Count | None = None  # images a step
LR: experiment.Positive | None = None  # learning rate
SELECT: Literal["last", "val_acc1", "val_auc"] | None = None  # which checkpoint is kept: a rule on the validation split
PATIENCE: experiment.Count | None = None  # stop after so many epochs without improvement; by default never
CLIP: experiment.Positive = 1.0  # largest norm of the gradient (published)
BATCH_SPLIT: experiment.Count = 1  # parts in which a batch is computed, to save memory
FP16: Literal["0", "1"] = "0"  # 1: half precision (bfloat16 on a processor); saliency maps stay in float32
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
DEVICES: experiment.Count = 1  # GPUs, or processes on the CPU, that share each batch
WORKERS: experiment.Index = 0  # processes that load photographs
TEST_RUN: bool = False  # a few images of everything, to see whether it runs
RUN: Path | None = None  # run folder; by default runs/robust_NAME
RESULTS: Path = Path("results/robust_training")  # where records and tables go

TEST_IMAGES = 200  # of each split in a test run
# What does not tell runs apart. Of these only devices changes what is learned, a little: by rounding, and because each
# process takes the mean over its own factuals, counterfactuals and images of known foreground.
APART = {"device", "devices", "workers", "root", "name", "run", "results"}
GRID = (96 / 224, 1.0, 0.6, 0.8)  # GridMask's periods in units of the image's side, ratio, share (published)


def name_of(o):
    """The default name of a run: its set, augmentation, penalty, baseline and seed, where they are not the defaults."""
    words = [o["dataset"] + ("" if o["labels"] == "ten" or o["dataset"] != "digits" else f"_{o['labels']}")]
    words += [o["inpaint"]] * (o["inpaint"] != "none")
    words += [o["cf_loss"]] * (o["inpaint"] != "none" and o["cf_loss"] != "logp")
    words += [f"f{o['f_inpaint']}"] * (o["f_inpaint"] != "none")
    if o["reg"] != "none":
        words += [o["reg"], f"reg{o['reg_coeff']:g}"] + [o["reg_grad"]] * (o["reg_grad"] != "grad_y")
    words += ["gridmask"] * o["grid_mask"]
    for key, short in (("mixup", "mixup"), ("label_smoothing", "smooth"), ("group_dro", "dro")):
        words += [f"{short}{o[key]:g}"] * bool(o[key])
    return "_".join([*words, *["test"] * o["test_run"], f"s{o['seed']}"])


def check(o):
    """Raise UserError for resolved options that contradict each other."""
    photographs = o["dataset"] != "digits"
    if o["inpaint"] == "cagan" and photographs and o["infills"] is None:
        raise experiment.UserError("--inpaint cagan on photographs needs --infills, a folder with an image for each; "
                                   "python -m robust_training.inpaint --write makes them")
    if o["label_smoothing"] >= 1:
        raise experiment.UserError("--label-smoothing must be below 1")
    if o["group_dro"] and (o["mixup"] or o["f_inpaint"] != "none" or o["label_smoothing"]):
        raise experiment.UserError("--group-dro weighs groups of labelled images: leave out --mixup, --label-smoothing "
                                   "and --f-inpaint")
    if o["group_dro"] and (o["batch_split"] > 1 or trainer.processes(o["devices"]) != (1, 1)):
        raise experiment.UserError("--group-dro weighs the groups of whole batches: leave out --batch-split and "
                                   "--devices")
    if o["patience"] is not None and o["select"] == "last":
        raise experiment.UserError("--patience waits for a better epoch, and --select last takes every one for better: "
                                   "choose val_acc1 or val_auc")
    if o["reg"] == "gs" and o["inpaint"] == "none":
        raise experiment.UserError("--reg gs compares gradients with counterfactuals: choose an --inpaint")
    if o["reg"] == "gs" and o["reg_grad"] == "grad_cam":
        raise experiment.UserError("--reg gs compares gradients with images: --reg-grad grad_cam has none of a pixel")


def resolved(o):
    """The options with the recipe's values where none is given."""
    recipe = data.RECIPES[o["dataset"]]
    return o | {name: getattr(recipe, name) if o[name] is None else o[name]
                for name in ("backbone", "epochs", "batch", "lr", "select")}  # fmt: skip


def make_model(o, classes):
    """The network of these options, freshly initialised from its own stream or with the weights of a file."""
    with experiment.seeded(o["seed"], "initialisation"):
        model = backbones.build(o["backbone"], fitting.outputs_of(o, len(classes)))
    if o["weights"] is not None:
        if o["weights"].suffix == ".npz":
            backbones.load_npz(model, o["weights"])
        else:
            storage.load_weights(model, storage.model_in(storage.load_checkpoint(o["weights"]))[2])
    return model


def check_rows(o, model):
    """Where images of a batch change each other's logits, refuse what relies on their not doing so, or say it."""
    if model.rows_independent:
        return
    if {o["inpaint"], o["f_inpaint"], o["reg"]} != {"none"}:
        raise experiment.UserError(f"--backbone {o['backbone']} normalises over the batch: augmented images would "
                                   "change the logits of the others, attacks and saliency its running averages; leave "
                                   "out --inpaint, --f-inpaint and --reg, or take small, bit or vgg16")
    print(f"{o['backbone']} normalises over the batch: in training its images change each other's logits")


def make_augmentation(o, classes):
    """How batches become examples."""
    side = data.RECIPES[o["dataset"]].size
    grid = (round(GRID[0] * side), round(GRID[1] * side), *GRID[2:]) if o["grid_mask"] else None
    return objective.Augmentation(len(classes), o["inpaint"], o["f_inpaint"], o["mixup"], o["label_smoothing"], grid,
                                  o["pgd_steps"])  # fmt: skip


def sources(o, device):
    """{split: source} of a data set; for a test run, of a few images each."""
    recipe, found = data.RECIPES[o["dataset"]], {}
    marked = {o["inpaint"], o["f_inpaint"], o["reg"]} != {"none"}
    for split in ("train", "val", *recipe.tests):
        training = split == "train"
        found[split] = data.source(o["dataset"], split, o["labels"], o["root"], device, o["seed"],
                                   o["infills"] if training else None, o["workers"], marked or not training)
        if o["test_run"]:
            found[split] = found[split].first(TEST_IMAGES)
    if o["inpaint"] == "cagan" and o["dataset"] == "digits":
        found["train"].paint_over(painter(o["inpainter"], device, o["labels"]).fill)
    return found


def painter(run, device, labels):
    """The inpainter of a run folder of inpaint.py; UserError if it was trained on other grounds than those of labels.
    """
    state = storage.load_checkpoint(run / "ckpt/best.pt")
    model = inpainter.restore(state)
    storage.expect(run, state, dataset="digits", labels=labels)
    return model.to(device)


def records_file(seed):
    """The file in which a seed's records are: there are many, and one file would grow too large to keep."""
    return f"metrics_seed{seed}.jsonl"


def main(**o):
    o = resolved(o)
    check(o)
    results, run = o.pop("results"), o.pop("run")
    name = o["name"] or name_of(o)
    path = run or Path("runs") / f"robust_{name}"
    device = experiment.pick_device(o["device"])
    classes = data.classes(o["dataset"], o["labels"])
    kept = {key: value for key, value in o.items() if key not in APART}
    if o["dataset"] == "digits" and o["inpaint"] == "cagan":
        kept["inpainter_weights"] = storage.digest(o["inpainter"] / "ckpt/best.pt")
    splits = sources(o, device)
    model = make_model(o, classes)
    check_rows(o, model)
    trained = fitting.train(path, kept, model, make_augmentation(o, classes), splits["train"], splits["val"], device,
                            o["devices"])  # fmt: skip
    if trained is None:  # another process than the first
        return
    best, fresh = trained
    records = storage.Records(results, "train", kept, device, records_file(o["seed"]))
    table, earlier = Path(results) / f"{o['dataset']}_results.tsv", records.earlier()
    if earlier and not fresh:
        evaluate.complete(table, name, earlier, kept)
        print(f"{path}: trained and measured before")
        return
    model = backbones.restore(best).to(device)
    found = evaluate.measure(model, splits, len(classes), best, records, device, name_of(o).rpartition("_s")[0])
    evaluate.append_row(table, name, found, kept)  # first: what has records counts as measured
    records.save()
    for split, metrics in found.items():
        if "accuracy" in metrics:
            worst = f", worst group {metrics['worst_group'][0]:.4f}" if "worst_group" in metrics else ""
            print(f"{name}, {split}: accuracy {metrics['accuracy'][0]:.4f}{worst} (n = {metrics['accuracy'][1]})")


if __name__ == "__main__":
    experiment.run(main)

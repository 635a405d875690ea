"""Train any model of architecture.py or classifiers.py into a run folder, from which the other scripts load it.

    python train.py                        # the VAE of parts 1-3: 512 digits without zeros; 45 s on 2 cores
    python train.py --model mnist_cnn      # the classifier whose features measure Fréchet distances; 4 min
    python train.py --seed 1 --run runs/vae_512_no0_seed1
    python train.py --model realnvp --data mnist     # any model, any data set that it fits; 13 min

Writes runs/NAME/: options.json, log.jsonl (a line an epoch), tensorboard/ and ckpt/{best,last}.pt. best.pt is the
epoch with the lowest loss on a validation split of the training set; the test set takes no part. A run that was
killed goes on from last.pt and ends with the same bytes: every draw comes from a stream named by seed and epoch.
"""

import contextlib
import math
import time
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import architecture
import catalogue
import classifiers
import datasets
import experiment
import metrics
import recipes
import storage
import tasks

# --- what is trained ----------------------------------------------------------------------
MODEL: str = "vae"  # a name of architecture.MODELS or classifiers.MODELS
DATA: str = "mnist"  # a name of catalogue.SETS
ATTRIBUTE: str | None = None  # CelebA's attribute or CheXpert's finding; by default Blond_Hair, Cardiomegaly
UNCERTAIN: Literal["ignore", "zeros", "ones"] | None = None  # CheXpert's uncertain labels; by default left out
SEED: experiment.Index = 0  # names the streams of split, initialisation, order, noise
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RUN: Path | None = None  # run folder; by default the recipe's
CHECKPOINT_EVERY: experiment.Count | None = None  # epochs between writes of last.pt; by default one in 30 s
RESULTS: Path = Path("results/train")  # where the record of a finished training goes

# --- by default, those of the recipe (recipes.py) --------------------------------------------
N: experiment.Count | None = None  # training images
HELD_OUT: tuple[experiment.Digit, ...] | None = None  # digits that are never shown
N_VALIDATION: experiment.Count | None = None  # images of the training set kept for model selection
EPOCHS: experiment.Count | None = None  # passes over the training images
BATCH: experiment.Count | None = None  # images a step
LR: experiment.Positive | None = None  # Adam's learning rate at the start

SAVE_AFTER = 30  # seconds that a kill may cost, or one epoch if that takes longer

# --- taking up what was trained ---------------------------------------------------------------


def load_vae(run, checkpoint, device):
    """(model in evaluation mode, options it was trained with, epochs it saw) of a run folder.

    checkpoint: another file to take instead of the run's best.pt, or None; a bare state dict counts as a model of
    the default recipe, trained for all its epochs.
    """
    state = storage.load_checkpoint(checkpoint or Path(run) / "ckpt/best.pt")
    model = architecture.restore(state).to(device)
    if not isinstance(model, architecture.VAE):
        raise experiment.UserError(f"{checkpoint or run} holds a {state['architecture']['name']}, and a VAE is needed")
    options = state.get("options", {"model": "vae", "data": "mnist", "seed": 0} | recipes.for_pair("vae", "mnist"))
    if not isinstance(options, dict) or not {"data", "n", "held_out", "seed", "epochs"} <= options.keys():
        raise experiment.UserError("this checkpoint does not say which digits it was trained on; train.py's do")
    if options["data"] != "mnist":  # on whose digits parts 1 to 3 measure it
        raise experiment.UserError(f"{checkpoint or run} was trained on {options['data']}, and one of mnist is needed")
    return model, options, state.get("epoch", options["epochs"])


def refuse_known(options, digit):
    """Raise UserError if a model trained with these options has seen the digit."""
    if digit not in options["held_out"]:
        raise experiment.UserError(f"--digit {digit}: this model was trained on it; it has never seen "
                                   f"{', '.join(map(str, options['held_out'])) or 'a digit less'}")


def load_classifier(run, device):
    """The classifier in a run folder, in evaluation mode."""
    return classifiers.restore(storage.load_checkpoint(Path(run) / "ckpt/best.pt")).to(device)


def load(run, model, data, device, others=()):
    """(model in evaluation mode, options it was trained with) of a run folder, which must hold `model` of `data`.

    others: names of models that will do as well. Raises UserError that names what is there and what is wanted, if that
    differs.
    """
    path = Path(run) / "ckpt/best.pt"
    if not path.is_file():
        raise experiment.UserError(f"no checkpoint at {path}; python train.py --model {model} --data {data} makes one")
    state = storage.load_checkpoint(path)
    options = state.get("options")
    if not isinstance(options, dict) or not {"model", "data"} <= options.keys():
        raise experiment.UserError(f"{path} does not say which model of which data set it holds; train.py's do")
    if options["model"] not in (model, *others) or options["data"] != data:
        raise experiment.UserError(f"{run} holds {options['model']} trained on {options['data']}, and {model} trained "
                                   f"on {data} is needed")
    return home_of(options["model"]).restore(state).to(device), options


# --- learning -------------------------------------------------------------------------------


def home_of(name):
    """The module that makes and restores the model of this name."""
    return architecture if name in architecture.MODELS else classifiers


def build(name, seed, device, settings=None):
    """(model, its entry for a checkpoint), initialised from the seed's own stream."""
    settings = settings or {}
    with experiment.seeded(seed, "initialisation"):
        return home_of(name).build(name, **settings).to(device), {"name": name, "settings": settings}


def adam(model, lr):
    return torch.optim.Adam(model.parameters(), lr=lr, betas=getattr(model, "BETAS", (0.9, 0.999)), fused=True)


def learn_epoch(model, optimizer, digits, batch, seed, epoch, omit=None, clip=None):
    """One pass over the digits; returns {term: mean over the digits}. Raises UserError on a non-finite loss.

    omit: position of one digit that is left out while everything random stays as it was (its batch is smaller by
    one): the training that would have taken place without it. clip: the longest gradient let through, or None.
    """
    task = tasks.of(model)
    device = digits.images.device
    order = torch.randperm(len(digits), generator=experiment.generator(seed, f"order/{epoch}"))
    draws = task.draws(model, len(digits), experiment.generator(seed, f"noise/{epoch}"))  # an epoch's stay on the CPU
    dropout = experiment.seeded(seed, f"dropout/{epoch}")
    totals = {}
    model.train()
    with dropout:
        for index in order.split(batch):
            index = index if omit is None else index[index != omit]
            if not len(index):  # a batch of the one digit that is left out
                continue
            terms = task.step(model, optimizer, digits[index.to(device)], draws[index].to(device), clip)
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value.detach().sum()
    return _finite({name: float(total) / (len(digits) - (omit is not None)) for name, total in totals.items()}, epoch)


def _finite(terms, epoch):
    for name, value in terms.items():
        if not math.isfinite(value):
            raise experiment.UserError(f"{name} became {value} in epoch {epoch}; the last good checkpoint is kept: "
                                       "a smaller --lr is worth a try")
    return terms


def validate(model, digits):
    """{term: mean over the digits}, in evaluation mode: without distortion or dropout."""
    model.eval()
    return tasks.of(model).validate(model, digits)


def learning_rate(lr, schedule, epoch, epochs):
    """Adam's learning rate in an epoch: constant, or half a cosine from lr down to a hundredth of it."""
    return lr if schedule == "constant" else lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * epoch / epochs)))


class Run:
    """A training run in its folder: what it has learned so far, and how that is saved and taken up again."""

    def __init__(self, folder, options, device):
        self.folder, self.options = folder, options
        self.model, self.made = build(options["model"], options["seed"], device, options.get("settings"))
        self.optimizer = adam(self.model, options["lr"])
        self.epoch, self.best = 0, None  # best: {"validation", "epoch", "model"} of the best epoch so far
        if self.folder.last.exists():
            state = storage.load_checkpoint(self.folder.last)
            if not {"model", "optimizer", "epoch", "best"} <= state.keys():
                raise experiment.UserError(f"{self.folder.last} is nothing to go on from: delete it to start over")
            storage.load_weights(self.model, state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.best = state["epoch"], state["best"]
        self.log = self.folder.open_log(keep=self.epoch)

    def note(self, line):
        """Add an epoch's line to the log and keep its weights if they are the best so far."""
        self.log.write(storage.json_line(line))
        if self.best is None or line["validation"] < self.best["validation"]:
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.best = {"validation": line["validation"], "epoch": line["epoch"], "model": weights}
        self.epoch = line["epoch"]

    def save(self):
        """Write last.pt, from which training goes on, and best.pt, which the other scripts load."""
        about = {"architecture": self.made, "options": self.options}
        storage.save_checkpoint(self.folder.best, about | self.best)
        storage.save_checkpoint(self.folder.last, about | {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch, "best": self.best,
        })  # fmt: skip


def which(options):
    """The part of a run's options that chooses among the labels of its data set."""
    return {name: options[name] for name in ("attribute", "uncertain") if name in options}


def train(path, options, device, checkpoint_every):
    """Train, resume or reuse the run in the folder at path; returns (what its best.pt holds, whether it trained)."""
    with storage.RunFolder(path, options) as folder:
        trained = not folder.finished()
        if trained:
            sets = catalogue.split(options["data"], options["n"], options["n_validation"], options["seed"], device,
                                   tuple(options["held_out"]), **which(options))  # fmt: skip
            run = Run(folder, options, device)
            with tqdm(total=options["epochs"], initial=run.epoch, desc=str(path), unit="epoch", disable=None) as bar:
                for line in go_on(run, *sets, checkpoint_every):
                    bar.set_postfix(validation=f"{line['validation']:.4g}", best=f"{run.best['validation']:.4g}")
                    bar.update()
        return storage.load_checkpoint(folder.best), trained


def run_epoch(model, optimizer, digits, options, epoch, omit=None):
    """One epoch of a training with these options, the learning rate of its schedule included; see learn_epoch."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(options["lr"], options["schedule"], epoch - 1, options["epochs"])
    tasks.of(model).begin(model, (epoch - 1) / options["epochs"])
    return learn_epoch(model, optimizer, digits, options["batch"], options["seed"], epoch, omit, options.get("clip"))


def go_on(run, digits, validation, checkpoint_every):
    """The epochs that a run still lacks; yields the log line of each, which is written by then."""
    from torch.utils.tensorboard import SummaryWriter  # here, because importing it takes two seconds

    o, saved = run.options, time.perf_counter()
    board = SummaryWriter(run.folder.path / "tensorboard", purge_step=run.epoch + 1)
    with run.log, contextlib.closing(board):
        for epoch in range(run.epoch + 1, o["epochs"] + 1):
            started = time.perf_counter()
            terms = run_epoch(run.model, run.optimizer, digits, o, epoch)
            checked = _finite(validate(run.model, validation), epoch)
            line = {"epoch": epoch} | terms | {f"validation_{name}": value for name, value in checked.items()}
            line |= {"validation": sum(checked.values()), "seconds": time.perf_counter() - started}
            run.note(line)
            for name, value in line.items():
                board.add_scalar(name, value, epoch)
            due = epoch % checkpoint_every == 0 if checkpoint_every else time.perf_counter() - saved > SAVE_AFTER
            if due or epoch == o["epochs"]:
                board.flush()
                run.save()
                saved = time.perf_counter()
            yield line
        if not run.folder.best.is_file():
            run.save()
        run.log.write(storage.json_line({"event": "finished", "best_epoch": run.best["epoch"]}))


def measure(path, best, trained, options, device, results):
    """Record the finished run, once for each training: its validation loss, its seconds, its errors on the test set."""
    records = storage.Records(results, "train", options | {"run": path}, device)
    if records.earlier() and not trained:
        return
    test = catalogue.load(options["data"], "test", device, **which(options))
    lines = [line for line in storage.read_lines(Path(path) / "log.jsonl") if "seconds" in line]
    model, seed = options["model"], options["seed"]
    net = home_of(model).restore(best).to(device)
    records.add(model, "validation", "loss", best["validation"], options["n_validation"], seed)
    records.add(model, "train", "seconds", sum(line["seconds"] for line in lines), options["n"], seed)
    found = held_out_errors(net, test, options) if options["held_out"] else tasks.of(net).measure(net, test, seed)
    for split, metric, value, n in found:
        records.add(model, split, metric, value, n, seed)
    records.save()


def held_out_errors(net, test, options):
    """(split, metric, value, n): squared errors of a VAE on the digits it has never seen and on the others."""
    unseen = datasets.of_class(test, *options["held_out"])
    noise = net.noise(len(test), experiment.generator(options["seed"], "evaluation noise"))
    for metric, eps in (("mse", None), ("mse_sampled", noise)):
        errors = metrics.squared_errors(net, test.images, eps)
        for split, part in (("held-out digits", unseen), ("other digits", ~unseen)):
            yield split, metric, float(errors[part].mean()), int(part.sum())


def options_of(model, data, seed, attribute, uncertain, given):
    """The options of a run: the pair's recipe, overridden by what is given and not None."""
    options = recipes.for_pair(model, data) | {name: value for name, value in given.items() if value is not None}
    chosen = {"attribute": attribute or catalogue.find(data).default, "uncertain": uncertain}
    options = {"model": model, "data": data, "seed": seed} | options | {k: v for k, v in chosen.items() if v}
    if options["held_out"] and (data != "mnist" or not model.endswith("vae")):
        raise experiment.UserError(f"--held-out is for VAEs on mnist, not for {model} on {data}")
    catalogue.check_labels(data, attribute, uncertain)
    return options


def main(model, data, attribute, uncertain, seed, device, run, checkpoint_every, results, **given):
    options = options_of(model, data, seed, attribute, uncertain, given)
    run = run or Path(recipes.run_of(model, data))
    device = experiment.pick_device(device)
    best, trained = train(run, options, device, checkpoint_every)
    measure(run, best, trained, options, device, results)
    print(f"{run}: best of {options['epochs']} epochs is {best['epoch']}, validation loss {best['validation']:.4f}"
          + ("" if trained else " (reused)"))


if __name__ == "__main__":
    experiment.run(main)

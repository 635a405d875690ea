"""Train any model of architecture.py or classifiers.py into a run folder, from which the other scripts load it.

    python train.py                        # the VAE of parts 1-3: 512 digits without zeros; 45 s on 2 cores
    python train.py --model mnist_cnn      # the classifier whose features measure Fréchet distances; 4 min
    python train.py --seed 1 --run runs/vae_512_no0_seed1

Writes runs/NAME/: options.json, log.jsonl (a line an epoch), tensorboard/ and ckpt/{best,last}.pt. best.pt is the
epoch with the lowest loss on a validation split of the training set; the test set takes no part. A run that was
killed goes on from last.pt and ends with the same bytes: every draw comes from a stream named by seed and epoch.
"""

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import architecture
import classifiers
import datasets
import experiment
import metrics
import storage

# --- what is trained ----------------------------------------------------------------------
MODEL: str = "vae"  # a name of architecture.MODELS or classifiers.MODELS
DATA: str = "mnist"  # the data set; only mnist so far
SEED: experiment.Index = 0  # names the streams of split, initialisation, order, noise
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RUN: Path | None = None  # run folder; by default the recipe's
CHECKPOINT_EVERY: experiment.Count = 10  # epochs between writes of last.pt; what a kill can cost
RESULTS: Path = Path("results/train")  # where the record of a finished training goes

# --- by default, those of the model's recipe below ------------------------------------------
N: experiment.Count | None = None  # training digits
HELD_OUT: tuple[experiment.Digit, ...] | None = None  # digits that are never shown
N_VALIDATION: experiment.Count | None = None  # digits of the training set kept for model selection
EPOCHS: experiment.Count | None = None  # passes over the training digits
BATCH: experiment.Count | None = None  # images a step
LR: experiment.Positive | None = None  # Adam's learning rate at the start

VAE_RECIPE = {
    "n": 512, "held_out": (0,), "epochs": 100, "batch": 64, "lr": 1e-3,  # all published
    "n_validation": 1024,  # published: the test set, which we do not touch
    "schedule": "constant",
}  # fmt: skip
RECIPES = {
    "vae": VAE_RECIPE | {"run": "runs/vae_512_no0"},
    "linear_vae": VAE_RECIPE | {"run": "runs/linear_vae_512_no0"},
    "mnist_cnn": {
        "n": 55_000, "held_out": (), "n_validation": 5_000, "epochs": 12, "batch": 128, "lr": 2e-3,
        "schedule": "cosine", "run": "runs/mnist_cnn",
    },
}  # fmt: skip


# --- the two kinds of task: what is drawn for each image and epoch, and what is minimised -----


class Reconstruction:
    """Negative ELBO, summed over the batch; the latent noise of an image is drawn once an epoch."""

    @staticmethod
    def draws(model, n, stream):
        return torch.randn(n, model.latent, generator=stream)

    @staticmethod
    def terms(model, digits, eps):
        return model.loss(digits.images, eps)

    reduce = staticmethod(torch.sum)  # as published; Adam hardly minds


class Classification:
    """Cross-entropy, averaged over the batch, on digits that are turned, scaled and moved a little."""

    TURN, ZOOM, MOVE = math.radians(10), 0.1, 2 / 14  # at most: 10 degrees, 10 %, 2 pixels

    @staticmethod
    def draws(model, n, stream):
        return torch.rand(n, 4, generator=stream) * 2 - 1

    @classmethod
    def terms(cls, model, digits, draws):
        images = digits.images if draws is None else cls.distort(digits.images, draws)
        return model.loss(images, digits.labels)

    @classmethod
    def distort(cls, images, draws):
        """Images under the affine maps that draws (B, 4) in [-1, 1] stand for: turn, zoom, move x, move y."""
        turn, zoom = draws[:, 0] * cls.TURN, 1 + draws[:, 1] * cls.ZOOM
        cos, sin = torch.cos(turn) * zoom, torch.sin(turn) * zoom
        move = draws[:, 2:] * cls.MOVE
        maps = torch.stack([cos, -sin, move[:, 0], sin, cos, move[:, 1]], 1).view(-1, 2, 3)
        return F.grid_sample(images, F.affine_grid(maps, images.shape, align_corners=False), align_corners=False)

    reduce = staticmethod(torch.mean)


def task_of(model):
    return Reconstruction if isinstance(model, architecture.VAE) else Classification


# --- taking up what was trained ---------------------------------------------------------------


def load_vae(run, checkpoint, device):
    """(model in evaluation mode, options it was trained with, epochs it saw) of a run folder.

    checkpoint: another file to take instead of the run's best.pt, or None; a bare state dict counts as a model of
    the default recipe, trained for all its epochs.
    """
    state = storage.load_checkpoint(checkpoint or Path(run) / "ckpt/best.pt")
    model = architecture.restore(state).to(device)
    options = state.get("options", {"model": "vae", "data": "mnist", "seed": 0} | RECIPES["vae"])
    if not isinstance(options, dict) or not {"n", "held_out", "seed", "epochs"} <= options.keys():
        raise experiment.UserError("this checkpoint does not say which digits it was trained on; train.py's do")
    return model, options, state.get("epoch", options["epochs"])


def refuse_known(options, digit):
    """Raise UserError if a model trained with these options has seen the digit."""
    if digit not in options["held_out"]:
        raise experiment.UserError(f"--digit {digit}: this model was trained on it; it has never seen "
                                   f"{', '.join(map(str, options['held_out'])) or 'a digit less'}")


def load_classifier(run, device):
    """The classifier in a run folder, in evaluation mode."""
    return classifiers.restore(storage.load_checkpoint(Path(run) / "ckpt/best.pt")).to(device)


# --- learning -------------------------------------------------------------------------------


def home_of(name):
    """The module that makes and restores the model of this name."""
    return architecture if name in architecture.MODELS else classifiers


def build(name, seed, device):
    """(model, its entry for a checkpoint), initialised from the seed's own stream."""
    with experiment.seeded(seed, "initialisation"):
        return home_of(name).build(name).to(device), {"name": name, "settings": {}}


def adam(model, lr):
    return torch.optim.Adam(model.parameters(), lr=lr, fused=True)


def learn_epoch(model, optimizer, digits, batch, seed, epoch, omit=None):
    """One pass over the digits; returns {term: mean over the digits}. Raises UserError on a non-finite loss.

    omit: position of one digit that is left out while everything random stays as it was (its batch is smaller by
    one): the training that would have taken place without it.
    """
    task = task_of(model)
    device = digits.images.device
    order = torch.randperm(len(digits), generator=experiment.generator(seed, f"order/{epoch}"))
    draws = task.draws(model, len(digits), experiment.generator(seed, f"noise/{epoch}")).to(device)
    dropout = experiment.seeded(seed, f"dropout/{epoch}")
    totals = {}
    model.train()
    with dropout:
        for index in order.split(batch):
            index = (index if omit is None else index[index != omit]).to(device)
            if not len(index):  # a batch of the one digit that is left out
                continue
            optimizer.zero_grad()
            terms = task.terms(model, digits[index], draws[index])
            task.reduce(sum(terms.values())).backward()
            optimizer.step()
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value.detach().sum()
    return _finite({name: float(total) / (len(digits) - (omit is not None)) for name, total in totals.items()}, epoch)


def _finite(terms, epoch):
    for name, value in terms.items():
        if not math.isfinite(value):
            raise experiment.UserError(f"{name} became {value} in epoch {epoch}; the last good checkpoint is kept: "
                                       "a smaller --lr is worth a try")
    return terms


@torch.no_grad()
def validate(model, digits, batch=1000):
    """{term: mean over the digits}, without noise, distortion or dropout."""
    model.eval()
    totals = {}
    for start in range(0, len(digits), batch):
        for name, value in task_of(model).terms(model, digits[start : start + batch], None).items():
            totals[name] = totals.get(name, 0) + value.sum().cpu().double()
    return {name: float(total) / len(digits) for name, total in totals.items()}


def learning_rate(lr, schedule, epoch, epochs):
    """Adam's learning rate in an epoch: constant, or half a cosine from lr down to a hundredth of it."""
    return lr if schedule == "constant" else lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * epoch / epochs)))


class Run:
    """A training run in its folder: what it has learned so far, and how that is saved and taken up again."""

    def __init__(self, folder, options, device):
        self.folder, self.options = folder, options
        self.model, self.made = build(options["model"], options["seed"], device)
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


def train(path, options, device, checkpoint_every):
    """Train, resume or reuse the run in the folder at path; returns (what its best.pt holds, whether it trained)."""
    with storage.RunFolder(path, options) as folder:
        trained = not folder.finished()
        if trained:
            sets = datasets.training_split(tuple(options["held_out"]), options["n"], options["n_validation"],
                                           options["seed"], device)  # fmt: skip
            run = Run(folder, options, device)
            with tqdm(total=options["epochs"], initial=run.epoch, desc=str(path), unit="epoch", disable=None) as bar:
                for line in go_on(run, *sets, checkpoint_every):
                    bar.set_postfix(validation=f"{line['validation']:.4g}", best=f"{run.best['validation']:.4g}")
                    bar.update()
        return storage.load_checkpoint(folder.best), trained


def go_on(run, digits, validation, checkpoint_every):
    """The epochs that a run still lacks; yields the log line of each, which is written by then."""
    from torch.utils.tensorboard import SummaryWriter  # here, because importing it takes two seconds

    o = run.options
    board = SummaryWriter(run.folder.path / "tensorboard", purge_step=run.epoch + 1)
    for epoch in range(run.epoch + 1, o["epochs"] + 1):
        started = time.perf_counter()
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(o["lr"], o["schedule"], epoch - 1, o["epochs"])
        terms = learn_epoch(run.model, run.optimizer, digits, o["batch"], o["seed"], epoch)
        checked = _finite(validate(run.model, validation), epoch)
        line = {"epoch": epoch} | terms | {f"validation_{name}": value for name, value in checked.items()}
        line |= {"validation": sum(checked.values()), "seconds": time.perf_counter() - started}
        run.note(line)
        for name, value in line.items():
            board.add_scalar(name, value, epoch)
        if epoch % checkpoint_every == 0 or epoch == o["epochs"]:
            board.flush()
            run.save()
        yield line
    board.close()
    if not run.folder.best.is_file():
        run.save()
    run.log.write(storage.json_line({"event": "finished", "best_epoch": run.best["epoch"]}))


def measure(path, best, trained, options, device, results):
    """Record the finished run, once for each training: its validation loss, its seconds, its errors on the test set."""
    records = storage.Records(results, "train", options | {"run": path}, device)
    if records.earlier() and not trained:
        return
    test = datasets.mnist("test", device)
    lines = [line for line in storage.read_lines(Path(path) / "log.jsonl") if "seconds" in line]
    model, home = options["model"], home_of(options["model"])
    net = home.restore(best).to(device)
    records.add(model, "validation", "loss", best["validation"], options["n_validation"], options["seed"])
    records.add(model, "train", "seconds", sum(line["seconds"] for line in lines), options["n"], options["seed"])
    if home is classifiers:
        records.add(model, "test", "accuracy", metrics.accuracy(net, test), len(test), options["seed"])
        records.save()
        return
    unseen = datasets.of_class(test, *options["held_out"])
    noise = net.noise(len(test), experiment.generator(options["seed"], "evaluation noise"))
    for metric, eps in (("mse", None), ("mse_sampled", noise)):
        errors = metrics.squared_errors(net, test.images, eps)
        for split, part in (("held-out digits", unseen), ("other digits", ~unseen)):
            if part.any():
                records.add(model, split, metric, float(errors[part].mean()), int(part.sum()), options["seed"])
    records.save()


def main(model, data, seed, device, run, checkpoint_every, results, **given):
    if model not in RECIPES:
        raise experiment.UserError(f"no model is called {model!r}; there are {', '.join(RECIPES)}")
    if data != "mnist":
        raise experiment.UserError(f"no data set is called {data!r}; there is mnist")
    options = RECIPES[model] | {name: value for name, value in given.items() if value is not None}
    run = run or Path(options["run"])
    options = {"model": model, "data": data, "seed": seed} | {k: v for k, v in options.items() if k != "run"}
    device = experiment.pick_device(device)
    best, trained = train(run, options, device, checkpoint_every)
    measure(run, best, trained, options, device, results)
    print(f"{run}: best of {options['epochs']} epochs is {best['epoch']}, validation loss {best['validation']:.4f}"
          + ("" if trained else " (reused)"))


if __name__ == "__main__":
    experiment.run(main)

"""The training loop of part 6: epochs over a source, resumed to the same bytes, on one device or several.

Lightning Fabric places the network, scales losses of half precision and averages gradients over processes; what is
kept in the run folder is ours. last.pt is written after every epoch; best.pt is the epoch that the rule picks.
"""

import contextlib
import time

import torch
from tqdm import tqdm

import experiment
import storage
import trainer
from robust_training import data, evaluate, losses
from robust_training.objective import Objective

CHECK_EVERY = 50  # steps in which a loss that is not finite goes unnoticed


def make_optimiser(recipe, parameters, lr):
    """torch's optimiser of a recipe."""
    name, settings = recipe.optimiser
    return getattr(torch.optim, name)(parameters, lr=lr, **settings)


def outputs_of(options, classes):
    """How many outputs the network of these options has: channels only where there are counterfactuals."""
    return losses.outputs(options["cf_loss"] if options["inpaint"] != "none" else None, classes)


def balanced(source):
    """How often each image is drawn so that all groups that are there come equally often (N,), float64."""
    if (source.places < 0).any():
        raise experiment.UserError("--group-dro needs images whose background is known; those of this set are not")
    groups = losses.groups_of(source.labels, source.places).cpu()
    return 1 / groups.bincount().double()[groups]


class Schedule:
    """The learning rate of a recipe: step() after each step, epoch(loss) after each epoch, whichever counts."""

    def __init__(self, recipe, optimiser, lr, steps):
        self.kind, detail = recipe.schedule
        if self.kind == "cycle":
            self.rule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=max(2, steps), pct_start=detail)
        elif self.kind == "plateau":
            self.rule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "min", 0.1, patience=detail)
        else:
            self.rule = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(detail), 0.1)

    def step(self):
        if self.kind == "cycle":
            self.rule.step()

    def epoch(self, validation_loss):
        if self.kind == "plateau":
            self.rule.step(validation_loss)
        elif self.kind == "steps":
            self.rule.step()


class Fitting:
    """A training in its run folder."""

    def __init__(self, fabric, folder, options, model, augmentation, train, val):
        self.fabric, self.folder, self.o, self.augmentation = fabric, folder, options, augmentation
        self.train, self.val, self.classes = train, val, augmentation.classes
        self.recipe = data.RECIPES[options["dataset"]]
        self.device = fabric.device
        self.plain = model.to(self.device)
        o, worst = options, None
        if o["group_dro"]:
            worst = losses.WorstGroup(2 * self.classes, o["group_dro"], self.device)
        self.worst, self.shares = worst, None if worst is None else balanced(train)
        objective = Objective(self.plain, o["cf_loss"], o["cf_coeff"], o["reg"], o["reg_grad"], o["reg_coeff"], worst)
        optimiser = make_optimiser(self.recipe, objective.parameters(), o["lr"])
        self.objective, self.optimiser = self.fabric.setup(objective, optimiser)
        self.steps = -(-len(train) // o["batch"])  # an epoch
        self.schedule = Schedule(self.recipe, optimiser, o["lr"], self.steps * o["epochs"])
        self.epoch, self.best, self.waited, self.lines = 0, None, 0, 0
        if folder.last.exists():
            self.restore(storage.load_checkpoint(folder.last))
        self.log = folder.open_log(keep=self.lines) if self.fabric.is_global_zero else None

    def state(self):
        scaler = self.fabric.strategy.precision.state_dict()  # of losses in half precision on a GPU; else empty
        return {"model": self.plain.state_dict(), "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.rule.state_dict(), "epoch": self.epoch, "best": self.best,
                "waited": self.waited, "lines": self.lines,
                "worst": None if self.worst is None else self.worst.weights,
                **({"scaler": scaler} if scaler else {})}  # fmt: skip

    def restore(self, state):
        storage.load_weights(self.plain, state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.rule.load_state_dict(state["schedule"])
        self.epoch, self.best, self.waited, self.lines = (state[name] for name in ("epoch", "best", "waited", "lines"))
        if self.worst is not None:
            self.worst.weights = state["worst"].to(self.device)
        if "scaler" in state:
            self.fabric.strategy.precision.load_state_dict(state["scaler"])

    def go_on(self):
        """The epochs that are still to be done."""
        total = self.o["epochs"]
        with tqdm(total=total * self.steps, initial=self.epoch * self.steps, desc=str(self.folder.path), unit="step",
                  disable=None if self.fabric.is_global_zero else True) as bar:  # fmt: skip
            while self.epoch < total and not self.given_up():
                started = time.perf_counter()
                means = self.one_epoch(bar)
                self.epoch += 1
                self.after_epoch(means, time.perf_counter() - started)
        if self.fabric.is_global_zero:
            self.write({"event": "finished", "epochs": self.epoch})
            self.log.close()

    def given_up(self):
        return self.o["patience"] is not None and self.waited >= self.o["patience"]

    def one_epoch(self, bar):
        """Mean of each term over the epoch's steps."""
        self.objective.train()
        terms, advice = experiment.Terms(), "a smaller --lr or --reg-coeff is worth a try"
        for k, batch in enumerate(self.train.batches(self.o["batch"], self.epoch, self.shares), start=1):
            number = self.epoch * self.steps + k - 1
            with experiment.seeded(self.o["seed"], f"dropout/{number}/{self.fabric.global_rank}"):
                terms.add(self.step(batch.to(self.device), number))
            bar.update()
            if k % CHECK_EVERY == 0 or k == self.steps:
                means = terms.means(k, f"step {k} of epoch {self.epoch + 1}", advice)
        return means

    def step(self, batch, number):
        """One step of the optimiser on a batch, shared by the processes and cut in --batch-split parts."""
        ranks, rank = self.fabric.world_size, self.fabric.global_rank
        batch = batch[rank::ranks] if ranks > 1 and len(batch) >= ranks else batch
        parts = min(self.o["batch_split"], len(batch))
        cuts = [batch[k::parts] for k in range(parts)]
        sums = {}
        for k, cut in enumerate(cuts):
            name = f"{number}/{k}" + (f"/{rank}" if ranks > 1 else "")
            examples = self.augmentation(cut, self.o["seed"], name, self.plain)
            with self.fabric.no_backward_sync(self.objective, enabled=k + 1 < parts):
                terms = self.objective(examples)
                self.fabric.backward(sum(terms.values()) * (len(cut) / len(batch)))
            for term, value in terms.items():
                sums[term] = sums.get(term, 0) + value.detach() * (len(cut) / len(batch))
        self.fabric.clip_gradients(self.objective, self.optimiser, max_norm=self.o["clip"], error_if_nonfinite=False)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.schedule.step()
        return sums

    def after_epoch(self, means, seconds):
        """Validate, pick, save, log."""
        logits, labels, _ = evaluate.read(self.plain, self.val, self.device)
        found = evaluate.validation(logits, labels, self.classes)
        self.schedule.epoch(found["val_loss"])
        rule = self.o["select"]
        better = rule == "last" or self.best is None or (found[rule] or 0) > self.best
        self.waited = 0 if better else self.waited + 1
        if better:
            self.best = found.get(rule)
        if not self.fabric.is_global_zero:
            return
        made = {"name": self.o["backbone"], "settings": {"classes": outputs_of(self.o, self.classes)}}
        if better:
            storage.save_checkpoint(self.folder.best, {"architecture": made, "options": storage.plain_options(self.o),
                                                       "model": self.plain.state_dict(), "epoch": self.epoch})
        self.write({"epoch": self.epoch, **means, **found, "seconds": seconds})
        storage.save_checkpoint(self.folder.last, self.state())

    def write(self, line):
        self.log.write(storage.json_line(line))
        self.lines += 1


def train(path, options, model, augmentation, train, val, device, devices):
    """(what best.pt holds, whether it trained now) of the run at path; None in any process but the first.

    The first process holds the folder; the others only read what it has checked.
    """
    folder, fabric = storage.RunFolder(path, options), trainer.fabric_of(device, devices, options["fp16"] == "1")
    with folder if fabric.is_global_zero else contextlib.nullcontext():
        if fabric.is_global_zero and not folder.best.exists():  # lost: last.pt does not hold the best epoch
            folder.last.unlink(missing_ok=True)
        fabric.barrier()
        fresh = not folder.finished()
        if fresh:
            Fitting(fabric, folder, options, model, augmentation, train, val).go_on()
        if not fabric.is_global_zero:
            return None
        return storage.load_checkpoint(folder.best), fresh

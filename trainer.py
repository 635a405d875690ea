"""Training by steps: networks that learn, perhaps against each other, in a run folder that survives being killed.

    class Mine(Game):        step(number) -> {term: a scalar on the device}
    class Course(Training):  begin() -> Mine; architecture() -> what the checkpoint is of
    train(path, options, Course)

train.py goes by epochs and keeps the best one; here a run has a number of steps, and what is kept is the running
average of the weights at its end: nothing is selected. Whatever is drawn in a step comes from a stream named by its
number, so that a training that was killed goes on unchanged and ends with the same bytes on the CPU.

Several processes (fabric_of) each take a part of every batch: their gradients are averaged before a step, so that all
hold the same weights. Only the first one writes.
"""

import contextlib
import copy
import itertools
import os
import time

import torch
from tqdm import tqdm

import experiment
import storage

DECAY = 0.998  # of the running average of the weights, a step (Karras et al. 2018)
SAVE_AFTER = 60  # seconds that a kill may cost, and up to LOG_EVERY steps more: it is saved after a line of the log
LOG_EVERY = 100  # steps
FRAMES, FILM = 20, "frames.pt"  # pictures of a training, and their file in its run folder


def processes(devices, environ=os.environ):
    """(processes on each machine, machines): what torchrun says, where it has started this one, else (devices, 1)."""
    if "LOCAL_WORLD_SIZE" not in environ:
        return devices, 1
    here = int(environ["LOCAL_WORLD_SIZE"])
    return here, int(environ["WORLD_SIZE"]) // here


def fabric_if_needed(device, devices):
    """Lightning Fabric where several processes train, launched; None for one."""
    return None if processes(devices) == (1, 1) else fabric_of(device, devices)


def fabric_of(device, devices, half=False):
    """Lightning Fabric on this device, launched; half: half precision, which is bfloat16 on a processor.

    Machines that train together, started by torchrun, read and write one run folder: it is on a disk that they share.
    """
    from lightning_fabric import Fabric  # here, because it takes seconds to import

    precision = "32-true" if not half else "16-mixed" if device.type == "cuda" else "bf16-mixed"
    here, machines = processes(devices)
    fabric = Fabric(accelerator={"mps": "mps", "cuda": "cuda"}.get(device.type, "cpu"), devices=here,
                    num_nodes=machines, strategy="ddp" if here * machines > 1 else "auto",
                    precision=precision)  # fmt: skip
    fabric.launch()
    return fabric


def passes(source, size, start=0):
    """Batches in pass after pass without end, from step `start` on; the last, smaller one of a pass is left out.

    source: len, and batches(size, stream_seed) with the number of the pass as the seed.
    """
    each = max(1, len(source) // size)
    number, done = divmod(start, each)
    while True:
        yield from itertools.islice(source.batches(size, number), done, each)
        number, done = number + 1, 0


class Coming:
    """The batches of a training that may begin at any step.

    batches: a function from the number of a step to an iterator from that step on; it is asked at the first batch.
    """

    def __init__(self, batches):
        self.batches, self.iterator = batches, None

    def __call__(self, number):
        """The batch of step `number`, the next one after that of the call before."""
        self.iterator = self.iterator or self.batches(number)
        return next(self.iterator)


class Game:
    """Networks by name, an Adam for each, running averages of some.

    networks: {name: module}, on their device. rates: {name: learning rate} of those that learn. betas: of Adam.
    averaged: names of those whose running average is kept. context: makes the context that networks run in. falling:
    whether the rates go down in the second half of the training. fabric: of several processes, or None.
    """

    def __init__(self, networks, rates, betas, context, seed, averaged, falling=True,
                 fabric=None):  # fmt: skip
        self.fabric = fabric
        self.networks, self.rates, self.context, self.seed, self.falling = networks, rates, context, seed, falling
        self.averages = {name: copy.deepcopy(networks[name]).requires_grad_(False).eval() for name in averaged}
        self.optimizers = {name: torch.optim.Adam(networks[name].parameters(), lr, betas=betas, fused=True)
                           for name, lr in rates.items()}  # fmt: skip

    def step(self, number):
        """One step of every side; returns {term: a scalar on the device}, empty if there was nothing to learn from."""
        raise NotImplementedError

    @property
    def processes(self):
        return 1 if self.fabric is None else self.fabric.world_size

    def share(self, batch):
        """This process's part of a batch (B, ...), which every process draws alike."""
        return batch if self.processes == 1 else batch[self.fabric.global_rank :: self.processes]

    def stream(self, purpose, number):
        return experiment.generator(self.seed, f"{purpose}/{number}")

    def set_rate(self, share):
        """The learning rates at this share of the training: constant for half of it, then, if falling, down to zero."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * (min(1.0, 2 * (1 - share)) if self.falling else 1.0)

    def move(self, name, loss):
        """One step of one network."""
        self.optimizers[name].zero_grad()
        loss.backward()
        self.advance(name)

    def advance(self, *names):
        """One step of these networks along the gradients that they hold, averaged over the processes."""
        for name in names:
            if self.processes > 1:
                self.average_gradients(self.networks[name])
            self.optimizers[name].step()

    def average_gradients(self, network):
        """What each parameter's gradient would be on the processes' batches together; in one message."""
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        mean = self.fabric.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduce_op="mean")
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def follow(self, number):
        """Move the running averages; they start as plain means, so that the first weights do not linger."""
        decay = min(DECAY, (number + 1) / (number + 10))
        for name, average in self.averages.items():
            network = self.networks[name]
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
            for mean, now in zip(average.buffers(), network.buffers(), strict=True):
                mean.copy_(now)

    def parts(self):
        return {"networks": self.networks, "averages": self.averages, "optimizers": self.optimizers}

    def state(self):
        """Everything that a later step depends on."""
        return {kind: {name: part.state_dict() for name, part in group.items()} for kind, group in self.parts().items()}

    def restore(self, state):
        for kind, group in self.parts().items():
            for name, part in group.items():
                part.load_state_dict(state[kind][name])


class Training:
    """A Game in its run folder: saved on the way, and taken up where it was.

    A subclass says how it begins and what its checkpoints are of, and may keep more (`kept`), look at every step
    (`after_step`) and add to the last line of the log (`closing`). options: with "steps" among them.
    """

    def __init__(self, folder, options, first=True):
        """first: whether this is the process that writes."""
        self.folder, self.options, self.step, self.first = folder, options, 0, first
        self.last = storage.load_checkpoint(folder.last) if folder.last.exists() else {}
        self.lines = self.last.get("lines", 0)
        # now: with it the folder belongs to these options
        self.log = folder.open_log(keep=self.lines) if first else None
        try:
            self.game = self.begin()
        except experiment.UserError:  # and not to options that it cannot begin with
            if first and not folder.last.exists():
                self.log.close()
                folder.log.unlink()
            raise
        if "game" in self.last:
            self.game.restore(self.last["game"])
            self.step = self.last["step"]

    def begin(self):
        """The Game, ready for its first step."""
        raise NotImplementedError

    def architecture(self):
        """(name, settings) of the network whose weights best.pt holds, and these weights."""
        raise NotImplementedError

    def kept(self):
        """{name: value} that both checkpoints hold besides; found in self.last again."""
        return {}

    def after_step(self):
        pass

    def closing(self):
        """{name: value} in the last line of the log."""
        return {}

    def go_on(self):
        """The steps that are still to be done; raises UserError if a loss is not finite."""
        total, saved = self.options["steps"], time.perf_counter()
        terms, started = experiment.Terms(), time.perf_counter()
        with tqdm(total=total, initial=self.step, desc=str(self.folder.path), unit="step",
                  disable=None if self.first else True) as bar:  # fmt: skip
            while self.step < total:
                self.game.set_rate(self.step / total)
                terms.add(self.game.step(self.step))
                self.step += 1
                bar.update()
                self.after_step()
                if self.step % LOG_EVERY == 0 or self.step == total:
                    self.note(terms, time.perf_counter() - started)
                    terms, started = experiment.Terms(), time.perf_counter()
                    if time.perf_counter() - saved > SAVE_AFTER or self.step == total:
                        self.save()
                        saved = time.perf_counter()
        if self.first and not self.folder.best.is_file():  # lost since the last step was saved
            self.save()
        self.write({"event": "finished", "steps": self.step} | self.closing())
        if self.first:
            self.log.close()

    def note(self, terms, seconds):
        """A line of the log: the mean of each term since the last one."""
        since = self.step % LOG_EVERY or LOG_EVERY
        self.write({"step": self.step} | terms.means(since, self.step) | {"seconds": seconds})

    def write(self, line):
        if self.first:
            self.log.write(storage.json_line(line))
        self.lines += 1

    def save(self):
        """Write last.pt, from which training goes on, and best.pt, which is used."""
        if not self.first:
            return
        name, settings, weights = self.architecture()
        about = {"architecture": {"name": name, "settings": settings}, "options": storage.plain_options(self.options),
                 "step": self.step} | self.kept()  # fmt: skip
        storage.save_checkpoint(self.folder.best, about | {"model": weights})
        storage.save_checkpoint(self.folder.last, about | {"game": self.game.state(), "lines": self.lines})


class Filmed(Training):
    """A Training that keeps FRAMES pictures of what its game makes in the run folder: `picture` gives one, uint8."""

    def __init__(self, folder, options, first=True):
        self.frames = []
        super().__init__(folder, options, first)
        if self.step and (folder.path / FILM).exists():  # written before last.pt, the pictures may be ahead of it
            self.frames = list(storage.load_checkpoint(folder.path / FILM)["frames"])[: self.step // self.every]

    def picture(self):
        raise NotImplementedError

    @property
    def every(self):
        """Steps between two pictures."""
        return max(1, self.options["steps"] // FRAMES)

    def after_step(self):
        if self.first and self.step % self.every == 0:
            self.frames.append(self.picture())

    def save(self):
        if self.first and self.frames:
            storage.save_checkpoint(self.folder.path / FILM, {"frames": torch.stack(self.frames)})
        super().save()


def train(path, options, course, fabric=None):
    """Train, resume or reuse the run in the folder at path; returns (what its best.pt holds, whether it trained).

    course(folder, options) makes the Training, and takes first=False in any process of fabric but the first, where
    None is returned: the first one holds the folder, the others only read what it has checked. Raises UserError for
    a batch ("batch" in options) that is not the same number of images for each process: their gradients are averaged.
    """
    if fabric is not None and options["batch"] % fabric.world_size:
        raise experiment.UserError(f"--batch {options['batch']} cannot be shared by {fabric.world_size} processes: it "
                                   "must be a multiple of their number")
    folder = storage.RunFolder(path, options)
    first = fabric is None or fabric.is_global_zero
    with folder if first else contextlib.nullcontext():
        if fabric is not None:
            fabric.barrier()
        trained = not folder.finished()
        if trained:
            (course(folder, options) if first else course(folder, options, first=False)).go_on()
        return (storage.load_checkpoint(folder.best), trained) if first else None


def seconds_of(path):
    """How long the training in a run folder has taken, by its log."""
    return sum(line["seconds"] for line in storage.read_lines(path / "log.jsonl") if "step" in line)

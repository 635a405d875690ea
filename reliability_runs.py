"""Small trainings of every kind, and the children in which reliability.py runs commands: killed, limited and watched.

    ended = run("train", ["--model", "vae", ...], folder)     # exit code, what it printed, what it wrote to
    content(folder, "vae") == content(other, "vae")           # the same tensors, the same log but for its seconds

A child is forked from a server that has imported every script and computed nothing, so that it starts at once and a
kill at a random moment falls into the training, hardly ever into imports. What a script keeps as a constant (how often
it saves, how many images it measures) is set in the child: otherwise no run of seconds would ever be resumed.
"""

import functools
import hashlib
import importlib
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy
import torch

import experiment
import storage
from cgn import biggan
from experiment import ROOT, UserError

LIMIT = 300  # seconds after which a child counts as hanging
WATCHED = ("results", "runs")  # folders of the repository that no child may write to
NOBODY = 65534  # the user a child becomes where root would be allowed everything
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
HEAVY = ("lightning_fabric", "torch.utils.tensorboard", "matplotlib.pyplot")  # what scripts import when they need it
TINY = biggan.Config(64, 10, 8, 8, ((True, 4, 4), (True, 4, 2), (True, 2, 2)), attention=1, fold=2)


def nothing(*_, **__):
    """In place of what is measured or drawn after a training, where that takes longer than the training."""


# --- small trainings ---------------------------------------------------------------------------------


class Small(NamedTuple):
    """A training of seconds; "{NAME}" in words is the folder of the training with this name, which is run before."""

    script: str
    words: str
    settings: Mapping = MappingProxyType({})  # constants that the child sets: {"module.NAME": value}
    needs: tuple = ()


STEPS = {"trainer.SAVE_AFTER": 0, "trainer.LOG_EVERY": 1}  # trainings by steps save after every one
NUMBER = {"train": 120, "val": 40, "test": 40}  # images of the made sets
FEW = {"cgn.objects64.NUMBER": NUMBER, "robust_training.digits.NUMBER": NUMBER}
IMAGES = FEW | {"cgn.biggan.CONFIGS": {"objects64": TINY}}
BY_EPOCHS = "--n 64 --n-validation 32 --batch 16 --checkpoint-every 1 --seed 3"
TRAININGS = {
    "vae": Small("train", f"--model vae {BY_EPOCHS} --epochs 12"),
    "flow": Small("train", f"--model realnvp {BY_EPOCHS} --epochs 5", {"train.measure": nothing}),
    "gan": Small("train", f"--model dcgan {BY_EPOCHS} --epochs 5", {"train.measure": nothing}),
    "classifier": Small("train", f"--model mnist_cnn {BY_EPOCHS} --epochs 8", {"train.measure": nothing}),
    "cgn": Small("cgn.train", "--variant double_colored --steps 8 --batch 16", STEPS | {
        "cgn.abduction.STEPS": {"double_colored": (4, 0)}, "cgn.data.TRAINING": 500}),
    "biggan": Small("cgn.train_gan", "--steps 8 --batch 8 --samples 1", STEPS | IMAGES),
    "saliency": Small("cgn.train_saliency", "--steps 8 --batch 4", STEPS | IMAGES),
    "objects": Small("cgn.train_objects", "--generator {biggan} --saliency {saliency} --steps 6 --batch 4",
                     STEPS | IMAGES | {"cgn.train_objects.MEASURED": 20}, ("biggan", "saliency")),
    "set": Small("cgn.generate_objects", "--run {objects} --no-sheets --size 1000",
                 IMAGES | {"cgn.sets.SYNC_EVERY": 1}, ("objects",)),
    "ensemble": Small("cgn.train_ensemble", "--on both --set {set} --steps 8 --batch 8", STEPS | IMAGES, ("set",)),
    "robust": Small("robust_training.train", "--epochs 4 --batch 32", FEW),
    "inpainter": Small("robust_training.inpaint", "--steps 8 --batch 4 --width 8", STEPS | FEW | {
        "robust_training.inpaint.MEASURED": 50, "robust_training.inpaint.draw": nothing}),
}  # fmt: skip


def words_of(kind, folder, made):
    """The command line of a small training into folder/run; made: {kind: folder} of those that it needs."""
    small = TRAININGS[kind]
    out = "--out" if kind == "set" else "--run"
    return [*small.words.format_map({name: run_in(made[name]) for name in small.needs}).split(), "--device", "cpu",
            out, str(run_in(folder)), "--results", str(Path(folder) / "results")]


def run_in(folder):
    """Where in its folder a small training leaves what it makes."""
    return Path(folder) / "run"


# --- children ----------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """What became of a child: its exit code (negative: the signal), output, what it wrote to in WATCHED, seconds."""

    code: int
    out: str
    err: str
    touched: tuple
    seconds: float

    @property
    def mistake(self):
        """Whether it ended as a user's mistake should: exit code 2 and exactly one line on stderr."""
        return self.code == 2 and self.err.count("\n") == 1 and self.err.endswith("\n") and len(self.err) > 1


@functools.cache
def _server():
    """multiprocessing's server of forks, with everything imported that a command may need."""
    context = multiprocessing.get_context("forkserver")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # of what killed children have not given back
    scripts = sorted({small.script for small in TRAININGS.values()})
    context.set_forkserver_preload([__name__, *HEAVY, *scripts, "reproduce"])  # which imports nearly all others
    return context


def _watch(file):
    """Note in a file what this process writes to, makes, renames or removes in WATCHED."""
    roots = tuple(f"{ROOT / name}{os.sep}" for name in WATCHED)
    places = {"os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.truncate": (0,)}

    def seen(event, arguments):
        if event == "open":
            named = arguments[:1] if isinstance(arguments[2], int) and arguments[2] & WRITING else ()
        else:
            named = [arguments[k] for k in places.get(event, ())]
        for name in named:
            if isinstance(name, (str, bytes, os.PathLike)):
                path = os.path.abspath(os.fsdecode(name))
                if path.startswith(roots) and not (event == "os.mkdir" and os.path.isdir(path)):
                    os.write(file, f"{event} {path}\n".encode())

    sys.addaudithook(seen)


def _live(script, words, folder, settings, threads, room, user):
    """The life of a child: one command as a user would give it, its output in files of the folder."""
    kept = [os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err", "touched")]
    os.dup2(kept[0], 1)
    os.dup2(kept[1], 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    os.chdir(ROOT)
    torch.set_num_threads(threads)
    for name, value in settings.items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    main = importlib.import_module(script).main
    _watch(kept[2])
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    if user is not None:
        os.setgid(user)
        os.setuid(user)
    experiment.run(main, words)


class Running:
    """A child that has been started; its output is kept in folder/child."""

    def __init__(self, script, words, folder, settings=None, threads=1, room=None, user=None):
        """room: bytes beyond which no file of it may grow. user: the number of the user that it becomes, or None."""
        self.folder = Path(folder) / "child"
        self.folder.mkdir(parents=True, exist_ok=True)
        given = (script, list(map(str, words)), self.folder, settings or {}, threads, room, user)
        self.process = _server().Process(target=_live, args=given)
        self.started = time.perf_counter()
        self.process.start()

    def kill_after(self, seconds):
        """SIGKILL after so many seconds; returns whether the child was still running then."""
        self.process.join(max(0.0, seconds - (time.perf_counter() - self.started)))
        alive, self.seconds = self.process.is_alive(), time.perf_counter() - self.started
        self.process.kill()
        self.process.join()
        return alive and self.process.exitcode != 0

    def end(self, limit=LIMIT):
        """Wait for its end and return what became of it; one that takes longer than limit is killed."""
        self.process.join(limit)
        self.kill_after(0)
        out, err, touched = ((self.folder / name).read_text() if (self.folder / name).exists() else ""
                             for name in ("out", "err", "touched"))  # fmt: skip
        return Ended(self.process.exitcode, out, err, tuple(touched.splitlines()), time.perf_counter() - self.started)


def run(script, words, folder, limit=LIMIT, **how):
    """Run a command in a child to its end; how: as in Running."""
    return Running(script, words, folder, **how).end(limit)


def start(kind, folder, made, **how):
    """Start a small training into a folder; outputs: another folder for what it prints."""
    outputs, settings = how.pop("outputs", folder), dict(TRAININGS[kind].settings)
    return Running(TRAININGS[kind].script, words_of(kind, folder, made), outputs, settings=settings, **how)


def whole(kind, folder, made, **how):
    """A small training from its beginning to its end; UserError if it fails."""
    ended = start(kind, folder, made, **how).end()
    if ended.code:
        raise UserError(f"a small training of {kind} failed with exit code {ended.code}: {ended.err[-300:]}")
    return ended


def add_rows(folder, name, n):
    """Add n records to a file, and save after each, as a script does at its end."""
    records = storage.Records(folder, "reliability", {"name": name}, torch.device("cpu"))
    for number in range(n):
        records.add(name, str(number), "value", float(number), 1, 0)
        records.save()


def add_together(folder, n):
    """Two processes that each add n records to one file, at once."""
    both = [_server().Process(target=add_rows, args=(folder, name, n)) for name in ("one", "other")]
    for process in both:
        process.start()
    for process in both:
        process.join(LIMIT)


# --- comparing ---------------------------------------------------------------------------------------


def content(folder, kind):
    """What must be the same: {name: digest}, {name: lines}. A file that is not there is None.

    {"unreadable": why} of what is damaged: that is what is looked for, and no reason to stop.
    """
    run = run_in(folder)
    best = run / "ckpt/best.pt"
    try:
        if kind == "set":
            return {path.name: storage.digest(path) for path in sorted(run.iterdir())}
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in storage.read_lines(run / "log.jsonl")]
        return {"best.pt": digest(storage.load_checkpoint(best)) if best.is_file() else None, "log.jsonl": lines}
    except (UserError, OSError) as error:
        return {"unreadable": str(error)}


def digest(state):
    """SHA-256 of nested tensors and plain values: their bytes, shapes, kinds and names."""
    found = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key, item in value.items():
                found.update(f"{{{key!r}:".encode())
                add(item)
        elif isinstance(value, (list, tuple)):
            found.update(b"[")
            for item in value:
                add(item)
        else:
            found.update(repr(value).encode())

    add(state)
    return found.hexdigest()


def distance(one, other):
    """Largest difference between the weights of two runs, as a share of the largest weight of each tensor."""
    largest = 0.0
    states = [storage.load_checkpoint(run_in(folder) / "ckpt/best.pt")["model"] for folder in (one, other)]
    for name, value in states[0].items():
        if value.is_floating_point() and value.numel():
            apart = (value.double() - states[1][name].double()).abs().max() / value.double().abs().max().clamp(1e-12)
            largest = max(largest, float(apart))
    return largest


def tree(folder):
    """{name: bytes' digest} of everything in a folder, to see whether it is untouched."""
    folder = Path(folder)
    return {str(path.relative_to(folder)): storage.digest(path) for path in sorted(folder.rglob("*"))}


def moments(seed, purpose, n):
    """n numbers in [0, 1) of a named stream."""
    return numpy.random.default_rng(experiment.stream_seed(seed, purpose)).random(n).tolist()

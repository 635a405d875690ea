"""What is kept on disk: atomic files, checkpoints, run folders and records.

Beside experiment.py the other half of the ground: it knows nothing of images or models either. Whatever fails, the
disk full, a file damaged or malicious, is a UserError of one line, and what was there before is still there.
"""

import contextlib
import fcntl
import hashlib
import inspect
import io
import json
import math
import os
import platform
import subprocess
import time
import warnings
from pathlib import Path

import numpy
import torch

from experiment import ROOT, UserError

# --- files: atomic writes and checkpoints -------------------------------------------------


def write_atomically(path, data):
    """Write bytes or text so that path holds either the old content or the new one, also after a crash."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so that a crash leaves at most one behind
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _sync_folder(folder):
    held = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


@contextlib.contextmanager
def locked(path, wait):
    """Hold a folder or file within the block; wait for a process that holds it, or raise BlockingIOError at once."""
    held = os.open(path, os.O_RDONLY)  # freed by the system, however the process ends
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(held)


def save_checkpoint(path, state):
    """Save a dict of tensors and plain values. Tensors are stored for the CPU: a checkpoint carries no device."""
    buffer = io.BytesIO()
    torch.save(_on_cpu(state), buffer)
    write_atomically(path, buffer.getvalue())


def _on_cpu(state):
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=False)
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_on_cpu(value) for value in state)
    return state


def load_checkpoint(path):
    """The dict saved at path, on the CPU. Only tensors and plain values are read: no code in it ever runs."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; the script that trains it makes one")
    try:
        with warnings.catch_warnings(action="ignore"):  # of an unusual file: what follows says all in one line
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged and foreign files
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
            raise UserError(f"{path} is refused: it is no plain checkpoint, and what else it holds could run "
                            "code") from None
        raise UserError(f"{path} cannot be read as a checkpoint: truncated, or another kind of file") from None
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} is no checkpoint of this project: it holds no named tensors")
    return state


def file_of(path):
    """The file with the weights of a run folder, or the file itself."""
    return path if path.is_file() else path / "ckpt/best.pt"


def model_in(state):
    """(name, settings, weights) of a checkpoint of train.py; name and settings are None for a bare state dict."""
    made, weights = state.get("architecture"), state.get("model", state)
    named = isinstance(made, dict) and isinstance(made.get("name"), str) and isinstance(made.get("settings"), dict)
    if not (named or made is None) or not isinstance(weights, dict):
        raise UserError("this checkpoint is of another project: it does not say in our way which model it is of")
    return (made["name"], made["settings"], weights) if named else (None, None, weights)


def parts_of(state, name, maker):
    """(settings, weights) of a checkpoint of the model called `name`, which maker makes; UserError for another one."""
    found, settings, weights = model_in(state)
    if found != name:
        raise UserError(f"this checkpoint is of {found or 'an unnamed model'}; python -m {maker} makes one of {name}")
    return settings, weights


def one_of(models, kind, name):
    """The entry of this name in a dict of models; kind: what they are called in the UserError if there is none."""
    if name not in models:
        raise UserError(f"no {kind} is called {name!r}; there are {', '.join(models)}")
    return models[name]


def make(kind, /, *given, **settings):
    """kind(*given, **settings); UserError where it takes no such settings, as those of a foreign checkpoint."""
    try:
        inspect.signature(kind).bind(*given, **settings)
    except TypeError as error:
        raise UserError(f"a {kind.__name__} cannot be made with these settings: {error}") from None
    return kind(*given, **settings)


def load_weights(model, weights):
    """The model with these weights; UserError, naming the first that does not fit, if they are another model's."""
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(getattr(value, "shape", ())) for key, value in weights.items()}
    for key in [*wanted, *given]:
        if wanted.get(key) != given.get(key):
            raise UserError(f"these are not the weights of a {type(model).__name__}: {key} should be "
                            f"{wanted.get(key, 'absent')} and is {given.get(key, 'absent')}")
    model.load_state_dict(weights)
    return model


def load_published_weights(model, given):
    """The model with others' weights: load_weights, but that what torch or DataParallel adds need not be as it is here.

    The `module.` of several GPUs before every name is taken away, and the counts of batches of batch norm, which torch
    0.4.0 did not yet keep, may be missing.
    """
    given = {str(key).removeprefix("module."): value for key, value in given.items()}
    counts = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    return load_weights(model, counts | given)


def halved(weights):
    """{name: tensor} in half precision, for a best.pt that would be large; load_weights makes them whole again."""
    return {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}


# --- a run folder -------------------------------------------------------------------------


class RunFolder:
    """runs/NAME with options.json, log.jsonl, ckpt/{best,last}.pt and tensorboard/, held within a `with` block.

    Options equal to those it was trained with: the run is resumed or reused. Others: UserError with the difference.
    """

    def __init__(self, path, options):
        self.path, self.options = Path(path), plain_options(options)
        self.best, self.last, self.log = (self.path / name for name in ("ckpt/best.pt", "ckpt/last.pt", "log.jsonl"))
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        try:
            (self.path / "ckpt").mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(locked(self.path, wait=False))
        except BlockingIOError:
            raise UserError(f"{self.path} is in use by another run") from None
        except OSError as error:
            raise UserError(f"cannot use {self.path} as a run folder: {error.strerror}") from None
        with contextlib.ExitStack() as undo:
            undo.push(self._stack)
            self._compare_options()
            undo.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _compare_options(self):
        file = self.path / "options.json"
        if not self.log.exists():  # nothing was trained here yet
            write_atomically(file, json.dumps(self.options, indent=1) + "\n")
        made = read_json(file)
        for name in sorted(made.keys() | self.options):
            if made.get(name) != self.options.get(name):
                raise UserError(f"{self.path} was made with {name}={made.get(name)}, not {self.options.get(name)}; "
                                "name another --run or delete the folder")

    def finished(self):
        lines = read_lines(self.log)
        return bool(lines) and lines[-1].get("event") == "finished" and self.best.is_file()

    def open_log(self, keep):
        """log.jsonl, cut back to its first `keep` lines (those a checkpoint knows of), open for appending."""
        lines = read_lines(self.log)[:keep]
        write_atomically(self.log, "".join(map(json_line, lines)))
        return open(self.log, "a", buffering=1)


def json_line(values):
    return json.dumps(values) + "\n"


def read_json(path):
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def read_lines(path):
    """The complete lines of a .jsonl file as dicts; one cut off by a crash is left out, an absent file is empty."""
    path = Path(path)
    try:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise UserError(f"{path} holds a line that is no JSON: {error}; restore the file or delete it") from None


# --- records ------------------------------------------------------------------------------


def commit():
    """Short hash of the checked-out commit, with a + where the sources differ from it; "unknown" outside git."""
    ask = {"cwd": ROOT, "capture_output": True, "text": True}
    try:
        head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], **ask)
        changed = subprocess.run(["git", "status", "--porcelain", "--", "*.py", "requirements.txt"], **ask)
    except OSError:
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed.stdout) if head.returncode == 0 else "unknown"


def versions():
    return f"python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}"


def device_name(device):
    """What a record says of the machine: the GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {torch.get_num_threads()} threads"


def plain_options(options):
    """Options as a record holds them: paths as texts, tuples as lists."""
    return json.loads(json.dumps(options, default=str))


def expect(path, state, **wanted):
    """The options in a checkpoint, or None in one without; raises UserError if they are not the wanted ones."""
    options = state.get("options") if "architecture" in state else None
    for name, value in wanted.items() if options else ():
        if options.get(name) != value:
            raise UserError(f"{path} was trained on {name} {options.get(name)}, and {value} is wanted")
    return options


def digest(path):
    """The first half of the SHA-256 of a file, or None if it is not there: which weights a record is about."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32] if Path(path).is_file() else None


class Records:
    """The measurements of one script, one JSON line each in FOLDER/metrics.jsonl.

    Lines of the same options, arm, split, metric, seed and setting are replaced, all others are kept.
    """

    FILE = "metrics.jsonl"
    IDENTITY = ("experiment", "arm", "split", "metric", "seed", "setting", "options")

    def __init__(self, folder, experiment, options, device, file=FILE):
        self.path = Path(folder) / file
        probe = self.path.with_name(f".probe-{os.getpid()}")  # others may begin here at the same moment
        write_atomically(probe, "")  # fails now, not after an hour of measuring
        probe.unlink()
        self.common = {"experiment": experiment, "options": plain_options(options)}
        self.origin = {"commit": commit(), "versions": versions(), "device": device_name(device)}
        self.started = time.perf_counter()
        self.rows = []

    def add(self, arm, split, metric, value, n, seed, seconds=None, **setting):
        """One measurement: `arm` is what is compared, `split` what it was measured on, `n` on how many samples.

        value: a finite number, or None where the metric is not defined (too few samples, say); further keyword
        arguments are the point of a sweep, such as strength=0.002. seconds: by default since the start.
        """
        if value is not None and not math.isfinite(value):
            raise UserError(f"{metric} of {arm} on {split} is {value}; nothing was recorded")
        seconds = time.perf_counter() - self.started if seconds is None else seconds
        self.rows.append({"experiment": self.common["experiment"], "arm": arm, "split": split, "metric": metric,
                          "value": value, "n": n, "seed": seed, "setting": setting,
                          "options": self.common["options"], **self.origin, "seconds": round(seconds, 3)})

    def earlier(self):
        """The rows that the same script with the same options has already saved."""
        return [row for row in read_lines(self.path) if row["options"] == self.common["options"]]

    def forget(self):
        """Take the rows of these options out of the file, and the file away if it holds no others."""
        with locked(self.path.parent, wait=True):
            others = [row for row in read_lines(self.path) if row["options"] != self.common["options"]]
            write_atomically(self.path, "".join(map(json_line, others)))
            if not others:
                self.path.unlink()

    def save(self):
        """Write the rows to disk, beside the earlier ones of other options, and return them."""
        identity = lambda row: json.dumps([row[field] for field in self.IDENTITY], sort_keys=True)
        with locked(self.path.parent, wait=True):
            rows = {identity(row): row for row in read_lines(self.path) + self.rows}
            write_atomically(self.path, "".join(map(json_line, rows.values())))
        return self.rows

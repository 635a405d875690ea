"""The ground of every script: options, seeds, device, run folders, checkpoints and records.

It knows nothing of images or models. A script declares its options as UPPER_CASE constants and ends with
`experiment.run(main)`; everything below `main` takes plain keyword arguments.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
import torch

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """A failure that the user can cause and mend: `run` prints it as one line and exits with code 2."""


# --- options: the constants at the top of a script ----------------------------------------


@dataclass(frozen=True)
class Check:
    """What an option accepts, beside its type, and the words for it in --help and in errors."""

    accepts: Callable[[Any], bool]
    words: str


Positive = Annotated[float, Check(lambda v: 0 < v < math.inf, "a finite number above 0")]
NotNegative = Annotated[float, Check(lambda v: 0 <= v < math.inf, "a finite number, 0 or above")]
Fraction = Annotated[float, Check(lambda v: 0 < v <= 1, "a number above 0 and at most 1")]
Count = Annotated[int, Check(lambda v: v >= 1, "a whole number of at least 1")]
Index = Annotated[int, Check(lambda v: v >= 0, "a whole number of at least 0")]
Digit = Annotated[int, Check(lambda v: 0 <= v <= 9, "a digit, 0 to 9")]
Device = Literal["auto", "cpu", "cuda", "mps"]


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (--help lists the options)")


def _unpack(hint):
    """An annotation as (type, Check or None, choices or None, may be None, is a list)."""
    optional = many = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint, optional = next(h for h in typing.get_args(hint) if h is not types.NoneType), True
    if typing.get_origin(hint) is tuple:
        hint, many = typing.get_args(hint)[0], True
    if typing.get_origin(hint) is Annotated:
        return typing.get_args(hint)[0], hint.__metadata__[0], None, optional, many
    if typing.get_origin(hint) is Literal:
        return str, None, typing.get_args(hint), optional, many
    return hint, None, None, optional, many


def _validate(name, value, kind, check, choices, optional, many):
    """Raise UserError unless value, from the command line or edited at the top of a script, is acceptable."""
    if value is None and optional:
        return
    for item in value if many else (value,):
        good = isinstance(item, (int, float) if kind is float else kind) and not (kind is int and item is True)
        if choices and item not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}, not {item!r}")
        if not good or (check and not check.accepts(item)):
            raise UserError(f"{name} must be {check.words if check else kind.__name__}, not {item!r}")


def _comments(source):
    """{constant: the comment on its line}, the text that --help shows."""
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*)\b[^#\n]*#\s*(.*)$", source, re.MULTILINE))


def parse_options(script, argv):
    """Options of a script (a module): its annotated UPPER_CASE constants, overridden by argv.

    STRENGTH: Positive = 0.001  # a reason      becomes      --strength, default 0.001, help "a reason".
    Returns {"strength": 0.001, ...}; raises UserError for an unknown option or an unacceptable value.
    """
    source = Path(script.__file__)
    helps = _comments(source.read_text())
    parser = _Parser(source.name, description=script.__doc__, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(script, include_extras=True)
    rules = {name: _unpack(hint) for name, hint in hints.items() if name.isupper()}
    for name, (kind, check, choices, _, many) in rules.items():
        default = getattr(script, name)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = "; ".join(filter(None, [helps.get(name), check and check.words, f"default: {shown}"]))
        how = {"help": text.replace("%", "%%"), "default": default}
        if kind is bool:
            how["action"] = argparse.BooleanOptionalAction
        else:
            how |= {"type": kind, "metavar": "|".join(choices) if choices else kind.__name__.upper()}
            how |= {"nargs": "*"} if many else {}
        parser.add_argument("--" + name.lower().replace("_", "-"), **how)
    values = vars(parser.parse_args(argv))
    for name, rule in rules.items():
        if rule[4] and values[name.lower()] is not None:
            values[name.lower()] = tuple(values[name.lower()])
        _validate("--" + name.lower().replace("_", "-"), values[name.lower()], *rule)
    return values


def run(main, argv=None):
    """Call main(**options) and turn what a user can cause into one line on stderr and exit code 2."""
    script = sys.modules[main.__module__]
    try:
        main(**parse_options(script, sys.argv[1:] if argv is None else argv))
        return
    except UserError as error:
        line, code = str(error), 2
    except KeyboardInterrupt:
        line, code = "interrupted; the same command goes on from the last checkpoint", 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        line, code = f"cannot write {error.filename or 'a result'}: {error.strerror}", 2
    print(f"{Path(script.__file__).name}: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)


# --- seeds and device ---------------------------------------------------------------------


def stream_seed(seed, purpose):
    """The 63-bit seed of the random stream with this name; streams of different names are independent."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little") >> 1


def generator(seed, purpose):
    """A CPU torch.Generator for one purpose. Draws are made on the CPU, so that every device sees the same."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose))


@contextlib.contextmanager
def seeded(seed, purpose):
    """Within the block, torch's global generator (which initialises layers) is the named stream."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, purpose))
        yield


def pick_device(name):
    """torch.device for a --device option; "auto" takes cuda, then mps, then the CPU."""
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    if not here[name]:
        raise UserError(f"--device {name}: this machine has none; --device auto takes what is there")
    return torch.device(name)


# --- files: atomic writes and checkpoints -------------------------------------------------


def write_atomically(path, data):
    """Write bytes or text so that path holds either the old content or the new one, also after a crash."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error


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
        raise UserError(f"no checkpoint at {path}; train.py makes one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged and foreign files
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
            raise UserError(f"{path} is refused: it is no plain checkpoint, and what else it holds could run "
                            "code") from None
        raise UserError(f"{path} cannot be read as a checkpoint: truncated, or another kind of file") from None
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} is no checkpoint of this project: it holds no named tensors")
    return state


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


# --- a run folder -------------------------------------------------------------------------


class RunFolder:
    """runs/NAME with options.json, log.jsonl, ckpt/{best,last}.pt and tensorboard/, held within a `with` block.

    Options equal to those it was made with: the run is resumed or reused. Others: UserError with the difference.
    """

    def __init__(self, path, options):
        self.path = Path(path)
        self.best, self.last, self.log = (self.path / name for name in ("ckpt/best.pt", "ckpt/last.pt", "log.jsonl"))
        try:
            (self.path / "ckpt").mkdir(parents=True, exist_ok=True)
            self._held = os.open(self.path, os.O_RDONLY)  # freed by the system, however the process ends
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path} is in use by another run") from None
        except OSError as error:
            raise UserError(f"cannot use {self.path} as a run folder: {error.strerror}") from None
        options = json.loads(json.dumps(options))
        file = self.path / "options.json"
        if not file.exists():
            write_atomically(file, json.dumps(options, indent=1) + "\n")
        made = read_json(file)
        for name in sorted(made.keys() | options):
            if made.get(name) != options.get(name):
                raise UserError(f"{self.path} was made with {name}={made.get(name)}, not {options.get(name)}; "
                                "name another --run or delete the folder")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._held)  # another run may use the folder now

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
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    try:
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


class Records:
    """The measurements of one script, one JSON line each in FOLDER/metrics.jsonl.

    Lines of the same options, arm, split, metric, seed and setting are replaced, all others are kept.
    """

    FILE = "metrics.jsonl"
    IDENTITY = ("experiment", "arm", "split", "metric", "seed", "setting", "options")

    def __init__(self, folder, experiment, options, device):
        self.path = Path(folder) / self.FILE
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

    def save(self):
        """Write the rows to disk, beside the earlier ones of other options, and return them."""
        identity = lambda row: json.dumps([row[field] for field in self.IDENTITY], sort_keys=True)
        rows = {identity(row): row for row in read_lines(self.path) + self.rows}
        write_atomically(self.path, "".join(map(json_line, rows.values())))
        return self.rows

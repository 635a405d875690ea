"""The ground of every script: options from its constants, user errors in one line, named seeds, the device.

It knows nothing of images or models. A script declares its options as UPPER_CASE constants and ends with
`experiment.run(main)`; everything below `main` takes plain keyword arguments.
"""

import argparse
import contextlib
import errno
import functools
import hashlib
import math
import re
import sys
import time
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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
Finite = Annotated[float, Check(math.isfinite, "a finite number")]
Fraction = Annotated[float, Check(lambda v: 0 < v <= 1, "a number above 0 and at most 1")]
Count = Annotated[int, Check(lambda v: v >= 1, "a whole number of at least 1")]
Index = Annotated[int, Check(lambda v: v >= 0, "a whole number of at least 0")]
Digit = Annotated[int, Check(lambda v: 0 <= v <= 9, "a digit, 0 to 9")]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "float32", "bfloat16"]


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (--help lists the options)")


def rule_of(hint):
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
    if many and len(set(value)) < len(value):
        raise UserError(f"{name} names something twice: {' '.join(map(str, value))}")
    for item in value if many else (value,):
        good = isinstance(item, (int, float) if kind is float else kind) and not (kind is int and item is True)
        if choices and item not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}, not {item!r}")
        if not good or (check and not check.accepts(item)):
            raise UserError(f"{name} must be {check.words if check else kind.__name__}, not {item!r}")


def _comments(source):
    """{constant: the comment on its line}, the text that --help shows."""
    return dict(re.findall(r"^([A-Z][A-Z0-9_]*)\b[^#\n]*#\s*(.*)$", source, re.MULTILINE))


def _name(script):
    """What a script is called in its help and its errors: train.py, cgn.train."""
    module = script.__spec__.name if script.__spec__ else ""
    return module if "." in module else Path(script.__file__).name


def parse_options(script, argv):
    """Options of a script (a module): its annotated UPPER_CASE constants, overridden by argv.

    STRENGTH: Positive = 0.001  # a reason      becomes      --strength, default 0.001, help "a reason".
    Returns {"strength": 0.001, ...}; raises UserError for an unknown option or an unacceptable value.
    """
    source = Path(script.__file__)
    helps = _comments(source.read_text())
    parser = _Parser(_name(script), description=script.__doc__, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(script, include_extras=True)
    rules = {name: rule_of(hint) for name, hint in hints.items() if name.isupper()}
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
    argv = [re.sub("^--[^=]*", lambda name: name[0].replace("_", "-"), word) for word in argv]  # --reg_coeff, too
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
        line, code = "interrupted; what was saved is kept", 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        line, code = f"cannot read or write {error.filename or 'a result'}: {error.strerror}", 2
    print(f"{_name(script)}: {' '.join(line.split())}", file=sys.stderr)
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
    """Within the block, torch's global generators (which initialise layers and drop out) are the named stream."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream_seed(seed, purpose))
        yield


def pick_device(name):
    """torch.device for a --device option; "auto" takes cuda, then mps, then the CPU."""
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if here[kind])
    if not here[name]:
        raise UserError(f"--device {name}: this machine has none; --device auto takes what is there")
    return torch.device(name)


def precise(device, precision, small=False):
    """The dtype of --precision: "auto" takes bfloat16 where the processor or GPU multiplies in it, else float32.

    small: whether the layers are so small that a processor needs matrix units (AMX) to gain; with AVX-512 alone they
    were measured to be as fast in float32.
    """
    if precision == "auto":
        here = {"cuda": torch.cuda.is_bf16_supported, "cpu": torch.ops.mkldnn._is_mkldnn_bf16_supported}
        good = device.type in here and here[device.type]()
        if small and device.type == "cpu":
            known = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
            good = good and known.get("amx_bf16", False)
        precision = "bfloat16" if good else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def autocast(device, dtype):
    """A context in which networks run in dtype; weights, and whatever is computed outside, stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)


def in_precision(device, precision, small=False):
    """What makes the context in which networks run in the dtype of --precision; see `precise` for small."""
    return functools.partial(autocast, device, precise(device, precision, small))


def synchronize(device):
    """Wait for what was sent to the device, so that a clock read now counts it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(side, device):
    """(seconds that side() takes until the device has done with it, what it returns)."""
    synchronize(device)
    started = time.perf_counter()
    result = side()
    synchronize(device)
    return time.perf_counter() - started, result


def in_turn(sides, repeats, device):
    """What `seconds` gives of each side, `repeats` times one after the other, so that all see the same machine."""
    return [tuple(seconds(side, device) for side in sides) for _ in range(repeats)]


class Terms:
    """Loss terms since the last line of a log, summed on the device: nothing waits for it in between."""

    def __init__(self):
        self.sums, self.bad = {}, {}

    def add(self, values):
        """values: {name: scalar tensor} of one step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.bad[name] = self.bad.get(name, 0) + ~torch.isfinite(value)

    def means(self, steps, where, advice="a smaller --lr is worth a try"):
        """{name: sum over so many steps / steps}; raises UserError for a term that was not finite in one of them.

        So a step in which a term was not added counts as one in which it was 0.
        Where several were not, the one that was so most often, which is the one that was so first.
        """
        first = max(self.bad, key=lambda name: int(self.bad[name]), default=None)
        if first is not None and self.bad[first]:
            raise UserError(f"{first} was not finite in one of the last {steps} steps before {where}; the last good "
                            f"checkpoint is kept: {advice}")
        return {name: float(value) / steps for name, value in self.sums.items()}

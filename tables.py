"""From records to what a reader sees: selected values, means with 95 % intervals, Markdown tables.

Numbers in README.md and in figures come from metrics.jsonl through these functions and from nowhere else.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

from scipy.special import stdtrit

from experiment import UserError
from storage import write_atomically


class Mean(NamedTuple):
    """Mean of n values, their standard deviation, and the half width of the mean's 95 % interval (Student's t)."""

    mean: float
    std: float
    half: float
    n: int

    def __format__(self, spec):
        """Mean and half width; the half width is left out where one value is all there is."""
        return f"{self.mean:{spec}}" + (f" ± {self.half:{spec.lstrip('+')}}" if self.n > 1 else "")


def mean_of(values):
    """Mean of at least one value. A single value has no spread: std and half are nan."""
    values = [float(value) for value in values]
    n = len(values)
    if not n:
        raise UserError("a table wants a mean of no records: run the experiment first")
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(mean, math.nan, math.nan, 1)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Mean(mean, std, float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n), n)


def select(records, **wanted):
    """The records whose fields, or whose setting's entries, have the wanted values."""
    return [record for record in records
            if all((record | record["setting"]).get(name) == want for name, want in wanted.items())]


def values(records, key="seed", **wanted):
    """{the record's key: its value} of the wanted records that have a value; raises UserError if two share a key."""
    found = {}
    for record in select(records, **wanted):
        name = (record | record["setting"]).get(key)
        if record["value"] is None or name is None:
            continue
        if name in found:
            raise UserError(f"two records of {wanted} for {key} {name}")
        found[name] = record["value"]
    return found


def mean(records, key="seed", **wanted):
    """Mean, over the seeds or another key, of the wanted records."""
    return mean_of(values(records, key, **wanted).values())


def differences(one, other, scale=1):
    """Those of two {key: value}, over the keys that both have."""
    return [scale * (one[name] - other[name]) for name in one if name in other]


def difference(one, other, scale=1):
    """The Mean of one minus other over the keys that both {key: value} have; None if they share none."""
    both = differences(one, other, scale)
    return mean_of(both) if both else None


def paired(records, arm, against, key="seed", **wanted):
    """Mean, over the keys that both arms have, of arm minus against."""
    a, b = values(records, key, arm=arm, **wanted), values(records, key, arm=against, **wanted)
    return mean_of(differences(a, b))


def verdict(difference):
    """"lower", "higher" or "not distinguishable" from zero, by the 95 % interval of a Mean."""
    if abs(difference.mean) <= difference.half or math.isnan(difference.half):
        return "not distinguishable"
    return "lower" if difference.mean < 0 else "higher"


def judge(difference, claimed, numbers):
    """The end of a sentence on a published claim, from the 95 % interval of the difference that decides it.

    claimed: "lower" or "higher"; or "no higher", which a difference that cannot be told from 0 leaves standing.
    """
    found = verdict(difference)
    if found == "not distinguishable":
        words = "is not contradicted" if claimed == "no higher" else "is not decided"
    else:
        words = "holds" if found == claimed or (claimed, found) == ("no higher", "lower") else "does not hold"
    return f"{words} ({numbers})."


def bullets(sentences):
    """A Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def markdown(header, rows):
    """A Markdown table; the first column is text, the others are numbers and stand on the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


# --- README.md: generated blocks -----------------------------------------------------------------


def block(name):
    """The pattern of a generated block: everything between its two markers."""
    return re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text, blocks):
    """text with each named block's content replaced; raises UserError if a marker is missing."""
    for name, content in blocks.items():
        text, found = block(name).subn(lambda match, content=content: match[1] + content + "\n" + match[2], text)
        if found != 1:
            raise UserError(f"README.md should have the markers of {name!r} once, and has them {found} times")
    return text


def update(path, blocks):
    """Replace the generated blocks of a file; it is written only if they changed."""
    path = Path(path)
    old = path.read_text()
    new = fill(old, blocks)
    if new != old:
        write_atomically(path, new)

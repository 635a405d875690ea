"""What README promises of interruptions and mistakes, tried many times and counted.

    python reliability.py                              # every check, with these counts
    python reliability.py --checks killed --kinds vae ensemble --kills 5
    python reliability.py --checks inputs --inputs 1000 --seed 1

killed      small trainings of every kind, killed at random moments and resumed by the same command: the same bytes
inputs      command lines with one mistake: one line, exit code 2, nothing recorded, results/ and runs/ untouched
code        checkpoints that would run code when they are loaded: refused, and no code ran
full        a disk that is full, or cannot be written: one line, exit code 2, earlier results as they were
together    two processes in one run folder, or with one file of records: one is refused or waits, nothing is lost
again       the same seed again: the same bytes; with two threads: how far the weights are apart, which is no promise
crashed     a record or a log cut off in its last line, a table without its marker: nothing is lost

Prints one table, and records in results/reliability/ the share of each promise that held, with how often it was tried.
What did not hold is recorded like the rest and named on stderr; the exit code is then 1. Everything happens in a
temporary folder and on the CPU. Children note what they write to (reliability_runs.py), so that others may work here.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch

import experiment
import reliability_inputs as inputs
import reliability_runs as runs
import storage
import tables
from experiment import UserError

Check = Literal["killed", "inputs", "code", "full", "together", "again", "crashed"]

CHECKS: tuple[Check, ...] = typing.get_args(Check)  # what is tried; see above
KINDS: tuple[str, ...] = tuple(runs.TRAININGS)  # small trainings of killed, together and again
KILLS: experiment.Count = 20  # of each kind of training
INPUTS: experiment.Count = 200  # command lines with a mistake
PAIRS: experiment.Count = 10  # times that two processes meet, and that a file is cut off
SEED: experiment.Index = 0  # names the streams of moments and mistakes
RESULTS: Path = Path("results/reliability")  # where the records go

MISTAKE = "one line and exit code 2"
SAME = "same bytes"
UNTOUCHED = "results and runs untouched"
PATIENCE = 120  # seconds after which a mistake counts as unnoticed
REFUSED = "is refused|cannot be read|no checkpoint at|name a run folder"  # the last two: it was not even opened
NO_ROOM = "No space left|File too large|GB left"  # what is said of a full disk
ROOMS = (20_000, 200_000, 1_000_000)  # bytes on a small disk
FULL = ("vae", "saliency", "set")  # trainings that meet a full disk
ROWS, TRIES = 20, 5  # records that each of two processes adds; times that a kill which comes too late is tried again


class Tally:
    """How often each promise held: {(arm, split, metric): [held, tried]}. values: what was measured, not promised."""

    def __init__(self):
        self.counts, self.values, self.broken = {}, {}, []

    def add(self, arm, split, metric, held, what=""):
        """One trial; what: words for stderr if it did not hold."""
        count = self.counts.setdefault((arm, split, metric), [0, 0])
        count[0] += bool(held)
        count[1] += 1
        if not held:
            self.broken.append(f"{arm}, {split}, {metric}: {' '.join(what.split())[-400:]}")
            print(f"not held: {self.broken[-1]}", file=sys.stderr)

    def mistake(self, arm, split, ended, command="", says=""):
        """What must be true of a child that met a mistake; says: a pattern of what its line must say."""
        self.add(arm, split, MISTAKE, ended.mistake and re.search(says, ended.err),
                 f"{command} ended with {ended.code}: {ended.err}")  # fmt: skip
        self.add(arm, split, UNTOUCHED, not ended.touched, f"{command} wrote: {'; '.join(ended.touched)}")

    def record(self, records, seed):
        """Add the counts to these Records and save them, and return the rows of the table."""
        shares = {names: (held / n, n) for names, (held, n) in self.counts.items()}
        for names, (value, n) in (shares | self.values).items():
            records.add(*names, value, n, seed)
        if records.rows:
            records.save()
        return [[*names, f"{held} of {n}"] for names, (held, n) in self.counts.items()] + [
            [*names, f"{value:.1e}"] for names, (value, _) in self.values.items()]


class Wholes:
    """The small trainings run from beginning to end, each when it is first asked for."""

    def __init__(self, folder):
        self.folder, self.seconds = Path(folder), {}

    def __getitem__(self, kind):
        """The folder of a whole training."""
        if kind not in self.seconds:
            self.seconds[kind] = runs.whole(kind, self.folder / kind, self.needed(kind)).seconds
        return self.folder / kind

    def needed(self, kind):
        """{kind: folder} of the trainings that one needs."""
        return {name: self[name] for name in runs.TRAININGS[kind].needs}

    def content(self, kind):
        return runs.content(self[kind], kind)


# --- killed, again, together ---------------------------------------------------------------------------


def has_saved(folder, kind):
    """Whether a training has got as far as its first checkpoint."""
    return (runs.run_in(folder) / ("set.json" if kind == "set" else "ckpt/last.pt")).exists()


def check_killed(tally, wholes, folder, o):
    """Kill trainings at moments drawn uniformly over the whole one, and resume them."""
    for kind in o.kinds:
        want, killed = wholes.content(kind), 0
        for k, share in enumerate(runs.moments(o.seed, f"kill {kind}", TRIES * o.kills)):
            if killed == o.kills:
                break
            there = folder / f"{kind}_{k}"
            child = runs.start(kind, there, wholes.needed(kind))
            if child.kill_after(share * wholes.seconds[kind]):
                killed += 1
                split = f"killed {'after' if has_saved(there, kind) else 'before'} the first checkpoint"
                resumed(tally, kind, split, there, wholes.needed(kind), want)
            else:  # it was faster than the whole one
                wholes.seconds[kind] = min(wholes.seconds[kind], child.seconds)
            shutil.rmtree(there)
        if killed < o.kills:
            print(f"{kind}: only {killed} of {o.kills} kills came before the end", file=sys.stderr)


def resumed(tally, kind, split, folder, made, want, arm=None):
    """Run the same command to its end and compare what is there then with what should be."""
    ended = runs.start(kind, folder, made).end()
    found = runs.content(folder, kind) if ended.code == 0 else {}
    differs = [name for name in want if found.get(name) != want[name]]
    tally.add(arm or kind, split, SAME, not differs and found.keys() == want.keys(),
              f"ended with {ended.code}; {', '.join(differs)} differ; {ended.err}")


def check_again(tally, wholes, folder, o):
    """The same seed twice, and on two threads."""
    for kind in o.kinds:
        made = wholes.needed(kind)
        resumed(tally, kind, "same seed again", folder / kind, made, wholes.content(kind))
        if kind != "set":
            there = folder / f"{kind}_threads"
            runs.whole(kind, there, made, threads=2)
            names = kind, "one and two threads", "largest relative difference"
            tally.values[names] = runs.distance(wholes[kind], there), 1


def check_together(tally, wholes, folder, o):
    """Two processes of one training, the second of which starts while the first is at work; two that add records."""
    for number, share in enumerate(runs.moments(o.seed, "second process", o.pairs)):
        kind = o.kinds[number % len(o.kinds)]
        want, made, there = wholes.content(kind), wholes.needed(kind), folder / f"{kind}_{number}"
        first = runs.start(kind, there, made)
        first.process.join(share * wholes.seconds[kind])
        ends = [runs.start(kind, there, made, outputs=there / "second").end(), first.end()]
        good = all(end.code == 0 or (end.mistake and "in use" in end.err) for end in ends)
        tally.add("two trainings", "one run folder", "one is refused or waits", good and 0 in [e.code for e in ends],
                  f"{kind}: " + "; ".join(f"{end.code} {end.err}" for end in ends))  # fmt: skip
        tally.add("two trainings", "one run folder", SAME, runs.content(there, kind) == want, kind)
    for number in range(o.pairs):
        there = folder / f"records_{number}"
        runs.add_together(there, ROWS)
        lines = storage.read_lines(there / storage.Records.FILE)
        names = {(line["arm"], line["split"]) for line in lines}
        tally.add("two processes", "one file of records", "nothing lost", len(names) == len(lines) == 2 * ROWS)


# --- mistakes ---------------------------------------------------------------------------------------------


def check_inputs(tally, wholes, folder, o):
    """Command lines with one mistake in each."""
    for number, (script, words, what) in enumerate(inputs.commands(o.inputs, o.seed, folder)):
        ended = runs.run(script, words, folder / f"line {number}", PATIENCE, settings=runs.FEW)
        command, what = f"{what}: {script} {' '.join(words)}", what.partition(":")[0]
        tally.mistake("a mistake", what, ended, command)
        left = list((folder / f"line {number}").rglob("metrics*.jsonl"))
        tally.add("a mistake", what, "nothing recorded", not left, f"{command} left {left}")


def check_code(tally, wholes, folder, o):
    """Checkpoints with code in them, in every option that loads one."""
    mark = folder / "bombs" / inputs.MARK
    for kind, path in inputs.bombs(folder / "bombs").items():
        run = inputs.run_of(path, folder / "runs" / kind)
        for number, (script, words) in enumerate((*inputs.READS, *inputs.RESUMED)):
            there = folder / f"{kind} {number}"
            given = [*inputs.small(script, there), *inputs.fill(words, path, run, {})]
            ended = runs.run(script, given, there, PATIENCE, settings=runs.FEW)
            tally.mistake("code in a checkpoint", kind, ended, f"{script} {words}", REFUSED)
            tally.add("code in a checkpoint", kind, "no code ran", not mark.exists(), f"{script} {words}")
            mark.unlink(missing_ok=True)
            (run / "options.json").unlink(missing_ok=True)  # of a training; those of the next one are others


# --- disks ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder, size):
    """Make a folder with so many bytes; gives what a child needs besides where the system mounts none for us."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and not subprocess.run(words, capture_output=True).returncode
    try:
        yield {} if mounted else {"room": size}
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder):
    """A folder that the child cannot write to; gives what makes root a user like others."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o555)
    try:
        yield {"user": runs.NOBODY} if os.geteuid() == 0 else {}
    finally:
        folder.chmod(0o755)


def check_full(tally, wholes, folder, o):
    """Trainings, sets and records on a disk that is full, and in a folder that cannot be written."""
    for kind in FULL:
        for room in ROOMS:
            fill_up(tally, kind, wholes, folder / f"{kind}_{room}", room)
        refuse_writing(tally, kind, wholes, folder / f"{kind}_read_only")
    for number in range(2):
        fill_records(tally, wholes, folder / f"records_{number}", limited=bool(number))


def fill_up(tally, kind, wholes, folder, room):
    """A training on a small disk, and then the same with what it had left, where there is room."""
    disk, more = folder / "disk", folder / "more"
    with small_disk(disk, room) as how:
        ended = runs.start(kind, disk, wholes.needed(kind), outputs=folder / "outputs", **how).end()
        shutil.copytree(disk, more)
    if ended.code:  # else there was room for all of it
        tally.mistake("disk full", kind, ended, f"{room} bytes", NO_ROOM)
        resumed(tally, kind, f"{kind}, with room again", more, wholes.needed(kind), wholes.content(kind), "disk full")


def refuse_writing(tally, kind, wholes, folder):
    """A training into a folder that may only be read, with something in it."""
    storage.write_atomically(folder / "results/metrics.jsonl", "{}\n")
    with read_only(folder) as how:
        before = runs.tree(folder)
        outputs = folder.with_name(f"{folder.name}_outputs")
        ended = runs.start(kind, folder, wholes.needed(kind), outputs=outputs, **how).end()
        tally.mistake("read-only", kind, ended, says="Permission denied|Read-only")
        tally.add("read-only", kind, "earlier results unharmed", runs.tree(folder) == before)


def fill_records(tally, wholes, folder, limited):
    """The record of a finished training where the disk has no room for it, beside an earlier one."""
    with contextlib.nullcontext({"room": 2500}) if limited else small_disk(folder / "disk", 8192) as how:
        if how and not limited:  # nothing was mounted, and in a file of 8192 bytes there is room for the record
            return
        results = folder / "disk/results"
        file, row = results / storage.Records.FILE, dict.fromkeys(storage.Records.IDENTITY, "")
        storage.write_atomically(file, before := storage.json_line(row | {"options": {}, "arm": "x" * 2000}))
        if not limited:
            (folder / "disk/filled").write_bytes(bytes(4096))
        ended = runs.run("train", [*runs.words_of("vae", wholes["vae"], {}), "--results", results], folder, **how)
        tally.mistake("disk full", "records", ended, says=NO_ROOM)
        tally.add("disk full", "records", "earlier results unharmed", file.read_text() == before)


# --- after a crash ----------------------------------------------------------------------------------------------


def check_crashed(tally, wholes, folder, o):
    """Files that a crash has cut off in their last line, and a page without the marker of a table."""
    for number, share in enumerate(runs.moments(o.seed, "cut", o.pairs)):
        there = folder / f"records_{number}"
        runs.add_rows(there, "before", 3)
        kept = cut(there / storage.Records.FILE, share)
        runs.add_rows(there, "after", 1)
        lines = (there / storage.Records.FILE).read_text().splitlines(keepends=True)
        tally.add("cut off", "a file of records", "nothing lost", lines[:-1] == kept and len(lines) == len(kept) + 1)
        run = folder / f"log_{number}"
        shutil.copytree(runs.run_in(wholes["vae"]), runs.run_in(run))
        cut(runs.run_in(run) / "log.jsonl", share)
        resumed(tally, "vae", "the log of a training", run, {}, wholes.content("vae"), "cut off")
    missing_marker(tally, folder)


def cut(path, share):
    """Cut a file off in its last line, at this share of it; returns the lines before."""
    *kept, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept) + last[: int(share * len(last))])
    return kept


def missing_marker(tally, folder):
    """README.md without one of its markers, the first, the middle and the last of them."""
    text = (experiment.ROOT / "README.md").read_text()
    names = re.findall(r"<!-- (?!end)(.+?) -->\n", text)
    for name in dict.fromkeys([names[0], names[len(names) // 2], names[-1]]):
        page = folder / "README.md"
        page.write_text(before := text.replace(f"<!-- {name} -->\n", ""))
        ended = runs.run("reproduce", ["--only-tables"], folder / "tables", settings={"reproduce.README": page})
        tally.mistake("a marker is missing", "README.md", ended, says="should have the markers of")
        tally.add("a marker is missing", "README.md", "nothing lost", page.read_text() == before)


CHECK_OF = {"killed": check_killed, "inputs": check_inputs, "code": check_code, "full": check_full,
            "together": check_together, "again": check_again, "crashed": check_crashed}  # fmt: skip


def main(checks, kinds, kills, inputs, pairs, seed, results):
    for name, given in (("checks", checks), ("kinds", kinds)):
        if not given:
            raise UserError(f"--{name} names nothing to try")
    for kind in kinds:
        storage.one_of(runs.TRAININGS, "small training", kind)
    options = {"kinds": kinds, "kills": kills, "inputs": inputs, "pairs": pairs, "seed": seed}
    rows, broken = [], 0
    with tempfile.TemporaryDirectory(prefix="reliability_") as folder:
        (folder := Path(folder)).chmod(0o755)  # for a child that is not root
        wholes = Wholes(folder / "whole")
        for name in checks:
            (folder / name).mkdir()
            tally = Tally()  # a folder that cannot be written fails in the next line, before anything is tried
            records = storage.Records(results, "reliability", {"checks": (name,)} | options, torch.device("cpu"))
            CHECK_OF[name](tally, wholes, folder / name, SimpleNamespace(**options))
            rows += tally.record(records, seed)  # whole checks only: reproduce.py takes what is recorded for done
            broken += len(tally.broken)
    print(tables.markdown(["tried", "on", "promise", "held"], rows))
    if broken:
        print(f"reliability.py: {broken} times a promise did not hold: see above", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    experiment.run(main)

"""From records to the rows of the gallery: repetitions put together, and the command behind each row.

    read(FOLDER)        every record under FOLDER but for its quick/, with the file that it is in
    groups(records)     records that differ only in the seed, or in the sample that was measured, as one Group
    command_of(record)  the command that measures it again

Rows that nobody can tell apart by arm, split, metric and setting get the options that tell them apart: `telling`.
"""

import functools
import importlib
import json
import re
import shlex
import typing
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import experiment
import recipes
import steps
import storage
import tables
from experiment import UserError

FIELDS = ("experiment", "arm", "split", "metric", "value", "n", "seed", "setting", "options", "commit", "versions",
          "device")  # what the gallery needs of a record
REPEATED = ("sample", "retrained")  # entries of a setting that number repetitions, as seeds do
PLACES = ("seed", "results", "device", "workers")  # options that change nothing but the repetition and the place
UNREAD = ("quick", "kept")  # folders of results that are not committed
SCRIPTS = {"helix": "latent_counterfactuals", "one image": "latent_counterfactuals"}  # experiments of other names
DIGEST = re.compile(r"[0-9a-f]{32}")  # of weights: it follows from the options
HALF = " half"  # ends a metric that is half a 95 % interval of another one
LEADING = ("variant", "dataset", "data", "textures", "generator", "run")  # options that tell a reader most


@dataclass
class Group:
    """Repetitions of one measurement. values: {(seed, *repeated entries): value or None}; first: its first record."""

    first: dict
    setting: dict
    values: dict = field(default_factory=dict)
    records: list = field(default_factory=list)
    half: float | None = None  # as recorded, of a single value that is a mean over images

    def several(self, name):
        """The different values of a field of its records, in order."""
        return list(dict.fromkeys(record[name] for record in self.records))

    def mean(self):
        """(mean, half a 95 % interval or None) over the repetitions that have a value; (None, None) if none has."""
        known = [value for value in self.values.values() if value is not None]
        if not known:
            return None, None
        mean = tables.mean_of(known)
        return mean.mean, self.half if mean.n == 1 else mean.half

    def repetitions(self):
        """The seeds of its values, and the number of samples where there are several: "0", "5, 10, 100", "0–9"."""
        known = [unit for unit, value in self.values.items() if value is not None] or list(self.values)
        samples = f" ({len(known)} samples)" if len({unit[1:] for unit in known}) > 1 else ""
        return ranges(sorted({unit[0] for unit in known})) + samples


# --- reading ---------------------------------------------------------------------------------------


def read(folder):
    """Every record under a folder; raises UserError, naming the file, if there is none or if one is damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of records: python reproduce.py makes them")
    found = []
    for path in sorted(folder.glob("**/metrics*.jsonl")):
        if not set(path.relative_to(folder).parts) & set(UNREAD):
            found += [checked(record, path) | {"file": path} for record in storage.read_lines(path)]
    if not found:
        raise UserError(f"{folder} holds no records, no metrics*.jsonl: python reproduce.py makes them")
    return found


def checked(record, path):
    """The record itself; raises UserError if it lacks something or its value is no number."""
    missing = [name for name in FIELDS if name not in record] if isinstance(record, dict) else FIELDS
    if missing:
        raise UserError(f"{path} holds a record without {missing[0]}: restore the file or delete it")
    kinds = {"value": (int, float, type(None)), "seed": int, "setting": dict, "options": dict}
    for name, kind in kinds.items():
        if not isinstance(record[name], kind):
            raise UserError(f"{path} holds a record whose {name} is {record[name]!r}: restore the file or delete it")
    return record


# --- grouping ----------------------------------------------------------------------------------------


def groups(records):
    """Records as Groups, in their order; of one seed, the second in a group starts another one."""
    found = {}
    for record in records:
        seed, setting = seed_of(record), record["setting"]
        unit = (seed, *(setting.get(name) for name in REPEATED))
        kept = {name: value for name, value in setting.items() if name not in REPEATED}
        copies = found.setdefault(key_of(record, record["metric"], kept), [])
        group = next((group for group in copies if unit not in group.values), None)
        if group is None:
            group = Group(record, kept)
            copies.append(group)
        group.values[unit] = record["value"]
        group.records.append(record)
        if record["seed"] < group.first["seed"]:
            group.first = record
    return with_halves([group for copies in found.values() for group in copies])


def key_of(record, metric, setting):
    """What repetitions of a measurement share, as a text; metric: the record's own, or another one beside it."""
    return json.dumps([str(record["file"].parent), record["experiment"], record["arm"], record["split"], metric,
                       setting, common(record)], sort_keys=True)  # fmt: skip


def seed_of(record):
    """The seed that numbers a repetition: where a trained network is measured, that of its training."""
    trained = record["options"].get("trained")
    return trained["seed"] if isinstance(trained, dict) and "seed" in trained else record["seed"]


def common(record):
    """The options that repetitions share: no seed, no digest of weights, and the seed's number out of names."""
    options = record["options"]
    if record["experiment"] == "train":  # a training's own folder is a place
        options = {name: value for name, value in options.items() if name != "run"}
    return _common(json.dumps(options), record["seed"], seed_of(record))


@functools.cache
def _common(options, *seeds):
    ending = re.compile(rf"_seed({'|'.join(map(str, seeds))})$")

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items() if name not in PLACES and not is_digest(part)}
        if isinstance(value, str):
            return ending.sub("", value.rsplit("/", 1)[-1] if value.startswith("runs/") else value)
        return value

    return plain(json.loads(options))


def is_digest(value):
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def with_halves(found):
    """Groups with the records of half intervals, metric "x half", folded into those that they belong to."""
    place = lambda group, metric: key_of(group.first, metric, group.setting)
    own = {place(group, group.first["metric"]): group for group in found}
    rest = []
    for group in found:
        metric = group.first["metric"]
        base = own.get(place(group, metric.removesuffix(HALF))) if metric.endswith(HALF) else None
        if base is None or len(base.values) > 1:
            rest.append(group)
        else:
            base.half = next(iter(group.values.values()))
            base.records += group.records
    return rest


def ranges(numbers):
    """Sorted whole numbers in words: 0–9, or 5, 10, 100."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


# --- what tells rows apart ---------------------------------------------------------------------------


def flat(options, prefix=""):
    """Options of options beside them: {"trained.lr": 0.1}."""
    found = {}
    for name, value in options.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def telling(found):
    """A text for each Group: its setting, and the options without which two rows of the table look the same.

    LEADING ones are tried first. Numbers go without saying where they are the table's most frequent ones.
    """
    options = [flat(common(group.first)) for group in found]
    keys = [json.dumps([*(group.first[name] for name in ("arm", "split", "metric")), group.setting]) for group in found]
    names = dict.fromkeys([*LEADING, *(name for each in options for name in each)])
    chosen, different = [], len(set(keys))
    for name in names:
        if different == len(found):
            break
        finer = [key + json.dumps([name, each.get(name)]) for key, each in zip(keys, options, strict=True)]
        if len(set(finer)) > different:
            chosen, keys, different = [*chosen, name], finer, len(set(finer))
    usual = {name: Counter(words(each.get(name)) for each in options).most_common(1)[0][0] for name in chosen}
    said = lambda name, value: value is not None and (isinstance(value, str) or words(value) != usual[name])
    return [", ".join(f"{name.replace('_', ' ')} {words(value)}" for name, value in [
        *group.setting.items(), *((name, each[name]) for name in chosen if said(name, each.get(name)))])
        for group, each in zip(found, options, strict=True)]  # fmt: skip


def words(value):
    """An option's value as a reader sees it."""
    if isinstance(value, list):
        return "+".join(map(words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value).rsplit("/", 1)[-1]


# --- commands ----------------------------------------------------------------------------------------


@functools.cache
def defaults(script):
    """{option: its default, as a record holds it} of a script's name."""
    module = importlib.import_module(script)
    return storage.plain_options({name.lower(): getattr(module, name)
                                  for name in typing.get_type_hints(module) if name.isupper()})


def script_of(record):
    """The script that leaves such records; raises UserError if there is none."""
    name = SCRIPTS.get(record["experiment"], record["experiment"])
    return named(name, frozenset(record["options"])) or unknown(record)


def unknown(record):
    raise UserError(f"{record['file']} holds records of {record['experiment']!r}, and there is no such script")


@functools.cache
def named(name, options):
    """The script of this name, at the root or in a package, that knows most of the options; None if there is none."""
    places = [name] if "." in name else [name, f"cgn.{name}", f"robust_training.{name}"]
    there = [place for place in places if re.fullmatch(r"[\w.]+", place)
             and (experiment.ROOT / place.replace(".", "/")).with_suffix(".py").is_file()]
    return max(there, key=lambda place: len(options & defaults(place).keys()), default=None)


def implied(script, o):
    """What a script takes of its own accord where an option is not given, beside its constants."""
    module = importlib.import_module(script)
    if script == "train":
        return recipes.for_pair(o["model"], o["data"]) | {"run": recipes.run_of(o["model"], o["data"])}
    if script == "cgn.train":
        return module.DEFAULTS[o["model"]] | {"abduction": o["model"] == "cgn"}
    if script == "cgn.train_objects":
        return module.PRESETS[o["preset"]]
    if script == "robust_training.train":
        return module.resolved({name: None for name in defaults(script)} | {"dataset": o["dataset"]})
    if script == "robust_training.inpaint":
        return {"size": module.RECIPES[o["dataset"]].size, "steps": module.STEPS_OF.get(o["dataset"])}
    made = o.get("images", o.get("folder")) in (None, "objects64")
    if script in ("cgn.train_ensemble", "cgn.train_saliency") and made:  # which has a size of its own
        return {"size": o["size"], "images": o.get("images")}
    return {}


@functools.cache
def planned():
    """{last part of its name: run folder} of the runs in the plan: some records hold only the last part."""
    words = (word for step in steps.FULL.values() for word in step.arguments)
    return {Path(word).name: word for word in words if word.startswith("runs/")}


def command_of(record):
    """python SCRIPT and the options in which a record differs from the script's defaults.

    A file's name without a folder, or textures by name, are all that a record holds of published files.
    """
    script, o = script_of(record), record["options"]
    usual = defaults(script)
    taken = {name: value for name, value in storage.plain_options(implied(script, o)).items() if value is not None}
    given = {name: o[name] for name in usual if name in o and not is_digest(o[name])}
    given |= {"results": str(record["file"].parent)} if "results" in usual else {}
    if script == "cgn.train_ensemble" and isinstance(o.get("set"), dict):
        given["set"] = usual["set"] + (f"_seed{o['seed']}" if o["seed"] else "")
    given = {name: placed(value, usual[name]) for name, value in given.items()}
    flags = [word for name, value in given.items() if value != (usual | taken)[name]
             for word in flag(name, value, usual[name])]  # fmt: skip
    return shlex.join(["python", *steps.called(script), *flags])


def placed(value, usual):
    """A run's name as its folder, where the default is a folder."""
    bare = isinstance(value, str) and "/" not in value and "/" in str(usual)
    return planned().get(value, f"runs/{value}") if bare else value


def flag(name, value, usual):
    """An option as words of a command line; none where a record holds no more than a word for the default."""
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else "--no-" + option[2:]]
    if isinstance(value, dict) or value == "procedural" or (value is None and "/" not in str(usual)):
        return []
    if isinstance(value, list):
        return [option, *(str(part) for part in value)]
    if isinstance(value, str) and name != "results" and value.startswith(("/", "..")):
        return [option, value.rsplit("/", 1)[-1]]  # from outside: the folder is one's own
    return [option, "none" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)]

"""Command lines with one mistake in each, and files that are not what their names say, for reliability.py.

    commands(200, seed=0, folder=FOLDER)     # [(script, words, what is wrong with them)]
    bombs(FOLDER)                            # {kind: a file that would touch FOLDER/MARK, were it unpickled}

Each line is a valid small one, whose runs and results go into a folder of its own, and one mistake after it: an option
that there is not, a value of another kind or out of range, an unknown name, a file that is missing, empty, cut off,
huge, a folder or something else. What an option accepts is read from its script, so that a new option is tried as well.
"""

import importlib
import io
import pickle
import typing
from pathlib import Path

import numpy
import torch

import experiment
import storage

SCRIPTS = ("train", "ablate", "constructive_counterfactuals", "targeted_finetuning", "latent_counterfactuals", "bench",
           "datasets", "stand_ins", "public_sets", "cgn.data", "cgn.train", "cgn.generate", "cgn.classify",
           "cgn.explain", "cgn.analyse", "cgn.bench", "cgn.bench_objects", "cgn.fetch", "cgn.objects64", "cgn.dance",
           "cgn.stylise", "cgn.train_gan", "cgn.train_saliency", "cgn.train_objects", "cgn.generate_objects",
           "cgn.train_ensemble", "cgn.score_objects", "cgn.evaluate", "robust_training.digits",
           "robust_training.fetch", "robust_training.inpaint", "robust_training.train", "robust_training.bench",
           "robust_training.show", "growth")  # fmt: skip
TRAINING = ("train", "cgn.train", "cgn.train_gan", "cgn.train_saliency", "cgn.train_objects", "cgn.train_ensemble",
            "robust_training.inpaint", "robust_training.train")  # whose --run is where they write
SMALL = {"steps": 1, "epochs": 1, "n": 64, "n_validation": 32, "batch": 4}  # of a line before its mistake
MARK = "code ran"  # the file that a bomb touches

# --- files that are read: (script, words that ask for it); {file} is a file, {run} a run folder ----------
READS = (
    ("ablate", "--checkpoint {file}"), ("ablate", "--run {run}"), ("bench", "--run {run}"),
    ("constructive_counterfactuals", "--checkpoint {file}"), ("constructive_counterfactuals", "--run {run}"),
    ("targeted_finetuning", "--checkpoint {file}"), ("targeted_finetuning", "--run {run}"),
    ("targeted_finetuning", "--classifier {run}"),
    ("latent_counterfactuals", "--run {run}"), ("latent_counterfactuals", "--classifier {run}"),
    ("cgn.generate", "--checkpoint {file}"), ("cgn.generate", "--run {run}"), ("cgn.analyse", "--checkpoint {file}"),
    ("cgn.classify", "--checkpoint {file}"), ("cgn.classify", "--run {run}"), ("cgn.classify", "--on gan --gan {run}"),
    ("cgn.explain", "--classifier {file}"), ("cgn.stylise", "--run {run}"), ("cgn.dance", "--run {run}"),
    ("cgn.train_objects", "--generator {file}"), ("cgn.train_objects", "--generator {run}"),
    ("cgn.train_objects", "--saliency {file}"), ("cgn.generate_objects", "--run {run}"),
    ("cgn.generate_objects", "--run {file}"), ("cgn.score_objects", "--run {run}"),
    ("cgn.score_objects", "--target {run}"), ("cgn.score_objects", "--reader {run}"),
    ("cgn.score_objects", "--segmenter {file}"), ("cgn.score_objects", "--classifier {run}"),
    ("cgn.score_objects", "--classifier resnet18 --weights {file}"), ("cgn.analyse", "--run {run}"),
    ("cgn.train_ensemble", "--on real --backbone resnet18 --weights {file}"), ("cgn.evaluate", "--run {run}"),
    ("cgn.evaluate", "--classifier resnet18 --weights {file}"),
    ("robust_training.train", "--backbone bit --weights {file}"),
    ("robust_training.train", "--inpaint cagan --inpainter {run}"),
)  # fmt: skip
RESUMED = tuple((script, "--run {run}" + " --on real" * (script == "cgn.train_ensemble"))  # without a set of its own
                for script in TRAINING)  # whose last.pt is read, to go on from it
OTHERS = (  # what is read besides, or written: a mistake whatever the file
    ("train", "--run {text}"), ("cgn.train", "--run {text}/run"), ("cgn.train_gan", "--folder {empty}"),
    ("cgn.train_saliency", "--images {folder} --masks {folder}"), ("cgn.train_saliency", "--images {folder}"),
    ("cgn.train_ensemble", "--set {folder}"), ("cgn.train_ensemble", "--on real --folder {folder}"),
    ("cgn.train", "--variant wildlife --textures {folder}"), ("cgn.train", "--variant wildlife --textures {text}"),
    ("cgn.generate", "--variant wildlife --textures {missing}"), ("cgn.classify", "--on set --set {missing}"),
    ("cgn.data", "--textures {folder}"), ("cgn.dance", "--sound {text}"), ("cgn.dance", "--sound {empty}"),
    ("cgn.stylise", "--image {text}"), ("cgn.stylise", "--image {folder}"), ("cgn.evaluate", "--val {folder}"),
    ("latent_counterfactuals", "--image {text}"), ("latent_counterfactuals", "--image {missing}"),
    ("robust_training.train", "--dataset wb --root {folder}"), ("robust_training.train", "--dataset in9 --root {text}"),
    ("robust_training.inpaint", "--dataset cct --data {folder}"), ("robust_training.show", "--runs {folder}"),
    ("ablate", "--results {text}"), ("cgn.generate", "--results {text}/x"), ("bench", "--results {text}"),
)  # fmt: skip
CONTRADICTIONS = (
    ("train", "--n 10000000"), ("train", "--model realnvp --held-out 0"),
    ("train", "--attribute Bald"), ("train", "--data celeba"), ("train", "--model counting_unet"),
    ("ablate", "--samples 100000"), ("ablate", "--fraction 1e-9"), ("ablate", "--against retrain --checkpoint {text}"),
    ("constructive_counterfactuals", "--digit 5"), ("constructive_counterfactuals", "--anchors 100000"),
    ("targeted_finetuning", "--sizes"), ("targeted_finetuning", "--test 10000000"),
    ("targeted_finetuning", "--digit 7"), ("cgn.train", "--edge 1"), ("cgn.train", "--variant wild"),
    ("cgn.train", "--shape-adversary 0 --texture-adversary 0 --entropy 0 --texture 0"),
    ("cgn.train_objects", "--preset paper"), ("cgn.train_gan", "--config biggan-deep-128"),
    ("cgn.train_ensemble", "--ratio 0.0001"), ("cgn.train_ensemble", "--on independent --folder {folder}"),
    ("cgn.generate_objects", "--shard 3"), ("robust_training.train", "--label-smoothing 1"),
    ("robust_training.train", "--group-dro 0.1 --mixup 1"), ("robust_training.train", "--reg gs"),
    ("robust_training.inpaint", "--size 63"), ("robust_training.inpaint", "--size 128"),
)  # fmt: skip

# --- values that an option refuses ---------------------------------------------------------------------
NO_INTEGERS = ("x", "", "1.5", "nan", "inf", "1e3", "ünï", "0x10")
NO_NUMBERS = ("x", "", "1,5", "ünï", "1.2.3")
NUMBERS = ("nan", "inf", "-inf", "-1", "0", "2", "11", "1e400")  # of which an option's check refuses some
NO_NAMES = ("nosuch", "ünï€", "../x", "", "0")
NAMED = {"model", "data", "dataset", "variant", "config", "backbone"}  # texts that name something in a registry
NO_OPTIONS = ("--nosuch", "--nosuch=1", "--ünï", "extra", "-x", "--no-nosuch")


def of_option(name, rule):
    """Words that give an option a value which it refuses: of another kind, out of range, none of its choices."""
    kind, check, choices, _, many = rule
    flag = "--" + name.lower().replace("_", "-")
    if kind is bool:
        return [[f"{flag}=1"], [f"{flag}="]]
    if choices:
        values = tuple(text for text in NO_NAMES if text not in choices)
    elif kind in (int, float):
        values = NO_INTEGERS if kind is int else NO_NUMBERS
        if check:
            values += tuple(text for text in NUMBERS if _refused(kind, check, text))
    else:
        values = ()
    found = [[f"{flag}={text}"] for text in values] if not many else [[flag, text] for text in values]
    return found + [[flag]] * (not many)


def _refused(kind, check, text):
    try:
        return not check.accepts(kind(text))
    except (ValueError, OverflowError):
        return True


def rules_of(script):
    """{option: what it accepts} of a script."""
    hints = typing.get_type_hints(importlib.import_module(script), include_extras=True)
    return {name: experiment.rule_of(hint) for name, hint in hints.items() if name.isupper()}


def of_options(script):
    """All words with which an option of a script is given wrongly, as its parser knows."""
    values = [words for name, rule in rules_of(script).items() for words in of_option(name, rule)]
    return [[words] for words in NO_OPTIONS] + values


def of_names(script):
    """All words that name something which is in no registry."""
    flags = ["--" + name.lower() for name, rule in rules_of(script).items()
             if rule[0] is str and not rule[2] and name.lower() in NAMED]  # fmt: skip
    return [[f"{flag}={text}"] for flag in flags for text in NO_NAMES[:3]]


def small(script, folder):
    """Words that make a line of a script small, and its runs and results go into a folder."""
    there = {name.lower() for name in rules_of(script)}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name in there]
    places = ["results", "out", "write", *(["run"] if script in TRAINING else [])]
    return words + [f"--{name}={folder / name}" for name in places if name in there]


# --- files that are not what they should be --------------------------------------------------------------


def bad_files(folder):
    """{kind: path} of files that are no checkpoints, pictures or sounds; made once."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"model": {"weight": torch.arange(5000.0)}}, buffer)
    contents = {"empty": b"", "text": b"hello\n", "zeros": bytes(3000), "cut": buffer.getvalue()[:9000],
                "json": b'{"model": {}}', "ünï€": b"\xff\xfe" * 500}  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with open(folder / "huge", "wb") as file:
        file.truncate(2**28)
    storage.save_checkpoint(folder / "foreign", {"architecture": {"name": "nosuch", "settings": {}},
                                                 "model": {"weight": torch.ones(3)}})  # fmt: skip
    storage.save_checkpoint(folder / "settings", {"architecture": {"name": "vae", "settings": {"foo": 1}},
                                                  "model": {"weight": torch.ones(3)}})  # fmt: skip
    torch.save(torch.ones(3), folder / "tensor")
    (folder / "folder").mkdir(exist_ok=True)
    return {name: folder / name for name in (*contents, "huge", "foreign", "settings", "tensor", "folder", "missing")}


class Bomb:
    """An object whose pickle touches a file when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def bombs(folder):
    """{kind: path} of files that would touch folder/MARK if a pickle in them were loaded."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bomb = Bomb(folder / MARK)
    (folder / "pickle.pt").write_bytes(pickle.dumps(bomb))
    (folder / "pickle in a dict.pt").write_bytes(pickle.dumps({"model": {"weight": bomb}}))
    torch.save({"model": bomb, "weight": torch.ones(3)}, folder / "torch.pt")
    torch.save({"model": {"weight": bomb}}, folder / "older torch.pt", _use_new_zipfile_serialization=False)
    torch.save({"architecture": {"name": "vae", "settings": {}}, "options": {"seed": bomb},
                "model": {"weight": torch.ones(3)}}, folder / "options.pt")  # fmt: skip
    numpy.savez(folder / "array.npz", weight=numpy.array([bomb], dtype=object))
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".pt", ".npz")}


def run_of(file, folder):
    """A run folder whose checkpoints are links to a file, or to nothing."""
    checkpoints = Path(folder) / "ckpt"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for name in ("best.pt", "last.pt"):
        link = checkpoints / name
        if not link.is_symlink():
            link.symlink_to(file)
    return Path(folder)


def fill(words, file, run, files):
    """The words of READS and others as a list, with the paths in them."""
    return [word.format(file=file, run=run, **files) for word in words.split()]


# --- the lines ---------------------------------------------------------------------------------------------


def commands(n, seed, folder):
    """n lines (script, words, what is wrong): half of them a wrong option, the others a wrong file or value.

    Which ones is drawn from a stream of the seed, without repeating any before all of its kind were there.
    """
    folder, draw = Path(folder), numpy.random.default_rng(experiment.stream_seed(seed, "bad inputs"))
    files = bad_files(folder / "files")
    options = [(script, words, "option") for script in SCRIPTS for words in of_options(script)]
    read = [(script, fill(words, path, run_of(path, folder / "runs" / kind), files), f"file: {kind}")
            for script, words in READS for kind, path in files.items()]  # fmt: skip
    read += [(script, fill(words, "", "", files), "file: other") for script, words in OTHERS]
    wrong = [(script, fill(words, "", "", files), "values that do not go together") for script, words in CONTRADICTIONS]
    wrong += [(script, words, "unknown name") for script in SCRIPTS for words in of_names(script)]
    kinds = [[kind[k] for k in draw.permutation(len(kind))] for kind in (options, read, wrong)]
    found = []
    for k in range(n):
        kind = kinds[(0, 1, 0, 2)[k % 4]]
        script, words, what = kind[k // (2 if kind is kinds[0] else 4) % len(kind)]
        found.append((script, [*small(script, folder / f"line {k}"), *words], what))
    return found

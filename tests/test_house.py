"""The house: who imports whom, how long files and functions are, that importing a script runs nothing."""

import ast
import importlib
import inspect
import re
import subprocess
import typing

import pytest
from conftest import ROOT, shell

import reliability_inputs

FLOORS = [
    {"experiment"},
    {"storage"},
    {"flows", "gans", "trainer", "downloads"},
    {"datasets", "architecture", "classifiers", "metrics", "figures", "tables", "per_sample", "search",
     "textures", "backbones"},
    {"stand_ins", "counterfactual_metrics", "helix"},
    {"public_sets"},
    {"catalogue"},
    {"recipes", "tasks"},
    {"train"},
    {"ablate", "finetuning_report", "counterfactual_study", "counterfactual_report"},
    {"selection"},
    {"constructive_counterfactuals", "targeted_finetuning", "latent_counterfactuals"},
    {"cgn.mechanisms", "cgn.classifiers", "cgn.sets", "cgn.sound", "cgn.fetch", "cgn.silhouettes"},
    {"cgn.data", "cgn.objects64", "cgn.folders", "cgn.imagenet", "cgn.biggan"},
    {"cgn.losses", "cgn.abduction", "cgn.readers", "cgn.discriminator"},
    {"cgn.games", "cgn.u2net", "cgn.scores"},
    {"cgn.objects", "cgn.ensemble"},
    {"cgn.train", "cgn.train_gan", "cgn.train_saliency", "cgn.train_objects"},
    {"cgn.generate", "cgn.dance"},
    {"cgn.generate_objects", "cgn.stylise"},
    {"cgn.train_ensemble", "cgn.score_objects"},
    {"cgn.classify", "cgn.explain", "cgn.analyse", "cgn.bench", "cgn.evaluate"},
    {"cgn.plan", "cgn.bench_objects"},
    {"cgn.report", "cgn.plan_objects"},
    {"cgn.report_objects"},
    {"robust_training.batch", "robust_training.measure", "robust_training.losses"},
    {"robust_training.augment", "robust_training.saliency", "robust_training.formats", "robust_training.photos",
     "robust_training.digits"},
    {"robust_training.data", "robust_training.objective", "robust_training.inpainter", "robust_training.fetch"},
    {"robust_training.inpaint", "robust_training.evaluate"},
    {"robust_training.fitting"},
    {"robust_training.train", "robust_training.bench"},
    {"robust_training.plan"},
    {"robust_training.report"},
    {"robust_training.show"},
    {"bench", "steps", "speed_report", "published_numbers", "demo_actions"},
    {"growth"},
    {"gallery_records", "gallery_page"},
    {"gallery"},
    {"reproduce", "demo", "reliability_inputs", "reliability_runs"},
    {"reliability"},
]
HEIGHT = {name: level for level, names in enumerate(FLOORS) for name in names}
SCRIPTS = ["datasets", "stand_ins", "public_sets", "train", "ablate", "constructive_counterfactuals",
           "targeted_finetuning", "latent_counterfactuals", "cgn.data", "cgn.train", "cgn.generate", "cgn.classify",
           "cgn.explain", "cgn.analyse", "cgn.bench", "cgn.bench_objects", "cgn.fetch", "cgn.objects64", "cgn.dance",
           "cgn.stylise", "cgn.train_gan", "cgn.train_saliency", "cgn.train_objects", "cgn.generate_objects",
           "cgn.train_ensemble", "cgn.score_objects", "cgn.evaluate", "robust_training.digits", "robust_training.fetch",
           "robust_training.inpaint", "robust_training.train", "robust_training.bench", "robust_training.show", "bench",
           "growth", "reproduce", "gallery", "demo", "reliability"]
TAKES_ALL = {"train", "robust_training.train"}  # whose main passes its options on by name
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("cgn/[!_]*.py"), *ROOT.glob("robust_training/[!_]*.py")])


def name_of(path):
    """A file's name as it is imported: train, cgn.train."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def tree(path):
    return ast.parse(path.read_text())


def test_every_file_has_its_floor():
    assert set(map(name_of, FILES)) == set(HEIGHT)
    assert len(HEIGHT) == sum(map(len, FLOORS))  # and one only


def imported(path):
    """The names of all modules of the house that a file imports, also inside of functions."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & set(HEIGHT)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_import_runs_upward_or_sideways(path):
    """Imports go to lower floors only, which rules out circles; the roof may also import what it runs."""
    for name in imported(path):
        assert HEIGHT[name] < HEIGHT[name_of(path)], f"{path} imports {name}"


def test_the_table_of_files_in_the_readme_has_them_in_this_order():
    """An import goes to a line above, or stays within its line; every file has one line."""
    text = (ROOT / "README.md").read_text().partition("## What is where")[2].partition("\n## ")[0]
    lines = [re.findall(r"\]\(([\w/]+)\.py\)", line) for line in text.splitlines() if line.startswith("| [")]
    places = [(name.replace("/", "."), place) for place, names in enumerate(lines) for name in names]
    assert sorted(name for name, _ in places) == sorted(HEIGHT)
    place = dict(places)
    for path in FILES:
        for name in imported(path):
            assert place[name] <= place[name_of(path)], f"{name_of(path)} imports {name}, which stands below it"


def test_the_two_packages_do_not_import_each_other():
    for path in FILES:
        parts = {name.partition(".")[0] for name in imported(path) | {name_of(path)} if "." in name}
        assert len(parts) < 2 or path.parent == ROOT, f"{path} imports the other package"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short_and_say_what_they_do(path):
    assert len(path.read_text().splitlines()) <= 400
    module = tree(path)
    assert ast.get_docstring(module)
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_constants_are_the_parameters_of_main(name):
    module = importlib.import_module(name)
    constants = {key.lower() for key in typing.get_type_hints(module, include_extras=True) if key.isupper()}
    parameters = inspect.signature(module.main).parameters
    named = {key for key, value in parameters.items() if value.kind is not inspect.Parameter.VAR_KEYWORD}
    assert constants == named or (name in TAKES_ALL and named < constants)


def test_mistakes_are_tried_on_every_script():
    """But on those that run others, or show what they have left."""
    assert {*reliability_inputs.SCRIPTS} == {*SCRIPTS} - {"reproduce", "gallery", "demo", "reliability"}


def test_every_constant_says_why_on_its_line():
    for name in SCRIPTS:
        for line in (ROOT / f"{name.replace('.', '/')}.py").read_text().splitlines():
            if re.match(r"[A-Z][A-Z0-9_]*: .* = ", line):
                assert re.search(r"  # \S", line), f"{name}: {line}"


def test_importing_the_scripts_prints_and_writes_nothing(tmp_path):
    there = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.chdir({str(tmp_path)!r}); import "
    done = shell("-c", there + ", ".join(SCRIPTS))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    return [ROOT / name for name in listed]


def test_tracked_files_are_small_and_know_no_machine():
    files = tracked()
    if not files:
        pytest.skip("not a git checkout")
    assert max(path.stat().st_size for path in files if path.exists()) < 5_000_000
    for path in files:
        if path.suffix in {".py", ".md", ".json", ".jsonl", ".toml", ".txt"} or path.name == "Makefile":
            found = re.search(r"(?<![\w.])/(tmp|home|root|Users)/", path.read_text())
            assert not found, f"{path}: {found}"


def test_direct_dependencies_are_pinned():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines if line)

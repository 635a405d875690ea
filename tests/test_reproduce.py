"""The roof, and README.md against the records."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
import types

import pytest
from conftest import ROOT
from test_house import SCRIPTS

import experiment
import reproduce
import storage
import tables
from cgn import fetch
from experiment import UserError
from steps import Step

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["FULL", "FAST"])
def test_every_step_of_the_plan_parses(name):
    for step in getattr(reproduce, name).values():
        options = experiment.parse_options(importlib.import_module(step.script), step.arguments)
        assert step.results == str(options["results"])


def test_the_full_plan_is_the_constants_at_the_top_of_the_scripts():
    assert reproduce.FULL["constructive"].arguments == reproduce.FULL["targeted"].arguments == ()


def test_quick_results_are_kept_apart():
    for step in reproduce.FAST.values():
        assert step.results.startswith("results/quick/")
        quick = any(word.startswith("runs/quick/") for word in step.arguments)
        assert quick or step.script == "latent_counterfactuals"


def test_records_of_a_step_are_those_of_its_options(tmp_path, monkeypatch):
    import ablate

    options = experiment.parse_options(ablate, ["--seed", "1", "--results", str(tmp_path)])
    records = storage.Records(tmp_path, "ablate", options, experiment.pick_device("cpu"))
    records.add("a", "b", "mse", 1.0, 1, 0)
    records.save()
    step = Step("ablate", ("--seed", "1", "--results", str(tmp_path)), str(tmp_path))
    assert len(reproduce.records_of(step)) == 1
    assert not reproduce.records_of(step._replace(arguments=("--seed", "2", "--results", str(tmp_path))))


def test_a_step_that_is_there_is_not_done_again_and_a_failing_one_stops(tmp_path, capsys):
    step = Step("ablate", ("--run", "nosuch", "--results", str(tmp_path)), str(tmp_path))
    with pytest.raises(UserError, match=r"python ablate.py --run nosuch .* failed"):
        reproduce.carry_out("x", {"x": step}, again=False)
    options = experiment.parse_options(importlib.import_module("ablate"), step.arguments)
    records = storage.Records(tmp_path, "ablate", options, experiment.pick_device("cpu"))
    records.add("a", "b", "mse", 1.0, 1, 0)
    records.save()
    reproduce.carry_out("x", {"x": step}, again=False)
    assert "already in" in capsys.readouterr().err


def test_to_measure_again_takes_nothing_from_a_killed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "subprocess", types.SimpleNamespace(DEVNULL=None, run=lambda *_, **__: Done))
    (tmp_path / "kept").mkdir()
    for name in ("partial.jsonl", "kept/pixel.pt", "metrics.jsonl"):
        (tmp_path / name).write_text("")
    step = Step("ablate", ("--results", str(tmp_path)), str(tmp_path))
    reproduce.carry_out("x", {"x": step}, again=False)
    assert len([*tmp_path.iterdir()]) == 3
    reproduce.carry_out("x", {"x": step}, again=True)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_training_is_always_called_unless_nobody_needs_it_any_more(tmp_path, capsys, monkeypatch):
    called = []
    fake = types.SimpleNamespace(DEVNULL=None, run=lambda command, **_: called.append(command[1]) or Done)
    monkeypatch.setattr(reproduce, "subprocess", fake)
    training = Step("train", ("--results", str(tmp_path)), str(tmp_path), ("user",))
    user = Step("ablate", ("--results", str(tmp_path)), str(tmp_path))
    reproduce.carry_out("vae", {"vae": training, "user": user}, again=False)
    assert called == ["train.py"]
    options = experiment.parse_options(importlib.import_module("ablate"), user.arguments)
    records = storage.Records(tmp_path, "ablate", options, experiment.pick_device("cpu"))
    records.add("a", "b", "mse", 1.0, 1, 0)
    records.save()
    reproduce.carry_out("vae", {"vae": training, "user": user}, again=False)
    assert called == ["train.py"]
    assert "already in" in capsys.readouterr().err
    reproduce.carry_out("vae", {"vae": training._replace(needed_by=())}, again=False)
    assert called == ["train.py", "train.py"]


class Done:
    returncode = 0


def test_missing_records_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has no records of python ablate.py --seed 9"):
        reproduce.needed(Step("ablate", ("--seed", "9"), str(tmp_path)))


def test_the_readme_is_what_the_records_say():
    """A table typed by hand, or left behind by its records, fails here."""
    assert tables.fill(README, reproduce.readme_blocks()) == README


def test_every_readme_block_is_generated():
    markers = re.findall(r"<!-- (?!end)(.*?) -->", README)
    assert sorted(markers) == sorted(reproduce.readme_blocks())


def commands(pattern=r"```(?:sh|bash)\n(.*?)```|`(python [^`]*)`"):
    blocks = ["".join(found) for found in re.findall(pattern, README, re.DOTALL)]
    return sorted({line.split("#")[0].strip() for block in blocks for line in block.splitlines() if "python " in line})


@pytest.mark.parametrize("command", commands())
def test_every_readme_command_parses(command):
    words = [word for word in shlex.split(command)[1:] if word != "-m"]
    script = importlib.import_module(words[0].removesuffix(".py"))
    assert experiment.parse_options(script, words[1:])


def options_of(script, words):
    return storage.plain_options(experiment.parse_options(importlib.import_module(script), words))


@pytest.mark.parametrize("script", ["ablate", "constructive_counterfactuals", "targeted_finetuning",
                                    "latent_counterfactuals", "bench", "growth", "reliability"])
def test_commands_to_copy_do_not_write_over_the_committed_results(script):
    """They are steps of the full plan with those very options, or write elsewhere."""
    planned = [options_of(script, step.arguments) for step in reproduce.FULL.values() if step.script == script]
    for command in commands(r"```(?:sh|bash)\n(.*?)```()"):
        name, *words = shlex.split(command)[1:]
        if name == f"{script}.py":
            given = options_of(script, words)
            # the checks of reliability.py are recorded each by itself, and are a step each
            each = [given | {"checks": [check]} for check in given["checks"]] if "checks" in given else [given]
            assert given["results"].startswith("results/quick/") or all(one in planned for one in each), command


def test_readme_commands_look_for_data_where_fetch_puts_it():
    kept = {f"data/{artefact.to}" for artefact in fetch.MANIFEST.values()}
    named = {word for command in commands() for word in shlex.split(command) if word.startswith("data/")}
    wanted = {word.removesuffix("/val") for word in named if not word.startswith("data/cgn/")}
    assert "data/bg_challenge/test" in wanted
    assert wanted <= kept


BY_MAKE = {"bench", "growth", "reproduce", "gallery", "demo"}  # scripts that a target of the Makefile runs
SHEETS = {"datasets", "stand_ins", "cgn.data", "cgn.objects64"}  # that show what a data set looks like


def test_there_are_readme_commands_for_every_script():
    named = {command.replace("-m ", "").split()[1].removesuffix(".py") for command in commands()}
    assert {*SCRIPTS} - named <= BY_MAKE | SHEETS
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^\t.*\b{name}\.py", makefile, re.MULTILINE) for name in BY_MAKE)


def test_every_readme_figure_and_link_is_there():
    links = re.findall(r"\]\((?!http|#)([^)#]+)", README) + re.findall(r'src="(?!http)([^"]+)"', README)
    assert len(links) >= 3
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", README) + re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_published_numbers_have_their_rows():
    for number in ("0.04029", "0.02065", "0.01833", "0.02212", "0.02208", "0.02260"):
        assert re.search(rf"^\|.*{number}.*\|$", README, re.MULTILINE), number


def test_every_command_of_the_original_has_its_line():
    """Five attacks, eight counterfactuals."""
    rows = re.findall(r"^\| ([^|]*) \| `python latent_counterfactuals.py", README, re.MULTILINE)
    assert sum(row.startswith("attack") for row in rows) == 5
    assert len(rows) == 13


def test_records_that_name_runs_and_digests_are_found_by_the_options_of_their_command(tmp_path):
    about = {"run": "ensemble_both", "classifier": None, "weights": "a digest", "trained": {"on": "both"},
             "precision": "auto"}  # fmt: skip
    records = storage.Records(tmp_path, "evaluate", about, experiment.pick_device("cpu"))
    records.add("both, mean", "original", "top-1", 1.0, 1, 0)
    records.save()
    step = lambda run: Step("cgn.evaluate", ("--run", run, "--results", str(tmp_path)), str(tmp_path))
    assert len(reproduce.records_of(step("runs/ensemble_both"))) == 1
    assert not reproduce.records_of(step("runs/ensemble_real"))


def test_progress_counts_the_steps_and_reckons_with_those_that_were_run():
    progress = reproduce.Progress("abcd")
    assert progress.place("b") == "[2/4]"
    assert progress.left("a", 60).startswith("60 s; 3 steps left, 3 min")
    assert progress.left("b", 180).startswith("180 s; 2 steps left, 4 min")
    assert progress.left("d", 60).startswith("60 s; 0 steps left, 0 min")
    assert progress.took() == "5.0 min for 3 steps carried out here, 1 were there"


@pytest.mark.slow
def test_the_quick_setting_runs_from_nothing_in_less_than_twenty_minutes(tmp_path):
    """In a copy of what is committed, with the data that are here."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if not listed:
        pytest.skip("not a git checkout")
    for name in listed:
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "data").symlink_to(ROOT / "data")
    done = subprocess.run([sys.executable, "reproduce.py", "--quick"], cwd=tmp_path, capture_output=True, text=True,
                          timeout=20 * 60)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("Setting: quick")
    assert f" min for {len(reproduce.FAST)} steps carried out here, 0 were there" in done.stdout


def test_promises_are_counted_over_kinds_and_places():
    row = lambda arm, split, metric, value, n: {"arm": arm, "split": split, "metric": metric, "value": value, "n": n,
                                                   "options": {"checks": ["killed", "inputs"]}}  # fmt: skip
    rows = [row("vae", "killed before the first checkpoint", "same bytes", 1.0, 5),
            row("flow", "killed before the first checkpoint", "same bytes", 0.75, 4),
            row("a mistake", "option", "nothing recorded", 1.0, 100),
            row("a mistake", "file", "nothing recorded", 1.0, 50),
            row("vae", "one and two threads", "largest relative difference", 0.1, 1)]  # fmt: skip
    lines = reproduce.reliability_table(rows).splitlines()[2:]
    assert lines == ["| killed before the first checkpoint | vae, flow | same bytes | 8 of 9 |",
                     "| a mistake | option, file | nothing recorded | 150 of 150 |"]  # fmt: skip
    assert reproduce.reliability_table([]) == reproduce.report.UNMEASURED
    alone = [row | {"options": {"checks": ["inputs"]}, "value": 0.5} for row in rows[2:4]]
    fewer = [row | {"options": {"checks": ["killed"], "kills": 1}, "n": 1} for row in rows[:1]]
    again = reproduce.reliability_table(rows + alone + fewer).splitlines()[2:]
    assert again == [lines[0], "| a mistake | option, file | nothing recorded | 75 of 150 |"]

"""The trials of what README promises: that they find a broken promise, and that what they try is what they say."""

import contextlib
import importlib
import multiprocessing
import os
import pickle
import sys
import time
import types
from types import SimpleNamespace

import pytest
import torch

import experiment
import reliability
import reliability_inputs as inputs
import reliability_runs as runs
import storage
from experiment import UserError


@pytest.fixture(autouse=True)
def forks(monkeypatch):
    """Children forked from the tests themselves, which have imported torch already."""
    monkeypatch.setattr(runs, "_server", lambda: multiprocessing.get_context("fork"))


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """toy(body): a script called toy, with options --run, --results and --out, and a small training of that name."""

    def make(body):
        def main(run, results, device):
            body(run)

        source = tmp_path / "toy.py"
        source.write_text('"""A toy."""\n')
        module = types.ModuleType("toy")
        module.__file__, module.__spec__ = str(source), None
        module.RUN, module.RESULTS, module.DEVICE = tmp_path, tmp_path, "cpu"
        module.__annotations__ = {"RUN": type(tmp_path), "RESULTS": type(tmp_path), "DEVICE": experiment.Device}
        main.__module__ = "toy"
        module.main = main
        monkeypatch.setitem(sys.modules, "toy", module)
        monkeypatch.setitem(runs.TRAININGS, "toy", runs.Small("toy", ""))

    return make


def save(run, value):
    storage.save_checkpoint(run / "ckpt/best.pt", {"model": {"w": torch.tensor([float(value)])}})
    storage.write_atomically(run / "log.jsonl", storage.json_line({"step": 1, "seconds": os.getpid()}))


def starts(run):
    """How often a toy has been started, with this time."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run.parent / "starts", "a") as file:
        file.write("x")
    return (run.parent / "starts").stat().st_size


def options(**given):
    made = {"kinds": ("toy",), "kills": 1, "inputs": 1, "pairs": 1, "seed": 0}
    return SimpleNamespace(**made | given)


# --- trainings ------------------------------------------------------------------------------------------


def forgetful(run):
    """A training whose result depends on how often it was started: that is no resuming."""
    number = starts(run)
    time.sleep(2)
    save(run, number)


def steady(run):
    """One that comes to the same end."""
    starts(run)
    time.sleep(2)
    save(run, 1)


@pytest.mark.parametrize(("body", "held"), [(forgetful, 0), (steady, 1)])
def test_a_training_that_is_not_resumed_correctly_is_found(toy, tmp_path, body, held, monkeypatch):
    def kill(child, seconds):
        while not (child.folder.parent / "starts").exists():
            time.sleep(0.01)
        child.process.kill()
        child.process.join()
        return True

    toy(body)
    monkeypatch.setattr(runs.Running, "kill_after", kill)
    tally = reliability.Tally()
    reliability.check_killed(tally, reliability.Wholes(tmp_path / "whole"), tmp_path / "killed", options())
    assert tally.counts == {("toy", "killed before the first checkpoint", "same bytes"): [held, 1]}
    assert len(tally.broken) == 1 - held


def test_content_is_the_tensors_and_the_log_without_its_seconds(tmp_path):
    for name, value in (("a", 1), ("b", 1), ("c", 2)):
        save(tmp_path / name / "run", value)
    storage.write_atomically(tmp_path / "b/run/log.jsonl", storage.json_line({"step": 1, "seconds": 0.5}))
    one, same, other = (runs.content(tmp_path / name, "toy") for name in "abc")
    assert one == same != other
    assert runs.distance(tmp_path / "a", tmp_path / "c") == 1
    storage.write_atomically(tmp_path / "b/run/log.jsonl", storage.json_line({"step": 2, "seconds": 0.5}))
    assert runs.content(tmp_path / "b", "toy") != one


def test_what_is_damaged_differs_and_stops_nothing(tmp_path):
    save(tmp_path / "a/run", 1)
    (tmp_path / "a/run/ckpt/best.pt").write_bytes(b"damaged")
    assert runs.content(tmp_path / "a", "toy").keys() == {"unreadable"}
    assert runs.content(tmp_path / "nosuch", "set").keys() == {"unreadable"}
    storage.write_atomically(tmp_path / "b/run/log.jsonl", "no JSON\n")
    assert "no JSON" in runs.content(tmp_path / "b", "toy")["unreadable"]


def test_digests_tell_kinds_shapes_and_names_apart():
    states = [{"a": torch.zeros(2)}, {"b": torch.zeros(2)}, {"a": torch.zeros(2, 1)}, {"a": torch.zeros(2).double()},
              {"a": [torch.zeros(2)]}, {"a": 0.0}, {"a": torch.tensor([0.0, -0.0])}]  # fmt: skip
    assert len({runs.digest(state) for state in states}) == len(states)
    assert runs.digest({"a": torch.ones(2), "b": (1, None)}) == runs.digest({"a": torch.ones(2), "b": (1, None)})


def test_small_trainings_parse_and_set_constants_that_there_are(tmp_path):
    for kind, small in runs.TRAININGS.items():
        made = {name: tmp_path / name for name in small.needs}
        parsed = experiment.parse_options(importlib.import_module(small.script), runs.words_of(kind, tmp_path, made))
        assert tmp_path in parsed["out" if kind == "set" else "run"].parents
        for name in small.settings:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name


# --- mistakes --------------------------------------------------------------------------------------------


def wrong(lines):
    """A script that ends with code 2 after so many lines."""

    def body(run):
        sys.stderr.write("toy.py: something is wrong\n" * lines)
        sys.exit(2)

    return body


@pytest.mark.parametrize(("lines", "good"), [(0, False), (1, True), (2, False)])
def test_a_mistake_is_exactly_one_line(toy, tmp_path, lines, good):
    toy(wrong(lines))
    ended = runs.run("toy", [], tmp_path)
    assert (ended.code, ended.mistake, ended.touched) == (2, good, ())


def test_a_traceback_is_no_mistake_and_a_child_that_hangs_is_ended(toy, tmp_path):
    def broken(run):
        raise ValueError("not a user's mistake")

    toy(broken)
    ended = runs.run("toy", [], tmp_path)
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert not ended.mistake
    toy(lambda run: time.sleep(60))
    assert runs.run("toy", [], tmp_path, limit=0.2).code == -9


def test_a_child_that_writes_to_the_results_is_found(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/old").write_text("old")

    def body(run):
        (tmp_path / "results/old").read_text()
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "elsewhere").write_text("")
        (tmp_path / "results/new").write_text("")

    toy(body)
    touched = runs.run("toy", [], tmp_path).touched
    assert touched == (f"open {tmp_path}/results/new",)


def test_a_room_is_kept_to(toy, tmp_path):
    toy(lambda run: (tmp_path / "large").write_bytes(bytes(10_000)))
    ended = runs.run("toy", [], tmp_path / "a", room=1000)
    assert ended.mistake
    assert "File too large" in ended.err


def test_lines_have_a_mistake_each_and_the_same_seed_gives_the_same(tmp_path):
    lines = inputs.commands(60, 0, tmp_path)
    assert lines == inputs.commands(60, 0, tmp_path)
    assert lines != inputs.commands(60, 1, tmp_path)
    assert {what.split(":")[0] for _, _, what in lines} == {"option", "file", "unknown name",
                                                            "values that do not go together"}  # fmt: skip
    for script, words, what in lines:
        module = importlib.import_module(script)
        if what == "option":
            with pytest.raises(UserError):
                experiment.parse_options(module, words)
        else:
            experiment.parse_options(module, words)


def test_every_wrong_option_is_refused_by_the_parser_and_every_unknown_name_is_not():
    for script in ("train", "cgn.train", "robust_training.train", "targeted_finetuning"):
        module = importlib.import_module(script)
        for words in inputs.of_options(script):
            with pytest.raises(UserError):
                experiment.parse_options(module, words)
        for words in inputs.of_names(script):
            experiment.parse_options(module, words)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bombs_go_off_where_nobody_takes_care(tmp_path):
    mark = tmp_path / inputs.MARK
    for kind, path in inputs.bombs(tmp_path).items():
        if kind != "array":
            (pickle.load(path.open("rb")) if "pickle" in kind else torch.load(path, weights_only=False))
            assert mark.exists(), kind
            mark.unlink()
            with pytest.raises(UserError):
                storage.load_checkpoint(path)
            assert not mark.exists()


# --- disks, crashes, the script ------------------------------------------------------------------------------


def test_a_file_is_cut_in_its_last_line(tmp_path):
    runs.add_rows(tmp_path, "before", 3)
    file = tmp_path / storage.Records.FILE
    lines = file.read_text().splitlines(keepends=True)
    kept = reliability.cut(file, 0.5)
    assert kept == lines[:2]
    assert file.read_text() == "".join(lines[:2]) + lines[2][: len(lines[2]) // 2]
    assert len(storage.read_lines(file)) == 2


def test_records_of_two_processes_are_all_there(tmp_path):
    runs.add_together(tmp_path, 3)
    assert len(storage.read_lines(tmp_path / storage.Records.FILE)) == 6


def test_a_broken_promise_is_recorded_named_and_gives_exit_code_1(tmp_path, call, monkeypatch):
    def check(tally, wholes, folder, o):
        tally.add("a", "b", "same bytes", True)
        tally.add("a", "b", "same bytes", False, "they differ\nin all")

    monkeypatch.setitem(reliability.CHECK_OF, "again", check)
    code, out, err = call("reliability", "--checks", "again", "--results", tmp_path)
    assert code == 1
    assert "| a | b | same bytes | 1 of 2 |" in out
    assert err.splitlines() == ["not held: a, b, same bytes: they differ in all",
                                "reliability.py: 1 times a promise did not hold: see above"]  # fmt: skip
    row, = storage.read_lines(tmp_path / "metrics.jsonl")
    assert (row["arm"], row["split"], row["metric"], row["value"], row["n"]) == ("a", "b", "same bytes", 0.5, 2)


def test_a_check_that_was_interrupted_is_not_recorded(tmp_path, call, monkeypatch):
    """What was recorded would count as done; the check before it is kept, and its records know how long it took."""

    def check(tally, wholes, folder, o):
        tally.add("a", "b", "same bytes", True)
        time.sleep(0.02)

    def whole(kind, folder, made):
        if kind == "flow":
            raise KeyboardInterrupt
        save(folder / "run", 1)
        return SimpleNamespace(seconds=0.0)

    monkeypatch.setitem(reliability.CHECK_OF, "again", check)
    monkeypatch.setattr(runs, "whole", whole)
    monkeypatch.setattr(runs, "start", lambda kind, there, made: there.mkdir(exist_ok=True) or SimpleNamespace(
        kill_after=lambda seconds: True, end=lambda: SimpleNamespace(code=1, err="")))  # fmt: skip
    code, _, _ = call("reliability", "--checks", "again", "killed", "--kinds", "vae", "flow", "--kills", 1,
                      "--results", tmp_path)  # fmt: skip
    assert code == 130
    row, = storage.read_lines(tmp_path / "metrics.jsonl")
    assert row["options"]["checks"] == ["again"]
    assert row["seconds"] >= 0.02


@pytest.mark.parametrize("mounted", [True, False])
def test_without_a_small_disk_its_records_are_not_tried(tmp_path, monkeypatch, mounted):
    """A limit for each file is no disk: the record has room, and no promise is broken."""
    monkeypatch.setattr(reliability, "small_disk", lambda folder, size: contextlib.nullcontext(
        {} if mounted else {"room": size}))  # fmt: skip
    ended = runs.Ended(0, "", "", (), 0.0)
    monkeypatch.setattr(runs, "run", lambda *_, **__: ended)
    tally = reliability.Tally()
    reliability.fill_records(tally, {"vae": tmp_path / "vae"}, tmp_path / "records", limited=False)
    assert len(tally.broken) == (1 if mounted else 0)


@pytest.mark.parametrize("words", ["--checks", "--kinds", "--kinds nosuch", "--checks nosuch"])
def test_a_mistake_in_its_own_options_is_one_line(words, tmp_path, call):
    code, _, err = call("reliability", *words.split(), "--results", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_from_end_to_end(tmp_path, call):
    code, out, err = call("reliability", "--checks", "killed", "inputs", "crashed", "--kinds", "vae", "--kills", 1,
                          "--inputs", 5, "--pairs", 1, "--results", tmp_path)  # fmt: skip
    assert (code, err) == (0, "")
    assert "| vae | killed" in out

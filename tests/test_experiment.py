"""The ground: options, streams, atomic files, checkpoints, run folders, records."""

import errno
import json
import math
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

import experiment
from experiment import UserError


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A script module with one constant of each kind, as a user would write it."""
    source = tmp_path / "toy.py"
    source.write_text('''"""A toy."""
from pathlib import Path
from typing import Literal
import experiment
STRENGTH: experiment.Positive = 0.001  # how far, 50 % of it
COUNT: experiment.Count | None = None  # how many
NAMES: tuple[experiment.Count, ...] = (1, 2)  # a list
WAY: Literal["a", "b"] = "a"  # which
FLAG: bool = False  # whether
PLACE: Path = Path("here")  # where
NOT_AN_OPTION = 3

def main(**given):
    print(given)
''')
    module = types.ModuleType("toy")
    module.__file__ = str(source)
    exec(compile(source.read_text(), source, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "toy", module)
    return module


def test_constants_are_the_defaults_and_flags_override_them(script):
    plain = experiment.parse_options(script, [])
    assert plain == {
        "strength": 0.001, "count": None, "names": (1, 2), "way": "a", "flag": False, "place": Path("here")
    }  # fmt: skip
    words = ["--strength", "2e-3", "--count", "5", "--names", "4", "5", "6", "--way", "b", "--flag", "--place", "there"]
    assert experiment.parse_options(script, words) == {
        "strength": 0.002, "count": 5, "names": (4, 5, 6), "way": "b", "flag": True, "place": Path("there")
    }  # fmt: skip
    assert experiment.parse_options(script, ["--names"])["names"] == ()


@pytest.mark.parametrize("words", [
    "--strength nan", "--strength inf", "--strength 0", "--strength -1", "--strength x", "--count 0", "--count 1.5",
    "--names 1 0", "--way c", "--nosuch 1", "--not-an-option 4", "--strength", "stray", "--stren 1",
])  # fmt: skip
def test_unacceptable_values_are_user_errors(script, words):
    with pytest.raises(UserError):
        experiment.parse_options(script, words.split())


def test_a_default_edited_to_nonsense_is_refused_too(script):
    script.STRENGTH = -1.0
    with pytest.raises(UserError, match="--strength must be a finite number above 0"):
        experiment.parse_options(script, [])


def test_help_shows_comment_range_and_default(script, capsys):
    with pytest.raises(SystemExit):
        experiment.parse_options(script, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "how far, 50 % of it; a finite number above 0; default: 0.001" in text
    assert "a list; a whole number of at least 1; default: 1 2" in text


@pytest.mark.parametrize(("error", "code"), [
    (UserError("two\nlines"), 2), (KeyboardInterrupt(), 130),
    (OSError(errno.ENOSPC, "No space left on device", "x"), 2),
])  # fmt: skip
def test_what_a_user_can_cause_is_one_line(script, capsys, error, code):
    def main(**_):
        raise error

    main.__module__ = "toy"
    with pytest.raises(SystemExit) as stop:
        experiment.run(main, [])
    err = capsys.readouterr().err
    assert stop.value.code == code
    assert err.count("\n") == 1
    assert err.startswith("toy.py: ")


def test_a_bug_is_not_hidden_as_a_user_error(script):
    def main(**_):
        raise ZeroDivisionError

    main.__module__ = "toy"
    with pytest.raises(ZeroDivisionError):
        experiment.run(main, [])


def test_streams_are_named_independent_and_fixed():
    draw = lambda seed, purpose: torch.randn(1000, generator=experiment.generator(seed, purpose))
    assert torch.equal(draw(0, "order"), draw(0, "order"))
    for other in (draw(0, "noise"), draw(1, "order"), draw(0, "order ")):
        assert abs(float(torch.corrcoef(torch.stack([draw(0, "order"), other]))[0, 1])) < 0.15
    # a release that changed this value would silently change every committed number
    assert experiment.stream_seed(0, "order") == 3278857439845718984


def test_seeded_block_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with experiment.seeded(0, "x"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with experiment.seeded(0, "x"):
        assert torch.equal(torch.rand(3), inside)


def test_devices():
    assert experiment.pick_device("cpu").type == "cpu"
    assert experiment.pick_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda"):
            experiment.pick_device("cuda")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    experiment.write_atomically(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(experiment.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        experiment.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        experiment.write_atomically(tmp_path / "file/inside", "x")


# --- checkpoints ----------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path):
    state = {"model": {"w": torch.randn(3, requires_grad=True)}, "epoch": 3, "list": [torch.ones(2), "x"], "none": None}
    experiment.save_checkpoint(tmp_path / "a.pt", state)
    back = experiment.load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(back["model"]["w"], state["model"]["w"])
    assert (back["epoch"], back["list"][1], back["none"]) == (3, "x", None)


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def damaged(kind, path, mark):
    experiment.save_checkpoint(path, {"model": {"w": torch.randn(1000)}})
    data = path.read_bytes()
    contents = {
        "truncated": data[: len(data) // 2], "empty": b"", "text": b"hello", "zeros": bytes(2000),
        "pickle": pickle.dumps(Bomb(mark)),
    }  # fmt: skip
    if kind == "torch pickle":
        torch.save({"model": Bomb(mark)}, path)
    elif kind == "tensor":
        torch.save(torch.ones(3), path)
    elif kind != "missing":
        path.write_bytes(contents[kind])
    else:
        path.unlink()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "text", "zeros", "pickle", "torch pickle", "tensor"])
def test_damaged_foreign_and_malicious_checkpoints_are_refused(tmp_path, kind):
    path, mark = tmp_path / "a.pt", tmp_path / "code ran"
    damaged(kind, path, mark)
    with pytest.raises(UserError) as caught:
        experiment.load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert not mark.exists()
    if "pickle" in kind:
        assert "refused" in str(caught.value)


def test_the_bomb_of_these_tests_would_go_off(tmp_path):
    path, mark = tmp_path / "a.pt", tmp_path / "code ran"
    damaged("torch pickle", path, mark)
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_weights_of_another_model_are_named():
    with pytest.raises(UserError, match="weight should be"):
        experiment.load_weights(torch.nn.Linear(2, 3), {"weight": torch.ones(1, 1), "bias": torch.ones(3)})
    with pytest.raises(UserError, match="extra should be absent"):
        experiment.load_weights(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).state_dict() | {"extra": torch.ones(1)})


# --- run folders ----------------------------------------------------------------------------------


def test_run_folder_names_the_difference(tmp_path):
    for _ in range(2):
        with experiment.RunFolder(tmp_path / "run", {"lr": 0.1, "held_out": (0,)}):
            pass
    with pytest.raises(UserError, match=r"made with lr=0.1, not 0.2"):
        experiment.RunFolder(tmp_path / "run", {"lr": 0.2, "held_out": (0,)})


def test_run_folder_is_held_by_one_run(tmp_path):
    with experiment.RunFolder(tmp_path / "run", {}), pytest.raises(UserError, match="in use"):
        experiment.RunFolder(tmp_path / "run", {})
    with experiment.RunFolder(tmp_path / "run", {}):
        pass


def test_log_is_cut_back_to_what_the_checkpoint_knows(tmp_path):
    with experiment.RunFolder(tmp_path / "run", {}) as folder:
        folder.log.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
        log = folder.open_log(keep=1)
        log.write(experiment.json_line({"epoch": 2, "again": True}))
    assert experiment.read_lines(tmp_path / "run/log.jsonl") == [{"epoch": 1}, {"epoch": 2, "again": True}]


# --- records ----------------------------------------------------------------------------------------


def records(folder, **options):
    return experiment.Records(folder, "toy", options, torch.device("cpu"))


def test_records_have_every_field_and_replace_their_own_kind(tmp_path):
    first = records(tmp_path, lr=0.1, run=Path("x"))
    first.add("a", "all", "mse", 1.0, 10, 0)
    first.add("a", "all", "mse", 2.0, 10, 1, strength=0.5)
    first.save()
    other, again = records(tmp_path, lr=0.2, run=Path("x")), records(tmp_path, lr=0.1, run=Path("x"))
    other.add("a", "all", "mse", 3.0, 10, 0)
    other.save()
    again.add("a", "all", "mse", 4.0, 10, 0)
    again.save()
    rows = experiment.read_lines(tmp_path / "metrics.jsonl")
    assert [row["value"] for row in rows] == [4.0, 2.0, 3.0]
    assert " ".join(rows[0]) == (
        "experiment arm split metric value n seed setting options commit versions device seconds")
    assert [row["value"] for row in again.earlier()] == [4.0, 2.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_not_recorded(tmp_path, value):
    with pytest.raises(UserError, match="mse of a on all"):
        records(tmp_path).add("a", "all", "mse", value, 10, 0)


def test_a_damaged_record_file_is_reported_and_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("nonsense\n")
    new = records(tmp_path)
    new.add("a", "all", "mse", 1.0, 10, 0)
    with pytest.raises(UserError, match=r"metrics.jsonl holds a line"):
        new.save()
    assert (tmp_path / "metrics.jsonl").read_text() == "nonsense\n"


def test_the_commit_is_this_repository_s():
    assert experiment.commit() == "unknown" or len(experiment.commit().rstrip("+")) == 10
    assert json.dumps(experiment.versions())

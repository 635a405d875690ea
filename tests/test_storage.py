"""What is kept on disk: atomic files, checkpoints, run folders, records."""

import errno
import math
import pickle
import subprocess
from pathlib import Path

import pytest
import torch

import storage
from experiment import UserError


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    storage.write_atomically(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        storage.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        storage.write_atomically(tmp_path / "file/inside", "x")


# --- checkpoints ----------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path):
    state = {"model": {"w": torch.randn(3, requires_grad=True)}, "epoch": 3, "list": [torch.ones(2), "x"], "none": None}
    storage.save_checkpoint(tmp_path / "a.pt", state)
    back = storage.load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(back["model"]["w"], state["model"]["w"])
    assert (back["epoch"], back["list"][1], back["none"]) == (3, "x", None)


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def damaged(kind, path, mark):
    storage.save_checkpoint(path, {"model": {"w": torch.randn(1000)}})
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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "text", "zeros", "pickle", "torch pickle", "tensor"])
def test_damaged_foreign_and_malicious_checkpoints_are_refused(tmp_path, kind):
    path, mark = tmp_path / "a.pt", tmp_path / "code ran"
    damaged(kind, path, mark)
    with pytest.raises(UserError) as caught:
        storage.load_checkpoint(path)
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
        storage.load_weights(torch.nn.Linear(2, 3), {"weight": torch.ones(1, 1), "bias": torch.ones(3)})
    with pytest.raises(UserError, match="extra should be absent"):
        storage.load_weights(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).state_dict() | {"extra": torch.ones(1)})


# --- run folders ----------------------------------------------------------------------------------


def test_run_folder_names_the_difference(tmp_path):
    for _ in range(2):
        with storage.RunFolder(tmp_path / "run", {"lr": 0.1, "held_out": (0,)}):
            pass
    (tmp_path / "run/log.jsonl").write_text('{"epoch": 1}\n')
    with (pytest.raises(UserError, match=r"made with lr=0.1, not 0.2"),
          storage.RunFolder(tmp_path / "run", {"lr": 0.2, "held_out": (0,)})):
        pass


def test_run_folder_is_held_by_one_run(tmp_path):
    with (storage.RunFolder(tmp_path / "run", {}), pytest.raises(UserError, match="in use"),
          storage.RunFolder(tmp_path / "run", {})):
        pass
    with storage.RunFolder(tmp_path / "run", {}):
        pass


def test_log_is_cut_back_to_what_the_checkpoint_knows(tmp_path):
    with storage.RunFolder(tmp_path / "run", {}) as folder:
        folder.log.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
        log = folder.open_log(keep=1)
        log.write(storage.json_line({"epoch": 2, "again": True}))
    assert storage.read_lines(tmp_path / "run/log.jsonl") == [{"epoch": 1}, {"epoch": 2, "again": True}]


# --- records ----------------------------------------------------------------------------------------


def records(folder, **options):
    return storage.Records(folder, "toy", options, torch.device("cpu"))


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
    rows = storage.read_lines(tmp_path / "metrics.jsonl")
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
    (tmp_path / "metrics.jsonl").write_bytes(b'{"a": "\xff"}\n')  # no UTF-8
    with pytest.raises(UserError, match=r"metrics.jsonl holds a line"):
        new.save()


def test_the_commit_is_this_repository_s():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=storage.ROOT, capture_output=True, text=True)
    wanted = head.stdout[:10] if head.returncode == 0 else "unknown"
    assert storage.commit().rstrip("+") == wanted
    assert f"torch {torch.__version__}" in storage.versions()


def test_outside_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert storage.commit() == "unknown"


def test_rows_of_some_options_can_be_forgotten(tmp_path):
    one, two = records(tmp_path, lr=0.1), records(tmp_path, lr=0.2)
    for each in (one, two):
        each.add("a", "all", "mse", 1.0, 10, 0)
        each.save()
    one.forget()
    assert [row["options"]["lr"] for row in storage.read_lines(tmp_path / "metrics.jsonl")] == [0.2]
    two.forget()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_records_of_a_folder_that_cannot_be_written_fail_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        records(tmp_path / "file/results")


def test_a_folder_is_locked_against_others(tmp_path):
    with storage.locked(tmp_path, wait=False), pytest.raises(BlockingIOError), storage.locked(tmp_path, wait=False):
        pass
    with storage.locked(tmp_path, wait=False):
        pass


def test_halved_weights_take_half_the_room_and_load():
    model, weights = torch.nn.BatchNorm1d(3), {}
    weights = storage.halved(model.state_dict() | {"weight": torch.tensor([1.0, 1 / 3, 70.0])})
    assert weights["num_batches_tracked"].dtype == torch.int64
    assert weights["weight"].dtype == torch.float16
    assert storage.load_weights(model, weights).weight.dtype == torch.float32
    assert torch.allclose(model.weight, torch.tensor([1.0, 1 / 3, 70.0]), rtol=1e-3)


def test_another_process_may_begin_to_record_at_the_same_moment(tmp_path, monkeypatch):
    """It begins, and is through, just when this one has seen that it can write."""
    write, others = storage.write_atomically, iter([-1])

    def then_another(path, data):
        write(path, data)
        for process in others:
            monkeypatch.setattr(storage.os, "getpid", lambda process=process: process)
            storage.Records(tmp_path, "x", {}, torch.device("cpu"))

    monkeypatch.setattr(storage, "write_atomically", then_another)
    storage.Records(tmp_path, "x", {}, torch.device("cpu"))
    assert not list(tmp_path.iterdir())

"""Training by steps: rates, running averages, what is said of bad losses, and a kill at any step."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import storage
import trainer
from experiment import UserError


class Line(trainer.Game):
    """A line fitted to points that are drawn anew in every step."""

    def __init__(self, seed=0, falling=True, broken=None):
        networks = {"line": nn.Linear(1, 1)}
        nn.init.zeros_(networks["line"].weight)
        nn.init.zeros_(networks["line"].bias)
        super().__init__(networks, {"line": 0.1}, (0.9, 0.99), contextlib.nullcontext, seed, ("line",), falling)
        self.broken = broken

    def step(self, number):
        x = torch.randn(16, 1, generator=self.stream("points", number))
        loss = (self.networks["line"](x) - (3 * x + 1)).square().mean()
        if number == self.broken:
            loss = loss * torch.nan
        self.move("line", loss)
        self.follow(number)
        return {"square": loss}


class Course(trainer.Training):
    """Fits a Line; stops: the step after which it is killed."""

    def __init__(self, folder, options, stops=None, broken=None):
        self.stops, self.broken, self.seen = stops, broken, []
        super().__init__(folder, options)

    def begin(self):
        return Line(broken=self.broken)

    def architecture(self):
        return "line", {}, self.game.averages["line"].state_dict()

    def after_step(self):
        self.seen.append(self.step)
        if self.step == self.stops:
            raise KeyboardInterrupt

    def closing(self):
        return {"slope": float(self.game.averages["line"].weight.detach())}


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(trainer, "LOG_EVERY", 2)
    monkeypatch.setattr(trainer, "SAVE_AFTER", 0)


def test_rates_stay_for_one_half_and_then_fall_to_zero():
    game = Line()
    rates = []
    for share in (0, 0.5, 0.75, 1):
        game.set_rate(share)
        rates.append(game.optimizers["line"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0])
    game = Line(falling=False)
    game.set_rate(0.9)
    assert game.optimizers["line"].param_groups[0]["lr"] == 0.1


def test_the_running_average_starts_as_a_plain_mean_and_forgets_at_its_own_pace():
    game = Line()
    wanted, weight = 0.0, game.networks["line"].weight
    for number in range(5):
        with torch.no_grad():
            weight.fill_(float(number))
        game.follow(number)
        decay = (number + 1) / (number + 10)
        wanted = decay * wanted + (1 - decay) * number
    assert float(game.averages["line"].weight) == pytest.approx(wanted)
    game.follow(10**6)
    assert float(game.averages["line"].weight) == pytest.approx(wanted + (1 - trainer.DECAY) * (4 - wanted))


def test_a_run_learns_says_so_and_is_reused(tmp_path):
    best, trained = trainer.train(tmp_path, {"steps": 120}, Course)
    assert trained
    assert best["step"] == 120
    assert best["architecture"] == {"name": "line", "settings": {}}
    assert float(best["model"]["weight"]) == pytest.approx(3, abs=0.2)
    lines = storage.read_lines(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines[:-1]] == [100, 120]
    assert lines[-1] == {"event": "finished", "steps": 120, "slope": float(best["model"]["weight"])}
    assert trainer.seconds_of(tmp_path) == pytest.approx(sum(line["seconds"] for line in lines[:-1]))
    assert not trainer.train(tmp_path, {"steps": 120}, Course)[1]
    (tmp_path / "ckpt/best.pt").unlink()  # it is in last.pt, too
    again, trained = trainer.train(tmp_path, {"steps": 120}, Course)
    assert trained
    assert all(torch.equal(best["model"][name], again["model"][name]) for name in best["model"])
    assert storage.read_lines(tmp_path / "log.jsonl") == lines
    with pytest.raises(UserError, match="steps=120, not 130"):
        trainer.train(tmp_path, {"steps": 130}, Course)


@pytest.mark.parametrize(("stops", "first"), [(1, 1), (4, 3), (7, 7), (9, 9)])  # saved after every second step
def test_a_run_that_is_killed_ends_with_the_same_bytes(tmp_path, often, stops, first):
    whole, _ = trainer.train(tmp_path / "whole", {"steps": 9}, Course)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(tmp_path / "killed", {"steps": 9}, lambda *a: Course(*a, stops=stops))
    after = []

    def again(*arguments):
        after.append(Course(*arguments))
        return after[0]

    killed, trained = trainer.train(tmp_path / "killed", {"steps": 9}, again)
    assert trained
    assert after[0].seen[0] == first
    assert all(torch.equal(whole["model"][name], killed["model"][name]) for name in whole["model"])
    without = [[{k: v for k, v in line.items() if k != "seconds"} for line in storage.read_lines(path / "log.jsonl")]
               for path in (tmp_path / "whole", tmp_path / "killed")]  # fmt: skip
    assert without[0] == without[1]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, often):
    with pytest.raises(UserError, match="square was not finite"):
        trainer.train(tmp_path, {"steps": 9}, lambda *a: Course(*a, broken=5))
    last = storage.load_checkpoint(tmp_path / "ckpt/last.pt")
    assert last["step"] == 4
    assert last["game"]["networks"]["line"]["weight"].isfinite().all()


def test_a_batch_is_shared_in_equal_parts_or_not_at_all(tmp_path):
    four = SimpleNamespace(world_size=4, is_global_zero=True, barrier=lambda: None)
    for batch in (1, 6):
        with pytest.raises(UserError, match=f"--batch {batch} cannot be shared by 4 processes"):
            trainer.train(tmp_path / "run", {"steps": 2, "batch": batch}, Course, four)
    assert not (tmp_path / "run").exists()
    assert trainer.train(tmp_path / "run", {"steps": 2, "batch": 8}, Course, four)[1]


def test_torchrun_says_how_many_processes_there_are():
    assert trainer.processes(2, {}) == (2, 1)
    assert trainer.processes(1, {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}) == (4, 2)


def test_a_training_that_cannot_begin_does_not_keep_its_folder(tmp_path):
    class Empty(Course):
        def begin(self):
            raise UserError("no images")

    with pytest.raises(UserError, match="no images"):
        trainer.train(tmp_path / "run", {"steps": 3, "images": "none"}, Empty)
    assert trainer.train(tmp_path / "run", {"steps": 3, "images": "some"}, Course)[1]
    with pytest.raises(UserError, match="was made with images=some"):
        trainer.train(tmp_path / "run", {"steps": 3, "images": "none"}, Empty)


def test_what_is_coming_begins_at_the_step_that_is_asked_for_first():
    asked = []

    def batches(start):
        asked.append(start)
        yield from range(start, 9)

    coming = trainer.Coming(batches)
    assert [coming(5), coming(6), coming(7)] == [5, 6, 7]
    assert asked == [5]

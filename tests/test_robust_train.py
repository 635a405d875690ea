"""Training of part 6: what a step is made of, resume to the same bytes, the table, every refusal."""

import csv
import json
import math

import pytest
import torch
from conftest import shell

import backbones
import experiment
import storage
import trainer
from robust_training import data, digits, evaluate, fitting, losses, objective, saliency, train
from robust_training.batch import from_masks

TINY = ("--test-run", "--epochs", "2", "--batch", "50")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer images, and fewer of whose maps are measured: what is tested here does not depend on their number."""
    for kind, n in {"train": 200, "val": 200, "test": 200}.items():
        monkeypatch.setitem(digits.NUMBER, kind, n)
    monkeypatch.setattr(evaluate, "FOCUSED", 20)
    monkeypatch.setattr(evaluate, "BASELINES", 3)


@pytest.fixture(scope="module")
def batch():
    return next(iter(digits.read("ten", "val").batches(12)))


@pytest.fixture
def model():
    with experiment.seeded(0, "tests"):
        return backbones.build("small", 10, width=8)


def table(path):
    return list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))


def test_group_dro_draws_groups_evenly_and_plain_training_draws_each_image_once():
    scenes = digits.read("ten", "train")
    groups = losses.groups_of(scenes.labels, scenes.places)
    present, shares = groups.unique(), fitting.balanced(scenes)
    batches = [batch for epoch in range(20) for batch in scenes.batches(64, epoch, shares)]
    seen = torch.cat([losses.groups_of(batch.labels, batch.places) for batch in batches])
    found = torch.bincount(seen, minlength=20)[present] / len(seen)
    assert (found - 1 / len(present)).abs().max() < 5 * (1 / len(present) / len(seen)) ** 0.5
    once = torch.cat([batch.images.flatten(1) for batch in scenes.batches(64, 0)])
    assert len(once.unique(dim=0)) == len(scenes)
    scenes.places[0] = -1
    with pytest.raises(experiment.UserError, match="background is known"):
        fitting.balanced(scenes)


# --- a step ---------------------------------------------------------------------------------------


def test_each_term_is_the_mean_over_its_own_images(batch, model):
    """Adding counterfactuals must not dilute the loss of the images, as it does in the original."""
    alone = objective.Objective(model)(objective.Augmentation(10)(batch, 5, 0, model))
    both = objective.Objective(model, cf_coeff=2.0)(objective.Augmentation(10, "tile")(batch, 5, 0, model))
    assert set(alone) == {"class"}
    assert float(both["class"].detach()) == pytest.approx(float(alone["class"].detach()), rel=1e-5)
    examples = objective.Augmentation(10, "tile")(batch, 5, 0, model)
    wanted = 2 * losses.logp(model(examples.counterfactuals), examples.absent).mean()
    assert float(both["counterfactual"].detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_factuals_join_with_their_labels(batch, model):
    examples = objective.Augmentation(10, f_inpaint="shuffle")(batch, 5, 0, model)
    assert len(examples.images) == 2 * len(batch)
    assert torch.equal(examples.targets, batch.labels.repeat(2))
    assert torch.equal(examples.images[:12], batch.images)


def test_images_without_a_known_foreground_are_only_classified(batch, model):
    unknown = from_masks(batch.images, batch.labels, batch.places, torch.zeros_like(batch.masks))
    examples = objective.Augmentation(10, "mean", "mixed_rand")(unknown, 5, 0, model)
    assert len(examples.images) == 12
    assert len(examples.counterfactuals) == 0
    terms = objective.Objective(model, reg="bbox_o", reg_coeff=1.0)(examples)
    assert terms["counterfactual"] == terms["saliency"] == 0


def test_adding_one_augmentation_moves_no_draw_of_another(batch, model):
    one = objective.Augmentation(10, "shuffle")(batch, 5, 0, model)
    two = objective.Augmentation(10, "shuffle", "random", mixup=0.2)(batch, 5, 0, model)
    assert torch.equal(one.counterfactuals, two.counterfactuals)


def test_group_dro_weighs_the_groups_of_the_batch(batch, model):
    """Of the batch alone: images that follow it, factuals say, are left out. Each present group's loss is log 10."""
    some = batch[:3].but(labels=torch.tensor([0, 0, 7]), places=torch.tensor([0, 0, 2]))  # two groups of twenty
    worst, logits = losses.WorstGroup(20, 0.1, "cpu"), torch.zeros(4, 10)
    logits[3, 0] = 50.0
    examples = objective.Examples(some, some.images, torch.tensor([0, 0, 7, 7]), None, None, None)
    found = objective.Objective(model, worst=worst).of_labels(logits, examples)
    more = 10**0.1  # exp(0.1 log 10), by which they gain on the other 18
    assert float(found) == pytest.approx(2 * more * math.log(10) / (2 * more + 18), rel=1e-5)
    assert worst.weights[[1, 14, 0]].tolist() == pytest.approx([w / (2 * more + 18) for w in (more, more, 1)], rel=1e-5)


def test_the_gradient_that_attacks_follow_leaves_the_weights_alone():
    """Of a linear model, softmax less one-hot times the weights: with all logits equal, (1/2 - 1) w_0 + 1/2 w_1."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [5.0, 4.0, 3.0]]))
        found = objective.loss_gradient(model, torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]))
    assert found.flatten(1).tolist() == [[2.0, 1.0, 0.0], [-2.0, -1.0, 0.0]]
    assert not found.requires_grad
    assert model[1].weight.grad is None


# --- the script -----------------------------------------------------------------------------------


def test_a_run_its_records_and_its_row(call, tmp_path):
    arguments = (*TINY, "--inpaint", "tile", "--f-inpaint", "shuffle", "--reg", "bbox_o", "--run", tmp_path / "run",
                 "--results", tmp_path)
    code, out, error = call("robust_training.train", *arguments)
    assert (code, error) == (0, "")
    assert "digits_tile_fshuffle_bbox_o_reg10_test_s5, flip: accuracy" in out
    records = storage.read_lines(tmp_path / "metrics_seed5.jsonl")
    splits = {record["split"] for record in records}
    assert {"val", *digits.TESTS, "original+flip", "bg_gap", "original, grad_y", "original, deeplift"} <= splits
    by = {(record["split"], record["metric"]): record for record in records if not record["setting"]}
    bins = [record for record in records if record["split"] == "flip" and record["metric"] == "reliability"]
    assert [record["setting"]["bin"] for record in bins] == list(range(10))
    right = sum(record["n"] * record["value"] for record in bins if record["n"])
    assert right / sum(record["n"] for record in bins) == pytest.approx(by["flip", "accuracy"]["value"])
    gap = by["mixed_same", "accuracy"]["value"] - by["mixed_rand", "accuracy"]["value"]
    assert by["bg_gap", "bg_gap"]["value"] == pytest.approx(gap)
    assert by["original", "worst_group"]["value"] <= by["original", "accuracy"]["value"]
    rows = table(tmp_path / "digits_results.tsv")
    assert len(rows) == 1
    assert float(rows[0]["flip_accuracy"]) == by["flip", "accuracy"]["value"]
    assert rows[0]["reg_coeff"] == "10.0"
    code, out, _ = call("robust_training.train", *arguments)
    assert (code, "trained and measured before" in out) == (0, True)
    assert table(tmp_path / "digits_results.tsv") == rows
    (tmp_path / "digits_results.tsv").unlink()  # as if it had been killed between records and row
    assert call("robust_training.train", *arguments)[0] == 0
    assert table(tmp_path / "digits_results.tsv") == rows
    code, _, error = call("robust_training.train", *arguments, "--lr", "0.001")
    assert code == 2
    assert "was made with lr=" in error


def test_the_original_spelling_of_options_works(call, tmp_path):
    words = "--dataset wb --f_inpaint shuffle --reg bbox_o --reg_coeff 10 --fp16 0"
    code, _, error = call("robust_training.train", *TINY, *words.split(), "--root", tmp_path, "--results", tmp_path)
    assert code == 2
    assert "metadata.csv" in error or "waterbird" in error


def test_a_run_killed_before_its_row_is_measured_again(call, tmp_path, monkeypatch):
    arguments = ("--test-run", "--epochs", "1", "--run", tmp_path / "run", "--results", tmp_path)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "append_row", stop)
        assert call("robust_training.train", *arguments)[0] == 130
    assert call("robust_training.train", *arguments)[0] == 0
    assert len(table(tmp_path / "digits_results.tsv")) == 1


def with_dropout(self, maps):
    return self.cls(torch.nn.functional.dropout(maps.mean((2, 3)), 0.5, self.training))


def test_a_killed_run_ends_with_the_same_bytes(tmp_path, monkeypatch, call):
    """Also of a network that drops out, and after the loss of best.pt."""
    monkeypatch.setattr(backbones.SmallResNet, "head", with_dropout)
    more = ("--inpaint", "random", "--group-dro", "0.01", "--results", tmp_path)
    assert call("robust_training.train", *TINY, *more, "--run", tmp_path / "whole")[0] == 0
    after, seen = fitting.Fitting.after_epoch, []

    def stop(self, *arguments):
        after(self, *arguments)
        seen.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting.Fitting, "after_epoch", stop)
        assert call("robust_training.train", *TINY, *more, "--run", tmp_path / "cut")[0] == 130
    assert len(seen) == 1
    assert call("robust_training.train", *TINY, *more, "--run", tmp_path / "cut")[0] == 0
    whole, cut = (storage.load_checkpoint(tmp_path / name / "ckpt/best.pt") for name in ("whole", "cut"))
    assert all(torch.equal(whole["model"][key], cut["model"][key]) for key in whole["model"])
    lines = [[{key: value for key, value in line.items() if key != "seconds"}
              for line in storage.read_lines(tmp_path / name / "log.jsonl")] for name in ("whole", "cut")]  # fmt: skip
    assert lines[0] == lines[1]
    (tmp_path / "cut/ckpt/best.pt").unlink()
    assert call("robust_training.train", *TINY, *more, "--run", tmp_path / "cut")[0] == 0
    again = storage.load_checkpoint(tmp_path / "cut/ckpt/best.pt")["model"]
    assert all(torch.equal(whole["model"][key], again[key]) for key in again)


def test_the_scale_of_half_precision_is_kept(tmp_path, monkeypatch, call):
    """A stand-in for the scaler, which only a GPU has."""
    precision, loaded = trainer.fabric_of(torch.device("cpu"), 1).strategy.precision, []
    arguments = ("--test-run", "--epochs", "1", "--run", tmp_path / "run", "--results", tmp_path)
    monkeypatch.setattr(type(precision), "state_dict", lambda self: {"scale": 512.0})
    monkeypatch.setattr(type(precision), "load_state_dict", lambda self, state: loaded.append(state))
    assert call("robust_training.train", *arguments)[0] == 0
    assert storage.load_checkpoint(tmp_path / "run/ckpt/last.pt")["scaler"] == {"scale": 512.0}
    assert loaded == []
    log = tmp_path / "run/log.jsonl"
    log.write_text(log.read_text().split("\n")[0] + "\n")  # not finished
    assert call("robust_training.train", *arguments)[0] == 0
    assert loaded == [{"scale": 512.0}]


def test_a_published_set_from_its_files_to_its_row(call, tmp_path, waterbirds):
    words = "--dataset wb --backbone small --test-run --epochs 1 --batch 6 --inpaint tile --reg bbox_o"
    code, _, error = call("robust_training.train", *words.split(), "--root", waterbirds, "--run", tmp_path / "run",
                          "--results", tmp_path)  # fmt: skip
    assert (code, error) == (0, "")
    rows = storage.read_lines(tmp_path / "metrics_seed5.jsonl")
    assert {row["split"]: row["n"] for row in rows if row["metric"] == "accuracy"} == {
        "val": 3, "test": 3, "orig": 1, "flip": 2, "orig+flip": 3}  # fmt: skip
    assert {"orig, grad_y", "orig, deeplift"} <= {row["split"] for row in rows}
    assert table(tmp_path / "wb_results.tsv")[0]["backbone"] == "small"


def test_a_network_that_normalises_over_the_batch_trains_on_images_alone(call, tmp_path):
    arguments = ("--test-run", "--epochs", "1", "--backbone", "mobilenet_v3_small", "--results", tmp_path)
    code, out, _ = call("robust_training.train", *arguments, "--run", tmp_path / "run")
    assert (code, "mobilenet_v3_small normalises over the batch" in out) == (0, True)


ONE_STEP = ("--test-run", "--epochs", "1", "--batch", "200", "--clip", "1e9")


def gradient_of(run):
    """The gradient of the one step of a run, times a number: AdamW's weights would not tell how long it was."""
    states = storage.load_checkpoint(run / "ckpt/last.pt")["optimiser"]["state"].values()
    return torch.cat([state["exp_avg"].flatten() for state in states])


def test_a_batch_in_parts_takes_the_same_step(tmp_path, call):
    """Up to rounding: the parts' gradients add up to that of the whole batch, also where they are not equally large."""
    for parts in (1, 3):
        assert call("robust_training.train", *ONE_STEP, "--batch-split", parts, "--run", tmp_path / f"parts{parts}",
                    "--results", tmp_path)[0] == 0  # fmt: skip
    whole, cut = (gradient_of(tmp_path / f"parts{parts}") for parts in (1, 3))
    assert (whole - cut).norm() < 1e-3 * whole.norm()
    whole, cut = (storage.read_lines(tmp_path / f"parts{parts}/log.jsonl")[0]["class"] for parts in (1, 3))
    assert cut == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--dataset", "wb", "--inpaint", "cagan"), "needs --infills"),
    (("--group-dro", "0.1", "--mixup", "0.2"), "leave out --mixup"),
    (("--group-dro", "0.1", "--devices", "2"), "leave out --batch-split and --devices"),
    (("--group-dro", "0.1", "--batch-split", "2"), "leave out --batch-split and --devices"),
    (("--patience", "2"), "choose val_acc1 or val_auc"),
    (("--backbone", "resnet18", "--inpaint", "mean"), "normalises over the batch"),
    (("--backbone", "resnet18", "--f-inpaint", "fgsm"), "normalises over the batch"),
    (("--backbone", "resnet18", "--reg", "bbox_o"), "normalises over the batch"),
    (("--weights", "BiT-S-R50x1.npz"), "--backbone bit"),
    (("--labels", "two", "--inpaint", "cagan"), "was trained on labels ten, and two is wanted"),
    (("--reg", "gs"), "choose an --inpaint"),
    (("--reg", "gs", "--inpaint", "mean", "--reg-grad", "grad_cam"), "none of a pixel"),
    (("--label-smoothing", "1"), "below 1"),
    (("--infills", "somewhere"), "is for photographs"),
    (("--backbone", "resnet19"), "no backbone is called"),
    (("--inpaint", "blur"), "must be one of"),
    (("--inpaint", "cagan", "--inpainter", "nowhere"), "nowhere"),
    (("--weights", "nowhere.npz"), "nowhere.npz"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(call, tmp_path, arguments, message):
    places = ("--results", tmp_path, "--run", tmp_path / "run")
    code, out, error = call("robust_training.train", *TINY, *arguments, *places)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "metrics_seed5.jsonl").exists()


@pytest.mark.parametrize("term", ["saliency", "counterfactual"])
def test_a_loss_that_is_not_finite_names_its_term(call, tmp_path, monkeypatch, term):
    """The one that was so first, though with its gradients all others are so a step later."""
    table, name = {"saliency": (saliency.PENALTIES, "bbox_o"), "counterfactual": (losses.COUNTERFACTUAL, "logp")}[term]
    monkeypatch.setitem(table, name, lambda maps, *_: maps.flatten(1).sum(1) * torch.inf)
    code, _, error = call("robust_training.train", *TINY, "--reg", "bbox_o", "--inpaint", "mean", "--run",
                          tmp_path / "run", "--results", tmp_path)  # fmt: skip
    assert code == 2
    assert f"{term} was not finite" in error


def test_names_say_what_differs():
    words = "--dataset wb --inpaint cagan --f-inpaint shuffle --reg bbox_o"
    o = experiment.parse_options(train, words.split(" "))
    assert train.name_of(o) == "wb_cagan_fshuffle_bbox_o_reg10_s5"
    assert not o["test_run"]  # the original's default was a test run
    assert train.name_of(experiment.parse_options(train, [])) == "digits_s5"


def test_published_recipes():
    assert data.RECIPES["wb"].optimiser == ("SGD", {"momentum": 0.9, "weight_decay": 1e-4})
    assert (data.RECIPES["wb"].lr, data.RECIPES["wb"].epochs, data.RECIPES["wb"].batch) == (8e-4, 40, 32)
    assert data.RECIPES["cct"].select == "val_auc"
    assert len(data.classes("cct")) == 15


# --- several processes -----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(tmp_path):
    """Gradients are averaged over the processes: they agree up to rounding."""
    for devices in (1, 2):
        done = shell("-m", "robust_training.train", *ONE_STEP, "--devices", devices, "--device", "cpu",
                     "--run", tmp_path / f"run{devices}", "--results", tmp_path / f"r{devices}")  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (gradient_of(tmp_path / f"run{k}") for k in (1, 2))
    assert (one - two).norm() < 1e-3 * one.norm()
    assert json.loads((tmp_path / "run2/options.json").read_text())["seed"] == 5

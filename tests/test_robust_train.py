"""Training of part 6: what a step is made of, resume to the same bytes, the table, every refusal."""

import csv
import json

import pytest
import torch
from conftest import shell

import backbones
import experiment
import storage
from robust_training import data, digits, evaluate, fitting, losses, objective, train
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
    worst = losses.WorstGroup(20, 0.1, "cpu")
    terms = objective.Objective(model, worst=worst)(objective.Augmentation(10)(batch, 5, 0, model))
    seen = losses.groups_of(batch.labels, batch.places).unique()
    assert worst.weights[seen].min() > worst.weights.min()
    assert terms["class"].item() < 5


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
    code, _, error = call("robust_training.train", *arguments, "--lr", "0.001")
    assert code == 2
    assert "was made with lr=" in error


def test_the_original_spelling_of_options_works(call, tmp_path):
    words = "--dataset wb --f_inpaint shuffle --reg bbox_o --reg_coeff 10 --fp16 0"
    code, _, error = call("robust_training.train", *TINY, *words.split(), "--root", tmp_path, "--results", tmp_path)
    assert code == 2
    assert "metadata.csv" in error or "waterbird" in error


def test_a_killed_run_ends_with_the_same_bytes(tmp_path, monkeypatch, call):
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


def test_a_batch_in_parts_takes_the_same_step(tmp_path, call):
    """Up to rounding: the parts' gradients add up to that of the whole batch."""
    found = []
    for parts in (1, 2):
        run = tmp_path / f"parts{parts}"
        assert call("robust_training.train", "--test-run", "--epochs", "1", "--batch", "50", "--batch-split", parts,
                    "--run", run, "--results", tmp_path)[0] == 0  # fmt: skip
        found.append(storage.load_checkpoint(run / "ckpt/best.pt")["model"]["cls.weight"])
    assert torch.allclose(*found, atol=2e-3)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--dataset", "wb", "--inpaint", "cagan"), "needs --infills"),
    (("--group-dro", "0.1", "--mixup", "0.2"), "leave out --mixup"),
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


def test_a_loss_that_is_not_finite_names_its_term(call, tmp_path):
    code, _, error = call("robust_training.train", *TINY, "--reg", "bbox_o", "--reg-coeff", "1e38", "--lr", "1e30",
                          "--run", tmp_path / "run", "--results", tmp_path)  # fmt: skip
    assert code == 2
    assert "not finite" in error


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


# --- measuring ------------------------------------------------------------------------------------


def test_rows_of_the_table_are_kept_replaced_and_completed(tmp_path):
    path = tmp_path / "t.tsv"
    evaluate.append_row(path, "a", {"val": {"accuracy": (0.5, 10), "auc": (None, 10)}}, {"seed": 5})
    evaluate.append_row(path, "b", {"val": {"accuracy": (0.75, 10)}, "flip": {"accuracy": (0.1, 4)}}, {"seed": 10})
    evaluate.append_row(path, "a", {"val": {"accuracy": (0.25, 10)}}, {"seed": 5, "reg": "none"})
    rows = {row["name"]: row for row in table(path)}
    assert (rows["a"]["val_accuracy"], rows["a"]["flip_accuracy"]) == ("0.25", "-999")
    assert rows["b"]["reg"] == "-999"


def test_backgrounds_alone_are_told_from_images():
    sure, unsure = torch.eye(10)[torch.arange(20) % 10] * 9, torch.zeros(20, 10)
    read = {"original": (sure, None, None), "only_background": (unsure, None, None)}
    found = evaluate.new_to_it(read, 10)["only_background against original"]
    assert found["fpr95"] == (0.0, 40)
    assert found["auc"] == (1.0, 40)


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(tmp_path):
    """Gradients are averaged over the processes: the weights agree up to rounding."""
    for devices in (1, 2):
        done = shell("-m", "robust_training.train", *TINY, "--devices", devices, "--device", "cpu",
                     "--run", tmp_path / f"run{devices}", "--results", tmp_path / f"r{devices}")  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (storage.load_checkpoint(tmp_path / f"run{k}/ckpt/best.pt")["model"] for k in (1, 2))
    assert all(torch.allclose(one[key], two[key], atol=5e-3) for key in one)
    assert json.loads((tmp_path / "run2/options.json").read_text())["seed"] == 5

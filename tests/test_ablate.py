"""Part 1: what is marked, what is zeroed, what is measured."""

import copy

import pytest
import torch
from PIL import Image

import ablate
import datasets
import experiment
import storage
import train
from experiment import UserError

GRADS = {"a": torch.tensor([[3.0, -5.0], [0.0, 1.0]]), "b": torch.tensor([-4.0, 2.0])}


def marked(masks):
    return {name: mask.nonzero().tolist() for name, mask in masks.items()}


@pytest.mark.parametrize("rule", [{"count": 2}, {"fraction": 1 / 3}, {"threshold": 3.5}, {"threshold": 4.0}])
def test_the_largest_gradients_are_marked_in_every_way(rule):
    assert marked(ablate.mark(GRADS, **rule)) == {"a": [[0, 1]], "b": [[0]]}


def test_threshold_goes_before_count_before_fraction():
    assert marked(ablate.mark(GRADS, fraction=0.5, count=1)) == {"a": [[0, 1]], "b": []}
    assert marked(ablate.mark(GRADS, fraction=0.5, count=1, threshold=3.0)) == {"a": [[0, 0], [0, 1]], "b": [[0]]}


def test_parameters_without_gradient_are_never_marked():
    assert sum(int(mask.sum()) for mask in ablate.mark(GRADS, fraction=1.0).values()) == 5


@pytest.mark.parametrize("rule", [{"threshold": 50.0}, {"fraction": 0.01}, {"count": 7}])
def test_marking_nothing_or_too_much_is_a_user_error(rule):
    with pytest.raises(UserError):
        ablate.mark(GRADS, **rule)


def test_marking_nothing_may_be_allowed():
    assert marked(ablate.mark(GRADS, threshold=50.0, may_be_none=True)) == {"a": [], "b": []}


def test_random_marks_are_as_many_and_spread_evenly():
    masks = {"a": torch.zeros(90, dtype=torch.bool), "b": torch.zeros(2, 5, dtype=torch.bool)}
    masks["a"][:20] = True
    drawn = [ablate.random_mark(masks, experiment.generator(seed, "r")) for seed in range(200)]
    assert all(sum(int(m.sum()) for m in d.values()) == 20 for d in drawn)
    assert drawn[0]["b"].shape == (2, 5)
    assert sum(int(d["b"].sum()) for d in drawn) / 200 == pytest.approx(2, abs=0.4)  # 10 of 100 places
    assert not torch.equal(drawn[0]["a"], drawn[1]["a"])


def test_ablation_zeroes_what_is_marked_and_nothing_else(model, images):
    before = copy.deepcopy(model.state_dict())
    masks = ablate.mark(ablate.sample_gradients(model, images[0]), count=100)
    after = ablate.ablate(model, masks).state_dict()
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)
        assert torch.equal(after[name], torch.where(masks[name], 0, value))


def test_sample_gradients_are_those_of_the_vae_loss(model, images):
    sum(model.loss(images[:1]).values()).sum().backward()
    for name, grad in ablate.sample_gradients(model, images[0]).items():
        wanted = dict(model.named_parameters())[name].grad
        assert torch.equal(grad, torch.zeros_like(grad) if wanted is None else wanted)


def test_the_reverse_is_one_step_against_the_sign(model, images):
    model.squared_error(images[:3]).mean().backward()
    after = dict(ablate.reverse_ablate(model, images[:3], 0.01).named_parameters())
    for name, parameter in model.named_parameters():
        step = torch.zeros_like(parameter) if parameter.grad is None else 0.01 * parameter.grad.sign()
        assert torch.equal(after[name], parameter - step)


def test_norm_is_over_all_tensors():
    assert float(ablate.norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})) == 5


def test_splits_leave_the_sample_out_of_its_class():
    labels, values = torch.tensor([1, 1, 2, 1, 2]), torch.tensor([10.0, 1.0, 5.0, 3.0, 7.0])
    assert ablate.by_split(values, labels, 0) == {
        "ablated sample": (10.0, 1), "same class": (2.0, 2), "other classes": (6.0, 2)
    }  # fmt: skip
    assert ablate.by_split(values[:1], labels[:1], 0)["same class"] == (None, 0)


OPTIONS = {"model": "vae", "data": "mnist", "seed": 3, "n": 32, "held_out": (0,), "epochs": 2, "batch": 8, "lr": 1e-3,
           "n_validation": 16, "schedule": "constant"}  # fmt: skip


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run folder of a real training, on 32 digits for two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train.train(folder, OPTIONS, torch.device("cpu"), 1)
    return folder


def test_retraining_without_leaving_anything_out_is_the_run_itself(small_run):
    digits, _ = datasets.training_split((0,), 32, 0, 3)
    again = ablate.retrain(OPTIONS, digits, None, 2, torch.device("cpu"))
    last = storage.load_checkpoint(small_run / "ckpt/last.pt")["model"]
    assert all(torch.equal(value, last[name]) for name, value in again.state_dict().items())


def test_retraining_follows_the_schedule_the_clip_and_the_settings_of_the_run(tmp_path):
    settings = {"shape": (1, 28, 28), "latent": 6}
    options = OPTIONS | {"schedule": "cosine", "clip": 0.5, "model": "image_vae", "settings": settings}
    train.train(tmp_path / "run", options, torch.device("cpu"), 1)
    digits, _ = datasets.training_split((0,), 32, 0, 3)
    again = ablate.retrain(options, digits, None, 2, torch.device("cpu"))
    last = storage.load_checkpoint(tmp_path / "run/ckpt/last.pt")["model"]
    assert all(torch.equal(value, last[name]) for name, value in again.state_dict().items())


def test_a_model_of_other_images_is_refused(tmp_path):
    """Its digits would be measured as if they were those it was trained on."""
    model, made = train.build("vae", 0, "cpu")
    storage.save_checkpoint(tmp_path / "x.pt", {"architecture": made, "model": model.state_dict(), "epoch": 1,
                                                "options": OPTIONS | {"data": "strokes", "held_out": ()}})  # fmt: skip
    with pytest.raises(UserError, match="trained on strokes, and one of mnist is needed"):
        train.load_vae("nosuch", tmp_path / "x.pt", "cpu")


def test_controls_are_the_first_other_of_the_class_and_of_another():
    labels = torch.tensor([1, 2, 1, 1])
    assert ablate.controls(labels, 0) == {"same class": 2, "other class": 1}
    assert ablate.controls(labels, 2) == {"same class": 0, "other class": 1}
    assert ablate.controls(labels, 1) == {"other class": 0}
    assert ablate.controls(labels[:1], 0) == {}


def test_the_only_sample_of_its_class_is_drawn_without_that_control(model, images, tmp_path):
    digits = datasets.Digits(images[:3], torch.tensor([1, 2, 1]))
    for index in (0, 1):
        ablate.draw_example(model, digits, index, {"count": 9}, tmp_path / f"{index}.png")
    high = [Image.open(tmp_path / f"{index}.png").height for index in (0, 1)]
    assert high[1] < high[0]  # a row less


def test_movements_of_reconstructions():
    """Ablation moves the first image by (3, 4), retraining by (0, 4); the second by (1, 1) and (-1, -1)."""
    before, ablated, retrained = torch.zeros(2, 2), torch.tensor([[3.0, 4], [1, 1]]), torch.tensor([[0.0, 4], [-1, -1]])
    found = {key: value.tolist() for key, value in ablate.movements(before, ablated, retrained).items()}
    root = 2**-0.5  # of a sum over the two pixels to their root mean square
    assert found == {
        ("ablated", "displacement"): pytest.approx([5 * root, 1]),
        ("retrained", "displacement"): pytest.approx([4 * root, 1]),
        ("ablated", "cosine"): pytest.approx([0.8, -1]),
        ("before", "distance_to_retrained"): pytest.approx([4 * root, 1]),
        ("ablated", "distance_to_retrained"): pytest.approx([3 * root, 2]),
    }


def made_up(**options):
    """Records of two samples: losses of 100 before, what is added to them, and a retraining of both."""
    told = {"samples": 2, "seed": 0, "published": 50, "against": "retrain", "retrained": 2, "threshold": None,
            "count": None, "fraction": 0.01} | options  # fmt: skip
    record = lambda arm, split, metric, value, **setting: {"arm": arm, "split": split, "metric": metric, "value": value,
                                                           "seed": 0, "setting": setting, "options": told}  # fmt: skip
    rows = [record("repeated", "all", "displacement", 0.25)]
    for k, more in enumerate((-1.0, 1.0)):  # an interval of 12.706 sd / sqrt(2) = 12.7
        for split, rise in zip(ablate.SPLITS, (200, 50, 20), strict=True):
            for arm, value in (("before", 100), ("ablated", 100 + rise + more), ("random", 100)):
                rows.append(record(arm, split, "vae_loss", value, sample=k))
            for arm, metric, value in (("retrained", "displacement", 0.4 if rise == 200 else 0.3),
                                       ("ablated", "displacement", 0.5), ("ablated", "cosine", 0.125),
                                       ("before", "distance_to_retrained", 0.4), ("retrained", "vae_loss", 103),
                                       ("ablated", "distance_to_retrained", 0.7)):  # fmt: skip
                rows.append(record(arm, split, metric, value, retrained=k))
            if told["published"]:
                rows += [record(arm, split, "vae_loss", value, sample=k, threshold=50)
                         for arm, value in (("before", 100), ("ablated", 105))]  # fmt: skip
        rows.append(record("ablated", "parameters", "marked", 7, sample=k))
        if told["published"]:
            rows.append(record("ablated", "parameters", "marked", 3, sample=k, threshold=50))
    return rows


def test_the_table_says_what_the_records_say():
    lines = ablate.table(made_up()).splitlines()
    assert lines[2:6] == ["| ablated sample | 100.0 ± 0.0 | +200.0 ± 12.7 | +0.0 ± 0.0 | +5.0 ± 0.0 |",
                          "| same class | 100.0 ± 0.0 | +50.0 ± 12.7 | +0.0 ± 0.0 | +5.0 ± 0.0 |",
                          "| other classes | 100.0 ± 0.0 | +20.0 ± 12.7 | +0.0 ± 0.0 | +5.0 ± 0.0 |",
                          "| parameters zeroed, on average |  | 7 | 7 | 3 |"]  # fmt: skip
    assert "2 ablated training samples, seed 0, latent mean; ablation: 1.000% of the parameters" in lines[7]
    assert "at least 50" in lines[7]
    assert lines[11] == ("| ablated sample | +3.0 ± 0.0 | 0.4000 ± 0.0000 | 0.5000 ± 0.0000 | 0.125 ± 0.000 | "
                         "0.7000 ± 0.0000 |")
    assert lines[12].startswith("| same class | +3.0 ± 0.0 | 0.3000 ± 0.0000 |")
    assert "published" not in ablate.table(made_up(published=0)).splitlines()[7]


def test_claims_follow_the_records():
    text = ablate.claims(made_up())
    assert "undoes the reconstruction of its sample holds (its loss +200.0 ± 12.7 nats, 3.0 times as before" in text
    assert ("samples are unaffected does not hold (+50.0 ± 12.7 nats on its class, +20.0 ± 12.7 on other classes, 10% "
            "of what it does to the sample)") in text
    assert "trained without the sample, does not hold (distance on the sample +0.3000 ± 0.0000)" in text
    assert "by 0.4000 ± 0.0000 and those of other classes by 0.3000 ± 0.0000, 75% as far" in text
    assert "nothing left out moves them by 0.2500.)" in text
    assert "counterfactual" not in ablate.claims(made_up(against="random"))


def test_more_retrained_than_ablated_samples_are_refused(small_run, tmp_path, call):
    code, _, err = call("ablate", "--run", small_run, "--results", tmp_path, "--samples", 2, "--sweep", "--against",
                        "retrain", "--sweep-samples", 1, "--retrained", 3)  # fmt: skip
    assert (code, err) == (2, "ablate.py: --retrained 3: only 2 --samples are ablated beside them\n")


def test_retraining_leaves_one_digit_out_and_nothing_else_changes():
    """With the digit's image replaced, a training without it stays the same bit for bit; one with it does not."""
    digits, _ = datasets.training_split((0,), 32, 0, 3)
    other = datasets.Digits(digits.images.clone(), digits.labels)
    other.images[5] = 1 - other.images[5]
    weights = lambda data, omit: ablate.retrain(OPTIONS, data, omit, 2, torch.device("cpu")).fc_mu.weight
    assert torch.equal(weights(digits, 5), weights(other, 5))
    assert not torch.equal(weights(digits, None), weights(other, None))
    assert not torch.equal(weights(digits, 5), weights(digits, None))


def test_the_script_measures_every_split_and_arm(small_run, tmp_path, call):
    code, out, err = call("ablate", "--run", small_run, "--results", tmp_path, "--samples", 3, "--sweep", 0.001, 0.01,
                          "--sweep-samples", 2, "--against", "retrain", "--retrained", 1)  # fmt: skip
    assert (code, err) == (0, "")
    assert "ablated to retrained" in out
    rows = storage.read_lines(tmp_path / "metrics.jsonl")
    loss = [row for row in rows if row["metric"] == "vae_loss" and "sample" in row["setting"]]
    assert len(loss) == 3 * 3 * (3 + 3) + 3 * 3 * 2 * 2  # arms x splits x samples: main, published, two fractions
    assert all(row["value"] > 0 for row in loss)
    counts = {row["split"]: row["n"] for row in loss if row["setting"] == {"sample": loss[0]["setting"]["sample"]}}
    assert counts["ablated sample"] == 1
    assert sum(counts.values()) == 32
    for name in ("realistic_ablation.png", "sweep.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    marked = [row for row in rows if row["metric"] == "marked" and row["setting"].get("fraction") == 0.01]
    assert [row["value"] for row in marked] == [9906, 9906]


def test_samples_do_not_leak_into_each_other(small_run, tmp_path, call):
    """The records of the first two samples are the same whether a third is measured or not."""
    rows = []
    for count in (2, 3):
        folder = tmp_path / str(count)
        call("ablate", "--run", small_run, "--results", folder, "--samples", count, "--sweep", "--sweep-samples", 1)
        found = storage.read_lines(folder / "metrics.jsonl")
        rows.append({(r["arm"], r["split"], r["metric"], str(r["setting"])): r["value"] for r in found})
    assert rows[0].items() <= rows[1].items()
    assert len(rows[0]) < len(rows[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu(small_run, tmp_path, call):
    values = []
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        call("ablate", "--run", small_run, "--results", folder, "--samples", 2, "--sweep", "--device", device)
        values.append([row["value"] for row in storage.read_lines(folder / "metrics.jsonl")])
    assert values[0] == pytest.approx(values[1], rel=1e-3)

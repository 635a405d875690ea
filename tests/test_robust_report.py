"""Plan, tables, claims and figures of part 6: every arm has its runs, and a record finds its arm again."""

import shutil

import pytest
import torch

import backbones
import experiment
import storage
from robust_training import bench, digits, inpaint, plan, report, show, train


def record(words, split, metric, value, seed, n=2000, **setting):
    options = report.options_of(words)
    return {"experiment": "train", "arm": options["inpaint"], "split": split, "metric": metric, "value": value,
            "n": n, "seed": seed, "setting": setting, "options": options}  # fmt: skip


def runs(words, values, split="flip", metric="accuracy"):
    """Records of a run for each seed of values."""
    return [record(f"{words} --seed {seed}".strip(), split, metric, value, seed) for seed, value in values.items()]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_plan_holds_what_is_compared_over_the_published_seeds():
    arms = plan.arms()
    assert len(set(arms.values())) == len(arms)
    assert len(plan.commands(arms)) == 3 * len(arms)
    for name in ("plain", "Sal", "CF cagan", "F pgd + Sal", "CF tile + F mixed_rand", "mixup", "group-DRO", "mask_o"):
        assert name in arms
    everything = plan.everything()
    assert len(set(everything)) == len(everything)
    for words in everything:
        train.check(report.options_of(words) | {"infills": None, "devices": 1})


def test_records_find_their_arm_and_gains_are_paired():
    rows = runs("", {5: 0.1, 10: 0.2}) + runs("--inpaint tile", {5: 0.5, 10: 0.4, 100: 1.0})
    rows += runs("--inpaint tile --lr 0.1", {5: 0.0})  # of no arm
    rows.append(record("--seed 5", "flip", "accuracy", 0.9, 5, bin=3))  # a point of a curve
    found = report.by_arm(rows, plan.commands(plan.arms()))
    table = report.accuracies(found, plan.augmented()).splitlines()
    assert len(table) == 4
    tile = cells(table[3])
    assert tile[0] == "CF tile"
    assert tile[2].startswith("63.3 ±")
    assert tile[-2].startswith("+30.0 ±")  # without seed 100, which plain training lacks
    assert tile[-1] == "3"


def test_what_saliency_adds_is_paired_with_the_same_augmentation():
    saliency = plan.penalised("bbox_o", plan.TAKEN["bbox_o"])
    rows = runs("", {5: 0.1}) + runs(saliency, {5: 0.3}) + runs("--inpaint tile", {5: 0.5})
    rows += runs(f"--inpaint tile {saliency}", {5: 0.4})
    for words in ("", saliency, "--inpaint tile", f"--inpaint tile {saliency}"):
        rows += runs(words, {5: 0.25}, "original, grad_y", "inside")
    table = report.crossed(report.by_arm(rows, plan.commands(plan.arms()))).splitlines()
    assert [cells(line)[0] for line in table[2:]] == ["plain", "CF tile"]
    assert [cells(line)[-2] for line in table[2:]] == ["+20.0", "-10.0"]
    assert cells(table[2])[1:5] == ["10.0", "30.0", "0.250", "0.250"]


def test_the_largest_coefficient_that_costs_little_is_taken():
    rows = [(None, 0, 0.95), ("bbox_o", 1e3, 0.96), ("bbox_o", 1e4, 0.93), ("bbox_o", 1e5, 0.90), ("gs", 1, 0.5)]
    assert report.chosen(rows) == {"bbox_o": 1e4}


def test_the_coefficients_of_the_plan_are_those_that_its_rule_takes_from_the_records():
    rows = report.searched(report.read())
    assert {(name, value) for name, value, _ in rows} == set(plan.search().values())
    assert report.chosen(rows) == plan.TAKEN


def test_claims_follow_the_differences():
    rows = runs("", {5: 0.1, 10: 0.11, 100: 0.12})
    rows += runs(plan.penalised("bbox_o", plan.TAKEN["bbox_o"]), {5: 0.1, 10: 0.13, 100: 0.11})
    rows += runs("--f-inpaint mixed_rand", {5: 0.9, 10: 0.9, 100: 0.9})
    rows += runs("--group-dro 0.01", {5: 0.8, 10: 0.81, 100: 0.82})
    rows += runs("--inpaint tile --f-inpaint mixed_rand", {5: 0.7, 10: 0.7, 100: 0.7})
    told = report.claims(report.by_arm(rows, plan.commands(plan.arms()))).splitlines()
    assert told[0] == "- That factuals (F mixed_rand) raise it holds (+79.0 ± 2.5 points, 3 seeds)."
    assert told[1].endswith("than F alone does not hold (-20.0 ± 0.0 points, 3 seeds).")
    assert "the saliency penalty alone (Sal) raises accuracy on flipped grounds is not decided" in told[2]
    assert told[3].endswith("ground of every image does not hold (-11.0 ± 2.5 points, 3 seeds).")
    assert len(told) == 4


def test_contrast_is_of_means_of_arms_seed_by_seed():
    found = {"a": {("flip", "accuracy"): {5: 0.4, 10: 0.6}}, "b": {("flip", "accuracy"): {5: 0.2, 10: 0.2}},
             "c": {("flip", "accuracy"): {5: 0.1}}}  # fmt: skip
    assert report.contrast(found, ["a", "b"], ["c"]).mean == pytest.approx(20)
    assert report.contrast(found, ["a", "b"], ["d"]) is None


def test_nothing_measured_is_said():
    blocks = report.blocks([])
    for name in ("part 6", "part 6 crossed", "part 6 penalties", "part 6 coefficients", "part 6 two", "part 6 claims",
                 "part 6 inpainting"):  # fmt: skip
        assert blocks[name] == report.UNMEASURED


def test_bins_of_several_seeds_are_pooled_by_their_sizes():
    rows = []
    for seed, n, right in ((5, 300, 0.5), (10, 100, 0.9)):
        rows += [record(f"--seed {seed}", "flip", "reliability", right, seed, n, bin=8),
                 record(f"--seed {seed}", "flip", "confidence", 0.85, seed, n, bin=8)]  # fmt: skip
    rows += [record("--seed 5", "flip", "reliability", 1.0, 5, 3, bin=1),
             record("--seed 5", "flip", "confidence", 0.15, 5, 3, bin=1)]  # fmt: skip
    assert show.bins_of(rows, "") == [(pytest.approx(0.85), pytest.approx(0.6))]  # three images are no bin


def test_the_figures(tmp_path, call, monkeypatch):
    monkeypatch.setitem(digits.NUMBER, "train", 100)
    monkeypatch.setitem(digits.NUMBER, "test", 100)
    monkeypatch.setattr(show, "SEEN", ("plain", "Sal"))
    rows = runs("", {5: 0.1, 10: 0.2}) + runs("--inpaint tile", {5: 0.5})
    rows = [row for one in rows for row in (one, one | {"split": "original"}, one | {"split": "mixed_rand"})]
    storage.write_atomically(tmp_path / "metrics_seed5.jsonl", "".join(map(storage.json_line, rows)))
    arguments = ("--runs", tmp_path, "--results", tmp_path, "--images", "2")
    code, _, error = call("robust_training.show", *arguments)
    assert code == 2
    assert "best.pt is missing: python -m robust_training.train --seed 5" in error
    with experiment.seeded(0, "tests"):
        model = backbones.build("small", 10)
    shutil.copytree(train.INPAINTER, tmp_path / train.INPAINTER.name)
    for arm in show.SEEN:
        name = train.name_of(report.options_of(f"{plan.arms()[arm]} --seed 5".strip()))
        made = {"name": "small", "settings": {"classes": 10}}
        storage.save_checkpoint(tmp_path / f"robust_{name}/ckpt/best.pt", {"architecture": made, "options": {},
                                                                          "model": model.state_dict(), "epoch": 1})
    assert call("robust_training.show", *arguments)[0] == 0
    for name in ("augmentations", "saliency", "accuracies", "reliability"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_there_are_ten_digits_to_show(tmp_path, call):
    code, _, error = call("robust_training.show", "--results", tmp_path, "--images", "11")
    assert code == 2
    assert "at most 10" in error


def test_the_inpainter_of_the_table_is_that_of_the_default_options():
    about = storage.plain_options(inpaint.options_of(**experiment.parse_options(inpaint, [])))
    rows = [{"experiment": "inpaint", "metric": "hole l1", "arm": "mean", "value": value, "n": 9, "options": options}
            for value, options in ((0.25, about), (0.5, about | {"labels": "two"}))]  # fmt: skip
    assert cells(report.inpainting(rows).splitlines()[-1]) == ["grey", "0.250", "9"]
    assert report.inpainting(rows[1:]) == report.UNMEASURED


def test_without_records_there_is_nothing_to_show(tmp_path, call):
    code, _, error = call("robust_training.show", "--results", tmp_path)
    assert code == 2
    assert "no records of the plan" in error


# --- speed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch():
    return next(iter(digits.read("ten", "val").batches(24)))


def test_the_loops_of_the_bench_make_the_same_pixels(batch):
    for name in bench.EXACT:
        made = bench.augment.counterfactual(name, batch, torch.Generator())
        assert torch.equal(bench.counterfactual_loop(name, batch), made)
    for made in (bench.counterfactual_loop("shuffle", batch), bench.factual_loop("shuffle", batch)):
        assert torch.equal(made.flatten(2).sort(2).values, batch.images.flatten(2).sort(2).values)
        assert not torch.equal(made, batch.images)
    for name in ("random", "mixed_rand"):
        made = bench.factual_loop(name, batch)
        kept = batch.masks.expand_as(made)
        assert torch.equal(made[kept], batch.images[kept])
        assert not torch.equal(made, batch.images)


def test_bench_measures_every_augmentation(call, tmp_path):
    words = "--batch 8 --steps 1 --repeats 1 --pgd-steps 1 --results"
    code, out, _ = call("robust_training.bench", *words.split(), tmp_path)
    assert code == 0
    rows = storage.read_lines(tmp_path / "metrics.jsonl")
    shares = {row["arm"]: row["value"] for row in rows if row["metric"] == "share_of_step"}
    assert set(shares) == {f"counterfactual {name}" for name in bench.augment.COUNTERFACTUALS} | {
        f"factual {name}" for name in bench.augment.FACTUALS}  # fmt: skip
    assert all(0 < share < 1 for share in shares.values())
    exact = [row["value"] for row in rows if row["metric"] == "difference" and row["value"] is not None]
    assert exact == [0, 0]
    assert "factual pgd" in out

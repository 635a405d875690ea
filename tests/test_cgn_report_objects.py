"""Part 5 at the scale of ImageNet: every command of the plan parses, and tables say what the records say."""

import importlib

import pytest
import torch

import experiment
import storage
from cgn import bench, bench_objects, evaluate, losses, plan_objects, report_objects, train_ensemble, train_objects

SCORED = {"seed": 0, "target": "biggan_objects64", "classifier": "ensemble_real", "reader": "ensemble_independent",
          "segmenter": "u2net64_objects64_seed1"}  # fmt: skip
PRESET = {"steps": 500, "batch": 32, "accumulate": 1}  # of objects64
ENSEMBLE = {"set": None, "folder": None, "backbone": "small", "weights": None, "steps": 2000, "batch": 64, "ratio": 1.0,
            "lr": 3e-3, "select": "last"}  # fmt: skip


def record(script, arm, split, metric, value, options, seed=0):
    return {"experiment": script, "arm": arm, "split": split, "metric": metric, "value": value, "n": 10, "seed": seed,
            "setting": {}, "options": options}  # fmt: skip


def score(metric, value, run=0, left_out=None, arm=None, **other):
    """run: the seed of the CGN's training."""
    count, splits, truncation = plan_objects.SCORED_AT
    trained = {"leave_out": left_out, "seed": run} | PRESET | other.pop("trained", {})
    options = SCORED | {"count": count, "splits": splits, "truncation": truncation, "trained": trained} | other
    arm = arm or (f"without {left_out}" if left_out else "all losses")
    return record("score_objects", arm, "objects64", metric, value, options)


def evaluated(on, head, split, metric, value, seed=0, trained=(), **folders):
    options = {"trained": ENSEMBLE | {"on": on, "seed": seed} | dict(trained)} | folders
    return record("evaluate", f"{on}, {head}", split, metric, value, options, seed)


def cells(table):
    """{first cell of a line: its other cells}."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {line[0]: line[1:] for line in lines}


@pytest.mark.parametrize("name", list(plan_objects.commands()))
def test_every_command_of_the_plan_parses(name):
    command = plan_objects.commands()[name]
    assert experiment.parse_options(importlib.import_module(command.script), command.words.split())


def test_whoever_is_needed_comes_first_and_runs_have_folders_of_their_own():
    commands = plan_objects.commands()
    names, runs = list(commands), [word for command in commands.values() if command.script.startswith("cgn.train_")
                                   for before, word in zip(command.words.split(), command.words.split()[1:],
                                                           strict=False) if before == "--run"]  # fmt: skip
    assert len(set(runs)) == len(runs) == 1 + len(plan_objects.SEEDS) * (len(plan_objects.LEFT_OUT) + 1 + 4)
    for name, command in commands.items():
        for user in command.needed_by:
            assert names.index(user) > names.index(name)


def test_the_plan_leaves_out_every_loss_and_trains_on_every_kind():
    words = [command.words for command in plan_objects.commands().values()]
    for seed in plan_objects.SEEDS:
        for loss in plan_objects.LEFT_OUT:
            assert any(f"--seed {seed} " in line and line.endswith(f"--leave-out {loss}") for line in words)
        for on in plan_objects.ON:
            assert any(line.startswith(f"--on {on} --seed {seed} ") for line in words)
    losses = train_objects.weights_of(train_objects.PRESETS["objects64"], None).keys() | train_objects.PARTS_OF
    halves = {"l1", "gram", "entropy", "area"}  # of the one or the other
    assert set(plan_objects.LEFT_OUT) == losses - halves
    assert set(plan_objects.FOLDERS) <= {name.lower() for name in vars(evaluate) if name.isupper()}
    assert plan_objects.SIZE == 20_000
    assert train_ensemble.RATIO == 1


def test_the_ablation_stands_beside_the_published_numbers():
    rows = [score("inception score", value, seed) for seed, value in enumerate((7.0, 8.0, 9.0))]
    rows += [score("mask iou", value, seed) for seed, value in enumerate((0.8, 0.9, 1.0))]
    rows += [score("inception score", 3.0, left_out="shape"), score("shape read", 0.25, left_out="shape")]
    rows += [score("inception score", 9.5, seed, arm="target") for seed in range(3)]
    rows += [score("inception score", 1.0, **other) for other in (  # other settings, judges and trainings
        {"count": 50}, {"truncation": 1.0}, {"seed": 3}, {"classifier": "resnet50"}, {"target": None},
        {"trained": {"steps": 20}})]  # fmt: skip
    rows += [score("mask iou", 0.1, segmenter="u2netp"), score("shape read", 0.1, left_out="shape", reader="mine")]
    table = cells(report_objects.losses_table(rows))
    assert table["none"] == ["130.2", "0.3", "156.1", "0.3", "8.00 ± 2.48", "–", "0.90 ± 0.25", "–", "–", "–", "–"]
    assert table["shape"][:6] == ["85.9", "0.2", "100.8", "0.3", "3.00 (n = 1)", "–"]
    assert table["shape"][8] == "25.0 (n = 1)"
    assert table["the BigGAN itself"][:5] == ["202.9", "–", "–", "–", "9.50 (n = 1)"]
    assert table["ground (ours)"][:4] == ["–"] * 4
    assert report_objects.losses_table([]) == report_objects.UNMEASURED


def test_a_loss_is_needed_where_fewer_shapes_are_read_without_it():
    rows = [score("shape read", value, seed) for seed, value in enumerate((0.7, 0.72, 0.74))]
    rows += [score("shape read", value, seed, "texture") for seed, value in enumerate((0.3, 0.31, 0.35))]
    rows += [score("shape read", value, seed, "shape") for seed, value in enumerate((0.71, 0.74, 0.72))]
    said = report_objects.losses_claims(rows)
    assert "texture: holds (-40.0 ± 2.5 points, 3 seeds)." in said
    assert "shape: is not decided (+0.3 ± 5.2 points, 3 seeds)." in said
    assert "reconstruction" not in said
    assert report_objects.losses_claims([]) == report_objects.UNMEASURED


def test_table_3_has_the_heads_shape_bias_and_what_is_missing():
    conflict = plan_objects.CONFLICTS
    rows = [evaluated("both", "shape", conflict, "shape bias", value, seed) for seed, value in enumerate((0.5, 0.7))]
    rows += [evaluated("real", "mean", "original", "top-1", 1.0)]
    table = cells(report_objects.table_3(rows))
    assert table["shape bias, shape"] == ["54.8", "49.1", "needs ImageNet", "–", "–", "60.0 ± 127.1 (n = 2)", "–"]
    assert table["top-1, mean"][:4] == ["74.0", "56.2", "needs ImageNet", "100.0 (n = 1)"]
    rows += [evaluated("both", "texture", conflict, "own label", 0.98)]
    assert cells(report_objects.table_3(rows))["reads its own label, texture"][-2:] == ["98.0 (n = 1)", "–"]
    rows += [evaluated("resnet50", "shape", "cue_conflict", "shape bias", 0.21, cue_conflict="folder")]
    assert cells(report_objects.table_3(rows))["shape bias, shape"][2] == "resnet50 21.0 (n = 1)"
    rows += [evaluated("both", "shape", "cue_conflict", "shape bias", value, seed, cue_conflict="folder")
             for seed, value in enumerate((0.5, 0.7, None))]  # of the last one nothing was decided for either
    assert cells(report_objects.table_3(rows))["shape bias, shape"][2] == (
        "resnet50 21.0 (n = 1); both 60.0 ± 127.1 (n = 2)")


@pytest.mark.parametrize("changes", [
    {"ratio": 0.5}, {"steps": 20}, {"lr": 1e-3}, {"backbone": "resnet18"}, {"select": "val mean"}, {"batch": 32},
    {"set": {"size": 100, "truncation": 1.0, "factual": False}},
    {"set": {"size": 20_000, "truncation": 0.5, "factual": False}},
    {"set": {"size": 20_000, "truncation": 1.0, "factual": True}},
])  # fmt: skip
def test_a_classifier_trained_otherwise_is_not_in_the_tables(changes):
    rows = [evaluated("both", "mean", "original", "top-1", 0.75, trained={
        "set": {"size": 20_000, "truncation": 1.0, "factual": False}})]  # fmt: skip
    rows += [evaluated("both", "mean", "original", "top-1", 0.5, trained=changes)]
    assert report_objects.top_1(rows, "mean", "original") == {"both": {0: 0.75}}


def test_table_4_names_the_head_of_each_of_our_rows():
    rows = [evaluated("both", head, split, "bg_gap" if split == "bg_gap" else "top-1", value)
            for head, value in (("mean", 0.9), ("background", 0.2)) for split in report_objects.SPLITS_4]
    table = cells(report_objects.table_4(rows))
    assert table["paper: IN + CGN"] == ["94.2", "83.4", "80.1", "3.3"]
    assert table["replication: IN-mini + CGN"] == ["86.8", "73.2", "68.3", "4.9"]
    assert table["ours, IN-9"] == ["needs IN-9, weights"] * 4
    assert table["ours, made set: real + counterfactual; background"] == ["20.0 (n = 1)"] * 4
    assert table["ours, made set: real; mean"] == ["–"] * 4
    rows += [evaluated("both", "shape and texture", split, "bg_gap" if split == "bg_gap" else "top-1", 0.8, in9="x")
             for split in report_objects.SPLITS_4]
    plain = {"trained": None, "in9": "x"}
    rows += [record("evaluate", "resnet50, mean", split, "bg_gap" if split == "bg_gap" else "top-1", 0.7, plain)
             for split in report_objects.SPLITS_4]
    table = cells(report_objects.table_4(rows))
    assert table["ours, IN-9: both"] == ["80.0 (n = 1)"] * 4
    assert table["ours, IN-9: resnet50"] == ["70.0 (n = 1)"] * 4


def test_off_the_distribution_answers_are_named():
    rows = [evaluated("real", "mean", "silhouette", "top-1", 0.1),
            evaluated("counterfactual", "shape", "silhouette", "top-1", 0.6),
            evaluated("counterfactual", "mean", "silhouette", "top-1", 0.3)]  # fmt: skip
    table = cells(report_objects.shifted_table(rows))
    assert table["top-1, %"][3:] == ["ours: real; mean", "ours: real + counterfactual; mean",
                                     "ours: real + counterfactual; shape", "ours: counterfactual; shape",
                                     "ours: true labels, independent; shape"]  # fmt: skip
    assert table["made set: silhouette"][3:] == ["10.0 (n = 1)", "–", "–", "60.0 (n = 1)", "–"]
    assert table["ImageNet-A"][:3] == ["1.39", "3.4", "needs ImageNet"]
    for split, option, value in (("imagenet-a", "ood", 0.02), ("imagenet-sketch", "ood", 0.25), ("val", "val", 0.76),
                                 ("cue_conflict", "cue_conflict", 0.18)):  # fmt: skip
        rows.append(record("evaluate", "resnet50, mean", split, "top-1", value, {"trained": None, option: "folder"}))
    table = cells(report_objects.shifted_table(rows))
    assert [table[name][2] for name in report_objects.SHIFTED] == [
        f"resnet50 {number} (n = 1)" for number in ("76.0", "2.0", "25.0", "18.0")]


def test_claims_are_decided_by_the_interval_of_paired_differences():
    right = {"real": (0.5, 0.6, 0.7), "both": (0.7, 0.81, 0.9)}
    rows = [evaluated(on, "mean", "mixed_rand", "top-1", value, seed)
            for on, values in right.items() for seed, value in enumerate(values)]
    rows += [evaluated("both", "mean", "original", "top-1", 0.9, 7),
             evaluated("real", "mean", "original", "top-1", 1.0)]  # fmt: skip
    said = report_objects.claims(rows)
    assert "mixed-rand (mean of all heads) holds (+20.3 ± 1.4 points, 3 seeds)." in said
    assert "original" not in said  # no seed that both have
    rows = [evaluated("both", head, "counterfactual", "shape bias", value, seed)
            for head, values in (("shape", (0.9, 0.8)), ("texture", (0.1, 0.7))) for seed, value in enumerate(values)]
    assert "biased to shape than the texture's is not decided (+45.0 ± 444.7 points, 2 seeds)." in (
        report_objects.claims(rows))
    assert report_objects.claims([]) == report_objects.UNMEASURED


def test_top_1_by_arm_and_seed():
    rows = [evaluated("both", "shape", "counterfactual", "top-1", 0.6, seed) for seed in range(2)]
    rows += [evaluated("real", "mean", "counterfactual", "top-1", 0.2)]
    assert report_objects.top_1(rows, "shape", "counterfactual") == {"both": {0: 0.6, 1: 0.6}}


# --- speed -------------------------------------------------------------------------------------------------


def test_patches_at_once_are_those_of_the_loop():
    images, masks = torch.rand(3, 3, 40, 40) * 2 - 1, torch.rand(3, 1, 40, 40)
    settings = {"patch": 5, "best": 30, "grid": 4, "side": 32}
    at_once = losses.texture_grids(images, masks, experiment.generator(0, "p"), **settings)
    looped = bench_objects.one_by_one(images, masks, experiment.generator(0, "p"), **settings)
    torch.testing.assert_close(at_once, looped)


def test_operations_are_counted_and_held_against_a_product_of_matrices(monkeypatch):
    a, b = torch.rand(8, 16), torch.rand(16, 4)
    assert bench_objects.operations(bench.Side(lambda n: [a @ b for _ in range(n)], 1)) == 2 * 8 * 16 * 4
    monkeypatch.setitem(bench_objects.SIDE_OF_PRODUCT, "cpu", 64)
    monkeypatch.setattr(bench_objects, "per_second", lambda *_: 10.0)  # products a second
    assert bench_objects.matrix_rate(torch.device("cpu"), torch.float32, 1) == 10 * 2 * 64**3


def test_patches_are_drawn_from_their_stream():
    made = []
    for number in range(2):
        torch.manual_seed(number)
        made += bench_objects.patches(64, 2, 0, torch.device("cpu"), looped=False).run(1)
    assert torch.equal(*made)


def test_bench_measures_every_choice(call, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_objects, "compare", lambda ours, other, *_: (
        ours.run(1), other.run(1), (2.0, 20.0, 10.0))[2])  # fmt: skip
    monkeypatch.setitem(bench_objects.SIDE_OF_PRODUCT, "cpu", 64)
    code, _, error = call("cgn.bench_objects", "--batch", 2, "--device", "cpu", "--results", tmp_path)
    assert code == 0, error
    rows = storage.read_lines(tmp_path / "metrics.jsonl")
    wanted = {f"objects, channels-last, {what}" for what in ("training", "generation")} | {"objects, texture patches"}
    if experiment.precise(torch.device("cpu"), "auto") == torch.bfloat16:
        wanted |= {"objects, bfloat16, training", "objects, bfloat16, generation"}
    assert {row["arm"] for row in rows} == wanted
    assert all(row["value"] > 0 for row in rows)
    assert {row["options"]["baseline"] for row in rows} >= {"without", "image after image"}

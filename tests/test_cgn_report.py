"""Part 5's plan and tables: every command parses, and tables say what the records say."""

import functools
import importlib
from collections import Counter

import pytest
import torch

import experiment
import storage
from cgn import analyse, bench, plan, report

TRAINED = {"model": "cgn", "variant": "double_colored", "textures": None, "abduction": True, "edge": 0.0,
           "shape_adversary": 1, "texture_adversary": 1, "entropy": 0.1, "texture": 0.1}  # fmt: skip
SPLITS = ("train", "test", "visible", "wandering")


def record(experiment_name, arm, split, metric, value, seed, **options):
    setting = options.pop("setting", {})
    return {"experiment": experiment_name, "arm": arm, "split": split, "metric": metric, "value": value, "n": 10,
            "seed": seed, "setting": setting, "options": options}  # fmt: skip


def classified(arm, value, seed, split="test", **options):
    about = {"variant": "double_colored", "textures": None, "size": 100_000, "ratio": 1, "model": "reader",
             "batch": 256, "lr": 6e-3, "steps": plan.STEPS.get((arm,), 1000), "on": [arm], "checkpoint": None}
    return record("classify", arm, split, "accuracy", value, seed, **about | options)


@pytest.mark.parametrize("name", list(plan.commands("some/folder")))
def test_every_command_of_the_plan_parses(name):
    command = plan.commands("some/folder")[name]
    assert experiment.parse_options(importlib.import_module(command.script), command.words.split())


def test_the_plan_loses_no_command_and_each_run_is_trained_for_whoever_wants_it():
    found = plan.commands("T")
    scripts = Counter(command.script for command in found.values())
    losses = sum("abduction" not in what for what in plan.LEFT_OUT)
    retrained = 5 * (len(plan.LEFT_OUT) - losses) + 3 * losses
    assert scripts["cgn.train"] == 5 * 4 * 2 + retrained  # 4: three variants, and wildlife with the published textures
    assert scripts["cgn.analyse"] == 5 * 4 + retrained + 1  # the VAE
    assert {"cgn.data", "cgn.bench"} <= scripts.keys()
    for command in found.values():
        assert all(user in found for user in command.needed_by)
        if command.script == "cgn.train":
            assert command.needed_by


def test_the_plan_has_five_seeds_of_every_arm_and_variant():
    lines = [command.words for command in plan.commands("T").values() if command.script == "cgn.classify"]
    for seed in range(5):
        for variant in ("colored", "double_colored", "wildlife"):
            for on in ("original", "gan", "cgn", "abducted", "original gan", "original cgn"):
                assert any(line.startswith(f"--variant {variant} --seed {seed} --on {on}") for line in lines)
        assert any(f"--variant wildlife --seed {seed} --textures T/textures --on cgn" in line for line in lines)


def test_accuracies_are_means_in_per_cent_beside_the_published():
    rows = [classified("cgn", 0.8 + 0.01 * seed, seed, split)
            for seed in range(5) for split in SPLITS]
    rows += [classified("original", 0.1, 0, split) for split in SPLITS]
    rows.append(classified("cgn", 0.5, 0, size=10_000))  # of the sweep
    rows.append(classified("cgn", 0.5, 0, generator="checkpoint"))  # of a published generator
    rows.append(classified("cgn", 0.5, 0, generator="cgn_without_entropy_seed0"))
    table = report.accuracies(rows, "double_colored").splitlines()
    assert table[2] == "| original | 100 | 10.3 | 100 | 10.5 |" + 4 * " 10.0 (n = 1) |"
    assert table[3].startswith("| CGN, shapes sampled | 97.4 | 89 | 94.8 | 86.5 | 82.0 ± 2.0 | 82.0 ± 2.0 |")
    assert len(table) == 4


def test_claims_count_the_seeds_that_reach_the_paper():
    rows = [classified("abducted", value, seed) for seed, value in enumerate((0.9, 0.88, 0.895))]
    rows += [classified("cgn", value, seed) for seed, value in enumerate((0.8, 0.895, 0.7))]
    said = report.claims(rows)
    assert "paper 89; reached by 2 of 3 and 1 of 3 seeds" in said


def test_what_a_training_left_out_in_words():
    options = TRAINED
    assert report.left_out(options) == "all losses"
    assert report.left_out(options | {"entropy": 0, "texture": 0}) == "without entropy, texture"
    assert report.left_out(options | {"abduction": False, "edge": 0.1}) == "one adversary on images, edge 0.1"
    assert report.left_out(options | {"model": "published_cgn"}) == "the published recipe"


def test_masks_table_puts_each_training_beside_what_a_classifier_learned_from_it():
    rows = []
    for seed, (good, accuracy) in enumerate(((10, 0.9), (8, 0.8))):
        for abduction, name in ((True, "cgn_double_colored"), (False, "cgn_without_abduction")):
            about = {"trained": TRAINED | {"abduction": abduction, "seed": seed}, "generator": f"{name}_seed{seed}",
                     "count": analyse.COUNT}  # fmt: skip
            rows += [record("analyse", "cgn", "double_colored", metric, value - (not abduction) * 0.1, seed, **about)
                     for metric, value in (("good masks", good), ("masks read rightly", 0.9), ("mean mask", 0.2))]
            rows.append(classified("cgn", accuracy * abduction, seed, generator=about["generator"]))
    rows.append(classified("cgn", 0.1, 0, generator="cgn_double_colored_seed0", size=10_000))
    rows.append(record("analyse", "cgn", "double_colored", "good masks", 0, 0, **about | {
        "trained": TRAINED | {"seed": 0}, "count": 50}))  # fmt: skip
    lines = report.masks_table(rows).splitlines()[2:]
    assert lines[0] == ("| double-colored | all losses | 9.0 ± 12.7 (n = 2) | 90.0 ± 0.0 (n = 2) | 0.20 | "
                        "85.0 ± 63.5 (n = 2) |")
    assert lines[1] == ("| double-colored | one adversary on images | 8.9 ± 12.7 (n = 2) | 80.0 ± 0.0 (n = 2) | 0.10 | "
                        "0.0 ± 0.0 (n = 2) |")


def test_labels_table_is_of_the_trained_cgn_only():
    about = {"variant": "colored", "textures": None, "vae": False, "count": analyse.COUNT,
             "trained": TRAINED | {"seed": 0}}  # fmt: skip
    rows = [record("analyse", mechanism, "colored", "changed", float(mechanism == reader), 0,
                   setting={"reader": reader}, **about)
            for mechanism in ("shape", "object") for reader in ("shape", "object")]
    rows.append(record("analyse", "shape", "colored", "changed", 0.5, 0, setting={"reader": "object"},
                       **about | {"trained": "published"}))
    rows += [record("analyse", "shape", "colored", "changed", 0.5, 0, setting={"reader": "object"},
                    **about | {"trained": TRAINED | {"seed": 0} | changes})
             for changes in ({"entropy": 0}, {"abduction": False}, {"model": "published_cgn"})]
    moved = functools.partial(record, "analyse", "shape", "colored", "changed", setting={"reader": "object"})
    rows.append(moved(0.25, 0, **about | {"precision": "float32"}))  # the same seed analysed again: the last one counts
    rows.append(moved(0.5, 0, **about | {"count": 50}))
    lines = report.labels_table(rows, "colored").splitlines()
    assert lines[2] == "| shape | 100.0 (n = 1) | 25.0 (n = 1) |"
    assert lines[3] == "| object | 0.0 (n = 1) | 100.0 (n = 1) |"


def test_without_records_every_block_says_so():
    assert {name: text for name, text in report.blocks([]).items() if text != report.UNMEASURED} == {
        "part 5 published": "The published generators have not been measured."}  # fmt: skip


def test_bench_measures_every_case(call, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "compare", lambda ours, baseline, steps, repeats, device: (
        ours.run(1), baseline.run(1), (2.0, 20.0, 10.0))[2])  # fmt: skip
    code, _, error = call("cgn.bench", "--results", tmp_path, "--precision", "float32")
    assert code == 0, error
    rows = storage.read_lines(tmp_path / "metrics.jsonl")
    halves = {"bfloat16, cgn training", "bfloat16, classifier"}
    multiplies = experiment.precise(torch.device("cpu"), "auto") == torch.bfloat16
    assert {row["arm"] for row in rows} == {"cgn training", "cgn generation", "cgn classifier",
                                            "statistics measured once"} | (halves if multiplies else set())
    assert {row["experiment"] for row in rows} == {"cgn.bench"}
    assert {row["metric"] for row in rows} == {"speedup", "images_a_second", "baseline_images_a_second"}

"""Part 3: independent scores, fair arms, exact repetition, and a report that follows its records."""

import copy
import multiprocessing
import time
import types

import pytest
import torch

import ablate
import experiment
import finetuning_report as report
import selection
import storage
import targeted_finetuning as tf
import train
from experiment import UserError

SCORES = selection.Scores(gain=torch.tensor([0.3, -0.1, 0.2, 0.0]), error=torch.tensor([1.0, 4.0, 2.0, 3.0]),
                   gradient=torch.tensor([5.0, 7.0, 8.0, 6.0]))  # fmt: skip


@pytest.mark.parametrize(("arm", "chosen"), [
    ("targeted", [1, 3]), ("easy", [0, 2]), ("hard", [1, 3]), ("gradient", [2, 1]), ("full", [0, 1, 2, 3]),
])  # fmt: skip
def test_arms_choose_what_their_names_say(arm, chosen):
    assert selection.choose(arm, SCORES, 2, None).tolist() == chosen


def test_the_random_arm_is_of_equal_size_and_seeded():
    draw = lambda seed: selection.choose("random", SCORES, 2, experiment.generator(seed, "random arm/4")).tolist()
    draws = [draw(seed) for seed in range(40)]
    assert all(len(set(draw)) == 2 for draw in draws)
    assert draws[3] == draw(3)
    assert len({tuple(sorted(draw)) for draw in draws}) == 6


def test_how_many_are_kept():
    assert selection.how_many(SCORES.gain, 0.5) == 2
    assert selection.how_many(SCORES.gain, 0.5, count=3) == 3
    assert selection.how_many(SCORES.gain, 0.5, count=3, threshold=0.01) == 2  # a rise of the error is below it
    for rule in ({"threshold": -1.0}, {"count": 5}, {"fraction": 0.01}):
        with pytest.raises(UserError, match="the selection is empty or too large"):
            selection.how_many(SCORES.gain, **({"fraction": 0.5} | rule))


def test_scores_do_not_depend_on_the_order_and_the_model_does_not_change(model, images):
    before = copy.deepcopy(model.state_dict())
    there, back = selection.score(model, images, 0.001), selection.score(model, images.flip(0), 0.001)
    for a, b in zip(there, back, strict=True):
        assert torch.allclose(a, b.flip(0), atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.allclose(there.error, train.metrics.squared_errors(model, images), atol=1e-7)


def test_published_scores_do_depend_on_the_order(images):
    model, _, _ = train.load_vae("runs/vae_512_no0", None, "cpu")
    before = copy.deepcopy(model.state_dict())
    noise = selection.noise_of_steps(model, 12, experiment.generator(0, "c"))
    there = selection.cumulative_gain(model, images, 0.001, noise)
    back = selection.cumulative_gain(model, images.flip(0), 0.001, noise.flip(0))
    assert not torch.allclose(there, back.flip(0), atol=1e-3)
    assert (there >= 0).all()  # the absolute change, as published
    assert torch.equal(there, selection.cumulative_gain(model, images, 0.001, noise))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_first_published_score_is_that_of_one_step(model, images):
    """Of the first image nothing came before: its score is the change by its own step, at the noise drawn for it."""
    noise = selection.noise_of_steps(model, 1, experiment.generator(0, "c"))
    before, during, after = noise[0]
    grads = ablate.error_gradients(model, images[:1], during[None])
    stepped = ablate.move(model, {name: grad.sign() for name, grad in grads.items()}, 0.001)
    gain = model.squared_error(images[:1], before[None]) - stepped.squared_error(images[:1], after[None])
    assert torch.allclose(selection.cumulative_gain(model, images[:1], 0.001, noise), gain.abs(), atol=1e-7)


def test_rank_correlation():
    a = torch.tensor([0.1, 5.0, 2.0, 3.0])
    assert selection.rank_correlation(a, a.exp()) == pytest.approx(1)
    assert selection.rank_correlation(a, -a) == pytest.approx(-1)
    assert selection.rank_correlation(a, torch.tensor([2.0, 3.0, 1.0, 4.0])) == pytest.approx(0.6)  # 1 - 6 * 4 / 60


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        selection.how_many(torch.tensor([0.1, float("nan")]), 0.5)


def test_finetuning_that_diverges_is_a_user_error(model, images):
    with pytest.raises(UserError, match="finetuning diverged"):
        tf.finetune(model, images * float("inf"), torch.tensor([0]), 1e-3, 1, 0)


def test_finetuning_learns_repeats_and_leaves_the_model_alone(model, images):
    before = copy.deepcopy(model.state_dict())
    chosen = torch.tensor([0, 3, 5])
    tuned = tf.finetune(model, images, chosen, 1e-3, 4, seed=0)
    again = tf.finetune(model, images, chosen, 1e-3, 4, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    errors = lambda net: train.metrics.squared_errors(net, images[chosen]).mean()
    assert errors(tuned) < errors(model)


def test_only_the_chosen_images_are_seen(model, images):
    other = images.clone()
    other[1] = 1 - other[1]
    a, b = (tf.finetune(model, x, torch.tensor([0, 2]), 1e-3, 2, 0) for x in (images, other))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_samples_from_the_prior_are_compared_with_all_test_digits(monkeypatch):
    """A decoder that gives its latents back, and features that are the pixels, here two.

    Test digits (0, 0), (2, 0), (0, 2), (2, 2): mean (1, 1), covariance 4/3 on the diagonal. Samples that are the same
    but for a shift by (3, 4): the distance is 3^2 + 4^2, and what is compared is as many samples as test digits.
    """
    digits = torch.tensor([[0.0, 0], [2, 0], [0, 2], [2, 2]])
    lab = object.__new__(tf.Lab)
    lab.model = types.SimpleNamespace(noise=lambda n, stream: (digits + torch.tensor([3.0, 4.0]))[:n],
                                      decode=lambda z: z)  # fmt: skip
    lab.test, lab.networks, lab.real = digits, {"": None, "inception_": None}, {"": digits.double(),
                                                                               "inception_": digits[:1].double()}
    monkeypatch.setattr(tf.metrics, "features", lambda network, images: images.double())
    rows = lab.measure_samples(lab.model, 0)
    assert rows == [("all", "frechet_samples", pytest.approx(25, abs=1e-9), 4),
                    ("all", "inception_frechet_samples", None, 4)]  # fmt: skip


def test_every_arm_and_seed_has_its_job():
    jobs = tf.plan(seeds=3, sizes=(8, 16), sweep=(0.25,), sweep_seeds=1)
    assert len(set(jobs)) == len(jobs) == 3 * 2 + 3 * 2 * len(report.ARMS) + 2 * 2
    assert tf.Job("targeted", 0, 16, 0.25).setting == {"size": 16, "fraction": 0.25}
    assert [job.size or 0 for job in jobs] == sorted((job.size or 0 for job in jobs), reverse=True)


TINY = ["--sizes", 24, "--sweep", 0.25, "--sweep-seeds", 1, "--test", 400, "--epochs", 1]


def test_the_script_in_its_processes(tmp_path, call):
    code, out, err = call("targeted_finetuning", *TINY, "--seeds", 2, "--results", tmp_path)
    assert code == 0
    assert "targeted: smallest gain" in out
    assert err.startswith("Inception FID left out")
    rows = storage.read_lines(tmp_path / "metrics.jsonl")
    seen = {(row["arm"], row["setting"].get("size")): row["value"] for row in rows if row["metric"] == "samples_seen"
            and "fraction" not in row["setting"]}  # fmt: skip
    assert seen["targeted", 24] == seen["random", 24] == seen["hard", 24] == 13
    assert seen["full", 24] == 24
    undefined = [row for row in rows if row["metric"] == "frechet" and row["split"] == "new digit"]
    assert undefined
    assert all(row["value"] is None and row["n"] < 256 for row in undefined)
    assert not (tmp_path / "partial.jsonl").exists()
    assert (tmp_path / "fractions_24.png").stat().st_size > 10_000


def test_a_killed_run_goes_on_where_it_was(tmp_path, call, monkeypatch):
    """Stopped after three of its jobs, it measures only the others, and ends with the records of a whole run."""
    done = []

    def serial(jobs, arguments, workers, device, stop_after=None):
        for job in jobs:
            if len(done) == stop_after:
                raise KeyboardInterrupt
            done.append(job)
            yield tf.timed(job, arguments)

    values = {}
    for name, stops in (("whole", (None,)), ("killed", (3, None))):
        for stop in stops:
            done.clear()
            monkeypatch.setattr(tf, "results_of", lambda *a, stop=stop: serial(*a, stop_after=stop))
            code, _, _ = call("targeted_finetuning", *TINY, "--seeds", 1, "--results", tmp_path / name)
            assert code == (0 if stop is None else 130)
        rows = storage.read_lines(tmp_path / name / "metrics.jsonl")
        values[name] = {(r["arm"], r["split"], r["metric"], r["seed"], str(r["setting"])): r["value"] for r in rows
                        if not r["metric"].endswith("seconds")}  # fmt: skip
    assert values["whole"] == values["killed"]
    assert len(done) == len(tf.plan(1, (24,), (0.25,), 1)) - 3


def test_arms_of_other_weights_are_measured_again(tmp_path, monkeypatch):
    """partial.jsonl knows which weights its arms are of; the records that are kept say no more than they did."""
    monkeypatch.setattr(tf, "results_of", lambda jobs, *_: ((job, [("all", "mse", 1.0, 1)], 0.0) for job in jobs))
    cpu, jobs, known = torch.device("cpu"), [tf.Job("before", 0), tf.Job("before", 1)], []
    for weights in (["a", "c"], ["a", "c"], ["b", "c"]):
        records = storage.Records(tmp_path, "x", {"run": "same"}, cpu)
        partial = tf.run_jobs(jobs, None, weights, 1, cpu, records)
        known.append(len(storage.read_lines(partial.path)))
        assert [row["options"] for row in records.rows] == [{"run": "same"}] * 2
    assert known == [2, 2, 4]


def failing(job, arguments):
    """In place of a job: it leaves a mark, and the first one fails."""
    (arguments / str(job)).touch()
    time.sleep(0.1 if job else 0)
    if not job:
        raise UserError("the first job failed")


def test_after_an_error_no_further_job_begins(tmp_path, monkeypatch):
    """With one worker, a few jobs may be on their way to it when the first one fails; the others are not begun."""
    monkeypatch.setattr(tf, "timed", failing)
    monkeypatch.setattr(tf.torch.multiprocessing, "get_context", lambda kind: multiprocessing.get_context("fork"))
    with pytest.raises(UserError, match="the first job failed"):
        list(tf.results_of(range(23), tmp_path, 1, torch.device("cpu")))
    for worker in multiprocessing.active_children():
        worker.join(10)
    assert len([*tmp_path.iterdir()]) < 10


# --- the report -----------------------------------------------------------------------------------------


def made_up(targeted, random, seeds=4):
    """Records in which every metric of an arm is one number, a little different for each seed."""
    options = {"seeds": seeds, "sizes": [8], "sweep_seeds": seeds}
    level = {"before": 4.0, "targeted": targeted, "random": random, "full": 2.0, "easy": 3.0, "hard": 3.0,
             "gradient": 3.0}  # fmt: skip
    rows = []
    for seed in range(seeds):
        for arm, value in level.items():
            setting = {} if arm == "before" else {"size": 8}
            for split in ("new digit", "others", "all"):
                for metric in ("mse_sampled", "mse", "frechet", "frechet_samples", "kernel_distance"):
                    rows.append({"experiment": "x", "arm": arm, "split": split, "metric": metric, "n": 9, "seed": seed,
                                 "value": value + 0.02 * seed, "setting": setting, "options": options})  # fmt: skip
            for metric in ("kept", "samples_seen", "finetuning_seconds", "scoring_seconds"):
                if arm != "before":
                    rows.append({"experiment": "x", "arm": arm, "split": "new digits", "metric": metric, "n": 9,
                                 "seed": seed, "value": 8.0 + seed if arm == "full" else 3.5, "setting": setting,
                                 "options": options})  # fmt: skip
    return rows


def test_claims_follow_the_records():
    good, bad = report.claims(made_up(1.0, 3.0)), report.claims(made_up(5.0, 3.0))
    assert "Over 4 seeds" in good
    assert good.count(" holds (") == 6
    assert good.count("does not hold") == 0
    assert "scoring included, holds (3.5 s + 3.5 s against 9.5 s: -2.5 ± 2.1 s)" in good
    assert bad.count("does not hold") == 5
    assert "MSE on the new digit -2.00000" in good
    assert "With 8 new digits" in good


def test_table_golden():
    lines = report.table(made_up(1.0, 3.0)).splitlines()
    assert lines[2] == ("| before | – | – | 4.03000 ± 0.04109 | 4.03000 ± 0.04109 | 4.03 ± 0.04 | 4.03 ± 0.04 | "
                        "4.030 ± 0.041 | 4.0 ± 0.0 | – |")
    assert lines[3].startswith("| targeted: smallest gain | 4 | 4 | 1.03000 ± 0.04109 |")
    assert len([line for line in lines if line.startswith("|")]) == 2 + 7


def test_published_numbers_stand_beside_ours():
    text = report.published_table(made_up(1.0, 3.0), [], size=8)
    assert "| zeros, targeted | 0.02065 and 0.02094 | 1.03000 ± 0.04109 |" in text
    assert len(text.splitlines()) == 2 + 10
    assert "| other digits, before, latent mean | checkpoint 0.0191 | 4.03000 ± 0.04109 |" in text

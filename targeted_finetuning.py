"""Does reverse ablation find the samples worth finetuning on? (README, part 3)

    python targeted_finetuning.py                              # 45 min on 2 cores; goes on where it was killed
    python targeted_finetuning.py --seeds 2 --sizes 512 --sweep 0.1 0.5 --results results/quick/mine     # 3 min
    python targeted_finetuning.py --sweep --threshold 0.01     # keep by threshold, as published; or --count 287

After Constructive Counterfactuals, part 3 (Buckhouse): a sample's score is how much its own reverse-ablation step
lowers its error; samples with a low score are kept, the VAE is finetuned on them, and compared with finetuning on as
many others. Writes RESULTS/fractions_512.png, fractions_2048.png and metrics.jsonl.
"""

import copy
import functools
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tqdm import tqdm

import datasets
import experiment
import finetuning_report as report
import metrics
import selection
import storage
import train

# --- what is finetuned, on what ---------------------------------------------------------------
RUN: Path = Path("runs/vae_512_no0")  # a run folder of train.py
CHECKPOINT: Path | None = None  # other weights for it: any checkpoint of the same model
CLASSIFIER: Path = Path("runs/mnist_cnn")  # a run folder; its features measure the Fréchet distances
DIGIT: experiment.Digit = 0  # the digit that the run has never seen
SIZES: tuple[experiment.Count, ...] = (512, 2048)  # new digits, drawn anew for each seed; published: both
LR: experiment.Positive = 1e-5  # Adam, a fresh one for each arm; published
EPOCHS: experiment.Count = 5  # published; batches of one image, as published, squared error, sampled latents

# --- how samples are scored and kept ----------------------------------------------------------------
STRENGTH: experiment.Positive = 0.001  # of the reverse-ablation step; published
FRACTION: experiment.Fraction = 0.56  # share of the new digits that is kept; published: 287 of 512
COUNT: experiment.Count | None = None  # number that is kept, instead of a fraction
THRESHOLD: experiment.Finite | None = None  # keep the scores below it, instead; published: 0.01
CUMULATIVE: bool = False  # score as published: each step taken on top of the last, new noise, |change|

# --- on how much it is measured -----------------------------------------------------------------------
SEEDS: experiment.Count = 10  # seeds 0, 1, ...: new digits, order, noise, random choice
SWEEP: tuple[experiment.Fraction, ...] = (0.05, 0.1, 0.25, 0.75)  # kept fractions besides FRACTION and 1
SWEEP_SEEDS: experiment.Index = 5  # seeds of the sweep
TEST: experiment.Count = 10_000  # test digits that are measured on, from the first
INCEPTION: Literal["cached", "fetch", "off"] = "cached"  # Inception FID: if its weights are here, or fetched
WORKERS: experiment.Index = 0  # processes of one thread each; 0 is one a core
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/targeted_finetuning")  # where figures and records go


# --- finetuning and measuring ------------------------------------------------------------------------------


def finetune(model, images, chosen, lr, epochs, seed):
    """A copy of the model, finetuned on images[chosen] one at a time. Noise belongs to (seed, epoch, image)."""
    model = copy.deepcopy(model)
    optimizer = train.adam(model, lr)
    for epoch in range(epochs):
        order = chosen[torch.randperm(len(chosen), generator=experiment.generator(seed, f"finetuning order/{epoch}"))]
        noise = model.noise(len(images), experiment.generator(seed, f"finetuning noise/{epoch}"))
        for i in order.tolist():
            optimizer.zero_grad()
            model.squared_error(images[i : i + 1], noise[i : i + 1]).mean().backward()
            optimizer.step()
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise experiment.UserError("finetuning diverged: the weights are not finite; a smaller --lr is worth a try")
    return model


class Lab:
    """What every arm is measured with: the model before, the test digits on named splits, and feature networks."""

    def __init__(self, run, checkpoint, classifier, digit, test, inception, device):
        self.device = torch.device(device)
        self.model, options, _ = train.load_vae(run, checkpoint, self.device)
        train.refuse_known(options, digit)
        new = datasets.mnist("train", self.device)
        self.new = new[datasets.of_class(new, digit)]
        self.test = datasets.mnist("test", self.device)
        if test > len(self.test):
            raise experiment.UserError(f"--test {test}: the test set has {len(self.test)} digits")
        self.test = self.test[:test]
        mine = datasets.of_class(self.test, digit)
        self.splits = {"new digit": mine, "others": ~mine, "all": torch.ones_like(mine)}
        self.networks = {"": train.load_classifier(classifier, self.device)}
        if inception != "off":
            network, self.line = metrics.Inception.load(inception == "fetch", self.device)
            self.networks |= {"inception_": network} if network else {}
        self.real = {name: metrics.features(net, self.test.images) for name, net in self.networks.items()}

    def digits(self, size, seed):
        """The new digits (size, 1, 28, 28) of a seed; those of a smaller size come first."""
        return datasets.draw(self.new, size, seed, "new digits").images

    def measure(self, model, seed, everything):
        """[(split, metric, value or None, n)] of a model on the test digits.

        mse: with the latent mean; mse_sampled: with sampled latents, as published. frechet and kernel_distance:
        between the test digits and their reconstructions from sampled latents; frechet_samples: between all test
        digits and as many samples from the prior. everything: False leaves out all but mse, mse_sampled, frechet.
        """
        noise = model.noise(len(self.test), experiment.generator(seed, "evaluation noise"))
        sampled = metrics.per_image(model.reconstruct, self.test.images, noise)
        errors = {"mse": metrics.squared_errors(model, self.test.images),
                  "mse_sampled": metrics.mean_squares(sampled, self.test.images)}
        rows = [(split, metric, *metrics.mean_where(values, part))
                for metric, values in errors.items() for split, part in self.splits.items()]
        for name, network in self.networks.items():
            if name and not everything:
                continue
            made = metrics.features(network, sampled)
            for split, part in self.splits.items():
                real, mine, n = self.real[name][part.cpu()], made[part.cpu()], int(part.sum())
                rows.append((split, f"{name}frechet", metrics.frechet_if_enough(real, mine), n))
                if everything and not name:
                    stream = experiment.generator(seed, f"kernel subsets/{split}")
                    value = metrics.kernel_distance(real, mine, min(500, n), stream)
                    rows.append((split, "kernel_distance", value, n))
        return rows + (self.measure_samples(model, seed) if everything else [])

    def measure_samples(self, model, seed):
        z = model.noise(len(self.test), experiment.generator(seed, "prior samples"))
        samples = metrics.per_image(lambda x, _: model.decode(x), z)
        return [("all", f"{name}frechet_samples",
                 metrics.frechet_if_enough(self.real[name], metrics.features(network, samples)), len(z))
                for name, network in self.networks.items()]


# --- the jobs: one finetuning each, spread over processes ------------------------------------------------------


class Job(NamedTuple):
    """One arm of one seed: what a worker process measures and what a killed run need not do again."""

    arm: str
    seed: int
    size: int | None = None  # None for the model before finetuning
    fraction: float | None = None  # a point of the sweep; None for the main comparison

    @property
    def setting(self):
        return {name: value for name in ("size", "fraction") if (value := getattr(self, name)) is not None}


def plan(seeds, sizes, sweep, sweep_seeds):
    jobs = [job for seed in range(seeds) for job in (Job("before", seed), Job("scoring", seed, min(sizes)))]
    for seed in range(seeds):
        for size in sizes:
            jobs += [Job(arm, seed, size) for arm in report.ARMS]
            if seed < sweep_seeds:
                jobs += [Job(arm, seed, size, part) for part in sweep for arm in ("targeted", "random")]
    return sorted(jobs, key=lambda job: -(job.size or 0))  # the long ones first, so that no core waits at the end


lab = functools.cache(Lab)  # a worker process loads its models and data once, for all its jobs


@functools.cache
def scored(lab_options, size, seed, strength, cumulative):
    """(Scores, seconds they took) of a seed's new digits; kept for the arms that share them."""
    here = lab(*lab_options)
    images, started = here.digits(size, seed), time.perf_counter()
    scores = selection.score(here.model, images, strength)
    if cumulative:
        noise = selection.noise_of_steps(here.model, size, experiment.generator(seed, "cumulative noise"))
        scores = scores._replace(gain=selection.cumulative_gain(here.model, images, strength, noise))
    experiment.synchronize(here.device)
    return scores, time.perf_counter() - started


def compare_scoring(here, size, seed, strength):
    """Rows on how scores depend on the order of the samples: each from the same model, and in the published way.

    rank_correlation: Spearman's, between the scores of the same samples with the same noise in two orders; noise: in
    one order with two draws of the noise. within_0.01: how many change by less than the published threshold.
    """
    images, model = here.digits(size, seed), here.model
    first = torch.arange(size)
    second = torch.randperm(size, generator=experiment.generator(seed, "second order"))
    noise, other = (selection.noise_of_steps(model, size, experiment.generator(seed, f"cumulative noise{again}"))
                    for again in ("", "/again"))

    def gain(way, order, noise):
        found = (selection.score(model, images[order], strength).gain if way == "independent"
                 else selection.cumulative_gain(model, images[order], strength, noise[order]))
        return torch.empty(size).index_copy(0, order, found.cpu())

    rows = []
    for way in ("independent", "cumulative"):
        gains = gain(way, first, noise)
        rows += [(way, "rank_correlation", selection.rank_correlation(gains, gain(way, second, noise)), size),
                 (way, "within_0.01", int((gains.abs() < 0.01).sum()), size)]
    return rows + [("cumulative", "noise", selection.rank_correlation(gains, gain("cumulative", first, other)), size)]


def work(job, lab_options, strength, cumulative, fraction, count, threshold, lr, epochs):
    """[(split, metric, value, n)] of one job."""
    here, everything = lab(*lab_options), job.fraction is None
    if job.arm == "before":
        return here.measure(here.model, job.seed, everything)
    if job.arm == "scoring":
        return compare_scoring(here, job.size, job.seed, strength)
    scores, scoring = scored(lab_options, job.size, job.seed, strength, cumulative)
    rule = (job.fraction,) if job.fraction else (fraction, count, threshold)
    kept = selection.how_many(scores.gain, *rule)
    chosen = selection.choose(job.arm, scores, kept, experiment.generator(job.seed, f"random arm/{job.size}"))
    started = time.perf_counter()
    model = finetune(here.model, here.digits(job.size, job.seed), chosen, lr, epochs, job.seed)
    experiment.synchronize(here.device)
    seconds = time.perf_counter() - started
    about = {"kept": len(chosen), "samples_seen": len(chosen) * epochs, "finetuning_seconds": seconds,
             "scoring_seconds": scoring}
    rows = [("new digits", metric, value, job.size) for metric, value in about.items()]
    return rows + here.measure(model, job.seed, everything)


def run_jobs(jobs, arguments, weights, workers, device, records):
    """Measure the jobs that partial.jsonl does not hold yet, each saved there as it ends; fills `records`.

    weights: digests of what is finetuned and what measures it; partial.jsonl holds them beside the options, so that no
    arm of another training of the same run folder is taken for one of this.
    """
    options = records.common["options"]
    partial = storage.Records(records.path.parent, records.common["experiment"], options | {"weights": weights}, device,
                              file="partial.jsonl")
    own = lambda rows: [row | {"options": options} for row in rows]
    old = partial.earlier()
    there = {(row["arm"], row["seed"], *sorted(row["setting"].items())) for row in old}
    todo = [job for job in jobs if (job.arm, job.seed, *sorted(job.setting.items())) not in there]
    records.rows += own(old)
    with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="finetuning", unit="arm", disable=None) as bar:
        for job, rows, seconds in results_of(todo, arguments, workers, device):
            partial.rows = []
            for split, metric, value, n in rows:
                partial.add(job.arm, split, metric, value, n, job.seed, seconds, **job.setting)
            records.rows += own(partial.save())
            bar.update()
    return partial


def results_of(jobs, arguments, workers, device):
    """(job, its rows, its seconds) as they end; on the CPU in processes of one thread, elsewhere one by one.

    Batches of one image gain nothing from threads, and one thread gives the same bytes whatever the number of cores.
    """
    if device.type != "cpu":
        yield from (timed(job, arguments) for job in jobs)
        return
    context = torch.multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers or torch.get_num_threads(), context, start_worker)
    try:  # no `with`: its end would wait for all jobs, after an error or Ctrl-C too
        for future in as_completed([pool.submit(timed, job, arguments) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise experiment.UserError("a worker process was killed, perhaps for memory; the same command goes on, "
                                   "with fewer --workers if need be") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def start_worker():
    """One thread of arithmetic; Ctrl-C is the parent's to answer; without the parent, however it ended, no worker."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = torch.multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def timed(job, arguments):
    started = time.perf_counter()
    return job, work(job, **arguments), time.perf_counter() - started


def main(run, checkpoint, classifier, digit, sizes, lr, epochs, strength, fraction, count, threshold, cumulative, seeds,
         sweep, sweep_seeds, test, inception, workers, device, results):
    given = {name: value for name, value in locals().items() if name != "workers"}
    device = experiment.pick_device(device)
    lab_options = (run, checkpoint, classifier, digit, test, inception, str(device))
    if not sizes:
        raise experiment.UserError("--sizes names no size")
    here = lab(*lab_options)  # what is missing or damaged shows here, before any process starts
    if max(sizes) > len(here.new):
        raise experiment.UserError(f"--sizes {max(sizes)}: MNIST has {len(here.new)} training digits {digit}")
    if count and count > min(sizes):
        raise experiment.UserError(f"--count {count}: there are only {min(sizes)} new digits to keep some of")
    if inception != "off" and here.line:
        print(here.line, file=sys.stderr)
    records = storage.Records(results, "targeted_finetuning", given, device)
    arguments = {"lab_options": lab_options, "strength": strength, "cumulative": cumulative, "fraction": fraction,
                 "count": count, "threshold": threshold, "lr": lr, "epochs": epochs}
    weights = [storage.digest(storage.file_of(path)) for path in (checkpoint or run, classifier)]
    partial = run_jobs(plan(seeds, sizes, sweep, sweep_seeds), arguments, weights, workers, device, records)
    for size in sizes if sweep else ():
        report.draw(records.rows, size, results / f"fractions_{size}.png")
    records.save()
    partial.forget()
    print(report.table(records.rows))


if __name__ == "__main__":
    experiment.run(main)

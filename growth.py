"""What the work costs as it grows, in seconds and memory, ours and the plain way (README, Speed).

    python growth.py                              # 13 min on 2 cores; writes results/growth/
    python growth.py --what scoring infills --sizes 2

samples      scoring: each of N samples' own steps (part 3), against a loop over them
             generation: N counterfactuals of wildlife (part 5), against the published generator in its batches of 100
batch        counterfactuals: of N digits in a RealNVP's latent space (part 4), against one after another
             training: a step of a CGN on N images (part 5), against a step of the published recipe on as many
image size   flow: counterfactuals of 8 images of N x N pixels in a Glow's latent space, against one after another
             infills: tiles of 64 images of N x N pixels (part 6), against one image after another
latent size  vae: counterfactuals of 64 images in the latent space of a VAE with N latents, against one after another
             step: each of 256 samples' own steps (part 3) in a VAE with N latents, against a loop over them

The networks of the last two axes have random weights, which cost what trained ones cost. The two sides take turns. The
memory of a side is measured in a process of its own: the most that it holds beyond what was there before, so without
the networks and what is loaded of libraries. The exponent is the slope of log seconds against log N: 1 is linear.
"""

import ctypes
import functools
import math
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from tqdm import tqdm

import architecture
import bench
import classifiers
import datasets
import experiment
import figures
import per_sample
import storage
import tables
from cgn import bench as cgn_bench
from cgn import generate
from robust_training import augment, batch
from robust_training import bench as robust_bench

REPEATS: experiment.Count = 3  # pairs of runs, in turn; the ratio is the median over the pairs
SIZES: experiment.Count = 4  # how many of each operation's sizes, from the smallest on
WHAT: tuple[str, ...] = ()  # operations by name; none: all
SEED: experiment.Index = 0  # of everything drawn
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/growth")  # where the records and figures go

STRENGTH, STEPS = 1e-3, 5  # of a sample's own step; of a search
LEAST = 0.1  # seconds that are timed at once: what is shorter is repeated
MEMORY = Path("/proc/self")  # where Linux says what a process holds
MEGA = 2**20  # bytes


# --- what is measured: (size, device, seed) -> (ours, the plain way), two functions of nothing ---------------


def steps_of(n, device, seed, **settings):
    """Own steps of n digits in a VAE with these settings."""
    with experiment.seeded(seed, "growth"):
        model = architecture.build("vae", **settings).to(device).eval()
    images = datasets.mnist("train", device).images[:n]
    return (lambda: per_sample.score(model, images, STRENGTH),
            lambda: bench.score_by_loop(model, images, STRENGTH))  # fmt: skip


def step(size, device, seed):
    return steps_of(256, device, seed, latent=size)


def counterfactuals(size, device, seed):
    return bench.counterfactuals(datasets.mnist("test", device).images[:size], STEPS, device)


def in_latents_of(name, settings, images, device, seed):
    """Counterfactuals of images (B, 3, N, N) in the latent space of a model with random weights."""
    with experiment.seeded(seed, "growth"):
        model = architecture.build(name, shape=tuple(images.shape[1:]), **settings)
        classifier = classifiers.build("residual_cnn", shape=tuple(images.shape[1:]))
    return bench.searches(model.to(device).eval(), classifier.to(device).eval(), images, STEPS)


def noise(n, side, device, seed):
    return torch.rand(n, 3, side, side, generator=experiment.generator(seed, "growth")).to(device)


def flow(size, device, seed):
    return in_latents_of("glow", {"levels": 3, "steps": 4, "hidden": 48}, noise(8, size, device, seed), device, seed)


def vae(size, device, seed):
    return in_latents_of("image_vae", {"latent": size}, noise(64, 64, device, seed), device, seed)


def generation(size, device, seed):
    def all_of(name, chunk, precision):
        context = experiment.in_precision(device, precision)
        side = cgn_bench.generating(name, context, min(chunk, size), device, seed)
        return lambda: side.run(-(-size // side.images))

    return all_of("cgn", generate.CHUNK, "auto"), all_of("published_cgn", 100, "float32")


def training(size, device, seed):
    variant, _, opacities = cgn_bench.material(device, seed)
    ours = experiment.in_precision(device, "auto", small=True)
    plain = experiment.in_precision(device, "float32")
    sides = (cgn_bench.game_side("cgn", variant, opacities, ours, seed, size)[0],
             cgn_bench.game_side("published_cgn", variant, None, plain, seed, size)[0])
    return tuple(lambda side=side: side.run(1) for side in sides)


def infills(size, device, seed):
    images = noise(64, size, device, seed) * 2 - 1
    masks = torch.zeros(64, 1, size, size, dtype=torch.bool, device=device)
    masks[:, :, size // 3:2 * size // 3, size // 4:size // 2] = True
    labels = torch.arange(64, device=device) % 10
    some = batch.from_masks(images, labels, labels, masks)
    return (lambda: augment.counterfactual("tile", some, experiment.generator(seed, "tile")),
            lambda: robust_bench.counterfactual_loop("tile", some))  # fmt: skip


class Operation(NamedTuple):
    """What grows: the axis of its size N; against what it is held; the sizes; a function that makes both sides."""

    axis: str
    against: str
    sizes: tuple
    make: Callable


LOOP, ONE = "a loop over the samples", "one image after another"
OPERATIONS = {
    "scoring": Operation("samples", LOOP, (64, 256, 1024, 4096), steps_of),
    "generation": Operation("samples", "the published generator", (100, 500, 2000, 5000), generation),
    "counterfactuals": Operation("batch", ONE, (1, 4, 16, 64), counterfactuals),
    "training": Operation("batch", "the published recipe", (4, 16, 64, 256), training),
    "flow": Operation("image size", ONE, (16, 32, 64, 128), flow),
    "infills": Operation("image size", ONE, (32, 64, 128, 256), infills),
    "vae": Operation("latent size", ONE, (4, 16, 64, 256), vae),
    "step": Operation("latent size", LOOP, (5, 20, 80, 320), step),
}
UNITS = {"samples": "samples", "batch": "images at once", "image size": "pixels a side", "latent size": "latents"}


# --- measured, each in a process of its own -------------------------------------------------------------------


def timed(name, size, repeats, device, seed):
    """(seconds of ours, of the plain way, ratio) for one call, each the median over pairs of runs in turn."""
    sides = OPERATIONS[name].make(size, device, seed)
    often = []
    for side in sides:
        side()  # once to warm up
        often.append(math.ceil(LEAST / experiment.seconds(side, device)[0]))
    calls = [lambda side=side, n=n: [side() for _ in range(n)] and None for side, n in zip(sides, often, strict=True)]
    pairs = [[seconds / n for (seconds, _), n in zip(pair, often, strict=True)]
             for pair in experiment.in_turn(calls, repeats, device)]
    ours, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
    return ours, plain, statistics.median(b / a for a, b in pairs)


def held(name, size, which, device, seed):
    """Bytes that ours (0) or the plain way (1) holds at most during one call; None where the system does not tell."""
    side = OPERATIONS[name].make(size, device, seed)[which]
    side()  # what is loaded or kept once is not what the work takes
    return most(side, device)


def most(side, device):
    """Bytes that side() holds at most beyond what is held before, on the GPU, or of the process; None: not told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if device.type != "cpu" or not (MEMORY / "clear_refs").exists():
        return None
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that taking it again is seen
    (MEMORY / "clear_refs").write_text("5")  # the high-water mark comes down to what is there now
    before = resident("VmRSS")
    side()
    return max(0, resident("VmHWM") - before)


def resident(field):
    """Bytes that this process holds now (VmRSS), or has held at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in (MEMORY / "status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


# --- what came of it ------------------------------------------------------------------------------------------


def exponent(sizes, values):
    """The least-squares slope of log(values) against log(sizes)."""
    return float(numpy.polyfit(numpy.log(sizes), numpy.log(values), 1)[0])


def found(records):
    """{operation: {metric: [(size, value), ...]}}, sizes ascending."""
    made = {}
    for row in sorted(records, key=lambda row: row["setting"]["size"]):
        made.setdefault(row["arm"], {}).setdefault(row["metric"], []).append((row["setting"]["size"], row["value"]))
    return {name: made[name] for name in OPERATIONS if name in made}


def table(records):
    """One row for each operation: from its smallest size to its largest."""
    ends = lambda values, how, unit=1: " – ".join(f"{values[k] / unit:{how}}" for k in (0, -1)) if values else "–"
    lines = []
    for name, metrics in found(records).items():
        of = lambda metric, metrics=metrics: [value for _, value in metrics[metric] if value is not None]
        sizes = [size for size, _ in metrics["seconds"]]
        slope = lambda metric, sizes=sizes, of=of: f"{exponent(sizes, of(metric)):z.2f}" if len(sizes) > 1 else "–"
        lines.append([OPERATIONS[name].axis, name, OPERATIONS[name].against, ends(sizes, ".0f"),
                      ends(of("seconds"), ".3g"), slope("seconds"), slope("plain seconds"), ends(of("speedup"), ".1f"),
                      ends(of("bytes"), ".0f", MEGA), ends(of("plain bytes"), ".0f", MEGA)])
    return tables.markdown(["what grows", "operation", "against", "from – to", "seconds", "exponent", "plain: exponent",
                            "times faster", "MB held", "plain: MB"], lines)


def draw(records, folder):
    """growth_seconds.png and growth_memory.png: a panel for each operation, ours and the plain way."""
    for file, metric, words, unit in (("growth_seconds", "seconds", "Seconds", 1),
                                      ("growth_memory", "bytes", "MB held at most", MEGA)):
        panels = []
        for name, metrics in found(records).items():
            sides = ("ours", "blue", metric), (OPERATIONS[name].against, "grey", f"plain {metric}")
            lines = [(label, colour, *zip(*points, strict=True), None) for label, colour, key in sides
                     for points in [[(size, value / unit) for size, value in metrics[key] if value]] if points]
            if lines:
                panels.append({"title": name, "x_label": UNITS[OPERATIONS[name].axis], "y_label": words, "log": "xy",
                               "lines": lines, "ticks": [size for size, _ in metrics["seconds"]]})
        if panels:  # not every system tells what is held
            figures.curves(Path(folder) / f"{file}.png", panels, f"{words} as the work grows", columns=4)


def main(repeats, sizes, what, seed, device, results):
    for name in what:
        storage.one_of(OPERATIONS, "operation", name)
    device = experiment.pick_device(device)
    records = storage.Records(results, "growth", {"repeats": repeats, "sizes": sizes, "seed": seed}, device)
    chosen = [(name, size) for name in what or OPERATIONS for size in OPERATIONS[name].sizes[:sizes]]
    context = multiprocessing.get_context("forkserver" if device.type == "cpu" else "spawn")
    context.set_forkserver_preload(["growth"])  # so that a child starts with everything imported
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for name, size in tqdm(chosen, desc="growth", unit="size", disable=None):
            point = functools.partial(records.add, name, OPERATIONS[name].axis, n=repeats, seed=seed, size=size)
            measure = lambda function, *given, name=name, size=size: pool.submit(
                function, name, size, *given, device, seed).result()
            for metric, value in zip(("seconds", "plain seconds", "speedup"), measure(timed, repeats), strict=True):
                point(metric, value)
            for which, metric in enumerate(("bytes", "plain bytes")):
                point(metric, measure(held, which))
    rows = records.save()
    draw(rows, results)
    print(table(rows))


if __name__ == "__main__":
    experiment.run(main)

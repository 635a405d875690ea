"""Speed, as ratios of two sides measured in one run, against a stated plain baseline.

    python bench.py      # 3 min on 2 cores

scoring: all samples' own reverse-ablation steps in batches (per_sample.py), against a loop over the samples that steps
the parameters in place, looks again, and puts them back. evaluation: the test digits in batches, against one by one,
as the original evaluates. counterfactuals: the search in a RealNVP's latent space, all images in one batch, against
one image after another, as in the original; both for the same number of steps. Both sides give the same numbers but for
rounding, which in float32 moves single pixels of the counterfactuals (in float64 none; a test); the largest difference
is recorded beside the ratio.
"""

import copy
import statistics
from pathlib import Path

import torch

import datasets
import experiment
import metrics
import per_sample
import recipes
import search
import storage
import tables
import train

RUN: Path = Path("runs/vae_512_no0")  # a run folder of train.py
DIGITS: experiment.Count = 512  # zeros that are scored, test digits that are evaluated
STRENGTH: experiment.Positive = 0.001  # of the reverse-ablation step
IMAGES: experiment.Count = 100  # that counterfactuals are searched for at once
STEPS: experiment.Count = 5  # of that search
REPEATS: experiment.Count = 5  # pairs of runs, in turn; the ratio is the median over the pairs
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/bench")  # where the records go


def score_by_loop(model, images, strength):
    """Errors after each sample's own step, (N,): the plain way, one sample at a time."""
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    after = []
    for image in images.split(1):
        model.zero_grad()
        model.squared_error(image).mean().backward()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= strength * parameter.grad.sign()
            after.append(model.squared_error(image))
            for parameter, old in zip(parameters, kept, strict=True):
                parameter.copy_(old)
    return torch.cat(after)


def compare(ours, baseline, repeats, device):
    """(median ratio of the baseline's seconds to ours, ours in seconds, largest difference of the results)."""
    ours(), baseline()  # once to warm up
    pairs = experiment.in_turn((ours, baseline), repeats, device)
    gap = max(float((a[1] - b[1]).abs().max()) for a, b in pairs)
    return statistics.median(b[0] / a[0] for a, b in pairs), statistics.median(a[0] for a, _ in pairs), gap


def searches(model, classifier, images, steps):
    """(ours, the baseline): the search from the images in one batch, and from one after another; both give images."""
    for network in (model, classifier):
        network.requires_grad_(False)
    with torch.no_grad():
        targets = (classifier(images).argmax(1) + 1) % 10
    goal = search.ClassGoal(classifier, targets, 1.0)  # never reached: both sides take all steps
    find = lambda batch: search.from_images(images, model, goal, steps, 5e-2, batch=batch)[0].images
    return lambda: find(len(images)), lambda: find(1)


def counterfactuals(images, steps, device):
    """The two sides of a search in the RealNVP of part 4."""
    model, _ = train.load(recipes.run_of("realnvp", "mnist"), "realnvp", "mnist", device)
    return searches(model, train.load_classifier(recipes.run_of("mnist_cnn", "mnist"), device), images, steps)


def main(run, digits, strength, images, steps, repeats, device, results):
    given = dict(locals())
    device = experiment.pick_device(device)
    model, _, _ = train.load_vae(run, None, device)
    new = datasets.mnist("train", device)
    zeros = datasets.draw(new[datasets.of_class(new, 0)], digits, 0, "bench").images
    test = datasets.mnist("test", device).images
    seen, searched = test[:digits], test[:images]
    sides = {
        "scoring": (len(zeros), "a loop over the samples", lambda: per_sample.score(model, zeros, strength)[1],
                    lambda: score_by_loop(model, zeros, strength)),
        "evaluation": (len(seen), "one image at a time", lambda: metrics.squared_errors(model, seen),
                       lambda: metrics.per_image(model.squared_error, seen, batch=1)),
        "counterfactuals": (len(searched), "one image after another", *counterfactuals(searched, steps, device)),
    }  # fmt: skip
    rows = []
    for name, (n, against, ours, baseline) in sides.items():
        records = storage.Records(results, "bench", given | {"baseline": against}, device)
        ratio, seconds, gap = compare(ours, baseline, repeats, device)
        each = seconds / n * 1e3
        for metric, value in (("speedup", ratio), ("milliseconds_a_sample", each), ("difference", gap)):
            records.add(name, "digits", metric, value, n, 0)
        records.save()
        rows.append([name, against, f"{ratio:.1f}", f"{each:.2f}", f"{gap:.1e}", n])
    print(tables.markdown(["what", "against", "times faster", "ms a sample", "largest difference", "n"], rows))


if __name__ == "__main__":
    experiment.run(main)

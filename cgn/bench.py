"""Speed of the CGN against the published recipe, both sides in one run (README, Speed).

    python -m cgn.bench       # 4 min on 2 cores

training: images a second of one of our steps on wildlife, and of one of the published recipe's (networks, batch of 16,
float32, Gram matrices of the real batch at every step; fixed random filters in the place of VGG16 on both sides).
generation: counterfactuals a second, ours and the published generator's in its batches of 100. classifier: images a
second in training, our reader in batches of 256 and the published classifier in batches of 64. Then single choices of
ours, each against the same without it: bfloat16 in training the CGN and the classifier, where the machine multiplies in
it; class statistics measured once, against those of the real batch whenever textures are compared.
"""

import functools
import statistics
from pathlib import Path
from typing import NamedTuple

import torch

import datasets
import experiment
import storage
import tables
from cgn import classifiers, data, generate, losses, mechanisms, train

REPEATS: experiment.Count = 3  # pairs of runs, in turn; the ratio is the median over the pairs
STEPS: experiment.Count = 8  # training steps in a run
SEED: experiment.Index = 0  # of everything drawn
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of our side
RESULTS: Path = Path("results/bench")  # where the records go


class Side(NamedTuple):
    """Something to time: a function of a count of repetitions, and how many images one repetition handles."""

    run: object
    images: int


def game_side(model, variant, opacities, context, seed, batch, **changes):
    """(a Side whose repetitions are training steps of a recipe, its game); changes: of the recipe's options."""
    defaults = train.DEFAULTS[model]
    options = {"model": model, "seed": seed, "features": "random", "edge": 0.0, "shape_adversary": 1.0,
               "texture_adversary": 1.0} | defaults | {"batch": batch} | changes  # fmt: skip
    game = train.make_game(options, variant, variant.shapes("train"), opacities, context)
    return Side(lambda n: [game.step(number) for number in range(n)], batch), game


def classifier_side(name, batch, draw, context, device, seed):
    with experiment.seeded(seed, "bench"):
        net = classifiers.build(name)
    return Side(lambda n: classifiers.learn(net, [draw], n, batch, 1e-3, seed, context, device), batch)


def per_second(side, steps, device):
    return steps * side.images / experiment.seconds(lambda: side.run(steps), device)[0]


def compare(ours, baseline, steps, repeats, device):
    """(median ratio, images a second of ours, of the baseline); the two take turns, after one run each to warm up."""
    for side in (ours, baseline):
        side.run(2)
    pairs = [(per_second(ours, steps, device), per_second(baseline, steps, device)) for _ in range(repeats)]
    return (statistics.median(a / b for a, b in pairs), statistics.median(a for a, _ in pairs),
            statistics.median(b for _, b in pairs))


def recomputing(variant, opacities, context, seed):
    """Our step with the Gram matrices of the real batch taken anew whenever they are wanted."""
    side, game = game_side("cgn", variant, opacities, context, seed, 64)
    network = losses.features("random", variant.device)

    class Fresh:
        """Statistics of nothing but the batch at hand."""

        def loss(self, made, labels):
            return losses.gram_distance(network, made, self.real, (1.0,))

    fresh = Fresh()
    batch = game.batch

    def remembering(stream):
        found = batch(stream)
        fresh.real = found[0][: -(-len(found[0]) // 2)]
        return found

    game.batch, game.statistics = remembering, fresh
    return side


def generating(name, context, size, device, seed, **settings):
    """Counterfactuals of a generator with random weights, `size` of them in a repetition."""
    with experiment.seeded(seed, "bench"):
        generator = mechanisms.build(name, **settings).to(device).eval().requires_grad_(False)
    source = generate.Source(generator, device, seed, context=context)
    return Side(lambda n: [datasets.to_bytes(source.chunk(number, size)[0]) for number in range(n)], size)


def material(device, seed):
    """(wildlife, 2,000 of its shapes, these as images with opacities and labels, as abduction leaves them)."""
    variant = data.Variant("wildlife", device)
    shapes = variant.shapes("train")[:2000]
    scenes = variant.scenes(shapes, experiment.generator(seed, "bench"), spurious=True)
    return variant, shapes, (datasets.to_bytes(scenes.images), shapes.alphas, shapes.labels)


def cases(device, precision, seed):
    """{what: (against what, our Side, the baseline's Side)}."""
    variant, shapes, opacities = material(device, seed)
    networks = lambda dtype: functools.partial(experiment.autocast, device, dtype)
    plain, half = networks(torch.float32), networks(torch.bfloat16)
    small, ours = (networks(experiment.precise(device, precision, small)) for small in (True, False))

    def draw(n, stream):
        some = variant.batch(shapes, n, stream)
        return some.images, some.labels

    cgn = lambda context: game_side("cgn", variant, opacities, context, seed, 64)[0]
    classifier = lambda context: classifier_side("reader", 256, draw, context, device, seed)
    found = {
        "cgn training": ("the published recipe", cgn(small),
                         game_side("published_cgn", variant, None, plain, seed, 16)[0]),
        "cgn generation": ("the published generator", generating("cgn", ours, generate.CHUNK, device, seed),
                           generating("published_cgn", plain, 100, device, seed)),
        "cgn classifier": ("the published classifier", classifier(ours),
                           classifier_side("published", 64, draw, plain, device, seed)),
        "statistics measured once": ("of every batch", cgn(small), recomputing(variant, opacities, small, seed)),
    }  # fmt: skip
    if experiment.precise(device, "auto") == torch.bfloat16:  # elsewhere it is only emulated
        found |= {"bfloat16, cgn training": ("float32", cgn(half), cgn(plain)),
                  "bfloat16, classifier": ("float32", classifier(half), classifier(plain))}
    return found


def main(repeats, steps, seed, device, precision, results):
    device = experiment.pick_device(device)
    rows = []
    for name, (against, ours, baseline) in cases(device, precision, seed).items():
        ratio, here, there = compare(ours, baseline, steps, repeats, device)
        options = {"repeats": repeats, "steps": steps, "baseline": against, "precision": precision}
        records = storage.Records(results, "cgn.bench", options, device)
        for metric, value in (("speedup", ratio), ("images_a_second", here), ("baseline_images_a_second", there)):
            records.add(name, "wildlife", metric, value, steps * ours.images, seed)
        records.save()
        rows.append([name, against, f"{ratio:.1f}", f"{here:,.0f}", f"{there:,.0f}"])
    print(tables.markdown(["what", "against", "times faster", "images a second", "theirs"], rows))


if __name__ == "__main__":
    experiment.run(main)

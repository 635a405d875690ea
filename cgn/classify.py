"""Train a classifier on original, generated or counterfactual images, and measure what it reads (README, part 5).

    python -m cgn.classify --variant colored --on cgn              # counterfactuals of the CGN; 1 min on 2 cores
    python -m cgn.classify --variant wildlife --on original cgn    # half of them original images
    python -m cgn.classify --variant double_colored --on cgn --checkpoint FILE     # those of a published generator
    python -m cgn.classify --on set --set data/cgn/counterfactuals                 # a set of cgn.generate

In the test set colour and texture tell nothing of the class. `cgn` samples its shapes, `abducted` takes those that
abduction finds in the training images, and `composed` puts the true shapes on true colours and textures of any class:
what could be reached were the mechanisms perfect. Writes a record: accuracy on the classifier's own training images and
on the test set, also on those test images whose object can be told from its background.
"""

import functools
from pathlib import Path
from typing import Literal

import torch

import datasets
import experiment
import storage
from cgn import classifiers, data, generate, sets, train

# --- what is learned from ----------------------------------------------------------------------
VARIANT: str = "colored"  # a name of data.VARIANTS
TEXTURES: Path | None = None  # folder of wildlife's textures, as in training
ON: tuple[str, ...] = ("cgn",)  # any of original, gan, cgn, abducted, composed, set: as many images of each
RUN: Path | None = None  # run folder of the CGN; by default that of the variant and seed
GAN: Path | None = None  # run folder of the GAN; by default that of the variant and seed
CHECKPOINT: Path | None = None  # a generator to take instead of the run's, also a published one
SET: Path = Path("data/cgn/counterfactuals")  # a set of cgn.generate, for --on set
SIZE: experiment.Count = 100_000  # generated images (published: 50,000 to 100,000)
RATIO: experiment.Count = 1  # counterfactuals of each shape

# --- how -----------------------------------------------------------------------------------------
MODEL: Literal["reader", "published"] = "reader"  # ours, or the published classifier's layers
STEPS: experiment.Count = 1000  # 2.6 times through 100,000 images (published: 10 times)
BATCH: experiment.Count = 256  # images a step (published: 64)
LR: experiment.Positive = 6e-3  # highest rate of AdamW in one cycle
SEED: experiment.Index = 0  # names the streams of everything, and the run folders
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the networks
SAVE: bool = False  # keep the classifier in runs/, for cgn.explain, in the place of another of the same sources
RESULTS: Path = Path("results/cgn")  # where the records go

SOURCES = ("original", "gan", "cgn", "abducted", "composed", "set")


class Setting:
    """What every source of images is made with: the variant, its training shapes, seed, device, precision."""

    def __init__(self, variant, seed, context, size, ratio):
        self.variant, self.seed, self.context, self.size, self.ratio = variant, seed, context, size, ratio
        self.shapes = variant.shapes("train")

    def painted(self, spurious):
        """A function from (size, stream) to (images in [-1, 1], labels): freshly composed training images."""
        def draw(n, stream):
            scenes = self.variant.batch(self.shapes, n, stream, spurious)
            return scenes.images, scenes.labels

        return draw

    def kept(self, images, labels):
        """The same from a fixed set of images, uint8, in memory or memory-mapped."""
        def draw(n, stream):
            index = torch.randint(len(labels), (n,), generator=stream)
            if isinstance(images, torch.Tensor):
                index = index.to(images.device)
                return datasets.from_bytes(images[index]), labels[index]
            index = index.sort().values.numpy()  # a disk is read in one direction
            some = [torch.from_numpy(part[index]).to(self.variant.device) for part in (images, labels)]
            return datasets.from_bytes(some[0]), some[1][:, 0].long()

        return draw

    def generated(self, path, abducted=False, factual=False):
        """Counterfactuals, or plain samples, of the generator in a checkpoint."""
        named = self.variant.textures_name
        generator, finder, _ = generate.load(path, self.variant.name, named, self.variant.device)
        opacities = None
        if abducted:
            if finder is None:
                raise experiment.UserError(f"{path} has no abduction: train it without --no-abduction")
            opacities = generate.found(path, finder, self.variant, self.seed, self.context)
        source = generate.Source(generator, self.variant.device, self.seed, self.ratio, opacities, self.context,
                                 factual)  # fmt: skip
        images, labels = generate.in_memory(source, self.size)
        return self.kept(images, labels[:, 0])


def sources(on, setting, run, gan, file):
    """The drawing functions of --on."""
    made = {
        "original": lambda: setting.painted(spurious=True),
        "composed": lambda: setting.painted(spurious=False),
        "gan": lambda: setting.generated(gan, factual=True),
        "cgn": lambda: setting.generated(run),
        "abducted": lambda: setting.generated(run, abducted=True),
        "set": lambda: setting.kept(*sets.read(file)),
    }
    return [made[name]() for name in on]


def weights(on, run, gan, checkpoint, set):
    """What a record says of the weights behind --on: the CGN's folder, and digests of the files."""
    found = {}
    if {"cgn", "abducted"} & {*on}:
        found |= {"generator": "checkpoint" if checkpoint else run.resolve().name,
                  "weights": storage.digest(checkpoint or run / "ckpt/best.pt")}
    if "gan" in on:
        found |= {"gan_weights": storage.digest(gan / "ckpt/best.pt")}
    if "set" in on:
        found |= {"set": str(set), "made": sets.about_of(set)}
    return found


def main(variant, textures, on, run, gan, checkpoint, set, size, ratio, model, steps, batch, lr, seed, device,
         precision, save, results):
    for name in on:
        storage.one_of(dict.fromkeys(SOURCES), "source", name)
    if not on:
        raise experiment.UserError(f"--on names no source; there are {', '.join(SOURCES)}")
    device = experiment.pick_device(device)
    painted = data.Variant(variant, device, textures)
    named, dtype = painted.textures_name, experiment.precise(device, precision)
    asked = {"variant": variant, "textures": named, "on": on, "run": run, "gan": gan,
             "checkpoint": checkpoint and checkpoint.name, "size": size, "ratio": ratio, "model": model, "steps": steps,
             "batch": batch, "lr": lr, "seed": seed, "precision": precision}  # fmt: skip
    run, gan = run or train.run_of("cgn", variant, named, seed), gan or train.run_of("gan", variant, named, seed)
    options = asked | {"dtype": str(dtype)} | weights(on, run, gan, checkpoint, set)
    for name, wanted in {"variant": variant, "textures": named}.items() if "made" in options else ():
        if options["made"].get(name) != wanted:
            raise experiment.UserError(f"{set} is of {name} {options['made'].get(name)}, and {wanted} is wanted")
    records = storage.Records(results, "classify", options, device)
    arm = "+".join(on)
    context = functools.partial(experiment.autocast, device, dtype)
    setting = Setting(painted, seed, context, size, ratio)
    draws = sources(on, setting, checkpoint or run / "ckpt/best.pt", gan / "ckpt/best.pt", set)
    with experiment.seeded(seed, "classifier"):
        net = classifiers.build(model)
    net = classifiers.learn(net, draws, steps, batch, lr, seed, context, device)
    found = list(evaluate(net, draws, painted, seed))
    for split, metric, value, n in found:
        records.add(arm, split, metric, value, n, seed)
    records.save()
    if save:
        made = {"architecture": {"name": model, "settings": {}}, "options": storage.plain_options(options)}
        kept = classifiers.run_of(variant, named, on, seed) / "ckpt/best.pt"
        storage.save_checkpoint(kept, made | {"model": net.state_dict()})
    said = ", ".join(f"{split} {100 * value:.2f} %" for split, _, value, _ in found)
    print(f"{variant}, {arm}, seed {seed}: {said}")


def evaluate(net, draws, variant, seed):
    """(split, metric, value, n): accuracy on images like those trained on, and on the test set.

    Double-colored also has that on the images whose colours differ, and on a test set whose colours wander as in the
    original.
    """
    images, labels = classifiers.mixed(draws, 10_000, experiment.generator(seed, "own images"))
    yield "train", "accuracy", float(classifiers.right(net, images, labels).float().mean()), len(labels)
    test = variant.test()
    good = classifiers.right(net, test.images, test.labels)
    yield "test", "accuracy", float(good.float().mean()), len(good)
    if variant.name == "double_colored":
        seen = variant.visible(test)
        yield "visible", "accuracy", float(good[seen].float().mean()), int(seen.sum())
        test = variant.wandering_test()
        good = classifiers.right(net, test.images, test.labels)
        yield "wandering", "accuracy", float(good.float().mean()), len(good)


if __name__ == "__main__":
    experiment.run(main)

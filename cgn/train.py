"""Train a CGN, or the conditional GAN it is compared with, on a variant of MNIST (README, part 5).

    python -m cgn.train --variant double_colored       # 4 min on 2 cores
    python -m cgn.train --variant wildlife --textures FOLDER
    python -m cgn.train --variant colored --model gan  # the baseline without mechanisms
    python -m cgn.train --no-abduction                 # mechanisms against one adversary on whole images
    python -m cgn.train --model published_cgn          # the published networks, losses and batch; hours

Ours has two steps: abduction learns to find the shape in the training images (abduction.py), then every mechanism plays
against an adversary of its own (games.py). Writes runs/cgn_VARIANT/: options.json, log.jsonl, ckpt/{best,last}.pt (best
is the running average at the end: nothing is selected), frames.pt for the GIF of the training, and a record. A run
that was killed goes on from last.pt and ends with the same bytes. A generator whose masks have collapsed is trained to
the end, and said to have collapsed in the log, on the terminal and in the record.
"""

import functools
import math
import time
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import datasets
import experiment
import metrics
import storage
import trainer
from cgn import abduction, data, games, losses, mechanisms

# --- what is trained ----------------------------------------------------------------------------
VARIANT: str = "colored"  # a name of data.VARIANTS
MODEL: Literal["cgn", "gan", "published_cgn"] = "cgn"  # ours, the baseline, or the published networks and losses
TEXTURES: Path | None = None  # folder of wildlife's textures; by default procedural ones
SEED: experiment.Index = 0  # names the streams of initialisation, data, latents
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the networks; auto: bfloat16 where there are matrix units for it
RUN: Path | None = None  # run folder; by default runs/cgn_VARIANT and what differs from the defaults
RESULTS: Path = Path("results/cgn")  # where the record of a finished training goes

# --- how ---------------------------------------------------------------------------------------
STEPS: experiment.Count | None = None  # by default 3,000, gan 1,500, published_cgn 46,875 (15 epochs)
BATCH: experiment.Count | None = None  # images a step; by default 64, published_cgn 16
LR: experiment.Positive | None = None  # of Adam; by default 7e-4, gan 5e-4, falling in the second half; published 2e-4
ABDUCTION: bool = True  # find the shapes of real images first; without it one adversary sees whole images
SHAPE_ADVERSARY: experiment.NotNegative = 1.0  # weight; only with abduction
TEXTURE_ADVERSARY: experiment.NotNegative = 1.0  # weight; only with abduction
ENTROPY: experiment.NotNegative | None = None  # weight of the masks' binary entropy; by default 0.1, published .1 to .3
TEXTURE: experiment.NotNegative | None = None  # weight of the Gram matrices; by default 0.1, gan 0, published_cgn 1
EDGE: experiment.NotNegative = 0.0  # weight of masks near the border; only without abduction
FEATURES: Literal["random", "vgg16"] = "random"  # whose Gram matrices: fixed random filters, or ImageNet's VGG16

DEFAULTS = {"cgn": {"steps": 3000, "batch": 64, "lr": 7e-4, "entropy": 0.1, "texture": 0.1},
            "gan": {"steps": 1500, "batch": 64, "lr": 5e-4, "entropy": 0.0, "texture": 0.0},
            "published_cgn": {"steps": 46_875, "batch": 16, "lr": 2e-4, "entropy": None, "texture": 1.0}}  # fmt: skip
# The published weights: entropy, those of the layers' Gram matrices, initialisation of the networks.
PUBLISHED = {"colored": (0.1, (0.05, 0.1, 0.01, 0.0), ("orthogonal", 0.1)),
             "double_colored": (0.3, (0.0, 0.05, 0.0, 0.05), ("orthogonal", 0.2)),
             "wildlife": (0.3, (0.01, 0.05, 0.0, 0.01), ("normal", 0.03))}  # fmt: skip
CANVAS = {"colored": 1, "double_colored": 1, "wildlife": 64}  # side of the textures' canvases: a colour is one pixel
GAN_WIDTH = 16  # of the baseline; the replication's checkpoints have 64, at 13 times the cost
COLLAPSED = (0.02, 0.6)  # a class whose mean mask is outside has collapsed: MNIST's digits cover 0.08 to 0.25


# --- options and run folder ------------------------------------------------------------------------


def run_of(model, variant, textures, seed):
    """The default run folder: the model, the variant, its textures if they are not procedural, the seed if not 0."""
    words = {"cgn": "cgn", "gan": "cgn_gan", "published_cgn": "cgn_published"}[model]
    words = [words, variant] + ([textures] if textures not in (None, "procedural") else [])
    return Path("runs") / "_".join([*words, *([f"seed{seed}"] if seed else [])])


def check(model, abduction, edge, weights):
    """Raise UserError for options that contradict each other; weights: of the losses of a training with abduction."""
    if abduction and not any(weight is None or weight for weight in weights):
        raise experiment.UserError("every loss is left out: nothing would be trained")
    if edge and (abduction or model == "gan"):
        raise experiment.UserError("--edge is for a CGN trained with --no-abduction: abduction knows the border, and a "
                                   "GAN has no mask")


# --- building the game -------------------------------------------------------------------------------


def make_batch(variant, shapes, size, opacities=None):
    """A function from a stream to (images, opacities or None, labels) of training images.

    opacities: (images, opacities, labels) of the whole training set, from which batches are then drawn.
    """
    def fresh(stream):
        scenes = variant.batch(shapes, size, stream)
        return scenes.images, None, scenes.labels

    def inferred(stream):
        index = torch.randint(len(opacities[2]), (size,), generator=stream).to(variant.device)
        images, alphas, labels = (part[index] for part in opacities)
        return datasets.from_bytes(images), alphas.float() / 255, labels

    return inferred if opacities else fresh


def abduce(model, variant, shapes, seed, context):
    """((images uint8, opacities uint8, labels), IoU) of one composition of the whole training set.

    IoU: the mean over images of that of the opacities, at a half, and the true masks, which serve nothing else.
    """
    flat, found, stream = variant.name != "wildlife", [], experiment.generator(seed, "training set")
    for index in torch.arange(len(shapes), device=variant.device).split(500):
        scenes = variant.scenes(shapes[index], stream, spurious=True)
        with context():
            alphas = model.opacities(scenes.images.contiguous(memory_format=torch.channels_last), scenes.labels, flat)
        found.append([datasets.to_bytes(scenes.images), (alphas * 255).round().to(torch.uint8), scenes.labels,
                      scenes.masks])
    images, alphas, labels, masks = (torch.cat(part) for part in zip(*found, strict=True))
    return (images, alphas, labels), float(metrics.iou(alphas > 127, masks).mean())


def texture_statistics(features, batch, size, device, seed):
    """TextureStatistics of 2,000 real images or a few more, from batches of this size."""
    drawn = [batch(experiment.generator(seed, f"statistics/{k}")) for k in range(math.ceil(2000 / size))]
    images, labels = torch.cat([part[0] for part in drawn]), torch.cat([part[2] for part in drawn])
    return losses.TextureStatistics(losses.features(features, device), images, labels)


def settings_of(model, variant):
    """What the generator is built with, as its checkpoint says."""
    return {"cgn": {"side": CANVAS[variant]}, "gan": {"width": GAN_WIDTH}}.get(model, {})


def make_game(options, variant, shapes, opacities, context):
    """The game of these options, ready for its first step."""
    o, device = options, variant.device
    batch = make_batch(variant, shapes, o["batch"], opacities)
    more = {"initialisation": PUBLISHED[variant.name][2]} if o["model"] == "published_cgn" else {}
    class_statistics = lambda: texture_statistics(
        o["features"], batch, o["batch"], device, o["seed"]) if o["texture"] else None  # fmt: skip
    with experiment.seeded(o["seed"], "initialisation"):
        generator = mechanisms.build(o["model"], **settings_of(o["model"], variant.name), **more)
        generator = generator.to(device, memory_format=torch.channels_last)
        if opacities:
            weights = {name: o[name] for name in ("shape_adversary", "texture_adversary", "entropy", "texture")}
            statistics = class_statistics()
            return games.PartsGame(generator, batch, statistics, weights, o["lr"], context, o["seed"])
        published = o["model"] == "published_cgn"
        adversary = (mechanisms.Discriminator if not published else mechanisms.ConvDiscriminator
                     if variant.name == "wildlife" else mechanisms.LinearDiscriminator)()  # fmt: skip
    weights = {name: o[name] for name in ("entropy", "texture", "edge")}
    weights |= {"area": 0.0 if published or o["model"] == "gan" else 1.0}
    if published:
        network = losses.features(o["features"], device)
        layers = PUBLISHED[variant.name][1] if o["features"] == "vgg16" else (sum(PUBLISHED[variant.name][1]),)
        statistics = lambda made, real, labels: losses.gram_distance(network, made, real, layers)
        weights["entropy"] = PUBLISHED[variant.name][0] if o["entropy"] is None else o["entropy"]
    else:
        found = class_statistics()
        statistics = lambda made, real, labels: found.loss(made, labels)
    return games.ImageGame(generator, adversary.to(device, memory_format=torch.channels_last),
                           losses.least_squares if published else losses.logistic, batch, statistics, weights, o["lr"],
                           (0.5, 0.999) if published else (0.0, 0.99), context, o["seed"], falling=not published)


# --- the run -------------------------------------------------------------------------------------------


class Course(trainer.Filmed):
    """A training in its folder: abduction first, then the game."""

    def __init__(self, folder, options, variant):
        self.variant, self.shapes = variant, variant.shapes("train")
        self.abduction, self.iou = None, None
        super().__init__(folder, options)
        if self.abduction and not self.lines:
            self.write({"event": "abduction", "iou": self.iou, "seconds": self.last["seconds"]})

    def begin(self):
        if self.options["abduction"]:
            self.find_shapes()
        opacities = self.infer() if self.options["abduction"] else None
        return make_game(self.options, self.variant, self.shapes, opacities, self.context(small=True))

    def context(self, small):
        """What makes the context that networks run in; small: those of the game, whose layers are."""
        return experiment.in_precision(self.variant.device, self.options["precision"], small)

    def find_shapes(self):
        """Learn the abduction, or take it from the checkpoint."""
        name = self.variant.name
        with experiment.seeded(self.options["seed"], "abduction"):
            self.abduction = abduction.Abduction(abduction.FIELD[name])
        self.abduction.to(self.variant.device, memory_format=torch.channels_last)
        if "abduction" in self.last:
            storage.load_weights(self.abduction, self.last["abduction"])
            self.abduction.eval()
            return
        started = time.perf_counter()
        steps = abduction.STEPS[name]
        stream = lambda purpose: experiment.generator(self.options["seed"], f"abduction/{purpose}")
        batch = lambda purpose: self.variant.batch(self.shapes, abduction.BATCH, stream(purpose))
        with tqdm(total=sum(steps), desc="abduction", unit="step", disable=None) as bar:
            abduction.learn(self.abduction, batch, steps, self.context(small=False), bar.update)
        if not all(weight.isfinite().all() for weight in self.abduction.state_dict().values()):
            raise experiment.UserError("abduction: weights were no longer finite; nothing was saved")
        self.last = {"abduction": self.abduction.state_dict(), "lines": 0, "seconds": time.perf_counter() - started}
        storage.save_checkpoint(self.folder.last, self.last)

    def infer(self):
        seed, context = self.options["seed"], self.context(small=False)
        found, self.iou = abduce(self.abduction, self.variant, self.shapes, seed, context)
        storage.save_checkpoint(self.folder.path / "opacities.pt", {"alphas": found[1], "labels": found[2]})
        return found

    @torch.no_grad()
    def picture(self):
        """Mask, object, background and composite of one latent a class, (4, classes, 3, 32, 32), uint8."""
        labels = torch.arange(data.CLASSES, device=self.variant.device)
        stream = experiment.generator(self.options["seed"], "frames")
        latents = mechanisms.draw_latents(len(labels), stream, labels.device)
        parts = self.game.averages["generator"].parts((labels,) * 3, latents, stream)
        shown = [parts.mask.expand(-1, 3, -1, -1) * 2 - 1, parts.object, parts.background, parts.image()]
        return datasets.to_bytes(torch.stack(shown)).cpu()

    def architecture(self):
        model = self.options["model"]
        return model, settings_of(model, self.variant.name), self.game.averages["generator"].state_dict()

    def kept(self):
        return {"iou": self.iou} | ({"abduction": self.abduction.state_dict()} if self.abduction else {})

    def closing(self):
        if self.options["model"] == "gan":
            return {"collapsed": []}
        means = mean_masks(self.game.averages["generator"], self.variant.device, self.options["seed"])
        return {"collapsed": collapsed(means)}


def collapsed(means):
    """The classes whose masks have collapsed, by their mean masks (classes,)."""
    return [number for number, mean in enumerate(means.tolist()) if not COLLAPSED[0] < mean < COLLAPSED[1]]


@torch.no_grad()
def mean_masks(generator, device, seed, n=100):
    """Mean mask (classes,) of n samples of each class."""
    labels = torch.arange(data.CLASSES, device=device).repeat_interleave(n)
    stream = experiment.generator(seed, "mean masks")
    parts = generator.parts((labels,) * 3, mechanisms.draw_latents(len(labels), stream, device), stream)
    return parts.mask.view(data.CLASSES, -1).mean(1).cpu()


def measure(path, best, trained, options, device, results):
    """Record the finished run, once for each training: mean masks, collapsed classes, seconds, and abduction's IoU."""
    records = storage.Records(results, "train", options, device)
    if records.earlier() and not trained:
        return
    arm, split = options["model"], options["variant"]
    add = functools.partial(records.add, arm, split, seed=options["seed"])
    add("training seconds", trainer.seconds_of(path), n=options["steps"] * options["batch"])
    for line in storage.read_lines(path / "log.jsonl"):
        if line.get("event") == "abduction":
            add("abduction seconds", line["seconds"], n=sum(abduction.STEPS[split]) * abduction.BATCH)
    if best.get("iou") is not None:
        add("abduction iou", best["iou"], n=60_000 if split == "colored" else data.TRAINING)
    if options["model"] != "gan":
        generator = mechanisms.restore(best).to(device)
        means = mean_masks(generator, device, options["seed"])
        gone = collapsed(means)
        add("mean mask", float(means.mean()), n=1000)
        add("collapsed classes", len(gone), n=data.CLASSES)
        if gone:
            print(f"{path}: the masks of {', '.join(map(str, gone))} have collapsed (mean mask "
                  f"{', '.join(f'{means[number]:.2f}' for number in gone)})")
    records.save()


def main(variant, model, textures, seed, device, precision, run, results, steps, batch, lr, abduction, shape_adversary,
         texture_adversary, entropy, texture, edge, features):
    abduction = abduction and model == "cgn"
    check(model, abduction, edge, (shape_adversary, texture_adversary, entropy, texture))
    device = experiment.pick_device(device)
    painted = data.Variant(variant, device, textures)
    given = {"steps": steps, "batch": batch, "lr": lr, "entropy": entropy, "texture": texture}
    chosen = {name: DEFAULTS[model][name] if value is None else value for name, value in given.items()}
    options = {"variant": variant, "model": model, "textures": painted.textures_name, "seed": seed} | chosen | {
        "precision": precision, "abduction": abduction, "shape_adversary": shape_adversary,
        "texture_adversary": texture_adversary, "edge": edge, "features": features}  # fmt: skip
    path = run or run_of(model, variant, options["textures"], seed)
    best, trained = trainer.train(path, options, functools.partial(Course, variant=painted))
    measure(path, best, trained, options, device, results)
    print(f"{path}: {'trained' if trained else 'trained before'}, {best['step']:,} steps")


if __name__ == "__main__":
    experiment.run(main)

"""Teach three BigGANs to be the mechanisms of a CGN: shape, object texture, background (README, part 5).

    python -m cgn.train_objects     # objects64; 4 min on 2 cores, after train_gan and train_saliency
    python -m cgn.train_objects --preset paper --generator data/weights/biggan-deep-256-pytorch_model.bin \
        --saliency data/weights/u2net.pth --features vgg16    # ImageNet, 256 pixels; published: 12 hours of a GPU
    torchrun --nproc-per-node 4 -m -- cgn.train_objects --preset code --batch 4 --accumulate 1000 ...
                                    # four GPUs with an image each; --nnodes 2 for two machines

Sauer and Geiger 2021, section 3.2. No images are read: the frozen BigGAN makes them. Presets name every weight; those
of the paper and of the published code differ in the Gram weight (5 and 4) and in the texture's learning rate (1e-5 and
3e-5). Masks are right at the start, since a copy of the target paints what the U2-Net finds: in objects64 the shape
learns twenty times more slowly than the others, as masks otherwise swell before object and background have parted.
Writes runs/cgn_PRESET/ (options.json, log.jsonl, ckpt/{best,last}.pt, frames.pt for the GIF of the training) and
records of how the masks turned out to results/cgn/. A killed run goes on from last.pt and ends with the same bytes.
"""

import functools
from pathlib import Path
from typing import Literal

import torch

import datasets
import experiment
import storage
import trainer
from cgn import biggan, losses, objects, scores, u2net

# --- what is trained -----------------------------------------------------------------------------------
PRESET: Literal["objects64", "paper", "code"] = "objects64"  # weights and sizes; see PRESETS
GENERATOR: Path = Path("runs/biggan_objects64")  # a run of train_gan, or published weights
SALIENCY: Path = Path("runs/u2net64_objects64")  # a run of train_saliency, or published weights
LEAVE_OUT: str | None = None  # for the ablation: a loss of the preset, or one of PARTS_OF, which is several
SEED: experiment.Index = 0  # names the streams of latents, labels, patches
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
DEVICES: experiment.Count = 1  # GPUs, or processes on the CPU, that share each batch; torchrun's number goes first
PRECISION: experiment.Precision = "auto"  # of the networks; auto: bfloat16 where there are matrix units for it
RUN: Path | None = None  # run folder; by default runs/cgn_PRESET and what is left out
RESULTS: Path = Path("results/cgn")  # where records go

# --- how -------------------------------------------------------------------------------------------------
STEPS: experiment.Count | None = None  # of Adam; by default the preset's, like the next two
BATCH: experiment.Count | None = None  # images at once
ACCUMULATE: experiment.Count | None = None  # batches whose gradients a step takes together
TRUNCATION: experiment.Positive = 1.0  # of the latents (published code; its samples are of 0.5)
FEATURES: Literal["random", "vgg16"] = "random"  # whose Gram matrices: fixed random filters, or ImageNet's VGG16

GRAM = tuple(5e3 / channels for channels in (64, 128, 256, 512))  # for a published weight of 1: theirs are over CHW
_published = lambda gram, texture: {
    "l1": 100, "entropy": 300, "area": 500, "background": 2000,
    "gram": tuple(gram**2 * unit for unit in GRAM), "texture": tuple(w**2 * unit for w, unit in zip((0, 5, 5, 0), GRAM,
                                                                                                  strict=True)),
    "rates": {"f_shape": 8e-6, "f_text": texture, "f_bg": 1e-5},
    "config": "biggan-deep-256", "u2net": "u2net", "standardise": False, "steps": 300, "batch": 1, "accumulate": 4000,
    "patches": {"patch": 15, "best": 100, "grid": 6, "side": 128}}  # fmt: skip
PRESETS = {
    "paper": _published(5, 1e-5),
    "code": _published(4, 3e-5),
    "objects64": {
        "l1": 100, "entropy": 30, "area": 500, "background": 200, "gram": (50.0,), "texture": (3000.0,),
        "ground": (1000.0,), "rates": {"f_shape": 2e-5, "f_text": 4e-4, "f_bg": 4e-4},
        "config": "objects64", "u2net": "u2net64", "standardise": True, "steps": 500, "batch": 32, "accumulate": 1,
        "patches": {"patch": 7, "best": 60, "grid": 9, "side": 64}},
}  # fmt: skip
SETTINGS = ("rates", "config", "u2net", "standardise", "steps", "batch", "accumulate", "patches")  # the rest: weights
PARTS_OF = {"rec": ("l1", "gram"), "shape": ("entropy", "area"),
            "background": ("background", "ground")}  # of a loss that has several
BETAS = (0.5, 0.999)  # of Adam (published)
MEASURED = 2000  # images whose masks are averaged (the replication's number)


class Game(trainer.Game):
    """The mechanisms of a CGN against what the target makes."""

    def __init__(self, model, preset, weights, sizes, truncation, features, device, context, seed, fabric=None):
        """sizes: (batch, accumulate)."""
        networks = {name: getattr(model, name) for name in objects.MECHANISMS}
        super().__init__(networks, preset["rates"], BETAS, context, seed, objects.MECHANISMS, falling=False,
                         fabric=fabric)  # fmt: skip
        self.model, self.weights, self.patches, self.truncation = model, weights, preset["patches"], truncation
        self.network, self.device = losses.features(features, device), device
        self.batch, self.accumulate = sizes

    def step(self, number):
        sums = {}
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        for k in range(self.accumulate):
            terms = self.terms(f"{number}/{k}")
            (sum(terms.values()) / self.accumulate).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() / self.accumulate
        self.advance(*self.networks)
        self.follow(number)
        return sums

    def terms(self, number):
        """{term: weighted scalar} of one batch, of this process's part of it."""
        latents, labels = self.model.draw(self.batch, self.stream("latents", number), self.truncation)
        latents, labels = (self.share(part).to(self.device) for part in (latents, labels))
        with self.context():
            made = self.model.make((labels,) * 3, latents, self.truncation)
        rank = 0 if self.fabric is None else self.fabric.global_rank
        return objects.objective(made, self.network, self.stream(f"patches/{rank}", number), self.weights, self.patches)

    def averaged(self):
        """{name: tensor}: weights of the whole model, the mechanisms' running averages in their place.

        In half precision, as a CGN holds four networks; training goes on from last.pt, which has all digits.
        """
        found = {f"u2net.{key}": value for key, value in self.model.u2net.state_dict().items()}
        for name, average in self.averages.items():
            found |= {f"{name}.{key}": value for key, value in average.state_dict().items()}
        return storage.halved(found)


class Course(trainer.Filmed):
    """A training of a CGN of objects in its folder; model: with its target."""

    def __init__(self, folder, options, model, preset, device, fabric=None, first=True):
        self.model, self.preset, self.device, self.fabric = model, preset, device, fabric
        super().__init__(folder, options, first)

    def begin(self):
        o = self.options
        context = experiment.in_precision(self.device, o["precision"])
        return Game(self.model, self.preset, weights_of(self.preset, o["leave_out"]), (o["batch"], o["accumulate"]),
                    o["truncation"], o["features"], self.device, context, o["seed"], self.fabric)  # fmt: skip

    @torch.no_grad()
    def picture(self):
        """Mask, object, background and composite of one latent for ten classes, (4, 10, 3, H, W), uint8."""
        labels = torch.arange(min(10, self.model.classes), device=self.device)
        latents, _ = self.model.draw(1, experiment.generator(self.options["seed"], "frames"), device=self.device)
        parts = self.model.parts((labels,) * 3, latents.expand(len(labels), -1))
        shown = [parts.mask.expand(-1, 3, -1, -1) * 2 - 1, parts.object, parts.background, parts.image()]
        return datasets.to_bytes(torch.stack(shown)).cpu()

    def architecture(self):
        return "objects", self.model.settings, self.game.averaged()


def weights_of(preset, leave_out):
    """{term: weight} of a preset, without those of a loss that is left out; UserError for one that it does not have."""
    weights = {name: value for name, value in preset.items() if name not in SETTINGS}
    if leave_out is None:
        return weights
    storage.one_of(weights | PARTS_OF, "loss of this preset", leave_out)
    out = PARTS_OF.get(leave_out, (leave_out,))
    return {name: value for name, value in weights.items() if name not in out}


def generator_of(path, config):
    """The BigGAN of a run folder of train_gan, or of a file of published weights of this config."""
    path = Path(path)
    if path.is_file():
        return biggan.load_published(path, config)
    return biggan.restore(storage.load_checkpoint(path / "ckpt/best.pt"))


def saliency_of(path, name):
    """The U2-Net of a run folder of train_saliency, or of a file of published weights of the network of this name."""
    path = Path(path)
    if not path.is_file():
        return u2net.restore(storage.load_checkpoint(path / "ckpt/best.pt"))
    if name not in u2net.PUBLISHED:
        raise experiment.UserError(f"{path}: of {name} no file was published, but of {', '.join(u2net.PUBLISHED)}; "
                                   "name a run folder of cgn.train_saliency")
    return u2net.load_published(path, name)


def build(preset, generator, saliency, device):
    """The ObjectsCGN of a preset, started from a BigGAN and a U2-Net."""
    model = objects.ObjectsCGN(preset["config"], preset["u2net"], preset["standardise"], target=True)
    model.start_from(generator_of(generator, preset["config"]), saliency_of(saliency, preset["u2net"]))
    return model.to(device, memory_format=torch.channels_last)


@torch.no_grad()
def masks_of(model, n, truncation, seed, device):
    """Masks (n, 1, H, W), float32, of n images whose three labels are the same."""
    stream, found = experiment.generator(seed, "mean masks"), []
    for size in [50] * (n // 50) + [n % 50] * bool(n % 50):
        latents, labels = model.draw(size, stream, truncation, device)
        found.append(model.parts((labels,) * 3, latents, truncation).mask.cpu())
    return torch.cat(found)


def main(preset, generator, saliency, leave_out, seed, device, devices, precision, run, results, steps, batch,
         accumulate, truncation, features):
    chosen, device = PRESETS[preset], experiment.pick_device(device)
    weights_of(chosen, leave_out)  # says now if there is no such loss
    if features == "random" and len(chosen["gram"]) > 1:
        raise experiment.UserError(f"--preset {preset} weighs four layers of VGG16: add --features vgg16")
    given = {"steps": steps, "batch": batch, "accumulate": accumulate}
    options = {"preset": preset, "generator": generator.name, "saliency": saliency.name, "leave_out": leave_out,
               "seed": seed, "precision": precision, "truncation": truncation, "features": features} | {
        name: chosen[name] if value is None else value for name, value in given.items()}  # fmt: skip
    path = run or Path("runs") / "_".join(["cgn", preset, *([f"without_{leave_out}"] if leave_out else [])])
    fabric = trainer.fabric_if_needed(device, devices)
    model = build(chosen, generator, saliency, device)
    course = functools.partial(Course, model=model, preset=chosen, device=device, fabric=fabric)
    found = trainer.train(path, options, course, fabric)
    if found is None:  # another process than the first
        return
    best, trained = found
    records = storage.Records(results, "train_objects", options, device)
    if trained or not records.earlier():
        mean, each = scores.mean_mask(masks_of(objects.restore(best).to(device), MEASURED, truncation, seed, device))
        arm = f"without {leave_out}" if leave_out else "all losses"
        records.add(arm, preset, "mean mask", mean, len(each), seed)
        records.add(arm, preset, "training seconds", trainer.seconds_of(path), options["steps"] * options["batch"]
                    * options["accumulate"], seed)  # fmt: skip
        records.save()
    print(f"{path}: {'trained' if trained else 'trained before'}, {options['steps']:,} steps")


if __name__ == "__main__":
    experiment.run(main)

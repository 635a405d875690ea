"""Images from a trained CGN: counterfactual sets of any size, sheets, interpolations, the GIF of its training.

    python -m cgn.generate --variant wildlife                    # the sheet, the interpolation and the GIF; 10 s
    python -m cgn.generate --variant colored --size 100000       # and a counterfactual set, 1 min
    python -m cgn.generate --variant double_colored --checkpoint FILE --size 100000      # of a published generator

A counterfactual keeps a shape and takes object and background of other classes. The shape is either sampled, as in the
paper, or abducted from a training image: what would this very image look like, were its object striped? A set goes
straight to two memory-mapped files, NAME_images.npy (N, 3, 32, 32) and NAME_labels.npy (N, 3: shape, object,
background), uint8. A run that is interrupted goes on where it was; until it is done the files are called .part.
"""

import functools
from pathlib import Path
from typing import Literal

import torch

import datasets
import experiment
import figures
import storage
import trainer
from cgn import abduction, data, mechanisms, sets, train

# --- what is generated ---------------------------------------------------------------------------
VARIANT: str = "colored"  # a name of data.VARIANTS
TEXTURES: Path | None = None  # folder of wildlife's textures, as in training
RUN: Path | None = None  # run folder of cgn.train; by default that of the variant and seed 0
CHECKPOINT: Path | None = None  # another file to take instead of the run's, also a published one
SIZE: experiment.Index = 0  # images of the counterfactual set; 0: none
RATIO: experiment.Count = 1  # counterfactuals of each shape (published: 1, README 10)
SHAPES: Literal["sampled", "abducted"] = "sampled"  # drawn from the shape mechanism, or found in training images
OUT: Path = Path("data/cgn/counterfactuals")  # beginning of the set's two files
SEED: experiment.Index = 0  # names the streams of latents, labels, crops
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the networks
RESULTS: Path = Path("results/cgn")  # where the figures go

CHUNK = 500  # images at once


# --- loading -----------------------------------------------------------------------------------------


def load(path, variant, textures, device):
    """(generator in evaluation mode, its abduction or None, options) of a checkpoint; published ones have no options.

    Raises UserError if it is of another variant or of other textures.
    """
    state = storage.load_checkpoint(path)
    options = storage.expect(path, state, variant=variant, textures=textures)
    generator = mechanisms.restore(state).to(device, memory_format=torch.channels_last).requires_grad_(False)
    if "abduction" not in state:
        return generator, None, options
    finder = storage.load_weights(abduction.Abduction(abduction.FIELD[variant]), state["abduction"])
    return generator, finder.eval().to(device, memory_format=torch.channels_last), options


def found(path, finder, variant, seed, context):
    """(opacities, labels) of the training images: kept beside a checkpoint by its training, or found again."""
    kept = Path(path).resolve().parents[1] / "opacities.pt"
    if kept.is_file():
        state = storage.load_checkpoint(kept)
        return state["alphas"].to(variant.device), state["labels"].to(variant.device)
    return train.abduce(finder, variant, variant.shapes("train"), seed, context)[0][1:]


# --- counterfactuals -----------------------------------------------------------------------------------


class Source:
    """Counterfactuals of one generator, a chunk at a time; every chunk has a stream of its own.

    sampled: shapes from the shape mechanism. abducted: those of training images, found by the generator's abduction.
    ratio: how many counterfactuals share a shape.
    """

    side, classes, size_of_chunk = data.SIDE, data.CLASSES, CHUNK

    def __init__(self, generator, device, seed, ratio=1, opacities=None, context=None, factual=False):
        """opacities: (alphas uint8 (N, 1, 32, 32), labels (N,)) of training images, or None to sample shapes.

        factual: one label for all three mechanisms: what the generator was trained to make, whatever the
        ratio each with latents of its own: of the same shape and label a GAN makes the same image again.
        """
        self.generator, self.device, self.seed, self.ratio = generator, device, seed, 1 if factual else ratio
        self.opacities, self.factual = opacities, factual
        self.context = context or experiment.in_precision(device, "float32")

    @torch.no_grad()
    def chunk(self, number, size=CHUNK):
        """(images (size, 3, 32, 32) in [-1, 1], labels (size, 3)): chunk `number` of the set."""
        stream = experiment.generator(self.seed, f"counterfactuals/{number}")
        n = -(-size // self.ratio)
        if self.opacities is None:
            labels = torch.randint(data.CLASSES, (n,), generator=stream).to(self.device)
        else:
            index = torch.randint(len(self.opacities[1]), (n,), generator=stream).to(self.device)
            labels = self.opacities[1][index]
        many = labels.repeat_interleave(self.ratio)[:size]
        orders = (many,) * 3 if self.factual else mechanisms.shuffled(many, stream)
        latents = mechanisms.draw_latents(size, stream, self.device, shared=self.factual)
        latents = (latents[0][:n].repeat_interleave(self.ratio, 0)[:size], *latents[1:])
        with self.context():
            if self.opacities is None:
                parts = self.generator.parts(orders, latents, stream)
            else:
                masks = self.opacities[0][index].repeat_interleave(self.ratio, 0)[:size].float() / 255
                parts = mechanisms.Parts(masks, *self.generator.textures(orders, latents, stream))
        return parts.image(), torch.stack(orders, 1)


def in_memory(source, size):
    """(images uint8 (size, 3, 32, 32), labels (size, 3)) on the source's device."""
    images = torch.empty(size, 3, data.SIDE, data.SIDE, dtype=torch.uint8, device=source.device)
    labels = torch.empty(size, 3, dtype=torch.int64, device=source.device)
    for number, start in enumerate(range(0, size, CHUNK)):
        made, of = source.chunk(number, min(CHUNK, size - start))
        images[start : start + len(made)], labels[start : start + len(made)] = datasets.to_bytes(made), of
    return images, labels


# --- figures ---------------------------------------------------------------------------------------------


@torch.no_grad()
def sheet(generator, variant, seed, path):
    """Mask, object, background, composite, and two counterfactuals of one shape a class."""
    device, stream = variant.device, experiment.generator(seed, "sheet")
    labels, latents = torch.arange(data.CLASSES, device=device), mechanisms.draw_latents(data.CLASSES, stream, device)
    parts = generator.parts((labels,) * 3, latents, stream)
    other = [generator.parts(mechanisms.shuffled(labels, stream), latents, stream).image() for _ in range(2)]
    rows = [parts.mask, *((part + 1) / 2 for part in (parts.object, parts.background, parts.image(), *other))]
    names = ["mask", "object", "background", "composite", "counter-\nfactual", "counter-\nfactual"]
    rows[0] = 1 - rows[0]  # drawn dark on light
    title = f"{variant.name.replace('_', ' ')}: what each mechanism makes"
    figures.image_grid(path, [list(row) for row in rows], [str(k) for k in range(data.CLASSES)], names,
                       [[""] * data.CLASSES] * len(rows), title)


@torch.no_grad()
def interpolation(generator, variant, seed, path, ends=(3, 8), columns=9):
    """The label of one mechanism moves from a class to another, the other two stay: a row each."""
    stream, rows = experiment.generator(seed, "interpolation"), []
    latents = [z.expand(columns, -1) for z in mechanisms.draw_latents(1, stream, variant.device)]
    first, last = (torch.eye(data.CLASSES, device=variant.device)[end] for end in ends)
    shares = torch.linspace(0, 1, columns, device=variant.device)
    for moving in range(3):
        labels = [first.expand(columns, -1)] * 3
        labels[moving] = torch.lerp(first, last, shares[:, None])
        images = torch.cat([generator.parts([y[k : k + 1] for y in labels], [z[k : k + 1] for z in latents],
                                            experiment.generator(seed, "window")).image() for k in range(columns)])
        rows.append(list((images + 1) / 2))
    title = f"{variant.name.replace('_', ' ')}: the label of one mechanism goes from {ends[0]} to {ends[1]}"
    figures.image_grid(path, rows, [f"{share:.2f}" for share in shares.tolist()], ["shape", "object", "background"],
                       [[""] * columns] * 3, title)


def training_film(run, path):
    """The GIF of a training: mask, object, background and composite, a column for each class."""
    file = Path(run) / trainer.FILM
    if not file.is_file():
        return False
    frames = storage.load_checkpoint(file)["frames"].float() / 255  # (T, 4, classes, 3, H, W)
    t, kinds, n, _, high, wide = frames.shape
    strip = frames.permute(0, 3, 1, 4, 2, 5).reshape(t, 3, kinds * high, n * wide)
    scale = 64 // wide or 1
    figures.animation(path, strip, side=(n * wide * scale, kinds * high * scale), milliseconds=150)
    return True


def main(variant, textures, run, checkpoint, size, ratio, shapes, out, seed, device, precision, results):
    device = experiment.pick_device(device)
    painted = data.Variant(variant, device, textures)
    named = painted.textures_name
    run = run or train.run_of("cgn", variant, named, 0)
    path = checkpoint or Path(run) / "ckpt/best.pt"
    generator, finder, _ = load(path, variant, named, device)
    stem = f"{variant}{'' if named in (None, 'procedural') else '_' + named}"
    dtype = experiment.precise(device, precision)
    context = functools.partial(experiment.autocast, device, dtype)
    if shapes == "abducted" and finder is None:
        raise experiment.UserError(f"{path} has no abduction: --shapes sampled, or train without --no-abduction")
    sheet(generator, painted, seed, Path(results) / f"sheet_{stem}.png")
    interpolation(generator, painted, seed, Path(results) / f"interpolation_{stem}.png")
    if checkpoint is None:
        training_film(run, Path(results) / f"training_{stem}.gif")
    print(f"{Path(results)}/*_{stem}.*: sheet, interpolation, training")
    if size:
        opacities = None
        if shapes == "abducted":
            opacities = found(path, finder, painted, seed, context)
        source = Source(generator, device, seed, ratio, opacities, context)
        about = {"variant": variant, "textures": named, "checkpoint": str(path), "weights": storage.digest(path),
                 "ratio": ratio, "shapes": shapes, "seed": seed, "dtype": str(dtype)}  # fmt: skip
        made = sets.write(source, out, size, about)
        print(f"{out}_images.npy: {size:,} counterfactuals{'' if made else ', made before'}")


if __name__ == "__main__":
    experiment.run(main)

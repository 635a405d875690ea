"""Images from a CGN of objects: counterfactual sets, sheets, interpolations, a film through classes (README, part 5).

    python -m cgn.generate_objects                              # figures of the run on the made set; 20 s
    python -m cgn.generate_objects --size 20000                 # and a set to train classifiers on; 2 min on 2 cores
    python -m cgn.generate_objects --size 20000 --shards 4 --shard 0    # one of four processes' parts of it
    python -m cgn.generate_objects --size 1000 --files          # as pictures, with a CSV of the three labels
    python -m cgn.generate_objects --run data/weights/cgn.pth --classes 207 340 717 947 980

A counterfactual has three labels, drawn independently of each other, and one latent (published). Sets are those of
sets.py. A masked object on its inpainted background, the background alone and the binary mask are rows of the sheet.
"""

import functools
import itertools
from pathlib import Path

import torch

import experiment
import figures
import storage
from cgn import generate, objects, sets

# --- what is generated -----------------------------------------------------------------------------------
RUN: Path = Path("runs/cgn_objects64")  # a run folder of train_objects, or the published cgn.pth
CLASSES: tuple[experiment.Index, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)  # that the figures show
TRUNCATION: experiment.Positive = 0.5  # of latents (published for its sets and figures)
SHEETS: bool = True  # whether sheet, interpolation and films are drawn
SIZE: experiment.Index = 0  # images of the counterfactual set; 0: none
FACTUAL: bool = False  # one label for all three mechanisms instead
SHARDS: experiment.Count = 1  # parts of the set, each for a process of its own
SHARD: experiment.Index = 0  # which of them is made
FILES: bool = False  # pictures and a CSV instead of arrays
OUT: Path = Path("data/cgn/objects")  # the set's folder; a shard adds its number
SEED: experiment.Index = 0  # names the streams of latents and labels
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the networks
RESULTS: Path = Path("results/cgn")  # where the figures go

NAME = "set"  # beginning of a set's files in its folder
CHUNK = 50  # images at once
STEPS = 8  # frames from one class to the next in the film
BINARY = 0.5  # value of a mask from which it counts


class Source:
    """Counterfactuals of a CGN of objects, a chunk at a time; every chunk has a stream of its own."""

    size_of_chunk = CHUNK

    def __init__(self, model, truncation, seed, shard=0, shards=1, factual=False, context=None):
        self.model, self.truncation, self.seed, self.factual = model, truncation, seed, factual
        self.shard, self.shards, self.side, self.classes = shard, shards, model.resolution, model.classes
        self.device = next(model.parameters()).device
        self.context = context or experiment.in_precision(self.device, "float32")

    def stream(self, purpose, number):
        return experiment.generator(self.seed, f"{purpose}/{number * self.shards + self.shard}")

    def labels(self, number, size):
        """Labels (size, 3) of chunk `number`: shape, object texture, background."""
        labels = torch.randint(self.classes, (size, 3), generator=self.stream("labels", number))
        return labels[:, :1].expand(-1, 3) if self.factual else labels

    @torch.no_grad()
    def parts(self, number, size):
        """The Parts of chunk `number`."""
        latents, _ = self.model.draw(size, self.stream("latents", number), self.truncation, self.device)
        with self.context():
            return self.model.parts(self.labels(number, size).to(self.device).unbind(1), latents, self.truncation)

    def chunk(self, number, size=CHUNK):
        """(images (size, 3, H, W) in [-1, 1], labels (size, 3))."""
        return self.parts(number, size).image(), self.labels(number, size)


def many(model, classes, seed, truncation):
    """(labels (K,), one latent for all of them (K, latent))."""
    device = next(model.parameters()).device
    latent, _ = model.draw(1, experiment.generator(seed, "sheet"), truncation, device)
    return torch.tensor(classes, device=device), latent.expand(len(classes), -1)


@torch.no_grad()
def sheet(model, classes, seed, truncation, path):
    """What each mechanism makes of one latent, and two counterfactuals of each shape."""
    labels, latents = many(model, classes, seed, truncation)
    premask, parts = model.painted((labels,) * 3, latents, truncation)
    turned = [model.parts((labels, labels.roll(a), labels.roll(b)), latents, truncation).image()
              for a, b in ((1, 2), (3, 1))]  # fmt: skip
    unit = lambda image: (image + 1) / 2
    binary = (parts.mask > BINARY).float()
    rows = {"premask": unit(premask), "mask": 1 - parts.mask, "binary mask": 1 - binary, "object": unit(parts.object),
            "background": unit(parts.background), "composite": unit(parts.image()),
            "counter-\nfactual": unit(turned[0]), " counter-\nfactual": unit(turned[1])}  # fmt: skip
    figures.image_grid(path, [list(row) for row in rows.values()], [str(number) for number in classes],
                       [name.strip() for name in rows], [[""] * len(classes)] * len(rows),
                       "What each mechanism makes of one latent; counterfactuals have three labels")  # fmt: skip


@torch.no_grad()
def interpolation(model, classes, seed, truncation, path, columns=8):
    """The label of one mechanism, or of all, moves from the first class to the last, a row each."""
    ends = torch.eye(model.classes)[[classes[0], classes[-1]]]
    _, latent = many(model, classes[:1], seed, truncation)
    shares = torch.linspace(0, 1, columns)
    path_ = torch.lerp(ends[0], ends[1], shares[:, None]).to(latent.device)
    still, rows = path_[:1].expand(columns, -1), []
    for moving in ((0,), (1,), (2,), (0, 1, 2)):
        labels = [path_ if k in moving else still for k in range(3)]
        rows.append(list((model.parts(labels, latent.expand(columns, -1), truncation).image() + 1) / 2))
    figures.image_grid(path, rows, [f"{share:.2f}" for share in shares.tolist()],
                       ["shape", "object", "background", "all"], [[""] * columns] * 4,
                       f"The label of one mechanism goes from {classes[0]} to {classes[-1]}")  # fmt: skip


@torch.no_grad()
def film(model, classes, seed, truncation, path):
    """One latent through the classes, a mechanism at a time: first the texture, then the background, then the shape."""
    _, latent = many(model, classes[:1], seed, truncation)
    stops, labels = [[classes[0]] * 3], []
    for number in [*classes[1:], classes[0]]:
        for mechanism in (1, 2, 0):
            stops.append([number if k == mechanism else before for k, before in enumerate(stops[-1])])
    corners = torch.eye(model.classes)[torch.tensor(stops)]  # (stops, 3, classes)
    for here, there in itertools.pairwise(corners):
        labels += [torch.lerp(here, there, step / STEPS) for step in range(STEPS)]
    labels = torch.stack(labels).to(latent.device)  # (F, 3, classes)
    frames = [model.parts(some.unbind(1), latent.expand(len(some), -1), truncation).image().cpu()
              for some in labels.split(CHUNK)]  # fmt: skip
    figures.animation(path, (torch.cat(frames) + 1) / 2, side=max(128, min(256, model.resolution)), milliseconds=60)


def draw(model, run, classes, seed, truncation, results):
    """All figures of a run; UserError for classes that it has not."""
    if not classes:
        raise experiment.UserError("--classes names none: name some of them, or leave the figures out by --no-sheets")
    if max(classes) >= model.classes:
        raise experiment.UserError(f"--classes: there is no class {max(classes)}; they are 0 to {model.classes - 1}")
    stem = run.stem.removeprefix("cgn_")
    sheet(model, classes, seed, truncation, results / f"sheet_{stem}.png")
    interpolation(model, classes, seed, truncation, results / f"interpolation_{stem}.png")
    film(model, classes[:5], seed, truncation, results / f"classes_{stem}.gif")
    if run.is_dir():
        generate.training_film(run, results / f"training_{stem}.gif")
    print(f"{results}/*_{stem}.*: sheet, interpolation, classes, training")


def main(run, classes, truncation, sheets, size, factual, shards, shard, files, out, seed, device, precision, results):
    if shard >= shards:
        raise experiment.UserError(f"--shard {shard}: shards are counted from 0, and there are {shards}")
    device = experiment.pick_device(device)
    model = objects.load(run, device)
    dtype = experiment.precise(device, precision)
    if sheets and shards == 1:
        draw(model, run, classes, seed, truncation, results)
    if not size:
        return
    context = functools.partial(experiment.autocast, device, dtype)
    source = Source(model, truncation, seed, shard, shards, factual, context)
    weights = storage.digest(storage.file_of(run))
    about = {"run": str(run), "weights": weights, "truncation": truncation, "factual": factual, "seed": seed,
             "shard": shard, "shards": shards, "dtype": str(dtype)}  # fmt: skip
    part = size // shards + (shard < size % shards)
    folder = out.with_name(out.name + (f"_{shard}_of_{shards}" if shards > 1 else ""))
    made = sets.write_files(source, folder, part, about) if files else sets.write(source, folder / NAME, part, about)
    print(f"{folder}: {part:,} images{'' if made else ', made before'}")


if __name__ == "__main__":
    experiment.run(main)

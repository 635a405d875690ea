"""Train an inpainting network with contextual attention, and paint over the foreground of every image of a set.

    python -m robust_training.inpaint                       # 4 min on one core
    python -m robust_training.inpaint --dataset wb --write data/infills_wb
    python -m robust_training.inpaint --write FOLDER        # the infills of the embedded set as pictures

Chang, Adam and Goldenberg 2021 take infills of a network of Yu et al. that was trained on other photographs (CAGAN);
here it is trained (inpainter.py) on the grounds of the set itself, so that it needs nothing else. It learns from holes
beside the foreground, which it never sees, and is used with the box of the foreground as the hole.

Writes runs/inpainter_DATASET_LABELS/: options.json, log.jsonl, ckpt/{best,last}.pt (best is the running average at the
end: nothing is selected); the L1 error in holes of held-out images, beside those of a grey hole and of the mean colour
around it; and a figure. A run that was killed goes on from last.pt and ends with the same bytes.
"""

import functools
import itertools
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as pictures
from tqdm import tqdm

import datasets
import experiment
import figures
import stand_ins
import storage
import trainer
from experiment import UserError
from robust_training import digits, formats, inpainter, photos
from robust_training.batch import rectangles
from robust_training.data import RECIPES

# --- what is trained -------------------------------------------------------------------------------
DATASET: Literal["digits", "in9", "in9l", "wb", "cct"] = "digits"  # the embedded set, or one of formats.py
LABELS: Literal["ten", "two"] = "ten"  # label set of digits, and so its grounds
DATA: Path = Path("data")  # where the sets lie
SIZE: experiment.Count | None = None  # side of the images; by default 64, photographs 224; a multiple of 8
SEED: experiment.Index = 0  # names the streams of initialisation, order, holes
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the networks; auto: bfloat16 where the processor multiplies in it
WORKERS: experiment.Index = 0  # processes that load photographs
RUN: Path | None = None  # run folder; by default runs/inpainter_DATASET, of digits with labels, and any seed but 0
RESULTS: Path = Path("results/robust_training")  # where the record and the figure of a finished training go
WRITE: Path | None = None  # folder for the infill of every image, NAME.png; by default none are written

# --- how -------------------------------------------------------------------------------------------
STEPS: experiment.Count | None = None  # by default 3,200; photographs 100,000
BATCH: experiment.Count = 8  # images a step: few, for as many steps as the time allows
LR: experiment.Positive = 2e-3  # of Adam; constant for half of the training, then falling to zero
WIDTH: experiment.Count = inpainter.WIDTH  # channels of the generator at half the resolution
ADVERSARY: experiment.NotNegative = 0.03  # weight of each critic beside the L1 errors; 0: no critics

STEPS_OF = {"digits": 3200}  # others 100,000
SPLITS = ("train", "val")  # whose infills are written
HELD_OUT = {"digits": "val", "in9": "original", "in9l": "original", "wb": "val", "cct": "val"}  # IN-9's val has none
MEASURED = 1000  # images
RING = 4  # pixels around a hole whose mean colour is a baseline
KNOWN = 0.5  # weight of the L1 error in the known ground
CRITICS_RATE = 0.5  # learning rate of the critics in those of the generator


# --- data --------------------------------------------------------------------------------------------


def options_of(dataset, labels, size, seed, precision, steps, batch, lr, width, adversary, **places):
    """What a run is known by, of the options of this script: without devices and folders, and with every default."""
    return {"dataset": dataset, "labels": labels if dataset == "digits" else None,
            "size": size or RECIPES[dataset].size, "seed": seed, "precision": precision,
            "steps": steps or STEPS_OF.get(dataset, 100_000), "batch": batch, "lr": lr, "width": width,
            "adversary": adversary}  # fmt: skip


def run_of(dataset, labels, seed):
    """The default run folder."""
    words = ["inpainter", dataset, *([labels] if dataset == "digits" else []), *([f"seed{seed}"] if seed else [])]
    return Path("runs") / "_".join(words)


def samples_of(dataset, split, data):
    """The samples of a split whose foreground is known; UserError if there are none."""
    samples = [sample for sample in formats.read(dataset, split, data) if sample.kind != "none"]
    if not samples:
        raise UserError(f"no foreground is marked in {dataset} {split}: there is nothing to paint over")
    return samples


def read(dataset, labels, split, size, data, workers, device, seed):
    """A source of Batches: digits.Scenes or photos.Photos."""
    if dataset == "digits":
        return digits.read(labels, split, device, data, seed)
    return photos.Photos(samples_of(dataset, split, data), size, RECIPES[dataset].resize,
                         train=split == "train", workers=workers, seed=seed)  # fmt: skip


# --- training ----------------------------------------------------------------------------------------


class Game(trainer.Game):
    """The generator against its critics, on batches of a source."""

    def __init__(self, width, adversary, lr, batches, device, context, seed):
        """batches: a function from the number of a step to an iterator over batches from that step on."""
        with experiment.seeded(seed, "initialisation"):
            networks = {"generator": inpainter.Inpainter(width), "critics": inpainter.Critics()}
        for network in networks.values():
            network.to(device, memory_format=torch.channels_last)
        super().__init__(networks, {"generator": lr, "critics": CRITICS_RATE * lr}, (0.5, 0.99), context, seed,
                         ("generator",))  # fmt: skip
        self.generator, self.critics, self.adversary = *networks.values(), adversary
        self.device, self.coming = device, trainer.Coming(batches)

    def step(self, number):
        return self.play(self.coming(number).to(self.device), number)

    def play(self, batch, number):
        """One step of both sides; returns {term: value}, empty where no image has room for a hole."""
        holes = inpainter.draw_holes(batch.rectangles, batch.known, self.stream("holes", number))
        some = holes.flatten(1).any(1)
        images, holes, foregrounds = batch.images[some], holes[some], batch.rectangles[some]
        if not len(images):
            return {}
        images = images.contiguous(memory_format=torch.channels_last)
        critics, against = (self.critics if self.adversary else None), {}
        self.critics.requires_grad_(False)  # the gradient passes through them and leaves nothing behind
        with self.context():
            terms, filled = inpainter.generator_losses(self.generator, critics, images, holes, foregrounds)
        self.critics.requires_grad_(True)
        weights = {"local": self.adversary, "global": self.adversary, "coarse known": KNOWN, "fine known": KNOWN}
        self.move("generator", sum(weights.get(name, 1.0) * value for name, value in terms.items()))
        if critics is not None:
            with self.context():
                against = inpainter.critics_loss(critics, images, filled, holes, foregrounds)
            self.move("critics", sum(against.values()))
        self.follow(number)
        return terms | {f"{name} critic": value for name, value in against.items()}


class Course(trainer.Training):
    """A training of an inpainter in its folder; source: a function that reads the training images."""

    def __init__(self, folder, options, source, device):
        self.source, self.device = source, device
        super().__init__(folder, options)

    def begin(self):
        o, source = self.options, self.source()
        context = experiment.in_precision(self.device, o["precision"])
        batches = functools.partial(trainer.passes, source, o["batch"])
        return Game(o["width"], o["adversary"], o["lr"], batches, self.device, context, o["seed"])

    def note(self, terms, seconds):
        if not terms.sums:
            raise UserError("no hole fits beside the foreground in any image of the last batches: there is no ground "
                            "to learn from")
        super().note(terms, seconds)

    def architecture(self):
        return "inpainter", self.game.generator.settings, self.game.averages["generator"].state_dict()


# --- how good it is --------------------------------------------------------------------------------------


def ring_colour(images, holes, foregrounds):
    """The mean colour (B, 3, 1, 1) of the ground within RING pixels of each hole; 0 where there is none."""
    around = F.max_pool2d(holes.float(), 2 * RING + 1, 1, RING) * ~(holes | foregrounds)
    return (images * around).sum((2, 3), keepdim=True) / around.sum((2, 3), keepdim=True).clamp(1)


@torch.no_grad()
def errors(model, source, seed, device):
    """{arm: mean absolute errors (n,) in held-out holes of images in [-1, 1]}: coarse, cagan (fine), mean, ring."""
    found, stream = {}, experiment.generator(seed, "held-out holes")
    for batch in itertools.islice(source.batches(50), -(-MEASURED // 50)):
        batch = batch.to(device)
        holes = inpainter.draw_holes(batch.rectangles, batch.known, stream)
        some = holes.flatten(1).any(1)
        images, holes, foregrounds = batch.images[some], holes[some], batch.rectangles[some]
        if not len(images):
            continue
        coarse, fine = model(images, holes | foregrounds)
        made = {"coarse": coarse, "cagan": fine, "mean": torch.zeros_like(images),
                "ring": ring_colour(images, holes, foregrounds)}  # fmt: skip
        for arm, fill in made.items():
            wrong = ((fill - images).abs() * holes).sum((1, 2, 3)) / (3 * holes.sum((1, 2, 3)))
            found.setdefault(arm, []).append(wrong.cpu())
    return {arm: torch.cat(parts) for arm, parts in found.items()}


def measure(path, model, source, trained, options, device, results):
    """Record errors and seconds of the finished run, once for each training."""
    records = storage.Records(results, "inpaint", options, device)
    if records.earlier() and not trained:
        return
    split, seed = HELD_OUT[options["dataset"]], options["seed"]
    for arm, values in errors(model, source(split), seed, device).items():
        records.add(arm, split, "hole l1", float(values.double().mean()), n=len(values), seed=seed)
    n = options["steps"] * options["batch"]
    records.add("cagan", "train", "training seconds", trainer.seconds_of(path), n=n, seed=seed)
    records.save()


@torch.no_grad()
def draw(model, source, title, path, device):
    """The figure: ten images, as many of different classes as there are, their holes, and both networks' fills."""
    first = next(iter(source.batches(200)))
    order = torch.tensor([int((first.labels[:k] == first.labels[k]).sum()) for k in range(len(first))])
    batch = first[order.argsort(stable=True)[:10].sort().values].to(device)
    batch = batch[batch.labels.argsort(stable=True)]
    coarse, fine = model(batch.images, batch.rectangles)
    rows = [batch.images, inpainter.blank(batch.images, batch.rectangles),
            *(torch.where(batch.rectangles, made, batch.images) for made in (coarse, fine))]  # fmt: skip
    figures.image_grid(path, [[(image + 1) / 2 for image in row] for row in rows], [""] * len(batch),
                       ["image", "hole", "coarse", "fine"], [[""] * len(batch)] * 4, title)  # fmt: skip


# --- infills as files -----------------------------------------------------------------------------------


def foreground_of(sample, image):
    """(1, H, W): the boxes of a sample at the size of its image (3, H, W), or the box around its outline."""
    if sample.boxes:
        height, width = image.shape[1:]
        return photos.box_mask(torch.tensor(sample.boxes) * torch.tensor([width, height, width, height]), height, width)
    return rectangles(photos.read_outline(sample, image)[None])[0]


@torch.no_grad()
def fill_at(model, images, holes, size, device):
    """Images, each (3, H, W), uint8, of any size, filled at size x size and brought back; other pixels are kept."""
    small = torch.stack([pictures.resize(image, [size, size], antialias=True) for image in images])
    cells = torch.stack([F.adaptive_max_pool2d(hole.float(), size) > 0 for hole in holes])
    made = model.fill(datasets.from_bytes(small).to(device), cells.to(device)).cpu()
    made = [pictures.resize(one, list(image.shape[1:]), antialias=True) if image.shape[1:] != one.shape[1:] else one
            for one, image in zip(made, images, strict=True)]  # fmt: skip
    return [torch.where(hole, datasets.to_bytes(one), image)
            for one, hole, image in zip(made, holes, images, strict=True)]  # fmt: skip


def pieces(dataset, labels, data, split):
    """(name, a function that reads (image, hole)) of every image of a split whose foreground is known."""
    if dataset == "digits":
        scenes = digits.read(labels, split, root=data)
        around = rectangles(scenes.masks)
        return [(f"{split}_{k:05d}", lambda k=k: (scenes.images[k], around[k])) for k in range(len(scenes))]

    def opened(sample):
        image = photos.read_image(sample.path)
        return image, foreground_of(sample, image)

    return [(sample.name, functools.partial(opened, sample)) for sample in samples_of(dataset, split, data)]


def write(model, weights, todo, size, device, folder):
    """Write the infills of `todo` (see pieces) that are not there yet as folder/NAME.png; returns how many.

    weights: the digest of the network's checkpoint, so that a folder holds infills of one network only.
    """
    made_by, folder = {"inpainter": weights, "size": size}, Path(folder)
    if not (folder / "inpainter.json").exists():
        storage.write_atomically(folder / "inpainter.json", storage.json_line(made_by))
    elif storage.read_json(folder / "inpainter.json") != made_by:
        raise UserError(f"{folder} holds infills of another training: name another folder or delete it")
    todo = [(name, read_one) for name, read_one in todo if not (folder / f"{name}.png").is_file()]
    with tqdm(total=len(todo), desc=str(folder), unit="image", disable=None) as bar:
        some = 32 if size <= 64 else 4  # attention takes memory that grows with the fourth power of the side
        for start in range(0, len(todo), some):
            names, readers = zip(*todo[start:start + some], strict=True)
            images, holes = zip(*(read_one() for read_one in readers), strict=True)
            for name, image in zip(names, fill_at(model, images, holes, size, device), strict=True):
                stand_ins.write_png(folder / f"{name}.png", image)
            bar.update(len(names))
    return len(todo)


def main(dataset, labels, data, size, seed, device, precision, workers, run, results, write, steps, batch, lr, width,
         adversary):  # fmt: skip
    options = options_of(dataset, labels, size, seed, precision, steps, batch, lr, width, adversary)
    size = options["size"]
    if size % 8 or size < 32 or (dataset == "digits" and size != digits.SIDE):
        raise UserError(f"--size {size}: it must be a multiple of 8, at least 32, and {digits.SIDE} for digits")
    device = experiment.pick_device(device)
    name = f"{dataset}_{labels}" if dataset == "digits" else dataset
    path = Path(run or run_of(dataset, labels, seed))
    source = functools.cache(lambda split="train": read(dataset, labels, split, size, data, workers, device, seed))
    best, trained = trainer.train(path, options, functools.partial(Course, source=source, device=device))
    model = inpainter.restore(best).to(device)
    measure(path, model, source, trained, options, device, results)
    figure = Path(results) / f"inpainting_{name}.png"
    if trained or not figure.exists():
        draw(model, source(HELD_OUT[dataset]), f"{name}: the box of the foreground, painted over", figure, device)
    print(f"{path}: {'trained' if trained else 'trained before'}, {options['steps']:,} steps")
    if write is not None:
        write_all(model, path, options, data, device, write)


def write_all(model, path, options, data, device, folder):
    todo = [piece for split in SPLITS if split == "train" or HELD_OUT[options["dataset"]] == "val"
            for piece in pieces(options["dataset"], options["labels"], data, split)]  # fmt: skip
    count = write(model, storage.digest(path / "ckpt/best.pt"), todo, options["size"], device, folder)
    print(f"{folder}: {count:,} infills written, {len(todo) - count:,} were there")


if __name__ == "__main__":
    experiment.run(main)

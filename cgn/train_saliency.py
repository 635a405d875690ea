"""Train a U2-Net: to find the objects of the made set, or of any folder of images with masks (README, part 5).

    python -m cgn.train_saliency                       # objects64; 5 min on 2 cores
    python -m cgn.train_saliency --model u2netp --images PATH --masks PATH --size 288

Qin et al. 2020: deep supervision, every map against the mask. Writes runs/u2net_NAME/ (options.json, log.jsonl,
ckpt/{best,last}.pt) and records of held-out images (IoU, mean absolute error) to results/cgn/. A run that was killed
goes on from last.pt and ends with the same bytes.
"""

import functools
from pathlib import Path
from typing import Literal

import torch

import experiment
import metrics
import storage
import trainer
from cgn import folders, objects64, u2net

# --- what is trained -----------------------------------------------------------------------------------
MODEL: Literal["u2net64", "u2netp", "u2net"] = "u2net64"  # a name in u2net.MODELS
IMAGES: Path | None = None  # folder of images; by default the made set
MASKS: Path | None = None  # folder of their masks, NAME.png, white on what stands out
SIZE: experiment.Count = 288  # to which images of a folder are resized (published: random crops of 288)
SEED: experiment.Index = 0  # names the streams of initialisation and order
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the network; auto: bfloat16 where there are matrix units for it
RUN: Path | None = None  # run folder; by default runs/MODEL_objects64, or with the folder's name
RESULTS: Path = Path("results/cgn")  # where records go

# --- how -------------------------------------------------------------------------------------------------
STEPS: experiment.Count = 1500  # of Adam
BATCH: experiment.Count = 32  # images a step; published 12
LR: experiment.Positive = 2e-3  # falling in the second half; published 1e-3, constant

BETAS = (0.9, 0.999)  # of Adam (published)
HELD_OUT = 1000  # images that are measured


class Game(trainer.Game):
    """A saliency network on images with masks; batches: a function from the number of a step to an iterator."""

    def __init__(self, model, lr, batches, device, context, seed):
        with experiment.seeded(seed, "initialisation"):
            network = u2net.build(model).to(device, memory_format=torch.channels_last)
        super().__init__({"saliency": network}, {"saliency": lr}, BETAS, context, seed, ("saliency",))
        self.network, self.device, self.coming = network, device, trainer.Coming(batches)

    def step(self, number):
        images, _, masks = self.coming(number)
        images = self.network.standardised(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        self.network.train()
        with self.context():
            logits = self.network(images)
        loss = u2net.loss(logits, masks.to(self.device))
        self.move("saliency", loss)
        self.follow(number)
        return {"saliency": loss}


class Course(trainer.Training):
    """A training of a saliency network in its folder; source: a function that reads the training images."""

    def __init__(self, folder, options, source, device):
        self.source, self.device = source, device
        super().__init__(folder, options)

    def begin(self):
        o = self.options
        context = experiment.in_precision(self.device, o["precision"])
        batches = functools.partial(trainer.passes, self.source("train"), o["batch"])
        return Game(o["model"], o["lr"], batches, self.device, context, o["seed"])

    def architecture(self):
        return self.options["model"], {}, self.game.averages["saliency"].state_dict()


@torch.no_grad()
def overlaps(model, source, device):
    """(IoU at a half, mean absolute error), each (n,), of a source of images with masks."""
    ious, errors = [], []
    for images, _, masks in source.first(HELD_OUT).batches(50):
        found, masks = model.saliency(images.to(device)).cpu(), masks.cpu()
        ious.append(metrics.iou(found > 0.5, masks))
        errors.append((found - masks.float()).abs().mean((1, 2, 3)))
    return torch.cat(ious), torch.cat(errors)


def read(split, images, masks, size, device, seed):
    """The images of a split: of the made set, or of folders, of which every tenth image is held out."""
    if images is None:
        return objects64.read(split, device, seed=seed)
    return folders.Masked(images, masks, size, split, device, seed)


def main(model, images, masks, size, seed, device, precision, run, results, steps, batch, lr):
    if (images is None) != (masks is None):
        raise experiment.UserError("--images and --masks belong together: a folder of images and one of their masks")
    device = experiment.pick_device(device)
    name = images.name if images else "objects64"
    options = {"model": model, "images": name, "size": size if images else objects64.SIDE, "seed": seed,
               "precision": precision, "steps": steps, "batch": batch, "lr": lr}  # fmt: skip
    path = run or Path("runs") / f"{model}_{name}"
    source = functools.cache(lambda split: read(split, images, masks, size, device, seed))
    best, trained = trainer.train(path, options, functools.partial(Course, source=source, device=device))
    network = u2net.restore(best).to(device)
    records = storage.Records(results, "train_saliency", options, device)
    if trained or not records.earlier():
        iou, error = overlaps(network, source("val"), device)
        for metric, values in (("iou", iou), ("absolute error", error)):
            records.add(model, f"{name}/val", metric, float(values.double().mean()), len(values), seed)
        records.add(model, f"{name}/train", "training seconds", trainer.seconds_of(path), steps * batch, seed)
        records.save()
        print(f"{path}: IoU {float(iou.mean()):.4f} on {len(iou)} held-out images")
    print(f"{path}: {'trained' if trained else 'trained before'}, {steps:,} steps")


if __name__ == "__main__":
    experiment.run(main)

"""Train a BigGAN from zero: on the made set of objects, or on any folder of class images (README, part 5).

    python -m cgn.train_gan                            # objects64; 40 min on 2 cores
    python -m cgn.train_gan --folder PATH --config biggan-deep-128 --batch 256 --steps 100000   # on GPUs

Brock, Donahue and Simonyan 2019: hinge losses, one latent and one label of a class, the running average of the
generator is kept, with batch-norm statistics measured for every truncation at the end. Writes runs/biggan_CONFIG/
(options.json, log.jsonl, ckpt/{best,last}.pt), records and a sheet of samples to results/cgn/. A run that was killed
goes on from last.pt and ends with the same bytes.
"""

import functools
from pathlib import Path

import torch

import experiment
import figures
import storage
import trainer
from cgn import biggan, discriminator, folders, objects64

# --- what is trained -----------------------------------------------------------------------------------
CONFIG: str = "objects64"  # a name in biggan.CONFIGS
FOLDER: Path | None = None  # of class images, ROOT/CLASS/*.jpg; by default the made set
SEED: experiment.Index = 0  # names the streams of initialisation, order, latents
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
DEVICES: experiment.Count = 1  # GPUs, or processes on the CPU, that share each batch; torchrun's number goes first
PRECISION: experiment.Precision = "auto"  # of the networks; auto: bfloat16 where there are matrix units for it
RUN: Path | None = None  # run folder; by default runs/biggan_CONFIG
RESULTS: Path = Path("results/cgn")  # where records and the sheet go

# --- how -------------------------------------------------------------------------------------------------
STEPS: experiment.Count = 20_000  # of both sides; published for ImageNet: 1.5e5 with a batch of 2048
BATCH: experiment.Count = 32  # images a step
LR: experiment.Positive = 2e-4  # of the generator, falling in the second half; published 5e-5, for large batches
LR_DISCRIMINATOR: experiment.Positive = 6e-4  # published 2e-4: faster than the generator, as here
SAMPLES: experiment.Count = 10  # of each class on the sheet

BETAS = (0.0, 0.99)  # of Adam


class Game(trainer.Game):
    """A BigGAN against its discriminator; batches: a function from the number of a step to an iterator.

    Batch norm sees each process's part of a batch only.
    """

    def __init__(self, config, lr, lr_discriminator, batches, device, context, seed, fabric=None):
        with experiment.seeded(seed, "initialisation"):
            generator = biggan.build(config)
            networks = {"generator": generator, "discriminator": discriminator.Discriminator(generator.config)}
        for network in networks.values():
            network.to(device, memory_format=torch.channels_last)
        rates = {"generator": lr, "discriminator": lr_discriminator}
        super().__init__(networks, rates, BETAS, context, seed, ("generator",), fabric=fabric)
        self.generator, self.discriminator = networks.values()
        self.device, self.coming = device, trainer.Coming(batches)

    def step(self, number):
        images, labels, _ = self.coming(number)
        labels = objects64.of_shape(labels)
        dim = self.generator.config.latent
        latents = biggan.truncated_noise(len(images), dim, 1.0, self.stream("latents", number))
        images, labels, latents = (self.share(part).to(self.device) for part in (images, labels, latents))
        return self.play(images.contiguous(memory_format=torch.channels_last), labels, latents, number)

    def play(self, images, labels, latents, number):
        """One step of both sides on images and as many latents, of the same labels."""
        with self.context():
            made = self.generator(latents, labels).contiguous(memory_format=torch.channels_last)
            judged = (self.discriminator(some, labels) for some in (images, made.detach()))
            against = discriminator.hinge_discriminator(*judged)
        self.move("discriminator", against)
        self.discriminator.requires_grad_(False)  # the gradient passes through it and leaves nothing behind
        with self.context():
            loss = discriminator.hinge_generator(self.discriminator(made, labels))
        self.discriminator.requires_grad_(True)
        self.move("generator", loss)
        self.follow(number)
        return {"generator": loss, "discriminator": against}


class Course(trainer.Training):
    """A training of a BigGAN in its folder; source: a function that reads the training images."""

    def __init__(self, folder, options, source, device, fabric=None, first=True):
        self.source, self.device, self.fabric = source, device, fabric
        super().__init__(folder, options, first)

    def begin(self):
        o = self.options
        context = experiment.in_precision(self.device, o["precision"])
        batches = functools.partial(trainer.passes, self.source(), o["batch"])
        return Game(o["config"], o["lr"], o["lr_discriminator"], batches, self.device, context, o["seed"], self.fabric)

    def save(self):
        if self.step == self.options["steps"]:
            stream = experiment.generator(self.options["seed"], "statistics")
            biggan.measure_statistics(self.game.averages["generator"], stream)
        super().save()

    def architecture(self):
        weights = storage.halved(self.game.averages["generator"].state_dict())
        return "biggan", {"config": self.options["config"]}, weights


def read(config, folder, device, seed):
    """The training images: the made set, or a folder of as many classes as the generator has."""
    made = biggan.CONFIGS[config]
    if folder is None:
        source, classes, size = objects64.read("train", device, seed=seed), len(objects64.CLASSES), objects64.SIDE
    else:
        source = folders.Folder(folder, made.resolution, device, seed)
        classes, size = len(source.classes), made.resolution
    if (classes, size) != (made.classes, made.resolution):
        raise experiment.UserError(f"{config} makes {made.classes} classes of {made.resolution} pixels, and the images "
                                   f"are of {classes} classes and {size} pixels")
    return source


def sheet(model, n, seed, path):
    """n samples of each of the first ten classes."""
    classes = torch.arange(min(10, model.config.classes))
    labels = classes.repeat(n).to(model.embeddings.weight.device)
    with torch.no_grad():
        made = model.sample(len(labels), experiment.generator(seed, "sheet"), labels)
    rows = [[(image + 1) / 2 for image in row] for row in made.cpu().split(len(classes))]
    figures.image_grid(path, rows, [str(int(number)) for number in classes], [""] * n, [[""] * len(classes)] * n,
                       "Samples of a BigGAN, a class in each column")  # fmt: skip


def main(config, folder, seed, device, devices, precision, run, results, steps, batch, lr, lr_discriminator, samples):
    storage.one_of(biggan.CONFIGS, "BigGAN", config)
    device = experiment.pick_device(device)
    options = {"config": config, "folder": folder and folder.name, "seed": seed, "precision": precision, "steps": steps,
               "batch": batch, "lr": lr, "lr_discriminator": lr_discriminator}  # fmt: skip
    path = run or Path("runs") / f"biggan_{config}"
    fabric = trainer.fabric_if_needed(device, devices)
    source = functools.cache(lambda: read(config, folder, device, seed))
    found = trainer.train(path, options, functools.partial(Course, source=source, device=device, fabric=fabric), fabric)
    if found is None:  # another process than the first
        return
    best, trained = found
    model = biggan.restore(best).to(device)
    records = storage.Records(results, "train_gan", options, device)
    if trained or not records.earlier():
        records.add("biggan", config, "training seconds", trainer.seconds_of(path), steps * batch, seed)
        records.save()
        sheet(model, samples, seed, results / f"biggan_{config}.png")
    print(f"{path}: {'trained' if trained else 'trained before'}, {steps:,} steps")


if __name__ == "__main__":
    experiment.run(main)

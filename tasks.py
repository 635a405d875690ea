"""What each kind of model minimises, how a step of it goes, and what is measured when it is trained.

    draws(model, n, stream)              the random numbers of n images, drawn once an epoch
    terms(model, batch, draws)           {name: (B,)}: the loss, term by term; draws None: without noise or distortion
    step(model, optimizer, batch, ...)   one step of the optimiser
    validate(model, digits)              {name: mean}: the terms on data kept from training; their sum picks the best
    measure(model, test, seed)           (split, metric, value, n) of the finished model on the test split

`of(model)` gives the task of a model. A batch is what catalogue.load gives: Digits or Crowds.
"""

import math

import torch
import torch.nn.functional as F

import architecture
import classifiers
import experiment
import flows
import gans
import metrics
from catalogue import unit
from datasets import Digits


class Task:
    """What all share: one loss, one step on it."""

    reduce = staticmethod(torch.mean)
    MIXED = True  # on a GPU in bfloat16, with weights in float32

    @staticmethod
    def draws(model, n, stream):
        return torch.zeros(n, 0)

    @staticmethod
    def begin(model, progress):
        """Called before each epoch with the share of the training that is done."""

    @classmethod
    def step(cls, model, optimizer, batch, draws, clip=None):
        """One step; returns the terms it was taken on. clip: the longest gradient that is let through, or None."""
        optimizer.zero_grad()
        with cls.precision(batch.images.device):
            terms = cls.terms(model, batch, draws)
        cls.reduce(sum(terms.values())).backward()
        cls.clip(model, clip)
        optimizer.step()
        return terms

    @classmethod
    def precision(cls, device):
        return torch.autocast(device.type, torch.bfloat16, enabled=cls.MIXED and device.type == "cuda")

    @staticmethod
    def clip(model, longest):
        if longest:
            torch.nn.utils.clip_grad_norm_(model.parameters(), longest)

    @classmethod
    @torch.no_grad()
    def validate(cls, model, digits, batch=1000):
        totals = {}
        for start in range(0, len(digits), batch):
            part = digits[start : start + batch]
            for name, value in cls.terms(model, part, cls.checking(model, len(part), start)).items():
                totals[name] = totals.get(name, 0) + value.sum().cpu().double()
        return {name: float(total) / len(digits) for name, total in totals.items()}

    @staticmethod
    def checking(model, n, start):
        """The draws of a validation batch: none, unless the loss is not defined without."""


# --- generative models ---------------------------------------------------------------------------


class Reconstruction(Task):
    """Negative ELBO, summed over the batch; the latent noise of an image is drawn once an epoch."""

    reduce = staticmethod(torch.sum)  # as published; Adam hardly minds

    @staticmethod
    def draws(model, n, stream):
        return torch.randn(n, model.latent, generator=stream)

    @staticmethod
    def terms(model, batch, eps):
        return model.loss(unit(batch.images), eps)

    @classmethod
    def measure(cls, model, test, seed):
        images = unit(test.images)
        noise = model.noise(len(images), experiment.generator(seed, "evaluation noise"))
        elbos, squares = metrics.vae_losses(model, images, noise), metrics.squared_errors(model, images)
        yield "test", "negative_elbo", float(elbos.cpu().double().mean()), len(images)
        yield "test", "mse", float(squares.cpu().double().mean()), len(images)


class Density(Task):
    """Bits per dimension of dequantised images; in float32 also on a GPU, as log-determinants are."""

    MIXED = False
    TESTED = 2000  # test images whose density is measured

    @staticmethod
    def draws(model, n, stream):
        return torch.rand(n, *model.shape, generator=stream)

    @classmethod
    def checking(cls, model, n, start):
        """Without noise the loss would be no bound, so validation has noise too, always the same."""
        noise = cls.draws(model, n, experiment.generator(0, f"dequantisation/{start}"))
        return noise.to(next(model.parameters()).device)

    @staticmethod
    def terms(model, batch, noise):
        return model.loss(unit(batch.images), noise)

    @classmethod
    def validate(cls, model, digits, batch=250):  # a flow keeps every layer's output
        return super().validate(model, digits, batch)

    @classmethod
    def measure(cls, model, test, seed):
        test = test[: cls.TESTED]
        yield "test", "bits_per_dim", cls.validate(model, test)["bits_per_dim"], len(test)
        with torch.no_grad():
            images = unit(test.images[:250])
            gap = (model.decode(model.encode(images)) - images).abs().max()
        yield "test", "round_trip", float(gap), len(images)


class Adversarial(Task):
    """Discriminator and generator in turn, each against the other as it stands; one optimiser holds both."""

    MIXED = False  # the R1 penalty is a second derivative
    SAMPLES = 1000  # images compared for the logged sample quality

    @staticmethod
    def draws(model, n, stream):
        return torch.randn(n, 2 * model.latent, generator=stream)

    @staticmethod
    def begin(model, progress):
        model.grow(progress)

    @classmethod
    def step(cls, model, optimizer, batch, draws, clip=None):
        first, second = draws.chunk(2, 1)
        optimizer.zero_grad()  # to None: the player without gradients stays where it is, with its moments
        critic = model.critic_loss(unit(batch.images), first)
        sum(critic.values()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.discriminator.requires_grad_(False)
        generator = model.generator_loss(second)
        generator["generator"].mean().backward()
        model.discriminator.requires_grad_(True)
        optimizer.step()
        model.follow()
        return critic | generator

    @classmethod
    @torch.no_grad()
    def validate(cls, model, digits):
        """Sliced Wasserstein distance of samples to real images: no network's opinion takes part in it."""
        n = min(len(digits), cls.SAMPLES)
        made = model.sample(n, experiment.generator(0, "validation samples"))
        return {"sliced_wasserstein": metrics.sliced_wasserstein(made, unit(digits.images[:n]))}

    @classmethod
    def measure(cls, model, test, seed):
        n = min(len(test), 2 * cls.SAMPLES)
        with torch.no_grad():
            made = model.sample(n, experiment.generator(seed, "evaluation samples"))
        yield "test", "sliced_wasserstein", metrics.sliced_wasserstein(made, unit(test.images[:n])), n
        half = len(test) // 2
        real = metrics.sliced_wasserstein(unit(test.images[:half][:n]), unit(test.images[half : 2 * half][:n]))
        yield "real against real", "sliced_wasserstein", real, min(half, n)


# --- classifiers -----------------------------------------------------------------------------------


class Supervised(Task):
    """The model's own loss of images and their labels, averaged over the batch."""

    @staticmethod
    def terms(model, batch, draws):
        return model.loss(unit(batch.images), batch.labels)

    @classmethod
    def measure(cls, model, test, seed):
        yield "test", "accuracy", metrics.accuracy(model, Digits(unit(test.images), test.labels)), len(test)


class Classification(Supervised):
    """Cross-entropy, averaged over the batch, on digits that are turned, scaled and moved a little."""

    TURN, ZOOM, MOVE = math.radians(10), 0.1, 2 / 14  # at most: 10 degrees, 10 %, 2 pixels

    @staticmethod
    def draws(model, n, stream):
        return torch.rand(n, 4, generator=stream) * 2 - 1

    @classmethod
    def terms(cls, model, batch, draws):
        images = unit(batch.images) if draws is None else cls.distort(unit(batch.images), draws)
        return model.loss(images, batch.labels)

    @classmethod
    def distort(cls, images, draws):
        """Images under the affine maps that draws (B, 4) in [-1, 1] stand for: turn, zoom, move x, move y."""
        turn, zoom = draws[:, 0] * cls.TURN, 1 + draws[:, 1] * cls.ZOOM
        cos, sin = torch.cos(turn) * zoom, torch.sin(turn) * zoom
        move = draws[:, 2:] * cls.MOVE
        maps = torch.stack([cos, -sin, move[:, 0], sin, cos, move[:, 1]], 1).view(-1, 2, 3)
        return F.grid_sample(images, F.affine_grid(maps, images.shape, align_corners=False), align_corners=False)


class Counting(Supervised):
    """Counts, and for the U-Net density maps."""

    @staticmethod
    def terms(model, batch, draws):
        maps = (batch.densities,) if isinstance(model, classifiers.CountingUNet) else ()
        return model.loss(unit(batch.images), batch.labels, *maps)

    @classmethod
    def measure(cls, model, test, seed):
        counts = metrics.per_image(lambda x, _: model.count(unit(x)), test.images)
        yield "test", "mean_absolute_error", float((counts - test.labels).abs().cpu().double().mean()), len(test)


class Autoencoding(Supervised):
    """Each class in its own autoencoder, and all of them in one more."""

    @classmethod
    def measure(cls, model, test, seed):
        for name, value in cls.validate(model, test).items():
            yield "test", name, value, len(test)


# --- which is whose ----------------------------------------------------------------------------------

KINDS = (
    (architecture.VAE, Reconstruction), (flows.Flow, Density), (gans.GAN, Adversarial),
    (classifiers.MnistCNN, Classification), (classifiers.CountingUNet, Counting),
    (classifiers.ClassAutoencoders, Autoencoding),
)  # fmt: skip


def of(model):
    """The task that a model is trained on."""
    if isinstance(model, classifiers.ResidualCNN) and model.counts:
        return Counting
    return next((task for kind, task in KINDS if isinstance(model, kind)), Supervised)

"""One training step of part 6: which images a batch becomes, and the loss of a network on them.

A batch is joined by its factuals (the same labels on other backgrounds) and followed by its counterfactuals (the same
backgrounds without the foreground). Three terms, each the mean over its own images, so that none is diluted by another:

    class           cross-entropy of images and factuals, or group-DRO's
    counterfactual  of the counterfactuals, times --cf-coeff
    saliency        penalty on the maps of the images, times --reg-coeff
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import experiment
from robust_training import augment, losses, saliency
from robust_training.batch import Batch


class Examples(NamedTuple):
    """What a network sees in one step.

    batch            the Batch as it came
    images, targets  (N, 3, H, W) and (N,) or (N, C): what has a label: images and factuals, mixed or hidden in part
    counterfactuals  (M, 3, H, W), or None; absent: (M,), the labels that they no longer have
    infilled         (B, 3, H, W): each image of the batch with its foreground painted over, or None
    """

    batch: Batch
    images: torch.Tensor
    targets: torch.Tensor
    counterfactuals: torch.Tensor | None
    absent: torch.Tensor | None
    infilled: torch.Tensor | None


class Augmentation:
    """Makes the Examples of a batch.

    inpaint, f_inpaint: names in augment, or "none". mixup: its alpha, 0 for none; smoothing: of labels; grid: (least
    period, most period, ratio, share) of GridMask, or None; pgd_steps: of pgd.
    """

    def __init__(self, classes, inpaint="none", f_inpaint="none", mixup=0.0, smoothing=0.0, grid=None,
                 pgd_steps=augment.PGD_STEPS):
        self.classes, self.inpaint, self.f_inpaint = classes, inpaint, f_inpaint
        self.mixup, self.smoothing, self.grid, self.pgd_steps = mixup, smoothing, grid, pgd_steps

    def __call__(self, batch, seed, step, model):
        """The Examples of a batch; seed and step name its streams, model is what fgsm and pgd attack."""
        stream = lambda purpose: experiment.generator(seed, f"{purpose}/{step}")
        images, labels = batch.images, batch.labels
        if self.f_inpaint != "none":
            made, good = self.factuals(batch, stream("factual"), model)
            images, labels = torch.cat([images, made[good]]), torch.cat([labels, labels[good]])
        targets = labels
        if self.smoothing:
            targets = augment.smoothed(labels, self.classes, self.smoothing)
        if self.mixup:
            shares = targets if targets.ndim == 2 else F.one_hot(labels, self.classes).float()
            images, targets = augment.mixup(images, shares, self.mixup, stream("mixup"))
        if self.grid:
            images = augment.grid_mask(images, stream("grid mask"), self.grid[:2], *self.grid[2:])
        if self.inpaint == "none":
            return Examples(batch, images, targets, None, None, None)
        infilled = augment.counterfactual(self.inpaint, batch, stream("counterfactual"))
        good = augment.usable(batch, self.inpaint)
        return Examples(batch, images, targets, infilled[good], batch.labels[good], infilled)

    def factuals(self, batch, stream, model):
        gradient = lambda images, labels: loss_gradient(model, images, labels)
        made = augment.factual(self.f_inpaint, batch, stream, gradient, self.pgd_steps)
        return made, augment.usable(batch, self.f_inpaint)


def loss_gradient(model, images, labels):
    """Gradient of the cross-entropy with respect to the images; that of the weights is left as it is."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        loss = losses.classification(model(images), labels).sum()
        return torch.autograd.grad(loss, images)[0]


class Objective(nn.Module):
    """A network with its losses: forward(Examples) gives the terms, so that several processes can share one pass.

    cf_loss: a name in losses.COUNTERFACTUAL; reg: one in saliency.PENALTIES, or "none"; reg_grad: in saliency.MAPS.
    """

    def __init__(self, model, cf_loss="logp", cf_coeff=1.0, reg="none", reg_grad="grad_y", reg_coeff=0.0, worst=None):
        super().__init__()
        self.model, self.cf_loss, self.cf_coeff = model, cf_loss, cf_coeff
        self.reg, self.reg_grad, self.reg_coeff, self.worst = reg, reg_grad, reg_coeff, worst

    def forward(self, examples):
        """{name: scalar}, float32: their sum is minimised."""
        seen = [examples.images] + ([] if examples.counterfactuals is None else [examples.counterfactuals])
        logits = self.model(torch.cat(seen))
        n = len(examples.images)
        terms = {"class": self.of_labels(logits[:n], examples)}
        if examples.counterfactuals is not None:
            found = losses.counterfactual(self.cf_loss, logits[n:], examples.absent)
            terms["counterfactual"] = self.cf_coeff * found.sum() / max(1, len(found))
        if self.reg != "none":
            batch = examples.batch
            maps = saliency.maps(self.reg_grad, self.model, batch.images, batch.labels)
            terms["saliency"] = self.reg_coeff * saliency.penalty(self.reg, maps, batch, examples.infilled)
        return terms

    def of_labels(self, logits, examples):
        found = losses.classification(logits, examples.targets)
        if self.worst is None:
            return found.mean()
        batch = examples.batch
        return self.worst(found[: len(batch)], losses.groups_of(batch.labels, batch.places))

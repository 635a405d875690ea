"""Invariant classifiers: one backbone with a head for each mechanism (Sauer and Geiger 2021, section 4.3).

Real images have one label, and their loss is that of the heads' mean logits; counterfactuals have three, and each head
learns its own. So the shape's head is shown that neither texture nor background tells the shape. The published
classifier is a ResNet-50 with ImageNet's weights, whose batch norm keeps its statistics.

    model(images)          logits (B, 3, classes), a row for each of HEADS
    answers(logits)        {name: logits (B, classes)}: of each head, of their mean, of shape and texture
"""

import torch
import torch.nn.functional as F
from torch import nn

import backbones
import experiment
import trainer
from cgn import objects64
from storage import load_weights, parts_of

HEADS = ("shape", "texture", "background")
BETAS = (0.9, 0.999)  # of Adam


class Ensemble(nn.Module):
    """A backbone by its name in backbones.py, with three linear heads on its features; side: of the images."""

    def __init__(self, backbone, classes, side, **settings):
        super().__init__()
        self.settings = {"backbone": backbone, "classes": classes, "side": side} | settings
        self.backbone = backbones.build(backbone, classes, **settings)
        with torch.no_grad():
            was = self.backbone.training
            width = self.backbone.eval().features(torch.zeros(1, 3, side, side)).shape[1]
            self.backbone.train(was)
        self.heads = nn.Linear(width, len(HEADS) * classes)
        self.classes = classes

    def forward(self, x):
        return self.heads(self.backbone.features(x)).view(-1, len(HEADS), self.classes)


def answers(logits):
    """{name: logits (B, classes)}: "shape", "texture", "background", their "mean", and "shape and texture".

    The last is what the published code measures the BG-gap with.
    """
    found = {name: logits[:, k] for k, name in enumerate(HEADS)}
    return found | {"mean": logits.mean(1), "shape and texture": logits[:, :2].mean(1)}


class Game(trainer.Game):
    """An Ensemble on batches of real images, of counterfactuals, or of both.

    real, counterfactual: functions from the number of a step to an iterator over (images, labels), or None; labels
    (B,), or (B, 3) of which real images' first one is taken. ratio: weight of the counterfactuals beside the real ones.
    """

    def __init__(self, model, lr, real, counterfactual, ratio, device, context, seed):
        super().__init__({"ensemble": model}, {"ensemble": lr}, BETAS, context, seed, ("ensemble",))
        self.model, self.device, self.ratio = model, device, ratio
        sources = {"real": real, "counterfactual": counterfactual}
        self.coming = {kind: trainer.Coming(source) for kind, source in sources.items() if source is not None}

    def step(self, number):
        terms = {}
        self.model.train()
        for kind, coming in self.coming.items():
            images, labels, *_ = coming(number)
            with experiment.seeded(self.seed, f"dropout/{kind}/{number}"):
                terms[kind] = getattr(self, kind)(images.to(self.device), labels.to(self.device).long())
        weights = {"counterfactual": self.ratio}
        self.move("ensemble", sum(weights.get(kind, 1.0) * value for kind, value in terms.items()))
        self.follow(number)
        return terms

    def logits(self, images):
        with self.context():
            return self.model(images).float()

    def real(self, images, labels):
        """Cross-entropy of the heads' mean logits with the one label that a real image has."""
        return F.cross_entropy(self.logits(images).mean(1), objects64.of_shape(labels))

    def counterfactual(self, images, labels):
        """Mean over the heads of each one's cross-entropy with its own label."""
        return F.cross_entropy(self.logits(images).flatten(0, 1), labels.flatten())


def build(backbone, classes, side, seed, frozen=False):
    """A freshly initialised Ensemble; frozen: batch norm keeps its statistics in training, for pretrained weights."""
    with experiment.seeded(seed, "initialisation"):
        return Ensemble(backbone, classes, side, **({"frozen": True} if frozen else {}))


def restore(state):
    """The Ensemble in a checkpoint of train_ensemble, in evaluation mode."""
    settings, weights = parts_of(state, "ensemble", "cgn.train_ensemble")
    return load_weights(Ensemble(**settings), weights).eval()

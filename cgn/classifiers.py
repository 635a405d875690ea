"""Classifiers of 32 x 32 images in [-1, 1]: what is trained on original and on counterfactual images.

    model(x)            logits (B, 10) of images (B, channels, 32, 32)
    features(x)         activations (B, F) before the last layer
    maps(x)             the last feature maps of 8 x 8, (B, C, 8, 8), for GradCAM
    head(maps)          logits from them
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import experiment
from experiment import UserError
from storage import load_weights, model_in, one_of


class _Classifier(nn.Module):
    """A subclass sets `model`, from images to maps, and `cls`, a linear layer."""

    def maps(self, x):
        return self.model(x)

    def features(self, x):
        return self.pool(self.maps(x))

    def pool(self, maps):
        return maps.mean((2, 3))

    def head(self, maps):
        return self.cls(self.pool(maps))

    def forward(self, x):
        return self.head(self.maps(x))


class Reader(_Classifier):
    """Ours: four convolutions with batch norm on pixels folded two by two; 3 times as fast as the published one."""

    def __init__(self, channels=3):
        super().__init__()
        layers = [nn.PixelUnshuffle(2)]
        for a, b, stride in ((4 * channels, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)):
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.model, self.cls = nn.Sequential(*layers), nn.Linear(128, 10)

    def maps(self, x):
        return self.model[:-3](x)  # a digit is too fine for the 4 x 4 maps of the last convolution

    def pool(self, maps):
        return self.model[-3:](maps).mean((2, 3))


class PublishedClassifier(_Classifier):
    """The invariant classifier of the CGN code: its checkpoints load.

    Its average pooling of side 7 leaves out the last row and column of the 8 x 8 maps; so does this one, for the
    checkpoints' sake.
    """

    def __init__(self):
        super().__init__()
        conv = lambda a, b, kernel, stride=1: (nn.Conv2d(a, b, kernel, stride, kernel // 2), nn.ReLU())
        self.model = nn.Sequential(nn.BatchNorm2d(3), *conv(3, 32, 5), nn.MaxPool2d(3, 2, 1),
                                   *conv(32, 32, 3), *conv(32, 64, 3, 2), *conv(64, 64, 3))  # fmt: skip
        self.cls = nn.Sequential(nn.Linear(64, 10))

    def pool(self, maps):
        return maps[:, :, :7, :7].mean((2, 3))


MODELS = {"reader": Reader, "published": PublishedClassifier}


def run_of(variant, textures, on, seed):
    """The run folder of a classifier of cgn.classify: its variant, textures, sources, and its seed if that is not 0."""
    words = ["classifier", variant, *filter(None, [textures]), *on, *([f"seed{seed}"] if seed else [])]
    return Path("runs") / "_".join(words)


def build(name, **settings):
    """A freshly initialised classifier; raises UserError for a name that is not in MODELS."""
    return one_of(MODELS, "classifier", name)(**settings)


def restore(state):
    """The classifier in a checkpoint of cgn.classify, or in a published state dict, in evaluation mode."""
    made, settings, weights = model_in(state)
    return load_weights(build(made or "published", **(settings or {})), weights).eval()


# --- training and reading ----------------------------------------------------------------------


def mixed(draws, n, stream):
    """(images, labels): n images, as many of each source."""
    share = [n // len(draws) + (k < n % len(draws)) for k in range(len(draws))]
    parts = [draw(size, stream) for draw, size in zip(draws, share, strict=True)]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def learn(model, draws, steps, batch, lr, seed, context, device):
    """Train a classifier on images drawn from the sources; returns it in evaluation mode."""
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    for step in tqdm(range(steps), desc="classifier", unit="step", disable=None, leave=False):
        images, labels = mixed(draws, batch, experiment.generator(seed, f"classifier/{step}"))
        with context():
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels)
        if (step % 100 == 0 or step == steps - 1) and not torch.isfinite(loss):
            raise UserError(f"the loss became {loss.item()} in step {step}: a smaller --lr is worth a try")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
    return model.eval()


@torch.no_grad()
def right(model, images, labels):
    """Boolean (N,): which images the classifier reads rightly; in float32."""
    return torch.cat([model(part).argmax(1) for part in images.split(1000)]) == labels

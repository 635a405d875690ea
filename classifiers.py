"""The models that get explained, and that measure the others: they see images and tell classes apart.

    model(x)            logits (B, classes) of images x (B, C, H, W) in [0, 1]
    features(x)         the activations (B, F) before the last layer
    loss(x, labels)     {name: (B,)}: the terms of the training loss, one number an image
"""

import torch.nn.functional as F
from torch import nn

from experiment import UserError
from storage import load_weights, model_in


class MnistCNN(nn.Module):
    """Ten-class CNN for 1 x 28 x 28 digits: convolutions of 16, 32, 64, 64 channels, then 512 and 256 units.

    The widths are those of the MNIST classifier of Diffeomorphic Counterfactuals; `features` are the 256 units.
    """

    def __init__(self, classes=10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),  # (B, 16, 14, 14)
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),  # (B, 32, 7, 7)
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * 3 * 3, 512), nn.ReLU(),
            nn.Dropout(0.25), nn.Linear(512, 256), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(256, classes)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.body(x))

    def loss(self, x, labels):
        return {"cross_entropy": F.cross_entropy(self(x), labels, reduction="none")}


# --- making and restoring -------------------------------------------------------------------

MODELS = {"mnist_cnn": MnistCNN}


def build(name, **settings):
    """A freshly initialised classifier; raises UserError for a name that is not in MODELS."""
    if name not in MODELS:
        raise UserError(f"no classifier is called {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name](**settings)


def restore(state):
    """The classifier in a checkpoint of train.py, in evaluation mode; raises UserError if it is another model's."""
    made, settings, weights = model_in(state)
    if not made:
        raise UserError("this checkpoint does not say which classifier it is of; train.py makes one that does")
    return load_weights(build(made, **settings), weights).eval()

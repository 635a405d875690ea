"""The models that get explained, and that measure the others: they see images and tell classes apart.

    model(x)            logits (B, classes) of images x (B, C, H, W) in [0, 1]
    features(x)         the activations (B, F) before the last layer
    loss(x, labels)     {name: (B,)}: the terms of the training loss, one number an image
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from experiment import UserError
from storage import load_weights, make, model_in, one_of


class Classifier(nn.Module):
    """What classifiers share: a subclass sets `body`, from images to features, and `head`, a linear layer."""

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))

    def loss(self, x, labels):
        """{"cross_entropy": (B,)} in nats, of images x (B, C, H, W) in [0, 1] and class numbers labels (B,), int64."""
        return {"cross_entropy": F.cross_entropy(self(x), labels, reduction="none")}


class MnistCNN(Classifier):
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


class AttributeCNN(Classifier):
    """Two-class CNN for images (C, H, W) of any size: a binary attribute, absent (0) or present (1).

    Strided convolutions halve the sides until they are at most 8; `features` are the 128 units before the head.
    """

    def __init__(self, shape=(3, 64, 64), width=32, classes=2):
        super().__init__()
        layers, channels, side = [], shape[0], max(shape[1:])
        while side > 8:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
            channels, width, side = width, min(2 * width, 128), (side + 1) // 2
        size = channels * (-(-shape[1] // 2 ** (len(layers) // 4))) * (-(-shape[2] // 2 ** (len(layers) // 4)))
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.25), nn.Linear(size, 128), nn.ReLU())
        self.head = nn.Linear(128, classes)


class ResidualCNN(Classifier):
    """The oracle: a residual network (He et al. 2016), unlike the networks it judges in architecture and in seed.

    outputs: classes, or 1 for a count, which is then trained with a squared error. Batch normalisation, global average
    pooling; `features` are the 64 averages.
    """

    def __init__(self, shape=(1, 28, 28), outputs=10):
        super().__init__()
        self.counts = outputs == 1
        conv = lambda a, b, stride=1: (nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b))
        self.first = nn.Sequential(*conv(shape[0], 32, 2 if shape[1] > 32 else 1), nn.ReLU())
        self.blocks, self.ways = nn.ModuleList(), nn.ModuleList()
        for a, b, stride in ((32, 32, 2), (32, 64, 2), (64, 64, 1)):
            self.blocks.append(nn.Sequential(*conv(a, b, stride), nn.ReLU(), *conv(b, b)))
            self.ways.append(nn.Conv2d(a, b, 1, stride) if (a, stride) != (b, 1) else nn.Identity())
        self.head = nn.Linear(64, outputs)

    def features(self, x):
        h = self.first(x)
        for block, way in zip(self.blocks, self.ways, strict=True):
            h = F.relu(block(h) + way(h))
        return h.sum((2, 3)) / 16 if self.counts else h.mean((2, 3))  # a count adds up over the image

    def count(self, x):
        """Counts (B,); only of a network with one output."""
        return self(x).squeeze(1)

    def loss(self, x, labels):
        """{"squared_error": (B,)} of counts labels (B,), in squared objects; with classes that of Classifier.loss."""
        if self.counts:
            return {"squared_error": (self.count(x) - labels).square()}
        return super().loss(x, labels)


class CountingUNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) from images (B, 3, H, W) to density maps (B, 1, H, W) whose sum is the count.

    Its loss is the squared error of the map, weighted to the scale of the second term, and that of the count.
    """

    WEIGHT = 200.0  # of the map: a Gaussian of deviation 2 has a peak of 0.04

    def __init__(self, shape=(3, 64, 64), width=8):
        super().__init__()
        both = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(),
                                          nn.Conv2d(b, b, 3, padding=1), nn.ReLU())
        widths = (width, 3 * width, 6 * width)
        self.down = nn.ModuleList(both(a, b) for a, b in itertools.pairwise((shape[0], *widths)))
        self.up = nn.ModuleList(both(a + b, b) for a, b in itertools.pairwise(widths[::-1]))
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x):
        """Density maps (B, 1, H, W), not negative."""
        kept, h = [], x
        for block in self.down:
            h = block(F.max_pool2d(h, 2) if kept else h)
            kept.append(h)
        for block, beside in zip(self.up, kept[-2::-1], strict=True):
            h = block(torch.cat([F.interpolate(h, scale_factor=2), beside], 1))
        return F.softplus(self.head(h) - 4) / 8  # starts near the mean density

    def count(self, x):
        """Counts (B,)."""
        return self(x).flatten(1).sum(1)

    def loss(self, x, labels, densities):
        """{"density": (B,), "count": (B,)} of images x (B, 3, H, W) in [0, 1]; both terms as the class says.

        labels (B,): counts; densities (B, 1, H, W): maps that sum to them.
        """
        maps = self(x)
        squares = (maps - densities).square().flatten(1).sum(1)
        return {"density": self.WEIGHT * squares, "count": 0.1 * (maps.flatten(1).sum(1) - labels).square()}


class ClassAutoencoders(nn.Module):
    """One small autoencoder for each class and one for all: what IM1 and IM2 compare (Van Looveren and Klaise 2019).

    All are fully connected (pixels, hidden, code, hidden, pixels), stacked in one tensor for each layer and applied
    with one batched product. reconstruct(x): (B, classes + 1, D), the last being that of the one for all.
    """

    def __init__(self, shape=(1, 28, 28), classes=10, hidden=64, code=10):
        super().__init__()
        self.classes = classes
        size = shape[0] * shape[1] * shape[2]
        sizes = (size, hidden, code, hidden, size)
        self.weights = nn.ParameterList(torch.randn(classes + 1, a, b) * (2 / (a + b)) ** 0.5
                                        for a, b in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(classes + 1, 1, b) for b in sizes[1:])

    def reconstruct(self, x):
        h = x.flatten(1).expand(self.classes + 1, -1, -1)  # (classes + 1, B, D)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            h = F.relu(h) if k in (0, 2) else h
        return torch.sigmoid(h).transpose(0, 1)

    def loss(self, x, labels):
        """Each image's squared error in the autoencoder of its class and in the one for all."""
        errors = (self.reconstruct(x) - x.flatten(1).unsqueeze(1)).square().sum(2)  # (B, classes + 1)
        return {"own_class": errors.gather(1, labels.unsqueeze(1)).squeeze(1), "all": errors[:, -1]}


# --- making and restoring -------------------------------------------------------------------

MODELS = {"mnist_cnn": MnistCNN, "attribute_cnn": AttributeCNN, "residual_cnn": ResidualCNN,
          "counting_unet": CountingUNet, "class_autoencoders": ClassAutoencoders}  # fmt: skip


def build(name, /, **settings):
    """A freshly initialised classifier; raises UserError for a name not in MODELS, and settings it does not take."""
    return make(one_of(MODELS, "classifier", name), **settings)


def restore(state):
    """The classifier in a checkpoint of train.py, in evaluation mode; raises UserError if it is another model's."""
    made, settings, weights = model_in(state)
    if not made:
        raise UserError("this checkpoint does not say which classifier it is of; train.py makes one that does")
    return load_weights(build(made, **settings), weights).eval()

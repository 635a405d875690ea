"""What samples of a generator, and classifiers trained on them, are scored by at the scale of ImageNet.

The Inception Score and the mean mask of Sauer and Geiger 2021 (Counterfactual Generative Networks, the ablation of its
losses), top-k accuracy, and the shape bias of Geirhos et al. 2019 (ImageNet-trained CNNs are biased towards texture,
arXiv 1811.12231) with its 16 categories. Functions of tensors only: which classifier, and on which images, is for the
caller to say. Sums are float64 on the CPU; a score that its sample cannot carry is refused with a UserError.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

import metrics
from cgn.losses import VGG16
from experiment import UserError

SUM_TOLERANCE = 1e-3  # by which probabilities may miss a sum of 1: a float32 softmax misses it by 1e-6

# --- generated images ----------------------------------------------------------------------------------


def class_probabilities(classifier, images, side=None, batch=50, normalise=True):
    """Softmax (N, C), float32, on the CPU, of a classifier's logits of images (N, 3, H, W) in [-1, 1].

    classifier: a module from images to logits, such as torchvision's; it is put into evaluation mode, and the images
    are on its device. side: images are resized to side x side, smoothed where they get smaller; None leaves them.
    normalise: images are brought to the mean and deviation of ImageNet that torchvision's weights expect, Inception's
    included; without, the classifier gets [-1, 1]. The replication's Inception Scores are of [-1, 1] fed to a network
    that expected ImageNet's, and so are not comparable with these.
    """
    mean, deviation = (images.new_tensor(values).view(3, 1, 1) for values in (VGG16.MEAN, VGG16.DEVIATION))
    classifier.eval()

    def probabilities(x, _):
        if side is not None and x.shape[2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)
        return classifier(((x + 1) / 2 - mean) / deviation if normalise else x).float().softmax(1).cpu()

    return metrics.per_image(probabilities, images, batch=batch)


class InceptionScore(NamedTuple):
    """Mean and standard deviation (divided by the number of splits) over the splits; n: images in each of them."""

    mean: float
    deviation: float
    n: int


def inception_score(probabilities, splits):
    """exp of the mean of KL(p(y|x) || p(y)) over images, for each split (Salimans et al. 2016, section 4).

    probabilities: (N, C). The splits are consecutive and equally large, n = N // splits: images n * splits and after,
    fewer than there are splits, are in none of them. So shuffle images that are sorted by class: a split of a few
    classes scores low. With few images a class scores are too low as well, thus comparable at equal n only. 1 for
    predictions that are all alike, C at most. Raises UserError for fewer images than splits, or rows that are no
    probabilities.
    """
    p = _probabilities(probabilities)
    if not 1 <= splits <= len(p):
        raise UserError(f"an Inception Score over {splits} splits needs at least 1 split and an image in each; there "
                        f"are {len(p)} images")
    n = len(p) // splits
    p = p[: n * splits].view(splits, n, -1)
    divergences = (torch.xlogy(p, p) - torch.xlogy(p, p.mean(1, keepdim=True))).sum(2)  # 0 log 0 is 0
    scores = divergences.mean(1).exp()
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)), n)


def mean_mask(masks):
    """(mean, mean of each (N,), float64, on the CPU) of masks (N, 1, H, W), boolean or in [0, 1].

    0.1 to 0.9 is what the loss of a mask aims at; near 0 or 1 the shape mechanism has collapsed. Raises UserError for
    no masks, or values outside [0, 1].
    """
    if not masks.numel():
        raise UserError("there are no masks to average")
    flat = masks.flatten(1).float()
    if not ((flat >= 0) & (flat <= 1)).all():
        raise UserError("masks hold values that are no numbers in [0, 1]")
    each = flat.mean(1).cpu().double()
    return float(each.mean()), each


# --- classifiers -----------------------------------------------------------------------------------------


def top_k(logits, labels, k):
    """Share of the rows of logits (N, C), or of probabilities, with their label (N,) among the k highest.

    Raises UserError for k or labels outside the classes, no rows, or logits that are no finite numbers.
    """
    _check_rows(logits, "logits")
    classes = logits.shape[1]
    if not 1 <= k <= classes:
        raise UserError(f"the {k} highest of {classes} classes cannot be had: k is at least 1 and at most {classes}")
    _check_labels(labels, *logits.shape)
    found = logits.topk(k, 1).indices == labels.to(logits.device)[:, None]
    return float(found.any(1).double().mean().cpu())


def sixteen_classes(probabilities, members):
    """Mean probability of the classes of each category, (N, K), float64, of probabilities (N, C) (Geirhos et al. 2019).

    members: K lists of class numbers, 16 of them published; classes in none of them do not count. A mean and not a sum,
    so that a category does not gain by having many classes; rows no longer sum to 1. Raises UserError for a category
    that is empty, names a class twice, or one that is not there, and for rows that are no probabilities.
    """
    p = _probabilities(probabilities)
    weights = p.new_zeros(p.shape[1], len(members))
    for category, numbers in enumerate(members):
        numbers = torch.as_tensor(numbers, dtype=torch.int64)
        if not len(numbers) or len(numbers.unique()) < len(numbers):
            raise UserError(f"category {category} must have classes, each of them once; it has {numbers.tolist()}")
        absent = numbers[(numbers < 0) | (numbers >= p.shape[1])].tolist()
        if absent:
            raise UserError(f"category {category} names class {absent[0]}, and there are {p.shape[1]} classes")
        weights[numbers, category] = 1 / len(numbers)
    return p @ weights


class ShapeBias(NamedTuple):
    """Decisions for the shape's category, for the texture's, and images counted; bias: None if neither was taken."""

    bias: float | None
    shape: int
    texture: int
    n: int


def shape_bias(probabilities16, shape, texture):
    """Of the decisions for the category of the shape or of the texture, the share for the shape (Geirhos et al. 2019).

    probabilities16: (N, K) of `sixteen_classes`, the highest of which is the decision; shape, texture: (N,) the two
    categories of each image, whose cues conflict. Images in which they are the same are left out. Raises UserError
    for values that are no finite numbers, or categories that are not there.
    """
    _check_rows(probabilities16, "probabilities")
    for labels in (shape, texture):
        _check_labels(labels, *probabilities16.shape)
    decisions, shape, texture = probabilities16.argmax(1).cpu(), shape.cpu(), texture.cpu()
    conflict = shape != texture
    for_shape, for_texture = (int(((decisions == labels) & conflict).sum()) for labels in (shape, texture))
    either = for_shape + for_texture
    return ShapeBias(for_shape / either if either else None, for_shape, for_texture, int(conflict.sum()))


# --- what is refused ---------------------------------------------------------------------------------------


def _probabilities(rows):
    """Rows (N, C) as float64 on the CPU; raises UserError if they are no probabilities."""
    _check_rows(rows, "probabilities")
    p = rows.detach().cpu().double()
    if (p < 0).any() or ((p.sum(1) - 1).abs() > SUM_TOLERANCE).any():
        raise UserError("these are no probabilities: each row must be at least 0 and sum to 1; apply a softmax to "
                        "logits")
    return p


def _check_rows(rows, what):
    if rows.ndim != 2 or not rows.numel():
        raise UserError(f"{what} must be a table of images by classes, not of shape {tuple(rows.shape)}")
    if not torch.isfinite(rows).all():
        raise UserError(f"{what} hold values that are no finite numbers")


def _check_labels(labels, n, classes):
    if labels.shape != (n,):
        raise UserError(f"{n} images need as many labels, not a table of shape {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"labels run from {int(labels.min())} to {int(labels.max())}, and there are {classes} classes")

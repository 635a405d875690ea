"""What is measured of a classifier: accuracy by group, ranking, calibration, detection of what it does not know, and
whether its saliency lies on the foreground.

The metrics of Chang, Adam and Goldenberg (CVPR 2021, arXiv 2106.01127), with groups as in Sagawa et al. (ICLR 2020,
arXiv 1911.08731). Pure functions of tensors on any device; all arithmetic is float64 on the CPU. Shares are in [0, 1].

Everywhere: a metric of no samples (n = 0), or one that its samples do not define, is None; an input that is not finite,
or does not fit the others, is a UserError.
"""

import math
from typing import NamedTuple

import numpy
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from experiment import UserError


def _finite(name, values, dimensions):
    """The values as a float64 tensor on the CPU; UserError if they are not finite or not of so many dimensions."""
    values = torch.as_tensor(values).detach().cpu().double()
    if values.ndim != dimensions:
        raise UserError(f"{name} must have {dimensions} dimensions, not the shape {tuple(values.shape)}")
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise UserError(f"{bad} of {values.numel()} {name} are not finite; nothing can be measured of them")
    return values


def _matching(name, values, n, limit=None):
    """Indices (n,) as int64 on the CPU; UserError if there are not n of them or, given a limit, one is outside."""
    values = torch.as_tensor(values).detach().cpu()
    if values.shape != (n,) or values.is_floating_point():
        raise UserError(f"{name} must be {n} whole numbers, not {values.dtype} of the shape {tuple(values.shape)}")
    values = values.long()
    if limit is not None and n and not (values.min() >= 0 and values.max() < limit):
        raise UserError(f"{name} must lie in 0 to {limit - 1}, and are {int(values.min())} to {int(values.max())}")
    return values


# --- accuracy -----------------------------------------------------------------------------------


def accuracies(right, groups, count=None):
    """Accuracy over all samples and over groups of them.

    right: (N,), boolean. groups: (N,), int64, the group of each sample; a negative one means that it is not known, and
    the sample counts in `accuracy` only. count: how many groups there are; by default one more than the largest.

    Returns a dict: accuracy; worst_group, the lowest of the groups' accuracies; mean_of_groups, their unweighted mean;
    per_group, a list of `count` accuracies, None for a group with no sample; n_per_group; absent, how many groups have
    no sample. Absent groups are left out of the lowest and the mean. With n = 0 all accuracies are None. Raises
    UserError if the two do not match or a group is not below count.
    """
    right = torch.as_tensor(right).detach().cpu()
    if right.dtype != torch.bool or right.ndim != 1:
        raise UserError(f"right must be booleans (N,), not {right.dtype} of the shape {tuple(right.shape)}")
    groups = _matching("groups", groups, len(right))
    top = int(groups.max()) + 1 if len(groups) else 0
    count = max(top, 0) if count is None else count
    if top > count:
        raise UserError(f"there is a sample of group {top - 1}, but only {count} groups, from 0 on")
    sizes = [int((groups == k).sum()) for k in range(count)]
    per_group = [int(right[groups == k].sum()) / n if n else None for k, n in enumerate(sizes)]
    present = [value for value in per_group if value is not None]
    return {"accuracy": int(right.sum()) / len(right) if len(right) else None,
            "worst_group": min(present, default=None),
            "mean_of_groups": math.fsum(present) / len(present) if present else None,
            "per_group": per_group, "n_per_group": sizes, "absent": count - len(present)}  # fmt: skip


def weighted_mean(per_group, weights):
    """Mean of the groups' accuracies, weighted by each group's share of the training set (Sagawa et al., section 4).

    per_group: a list with None for groups with no sample; these are left out, and the weights of the others scaled to
    sum to 1. None if no group with a weight has a sample. Raises UserError for weights that are negative, not finite or
    of another number.
    """
    weights = _finite("weights", weights, 1).tolist()
    if len(weights) != len(per_group) or min(weights, default=0) < 0:
        raise UserError(f"{len(per_group)} groups need as many weights of at least 0, not {weights}")
    pairs = [(value, weight) for value, weight in zip(per_group, weights, strict=True) if value is not None]
    if not all(math.isfinite(value) for value, _ in pairs):
        raise UserError(f"the groups' accuracies {per_group} are not all finite")
    total = math.fsum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / total if total else None


def bg_gap(mixed_same, mixed_rand):
    """How much accuracy a background of another class costs (Xiao et al. 2020, arXiv 2006.09994, section 3).

    Both are accuracies: on foregrounds before a background of the same class, and before one of a random class. None
    if one of them is None (n = 0); UserError for what is not in [0, 1].
    """
    for value in (mixed_same, mixed_rand):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"a background gap is of accuracies from 0 to 1, not {value}")
    return None if mixed_same is None or mixed_rand is None else mixed_same - mixed_rand


# --- loss and ranking ---------------------------------------------------------------------------


def cross_entropy(logits, labels):
    """Mean of -log p(label) in nats, of logits (N, C) and labels (N,); None for n = 0, UserError if not finite."""
    logits = _finite("logits", logits, 2)
    labels = _matching("labels", labels, *logits.shape)
    return -logits.log_softmax(1).gather(1, labels[:, None]).mean().item() if len(labels) else None


class Ranking(NamedTuple):
    """A metric averaged over classes: value, or None if no class defines it, and how many classes were left out."""

    value: float | None
    left_out: int


def auc(logits, labels):
    """Area under the ROC curve, as a Ranking.

    logits: (N, C); labels: (N,). With two classes that of class 1; with more the unweighted mean over the classes, each
    against all others. A sample's score for a class is its log odds, which rank as its probability does but do not
    saturate at 1. A class is left out if no sample has it, or all have; n = 0 leaves out all and gives None. Raises
    UserError for logits that are not finite and labels that do not fit.
    """
    return _one_against_rest(roc_auc_score, logits, labels)


def aupr(logits, labels):
    """Area under the precision-recall curve (average precision: no interpolation), as a Ranking; else like `auc`.

    So n = 0 leaves out every class and gives None, and logits that are not finite are a UserError.
    """
    return _one_against_rest(average_precision_score, logits, labels)


def _one_against_rest(metric, logits, labels):
    logits = _finite("logits", logits, 2)
    n, classes = logits.shape
    if classes < 2:
        raise UserError("ranking needs at least 2 classes")
    labels, ranked = _matching("labels", labels, n, classes), [1] if classes == 2 else range(classes)
    values = []
    for k in ranked:
        positive = labels == k
        if positive.any() and not positive.all():
            others = torch.cat([logits[:, :k], logits[:, k + 1 :]], 1)
            odds = logits[:, k] - others.logsumexp(1)
            values.append(float(metric(positive.numpy(), odds.numpy())))
    return Ranking(math.fsum(values) / len(values) if values else None, len(ranked) - len(values))


# --- calibration --------------------------------------------------------------------------------


class Bins(NamedTuple):
    """Predictions by their size: bin k holds those above edges[k] up to and with edges[k + 1], the first also 0.

    edges (K + 1,); n (K,), int64; predicted (K,), mean prediction; positive (K,), share that came true. The last two
    are nan where a bin is empty.
    """

    edges: torch.Tensor
    n: torch.Tensor
    predicted: torch.Tensor
    positive: torch.Tensor


class Calibration(NamedTuple):
    """ece and published: two errors in [0, 1], or None for n = 0; top and one_vs_rest: the Bins that they are of."""

    ece: float | None
    published: float | None
    top: Bins
    one_vs_rest: Bins


def calibration(probabilities, labels, bins=10):
    """Expected calibration error, with fixed bins of equal width over [0, 1]; a Calibration.

    probabilities: (N, C), rows that sum to 1; labels: (N,).
    ece: mean over the samples of |share right - mean confidence| of the bin that the largest probability lies in (Guo
    et al. 2017, arXiv 1706.04599, equation 3).
    published: the definition in the code of Chang et al.: the unweighted mean, over bins that are not empty, of |share
    true - mean prediction|, of all N x C probabilities as predictions of "is it this class" (of class 1 alone, if there
    are two). It weighs a bin of one sample like one of thousands. Theirs drops classes that the split lacks; not ours.
    n = 0 gives None and empty bins. Raises UserError for what is not finite or no distribution.
    """
    probabilities = _finite("probabilities", probabilities, 2)
    labels = _matching("labels", labels, *probabilities.shape)
    off = (probabilities.sum(1) - 1).abs()
    if (probabilities < 0).any() or (off > 1e-4).any():  # 1e-4: float32 rows of a thousand classes are within it
        raise UserError("probabilities must be at least 0 and each row must sum to 1; logits need a softmax first")
    sure, guess = probabilities.max(1)
    top = _bins(sure, guess == labels, bins)
    outcomes = torch.nn.functional.one_hot(labels, probabilities.shape[1]).bool()
    if probabilities.shape[1] == 2:
        probabilities, outcomes = probabilities[:, 1], outcomes[:, 1]
    each = _bins(probabilities.flatten(), outcomes.flatten(), bins)
    if not len(labels):
        return Calibration(None, None, top, each)
    gaps = [(part.predicted - part.positive).abs() for part in (top, each)]
    ece = (gaps[0].nan_to_num(0) * top.n).sum() / len(labels)
    return Calibration(ece.item(), gaps[1].nanmean().item(), top, each)


def _bins(predictions, outcomes, bins):
    """Bins of predictions (M,) in [0, 1] and what came true of them, (M,), boolean."""
    edges = torch.from_numpy(numpy.linspace(0, 1, bins + 1))
    place = torch.bucketize(predictions.contiguous(), edges[1:-1])
    n = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, weights=values.double(), minlength=bins) for values in (predictions, outcomes)]
    return Bins(edges, n, *(total / n for total in sums))


# --- detection of images unlike the training set ------------------------------------------------


def anomaly_score(logits, classes):
    """How unlike the known classes each image is, (N,), in [0, 1].

    logits (N, C): 1 - the largest probability (Hendrycks and Gimpel 2017). logits (N, 2C), of a classifier with a
    counterfactual channel for each class: the probability of these C channels together (Chang et al., "channels").
    classes: C, at least 2. n = 0 gives an empty tensor. Raises UserError for another width and for logits that are not
    finite.
    """
    logits = _finite("logits", logits, 2)
    if classes < 2 or logits.shape[1] not in (classes, 2 * classes):
        raise UserError(f"logits of {classes} classes must have {classes} or {2 * classes} columns, at least 2, not "
                        f"{logits.shape[1]}")
    double = logits.shape[1] == 2 * classes
    rest = logits[:, classes:] if double else logits.sort(1, descending=True).values[:, 1:]
    return (rest.logsumexp(1) - logits.logsumexp(1)).exp()  # a sum, since 1 - p rounds to 0 for a sure classifier


def detection(anomaly_in, anomaly_out):
    """How well anomaly scores tell images unlike the training set (positive) from those like it (negative).

    anomaly_in: (N,), of images like the training set; anomaly_out: (M,), of others; larger is more anomalous.
    Returns a dict: fpr95, the share of anomaly_in at or above the highest threshold that at least 95 % of anomaly_out
    are at or above; auc; aupr; n_in; n_out. A score equal to the threshold counts as detected, so scores that are all
    the same give an fpr95 of 1 (and an auc of 1/2). All three are None where one side is empty (n = 0); UserError for
    scores that are not finite.
    """
    inside, outside = _finite("anomaly_in", anomaly_in, 1), _finite("anomaly_out", anomaly_out, 1)
    found = {"fpr95": None, "auc": None, "aupr": None, "n_in": len(inside), "n_out": len(outside)}
    if not len(inside) or not len(outside):
        return found
    needed = -(-95 * len(outside) // 100)  # rounded up, in whole numbers
    threshold = outside.sort(descending=True).values[needed - 1]
    scores = torch.cat([inside, outside]).numpy()
    truth = numpy.arange(len(scores)) >= len(inside)
    return found | {"fpr95": int((inside >= threshold).sum()) / len(inside),
                    "auc": float(roc_auc_score(truth, scores)),
                    "aupr": float(average_precision_score(truth, scores))}  # fmt: skip


# --- saliency -----------------------------------------------------------------------------------


def focus(saliency, masks):
    """Whether saliency lies on the foreground, for each image (Chang et al., section 4).

    saliency: (B, H, W), at least 0. masks: (B, 1, H, W), boolean.
    Returns a dict of (B,), float64: inside, the share of the saliency within the mask; aupr, the average precision of
    saliency as a detector of mask pixels; iou, intersection over union of the mask with as many pixels of the highest
    saliency as it has; area, the mask's share of the image, which inside and aupr have by chance. Pixels that tie for
    the last places share them evenly. And undefined, the number of images that have nan in the first three: an empty
    mask, one that covers all (every saliency would be perfect), or saliency that is zero everywhere. n = 0 gives empty
    tensors. Raises UserError for saliency that is negative or not finite, and for shapes that differ.
    """
    saliency = _finite("saliency values", saliency, 3)
    masks = torch.as_tensor(masks).detach().cpu()
    if masks.dtype != torch.bool or masks.shape != (len(saliency), 1, *saliency.shape[1:]):
        raise UserError(f"saliency {tuple(saliency.shape)} needs boolean masks with one channel, not {masks.dtype} of "
                        f"the shape {tuple(masks.shape)}")
    if (saliency < 0).any():
        raise UserError("saliency must be at least 0; square it, or take its absolute value")
    saliency, masks = saliency.flatten(1), masks.flatten(1)
    good = masks.any(1) & ~masks.all(1) & saliency.any(1)
    values = {name: torch.full((len(saliency),), math.nan, dtype=torch.float64) for name in ("inside", "aupr", "iou")}
    for k in good.nonzero().flatten().tolist():
        heat, mask = saliency[k] / saliency[k].max(), masks[k]  # of size 1, so that no sum under- or overflows
        values["inside"][k] = heat[mask].sum() / heat.sum()
        values["aupr"][k] = average_precision_score(mask.numpy(), heat.numpy())
        values["iou"][k] = _overlap(heat, mask)
    return values | {"area": masks.double().mean(1), "undefined": int((~good).sum())}


def _overlap(heat, mask):
    """Intersection over union of mask (P,) with as many pixels of the highest heat (P,)."""
    size = int(mask.sum())
    last = heat.sort(descending=True).values[size - 1]
    above, tied = heat > last, heat == last
    share = (size - int(above.sum())) / int(tied.sum())
    common = int((above & mask).sum()) + share * int((tied & mask).sum())
    return common / (2 * size - common)


def mean_defined(values):
    """(mean, n) over those of values (B,) that are not nan; None for n = 0, UserError if one is infinite."""
    values = torch.as_tensor(values).detach().cpu().double()
    values = _finite("values", values[~values.isnan()], 1)
    return (values.mean().item() if len(values) else None), len(values)


# --- all of a split -----------------------------------------------------------------------------


def summary(logits, labels, groups, weights, classes):
    """{metric: (value, n)} of all scalar metrics of a split, in a fixed order; n is how many samples the value is of.

    logits: (N, classes), or (N, 2 x classes), of which the first `classes` are read, as in validation by Chang et al.
    labels: (N,). groups: (N,), or None, and weights: share of each group in the training set, or None; without them
    their metrics are left out. The n of worst_group is that of this group, and of mean_of_groups and weighted_mean that
    of all samples whose group is known. absent_classes and absent_groups are numbers, not shares. n = 0 gives None for
    every metric but these. Raises UserError for logits that are not finite and for what does not fit.
    """
    logits = _finite("logits", logits, 2)
    if logits.shape[1] not in (classes, 2 * classes):
        raise UserError(f"logits of {classes} classes must have {classes} or {2 * classes} columns, not "
                        f"{logits.shape[1]}")
    logits, n = logits[:, :classes], len(logits)
    labels = _matching("labels", labels, n, classes)
    by_group = accuracies(logits.argmax(1) == labels, torch.full((n,), -1) if groups is None else groups,
                          None if weights is None else len(weights))
    calibrated = calibration(logits.softmax(1), labels)
    found = {"accuracy": (by_group["accuracy"], n), "cross_entropy": (cross_entropy(logits, labels), n)}
    if groups is not None:
        found |= _of_groups(by_group, weights)
    return found | {"auc": (auc(logits, labels).value, n), "aupr": (aupr(logits, labels).value, n),
                    "ece": (calibrated.ece, n), "published_ece": (calibrated.published, n),
                    "absent_classes": (classes - len(labels.unique()), n)}  # fmt: skip


def _of_groups(by_group, weights):
    sizes, n = by_group["n_per_group"], sum(by_group["n_per_group"])
    worst = by_group["worst_group"]
    found = {"worst_group": (worst, 0 if worst is None else sizes[by_group["per_group"].index(worst)]),
             "mean_of_groups": (by_group["mean_of_groups"], n)}  # fmt: skip
    if weights is not None:
        found["weighted_mean"] = weighted_mean(by_group["per_group"], weights), n
    return found | {"absent_groups": (by_group["absent"], n)}

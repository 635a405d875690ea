"""Which samples to finetune on: what each sample's own reverse-ablation step does to its error, and who chooses by it.

Scores are taken from the same model for every sample, so that their order does not matter; the published way, each
step on top of the last, is here as well, to be compared.
"""

import copy
from typing import NamedTuple

import torch

import experiment
import per_sample
from ablate import error_gradients


class Scores(NamedTuple):
    """What the arms choose by, each (N,): fall of the error by the sample's own step, error before, gradient norm."""

    gain: torch.Tensor
    error: torch.Tensor
    gradient: torch.Tensor


def score(model, images, strength):
    """Scores of images (N, 1, 28, 28), each from the untouched model, at the latent mean; batched."""
    before, after, gradient = per_sample.score(model, images, strength)
    return Scores(before - after, before, gradient)


def cumulative_gain(model, images, strength, noise):
    """Scores (N,) in the published way, for comparison: they depend on the order of the images.

    Each step starts from the model that the steps before have left, error, step and second error see different
    latent noise (N, 3, latent), and a rise of the error counts as much as a fall.
    """
    model = copy.deepcopy(model)
    gains = []
    for image, (before, during, after) in zip(images.split(1), noise, strict=True):
        error = model.squared_error(image, before[None]).item()
        grads = error_gradients(model, image, during[None])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= strength * grads[name].sign()
            gains.append(abs(error - model.squared_error(image, after[None]).item()))
    return torch.tensor(gains)


def noise_of_steps(model, n, stream):
    """(n, 3, latent): the latent noise of each image's error, step and second error."""
    return model.noise(3 * n, stream).view(n, 3, -1)


def how_many(gain, fraction, count=None, threshold=None):
    """How many samples to keep: those that score below the threshold, or a count, or a fraction of them."""
    n = len(gain)
    if not gain.isfinite().all():
        raise experiment.UserError("some scores are not finite: --strength is too large for this model")
    kept = int((gain < threshold).sum()) if threshold is not None else count or round(fraction * n)
    if not 1 <= kept <= n:
        reason = f"no score is below {threshold}" if threshold is not None else f"{kept} of {n} samples"
        raise experiment.UserError(f"the selection is empty or too large: {reason}; scores go from "
                                   f"{float(gain.min()):.4f} to {float(gain.max()):.4f}")
    return kept


def choose(arm, scores, kept, stream):
    """Positions (kept,) of the samples that an arm finetunes on."""
    if arm == "full":
        return torch.arange(len(scores.gain))
    if arm == "random":
        return torch.randperm(len(scores.gain), generator=stream)[:kept]
    ranking = {"targeted": scores.gain, "easy": -scores.gain, "hard": -scores.error, "gradient": -scores.gradient}
    return ranking[arm].cpu().argsort(stable=True)[:kept]


def rank_correlation(a, b):
    """Spearman's rank correlation of two vectors without ties."""
    ranks = torch.stack([a, b]).argsort(1).argsort(1).double()
    return float(torch.corrcoef(ranks)[0, 1])

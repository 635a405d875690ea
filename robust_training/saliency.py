"""What a classifier looks at, as maps that can be penalised: all are differentiable once more, for its weights.

Maps of images (B, 3, H, W) for the class of each row (`maps`):

    grad_y         gradient of the row's own logit (never summed over other rows' labels)
    grad_sum       of the sum of the logits
    grad_logp_y    of the log-probability of the row's label
    grad_logp_sum  of the sum of the log-probabilities (Ross et al. 2017, right for the right reasons)
    deeplift       DeepLIFT's rescale rule (Shrikumar et al. 2017) against a grey image, times the difference to it
    grad_cam       Grad-CAM (Selvaraju et al. 2017) of the last feature maps, at the size of the image, (B, 1, H, W)

Penalties on them (`penalty`), each a mean over the images whose foreground is known, which is 0 if there is none:

    bbox_o   mean square outside the box, over pixels and channels: its coefficient is tied to the size of the image
    mask_o   the same outside the outline (ours: a box may hold much background)
    bbox_f1  1 - soft F1 of the box with the squared map, scaled to at most 1 within its own image
    gs       1 - cosine of the map and of the change that a counterfactual makes (Teney et al. 2020)

They are computed in float32, whatever precision the network trains in: squares of small gradients vanish in half.
"""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import nn

from experiment import UserError
from storage import one_of

SAME = 1e-6  # DeepLIFT: a change of an input smaller than this is none, and the gradient is taken

# --- maps -----------------------------------------------------------------------------------------


def _gradient_of(model, images, labels, score):
    """Gradient (B, 3, H, W) of the sum over rows of score(logits, labels), each row's own."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        rows = score(model(images), labels)
        return torch.autograd.grad(rows.sum(), images, create_graph=True)[0]


def own(values, labels):
    """The entry of each row's label, (B,), of values (B, C)."""
    return values.gather(1, labels[:, None])[:, 0]


SCORES = {
    "grad_y": own,
    "grad_sum": lambda logits, labels: logits.sum(1),
    "grad_logp_y": lambda logits, labels: own(F.log_softmax(logits, 1), labels),
    "grad_logp_sum": lambda logits, labels: F.log_softmax(logits, 1).sum(1),
}


def grad_cam(model, images, labels):
    """Positive part of the feature maps weighted by the mean gradient of the row's logit, (B, 1, H, W), at least 0."""
    with torch.enable_grad():
        maps = model.maps(images)
        logit = own(model.head(maps), labels).sum()
        weights = torch.autograd.grad(logit, maps, create_graph=True)[0].mean((2, 3), keepdim=True)
        cam = F.relu((weights * maps).sum(1, keepdim=True))
        return F.interpolate(cam, images.shape[2:], mode="bilinear", align_corners=False)


def deeplift(model, images, labels, baselines=None):
    """DeepLIFT contributions (B, 3, H, W) of images against baselines of the same shape, by default grey.

    A ReLU passes on the ratio of its output's change to its input's; any other layer its gradient, so that the
    contributions add up to the change of the logit exactly only where all others are linear. Every ReLU must be a
    module of its own, as they are in backbones.py.
    """
    baselines = torch.zeros_like(images) if baselines is None else baselines
    both = torch.cat([images, baselines]).detach().requires_grad_()
    with torch.enable_grad(), _rescaled(model) as rule:
        logit = own(model(both)[: len(images)], labels).sum()
        rule.attributing = True
        multipliers = torch.autograd.grad(logit, both, create_graph=True)[0][: len(images)]
        rule.attributing = False
    return multipliers * (images - baselines)


class _Rule:
    """Whether gradients are being taken to attribute (by the rescale rule) or to train (as they are)."""

    attributing = False


class _Rescale(torch.autograd.Function):
    """A ReLU whose gradient is `ratio` while its rule attributes, and its own otherwise.

    The ratio is an input with a graph of its own, so that what is attributed can be differentiated by the weights.
    """

    @staticmethod
    def forward(ctx, z, ratio, rule):
        ctx.save_for_backward(z, ratio)
        ctx.rule = rule
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        z, ratio = ctx.saved_tensors
        return gradient * (ratio if ctx.rule.attributing else (z > 0).to(z.dtype)), None, None


@contextlib.contextmanager
def _rescaled(model):
    """Within the block every nn.ReLU of a model, fed images and then their baselines, follows the rescale rule."""
    rule = _Rule()

    def hook(module, inputs, output):
        z, base = inputs[0].chunk(2)
        moved = z - base
        same = moved.abs() < SAME
        ratio = (F.relu(z) - F.relu(base)) / torch.where(same, 1.0, moved)
        ratio = torch.where(same, (z > 0).to(z.dtype), ratio)
        return _Rescale.apply(inputs[0], torch.cat([ratio, ratio]), rule)

    layers = [layer for layer in model.modules() if isinstance(layer, nn.ReLU)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield rule
    finally:
        for handle in handles:
            handle.remove()


MAPS = {**{name: functools.partial(_gradient_of, score=score) for name, score in SCORES.items()},
        "deeplift": deeplift, "grad_cam": grad_cam}  # fmt: skip


def maps(name, model, images, labels):
    """The saliency maps called `name`; raises UserError for one that is not there."""
    make = one_of(MAPS, "saliency map", name)
    with torch.autocast(images.device.type, enabled=False):
        return make(model, images.float(), labels)


def deeplift_shap(model, images, labels, baselines):
    """Mean DeepLIFT contributions (B, 3, H, W) over baselines (K, 3, H, W): published with 20 of them."""
    found = sum(deeplift(model, images, labels, base.expand_as(images)).detach() for base in baselines)
    return found / len(baselines)


# --- penalties ------------------------------------------------------------------------------------


def outside_box(maps, batch, counterfactuals):
    """(B,): mean square of the maps outside the boxes, over all pixels and channels (published)."""
    return (maps * ~batch.rectangles).square().flatten(1).mean(1)


def outside_outline(maps, batch, counterfactuals):
    """(B,): the same outside the masks."""
    return (maps * ~batch.masks).square().flatten(1).mean(1)


def overlap(maps, batch, counterfactuals):
    """(B,): 1 - 2 sum(s m) / (sum(s) + sum(m)), s the squared maps scaled to at most 1 in each image, m the boxes."""
    squares = maps.square().sum(1, keepdim=True).flatten(1)
    squares = squares / squares.amax(1, keepdim=True).clamp(min=1e-12)
    inside = batch.rectangles.flatten(1).to(squares.dtype)
    return 1 - 2 * (squares * inside).sum(1) / (squares.sum(1) + inside.sum(1)).clamp(min=1e-12)


def supervision(maps, batch, counterfactuals):
    """(B,): 1 - cosine of the maps and images - counterfactuals."""
    if counterfactuals is None:
        raise UserError("gs compares gradients with counterfactuals: choose an --inpaint")
    if maps.shape != batch.images.shape:
        raise UserError("gs compares gradients with images: grad_cam has no gradient for each channel of a pixel")
    return 1 - F.cosine_similarity(maps.flatten(1), (batch.images - counterfactuals).flatten(1), 1, 1e-8)


PENALTIES = {"bbox_o": outside_box, "mask_o": outside_outline, "bbox_f1": overlap, "gs": supervision}


def penalty(name, maps, batch, counterfactuals=None):
    """A scalar: the penalty called `name` of the maps of a Batch, over the images whose foreground is known."""
    per_image = one_of(PENALTIES, "saliency penalty", name)(maps, batch, counterfactuals)
    known = batch.known.to(per_image.dtype)
    return (per_image * known).sum() / known.sum().clamp(min=1)

"""The CGN of ImageNet: shape, object texture and background, each a BigGAN that has been taught to make only that.

Sauer and Geiger 2021 (Counterfactual Generative Networks, ICLR, arXiv 2101.06046), section 3.2. A frozen BigGAN, the
target, makes images in which everything has one class. The three mechanisms start as copies of it, with one latent
and, in training, one label for all of them; a frozen U2-Net turns what the shape mechanism paints (the premask) into a
mask. The composite, m f + (1 - m) b, has to be the target's image; what else is asked of the parts is in `objective`.

    model.parts(labels, latents, truncation)   mechanisms.Parts: mask, object, background; .image() is the composite
    model.make(labels, latents, truncation)    the same with the target's image, the premask, and what is left of an
                                               object in the background

labels: three of (B,), or soft (B, classes), in the order shape, object texture, background; latents: (B, latent).
Parameters are named as in the published cgn.pth.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from cgn import biggan, losses, u2net
from cgn.mechanisms import CLAMP, Parts
from experiment import UserError
from storage import load_checkpoint, load_published_weights, load_weights, one_of, parts_of

PUBLISHED = ("biggan-deep-256", "u2net")  # what the published cgn.pth is made of
MECHANISMS = ("f_shape", "f_text", "f_bg")
TARGET = "biggan_GT"


class Made(NamedTuple):
    """Everything that is made of one latent: target and premask (B, 3, H, W), parts, left (B, 1, H, W) in [0, 1]."""

    target: torch.Tensor
    premask: torch.Tensor
    parts: Parts
    left: torch.Tensor


class ObjectsCGN(nn.Module):
    """Three BigGANs and a U2-Net, and for training (target=True) the BigGAN that they start from.

    config: a name in biggan.CONFIGS; saliency: one in u2net.MODELS; standardise: of u2net's `saliency` (published:
    False). All networks stay in evaluation mode: the mechanisms keep the batch-norm statistics of the BigGAN that they
    start from, as the published code does.
    """

    def __init__(self, config, saliency, standardise=True, target=False):
        super().__init__()
        self.settings = {"config": config, "saliency": saliency, "standardise": standardise}
        self.standardise = standardise
        for name in (*MECHANISMS, *([TARGET] if target else [])):
            setattr(self, name, biggan.build(config))
        made = self.f_shape.config
        self.classes, self.latent, self.resolution = made.classes, made.latent, made.resolution
        self.u2net = u2net.build(saliency)
        for name in ("u2net", *([TARGET] if target else [])):
            getattr(self, name).requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        return super().train(False)

    def start_from(self, generator, saliency):
        """Take the weights of a BigGAN for target and mechanisms, and those of a U2-Net."""
        for name in (*MECHANISMS, TARGET):
            load_weights(getattr(self, name), generator.state_dict())
        load_weights(self.u2net, saliency.state_dict())
        return self

    def find(self, images):
        """Saliency (B, 1, H, W) in [0, 1] of images in [-1, 1]."""
        return self.u2net.saliency(images, self.standardise)

    def mask(self, premask):
        return self.find(premask).clamp(CLAMP, 1 - CLAMP)  # published

    def parts(self, labels, latents, truncation=1.0):
        return self.painted(labels, latents, truncation)[1]

    def painted(self, labels, latents, truncation):
        """(premask, Parts)."""
        premask, object_, background = (getattr(self, name)(latents, label, truncation).float()
                                        for name, label in zip(MECHANISMS, labels, strict=True))  # fmt: skip
        return premask, Parts(self.mask(premask), object_, background)

    def make(self, labels, latents, truncation=1.0):
        with torch.no_grad():
            target = getattr(self, TARGET)(latents, labels[0], truncation).float()
        premask, parts = self.painted(labels, latents, truncation)
        return Made(target, premask, parts, self.find(parts.background))

    def draw(self, n, stream, truncation=1.0, device="cpu"):
        """(latents (n, latent), labels (n,)) from a stream."""
        latents = biggan.truncated_noise(n, self.latent, truncation, stream)
        return latents.to(device), torch.randint(self.classes, (n,), generator=stream).to(device)


# --- what is asked of the parts ------------------------------------------------------------------------


def objective(made, network, stream, weights, patches):
    """{term: weighted scalar} of a Made (paper, section 3.2; published code, where they differ).

    l1         mean absolute distance of composite and target         L_rec
    gram       distance of their Gram matrices, image by image        L_rec, its perceptual half
    entropy    binary entropy of the mask, in bits                    L_shape
    area       how far the mean mask is outside [0.1, 0.9]            L_shape
    texture    Gram distance of the object and a grid of patches of the target, from where the mask is  L_text
    background mean saliency of the background                        L_bg
    ground     distance of the background's texture, where the object was, from the target's elsewhere: ours

    The last one is because a background may as well fool the saliency network as be without an object: it keeps faint
    stripes, or darkens. network: features as in losses.features; weights: {term: weight}, where gram, texture and
    ground have one for each layer of the network; a term without a weight, or with 0, is left out. patches: of
    losses.texture_grids. Raises UserError for a weight of a term that is not here.
    """
    image, mask = made.parts.image(), made.parts.mask
    per_layer = functools.partial(losses.gram_distance, network)
    grids = lambda: losses.texture_grids(made.target, mask.detach(), stream, **patches)
    terms = {
        "l1": lambda weight: weight * (image - made.target).abs().mean(),
        "entropy": lambda weight: weight * losses.binary_entropy(mask),
        "area": lambda weight: weight * losses.area(mask),
        "background": lambda weight: weight * made.left.mean(),
        "gram": lambda weights: per_layer(image, made.target, weights),
        "texture": lambda weights: per_layer(made.parts.object, grids(), weights),
        "ground": lambda weights: losses.ground_distance(network, made.parts.background, made.target, mask.detach(),
                                                         weights),
    }  # fmt: skip
    for name in weights:
        one_of(terms, "loss of a CGN of objects", name)
    counts = lambda weight: any(weight) if isinstance(weight, tuple) else bool(weight)
    return {name: term(weights[name]) for name, term in terms.items() if counts(weights.get(name))}


# --- making and restoring ------------------------------------------------------------------------------


def restore(state):
    """The ObjectsCGN, without its target, of a checkpoint of cgn.train_objects."""
    settings, weights = parts_of(state, "objects", "cgn.train_objects")
    return load_weights(ObjectsCGN(**settings), weights)


def load_published(path):
    """The published ObjectsCGN, of 256 x 256 pixels and 1,000 classes, from cgn.pth; with its target if that is there.

    Raises UserError for another file.
    """
    if not Path(path).is_file():
        raise UserError(f"no weights at {path}: python -m cgn.fetch --what cgn says where they come from")
    given = load_checkpoint(path)
    target = any(str(key).removeprefix("module.").startswith(f"{TARGET}.") for key in given)
    model = ObjectsCGN(*PUBLISHED, standardise=False, target=target)
    return load_published_weights(model, given)


def load(run, device):
    """The ObjectsCGN of a run folder of cgn.train_objects, or of the published file."""
    run = Path(run)
    model = load_published(run) if run.suffix == ".pth" else restore(load_checkpoint(run / "ckpt/best.pt"))
    return model.to(device).requires_grad_(False)

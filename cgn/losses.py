"""What the mechanisms are trained by: adversaries, binary masks, texture statistics.

Every loss is computed in float32 and gives one number for a batch; the entropy of a mask in particular is never taken
in bfloat16, where 1 - 1e-4 is 1 and its logarithm times 0 no number.
"""

import torch
import torch.nn.functional as F
from torch import nn

import experiment
import storage
from cgn import fetch
from cgn.mechanisms import CLAMP, CLASSES

NEAR = 3  # pixels around an object that its edge still reaches

# --- adversaries -----------------------------------------------------------------------------------


def logistic(real, fake=None):
    """The discriminator's loss in nats on logits (B,) of real and fake images, or, with fake alone as `real`, the
    generator's. Non-saturating (Goodfellow et al. 2014, section 3).
    """
    return F.softplus(-real).mean() + (F.softplus(fake).mean() if fake is not None else 0)


def least_squares(real, fake=None):
    """The same on the same logits, with squared distances from 1 for real and 0 for fake (Mao et al. 2017).

    Half of their sum for the discriminator (published).
    """
    if fake is None:
        return (real - 1).square().mean()
    return ((real - 1).square().mean() + fake.square().mean()) / 2


# --- masks ------------------------------------------------------------------------------------------


def binary_entropy(masks):
    """Mean entropy in bits of masks in [0, 1] of any shape: 1 where all are a half (paper, L_mask).

    Values are clamped to [CLAMP, 1 - CLAMP], so that binary masks have 0.0015 and every gradient is finite.
    """
    m = masks.float().clamp(CLAMP, 1 - CLAMP)
    return -(m * m.log2() + (1 - m) * (1 - m).log2()).mean()


def area(masks, least=0.1, most=0.9):
    """How far the mean of each mask (B, 1, H, W) is outside [least, most], averaged: 0 for all that are within.

    Paper, the second half of L_mask.
    """
    means = masks.float().mean((1, 2, 3))
    return (F.relu(least - means) + F.relu(means - most)).mean()


def edge(masks, band):
    """Mean, in [0, 1], of masks (B, 1, H, W) on their outermost `band` pixels: objects do not touch the border.

    band: less than half of H and W. As in the replication (Bagad et al. 2022).
    """
    inner = masks[:, :, band:-band, band:-band].float().sum()
    pixels = masks.shape[2] * masks.shape[3] - (masks.shape[2] - 2 * band) * (masks.shape[3] - 2 * band)
    return (masks.float().sum() - inner) / (len(masks) * pixels)


# --- texture ------------------------------------------------------------------------------------------


class RandomFilters(nn.Module):
    """Fixed random filters of sides 3, 5 and 7, rectified, on every second pixel: (B, 48, 16, 16).

    Random filters of several sizes carry texture about as well as trained ones (Ustyuzhaninov et al. 2016); no
    pretrained network is needed. Each filter has norm 1 and, but for the first of each size, mean 0 over space; it is
    rectified as it is and with the opposite sign, so that nothing is lost.
    """

    SIDES, EACH = (3, 5, 7), 8

    def __init__(self):
        super().__init__()
        stream = experiment.generator(0, "random filters")
        for side in self.SIDES:
            filters = torch.randn(self.EACH, 3, side, side, generator=stream)
            filters[1:] -= filters[1:].mean((2, 3), keepdim=True)  # the first of each size sees the colour itself
            filters /= filters.flatten(1).norm(dim=1)[:, None, None, None]
            self.register_buffer(f"filters_{side}", filters)

    def forward(self, x):
        seen = (F.conv2d(x, getattr(self, f"filters_{side}"), stride=2, padding=side // 2) for side in self.SIDES)
        maps = torch.cat(list(seen), 1).float()
        return [torch.cat([F.relu(maps), F.relu(-maps)], 1)]


class VGG16(nn.Module):
    """Activations of relu1_2, 2_2, 3_3 and 4_3 of torchvision's VGG16; images in [-1, 1] are normalised as it expects.

    weights: the file of ImageNet's weights, which `python -m cgn.fetch --what vgg16` gets, or None for random ones, in
    tests. Raises UserError for a file that is absent, damaged or another network's.
    """

    TAPS = (3, 8, 15, 22)
    MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, weights):
        super().__init__()
        import torchvision  # here, because it takes a second and is rarely needed

        with torch.device("meta"):  # most of it is a classifier, which is not needed
            model = torchvision.models.vgg16(weights=None).features
        self.layers = self._filled(model.to_empty(device="cpu"), weights)[: self.TAPS[-1] + 1].requires_grad_(False)
        for name, values in (("mean", self.MEAN), ("deviation", self.DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    @staticmethod
    def _filled(layers, weights):
        if weights is not None:
            given = storage.load_checkpoint(weights)
            return storage.load_weights(layers, {name.removeprefix("features."): value for name, value in given.items()
                                                 if not name.startswith("classifier.")})  # fmt: skip
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        return layers

    def forward(self, x):
        h, found = ((x + 1) / 2 - self.mean) / self.deviation, []
        for number, layer in enumerate(self.layers):
            h = layer(h)
            if number in self.TAPS:
                found.append(h.float())
        return found


def features(name, device):
    """The network of --features: "random", or "vgg16" with the weights that cgn.fetch gets."""
    network = RandomFilters() if name == "random" else VGG16(fetch.path_of("vgg16"))
    return network.to(device).requires_grad_(False)


def gram(maps):
    """Products of channels averaged over space, (B, C, C), float32, of maps (B, C, H, W) (Gatys et al. 2016)."""
    with torch.autocast(maps.device.type, enabled=False):
        flat = maps.float().flatten(2)
        return flat @ flat.transpose(1, 2) / flat.shape[2]


def texture_grids(images, masks, stream, patch=15, best=100, grid=6, side=128):
    """Images (B, 3, H, W) of nothing but the object's texture: grid x grid patches from where the mask is densest.

    images (B, 3, H, W), masks (B, 1, H, W). Both are brought to side x side; of all patches of patch x patch pixels the
    `best` with the highest mean mask are candidates, from which a CPU generator draws with replacement; they are laid
    out and brought to the size of the images (Sauer and Geiger 2021, L_text; values published for 256 pixels).
    """
    fit = lambda x, size: F.interpolate(x, size, mode="bicubic", align_corners=False)
    small, columns = fit(images, (side, side)), side - patch + 1
    density = F.avg_pool2d(fit(masks, (side, side)), patch, 1).flatten(1)
    drawn = torch.randint(best, (len(images), grid * grid), generator=stream).to(images.device)
    corner = density.topk(best, 1).indices.gather(1, drawn).view(-1, grid, 1, grid, 1)
    within = torch.arange(patch, device=images.device)
    rows = corner // columns + within[:, None, None]  # (B, grid, patch, grid, 1)
    index = (rows * side + corner % columns + within).view(len(images), 1, -1)
    laid = small.flatten(2).gather(2, index.expand(-1, images.shape[1], -1))
    return fit(laid.view(*images.shape[:2], grid * patch, grid * patch), images.shape[2:])


def gram_where(maps, weights):
    """Products of channels averaged over the places that weights (B, 1, H', W') count, (B, C, C), float32.

    weights: at least 0, brought to the size of the maps (B, C, H, W) by averaging; an image without any gives 0.
    """
    with torch.autocast(maps.device.type, enabled=False):
        flat, seen = maps.float().flatten(2), F.adaptive_avg_pool2d(weights.float(), maps.shape[2:]).flatten(2)
        return (flat * seen) @ flat.transpose(1, 2) / seen.sum(2, keepdim=True).clamp(min=1e-6)


def ground_distance(network, backgrounds, images, masks, weights):
    """Mean absolute distance of the Gram matrices of backgrounds where an object was, and of images where none is.

    backgrounds, images (B, 3, H, W), masks (B, 1, H, W) of the object, of which the images' places near it do not
    count. weights: one for each layer of the network.
    """
    around = 1 - F.max_pool2d(masks, 2 * NEAR + 1, 1, NEAR)
    pairs = zip(weights, network(backgrounds), network(images), strict=True)
    return sum(weight * (gram_where(a, masks) - gram_where(b, around)).abs().mean() for weight, a, b in pairs if weight)


def class_means(grams, labels):
    """(mean Gram matrix of each class (classes, C, C), which classes are there (classes,))."""
    one_hot = F.one_hot(labels, CLASSES).float()  # (B, classes)
    counts = one_hot.sum(0)
    with torch.autocast(grams.device.type, enabled=False):
        means = (one_hot.T @ grams.flatten(1)) / counts.clamp(1)[:, None]
    return means.view(CLASSES, *grams.shape[1:]), counts > 0


class TextureStatistics:
    """Mean Gram matrices of every class, of real images, against which generated ones are held.

    They are measured once; a step then costs the generated images only.
    """

    def __init__(self, network, images, labels):
        """network: a function from images to a list of maps; images (N, 3, 32, 32), labels (N,), every class there."""
        self.network = network
        with torch.no_grad():
            parts = [[gram(maps) for maps in network(some)] for some in images.split(500)]
            self.targets = [class_means(torch.cat(layer), labels)[0] for layer in zip(*parts, strict=True)]
        self.scales = [target.abs().mean() for target in self.targets]

    def loss(self, x, labels):
        """Mean absolute distance of the classes' mean Gram matrices, relative to their size, summed over the layers.

        x (B, 3, 32, 32) in [-1, 1], labels (B,); classes that the batch does not have are left out.
        """
        total = 0
        for maps, target, scale in zip(self.network(x), self.targets, self.scales, strict=True):
            means, there = class_means(gram(maps), labels)
            total = total + (means - target)[there].abs().mean() / scale
        return total


def gram_distance(network, x, real, weights):
    """Mean absolute distance of two batches' Gram matrices, layer by layer, image by image (published).

    x, real (B, 3, H, W) in [-1, 1], a pair of images in each row. weights: one for each layer of the network; published
    for MNIST with VGG16, .05 .1 .01 0 for colored.
    """
    pairs = zip(weights, network(x), network(real), strict=True)
    return sum(weight * (gram(a) - gram(b)).abs().mean() for weight, a, b in pairs if weight)

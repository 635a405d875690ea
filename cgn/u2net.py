"""U2-Net: which pixels of an image belong to what stands out, by a U-Net whose every stage is a small U-Net itself.

Qin, Zhang, Huang, Dehghan, Zaiane and Jagersand 2020 (U2-Net: Going Deeper with Nested U-Structure for Salient Object
Detection, Pattern Recognition, arXiv 2005.09007). The CGN of ImageNet takes it twice (Sauer and Geiger 2021): it makes
the mask out of what the shape mechanism paints, and it says how much of an object is left in a background.

    u2net     44.0 million parameters, the layers of the authors' u2net.pth (176.3 MB)
    u2netp    1.1 million, the layers of their u2netp.pth (4.7 MB)
    u2net64   ours, 1.0 million, for images of 64 x 64 pixels, cheap enough to be trained on one processor core

`load_published` reads the authors' files, which the repository xuebinqin/U-2-Net links to; parameters are named as
there. `restore` reads our checkpoints. All three have the same verbs:

    model(inputs)             saliency logits, a list: the fused map first, then those of the stages, finest first
    model.saliency(images)    the fused map in [0, 1] of images in [-1, 1]
    loss(logits, masks)       what they are trained by, with the logits of model.standardised(images)
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from cgn.losses import VGG16
from experiment import UserError
from storage import load_checkpoint, load_published_weights, load_weights, model_in, one_of

DARKEST = 1 / 255  # the least maximum that an image is divided by, so that black stays black

# --- layers ------------------------------------------------------------------------------------------


class ConvNormReLU(nn.Module):
    """A 3 x 3 convolution that keeps height and width, batch norm and ReLU: (B, into, H, W) to (B, out, H, W)."""

    def __init__(self, into, out, dilation=1):
        super().__init__()
        self.conv_s1 = nn.Conv2d(into, out, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out)

    def forward(self, x):
        return F.relu(self.bn_s1(self.conv_s1(x)), inplace=True)


def pooled(x):
    """The largest values of windows of 2 x 2; height and width are halved and rounded up (published: ceil_mode)."""
    return F.max_pool2d(x, 2, ceil_mode=True)


def resized(x, like):
    """x at the height and width of `like`, bilinear, without aligned corners (published)."""
    size = like.shape[2:]
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


class RSU(nn.Module):
    """Residual U-block (section 3.1): x' + U(x'), where x' = F(x) is a convolution and U a U-Net of `depth` levels.

    channels: of the input, inside U, of the output. What each level but the last hands down is pooled, save to the
    last one, which has dilation 2 instead. dilated: nothing is pooled; level k has dilation 2^(k-1), on the way down
    and on the way up (RSU-4F).
    """

    def __init__(self, depth, dilated, channels):
        super().__init__()
        into, middle, out = channels
        self.depth, self.dilated = depth, dilated
        step = lambda level: 2 ** (level - 1) if dilated else 1 + (level == depth)
        self.rebnconvin = ConvNormReLU(into, out)
        for level in range(1, depth + 1):
            self.add_module(f"rebnconv{level}", ConvNormReLU(out if level == 1 else middle, middle, step(level)))
        for level in range(depth - 1, 0, -1):
            self.add_module(f"rebnconv{level}d", ConvNormReLU(2 * middle, out if level == 1 else middle, step(level)))

    def forward(self, x):
        x = self.rebnconvin(x)
        h, skips = x, []
        for level in range(1, self.depth):
            h = h if self.dilated or level == 1 else pooled(h)
            h = self.get_submodule(f"rebnconv{level}")(h)
            skips.append(h)
        h = self.get_submodule(f"rebnconv{self.depth}")(h)
        for level in range(self.depth - 1, 0, -1):
            skip = skips.pop()
            h = self.get_submodule(f"rebnconv{level}d")(torch.cat([resized(h, skip), skip], 1))
        return h + x


# --- networks ----------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """A row of a network's table: depth of its RSU, whether it is dilated, channels inside it and of its output."""

    depth: int
    dilated: bool
    middle: int
    out: int


class _Nested(nn.Module):
    """A subclass has a table ENCODER, the first stage first, and DECODER, shorter by one and the deepest stage first.

    out: maps of each kind (published: 1). Every stage of the decoder, and the last of the encoder, gives its own logits
    by a 3 x 3 convolution, and a 1 x 1 convolution of all of these gives the fused ones. FOLD: stages work on squares
    of FOLD x FOLD pixels as channels, and logits are unfolded again.
    """

    FOLD = 1

    def __init__(self, out=1):
        super().__init__()
        depth, width = len(self.ENCODER), 3 * self.FOLD**2
        for number, stage in enumerate(self.ENCODER, 1):
            self._add(f"stage{number}", stage, width)
            width = stage.out
        widths = [width]  # of what logits are made from, the deepest first
        for number, stage in zip(range(depth - 1, 0, -1), self.DECODER, strict=True):
            self._add(f"stage{number}d", stage, widths[-1] + self.ENCODER[number - 1].out)
            widths.append(stage.out)
        for number, width in enumerate(reversed(widths), 1):
            self.add_module(f"side{number}", nn.Conv2d(width, out * self.FOLD**2, 3, padding=1))
        self.outconv = nn.Conv2d(depth * out, out, 1)
        for name, values in (("mean", VGG16.MEAN), ("deviation", VGG16.DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def _add(self, name, stage, into):
        self.add_module(name, RSU(stage.depth, stage.dilated, (into, stage.middle, stage.out)))

    def forward(self, inputs):
        """Logits [fused, side 1, side 2, ...], each (B, out, H, W), of inputs (B, 3, H, W) of any height and width.

        Published: their sigmoids. In training, batch norm needs two images or more where a stage is left with a single
        pixel: of images of 32 x 32 pixels or less in the published networks.
        """
        depth, skips = len(self.ENCODER), []
        h = self._fold(inputs)
        for number in range(1, depth + 1):
            h = self.get_submodule(f"stage{number}")(h if number == 1 else pooled(h))
            skips.append(h)
        made = [skips.pop()]
        for number in range(depth - 1, 0, -1):
            skip = skips.pop()
            made.append(self.get_submodule(f"stage{number}d")(torch.cat([resized(made[-1], skip), skip], 1)))
        sides = (self.get_submodule(f"side{number}")(h) for number, h in enumerate(reversed(made), 1))
        sides = [resized(F.pixel_shuffle(side, self.FOLD), inputs) for side in sides]
        return [self.outconv(torch.cat(sides, 1)), *sides]

    def _fold(self, inputs):
        """Squares of pixels as channels; where they do not fit, the last row and column are repeated."""
        height, width = inputs.shape[2:]
        more = (0, -width % self.FOLD, 0, -height % self.FOLD)
        return F.pixel_unshuffle(F.pad(inputs, more, mode="replicate") if any(more) else inputs, self.FOLD)

    def standardised(self, images):
        """Images (B, 3, H, W) in [-1, 1] as the published weights were trained on them.

        In [0, 1], each divided by its largest value over all channels, less ImageNet's mean, over its deviation.
        """
        pixels = (images + 1) / 2
        brightest = pixels.amax((1, 2, 3), keepdim=True).clamp(min=DARKEST)
        return (pixels / brightest - self.mean) / self.deviation

    def saliency(self, images, standardise=True):
        """The fused map (B, out, H, W) in [0, 1], float32, of images (B, 3, H, W) in [-1, 1].

        standardise: whether the network sees standardised(images), as the published weights expect, or the images as
        they are. The CGN of ImageNet does the latter, in training and after, so that the published weights of its shape
        mechanism fit only that. The authors of U2-Net also resize images to 320 x 320 pixels before, and stretch each
        map to the whole of [0, 1] after; the CGN does neither, and neither does this.
        """
        return self(self.standardised(images) if standardise else images)[0].float().sigmoid()


class U2Net(_Nested):
    """The full published network, the layers of u2net.pth; the authors' human and portrait weights have them, too."""

    ENCODER = (Stage(7, False, 32, 64), Stage(6, False, 32, 128), Stage(5, False, 64, 256), Stage(4, False, 128, 512),
               Stage(4, True, 256, 512), Stage(4, True, 256, 512))  # fmt: skip
    DECODER = (Stage(4, True, 256, 512), Stage(4, False, 128, 256), Stage(5, False, 64, 128), Stage(6, False, 32, 64),
               Stage(7, False, 16, 64))  # fmt: skip


class U2NetP(_Nested):
    """The small published network, the layers of u2netp.pth."""

    ENCODER = (Stage(7, False, 16, 64), Stage(6, False, 16, 64), Stage(5, False, 16, 64), Stage(4, False, 16, 64),
               Stage(4, True, 16, 64), Stage(4, True, 16, 64))  # fmt: skip
    DECODER = ENCODER[-2::-1]


class U2Net64(_Nested):
    """Ours for 64 x 64 pixels: a training step on 32 images takes about 0.13 s of one processor core.

    Pixels are folded two by two; a network with a tenth of the parameters on pixels as they are took 1.7 times as long,
    most of it in waiting for memory. Stages see 32, 16, 8 and 4 pixels, and each U-block pools down to 4, below which a
    dilation of 2 reaches nothing.
    """

    FOLD = 2
    ENCODER = (Stage(5, False, 16, 16), Stage(4, False, 32, 32), Stage(3, False, 64, 64), Stage(2, True, 64, 64))
    DECODER = (Stage(3, False, 64, 32), Stage(4, False, 32, 16), Stage(5, False, 16, 16))


# --- training ------------------------------------------------------------------------------------------


def loss(logits, masks):
    """Deep supervision (equation 1, every weight 1): binary cross-entropy in nats, summed over the maps of forward.

    logits: a list of (B, out, H, W); masks of the same shape, boolean or in [0, 1]. Each map's cross-entropy is the
    mean over images and pixels (published code), computed in float32 from logits, so that none is infinite.
    """
    targets = masks.float()
    return sum(F.binary_cross_entropy_with_logits(made.float(), targets) for made in logits)


# --- making and restoring ------------------------------------------------------------------------------

PUBLISHED = {"u2net": U2Net, "u2netp": U2NetP}
MODELS = PUBLISHED | {"u2net64": U2Net64}


def build(name, **settings):
    """A freshly initialised network; raises UserError for a name that is not in MODELS."""
    return one_of(MODELS, "saliency network", name)(**settings)


def load_published(path, name):
    """The network u2net or u2netp with the weights of a published file, in evaluation mode.

    Raises UserError for a file that is absent, truncated or of something else.
    """
    model = one_of(PUBLISHED, "published saliency network", name)()
    if not Path(path).is_file():
        raise UserError(f"no weights at {path}; {name}.pth is meant, which the repository xuebinqin/U-2-Net links to")
    return load_published_weights(model, load_checkpoint(path)).eval()


def restore(state):
    """The network in a checkpoint of ours, in evaluation mode; UserError if it does not say which it is."""
    made, settings, weights = model_in(state)
    if made is None:
        raise UserError("this checkpoint does not say which saliency network it is of; published ones are read by "
                        "load_published")
    return load_weights(build(made, **settings), weights).eval()

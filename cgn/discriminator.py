"""What a BigGAN is trained against: a discriminator whose blocks mirror the generator's, and the hinge losses.

Brock, Donahue and Simonyan 2019 (arXiv 1809.11096), appendix B, tables 7 to 9: no discriminator was published. Ours
also sees how far the images of each class in a batch are from each other (`spread`; after Karras et al. 2018, section
3, who take the whole batch). Without it the generator of objects64 makes one image of each class: batches are small,
and a discriminator that looks at one image at a time hardly notices.

    Discriminator(config)(images, labels)   logits (B,), trained by hinge_discriminator and hinge_generator
"""

import torch
import torch.nn.functional as F
from torch import nn

from cgn.biggan import BOTTLENECK, Bottleneck, SelfAttention, Spectral

LEAST_VARIANCE = 1e-6  # added to one before its root is taken, whose gradient at 0 is infinite
SPREAD = 3  # its weight: spectral norm bounds that of the layer which it goes through


class DisBlock(Bottleneck):
    """A residual block of the discriminator (appendix B): x and new channels beside it, plus four convolutions."""

    def __init__(self, into, out, down, eps):
        super().__init__(into, out // BOTTLENECK, out, eps)
        self.reduced = nn.AvgPool2d(2) if down else nn.Identity()
        self.conv_sc = Spectral(out - into, into, 1, 1, eps=eps) if out > into else None

    def forward(self, x):
        h = self.conv_1(F.relu(self.conv_0(F.relu(x)), inplace=True))
        h = self.conv_3(self.reduced(F.relu(self.conv_2(F.relu(h, inplace=True)), inplace=True)))
        x = self.reduced(x)
        return h + (x if self.conv_sc is None else torch.cat([x, self.conv_sc(x)], 1))


class Discriminator(nn.Module):
    """The generator's blocks in reverse, attention among them, and a projection on the class (Miyato, Koyama 2018)."""

    def __init__(self, config):
        super().__init__()
        width, eps, self.fold = config.width, config.eps, config.fold
        blocks = [DisBlock(out * width, into * width, up, eps) for up, into, out in reversed(config.layers)]
        blocks.insert(len(blocks) - config.attention, SelfAttention(config.layers[config.attention][1] * width, eps))
        first, last = config.layers[-1][2] * width, config.layers[0][1] * width
        self.conv_from_rgb = Spectral(first, 3 * self.fold**2, 3, 3, eps=eps)
        self.blocks = nn.Sequential(*blocks)
        self.of_spread = Spectral(last, 1, eps=eps)
        self.linear, self.embed = Spectral(1, last, eps=eps), Spectral(config.classes, last, eps=eps, bias=False)

    def forward(self, images, labels):
        """Logits (B,), float32, of a batch of images (B, 3, H, W) in [-1, 1], all real or all made; labels (B,)."""
        h = self.blocks[:-1](self.conv_from_rgb(F.pixel_unshuffle(images, self.fold)))
        seen = self.of_spread(SPREAD * spread(h, labels)[:, None])  # (B, last)
        h = self.blocks[-1](h + seen[:, :, None, None].to(h.dtype))
        h = F.relu(h).sum((2, 3)).float()  # (B, last)
        with torch.autocast(h.device.type, enabled=False):
            return self.linear(h).squeeze(1) + (self.embed.weight()[labels] * h).sum(1)


def spread(maps, labels):
    """(B,), float32: the deviation of maps (B, C, H, W) over the images of a batch that have the same label.

    Averaged over channels and places; all but 0 for the only image of its class.
    """
    with torch.autocast(maps.device.type, enabled=False):
        flat = maps.float().flatten(1)
        same = (labels[:, None] == labels).float()
        shares = same / same.sum(1, keepdim=True)
        variances = shares @ flat.square() - (shares @ flat).square()
        return (variances.clamp(min=0) + LEAST_VARIANCE).sqrt().mean(1)


def hinge_discriminator(real, fake):
    """The discriminator's loss, at least 0, on logits (B,) of real and made images: 0 from 1 and -1 outwards.

    Lim and Ye 2017; the paper's section 3.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake):
    """The generator's loss, the negated mean of the discriminator's logits (B,) of what it made (the same)."""
    return -fake.mean()

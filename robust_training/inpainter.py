"""Fill holes in images with ground: an inpainting network with contextual attention, its critics and its losses.

After Yu et al. 2018 (Generative Image Inpainting with Contextual Attention, CVPR) and 2019 (Free-Form Image Inpainting
with Gated Convolution, ICCV), whose pretrained network Chang, Adam and Goldenberg 2021 take as CAGAN. A coarse network
fills the hole, and a second one refines it with two branches, of dilated convolutions and of attention to patches of
the known region. A local critic sees a window around the hole, a global one the whole image.

It is made small, and differs from the published networks in this: it works at a quarter of the resolution after two
convolutions, which the branches share; dilated convolutions are residual; decoders also see a picture with the hole;
attention copies pixels beside features, without the published smoothing of neighbouring attention maps, and its cosines
are of features less their mean over the image, by which they are else dominated.

The foreground is never learned: in training it is blank in whatever a network sees, and no loss counts its pixels; what
is scored is a second hole, in the ground. Throughout, images are (B, 3, H, W) in [-1, 1], with H and W multiples of 4,
and holes, foregrounds and rectangles (B, 1, H, W), boolean.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from experiment import UserError
from robust_training.batch import extent, within
from storage import load_weights, parts_of

STRIDE = 4  # pixels of a cell, in which attention works
CANDIDATES = 32  # rectangles drawn for a hole before an image goes without one
SMALLEST = 0.4  # share of a foreground's height and width that the last of the candidates has
SCALE = 10.0  # of the cosines before the softmax (published)
DISCOUNT = 0.99  # weight of a pixel for each pixel that it is away from the border of the hole (published)
GAIN = 2.0  # of initial weights: half of a signal is lost to its gate, and some to the ELU
WIDTH = 16  # channels at half the resolution


# --- layers -----------------------------------------------------------------------------------------


class Gated(nn.Module):
    """A convolution whose outputs are passed on as far as a second one, at the same place, lets them (2019)."""

    def __init__(self, a, b, side=3, stride=1, dilation=1):
        super().__init__()
        self.conv = nn.Conv2d(a, 2 * b, side, stride, dilation * (side // 2), dilation)
        nn.init.normal_(self.conv.weight, 0, GAIN / (a * side * side) ** 0.5)

    def forward(self, x):
        value, gate = self.conv(x).chunk(2, 1)
        return F.elu(value) * gate.sigmoid()


def encoder(width):
    """From 4 channels, image and hole, to 2 * width at a quarter of the resolution."""
    return nn.Sequential(Gated(4, width, 5, 2), Gated(width, 2 * width, 3, 2))


class Dilated(nn.Module):
    """Dilated gated convolutions, each added to what it is given."""

    def __init__(self, channels, dilations):
        super().__init__()
        self.layers = nn.ModuleList(Gated(channels, channels, dilation=d) for d in dilations)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


class Decoder(nn.Module):
    """From channels at a quarter of the resolution to an image in [-1, 1].

    At half the resolution it sees a picture, so that lines go on at the pixel where they enter the hole.
    """

    def __init__(self, channels, width):
        super().__init__()
        self.small = nn.Sequential(Gated(channels, width), nn.Upsample(scale_factor=2, mode="bilinear"))
        self.large = nn.Sequential(Gated(width + 16, width), nn.Conv2d(width, 12, 3, 1, 1), nn.PixelShuffle(2),
                                   nn.Tanh())  # fmt: skip

    def forward(self, h, picture):
        """picture: (B, 4, H, W), image and hole."""
        return self.large(torch.cat([self.small(h), F.pixel_unshuffle(picture, 2)], 1)).float()


# --- contextual attention -----------------------------------------------------------------------------


def patches(x):
    """The 3 x 3 patches around every cell of features (B, C, H, W), as (B, C * 9, H * W); borders are repeated."""
    return F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3)


def usable(holes):
    """Which patches attention may copy, (B, 1, H * W), for holes in cells (B, 1, H, W).

    Those whose nine cells are known (published); where an image has none, those whose middle is known; where the hole
    covers everything, all of them.
    """
    inside = F.max_pool2d(holes.float(), 3, 1, 1) == 0
    for choice in (~holes, torch.ones_like(holes)):
        inside = torch.where(inside.any((2, 3), keepdim=True), inside, choice)
    return inside.flatten(2)


def shares(x, holes, scale=SCALE):
    """How much of each known patch is copied to each cell, (B, H * W, H * W), for features x (B, C, H, W).

    A softmax of scale times the cosines of a cell's own patch with all those that may be copied (2018, section 3.2).
    Memory grows with the fourth power of an image's side: 40 MB an image of 224 x 224 for this alone.
    """
    unit = F.normalize(patches(x - x.mean((2, 3), keepdim=True)).float(), dim=1).to(x.dtype)
    cosines = (unit.transpose(1, 2) @ unit).float()
    return (scale * cosines).masked_fill(~usable(holes), -torch.inf).softmax(2).to(x.dtype)


def attend(x, holes, share):
    """Features x (B, C, H, W) with the holes (B, 1, H, W) filled by patches copied by their shares.

    Patches that overlap are averaged (published); known cells stay as they are.
    """
    height, width = x.shape[2:]
    copied = patches(x) @ share.transpose(1, 2)  # (B, C * 9, L)
    sums = F.fold(copied, (height + 2, width + 2), 3)[:, :, 1:-1, 1:-1]
    counts = F.fold(torch.ones_like(copied[:1, :9]), (height + 2, width + 2), 3)[:, :, 1:-1, 1:-1]
    return torch.where(holes, sums / counts, x)


def copy_pixels(images, holes, share):
    """Images with their holes, given in pixels, filled by copies of whole cells, by the same shares."""
    blocks = F.pixel_unshuffle(images, STRIDE)
    copied = (blocks.flatten(2).to(share.dtype) @ share.transpose(1, 2)).view(blocks.shape)
    return torch.where(holes, F.pixel_shuffle(copied.to(images.dtype), STRIDE), images)


# --- the generator ------------------------------------------------------------------------------------


class Inpainter(nn.Module):
    """Two networks, coarse and fine, that fill holes; width: channels at half the resolution, twice as many below."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.settings = {"width": width}
        self.coarse = nn.Sequential(encoder(width), Dilated(2 * width, (1, 2, 4)))
        self.encoder = encoder(width)
        self.dilated = Dilated(2 * width, (2, 4))
        self.before, self.after = Gated(2 * width, width), Gated(width, 2 * width)  # half the channels: half the time
        self.decoders = nn.ModuleDict({"coarse": Decoder(2 * width, width), "fine": Decoder(4 * width, width)})

    def forward(self, images, holes):
        """(coarse, fine): two images, of which only the holes matter; pixels of the holes have no influence."""
        check(images, holes)
        beside = lambda picture: torch.cat([picture, holes.to(picture.dtype)], 1)
        known = blank(images, holes)
        coarse = self.decoders["coarse"](self.coarse(beside(known)), beside(known))
        first = torch.where(holes, coarse, known)
        h = self.encoder(beside(first))
        cells = F.max_pool2d(holes.float(), STRIDE) > 0
        compared = self.before(h)
        share = shares(compared, cells)
        seen = torch.cat([self.dilated(h), self.after(attend(compared, cells, share))], 1)
        return coarse, self.decoders["fine"](seen, beside(copy_pixels(first, holes, share)))

    @torch.no_grad()
    def fill(self, images, holes):
        """Images with their holes filled; pixels outside are the very same. Where the hole covers all of an image,
        it is filled by what the network makes of nothing. UserError for sides that are no multiples of 4."""
        return torch.where(holes, self(images, holes)[1], images)


def check(images, holes):
    """Raise UserError unless images and holes fit each other and the network."""
    if images.ndim != 4 or images.shape[1] != 3 or holes.shape != (len(images), 1, *images.shape[2:]):
        raise UserError(f"holes of the shape {tuple(holes.shape)} do not fit images {tuple(images.shape)}")
    if holes.dtype != torch.bool:
        raise UserError(f"holes are true or false for every pixel, not {holes.dtype}")
    height, width = images.shape[2:]
    if height % STRIDE or width % STRIDE or min(height, width) < 4 * STRIDE:
        raise UserError(f"images of {height} x {width} pixels cannot be filled: both sides must be multiples of "
                        f"{STRIDE}, and at least {4 * STRIDE}")


def blank(images, where):
    """Images with 0 in these places (B, 1, H, W), whatever was there."""
    return torch.where(where, 0.0, images)


def restore(checkpoint):
    """The Inpainter in a checkpoint of inpaint.py, ready for use; UserError for a checkpoint of something else."""
    settings, weights = parts_of(checkpoint, "inpainter", "robust_training.inpaint")
    return load_weights(Inpainter(**settings), weights).eval()


# --- holes for training -------------------------------------------------------------------------------


def draw_holes(foregrounds, known, stream):
    """A rectangle in the ground of each image, (B, 1, H, W); empty where none fits or the foreground is not known.

    foregrounds: the rectangles around it; known (B,), boolean. Of CANDIDATES rectangles, as large as the foregrounds of
    images of the batch and getting smaller, anywhere in the image, the first that does not touch the image's own
    foreground is taken.
    """
    n, (height, width), device = len(foregrounds), foregrounds.shape[2:], foregrounds.device
    top, bottom, left, right = (bound.cpu() for bound in extent(foregrounds))
    like = torch.randint(n, (n, CANDIDATES), generator=stream)  # whose size it has
    shrink = torch.linspace(1, SMALLEST, CANDIDATES)
    high = ((bottom - top)[like] * shrink).round().long().clamp(2)  # (B, candidates)
    wide = ((right - left)[like] * shrink).round().long().clamp(2)
    y = (torch.rand(high.shape, generator=stream) * (height - high + 1)).long()
    x = (torch.rand(wide.shape, generator=stream) * (width - wide + 1)).long()
    apart = ((y >= bottom[:, None]) | (y + high <= top[:, None]) | (x >= right[:, None]) | (x + wide <= left[:, None]))
    apart &= known.cpu()[:, None] & (bottom - top > 0)[like]
    first = apart.int().argmax(1, keepdim=True)
    y, x, high, wide = (value.gather(1, first)[:, 0] for value in (y, x, high, wide))
    holes = within(y, y + high, x, x + wide, height, width) & apart.any(1)[:, None, None, None]
    return holes.to(device)


# --- critics ------------------------------------------------------------------------------------------


def critic(channels, width):
    """A map of logits for images (B, channels, H, W), one for each 8 x 8 pixels (2019, section 3.4)."""
    sizes, layers = (channels, width, 2 * width, 4 * width), []
    for a, b in itertools.pairwise(sizes):
        layers += [spectral_norm(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))  # free, or the hinge would never be reached


class Critics(nn.Module):
    """A local critic of a window of half the image's side around the hole, and a global one of the whole image.

    Both see image, hole and foreground; the foreground itself is blank.
    """

    def __init__(self, width=16):
        super().__init__()
        self.near, self.whole = critic(5, width), critic(5, width)

    def forward(self, images, holes, foregrounds):
        """{"local": logits, "global": logits}, maps of them."""
        seen = torch.cat([blank(images, foregrounds), holes.to(images.dtype), foregrounds.to(images.dtype)], 1)
        return {"local": self.near(window(seen, holes)), "global": self.whole(seen)}


def window(x, holes):
    """The part of x (B, C, H, W), of half its height and width, that has the middle of the hole nearest its own."""
    top, bottom, left, right = extent(holes)
    places = []
    for first, last, side in ((top, bottom, x.shape[2]), (left, right, x.shape[3])):
        start = ((first + last) // 2 - side // 4).clamp(0, side - side // 2)
        places.append(start[:, None] + torch.arange(side // 2, device=x.device))
    rows, columns = places
    number = torch.arange(len(x), device=x.device)[:, None, None]
    return x[number, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def hinge(real, fake=None):
    """The critic's loss on logits of real and filled images, or, with those of filled ones alone, the generator's.

    Logits of any shape; a scalar, float32 (Miyato et al. 2018, as in Yu et al. 2019, equation 3).
    """
    if fake is None:
        return -real.float().mean()
    return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()


# --- losses -------------------------------------------------------------------------------------------


def weights_of(holes, discount=DISCOUNT):
    """Weights (B, 1, H, W) of rectangular holes' pixels: 1 at the border, less towards the middle, 0 outside."""
    top, bottom, left, right = (bound[:, None] for bound in extent(holes))
    rows, columns = (torch.arange(size, device=holes.device) for size in holes.shape[2:])
    vertical = torch.minimum(rows - top, bottom - 1 - rows)[:, :, None]
    horizontal = torch.minimum(columns - left, right - 1 - columns)[:, None]
    return (discount ** torch.minimum(vertical, horizontal).clamp(0))[:, None] * holes


def distance(made, images, weights):
    """Weighted mean of absolute differences, over all images of a batch; 0 where all weights are."""
    return ((made - images).abs() * weights).sum() / (made.shape[1] * weights.sum()).clamp(1e-6)


def reconstruction(made, images, holes, foregrounds):
    """{"hole", "known"}: L1 in the holes, and in the rest of the ground, where it teaches what a feature looks like."""
    return {"hole": distance(made, images, weights_of(holes)),
            "known": distance(made, images, ~(holes | foregrounds) * 1.0)}


def critics_loss(critics, images, filled, holes, foregrounds):
    """The loss of both critics on real and filled images."""
    real, fake = (critics(x, holes, foregrounds) for x in (images, filled.detach()))
    return {name: hinge(real[name], fake[name]) for name in real}


def generator_losses(model, critics, images, holes, foregrounds):
    """(terms, filled): what the generator is trained by, unweighted, and images with the scored holes filled.

    critics None leaves out the adversarial terms. Pixels of the foreground have no influence on any of it.
    """
    coarse, fine = model(images, holes | foregrounds)
    terms = {f"{name} {where}": value for name, made in (("coarse", coarse), ("fine", fine))
             for where, value in reconstruction(made, images, holes, foregrounds).items()}  # fmt: skip
    filled = torch.where(holes, fine, images)
    if critics is not None:
        terms |= {name: hinge(logits) for name, logits in critics(filled, holes, foregrounds).items()}
    return terms, filled

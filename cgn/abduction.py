"""The shape in a given image: abduction, the first of the three steps to a counterfactual (Pearl 2009).

No pixel is labelled. All that is used is the class of each image and that objects hardly touch its border, so that
whatever occurs at the border is background and what hardly ever does is not. `Evidence` is a classifier that tells
windows of the border from windows of the centre, given the class. Were the background alike everywhere, its odds r
would be

    p(window | centre) / p(window | border) = (1 - share) + share p(window | object) / p(window | background)

so r lies at a floor, 1 - share, where a window is pure background, and far above where it touches the object: learning
from positive and unlabelled examples (Elkan and Noto 2008). A pixel is object if every window on it touches the object.
With textures a window has several pixels, and thin gaps in a shape close; `Segmenter` then learns, from those pixels of
which the windows are sure, to find the others in what is around them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from cgn.mechanisms import CLASSES, SIDE

BAND = 4  # outermost pixels that count as background: digits cover 1 % of them, and 18 % of an image
MIDDLE = 7  # pixels further in than this may be object
PURE, TOUCHED = 1.5, 6.0  # times the floor: windows below are background for sure, above are not pure
LOW, FLOOR_BATCHES = 0.1, 16  # quantile that is taken for the floor, and batches that it is taken from
FIELD = {"colored": 1, "double_colored": 1, "wildlife": 3}  # side of a window: a colour is seen in one pixel
STEPS = {"colored": (300, 0), "double_colored": (300, 0), "wildlife": (1500, 700)}  # of Evidence, of Segmenter
BATCH = 64
PEAK = {"evidence": 4e-3, "segmenter": 6e-3}  # Adam's highest rate in one cycle


def _own(maps, labels):
    """The map (B, H, W) of each image's class, of maps (B, classes, H, W)."""
    return maps[torch.arange(len(maps), device=maps.device), labels]


class Evidence(nn.Module):
    """Logits (B, 33 - field, 33 - field) that a window of an image lies in the centre, given the class."""

    def __init__(self, field, width=48):
        super().__init__()
        self.field = field
        self.body = nn.Sequential(nn.Conv2d(3, width, field), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 1),
                                  nn.LeakyReLU(0.2), nn.Conv2d(width, CLASSES, 1))  # fmt: skip

    def forward(self, x, labels):
        return _own(self.body(x), labels).float()

    def loss(self, x, labels):
        """Cross-entropy in nats of border against centre windows: its mean over either kind, summed.

        x (B, 3, 32, 32) in [-1, 1], labels (B,). Windows in between are of neither kind.
        """
        logits, distance = self(x, labels), edge_distance(self.field).to(x.device)
        border = distance + self.field // 2 < BAND
        return F.softplus(logits[:, border]).mean() + F.softplus(-logits[:, distance >= MIDDLE]).mean()


class Segmenter(nn.Module):
    """Logits (B, 32, 32) of a pixel being object, given the class: two resolutions, 19 pixels seen around each."""

    def __init__(self, width=24):
        super().__init__()
        block = lambda a, b, stride=1: nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b),
                                                     nn.LeakyReLU(0.2))  # fmt: skip
        self.fine, self.down, self.coarse = block(3, width), block(width, 2 * width, 2), block(2 * width, 2 * width)
        self.label = nn.Embedding(CLASSES, 2 * width)
        self.up = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2))
        self.both, self.head = block(2 * width, width), nn.Conv2d(width, CLASSES, 1)

    def forward(self, x, labels):
        fine = self.fine(x)
        coarse = self.coarse(self.down(fine) + self.label(labels)[:, :, None, None])
        return _own(self.head(self.both(torch.cat([fine, self.up(coarse)], 1))), labels).float()


def edge_distance(field):
    """Distance of each window's centre from the nearest edge, (33 - field, 33 - field); 0 is the outermost pixel."""
    half = field // 2
    along = torch.arange(half, SIDE - half)
    along = torch.minimum(along, SIDE - 1 - along)
    return torch.minimum(along[:, None], along)


class Abduction(nn.Module):
    """Masks of images whose class is known; call `learn` first.

    field: side of the windows of Evidence, 1 or 3; with 1 there is no Segmenter, as nothing closes.
    """

    def __init__(self, field):
        super().__init__()
        self.evidence = Evidence(field)
        self.segmenter = Segmenter() if field > 1 else None
        self.register_buffer("floor", torch.ones(CLASSES))

    def height(self, x, labels):
        """Odds of each window over the floor of its class: 1 where it is pure background."""
        return self.evidence(x, labels).exp() / self.floor[labels][:, None, None]

    def sure(self, x, labels):
        """(object for sure, background for sure), each (B, 32, 32), boolean."""
        odds, field = self.height(x, labels), self.evidence.field
        whole = lambda windows: F.pad(windows.float(), (field - 1,) * 4).unsqueeze(1)
        # the windows on a pixel: those beyond the edge touch nothing, and are left out of what is pure
        object_ = -F.max_pool2d(-whole(odds > TOUCHED), field, 1).squeeze(1)
        pure = F.max_pool2d(whole(odds < PURE), field, 1).squeeze(1)
        return object_ > 0.5, pure > 0.5

    @torch.no_grad()
    def masks(self, x, labels):
        """(B, 1, 32, 32), boolean, of images (B, 3, 32, 32) in [-1, 1]."""
        if self.segmenter is not None:
            return (self.segmenter(x, labels) > 0).unsqueeze(1)
        return (self.height(x, labels) > (PURE * TOUCHED) ** 0.5).unsqueeze(1)

    @torch.no_grad()
    def opacities(self, x, labels, flat):
        """(B, 1, 32, 32) in [0, 1]: the mask; where object and background are flat colours, how much of each is mixed.

        Then each pixel is placed on the line from the mean colour of the border to that of the more distant half of
        the object.
        """
        masks = self.masks(x, labels).float()
        if not flat:
            return masks
        border = (edge_distance(1) < BAND).to(x.device)
        ground = x[:, :, border].mean(2)[:, :, None, None]
        distance = (x - ground).norm(dim=1, keepdim=True) * masks
        middle = distance.sum((1, 2, 3), keepdim=True) / masks.sum((1, 2, 3), keepdim=True).clamp(1)
        far = (distance >= middle).float() * masks
        line = (x * far).sum((2, 3), keepdim=True) / far.sum((2, 3), keepdim=True).clamp(1) - ground
        place = ((x - ground) * line).sum(1, keepdim=True) / line.square().sum(1, keepdim=True).clamp(1e-6)
        return place.clamp(0, 1) * F.max_pool2d(masks, 3, 1, 1)  # an edge pixel may be too dark for the mask


@torch.no_grad()
def floors(evidence, batches, context):
    """The odds (classes,) of pure background: a low quantile of those in the centre. Thin digits have more."""
    odds, labels = [], torch.cat([scenes.labels for scenes in batches])
    middle = edge_distance(evidence.field).to(labels.device) >= MIDDLE
    for scenes in batches:
        with context():
            odds.append(evidence(scenes.images, scenes.labels)[:, middle].exp())
    odds = torch.cat(odds)
    return torch.stack([odds[labels == k].flatten().quantile(LOW) for k in range(CLASSES)])


def learn(abduction, batch, steps, context, tick=lambda: None):
    """Train an Abduction: Evidence, then its floor, then the Segmenter.

    batch: a function from a purpose to Scenes of training images; steps: of each; context: a context manager's maker
    under which networks run (autocast); tick: called after every step.
    """
    def fit(net, loss, n, peak, purpose):
        optimizer = torch.optim.Adam(net.parameters(), peak, fused=True)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=n, pct_start=0.1)
        for step in range(n):
            scenes = batch(f"{purpose}/{step}")
            with context():
                value = loss(scenes.images.contiguous(memory_format=torch.channels_last), scenes.labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            cycle.step()
            tick()

    abduction.to(memory_format=torch.channels_last).train()
    fit(abduction.evidence, abduction.evidence.loss, steps[0], PEAK["evidence"], "evidence")
    abduction.floor.copy_(floors(abduction.evidence, [batch(f"floor/{k}") for k in range(FLOOR_BATCHES)], context))

    def surely(x, labels):
        with torch.no_grad():
            object_, pure = abduction.sure(x, labels)
        known = object_ ^ pure
        return F.binary_cross_entropy_with_logits(abduction.segmenter(x, labels)[known], object_[known].float())

    if abduction.segmenter is not None:
        fit(abduction.segmenter, surely, steps[1], PEAK["segmenter"], "segmenter")
    return abduction.eval()

"""The toy of Diffeomorphic Counterfactuals: data on a helix, attacked in the space of the data and of a flow.

    python latent_counterfactuals.py --dataset helix

Points (sin t, cos t, t) with t uniform in (-4, 4), class t > 0. A classifier and a RealNVP are trained, then points of
one class are moved until the classifier sees the other, in the data space or in the flow's latent space. Those moved
in the latent space should stay near the helix. After toy_example.ipynb of the original; all settings are its own
unless the line says otherwise. An attack that fails is reported and measured where it ended.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import experiment
import figures
import storage
import tables

RADIUS, HALF = 1.0, 4.0  # of the helix; t goes from -HALF to HALF
COUPLINGS, WIDTH = 12, 256  # of the flow, each an MLP with two hidden layers
STEPS, BATCH, RATE = 5000, 500, 1e-3  # of the flow's training; original: 1e-4, without a schedule
CLASSIFIER_STEPS, CLASSIFIER_RATE = 1500, 1e-3  # original: 3000 at 1e-4
ATTACK_RATE, ATTACK_STEPS, SURE = 3e-2, 1000, 0.9  # Adam, until the classifier says 0.9 (or 0.1)


def points(t):
    """The helix's points (N, 3) at t (N,)."""
    return torch.stack([RADIUS * torch.sin(t), RADIUS * torch.cos(t), t], 1)


def distance(x, grid=20_001):
    """Distance (N,) of points x (N, 3) to the helix, to the nearest of `grid` points on it (4e-4 apart)."""
    x, t = x.double(), torch.linspace(-HALF, HALF, grid, dtype=torch.double)
    near = t[torch.cdist(x, points(t)).argmin(1)]
    return (x - points(near)).norm(dim=1)


class Coupling(nn.Module):
    """Affine coupling of three coordinates: those with mask 1 stay and say how the others are scaled and shifted."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)
        self.net = nn.Sequential(nn.Linear(3, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
                                 nn.Linear(WIDTH, 6))  # fmt: skip
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def _maps(self, x):
        log_scale, shift = self.net(x * self.mask).chunk(2, 1)
        return 3 * torch.tanh(log_scale / 3) * (1 - self.mask), shift * (1 - self.mask)

    def forward(self, x):
        log_scale, shift = self._maps(x)
        return x * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, z):
        log_scale, shift = self._maps(z)
        return (z - shift) * torch.exp(-log_scale)


class PointFlow(nn.Module):
    """RealNVP of points in three dimensions: couplings with all single coordinates and all pairs in turn."""

    def __init__(self):
        super().__init__()
        masks = torch.eye(3).repeat(2, 1)
        masks[3:] = 1 - masks[3:]
        self.couplings = nn.ModuleList(Coupling(masks[k % 6].clone()) for k in range(COUPLINGS))

    def encode(self, x):
        return self.log_density(x)[0]

    def log_density(self, x):
        """(z, log p(x) (N,)) of points x (N, 3)."""
        total = x.new_zeros(len(x))
        for coupling in self.couplings:
            x, change = coupling(x)
            total = total + change
        return x, total - 0.5 * (x.square() + math.log(2 * math.pi)).sum(1)

    def decode(self, z):
        for coupling in reversed(self.couplings):
            z = coupling.inverse(z)
        return z


def learn(model, loss, steps, rate, stream, label):
    """Adam with a cosine rate on fresh points; raises UserError if the loss is not finite."""
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in tqdm(range(steps), desc=label, disable=None):
        t = (2 * torch.rand(BATCH, generator=stream) - 1) * HALF
        optimizer.zero_grad()
        value = loss(t)
        if not value.isfinite():
            raise experiment.UserError(f"the loss of the {label} became {value.item()} in step {step}")
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def train(seed):
    """(flow, classifier) of the helix."""
    with experiment.seeded(seed, "helix"):
        flow = PointFlow()
        classifier = nn.Sequential(nn.Linear(3, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1), nn.Flatten(0))
    learn(classifier, lambda t: F.binary_cross_entropy_with_logits(classifier(points(t)), (t > 0).float()),
          CLASSIFIER_STEPS, CLASSIFIER_RATE, experiment.generator(seed, "helix/classifier"), "classifier")  # fmt: skip
    learn(flow, lambda t: -flow.log_density(points(t))[1].mean(), STEPS, RATE,
          experiment.generator(seed, "helix/flow"), "flow")  # fmt: skip
    return flow, classifier


def attack(start, decode, classifier, wanted):
    """(points (N, 3), reached (N,)) of Adam from start (N, 3) until the classifier says what is wanted (N,), 0 or 1.

    The loss is the squared error to 0.9 or 0.1; a point that has come that far stays where it is.
    """
    z = start.clone().requires_grad_()
    goal = torch.where(wanted == 1, SURE, 1 - SURE)
    optimizer = torch.optim.Adam([z], ATTACK_RATE, fused=True)
    final = start.clone()
    there = torch.zeros(len(start), dtype=torch.bool)
    for step in range(ATTACK_STEPS + 1):
        said = torch.sigmoid(classifier(decode(z)))
        final = torch.where(there.unsqueeze(1), final, z.detach())
        there = there | ((said - goal).detach() * (2 * wanted - 1) >= 0)
        if step == ATTACK_STEPS or there.all():
            return decode(final), there
        z.grad = torch.autograd.grad((said - goal).square().sum(), z)[0].contiguous()  # the fused Adam ignores strides
        optimizer.step()


def measure(count, seed, options, results):
    """Train, attack `count` points in both spaces, record the distances; returns a Markdown table and draws boxes.

    On the CPU: the networks are so small that a GPU would only wait.
    """
    records = storage.Records(results, "helix", options, torch.device("cpu"))
    flow, classifier = train(seed)
    t = (2 * torch.rand(count, generator=experiment.generator(seed, "helix/attacked")) - 1) * HALF
    x = points(t)
    wanted = (classifier(x) < 0).float()  # the class that is not seen
    gap = float((flow.decode(flow.encode(x)) - x).abs().max())
    rows, panels = [], []
    for arm, start, decode, colour in (("pixel", x, lambda z: z, "orange"),
                                       ("latent", flow.encode(x), flow.decode, "blue")):  # fmt: skip
        moved, there = attack(start, decode, classifier, wanted)
        far = distance(moved)
        low, middle, high = far.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
        values = {"distance median": middle, "distance first quartile": low, "distance third quartile": high,
                  "distance largest": float(far.max()), "validity": float(there.float().mean())}  # fmt: skip
        for metric, value in values.items():
            records.add(arm, "helix", metric, value, count, seed)
        panels.append(({"pixel": "data space", "latent": "latent space"}[arm], colour, far.tolist()))
        rows.append([panels[-1][0], *(f"{value:.3f}" for value in values.values())])
    records.add("latent", "helix", "round_trip", gap, count, seed)
    records.save()
    figures.boxes(Path(results) / "helix.png", panels, f"{count} attacks: distance to the helix", "distance")
    return tables.markdown([f"{count} attacks in the", "median", "25 %", "75 %", "largest", "reached"], rows)

"""Gradient ascent towards a goal, in any space, for many images at once, each of which stops by itself.

In the latent space of a generative model it gives diffeomorphic counterfactuals (Dombrowski et al. 2022, section 3),
in pixel space the adversarial attack they are compared with. Adam, as in the original; its updates are made for each
number on its own, so that an image's path does not depend on which others are in the batch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

REACHED, FAILED, ALREADY = "reached", "not reached", "already there"

# --- goals ---------------------------------------------------------------------------------------
# goal(images)         (loss (N,), score (N,)): what is minimised, and what must come up to goal.threshold (N,)
# goal[rows]           the goal of these of its N images
# goal.meets(labels)   (N, K) boolean: whether labels (N, K) are what the goal of image n asks for
# goal.value(score)    what a reader is told of a score: the confidence, or the count


class ClassGoal:
    """That the classifier sees class targets[i] in image i with a probability of at least stop_at."""

    def __init__(self, classifier, targets, stop_at):
        self.classifier, self.targets, self.stop_at = classifier, targets, stop_at
        self.threshold = torch.full((len(targets),), float(stop_at), device=targets.device)

    def __getitem__(self, rows):
        return ClassGoal(self.classifier, self.targets[rows], self.stop_at)

    def __call__(self, images):
        loss = F.cross_entropy(self.classifier(images), self.targets, reduction="none")
        return loss, torch.exp(-loss)  # the probability of the target

    def meets(self, labels):
        return labels == self.targets.unsqueeze(1)

    def value(self, score):
        return score


class CountGoal:
    """That the counter counts at least bounds[i] in image i where directions[i] is 1, at most where it is -1."""

    def __init__(self, counter, directions, bounds):
        self.counter, self.directions, self.bounds = counter, directions, bounds
        self.threshold = bounds * directions

    def __getitem__(self, rows):
        return CountGoal(self.counter, self.directions[rows], self.bounds[rows])

    def __call__(self, images):
        score = self.counter.count(images) * self.directions
        return -score, score

    def meets(self, labels):
        return labels * self.directions.unsqueeze(1) >= self.threshold.unsqueeze(1)

    def value(self, score):
        return score * self.directions


# --- what comes of it -----------------------------------------------------------------------------


class Outcome(NamedTuple):
    """Of each of B images the best attempt: the first that reached the goal, else the one that came nearest.

    status: list of "reached", "not reached", "already there" (the image met the goal before anything was done).
    steps (B,): steps of Adam to that attempt. value (B,): the classifier's confidence in the target, or the count.
    images (B, C, H, W) in [0, 1]; points (B, ...): their place in the space that was searched.
    """

    status: list
    steps: torch.Tensor
    value: torch.Tensor
    images: torch.Tensor
    points: torch.Tensor

    @property
    def reached(self):
        """(B,) boolean: the goal is met, by the search or by the image as it was."""
        return torch.tensor([status != FAILED for status in self.status], device=self.steps.device)


def joined(outcomes):
    """One Outcome of several, in order."""
    status = [word for outcome in outcomes for word in outcome.status]
    return Outcome(status, *(torch.cat(part) for part in list(zip(*outcomes, strict=True))[1:]))


class _Active:
    """The images still under way: their rows in the batch, their points, and Adam's state for these."""

    def __init__(self, start, lr):
        self.rows = torch.arange(len(start), device=start.device)
        self.points = start.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        self.optimizer = torch.optim.Adam([self.points], lr, fused=True)

    def keep(self, stay):
        """Go on with the images where stay (B,) is true."""
        old, self.rows = self.points, self.rows[stay]
        self.points = old.detach()[stay].requires_grad_()
        self.points.grad = None if old.grad is None else old.grad[stay]
        state = self.optimizer.state.pop(old, {})
        self.optimizer.state[self.points] = {
            name: value[stay] if name.startswith("exp_avg") else value for name, value in state.items()}
        self.optimizer.param_groups[0]["params"] = [self.points]


def same(points):
    """The decoder of pixel space: a point is an image."""
    return points


def ascend(start, decode, goal, steps, lr, proximity=0.0, watch=None):
    """Outcome of Adam from the points start (B, ...) until decode(points) meets the goal, or for `steps` steps.

    proximity: weight of the squared distance to the start, added to the loss. The point after the last step is tried
    as well. watch(step, rows, images): called at every step. In pixel space (decode is `same`) points stay in [0, 1].
    """
    count, device, aim = len(start), start.device, goal
    active, start = _Active(start, lr), start.detach()
    lowest = torch.full((count,), -torch.inf, device=device, dtype=start.dtype)
    best = {"score": lowest, "points": start.clone(), "images": None}
    taken = torch.zeros(count, dtype=torch.long, device=device)
    for step in range(steps + 1):
        images = decode(active.points)
        loss, score = aim(images)
        _remember(best, taken, step, active, images, score)
        if watch:
            watch(step, active.rows, images.detach())
        going = score < aim.threshold
        if step == steps or not going.any():
            break
        if proximity:
            loss = loss + proximity * (active.points - start[active.rows]).square().flatten(1).sum(1)
        # contiguous: the fused Adam reads gradients in the order of memory, whatever their strides say
        active.points.grad = torch.autograd.grad(loss.sum(), active.points)[0].contiguous()
        if not going.all():
            active.keep(going)
            aim = goal[active.rows]
        active.optimizer.step()
        if decode is same:
            active.points.data.clamp_(0, 1)  # the projection; the next gradient is taken at the projected point
    reached = best["score"] >= goal.threshold
    status = [REACHED if yes else FAILED for yes in reached.tolist()]
    return Outcome(status, taken, goal.value(best["score"]), best["images"], best["points"])


@torch.no_grad()
def _remember(best, taken, step, active, images, score):
    """Note the attempts that are better than all before."""
    if best["images"] is None:
        best["images"] = images.detach().clone()
    better = (score > best["score"][active.rows]) & score.isfinite()
    rows = active.rows[better]
    best["score"][rows], best["images"][rows] = score[better], images[better].detach()
    best["points"][rows], taken[rows] = active.points.detach()[better], step


def from_images(images, model, goal, steps, lr, proximity=0.0, batch=125, watch=None):
    """(Outcome, reconstructions, latents): the search from images (B, C, H, W) in [0, 1], in batches.

    model: a generative model, in whose latent space it goes, or None for pixel space. An image that meets the goal
    already is left as it is, with status "already there".
    """
    encode, decode = (same, same) if model is None else (model.encode, model.decode)
    found = []
    for rows in torch.arange(len(images), device=images.device).split(batch):
        x, aim = images[rows], goal[rows]
        with torch.no_grad():
            points = encode(x)
            made, score = decode(points), aim(x)[1]
        outcome = ascend(points, decode, aim, steps, lr, proximity, watch)
        found.append((_left_alone(outcome, score >= aim.threshold, x, points, aim.value(score)), made, points))
    outcomes, made, points = zip(*found, strict=True)
    return joined(outcomes), torch.cat(made), torch.cat(points)


def _left_alone(outcome, already, images, points, value):
    """The outcome, but with the images that met the goal beforehand as they were."""
    status = [ALREADY if yes else status for yes, status in zip(already.tolist(), outcome.status, strict=True)]
    pick = lambda old, new: torch.where(already.view(-1, *[1] * (old.dim() - 1)), new, old)
    return Outcome(status, pick(outcome.steps, torch.zeros_like(outcome.steps)), pick(outcome.value, value),
                   pick(outcome.images, images), pick(outcome.points, points))

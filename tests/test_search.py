"""The search: stops each image by itself, tries the last point, keeps the best, is the same in any batch."""

import math

import pytest
import torch
from torch import nn

import experiment
import flows
import search

MEAN = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))  # class 1: the pixels' sum, class 0: nothing
with torch.no_grad():
    MEAN[1].weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))


class Adder(nn.Module):
    """A counter that adds up the pixels."""

    def count(self, x):
        return x.flatten(1).sum(1)


class Model(nn.Module):
    """A generative model with a latent of twice the pixels' logit."""

    def encode(self, x):
        return 2 * torch.logit(x.clamp(1e-3, 1 - 1e-3)).flatten(1)

    def decode(self, z):
        return torch.sigmoid(z / 2).view(-1, 1, 2, 2)


def goal_of(n, stop_at=0.9):
    return search.ClassGoal(MEAN, torch.ones(n, dtype=torch.long), stop_at)


def flat(*means):
    return torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def test_each_image_stops_by_itself_at_the_confidence():
    outcome = search.ascend(flat(0.1, 0.5), search.same, goal_of(2), steps=200, lr=0.01)
    assert outcome.status == ["reached", "reached"]
    assert outcome.steps[0] > outcome.steps[1] > 0
    sure = torch.sigmoid(outcome.images.flatten(1).sum(1))  # softmax of (0, sum)
    assert torch.allclose(sure, outcome.value)
    assert ((sure >= 0.9) & (sure < 0.91)).all()


def test_adam_moves_a_pixel_by_the_rate_a_step():
    """At a constant gradient Adam's steps have the length of the rate: the number of steps is known."""
    goal = search.CountGoal(Adder(), torch.ones(1), torch.tensor([1.5]))
    outcome = search.ascend(flat(0.2), search.same, goal, steps=200, lr=0.01)
    assert int(outcome.steps[0]) == math.ceil((1.5 / 4 - 0.2) / 0.01)


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_the_last_point_is_tried_too(limit):
    """A goal that needs exactly `limit` steps is reached with that many, and not with one less."""
    path = []
    search.ascend(flat(0.2), search.same, goal_of(1, 0.999), limit, 0.01,
                  watch=lambda step, rows, x: path.append(torch.sigmoid(x.sum()).item()))  # fmt: skip
    assert len(path) == limit + 1
    enough = search.ascend(flat(0.2), search.same, goal_of(1, path[limit] - 1e-6), limit, 0.01)
    assert enough.status == ["reached"]
    assert int(enough.steps[0]) == limit
    if limit:
        short = search.ascend(flat(0.2), search.same, goal_of(1, path[limit] - 1e-6), limit - 1, 0.01)
        assert short.status == ["not reached"]


def test_an_unreachable_goal_gives_the_best_attempt():
    counter = search.CountGoal(Adder(), torch.tensor([1.0]), torch.tensor([5.0]))  # four pixels of at most 1
    outcome = search.ascend(flat(0.5), search.same, counter, 100, 0.1)
    assert outcome.status == ["not reached"]
    assert outcome.value.item() == pytest.approx(4)
    assert outcome.images.max() <= 1
    assert not outcome.reached.any()


def test_counts_go_up_and_down():
    goal = search.CountGoal(Adder(), torch.tensor([1.0, -1.0]), torch.tensor([3.0, 1.0]))
    outcome = search.ascend(flat(0.5, 0.5), search.same, goal, 100, 0.02)
    assert outcome.reached.all()
    assert outcome.value[0] >= 3
    assert outcome.value[1] <= 1
    assert goal.meets(torch.tensor([[2.0, 3.0], [1.0, 2.0]])).tolist() == [[False, True], [True, False]]


def test_gradients_of_any_memory_layout_are_followed():
    """A sum's gradient is one number, expanded; a transposed product's runs across: both must move every pixel."""
    slopes = torch.arange(1, 5).view(2, 2)
    across = lambda x: (x.transpose(2, 3).contiguous() * slopes).sum((1, 2, 3))
    for counted in (lambda x: x.sum((1, 2, 3)), across):
        counter = Adder()
        counter.count = counted
        goal = search.CountGoal(counter, torch.ones(2), torch.full((2,), 100.0))
        outcome = search.ascend(flat(0.5, 0.4), search.same, goal, 3, 0.01)
        moved = outcome.images - flat(0.5, 0.4)
        assert torch.allclose(moved, torch.full_like(moved, 0.03), atol=1e-4)


def test_what_is_there_already_is_left_alone():
    x = flat(0.9, 0.1)
    outcome, made, points = search.from_images(x, Model(), goal_of(2), 300, 0.05)
    assert outcome.status == ["already there", "reached"]
    assert outcome.reached.all()
    assert torch.equal(outcome.images[0], x[0])
    assert int(outcome.steps[0]) == 0
    assert outcome.value[0] == pytest.approx(torch.sigmoid(torch.tensor(3.6)).item())
    assert torch.allclose(made, x, atol=1e-5)
    assert points.shape == (2, 4)


def test_the_batch_does_not_matter():
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(23, 1, 2, 2, generator=stream) * 0.4
    whole, _, _ = search.from_images(x, Model(), goal_of(23), 300, 0.05, batch=23)
    for size in (1, 7):
        parts, _, _ = search.from_images(x, Model(), goal_of(23), 300, 0.05, batch=size)
        assert parts.status == whole.status
        assert torch.equal(parts.steps, whole.steps)
        assert torch.allclose(parts.images, whole.images, atol=1e-6)


def test_it_is_plain_adam():
    """Against torch's Adam on one image."""
    z = Model().encode(flat(0.2)).requires_grad_()
    optimizer = torch.optim.Adam([z], 0.05)
    steps = 0
    while steps <= 300:
        loss = -torch.log_softmax(MEAN(Model().decode(z)), 1)[0, 1]
        if torch.exp(-loss) >= 0.9:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    outcome, _, _ = search.from_images(flat(0.2), Model(), goal_of(1), 300, 0.05)
    assert int(outcome.steps[0]) == steps
    assert torch.allclose(outcome.points[0], z.detach()[0], atol=1e-6)


def test_proximity_keeps_the_latent_near():
    plain, _, start = search.from_images(flat(0.2), Model(), goal_of(1, 0.99), 100, 0.05)
    held, _, _ = search.from_images(flat(0.2), Model(), goal_of(1, 0.99), 100, 0.05, proximity=0.5)
    assert (held.points - start).norm() < 0.7 * (plain.points - start).norm()


def test_a_confidence_that_is_not_a_number_is_never_the_best():
    class Broken(nn.Module):
        def forward(self, x):
            return MEAN(x) * torch.where(x.mean() > 0.3, torch.nan, 1.0)

    goal = search.ClassGoal(Broken(), torch.ones(1, dtype=torch.long), 0.99)
    outcome = search.ascend(flat(0.2), search.same, goal, 50, 0.02)
    assert outcome.status == ["not reached"]
    assert outcome.value.isfinite().all()
    assert outcome.images.isfinite().all()


def test_in_a_flow_the_batch_does_not_matter_either():
    """In float64: in float32 Adam's first steps, signs of gradients, are decided by rounding where those are tiny."""
    with experiment.seeded(0, "flow"):
        flow = flows.RealNVP((1, 4, 4), levels=1, couplings=2, hidden=8, blocks=1).double()
        for parameter in flow.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        judge = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    x = torch.rand(9, 1, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    goal = search.ClassGoal(judge, torch.arange(9) % 3, 0.9)
    whole, single = (search.from_images(x, flow.eval(), goal, 40, 0.05, batch=size)[0] for size in (9, 1))
    assert whole.status == single.status
    assert torch.equal(whole.steps, single.steps)
    assert torch.allclose(whole.images, single.images, atol=1e-9)

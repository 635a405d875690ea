"""Silhouettes: distances against closed forms and dense sampling, and what makes a drawing one of its kind."""

import math

import numpy
import pytest
import torch
from matplotlib.path import Path as Outline
from scipy import ndimage

import experiment
from cgn import silhouettes

KINDS = list(silhouettes.KINDS)


def stream(purpose="tests"):
    return experiment.generator(0, purpose)


@pytest.fixture(scope="module")
def drawn():
    return {kind: silhouettes.draw(kind, 60, stream(kind)) for kind in KINDS}


def places(n, count=300):
    x, y = 3 * torch.rand(2, n, count, 1, generator=stream("places")) - 1.5
    return x, y


def test_distance_from_a_square():
    """Outside a corner that from the corner, beside an edge that from the edge, inside the negative of the latter."""
    square = torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]])
    x, y = torch.tensor([0.0, 0.9, 4.0, 0.0, 4.0, -4.0]), torch.tensor([0.0, 0.2, 5.0, -3.0, 0.5, -5.0])
    found = silhouettes.polygon(square, x[None, None], y[None, None])[0, 0]
    torch.testing.assert_close(found, torch.tensor([-1.0, -0.1, 5.0, 2.0, 3.0, 5.0]))


def test_distance_from_any_polygon():
    """Sign as matplotlib tells inside from outside, size as that of the nearest of many points on the outline."""
    angles = torch.arange(9) * 2 * torch.pi / 9
    radii = 0.2 + torch.rand(4, 9, generator=stream())
    corners = torch.stack([radii * angles.cos(), radii * angles.sin()], 2)
    x, y = places(4)
    found = silhouettes.polygon(corners, x, y).squeeze(2)
    shares = torch.linspace(0, 1, 2001)[:, None, None]
    for polygon, a, b, distances in zip(corners, x, y, found, strict=True):
        points = torch.cat([a, b], 1)
        inside = torch.from_numpy(Outline(polygon.numpy()).contains_points(points.numpy()))
        assert torch.equal(distances < 0, inside)
        outline = torch.lerp(polygon, polygon.roll(-1, 0), shares).view(-1, 2)
        torch.testing.assert_close(distances.abs(), torch.cdist(points, outline).amin(1), atol=1e-3, rtol=0)


def test_distance_from_a_disc():
    x, y = torch.tensor([[[0.0, 3.0, 0.3]]]), torch.tensor([[[0.0, 4.0, 0.4]]])
    found = silhouettes.disc(x, y, torch.full((1, 1, 1), 0.5))
    torch.testing.assert_close(found, torch.tensor([[[-0.5, 4.5, 0.0]]]))


def test_an_edge_is_as_soft_as_one_pixel(monkeypatch):
    """The opacities of a disc add up to its area, and those of its edge lie between 0 and 1."""
    monkeypatch.setitem(silhouettes.KINDS, "disc", lambda x, y, stream: silhouettes.disc(x, y, 0.7))
    monkeypatch.setattr(silhouettes, "WAVE", 0)
    round_ = silhouettes.draw("disc", 1, stream())
    assert float(round_.sum()) == pytest.approx(math.pi * (0.7 * silhouettes.SIDE / 2) ** 2, rel=2e-3)
    between = ((round_ > 0) & (round_ < 1)).sum()
    assert 0.5 < between / (2 * math.pi * 0.7 * silhouettes.SIDE / 2) < 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_silhouette_is_one_piece_inside_its_square(drawn, kind):
    masks, touching = drawn[kind][:, 0] > 0.5, numpy.ones((3, 3))  # pixels whose corners meet are one piece
    assert drawn[kind].shape == (60, 1, silhouettes.SIDE, silhouettes.SIDE)
    assert drawn[kind].min() == 0
    assert drawn[kind].max() == 1
    assert all(ndimage.label(mask.numpy(), touching)[1] == 1 for mask in masks)
    holes = [ndimage.label(~mask, touching)[1] - 1 for mask in numpy.pad(masks, ((0, 0), (1, 1), (1, 1)))]
    assert set(holes) == {kind == "mug"}  # the handle's
    border = torch.ones_like(masks[0])
    border[1:-1, 1:-1] = False
    assert (masks & border).flatten(1).sum(1).max() <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_of_a_kind_are_alike_and_a_stream_draws_the_same_ones(drawn, kind):
    masks = (drawn[kind] > 0.5).flatten(1).float()
    both, either = masks @ masks.T, masks.sum(1) + masks.sum(1)[:, None] - masks @ masks.T
    overlap = (both / either)[~torch.eye(60, dtype=torch.bool)]
    assert overlap.max() < 0.99
    assert overlap.mean() < 0.85
    assert torch.equal(silhouettes.draw(kind, 60, stream(kind)), drawn[kind])


@pytest.mark.parametrize("kind", ["fish", "house", "mug"])
def test_some_look_either_way(drawn, kind):
    """The centre of mass is off the middle of the box, to the left in about half and to the right in the others."""
    masks = drawn[kind][:, 0] > 0.5
    columns = torch.arange(silhouettes.SIDE) + 0.5
    mass = (masks * columns).sum((1, 2)) / masks.sum((1, 2))
    filled = masks.any(1)
    middle = (filled.int().argmax(1) + silhouettes.SIDE - filled.flip(1).int().argmax(1)) / 2
    share = (mass > middle).float().mean()
    assert 0.25 < share < 0.75


def test_kinds_are_nearer_to_themselves_than_to_others(drawn):
    """The nearest other silhouette is of the same kind in all cases."""
    masks = torch.cat([drawn[kind].flatten(1) for kind in KINDS])
    kinds = torch.arange(len(KINDS)).repeat_interleave(60)
    away = torch.cdist(masks, masks).fill_diagonal_(torch.inf)
    assert (kinds[away.argmin(1)] == kinds).float().mean() > 0.98


def test_another_kind_is_refused():
    with pytest.raises(experiment.UserError, match="no silhouette is called 'cat'; there are star, fish, house"):
        silhouettes.draw("cat", 1, stream())

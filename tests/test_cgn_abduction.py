"""Abduction: the shapes of images without a labelled pixel, from class and border alone."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch

import experiment
from cgn import abduction, data


def learned(variant, steps, seed=0):
    shapes = variant.shapes("train")
    with experiment.seeded(seed, "abduction"):
        model = abduction.Abduction(abduction.FIELD[variant.name])
    batch = lambda purpose: variant.batch(shapes, 64, experiment.generator(seed, purpose))
    return abduction.learn(model, batch, steps, contextlib.nullcontext)


def overlap(found, true):
    return float((found & true).sum() / (found | true).sum())


def test_edge_distance():
    assert abduction.edge_distance(1).shape == (32, 32)
    assert abduction.edge_distance(1)[0].max() == 0
    assert abduction.edge_distance(3).shape == (30, 30)
    assert abduction.edge_distance(3)[0, 0] == 1
    assert abduction.edge_distance(3).max() == 15


@pytest.mark.parametrize("name", ["colored", "double_colored"])
def test_flat_colours_are_separated(name):
    variant = data.Variant(name)
    model = learned(variant, (150, 0))
    test = variant.batch(variant.shapes("train"), 500, experiment.generator(7, "test"))
    found = model.masks(test.images, test.labels)
    assert found.shape == (500, 1, 32, 32)
    assert overlap(found, test.masks) > 0.9
    per_class = [overlap(found[test.labels == k], test.masks[test.labels == k]) for k in range(10)]
    assert min(per_class) > 0.8  # none is inverted


def test_opacities_of_colored_are_its_grey_levels():
    variant = data.Variant("colored")
    model = learned(variant, (150, 0))
    shapes = variant.shapes("train")[:200]
    scenes = variant.scenes(shapes, experiment.generator(0, "s"), spurious=True)
    found = model.opacities(scenes.images, scenes.labels, flat=True)
    error = (found - shapes.alphas / 255).abs()
    assert float(error.mean()) < 0.03
    assert found.min() >= 0
    assert found.max() <= 1


def test_a_pixel_is_object_if_every_window_on_it_touches_the_object():
    """With perfect evidence, windows of 3 pixels give the mask back, and close gaps of less than 3 pixels."""
    model = abduction.Abduction(3).eval()
    mask = torch.zeros(1, 1, 32, 32)
    mask[:, :, 10:20, 10:15] = 1
    touched = torch.nn.functional.max_pool2d(mask, 3, 1)[:, 0]  # (1, 30, 30)
    model.evidence.forward = lambda x, labels: torch.where(touched > 0, 5.0, -1.0)  # odds over the floor of 1
    object_, pure = model.sure(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    assert torch.equal(object_, mask[:, 0] > 0)
    assert torch.equal(pure, mask[:, 0] == 0)


def test_evidence_reads_the_map_of_the_class():
    net = abduction.Evidence(3)
    x = torch.randn(4, 3, 32, 32)
    labels = torch.tensor([0, 1, 2, 9])
    together = net(x, labels)
    assert together.shape == (4, 30, 30)
    torch.testing.assert_close(together, net.body(x)[torch.arange(4), labels])


@pytest.mark.parametrize("field", [1, 3])
def test_the_loss_of_evidence_is_of_border_and_centre(field):
    """Logits 1 where a window lies in the 4 outermost pixels, -2 from the 7th pixel on, 50 between, which is free."""
    net, distance = abduction.Evidence(field), abduction.edge_distance(field)
    logits = torch.full(distance.shape, 50.0)
    logits[distance < 4 - field // 2] = 1.0
    logits[distance >= 7] = -2.0
    net.forward = lambda x, labels: logits.expand(len(x), -1, -1)
    loss = float(net.loss(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])))
    assert loss == pytest.approx(math.log1p(math.exp(1)) + math.log1p(math.exp(2)), rel=1e-5)


def test_floors_are_the_tenth_part_of_the_odds_in_the_centre_of_a_class():
    """Of 324 odds in the centre, 33 are k + 1 and the others k + 2: place 32.3 of 0 to 323 is three tenths between."""
    middle, labels = abduction.edge_distance(1) >= 7, torch.arange(10)
    odds = torch.full((10, 32, 32), 1e-3)  # at the border, which does not count
    odds[:, middle] = torch.cat([torch.zeros(33), torch.ones(291)]) + 1 + labels[:, None]
    evidence = lambda x, labels: odds[labels].log()
    evidence.field = 1
    batches = [SimpleNamespace(images=None, labels=part) for part in labels.flip(0).split(4)]
    found = abduction.floors(evidence, batches, contextlib.nullcontext)
    torch.testing.assert_close(found, labels + 1.3)


def test_height_is_over_the_floor_of_the_class():
    model = abduction.Abduction(1)
    model.floor.copy_(torch.arange(1.0, 11))
    model.evidence.forward = lambda x, labels: torch.full((len(x), 32, 32), math.log(6))
    height = model.height(torch.zeros(2, 3, 32, 32), torch.tensor([0, 3]))
    torch.testing.assert_close(height, torch.tensor([6.0, 1.5])[:, None, None].expand(-1, 32, 32))


@pytest.mark.slow
def test_textures_are_separated():
    variant = data.Variant("wildlife")
    model = learned(variant, (600, 300))
    test = variant.batch(variant.shapes("train"), 500, experiment.generator(7, "test"))
    assert overlap(model.masks(test.images, test.labels), test.masks) > 0.75

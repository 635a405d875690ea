"""Abduction: the shapes of images without a labelled pixel, from class and border alone."""

import contextlib

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


@pytest.mark.slow
def test_textures_are_separated():
    variant = data.Variant("wildlife")
    model = learned(variant, (600, 300))
    test = variant.batch(variant.shapes("train"), 500, experiment.generator(7, "test"))
    assert overlap(model.masks(test.images, test.labels), test.masks) > 0.75

"""Saliency maps and penalties: rows by themselves, second derivatives against finite differences, against captum."""

import pytest
import torch
from torch import nn

import backbones
from experiment import UserError
from robust_training import saliency
from robust_training.batch import from_masks


def small(classes=3):
    """A network of the real kind in float64, small enough for finite differences."""
    torch.manual_seed(0)
    return backbones.build("small", classes, width=8).double()


def batch(n=3, side=16):
    g = torch.Generator().manual_seed(1)
    masks = torch.zeros(n, 1, side, side, dtype=torch.bool)
    masks[0, :, 2:9, 3:12] = masks[1, :, :, :4] = True  # the last has none
    images = torch.rand(n, 3, side, side, generator=g, dtype=torch.double) * 2 - 1
    return from_masks(images, torch.arange(n) % 3, torch.zeros(n, dtype=torch.long), masks)


def maps_in_double(name, model, images, labels):
    """saliency.maps without its cast to float32, which finite differences do not survive."""
    return saliency.MAPS[name](model, images, labels)


@pytest.mark.parametrize("name", list(saliency.MAPS))
def test_a_row_depends_on_its_own_label_only(name):
    model, some = small(), batch()
    first = maps_in_double(name, model, some.images, some.labels)
    other = some.labels.clone()
    other[1] = (other[1] + 1) % 3
    again = maps_in_double(name, model, some.images, other)
    assert torch.allclose(first[[0, 2]], again[[0, 2]], atol=1e-12)
    if name not in ("grad_sum", "grad_logp_sum"):
        assert not torch.allclose(first[1], again[1], atol=1e-6)


@pytest.mark.parametrize("name", list(saliency.SCORES))
def test_gradients_of_a_linear_classifier_are_its_weights(name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4, 2).double())
    images, labels = torch.randn(5, 3, 2, 2).double(), torch.tensor([0, 1, 1, 0, 1])
    w, p = model[1].weight.detach(), model(images).softmax(1).detach()
    wanted = {"grad_y": w[labels], "grad_sum": w.sum(0).expand(5, -1), "grad_logp_y": w[labels] - p @ w,
              "grad_logp_sum": w.sum(0) - 2 * p @ w}[name]
    assert torch.allclose(maps_in_double(name, model, images, labels).flatten(1), wanted, atol=1e-10)


def penalised(model, some, kind, name):
    return saliency.penalty(name, maps_in_double(kind, model, some.images, some.labels), some, some.images * 0.3)


@pytest.mark.parametrize("kind", list(saliency.MAPS))
@pytest.mark.parametrize("name", ["bbox_o", "bbox_f1"])
def test_the_gradient_of_a_penalty_is_that_of_finite_differences(kind, name):
    model, some = small(), batch()
    value = penalised(model, some, kind, name)
    parameters = [model.root.weight, model.block1.a.conv.weight, model.block2.b.conv.weight, model.cls.weight]
    found = torch.autograd.grad(value, parameters)
    for k, (parameter, gradient) in enumerate(zip(parameters, found, strict=True)):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k), dtype=torch.double)
        step, values = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
            values.append(penalised(model, some, kind, name).item())
            with torch.no_grad():
                parameter -= sign * step * direction
        wanted, got = (values[0] - values[1]) / (2 * step), float((gradient * direction).sum())
        assert got == pytest.approx(wanted, rel=2e-3, abs=1e-9 * max(1, abs(value.item()))), (k, wanted, got)


def plain():
    """Convolutions and ReLUs alone, where DeepLIFT's contributions must add up."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, 2), nn.ReLU(), nn.Flatten(),
                         nn.LazyLinear(7), nn.ReLU(), nn.Linear(7, 3))  # fmt: skip


def test_deeplift_adds_up_to_the_change_of_the_logit():
    model, images, labels = plain(), torch.randn(4, 3, 10, 10), torch.tensor([0, 2, 1, 1])
    base = torch.randn(4, 3, 10, 10)
    model(images)
    given = saliency.deeplift(model, images, labels, base).flatten(1).sum(1)
    change = saliency.own(model(images) - model(base), labels)
    assert torch.allclose(given, change, atol=1e-4)
    mean = saliency.deeplift_shap(model, images, labels, base)
    parts = [saliency.deeplift(model, images, labels, one.expand_as(images)) for one in base]
    assert torch.allclose(mean, sum(parts) / 4, atol=1e-5)


@pytest.mark.parametrize("make", [plain, lambda: backbones.build("small", 3, width=8)])
def test_deeplift_and_grad_cam_are_captums(make):
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(5)
    model, images, labels = make().eval(), torch.randn(3, 3, 16, 16), torch.tensor([0, 2, 1])
    model(images)
    wanted = attr.DeepLift(model).attribute(images, torch.zeros_like(images), target=labels)
    assert torch.allclose(saliency.deeplift(model, images, labels), wanted, atol=1e-5)
    assert not any(layer._forward_hooks for layer in model.modules())  # ours are gone again
    if hasattr(model, "maps"):
        cam = attr.LayerGradCam(model, model.relu).attribute(images, labels, relu_attributions=True)
        cam = attr.LayerAttribution.interpolate(cam, (16, 16), "bilinear")
        assert torch.allclose(saliency.grad_cam(model, images, labels), cam, atol=1e-5)


def test_penalties_by_hand():
    some = batch(2, side=4)
    masks = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    masks[0, :, :2] = True
    some = from_masks(some.images, some.labels, some.places, masks)  # half of the first, nothing of the second
    maps = torch.full((2, 3, 4, 4), 2.0, dtype=torch.double)
    assert float(saliency.penalty("bbox_o", maps, some)) == pytest.approx(4 * 0.5)
    hollow = some.but(masks=some.masks & (torch.arange(some.masks.shape[3]) % 2 == 0))
    assert float(saliency.penalty("mask_o", maps, hollow)) == pytest.approx(4 * 12 / 16)
    assert float(saliency.penalty("bbox_o", maps, hollow)) == pytest.approx(4 * 0.5)
    assert float(saliency.penalty("bbox_f1", maps, some)) == pytest.approx(1 - 2 * 8 / (16 + 8))
    same = saliency.penalty("gs", some.images - 0.25, some, torch.full_like(some.images, 0.25))
    assert float(same) == pytest.approx(0)
    unknown = from_masks(some.images, some.labels, some.places, torch.zeros_like(masks))
    assert float(saliency.penalty("bbox_o", maps, unknown)) == 0


def test_gradient_supervision_is_one_minus_the_cosine():
    """The map points along the first pixel, the change that the counterfactual makes is 3 there and 4 at the second."""
    images, maps = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    images[0, 0, 0], maps[0, 0, 0, 0] = torch.tensor([3.5, 4.5]), 7.0
    counterfactuals = torch.zeros_like(images)
    counterfactuals[0, 0, 0] = 0.5
    some = from_masks(images, torch.zeros(1), torch.zeros(1), torch.ones(1, 1, 2, 2, dtype=torch.bool))
    assert saliency.supervision(maps, some, counterfactuals).tolist() == pytest.approx([1 - 3 / 5])


class Pooled(nn.Module):
    """Two maps, the first channels of an image, and two logits of their means m: 4 m_0 - 8 m_1, and 8 m_1."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def maps(self, images):
        return images[:, :2] * self.scale

    def head(self, maps):
        return maps.mean((2, 3)) @ torch.tensor([[4.0, 0.0], [-8.0, 8.0]])


def test_grad_cam_by_hand():
    """A logit's gradient at each of four pixels is a quarter of its weight: the maps weigh 1 and -2, and 0 and 2."""
    images = torch.zeros(2, 3, 2, 2)
    images[:, 0] = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    images[:, 1] = torch.tensor([[0.0, 0.5], [2.0, -1.0]])
    found = saliency.grad_cam(Pooled(), images, torch.tensor([0, 1]))
    assert found.flatten(1).tolist() == [[1.0, 1.0, 0.0, 2.0], [0.0, 1.0, 4.0, 0.0]]


def test_scaling_a_map_does_not_change_its_f1():
    some, maps = batch(2), torch.rand(2, 3, 16, 16, dtype=torch.double)
    scaled = maps * torch.tensor([3.0, 0.1])[:, None, None, None]
    assert float(saliency.penalty("bbox_f1", scaled, some)) == pytest.approx(
        float(saliency.penalty("bbox_f1", maps, some)))


def test_what_gradient_supervision_cannot_do_is_said():
    some = batch()
    with pytest.raises(UserError, match="choose an --inpaint"):
        saliency.penalty("gs", some.images, some)
    with pytest.raises(UserError, match="no gradient for each channel"):
        saliency.penalty("gs", some.images[:, :1], some, some.images)
    with pytest.raises(UserError, match="no saliency map is called 'smooth'"):
        saliency.maps("smooth", small(), some.images, some.labels)


def test_maps_are_float32_within_half_precision():
    model, some = backbones.build("small", 3, width=8), batch()
    with torch.autocast("cpu", torch.bfloat16):
        maps = saliency.maps("grad_y", model, some.images, some.labels)
    assert maps.dtype == torch.float32
    assert torch.equal(maps, saliency.maps("grad_y", model, some.images, some.labels))

"""Backbones: the same verbs, ReLUs used once, two derivatives, the published arrays of BiT, torchvision's networks."""

import re

import numpy
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import backbones
import experiment
import storage
from experiment import UserError

CASES = [("small", 64), ("bit", 64), ("resnet18", 64), ("densenet121", 64), ("mobilenet_v3_small", 64),
         ("regnet_y_400mf", 64), ("vgg11", 32), ("shufflenet_v2_x0_5", 64)]  # fmt: skip


def fresh(name, classes=3, **settings):
    with experiment.seeded(0, "backbone"):
        model = backbones.build(name, classes, **settings).eval()
        for layer in model.modules():  # a head that starts at zero would make every comparison true
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.05)
    return model


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=experiment.generator(0, "images")) * 2 - 1


@pytest.mark.parametrize(("name", "size"), CASES, ids=[name for name, _ in CASES])
def test_the_verbs_agree_and_each_relu_is_called_once_and_not_in_place(name, size):
    model, x = fresh(name), torch.linspace(-1, 1, 2 * 3 * size * size).reshape(2, 3, size, size)
    calls = {part: 0 for part in model.modules() if isinstance(part, nn.ReLU)}
    for part in calls:
        part.register_forward_hook(lambda part, *_: calls.update({part: calls[part] + 1}))
    logits = model(x)
    assert calls
    assert set(calls.values()) == {1}
    assert not any(getattr(part, "inplace", False) for part in model.modules())
    maps = model.maps(x)
    assert logits.shape == (2, 3)
    assert logits.abs().max() > 0
    assert maps.ndim == 4
    assert torch.equal(logits, model.head(maps))
    assert torch.equal(model.features(x), maps.mean((2, 3)))


@pytest.mark.parametrize("name", ["small", "bit", "resnet18"])
def test_a_gradient_of_a_gradient_is_right(name, images):
    """The derivative of the squared input gradient along a direction of the weights, against a finite difference.

    The step is tiny, as the squared gradient jumps where a ReLU switches.
    """
    model = fresh(name).double()
    x, step = images[:1, :, 16:48, 16:48].double().requires_grad_(), 1e-9
    weights = list(model.parameters())
    stream = experiment.generator(0, "direction")
    along = [torch.randn(w.shape, generator=stream, dtype=w.dtype) * w.std(correction=0) for w in weights]

    def penalty():
        return torch.autograd.grad(model(x)[:, 0].sum(), x, create_graph=True)[0].square().sum()

    gradients = torch.autograd.grad(penalty(), weights, allow_unused=True)
    slope = sum((g * a).sum() for g, a in zip(gradients, along, strict=True) if g is not None)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, a in zip(weights, along, strict=True):
                weight += sign * step * a
        values.append(penalty().item())
        with torch.no_grad():
            for weight, a in zip(weights, along, strict=True):
                weight -= sign * step * a
    assert values[0] != values[1]
    assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


# --- SmallResNet --------------------------------------------------------------------------------


def test_the_small_one_is_small_and_its_maps_are_8_by_8(images):
    model, counted = fresh("small"), []

    def count(layer, _, out):
        counted.append(out[0].numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    maps = model.maps(images[:1])
    model.head(maps)
    assert maps.shape == (1, 64, 8, 8)
    assert maps.min() >= 0
    assert 9e6 <= sum(counted) <= 12e6
    assert sum(counted) == pytest.approx(12e6, rel=0.02)  # as its docstring says


@pytest.mark.parametrize("name", ["small", "bit"])
def test_rows_do_not_see_each_other_in_training(name, images):
    model = fresh(name).train()
    assert model.rows_independent
    other = torch.cat([images[:1], -images[1:] * 0.3])
    assert torch.allclose(model(images)[0], model(other)[0], atol=1e-5)
    x = images.clone().requires_grad_()
    gradient = torch.autograd.grad(model(x)[0].sum(), x)[0]
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_a_width_that_has_no_eight_groups_is_refused():
    with pytest.raises(UserError, match="multiple of 8, not 12"):
        backbones.build("small", 2, width=12)


# --- BiT ----------------------------------------------------------------------------------------


def published(model):
    """The arrays of a BiT as the published file holds them, by an inverse written out here."""
    arrays = {}
    for key, value in model.state_dict().items():
        value = value.numpy()
        if key.startswith("cls."):
            name = "resnet/head/conv2d/" + {"weight": "kernel", "bias": "bias"}[key[4:]]
            value = value.T[None, None] if value.ndim == 2 else value
        else:
            name = "resnet/" + key.replace(".", "/").replace("norm/weight", "group_norm/gamma")
            name = name.replace("norm/bias", "group_norm/beta").replace("group_group", "group")
            name = re.sub(r"(conv|(?<=proj)|(?<=root_block))/?weight$", "/standardized_conv2d/kernel", name)
            name = re.sub("/+", "/", name)
            value = numpy.moveaxis(value, (0, 1), (3, 2)) if value.ndim == 4 else value
        arrays[name] = value
    return arrays


@pytest.fixture(scope="module")
def bit():
    """A BiT of 5 classes in which every array differs from its start."""
    with experiment.seeded(0, "bit"):
        model = backbones.BiT(5)
        for value in model.parameters():
            nn.init.normal_(value, 0.5, 1.0)
    return model.eval()


@pytest.fixture(scope="module")
def npz(bit, tmp_path_factory):
    path = tmp_path_factory.mktemp("bit") / "BiT-S-R50x1.npz"
    numpy.savez(path, **published(bit))
    return path


def test_the_arrays_of_bit_are_named_as_published():
    names = set(map(backbones.npz_name, backbones.BiT(1000).state_dict()))
    wanted = {"resnet/root_block/standardized_conv2d/kernel", "resnet/group_norm/gamma", "resnet/group_norm/beta",
              "resnet/head/conv2d/kernel", "resnet/head/conv2d/bias"}  # fmt: skip
    for block, units in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for unit in range(1, units + 1):
            for step in "abc":
                at = f"resnet/block{block}/unit{unit:02d}/{step}"
                wanted |= {f"{at}/standardized_conv2d/kernel", f"{at}/group_norm/gamma", f"{at}/group_norm/beta"}
        wanted.add(f"resnet/block{block}/unit01/a/proj/standardized_conv2d/kernel")
    assert names == wanted
    assert len(names) == 1 + 2 + 2 + 16 * 9 + 4


def test_bit_has_the_published_size_and_its_head_starts_at_zero(images):
    model = backbones.BiT(1000)
    assert sum(value.numel() for value in model.parameters()) == 25_549_352  # that of ResNet-50v2 with GroupNorm
    assert model(images).abs().max() == 0
    assert model.maps(images).shape == (2, 2048, 2, 2)


def test_published_weights_are_loaded_layer_by_layer(bit, npz, images):
    assert set(published(bit)) == set(map(backbones.npz_name, bit.state_dict()))
    model = backbones.load_npz(backbones.BiT(5), npz).eval()
    for key, value in bit.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert torch.equal(model(images), bit(images))


def test_bit_computes_what_its_description_says(bit, images):
    """Against a plain function of the published arrays, in float64 (Kolesnikov et al. 2020; He et al. 2016)."""
    arrays = {name: torch.from_numpy(value).double() for name, value in published(bit).items()}

    def conv(x, name, stride=1):
        kernel = arrays[f"resnet/{name}/standardized_conv2d/kernel"].permute(3, 2, 0, 1)
        flat = kernel.flatten(1)
        kernel = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)).reshape(kernel.shape)
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)

    def active(x, name):
        rows = x.reshape(len(x), 32, -1)
        rows = (rows - rows.mean(2, keepdim=True)) / (rows.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        gamma, beta = (arrays[f"resnet/{name}group_norm/{part}"].reshape(-1, 1, 1) for part in ("gamma", "beta"))
        return (rows.reshape(x.shape) * gamma + beta).clamp(min=0)

    x = F.max_pool2d(F.pad(conv(images.double(), "root_block", 2), (1, 1, 1, 1)), 3, 2)
    for block, units in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for unit in range(1, units + 1):
            at, stride = f"block{block}/unit{unit:02d}", 2 if unit == 1 and block > 1 else 1
            inner = active(x, f"{at}/a/")
            short = conv(inner, f"{at}/a/proj", stride) if unit == 1 else x
            out = conv(active(conv(inner, f"{at}/a"), f"{at}/b/"), f"{at}/b", stride)
            x = short + conv(active(out, f"{at}/c/"), f"{at}/c")
    features = active(x, "").mean((2, 3))
    logits = features @ arrays["resnet/head/conv2d/kernel"][0, 0] + arrays["resnet/head/conv2d/bias"]
    assert torch.allclose(bit.features(images).double(), features, rtol=1e-3, atol=1e-3)
    assert torch.allclose(bit(images).double(), logits, rtol=1e-3, atol=1e-2)


def test_a_head_of_other_classes_is_left_at_zero(bit, npz, images):
    model = backbones.load_npz(backbones.BiT(2), npz).eval()
    assert model(images).abs().max() == 0
    assert torch.equal(model.maps(images), bit.maps(images))


def test_numbered_convolutions_are_found(bit, tmp_path):
    renamed = {re.sub("c/standardized_conv2d", "c/standardized_conv2d_17", name): value
               for name, value in published(bit).items()}  # fmt: skip
    numpy.savez(tmp_path / "numbered.npz", **renamed)
    model = backbones.load_npz(backbones.BiT(5), tmp_path / "numbered.npz")
    assert torch.equal(model.block3.unit06.c.conv.weight, bit.block3.unit06.c.conv.weight)


def test_a_file_that_does_not_fit_is_refused_by_the_name_of_the_array(bit, tmp_path):
    name, path = "resnet/block2/unit03/b/standardized_conv2d/kernel", tmp_path / "bad.npz"
    good = published(bit)

    def fails(match, **arrays):
        numpy.savez(path, **arrays)
        with pytest.raises(UserError, match=match):
            backbones.load_npz(backbones.BiT(5), path)

    fails(f"has no array {name}", **{key: value for key, value in good.items() if key != name})
    fails(f"{name} should have the shape .3, 3, 128, 128. and has .3, 3, 128, 64.",
          **good | {name: good[name][..., :64]})  # fmt: skip
    fails(f"{name} holds values that are no finite", **good | {name: good[name] * numpy.nan})
    fails("cannot be read as an .npz", **good | {name: numpy.array([{}], dtype=object)})  # a pickle
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"cannot be read as an \.npz"):
        backbones.load_npz(backbones.BiT(5), path)
    with pytest.raises(UserError, match=r"no weights at .*absent.npz"):
        backbones.load_npz(backbones.BiT(5), tmp_path / "absent.npz")


def test_standardised_filters_have_mean_0_and_variance_1():
    conv = backbones.StdConv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([3.0, 7.0]).reshape(1, 2, 1, 1))
    assert conv(torch.tensor([1.0, 10.0]).reshape(1, 2, 1, 1)).item() == pytest.approx(9)  # filters -1 and 1


# --- torchvision --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_a_network_of_torchvision_computes_what_it_did(name, images):
    with experiment.seeded(1, "network"):
        original = torchvision.models.get_model(name, num_classes=3).eval()
    with experiment.seeded(1, "network"):
        model = backbones.build(name, 3).eval()
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(model(images), original(((images + 1) / 2 - mean) / std), atol=1e-4)


def test_published_weights_of_torchvision_are_loaded_but_for_another_head(tmp_path):
    with experiment.seeded(1, "network"):
        original = torchvision.models.resnet18(num_classes=1000).eval()
    path = tmp_path / "resnet18.pth"
    torch.save({k: v for k, v in original.state_dict().items() if "num_batches" not in k}, path)
    model = fresh("resnet18")
    before = model.top.fc.weight.clone()
    assert backbones.load_torchvision(model, path) is model
    assert torch.equal(model.body.get_parameter("layer4.1.conv2.weight"), original.layer4[1].conv2.weight)
    assert torch.equal(model.top.fc.weight, before)
    whole = backbones.load_torchvision(fresh("resnet18", 1000), path)
    assert torch.equal(whole.top.fc.weight, original.fc.weight)
    with pytest.raises(UserError, match=r"body\.conv1\.0\.weight should be \(24, 3, 3, 3\) and is absent"):
        backbones.load_torchvision(fresh("shufflenet_v2_x0_5"), path)


def test_frozen_statistics_stay_and_make_rows_independent(images):
    frozen, free = fresh("resnet18", frozen=True), fresh("resnet18")
    assert (frozen.rows_independent, free.rows_independent) == (True, False)
    assert torch.equal(frozen.train()(images)[0], frozen(torch.cat([images[:1], -images[1:]]))[0])
    assert not torch.allclose(free.train()(images)[0], free(torch.cat([images[:1], -images[1:]]))[0], atol=1e-3)
    assert frozen.body.bn1.running_mean.abs().sum() == 0
    assert free.body.bn1.running_mean.abs().sum() > 0


def test_dropout_is_on_in_training_only():
    model, x = fresh("vgg11"), torch.ones(1, 3, 32, 32)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(("name", "relus"), [("resnet18", 17), ("densenet121", 121)])
def test_every_relu_of_the_network_became_a_module(name, relus):
    """ResNet-18: one after the first layer, two in each of 8 blocks. DenseNet-121: the last one is only a function."""
    assert sum(isinstance(part, nn.ReLU) for part in fresh(name).modules()) == relus


def test_unknown_and_headless_networks_are_refused():
    with pytest.raises(UserError, match=r"no backbone is called 'resnet19'; there are small, bit and .*resnet18"):
        backbones.build("resnet19", 2)
    with pytest.raises(UserError, match="vit_b_32 has neither fc nor classifier"):
        backbones.build("vit_b_32", 2)


# --- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), [("small", {"width": 8}), ("resnet18", {"frozen": True})])
def test_a_checkpoint_rebuilds_its_backbone(name, settings, tmp_path, images):
    model = fresh(name, 4, **settings)
    made = {"name": name, "settings": {"classes": 4, **settings}}
    storage.save_checkpoint(tmp_path / "best.pt", {"architecture": made, "model": model.state_dict()})
    again = backbones.restore(storage.load_checkpoint(tmp_path / "best.pt"))
    assert not again.training
    assert torch.equal(again(images), model(images))
    with pytest.raises(UserError, match="does not say which backbone"):
        backbones.restore(model.state_dict())
    with pytest.raises(UserError, match="not the weights of a"):
        backbones.restore({"architecture": made | {"settings": {"classes": 5, **settings}},
                           "model": model.state_dict()})


def test_padding_before_the_pooling_is_with_zeros():
    pool = backbones.BiT(2).pool
    x = -torch.ones(1, 1, 4, 4)
    assert torch.equal(pool(x), torch.tensor([[0.0, 0.0], [0.0, -1.0]])[None, None])
    assert torch.equal(F.max_pool2d(x, 3, 2, 1), -torch.ones(1, 1, 2, 2))  # what padding with -infinity would give

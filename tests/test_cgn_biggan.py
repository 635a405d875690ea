"""BigGAN-deep: the published layout, each layer against its formula, standing statistics, files that are refused."""

import copy
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import experiment
import storage
from cgn import biggan, discriminator
from cgn.biggan import BatchNorm, BigGAN, Config, Spectral
from cgn.discriminator import Discriminator
from experiment import UserError

TINY = Config(16, 5, 6, 8, ((False, 4, 4), (True, 4, 2), (True, 2, 2)), attention=2)
# The channels between the blocks, in units of 128, of the paper's tables 7 to 9.
CHANNELS = {128: [16, 16, 16, 16, 8, 8, 4, 4, 2, 2, 1], 256: [16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1],
            512: [16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1, 1, 1]}  # fmt: skip
SIZES = list(CHANNELS)


def stream(purpose="tests"):
    return experiment.generator(0, purpose)


def lively(network):
    """The network with random weights, biases and statistics, and singular vectors that belong to the weights."""
    draw = stream("lively")
    with torch.no_grad():
        for name, value in network.state_dict().items():
            spread = 0.5 if name.endswith(("bias", "gamma", "running_means")) else 1.0
            value.copy_(torch.randn(value.shape, generator=draw) * spread)
            if name.endswith("running_vars"):
                value.copy_(torch.rand(value.shape, generator=draw) + 0.5)
        for layer in network.modules():
            if isinstance(layer, Spectral):
                u, _, v = torch.linalg.svd(layer.weight_orig.flatten(1), full_matrices=False)
                layer.weight_u.copy_(u[:, 0])
                layer.weight_v.copy_(v[0])
    return network.eval()


@pytest.fixture
def model():
    return lively(BigGAN(TINY))


@pytest.fixture
def adversary():
    return lively(Discriminator(TINY))


def inputs(n=4, truncation=1.0, config=TINY):
    return biggan.truncated_noise(n, config.latent, truncation, stream("latents")), torch.arange(n) % config.classes


def over_norm(layer):
    """What the weight of a layer is by definition, as float64."""
    weight = layer.weight_orig.detach().double()
    return weight / torch.linalg.matrix_norm(weight.flatten(1), 2)


def convolved(layer, x):
    bias = None if layer.bias is None else layer.bias.double()
    return F.conv2d(x, over_norm(layer), bias, padding=layer.weight_orig.shape[2] // 2)


def modulation(norm, condition):
    return ((condition.double() @ over_norm(layer).T)[:, :, None, None] for layer in (norm.scale, norm.offset))


def caught(module, call):
    """The first input that the module is given in call()."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    call()
    handle.remove()
    return seen[0]


# --- the published layout -------------------------------------------------------------------------------


def on_meta(size):
    with torch.device("meta"):
        return BigGAN(biggan.CONFIGS[f"biggan-deep-{size}"])


def expected(size):
    """{key: shape} of the published weights, from the names of their layers and the channels of the tables."""
    wanted = {"embeddings.weight": (128, 1000), "generator.layers.8.gamma": (1,), "generator.bn.weight": (128,),
              "generator.bn.bias": (128,)}  # fmt: skip

    def spectral(key, *shape, bias=True):
        wanted[f"{key}.weight_orig"] = shape
        wanted[f"{key}.weight_u"], wanted[f"{key}.weight_v"] = (shape[0],), (math.prod(shape[1:]),)
        if bias:
            wanted[f"{key}.bias"] = (shape[0],)

    def norm(key, channels):
        wanted[f"{key}.running_means"] = wanted[f"{key}.running_vars"] = (51, channels)

    spectral("generator.gen_z", 4 * 4 * 16 * 128, 256)
    widths = [128 * channels for channels in CHANNELS[size]]
    for number, (into, out) in enumerate(itertools.pairwise(widths)):
        block = f"generator.layers.{number + (number >= 8)}"
        middle = into // 4
        for k, shape in enumerate([(middle, into, 1, 1), *[(middle, middle, 3, 3)] * 2, (out, middle, 1, 1)]):
            spectral(f"{block}.conv_{k}", *shape)
            norm(f"{block}.bn_{k}", shape[1])
            for part in ("scale", "offset"):
                spectral(f"{block}.bn_{k}.{part}", shape[1], 256, bias=False)
    channels = widths[8]
    for name, out, into in (("theta", 1 / 8, 1), ("phi", 1 / 8, 1), ("g", 1 / 2, 1), ("o_conv", 1, 1 / 2)):
        spectral(f"generator.layers.8.snconv1x1_{name}", int(out * channels), int(into * channels), 1, 1, bias=False)
    norm("generator.bn", 128)
    spectral("generator.conv_to_rgb", 128, 128, 3, 3)
    return wanted


@pytest.mark.parametrize("size", SIZES)
def test_the_parameters_are_named_and_shaped_as_published(size):
    found = {key: tuple(value.shape) for key, value in on_meta(size).state_dict().items()}
    assert found == expected(size)


@pytest.mark.parametrize(("size", "millions", "megabytes"), [(128, 50.4, 201), (256, 55.9, 224), (512, 56.2, 225)])
def test_there_are_as_many_parameters_as_published(size, millions, megabytes):
    """Both numbers are those of README.md in huggingface/pytorch-pretrained-BigGAN; its megabytes are 2^20 bytes."""
    model = on_meta(size)
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(millions * 1e6, abs=0.05e6)
    held = sum(4 * value.numel() for value in model.state_dict().values()) / 2**20
    assert held == pytest.approx(megabytes, abs=1)


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_make_and_judge_their_images_with_attention_at_64_pixels(size):
    config = biggan.CONFIGS[f"biggan-deep-{size}"]._replace(width=8, latent=4, classes=3)
    assert (config.resolution, config.eps, config.fold) == (size, 1e-4, 1)
    model, adversary, at = BigGAN(config).eval(), Discriminator(config).eval(), []
    for part in (*model.modules(), *adversary.modules()):
        if isinstance(part, biggan.SelfAttention):
            part.register_forward_pre_hook(lambda _, given: at.append(tuple(given[0].shape)))
    with torch.no_grad():
        images = model(*inputs(1, config=config))
        assert images.shape == (1, 3, size, size)
        assert adversary(images, torch.tensor([2])).shape == (1,)
    assert at == [(1, 8 * CHANNELS[size][8], 64, 64)] * 2


@pytest.mark.parametrize("name", list(biggan.CONFIGS))
def test_blocks_fit_together_and_end_at_the_resolution(name):
    config = biggan.CONFIGS[name]
    assert 4 * 2 ** sum(up for up, _, _ in config.layers) * config.fold == config.resolution
    assert all(one[2] == other[1] for one, other in itertools.pairwise(config.layers))
    assert config.layers[-1][2] * config.width >= 3 * config.fold**2


def test_ours_is_small():
    config, counted = biggan.CONFIGS["objects64"], []
    model, adversary = BigGAN(config).eval(), Discriminator(config).eval()
    assert 0.3e6 <= sum(value.numel() for value in model.parameters()) <= 0.6e6
    for part in (*model.modules(), *adversary.modules()):
        if isinstance(part, Spectral):
            part.register_forward_hook(
                lambda layer, _, out: counted.append(out[0, 0].numel() * out.shape[1] * layer.weight_orig[0].numel()))
    with torch.no_grad():
        images = model(*inputs(1, config=config))
        made = sum(counted)
        adversary(images, torch.zeros(1, dtype=torch.long))
    assert images.shape == (1, 3, 64, 64)
    assert made == pytest.approx(20e6, rel=0.05)  # as the docstring says
    assert sum(counted) - made == pytest.approx(20e6, rel=0.05)


# --- the generator ---------------------------------------------------------------------------------------


def test_images_have_their_shape_range_and_depend_on_latent_label_and_truncation(model):
    latents, labels = inputs()
    images = model(latents, labels)
    assert (images.shape, images.dtype) == ((4, 3, 16, 16), torch.float32)
    assert images.abs().max() <= 1
    assert images.std() > 0.05
    assert torch.equal(images, model(latents, labels))
    for other in (model(latents.flip(0), labels), model(latents, labels.flip(0)), model(latents, labels, 0.5)):
        assert not torch.allclose(images, other, atol=1e-3)


def test_soft_labels_are_mixtures_of_embeddings(model):
    latents, labels = inputs()
    shares = torch.eye(TINY.classes)[labels]
    torch.testing.assert_close(model(latents, shares), model(latents, labels))
    mixed = model(latents, 0.3 * shares + 0.7 * shares.flip(0))
    with torch.no_grad():
        vectors = model.embeddings.weight.T
        condition = torch.cat([latents, 0.3 * vectors[labels] + 0.7 * vectors[labels.flip(0)]], 1)
    torch.testing.assert_close(mixed, model.generator(condition, 1.0))


def test_the_first_maps_have_their_channels_last_in_gen_z(model):
    latents, labels = inputs()
    found = caught(model.generator.layers[0], lambda: model(latents, labels))
    flat = torch.cat([latents, model.embeddings.weight.T[labels]], 1).double() @ over_norm(model.generator.gen_z).T
    flat = flat + model.generator.gen_z.bias
    for row, column, channel in itertools.product(range(4), range(4), (0, 5, 31)):
        wanted = flat[:, (row * 4 + column) * 32 + channel].float()
        torch.testing.assert_close(found[:, channel, row, column], wanted)


@pytest.mark.parametrize("fold", [1, 2])
def test_only_the_first_channels_of_the_last_convolution_are_used(fold):
    model = lively(BigGAN(TINY._replace(fold=fold, resolution=16 * fold)))
    latents, labels = inputs()
    last = caught(model.generator.conv_to_rgb, lambda: model(latents, labels)).double()
    maps = convolved(model.generator.conv_to_rgb, last)
    assert maps.shape[1] == 16
    images = model(latents, labels).double()
    for colour, down, right in itertools.product(range(3), range(fold), range(fold)):
        wanted = torch.tanh(maps[:, colour * fold**2 + down * fold + right])
        torch.testing.assert_close(images[:, colour, down::fold, right::fold], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("up", "into", "out"), [(False, 16, 16), (True, 16, 16), (True, 16, 8), (False, 16, 8)])
def test_a_block_of_the_generator_computes_what_the_paper_says(up, into, out):
    block = lively(biggan.GenBlock(into, out, 12, up, 1e-4))
    draw = stream("block")
    x, condition = torch.randn(3, into, 6, 6, generator=draw), torch.randn(3, 12, generator=draw)

    def active(norm, h):
        mean, variance = (value[25].double()[:, None, None] for value in (norm.running_means, norm.running_vars))
        gain, shift = modulation(norm, condition)
        return ((h - mean) / (variance + 1e-4).sqrt() * (1 + gain) + shift).clamp(min=0)

    twice = lambda h: h.repeat_interleave(2, 2).repeat_interleave(2, 3) if up else h
    h = convolved(block.conv_0, active(block.bn_0, x.double()))
    h = convolved(block.conv_1, twice(active(block.bn_1, h)))
    h = convolved(block.conv_2, active(block.bn_2, h))
    h = convolved(block.conv_3, active(block.bn_3, h)) + twice(x[:, :out].double())
    torch.testing.assert_close(block(x, 0.5, condition).double(), h, rtol=1e-4, atol=1e-4)


def test_attention_computes_what_its_description_says():
    layer = lively(biggan.SelfAttention(16, 1e-4))
    x = torch.randn(2, 16, 4, 4, generator=stream("maps")).double()
    pooled = lambda h: h.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)).flatten(2)
    queries, keys = convolved(layer.snconv1x1_theta, x).flatten(2), pooled(convolved(layer.snconv1x1_phi, x))
    values, wanted = pooled(convolved(layer.snconv1x1_g, x)), x.clone()
    for image in range(2):
        for place in range(16):
            shares = (keys[image] * queries[image, :, place, None]).sum(0).exp()
            gathered = (values[image] * shares).sum(1) / shares.sum()
            out = over_norm(layer.snconv1x1_o_conv)[:, :, 0, 0] @ gathered
            wanted[image, :, place // 4, place % 4] += layer.gamma.item() * out
    torch.testing.assert_close(layer(x.float()).double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("truncation", [0.0, 0.01, -0.5, 1.01, math.nan])
def test_truncations_that_have_no_statistics_are_refused(model, truncation):
    with pytest.raises(UserError, match=rf"truncation must be from 0\.02 to 1, not {truncation}"):
        model.train()(*inputs(), truncation)
    with pytest.raises(UserError, match="truncation must be"):
        model.sample(2, stream(), truncation=truncation)


def test_samples_are_of_their_stream_and_labels(model):
    images = model.sample(3, stream("s"), truncation=0.4)
    assert torch.equal(images, model.sample(3, stream("s"), truncation=0.4))
    assert not torch.equal(images, model.sample(3, stream("t"), truncation=0.4))
    latents, labels = model.draw(3, stream("s"), 0.4)
    assert torch.equal(images, model(latents, labels, 0.4))
    given = torch.tensor([1, 1, 4])
    assert torch.equal(model.sample(3, stream("s"), labels=given, truncation=0.4), model(latents, given, 0.4))
    drawn = model.draw(5000, stream("many"))[1].bincount(minlength=5)
    assert (drawn - 1000).abs().max() < 150  # five standard deviations


def test_noise_is_the_truncated_normal():
    """Against its variance 1 - 4 phi(2) / (2 Phi(2) - 1) and its distribution function."""
    n, within = 400, math.erf(math.sqrt(2))  # P(|z| < 2)
    noise = biggan.truncated_noise(n, 500, 1.0, stream("noise")).double()
    variance = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / within
    assert noise.abs().max() <= 2
    assert noise.abs().max() > 1.99
    assert noise.mean().item() == pytest.approx(0, abs=0.01)  # five standard deviations
    assert noise.var().item() == pytest.approx(variance, abs=0.01)
    for bound in (0.25, 0.5, 1.0, 1.5):
        share = math.erf(bound / math.sqrt(2)) / within
        assert (noise.abs() < bound).double().mean().item() == pytest.approx(share, abs=0.006)
    half = biggan.truncated_noise(n, 500, 0.5, stream("noise"))
    torch.testing.assert_close(half.double(), noise / 2)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_networks_run_in_bfloat16(model, adversary, training):
    latents, labels = inputs()
    with torch.no_grad():
        images = model.train(training)(latents, labels)
        logits = adversary(images, labels)
        with torch.autocast("cpu", torch.bfloat16):
            rough, judged = model(latents, labels), adversary(images, labels)
    assert rough.dtype == judged.dtype == torch.float32
    assert (rough - images).abs().mean() < 0.02  # of images in [-1, 1]
    torch.testing.assert_close(judged, logits, rtol=0.05, atol=0.05 * float(logits.abs().max()))


# --- batch norm ------------------------------------------------------------------------------------------


def test_statistics_are_interpolated_linearly_by_hand():
    norm = BatchNorm(2, 1e-4)
    squares = torch.arange(51.0).square()
    norm.running_means.copy_(torch.stack([squares, -squares], 1))
    norm.running_vars.copy_(torch.stack([squares + 1, squares + 2], 1))
    cases = {1.0: 2500, 0.5: 625, 0.02: 1, 0.3: 225, 0.51: (625 + 676) / 2, 0.505: 0.75 * 625 + 0.25 * 676,
             0.03: (1 + 4) / 2, 0.99: (2401 + 2500) / 2}  # fmt: skip
    for truncation, wanted in cases.items():
        means, variances = norm.statistics(truncation)
        torch.testing.assert_close(means, torch.tensor([wanted, -wanted], dtype=torch.float32))
        torch.testing.assert_close(variances, torch.tensor([wanted + 1, wanted + 2], dtype=torch.float32))


def test_batch_norm_without_a_condition_is_torchs_at_the_statistics_of_the_truncation():
    norm = lively(BatchNorm(8, 1e-4))
    x = torch.randn(3, 8, 5, 5, generator=stream("x"))
    wanted = F.batch_norm(x, norm.running_means[20], norm.running_vars[20], norm.weight, norm.bias, eps=1e-4)
    torch.testing.assert_close(norm(x, 0.4, None), wanted, rtol=1e-4, atol=1e-5)


def test_in_training_the_batch_is_what_is_normalised_by():
    norm = lively(BatchNorm(8, 1e-4, 6)).train()
    x, condition = 3 + 2 * torch.randn(5, 8, 4, 4, generator=stream("x")), torch.randn(5, 6, generator=stream("c"))
    before = {name: value.clone() for name, value in norm.named_buffers() if "running" in name}
    found = norm(x, 1.0, condition).double()
    rows = x.double().transpose(0, 1).flatten(1)
    mean, deviation = rows.mean(1)[:, None, None], (rows.var(1, correction=0) + 1e-4).sqrt()[:, None, None]
    gain, shift = modulation(norm, condition)
    torch.testing.assert_close(found, (x - mean) / deviation * (1 + gain) + shift, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, norm.get_buffer(name)) for name, value in before.items())


def test_frozen_statistics_are_used_in_training_and_keep_images_apart(model):
    frozen = BigGAN(TINY, frozen=True)
    frozen.load_state_dict(model.state_dict())
    latents, labels = inputs()
    other = torch.cat([latents[:1], -latents[1:]])
    # The singular vectors are those of the weights already, so that another step moves them by rounding only.
    torch.testing.assert_close(frozen.train()(latents, labels, 0.4), model(latents, labels, 0.4), rtol=0, atol=1e-3)
    torch.testing.assert_close(frozen(latents, labels)[0], frozen(other, labels)[0], rtol=0, atol=1e-4)
    model.train()
    assert not torch.allclose(model(latents, labels)[0], model(other, labels)[0], atol=1e-2)


# --- standing statistics -----------------------------------------------------------------------------------


def test_with_one_batch_evaluation_repeats_the_training_pass(model):
    """Then the statistics are those of that very batch; truncations 1, 0.4 and 0.02 are among 51 knots.

    The singular vectors are off, so that a step of power iteration while measuring would show.
    """
    for layer in model.modules():
        if isinstance(layer, Spectral):
            layer.weight_v.add_(0.5 * layer.weight_v.roll(1)).div_(layer.weight_v.norm())
    assert biggan.measure_statistics(model, stream("m"), n=8, batch=8, knots=51) is model
    for truncation in (1.0, 0.4, 0.02):
        latents, labels = model.draw(8, stream("m"), truncation)
        evaluated = model.eval()(latents, labels, truncation)
        for part in model.modules():
            part.training = isinstance(part, BatchNorm)
        torch.testing.assert_close(evaluated, model(latents, labels, truncation), rtol=0, atol=1e-4)


def test_statistics_are_those_of_all_samples_together(model):
    """Of the first batch norm, whose input no other norm touches: mean and variance over 50 images in 4 batches."""
    biggan.measure_statistics(model, stream("m"), n=50, batch=16, knots=6)
    latents, labels = model.draw(50, stream("m"))
    first = model.generator.layers[0]
    for index, truncation in ((50, 1.0), (30, 0.6), (10, 0.2)):
        maps = caught(first, lambda scaled=truncation * latents: model(scaled, labels)).double()
        rows = maps.transpose(0, 1).flatten(1)
        torch.testing.assert_close(first.bn_0.running_means[index].double(), rows.mean(1), rtol=1e-4, atol=1e-5)
        wanted = rows.var(1, correction=0)
        torch.testing.assert_close(first.bn_0.running_vars[index].double(), wanted, rtol=1e-4, atol=1e-5)
    for kept in (first.bn_0.running_means, model.generator.bn.running_vars):
        torch.testing.assert_close(kept[13], 0.7 * kept[10] + 0.3 * kept[20], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("truncation", [1.0, 0.5])
def test_new_images_in_evaluation_look_like_those_in_training(truncation):
    with experiment.seeded(0, "tests"):
        model = BigGAN(TINY)
    latents, labels = model.draw(300, stream("new"), truncation)
    differences = []
    with torch.no_grad():
        for measured in (False, True):
            if measured:
                biggan.measure_statistics(model, stream("m"), n=300, batch=100)
            trained, evaluated = model.train()(latents, labels, truncation), model.eval()(latents, labels, truncation)
            pairs = ((trained.mean(0), evaluated.mean(0)), (trained.std(0), evaluated.std(0)))
            differences.append([float((one - other).abs().mean()) for one, other in pairs])
    assert max(differences[1]) < 0.03  # images are in [-1, 1]
    assert differences[0][0] > 2 * differences[1][0]


def test_measuring_changes_nothing_but_statistics_and_knows_its_stream(model):
    model.train()
    model.generator.bn.eval()
    before = copy.deepcopy(model)
    labels = torch.tensor([4] * 6)
    biggan.measure_statistics(model, stream("m"), n=6, batch=4, labels=labels)
    assert [part.training for part in before.modules()] == [part.training for part in model.modules()]
    for key, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]) != ("running" in key), key
    again = biggan.measure_statistics(before, stream("m"), n=6, batch=4, labels=torch.eye(5)[labels])
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    assert not any(part._forward_pre_hooks for part in model.modules())


# --- spectral norm -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 7), (5, 9), (6, 4, 3, 3), (4, 6, 1, 1)])
def test_the_largest_singular_value_becomes_1(shape):
    layer = Spectral(*shape, eps=1e-4)
    assert torch.linalg.matrix_norm(layer.weight().flatten(1), 2).item() == pytest.approx(1, abs=1e-4)  # at the start
    with torch.no_grad():
        layer.weight_orig.copy_(torch.randn(shape, generator=stream("w")) * 3)
        for _ in range(200):
            weight = layer.weight()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(weight.double(), over_norm(layer), rtol=1e-3, atol=1e-4)


def test_a_pass_in_training_is_one_step_of_power_iteration_and_none_in_evaluation():
    layer, x = Spectral(3, 2, eps=1e-4, bias=False), torch.eye(2)
    with torch.no_grad():
        layer.weight_orig.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        layer.weight_u.copy_(torch.tensor([0.6, 0.8, 0.0]))
        layer.weight_v.copy_(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(layer.eval()(x).T, layer.weight_orig / 0.8)  # u W v
    assert torch.equal(layer.weight_u, torch.tensor([0.6, 0.8, 0.0]))
    layer.train()(x)
    v = torch.tensor([1.2, 0.8]) / math.sqrt(2.08)
    u = torch.tensor([2.4, 0.8, 0.0]) / math.sqrt(6.4)
    torch.testing.assert_close(layer.weight_v, v)
    torch.testing.assert_close(layer.weight_u, u)
    layer.requires_grad_(False)(x)
    torch.testing.assert_close(layer.weight_u, u)
    assert layer(torch.eye(2), first=2).shape == (2, 2)


def test_the_gradient_passes_through_the_singular_value():
    """d(L)/dW = G / s - <G, W> u v^T / s^2 for G the gradient of the divided weight and s = u^T W v."""
    layer = lively(nn.Sequential(Spectral(4, 3, 3, 3, eps=1e-4)))[0]
    g = torch.randn(4, 3, 3, 3, generator=stream("g"))
    (layer.weight() * g).sum().backward()
    w, u, v = layer.weight_orig.detach().flatten(1), layer.weight_u, layer.weight_v
    s = u @ w @ v
    wanted = g.flatten(1) / s - (g.flatten(1) * w).sum() * torch.outer(u, v) / s**2
    torch.testing.assert_close(layer.weight_orig.grad.flatten(1), wanted, rtol=1e-4, atol=1e-5)


def test_two_passes_before_one_backward_and_copies_after_them(model):
    latents, labels = inputs()
    model.train()
    (model(latents, labels).sum() + model(-latents, labels).sum()).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin = copy.deepcopy(model).eval()
    assert torch.equal(twin(latents, labels), model.eval()(latents, labels))
    fresh = BigGAN(TINY).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(latents, labels), model(latents, labels))


def test_a_frozen_network_does_not_move(model, adversary):
    latents, labels = inputs()
    for network in (model, adversary):
        network.requires_grad_(False).train()
    before = copy.deepcopy((model.state_dict(), adversary.state_dict()))
    images = model(latents.requires_grad_(), labels)
    adversary(images, labels).sum().backward()
    assert latents.grad.abs().sum() > 0
    for was, network in zip(before, (model, adversary), strict=True):
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in was.items())


# --- the discriminator and its game --------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "into", "out"), [(False, 8, 8), (True, 8, 8), (True, 8, 16), (False, 8, 12)])
def test_a_block_of_the_discriminator_computes_what_the_paper_says(down, into, out):
    block = lively(discriminator.DisBlock(into, out, down, 1e-4))
    x = torch.randn(3, into, 6, 6, generator=stream("x"))
    half = lambda h: h.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) if down else h
    h, kept = x.double(), x.clone()
    for conv in (block.conv_0, block.conv_1, block.conv_2):
        h = convolved(conv, h.clamp(min=0))
    h = convolved(block.conv_3, half(h.clamp(min=0)))
    short = half(x.double())
    short = torch.cat([short, convolved(block.conv_sc, short)], 1) if out > into else short
    torch.testing.assert_close(block(x).double(), h + short, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)


def test_logits_are_a_projection_on_the_class(adversary):
    images, labels = torch.rand(4, 3, 16, 16, generator=stream("x")) * 2 - 1, torch.tensor([0, 4, 2, 2])
    maps = []
    handle = adversary.blocks[-1].register_forward_hook(lambda _, given, out: maps.append(out))
    logits = adversary.requires_grad_(False)(images, labels)
    handle.remove()
    features = maps[0].double().clamp(min=0).sum((2, 3))
    for image, label in enumerate(labels.tolist()):
        wanted = features[image] @ (over_norm(adversary.linear)[0] + over_norm(adversary.embed)[label])
        assert logits[image].item() == pytest.approx(float(wanted + adversary.linear.bias), rel=1e-4, abs=1e-4)


def test_spread_is_the_deviation_within_a_class_by_hand():
    maps = torch.tensor([1.0, 5.0, 3.0, 7.0, 4.0]).view(5, 1, 1, 1) * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    found = discriminator.spread(maps, torch.tensor([0, 1, 0, 1, 2]))
    one, least = 1.5, discriminator.LEAST_VARIANCE**0.5  # deviations 1 and 2 of the channels, averaged
    torch.testing.assert_close(found, torch.tensor([one, one, one, one, least]), rtol=1e-4, atol=1e-5)


def test_logits_depend_on_how_far_images_of_a_class_are_apart(adversary):
    """The first image alone of its class, and beside a like and an unlike one: three logits."""
    adversary.requires_grad_(False)
    image, other = torch.rand(2, 3, 16, 16, generator=stream("x")) * 2 - 1
    beside = [adversary(torch.stack([image, second]), torch.tensor([1, label]))[0].item()
              for second, label in ((image, 1), (other, 1), (other, 2))]  # fmt: skip
    assert beside[0] == pytest.approx(beside[2], abs=1e-4)
    assert abs(beside[1] - beside[0]) > 1e-3


@pytest.mark.parametrize("config", [TINY, biggan.CONFIGS["objects64"]], ids=["tiny", "objects64"])
def test_gradients_of_the_game_reach_every_parameter(config):
    model, adversary = lively(BigGAN(config)).train(), lively(Discriminator(config)).train()
    labels = torch.arange(2 * config.classes) % config.classes
    images = model(biggan.truncated_noise(len(labels), config.latent, 1.0, stream()), labels)
    discriminator.hinge_generator(adversary(images, labels)).backward()
    for network in (model, adversary):
        for name, value in network.named_parameters():
            assert torch.isfinite(value.grad).all(), name
            assert value.grad.abs().max() > 0, name


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 1.0])
    assert discriminator.hinge_discriminator(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 2) / 2)
    assert discriminator.hinge_generator(fake).item() == pytest.approx(1)


# --- files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """TINY, and one with another block, as if they were what is published."""
    longer = TINY._replace(layers=(*TINY.layers, (False, 2, 2)))
    configs = {"biggan-tiny": TINY, "biggan-longer": longer, "objects64": biggan.CONFIGS["objects64"]}
    monkeypatch.setattr(biggan, "CONFIGS", configs)


@pytest.mark.parametrize("zipped", [True, False])
def test_published_files_are_loaded_in_both_of_torchs_formats(model, tiny, tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
    loaded = biggan.load_published(path, "biggan-tiny")
    assert not loaded.training
    assert loaded.frozen
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(loaded(*inputs(), 0.5), model(*inputs(), 0.5))


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


def test_other_files_are_refused_in_one_line(model, tiny, tmp_path):
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "mark"

    def fails(match, name="biggan-tiny"):
        with pytest.raises(UserError, match=match) as error:
            biggan.load_published(path, name)
        assert "\n" not in str(error.value)

    fails(r"no weights at .*pytorch_model\.bin; the pytorch_model\.bin of biggan-tiny is meant")
    fails("no BigGAN is called 'biggan-64'; there are biggan-tiny, biggan-longer", name="biggan-64")
    torch.save(model.state_dict(), path)
    whole = path.read_bytes()
    fails("holds the weights of biggan-tiny, and those of biggan-longer are wanted", name="biggan-longer")
    path.write_bytes(whole[: len(whole) // 2])
    fails("truncated")
    torch.save(model.state_dict() | {"bomb": Bomb(mark)}, path)
    fails("could run code")
    assert not mark.exists()
    torch.save({key: value for key, value in model.state_dict().items() if key != "generator.gen_z.weight_u"}, path)
    fails(r"not the weights of a BigGAN: generator\.gen_z\.weight_u should be \(512,\) and is absent")
    torch.save(model.state_dict() | {"embeddings.weight": torch.zeros(6, 4)}, path)
    fails(r"embeddings\.weight should be \(6, 5\) and is \(6, 4\)")


def test_a_checkpoint_rebuilds_its_generator(model, tiny, tmp_path):
    made = {"name": "biggan", "settings": {"config": "biggan-tiny"}}
    storage.save_checkpoint(tmp_path / "best.pt", {"architecture": made, "model": model.state_dict()})
    again = biggan.restore(storage.load_checkpoint(tmp_path / "best.pt"))
    assert not again.training
    assert torch.equal(again(*inputs()), model(*inputs()))
    for state in (model.state_dict(), {"architecture": {"name": "cgn", "settings": {}}, "model": {}},
                  {"architecture": {"name": "biggan", "settings": {}}, "model": model.state_dict()}):  # fmt: skip
        with pytest.raises(UserError, match="does not say which BigGAN"):
            biggan.restore(state)
    with pytest.raises(UserError, match="not the weights of a BigGAN"):
        biggan.restore({"architecture": made | {"settings": {"config": "objects64"}}, "model": model.state_dict()})
    with pytest.raises(UserError, match="no BigGAN is called 'biggan-64'"):
        biggan.restore({"architecture": made | {"settings": {"config": "biggan-64"}}, "model": model.state_dict()})
    with pytest.raises(UserError, match="no BigGAN is called"):
        biggan.build("biggan")


@pytest.mark.slow
def test_the_published_size_of_128_makes_images_from_a_file(tmp_path):
    with experiment.seeded(0, "tests"):
        model = biggan.build("biggan-deep-128").eval()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = biggan.load_published(tmp_path / "pytorch_model.bin", "biggan-deep-128")
    with torch.no_grad():
        images = loaded.sample(2, stream(), labels=torch.tensor([207, 985]), truncation=0.4)
        assert torch.equal(images, model.sample(2, stream(), labels=torch.tensor([207, 985]), truncation=0.4))
    assert images.shape == (2, 3, 128, 128)
    assert images.abs().max() <= 1
    assert images.std() > 0.01

"""U2-Net: the published layers and what they compute, deep supervision, feeding, loading."""

import hashlib
import math
import os

import pytest
import torch
import torch.nn.functional as F

import experiment
import storage
from cgn import u2net
from experiment import UserError

# SHA-256 of the lines "name shape" of the state dicts that the authors' code makes, and the number of its parameters.
PUBLISHED = {
    "u2net": (44_009_869, "332839ac06befde1e46149856b4aebfbfccc1e6c907b1261b95983c28765eda9"),
    "u2netp": (1_131_181, "43434dc9a4b88430645d949bf4d8266d352b10e7985b7cdadef415ba49fdcb4c"),
}
# The paper's table of configurations: input, inner and output channels of En_1 to En_6 and of De_5 to De_1.
TABLE = {
    "u2net": "3-32-64 64-32-128 128-64-256 256-128-512 512-256-512 512-256-512"
             " 1024-256-512 1024-128-256 512-64-128 256-32-64 128-16-64",
    "u2netp": "3-16-64 64-16-64 64-16-64 64-16-64 64-16-64 64-16-64"
              " 128-16-64 128-16-64 128-16-64 128-16-64 128-16-64",
}  # fmt: skip
BLOCKS = dict(zip(["1", "2", "3", "4", "5", "6", "5d", "4d", "3d", "2d", "1d"],
                  [7, 6, 5, 4, 4, 4, 4, 4, 5, 6, 7], strict=True))  # fmt: skip
# Mean and deviation of each map that the authors' u2netp computes with the weights and images of `waves`.
MAPS = [(0.295364, 0.023762), (0.406755, 0.043336), (0.724244, 0.061994), (0.387462, 0.074363), (0.391186, 0.089977),
        (0.685495, 0.146811), (0.399266, 0.143189)]  # fmt: skip


def fresh(name, **settings):
    """A network in evaluation mode whose batch norms shift and scale, each channel differently."""
    with experiment.seeded(0, "u2net"):
        model = u2net.build(name, **settings).eval()
        disturb(model)
    return model


def disturb(model):
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
            torch.nn.init.normal_(layer.bias, 0, 0.3)
            torch.nn.init.normal_(layer.running_mean, 0, 0.3)


def pictures(n, height, width):
    return torch.rand(n, 3, height, width, generator=experiment.generator(0, "pictures")) * 2 - 1


def wave(size, shift, step):
    return torch.sin(step * torch.arange(math.prod(size), dtype=torch.double) + shift).reshape(size)


def waves(model):
    """The model in float64 with weights that are sines of their place, by a rule that any code can follow."""
    state = {}
    for number, (key, value) in enumerate(model.state_dict().items()):
        new = wave(value.shape, number, 0.7)
        if key.endswith(("running_var", "bn_s1.weight")):
            new = 1 + new / 2
        elif value.ndim == 4:
            new = new / value[0].numel() ** 0.8
        state[key] = new.to(value.dtype) if key.endswith("tracked") else new
    model.double().load_state_dict(state)
    return model.eval()


# --- layers as published -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_names_shapes_and_order_are_those_of_the_authors_code(name):
    with torch.device("meta"):
        model = u2net.build(name)
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    assert (sum(value.numel() for value in model.parameters()), hashlib.sha256(lines.encode()).hexdigest()) \
        == PUBLISHED[name]  # fmt: skip


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_layers_are_those_of_the_papers_table(name):
    wanted, sides = {"outconv.weight": (1, 6, 1, 1), "outconv.bias": (1,)}, {}
    for (stage, depth), row in zip(BLOCKS.items(), TABLE[name].split(), strict=True):
        into, middle, out = map(int, row.split("-"))
        sides[stage[0]] = out  # a decoder's comes after the encoder's of the same number
        convs = {"in": (into, out)} | {f"{k}": (middle, middle) for k in range(2, depth + 1)}
        convs |= {f"{k}d": (2 * middle, middle) for k in range(2, depth)}
        for conv, (a, b) in (convs | {"1": (out, middle), "1d": (2 * middle, out)}).items():
            at = f"stage{stage}.rebnconv{conv}"
            wanted |= {f"{at}.conv_s1.weight": (b, a, 3, 3), f"{at}.conv_s1.bias": (b,),
                       f"{at}.bn_s1.num_batches_tracked": ()}  # fmt: skip
            wanted |= {f"{at}.bn_s1.{part}": (b,) for part in ("weight", "bias", "running_mean", "running_var")}
    for number, out in sides.items():
        wanted |= {f"side{number}.weight": (1, out, 3, 3), f"side{number}.bias": (1,)}
    with torch.device("meta"):
        found = u2net.build(name).state_dict()
    assert {key: tuple(value.shape) for key, value in found.items()} == wanted


def test_maps_are_those_of_the_authors_code():
    with torch.no_grad():
        made = waves(u2net.U2NetP())(wave((2, 3, 70, 50), 0, 0.37))
    found = [(float(logits.sigmoid().mean()), float(logits.sigmoid().std())) for logits in made]
    for one, two in zip(found, MAPS, strict=True):
        assert one == pytest.approx(two, abs=1e-6)


def plain(weights, x, depth, dilated):
    """An RSU written out, of its state dict: convolution, norm by running statistics, windows padded by hand."""

    def conv(x, name, dilation):
        get = lambda part: weights[f"rebnconv{name}.{part}"]
        x = F.conv2d(F.pad(x, (dilation,) * 4), get("conv_s1.weight"), get("conv_s1.bias"), dilation=dilation)
        x = (x - get("bn_s1.running_mean")[:, None, None]) / (get("bn_s1.running_var")[:, None, None] + 1e-5).sqrt()
        return (x * get("bn_s1.weight")[:, None, None] + get("bn_s1.bias")[:, None, None]).clamp(min=0)

    def nested(x, level):
        """Level `level` of U and all below, at the size of x."""
        dilation = 2 ** (level - 1) if dilated else 1
        here = conv(x, level, dilation)
        if level == depth - 1:
            below = conv(here, depth, 2 * dilation)
        elif dilated:
            below = nested(here, level + 1)
        else:
            height, width = here.shape[2:]
            padded = F.pad(here, (0, width % 2, 0, height % 2), value=-torch.inf)
            small = padded.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
            below = F.interpolate(nested(small, level + 1), (height, width), mode="bilinear")
        return conv(torch.cat([below, here], 1), f"{level}d", dilation)

    x = conv(x, "in", 1)
    return x + nested(x, 1)


@pytest.mark.parametrize(("depth", "dilated"), [(7, False), (5, False), (4, False), (4, True), (2, True)])
def test_a_block_is_its_convolution_plus_a_u_net_of_it(depth, dilated):
    with experiment.seeded(0, "block"):
        block = u2net.RSU(depth, dilated, (3, 5, 4)).eval()
        disturb(block)
        x = torch.randn(2, 3, 37, 26)
    with torch.no_grad():
        torch.testing.assert_close(block.double()(x.double()), plain(block.state_dict(), x.double(), depth, dilated))


# --- maps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "maps"), [("u2netp", 7), ("u2net64", 5)])
@pytest.mark.parametrize("size", [(64, 64), (70, 50), (33, 47), (1, 1)])
def test_every_map_has_the_size_of_the_image(name, maps, size):
    with torch.no_grad():
        made = fresh(name, out=2)(pictures(2, *size))
    assert [tuple(logits.shape) for logits in made] == [(2, 2, *size)] * maps


def test_the_full_network_runs_and_does_not_look_across_the_batch():
    model, images = fresh("u2net"), pictures(2, 34, 40)
    with torch.no_grad():
        both, one = model(images), model(images[1:])
    assert len(both) == 7
    torch.testing.assert_close(both[0][1:], one[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["u2netp", "u2net64"])
def test_the_fused_map_is_a_sum_of_the_others(name):
    model = fresh(name)
    with torch.no_grad():
        fused, *sides = model(pictures(1, 64, 64))
    weights = model.outconv.weight.flatten()
    total = sum(weight * side for weight, side in zip(weights, sides, strict=True)) + model.outconv.bias
    torch.testing.assert_close(fused, total)
    assert fused.std() > 0


def test_folding_keeps_every_pixel_in_its_place():
    """With convolutions that copy, the finest map is the red channel itself: folding and unfolding are inverse."""
    model, images = u2net.U2Net64().eval(), pictures(2, 64, 48)
    copy = torch.zeros_like(model.side1.weight)
    for place in range(4):
        copy[place, place, 1, 1] = 1  # red comes first among the folded channels
    with torch.no_grad():
        model.side1.weight.copy_(copy)
        model.side1.bias.zero_()
        model.stage1d.register_forward_hook(lambda *_: F.pad(F.pixel_unshuffle(images, 2), (0, 0, 0, 0, 0, 4)))
        assert torch.equal(model(images)[1], images[:, :1])


def test_saliency_is_the_fused_map_of_standardised_images():
    model, images = fresh("u2net64"), pictures(2, 64, 64) * 0.5
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        found = model.saliency(images)
        for image, one in zip(images, found, strict=True):
            pixels = (image + 1) / 2
            fed = (pixels / pixels.max() - mean) / deviation
            torch.testing.assert_close(one, model(fed[None])[0][0].sigmoid())
        torch.testing.assert_close(model.saliency(images, standardise=False), model(images)[0].sigmoid())
    assert 0 <= found.min() < found.max() <= 1
    assert not torch.allclose(found, model.saliency(images, standardise=False))


def test_brightness_does_not_matter_and_black_stays_black():
    model, pixels = u2net.U2Net64(), pictures(2, 8, 8) / 2 + 0.5
    dark = model.standardised(pixels * 0.3 * 2 - 1)
    torch.testing.assert_close(dark, model.standardised(pixels * 2 - 1), rtol=1e-4, atol=1e-4)
    black = model.standardised(-torch.ones(1, 3, 8, 8))
    torch.testing.assert_close(black[0, :, 0, 0], torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


def test_a_frozen_network_passes_gradients_to_its_images():
    """What the background loss of the CGN needs."""
    model = fresh("u2net64").requires_grad_(False)
    images = pictures(2, 64, 64).requires_grad_()
    model.saliency(images).mean().backward()
    assert torch.isfinite(images.grad).all()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side"), [("u2net64", 64), ("u2netp", 64)])
def test_every_parameter_gets_a_gradient(name, side):
    model, masks = fresh(name), pictures(4, side, side)[:, :1] > 0
    u2net.loss(model(pictures(4, side, side)), masks).backward()
    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert torch.isfinite(value.grad).all(), key
        assert value.grad.abs().sum() > 0, key


def test_deep_supervision_by_hand():
    """-ln(sigmoid) of log 3 is ln(4/3), and of -log 3 ln 4; at 0 it is ln 2 for every mask."""
    log3 = math.log(3)
    first = torch.tensor([log3, log3, -log3, -log3]).reshape(1, 1, 2, 2)
    masks = torch.tensor([True, False, True, False]).reshape(1, 1, 2, 2)
    one = (2 * math.log(4 / 3) + 2 * math.log(4)) / 4
    assert u2net.loss([first], masks).item() == pytest.approx(one)
    assert u2net.loss([first, torch.zeros(1, 1, 2, 2)], masks).item() == pytest.approx(one + math.log(2))
    soft = torch.full((1, 1, 2, 2), 0.25)
    assert u2net.loss([first[:, :, :1]], soft[:, :, :1]).item() == pytest.approx(
        0.25 * math.log(4 / 3) + 0.75 * math.log(4))  # fmt: skip


def test_certain_mistakes_cost_a_finite_loss_with_a_gradient():
    logits = torch.full((1, 1, 1, 1), -300.0, requires_grad=True)
    found = u2net.loss([logits], torch.ones(1, 1, 1, 1, dtype=torch.bool))
    found.backward()
    assert found.item() == pytest.approx(300)
    assert logits.grad.item() == pytest.approx(-1)
    assert u2net.loss([logits.detach().bfloat16()], torch.ones(1, 1, 1, 1)).dtype == torch.float32


def blobs(n, stream):
    """Bright discs on darker noise, (n, 3, 32, 32) in [-1, 1], and their masks."""
    centres, radii = torch.rand(n, 2, 1, 1, generator=stream) * 16 + 8, torch.rand(n, 1, 1, generator=stream) * 4 + 4
    grid = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))
    masks = ((grid - centres).square().sum(1) < radii.square())[:, None]
    return (torch.randn(n, 3, 32, 32, generator=stream) * 0.3 - 0.4 + masks).clamp(-1, 1), masks


def test_training_finds_blobs():
    with experiment.seeded(0, "blobs"):
        model = u2net.build("u2net64")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=60)
    stream, losses = experiment.generator(0, "blobs"), []
    for _ in range(60):
        images, masks = blobs(8, stream)
        made = u2net.loss(model(model.standardised(images)), masks)
        optimizer.zero_grad()
        made.backward()
        optimizer.step()
        cycle.step()
        losses.append(made.item())
    assert losses[0] == pytest.approx(5 * math.log(2), rel=0.3)  # five maps that know nothing
    assert sum(losses[-5:]) / 5 < losses[0] / 3
    images, masks = blobs(32, stream)
    with torch.no_grad():
        found = model.eval().saliency(images) > 0.5
    assert (found & masks).sum() / (found | masks).sum() > 0.6


# --- loading -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return fresh("u2netp")


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_published_files_are_read(small, prefix, counts, zipped, tmp_path):
    """Also those of DataParallel, of torch 0.4.0, which did not count batches, and of before torch 1.6."""
    state = {prefix + key: value for key, value in small.state_dict().items() if counts or "tracked" not in key}
    torch.save(state, tmp_path / "u2netp.pth", _use_new_zipfile_serialization=zipped)
    model = u2net.load_published(tmp_path / "u2netp.pth", "u2netp")
    assert not model.training
    images = pictures(1, 40, 40)
    with torch.no_grad():
        assert torch.equal(model.saliency(images), small.saliency(images))


class Runs:
    """Its pickle would run code."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_files_that_do_not_fit_are_refused_in_one_line(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, state = tmp_path / "file.pth", small.state_dict()

    def refused(match, name="u2netp"):
        with pytest.raises(UserError, match=match) as caught:
            u2net.load_published(path, name)
        assert "\n" not in str(caught.value)

    refused(r"no weights at .*file\.pth; u2netp\.pth is meant")
    torch.save(state, path)
    refused(r"not the weights of a U2Net: stage1\.rebnconv1\.conv_s1\.weight should be \(32, 64, 3, 3\) and is "
            r"\(16, 64, 3, 3\)", "u2net")  # fmt: skip
    refused("no published saliency network is called 'u2net64'; there are u2net, u2netp", "u2net64")
    path.write_bytes(path.read_bytes()[:100_000])
    refused("truncated, or another kind of file")
    torch.save(state | {"more": Runs()}, path)
    refused("could run code")
    assert not (tmp_path / "ran").exists()
    torch.save({key: value for key, value in state.items() if key != "side3.bias"}, path)
    refused(r"side3\.bias should be \(1,\) and is absent")
    torch.save(state | {"side7.bias": torch.zeros(1)}, path)
    refused(r"side7\.bias should be absent and is \(1,\)")


@pytest.mark.parametrize("name", ["u2net64", "u2netp"])
def test_a_checkpoint_rebuilds_its_network(name, tmp_path):
    model, images = fresh(name, out=2), pictures(1, 40, 40)
    made = {"name": name, "settings": {"out": 2}}
    storage.save_checkpoint(tmp_path / "best.pt", {"architecture": made, "model": model.state_dict()})
    again = u2net.restore(storage.load_checkpoint(tmp_path / "best.pt"))
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(images)[0], model(images)[0])
    with pytest.raises(UserError, match="does not say which saliency network"):
        u2net.restore(model.state_dict())
    with pytest.raises(UserError, match="not the weights of a"):
        u2net.restore({"architecture": made | {"settings": {"out": 1}}, "model": model.state_dict()})
    with pytest.raises(UserError, match="no saliency network is called 'unet'; there are u2net, u2netp, u2net64"):
        u2net.restore({"architecture": made | {"name": "unet"}, "model": model.state_dict()})

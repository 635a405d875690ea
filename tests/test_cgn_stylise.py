"""Stylisation: the walk, losses against plain formulas, what weights do, and that no image sees another."""

import math

import pytest
import torch
from PIL import Image
from test_cgn_dance import CLASSES, LATENT, Model

import datasets
import experiment
from cgn import dance, losses, objects, objects64, stylise

SIDE = 32


@pytest.fixture(scope="module")
def network():
    return losses.RandomFilters().requires_grad_(False)


def noise(n, side=SIDE, purpose="noise"):
    return torch.rand(n, 3, side, side, generator=experiment.generator(0, purpose)) * 2 - 1


def gradient(side=SIDE):
    """A smooth image (1, 3, side, side)."""
    line = torch.linspace(-0.8, 0.8, side)
    return torch.stack([line.expand(side, -1), line[:, None].expand(-1, side), 0.5 * line.expand(side, -1)])[None]


def stripes(n, side=SIDE):
    """Stripes of n directions and colours (n, 3, side, side)."""
    y, x = torch.meshgrid(torch.arange(side) * 1.0, torch.arange(side) * 1.0, indexing="ij")
    waves = [torch.sin(1.2 * (x * math.cos(k) + y * math.sin(k))) for k in range(n)]
    return torch.stack([torch.stack([wave, -wave, wave * 0 + 0.4 * (k % 2)]) for k, wave in enumerate(waves)])


# --- the walk -------------------------------------------------------------------------------------


def test_the_walk_goes_round_through_different_classes():
    labels, latents = stylise.walk(3, 12, CLASSES, LATENT, 0)
    corners = labels[::4]
    assert corners.sum(1).tolist() == [1, 1, 1]
    assert corners.argmax(1).unique().numel() == 3
    torch.testing.assert_close(latents[::4], dance.anchors(3, LATENT, 0, "style anchor"))
    for k in range(12):  # between the corners before and after, the last one being followed by the first
        before, after, share = corners[k // 4], corners[(k // 4 + 1) % 3], k % 4 / 4
        torch.testing.assert_close(labels[k], (1 - share) * before + share * after)
    other, _ = stylise.walk(3, 12, CLASSES, LATENT, 1)
    assert not torch.equal(labels, other)


@pytest.mark.parametrize(("stops", "points"), [(2, 1), (5, 3), (3, 7), (5, 12), (3, 100)])
def test_any_number_of_points_fits(stops, points):
    labels, latents = stylise.walk(stops, points, CLASSES, LATENT, 0)
    assert (labels.shape, latents.shape) == ((points, CLASSES), (points, LATENT))
    torch.testing.assert_close(labels.sum(1), torch.ones(points))


def test_more_stops_than_classes_are_refused():
    with pytest.raises(experiment.UserError, match="--stops 6: the generator has 5 classes"):
        stylise.walk(6, 12, CLASSES, LATENT, 0)


def test_textures_are_the_object_mechanism_s():
    model = Model()
    labels, latents = stylise.walk(3, 20, CLASSES, LATENT, 0)
    textures = stylise.paint(model, labels, latents, 0.5)
    expected = model.parts((labels,) * 3, 0.5 * latents, 0.5).object
    torch.testing.assert_close(textures, expected)
    assert model.sizes == [16, 4, 20]


# --- losses ---------------------------------------------------------------------------------------


def test_statistics_are_gram_matrices_of_every_layer_at_every_size(network):
    images = noise(2)
    maps, grams = stylise.statistics(network, images)
    assert torch.equal(maps, network(images)[-1])
    assert len(grams) == stylise.OCTAVES
    for octave, gram in enumerate(grams):
        side = SIDE // 2**octave
        small = images.view(2, 3, side, 2**octave, side, 2**octave).mean((3, 5))
        features = network(small)[0]
        expected = torch.einsum("bchw,bdhw->bcd", features, features) / features[0, 0].numel()
        torch.testing.assert_close(gram, expected)


def test_the_style_loss_is_the_relative_squared_distance():
    grams = [torch.tensor([[[1.0, 2], [2, 0]], [[1, 0], [0, 1]]]), torch.full((2, 1, 1), 6.0)]
    targets = [torch.tensor([[[1.0, 0], [0, 0]], [[1, 0], [0, 1]]]), torch.full((2, 1, 1), 4.0)]
    found = stylise.style_loss(grams, targets)  # 8 / 1 and 4 / 16 in the first image, 0 and 4 / 16 in the second
    assert found.tolist() == pytest.approx([(8 + 0.25) / 2, 0.25 / 2])


def test_an_image_has_its_own_style(network):
    images = noise(3)
    grams = stylise.statistics(network, images)[1]
    assert stylise.style_loss(grams, grams).tolist() == [0, 0, 0]
    other = stylise.statistics(network, stripes(3))[1]
    assert (stylise.style_loss(grams, other) > 0.1).all()


# --- stylising ------------------------------------------------------------------------------------


def test_the_style_comes_near_and_the_content_stays_nearer_than_without(network):
    content, textures = gradient(), stripes(3)
    images, course = stylise.stylise(network, content, textures, 10, 60, 0.03)
    assert images.shape == (3, 3, SIDE, SIDE)
    assert images.abs().max() <= 1
    assert course.shape == (61, 3)
    assert (course[-1] < 0.5 * course[0]).all()
    found = stylise.style_loss(stylise.statistics(network, images)[1], stylise.statistics(network, textures)[1])
    torch.testing.assert_close(course[-1], found)
    free, _ = stylise.stylise(network, content, textures, 1e6, 60, 0.03)  # next to which the content is nothing
    away = lambda made: (network(made)[0] - network(content)[0]).square().mean()
    assert away(images) < 0.8 * away(free)


def test_more_weight_brings_the_style_nearer(network):
    ends = [stylise.stylise(network, gradient(), stripes(2), weight, 40, 0.03)[1][-1] for weight in (0.1, 1, 10)]
    assert (ends[0] > ends[1]).all()
    assert (ends[1] > ends[2]).all()


def test_without_weight_the_image_stays(network):
    images, course = stylise.stylise(network, gradient(), stripes(3), 0, 20, 0.03)
    assert torch.equal(images, gradient().expand(3, -1, -1, -1))
    torch.testing.assert_close(course[20], course[0])


def test_each_image_is_made_as_if_it_were_alone(network):
    textures = stripes(3)
    together, _ = stylise.stylise(network, gradient(), textures, 10, 10, 0.03)
    for k in range(3):
        alone, _ = stylise.stylise(network, gradient(), textures[k : k + 1], 10, 10, 0.03)
        assert (alone[0] - together[k]).abs().mean() < 1e-4  # Adam may turn a rounding error into a step of a pixel
    assert (together[0] - together[1]).abs().mean() > 0.01


def test_textures_may_have_another_size(network):
    images, course = stylise.stylise(network, gradient(48), stripes(2, 32), 10, 30, 0.03)
    assert images.shape == (2, 3, 48, 48)
    assert (course[-1] < course[0]).all()


def test_vgg16_is_a_network_as_well():
    with experiment.seeded(0, "tests"):
        vgg = losses.VGG16(weights=None)
    grams = stylise.statistics(vgg, noise(1))[1]
    assert [gram.shape[1] for gram in grams] == [64, 128, 256, 512] * stylise.OCTAVES
    _, course = stylise.stylise(vgg, gradient(), noise(1), 10, 3, 0.03)
    assert course[-1] < course[0]


# --- the script -----------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch):
    """A model instead of a trained one, and a made set of a single image."""
    monkeypatch.setattr(objects, "load", lambda run, device: Model())
    image, nowhere = datasets.to_bytes(gradient()), torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    scenes = objects64.Scenes(image, torch.zeros(1, 3, dtype=torch.int64), nowhere)
    monkeypatch.setattr(objects64, "read", lambda split, device: {"original": scenes}[split])


SHORT = ("--device", "cpu", "--points", 14, "--stops", 3, "--steps", 8, "--results")


def test_the_script_writes_sheet_and_walk_and_always_alike(tmp_path, call, made):
    code, out, _ = call("cgn.stylise", *SHORT, tmp_path / "one")
    assert code == 0
    assert "14 textures; mean style loss" in out
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["stylised.gif", "stylised.png"]
    with Image.open(tmp_path / "one/stylised.gif") as film:
        assert (film.n_frames, film.size) == (14, (768, 256))
    assert Image.open(tmp_path / "one/stylised.png").width > 1000
    call("cgn.stylise", *SHORT, tmp_path / "two")
    call("cgn.stylise", "--seed", 1, *SHORT, tmp_path / "three")
    one, two, three = ((tmp_path / name / "stylised.gif").read_bytes() for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_an_image_of_ones_own_is_cut_to_a_square(tmp_path, call, made):
    wide = Image.new("RGB", (120, 40), "red")
    wide.paste("blue", (40, 0, 80, 40))  # its middle
    wide.save(tmp_path / "a.png")
    image = stylise.read_content(tmp_path / "a.png", 32, torch.device("cpu"))
    torch.testing.assert_close(image, torch.tensor([-1.0, -1, 1]).view(1, 3, 1, 1).expand(-1, -1, 32, 32))
    code, _, _ = call("cgn.stylise", "--image", tmp_path / "a.png", "--size", 40, *SHORT, tmp_path)
    assert code == 0


def test_the_image_of_the_set_is_enlarged_to_the_size(made):
    small, large = (stylise.read_content(None, side, torch.device("cpu")) for side in (32, 64))
    assert (small - gradient()).abs().max() < 1 / 127
    assert large.shape == (1, 3, 64, 64)
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().max() < 0.02


@pytest.mark.parametrize(("options", "match"), [
    (("--image", "none.png"), "no image at none.png"), (("--image", "README.md"), "README.md is not an image"),
    (("--size", 8), "--size 8: it must be from 32 to 1024"), (("--stops", 6), "--stops 6: the generator has 5"),
    (("--stops", 1), "--stops must be a whole number of at least 2"), (("--weight", -1), "--weight must be"),
    (("--features", "alexnet"), "--features must be one of random, vgg16"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(tmp_path, call, made, options, match):
    code, _, err = call("cgn.stylise", "--device", "cpu", *options, "--results", tmp_path)
    assert code == 2
    assert match in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

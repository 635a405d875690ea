"""Variants of MNIST: what is painted, by which draws, and what is refused."""

import shutil

import pytest
import torch
from conftest import PUBLISHED
from PIL import Image

import datasets
import experiment
import textures
from cgn import data


@pytest.fixture(scope="module")
def variants():
    return {name: data.Variant(name) for name in data.VARIANTS}


def scenes(variant, n=400, spurious=True, seed=0):
    return variant.scenes(variant.shapes("train")[:n], experiment.generator(seed, "tests"), spurious)


@pytest.mark.parametrize("name", data.VARIANTS)
def test_images_are_what_their_parts_say(variants, name):
    variant, stream = variants[name], lambda: experiment.generator(3, "parts")
    shapes = variant.shapes("train")[:50]
    image = variant.paint(shapes.alphas / 255, shapes.labels, shapes.labels, stream())
    both = stream()
    background, object_ = variant.background(shapes.labels, both), variant.object(shapes.labels, both)
    expected = shapes.alphas / 255 * object_ + (1 - shapes.alphas / 255) * background
    assert image.shape == (50, 3, 32, 32)
    assert image.min() >= -1.1
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_splits_are_the_published_ones(variants, test_digits):
    assert [len(variants[name].shapes("train")) for name in data.VARIANTS] == [60_000, 50_000, 50_000]
    assert [len(variants[name].shapes("test")) for name in data.VARIANTS] == [10_000] * 3
    assert torch.equal(variants["colored"].shapes("test").labels, test_digits.labels)


def test_masks_are_pixels_above_a_tenth_and_stay_off_the_band_that_abduction_trusts(variants, test_digits):
    shapes = variants["colored"].shapes("test")
    index = torch.arange(32) * 28 // 32
    large = test_digits.images[:, :, index][:, :, :, index]
    assert torch.equal(shapes.masks(), large > 0.1)
    band = shapes.masks().clone()
    band[:, :, 4:-4, 4:-4] = False
    assert band.sum() / (len(band) * (32**2 - 24**2)) < 0.02


@pytest.mark.parametrize("name", ["colored", "double_colored"])
def test_colour_gives_the_class_away_in_training_only(variants, name):
    variant = variants[name]
    train, test = scenes(variant), scenes(variant, 4000, spurious=False)
    assert torch.equal(train.objects, train.labels)
    assert torch.equal(train.backgrounds, train.labels)
    for other in (test.objects, test.backgrounds):
        assert abs(float((other == test.labels).float().mean()) - 0.1) < 0.03
    assert abs(float((test.objects == test.backgrounds).float().mean()) - 0.1) < 0.03


def test_colours_of_double_colored(variants):
    """The object of a class has the background colour of the class four further on."""
    some = scenes(variants["double_colored"], 300)
    pixels = (some.images + 1) / 2
    for number in range(10):
        one = some.labels == number
        for mask, k in ((~some.masks, number), (some.masks, (number + data.SHIFT) % 10)):
            mean = (pixels[one] * mask[one]).sum((0, 2, 3)) / mask[one].sum()
            torch.testing.assert_close(mean, torch.tensor(data.PALETTE[k]) / 255, atol=0.02, rtol=0)


def test_jitter_does_not_wander(variants):
    """The original added its jitter to the palette itself; here the thousandth image is as near as the first."""
    variant = variants["double_colored"]
    before = variant.palette.clone()
    late = scenes(variant, 3000).images[-300:, :, 0, 0]
    assert torch.equal(variant.palette, before)
    labels = variant.shapes("train").labels[2700:3000]
    assert ((late + 1) / 2 - before[labels]).std() < 0.012


def test_the_original_let_its_colours_wander(variants):
    """In its own test set even images of one colour can be read, as that colour has drifted apart."""
    variant = variants["double_colored"]
    test = variant.wandering_test()
    shapes = variant.shapes("test")
    assert torch.equal(test.labels, shapes.labels)
    ground = (test.images[:, :, 0, 0] + 1) / 2
    off = (ground - variant.palette[test.backgrounds]).norm(dim=1)
    assert off[:10].max() < 0.06  # the walk of the first process begins
    assert off[:1250].view(5, 250).mean(1).diff().gt(0).all()  # and leads away
    assert off[1250:1260].max() < 0.06  # the second begins anew
    same = ~variant.visible(test)
    contrast = ((test.images * test.masks).sum((2, 3)) / test.masks.sum((2, 3)) - test.images[:, :, 0, 0]).norm(dim=1)
    assert contrast[same].median() > 0.15


def test_visible_are_those_whose_colours_differ(variants):
    variant = variants["double_colored"]
    test = variant.test()
    seen = variant.visible(test)
    assert 0.88 < seen.float().mean() < 0.92
    contrast = (test.images * test.masks).sum((2, 3)) / test.masks.sum((2, 3)) - test.images[:, :, 0, 0]
    assert (contrast.abs().sum(1) > 0.3)[seen].all()
    assert (contrast.abs().sum(1) < 0.3)[~seen].all()


@pytest.mark.parametrize("name", data.VARIANTS)
def test_the_same_stream_paints_the_same_bytes(variants, name):
    first, again, other = (scenes(variants[name], 60, False, seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_a_wildlife_image_is_cut_out_of_its_textures(variants):
    variant = variants["wildlife"]
    some = scenes(variant, 5)
    windows = variant.textures[1][some.labels[0]].permute(1, 2, 0, 3, 4)
    ground = (~some.masks[0]).expand(3, -1, -1)
    off = (datasets.from_bytes(windows) - some.images[0]).abs() * ground
    assert off.amax((2, 3, 4)).min() < 1e-6


def test_procedural_textures_are_always_the_same_twenty():
    objects, backgrounds = textures.procedural_textures()
    again = textures.procedural_textures()
    assert torch.equal(objects, again[0])
    assert torch.equal(backgrounds, again[1])
    both = torch.cat([objects, backgrounds]).float().flatten(1)
    assert (torch.cdist(both, both) + 1e9 * torch.eye(20)).min() > 1000


def folder_of_textures(path, n=10):
    for kind in ("object", "background"):
        (path / kind).mkdir()
        for number in range(n):
            Image.new("RGB", (40, 50), (20 * number, 9, 99)).save(path / kind / f"{number}_plain.png")
    return path


def test_textures_of_your_own_are_taken_in_the_order_of_their_names(tmp_path):
    objects, _ = textures.read_textures(folder_of_textures(tmp_path))
    assert objects.shape == (10, 3, 150, 150)
    assert objects[:, 0, 0, 0].tolist() == [20 * number for number in range(10)]


def test_what_is_wrong_with_textures_is_said(tmp_path, call):
    folder_of_textures(tmp_path)
    (tmp_path / "object/7_plain.png").unlink()
    code, _, error = call("cgn.data", "--textures", tmp_path, "--results", tmp_path / "r")
    assert code == 2
    assert "object should have ten textures" in error
    assert "none begins with 7" in error
    shutil.copy(tmp_path / "object/0_plain.png", tmp_path / "object/0_twice.png")
    with pytest.raises(experiment.UserError, match="none begins with 7"):  # ten files, but not of ten classes
        textures.read_textures(tmp_path)
    (tmp_path / "object/0_twice.png").unlink()
    (tmp_path / "object/7_plain.png").write_text("no picture")
    with pytest.raises(experiment.UserError, match=r"7_plain\.png cannot be read"):
        textures.read_textures(tmp_path)
    with pytest.raises(experiment.UserError, match="has 0"):
        textures.read_textures(tmp_path / "nowhere")
    with pytest.raises(experiment.UserError, match="colored has none"):
        data.Variant("colored", textures=tmp_path)
    with pytest.raises(experiment.UserError, match="there are colored, double_colored, wildlife"):
        data.Variant("striped")


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published textures are not here")
def test_the_published_textures_are_recognised():
    variant = data.Variant("wildlife", textures=PUBLISHED / "textures")
    assert variant.textures_name == "published"
    assert data.Variant("wildlife").textures_name == "procedural"
    assert data.Variant("colored").textures_name is None


def test_the_sheet(call, tmp_path):
    code, out, _ = call("cgn.data", "--results", tmp_path)
    assert code == 0
    assert "variants.png" in out
    assert Image.open(tmp_path / "variants.png").width > 1000

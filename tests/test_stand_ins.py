"""Strokes and crowds: what their labels mean, that they are always the same."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

import public_sets
import stand_ins


@pytest.fixture(scope="module")
def crowds():
    return stand_ins.crowds("test", root=ROOT / "data", number=60)


@pytest.mark.parametrize("width", [2, 4, 6])
def test_the_width_of_a_drawn_stroke(width):
    bar = torch.zeros(1, 1, 28, 28)
    bar[..., 2:26, 10 : 10 + width] = 1
    expected = 2 * 24 * width / (2 * (24 + width))  # the ends count as outline, too
    assert stand_ins.stroke_width(bar).item() == pytest.approx(expected, rel=0.03)


def test_wider_strokes_are_wider(test_digits):
    digits = test_digits.images[:50]
    dilated = F.max_pool2d(digits, 3, stride=1, padding=1)
    assert (stand_ins.stroke_width(dilated) > stand_ins.stroke_width(digits)).all()


def test_strokes_are_the_outer_fifths(test_digits):
    strokes = stand_ins.strokes("test", root=ROOT / "data")
    widths = stand_ins.stroke_width(strokes.images)
    assert widths[strokes.labels == 0].max() < widths[strokes.labels == 1].min()
    assert 0.75 * len(test_digits) < len(strokes) < 0.85 * len(test_digits)
    assert 0.4 < strokes.labels.float().mean() < 0.6


def test_density_maps_add_up_to_the_counts(crowds):
    assert crowds.images.shape == (60, 3, 64, 64)
    assert crowds.images.dtype == torch.uint8
    assert torch.allclose(crowds.densities.sum((1, 2, 3)), crowds.labels, atol=1e-4)
    assert crowds.labels.min() >= 0
    assert crowds.labels.max() <= 20
    assert len(crowds.labels.unique()) > 12


def test_density_maps_peak_where_the_points_are():
    maps = stand_ins.density_maps(torch.tensor([[10.0, 40.0]]), torch.tensor([[20.0, 50.0]]),
                                  torch.tensor([[True, False]]))  # fmt: skip
    assert divmod(int(maps.flatten().argmax()), 64) == (10, 20)
    assert maps.sum().item() == pytest.approx(1, abs=1e-5)


def test_digits_are_where_the_density_is(crowds):
    """Where the map is high the image is brighter than its ground, which is dark."""
    bright = crowds.images.float().amax(1) / 255
    assert bright[crowds.labels == 0].max() <= 0.36
    near = F.max_pool2d(bright.unsqueeze(1), 9, stride=1, padding=4)  # the brightest within 4 pixels
    peaks = near[crowds.densities > 0.039]  # the peak of one digit is 1 / (2 pi 2^2) = 0.0398
    assert peaks.min() > 0.36  # the ground is at most 0.35
    assert peaks.quantile(0.05) > 0.5


def test_always_the_same_and_splits_differ(crowds):
    again = stand_ins.crowds("test", root=ROOT / "data", number=60)
    assert all(torch.equal(a, b) for a, b in zip(crowds, again, strict=True))
    other = stand_ins.crowds("train", root=ROOT / "data", number=60)
    assert not torch.equal(other.images, crowds.images)


def test_parts_of_crowds(crowds):
    part = crowds[torch.tensor([3, 1])]
    assert len(part) == 2
    assert torch.equal(part.labels, crowds.labels[[3, 1]])
    assert torch.equal(part.densities[0], crowds.densities[3])


def test_the_committed_images_are_what_the_script_writes(tmp_path, call):
    code, out, _ = call("stand_ins", "--images", tmp_path)
    assert code == 0
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(written) == 6
    assert out.count("\n") == 6
    for name, data in written.items():
        ours, committed = (public_sets.to_tensor(public_sets.open_image(path), (3, 64, 64))
                           for path in (tmp_path / name, ROOT / "images" / name))  # fmt: skip
        assert torch.equal(ours, committed), (name, len(data))

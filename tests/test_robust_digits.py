"""The embedded set of part 6: what agrees with what, in which split, and that it is always the same."""

import pytest
import torch

import experiment
import textures
from robust_training import digits


@pytest.fixture(scope="module", params=["ten", "two"])
def splits(request):
    return request.param, {split: digits.read(request.param, split) for split in ("val", *digits.TESTS)}


def test_windows_are_parts_of_the_canvases_that_were_chosen():
    """A canvas's pixels say where they are; on one of its own size there is one place."""
    canvases = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6).to(torch.uint8)
    found = textures.windows(canvases, torch.tensor([1, 0]), 4, experiment.generator(0, "tests"))
    for one, number in zip(found, (1, 0), strict=True):
        first = round(float(one[0, 0, 0]) * 255) - 108 * number
        top, left = divmod(first, 6)
        assert torch.equal(one, canvases[number, :, top:top + 4, left:left + 4] / 255)
    assert torch.equal(textures.windows(canvases, torch.tensor([1]), 6, None)[0], canvases[1] / 255)


def test_grounds_agree_as_their_split_says(splits):
    labels, found = splits
    share = {split: float((scenes.places == scenes.labels).float().mean()) for split, scenes in found.items()}
    assert share["val"] == pytest.approx(digits.AGREE, abs=0.03)
    assert [share[split] for split in ("original", "mixed_same", "only_background")] == [1, 1, 1]
    assert share["flip"] == 0
    assert share["mixed_rand"] == pytest.approx(1 / len(digits.CLASSES[labels]), abs=0.04)
    assert (found["no_background"].places == -1).all()


def test_tests_show_the_same_digits_in_the_same_places(splits):
    _, found = splits
    for split in digits.TESTS[1:]:
        assert torch.equal(found[split].labels, found["original"].labels)
        if split != "only_background":
            assert torch.equal(found[split].masks, found["original"].masks)
    masks = found["original"].masks
    assert not found["only_background"].masks.any()
    for split in ("mixed_same", "mixed_rand", "no_background"):
        kept = found[split].images.masked_fill(~masks, 0)
        assert torch.equal(kept, found["original"].images.masked_fill(~masks, 0))
    assert (found["no_background"].images.masked_fill(masks, 0) == 0).all()


def test_every_digit_is_lighter_than_its_ground_and_inside_its_mask(splits):
    _, found = splits
    scenes = found["original"]
    light = scenes.images.float().mean(1, keepdim=True)
    inside = (light * scenes.masks).sum((1, 2, 3)) / scenes.masks.sum((1, 2, 3))
    outside = (light * ~scenes.masks).sum((1, 2, 3)) / (~scenes.masks).sum((1, 2, 3))
    assert (inside > outside + 25).float().mean() > 0.98
    area = scenes.masks.float().mean((1, 2, 3))
    assert area.min() > 0.02
    assert area.max() < 0.35


def test_batches_come_once_each_and_a_number_names_their_order(splits):
    _, found = splits
    scenes = found["val"]
    order = lambda seed: torch.cat([batch.labels for batch in scenes.batches(64, seed)])
    assert torch.equal(order(None), scenes.labels)
    assert torch.equal(order(3), order(3))
    assert not torch.equal(order(3), order(4))
    assert torch.equal(order(3).sort().values, scenes.labels.sort().values)
    batch = next(iter(scenes.batches(64)))
    assert batch.images.abs().max() <= 1
    assert batch.known.all()


def test_the_same_bytes_wherever_they_are_made():
    again = [digits.read("two", "mixed_rand") for _ in range(2)]
    assert torch.equal(again[0].images, again[1].images)
    assert torch.equal(again[0].places, again[1].places)


def test_the_sheet(call, tmp_path):
    code, out, _ = call("robust_training.digits", "--labels", "two", "--results", tmp_path)
    assert code == 0
    assert (tmp_path / "splits_two.png").is_file()
    assert "splits_two.png" in out


def test_painting_over_keeps_one_infill_for_each_image_in_any_order():
    scenes = digits.read("ten", "val").first(230)
    scenes.paint_over(lambda images, holes: torch.where(holes, images.mean((1, 2, 3), keepdim=True), images))
    assert scenes.infills.shape == (230, 3, 64, 64)
    for batch in scenes.batches(50, stream_seed=3):
        around = torch.where(batch.rectangles, 0.0, (batch.infills - batch.images).abs())
        assert around.max() == 0
        inside = torch.where(batch.rectangles, (batch.infills - batch.images.mean((1, 2, 3), keepdim=True)).abs(), 0.0)
        assert inside.max() <= 1 / 127.5

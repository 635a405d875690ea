"""Batches, boxes, infills, background swaps and image baselines of part 6: what each pixel must be."""

import pytest
import torch

import experiment
from robust_training import augment
from robust_training.batch import boxes_to_masks, extent, from_masks, rectangles


def stream(seed=0):
    return experiment.generator(seed, "tests")


def batch_of(*boxes, side=12, labels=None):
    """A Batch of random images with a foreground in each box (left, top, right, bottom), or () for none."""
    masks = torch.stack([boxes_to_masks(torch.tensor([box] if box else []).view(-1, 4), side, side) for box in boxes])
    images = torch.rand(len(boxes), 3, side, side, generator=stream(1)) * 2 - 1
    labels = torch.arange(len(boxes)) if labels is None else torch.tensor(labels)
    return from_masks(images, labels, labels, masks)


# --- geometry -------------------------------------------------------------------------------------


def test_rectangles_surround_masks_wherever_they_lie():
    masks = torch.zeros(4, 1, 6, 8, dtype=torch.bool)
    masks[0, 0, 2, 0] = masks[0, 0, 4, 3] = True  # touches the left edge
    masks[1, 0, 5, 7] = True  # the last pixel
    masks[3] = True
    top, bottom, left, right = extent(masks)
    assert (top.tolist(), bottom.tolist()) == ([2, 5, 0, 0], [5, 6, 0, 6])
    assert (left.tolist(), right.tolist()) == ([0, 7, 0, 0], [4, 8, 0, 8])
    assert rectangles(masks).flatten(1).sum(1).tolist() == [12, 1, 0, 48]
    assert rectangles(masks)[0, 0, 2:5, :4].all()


def test_boxes_are_cut_at_the_border_and_joined():
    mask = boxes_to_masks(torch.tensor([[-3.0, 0, 2, 2], [4, 3, 99, 4]]), 5, 6)
    assert mask[0].int().tolist() == [[1, 1, 0, 0, 0, 0]] * 2 + [[0] * 6, [0, 0, 0, 0, 1, 1], [0] * 6]
    for box in ([2.0, 2, 2, 4], [6.0, 0, 9, 3]):
        with pytest.raises(experiment.UserError, match="empty or outside an image of 6 x 5"):
            boxes_to_masks(torch.tensor([box]), 5, 6)


def test_a_batch_is_cut_and_changed_by_its_images():
    batch = batch_of((0, 0, 3, 3), (), (2, 2, 5, 9))
    assert batch.known.tolist() == [True, False, True]
    assert len(batch[1:]) == 2
    assert all(torch.equal(a, b[1:]) for a, b in zip(tuple(batch[1:])[:6], tuple(batch)[:6], strict=True))
    assert batch.but(labels=batch.labels + 5).labels.tolist() == [5, 6, 7]
    with pytest.raises(experiment.UserError, match="do not fit"):
        from_masks(batch.images, batch.labels, batch.places, torch.zeros(3, 1, 4, 4, dtype=torch.bool))


# --- counterfactuals ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in augment.COUNTERFACTUALS if name != "cagan"])
def test_only_the_box_changes(name):
    batch = batch_of((0, 2, 5, 9), (), (7, 0, 12, 12))
    made = augment.counterfactual(name, batch, stream())
    outside = ~batch.rectangles.expand_as(made)
    assert torch.equal(made[outside], batch.images[outside])
    assert not torch.equal(made[0], batch.images[0])
    assert torch.equal(made[1], batch.images[1])
    assert made.abs().max() <= 1
    assert torch.equal(made, augment.counterfactual(name, batch, stream()))


def test_mean_is_grey_and_random_is_one_colour_with_noise():
    batch = batch_of((0, 0, 12, 12), side=12)
    assert (augment.counterfactual("mean", batch, stream()) == 0).all()
    pixels = (torch.cat([augment.noise(batch, stream(k)) for k in range(50)]) + 1) / 2
    inner = pixels[((pixels.mean((2, 3), keepdim=True) - 0.5).abs() < 0.05).expand_as(pixels)]
    assert inner.std() == pytest.approx(0.2, abs=0.03)


def test_shuffle_keeps_the_pixels_of_its_own_image_with_their_channels_together():
    batch = batch_of((1, 2, 6, 8), (3, 3, 9, 12))
    made = augment.shuffled(batch.images, batch.rectangles, stream())
    for k in range(2):
        inside = batch.rectangles[k, 0]
        before, after = (images[k][:, inside].T.tolist() for images in (batch.images, made))
        assert sorted(before) == sorted(after)
        assert before != after


@pytest.mark.parametrize(("box", "strip"), [
    ((8, 3, 12, 9), (0, 12, 0, 8)), ((0, 3, 4, 9), (0, 12, 4, 8)),
    ((3, 9, 9, 12), (0, 9, 0, 12)), ((3, 0, 9, 3), (3, 9, 0, 12)),
])  # fmt: skip
def test_tile_repeats_the_largest_strip_beside_the_box(box, strip):
    batch = batch_of(box)
    area, *where = (int(part) for part in augment.strips(batch.rectangles))
    assert tuple(where) == strip
    assert area == strip[1] * strip[3]
    tiled = augment.tiled(batch.images, batch.rectangles)[0]
    row, rows, column, columns = strip
    for y in range(12):
        for x in range(12):
            source = batch.images[0, :, row + (y - row) % rows, column + (x - column) % columns]
            assert torch.equal(tiled[:, y, x], source)
    assert not batch.rectangles[0, 0, row:row + rows, column:column + columns].any()


def test_a_box_that_leaves_no_background_has_no_tile():
    batch = batch_of((0, 0, 12, 12), (0, 0, 11, 12))
    assert augment.usable(batch, "tile").tolist() == [False, True]
    assert (augment.tiled(batch.images, batch.rectangles)[0] == 0).all()


def test_cagan_takes_the_infills_of_the_batch_and_says_when_it_has_none():
    batch = batch_of((2, 2, 6, 6))
    with pytest.raises(experiment.UserError, match="cagan needs infills"):
        augment.counterfactual("cagan", batch, stream())
    made = augment.counterfactual("cagan", batch.but(infills=torch.full_like(batch.images, -0.5)), stream())
    assert torch.equal(made, torch.where(batch.rectangles, -0.5, batch.images))
    with pytest.raises(experiment.UserError, match="no counterfactual infill is called 'blur'; there are mean"):
        augment.counterfactual("blur", batch, stream())


# --- factuals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(augment.FACTUALS))
def test_the_foreground_stays_and_the_background_goes(name):
    batch = batch_of((2, 3, 6, 8), (5, 5, 9, 9), (), labels=[0, 1, 2])
    towards = lambda images, labels: torch.ones_like(images)
    made = augment.factual(name, batch, stream(), towards, steps=2)
    inside = batch.masks.expand_as(made)
    assert torch.equal(made[inside], batch.images[inside])
    assert torch.equal(made[2], batch.images[2])  # no foreground is known
    changed = (made != batch.images).any(1)[:2]
    assert changed[~batch.masks[:2, 0]].float().mean() > 0.8


def test_mixed_rand_lays_the_tiled_background_of_another_class_under_it():
    batch = batch_of((2, 3, 6, 8), (5, 5, 9, 9), (0, 0, 3, 3), labels=[0, 0, 1])
    made = augment.factual("mixed_rand", batch, stream())
    other = augment.tiled(batch.images, batch.rectangles)
    ground = ~batch.masks.expand_as(made)
    assert torch.equal(made[:2][ground[:2]], other[2:].expand(2, -1, -1, -1)[ground[:2]])


def test_one_class_or_one_image_leaves_mixed_rand_nothing_to_do():
    for batch in (batch_of((2, 3, 6, 8)), batch_of((2, 3, 6, 8), (0, 0, 4, 4), labels=[3, 3])):
        assert not augment.usable(batch, "mixed_rand").any()
        assert torch.equal(augment.factual("mixed_rand", batch, stream()), batch.images)


def test_attacks_stay_within_eps_and_climb():
    batch = batch_of((2, 3, 6, 8), (5, 5, 9, 9))
    direction = torch.randn(batch.images.shape, generator=stream(4))
    for name in ("fgsm", "pgd"):
        made = augment.factual(name, batch, stream(), lambda images, labels: direction, steps=3)
        change = made - batch.images
        assert change.abs().max() <= augment.EPS + 1e-6
        assert (change * direction).sum() > 0.5 * augment.EPS * (direction.abs() * ~batch.masks).sum() * 0.5


def test_attacks_step_by_step():
    """fgsm is one step of 0.75 from a random start within 0.6, pgd many: where all goes up, all ends at the limit."""
    batch = batch_of((2, 3, 6, 8))
    batch = batch.but(images=torch.full_like(batch.images, 0.25))
    up = lambda images, labels: torch.full_like(images, 7.0)
    start = 0.6 * (2 * torch.rand(batch.images.shape, generator=stream()) - 1)
    wanted = torch.where(batch.masks, 0.25, 0.25 + (start + 0.75).clamp(max=0.6))
    assert torch.allclose(augment.attack(batch, stream(), up, 1), wanted)
    assert torch.allclose(augment.attack(batch, stream(), up, 2), torch.where(batch.masks, 0.25, torch.tensor(0.85)))
    bright = batch.but(images=torch.full_like(batch.images, 0.75))
    made = augment.attack(bright, stream(), up, 2)
    assert torch.equal(made, torch.where(batch.masks, 0.75, torch.tensor(1.0)).expand_as(made))


# --- baselines ------------------------------------------------------------------------------------


def test_grid_mask_hides_squares_of_a_grid():
    images = torch.ones(200, 3, 64, 64)
    made = augment.grid_mask(images, stream(), (16, 16), 0.5, 0.8)
    hidden = (made == 0).all(1).float().mean((1, 2))
    assert ((hidden - 0.25).abs() < 1e-6).sum() + (hidden == 0).sum() == 200  # squares of 8 in a grid of 16
    assert (hidden > 0).float().mean() == pytest.approx(0.8, abs=0.1)


def test_mixup_mixes_targets_as_it_mixes_images():
    labels = torch.arange(4).repeat(50)
    targets = torch.nn.functional.one_hot(labels, 4).float()
    images = labels[:, None, None, None].expand(-1, 3, 2, 2).float()
    mixed, shares = augment.mixup(images, targets, 0.4, stream())
    assert torch.allclose(shares.sum(1), torch.ones(200))
    assert torch.allclose(mixed[:, 0, 0, 0], shares @ torch.arange(4.0), atol=1e-5)
    assert ((shares > 0.01) & (shares < 0.99)).any(1).float().mean() > 0.3


def test_smoothed_targets():
    assert torch.allclose(augment.smoothed(torch.tensor([1]), 4, 0.2), torch.tensor([[0.05, 0.85, 0.05, 0.05]]))

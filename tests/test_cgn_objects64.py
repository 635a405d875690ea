"""The made set of objects: what agrees with what, where it is placed, how it is painted, and that masks are true."""

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import datasets
import experiment
from cgn import objects64
from cgn.objects64 import COUNT, SIDE

SMALL = {"train": 1_200, "val": 200, "test": 300}


def stream(purpose="tests"):
    return experiment.generator(0, purpose)


@pytest.fixture(scope="module", autouse=True)
def small():
    """The same set with fewer images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects64, "NUMBER", SMALL)
        objects64._originals.cache_clear()
        yield
    objects64._originals.cache_clear()


@pytest.fixture(scope="module")
def splits(small):
    return {split: objects64.read(split) for split in objects64.SPLITS}


# --- splits ---------------------------------------------------------------------------------------


def test_every_split_is_complete_and_of_its_kinds(splits):
    assert len(objects64.CLASSES) == COUNT == 10
    for split, scenes in splits.items():
        n = SMALL.get(objects64.PAINTED.get(split, ("test",))[0])
        assert (scenes.images.shape, scenes.images.dtype) == ((n, 3, SIDE, SIDE), torch.uint8)
        assert (scenes.labels.shape, scenes.labels.dtype) == ((n, 3), torch.int64)
        assert (scenes.masks.shape, scenes.masks.dtype) == ((n, 1, SIDE, SIDE), torch.bool)
        assert scenes.labels[:, 0].bincount().tolist() == [n // COUNT] * COUNT


@pytest.mark.parametrize("split", ["train", "val"])
def test_texture_and_background_agree_in_95_percent_independently(splits, split):
    labels = splits[split].labels
    agree = labels[:, 1:] == labels[:, :1]
    wide = 4 * math.sqrt(0.95 * 0.05 / len(labels))
    assert torch.allclose(agree.float().mean(0), torch.tensor(0.95), atol=wide)
    assert float(agree.all(1).float().mean()) == pytest.approx(0.95**2, abs=2 * wide)


def test_independent_has_the_shapes_of_training_and_labels_that_tell_nothing_of_each_other(splits):
    """A table of two independent labels, uniform over ten classes each, has a chi square of 81 +- 12.7."""
    labels, n = splits["independent"].labels, SMALL["train"]
    assert torch.equal(labels[:, 0], splits["train"].labels[:, 0])
    assert torch.equal(splits["independent"].masks, splits["train"].masks)
    for k in (1, 2):
        counts = labels[:, k].bincount(minlength=COUNT)
        assert float((counts - n / COUNT).square().sum() / (n / COUNT)) < 9 + 4 * math.sqrt(2 * 9)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        cells = (COUNT * labels[:, a] + labels[:, b]).bincount(minlength=COUNT**2).view(COUNT, COUNT).double()
        wanted = cells.sum(1, keepdim=True) * cells.sum(0) / n
        assert float(((cells - wanted).square() / wanted).sum()) < 81 + 4 * math.sqrt(2 * 81)
    spurious = splits["train"].labels  # what the bound is far below where labels agree
    cells = (COUNT * spurious[:, 0] + spurious[:, 1]).bincount(minlength=COUNT**2).double() - n / COUNT**2
    assert float(cells.square().sum() / (n / COUNT**2)) > 5000


def test_independent_labels_are_those_of_the_pixels(splits):
    """A reader of textures and backgrounds that has learnt on `train` reads the labels, which are not the shape's."""
    train, made = splits["train"], splits["independent"]
    for k in (1, 2):
        known, asked = (statistics(part.images, part.masks if k == 1 else ~part.masks) for part in (train, made))
        means = torch.stack([known[train.labels[:, k] == number].mean(0) for number in range(COUNT)])
        within = torch.stack([known[train.labels[:, k] == number].std(0) for number in range(COUNT)]).mean(0)
        told = torch.cdist(asked / within, means / within).argmin(1)
        assert (told == made.labels[:, k]).float().mean() > 0.9
        assert (told == made.labels[:, 0]).float().mean() < 0.2


def test_another_class_is_any_of_the_nine_others():
    labels = torch.arange(COUNT).repeat(900)
    shift = (objects64.others(labels, stream()) - labels) % COUNT
    counts = shift.bincount(minlength=COUNT)
    assert counts[0] == 0
    assert (counts[1:] - 1000).abs().max() < 120  # 4 standard deviations


def test_tests_have_the_labels_that_their_names_say(splits):
    shape = splits["original"].labels[:, 0]
    same = {split: (splits[split].labels == shape[:, None]).float().mean(0).tolist() for split in objects64.TESTS}
    assert same["original"] == same["mixed_same"] == [1, 1, 1]
    assert same["texture_conflict"] == [1, 0, 1]
    assert same["background_conflict"] == [1, 1, 0]
    assert same["only_background"] == [1, 0, 1]
    assert same["silhouette"] == [1, 0, 0]
    assert same["mixed_rand"] == [1, 1, pytest.approx(0.1, abs=0.06)]
    assert same["counterfactual"] == [1, pytest.approx(0.1, abs=0.06), pytest.approx(0.1, abs=0.06)]
    texture, background = splits["counterfactual"].labels[:, 1:].unbind(1)
    assert float((texture == background).float().mean()) == pytest.approx(0.1, abs=0.06)
    assert (splits["only_background"].labels[:, 1] == -1).all()
    assert (splits["silhouette"].labels[:, 1:] == -1).all()
    for split in objects64.TESTS:  # where something is named, it is one of the classes
        assert splits[split].labels.max() == COUNT - 1


def test_tests_differ_only_in_what_their_names_say(splits):
    alphas = objects64._originals(datasets.ROOT)[0]
    original, images = splits["original"], {split: scenes.images for split, scenes in splits.items()}
    inside, outside = alphas == 255, alphas == 0
    kept = lambda split, where: torch.equal(images[split] * where, original.images * where)
    changed = lambda split, where: ((images[split] != original.images) & where).sum() > 0.9 * 3 * where.sum()
    for split in objects64.TESTS:
        masks = torch.zeros_like(original.masks) if split == "only_background" else original.masks
        assert torch.equal(splits[split].masks, masks)
    assert kept("texture_conflict", outside)
    assert changed("texture_conflict", inside)
    assert kept("background_conflict", inside)
    assert changed("background_conflict", outside)
    assert kept("only_background", outside)
    for split in ("mixed_same", "mixed_rand"):
        assert kept(split, original.masks)
        assert changed(split, ~original.masks)
    assert changed("counterfactual", inside)
    assert changed("counterfactual", outside)
    assert torch.equal(images["silhouette"], (255 - alphas).expand(-1, 3, -1, -1))


def test_masks_are_what_the_composition_took_from_the_object(splits):
    alphas, _, objects, backgrounds = objects64._originals(datasets.ROOT)
    m = alphas.double() / 255
    expected = (m * objects.double() + (1 - m) * backgrounds.double()).round()
    off = (splits["original"].images.double() - expected).abs()
    assert off.max() <= 1  # a half may be rounded either way
    assert off.mean() < 0.01
    assert torch.equal(splits["original"].masks, m > 0.5)
    soft = ((m > 0) & (m < 1)).float().sum() / (m > 0.5).sum()
    assert soft < 0.6  # edges only


def test_who_changes_a_split_changes_no_other(splits):
    scenes = objects64.read("only_background")
    scenes.images.zero_()
    assert torch.equal(objects64.read("only_background").images, splits["only_background"].images)


def test_the_same_bytes_again_and_other_streams_for_other_splits(splits):
    objects64._originals.cache_clear()
    for split in ("val", "counterfactual"):
        again = objects64.read(split)
        assert torch.equal(again.images, splits[split].images)
        assert torch.equal(again.labels, splits[split].labels)
    assert not torch.equal(splits["train"].masks[:200], splits["val"].masks)


def test_digits_of_training_validation_and_test_are_different_ones(monkeypatch, test_digits):
    monkeypatch.setattr(objects64, "place", lambda stencils, stream: stencils)
    monkeypatch.setattr(objects64, "thicken", lambda digits, stream: F.pad(digits, (18,) * 4))
    used = {}
    for kind in SMALL:
        alphas, classes = objects64.shapes(kind)
        used[kind] = {digit.numpy().tobytes() for digit in alphas[classes < 5][:, :, 18:-18, 18:-18]}
        assert len(used[kind]) == SMALL[kind] / 2
    held_out = {digit.numpy().tobytes() for digit in (test_digits.images * 255).round().to(torch.uint8)}
    assert used["test"] <= held_out
    assert not (used["train"] | used["val"]) & held_out
    assert not used["train"] & used["val"]


def test_an_unknown_split_is_refused():
    message = "no split is called 'trian'; there are train, val, independent, original"
    with pytest.raises(experiment.UserError, match=message):
        objects64.read("trian")


# --- shapes -----------------------------------------------------------------------------------------


def bar(n=400):
    """An upright bar, 16 x 48 pixels, with a foot to the right: (n, 1, 64, 64)."""
    one = torch.zeros(1, 1, SIDE, SIDE)
    one[:, :, 8:56, 10:26] = 1
    one[:, :, 48:56, 26:34] = 1
    return one.expand(n, -1, -1, -1)


def moments(alphas):
    """(centre (n, 2), angle to the vertical (n,)) of opacities, from their second moments."""
    line = torch.arange(SIDE) + 0.5
    mass = alphas[:, 0] / alphas.sum((1, 2, 3))[:, None, None]
    x, y = (mass * line).sum((1, 2)), (mass * line[:, None]).sum((1, 2))
    dx, dy = line - x[:, None, None], line[:, None] - y[:, None, None]
    xx, yy, xy = ((mass * a * b).sum((1, 2)) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    return torch.stack([x, y], 1), 0.5 * torch.atan2(-2 * xy, yy - xx)


def test_objects_are_as_large_as_asked_and_hardly_cut():
    alphas = objects64.place(bar(), stream())
    draws, (low, high) = stream(), objects64.AREAS
    _, share = torch.rand(400, generator=draws), torch.rand(400, generator=draws)  # of the angle, of the area
    area, wanted = alphas.mean((1, 2, 3)), low + (high - low) * share
    assert ((area - wanted).abs() / wanted).median() < 0.01
    assert (area / wanted).max() < 1.03
    free = wanted < 0.2  # so small that a bar in any direction fits
    assert (area / wanted)[free].min() > 1 - 2 * objects64.BEYOND / 16  # ends of a bar of 16 pixels, say, are cut
    centre, _ = moments(alphas)
    for axis in (0, 1):  # anywhere in the image, to its border
        assert centre[:, axis].min() < 20
        assert centre[:, axis].max() > 44
    mask = alphas > objects64.EDGE
    border = mask.clone()
    border[:, :, 1:-1, 1:-1] = False
    assert 0.05 < border.flatten(1).any(1).float().mean() < 0.5


def test_what_would_not_fit_is_made_smaller():
    """A long bar is at most so long that its ends lie 1.5 pixels beyond the borders."""
    long = torch.zeros(200, 1, SIDE, SIDE)
    long[:, :, 2:62, 28:36] = 1
    alphas = objects64.place(long, stream())
    area = alphas.mean((1, 2, 3))
    full = SIDE * (SIDE + 2 * objects64.BEYOND) * 8 / 60 / SIDE**2  # what is seen of the longest: 64 by 9 pixels
    assert area.max() < 1.03 * full
    assert (area > 0.9 * full).float().mean() > 0.1
    rows = (alphas > objects64.EDGE).any(3).flatten(1).sum(1)
    assert rows.max() == SIDE


def test_objects_are_turned_a_little_either_way_and_not_mirrored():
    alphas = objects64.place(bar(), stream())
    _, straight = moments(bar(1))
    _, angles = moments(alphas)
    turned = angles - straight
    assert turned.abs().max() < objects64.TURN + 0.06
    assert turned.max() > 0.8 * objects64.TURN
    assert turned.min() < -0.8 * objects64.TURN
    left = alphas[:, 0] > objects64.EDGE
    low = (left * (torch.arange(SIDE) + 0.5)[:, None]).amax((1, 2)).long().clamp(max=SIDE - 1)
    widths = left.sum(2)
    feet = widths[torch.arange(len(left)), (low - 4).clamp(min=0)]
    assert (feet > widths.median(1).values).float().mean() > 0.9  # the foot stays below


def test_the_box_of_a_mask():
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[0, :, 16:48, 0:32] = True
    masks[1, :, 63, 10] = True
    centre, half = objects64._box(masks)
    torch.testing.assert_close(centre, torch.tensor([[-0.5, 0.0], [10.5 / 32 - 1, 63.5 / 32 - 1]]))
    torch.testing.assert_close(half, torch.tensor([[0.5, 0.5], [1 / 64, 1 / 64]]))


def test_thick_digits_cover_the_digits(test_digits):
    digits = test_digits.images[:100]
    thick = objects64.thicken(digits, stream()) > objects64.EDGE
    large = F.pad(F.interpolate(digits, (56, 56), mode="bilinear"), (4,) * 4) > 0.5
    assert thick.shape == (100, 1, 64, 64)
    assert (thick & large).sum() > 0.99 * large.sum()
    growth = thick.sum((1, 2, 3)) / large.sum((1, 2, 3))
    assert 1.05 < growth.median() < 1.6


def test_foreground_shares_are_those_of_every_class(splits):
    scenes = splits["train"]
    share = scenes.masks.float().mean((1, 2, 3))
    assert share.min() > 0.08
    assert share.max() < 0.35
    for number in range(COUNT):  # the size of an object does not tell its class
        assert float(share[scenes.labels[:, 0] == number].mean()) == pytest.approx(float(share.mean()), abs=0.03)


# --- painting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "paint"), [(0, objects64.paint_objects), (1, objects64.paint_backgrounds)])
def test_in_plain_light_a_texture_is_a_window_of_its_canvas(monkeypatch, kind, paint):
    for name, value in (("LIGHT", (1, 1)), ("HUE", 0), ("LIFT", 0), ("DIM", 1), ("SLOPE", 0), ("TINT", 0)):
        monkeypatch.setattr(objects64, name, value)
    labels = torch.tensor([0, 3, 9])
    for label, window in zip(labels, paint(labels, stream()), strict=True):
        canvas = objects64._canvases()[kind][label]
        windows = canvas.unfold(1, SIDE, 1).unfold(2, SIDE, 1).permute(1, 2, 0, 3, 4)
        at = (windows[..., 0, :8] == (window[:, 0, :8] * 255).round()).all(3).all(2).nonzero()
        assert any(torch.equal(windows[tuple(place)], (window * 255).round().to(torch.uint8)) for place in at)


def test_light_varies_backgrounds_within_its_bounds():
    labels = torch.full((300,), 4)
    painted = objects64.paint_backgrounds(labels, stream())
    left, right = painted[..., :32].mean((1, 2, 3)), painted[..., 32:].mean((1, 2, 3))
    assert (left / right).max() > 1.2  # light from the left
    assert (left / right).min() < 0.85  # and from the right
    brightest = objects64._canvases()[1][4].max() / 255 * objects64.DIM * (1 + objects64.SLOPE) ** 2
    assert painted.max() <= brightest * (1 + objects64.TINT)
    tints = painted.mean((2, 3)) / painted.mean((1, 2, 3))[:, None]
    assert (tints.std(0) > 0.03).all()


def test_objects_are_lighter_than_their_backgrounds(splits):
    scenes = splits["counterfactual"]
    light = scenes.images.float().mean(1, keepdim=True)
    inside = (light * scenes.masks).sum((1, 2, 3)) / scenes.masks.sum((1, 2, 3))
    outside = (light * ~scenes.masks).sum((1, 2, 3)) / (~scenes.masks).sum((1, 2, 3))
    assert (inside > outside).float().mean() > 0.99


def statistics(images, masks):
    """Mean and deviation of each colour under the masks, and mean change to the right and downward: (N, 12)."""
    x, m = images.float() / 255, masks.float()
    n = m.sum((2, 3))
    mean = (x * m).sum((2, 3)) / n
    spread = ((x - mean[:, :, None, None]).square() * m).sum((2, 3)) / n
    changes = [((x.diff(dim=axis).abs() * m.narrow(axis, 1, SIDE - 1)).sum((2, 3)) / n) for axis in (2, 3)]
    return torch.cat([mean, spread.sqrt(), *changes], 1)


@pytest.mark.parametrize(("mechanism", "enough"), [(1, 0.97), (2, 0.94)])
def test_textures_and_backgrounds_can_be_told(splits, mechanism, enough):
    """Nearest mean of twelve numbers, learnt on spurious images, on those in which all labels are independent."""
    train, test = splits["train"], splits["counterfactual"]
    known, asked = (statistics(part.images, part.masks if mechanism == 1 else ~part.masks) for part in (train, test))
    labels = train.labels[:, mechanism]
    means = torch.stack([known[labels == number].mean(0) for number in range(COUNT)])
    within = torch.stack([known[labels == number].std(0) for number in range(COUNT)]).mean(0)
    told = torch.cdist(asked / within, means / within).argmin(1)
    assert (told == test.labels[:, mechanism]).float().mean() > enough


def test_shapes_can_be_told(splits):
    """Five nearest masks, each cut out along its box."""
    crops = []
    for scenes in (splits["train"], splits["silhouette"]):
        centre, half = objects64._box(scenes.masks)
        theta = torch.cat([half.amax(1)[:, None, None] * torch.eye(2), centre[:, :, None]], 2)
        grid = F.affine_grid(theta, (len(scenes), 1, 20, 20), align_corners=False)
        crops.append(F.grid_sample(scenes.masks.float(), grid, align_corners=False).flatten(1))
    nearest = torch.cdist(crops[1], crops[0]).topk(5, largest=False).indices
    told = splits["train"].labels[nearest, 0].mode(1).values
    assert (told == splits["silhouette"].labels[:, 0]).float().mean() > 0.9


# --- batches ------------------------------------------------------------------------------------------


def test_batches_come_once_each_and_a_number_names_their_order(splits):
    scenes = splits["val"]
    parts = [torch.cat(part) for part in zip(*scenes.batches(64), strict=True)]
    assert torch.equal(datasets.to_bytes(parts[0]), scenes.images)
    assert torch.equal(parts[1], scenes.labels)
    assert torch.equal(parts[2], scenes.masks)
    assert parts[0].dtype == torch.float32
    assert parts[0].abs().max() <= 1
    order = lambda number, of=scenes: torch.cat([images for images, _, _ in of.batches(64, number)])[:, 0, 0]
    assert torch.equal(order(3), order(3))
    assert not torch.equal(order(3), order(4))
    assert not torch.equal(order(3), order(3, objects64.Scenes(scenes.images, scenes.labels, scenes.masks, seed=1)))
    shuffled = torch.cat([labels for _, labels, _ in scenes.batches(64, 3)])
    assert torch.equal(shuffled[:, 0].bincount(), scenes.labels[:, 0].bincount())
    assert [len(labels) for _, labels, _ in scenes.batches(64, 3)] == [64, 64, 64, 8]


def test_images_labels_and_masks_stay_together_when_shuffled(splits):
    scenes = splits["val"]
    at = {images.numpy().tobytes(): k for k, images in enumerate(scenes.images)}
    for images, labels, masks in scenes.batches(50, "epoch 1"):
        index = [at[image.numpy().tobytes()] for image in datasets.to_bytes(images)]
        assert torch.equal(labels, scenes.labels[index])
        assert torch.equal(masks, scenes.masks[index])


def test_the_first_are_scenes_too(splits):
    few = splits["train"].first(7)
    assert len(few) == 7
    assert torch.equal(few.labels, splits["train"].labels[:7])
    assert next(iter(few.batches(10)))[2].shape == (7, 1, SIDE, SIDE)


def test_the_sheet(call, tmp_path):
    code, out, _ = call("cgn.objects64", "--results", tmp_path)
    assert code == 0
    assert "objects64.png" in out
    assert Image.open(tmp_path / "objects64.png").width > 1000

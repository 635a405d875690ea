"""Losses against hand-made numbers, and where bfloat16 would break them."""

import math

import pytest
import torch

import experiment
from cgn import losses


def test_entropy_is_zero_for_binary_masks_and_one_for_halves():
    binary = (torch.rand(3, 1, 32, 32) > 0.5).float()
    assert losses.binary_entropy(binary) < 2e-3
    assert losses.binary_entropy(torch.full((3, 1, 32, 32), 0.5)) == pytest.approx(1)
    expected = -(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8))
    assert float(losses.binary_entropy(torch.full((2, 1, 4, 4), 0.2))) == pytest.approx(expected, rel=1e-5)


def test_entropy_of_a_bfloat16_mask_is_finite():
    """1 - 1e-4 is 1 in bfloat16; computed there, the entropy would not be a number."""
    mask = torch.tensor([0.0, 1.0, 0.99995]).to(torch.bfloat16).requires_grad_()
    value = losses.binary_entropy(mask)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(mask.grad).all()


def test_adversaries():
    real, fake = torch.tensor([0.0, 2.0]), torch.tensor([-1.0, 1.0])
    softplus = lambda v: math.log1p(math.exp(v))
    assert float(losses.logistic(real, fake)) == pytest.approx(
        (softplus(0) + softplus(-2)) / 2 + (softplus(-1) + softplus(1)) / 2)
    assert float(losses.logistic(fake)) == pytest.approx((softplus(1) + softplus(-1)) / 2)
    assert float(losses.least_squares(real, fake)) == pytest.approx((1 + 1) / 2 / 2 + 1 / 2)
    assert float(losses.least_squares(fake)) == pytest.approx((4 + 0) / 2)


def test_area_and_edge():
    masks = torch.zeros(2, 1, 10, 10)
    masks[0, :, :5] = 1  # mean 0.5
    assert float(losses.area(masks, 0.1, 0.4)) == pytest.approx((0.1 + 0.1) / 2)
    assert float(losses.area(masks[:1], 0.1, 0.9)) == 0
    assert float(losses.edge(masks, 1)) == pytest.approx((10 + 4 * 2) / (2 * 36))


def test_gram_is_the_mean_product_of_channels():
    maps = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(losses.gram(maps), torch.einsum("bchw,bdhw->bcd", maps, maps) / 20)


def test_class_means_are_those_of_a_loop():
    grams, labels = torch.randn(12, 3, 3), torch.tensor([0, 0, 3, 3, 3, 9, 9, 9, 9, 1, 1, 1])
    means, there = losses.class_means(grams, labels)
    assert there.nonzero()[:, 0].tolist() == [0, 1, 3, 9]
    for k in (0, 1, 3, 9):
        torch.testing.assert_close(means[k], grams[labels == k].mean(0))


def test_random_filters_are_always_the_same_and_tell_textures_apart():
    one, two = losses.RandomFilters(), losses.RandomFilters()
    stripes = torch.zeros(10, 3, 32, 32)
    stripes[:, :, ::4] = 1
    turned = stripes.transpose(2, 3)
    for a, b in zip(one(stripes), two(stripes), strict=True):
        assert a.shape == (10, 48, 16, 16)
        assert torch.equal(a, b)
    statistics = losses.TextureStatistics(one, stripes, torch.arange(10))
    assert float(statistics.loss(stripes, torch.arange(10))) < 1e-5
    assert float(statistics.loss(turned, torch.arange(10))) > 0.05


def test_statistics_compare_the_same_class():
    """A batch whose classes have each other's textures is far off, although the batch as a whole is the same."""
    images, labels = torch.rand(10, 1, 1, 1).expand(10, 3, 32, 32), torch.arange(10)
    statistics = losses.TextureStatistics(losses.RandomFilters(), images, labels)
    assert float(statistics.loss(images, labels)) < 1e-5
    assert float(statistics.loss(images.flip(0), labels)) > 0.05


def test_statistics_by_hand():
    """Class k is k + 1 everywhere: Gram matrices of one channel are squares, and fourth powers in the second layer."""
    network = lambda x: [x, x.square()]
    classes = torch.arange(1, 11.0).view(10, 1, 1, 1).expand(-1, 1, 2, 2)
    statistics = losses.TextureStatistics(network, classes, torch.arange(10))
    made = torch.tensor([3.0, 1.0, 2.0]).view(3, 1, 1, 1).expand(-1, 1, 2, 2)
    # squares: class 0 has (9 + 1) / 2 = 5 for 1, class 1 has 4 for 4; their size is 385 / 10 over all ten classes
    # fourth powers: class 0 has (81 + 1) / 2 = 41 for 1, class 1 has 16 for 16; their size is 25333 / 10
    wanted = (4 / 2) / 38.5 + (40 / 2) / 2533.3
    assert float(statistics.loss(made, torch.tensor([0, 0, 1]))) == pytest.approx(wanted, rel=1e-5)


def test_gram_distance_weighs_layers_and_compares_pairs():
    """Images of 1 and 3 against 3 and 1: as batches they are alike, as pairs they are not."""
    network = lambda x: [x, 2 * x, x]
    ones = torch.ones(1, 1, 2, 2)
    x, real = torch.cat([ones, 3 * ones]), torch.cat([3 * ones, ones])
    # layers: |1 - 9| = 8; |4 - 36| = 32; left out
    assert float(losses.gram_distance(network, x, real, (0.5, 0.25, 0))) == pytest.approx(0.5 * 8 + 0.25 * 32)
    one, both = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    assert float(losses.gram_distance(lambda x: [x], one, both, (1,))) == pytest.approx(3 / 4)  # of four products


def test_vgg_in_its_true_format_on_random_weights():
    net = losses.VGG16(weights=None)
    maps = net(torch.rand(1, 3, 32, 32) * 2 - 1)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    grey = (net.mean.squeeze() * 2 - 1).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert float(losses.gram_distance(net, grey, grey, (1, 1, 1, 1))) == 0
    assert all(not p.requires_grad for p in net.parameters())


def test_vgg_is_read_from_the_file_that_fetch_gets(tmp_path, monkeypatch):
    """Weights in torchvision's format end where they belong; another network's file, or none, is one line."""
    import torchvision

    monkeypatch.chdir(tmp_path)
    with pytest.raises(experiment.UserError, match=r"vgg16-397923af.pth is missing: python -m cgn.fetch --what vgg16"):
        losses.features("vgg16", torch.device("cpu"))
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    weights = {f"features.{name}": value for name, value in layers.state_dict().items()} | {
        "classifier.0.bias": torch.zeros(1)}  # of which nothing is read
    file = tmp_path / "data/weights/vgg16-397923af.pth"
    file.parent.mkdir(parents=True)
    torch.save(weights, file)
    net = losses.features("vgg16", torch.device("cpu"))
    assert all(torch.equal(value, weights[f"features.{key}"]) for key, value in net.layers.state_dict().items())
    torch.save({"conv.weight": torch.zeros(1)}, file)
    with pytest.raises(experiment.UserError, match=r"not the weights of a Sequential: 0\.weight should be"):
        losses.features("vgg16", torch.device("cpu"))


def test_gram_where_counts_the_places_it_is_told_to():
    maps = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 2, 2, 2) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.5]]).view(1, 1, 2, 2)
    value = (1 * 1 + 0.5 * 16) / 1.5
    wanted = torch.tensor([[[value, -value], [-value, value]]])
    torch.testing.assert_close(losses.gram_where(maps, weights), wanted)
    torch.testing.assert_close(losses.gram_where(maps, torch.ones(1, 1, 4, 4)), losses.gram(maps))
    assert float(losses.gram_where(maps, torch.zeros(1, 1, 2, 2)).abs().max()) == 0


def test_ground_distance_is_between_where_the_object_was_and_where_it_is_not():
    """A background that goes on under the object is right; one that keeps the object is not, whatever is elsewhere."""
    same = lambda x: [x]
    masks = torch.zeros(1, 1, 32, 32)
    masks[:, :, 8:16, 8:16] = 1
    background = torch.full((1, 3, 32, 32), 0.5)
    image = torch.where(masks > 0, 1.0, background)
    image[:, :, 6:18, 6:18] = 1  # the object's edge reaches further than its mask
    measure = lambda b, weight=1.0: float(losses.ground_distance(same, b, image, masks, (weight,)))
    assert measure(background) == 0
    assert measure(image) == pytest.approx(1 - 0.25)
    assert measure(image, 2.0) == pytest.approx(1.5)
    assert measure(torch.where(masks > 0, 0.5, torch.zeros(1, 3, 32, 32))) == 0


# --- texture of objects ------------------------------------------------------------------------------


def test_texture_grids_are_patches_from_where_the_mask_is():
    """Each image has a bright square under its mask: whatever is drawn, nothing else comes into the grid."""
    images, masks = torch.full((2, 3, 32, 32), -1.0), torch.zeros(2, 1, 32, 32)
    for k, (top, left) in enumerate(((2, 18), (15, 4))):
        images[k, :, top:top + 12, left:left + 12] = torch.tensor([0.2, 0.5, 0.8])[:, None, None]
        masks[k, :, top:top + 12, left:left + 12] = 1
    made = losses.texture_grids(images, masks, torch.Generator().manual_seed(0), patch=5, best=20, grid=4, side=32)
    assert made.shape == images.shape
    assert (made - torch.tensor([0.2, 0.5, 0.8])[:, None, None]).abs().max() < 1e-5


def test_texture_grids_against_a_loop():
    stream = torch.Generator().manual_seed(1)
    images, masks = torch.rand(3, 3, 24, 24, generator=stream) * 2 - 1, torch.rand(3, 1, 24, 24, generator=stream)
    patch, best, grid = 5, 10, 3
    made = losses.texture_grids(images, masks, torch.Generator().manual_seed(2), patch, best, grid, side=24)
    drawn = torch.randint(best, (3, grid * grid), generator=torch.Generator().manual_seed(2))
    for k in range(3):
        means = {(y, x): float(masks[k, 0, y:y + patch, x:x + patch].mean()) for y in range(20) for x in range(20)}
        ranked = sorted(means, key=means.get, reverse=True)[:best]
        chosen = [ranked[number] for number in drawn[k].tolist()]
        patches = [images[k, :, y:y + patch, x:x + patch] for y, x in chosen]
        rows = [torch.cat(patches[grid * row:grid * row + grid], 2) for row in range(grid)]
        wanted = torch.nn.functional.interpolate(torch.cat(rows, 1)[None], (24, 24), mode="bicubic")
        assert torch.allclose(made[k], wanted[0], atol=1e-5)

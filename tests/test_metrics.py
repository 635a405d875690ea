"""Metrics against closed forms: distances of known Gaussians, hand-made errors, what must be refused."""

import math

import numpy
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance

import datasets
import experiment
import metrics
from experiment import UserError


def features(n, dim, name):
    return torch.randn(n, dim, generator=experiment.generator(0, name), dtype=torch.double)


def test_frechet_distance_of_a_shift_is_its_squared_length():
    a = features(50, 4, "a")
    assert metrics.frechet_distance(a, a + torch.tensor([3.0, 0, 4.0, 0])) == pytest.approx(25, rel=1e-9)


def test_frechet_distance_of_a_scaling():
    a = features(60, 5, "a")
    a = a - a.mean(0)
    # A, B = 4 A: tr(A + 4 A - 2 * 2 A) = tr A
    assert metrics.frechet_distance(a, 2 * a) == pytest.approx(float(torch.cov(a.T).trace()), rel=1e-9)


def test_frechet_distance_is_zero_to_itself_symmetric_and_blind_to_order():
    a, b = features(80, 6, "a"), features(90, 6, "b") * 2 + 1
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a), rel=1e-9)
    assert metrics.frechet_distance(a.flip(0), b) == pytest.approx(metrics.frechet_distance(a, b), rel=1e-9)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_frechet_distance_agrees_with_pytorch_fid_s():
    a, b = features(300, 8, "a") @ features(8, 8, "mix"), features(300, 8, "b")
    (mu_a, cov_a), (mu_b, cov_b) = ((x.numpy() for x in metrics.moments(y)) for y in (a, b))
    theirs = calculate_frechet_distance(mu_a, cov_a, mu_b, cov_b)
    assert metrics.frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


def test_frechet_distance_survives_dead_features():
    a, b = features(40, 5, "a"), features(40, 5, "b")
    a[:, 2] = b[:, 2] = 0
    value = metrics.frechet_distance(a, b)
    assert math.isfinite(value)
    assert value == pytest.approx(metrics.frechet_distance(a[:, [0, 1, 3, 4]], b[:, [0, 1, 3, 4]]), rel=1e-7)


def test_fewer_images_than_features_are_refused():
    with pytest.raises(UserError, match="at least 20 images, not 19"):
        metrics.frechet_distance(features(19, 20, "a"), features(30, 20, "b"))
    assert metrics.frechet_if_enough(features(19, 20, "a"), features(30, 20, "b")) is None
    assert metrics.frechet_if_enough(features(30, 20, "a"), features(19, 20, "b")) is None
    enough = features(20, 20, "a")
    assert metrics.frechet_if_enough(enough, enough + 1) == pytest.approx(20, rel=1e-6)


def test_kernel_distance_is_the_unbiased_estimate():
    a, b = features(7, 3, "a"), features(7, 3, "b") + 1
    kernel = lambda x, y: (float(x @ y) / 3 + 1) ** 3
    within = lambda s: sum(kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / (7 * 6)
    expected = within(a) + within(b) - 2 * sum(kernel(x, y) for x in a for y in b) / 49
    value = metrics.kernel_distance(a, b, 7, experiment.generator(0, "k"), subsets=3)
    assert value == pytest.approx(expected, rel=1e-9)
    # one feature, kernel (xy + 1)^3: 1 within 0 and 2, 8 within 1 and 1, 1 or 27 between
    a, b = torch.tensor([[0.0], [2.0]]), torch.ones(2, 1)
    assert metrics.kernel_distance(a, b, 2, experiment.generator(0, "k")) == pytest.approx(1 + 8 - 2 * (1 + 27) / 2)


def test_kernel_distance_of_equal_distributions_is_around_zero():
    a, b = features(1000, 4, "a"), features(1000, 4, "b")
    near = metrics.kernel_distance(a, b, 100, experiment.generator(0, "k"))
    far = metrics.kernel_distance(a, b + 1, 100, experiment.generator(0, "k"))
    assert abs(near) < 0.05 * far
    with pytest.raises(UserError, match="not 50"):
        metrics.kernel_distance(a[:50], b, 100, experiment.generator(0, "k"))


def test_sliced_wasserstein_distance_of_a_shift_is_its_length():
    a, b = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([1.5, 0.5]).view(2, 1, 1, 1)
    assert metrics.sliced_wasserstein(a, b) == pytest.approx(0.5)  # of one pixel every direction is the same
    a = torch.rand(3, 1, 2, 2)
    assert metrics.sliced_wasserstein(a, a.flip(0)) == 0
    assert metrics.sliced_wasserstein(a, a + torch.tensor([0.5, 0.0])) == pytest.approx(0.5**0.5, rel=0.1)
    with pytest.raises(UserError, match="as many images of the same size"):
        metrics.sliced_wasserstein(a, a[:2])


def test_errors_of_a_known_reconstruction(model, images):
    class Grey:
        def squared_error(self, x, eps=None):
            return (x - 0.5).square().flatten(1).mean(1)

    assert torch.equal(metrics.squared_errors(Grey(), torch.ones(3, 1, 28, 28)), torch.full((3,), 0.25))
    eps = torch.randn(12, 20, generator=experiment.generator(0, "e"))
    both = metrics.errors(model, images, eps)
    assert torch.allclose(both["mse"], metrics.squared_errors(model, images, eps))
    assert torch.allclose(both["vae_loss"], metrics.vae_losses(model, images, eps))


def test_iou_by_hand():
    a = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool().view(4, 1, 2, 2)
    b = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1]]).bool().view(4, 1, 2, 2)
    torch.testing.assert_close(metrics.iou(a, b), torch.tensor([1 / 3, 0, 1, 0]))


def test_results_do_not_depend_on_the_batch(model, images):
    eps = torch.randn(12, 20, generator=experiment.generator(0, "e"))
    whole = metrics.per_image(model.squared_error, images, eps, batch=100)
    assert torch.allclose(whole, metrics.per_image(model.squared_error, images, eps, batch=5), atol=1e-7)
    assert torch.allclose(whole.flip(0), metrics.squared_errors(model, images.flip(0), eps.flip(0)), atol=1e-7)


def test_accuracy_counts(images):
    class Says:
        def __init__(self, label):
            self.label = label

        def eval(self):
            return self

        def __call__(self, x):
            return torch.nn.functional.one_hot(torch.full((len(x),), self.label), 10).float()

    digits = datasets.Digits(images, torch.tensor([3] * 9 + [1] * 3))
    assert metrics.accuracy(Says(3), digits, batch=5) == 0.75


def test_features_are_taken_in_evaluation_mode(images):
    class Noisy(torch.nn.Module):
        def features(self, x):
            return x.flatten(1) + torch.rand(()) * self.training

    net = Noisy().train()
    assert torch.equal(metrics.features(net, images), metrics.features(net, images, batch=5))


def test_inception_without_weights_is_one_plain_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    network, line = metrics.Inception.load(False, "cpu")
    assert network is None
    assert line.startswith("Inception FID left out")
    assert "\n" not in line


@pytest.mark.slow
def test_inception_with_weights_in_the_true_format(tmp_path, monkeypatch, images):
    """Random weights under the true name and in the true layout: the network loads them and gives 2,048 features."""
    import pytorch_fid.inception as inception

    kept = {}

    def layout(url, progress):
        raise StopIteration

    original = inception._inception_v3
    monkeypatch.setattr(inception, "_inception_v3", lambda **how: kept.setdefault("net", original(**how)))
    monkeypatch.setattr(inception, "load_state_dict_from_url", layout)
    with pytest.raises(StopIteration):
        inception.fid_inception_v3()
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(kept["net"].state_dict(), folder / metrics.Inception.WEIGHTS)
    network, line = metrics.Inception.load(False, "cpu")
    assert line == ""
    feats = metrics.features(network, images[:4])
    assert feats.shape == (4, 2048)
    assert numpy.isfinite(feats.numpy()).all()
    assert torch.allclose(feats[:1], metrics.features(network, images[:1]), atol=1e-4)
    (folder / metrics.Inception.WEIGHTS).write_bytes(b"damaged")
    assert metrics.Inception.load(False, "cpu")[0] is None


def test_the_mean_of_a_part():
    values = torch.tensor([1.0, 2.0, 4.0])
    assert metrics.mean_where(values, torch.tensor([True, False, True])) == (2.5, 2)
    assert metrics.mean_where(values, values > 4) == (None, 0)

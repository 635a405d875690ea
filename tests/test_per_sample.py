"""Batched per-sample steps are the one-by-one steps."""

import pytest
import torch
from torch import nn

import ablate
import architecture
import bench
import experiment
import per_sample
import storage
import train
from experiment import UserError


def one_by_one(model, images, strength, eps=None):
    """(before, after, gradient norm) with a copy of the model for every sample."""
    rows = []
    for i, image in enumerate(images.split(1)):
        noise = None if eps is None else eps[i : i + 1]
        grads = ablate.error_gradients(model, image, noise)
        stepped = ablate.move(model, {name: grad.sign() for name, grad in grads.items()}, strength)
        with torch.no_grad():
            rows.append([model.squared_error(image, noise), stepped.squared_error(image, noise), ablate.norm(grads)])
    return torch.tensor(rows).unbind(1)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", ["vae", "linear_vae"])
def test_equal_to_the_loop(name, sampled, images):
    with experiment.seeded(0, name):
        model = architecture.build(name).eval()
    eps = torch.randn(12, 20, generator=experiment.generator(0, "eps")) if sampled else None
    for ours, theirs in zip(per_sample.score(model, images, 0.01, eps, chunk=5),
                            one_by_one(model, images, 0.01, eps), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_equal_to_the_loop_on_the_trained_model(images):
    model, _, _ = train.load_vae("runs/vae_512_no0", None, "cpu")
    _, after, _ = per_sample.score(model, images, 0.001)
    assert (after - bench.score_by_loop(model, images, 0.001)).abs().max() < 1e-5


class Toy(nn.Module):
    """Convolutions with strides, paddings, dilation and no bias, none of them as in the VAE."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 3, 5, stride=3, padding=2, bias=False), nn.Tanh(), nn.Conv2d(3, 4, 3, dilation=2, padding=1),
            nn.Tanh(), nn.ConvTranspose2d(4, 2, 4, stride=4, padding=0, bias=False), nn.Flatten(),
            nn.LazyLinear(28 * 28, bias=False),
        )  # fmt: skip

    def squared_error(self, x, eps=None):
        return (self.net(x).view_as(x) - x).square().flatten(1).mean(1)


def test_other_layers_of_the_same_kinds(images):
    with experiment.seeded(0, "toy"):
        model = Toy()
        model.squared_error(images)
    model = model.double()
    for ours, theirs in zip(per_sample.score(model, images.double(), 0.01), one_by_one(model, images.double(), 0.01),
                            strict=True):  # fmt: skip
        assert torch.allclose(ours, theirs.double(), atol=1e-6)


def test_the_model_is_left_as_it_was(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    per_sample.score(model, images, 0.01)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_that_cannot_be_stepped_are_refused(images):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def squared_error(self, x, eps=None):
            return self.norm(x).square().flatten(1).mean(1)

    with pytest.raises(UserError, match="Normed has layers"):
        per_sample.score(Normed(), images, 0.01)


@pytest.mark.slow
def test_scoring_is_four_times_as_fast_as_the_loop(call, tmp_path):
    code, _, _ = call("bench", "--results", tmp_path)
    assert code == 0
    rows = {(row["arm"], row["metric"]): row["value"] for row in storage.read_lines(tmp_path / "metrics.jsonl")}
    assert rows["scoring", "speedup"] >= 4
    assert rows["scoring", "difference"] < 1e-5

"""The VAEs: published layout, closed forms of the loss, noise as an argument, one interface."""

import pytest
import torch
import torch.nn.functional as F
from conftest import PUBLISHED
from torch.distributions import Normal, kl_divergence

import architecture
import datasets
import experiment
import metrics
import storage
from experiment import UserError

# names and shapes of the published checkpoint's tensors
PUBLISHED_LAYOUT = {
    "encoder.0": (32, 1, 3, 3), "encoder.2": (64, 32, 3, 3), "encoder.4": (64, 64, 3, 3), "encoder.7": (256, 3136),
    "fc_mu": (20, 256), "fc_logvar": (20, 256), "decoder_input": (3136, 20),
    "decoder.0": (64, 64, 3, 3), "decoder.2": (64, 32, 3, 3), "decoder.4": (32, 1, 3, 3),
}  # fmt: skip


def test_the_convolutional_vae_has_the_published_layout(model):
    weights = {name[: -len(".weight")]: tuple(value.shape) for name, value in model.state_dict().items()
               if name.endswith(".weight")}
    assert weights == PUBLISHED_LAYOUT
    assert len(model.state_dict()) == 2 * len(weights)
    assert sum(p.numel() for p in model.parameters()) == 990_633


VAES = [name for name, kind in architecture.MODELS.items() if issubclass(kind, architecture.VAE)]
DIGITS = {"image_vae": {"shape": (1, 28, 28)}}  # settings by which a VAE takes images of 28 pixels


@pytest.mark.parametrize("name", VAES)
def test_every_model_has_the_same_verbs(name, images):
    with experiment.seeded(0, name):
        model = architecture.build(name, latent=7, **DIGITS.get(name, {})).eval()
    z = model.encode(images)
    assert z.shape == (12, 7)
    assert model.decode(z).shape == images.shape
    sample = model.sample(5, experiment.generator(0, "s"))
    assert sample.shape == (5, 1, 28, 28)
    assert ((sample >= 0) & (sample <= 1)).all()
    assert torch.equal(sample, model.sample(5, experiment.generator(0, "s")))
    shapes = {term: value.shape for term, value in model.loss(images).items()}
    assert shapes == {"gaussian" if name == "image_vae" else "bce": (12,), "kl": (12,)}


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 28, 28), (1, 128, 128)])
def test_the_image_vae_s_loss_is_the_negative_elbo_of_a_gaussian(shape):
    model = architecture.build("image_vae", shape=shape, latent=5, width=4, deviation=0.2).double().eval()
    x, eps = torch.rand(3, *shape, dtype=torch.double), torch.randn(3, 5, dtype=torch.double)
    mu, logvar = model.posterior(x)
    decoded = model.decode(mu + eps * logvar.exp().sqrt())
    assert decoded.shape == x.shape
    terms = model.loss(x, eps)
    assert torch.allclose(terms["gaussian"], -Normal(decoded, 0.2).log_prob(x).sum((1, 2, 3)), rtol=1e-10)
    expected = kl_divergence(Normal(mu, logvar.exp().sqrt()), Normal(torch.zeros_like(mu), 1.0)).sum(1)
    assert torch.allclose(terms["kl"], expected, rtol=1e-9)
    with pytest.raises(UserError, match="squares that halve"):
        architecture.build("image_vae", shape=(1, 30, 30))


@pytest.mark.parametrize("name", ["vae", "linear_vae"])
def test_loss_is_the_negative_elbo(name, images):
    with experiment.seeded(1, name):
        model = architecture.build(name).double().eval()
    x, eps = images.double(), torch.randn(12, 20, dtype=torch.double, generator=experiment.generator(0, "eps"))
    mu, logvar = model.posterior(x)
    z = mu + eps * logvar.exp().sqrt()
    bce = F.binary_cross_entropy(model.decode(z), x, reduction="none").sum((1, 2, 3))
    kl = kl_divergence(Normal(mu, logvar.exp().sqrt()), Normal(torch.zeros_like(mu), 1.0)).sum(1)
    terms = model.loss(x, eps)
    assert torch.allclose(terms["bce"], bce, rtol=1e-10)
    assert torch.allclose(terms["kl"], kl, rtol=1e-9)
    assert torch.allclose(model.squared_error(x, eps), (model.decode(z) - x).pow(2).mean((1, 2, 3)), rtol=1e-12)


def test_kl_of_a_standard_normal_posterior_is_zero_and_one_shift_costs_half(model, images):
    with torch.no_grad():
        for layer in (model.fc_mu, model.fc_logvar):
            layer.weight.zero_()
            layer.bias.zero_()
        assert torch.equal(model.loss(images)["kl"], torch.zeros(12))
        model.fc_mu.bias[0] = 1
        assert torch.allclose(model.loss(images)["kl"], torch.full((12,), 0.5))


def test_cross_entropy_is_not_cut_off_at_100_nats_a_pixel(model, images):
    with torch.no_grad():
        model.decoder[-2].bias.fill_(-1e4)
        ink = images.sum((1, 2, 3))
        assert torch.allclose(model.loss(images)["bce"], ink * 1e4, rtol=1e-2)


def test_noise_is_an_argument_in_both_modes(model, images):
    eps = torch.randn(12, 20, generator=experiment.generator(0, "eps"))
    mean = model.decode(model.encode(images))
    for mode in (True, False):
        model.train(mode)
        assert torch.equal(model.reconstruct(images), mean)
        assert torch.equal(model.reconstruct(images, eps), model.reconstruct(images, eps))
    assert not torch.equal(model.reconstruct(images, eps), mean)


def test_every_parameter_learns(model, images):
    sum(model.loss(images, torch.ones(12, 20)).values()).sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_both_reach_their_data(images):
    """A hundred steps on twelve digits bring the loss far down: the fully connected one works as well."""
    for name in ("vae", "linear_vae"):
        with experiment.seeded(0, name):
            model = architecture.build(name)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        losses = []
        for _ in range(100):
            optimizer.zero_grad()
            loss = sum(model.loss(images).values()).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.45 * losses[0], name


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32), (2, 784)])
def test_images_of_another_size_are_refused(model, shape):
    with pytest.raises(UserError, match=r"takes images \(B, 1, 28, 28\), not"):
        model.encode(torch.zeros(shape))


def test_restoring_refuses_what_does_not_fit(model):
    with pytest.raises(UserError, match="no generative model is called 'gan'"):
        architecture.build("gan")
    with pytest.raises(UserError, match="not the weights of a LinearVAE"):
        architecture.restore({"architecture": {"name": "linear_vae", "settings": {}}, "model": model.state_dict()})
    back = architecture.restore(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True))
    assert not back.training


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published checkpoints are not here")
def test_the_published_checkpoint_loads_and_gives_its_published_errors(test_digits):
    model = architecture.restore(storage.load_checkpoint(PUBLISHED / "vae/vae_l5_linear_512_no0.pt"))
    zeros = datasets.of_class(test_digits, 0)
    eps = model.noise(len(test_digits), experiment.generator(0, "evaluation noise"))
    mean, sampled = metrics.squared_errors(model, test_digits.images), metrics.squared_errors(
        model, test_digits.images, eps)  # fmt: skip
    assert float(mean[~zeros].mean()) == pytest.approx(0.0191, abs=5e-5)
    assert float(mean[zeros].mean()) == pytest.approx(0.0377, abs=5e-5)
    # one draw of the noise each: its spread is 3e-5 on the others and 2e-4 on the 980 zeros
    assert float(sampled[~zeros].mean()) == pytest.approx(0.02202, abs=1e-4)
    assert float(sampled[zeros].mean()) == pytest.approx(0.04039, abs=5e-4)

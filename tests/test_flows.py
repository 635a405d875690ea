"""The flows: exact inverses, log-determinants against autograd, bits per dimension against a known density."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform, Normal, SigmoidTransform, TransformedDistribution

import experiment
import flows
from experiment import UserError

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
SMALL = {"realnvp": lambda **how: flows.RealNVP((1, 8, 8), couplings=2, hidden=8, blocks=1, **how),
         "glow": lambda **how: flows.Glow((3, 8, 8), levels=2, steps=2, hidden=8, **how),
         "additive glow": lambda **how: flows.Glow((1, 8, 8), levels=2, steps=2, hidden=8, affine=False, **how)}


def stirred(module, seed=0, size=0.3):
    """The module with every parameter moved, so that no layer is the identity it starts as."""
    stream = experiment.generator(seed, "stirred")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=stream) / max(1, parameter[0].numel()) ** 0.5
    return module.eval()


def layers():
    return {
        "squeeze": flows.Squeeze(), "regroup": flows.Regroup(), "actnorm": flows.ActNorm(8), "mix": flows.Mix(8),
        "affine coupling": flows.Coupling(8, flows.ResidualNet(4, 8, 6, 2), swap=False),
        "swapped coupling": flows.Coupling(8, flows.plain_net(4, 8, 6), swap=True),
        "additive coupling": flows.Coupling(8, flows.plain_net(4, 4, 6), swap=False, affine=False),
    }  # fmt: skip


@pytest.fixture
def hidden():
    return torch.randn(2, 8, 4, 4, generator=experiment.generator(0, "h"), dtype=torch.double)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", layers())
def test_every_layer_is_undone(name, dtype, hidden):
    with experiment.seeded(0, name):
        layer = stirred(layers()[name].to(dtype))
    out, _ = layer(hidden.to(dtype))
    assert out.numel() == hidden.numel()
    assert not torch.equal(out.flatten(), hidden.flatten().to(dtype))
    assert (layer.inverse(out) - hidden).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("name", layers())
def test_log_determinants_are_those_of_the_jacobian(name, hidden):
    with experiment.seeded(0, name):
        layer = stirred(layers()[name].double())
    jacobian = torch.autograd.functional.jacobian(lambda h: layer(h.view(1, 8, 4, 4))[0].flatten(), hidden[0].flatten())
    sign, expected = torch.linalg.slogdet(jacobian)
    assert layer(hidden)[1][0].item() == pytest.approx(expected.item(), abs=1e-9)
    assert layer(hidden)[1].shape == (2,)
    assert abs(sign.item()) == 1


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SMALL)
def test_a_whole_flow_gives_back_every_image_and_latent(name, dtype):
    with experiment.seeded(0, name):
        flow = stirred(SMALL[name]().to(dtype))
    x = torch.rand(5, *flow.shape, generator=experiment.generator(0, "x"), dtype=torch.double).to(dtype)
    x[0], x[1] = 0, 1  # the borders, too
    z = flow.encode(x)
    assert z.shape == (5, flow.latent)
    assert (flow.decode(z) - x).abs().max() < TOLERANCE[dtype]
    y = flow.inverse(z)
    assert (flow.transform(y)[0] - z).abs().max() < TOLERANCE[dtype] * 10


@pytest.mark.parametrize("name", SMALL)
def test_the_determinant_of_a_whole_flow(name):
    with experiment.seeded(0, name):
        flow = stirred(SMALL[name]().double())
    y = torch.randn(1, *flow.shape, generator=experiment.generator(0, "y"), dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.transform(v.view_as(y))[0].flatten(), y.flatten())
    assert flow.transform(y)[1].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-8)


@pytest.mark.parametrize("bits", [8, 5])
def test_bits_per_dimension_of_a_known_density(bits):
    """A flow whose layers are identities has independent pixels u = (sigmoid(N(0, 1)) - m) / (1 - 2 m)."""
    margin, levels = 0.05, 2**bits
    flow = flows.RealNVP((1, 4, 4), bits=bits, margin=margin, levels=1, couplings=1, hidden=4, blocks=1).double().eval()
    stream = experiment.generator(0, "levels")
    level = torch.randint(0, levels, (3, 1, 4, 4), generator=stream).double()
    noise = torch.rand(3, 1, 4, 4, generator=stream, dtype=torch.double)
    pixel = TransformedDistribution(Normal(torch.zeros(1).double(), 1), [
        SigmoidTransform(), AffineTransform(-margin / (1 - 2 * margin), 1 / (1 - 2 * margin))])  # fmt: skip
    nats = -pixel.log_prob((level + noise) / levels).mean((1, 2, 3))
    ours = flow.loss((level * (256 // levels) + 256 // levels - 1) / 255, noise)["bits_per_dim"]
    assert torch.allclose(ours, nats / math.log(2) + bits, atol=1e-9)


def test_the_uniform_density_costs_all_bits():
    """Averaged over all levels and positions, the probabilities of the levels add up to one."""
    flow = flows.RealNVP((1, 2, 2), bits=5, margin=0.01, levels=1, couplings=1, hidden=4, blocks=1).double().eval()
    u = (torch.arange(32 * 400).double() + 0.5) / 400  # in levels
    bits = []
    for part in u.split(4000):
        x = ((part.floor() * 8) / 255).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        bits.append(flow.loss(x, (part % 1).view(-1, 1, 1, 1).expand(-1, 1, 2, 2))["bits_per_dim"])
    assert torch.exp2(-torch.cat(bits)).sum().item() / 400 == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", SMALL)
def test_the_verbs(name):
    with experiment.seeded(0, name):
        flow = stirred(SMALL[name]())
    sample = flow.sample(4, experiment.generator(0, "s"))
    assert sample.shape == (4, *flow.shape)
    assert ((sample >= 0) & (sample <= 1)).all()
    assert torch.equal(sample, flow.sample(4, experiment.generator(0, "s")))
    assert flow.sample(4, experiment.generator(0, "s"), temperature=0.0).std(0).max() < 1e-6
    with pytest.raises(UserError, match="takes images"):
        flow.encode(torch.rand(1, 1, 4, 4))
    with pytest.raises(UserError, match="not divisible"):
        type(flow)((1, 6, 6), levels=2)


def test_no_pixel_at_the_border_has_a_dead_gradient_inwards():
    x = torch.tensor([-0.1, 0.5, 1.1], requires_grad=True)
    for grad, passed in ((1.0, [0, 1, 1]), (-1.0, [1, 1, 0])):  # a descent moves against the gradient
        (got,) = torch.autograd.grad(flows._Inside.apply(x), x, torch.full((3,), grad))
        assert got.tolist() == [grad * p for p in passed]
    assert flows._Inside.apply(x).tolist() == [0, 0.5, 1]


def test_actnorm_starts_from_the_first_training_batch_and_stays():
    layer, h = flows.ActNorm(3), torch.randn(50, 3, 4, 4) * 5 + 2
    assert torch.equal(layer.eval()(h)[0], h)
    out, _ = layer.train()(h)
    assert out.mean((0, 2, 3)).abs().max() < 1e-5
    assert (out.std((0, 2, 3)) - 1).abs().max() < 1e-4
    assert not torch.allclose(layer(2 * h)[0].std(), torch.ones(()), atol=0.1)


def test_checkerboard_halves_are_the_colours_of_a_checkerboard():
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2
    halves = flows.Squeeze()(board.view(1, 1, 6, 6).float())[0].chunk(2, 1)
    assert halves[0].eq(0).all()
    assert halves[1].eq(1).all()
    rows = (torch.arange(6)[:, None] % 2).expand(6, 6)
    squeezed = flows.Regroup()(flows.Squeeze()(rows.reshape(1, 1, 6, 6).float())[0])[0].chunk(2, 1)
    assert squeezed[0].eq(0).all()
    assert squeezed[1].eq(1).all()


def test_every_parameter_of_a_flow_learns():
    for make in SMALL.values():
        flow = stirred(make()).train()
        flow.loss(torch.rand(3, *flow.shape), torch.rand(3, *flow.shape))["bits_per_dim"].sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


def test_the_network_of_a_coupling_starts_at_zero():
    for net in (flows.ResidualNet(2, 4, 8, 2), flows.plain_net(2, 4, 8)):
        assert net(torch.randn(1, 2, 4, 4)).abs().max() == 0
    assert isinstance(flows.ResidualNet(2, 4, 8, 1).blocks[0][0], nn.ReLU)


def test_the_default_realnvp_has_the_size_that_it_says():
    """At each level eight couplings of a weight-normalised network of six layers, eight activation norms."""
    def level(c):
        network = (9 * c // 2 * 48 + 96) + 4 * (9 * 48 * 48 + 96) + (9 * 48 * c + c)
        return 8 * (network + c // 2 + 2 * c)

    assert sum(p.numel() for p in flows.RealNVP().parameters()) == level(4) + level(8) == 1_397_328

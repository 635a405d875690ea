"""The GANs: the game's losses, growth, the running average, encoding by optimisation."""

import pytest
import torch
import torch.nn.functional as F

import experiment
import gans
import tasks
from experiment import UserError

SMALL = {"dcgan": lambda: gans.DCGAN((1, 28, 28), 6, 4), "progressive": lambda: gans.ProgressiveGAN((1, 28, 28), 6, 8),
         "progressive rgb": lambda: gans.ProgressiveGAN((3, 64, 64), 6, 8)}  # fmt: skip


@pytest.fixture(params=SMALL)
def gan(request):
    with experiment.seeded(0, request.param):
        return SMALL[request.param]()


def noise(gan, n, name="z"):
    return torch.randn(n, gan.latent, generator=experiment.generator(0, name))


def test_the_verbs(gan):
    gan.eval()
    x = gan.sample(4, experiment.generator(0, "s"))
    assert x.shape == (4, *gan.shape)
    assert ((x >= 0) & (x <= 1)).all()
    assert torch.equal(x, gan.sample(4, experiment.generator(0, "s")))
    terms = gan.loss(x, noise(gan, 4))
    assert {"critic", "generator"} <= terms.keys()
    assert all(value.shape == (4,) for value in terms.values())
    with pytest.raises(UserError, match="takes images"):
        gan.encode(torch.zeros(1, 1, 10, 10))


def test_losses_are_those_of_the_game(gan):
    gan.eval()
    x, z = torch.rand(8, *gan.shape), noise(gan, 8)
    fake, real = gan.discriminator(gan.generator(z)), gan.discriminator(2 * x - 1)
    ones, zeros = torch.ones(8), torch.zeros(8)
    critic = F.binary_cross_entropy_with_logits(real, ones, reduction="none")
    critic = critic + F.binary_cross_entropy_with_logits(fake, zeros, reduction="none")
    assert torch.allclose(gan.critic_loss(x, z)["critic"], critic, atol=1e-5)
    generator = F.binary_cross_entropy_with_logits(fake, ones, reduction="none")
    assert torch.allclose(gan.generator_loss(z)["generator"], generator, atol=1e-5)


def test_each_player_steps_alone_and_the_average_follows(gan):
    import datasets

    gan.train()
    optimizer = torch.optim.Adam(gan.parameters(), 1e-3, betas=gan.BETAS)
    batch = datasets.Digits(torch.rand(8, *gan.shape), torch.zeros(8))
    weights = lambda part: torch.cat([p.detach().flatten().clone() for p in part.parameters()])
    parts = (gan.generator, gan.discriminator, gan.average)
    before = [weights(part) for part in parts]
    called = []
    real = optimizer.step
    optimizer.step = lambda: (real(), called.append([weights(part) for part in parts]))
    tasks.Adversarial.step(gan, optimizer, batch, torch.cat([noise(gan, 8), noise(gan, 8, "more")], 1))
    same = lambda a, b: [torch.equal(x, y) for x, y in zip(a, b, strict=True)]
    assert same(before, called[0]) == [True, False, True]  # the critic's step
    assert same(called[0], called[1]) == [False, True, True]  # the generator's
    expected = before[2].lerp(called[1][0], 1 - gan.DECAY)
    assert torch.allclose(weights(gan.average), expected, atol=1e-6)
    assert all(p.requires_grad for p in gan.discriminator.parameters())


def test_encoding_finds_images_that_the_generator_makes():
    with experiment.seeded(0, "dcgan"):
        gan = gans.DCGAN((1, 28, 28), 3, 4)
    with torch.no_grad():
        for parameter in gan.average.parameters():
            parameter *= 5
    gan.eval()
    x = gan.sample(3, experiment.generator(0, "s")).detach()
    z = gan.encode(x, starts=6)
    assert z.shape == (3, 3)
    error = (gan.decode(z) - x).square().mean((1, 2, 3))
    other = (gan.sample(3, experiment.generator(0, "t")) - x).square().mean((1, 2, 3))
    assert (error < 0.2 * other).all()
    assert torch.allclose(gan.encode(x[:1], starts=6), z[:1], atol=1e-3)  # none of them is good before the last step


def test_more_starts_are_never_worse_by_much():
    with experiment.seeded(1, "dcgan"):
        gan = gans.DCGAN((1, 28, 28), 3, 4).eval()
    x = torch.rand(4, 1, 28, 28)
    error = lambda starts: (gan.decode(gan.encode(x, starts=starts, steps=60)) - x).square().mean()
    assert error(8) <= error(1) * 1.01


def test_growth_fades_in_every_resolution_and_ends_whole():
    gan = gans.ProgressiveGAN((1, 28, 28), 4, 4)
    depths = []
    for progress in torch.linspace(0, 1, 41):
        gan.grow(float(progress))
        depths.append(float(gan.generator.depth))
    assert depths[0] == 0
    assert depths == sorted(depths)
    assert depths[20:] == [2.0] * 21  # the second half is trained whole
    assert any(0 < depth < 1 for depth in depths)
    assert gan.generator.depth == gan.discriminator.depth == gan.average.depth


def test_a_resolution_that_is_not_faded_in_yet_changes_nothing():
    gan = gans.ProgressiveGAN((1, 28, 28), 4, 4)
    z, x = noise(gan, 4), torch.rand(4, 1, 28, 28)
    for whole in (0.0, 1.0):
        found = []
        for depth in (whole, whole + 1e-6):
            for part in (gan.generator, gan.discriminator):
                part.depth.fill_(depth)
            found.append((gan.generator(z), gan.discriminator(x)))
        assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
        assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_equalised_layers_have_outputs_of_deviation_near_one():
    layer = gans._Equal(torch.nn.Linear(400, 300), gain=1.0)
    assert layer(torch.randn(200, 400)).std().item() == pytest.approx(1, abs=0.05)
    assert layer.layer.weight.std().item() == pytest.approx(1, abs=0.05)


def test_pixel_norm_and_the_deviation_map():
    h = torch.randn(8, 5, 3, 3)
    assert torch.allclose(gans.pixel_norm(h).square().mean(1), torch.ones(8, 3, 3), atol=1e-4)
    assert gans.deviation_map(h).shape == (8, 6, 3, 3)
    assert gans.deviation_map(h[:1].expand(8, -1, -1, -1))[:, -1].max() < 2e-4
    group = h[::2]  # the first group of four: every second
    expected = (group.var(0, unbiased=False) + 1e-8).sqrt().mean()
    assert gans.deviation_map(h)[0, -1, 0, 0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_penalty_is_the_squared_slope_at_real_images():
    gan = gans.ProgressiveGAN((1, 28, 28), 4, 4)
    gan.discriminator = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 1), torch.nn.Flatten(0))
    terms = gan.critic_loss(torch.rand(8, 1, 28, 28), noise(gan, 8))
    expected = gan.PENALTY / 2 * gan.discriminator[1].weight.square().sum()
    assert torch.allclose(terms["penalty"], expected.expand(8), rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 30, 30), (1, 28, 32)])
def test_sizes_that_do_not_halve_are_refused(shape):
    with pytest.raises(UserError, match="squares"):
        gans.DCGAN(shape)

"""What one training step of a generator is: `PartsGame` (ours) and `ImageGame` (published, and the baseline).

    game.step(number)     one step of every adversary and every mechanism; returns {term: a number on the device}
    game.average          the generator's running average, which is what is kept
    game.state()          everything that a later step depends on; game.restore(state) takes it up

Every draw of a step comes from streams named by its number, so that a training taken up again goes on unchanged.
"""

import copy

import torch

import experiment
from cgn import losses, mechanisms

EVERY = 4  # steps between two looks at Gram matrices, which then count so many times (Karras et al. 2020, appendix B)
DECAY = 0.998  # of the running average of the generator's weights, a step (Karras et al. 2018)


class _Game:
    """The generator, its running average, its adversaries and an optimizer for each side."""

    def __init__(self, generator, adversaries, lr, betas, context, seed, falling=True):
        """context: makes the context that networks run in; falling: whether the rate goes down in the second half."""
        self.falling = falling
        self.generator, self.adversaries, self.context, self.seed = generator, adversaries, context, seed
        self.average = copy.deepcopy(generator).requires_grad_(False).eval()
        adam = lambda net: torch.optim.Adam(net.parameters(), lr, betas=betas, fused=True)
        self.optimizers = {"generator": adam(generator), "adversaries": adam(adversaries)}
        self.lr = lr

    def stream(self, purpose, number):
        return experiment.generator(self.seed, f"{purpose}/{number}")

    def set_rate(self, share):
        """Adam's rate at this share of the training: constant for half of it, then, if it falls, down to zero."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.lr * (min(1.0, 2 * (1 - share)) if self.falling else 1.0)

    def move(self, side, loss):
        self.optimizers[side].zero_grad()
        loss.backward()
        self.optimizers[side].step()

    @torch.no_grad()
    def follow(self, number):
        """Move the running average; it starts as a plain mean, so that the first weights do not linger."""
        decay = min(DECAY, (number + 1) / (number + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - decay)
        for mean, now in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mean.copy_(now)

    def state(self):
        return {"generator": self.generator.state_dict(), "average": self.average.state_dict(),
                "adversaries": self.adversaries.state_dict(),
                "optimizers": {side: optimizer.state_dict() for side, optimizer in self.optimizers.items()}}

    def restore(self, state):
        for name in ("generator", "average", "adversaries"):
            getattr(self, name).load_state_dict(state[name])
        for side, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][side])


class PartsGame(_Game):
    """Each mechanism against the part of real images that is its own, as abduction finds it.

    The shape's adversary sees opacities, those inferred from real images and those made. The textures' adversary sees
    a real image with its inferred opacity, and the same opacity filled with a made object and background. So a mask
    can carry no texture, and a texture no shape, and no shape can be inverted.

    Weights (`weights`): shape_adversary, texture_adversary, entropy (of masks), texture (Gram matrices of the composite
    against those of its class). A weight of 0 leaves the loss out.
    """

    BETAS = (0.0, 0.99)  # with a spectral norm, momentum only delays

    def __init__(self, generator, batch, statistics, weights, lr, context, seed):
        """batch: a function from a stream to (images, opacities, labels) of training images."""
        adversaries = torch.nn.ModuleDict({"shape": mechanisms.Discriminator(1, width=16),
                                           "texture": mechanisms.Discriminator(4, width=16)})  # fmt: skip
        adversaries = adversaries.to(next(generator.parameters()).device, memory_format=torch.channels_last)
        super().__init__(generator, adversaries, lr, self.BETAS, context, seed)
        self.batch, self.statistics, self.weights = batch, statistics, weights

    def step(self, number):
        images, alphas, labels = self.batch(self.stream("real", number))
        shape, *latents = mechanisms.draw_latents(len(labels), self.stream("latents", number), labels.device)
        some = slice(0, -(-len(labels) // 2))  # textures are learned sooner than shapes, and see half of the batch
        with self.context():
            masks = self.generator.shape(labels, shape)
            windows = self.stream("windows", number)
            object_, background = (mechanism(labels[some], z[some], windows) for mechanism, z in zip(
                (self.generator.object, self.generator.background), latents, strict=True))  # fmt: skip
            filled = mechanisms.Parts(alphas[some], object_, background).image()
            real = {"shape": alphas * 2 - 1, "texture": _beside(images[some], alphas[some])}
            made = {"shape": masks * 2 - 1, "texture": _beside(filled, alphas[some])}
            against = {name: losses.logistic(self.judge(name, real[name], labels),
                                             self.judge(name, made[name].detach(), labels))
                       for name in ("shape", "texture") if self.weights[f"{name}_adversary"]}  # fmt: skip
        if against:
            self.move("adversaries", sum(against.values()))
        self.adversaries.requires_grad_(False)  # the gradient passes through them and leaves nothing behind
        with self.context():
            terms = {f"{name}_adversary": losses.logistic(self.judge(name, made[name], labels)) for name in against}
            if self.weights["texture"] and number % EVERY == 0:
                terms["texture"] = EVERY * self.statistics.loss(filled, labels[some])
        self.adversaries.requires_grad_(True)
        terms["entropy"] = losses.binary_entropy(masks)
        self.move("generator", sum(self.weights[name] * value for name, value in terms.items() if self.weights[name]))
        self.follow(number)
        return terms | {f"against_{name}": value for name, value in against.items()} | {"mask": masks.mean()}

    def judge(self, name, images, labels):
        return self.adversaries[name](images.contiguous(memory_format=torch.channels_last), labels[: len(images)])


def _beside(images, alphas):
    return torch.cat([images, alphas * 2 - 1], 1)


class ImageGame(_Game):
    """One adversary on whole images: the published objective, and what a GAN without mechanisms has.

    One latent and one label go to all mechanisms (published). weights: entropy, texture, edge, area; the Gram matrices
    are compared with those of the real batch (statistics None: published) or of each class.
    """

    def __init__(self, generator, adversary, adversarial, batch, statistics, weights, lr, betas, context, seed,
                 falling):  # fmt: skip
        """adversarial: losses.logistic or least_squares; statistics: a function from (made, real, labels) to a loss."""
        super().__init__(generator, adversary, lr, betas, context, seed, falling)
        self.batch, self.statistics, self.weights, self.adversarial = batch, statistics, weights, adversarial

    def step(self, number):
        with experiment.seeded(self.seed, f"dropout/{number}"):
            return self.play(number)

    def play(self, number):
        images, _, labels = self.batch(self.stream("real", number))
        latents = mechanisms.draw_latents(len(labels), self.stream("latents", number), labels.device, shared=True)
        with self.context():
            parts = self.generator.parts((labels,) * 3, latents, self.stream("windows", number))
            made = parts.image().contiguous(memory_format=torch.channels_last)
            real = images.contiguous(memory_format=torch.channels_last)
            against = self.adversarial(self.adversaries(real, labels), self.adversaries(made.detach(), labels))
        self.move("adversaries", against)
        self.adversaries.requires_grad_(False)
        with self.context():
            terms = {"adversary": self.adversarial(self.adversaries(made, labels))}
        self.adversaries.requires_grad_(True)
        if self.weights.get("texture"):
            with self.context():
                terms["texture"] = self.statistics(made, images, labels)
        for name, loss in (("entropy", losses.binary_entropy), ("area", losses.area),
                           ("edge", lambda masks: losses.edge(masks, 3))):  # fmt: skip
            if self.weights.get(name):
                terms[name] = loss(parts.mask)
        self.move("generator", sum(self.weights.get(name, 1.0) * value for name, value in terms.items()))
        self.follow(number)
        return terms | {"against": against, "mask": parts.mask.mean()}

"""What one training step of a generator is: `PartsGame` (ours) and `ImageGame` (published, and the baseline).

Both are a trainer.Game of a generator against its adversaries; what is kept is the generator's running average.
"""

import torch

import experiment
from cgn import losses, mechanisms
from trainer import Game

EVERY = 4  # steps between two looks at Gram matrices, which then count so many times (Karras et al. 2020, appendix B)


class PartsGame(Game):
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
        networks = {"generator": generator, "adversaries": adversaries}
        super().__init__(networks, dict.fromkeys(networks, lr), self.BETAS, context, seed, ("generator",))
        self.generator, self.adversaries = generator, adversaries
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
        weighted = [self.weights[name] * value for name, value in terms.items() if self.weights[name]]
        if weighted:  # with the Gram matrices alone, nothing is learned in the steps between two looks
            self.move("generator", sum(weighted))
        self.follow(number)
        return terms | {f"against_{name}": value for name, value in against.items()} | {"mask": masks.mean()}

    def judge(self, name, images, labels):
        return self.adversaries[name](images.contiguous(memory_format=torch.channels_last), labels[: len(images)])


def _beside(images, alphas):
    return torch.cat([images, alphas * 2 - 1], 1)


class ImageGame(Game):
    """One adversary on whole images: the published objective, and what a GAN without mechanisms has.

    One latent and one label go to all mechanisms (published). weights: entropy, texture, edge, area; the Gram matrices
    are compared with those of the real batch (published) or of each class, as `statistics` does it.
    """

    def __init__(self, generator, adversary, adversarial, batch, statistics, weights, lr, betas, context, seed,
                 falling):  # fmt: skip
        """adversarial: losses.logistic or least_squares; statistics: a function from (made, real, labels) to a loss."""
        networks = {"generator": generator, "adversaries": adversary}
        super().__init__(networks, dict.fromkeys(networks, lr), betas, context, seed, ("generator",), falling)
        self.generator, self.adversaries = generator, adversary
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

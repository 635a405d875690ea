"""Every command behind part 5 of README, in order: what `make reproduce` runs of this package.

Trainings that are only there to be compared go to runs/retrained/, which is not kept in the repository; the others are
in runs/.
"""

from typing import NamedTuple

from cgn import data

SEEDS = range(5)
LEFT_OUT = {"without shape_adversary": "--shape-adversary 0", "without texture_adversary": "--texture-adversary 0",
            "without entropy": "--entropy 0", "without texture": "--texture 0", "without abduction": "--no-abduction",
            "without abduction, with edge": "--no-abduction --edge 10"}  # fmt: skip
LEFT_OUT_OF = "double_colored"  # the variant on which losses, sizes and ratios are studied; others: sizes, one seed
LEFT_OUT_SEEDS = range(3)  # of losses; of abduction, all
EXPLAINED_SEEDS = range(3)  # of the classifiers that are explained, which are saved for it
PUBLISHED_GENERATOR = "double_colored.pth"  # the one that is measured, in cgn_mnist/
PUBLISHED_RATIO = 10  # counterfactuals of each shape, published for double-colored
PUBLISHED_CLASSIFIERS = ("colored", "colored_counterfactual")  # trained on original and on counterfactual images
SIZES, RATIOS = (10_000, 1_000_000), (5, 10, 20)  # beside 100,000 and 1
STEPS = {("original",): 400, ("gan",): 400, ("original", "gan"): 400}  # of classifiers that have colour to go by


class Command(NamedTuple):
    """One script with its arguments; needed_by: the names of those that want what it trains."""

    script: str
    words: str
    needed_by: tuple = ()

    @property
    def name(self):
        return f"{self.script} {self.words}".strip()


def commands(published=None):
    """{name: Command}; published: a folder with what the authors published, which adds wildlife with their textures
    (in textures/), their generator (cgn_mnist/) and their classifiers (classifier_mnist/).
    """
    found = []
    for seed in SEEDS:
        for variant in data.VARIANTS:
            found += comparison(variant, seed, "")
        if published:
            found += comparison("wildlife", seed, f" --textures {published}/textures")
    found += studies()
    if published:
        found += sizes("wildlife", (0,), f" --textures {published}/textures")
        found += [Command("cgn.classify", f"--variant double_colored --checkpoint {published}/cgn_mnist/"
                                          f"{PUBLISHED_GENERATOR} --ratio {PUBLISHED_RATIO}"),
                  *(Command("cgn.explain", f"--variant colored --classifier {published}/classifier_mnist/{name}.pth")
                    for name in PUBLISHED_CLASSIFIERS)]  # fmt: skip
    return {command.name: command for command in found}


def classify(about, *on, save=False):
    steps = f" --steps {STEPS[on]}" if on in STEPS else ""
    return Command("cgn.classify", f"{about} --on {' '.join(on)}{steps}{' --save' * save}")


def comparison(variant, seed, more):
    """Table 2 of the replication for one variant and seed, and what explains it."""
    about = f"--variant {variant} --seed {seed}{more}"
    explained = {on: Command("cgn.explain", f"{about} --on {on}") for on in ("original", "abducted")
                 if seed in EXPLAINED_SEEDS}  # fmt: skip
    names = lambda *some: tuple(command.name for command in some)
    plain, abducted = (classify(about, on, save=on in explained)._replace(
        needed_by=names(explained[on]) if on in explained else ()) for on in ("original", "abducted"))  # fmt: skip
    of_cgn = [abducted, classify(about, "cgn"), classify(about, "original", "cgn"), Command("cgn.analyse", about),
              *explained.values()]  # fmt: skip
    of_gan = [classify(about, "gan"), classify(about, "original", "gan")]
    return [Command("cgn.train", about, names(*of_cgn)), plain, *of_cgn,
            Command("cgn.train", f"{about} --model gan", names(*of_gan)), *of_gan]  # fmt: skip


def studies():
    """Which loss is needed, how large a set, how many counterfactuals a shape; the ceiling; the VAE; the sheets."""
    found = [classify(f"--variant {variant}", "composed") for variant in data.VARIANTS]
    for what, flags in LEFT_OUT.items():
        for seed in SEEDS if "abduction" in what else LEFT_OUT_SEEDS:
            run = f"runs/retrained/cgn_{what.replace(',', '').replace(' ', '_')}_seed{seed}"
            about = f"--variant {LEFT_OUT_OF} --seed {seed} --run {run}"
            users = [Command("cgn.analyse", about), Command("cgn.classify", about)]
            found += [Command("cgn.train", f"{about} {flags}", tuple(user.name for user in users)), *users]
    found += [*sizes(LEFT_OUT_OF, LEFT_OUT_SEEDS), *sizes("colored", (0,))]
    found += [Command("cgn.classify", f"--variant {LEFT_OUT_OF} --seed {seed} --ratio {ratio}")
              for ratio in RATIOS for seed in LEFT_OUT_SEEDS]
    found += [Command("cgn.analyse", "--variant colored --vae"), Command("cgn.data", ""), Command("cgn.bench", "")]
    return found + [Command("cgn.generate", f"--variant {variant}") for variant in data.VARIANTS]


def sizes(variant, seeds, more=""):
    """Sets of other sizes, one counterfactual of each shape."""
    return [Command("cgn.classify", f"--variant {variant} --seed {seed}{more} --size {size}")
            for size in SIZES for seed in seeds]

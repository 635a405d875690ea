"""Every command behind part 5 of README, in order: what `make reproduce` runs of this package.

A command is (name, script, arguments). Trainings that are only there to be compared go to runs/retrained/, which is not
kept in the repository; the others are in runs/.
"""

from cgn import data

SEEDS = range(5)
LEFT_OUT = {"without shape_adversary": "--shape-adversary 0", "without texture_adversary": "--texture-adversary 0",
            "without entropy": "--entropy 0", "without texture": "--texture 0", "without abduction": "--no-abduction",
            "without abduction, with edge": "--no-abduction --edge 10"}  # fmt: skip
LEFT_OUT_OF = "double_colored"  # the variant on which losses, sizes and ratios are studied
LEFT_OUT_SEEDS = range(3)  # of losses; of abduction, all
PUBLISHED_RATIO = 10  # counterfactuals of each shape, published for double-colored
PUBLISHED_CLASSIFIERS = ("colored", "colored_counterfactual")  # trained on original and on counterfactual images
SIZES, RATIOS = (10_000, 1_000_000), (5, 10, 20)  # beside 100,000 and 1


def commands(published=None):
    """All of them; published: a folder with what the authors published, which adds wildlife with their textures (in
    textures/), their generator (cgn_mnist/) and their classifiers (classifier_mnist/).
    """
    found = []
    for seed in SEEDS:
        for variant in data.VARIANTS:
            found += comparison(variant, seed, "")
        if published:
            found += comparison("wildlife", seed, f" --textures {published}/textures")
    found += studies()
    if published:
        found += [("cgn.classify", f"--variant double_colored --checkpoint {published}/cgn_mnist/double_colored.pth "
                                   f"--ratio {PUBLISHED_RATIO}"),
                  *(("cgn.explain", f"--variant colored --classifier {published}/classifier_mnist/{name}.pth")
                    for name in PUBLISHED_CLASSIFIERS)]  # fmt: skip
    return {f"cgn {' '.join(words.split())}": (script, tuple(words.split())) for script, words in found}


def comparison(variant, seed, more):
    """Table 2 of the replication for one variant and seed."""
    about = f"--variant {variant} --seed {seed}{more}"
    classify = lambda on, rest="": ("cgn.classify", f"{about} --on {on}{rest}")
    return [
        ("cgn.train", about), ("cgn.train", f"{about} --model gan"),
        classify("original", " --steps 400 --save"), classify("cgn"), classify("abducted", " --save"),
        classify("original cgn"), classify("original abducted"),
        classify("gan", " --steps 400"), classify("original gan", " --steps 400"),
        ("cgn.analyse", about), ("cgn.explain", f"{about} --on original"), ("cgn.explain", f"{about} --on abducted"),
    ]  # fmt: skip


def studies():
    """Which loss is needed, how large a set, how many counterfactuals a shape; the ceiling; the VAE; the sheets."""
    found = [("cgn.classify", f"--variant {variant} --on composed") for variant in data.VARIANTS]
    for what, flags in LEFT_OUT.items():
        for seed in SEEDS if "abduction" in what else LEFT_OUT_SEEDS:
            run = f"runs/retrained/cgn_{what.replace(',', '').replace(' ', '_')}_seed{seed}"
            about = f"--variant {LEFT_OUT_OF} --seed {seed} --run {run}"
            found += [("cgn.train", f"{about} {flags}"), ("cgn.analyse", about), ("cgn.classify", about)]
    for more in (*(f"--size {size}" for size in SIZES), *(f"--ratio {ratio}" for ratio in RATIOS)):
        found += [("cgn.classify", f"--variant {LEFT_OUT_OF} --seed {seed} {more}") for seed in LEFT_OUT_SEEDS]
    found += [("cgn.analyse", "--variant colored --vae"), ("cgn.data", ""), ("cgn.bench", "")]
    return found + [("cgn.generate", f"--variant {variant}") for variant in data.VARIANTS]

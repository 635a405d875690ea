"""Every command behind README's part 5 at the scale of ImageNet, on the made set, in order.

Three seeds of everything but the BigGAN, of which there is one: a CGN, its counterfactual set, and the classifiers
trained on it share a seed. Trainings that are only there to be compared go to runs/retrained/, which is not kept in
the repository.
"""

from cgn.plan import Command

SEEDS = range(3)
LEFT_OUT = ("rec", "shape", "texture", "background", "ground")  # losses
SIZE = 20_000  # counterfactuals of a set: as many as there are real images
SCORED_AT = (2000, 2, 0.5)  # images, splits of the Inception Score, truncation (the replication's)
TRUNCATION = 1  # of the sets that classifiers are trained on: with all the variety that the CGN has
ON = ("real", "counterfactual", "both", "independent")
CONFLICTS = "counterfactual"  # split on which the shape bias is measured: no label tells another
SHIFTED = ("texture_conflict", "background_conflict", "counterfactual", "only_background", "silhouette")
FOLDERS = ("in9", "cue_conflict", "ood", "val")  # options of cgn.evaluate that name folders of images
SEGMENTER = "runs/u2net64_objects64_seed1"  # the judge of masks, by default of cgn.score_objects


def run_of(name, seed, compared=False):
    """The run folder of a seed; compared: one that is not kept, even of seed 0."""
    return f"runs/{'retrained/' * (compared or seed > 0)}{name}{ending(seed)}"


def ending(seed):
    return f"_seed{seed}" if seed else ""


def cgn_of(seed, left_out=None):
    name = "cgn_objects64" + (f"_without_{left_out}" if left_out else "")
    return run_of(name, seed, compared=left_out is not None)


def ensemble_of(on, seed):
    return run_of(f"ensemble_{on}", seed)


def set_of(seed):
    return f"data/cgn/objects{ending(seed)}"


def commands():
    """{name: Command}, in the order in which they can run."""
    scores = tuple(score(seed, loss).name for seed in SEEDS for loss in (None, *LEFT_OUT))
    found = [Command("cgn.objects64", ""), Command("cgn.train_gan", "", scores),
             Command("cgn.train_saliency", "", scores),
             Command("cgn.train_saliency", f"--seed 1 --run {SEGMENTER}", scores)]  # fmt: skip
    found += [classifier(on, seed) for on in ("real", "independent") for seed in SEEDS]
    for seed in SEEDS:
        found += [cgn(seed), *(cgn(seed, left_out) for left_out in LEFT_OUT)]
        found += [score(seed), *(score(seed, left_out) for left_out in LEFT_OUT), counterfactuals(seed)]
        found += [classifier(on, seed) for on in ("counterfactual", "both")]
        found += [evaluation(on, seed) for on in ON]
    found += [Command("cgn.generate_objects", ""), Command("cgn.dance", ""), Command("cgn.stylise", ""),
              Command("cgn.bench_objects", "")]  # fmt: skip
    return {command.name: command for command in found}


def cgn(seed, left_out=None):
    flags = f" --leave-out {left_out}" if left_out else ""
    wanted = [score(seed, left_out).name] + ([evaluation(on, seed).name for on in ("counterfactual", "both")]
                                             if not left_out else [])  # fmt: skip
    return Command("cgn.train_objects", f"--seed {seed} --run {cgn_of(seed, left_out)}{flags}", tuple(wanted))


def score(seed, left_out=None):
    return Command("cgn.score_objects", f"--run {cgn_of(seed, left_out)}")


def counterfactuals(seed):
    words = f"--run {cgn_of(seed)} --size {SIZE} --truncation {TRUNCATION} --seed {seed} --out {set_of(seed)}"
    return Command("cgn.generate_objects", f"{words} --no-sheets",
                   tuple(evaluation(on, seed).name for on in ("counterfactual", "both")))  # fmt: skip


def classifier(on, seed):
    return Command("cgn.train_ensemble", f"--on {on} --seed {seed} --set {set_of(seed)} --run {ensemble_of(on, seed)}",
                   (evaluation(on, seed).name,))


def evaluation(on, seed):
    return Command("cgn.evaluate", f"--run {ensemble_of(on, seed)}")

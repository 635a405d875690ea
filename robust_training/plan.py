"""Every command behind part 6 of README: the arms that are compared, over the published seeds."""

SEEDS = (5, 10, 100)  # published
CF = ("mean", "random", "shuffle", "tile", "cagan")
F = ("random", "shuffle", "mixed_rand", "fgsm", "pgd")
BEST = ("tile", "mixed_rand")  # the counterfactual and the factual that are also combined
SALIENCY = "--reg bbox_o"
OTHERS = {"bbox_f1": "--reg bbox_f1 --reg-coeff 0.1", "gs, with CF tile": "--inpaint tile --reg gs --reg-coeff 0.1",
          "bbox_o of grad_cam": f"{SALIENCY} --reg-grad grad_cam",
          "bbox_o of deeplift": f"{SALIENCY} --reg-grad deeplift",
          "bbox_o of grad_logp_y": f"{SALIENCY} --reg-grad grad_logp_y"}  # fmt: skip
BASELINES = {"mixup": "--mixup 0.2", "label smoothing": "--label-smoothing 0.1", "GridMask": "--grid-mask",
             "group-DRO": "--group-dro 0.01"}  # fmt: skip
PGD = " --pgd-steps 5"  # of 40 as published, each of which is another pass


def arms():
    """{name: options of robust_training.train}: plain, each CF and F, a pair, the same with saliency, the rest."""
    augmented = {"plain": ""}
    augmented |= {f"CF {name}": f"--inpaint {name}" for name in CF}
    augmented |= {f"F {name}": f"--f-inpaint {name}" + PGD * (name == "pgd") for name in F}
    augmented[f"CF {BEST[0]} + F {BEST[1]}"] = f"--inpaint {BEST[0]} --f-inpaint {BEST[1]}"
    with_saliency = {f"{name} + Sal" if words else "Sal": f"{words} {SALIENCY}".strip()
                     for name, words in augmented.items()}  # fmt: skip
    return augmented | with_saliency | OTHERS | BASELINES


def commands():
    """{command line of robust_training.train: arm}."""
    return {f"{words} --seed {seed}".strip(): name for seed in SEEDS for name, words in arms().items()}

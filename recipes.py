"""How each model is trained on each data set: published values where there are any, else what was measured to work.

A recipe is a model's own one, overridden by that of the pair (model, data set). `for_pair` completes it with what
follows from the data set: the shape of the images, the bits of a flow, the outputs of a classifier.
"""

import inspect

import architecture
import catalogue
import classifiers
import storage
from experiment import UserError

COMMON = {"held_out": (), "n": None, "n_validation": 1000, "batch": 64, "schedule": "cosine"}

USUAL = COMMON | {"epochs": 10, "lr": 1e-3}  # of a model without a line below

# n, epochs, batch, lr published; n_validation published: the test set, which we do not touch
DIGIT_VAE = {"n": 512, "held_out": (0,), "epochs": 100, "batch": 64, "lr": 1e-3, "n_validation": 1024,
             "schedule": "constant"}  # fmt: skip

MODELS = {
    "vae": DIGIT_VAE,
    "linear_vae": DIGIT_VAE,
    "image_vae": USUAL | {"batch": 128},
    "realnvp": COMMON | {"epochs": 10, "lr": 2e-3, "clip": 1.0},
    "glow": COMMON | {"epochs": 10, "lr": 2e-3, "clip": 1.0},
    "dcgan": COMMON | {"epochs": 2, "lr": 2e-4, "schedule": "constant"},
    "progressive_gan": COMMON | {"epochs": 6, "lr": 1e-3, "schedule": "constant"},
    "mnist_cnn": COMMON | {"n": 55_000, "n_validation": 5_000, "epochs": 12, "batch": 128, "lr": 2e-3},
    "attribute_cnn": COMMON | {"epochs": 4, "lr": 1e-3, "batch": 128},
    "residual_cnn": COMMON | {"epochs": 2, "lr": 2e-3, "batch": 128},
    "counting_unet": COMMON | {"epochs": 5, "lr": 2e-3, "batch": 32},
    "class_autoencoders": COMMON | {"epochs": 8, "lr": 1e-3, "batch": 128},
}  # fmt: skip

SMALL_GLOW = {"levels": 2, "steps": 6, "hidden": 64, "margin": 1e-3}  # for digits of 28 pixels
PAIRS = {
    ("realnvp", "mnist"): {"settings": {"hidden": 32, "blocks": 1, "couplings": 4, "margin": 1e-4}, "epochs": 3},
    ("glow", "mnist"): {"settings": SMALL_GLOW, "epochs": 3},
    ("glow", "strokes"): {"settings": SMALL_GLOW, "epochs": 2},
    ("glow", "crowds"): {"settings": {"levels": 3, "steps": 4, "hidden": 48, "margin": 1e-3}, "batch": 32, "epochs": 2},
    # published: 4 levels of 32 steps, additive couplings, 512 channels: for a GPU
    ("glow", "celeba"): {"settings": {"levels": 4, "steps": 32, "hidden": 512, "affine": False}, "lr": 1e-4,
                         "epochs": 30},
    ("glow", "chexpert"): {"settings": {"levels": 4, "steps": 32, "hidden": 512, "affine": False}, "lr": 1e-4,
                           "batch": 16, "epochs": 10},
    ("glow", "mall"): {"settings": {"levels": 4, "steps": 32, "hidden": 512, "affine": False}, "lr": 1e-4,
                       "n_validation": 100, "batch": 16, "epochs": 200},
    ("counting_unet", "mall"): {"n_validation": 100, "batch": 16, "epochs": 100},
    ("residual_cnn", "mall"): {"n_validation": 100, "batch": 16, "epochs": 100},
    ("image_vae", "mnist"): {"settings": {"latent": 10}},  # published: z of 10
    ("image_vae", "strokes"): {"settings": {"latent": 10}, "epochs": 3},
    ("residual_cnn", "crowds"): {"epochs": 12},
    ("progressive_gan", "strokes"): {"settings": {"width": 32}, "n": 10_000, "epochs": 4},
    ("image_vae", "crowds"): {"epochs": 3},
}  # fmt: skip

NUMBER = {"mnist": 59_000, "strokes": 45_000, "crowds": 9_000}  # training images; of other sets all but validation's

# runs that others refer to by a name of their own
RUNS = {("vae", "mnist"): "runs/vae_512_no0", ("linear_vae", "mnist"): "runs/linear_vae_512_no0",
        ("mnist_cnn", "mnist"): "runs/mnist_cnn"}  # fmt: skip
COUNTING = {"counting_unet"}  # models that need a density map


def run_of(model, data):
    """The run folder of a model trained on a data set by its recipe."""
    return RUNS.get((model, data), f"runs/{model}_{data}")


def model_class(name):
    """The class of the model of this name; raises UserError, listing the known ones."""
    return storage.one_of(architecture.MODELS | classifiers.MODELS, "model", name)


def for_pair(model, data):
    """The complete recipe of a model on a data set; raises UserError where the two do not fit."""
    made, chosen = model_class(model), catalogue.find(data)
    takes = inspect.signature(made).parameters
    if "shape" not in takes and chosen.shape != (1, 28, 28):
        raise UserError(f"{model} takes images of 1 x 28 x 28, and those of {data} are "
                        f"{' x '.join(map(str, chosen.shape))}")
    counted = chosen.classes is None
    if model in COUNTING and not counted:
        raise UserError(f"{model} counts, and the images of {data} have classes")
    if counted and model in ("mnist_cnn", "attribute_cnn", "class_autoencoders"):
        raise UserError(f"{model} tells classes apart, and the images of {data} are counted")
    if (model == "mnist_cnn" and data != "mnist") or (model == "attribute_cnn" and len(chosen.classes) != 2):
        raise UserError(f"{model} does not tell apart the {len(chosen.classes)} classes of {data}; residual_cnn does")
    recipe = MODELS.get(model, USUAL) | PAIRS.get((model, data), {})
    recipe["n"] = recipe["n"] or NUMBER.get(data)
    if model in ("vae", "linear_vae") and data != "mnist":
        recipe |= {"held_out": ()}
    if "shape" in takes:
        outputs = 1 if counted else len(chosen.classes)
        derived = {"shape": chosen.shape, "bits": chosen.bits, "outputs": outputs, "classes": outputs}
        recipe["settings"] = {k: v for k, v in derived.items() if k in takes} | recipe.get("settings", {})
    return recipe

"""Gradient ascent in the latent space of a flow, GAN or VAE, against the same ascent in pixel space (README, part 4).

    python latent_counterfactuals.py                            # test digit 0, RealNVP: 20 s on 2 cores
    python latent_counterfactuals.py --image images/mnist_7.png --target 9
    python latent_counterfactuals.py --dataset crowds --maximize --index 3
    python latent_counterfactuals.py --dataset strokes --model glow --count 500     # measured, the pixel attack beside
    python latent_counterfactuals.py --dataset helix                                # the toy: distances to a manifold

After Diffeomorphic Counterfactuals (Dombrowski, Gerken, Mueller, Kessel 2022). Writes for one image overview_*.png,
path_*.gif and, where there are more than two classes, targets_*.png; for many images a figure and metrics.jsonl.
Models are those of train.py; a failure to reach the goal is a result and is reported.
"""

import time
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import ImageOps

import architecture
import catalogue
import classifiers
import counterfactual_study
import experiment
import figures
import flows
import gans
import helix
import public_sets
import recipes
import search
import storage
import tables
import train

# --- which image, which models -----------------------------------------------------------------
DATASET: str = "mnist"  # a name of catalogue.SETS, or helix
MODEL: str | None = None  # generative model; by default realnvp for mnist, glow for the others
SPACE: Literal["latent", "pixel"] = "latent"  # pixel: the conventional adversarial attack
IMAGE: Path | None = None  # an image file of any mode and size; by default --index
INDEX: experiment.Index = 0  # of a test image
COUNT: experiment.Count | None = None  # this many test images at once, measured by independent judges
RUN: Path | None = None  # run folder of the generative model; by default its recipe's
CLASSIFIER: Path | None = None  # run folder of any classifier or counter of the data set; by default its usual one

# --- the goal -------------------------------------------------------------------------------------
TARGET: str | None = None  # a class, by name or number; by default the next one, for many images a random other one
MAXIMIZE: bool = False  # counting: more; by default up from counts below 10, else down
MINIMIZE: bool = False  # counting: fewer
STOP_AT: experiment.NotNegative | None = None  # confidence (published: 0.99) or count to stop at; by default below

# --- the search -------------------------------------------------------------------------------------
STEPS: experiment.Index | None = None  # of Adam, at most; by default below
LR: experiment.Positive | None = None  # of Adam; by default below
PROXIMITY: experiment.NotNegative = 0.0  # weight of the squared distance to the start; published: none
BATCH: experiment.Count = 250  # images searched at once
SEED: experiment.Index = 0  # draws the images and the targets of --count
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/latent_counterfactuals")  # where figures and records go

# Adam's rate and most steps for each data set and kind of space. Published for mnist, celeba, chexpert and mall;
# for our stand-ins those of the set they stand in for, with rates at which 2 cores get through 500 images.
FLOW, GAN, VAE, PIXEL = "flow", "gan", "vae", "pixel"
SEARCH = {
    "mnist": {FLOW: (5e-2, 2000), GAN: (5e-3, 1000), VAE: (5e-3, 1000), PIXEL: (5e-4, 2000)},
    "celeba": {FLOW: (5e-3, 1000), GAN: (5e-3, 1000), VAE: (5e-3, 1000), PIXEL: (7e-4, 1000)},
    "chexpert": {FLOW: (5e-3, 1000), GAN: (5e-3, 1000), VAE: (5e-3, 1000), PIXEL: (5e-4, 1000)},
    "mall": {FLOW: (5e-3, 5000), GAN: (5e-3, 5000), VAE: (5e-3, 5000), PIXEL: (1e-4, 5000)},
    "strokes": {FLOW: (5e-2, 150), GAN: (2e-2, 250), VAE: (2e-2, 250), PIXEL: (7e-4, 1000)},
    "crowds": {FLOW: (5e-2, 60), GAN: (2e-2, 250), VAE: (2e-2, 250), PIXEL: (4e-3, 125)},
}
USUAL = SEARCH["strokes"]  # of a set without a line
STOPS = {"mall": (10.0, 0.01), "crowds": (15.0, 5.0)}  # counts to stop at, upwards and downwards; published for mall
CONFIDENCE = 0.99  # published
MIDDLE = 10  # of the counts of crowds
ATTACKS = 100  # on the helix; published
CLASSIFIERS = {"mnist": "mnist_cnn", "strokes": "attribute_cnn", "celeba": "attribute_cnn",
               "chexpert": "attribute_cnn", "crowds": "counting_unet", "mall": "counting_unet"}  # fmt: skip
WORDS = {search.REACHED: "reached", search.FAILED: "NOT reached", search.ALREADY: "there already"}


class Search(NamedTuple):
    """Everything that a search needs: the data set's name, both networks, the names of both, Adam's rate and steps."""

    data: str
    classifier: torch.nn.Module
    model: torch.nn.Module | None
    arm: str
    lr: float
    steps: int
    pixel: tuple  # rate and steps of the attack beside
    which: dict  # the labels that the classifier was trained on


def kind_of(model):
    if model is None:
        return PIXEL
    return FLOW if isinstance(model, flows.Flow) else GAN if isinstance(model, gans.GAN) else VAE


def usual_classifier(dataset):
    """The name of the model that is explained where no --classifier is given."""
    classes = catalogue.find(dataset).classes
    others = "counting_unet" if classes is None else "attribute_cnn" if len(classes) == 2 else "residual_cnn"
    return CLASSIFIERS.get(dataset, others)


def load_classifier(dataset, run, device):
    """(what is explained, options it was trained with): the usual classifier, or any of the data set in the run given.

    Class autoencoders see no classes and cannot be explained.
    """
    usual = usual_classifier(dataset)
    others = [name for name, made in classifiers.MODELS.items() if made is not classifiers.ClassAutoencoders]
    return train.load(run or recipes.run_of(usual, dataset), usual, dataset, device, others if run else ())


def set_up(dataset, model, space, run, classifier, steps, lr, device):
    """The Search of these options; raises UserError for unknown names, and for checkpoints of something else."""
    judge, options = load_classifier(dataset, classifier, device)
    name = model or ("realnvp" if dataset == "mnist" else "glow")
    storage.one_of(architecture.MODELS, "generative model", name)
    generator = None
    if space == "latent":
        generator, _ = train.load(run or recipes.run_of(name, dataset), name, dataset, device)
    for network in filter(None, (judge, generator)):
        network.requires_grad_(False)  # only points move
    known = SEARCH.get(dataset, USUAL)
    rate, most = known[kind_of(generator)]
    return Search(dataset, judge, generator, "pixel" if space == "pixel" else name, lr or rate,
                  most if steps is None else steps, known[PIXEL], train.which(options))


# --- one image ----------------------------------------------------------------------------------------


def one_image(data, image, index, which, device):
    """((1, C, H, W) in [0, 1], its name, what was done to it): the file, or the test image of this index."""
    shape = catalogue.find(data).shape
    if image is None:
        test = catalogue.load(data, "test", device, **which)
        if index >= len(test):
            raise experiment.UserError(f"--index {index}: the test split of {data} has {len(test)} images")
        return catalogue.unit(test.images[index : index + 1]), f"test image {index}", ""
    picture = ImageOps.exif_transpose(public_sets.open_image(image))  # as its camera was held
    said = f"{image}: {picture.mode} {picture.width} x {picture.height}"
    tensor = public_sets.to_tensor(picture, shape).unsqueeze(0).to(device)
    wanted = f"{'L' if shape[0] == 1 else 'RGB'} {shape[2]} x {shape[1]}"
    return catalogue.unit(tensor), image.stem, f"{said}, taken as {wanted}"


def class_goal(found, image, target, stop_at):
    """(goal, number of the target) of one image of a set with classes."""
    classes = catalogue.find(found.data).classes
    with torch.no_grad():
        now = int(found.classifier(image).argmax(1))
    number = (now + 1) % len(classes) if target is None else catalogue.class_number(found.data, target)
    if number == now:
        raise experiment.UserError(f"--target {target}: the classifier sees {classes[now]} in this image already; "
                                   f"there are {', '.join(name for name in classes if name != classes[now])}")
    target = torch.tensor([number], device=image.device)
    return search.ClassGoal(found.classifier, target, check_confidence(stop_at)), number


def check_confidence(stop_at):
    stop_at = CONFIDENCE if stop_at is None else stop_at
    if not 0 < stop_at < 1:
        raise experiment.UserError(f"--stop-at {stop_at}: a confidence lies between 0 and 1")
    return stop_at


def count_goal(found, counts, maximize, minimize, stop_at):
    """The goal of images with these counts (B,): all up, all down, or up from below the middle and else down."""
    if maximize and minimize:
        raise experiment.UserError("--maximize and --minimize exclude each other")
    if stop_at is None and found.data not in STOPS:
        raise experiment.UserError(f"there is no usual count to stop at for {found.data}: say --stop-at")
    up = counts < MIDDLE if not (maximize or minimize) else torch.full_like(counts, maximize, dtype=torch.bool)
    most, least = STOPS[found.data] if stop_at is None else (stop_at, stop_at)
    directions = torch.where(up, 1.0, -1.0)
    return search.CountGoal(found.classifier, directions, torch.where(up, most, least))


def goal_of_one(found, image, target, maximize, minimize, stop_at):
    """(goal, what it is in words) of one image."""
    classes = catalogue.find(found.data).classes
    if classes is None:
        with torch.no_grad():
            goal = count_goal(found, found.classifier.count(image), maximize, minimize, stop_at)
        return goal, f"a count of {goal.bounds.item():g} or {'more' if goal.directions.item() > 0 else 'less'}"
    goal, number = class_goal(found, image, target, stop_at)
    return goal, f"class {classes[number]}"


def seen(found, image):
    """What the classifier says of an image (1, C, H, W), for a caption."""
    classes = catalogue.find(found.data).classes
    with torch.no_grad():
        if classes is None:
            return f"count {found.classifier.count(image).item():.1f}"
        sure, number = found.classifier(image).softmax(1).max(1)
    return f"{classes[int(number)]} ({sure.item():.2f})"


def explain(found, image, name, goal, words, proximity, results, records):
    """Search from one image; writes overview, animation and records, returns the line of the table."""
    frames = []
    started = time.perf_counter()
    outcome, made, _ = search.from_images(image, found.model, goal, found.steps, found.lr, proximity,
                                          watch=lambda step, rows, images: frames.append(images))  # fmt: skip
    seconds = time.perf_counter() - started
    change = figures.change_map(outcome.images, made)
    most = float(change.max())
    stem = f"{found.data}_{found.arm}_{name.replace(' ', '_')}"
    figures.image_grid(
        results / f"overview_{stem}.png", [[image[0], made[0], outcome.images[0], change[0] / max(most, 1e-12)]],
        ["x", "g(g⁻¹(x))" if found.model else "x", "x'", "|x' - g(g⁻¹(x))|" if found.model else "|x' - x|"],
        [found.arm],
        [[seen(found, image), seen(found, made), seen(found, outcome.images), f"darkest: {most:.2f}"]],
        f"{found.data}: {words}, {WORDS[outcome.status[0]]}", heat={(0, 3)})  # fmt: skip
    path = [image, *frames[:: max(1, len(frames) // 60)], outcome.images]
    figures.animation(results / f"path_{stem}.gif", torch.cat(path))
    for metric, value in (("confidence or count", outcome.value), ("steps", outcome.steps)):
        records.add(found.arm, name, metric, float(value), 1, 0)
    records.save()
    return [found.arm, words, WORDS[outcome.status[0]], int(outcome.steps), f"{float(outcome.value):.3f}",
            f"{float((outcome.images - image).abs().mean()):.4f}", f"{seconds:.1f}"]


def all_targets(found, image, name, stop_at, proximity, results):
    """Figure of one image's counterfactuals for all other classes, in one batch, the pixel attack beside."""
    classes = catalogue.find(found.data).classes
    with torch.no_grad():
        now = int(found.classifier(image).argmax(1))
    others = [number for number in range(len(classes)) if number != now]
    goal = search.ClassGoal(found.classifier, torch.tensor(others, device=image.device), check_confidence(stop_at))
    rows, captions, heat = [], [], set()
    for model, (rate, most) in ((found.model, (found.lr, found.steps)), (None, found.pixel)):
        outcome, made, _ = search.from_images(image.expand(len(others), -1, -1, -1), model, goal, most, rate, proximity)
        change = figures.change_map(outcome.images, made)
        heat |= {(len(rows) + 1, column + 1) for column in range(len(others))}
        rows += [[image[0], *outcome.images], [made[0], *(change / change.amax((1, 2, 3), keepdim=True).clamp(1e-12))]]
        captions += [[seen(found, image), *(f"{value:.2f}" for value in outcome.value.tolist())],
                     ["g(g⁻¹(x))" if model else "x", *(f"{float(part.max()):.2f}" for part in change)]]
    figures.image_grid(results / f"targets_{found.data}_{found.arm}_{name.replace(' ', '_')}.png", rows,
                       ["x", *(classes[number] for number in others)],
                       [found.arm, "change", "pixel\nattack", "change"], captions,
                       f"{found.data}: from {classes[now]} to every other class, with the classifier's confidence and "
                       "the largest change", heat)  # fmt: skip


def refuse_ignored(given, used, where):
    """Raise UserError for an option that differs from its default although nothing here uses it."""
    for name, value in given.items():
        if name not in used and value != globals()[name.upper()]:
            raise experiment.UserError(f"--{name.replace('_', '-')} has no part {where}: leave it out")


def main(dataset, model, space, image, index, count, run, classifier, target, maximize, minimize, stop_at, steps, lr,
         proximity, batch, seed, device, results):
    given = {k: v for k, v in locals().items() if k not in ("device", "results", "index", "image")}
    device = experiment.pick_device(device)
    if dataset == "helix":
        refuse_ignored(given | {"image": image, "index": index}, {"dataset", "count", "seed"}, "on the helix")
        print(helix.measure(count or ATTACKS, seed, {"dataset": dataset, "count": count, "seed": seed}, results))
        return
    storage.one_of(catalogue.SETS | {"helix": helix}, "data set", dataset)
    if target is not None:
        catalogue.class_number(dataset, target)
    if (maximize or minimize) and catalogue.find(dataset).classes:
        raise experiment.UserError(f"{dataset} has classes, it is not counted: say --target instead")
    if count and image:
        raise experiment.UserError("--image is one image, --count many: leave out one of them")
    if count:
        refuse_ignored({"index": index}, (), "where --count draws the images")
    found = set_up(dataset, model, space, run, classifier, steps, lr, device)
    if count:
        many(found, given, target, maximize, minimize, stop_at, count, proximity, batch, seed, device, results)
        return
    picture, name, said = one_image(dataset, image, index, found.which, device)
    goal, words = goal_of_one(found, picture, target, maximize, minimize, stop_at)
    if said:
        print(said)
    records = storage.Records(results, "one image", given | {"image": image, "index": index}, device)
    line = explain(found, picture, name, goal, words, proximity, Path(results), records)
    print(tables.markdown(["searched in", "goal", "status", "steps", "confidence or count", "mean change", "seconds"],
                          [line]))  # fmt: skip
    if found.model is not None and target is None and len(catalogue.find(dataset).classes or ()) > 2:
        all_targets(found, picture, name, stop_at, proximity, Path(results))


def many(found, given, target, maximize, minimize, stop_at, count, proximity, batch, seed, device, results):
    """Measure the search on `count` test images, the pixel attack beside it."""
    cases = counterfactual_study.draw_cases(found, target, count, seed, device)
    if cases.targets is None:
        goal = count_goal(found, cases.seen, maximize, minimize, stop_at)
    else:
        goal = search.ClassGoal(found.classifier, cases.targets, check_confidence(stop_at))
    print(counterfactual_study.measure(found, cases, goal, given, proximity, batch, seed, device, Path(results)))


if __name__ == "__main__":
    experiment.run(main)

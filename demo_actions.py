"""What the page of demo.py shows, without the page: a latent counterfactual, a CGN's parts, a sample removed or added.

    search_latent(...)     README, part 4: an image, moved in the latent space of a RealNVP or a VAE to another class
    compose(...)           README, part 5: mask, object, background and composite of three labels
    remove_sample(...)     README, part 1: a VAE without a training sample
    add_sample(...)        README, part 2: a VAE with a zero that it had never seen

Each returns an Answer. Whatever comes in is checked, as anyone can post anything to a page; what is wrong is a
UserError of one sentence. Models are read once, at their first use, and never changed; answers are made one at a time.
"""

import functools
import io
import math
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL import Image, ImageOps

import ablate
import datasets
import figures
import latent_counterfactuals
import metrics
import public_sets
import recipes
import search
import train
from cgn import generate, mechanisms, objects, objects64
from cgn import train as cgn_train
from experiment import ROOT, UserError, generator

CPU = torch.device("cpu")  # one image at a time; a GPU would not be faster
SIDE = 224  # pixels to which small images are enlarged, at least
UPLOAD_BYTES = 5_000_000  # of an uploaded file, at most
UPLOAD_PIXELS = 16_000_000  # of an uploaded picture, at most: what a small file may unfold to
DIGITS = 892  # test digits of the rarest class; so many can be picked of each
# Name on the page: model, rate of Adam. The flow's is published, the VAE's ten times as high, to arrive in fewer steps.
SEARCHES = {"RealNVP": ("realnvp", 5e-2), "VAE": ("image_vae", 5e-2)}
MOST_STEPS = 300
STRIP = 8  # iterates side by side
FILM = 40  # iterates in the film, at most

VARIANTS = ("colored", "double_colored", "wildlife")
OBJECTS = "objects64"  # a CGN of objects, offered where its run folder is
TEXTURES = {"wildlife": "procedural"}  # what the committed runs were trained on
TRUNCATION = 0.5  # of the latents of objects; published for figures
LARGEST_SEED = 2**31 - 1

VAE_RUN = ROOT / "runs/vae_512_no0"
ADDED = 0  # the digit that this VAE has never seen
PERCENT = (0.001, 1.0)  # of the parameters, that can be set to zero: the range of part 1's sweep
STRENGTHS = (1e-5, 5e-3)  # of the step; the longest of part 2's sweep, and a tenth of its shortest

_LOCK = threading.Lock()  # around every action, and with them around the cached loaders


class Picture(NamedTuple):
    """An image for the page: pixels uint8 (H, W, 3), what is written above and below it, and what it is in words."""

    pixels: numpy.ndarray
    title: str
    caption: str
    alt: str


class Answer(NamedTuple):
    """What is shown: a sentence, [(heading, Pictures)], the film as bytes of a GIF, and two rows of ten confidences."""

    said: str
    rows: list
    film: bytes | None = None
    confidences: tuple | None = None
    seconds: float = 0.0


def action(function):
    """One at a time, and timed: the Answer says how long it took."""

    @functools.wraps(function)
    def timed(*values, **named):
        with _LOCK:
            started = time.perf_counter()
            answer = function(*values, **named)
            return answer._replace(seconds=time.perf_counter() - started)

    return timed


# --- checks ---------------------------------------------------------------------------------------


def number(value, name, least, most):
    """value as a float; UserError unless it is a number from least to most. It is not repeated there: it is foreign."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise UserError(f"{name} must be a number from {least:g} to {most:g}.")
    return float(value)


def whole(value, name, least, most):
    """value as an int; UserError unless it is a whole number from least to most."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most or value % 1:
        raise UserError(f"{name} must be a whole number from {least:,} to {most:,}.")
    return int(value)


def choice(value, name, known):
    """value; UserError unless it is one of the texts known."""
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}.")
    return value


# --- pictures -----------------------------------------------------------------------------------------


def enlarged(image, ink=False, heat=False):
    """uint8 (H, W, 3) of an image (1 or 3, H, W) in [0, 1], each of its pixels a square, at least SIDE wide.

    ink: dark on light, as digits are written. heat: a map, coloured from white over orange to dark red.
    """
    values = image.detach().clamp(0, 1).permute(1, 2, 0).numpy()
    values = figures.HEAT(values[:, :, 0])[:, :, :3] if heat else 1 - values if ink else values
    pixels = (255 * values).round().astype(numpy.uint8)
    times = math.ceil(SIDE / pixels.shape[1])
    pixels = pixels.repeat(times, 0).repeat(times, 1)
    return pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels


def film_of(frames):
    """Bytes of a GIF of images (1, H, W) that rests on its last one."""
    pictures = [Image.fromarray(enlarged(frame, ink=True)[:, :, 0]) for frame in frames]  # grey: no palette is sought
    buffer = io.BytesIO()
    pictures[0].save(buffer, format="gif", save_all=True, append_images=pictures[1:], loop=0,
                     duration=[80] * (len(pictures) - 1) + [2000])
    return buffer.getvalue()


def read_upload(path):
    """An uploaded file as a digit (1, 1, 28, 28) in [0, 1], light on dark; UserError unless it is one PNG or JPEG.

    Turned as its EXIF data say, cut to the middle square; dark on light, by its border, becomes light on dark.
    """
    try:
        size = Path(path).stat().st_size
        if size > UPLOAD_BYTES:
            raise UserError(f"The file is too large: at most {UPLOAD_BYTES / 1e6:g} MB are taken.")
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > UPLOAD_PIXELS:
                raise UserError(f"The picture is too large: at most {UPLOAD_PIXELS / 1e6:g} million pixels are taken.")
            if image.format == "PNG" and getattr(image, "is_animated", False):
                raise UserError("The picture is animated: a single one is needed.")
            pixels = public_sets.to_tensor(ImageOps.exif_transpose(image), (1, 28, 28), crop="square")
    except UserError:
        raise
    except Exception:  # Pillow raises a dozen kinds for damaged and foreign files, and for those that unfold too far
        raise UserError("This is not a PNG or JPEG picture that can be read whole.") from None
    digit = pixels.float() / 255
    border = torch.cat([digit[:, 0], digit[:, -1], digit[:, :, 0], digit[:, :, -1]], 1)
    return (1 - digit if border.median() > 0.5 else digit)[None]


# --- part 4: a latent counterfactual -----------------------------------------------------------------------


@functools.cache
def test_digits():
    return datasets.mnist("test", root=ROOT / datasets.ROOT)


@functools.cache
def networks(name):
    """(classifier, generative model) of MNIST, frozen, for a name in SEARCHES."""
    judge = ROOT / recipes.run_of(latent_counterfactuals.CLASSIFIERS["mnist"], "mnist")
    model = SEARCHES[name][0]
    found = latent_counterfactuals.set_up("mnist", model, "latent", ROOT / recipes.run_of(model, "mnist"), judge,
                                          None, None, CPU)  # fmt: skip
    return found.classifier, found.model


def test_digit(digit, position):
    """Test digit number `position` of a class, (1, 1, 28, 28)."""
    digit, position = whole(digit, "The digit", 0, 9), whole(position, "Its number", 0, DIGITS - 1)
    digits = test_digits()
    return digits.images[(digits.labels == digit).nonzero()[position]]


@action
def search_latent(digit, position, upload, target, model, steps):
    """The Answer of a search from a test digit, or from the uploaded file (a path, or None), for class `target`."""
    target, steps = whole(target, "The target class", 0, 9), whole(steps, "The steps", 1, MOST_STEPS)
    rate = SEARCHES[choice(model, "The generator", SEARCHES)][1]
    image = read_upload(upload) if upload else test_digit(digit, position)
    classifier, decoder = networks(model)
    before = classifier(image).softmax(1)[0].tolist()
    seen = max(range(10), key=before.__getitem__)
    if seen == target:
        raise UserError(f"The classifier sees {target} in this image already: choose another target class.")
    goal = search.ClassGoal(classifier, torch.tensor([target]), latent_counterfactuals.CONFIDENCE)
    frames = []
    outcome, made, _ = search.from_images(image, decoder, goal, steps, rate,
                                          watch=lambda step, rows, images: frames.append(images[0]))  # fmt: skip
    after = classifier(outcome.images).softmax(1)[0].tolist()
    taken = int(outcome.steps)
    end = "Goal reached." if outcome.status[0] == search.REACHED else (
        f"Not the {goal.stop_at:.0%} that were asked for; more steps may help.")  # fmt: skip
    said = (f"From {seen} to {target}: the classifier's confidence in {target} is {after[target]:.1%} after {taken} "
            f"steps, {before[target]:.1%} before. {end}")  # fmt: skip
    path = frames[: taken + 1]  # the best attempt is the last one that is shown
    rows = [("Before and after", before_and_after(image, made, outcome.images, seen, target, after)),
            ("How it forms", strip(path))]  # fmt: skip
    return Answer(said, rows, film_of([path[k] for k in spread(len(path), FILM)]), (before, after))


def before_and_after(image, made, changed, seen, target, after):
    """Pictures of the image, its reconstruction, its counterfactual, and where the two last differ."""
    change = figures.change_map(changed, made)[0]
    most = float(change.max())
    ink = lambda images, *words: Picture(enlarged(images[0], ink=True), *words)
    return [
        ink(image, "image", f"seen as {seen}", f"The image, seen as {seen}"),
        ink(made, "reconstruction", "where the search starts", "The generator's reconstruction of the image"),
        ink(changed, "counterfactual", f"{target}: {after[target]:.1%}", f"What should be seen as {target}"),
        Picture(enlarged(change / max(most, 1e-12), heat=True), "what changed", f"darkest: {most:.2f} of 1",
                "A map of the difference between counterfactual and reconstruction"),
    ]  # fmt: skip


def spread(count, most):
    """At most so many positions of `count`, evenly spread, the first and the last among them."""
    return [round(k) for k in numpy.linspace(0, count - 1, min(count, most)).tolist()]


def strip(path):
    return [Picture(enlarged(path[k], ink=True), f"step {k}", "", f"The image at step {k} of the search")
            for k in spread(len(path), STRIP)]  # fmt: skip


# --- part 5: three mechanisms ---------------------------------------------------------------------------------


def variants():
    """Names of the CGNs that are here."""
    return (*VARIANTS, *([OBJECTS] if (ROOT / "runs/cgn_objects64/ckpt/best.pt").is_file() else []))


def labels_of(variant):
    """What the ten classes are called."""
    return objects64.CLASSES if variant == OBJECTS else tuple("0123456789")


@functools.cache
def cgn_of(variant):
    if variant == OBJECTS:
        return objects.load(ROOT / "runs/cgn_objects64", CPU)
    textures = TEXTURES.get(variant)
    path = ROOT / cgn_train.run_of("cgn", variant, textures, 0) / "ckpt/best.pt"
    return generate.load(path, variant, textures, CPU)[0]


@action
@torch.no_grad()
def compose(variant, shape, texture, background, seed):
    """The Answer of a CGN for labels of shape, object and background; seed: of latents and crops."""
    choice(variant, "The variant", variants())
    seed = whole(seed, "The seed", 0, LARGEST_SEED)
    given = {"shape": shape, "object": texture, "background": background}
    numbers = [whole(value, f"The label of the {name}", 0, 9) for name, value in given.items()]
    model, labels = cgn_of(variant), [torch.tensor([value]) for value in numbers]
    stream, crops = generator(seed, "demo/latents"), generator(seed, "demo/crops")
    if variant == OBJECTS:
        parts = model.parts(labels, model.draw(1, stream, TRUNCATION)[0], TRUNCATION)
    else:
        parts = model.parts(labels, mechanisms.draw_latents(1, stream), crops)
    names = [labels_of(variant)[value] for value in numbers]
    unit = lambda image: enlarged((image[0] + 1) / 2)
    pictures = [
        Picture(enlarged(parts.mask[0], ink=True), "mask m", f"shape of {names[0]}", f"The mask, shape of {names[0]}"),
        Picture(unit(parts.object), "object f", f"texture of {names[1]}", f"The object's texture, of {names[1]}"),
        Picture(unit(parts.background), "background b", f"ground of {names[2]}", f"The background, of {names[2]}"),
        Picture(unit(parts.image()), "composite", "m f + (1 - m) b", "The composite of mask, object and background"),
    ]
    kind = "What it was trained to make" if len(set(numbers)) == 1 else "A counterfactual"
    said = f"{kind}: the shape of {names[0]}, the texture of {names[1]}, the background of {names[2]}."
    return Answer(said, [("From three labels and a latent", pictures)])


# --- parts 1 and 2: a sample removed, a sample added --------------------------------------------------------------


@functools.cache
def vae():
    """(model, the digits that it was trained on)."""
    model, options, _ = train.load_vae(VAE_RUN, None, CPU)
    train.refuse_known(options, ADDED)
    digits, _ = datasets.training_split(tuple(options["held_out"]), options["n"], 0, options["seed"], CPU,
                                        ROOT / datasets.ROOT)  # fmt: skip
    return model, digits


@torch.no_grad()
def compared(model, changed, images, names):
    """([(name, Pictures)], changes of the loss): images (N, 1, 28, 28), and what both models reconstruct of each."""
    errors = [metrics.errors(net, images) for net in (model, changed)]
    made = [net.reconstruct(images) for net in (model, changed)]
    rows = []
    for k, name in enumerate(names):
        row = [Picture(enlarged(images[k], ink=True), "truth", "", f"{name}: the image")]
        for title, error, after in zip(("before", "after"), errors, made, strict=True):
            caption = f"loss {error['vae_loss'][k]:.1f} nats, squared error {error['mse'][k]:.4f}"
            row.append(Picture(enlarged(after[k], ink=True), title, caption, f"{name}: its reconstruction {title}"))
        rows.append((name, row))
    change = (errors[1]["vae_loss"] - errors[0]["vae_loss"]).tolist()
    return rows, change


@action
def remove_sample(position, percent):
    """The Answer to zeroing so much of the VAE's parameters, those that training sample `position` marks most."""
    model, digits = vae()
    position = whole(position, "The training sample", 0, len(digits) - 1)
    fraction = number(percent, "The percentage", *PERCENT) / 100
    masks = ablate.mark(ablate.sample_gradients(model, digits.images[position]), fraction=fraction)
    shown = [position, *ablate.controls(digits.labels, position).values()]
    classes = digits.labels[shown].tolist()
    names = [f"the removed {classes[0]}", f"another {classes[1]}", f"a {classes[2]}"]
    rows, change = compared(model, ablate.ablate(model, masks), digits.images[shown], names)
    zeroed, total = (sum(int(count(mask)) for mask in masks.values()) for count in (torch.sum, torch.numel))
    told = [f"{value:+.1f} nats on {name}" for name, value in zip(names, change, strict=True)]
    return Answer(f"{zeroed:,} of {total:,} parameters set to zero: the loss changes by {', '.join(told)}.", rows)


@action
def add_sample(position, strength):
    """The Answer to one step of this strength from test zero `position`, a digit that the VAE has never seen."""
    position = whole(position, "The zero", 0, DIGITS - 1)
    strength = number(strength, "The strength", *STRENGTHS)
    anchor, unseen = (test_digit(ADDED, (position + k) % DIGITS) for k in (0, 1))
    images = torch.cat([anchor, unseen, test_digit(7, 0), test_digit(2, 0)])
    names = ["the added 0", "another 0, never shown", "a known 7", "a known 2"]
    rows, change = compared(vae()[0], ablate.reverse_ablate(vae()[0], anchor, strength), images, names)
    told = [f"{value:+.1f} nats on {name.split(',')[0]}" for name, value in zip(names, change, strict=True)]
    return Answer(f"Every parameter moved by {strength:g}: the loss changes by {', '.join(told)}.", rows)

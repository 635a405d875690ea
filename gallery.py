"""One page over all results: every figure, and every record in tables that sort and filter.

    python gallery.py                                       # results/index.html, opened without a server
    python gallery.py --results results/quick --out results/quick/index.html

It is made from metrics*.jsonl and the pictures beside them, and from README.md's words for a picture; the same records
make the same page. Records that differ only in the seed, or in the sample that was measured, are one row.
"""

import html
import json
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image

import experiment
import gallery_page as page
import gallery_records as records
import storage
from experiment import UserError

RESULTS: Path = Path("results")  # folder of records and figures; its quick/ is left out
OUT: Path = Path("results/index.html")  # the page; it links to the figures where they are

README = experiment.ROOT / "README.md"
PICTURES = (".png", ".gif", ".jpg", ".jpeg", ".svg", ".webp")


class Table(NamedTuple):
    """Records of some experiments in some folder; start: the split and metric that it opens on; keep: which of them."""

    title: str
    folder: str
    experiments: tuple
    start: tuple = ("", "")
    binned: bool | None = None  # only records with, or without, a bin in their setting


class Part(NamedTuple):
    """A section of the page. figures: a pattern of paths in RESULTS, the first part that matches takes a figure."""

    key: str
    number: str
    title: str
    text: str
    figures: str
    tables: tuple


OBJECTS = ("train_gan", "train_saliency", "train_objects", "generate_objects", "score_objects", "train_ensemble",
           "evaluate", "stylise", "dance")  # fmt: skip
PARTS = (
    Part("remove", "1", "Remove a sample",
         "Setting to zero the few parameters that a training sample's gradient marks most should make a VAE forget "
         "this sample and no other. Beside it: as many random zeros, and models retrained without the sample.",
         "ablate/", (Table("Ablation", "ablate", ("ablate",), ("", "vae_loss")),)),
    Part("add", "2", "Add a sample in one step",
         "A VAE that has never seen a zero moves every parameter once, by the sign of one zero's gradient. Does it get "
         "better at that zero, at other zeros, and what does it lose on the digits that it knows?",
         "constructive_counterfactuals/",
         (Table("One step", "constructive_counterfactuals", ("constructive_counterfactuals",),
                ("unseen", "mse_change")),)),
    Part("pick", "3", "Pick samples for finetuning",
         "New samples are scored by how much one step on each would change its own error, and only the ones with a "
         "small gain are used for finetuning. Random choice, other scores and the full set are measured beside it.",
         "targeted_finetuning/",
         (Table("Finetuning", "targeted_finetuning", ("targeted_finetuning",), ("new digit", "mse_sampled")),)),
    Part("latent", "4", "Counterfactuals of an image",
         "What is the least that must change in an image for a classifier to see something else? Gradient ascent in "
         "the latent space of a flow, a GAN or a VAE, against the same ascent in pixels.",
         "latent_counterfactuals/",
         (Table("Many images at once", "latent_counterfactuals", ("latent_counterfactuals",), ("", "oracle")),
          Table("The helix, where the truth is known", "latent_counterfactuals", ("helix",)),
          Table("Single images", "latent_counterfactuals", ("one image",)))),
    Part("objects", "5b", "Counterfactual generative networks on made objects",
         "The same three mechanisms with the parts that ImageNet needs: a BigGAN for each mechanism, a saliency "
         "network for the masks, and a classifier with one head for shape, one for texture and one for background.",
         r"cgn/.*(objects|stylise|dance|ensemble)",
         (Table("Generators and masks", "cgn", OBJECTS[:5]), Table("Classifiers", "cgn", OBJECTS[5:]))),
    Part("digits", "5a", "Counterfactual generative networks on digits",
         "Shape, texture and background of a digit come from three independent mechanisms. A classifier that is "
         "trained on their mixtures should read the shape where a plain one reads the colour.",
         "cgn/",
         (Table("Classifiers", "cgn", ("classify",), ("test", "accuracy")),
          Table("What the mechanisms paint", "cgn", ("analyse",)),
          Table("Where classifiers look", "cgn", ("explain",)),
          Table("Training the networks", "cgn", ("train",)))),
    Part("robust", "6", "Robust training",
         "A classifier that is shown images without their foreground, and foregrounds on other backgrounds, should "
         "stop reading the background. Every augmentation is measured with and without a penalty on saliency maps. "
         "Seed 1 is that of the search for coefficients, which README.md leaves out of its means.",
         "robust_training/",
         (Table("Accuracy, calibration, saliency", "robust_training", ("train",), ("flip", "accuracy"), False),
          Table("Reliability by confidence", "robust_training", ("train",), ("flip", ""), True),
          Table("Filling a hole in the background", "robust_training", ("inpaint",)))),
    Part("speed", "", "Speed, training, reliability",
         "How fast the code is beside what it replaces, both measured in one run, what it costs as work grows, how the "
         "models of parts 1 to 4 were trained, and what held when runs were killed and commands were wrong.", "",
         (Table("Speed", "bench", ("bench", "cgn.bench", "cgn.bench_objects", "robust_training.bench"),
                ("", "speedup")),
          Table("As the work grows", "growth", ("growth",)), Table("Training", "train", ("train",)),
          Table("Interruptions and mistakes", "reliability", ("reliability",)))),
)  # fmt: skip
ORDER = ("remove", "add", "pick", "latent", "digits", "objects", "robust", "speed")  # on the page

KINDS = {"gradcam": "Grad-CAM maps of a classifier", "tsne": "t-SNE of a classifier's features",
         "sheet": "Mask, object, background, composite and counterfactuals of each class",
         "interpolation": "The label of one mechanism at a time goes over to another class",
         "training": "Samples in the course of training, animated", "overview": "Image, counterfactual and difference",
         "path": "From the image to its counterfactual, animated", "examples": "Images and their counterfactuals",
         "targets": "One image turned into every class", "inpainting": "Holes in the ground and what fills them",
         "splits": "Images of every test split", "fractions": "Error against the share of samples kept",
         "growth": "Ours and the plain way as the work grows",
         "classes": "One class going over to another, animated"}  # by the first word of a figure's name


# --- figures -----------------------------------------------------------------------------------------


def readme_alts():
    """{path of a figure: its words in README.md}."""
    found = re.findall(r'<img src="([^"]+)"[^>]*? alt="([^"]+)"', README.read_text()) if README.is_file() else []
    return {src: html.unescape(alt) for src, alt in found}


def words_for(path, title):
    """An alternative text from a figure's name and the section that it is in."""
    kind, _, rest = path.stem.partition("_")
    named = KINDS.get(kind, kind.capitalize())
    rest = f": {rest.replace('_', ' ')}" if rest else ""
    return f"{named}{rest}." if kind in KINDS else f"{named}{rest} ({title[0].lower()}{title[1:]})."


def size_of(path):
    """(width, height) in pixels; raises UserError if it is no picture."""
    if path.suffix == ".svg":
        found = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', path.read_text())
        if found is None:
            raise UserError(f"{path} has no viewBox: nobody can tell its size")
        return tuple(round(float(side)) for side in found.groups())
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no picture: {error}") from None


def figures(results, out):
    """{key of a Part: [page.Figure]} of all pictures under a folder, those of README.md first."""
    alts, found = readme_alts(), {part.key: [] for part in PARTS}
    paths = (path for path in sorted(results.glob("**/*")) if path.suffix.lower() in PICTURES)
    for path in paths:
        place = path.relative_to(results).as_posix()
        if set(path.relative_to(results).parts) & set(records.UNREAD):
            continue
        part = next(part for part in PARTS if re.match(part.figures, place))
        told = alts.get(Path(os.path.relpath(path.resolve(), experiment.ROOT)).as_posix())
        source = quote(Path(os.path.relpath(path.resolve(), out.resolve().parent)).as_posix())
        found[part.key].append(page.Figure(source, told or words_for(path, part.title), *size_of(path), bool(told)))
    order = {alt: place for place, alt in enumerate(alts.values())}
    for drawn in found.values():
        drawn.sort(key=lambda figure: order.get(figure.alt, len(order)))  # as README has them
    return found


# --- tables ------------------------------------------------------------------------------------------


def take(found, results, table):
    """The Groups of a Table, and the ones that are left."""
    def wanted(group):
        record = group.first
        top = record["file"].relative_to(results).parts[0]
        return (top == table.folder and record["experiment"] in table.experiments
                and table.binned in (None, "bin" in group.setting))

    return [group for group in found if wanted(group)], [group for group in found if not wanted(group)]


def rest_of(found, results):
    """Tables for the Groups that no Part has asked for."""
    kinds = dict.fromkeys((group.first["file"].relative_to(results).parts[0], group.first["experiment"])
                          for group in found)
    return tuple(Table(f"{folder}: {name}", folder, (name,)) for folder, name in kinds)


def compact(value):
    """A number with six digits, as short as JSON can have it."""
    if value is None:
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def span(numbers):
    """Numbers of images: 512, or 45–78."""
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}–{high}"


def rows_of(found):
    """(the texts of a table, its rows): a row is page.COLUMNS, every text as its place among the texts."""
    places, rows = {}, []
    place = lambda text: places.setdefault(text, len(places))
    for group, setting in zip(found, records.telling(found), strict=True):
        first, (mean, half) = group.first, group.mean()
        texts = [first["arm"], first["split"], first["metric"], setting, span(group.several("n")),
                 group.repetitions(), ", ".join(group.several("device")), ", ".join(group.several("commit")),
                 records.command_of(first)]  # fmt: skip
        rows.append([*map(place, texts), compact(mean), compact(half)])
    return list(places), rows


def table_of(table, found, out):
    """What the page gets of a Table: (its title, where its numbers come from, data for the script)."""
    found = sorted(found, key=lambda group: -len(group.values))  # what was repeated most comes first
    texts, rows = rows_of(found)
    files = sorted({Path(os.path.relpath(record["file"].resolve(), out.resolve().parent)).as_posix()
                    for group in found for record in group.records})  # fmt: skip
    versions = sorted({version for group in found for version in group.several("versions")})
    n = sum(len(group.records) for group in found)
    split, metric = table.start
    start = [text if any(texts[row[column]] == text for row in rows) else ""
             for column, text in ((1, split), (2, metric))]  # fmt: skip
    return page.Table(table.title, files, versions, n, {"title": table.title, "start": start, "texts": texts,
                                                        "rows": rows})  # fmt: skip


def build(results, out):
    """The page of a folder of records and figures, as text."""
    found, drawn = records.groups(records.read(results)), figures(results, out)
    sections = {}
    for part in PARTS:
        told = []
        tables = part.tables
        if part is PARTS[-1]:
            left = found
            for table in tables:
                left = take(left, results, table)[1]
            tables += rest_of(left, results)
        for table in tables:
            own, found = take(found, results, table)
            told += [table_of(table, own, out)] if own else []
        sections[part.key] = page.Section(part.key, part.number, part.title, part.text, drawn[part.key], told)
    return page.whole([sections[key] for key in ORDER if sections[key].figures or sections[key].tables])


def main(results, out):
    os.chdir(experiment.ROOT)
    text = build(results, out)
    storage.write_atomically(out, text)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    print(f"{out}: {text.count('<figure')} figures, {len(data)} tables of {sum(len(t['rows']) for t in data):,} rows, "
          f"{len(text.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    experiment.run(main)

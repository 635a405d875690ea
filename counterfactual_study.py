"""Many counterfactuals measured by judges that took no part in making them, the pixel attack on the same images.

`latent_counterfactuals.py --count N` calls `measure`. Failures count: an image whose goal was not reached is judged by
its best attempt. Beside each mean stand the half width of its 95 % interval over the images and the paired difference
from the pixel attack. A row "real" measures real test images of what was asked for: the best one can expect.
"""

import hashlib
import time
from typing import NamedTuple

import torch

import catalogue
import counterfactual_metrics as judged
import datasets
import experiment
import figures
import metrics
import recipes
import search
import stand_ins
import storage
import tables
import train

KNOWN = 10_000  # training images whose features the nearest neighbours are taken from, and real ones for the distance
SHOWN = 8  # images in the figure


class Cases(NamedTuple):
    """images (B, C, H, W) in [0, 1]; seen (B,) by the classifier: class or count; targets (B,) or None.

    test: the test split that they were drawn from, whole.
    """

    images: torch.Tensor
    seen: torch.Tensor
    targets: torch.Tensor | None
    test: datasets.Digits | stand_ins.Crowds


class Judges(NamedTuple):
    """Networks that took no part: oracle, class autoencoders or None, digit classifier or None; known training images.

    known: their features under the oracle (N, F), float64 on the CPU; labels (N,).
    """

    oracle: torch.nn.Module
    autoencoders: torch.nn.Module | None
    digits: torch.nn.Module | None
    known: torch.Tensor
    labels: torch.Tensor


def draw_cases(found, target, count, seed, device):
    """`count` test images, each with a target: the given class, or a random one that the classifier does not see in it.

    Images that the classifier takes for the given target already are not drawn.
    """
    test = catalogue.load(found.data, "test", device, **found.which)
    classes = catalogue.find(found.data).classes
    if classes is None:
        refuse_more(count, len(test), found.data)
        images = catalogue.unit(datasets.draw(test, count, seed, "cases").images)
        counts = metrics.per_image(lambda x, _: found.classifier.count(x), images, batch=125)
        return Cases(images, counts, None, test)
    seen = metrics.per_image(lambda x, _: found.classifier(catalogue.unit(x)).argmax(1), test.images)
    wanted = None if target is None else catalogue.class_number(found.data, target)
    rows = torch.arange(len(seen), device=device) if wanted is None else (seen != wanted).nonzero().squeeze(1)
    refuse_more(count, len(rows), found.data)
    stream = experiment.generator(seed, "cases")
    rows = rows[torch.randperm(len(rows), generator=stream)[:count].to(device)]
    others = torch.randint(1, len(classes), (count,), generator=stream).to(device)
    targets = (seen[rows] + others) % len(classes) if wanted is None else torch.full_like(rows, wanted)
    return Cases(catalogue.unit(test.images[rows]), seen[rows], targets, test)


def refuse_more(count, there, data):
    if count > there:
        raise experiment.UserError(f"--count {count}: {there} test images of {data} can be taken")


def judges_of(found, seed, device):
    """The Judges of a data set, from the run folders of their recipes."""
    load = lambda model, data: train.load(recipes.run_of(model, data), model, data, device)[0]
    oracle, classes = load("residual_cnn", found.data), catalogue.find(found.data).classes
    theirs, ours = oracle.state_dict(), found.classifier.state_dict()
    if theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours):
        raise experiment.UserError("the oracle is the very network that is explained: train one with another --seed "
                                   "and --run, and name that as --classifier")
    train_set = catalogue.load(found.data, "train", device, **found.which)
    part = datasets.draw(train_set, min(KNOWN, len(train_set)), seed, "known")
    features = torch.cat([metrics.features(oracle, catalogue.unit(x)) for x in part.images.split(metrics.BATCH)])
    return Judges(oracle, load("class_autoencoders", found.data) if classes else None,
                  load("mnist_cnn", "mnist") if found.data == "strokes" else None, features, part.labels)  # fmt: skip


# --- what is measured of one arm ---------------------------------------------------------------------


def judge(judges, cases, goal, images):
    """{metric: (B,)} of images, whoever made them, and their features under the oracle."""
    features = metrics.features(judges.oracle, images)
    found = judged.oracle_sees(judges.oracle, goal, images)
    found["neighbours"] = judged.neighbours(features, goal, judges.known, judges.labels)
    if judges.autoencoders is not None:
        found |= judged.interpretability(judges.autoencoders, images, cases.seen, cases.targets)
    if judges.digits is not None:
        digit = lambda x: metrics.per_image(lambda part, _: judges.digits(part).argmax(1), x)
        found["identity"] = (digit(images) == digit(cases.images)).float()
    return found, features


def timed_search(model, lr, steps, cases, goal, proximity, batch):
    """(Outcome, reconstructions, points of the originals, seconds an image)."""
    device = cases.images.device
    experiment.synchronize(device)
    started = time.perf_counter()
    found = search.from_images(cases.images, model, goal, steps, lr, proximity, batch)
    experiment.synchronize(device)
    return *found, (time.perf_counter() - started) / len(cases.images)


def kept_search(folder, found, lr, steps, cases, goal, proximity, batch):
    """timed_search of the pixel attack, which every generator is compared with: searched once, then read again.

    It is kept in folder/kept/ under a name that stands for all it depends on, the classifier's weights among them.
    """
    parts = [*found.classifier.state_dict().values(), cases.images, goal.threshold,
             cases.targets if cases.targets is not None else goal.directions]  # fmt: skip
    device = cases.images.device  # which has a part in the last digits, and in the seconds
    digest = hashlib.sha256(repr((lr, steps, proximity, batch, storage.device_name(device))).encode())
    for part in parts:
        digest.update(part.cpu().numpy().tobytes())
    path = folder / "kept" / f"pixel_{found.data}_{digest.hexdigest()[:16]}.pt"
    if not path.is_file():
        outcome, _, _, seconds = timed_search(None, lr, steps, cases, goal, proximity, batch)
        storage.save_checkpoint(path, outcome._asdict() | {"seconds": seconds})
    state = storage.load_checkpoint(path)
    seconds = state.pop("seconds")
    outcome = search.Outcome(**{name: value.to(device) if isinstance(value, torch.Tensor) else value
                                for name, value in state.items()})  # fmt: skip
    return outcome, cases.images, cases.images, seconds


def measure_arm(cases, goal, judges, outcome, made, points, seconds):
    """({metric: (B,)}, {metric: one number}) of one way to counterfactuals, from what its search found."""
    each, features = judge(judges, cases, goal, outcome.images)
    each |= {"validity": outcome.reached.float(), "steps": outcome.steps.float(), "value": outcome.value}
    each |= judged.distances(outcome.images, cases.images, outcome.points, points)
    each["reconstruction"] = metrics.mean_squares(made, cases.images)
    return each, {"fid": fid(judges, goal, features), "seconds": seconds}


def fid(judges, goal, features):
    """Fréchet distance to real images of what was asked for, in the oracle's features; None for too few images."""
    return metrics.frechet_if_enough(features, judges.known[judged.real_rows(goal, judges.labels).cpu()])


def real_arm(cases, goal, judges):
    """The same of real test images that the goals are met by."""
    images = catalogue.unit(cases.test.images[judged.real_rows(goal, cases.test.labels)])
    each, features = judge(judges, cases, goal, images)
    each.pop("identity", None)  # they are other digits
    with torch.no_grad():
        part = torch.cat([goal[rows](images[rows])[1] for rows in
                          torch.arange(len(images), device=images.device).split(metrics.BATCH)])  # fmt: skip
    each["validity"] = (part >= goal.threshold).float()
    return each, {"fid": fid(judges, goal, features)}


# --- records and what is shown -------------------------------------------------------------------------


def add_arm(records, arm, data, each, whole, seed):
    n = len(next(iter(each.values())))
    for metric, values in each.items():
        mean = tables.mean_of(values.tolist())
        records.add(arm, data, metric, mean.mean, n, seed)
        records.add(arm, data, metric + " half", mean.half, n, seed)
    for metric, value in whole.items():
        records.add(arm, data, metric, value, n, seed)


def add_difference(records, arm, data, ours, pixel, seed):
    """The paired differences between an arm and the pixel attack, over the images."""
    for metric in ours.keys() & pixel.keys() - {"latent", "steps", "value", "reconstruction"}:
        difference = tables.mean_of((ours[metric] - pixel[metric]).tolist())
        records.add(arm, data, metric + " minus pixel", difference.mean, difference.n, seed)
        records.add(arm, data, metric + " minus pixel half", difference.half, difference.n, seed)


def measure(found, cases, goal, options, proximity, batch, seed, device, results):
    """Search from all cases, judge, record; returns a Markdown table. Writes metrics.jsonl and a figure of examples."""
    records = storage.Records(results, "latent_counterfactuals", options, device)
    judges = judges_of(found, seed, device)
    ways, each, shown = {}, {}, []
    if found.model is not None:
        ways[found.arm] = timed_search(found.model, found.lr, found.steps, cases, goal, proximity, batch)
    rate, most = (found.lr, found.steps) if found.model is None else found.pixel
    near = proximity if found.model is None else 0.0  # the attack beside is the published one
    ways["pixel"] = kept_search(results, found, rate, most, cases, goal, near, batch)
    for arm, (outcome, made, points, seconds) in ways.items():
        each[arm], whole = measure_arm(cases, goal, judges, outcome, made, points, seconds)
        add_arm(records, arm, found.data, each[arm], whole, seed)
        shown += [(f"{arm}: g(g⁻¹(x))", made)] * (arm != "pixel") + [(arm, outcome.images)]
    each["real"], whole = real_arm(cases, goal, judges)
    add_arm(records, "real", found.data, each["real"], whole, seed)
    if found.model is not None:
        add_difference(records, found.arm, found.data, each[found.arm], each["pixel"], seed)
    rows = records.save()
    examples(results / f"examples_{found.data}_{found.arm}.png", found, judges, cases, goal, shown)
    return table(rows, list(each))


@torch.no_grad()
def examples(path, found, judges, cases, goal, shown):
    """Figure: the first images, what became of them, and what the oracle sees in that."""
    classes = catalogue.find(found.data).classes

    def says(images):
        if classes is None:
            return [f"{count:.1f}" for count in judges.oracle.count(images).tolist()]
        return [classes[number] for number in judges.oracle(images).argmax(1).tolist()]

    few = slice(0, SHOWN)
    rows = [cases.images[few], *(images[few] for _, images in shown)]
    if classes is None:
        heads = [f"{'≥' if up > 0 else '≤'} {bound:g}" for up, bound in
                 zip(goal.directions[few].tolist(), goal.bounds[few].tolist(), strict=True)]  # fmt: skip
    else:
        heads = [f"to {classes[number]}" for number in cases.targets[few].tolist()]
    labels = ["x", *(label.replace(": ", "\n") for label, _ in shown)]
    figures.image_grid(path, rows, heads, labels, [says(row) for row in rows],
                       f"{found.data}: the first {SHOWN} images; below each what the oracle sees")


def table(rows, arms):
    """Markdown of the arms side by side: mean and 95 % interval over the images."""
    names = list(dict.fromkeys(row["metric"] for row in rows if not row["metric"].endswith(("half", "pixel"))))
    found = {(row["arm"], row["metric"]): row["value"] for row in rows}

    def cell(arm, metric):
        value, half = found.get((arm, metric)), found.get((arm, metric + " half"))
        return "" if value is None else f"{value:.3g}" + ("" if half is None else f" ± {half:.2g}")

    n = rows[0]["n"]
    body = [[name, *(cell(arm, name) for arm in arms)] for name in names]
    return tables.markdown([f"mean over {n} images", *arms], body)

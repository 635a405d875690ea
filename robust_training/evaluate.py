"""What a trained classifier of part 6 is worth: accuracy by split and group, calibration, focus, what it takes for new.

`measure` makes records; `append_row` the table of the original, which pandas reads with delimiter="\\t".
"""

import csv
import functools
import io
from pathlib import Path

import torch

import experiment
import storage
from robust_training import data, losses, saliency
from robust_training import measure as measures

BATCH = 250  # images at once
FOCUSED = 200  # images of which saliency maps are measured
PIXELS = FOCUSED * 64**2  # of images mapped at once: all of digits, 16 of 224 x 224, whose graphs take gigabytes
BASELINES = 20  # random images that DeepLIFT is taken against (published)
MISSING = -999  # of a value in the table (published)
RELIABILITY = ("original", "flip", "orig", "trans_test")  # splits of which every bin of confidence is recorded
PAIRS = (("original", "flip"), ("orig", "flip"))  # splits that together hold every group


@torch.no_grad()
def read(model, source, device):
    """(logits (N, outputs), labels (N,), places (N,)) of a source, on the CPU; in float32, in evaluation mode."""
    was = model.training
    model.eval()
    found = [(model(batch.images.to(device)).float().cpu(), batch.labels.cpu(), batch.places.cpu())
             for batch in source.batches(BATCH)]  # fmt: skip
    model.train(was)
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


def validation(logits, labels, classes):
    """What checkpoint rules may look at: val_acc1, val_auc, val_loss."""
    logits = logits[:, :classes]
    if not logits.isfinite().all():
        raise experiment.UserError("the network gives logits that are not finite; the last good epoch is kept")
    return {"val_acc1": float((logits.argmax(1) == labels).float().mean()),
            "val_auc": measures.auc(logits, labels).value, "val_loss": measures.cross_entropy(logits, labels)}


def measure(model, splits, classes, best, records, device, arm):
    """{split: {metric: (value, n)}} of every split but train, also as records of this arm, which are not saved yet."""
    seed, train = best["options"]["seed"], splits["train"]
    weights = data.group_shares(train.labels, train.places, classes) if (train.places >= 0).all() else None
    found, read_before = {}, {}
    for split, source in splits.items():
        if split != "train":
            read_before[split] = logits, labels, places = read(model, source, device)
            found[split] = summary(logits, labels, places, weights, classes)
    for pair in PAIRS:
        if set(pair) <= set(found):
            parts = (torch.cat(part) for part in zip(*(read_before[split] for split in pair), strict=True))
            found["+".join(pair)] = summary(*parts, weights, classes)
    if {"mixed_same", "mixed_rand"} <= set(found):
        same, rand = (found[split]["accuracy"] for split in ("mixed_same", "mixed_rand"))
        found["bg_gap"] = {"bg_gap": (measures.bg_gap(same[0], rand[0]), rand[1])}
    found |= new_to_it(read_before, classes)
    found |= looks(model, splits, device)
    for split, values in found.items():
        for metric, (value, n) in values.items():
            records.add(arm, split, metric, value, n, seed)
    for split in (split for split in RELIABILITY if split in read_before):
        for metric, values in reliability(*read_before[split][:2], classes).items():
            for k, (value, n) in enumerate(values):
                records.add(arm, split, metric, value, n, seed, bin=k)
    return found


def reliability(logits, labels, classes):
    """A reliability diagram: share right and mean confidence in ten bins of confidence, each as [(value, n)]."""
    bins = measures.calibration(logits[:, :classes].softmax(1), labels).top
    each = lambda values: [(value if n else None, n) for value, n in zip(values.tolist(), bins.n.tolist(), strict=True)]
    return {"reliability": each(bins.positive), "confidence": each(bins.predicted)}


def summary(logits, labels, places, weights, classes):
    """Metrics of a split; without groups where no place is known."""
    known = weights is not None and bool((places >= 0).all())
    groups = losses.groups_of(labels, places) if known else None
    return measures.summary(logits, labels, groups, weights if known else None, classes)


def new_to_it(read_before, classes):
    """Whether backgrounds without a foreground are told from images (out-of-distribution detection)."""
    name = next((name for name in ("original", "orig") if name in read_before), None)
    if name is None or "only_background" not in read_before:
        return {}
    scores = [measures.anomaly_score(read_before[split][0], classes) for split in (name, "only_background")]
    found = measures.detection(*scores)
    n = found.pop("n_in") + found.pop("n_out")
    return {f"only_background against {name}": {metric: (value, n) for metric, value in found.items()}}


def looks(model, splits, device):
    """Focus of the squared input gradient and of DeepLIFT, both of the true class, on the masks of the originals."""
    name = next((name for name in ("original", "orig", "val") if name in splits), None)
    batch = next(iter(splits[name].batches(FOCUSED))).to(device)
    baselines = next(iter(splits["train"].batches(BASELINES, "baselines"))).to(device).images
    if not batch.known.any():
        return {}
    makers = {"grad_y": functools.partial(saliency.maps, "grad_y", model),
              "deeplift": functools.partial(saliency.deeplift_shap, model, baselines=baselines)}  # fmt: skip
    found = {}
    for kind, make in makers.items():
        heat = in_parts(make, batch.images, batch.labels)
        values = measures.focus(heat.square().sum(1), batch.masks)
        undefined = values.pop("undefined")
        found[f"{name}, {kind}"] = {metric: measures.mean_defined(value) for metric, value in values.items()} | {
            "undefined": (undefined, len(heat))}  # fmt: skip
    return found


def in_parts(make, images, labels):
    """make(images, labels), detached, of as many images at a time as have PIXELS pixels together."""
    size = max(1, PIXELS // images[0, 0].numel())
    return torch.cat([make(*part).detach() for part in zip(images.split(size), labels.split(size), strict=True)])


# --- the table of the original --------------------------------------------------------------------


def append_row(path, name, found, options):
    """Add a run to a tab-separated table: name, every metric of every split, every option.

    A row of the same options is replaced.
    """
    row = {"name": name}
    for split, values in found.items():
        row |= {f"{split}_{metric}".replace(" ", "_"): MISSING if value is None else value
                for metric, (value, _) in values.items()}  # fmt: skip
    row |= cells(options)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.locked(path.parent, wait=True):
        rows = [old for old in rows_of(path) if not of_options(old, options)] + [row]
        columns = list(dict.fromkeys(key for one in rows for key in one))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval=MISSING, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        storage.write_atomically(path, text.getvalue())


def complete(path, name, rows, options):
    """Add the row of a run that has records (rows) but none in the table: it was killed between the two."""
    if any(of_options(old, options) for old in rows_of(path)):
        return
    found = {}
    for row in rows:
        if not row["setting"]:
            found.setdefault(row["split"], {})[row["metric"]] = row["value"], row["n"]
    append_row(path, name, found, options)


def rows_of(path):
    """The rows of the table, {column: text}; none if it is not there."""
    return list(csv.DictReader(io.StringIO(path.read_text()), delimiter="\t")) if Path(path).exists() else []


def cells(options):
    """{option: what its cell holds}."""
    return {key: MISSING if value is None else value for key, value in storage.plain_options(options).items()}


def of_options(row, options):
    """Whether a row of the table is of a run with these options; a column that it lacks counts as missing."""
    return all(row.get(key, str(MISSING)) == str(value) for key, value in cells(options).items())

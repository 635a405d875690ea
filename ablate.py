"""Remove a training sample from a VAE by zeroing the parameters its gradient marks most (README, part 1).

    python ablate.py --against retrain     # 5 min on 2 cores: beside models that never saw the sample
    python ablate.py --results results/quick/mine                      # 1 min: without them
    python ablate.py --fraction 0.001 --results results/quick/mine     # zero more; or --count 500, --threshold 50

After Constructive Counterfactuals, part 1 (Buckhouse), itself after Ablation Based Counterfactuals (Dai and Gifford
2024, arXiv 2406.07908). Writes RESULTS/realistic_ablation.png, sweep.png and metrics.jsonl.

As a module it has the two moves that parts 2 and 3 build on: `ablate` and its reverse, a step that adds a sample.
"""

import copy
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import datasets
import experiment
import figures
import metrics
import storage
import tables
import train

# --- what is ablated ------------------------------------------------------------------------
RUN: Path = Path("runs/vae_512_no0")  # a run folder of train.py
CHECKPOINT: Path | None = None  # other weights for it: any checkpoint of the same model
# The smallest fraction of the sweep that doubles the sample's loss; selectivity only falls from there.
FRACTION: experiment.Fraction = 1e-4  # share of all parameters set to zero
COUNT: experiment.Count | None = None  # number of parameters set to zero, instead of a fraction
THRESHOLD: experiment.Positive | None = None  # |gradient| from which a parameter is zeroed; published: 50

# --- on how much it is measured -----------------------------------------------------------------
SAMPLES: experiment.Count = 64  # ablated samples, each from the untouched model
PUBLISHED: experiment.NotNegative = 50  # threshold that is measured as well, as published; 0 leaves it out
SWEEP: tuple[experiment.Fraction, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # fractions of the sweep
SWEEP_SAMPLES: experiment.Count = 32  # ablated samples at each fraction of the sweep
AGAINST: Literal["random", "retrain"] = "random"  # retrain adds models trained without the sample
RETRAINED: experiment.Count = 8  # samples for which a model is retrained
SEED: experiment.Index = 0  # names the streams of samples and random parameters
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/ablate")  # where figures and records go

SPLITS = ("ablated sample", "same class", "other classes")
PUBLISHED_GROWTH = 34779 / 6377  # of the ablated sample's loss, logged once in the header of the original ablate.py


# --- removing a sample ------------------------------------------------------------------------


def gradients(model, loss):
    """{parameter name: gradient of the scalar loss}."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, materialize_grads=True)  # zeros where the loss does not depend
    return dict(zip(names, grads, strict=True))


def sample_gradients(model, image):
    """{parameter name: gradient of the VAE loss of one image (1, 28, 28), taken at the latent mean}."""
    return gradients(model, sum(model.loss(image[None]).values()).sum())


def mark(grads, fraction=None, count=None, threshold=None, may_be_none=False):
    """{parameter name: boolean mask} of the parameters with the largest |gradient|.

    By threshold (|gradient| >= threshold), by count, or by fraction of all parameters, the first that is given in
    this order. Parameters without gradient are never marked. Raises UserError if nothing is, unless may_be_none.
    """
    size = torch.cat([grad.abs().flatten() for grad in grads.values()])
    if threshold is None:
        count = count or round(fraction * len(size))
        if not 1 <= count <= len(size):
            raise experiment.UserError(f"{count} of {len(size):,} parameters cannot be marked: at least 1, at most all")
        threshold = float(size.topk(count).values[-1])
    masks = {name: (grad.abs() >= threshold) & (grad != 0) for name, grad in grads.items()}
    if not may_be_none and not any(mask.any() for mask in masks.values()):
        raise experiment.UserError(f"no parameter has a |gradient| of {threshold} or more; the largest is "
                                   f"{float(size.max()):.3g}: lower --threshold")
    return masks


def random_mark(masks, stream):
    """Masks of as many parameters as these mark, drawn evenly from all parameters with the generator `stream`."""
    sizes = [mask.numel() for mask in masks.values()]
    flat = torch.zeros(sum(sizes), dtype=torch.bool)
    flat[torch.randperm(len(flat), generator=stream)[: sum(int(mask.sum()) for mask in masks.values())]] = True
    parts = zip(masks.items(), flat.split(sizes), strict=True)
    return {name: part.view(mask.shape).to(mask.device) for (name, mask), part in parts}


@torch.no_grad()
def ablate(model, masks):
    """A copy of the model with the marked parameters set to zero."""
    changed = copy.deepcopy(model)
    for name, parameter in changed.named_parameters():
        parameter[masks[name]] = 0
    return changed


# --- adding a sample: the reverse ---------------------------------------------------------------


def norm(direction):
    """L2 norm over all the tensors of {name: tensor}."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in direction.values()]))


@torch.no_grad()
def move(model, direction, scale):
    """A copy of the model with parameters minus scale times direction, {parameter name: tensor}."""
    changed = copy.deepcopy(model)
    for name, parameter in changed.named_parameters():
        parameter -= scale * direction[name]
    return changed


def error_gradients(model, images, eps=None):
    """{parameter name: gradient of the mean squared error of images (B, 1, 28, 28)}; at the latent mean without eps."""
    return gradients(model, model.squared_error(images, eps).mean())


def reverse_ablate(model, images, strength):
    """A copy of the model after one step of `strength` against the sign of the images' error gradient."""
    return move(model, {name: grad.sign() for name, grad in error_gradients(model, images).items()}, strength)


# --- measuring ------------------------------------------------------------------------------------


def by_split(values, labels, index):
    """{split: (mean of values, how many)} over the sample at index, the others of its class, the other classes."""
    same = labels == labels[index]
    here = torch.zeros_like(same)
    here[index] = True
    parts = dict(zip(SPLITS, (here, same & ~here, ~same), strict=True))
    return {name: metrics.mean_where(values, part) for name, part in parts.items()}


def controls(labels, index):
    """{"same class": position, "other class": position} of the first such samples; without what there is none of."""
    same = labels == labels[index]
    parts = {"same class": same.clone(), "other class": ~same}
    parts["same class"][index] = False
    return {name: int(part.nonzero()[0]) for name, part in parts.items() if part.any()}


def measure(model, digits, chosen, rule, seed, records, before, **setting):
    """Record, for each chosen sample, how many parameters it marks and the loss on every split before and after.

    The arms are ablation and zeroing as many parameters at random; every sample starts from the untouched model.
    Returns how many parameters all the samples marked.
    """
    total = 0
    for index in tqdm(chosen, desc=f"ablating {setting or ''}", unit="sample", disable=None):
        masks = mark(sample_gradients(model, digits.images[index]), **rule)
        stream = experiment.generator(seed, f"random parameters/{index}/{setting}")
        losses = {"before": before}
        for arm, marked in (("ablated", masks), ("random", random_mark(masks, stream))):
            losses[arm] = metrics.vae_losses(ablate(model, marked), digits.images)
        for arm, values in losses.items():
            for split, (value, n) in by_split(values, digits.labels, index).items():
                records.add(arm, split, "vae_loss", value, n, seed, sample=index, **setting)
        marked = sum(int(mask.sum()) for mask in masks.values())
        total += marked
        everything = sum(mask.numel() for mask in masks.values())
        records.add("ablated", "parameters", "marked", marked, everything, seed, sample=index, **setting)
    return total


# --- against retraining ---------------------------------------------------------------------------


def retrain(options, digits, index, epochs, device):
    """The model that the run's own training gives without the digit at index, everything random unchanged."""
    model, _ = train.build(options["model"], options["seed"], device, options.get("settings"))
    optimizer = train.adam(model, options["lr"])
    for epoch in tqdm(range(1, epochs + 1), desc=f"retraining without {index}", leave=False, disable=None):
        train.run_epoch(model, optimizer, digits, options, epoch, omit=index)
    return model.eval()


@torch.no_grad()
def reconstructions(model, images):
    return metrics.per_image(model.reconstruct, images).flatten(1)  # (N, 784)


def movements(before, ablated, retrained):
    """{(arm, metric): (N,)} of the reconstructions (N, pixels) of the untouched, the ablated and the retrained model.

    displacement: root mean square over the pixels of the reconstruction after minus before. cosine: between the
    displacements of ablation and of retraining. distance_to_retrained: root mean square between a model's
    reconstruction and the retrained model's; ablation helps where it is smaller than that of doing nothing.
    """
    moved, wanted = ablated - before, retrained - before
    rms = lambda x: x.square().mean(1).sqrt()
    return {
        ("ablated", "displacement"): rms(moved), ("retrained", "displacement"): rms(wanted),
        ("ablated", "cosine"): torch.cosine_similarity(moved, wanted, 1),
        ("before", "distance_to_retrained"): rms(wanted), ("ablated", "distance_to_retrained"): rms(moved - wanted),
    }  # fmt: skip


def against_retraining(model, options, epochs, digits, chosen, rule, seed, records):
    """Record how far ablation and retraining move the reconstructions, and whether in the same direction: `movements`.

    How far a retraining moves the digits it did not leave out is the floor. As a control, the training is repeated
    once with nothing left out: on the machine of the run, it moves nothing.
    """
    before = reconstructions(model, digits.images)
    repeated = reconstructions(retrain(options, digits, None, epochs, digits.images.device), digits.images)
    apart = movements(before, before, repeated)["retrained", "displacement"]
    records.add("repeated", "all", "displacement", float(apart.mean()), len(digits), seed)
    for index in tqdm(chosen, desc="against retraining", unit="sample", disable=None):
        masks = mark(sample_gradients(model, digits.images[index]), **rule)
        without = retrain(options, digits, index, epochs, digits.images.device)
        values = movements(before, *(reconstructions(net, digits.images) for net in (ablate(model, masks), without)))
        values["retrained", "vae_loss"] = metrics.vae_losses(without, digits.images)
        for (arm, metric), value in values.items():
            for split, (mean, n) in by_split(value, digits.labels, index).items():
                records.add(arm, split, metric, mean, n, seed, retrained=index)


# --- figures and table ------------------------------------------------------------------------------


def draw_example(model, digits, index, rule, path):
    """Columns truth, before, after; rows the ablated sample and what there is of its controls."""
    ablated = ablate(model, mark(sample_gradients(model, digits.images[index]), **rule))
    shown = {"ablated": index} | controls(digits.labels, index)
    images = digits.images[[*shown.values()]]
    losses = [metrics.vae_losses(net, images) for net in (model, ablated)]
    with torch.no_grad():
        columns = [images, model.reconstruct(images), ablated.reconstruct(images)]
    captions = [["", f"loss {losses[0][i]:.0f}", f"loss {losses[1][i]:.0f}"] for i in range(len(shown))]
    rows = [[column[i] for column in columns] for i in range(len(shown))]
    figures.image_grid(path, rows, ["truth", "before", "after"], [*shown], captions, "One training sample ablated")


def draw_sweep(records, fractions, path):
    panels = []
    for arm, title in (("ablated", "parameters that the sample marks"), ("random", "as many at random")):
        lines = []
        for split, colour in zip(SPLITS, ("red", "orange", "blue"), strict=True):
            points = [rise(records, arm, split, fraction=fraction) for fraction in fractions]
            lines.append((split, colour, fractions, [p.mean for p in points], [p.half for p in points]))
        panels.append({"title": title, "x_label": "fraction of parameters set to zero",
                       "y_label": "rise of the VAE loss (nats)", "log": "x", "zero": True, "lines": lines})
    figures.curves(path, panels, "What ablation does, against how much is ablated (mean, 95 % interval over samples)")


def rise(records, arm, split, **setting):
    """Mean over the samples of the loss after minus before, with its interval."""
    return tables.paired(records, arm, "before", key="sample", split=split, metric="vae_loss", **setting)


def table(records):
    """The README's table of part 1, from the records of one set of options."""
    options = records[0]["options"]
    main = [record for record in records if record["setting"].keys() == {"sample"}]
    published = [record for record in records if "threshold" in record["setting"]]
    rows = []
    for split in SPLITS:
        before = tables.mean(main, key="sample", arm="before", split=split, metric="vae_loss")
        rows.append([split, f"{before:.1f}", f"{rise(main, 'ablated', split):+.1f}",
                     f"{rise(main, 'random', split):+.1f}",
                     f"{rise(published, 'ablated', split):+.1f}" if published else ""])
    marked = [f"{tables.mean(part, key='sample', metric='marked').mean:.0f}" if part else ""
              for part in (main, published)]
    rows.append(["parameters zeroed, on average", "", marked[0], marked[0], marked[1]])
    header = ["VAE loss (nats) on", "before", "change by ablation", "by random zeros", "by the published threshold"]
    text = tables.markdown(header, rows)
    text += (f"\n\nMean and 95 % interval over {options['samples']} ablated training samples, seed {options['seed']}, "
             f"latent mean; ablation: {rule_in_words(options)}"
             + (f"; published threshold: |gradient| of at least {options['published']:g}, which some samples never "
                "reach." if published else "."))
    return text + (retraining_table(records) if options["against"] == "retrain" else "")


def claims(records):
    """Which of the published claims of part 1 these records bear out."""
    main = [record for record in records if record["setting"].keys() == {"sample"}]
    own, same, other = (rise(main, "ablated", split) for split in SPLITS)
    chance = rise(main, "random", SPLITS[0])
    before = tables.mean(main, key="sample", arm="before", split=SPLITS[0], metric="vae_loss").mean
    numbers = (f"its loss {own:+.1f} nats, {1 + own.mean / before:.1f} times as before, published: "
               f"{PUBLISHED_GROWTH:.1f} times, once; by as many random zeros {chance:+.1f}")
    said = ["That ablation undoes the reconstruction of its sample " + tables.judge(own, "higher", numbers)]
    numbers = (f"{same:+.1f} nats on its class, {other:+.1f} on other classes, {other.mean / own.mean:.0%} of what it "
               "does to the sample")
    said += ["That other training samples are unaffected " + tables.judge(other, "no higher", numbers)]
    return tables.bullets(said + [retraining_claim(records)] * (records[0]["options"]["against"] == "retrain"))


def retraining_claim(records):
    gap = tables.paired(records, "ablated", "before", key="retrained", split=SPLITS[0], metric="distance_to_retrained")
    floor = tables.mean(records, key="retrained", arm="retrained", split=SPLITS[2], metric="displacement")
    moved = tables.mean(records, key="retrained", arm="retrained", split=SPLITS[0], metric="displacement")
    repeated = tables.mean(records, arm="repeated", metric="displacement").mean
    return ("That ablation is a counterfactual, nearer than the untouched model to one trained without the sample, "
            + tables.judge(gap, "lower", f"distance on the sample {gap:+.4f}")
            + f" Retraining itself moves the reconstruction of the sample by {moved:.4f} and those of other classes by "
            f"{floor:.4f}, {floor.mean / moved.mean:.0%} as far: that much is the chaos of training, not the sample. "
            f"(The same training repeated with nothing left out moves them by {repeated:.4f}.)")


def rule_in_words(options):
    if options["threshold"] is not None:
        return f"parameters with |gradient| of at least {options['threshold']:g} set to zero"
    return f"{options['count']} parameters set to zero" if options["count"] else (
        f"{options['fraction']:.3%} of the parameters set to zero")


def retraining_table(records):
    rows = []
    before = [record for record in records if record["setting"].keys() == {"sample"} and record["arm"] == "before"]
    for split in SPLITS:
        mean = {(arm, metric): tables.mean(records, key="retrained", arm=arm, split=split, metric=metric)
                for arm, metric in (("ablated", "displacement"), ("retrained", "displacement"), ("ablated", "cosine"),
                                    ("ablated", "distance_to_retrained"))}
        was = tables.values(before, key="sample", split=split)
        now = tables.values(records, key="retrained", arm="retrained", split=split, metric="vae_loss")
        loss = tables.mean_of(now[index] - was[index] for index in now if index in was)
        rows.append([split, f"{loss:+.1f}", f"{mean['retrained', 'displacement']:.4f}",
                     f"{mean['ablated', 'displacement']:.4f}", f"{mean['ablated', 'cosine']:.3f}",
                     f"{mean['ablated', 'distance_to_retrained']:.4f}"])
    header = ["on", "VAE loss, change by retraining", "moved by retraining", "moved by ablation", "cosine of the two",
              "ablated to retrained"]
    return ("\n\n" + tables.markdown(header, rows) + "\n\nMoved: root mean square over the pixels of the "
            "reconstruction, in [0, 1]. Mean and 95 % interval over "
            f"{records[0]['options']['retrained']} samples, each with a model retrained without it from the same seed.")


def main(run, checkpoint, fraction, count, threshold, samples, published, sweep, sweep_samples, against, retrained,
         seed, device, results):
    given = dict(locals())
    device = experiment.pick_device(device)
    model, options, epochs = train.load_vae(run, checkpoint, device)
    digits, _ = datasets.training_split(tuple(options["held_out"]), options["n"], 0, options["seed"], device)
    # a threshold marks nothing in some samples; a fraction or a count that marks nothing is a mistake
    rule = {"fraction": fraction, "count": count, "threshold": threshold, "may_be_none": threshold is not None}
    order = torch.randperm(len(digits), generator=experiment.generator(seed, "ablated samples")).tolist()
    if max(samples, sweep_samples, retrained) > len(digits):
        raise experiment.UserError(f"only {len(digits)} training samples can be ablated")
    if against == "retrain" and retrained > samples:
        raise experiment.UserError(f"--retrained {retrained}: only {samples} --samples are ablated beside them")
    if checkpoint and against == "retrain":
        raise experiment.UserError("--against retrain repeats the run's own training: leave out --checkpoint")
    records = storage.Records(results, "ablate", given, device)
    before = metrics.vae_losses(model, digits.images)
    if not measure(model, digits, order[:samples], rule, seed, records, before):
        raise experiment.UserError(f"no sample has a |gradient| as large as {threshold:g}: lower --threshold")
    if published:
        rule_then = {"threshold": published, "may_be_none": True}
        measure(model, digits, order[:samples], rule_then, seed, records, before, threshold=published)
    for part in sweep:
        measure(model, digits, order[:sweep_samples], {"fraction": part}, seed, records, before, fraction=part)
    if against == "retrain":
        against_retraining(model, options, epochs, digits, order[:retrained], rule, seed, records)
    records.save()  # before anything is drawn
    draw_example(model, digits, order[0], rule, results / "realistic_ablation.png")
    if sweep:
        draw_sweep(records.rows, sweep, results / "sweep.png")
    print(table(records.rows))


if __name__ == "__main__":
    experiment.run(main)

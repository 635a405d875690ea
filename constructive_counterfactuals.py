"""Teach a VAE a digit it has never seen, in one step from one sample (README, part 2).

    python constructive_counterfactuals.py                    # 12 min on 2 cores
    python constructive_counterfactuals.py --anchors 5 --seeds 1 --sweep-anchors 1 --results results/quick/mine   # 20 s
    python constructive_counterfactuals.py --strength 0.0005 --results results/quick/mine

After Constructive Counterfactuals, part 2 (Buckhouse): every parameter moves by `strength` against the sign of its
gradient of the anchor's squared error. Writes RESULTS/constructive_counterfactuals.png, strength.png, anchors.png and
metrics.jsonl.
"""

from pathlib import Path

import torch
from tqdm import tqdm

import datasets
import experiment
import figures
import metrics
import storage
import tables
import train
from ablate import error_gradients, move, norm, reverse_ablate

# --- the step ---------------------------------------------------------------------------------
RUN: Path = Path("runs/vae_512_no0")  # a run folder of train.py
CHECKPOINT: Path | None = None  # other weights for it: any checkpoint of the same model
# Published, and the gentler one that the sweep recommends; the sweep sees training digits only, the test set none.
STRENGTH: tuple[experiment.Positive, ...] = (0.001, 0.0002)  # how far every parameter moves; published: 0.001
DIGIT: experiment.Digit = 0  # the digit that is added; the run has never seen it

# --- on how much it is measured -------------------------------------------------------------------
ANCHORS: experiment.Count = 100  # test digits that are added, one at a time, for each seed
SEEDS: experiment.Count = 5  # seeds 0, 1, ...: each draws its own anchors and random signs
OTHERS: experiment.Count = 512  # test digits of the other classes that the step must not harm
STRENGTHS: tuple[experiment.Positive, ...] = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)  # sweep of the step's length
SEVERAL: tuple[experiment.Count, ...] = (1, 2, 4, 8, 16, 32, 64)  # sweep of anchors in one step
SWEEP_ANCHORS: experiment.Count = 5  # steps at each point of the two sweeps, for each seed
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/constructive_counterfactuals")  # where figures and records go

ARMS = {"sign step": "one reverse-ablation step", "gradient step": "plain gradient, same length",
        "random step": "random signs, same length"}  # fmt: skip
# VAE loss before and after one step, logged once in the header of the original constructive_counterfactuals.py
PUBLISHED = {"anchor": (170.38, 160.10), "known": (126.66, 127.03)}
SPLITS = ("anchor", "unseen", "known")  # the added sample; the other test samples of its class; the other classes


# --- steps of equal length ------------------------------------------------------------------------


def steps(model, images, strength, stream, arms=tuple(ARMS)):
    """{arm: the model after a step}, all of the L2 length of the sign step.

    images: (B, 1, 28, 28), the anchors; stream: torch.Generator of the random signs; arms: those that are wanted.
    """
    grads = error_gradients(model, images)
    sign = {name: grad.sign() for name, grad in grads.items()}
    directions = {"sign step": sign, "gradient step": grads}
    if "random step" in arms:  # random signs move the parameters that the sign step moves: those with a gradient
        directions["random step"] = {
            name: (torch.randint(0, 2, part.shape, generator=stream) * 2 - 1).to(part) * part.abs()
            for name, part in sign.items()
        }
    length = strength * norm(sign)
    return {arm: move(model, directions[arm], length / norm(directions[arm])) for arm in arms}


# --- measuring ------------------------------------------------------------------------------------


class Bench:
    """The digits on which steps are measured, with the errors of the untouched model.

    unseen: the digits of the added class, anchors among them, at most `most` of them; known: a fixed draw of others.
    """

    def __init__(self, model, digits, digit, others, most=None):
        mine = datasets.of_class(digits, digit)
        self.unseen = digits[mine][:most]
        self.known = datasets.draw(digits[~mine], others, 0, "known digits")
        self.images = torch.cat([self.unseen.images, self.known.images])
        self.before = metrics.errors(model, self.images)  # of the unseen digits and then the known ones

    def change(self, model, anchors):
        """{(split, metric): (mean change against the untouched model, how many)}; anchors: positions in unseen."""
        n = len(self.unseen)
        used = torch.zeros(len(self.images), dtype=torch.bool, device=self.images.device)
        used[anchors] = True
        first = torch.arange(len(self.images), device=used.device) < n
        parts = dict(zip(SPLITS, (used, first & ~used, ~first), strict=True))
        after = metrics.errors(model, self.images)
        gaps = {metric: after[metric] - self.before[metric] for metric in after}
        return {(split, metric): metrics.mean_where(gap, part)
                for split, part in parts.items() for metric, gap in gaps.items()}


def measure(model, bench, strength, groups, arms, seed, records, purpose, /, **setting):
    """Record the mean change over groups of anchors, every group from the untouched model; one record an arm.

    groups: list of tensors of positions in bench.unseen, one a step. The value of a record is the mean over the
    groups, its n the number of groups.
    """
    totals = {}
    for k, anchors in enumerate(tqdm(groups, desc=f"{purpose} seed {seed} {setting or ''}", disable=None)):
        stream = experiment.generator(seed, f"random signs/{purpose}/{setting}/{k}")
        for arm, after in steps(model, bench.unseen.images[anchors], strength, stream, arms).items():
            for key, (change, _) in bench.change(after, anchors).items():
                totals[arm, *key] = totals.get((arm, *key), 0) + change
    for (arm, split, metric), total in totals.items():
        records.add(arm, split, f"{metric}_change", total / len(groups), len(groups), seed, **setting)


def record_before(bench, records):
    unseen = torch.arange(len(bench.images), device=bench.images.device) < len(bench.unseen)
    for part, chosen in (("unseen", unseen), ("known", ~unseen)):
        for metric, values in bench.before.items():
            records.add("before", part, metric, *metrics.mean_where(values, chosen), 0)


def measure_seed(model, bench, choice, seed, strength, anchors, strengths, several, sweep_anchors, records):
    """All measurements of one seed: single anchors, the sweep of the strength, several anchors in one step.

    choice: the Bench of training digits on which the sweep is measured.
    """
    order = torch.randperm(len(bench.unseen), generator=experiment.generator(seed, "anchors"))
    for s in strength:
        measure(model, bench, s, order[:anchors].split(1), ARMS, seed, records, "anchors", strength=s)
    other = torch.randperm(len(choice.unseen), generator=experiment.generator(seed, "anchors of the sweep"))
    for s in strengths:
        measure(model, choice, s, other[:sweep_anchors].split(1), ARMS, seed, records, "sweep", swept_strength=s)
    for k in several:
        stream = experiment.generator(seed, f"several anchors/{k}")
        groups = [torch.randperm(len(bench.unseen), generator=stream)[:k] for _ in range(sweep_anchors)]
        for s in strength:
            measure(model, bench, s, groups, ("sign step",), seed, records, "several", anchors=k, with_strength=s)


# --- figures and table ------------------------------------------------------------------------------


def draw_example(model, bench, anchor, strength, path):
    """Rows: the added digit, a digit the model knows, one it was never shown; columns truth, before, after."""
    other = (anchor + 1) % len(bench.unseen)
    images = torch.stack([bench.unseen.images[anchor], bench.known.images[0], bench.unseen.images[other]])
    models = [model, *(reverse_ablate(model, images[:1], s) for s in strength)]
    with torch.no_grad():
        columns = [images, *(net.reconstruct(images) for net in models)]
    errors = [metrics.squared_errors(net, images) for net in models]
    captions = [["", *(f"MSE {error[i]:.4f}" for error in errors)] for i in range(3)]
    figures.image_grid(path, [[column[i] for column in columns] for i in range(3)],
                       ["truth", "before", *(f"after {s:g}" for s in strength)], ["added", "known", "never shown"],
                       captions, "One step from one sample")


def draw_strengths(records, strengths, path):
    """Change on unseen and on known digits against the strength; and gain against harm along the strengths."""
    colours = dict(zip(ARMS, ("blue", "orange", "grey"), strict=True))
    points = {(arm, split): [tables.mean(records, arm=arm, split=split, metric="mse_change", swept_strength=s)
                             for s in strengths] for arm in ARMS for split in ("unseen", "known")}
    panels = []
    for split, title in (("unseen", "never shown, same class"), ("known", "known classes")):
        lines = [(ARMS[arm], colour, strengths, [p.mean for p in points[arm, split]],
                  [p.half for p in points[arm, split]]) for arm, colour in colours.items()]
        panels.append({"title": title, "x_label": "strength", "y_label": "change of MSE", "log": "x", "zero": True,
                       "symlog": 1e-3, "lines": lines})
    gains = [(known.mean, -unseen.mean, f"{s:g}") for s, known, unseen in
             zip(strengths, points["sign step", "known"], points["sign step", "unseen"], strict=True) if known.mean > 0]
    x, y, _ = zip(*gains, strict=True) if gains else ((), (), ())
    panels.append({"title": "gain against harm, a point a strength", "log": "x", "symlog": 1e-3, "zero": True,
                   "x_label": "harm: rise of MSE on known classes", "y_label": "gain: fall of MSE on unseen",
                   "lines": [(ARMS["sign step"], "blue", x, y, None)], "notes": gains})
    figures.curves(path, panels, "Strength of the step, on training digits (mean and 95 % interval over seeds)")


def draw_several(records, several, strength, path):
    names = {"anchor": "the anchors", "unseen": "never shown, same class", "known": "known classes"}
    panels = []
    for s in strength:
        lines = []
        for split, colour in zip(SPLITS, ("green", "blue", "red"), strict=True):
            wanted = {"arm": "sign step", "split": split, "metric": "mse_change", "with_strength": s}
            points = [tables.mean(records, **wanted, anchors=k) for k in several]
            lines.append((names[split], colour, several, [p.mean for p in points], [p.half for p in points]))
        panels.append({"title": f"strength {s:g}", "x_label": "anchors in the step", "y_label": "change of MSE",
                       "log": "x", "zero": True, "ticks": several, "lines": lines})
    figures.curves(path, panels, "One sign step from several anchors (mean and 95 % interval over seeds)")


def table(records):
    """The README's table of part 2, from the records of one set of options."""
    options = records[0]["options"]
    names = {"anchor": "the added sample", "unseen": f"other {options['digit']}s, never shown", "known": "known digits"}
    rows = []
    for s in options["strength"]:
        for split in SPLITS:
            cells = [f"{tables.mean(records, arm=arm, split=split, metric='mse_change', strength=s):+.4f}"
                     for arm in ARMS]
            loss = tables.mean(records, arm="sign step", split=split, metric="vae_loss_change", strength=s)
            rows.append([f"{names[split]}; strength {s:g}", *cells, f"{loss:+.2f}"])
    before = {part: tables.mean(records, arm="before", split=part, metric="mse").mean for part in ("unseen", "known")}
    header = ["change of MSE on", *ARMS, "VAE loss (nats), sign step"]
    return tables.markdown(header, rows) + (
        f"\n\nMean and 95 % interval over {options['seeds']} seeds of {options['anchors']} anchors each, latent mean; "
        f"all three steps have the same L2 length. Before: MSE {before['unseen']:.4f} on {options['digit']}s, "
        f"{before['known']:.4f} on {options['others']} known test digits.")


def published_table(records):
    """The published changes of the VAE loss, of one sample each, beside ours."""
    strengths = records[0]["options"]["strength"]
    rows = []
    for split, name in (("anchor", "the added sample"), ("known", "a digit the model knows")):
        before, after = PUBLISHED[split]
        ours = [tables.mean(records, arm="sign step", split=split, metric="vae_loss_change", strength=s)
                for s in strengths]
        rows.append([name, f"{after - before:+.2f}", *(f"{mean:+.2f}" for mean in ours)])
    return tables.markdown(["VAE loss (nats), change on", "published, strength 0.001",
                            *(f"ours, strength {s:g}" for s in strengths)], rows)


def models_sentence(records):
    """Whether other trainings of the model say the same: records of several runs, each with its own seed."""
    runs = sorted({record["options"]["run"] for record in records})
    sentences = []
    for s in records[0]["options"]["strength"]:
        parts = []
        for split, name in (("unseen", "unseen digits"), ("known", "known ones")):
            each = [tables.mean([record for record in records if record["options"]["run"] == run], arm="sign step",
                                split=split, metric="mse_change", strength=s).mean for run in runs]
            parts.append(f"{tables.mean_of(each):+.4f} on {name}")
        sentences.append(f"at {s:g} the MSE changes by " + " and ".join(parts))
    anchors = min(record["options"]["anchors"] * record["options"]["seeds"] for record in records)
    return (f"Over {len(runs)} models trained from seeds of their own (mean and 95 % interval over the models, "
            f"at least {anchors} anchors each): " + "; ".join(sentences) + ".")


def claims(records):
    """Which of the published claims of part 2 these records bear out, at each strength that was measured."""
    change = lambda arm, split, s: tables.mean(records, arm=arm, split=split, metric="mse_change", strength=s)
    sentences = []
    for s in records[0]["options"]["strength"]:
        unseen, known = (change("sign step", split, s) for split in ("unseen", "known"))
        sentences += [
            f"That one step of {s:g} from one sample teaches others of its class, never shown, "
            + tables.judge(unseen, "lower", f"MSE {unseen:+.4f}"),
            f"That a step of {s:g} does not degrade the digits the model knows "
            + tables.judge(known, "no higher", f"MSE {known:+.4f}")]
    return tables.bullets(sentences)


def main(run, checkpoint, strength, digit, anchors, seeds, others, strengths, several, sweep_anchors, device, results):
    given = dict(locals())
    device = experiment.pick_device(device)
    model, options, _ = train.load_vae(run, checkpoint, device)
    train.refuse_known(options, digit)
    if not strength:
        raise experiment.UserError("--strength names no strength")
    bench = Bench(model, datasets.mnist("test", device), digit, others)
    choice = Bench(model, datasets.mnist("train", device), digit, others, most=len(bench.unseen))
    if max(anchors, sweep_anchors, *(k + 1 for k in several)) > len(bench.unseen):
        raise experiment.UserError(f"the test set has {len(bench.unseen)} digits {digit}, fewer than the anchors asked "
                                   "and one that shows what several of them teach")
    records = storage.Records(results, "constructive_counterfactuals", given, device)
    record_before(bench, records)
    for seed in range(seeds):
        measure_seed(model, bench, choice, seed, strength, anchors, strengths, several, sweep_anchors, records)
    first = int(torch.randperm(len(bench.unseen), generator=experiment.generator(0, "anchors"))[0])
    draw_example(model, bench, first, strength, results / "constructive_counterfactuals.png")
    if strengths:
        draw_strengths(records.rows, strengths, results / "strength.png")
    if several:
        draw_several(records.rows, several, strength, results / "anchors.png")
    print(table(records.save()))


if __name__ == "__main__":
    experiment.run(main)

"""What a CGN of objects is worth: its Inception Score and masks, with each loss and without it (README, part 5).

    python -m cgn.score_objects                                        # the run on the made set
    python -m cgn.score_objects --run runs/cgn_objects64_without_shape # one whose training left a loss out
    python -m cgn.score_objects --run data/weights/cgn.pth --classifier inception_v3 --reader none \
        --segmenter data/weights/u2netp.pth                            # the published one, on a GPU

Claim 2 of the replication of Sauer and Geiger 2021 (MLRC 2021), an ablation: 2,000 images in which all mechanisms have
the same label, truncation 0.5, the Inception Score over 2 splits, the mean mask. Beside it, of the same images:

    mask iou          overlap, at a half, of the mask and of what --segmenter finds in the target's image of the same
                      latent and label. The truth of a generated image is not known. The segmenter was trained on true
                      masks and the CGN has not seen it; its own IoU on held-out images is in train_saliency's records
    mask iou, composite   the same with what it finds in the CGN's own composite
    l1 to target      mean absolute distance of composite and target's image, which are in [-1, 1]
    binary            1 - the mask's entropy in bits: 0 for a half everywhere; 0.9985 at most, as masks are clamped
    shape read, texture read, background read   share of counterfactuals, of three independent labels, of which that
                      head of --reader, trained where the three labels are independent, reads its label

Images of the target, the frozen BigGAN, have the same latents and labels: they are the bound of the Inception Score,
and readable, as all three labels are the class. Inception Scores of one classifier and of equal n are comparable, no
others. What a missing network is needed for is left out, and said. Writes records to results/cgn/; what is recorded
with the same options is not measured again.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import nn
from tqdm import tqdm

import backbones
import experiment
import metrics
import storage
import tables
from cgn import ensemble, fetch, generate_objects, losses, objects, scores, train_objects
from experiment import UserError

# --- what is measured ------------------------------------------------------------------------------------
RUN: Path = Path("runs/cgn_objects64")  # a run folder of train_objects, or the published cgn.pth
TARGET: Path | None = Path("runs/biggan_objects64")  # a run of train_gan, or published weights; a cgn.pth may hold it
CLASSIFIER: str = "runs/ensemble_real"  # of the Inception Score: a run of train_ensemble, or a name of torchvision
WEIGHTS: Path | None = None  # of torchvision's classifier; by default what cgn.fetch gets under its name
READER: Path | None = Path("runs/ensemble_independent")  # a run of train_ensemble that reads three labels, or none
SEGMENTER: Path | None = Path("runs/u2net64_objects64_seed1")  # a run of train_saliency, u2net.pth or u2netp.pth, none
COUNT: experiment.Count = 2000  # images (the replication's number)
SPLITS: experiment.Count = 2  # of the Inception Score (the replication's number)
TRUNCATION: experiment.Positive = 0.5  # of the latents (the replication's)
SEED: experiment.Index = 0  # names the streams of latents and labels
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the networks
RESULTS: Path = Path("results/cgn")  # where records go

CGN, FROZEN = "cgn", "target"  # whose images; records name the CGN by its losses
BINARY = 0.5  # value of a mask from which it counts
SIDES = {"inception_v3": 299}  # pixels that a classifier of torchvision was trained on
SIDE = 224  # and all others
INCEPTIONS = ("inception_v3", "googlenet")  # whose weights expect [-1, 1], to which they bring their input themselves
OPTIONAL = {  # networks that may be missing: what needs them, and what makes those that are there by default
    "target": ("comparisons with the target's images", "train_gan"),
    "classifier": ("Inception Scores", "train_ensemble --on real"),
    "reader": ("labels read", "train_ensemble --on independent"),
    "segmenter": ("IoUs of masks", "train_saliency --seed 1 --run runs/u2net64_objects64_seed1"),
}
METRICS = ("inception score", "inception score deviation", "mean mask", "mask iou", "mask iou, composite",
           "l1 to target", "binary", *(f"{head} read" for head in ensemble.HEADS))  # fmt: skip


class Instruments(NamedTuple):
    """What a CGN is measured with, each None if it is missing.

    target         the frozen BigGAN
    probabilities  of images (B, 3, H, W) in [-1, 1]: (B, classes), on the CPU
    read           of the same: the labels that the three heads give, (B, 3), on the CPU
    find           of the same: saliency (B, 1, H, W) in [0, 1]
    """

    target: nn.Module | None = None
    probabilities: Callable | None = None
    read: Callable | None = None
    find: Callable | None = None


class Images(generate_objects.Source):
    """Images of streams of their own, so that no classifier was trained on them; factual: with one label."""

    def stream(self, purpose, number):
        return experiment.generator(self.seed, f"scored {purpose}/{number}")

    @torch.no_grad()
    def targets(self, target, number, size):
        """What a BigGAN makes, (size, 3, H, W), of the latents and first labels of chunk `number`."""
        latents, _ = self.model.draw(size, self.stream("latents", number), self.truncation, self.device)
        with self.context():
            return target(latents, self.labels(number, size)[:, 0].to(self.device), self.truncation).float()


class Answer(nn.Module):
    """A network whose logits are turned into what is asked for: logits with the classes in dimension 1."""

    def __init__(self, network, how):
        super().__init__()
        self.network, self.how = network, how

    def forward(self, x):
        return self.how(self.network(x))


# --- measures ----------------------------------------------------------------------------------------------


def overlap(masks, found):
    """IoU at a half, (B,), of masks (B, 1, H, W) and others, each in [0, 1]; 0 where both are empty."""
    return metrics.iou(masks > BINARY, found > BINARY)


def decided(masks):
    """1 - mean entropy in bits of each of the masks (B, 1, H, W), (B,)."""
    return 1 - torch.stack([losses.binary_entropy(mask) for mask in masks])


@torch.no_grad()
def of_one_label(source, tools, number, size):
    """{(whose, what): (size, ...)} of chunk `number` of images with one label."""
    parts = source.parts(number, size)
    images, masks = {CGN: parts.image()}, parts.mask
    found = {(CGN, "mean mask"): scores.mean_mask(masks)[1], (CGN, "binary"): decided(masks)}
    if tools.target is not None:
        images[FROZEN] = source.targets(tools.target, number, size)
        found[CGN, "l1 to target"] = (images[CGN] - images[FROZEN]).abs().mean((1, 2, 3))
    for whose, metric in {CGN: "mask iou, composite", FROZEN: "mask iou"}.items() if tools.find else ():
        if whose in images:
            found[CGN, metric] = overlap(masks, tools.find(images[whose]))
    if tools.probabilities:
        found |= {(whose, "probabilities"): tools.probabilities(image) for whose, image in images.items()}
    if tools.read and FROZEN in images:
        found[FROZEN, "read"] = tools.read(images[FROZEN]) == source.labels(number, size)
    return found


@torch.no_grad()
def of_three_labels(source, tools, number, size):
    """The same of chunk `number` of counterfactuals: which heads read their label."""
    images, labels = source.chunk(number, size)
    return {(CGN, "read"): tools.read(images) == labels}


def measure(model, tools, count, splits, truncation, seed, context):
    """[(whose, metric, value, n)] of a CGN; images are dropped chunk by chunk, what was measured of each is kept."""
    one, three = (Images(model, truncation, seed, factual=factual, context=context) for factual in (True, False))
    seen, size = {}, generate_objects.CHUNK
    for number, start in enumerate(tqdm(range(0, count, size), desc="scored", unit="chunk", disable=None)):
        n = min(size, count - start)
        found = of_one_label(one, tools, number, n) | (of_three_labels(three, tools, number, n) if tools.read else {})
        for name, values in found.items():
            seen.setdefault(name, []).append(values.cpu())
    return summed_up({name: torch.cat(values) for name, values in seen.items()}, splits)


def summed_up(seen, splits):
    """[(whose, metric, value, n)] of {(whose, what): (N, ...)}: probabilities (N, C), read (N, 3), others (N,)."""
    rows = []
    for (whose, what), values in seen.items():
        if what == "probabilities":
            score = scores.inception_score(values, splits)
            rows += [(whose, "inception score", score.mean, score.n),
                     (whose, "inception score deviation", score.deviation, score.n)]  # fmt: skip
        elif what == "read":
            shares = values.double().mean(0).tolist()
            rows += [(whose, f"{head} read", share, len(values))
                     for head, share in zip(ensemble.HEADS, shares, strict=True)]  # fmt: skip
        else:
            rows.append((whose, what, float(values.double().mean()), len(values)))
    return rows


# --- networks ----------------------------------------------------------------------------------------------


def is_there(option, given, default):
    """Whether to use a network; not if it is none, or the default one and was not made yet: that is said.

    One that the user named must be there: what loads it says so.
    """
    needed_by, command = OPTIONAL[option]
    if given is None or str(given) == "none":
        print(f"--{option} none: {needed_by} are left out")
        return False
    if str(given) == str(default) and not Path(given).exists():
        print(f"no {given}: {needed_by} are left out; python -m cgn.{command} makes it")
        return False
    return True


def fits(option, given, found, wanted):
    """Raise UserError unless a classifier has as many classes as the CGN."""
    if found != wanted:
        raise UserError(f"--{option} {given} tells {found} classes apart, and the CGN makes {wanted}: name one that "
                        f"was trained on them{'' if option == 'classifier' else ', or none'}")


def target_of(path, model, device):
    """(BigGAN, its file) of the CGN's own file, a run folder or published weights; UserError if it is another one's."""
    own = getattr(model, objects.TARGET, None)
    made = own or train_objects.generator_of(path, model.settings["config"]).to(device).requires_grad_(False)
    for name in ("classes", "latent", "resolution"):
        if getattr(made.config, name) != getattr(model, name):
            raise UserError(f"--target {path} is of {name} {getattr(made.config, name)}, and the CGN of "
                            f"{getattr(model, name)}: name the BigGAN that the CGN was trained from, or none")
    return made, storage.file_of(path)


def heads_of(option, path, classes, device):
    """The Ensemble of a run folder of train_ensemble; UserError if it is of other classes than the CGN."""
    network = ensemble.restore(storage.load_checkpoint(path / "ckpt/best.pt"))
    fits(option, path, network.classes, classes)
    return network.to(device)


def torchvision_of(name, weights, classes, device):
    """A classifier of torchvision with the weights of a file; UserError if they are others', or of other classes."""
    given = storage.load_checkpoint(weights)
    fits("classifier", name, backbones.classes_in(given), classes)
    how = {"transform_input": True, "init_weights": False} if name in INCEPTIONS else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=classes, **how)
    return storage.load_published_weights(network, given).eval().to(device)


def classifier_of(classifier, weights, classes, device):
    """(function from images to probabilities on the CPU, file of weights) of --classifier and --weights."""
    path = Path(classifier)
    if path.is_dir():
        if weights is not None:
            raise UserError(f"--weights is for a classifier of torchvision; {path} has its own")
        network = heads_of("classifier", path, classes, device)
        mean = Answer(network, lambda logits: ensemble.answers(logits)["mean"])
        return functools.partial(scores.class_probabilities, mean, side=network.settings["side"],
                                 normalise=False), storage.file_of(path)  # fmt: skip
    known = classifier.replace("_", "-")
    weights = fetch.path_of(known) if weights is None and known in fetch.MANIFEST else weights
    if weights is None or classifier not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"--classifier {classifier} is neither a run folder nor a classifier of torchvision whose "
                        "weights are given by --weights")
    network = torchvision_of(classifier, weights, classes, device)
    return functools.partial(scores.class_probabilities, network, side=SIDES.get(classifier, SIDE)), weights


def reading_of(path, classes, device):
    """(function from images to the labels (B, 3) that the heads of --reader give, on the CPU; file of weights)."""
    network = heads_of("reader", path, classes, device)
    heads = Answer(network, lambda logits: logits.transpose(1, 2))  # (B, classes, 3)
    side = network.settings["side"]
    read = lambda images: scores.class_probabilities(heads, images, side, normalise=False).argmax(1)
    return read, storage.file_of(path)


def finding_of(path, model, device):
    """(function from images to saliency, file of weights) of --segmenter; UserError if it is the CGN's own network."""
    network = train_objects.saliency_of(path, path.stem).to(device).requires_grad_(False)
    own, found = model.u2net.state_dict(), network.state_dict()
    if own.keys() == found.keys() and all(torch.equal(own[key], found[key]) for key in own):
        raise UserError(f"--segmenter {path} is the network that the CGN was trained with, and no judge of its masks: "
                        "train one with another seed")
    return network.saliency, storage.file_of(path)


def inside(context, function):
    """The function, called without gradients and in the precision of a context."""
    def called(images):
        with torch.no_grad(), context():
            return function(images)

    return called


def instruments(model, target, classifier, weights, reader, segmenter, device, context):
    """(Instruments, {option: name, option_weights: digest of its file}) of the options; None for what is missing."""
    makers = {
        "target": (target, TARGET, lambda: target_of(target, model, device)),
        "classifier": (classifier, CLASSIFIER, lambda: classifier_of(classifier, weights, model.classes, device)),
        "reader": (reader, READER, lambda: reading_of(reader, model.classes, device)),
        "segmenter": (segmenter, SEGMENTER, lambda: finding_of(segmenter, model, device)),
    }
    tools, used = [], {}
    for option, (given, default, make) in makers.items():
        tool = name = file = None
        if is_there(option, given, default):
            tool, file = make()
            tool, name = tool if option == "target" else inside(context, tool), Path(given).resolve().name
        tools.append(tool)
        used |= {option: name, f"{option}_weights": file and storage.digest(file)}
    return Instruments(*tools), used


# --- the script --------------------------------------------------------------------------------------------


def arm_of(trained):
    """What records call a CGN: by the loss that its training left out."""
    if trained is None:
        return "published"
    return f"without {trained['leave_out']}" if trained.get("leave_out") else "all losses"


def table(rows, arm):
    """Records as a Markdown table: a line for each metric, the CGN and the target beside each other."""
    lines = []
    for metric in METRICS:
        both = {row["arm"]: row for row in rows if row["metric"] == metric}
        if both:
            cells = [f"{both[whose]['value']:.4f}" if whose in both else "" for whose in (arm, FROZEN)]
            lines.append((metric, *cells, next(iter(both.values()))["n"]))
    return tables.markdown(["measure", arm, FROZEN, "n"], lines)


def main(run, target, classifier, weights, reader, segmenter, count, splits, truncation, seed, device, precision,
         results):
    if count < splits:
        raise UserError(f"--count {count}: an Inception Score over {splits} splits needs at least as many images")
    device = experiment.pick_device(device)
    context = experiment.in_precision(device, precision)
    model, published = objects.load(run, device), run.suffix == ".pth"
    file = storage.file_of(run)
    trained = None if published else storage.load_checkpoint(file).get("options", {})
    if hasattr(model, objects.TARGET) and str(target) != "none":
        target = run
    tools, used = instruments(model, target, classifier, weights, reader, segmenter, device, context)
    options = {"run": run.resolve().name, "weights": storage.digest(file), "trained": trained} | used | {
        "count": count, "splits": splits, "truncation": truncation, "seed": seed, "precision": precision}  # fmt: skip
    records = storage.Records(results, "score_objects", options, device)
    arm, split = arm_of(trained), (trained or {}).get("preset") or model.settings["config"]
    rows = records.earlier()
    if not rows:
        for whose, metric, value, n in measure(model, tools, count, splits, truncation, seed, context):
            records.add(arm if whose == CGN else FROZEN, split, metric, value, n, seed)
        rows = records.save()
    print(table(rows, arm))


if __name__ == "__main__":
    experiment.run(main)

"""What a classifier looks at: GradCAM against true masks, and t-SNE of its features (README, part 5).

    python -m cgn.explain --variant wildlife --on original      # after cgn.classify --save with the same --on and seed

GradCAM (Selvaraju et al. 2017) of the predicted class at the last feature maps of 8 x 8, scaled to [0, 1] an image, is
held against the true mask of the very image shown: overlap of its upper half with the object (iou), the mean of that
and the overlap of the rest with the background, as the replication averaged it (iou_both), and the share of its sum
that lies on the object (energy). The replication held two of its variants against the masks of other digits;
`unrelated` measures that as well. Its two t-SNE panels showed one set of images twice; here the panels are original
(training), test and counterfactual images in one embedding.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

import datasets
import experiment
import figures
import metrics
import storage
from cgn import classifiers, data, generate, train

# --- what is explained ---------------------------------------------------------------------------
VARIANT: str = "wildlife"  # a name of data.VARIANTS
TEXTURES: Path | None = None  # folder of wildlife's textures, as in training
ON: tuple[str, ...] = ("original",)  # what the classifier was trained on, as given to cgn.classify
CLASSIFIER: Path | None = None  # another checkpoint instead, also a published one
RUN: Path | None = None  # run folder of the CGN whose counterfactuals t-SNE shows; by default the variant's
COUNT: experiment.Count = 2000  # test images for GradCAM
TSNE: experiment.Count = 1500  # images in each panel of t-SNE (published: 3,200)
SEED: experiment.Index = 0  # of the classifier, and of what is drawn here
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/cgn")  # where figures and records go

SHOWN = 8  # images in the figure


def load(path, variant, textures, way):
    """The classifier in a file of cgn.classify, or a published one; raises UserError if it is of another variant.

    way: the command that makes it.
    """
    if not path.is_file():
        raise experiment.UserError(f"no classifier at {path}; {way} makes it")
    state = storage.load_checkpoint(path)
    storage.expect(path, state, variant=variant, textures=textures)
    return classifiers.restore(state)


def grad_cam(model, images):
    """(maps (B, 1, 32, 32) in [0, 1], predicted classes (B,)) of images (B, 3, 32, 32).

    The gradient of the predicted class's logit, averaged over space, weighs the feature maps; what is negative in their
    sum is cut off, and the rest scaled by its largest value (equations 1 and 2).
    """
    with torch.no_grad():
        maps = model.maps(images)
    with torch.enable_grad():
        maps.requires_grad_()
        best, predicted = model.head(maps).max(1)
        slopes = torch.autograd.grad(best.sum(), maps)[0]
    heat = F.relu((slopes.mean((2, 3), keepdim=True) * maps.detach()).sum(1, keepdim=True))
    heat = F.interpolate(heat, images.shape[2:], mode="bilinear")
    return heat / heat.amax((1, 2, 3), keepdim=True).clamp(1e-12), predicted


def overlaps(heat, masks):
    """{"iou", "iou_both", "energy": (B,)} of heat maps in [0, 1] and boolean masks, both (B, 1, 32, 32).

    The upper half of a heat map is compared. A map that is 0 everywhere has energy 0.
    """
    hot = heat > 0.5
    object_ = metrics.iou(hot, masks)
    energy = (heat * masks).flatten(1).sum(1) / heat.flatten(1).sum(1).clamp(1e-12)
    return {"iou": object_, "iou_both": (object_ + metrics.iou(~hot, ~masks)) / 2, "energy": energy}


def look(model, scenes, unrelated):
    """{metric: values (N,)} of GradCAM on scenes, against their own masks and against unrelated ones."""
    found = {}
    for index in torch.arange(len(scenes), device=scenes.labels.device).split(500):
        heat, _ = grad_cam(model, scenes.images[index])
        for suffix, masks in (("", scenes.masks), ("_unrelated", unrelated)):
            for name, value in overlaps(heat, masks[index]).items():
                found.setdefault(name + suffix, []).append(value)
    return {name: torch.cat(parts) for name, parts in found.items()}


def cam_figure(model, scenes, path, title):
    """Images, GradCAM and true masks, one column an image."""
    heat, predicted = grad_cam(model, scenes.images[:SHOWN])
    own = overlaps(heat, scenes.masks[:SHOWN])["iou"].tolist()
    rows = [list((scenes.images[:SHOWN] + 1) / 2), list(heat), list(1 - scenes.masks[:SHOWN].float())]
    captions = [[f"read as {int(p)}" for p in predicted], [f"IoU {value:.2f}" for value in own], [""] * SHOWN]
    figures.image_grid(path, rows, [f"a {int(label)}" for label in scenes.labels[:SHOWN]],
                       ["image", "GradCAM", "true mask"], captions, title, {(1, k) for k in range(SHOWN)})


@torch.no_grad()
def embed(model, sets, seed):
    """t-SNE coordinates (N, 2) of each set of images, in one embedding."""
    from sklearn.manifold import TSNE  # here, because importing it takes a second

    features = torch.cat([model.features(part) for images in sets for part in images.split(500)])
    perplexity = min(30, (len(features) - 1) / 3)  # scikit-learn's, or less for few images
    places = TSNE(2, perplexity=perplexity, random_state=seed).fit_transform(features.cpu().numpy())
    return torch.from_numpy(places).split([len(images) for images in sets])


def separation(places, labels):
    """Share, in [0, 1], of images whose nearest neighbour on the plane has their label: how well classes lie apart.

    places (N, 2), labels (N,), N at least 2.
    """
    distances = torch.cdist(places, places)
    distances.fill_diagonal_(torch.inf)
    return float((labels[distances.argmin(1)] == labels).float().mean())


def image_sets(variant, test, generator, n, seed):
    """{name: (n images, their classes)}: original ones, some of the test set, counterfactuals."""
    plain = variant.batch(variant.shapes("train"), n, experiment.generator(seed, "original images"))
    images, labels = generate.in_memory(generate.Source(generator, variant.device, seed), n)
    return {"original": (plain.images, plain.labels), "test": (test.images, test.labels),
            "counterfactual": (datasets.from_bytes(images), labels[:, 0])}  # fmt: skip


def main(variant, textures, on, classifier, run, count, tsne, seed, device, results):
    device = experiment.pick_device(device)
    painted = data.Variant(variant, device, textures)
    named = painted.textures_name
    stem = "_".join([variant, *filter(None, [named]), *([f"file_{classifier.stem}"] if classifier else on)])
    path = classifier or classifiers.run_of(variant, named, on, seed) / "ckpt/best.pt"
    model = load(path, variant, named, f"python -m cgn.classify --variant {variant} --on {' '.join(on)} --seed {seed} "
                                       "--save").to(device)
    source = run or train.run_of("cgn", variant, named, seed)
    options = {"variant": variant, "textures": named, "on": on, "seed": seed, "count": count, "tsne": tsne, "run": run,
               "classifier": classifier and classifier.name, "weights": storage.digest(path),
               "generator": storage.digest(source / "ckpt/best.pt")}  # fmt: skip
    records = storage.Records(results, "explain", options, device)
    test, arm = painted.test(), f"file {path.stem}" if classifier else "+".join(on)
    order = torch.randperm(len(test), generator=experiment.generator(seed, "explained")).to(device)
    scenes, others = test[order[:count]], test.masks[order.roll(1)[:count]]
    for metric, value in look(model, scenes, others).items():
        records.add(arm, "test", metric, float(value.mean()), len(value), seed)
    cam_figure(model, scenes, results / f"gradcam_{stem}.png", f"{stem.replace('_', ' ')}: where it looks")
    generator, _, _ = generate.load(source / "ckpt/best.pt", variant, named, device)
    sets = image_sets(painted, test[order[:tsne]], generator, tsne, seed)
    places = dict(zip(sets, embed(model, [part for part, _ in sets.values()], seed), strict=True))
    for name, (_, classes) in sets.items():
        value = separation(places[name], classes.cpu())
        records.add(arm, name, "neighbour of the same class", value, len(classes), seed)
    figures.scatters(results / f"tsne_{stem}.png", [(f"{name} images", places[name], classes.cpu())
                     for name, (_, classes) in sets.items()], f"{stem.replace('_', ' ')}: features of the classifier")
    for row in records.save():
        print(f"{row['arm']}, {row['split']}, {row['metric']}: {row['value']:.3f}")


if __name__ == "__main__":
    experiment.run(main)

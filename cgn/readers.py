"""Networks that measure the mechanisms: each reads one thing, the shape, the object's texture or the background's.

They are trained on true compositions in which all three are drawn by themselves, so that none can serve for another,
and are kept in runs/cgn_reader_*. The reader of masks sees a mask alone, white on black.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

import experiment
import storage
from cgn import classifiers, data
from cgn.classifiers import learn, right

READS = ("shape", "object", "background", "mask")
STEPS, BATCH, LR, SEED = 600, 256, 6e-3, 1  # a seed of their own: they judge
GOOD = 0.9  # a class has good masks if this share of them is read rightly (the replication's rule)


def reader(reads, variant, textures, context, runs=Path("runs")):
    """The network that reads one of READS, trained at the first use.

    textures: what a record says of the variant's textures. Its checkpoint has its accuracy on the test set.
    """
    name = "mask" if reads == "mask" else f"{variant.name}_{reads}" + (f"_{textures}" if textures else "")
    path = Path(runs) / f"cgn_reader_{name}/ckpt/best.pt"
    if path.is_file():
        return classifiers.restore(storage.load_checkpoint(path)).to(variant.device)
    channels = 3
    if reads == "mask":  # one for all variants, wherever it is first wanted
        variant, channels = data.Variant("double_colored", variant.device, root=variant.root), 1
    shapes = variant.shapes("train")

    def draw(n, stream):
        return _example(variant, variant.batch(shapes, n, stream, spurious=False), reads)

    with experiment.seeded(SEED, f"reader/{reads}"):
        net = classifiers.build("reader", channels=channels)
    net = learn(net, [draw], STEPS, BATCH, LR, SEED, context, variant.device)
    accuracy = float(right(net, *_example(variant, variant.test(), reads)).float().mean())
    storage.save_checkpoint(path, {"architecture": {"name": "reader", "settings": {"channels": channels}},
                                   "model": net.state_dict(), "accuracy": accuracy})
    return net


def _example(variant, scenes, reads):
    if reads == "mask":
        return scenes.masks.float() * 2 - 1, scenes.labels
    return scenes.images, {"shape": scenes.labels, "object": scenes.objects, "background": scenes.backgrounds}[reads]


@torch.no_grad()
def read(net, images):
    """(classes (N,), their probabilities (N,)) of images or masks, in the reader's range."""
    sure, number = torch.cat([F.softmax(net(part), 1) for part in images.split(1000)]).max(1)
    return number, sure


def good_masks(net, masks, labels):
    """(share of masks read as their label (classes,), how many classes have good masks)."""
    number, _ = read(net, (masks > 0.5).float() * 2 - 1)
    shares = torch.stack([(number[labels == k] == k).float().mean() for k in range(data.CLASSES)])
    return shares, int((shares >= GOOD).sum())

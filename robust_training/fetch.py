"""Fetch IN-9, Waterbirds, CCT and the BiT weights where they are public, verify and unpack them; or check a copy.

    python -m robust_training.fetch --set wb           # into data/
    python -m robust_training.fetch --set cct          # 6.5 GB
    python -m robust_training.fetch --set in9          # the test sets; the training images are placed by hand
    python -m robust_training.fetch --set bit          # BiT-S-R50x1.npz, weights trained on ImageNet
    python -m robust_training.fetch --set wb --check   # reads every image and mask and says what was found

Where a source cannot be reached, or has no lasting address, put its archive into ROOT by hand and run the same command:
an archive that lies there is used. Only one archive has a published checksum, which is checked; of the others size and
SHA-256 are printed, so that two copies can be compared.
"""

from pathlib import Path
from typing import Literal

import numpy
import torch
from tqdm import tqdm

import downloads
import experiment
from downloads import Source
from experiment import UserError
from robust_training import formats, photos

SET: Literal["in9", "in9l", "wb", "cct", "bit"] | None = None  # the set to fetch or to check
ROOT: Path = Path("data")  # where the sets lie
CHECK: bool = False  # fetch nothing; read every split and say what was found

KERNEL = "resnet/root_block/standardized_conv2d/kernel"  # an array that BiT's weights have
LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps/"


def _training_images(name):
    """An archive that README.md of MadryLab/backgrounds_challenge links to, under addresses that do not last."""
    return Source(f"{name}.tar.gz", None, "linked under Training Data in github.com/MadryLab/backgrounds_challenge",
                  name, f"bg_challenge/train/{name}")


SOURCES = {
    "in9": (downloads.IN9_TEST, _training_images("original"), _training_images("no_fg")),
    "in9l": (downloads.IN9_TEST, _training_images("in9l"), _training_images("no_fg")),
    "wb": (Source("waterbird_complete95_forest2water2.tar.gz", "https://nlp.stanford.edu/data/dro/"
                  "waterbird_complete95_forest2water2.tar.gz", "from github.com/kohpangwei/group_DRO",
                  "waterbird_complete95_forest2water2", "waterbird_complete95_forest2water2"),
           Source("segmentations.tgz", "https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz",
                  "from data.caltech.edu/records/w9d68-gec53", "segmentations",
                  "waterbird_complete95_forest2water2/segmentations", 39_272_883, "4d47ba1228eae64f2fa547c47bc65255")),
    "cct": (Source("eccv_18_annotations.tar.gz", LILA + "eccv_18_annotations.tar.gz",
                   "from lila.science/datasets/caltech-camera-traps", "eccv_18_annotation_files",
                   "eccv_18_annotation_files"),
            Source("eccv_18_all_images_sm.tar.gz", LILA + "eccv_18_all_images_sm.tar.gz",
                   "from lila.science/datasets/caltech-camera-traps", "eccv_18_all_images_sm",
                   "eccv_18_all_images_sm")),
    "bit": (Source("BiT-S-R50x1.npz", "https://storage.googleapis.com/bit_models/BiT-S-R50x1.npz",
                   "from github.com/google-research/big_transfer", None, "BiT-S-R50x1.npz"),),
}  # fmt: skip


def fetch(source, root):
    """Bring one Source to its place below root, as downloads.fetch does; a file that is no archive has to be BiT's."""
    return downloads.fetch(source, root, check_weights)


# --- checking -------------------------------------------------------------------------------------


def check_weights(path):
    """Say what BiT's weights hold; UserError for another or a damaged file. Nothing in it is run."""
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            shapes = {name: arrays[name].shape for name in arrays.files}
    except Exception as error:  # a damaged zip file raises half a dozen kinds
        raise UserError(f"{path} cannot be read as BiT's weights ({type(error).__name__})") from None
    if KERNEL not in shapes:
        raise UserError(f"{path} is another file than BiT's weights: it holds no {KERNEL}")
    print(f"{path}: {len(shapes)} arrays, the first convolution is {shapes[KERNEL]}")


def check_split(name, split, root):
    """One line on a split: images, the share with a foreground that is still there at 224 x 224, and the classes."""
    samples = formats.read(name, split, root)
    source = photos.Photos(samples)
    batches = source.batches(64)
    known = sum(int(batch.known.sum())
                for batch in tqdm(batches, desc=f"{name} {split}", total=-(-len(source) // 64), disable=None))
    counts = torch.bincount(source.labels, minlength=len(formats.CLASSES[name])).tolist()
    classes = ", ".join(f"{title} {count:,}" for title, count in zip(formats.CLASSES[name], counts, strict=True))
    left_out = f"; {samples.left_out} of two classes left out" if samples.left_out else ""
    return f"{name} {split}: {len(source):,} images, foreground known in {known / len(source):.1%}; {classes}{left_out}"


def check_set(name, root):
    """Read every split of a set and print what was found or what is wrong; UserError at the end if any is wrong."""
    if name == "bit":
        path = root / SOURCES["bit"][0].to
        if not path.is_file():
            raise UserError(f"{path} is missing: python -m robust_training.fetch --set bit")
        return check_weights(path)
    wrong = downloads.failures({f"{name} {split}": lambda split=split: print(check_split(name, split, root))
                                for split in formats.SPLITS[name]})  # fmt: skip
    if wrong:
        splits = ', '.join(label.split()[-1] for label in wrong)
        raise UserError(f"{name} cannot be read in full: see above for {splits}")


def main(set, root, check):
    if set is None:
        raise UserError(f"say which set: --set {'|'.join(SOURCES)}")
    if check:
        return check_set(set, root)
    if all([fetch(source, root) for source in SOURCES[set]]):
        print(f"python -m robust_training.fetch --set {set} --check reads it")


if __name__ == "__main__":
    experiment.run(main)

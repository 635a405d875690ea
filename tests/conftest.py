"""What the tests share: real digits, a small model with its own seed, and scripts run as a user runs them."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import architecture
import datasets
import experiment

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT.parent / "shared/published"  # checks against the originals are skipped without it


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def test_digits():
    return datasets.mnist("test", root=ROOT / "data")


@pytest.fixture
def model():
    """A freshly initialised convolutional VAE, in evaluation mode."""
    with experiment.seeded(0, "tests"):
        return architecture.build("vae").eval()


@pytest.fixture
def images(test_digits):
    return test_digits.images[:12]


@pytest.fixture
def call(capsys):
    """call(script, *arguments): (exit code, stdout, stderr) of a script's main, in this process."""

    def run(name, *arguments):
        code = 0
        try:
            experiment.run(importlib.import_module(name).main, [str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def waterbirds(tmp_path):
    """Twelve Waterbirds of 60 x 50 pixels, on land: six to train on, three to validate with, three to test.

    Of the three to test one agrees with its ground and two do not.
    """
    folder, rows = tmp_path / "data/waterbird_complete95_forest2water2", []
    noise = numpy.random.default_rng(0)
    for k in range(12):
        name = f"00{k % 2}.Bird/b{k}"
        for part in (folder, folder / "segmentations"):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 255, (50, 60, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
        outline = numpy.zeros((50, 60), numpy.uint8)
        outline[10 + k:30, 20:36] = 255
        Image.fromarray(outline).save(folder / "segmentations" / f"{name}.png")
        rows.append({"img_filename": f"{name}.jpg", "y": (k // 4 + k) % 2, "split": (0, 0, 1, 2)[k % 4], "place": 0})
    with open(folder / "metadata.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return tmp_path / "data"


def shell(*words, **how):
    """A command in a process of its own, from the repository root."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | how.pop("env", {})
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          env=environment, **how)

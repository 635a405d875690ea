"""What the tests share: real digits, a small model with its own seed, and scripts run as a user runs them."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def shell(*words, **how):
    """A command in a process of its own, from the repository root."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | how.pop("env", {})
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          env=environment, **how)

"""Figures: written whole, the same bytes each time, and with ink on them."""

import matplotlib.image
import torch

import figures


def test_image_grid(tmp_path):
    rows = [[torch.zeros(1, 28, 28), torch.ones(1, 28, 28)], [torch.rand(3, 28, 28), torch.full((1, 28, 28), 0.5)]]
    for name in ("a.png", "b.png"):
        figures.image_grid(tmp_path / name, rows, ["left", "right"], ["one", "two"], [["", "x"], ["y", "z"]], "title")
    pixels = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 500
    assert (pixels.min(), pixels.max()) < (0.1, 1.0)
    black = (pixels.max(-1) < 0.05).mean()
    assert 0.05 < black < 0.3  # the one image of ones, drawn dark
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_curves_with_band_symlog_and_an_empty_place(tmp_path):
    line = ("x", "blue", [1, 2, 4], [0.1, -0.2, 3], [0.1, 0.1, float("nan")])
    panel = {"title": "t", "x_label": "x", "y_label": "y", "log": "x", "zero": True, "lines": [line]}
    figures.curves(tmp_path / "c.png", [panel, panel | {"symlog": 0.1}, panel | {"log": ""}], "title", columns=2)
    pixels = matplotlib.image.imread(tmp_path / "c.png")[..., :3]
    blue = torch.tensor([int(figures.COLOURS["blue"][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    close = (torch.tensor(pixels) - blue).abs().amax(-1) < 0.02
    assert close.sum() > 500
    high, wide = close.shape
    assert close[high // 2 :, wide // 2 :].sum() == 0  # the fourth place has no panel


def test_bars_are_as_long_as_their_means(tmp_path):
    def inked(mean):
        """How many pixels are of the colour of a bar."""
        figures.bars(tmp_path / "b.png", [("only", "red")], [("a", [(mean, 0.5, [mean])])], "title", "x", (0, 10))
        pixels = torch.tensor(matplotlib.image.imread(tmp_path / "b.png")[..., :3])
        red = torch.tensor([int(figures.COLOURS["red"][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return int(((pixels - (0.55 * red + 0.45)).abs().amax(-1) < 0.02).sum())

    short, long = inked(2.0), inked(8.0)
    assert short > 500
    assert 3.5 < long / short < 4.5
    one, two = (("left", "red"), ("right", "blue"))
    rows = [("a", [(1, 0.2, [0.9, 1.1]), (2, float("nan"), [2])]), ("b", [(3, 0.1, [3]), (0, 0.1, [0])])]
    figures.bars(tmp_path / "c.png", [one, two], rows, "title", "x", (0, 10))
    assert (tmp_path / "c.png").stat().st_size > 5000

"""Speed: ratios of pairs, and on how many of what they were measured."""

import torch

import bench
import storage


def test_the_ratio_is_the_median_over_the_pairs(monkeypatch):
    """Pairs of 1 s and 2 s, 2 s and 20 s, 4 s and 12 s: ratios 2, 10 and 3; the results differ by 0.5 at most."""
    clock = iter([1.0, 2.0, 2.0, 20.0, 4.0, 12.0])
    monkeypatch.setattr(bench.experiment, "seconds", lambda side, device: (next(clock), side()))
    ours, plain = (lambda: torch.tensor([1.0, 2.0])), (lambda: torch.tensor([1.25, 1.5]))
    assert bench.compare(ours, plain, 3, None) == (3.0, 2.0, 0.5)


def test_records_say_of_how_many_and_how_long(tmp_path, call, monkeypatch):
    """More images may be searched for than digits are evaluated; milliseconds are of one of them."""
    sizes = {}
    monkeypatch.setattr(bench, "counterfactuals", lambda images, steps, device: (lambda: images, lambda: images))

    def compare(ours, plain, repeats, device):
        sizes[len(sizes)] = len(ours())
        return 3.0, 0.06, 0.0

    monkeypatch.setattr(bench, "compare", compare)
    code, _, _ = call("bench", "--digits", 2, "--images", 5, "--results", tmp_path)
    assert code == 0
    rows = storage.read_lines(tmp_path / "metrics.jsonl")
    assert list(sizes.values()) == [2, 2, 5]
    assert {(row["arm"], row["n"]) for row in rows} == {("scoring", 2), ("evaluation", 2), ("counterfactuals", 5)}
    assert {row["arm"]: row["value"] for row in rows if row["metric"] == "milliseconds_a_sample"} == {
        "scoring": 30.0, "evaluation": 30.0, "counterfactuals": 12.0}  # fmt: skip


def test_the_time_of_measuring_is_recorded(tmp_path, call, monkeypatch):
    monkeypatch.setattr(bench, "counterfactuals", lambda images, steps, device: (lambda: images, lambda: images))
    call("bench", "--digits", 2, "--repeats", 1, "--results", tmp_path)
    assert all(row["seconds"] > 0 for row in storage.read_lines(tmp_path / "metrics.jsonl") if row["arm"] == "scoring")

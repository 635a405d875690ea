"""No published number without a row: those of the reports' tables, and those that have a table of their own."""

import re

import pytest
from conftest import ROOT

import counterfactual_report
import finetuning_report
import published_numbers
import storage
from cgn import report, report_objects


@pytest.fixture(scope="module")
def rows():
    """The rows of the table, as cells, from the committed records."""
    of = lambda name: storage.read_lines(ROOT / f"results/{name}/metrics.jsonl")
    text = published_numbers.table(of("ablate"), of("targeted_finetuning"), of("cgn"))
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()[2:]]


def test_every_row_says_what_was_published_and_what_is_here(rows):
    for part, what, published, replication, ours in rows:
        assert part in "13456"
        assert what
        assert ours not in ("", "–"), what
        assert {published, replication} != {"–"} or "could not be had" in ours, what


def numbers_of(value):
    """The numbers in nested tuples and dictionaries of a report's constants, as README writes them."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in numbers_of(part)]
    if isinstance(value, tuple):
        return [text for part in value for text in numbers_of(part)]
    if isinstance(value, str):
        return re.findall(r"\d*\.\d+|\d+", value)
    return [] if value is None else [f"{value:g}"]


@pytest.mark.parametrize(("block", "constants"), [
    ("part 5 colored", {arm: values["colored"] for source in (report.PAPER, report.REPLICATION)
                        for arm, values in source.items()}),
    ("part 5 double-colored", [values["double_colored"] for values in report.PAPER.values()]),
    ("part 5 wildlife", [values["wildlife"] for values in report.REPLICATION.values()]),
    ("part 5 sizes", report.REPLICATED_SIZES), ("part 5 claim 2", report_objects.PAPER_LOSSES),
    ("part 5 claim 2", report_objects.REPLICATED_LOSSES), ("part 5 table 3", report_objects.TABLE_3),
    ("part 5 table 4", report_objects.TABLE_4), ("part 5 shifted", report_objects.SHIFTED),
    ("part 3 published", finetuning_report.PUBLISHED), ("part 4 helix", counterfactual_report.PUBLISHED_HELIX),
    ("published", published_numbers.RADII), ("published", published_numbers.FIDS),
    ("published", published_numbers.SHARES), ("published", published_numbers.CACHES),
    ("published", published_numbers.FIVE), ("published", published_numbers.CAMS),
], ids=str)  # fmt: skip
def test_every_published_number_stands_in_its_table(block, constants):
    text = (ROOT / "README.md").read_text()
    shown = text.split(f"<!-- {block} -->")[1].split("<!-- end -->")[0]
    there = {float(number) for number in re.findall(r"(?<![\w.])\d*\.?\d+", shown)}
    wanted = numbers_of(tuple(constants) if isinstance(constants, list) else constants)
    assert wanted
    assert [number for number in wanted if float(number) not in there] == []


def test_how_often_the_targeted_choice_is_nearer_and_errs_more():
    row = lambda arm, metric, share, value: {
        "arm": arm, "split": "new digit", "metric": metric, "seed": 0, "value": value,
        "setting": {"size": 2048, "fraction": share}}  # fmt: skip
    records = [row(arm, metric, share, value) for arm, metric, share, value in (
        ("targeted", "mse_sampled", 0.1, 2.0), ("random", "mse_sampled", 0.1, 1.0),
        ("targeted", "mse_sampled", 0.5, 3.0), ("random", "mse_sampled", 0.5, 1.0),
        ("targeted", "frechet", 0.1, 5.0), ("random", "frechet", 0.1, 6.0),
        ("targeted", "frechet", 0.5, 5.0), ("random", "frechet", 0.5, 4.0))]  # fmt: skip
    assert published_numbers.lower(records, [0.1, 0.5]) == "of 2 shares, 1; 2"

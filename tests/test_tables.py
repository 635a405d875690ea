"""From records to numbers: hand-computed answers."""

import math

import pytest

import tables
from experiment import UserError


def record(value, seed=0, arm="a", split="all", metric="mse", **setting):
    return {"experiment": "toy", "arm": arm, "split": split, "metric": metric, "value": value, "n": 5, "seed": seed,
            "setting": setting, "options": {}}


def test_mean_and_student_interval():
    found = tables.mean_of([1.0, 3.0])
    assert found.mean == 2
    assert found.std == pytest.approx(math.sqrt(2))
    assert found.half == pytest.approx(12.7062047362 * math.sqrt(2) / math.sqrt(2), rel=1e-9)  # t(1), 97.5 %
    ten = tables.mean_of(range(10))
    assert ten.half == pytest.approx(2.26215716280 * ten.std / math.sqrt(10), rel=1e-9)  # t(9), 97.5 %
    assert f"{ten:.1f}" == "4.5 ± 2.2"
    assert f"{ten:+.1f}" == "+4.5 ± 2.2"


def test_one_value_has_no_interval_and_none_no_mean():
    assert f"{tables.mean_of([2.0]):.2f}" == "2.00"
    with pytest.raises(UserError, match="no records"):
        tables.mean_of([])


def test_selection_by_fields_and_settings():
    rows = [record(1.0), record(2.0, seed=1), record(9.0, strength=0.1), record(None, seed=2)]
    assert tables.values(rows, strength=None) == {0: 1.0, 1: 2.0}
    assert tables.mean(rows, strength=0.1).mean == 9
    with pytest.raises(UserError, match="two records"):
        tables.values(rows)


def test_another_key_than_the_seed():
    rows = [record(1.0, sample=4), record(3.0, sample=7)]
    assert tables.values(rows, key="sample") == {4: 1.0, 7: 3.0}


def test_paired_differences_use_the_keys_both_have():
    rows = [record(5.0, 0, "a"), record(7.0, 1, "a"), record(1.0, 0, "b"), record(2.0, 1, "b"), record(3.0, 2, "b")]
    gap = tables.paired(rows, "a", "b")
    assert (gap.mean, gap.n) == (4.5, 2)


@pytest.mark.parametrize(("values", "words"), [
    ([1.0, 1.1, 0.9], "higher"), ([-1.0, -1.1, -0.9], "lower"), ([1.0, -1.0], "not distinguishable"),
    ([5.0], "not distinguishable"),
])  # fmt: skip
def test_verdicts(values, words):
    assert tables.verdict(tables.mean_of(values)) == words


@pytest.mark.parametrize(("values", "claimed", "words"), [
    ([1.0, 1.1], "higher", "holds"), ([1.0, 1.1], "lower", "does not hold"), ([1.0, 1.1], "no higher", "does not hold"),
    ([-1.0, -1.1], "lower", "holds"), ([-1.0, -1.1], "no higher", "holds"), ([-1.0, 1.0], "lower", "is not decided"),
    ([-1.0, 1.0], "no higher", "is not contradicted"), ([1.0], "higher", "is not decided"),
])  # fmt: skip
def test_claims_are_judged_by_the_interval(values, claimed, words):
    assert tables.judge(tables.mean_of(values), claimed, "x") == f"{words} (x)."


def test_markdown_golden():
    assert tables.markdown(["arm", "x"], [["a", 1], ["b", "2 ± 1"]]) == (
        "| arm | x |\n| --- | ---: |\n| a | 1 |\n| b | 2 ± 1 |")


def test_blocks_are_filled_between_their_markers_and_nowhere_else(tmp_path):
    text = "before\n<!-- one -->\nold\n<!-- end -->\nmiddle\n<!-- two -->\n<!-- end -->\n"
    path = tmp_path / "README.md"
    path.write_text(text)
    tables.update(path, {"one": r"new \1", "two": "b"})
    assert path.read_text() == ("before\n<!-- one -->\nnew \\1\n<!-- end -->\nmiddle\n<!-- two -->\nb\n<!-- end -->\n")
    with pytest.raises(UserError, match="three"):
        tables.update(path, {"three": ""})


def test_differences_are_over_what_both_have():
    one, other = {0: 0.7, 1: 0.9, 5: 1.0}, {0: 0.5, 1: 0.5, 2: 0.1}
    assert tables.differences(one, other) == pytest.approx([0.2, 0.4])
    assert tables.difference(one, other, scale=100).mean == pytest.approx(30)
    assert tables.difference(one, {7: 1.0}) is None


def test_bullets_are_a_markdown_list():
    assert tables.bullets(["one.", "two."]) == "- one.\n- two."
    assert tables.bullets([]) == ""

"""What work costs as it grows: exponents of known laws, memory that is really held, both sides of every operation."""

import pytest
import torch
from conftest import shell

import growth
import storage

CPU = torch.device("cpu")


@pytest.mark.parametrize(("power", "factor"), [(0, 5.0), (1, 0.3), (2, 1e-6)])
def test_the_exponent_of_a_power_law_is_its_power(power, factor):
    sizes = [4, 16, 64]
    assert growth.exponent(sizes, [factor * size**power for size in sizes]) == pytest.approx(power, abs=1e-9)


CHILD = """
import numpy, torch, growth
mega, cpu = 2**20, torch.device("cpu")
kept = numpy.ones(50 * mega, numpy.uint8)  # was there before, so it does not count

def side():
    both = [numpy.ones(100 * mega, numpy.uint8), numpy.ones(60 * mega, numpy.uint8)]
    del both
    return numpy.ones(20 * mega, numpy.uint8)

print(growth.most(side, cpu) / mega, growth.most(lambda: None, cpu) / mega)
"""


@pytest.mark.skipif(not (growth.MEMORY / "clear_refs").exists(), reason="this system does not tell")
def test_what_is_held_at_most_is_seen_though_it_is_given_back():
    """In a process of its own, as growth.py does it: what an old one has freed it may take again without asking."""
    done = shell("-c", CHILD)
    most, nothing = map(float, done.stdout.split())
    assert 159 < most < 165, done.stderr
    assert nothing < 2


@pytest.mark.parametrize("name", growth.OPERATIONS)
def test_both_sides_of_an_operation_can_be_called(name):
    operation = growth.OPERATIONS[name]
    ours, plain = operation.make(operation.sizes[0], CPU, 0)
    made = ours(), plain()
    if name in ("scoring", "step", "infills"):  # where both give numbers, and no rounding decides on signs
        torch.testing.assert_close(made[0][1] if name != "infills" else made[0], made[1], rtol=1e-3, atol=1e-3)
    assert operation.axis in growth.UNITS
    assert list(operation.sizes) == sorted(operation.sizes)


def fake(name, size, **values):
    values = {"seconds": 1.0, "plain seconds": 4.0, "speedup": 4.0, "bytes": 2**20, "plain bytes": None} | values
    return [{"arm": name, "metric": metric, "value": value, "setting": {"size": size}}
            for metric, value in values.items()]  # fmt: skip


def test_the_table_goes_from_the_smallest_to_the_largest_size():
    rows = fake("scoring", 400, seconds=2.0, speedup=6.0, bytes=5 * 2**20) + fake("scoring", 100)
    line = growth.table(rows).splitlines()[2]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "samples", "scoring", growth.LOOP, "100 – 400", "1 – 2", "0.50", "0.00", "4.0 – 6.0", "1 – 5", "–"]  # fmt: skip


def test_figures_without_a_word_of_memory_are_those_of_seconds(tmp_path):
    growth.draw(fake("flow", 16, bytes=None) + fake("flow", 32, bytes=None), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["growth_seconds.png"]


def test_the_script_records_every_size(tmp_path):
    done = shell("growth.py", "--what", "infills", "--sizes", "2", "--repeats", "1", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = storage.read_lines(tmp_path / "metrics.jsonl")
    assert {row["setting"]["size"] for row in rows} == {32, 64}
    assert {row["metric"] for row in rows} == {"seconds", "plain seconds", "speedup", "bytes", "plain bytes"}
    assert (tmp_path / "growth_seconds.png").exists()
    assert "infills" in done.stdout


def test_an_unknown_operation_is_a_mistake(tmp_path, call):
    code, _, err = call("growth", "--what", "teleport", "--results", tmp_path / "new")
    assert code == 2
    assert "teleport" in err
    assert not (tmp_path / "new").exists()

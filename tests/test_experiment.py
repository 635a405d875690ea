"""The ground: options, user errors, streams, devices."""

import errno
import sys
import types
from pathlib import Path

import pytest
import torch

import experiment
from experiment import UserError


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A script module with one constant of each kind, as a user would write it."""
    source = tmp_path / "toy.py"
    source.write_text('''"""A toy."""
from pathlib import Path
from typing import Literal
import experiment
STRENGTH: experiment.Positive = 0.001  # how far, 50 % of it
COUNT: experiment.Count | None = None  # how many
NAMES: tuple[experiment.Count, ...] = (1, 2)  # a list
WAY: Literal["a", "b"] = "a"  # which
FLAG: bool = False  # whether
PLACE: Path = Path("here")  # where
NOT_AN_OPTION = 3

def main(**given):
    print(given)
''')
    module = types.ModuleType("toy")
    module.__file__ = str(source)
    exec(compile(source.read_text(), source, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "toy", module)
    return module


def test_constants_are_the_defaults_and_flags_override_them(script):
    plain = experiment.parse_options(script, [])
    assert plain == {
        "strength": 0.001, "count": None, "names": (1, 2), "way": "a", "flag": False, "place": Path("here")
    }  # fmt: skip
    words = ["--strength", "2e-3", "--count", "5", "--names", "4", "5", "6", "--way", "b", "--flag", "--place", "there"]
    assert experiment.parse_options(script, words) == {
        "strength": 0.002, "count": 5, "names": (4, 5, 6), "way": "b", "flag": True, "place": Path("there")
    }  # fmt: skip
    assert experiment.parse_options(script, ["--names"])["names"] == ()


@pytest.mark.parametrize("words", [
    "--strength nan", "--strength inf", "--strength 0", "--strength -1", "--strength x", "--count 0", "--count 1.5",
    "--names 1 0", "--way c", "--nosuch 1", "--not-an-option 4", "--strength", "stray", "--stren 1",
])  # fmt: skip
def test_unacceptable_values_are_user_errors(script, words):
    with pytest.raises(UserError):
        experiment.parse_options(script, words.split())


def test_a_default_edited_to_nonsense_is_refused_too(script):
    script.STRENGTH = -1.0
    with pytest.raises(UserError, match="--strength must be a finite number above 0"):
        experiment.parse_options(script, [])


def test_help_shows_comment_range_and_default(script, capsys):
    with pytest.raises(SystemExit):
        experiment.parse_options(script, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "how far, 50 % of it; a finite number above 0; default: 0.001" in text
    assert "a list; a whole number of at least 1; default: 1 2" in text


@pytest.mark.parametrize(("error", "code"), [
    (UserError("two\nlines"), 2), (KeyboardInterrupt(), 130),
    (OSError(errno.ENOSPC, "No space left on device", "x"), 2), (OSError(errno.EACCES, "Permission denied", "x"), 2),
])  # fmt: skip
def test_what_a_user_can_cause_is_one_line(script, capsys, error, code):
    def main(**_):
        raise error

    main.__module__ = "toy"
    with pytest.raises(SystemExit) as stop:
        experiment.run(main, [])
    err = capsys.readouterr().err
    assert stop.value.code == code
    assert err.count("\n") == 1
    assert err.startswith("toy.py: ")
    assert not isinstance(error, OSError) or err.startswith("toy.py: cannot read or write x: ")


def test_a_bug_is_not_hidden_as_a_user_error(script):
    def main(**_):
        raise ZeroDivisionError

    main.__module__ = "toy"
    with pytest.raises(ZeroDivisionError):
        experiment.run(main, [])


def test_streams_are_named_independent_and_fixed():
    draw = lambda seed, purpose: torch.randn(1000, generator=experiment.generator(seed, purpose))
    assert torch.equal(draw(0, "order"), draw(0, "order"))
    for other in (draw(0, "noise"), draw(1, "order"), draw(0, "order ")):
        assert abs(float(torch.corrcoef(torch.stack([draw(0, "order"), other]))[0, 1])) < 0.15
    # a release that changed this value would silently change every committed number
    assert experiment.stream_seed(0, "order") == 3278857439845718984


def test_seeded_block_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with experiment.seeded(0, "x"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with experiment.seeded(0, "x"):
        assert torch.equal(torch.rand(3), inside)


def test_devices():
    assert experiment.pick_device("cpu").type == "cpu"
    assert experiment.pick_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda"):
            experiment.pick_device("cuda")


@pytest.mark.parametrize(("units", "small", "wanted"), [(True, True, torch.bfloat16), (False, True, torch.float32),
                                                        (False, False, torch.bfloat16)])  # fmt: skip
def test_small_layers_take_bfloat16_only_with_matrix_units(monkeypatch, units, small, wanted):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": units}, raising=False)
    device = torch.device("cpu")
    assert experiment.precise(device, "auto", small) == wanted
    assert experiment.precise(device, "float32", small) == torch.float32
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert experiment.precise(device, "auto", small) == torch.float32


def test_terms_are_averaged_and_the_first_that_is_not_finite_is_named():
    terms = experiment.Terms()
    terms.add({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    terms.add({"a": torch.tensor(3.0), "b": torch.tensor(2.0)})
    assert terms.means(2, "here") == {"a": 2.0, "b": 2.0}
    terms.add({"a": torch.tensor(0.0), "b": torch.tensor(torch.inf)})
    terms.add({"a": torch.tensor(torch.nan), "b": torch.tensor(torch.nan)})
    with pytest.raises(UserError, match=r"b was not finite in one of the last 4 steps before here; .*: less"):
        terms.means(4, "here", "less")
    assert experiment.Terms().means(3, "here") == {}
    terms = experiment.Terms()
    terms.add({"a": torch.tensor(3.0)})
    terms.add({})
    assert terms.means(2, "here") == {"a": 1.5}


def test_sides_take_turns():
    called = []
    sides = [lambda: called.append("a") or 1, lambda: called.append("b") or 2]
    pairs = experiment.in_turn(sides, 2, torch.device("cpu"))
    assert called == ["a", "b", "a", "b"]
    assert [[result for _, result in pair] for pair in pairs] == [[1, 2], [1, 2]]

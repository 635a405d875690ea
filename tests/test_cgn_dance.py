"""The dance: what the schedule says at each moment, in closed form, what is rendered, and what is asked of ffmpeg."""

import itertools
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import datasets
import experiment
from cgn import dance, mechanisms, objects, sound

CLASSES, LATENT, SIDE = 5, 6, 16


class Model:
    """A generator with the interface of cgn.objects: canvases of random colours, tinted by the latent."""

    classes, latent = CLASSES, LATENT

    def __init__(self):
        stream = experiment.generator(0, "tests")
        self.masks = torch.rand(CLASSES, 1, SIDE, SIDE, generator=stream)
        self.canvases = torch.rand(2, CLASSES, 3, SIDE, SIDE, generator=stream) * 2 - 1
        self.tint = torch.randn(LATENT, 3, generator=stream)
        self.sizes = []  # of the batches it was asked for

    def parts(self, labels, latents, truncation=1.0):
        self.sizes.append(len(latents))
        masks, *textures = (torch.einsum("bk,kchw->bchw", share, canvas) for share, canvas in zip(
            labels, (self.masks, *self.canvases), strict=True))  # fmt: skip
        tint = (truncation * latents @ self.tint)[:, :, None, None]
        return mechanisms.Parts(masks, *(torch.tanh(texture + tint) for texture in textures))


# --- classes --------------------------------------------------------------------------------------


def test_each_beat_moves_one_mechanism_in_turn_and_every_eighth_all():
    changed = dance.chosen(20, CLASSES, 0).diff(dim=0) != 0
    for k, moved in enumerate(changed.tolist()):
        assert moved == ([True] * 3 if k % 8 == 0 else [place == k % 3 for place in range(3)])
    assert dance.chosen(20, CLASSES, 0).unique().tolist() == list(range(CLASSES))
    assert not torch.equal(dance.chosen(20, CLASSES, 0), dance.chosen(20, CLASSES, 1))
    assert dance.chosen(3, 1, 0).tolist() == [[0, 0, 0]] * 4  # one class alone has no other


def test_labels_go_over_to_the_next_class_within_the_fade():
    """Sixteen frames a fade, whose middles are at (k + 1/2) / 16 of it: smoothstep there, by hand."""
    fps = 16 / dance.FADE
    labels, _ = dance.schedule([32 / fps], [0.0] * 64, fps, CLASSES, LATENT, 0)
    before, after = dance.chosen(1, CLASSES, 0).tolist()
    assert labels.shape == (3, 64, CLASSES)
    for place in range(3):  # the first beat moves all
        old, new = labels[place, :, before[place]], labels[place, :, after[place]]
        assert (old[:32] == 1).all()
        assert (new[48:] == 1).all()
        shares = [(k + 0.5) / 16 for k in range(16)]
        assert new[32:48].tolist() == pytest.approx([3 * u**2 - 2 * u**3 for u in shares], abs=1e-6)
        torch.testing.assert_close(old + new, torch.ones(64))


def test_labels_stay_shares_where_beats_are_closer_than_a_fade():
    labels, _ = dance.schedule([0.1 * k for k in range(1, 20)], [0.5] * 60, 30, CLASSES, LATENT, 0)
    assert (labels >= 0).all()
    torch.testing.assert_close(labels.sum(2), torch.ones(3, 60))
    assert ((labels > 0).sum(2) > 1).any(1).all()


def test_without_beats_the_labels_stay():
    labels, latents = dance.schedule([], [1.0] * 10, 10, CLASSES, LATENT, 0)
    assert torch.equal(labels, labels[:, :1].expand_as(labels))
    assert (labels.amax(2) == 1).all()
    assert not torch.equal(latents[0], latents[9])


# --- latents --------------------------------------------------------------------------------------


def test_the_path_between_two_latents_is_a_great_circle():
    points = 2 * torch.eye(3)  # quarter circles from the first axis to the second, and on to the third
    found = dance.along(points, torch.tensor([0, 1 / 3, 0.5, 1, 1.25, 2]))
    expected = [[2, 0, 0], [math.sqrt(3), 1, 0], [math.sqrt(2), math.sqrt(2), 0], [0, 2, 0],
                [0, 2 * math.cos(math.pi / 8), 2 * math.sin(math.pi / 8)], [0, 0, 2]]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0])
def test_latents_in_one_line_are_joined_by_it(factor):
    points = torch.tensor([[1.0, 2.0], [factor, 2 * factor]])
    found = dance.along(points, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(found, points[:1] * torch.tensor([1, 0.75 + 0.25 * factor, factor])[:, None])


def test_the_speed_is_the_loudness():
    """At full loudness and SPEED 1 an anchor a second; at half of it, half; in silence none."""
    loudness = [1.0] * 10 + [0.5] * 10 + [0.0] * 10 + [1.0] * 6
    _, latents = dance.schedule([], loudness, 10 / dance.SPEED, CLASSES, LATENT, 3)
    points = dance.anchors(4, LATENT, 3, "dance anchor")
    torch.testing.assert_close(latents[0], points[0])
    torch.testing.assert_close(latents[10], points[1])
    torch.testing.assert_close(latents[20:31], latents[20:21].expand(11, -1))
    torch.testing.assert_close(latents[20], dance.along(points, torch.tensor([1.5]))[0])
    torch.testing.assert_close(latents[35], points[2])


def test_a_longer_sound_begins_with_the_same_dance():
    one = dance.schedule([0.2, 0.7], [0.9] * 30, 12, CLASSES, LATENT, 0)
    two = dance.schedule([0.2, 0.7], [0.9] * 90, 12, CLASSES, LATENT, 0)
    assert torch.equal(one[0], two[0][:, :30])
    assert torch.equal(one[1], two[1][:30])
    other = dance.schedule([0.2, 0.7], [0.9] * 30, 12, CLASSES, LATENT, 1)
    assert not torch.equal(one[1], other[1])


# --- frames ---------------------------------------------------------------------------------------


def test_frames_are_those_of_the_model_whatever_the_batch():
    labels, latents = dance.schedule([0.1, 0.5], [0.8] * 11, 12, CLASSES, LATENT, 0)
    model = Model()
    frames = dance.render(model, labels, latents, 4, 0.5)  # latents are scaled as those of the generators are drawn
    assert model.sizes == [4, 4, 3]
    assert frames.dtype == torch.uint8
    assert frames.shape == (11, 3, SIDE, SIDE)
    for k in range(11):
        image = model.parts(tuple(labels[:, k : k + 1]), 0.5 * latents[k : k + 1], truncation=0.5).image()
        assert (frames[k].int() - datasets.to_bytes(image)[0].int()).abs().max() <= 1


@pytest.mark.parametrize(("fps", "frames", "expected", "pause"), [(12, 30, 30, 80), (12, 120, 96, 80),
                                                                  (30, 270, 80, 100), (5, 20, 20, 200)])  # fmt: skip
def test_a_gif_is_short_and_keeps_the_time(tmp_path, fps, frames, expected, pause):
    pixels = torch.randint(256, (frames, 3, 8, 8), generator=experiment.generator(0, "t")).byte()
    assert dance.animate(tmp_path / "a.gif", pixels, fps) == expected
    with Image.open(tmp_path / "a.gif") as film:
        assert (film.n_frames, film.size) == (expected, (256, 256))
        assert film.info["duration"] == pause


def test_a_gif_of_large_images_is_made_smaller(tmp_path):
    dance.animate(tmp_path / "a.gif", torch.full((2, 3, 256, 256), 128).byte(), 10)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.size == (160, 160)


# --- ffmpeg ---------------------------------------------------------------------------------------


def program(folder, code):
    """An executable `ffmpeg` in Python; `out` is the file it should make, `here` the folder it lies in."""
    path = folder / "ffmpeg"
    path.write_text(f"#!{sys.executable}\nimport pathlib, shutil, sys\nhere = pathlib.Path({str(folder)!r})\n"
                    f"out = pathlib.Path(sys.argv[-1])\n{code}\n")  # fmt: skip
    path.chmod(0o755)


RECORDS = """(here / "stdin").write_bytes(sys.stdin.buffer.read())
(here / "arguments").write_text("\\n".join(sys.argv[1:]))
shutil.copy(sys.argv[len(sys.argv) - 1 - sys.argv[::-1].index("-i") + 1], here / "heard.wav")
out.write_bytes(b"a film")"""


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder that is the whole PATH, and another for temporary files."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "bin"


def film(tmp_path):
    frames = torch.randint(256, (7, 3, SIDE, 2 * SIDE), generator=experiment.generator(0, "t")).byte()
    samples = sound.tune(120, 0.5, 8000, experiment.generator(0, "tune"))
    return dance.film(tmp_path / "dance.mp4", frames, 14, samples, 8000), frames, samples


def test_ffmpeg_gets_frames_sound_and_arguments_and_leaves_nothing_behind(alone, tmp_path):
    program(alone, RECORDS)
    made, frames, samples = film(tmp_path)
    assert made
    assert (tmp_path / "dance.mp4").read_bytes() == b"a film"
    sent = torch.frombuffer(bytearray((alone / "stdin").read_bytes()), dtype=torch.uint8)
    assert torch.equal(sent.view(7, SIDE, 2 * SIDE, 3), frames.permute(0, 2, 3, 1))
    heard, rate = sound.read_wav(alone / "heard.wav")
    assert rate == 8000
    assert abs(heard - samples).max() <= 2**-16
    arguments = (alone / "arguments").read_text().split("\n")
    pairs = list(itertools.pairwise(arguments))
    for pair in (("-f", "rawvideo"), ("-pix_fmt", "rgb24"), ("-s", f"{2 * SIDE}x{SIDE}"), ("-r", "14"),
                 ("-i", "pipe:0"), ("-pix_fmt", "yuv420p")):  # fmt: skip
        assert pair in pairs
    assert arguments.index("pipe:0") > arguments.index("rgb24")  # options stand before the input they are of
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(("code", "match"), [
    ("sys.stdin.buffer.read(); print('first\\nUnknown encoder aac', file=sys.stderr); sys.exit(1)",
     r"ffmpeg could not make .*dance\.mp4 \(exit code 1\): Unknown encoder aac"),
    ("sys.exit(3)", r"could not make .*\(exit code 3\): it says nothing"),  # without reading what it is sent
    ("sys.stdin.buffer.read()", r"could not make .*\(exit code 0\): it says nothing"),
])  # fmt: skip
def test_a_failing_ffmpeg_is_one_line_and_keeps_the_earlier_film(alone, tmp_path, code, match):
    program(alone, code)
    (tmp_path / "dance.mp4").write_bytes(b"earlier")
    with pytest.raises(experiment.UserError, match=match) as error:
        film(tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "dance.mp4").read_bytes() == b"earlier"
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_ffmpeg_that_cannot_be_run_is_refused(alone, tmp_path):
    (alone / "ffmpeg").write_bytes(b"\x7fELF and no more")
    (alone / "ffmpeg").chmod(0o755)
    with pytest.raises(experiment.UserError, match=r"ffmpeg cannot be run: .*take it off the PATH"):
        film(tmp_path)


# --- the script -----------------------------------------------------------------------------------


@pytest.fixture
def model(monkeypatch):
    made = Model()
    monkeypatch.setattr(objects, "load", lambda run, device: made)
    return made


def test_the_script_dances_without_ffmpeg_and_always_alike(alone, tmp_path, call, model):
    options = ("--device", "cpu", "--seconds", 2, "--results")
    code, out, err = call("cgn.dance", *options, tmp_path / "one")
    assert (code, err) == (0, "")
    assert "dance.gif: 24 frames; 4 beats in 2.0 s" in out
    assert "no ffmpeg on the PATH" in out
    assert os.listdir(tmp_path / "one") == ["dance.gif"]
    call("cgn.dance", *options, tmp_path / "two")
    call("cgn.dance", "--seed", 1, *options, tmp_path / "three")
    one, two, three = ((tmp_path / name / "dance.gif").read_bytes() for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_the_script_dances_to_a_file_and_films(alone, tmp_path, call, model):
    program(alone, RECORDS)
    (tmp_path / "a.wav").write_bytes(sound.wav_bytes(sound.tune(150, 3, 8000, experiment.generator(0, "t")), 8000))
    code, out, _ = call("cgn.dance", "--sound", tmp_path / "a.wav", "--seconds", 1.6, "--fps", 25, "--results",
                        tmp_path, "--device", "cpu")  # fmt: skip
    assert code == 0
    assert "4 beats in 1.6 s" in out
    assert "dance.mp4: 40 frames with the sound" in out
    assert len((alone / "stdin").read_bytes()) == 40 * 3 * SIDE**2
    assert len(sound.read_wav(alone / "heard.wav")[0]) == 1.6 * 8000


@pytest.mark.parametrize(("options", "match"), [
    (("--sound", "none.wav"), "cannot read the sound none.wav: No such file"), (("--fps", 0), "--fps must be a whole"),
    (("--seconds", 601), "--seconds must be above 0 and up to 600"), (("--truncation", 0), "--truncation must be"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(tmp_path, call, model, options, match):
    code, _, err = call("cgn.dance", *options, "--results", tmp_path)
    assert code == 2
    assert match in err
    assert err.count("\n") == 1
    assert list(Path(tmp_path).iterdir()) == []

"""Sound: files bit by bit, loudness of known waves, beats of clicks whose times are known, refusals."""

import struct
import wave

import numpy
import pytest

import experiment
from cgn import sound
from experiment import UserError

RATE = 22_050


def clicks(bpm, seconds=8.0, rate=RATE, start=0.3):
    """(samples, times) of short clicks of 1 kHz."""
    times = numpy.arange(start, seconds - 0.05, 60 / bpm)
    moments = numpy.arange(round(0.02 * rate)) / rate
    click = numpy.sin(2000 * numpy.pi * moments) * numpy.exp(-200 * moments)
    samples = numpy.zeros(round(seconds * rate))
    for time in times:
        at = round(time * rate)
        samples[at : at + len(click)] += click
    return samples, times


def riff(*chunks):
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def form(code, channels, rate, width, extra=b""):
    block = channels * width
    return b"fmt ", struct.pack("<HHIIHH", code, channels, rate, rate * block, block, 8 * width) + extra


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "low", "high"), [(1, 0, 255), (2, -(2**15), 2**15 - 1), (3, -(2**23), 2**23 - 1),
                                                    (4, -(2**31), 2**31 - 1)])  # fmt: skip
def test_every_bit_of_pcm_arrives(tmp_path, width, low, high):
    """Written by Python's wave from whole numbers; what is read is those numbers, scaled by a power of two."""
    numbers = [low, high, low + 1, 0, 1, high // 3, low // 3]
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(8000)
        file.writeframes(b"".join(n.to_bytes(width, "little", signed=width > 1) for n in numbers))
    samples, rate = sound.read_wav(tmp_path / "a.wav")
    middle, half = (128, 128) if width == 1 else (0, 2 ** (8 * width - 1))
    assert rate == 8000
    assert [value * half + middle for value in samples] == numbers
    assert samples.min() >= -1
    assert samples.max() <= 1


@pytest.mark.parametrize("width", [4, 8])
def test_floats_arrive_and_what_is_too_loud_is_cut(tmp_path, width):
    values = numpy.array([0.1, -1.0, 2.0**-20, 1.5], f"<f{width}")
    data = riff(form(3, 1, 44_100, width), (b"fact", b"\4\0\0\0"), (b"data", values.tobytes()))
    (tmp_path / "a.wav").write_bytes(data)
    samples, rate = sound.read_wav(tmp_path / "a.wav")
    assert rate == 44_100
    assert samples.tolist() == [float(values[0]), -1.0, 2.0**-20, 1.0]


def test_the_extensible_form_odd_chunks_and_an_open_end_are_read(tmp_path):
    extra = struct.pack("<HHI", 22, 16, 4) + struct.pack("<H", 1) + b"\0" * 14
    data = numpy.array([[100, 300], [-400, 200]], "<i2").tobytes()
    whole = riff((b"LIST", b"odd"), form(0xFFFE, 2, 48_000, 2, extra), (b"data", data))
    piped = whole.replace(b"data" + struct.pack("<I", 8), b"data" + struct.pack("<I", 0xFFFFFFFF))
    for bytes_ in (whole, piped):
        (tmp_path / "a.wav").write_bytes(bytes_)
        samples, rate = sound.read_wav(tmp_path / "a.wav")
        assert rate == 48_000
        assert (samples * 2**15).tolist() == [200, -100]  # the mean of both channels


def test_a_written_file_is_read_again(tmp_path):
    samples = numpy.array([0, 0.5, -1, 2**-15, 32767 / 32768])
    (tmp_path / "a.wav").write_bytes(sound.wav_bytes(samples, 11_025))
    again, rate = sound.read_wav(tmp_path / "a.wav")
    assert (again.tolist(), rate) == (samples.tolist(), 11_025)
    (tmp_path / "a.wav").write_bytes(sound.wav_bytes(numpy.array([1.0]), 11_025))
    assert sound.read_wav(tmp_path / "a.wav")[0].tolist() == [32767 / 32768]  # full scale does not wrap around


PCM16 = riff(form(1, 1, 8000, 2), (b"data", b"\1\0" * 100))


@pytest.mark.parametrize(("data", "match"), [
    (b"", "not a WAV file"), (b"ID3\4" + b"\0" * 60, "not a WAV file"),
    (PCM16[:-7], "cut off: 200 bytes are announced and 193 are there"), (PCM16[:30], "cut off"),
    (PCM16[:36], "cut off: it has no sound"), (riff((b"data", b"\0\0")), "cut off: it has no format"),
    (riff(form(1, 1, 8000, 2), (b"data", b"")), "no sound"),
    (riff(form(85, 1, 8000, 2), (b"data", b"\0\0")), "MP3 of 16 bits, .* save it as 16-bit PCM"),
    (riff(form(7, 1, 8000, 1), (b"data", b"\0\0")), "mu-law of 8 bits"),
    (riff(form(999, 1, 8000, 1), (b"data", b"\0\0")), "codec 999"),
    (riff(form(1, 0, 8000, 2), (b"data", b"\0\0")), "0 channels"),
    (riff(form(1, 1, 0, 2), (b"data", b"\0\0")), "at 0 Hz"),
    (riff(form(1, 1, 8000, 5), (b"data", b"\0" * 5)), "PCM of 40 bits"),
    (riff(form(3, 1, 8000, 4), (b"data", struct.pack("<f", numpy.nan))), "no finite numbers"),
])  # fmt: skip
def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path, data, match):
    (tmp_path / "bad.wav").write_bytes(data)
    with pytest.raises(UserError, match=rf"bad\.wav .*{match}") as error:
        sound.read_wav(tmp_path / "bad.wav")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the sound .*none\.wav: No such file"):
        sound.read_wav(tmp_path / "none.wav")
    with pytest.raises(UserError, match=r"cannot read the sound .*: Is a directory"):
        sound.read_wav(tmp_path)


# --- loudness -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("amplitude", "expected"), [(1.0, 1 - 3.0103 / 40), (0.1, 1 - 23.0103 / 40), (1e-3, 0.0)])
def test_loudness_of_a_sine_is_its_root_mean_square(amplitude, expected):
    """A sine of amplitude a has power a^2 / 2: 3.01 dB below a^2. -40 dB is 0, full scale 1."""
    samples = amplitude * numpy.sin(2 * numpy.pi * 100 * numpy.arange(8000) / 8000)
    found = sound.loudness(samples, 8000, 10)
    assert found == pytest.approx([expected] * 10, abs=1e-5)


def test_loudness_is_that_of_each_frame_alone():
    samples = numpy.concatenate([numpy.full(300, level) for level in (1.0, 0.0, 0.1, 0.01, 10**-0.5)])
    assert sound.loudness(samples, 3000, 10) == pytest.approx([1, 0, 0.5, 0, 0.75])
    assert sound.loudness(samples[:1350], 3000, 10) == pytest.approx([1, 0, 0.5, 0, 0.75])  # the last one is shorter


def test_a_frame_need_not_be_a_whole_number_of_samples():
    samples = numpy.random.default_rng(0).uniform(-1, 1, 22_050)
    found = sound.loudness(samples, 22_050, 12)
    third = samples[round(2 * 22_050 / 12) : round(3 * 22_050 / 12)]
    assert len(found) == 12
    assert found[2] == pytest.approx(1 + 20 * numpy.log10(numpy.sqrt((third**2).mean())) / 40)


def test_the_tune_is_as_loud_as_its_bars():
    samples = sound.tune(120, 8, RATE, experiment.generator(0, "tune"))
    bars = sound.loudness(samples, RATE, 1).reshape(4, 2).mean(1)  # a bar has two seconds
    assert numpy.argsort(bars).tolist() == numpy.argsort(sound.SWELL).tolist()
    for bar, swell in zip(bars, sound.SWELL, strict=True):
        assert bar - bars[2] == pytest.approx(20 * numpy.log10(swell) / 40, abs=0.03)


# --- beats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, RATE, 44_100])
@pytest.mark.parametrize("bpm", [90, 120, 150])
@pytest.mark.parametrize("start", [0.0, 0.377])
def test_beats_are_the_clicks(bpm, rate, start):
    samples, times = clicks(bpm, rate=rate, start=start)
    found = sound.beats(samples, rate)
    assert len(found) == len(times)
    assert abs(numpy.median(numpy.diff(found)) * bpm / 60 - 1) < 0.02
    assert abs(found - times).max() < 0.03


def test_loudness_does_not_move_beats():
    samples, times = clicks(120)
    swelling = samples * numpy.linspace(0.05, 1, len(samples))
    assert abs(sound.beats(swelling, RATE) - times).max() < 0.03
    numpy.testing.assert_array_equal(sound.beats(samples / 64, RATE), sound.beats(samples, RATE))


def test_a_missing_click_is_bridged_and_silence_at_the_end_has_no_beat():
    samples, times = clicks(120)
    samples[round((times[6] - 0.1) * RATE) : round((times[6] + 0.1) * RATE)] = 0
    samples[round((times[11] - 0.1) * RATE) :] = 0
    found = sound.beats(samples, RATE)
    assert len(found) == 11
    assert abs(found - times[:11]).max() < 0.03


@pytest.mark.parametrize("bpm", [100, 120, 140])
def test_the_beats_of_a_tune_are_found(bpm):
    times = numpy.arange(0, 8, 60 / bpm)
    found = sound.beats(sound.tune(bpm, 8, RATE, experiment.generator(1, "tune")), RATE)
    assert len(found) == len(times)
    assert abs(found - times).max() < 0.03


def test_the_prior_decides_between_a_tempo_and_its_half():
    """The same train of beginnings fits 100 and 50 beats a minute, 160 and 80: what is nearer to 120 is taken."""
    for frames, expected in ((60, 60), (37, 37), (25, 50)):  # 100, 162 and 240 a minute
        strength = numpy.zeros(900)
        strength[::frames] = 1
        assert sound.period(strength) == expected


@pytest.mark.parametrize("samples", [numpy.zeros(0), numpy.ones(30), numpy.zeros(4 * RATE),
                                     numpy.sin(2764 * numpy.arange(4 * RATE) / RATE)],
                         ids=["nothing", "a moment", "silence", "a steady tone"])  # fmt: skip
def test_without_beginnings_there_are_no_beats(samples):
    assert sound.beats(samples, RATE).shape == (0,)


@pytest.mark.parametrize("seconds", [0.2, 0.48, 0.5, 0.51, 0.75, 1.0])
def test_short_sounds_have_few_beats_and_do_no_harm(seconds):
    found = sound.beats(clicks(120, seconds, start=0.1)[0], RATE)
    assert len(found) in ((0, 2) if seconds > 0.6 else (0,))
    assert (found >= 0).all()


def test_a_tune_is_its_seed_and_within_range():
    make = lambda seed, seconds=4: sound.tune(120, seconds, RATE, experiment.generator(seed, "tune"))
    assert make(0).shape == (4 * RATE,)
    assert abs(make(0)).max() == pytest.approx(0.9)
    numpy.testing.assert_array_equal(make(0), make(0))
    assert not numpy.array_equal(make(0), make(1))
    assert make(0, 0.001).shape == (22,)

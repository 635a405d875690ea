"""Sound as numbers: WAV files read and written, loudness, beats, and a tune for those who have no file at hand.

Beats are found as in Ellis 2007, "Beat tracking by dynamic programming" (Journal of New Music Research 36, 51-60): how
strongly something begins at each moment, one tempo from the autocorrelation of that, and the sequence of beats that
best keeps the tempo and meets the beginnings. Samples are float64, mono, in [-1, 1].
"""

import io
import struct
import wave
from pathlib import Path

import numpy
import torch

from experiment import UserError

# --- files --------------------------------------------------------------------------------------

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # format codes
CODES = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 80: "MPEG", 85: "MP3"}
OPEN_END = 0xFFFFFFFF  # the length that a program writes into a pipe, where it cannot go back to set it
RATES = (1_000, 768_000)  # samples a second, within which all that follows makes sense


def read_wav(path):
    """(samples (n,) float64 in [-1, 1], rate) of a WAV file; channels are averaged.

    PCM of 8, 16, 24 and 32 bits and floats of 32 and 64 bits, both also in the "extensible" form. Python's `wave`
    refuses floats, and before 3.12 the extensible form, so the chunks are read here. Raises UserError for a file that
    is missing, no WAV, of another codec, cut off or without sound.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the sound {path}: {error.strerror}; name a WAV file") from None
    form, sound = _chunks(path, data)
    code, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    if code == EXTENSIBLE and len(form) >= 26:
        code = struct.unpack_from("<H", form, 24)[0]
    width = block // max(channels, 1)
    kind = {PCM: "PCM", FLOAT: "float"}.get(code, CODES.get(code, f"codec {code}"))
    known = {PCM: (1, 2, 3, 4), FLOAT: (4, 8)}.get(code, ())
    if width not in known or block != width * channels or not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"{path} is {kind} of {bits} bits, {channels} channels at {rate:,} Hz, which is not read; save "
                        "it as 16-bit PCM WAV")
    if len(sound) < block:
        raise UserError(f"{path} holds no sound: its data are empty")
    numbers = _numbers(sound[: len(sound) - len(sound) % block], code, width)
    if not numpy.isfinite(numbers).all():
        raise UserError(f"{path} holds samples that are no finite numbers; save it again")
    return numbers.clip(-1, 1).reshape(-1, channels).mean(1), rate  # floats may be louder than a device can play


def _chunks(path, data):
    """(format, data) of a WAV file's bytes."""
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise UserError(f"{path} is not a WAV file; convert it to one (16-bit PCM)")
    place, found = 12, {}
    while place + 8 <= len(data) and b"data" not in found:
        name, size = struct.unpack_from("<4sI", data, place)
        place += 8
        size = len(data) - place if name == b"data" and size == OPEN_END else size
        if place + size > len(data):
            raise UserError(f"{path} is cut off: {size:,} bytes are announced and {len(data) - place:,} are there")
        found[name] = data[place : place + size]
        place += size + size % 2  # chunks begin at even bytes
    if len(found.get(b"fmt ", b"")) < 16 or b"data" not in found:
        raise UserError(f"{path} is cut off: it has no {'sound' if b'fmt ' in found else 'format'} in it")
    return found[b"fmt "], found[b"data"]


def _numbers(sound, code, width):
    """Samples of all channels, one after another, as float64."""
    if code == FLOAT:
        return numpy.frombuffer(sound, f"<f{width}").astype(float)
    if width == 1:
        return (numpy.frombuffer(sound, numpy.uint8).astype(float) - 128) / 128  # 8 bits are unsigned
    if width == 3:  # laid into the upper three bytes of four
        wide = numpy.zeros((len(sound) // 3, 4), numpy.uint8)
        wide[:, 1:] = numpy.frombuffer(sound, numpy.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    return numpy.frombuffer(sound, f"<i{width}") / 2.0 ** (8 * width - 1)


def wav_bytes(samples, rate):
    """A WAV file of 16-bit PCM of samples (n,) in [-1, 1]."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 2**15).round().clip(-(2**15), 2**15 - 1).astype("<i2").tobytes())
    return buffer.getvalue()


# --- loudness -------------------------------------------------------------------------------------

QUIET = -40.0  # dB below full scale that count as silence


def loudness(samples, rate, fps):
    """Loudness (frames,) in [0, 1], one value a frame: the root mean square in dB, QUIET at 0 and full scale at 1.

    Frame k is the sound between k / fps and (k + 1) / fps seconds; the last one may be shorter.
    """
    frames = max(1, int(numpy.ceil(round(len(samples) * fps / rate, 6))))
    ends = numpy.minimum(numpy.round(numpy.arange(frames + 1) * rate / fps).astype(int), len(samples))
    power = numpy.diff(numpy.concatenate([[0.0], numpy.cumsum(samples**2)])[ends]) / numpy.diff(ends).clip(1)
    level = 10 * numpy.log10(power.clip(1e-12))
    return (1 - level / QUIET).clip(0, 1)


# --- beats ----------------------------------------------------------------------------------------

HOP = 0.01  # seconds between spectra
WINDOW = 0.025  # seconds that a spectrum sees
RANGE = 1e-3  # 60 dB below the strongest are the floor of the logarithm
TEMPO, OCTAVES = 120.0, 1.0  # centre, in beats a minute, and deviation of the prior over tempi
SLOWEST, FASTEST = 40.0, 240.0  # beats a minute that are looked for
FAINT = 0.2  # of the mean strength of beats: fainter ones at the ends are in silence
TIGHT = 100.0  # weight of keeping the tempo against meeting the beginnings


def beats(samples, rate):
    """Times (beats,) in seconds at which one would tap; none where fewer than two things begin."""
    strength = onsets(samples, rate)
    if len(strength) < 2 * 60 / FASTEST / HOP or strength.std() == 0:
        return numpy.zeros(0)
    strength = strength / strength.std()
    found = _track(strength, period(strength))
    return (HOP * (found - 0.5)).clip(0) if len(found) > 1 else numpy.zeros(0)


def onsets(samples, rate):
    """How strongly something begins in the HOP seconds before each multiple of HOP, (frames,).

    Half-wave rectified spectral flux: what rises from one spectrum to the next, in the logarithm of the magnitude,
    summed over frequencies. A beginning is seen as soon as the end of the window has reached it.
    """
    size = round(WINDOW * rate)
    ends = (numpy.arange(-1, int(len(samples) / rate / HOP) + 1) * HOP * rate).round().astype(int)
    padded = numpy.pad(samples.astype(numpy.float32), (2 * size, 0))
    windows = numpy.lib.stride_tricks.sliding_window_view(padded, size)  # a view: copied some at a time
    shape, parts = numpy.hanning(size).astype(numpy.float32), numpy.array_split(ends + size, 1 + len(ends) // 2000)
    spectra = numpy.concatenate([numpy.abs(numpy.fft.rfft(windows[part] * shape, axis=1)) for part in parts])
    logs = numpy.log(spectra.clip(max(RANGE * spectra.max(), 1e-12)))
    return numpy.diff(logs, axis=0).clip(0).sum(1)


def period(strength):
    """The tempo as frames between beats: the best lag of the autocorrelation under a log-normal prior around TEMPO."""
    n = len(strength)
    power = numpy.abs(numpy.fft.rfft(strength - strength.mean(), 2 * n)) ** 2
    lags = numpy.arange(round(60 / FASTEST / HOP), min(round(60 / SLOWEST / HOP), n - 1) + 1)
    alike = numpy.fft.irfft(power)[lags]
    prior = numpy.exp(-0.5 * (numpy.log2(lags * HOP * TEMPO / 60) / OCTAVES) ** 2)
    return int(lags[(alike * prior).argmax()])


def _track(strength, lag):
    """Frames of the best sequence of beats about `lag` frames apart, faint ones at both ends left out.

    score(t) = strength(t) + max over s of score(s) - TIGHT log((t - s) / lag)^2, with s from 2 lags to half a lag
    before t; a beat without a good one before it begins a sequence.
    """
    strength = numpy.convolve(strength, numpy.exp(-0.5 * numpy.arange(-3, 4) ** 2), "same")  # beats may be off by 10 ms
    gaps = numpy.arange(max(1, round(lag / 2)), 2 * lag + 1)[::-1]
    costs = -TIGHT * numpy.log(gaps / lag) ** 2
    score, before = strength.copy(), numpy.full(len(strength), -1)
    for t in range(gaps[-1], len(strength)):
        places = t - gaps
        inside = numpy.searchsorted(places, 0)  # frames before the first do not exist
        reached = score[places[inside:]] + costs[inside:]
        best = int(reached.argmax())
        if reached[best] > 0:
            score[t] += reached[best]
            before[t] = places[inside + best]
    t = len(score) - lag + int(score[-lag:].argmax())  # the last beat is within the last period
    path = []
    while t >= 0:
        path.append(t)
        t = before[t]
    path = numpy.array(path[::-1])
    strong = numpy.flatnonzero(strength[path] > FAINT * numpy.sqrt((strength[path] ** 2).mean()))
    return path[strong[0] : strong[-1] + 1]


# --- a tune ---------------------------------------------------------------------------------------

SCALE = (0, 3, 5, 7, 10)  # minor pentatonic, in semitones
ROOT = 55.0  # Hz
SWELL = (0.35, 0.6, 1.0, 0.7)  # how loud each of four bars is


def tune(bpm, seconds, rate, stream):
    """Samples (n,) of drums and a bass line at `bpm` beats a minute, bars of four beats, louder and softer by bar.

    stream: a CPU torch.Generator, of noise and notes. Beat k is at 60 k / bpm seconds.
    """
    n, beat = round(seconds * rate), 60 / bpm
    count = int(seconds / beat) + 1
    noise = lambda length: torch.randn(round(length * rate), generator=stream, dtype=torch.float64).numpy()
    time = lambda length: numpy.arange(round(length * rate)) / rate
    turns = 50 * time(0.25) + 6 * (1 - numpy.exp(-time(0.25) / 0.03))  # of a kick: from 250 Hz down to 50
    kick = numpy.sin(2 * numpy.pi * turns) * _fall(0.25, rate, 12)
    snare = 0.5 * noise(0.15) * _fall(0.15, rate, 25)
    hat = 0.15 * numpy.diff(noise(0.05), prepend=0) * _fall(0.05, rate, 80)
    notes = torch.randint(len(SCALE), (count,), generator=stream).tolist()
    sound = numpy.zeros(n + rate)  # room for what rings on
    for k in range(count):
        pitch = ROOT * 2 ** (SCALE[notes[k]] / 12)
        bass = numpy.tanh(2 * numpy.sin(2 * numpy.pi * pitch * time(0.9 * beat))) * _fall(0.9 * beat, rate, 2 / beat)
        for after, part in ((0, snare if k % 2 else kick), (0, hat), (0.5, hat), (0, 0.3 * bass)):
            at = round((k + after) * beat * rate)
            fits = part[: max(0, len(sound) - at)]
            sound[at : at + len(fits)] += SWELL[k // 4 % len(SWELL)] * fits
    return (0.9 * sound[:n] / numpy.abs(sound[:n]).max(initial=1e-12)).clip(-1, 1)


def _fall(seconds, rate, speed):
    """An envelope that falls by a factor of e in 1 / speed seconds."""
    return numpy.exp(-speed * numpy.arange(round(seconds * rate)) / rate)

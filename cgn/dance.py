"""The counterfactual latent dance: a walk through labels and latents of a CGN, in time with a sound.

    python -m cgn.dance                # to a tune made here; results/cgn/dance.gif; 5 s, after cgn.train_objects
    python -m cgn.dance --sound FILE.wav --seconds 30 --fps 25

On every beat one mechanism (shape, object texture, background, in turn) goes over to another class, on every eighth all
three do; in between the latent moves along great circles, faster where the sound is louder, and rests in silence. The
same sound and seed give the same dance. Where an ffmpeg is on the PATH, dance.mp4 has the sound, too. The idea and its
name are those of the authors' blog post (Sauer 2021, "Counterfactual Generative Networks").
"""

import math
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F

import datasets
import experiment
import figures
import storage
from cgn import biggan, objects, sound

# --- what dances to what -------------------------------------------------------------------------
SOUND: Path | None = None  # a WAV file; by default a tune of drums and bass
SECONDS: Annotated[float, experiment.Check(lambda v: 0 < v <= 600, "above 0 and up to 600")] = 8.0  # of it, at most
FPS: Annotated[int, experiment.Check(lambda v: 1 <= v <= 60, "a whole number from 1 to 60")] = 12  # frames a second
RUN: Path = Path("runs/cgn_objects64")  # run folder of cgn.train_objects, or the published file
SEED: experiment.Index = 0  # names the streams of classes, latents and tune
TRUNCATION: experiment.Fraction = 1.0  # of the latents; below 1 images are more typical and less varied
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/cgn")  # where GIF and MP4 go

TUNE = (120, 22_050)  # beats a minute and samples a second of the tune
TOGETHER = 8  # beats from one on which all three classes change to the next: two bars
FADE = 0.15  # seconds in which a class gives way to another
SPEED = 1.0  # anchors a second that the latent passes at full loudness
BATCH = 16  # images at once
GIF_SECONDS, GIF_FPS = 8, 12  # at most: a GIF has no sound, and grows fast
GIF_SIDE, GIF_SMALL = 256, 160  # pixels of its frames: images up to half of GIF_SIDE are enlarged, others made smaller
VIDEO_SIDE = 512  # pixels of the MP4


def listen(path, seconds, seed):
    """(samples (n,), rate): at most so many seconds of a WAV file, or of the tune where path is None."""
    if path is None:
        bpm, rate = TUNE
        return sound.tune(bpm, seconds, rate, experiment.generator(seed, "tune")), rate
    samples, rate = sound.read_wav(path)
    return samples[: max(1, round(seconds * rate))], rate


# --- the walk ------------------------------------------------------------------------------------


def anchors(n, latent, seed, purpose):
    """n latents (n, latent) of truncation 1, each of a stream of its own: more of them change none."""
    streams = (experiment.generator(seed, f"{purpose}/{k}") for k in range(n))
    return torch.cat([biggan.truncated_noise(1, latent, 1.0, stream) for stream in streams])


def along(points, positions):
    """Latents (F, latent) at positions (F,) in [0, n - 1] on the path through points (n, latent), n at least 2.

    Between two points it is a great circle at constant speed, slerp (Shoemake 1985), as a straight line would pass
    through latents that are too short; points in one line have no such circle, and get the straight line.
    """
    first = positions.long().clamp(max=len(points) - 2)
    share = (positions - first).double()[:, None]
    one, two = points[first].double(), points[first + 1].double()
    angle = F.cosine_similarity(one, two)[:, None].clamp(-1, 1).acos()
    bent = angle.sin() > 1e-6
    size = torch.where(bent, angle.sin(), 1)
    left = torch.where(bent, ((1 - share) * angle).sin() / size, 1 - share)
    right = torch.where(bent, (share * angle).sin() / size, share)
    return (left * one + right * two).to(points.dtype)


def chosen(count, classes, seed):
    """Classes (count + 1, 3) of shape, object and background before the first beat and after each of `count`.

    Beat k moves mechanism k mod 3, or all of them where k is a multiple of TOGETHER, each to another class.
    """
    stream = experiment.generator(seed, "dance classes")
    start = torch.randint(classes, (1, 3), generator=stream)
    steps = torch.randint(1, max(2, classes), (count, 3), generator=stream)
    beat = torch.arange(count)[:, None]
    moves = (beat % 3 == torch.arange(3)) | (beat % TOGETHER == 0)
    return torch.cat([start, start + (steps * moves).cumsum(0)]) % classes


def schedule(beats, loudness, fps, classes, latent, seed):
    """(soft labels (3, F, classes), latents (F, latent)), one for each frame.

    beats: times in seconds, ascending; loudness (F,) in [0, 1], both as of sound.py. Labels are shares that sum to 1:
    from a beat on, within FADE seconds, they go over to the next class, slowly at both ends (smoothstep). The latent
    moves SPEED loudness anchors a second.
    """
    beats, loudness = (torch.as_tensor(values, dtype=torch.float64) for values in (beats, loudness))
    times = (torch.arange(len(loudness), dtype=torch.float64) + 0.5) / fps  # the middle of each frame
    done = ((times[:, None] - beats) / FADE).clamp(0, 1)  # (F, beats)
    done = done.square() * (3 - 2 * done)
    edges = torch.ones(len(times), 1, dtype=torch.float64)
    shares = torch.cat([edges, done], 1) - torch.cat([done, 0 * edges], 1)  # of each class in turn, (F, beats + 1)
    stages = F.one_hot(chosen(len(beats), classes, seed), classes).double()  # (beats + 1, 3, classes)
    labels = torch.einsum("fk,kmc->mfc", shares, stages).float()
    ways = SPEED / fps * (loudness.cumsum(0) - loudness)  # gone before each frame, in anchors
    points = anchors(int(ways[-1]) + 2, latent, seed, "dance anchor")
    return labels, along(points, ways)


@torch.no_grad()
def render(model, labels, latents, batch, truncation):
    """Images (F, 3, H, W), uint8, on the CPU, of soft labels (3, F, classes) and latents (F, latent) on one device.

    latents: of truncation 1; they are scaled by the truncation that the model is asked for.
    """
    pairs = zip(labels.split(batch, 1), (truncation * latents).split(batch), strict=True)
    made = [datasets.to_bytes(model.parts(tuple(y), z, truncation=truncation).image()) for y, z in pairs]
    return torch.cat(made).cpu()


# --- files ---------------------------------------------------------------------------------------


def animate(path, frames, fps):
    """A GIF of the beginning of frames (F, 3, H, W), uint8, of at most GIF_SECONDS at GIF_FPS; returns its length."""
    step = math.ceil(fps / GIF_FPS)
    shown = frames[: GIF_SECONDS * fps : step].float() / 255
    small = shown.shape[3] <= GIF_SIDE // 2
    shown = shown if small else F.interpolate(shown, GIF_SMALL, mode="area")
    figures.animation(path, shown, GIF_SIDE if small else GIF_SMALL, round(1000 * step / fps))
    return len(shown)


def film(path, frames, fps, samples, rate):
    """An MP4 of frames (F, 3, H, W), uint8, with the sound; returns whether there is an ffmpeg that can make it.

    Frames go through a pipe, the sound through a file that is taken away again. Raises UserError, with what ffmpeg
    says, where it fails; an earlier film is kept then.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        return False
    height, width = frames.shape[2:]
    with tempfile.TemporaryDirectory() as folder:
        heard, made = Path(folder) / "sound.wav", Path(folder) / "film.mp4"
        heard.write_bytes(sound.wav_bytes(samples, rate))
        command = [program, "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
                   "-r", str(fps), "-i", "pipe:0", "-i", str(heard), "-vf", f"scale={VIDEO_SIDE}:-2:flags=neighbor",
                   "-pix_fmt", "yuv420p", "-c:a", "aac", "-movflags", "+faststart", str(made)]  # fmt: skip
        try:
            done = subprocess.run(command, input=frames.permute(0, 2, 3, 1).numpy().tobytes(), capture_output=True)
        except OSError as error:
            raise experiment.UserError(f"{program} cannot be run: {error.strerror}; take it off the PATH to go "
                                       "without") from None
        if done.returncode or not made.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
            raise experiment.UserError(f"{program} could not make {path} (exit code {done.returncode}): {said[-1]}")
        storage.write_atomically(path, made.read_bytes())
    return True


def main(sound, seconds, fps, run, seed, truncation, device, results):
    device = experiment.pick_device(device)
    samples, rate = listen(sound, seconds, seed)
    model = objects.load(run, device)
    beats, loudness = hear(samples, rate, fps)
    labels, latents = schedule(beats, loudness, fps, model.classes, model.latent, seed)
    frames = render(model, labels.to(device), latents.to(device), BATCH, truncation)
    shown = animate(Path(results) / "dance.gif", frames, fps)
    print(f"{Path(results) / 'dance.gif'}: {shown} frames; {len(beats)} beats in {len(samples) / rate:.1f} s")
    made = film(Path(results) / "dance.mp4", frames, fps, samples, rate)
    print(f"{Path(results) / 'dance.mp4'}: {len(frames)} frames with the sound" if made else
          "no ffmpeg on the PATH: dance.mp4, the film with the sound, is left out")


def hear(samples, rate, fps):
    """(beats in seconds, loudness of each frame)."""
    return sound.beats(samples, rate), sound.loudness(samples, rate, fps)


if __name__ == "__main__":
    experiment.run(main)

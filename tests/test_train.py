"""Training: what it minimises, that it resumes to the same bytes, that it stops in time."""

import math
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, shell

import architecture
import catalogue
import classifiers
import datasets
import experiment
import recipes
import stand_ins
import storage
import tasks
import train
from experiment import UserError

CPU = torch.device("cpu")
SMALL = {"model": "vae", "data": "mnist", "seed": 0} | recipes.for_pair("vae", "mnist")
SMALL |= {"n": 48, "n_validation": 16, "epochs": 3}


def tensors(state, name=""):
    """{path: tensor or number} of everything in a checkpoint."""
    if isinstance(state, dict):
        return {key: value for k, v in state.items() for key, value in tensors(v, f"{name}/{k}").items()}
    if isinstance(state, list):
        return tensors(dict(enumerate(state)), name)
    return {name: state}


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def timeless(path):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in storage.read_lines(path / "log.jsonl")]


def test_a_run_writes_what_it_promises(tmp_path):
    best, trained = train.train(tmp_path / "run", SMALL, CPU, 1)
    assert trained
    lines = storage.read_lines(tmp_path / "run/log.jsonl")
    assert [line.get("epoch") for line in lines] == [1, 2, 3, None]
    assert lines[-1]["event"] == "finished"
    assert lines[2]["bce"] < lines[0]["bce"]
    assert best["epoch"] == min(lines[:3], key=lambda line: line["validation"])["epoch"] == lines[-1]["best_epoch"]
    assert lines[0]["validation"] == pytest.approx(lines[0]["validation_bce"] + lines[0]["validation_kl"])
    assert list((tmp_path / "run/tensorboard").glob("events*"))
    model, options, epochs = train.load_vae(tmp_path / "run", None, CPU)
    assert options == SMALL | {"held_out": (0,)}
    assert epochs == best["epoch"]
    _, validation = datasets.training_split((0,), 48, 16, 0)
    assert sum(train.validate(model, validation).values()) == pytest.approx(best["validation"], rel=1e-6)


def test_the_same_command_reuses_a_finished_run_and_other_options_are_refused(tmp_path):
    first, _ = train.train(tmp_path / "run", SMALL, CPU, 1)
    log = (tmp_path / "run/log.jsonl").read_text()
    (tmp_path / "run/ckpt/last.pt").unlink()  # as in a fresh clone, where only best.pt is committed
    again, trained = train.train(tmp_path / "run", SMALL, CPU, 1)
    assert not trained
    assert same(first, again)
    assert (tmp_path / "run/log.jsonl").read_text() == log
    with pytest.raises(UserError, match=r"made with lr=0.001, not 0.1"):
        train.train(tmp_path / "run", SMALL | {"lr": 0.1}, CPU, 1)


def test_one_step_is_adam_on_the_summed_negative_elbo():
    digits, _ = datasets.training_split((0,), 8, 0, 0)
    ours, _ = train.build("vae", 0, CPU)
    theirs, _ = train.build("vae", 0, CPU)
    train.learn_epoch(ours, train.adam(ours, 1e-3), digits, 8, seed=0, epoch=1)
    eps = torch.randn(8, 20, generator=experiment.generator(0, "noise/1"))
    optimizer = torch.optim.Adam(theirs.parameters(), 1e-3)
    order = torch.randperm(8, generator=experiment.generator(0, "order/1"))
    sum(theirs.loss(digits.images[order], eps[order]).values()).sum().backward()
    optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_seeds_decide_everything_and_global_state_nothing():
    digits, _ = datasets.training_split((0,), 16, 0, 0)

    def learned(seed, disturbance):
        torch.manual_seed(disturbance)
        model, _ = train.build("vae", seed, CPU)
        torch.rand(disturbance)
        train.learn_epoch(model, train.adam(model, 1e-3), digits, 8, seed, 1)
        return model.fc_mu.weight

    assert torch.equal(learned(0, 1), learned(0, 2))
    assert not torch.equal(learned(0, 1), learned(1, 1))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    real = architecture.VAE.loss
    monkeypatch.setattr(architecture.VAE, "loss", lambda self, x, eps=None: real(self, x, eps) | (
        {"kl": real(self, x, eps)["kl"] * torch.nan} if self.training and train_epoch[0] > 2 else {}))
    train_epoch = [0]
    learn = train.learn_epoch
    monkeypatch.setattr(train, "learn_epoch", lambda *a, **k: (train_epoch.__setitem__(0, a[5]), learn(*a, **k))[1])
    with pytest.raises(UserError, match=r"kl became nan in epoch 3; the last good checkpoint is kept"):
        train.train(tmp_path / "run", SMALL, CPU, 1)
    state = storage.load_checkpoint(tmp_path / "run/ckpt/last.pt")
    assert state["epoch"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_mistake_in_a_new_run_folder_does_not_spoil_it(tmp_path):
    with pytest.raises(UserError, match="digits asked for"):
        train.train(tmp_path / "run", SMALL | {"n": 60_000}, CPU, 1)
    assert train.train(tmp_path / "run", SMALL, CPU, 1)[1]


def test_a_finished_run_that_lost_its_best_checkpoint_gets_it_back(tmp_path):
    first, _ = train.train(tmp_path / "run", SMALL, CPU, 1)
    (tmp_path / "run/ckpt/best.pt").unlink()
    again, _ = train.train(tmp_path / "run", SMALL, CPU, 1)
    assert same(first, again)


@pytest.mark.parametrize("state", [
    {"architecture": "resnet50", "model": {}}, {"model": "vae"},
    {"architecture": {"name": "vae", "settings": {}}, "model": []},
    {"architecture": {"name": "vae"}, "model": {}}, {"options": {}},
])  # fmt: skip
def test_checkpoints_of_other_projects_are_user_errors(tmp_path, model, state):
    storage.save_checkpoint(tmp_path / "x.pt", {"model": model.state_dict()} | state)
    with pytest.raises(UserError):
        train.load_vae(tmp_path, tmp_path / "x.pt", CPU)


def test_learning_rates():
    assert train.learning_rate(1.0, "constant", 7, 10) == 1.0
    assert train.learning_rate(1.0, "cosine", 0, 10) == 1.0
    assert train.learning_rate(1.0, "cosine", 5, 10) == pytest.approx(0.505)
    assert train.learning_rate(1.0, "cosine", 10, 10) == pytest.approx(0.01)


def test_distortion_is_the_identity_at_zero_and_moves_by_pixels(images):
    nothing = torch.zeros(12, 4)
    assert torch.allclose(tasks.Classification.distort(images, nothing), images, atol=1e-5)
    right = nothing.clone()
    right[:, 2] = -1  # two pixels
    assert torch.allclose(tasks.Classification.distort(images, right)[..., 2:], images[..., :-2], atol=1e-5)


def test_a_classifier_learns_and_dropout_is_seeded(tmp_path):
    options = {"model": "mnist_cnn", "data": "mnist", "seed": 0} | recipes.for_pair("mnist_cnn", "mnist")
    options |= {"n": 1500, "n_validation": 200, "epochs": 3, "batch": 20}
    first, _ = train.train(tmp_path / "a", options, CPU, 1)
    second, _ = train.train(tmp_path / "b", options, CPU, 1)
    assert same(first["model"], second["model"])
    lines = storage.read_lines(tmp_path / "a/log.jsonl")
    assert lines[2]["validation"] < 0.75 * lines[0]["validation"]
    assert isinstance(train.load_classifier(tmp_path / "a", CPU), classifiers.MnistCNN)


def test_a_checkpoint_of_a_bare_state_dict_is_the_default_recipe_s(tmp_path, model):
    storage.save_checkpoint(tmp_path / "bare.pt", model.state_dict())
    _, options, epochs = train.load_vae(tmp_path, tmp_path / "bare.pt", CPU)
    assert (options["n"], options["held_out"], epochs) == (512, (0,), 100)


SMALL_RUNS = {  # one of each task, small enough for seconds
    "realnvp": ("mnist", {"settings": {"shape": [1, 28, 28], "bits": 8, "couplings": 1, "hidden": 4, "blocks": 1}}),
    "glow": ("strokes", {"settings": {"shape": [1, 28, 28], "bits": 8, "levels": 2, "steps": 1, "hidden": 4}}),
    "dcgan": ("mnist", {"settings": {"shape": [1, 28, 28], "latent": 8, "width": 4}}),
    "progressive_gan": ("mnist", {"settings": {"shape": [1, 28, 28], "latent": 8, "width": 4}}),
    "image_vae": ("mnist", {"settings": {"shape": [1, 28, 28], "latent": 4, "width": 4}}),
    "residual_cnn": ("mnist", {}), "class_autoencoders": ("mnist", {}), "attribute_cnn": ("strokes", {}),
}  # fmt: skip


@pytest.mark.parametrize("model", SMALL_RUNS)
def test_every_kind_trains_measures_and_resumes_to_the_same_bytes(model, tmp_path):
    data, more = SMALL_RUNS[model]
    options = train.options_of(model, data, 0, None, None, {"n": 64, "n_validation": 32, "epochs": 3, "batch": 32})
    options |= more
    assert train.train(tmp_path / "whole", options, CPU, 1)[1]
    lines = storage.read_lines(tmp_path / "whole/log.jsonl")[:3]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    with storage.RunFolder(tmp_path / "killed", options) as folder:  # as if killed after the second epoch
        run = train.Run(folder, options, CPU)
        sets = catalogue.split(data, 64, 32, 0)
        killed = train.go_on(run, *sets, 1)
        next(killed), next(killed)
        killed.close()
    train.train(tmp_path / "killed", options, CPU, 1)
    for name in ("best.pt", "last.pt"):
        assert same(*(storage.load_checkpoint(tmp_path / part / "ckpt" / name) for part in ("whole", "killed")))
    net, found = train.load(tmp_path / "whole", model, data, CPU)
    assert found["epochs"] == 3
    test = catalogue.load(data, "test")[torch.arange(64)]
    measured = list(tasks.of(net).measure(net, test, 0))
    assert measured
    assert all(math.isfinite(value) and n > 0 for _, _, value, n in measured)
    with pytest.raises(UserError, match=f"holds {model} trained on {data}, and glow trained on crowds is needed"):
        train.load(tmp_path / "whole", "glow", "crowds", CPU)


def test_a_counter_learns_to_count():
    """A few passes over few crowds bring both of its errors down."""
    few = stand_ins.crowds("train", number=48)
    model, _ = train.build("counting_unet", 0, CPU, {"width": 4})
    optimizer = train.adam(model, 5e-3)
    first = train.learn_epoch(model, optimizer, few, 8, 0, 1)
    for epoch in range(2, 26):
        last = train.learn_epoch(model, optimizer, few, 8, 0, epoch)
    assert last["density"] < 0.8 * first["density"]
    assert last["count"] < 0.5 * first["count"]


def test_gradients_are_clipped_to_the_length():
    digits, _ = datasets.training_split((0,), 8, 0, 0)
    model, _ = train.build("realnvp", 0, CPU, {"couplings": 1, "hidden": 4, "blocks": 1})
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    model.train()
    tasks.of(model).step(model, optimizer, digits, torch.rand(8, 1, 28, 28), clip=0.01)
    assert math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters())) == pytest.approx(0.01, rel=0.01)


def test_validation_of_a_flow_has_noise_and_always_the_same():
    model, _ = train.build("realnvp", 0, CPU, {"couplings": 1, "hidden": 4, "blocks": 1})
    digits, _ = datasets.training_split((0,), 32, 0, 0)
    assert train.validate(model, digits) == train.validate(model, digits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("model", ["residual_cnn", "realnvp", "dcgan", "image_vae"])
def test_training_on_a_gpu_learns_as_on_the_cpu(model, tmp_path):
    """The first epoch's terms agree: classifiers and VAEs in bfloat16, flows and GANs in float32."""
    data, more = SMALL_RUNS[model]
    options = train.options_of(model, data, 0, None, None, {"n": 256, "n_validation": 64, "epochs": 1, "batch": 32})
    for device in ("cpu", "cuda"):
        train.train(tmp_path / device, options | more, torch.device(device), 1)
    here, there = (storage.read_lines(tmp_path / device / "log.jsonl")[0] for device in ("cpu", "cuda"))
    assert there["validation"] == pytest.approx(here["validation"], rel=0.1)
    assert train.load(tmp_path / "cuda", model, data, CPU)


def test_options_that_do_not_fit_are_refused():
    for model, data, given, words in (("glow", "strokes", {"held_out": (3,)}, "held-out is for VAEs on mnist"),):
        with pytest.raises(UserError, match=words):
            train.options_of(model, data, 0, None, None, given)
    with pytest.raises(UserError, match="no attributes"):
        train.options_of("glow", "mnist", 0, "Bald", None, {})
    with pytest.raises(UserError, match="no uncertain labels"):
        train.options_of("glow", "mnist", 0, None, "ones", {})
    assert train.options_of("attribute_cnn", "celeba", 0, None, None, {})["attribute"] == "Blond_Hair"


KILLED = ["train.py", "--n", "256", "--n-validation", "64", "--epochs", "14", "--batch", "32",
          "--checkpoint-every", "1", "--device", "cpu"]  # fmt: skip


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert shell(*KILLED, "--run", whole, "--results", tmp_path / "r").returncode == 0
    command = [sys.executable, *KILLED, "--run", str(killed), "--results", str(tmp_path / "r")]
    chance, log = random.Random(time.time_ns()), killed / "log.jsonl"
    kills = 0
    for target in sorted(chance.sample(range(0, 13), 3)):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < target):
            time.sleep(0.005)
        time.sleep(chance.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    assert shell(*KILLED, "--run", killed, "--results", tmp_path / "r").returncode == 0
    for name in ("best.pt", "last.pt"):
        assert same(*(storage.load_checkpoint(folder / "ckpt" / name) for folder in (whole, killed))), name
    assert timeless(whole) == timeless(killed)
    assert len(timeless(whole)) == 15


@pytest.mark.slow
def test_the_committed_vae_is_what_the_command_gives(tmp_path):
    """Trained afresh, validation loss and held-out error come out as committed, whatever the machine."""
    done = shell("train.py", "--run", tmp_path / "vae", "--results", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    fresh, committed = (
        {(row["split"], row["metric"]): row["value"] for row in storage.read_lines(path) if row["arm"] == "vae"}
        for path in (tmp_path / "r/metrics.jsonl", ROOT / "results/train/metrics.jsonl"))
    for key in (("validation", "loss"), ("held-out digits", "mse"), ("other digits", "mse")):
        assert fresh[key] == pytest.approx(committed[key], rel=0.05), key
    assert fresh["train", "seconds"] < 60 or torch.get_num_threads() < 2


# --- tasks ------------------------------------------------------------------------------------------


def test_validation_weighs_images_alike_whatever_their_batch():
    class Pixel(tasks.Task):
        @staticmethod
        def terms(model, batch, draws):
            return {"pixel": batch.images.flatten()}

    digits = datasets.Digits(torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1, 1), torch.zeros(3))
    assert Pixel.validate(None, digits, batch=2) == {"pixel": 3}  # and not the mean of 1.5 and 6


def test_the_error_of_a_counter_is_the_mean_absolute_one():
    class Adder:
        def count(self, x):
            return x.flatten(1).sum(1)

    images = torch.tensor([[255, 0], [255, 255]], dtype=torch.uint8).view(2, 1, 1, 2)
    crowds = stand_ins.Crowds(images, torch.tensor([3.0, 2.0]), None)
    assert list(tasks.Counting.measure(Adder(), crowds, 0)) == [("test", "mean_absolute_error", 1.0, 2)]


def test_a_test_set_of_odd_size_is_halved_without_the_last_image():
    class Black:
        def sample(self, n, stream):
            return torch.zeros(n, 1, 1, 1)

    test = datasets.Digits(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.9]).view(5, 1, 1, 1), torch.zeros(5))
    made, real = tasks.Adversarial.measure(Black(), test, 0)
    assert (made[2], made[3]) == (pytest.approx(((0.01 + 0.04 + 0.09 + 0.81) / 5) ** 0.5), 5)
    assert real == ("real against real", "sliced_wasserstein", pytest.approx(0.2), 2)


def test_a_training_that_stops_closes_its_log(tmp_path, monkeypatch):
    runs, made = [], train.Run

    def stop(*_, **__):
        raise UserError("stopped")

    monkeypatch.setattr(train, "Run", lambda *given: runs.append(made(*given)) or runs[0])
    monkeypatch.setattr(train, "learn_epoch", stop)
    with pytest.raises(UserError, match="stopped"):
        train.train(tmp_path / "run", SMALL, CPU, 1)
    assert runs[0].log.closed

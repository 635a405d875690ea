"""What a user can get wrong, and what a machine can do to a run: one line, exit code 2, earlier results untouched."""

import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import shell

import storage

VAE, CNN = "runs/vae_512_no0/ckpt/best.pt", "runs/mnist_cnn/ckpt/best.pt"
MISTAKES = [
    ("train", "--nosuch 1", "unrecognized arguments: --nosuch"),
    ("train", "--model gan", "no model is called 'gan'"),
    ("train", "--data cifar", "no data set is called 'cifar'"),
    ("train", "--lr 0", "--lr must be a finite number above 0"),
    ("train", "--held-out 10", "--held-out must be a digit"),
    ("train", "--run runs/vae_512_no0 --lr 0.1", "was made with lr=0.001, not 0.1"),
    ("train", "--run {tmp} --n 60000", "digits asked for"),
    ("train", "--run /dev/null/run", "cannot use /dev/null/run as a run folder"),
    ("train", "--model glow --data mnist --attribute Bald", "mnist has no attributes to choose from"),
    ("train", "--model counting_unet --data mnist", "counting_unet counts, and the images of mnist have classes"),
    ("train", "--model glow --data celeba --run {tmp}", "CelebA is not here: data/celeba/list_attr_celeba.txt is"),
    ("ablate", "--fraction 2", "--fraction must be a number above 0 and at most 1"),
    ("ablate", "--fraction 1e-9", "0 of 990,633 parameters cannot be marked"),
    ("ablate", "--threshold 1e9", "lower --threshold"),
    ("ablate", "--run nosuch", "no checkpoint at nosuch/ckpt/best.pt"),
    ("ablate", "--checkpoint data/mnist.npz", "cannot be read as a checkpoint"),
    ("ablate", "--checkpoint README.md", "README.md"),
    ("ablate", f"--checkpoint {CNN}", "no generative model is called 'mnist_cnn'"),
    ("ablate", "--samples 513", "only 512 training samples"),
    ("ablate", f"--checkpoint {VAE} --against retrain", "leave out --checkpoint"),
    ("constructive_counterfactuals", "--digit 5", "this model was trained on it; it has never seen 0"),
    ("constructive_counterfactuals", "--strength", "--strength names no strength"),
    ("constructive_counterfactuals", "--several 2 2", "--several names something twice"),
    ("targeted_finetuning", "--digit 5", "this model was trained on it"),
    ("targeted_finetuning", "--sizes", "--sizes names no size"),
    ("targeted_finetuning", "--threshold nan", "--threshold must be a finite number"),
    ("targeted_finetuning", "--test 10001", "the test set has 10000 digits"),
    ("reproduce", "--quick --published x", "leave out --quick"),
    ("ablate", "--against nobody", "--against must be one of random, retrain"),
    ("constructive_counterfactuals", "--strength inf", "--strength must be a finite number above 0"),
    ("constructive_counterfactuals", "--strength nan", "--strength must be a finite number above 0"),
    ("constructive_counterfactuals", "--digit 11", "--digit must be a digit"),
    ("constructive_counterfactuals", "--anchors 981", "fewer than the anchors"),
    ("constructive_counterfactuals", "--others 100000", "100000 digits asked for"),
    ("targeted_finetuning", "--classifier nosuch", "no checkpoint at nosuch/ckpt/best.pt"),
    ("targeted_finetuning", f"--checkpoint {CNN}", "no generative model"),
    ("targeted_finetuning", "--sizes 5924", "5923 training digits 0"),
    ("targeted_finetuning", "--sizes 512 --count 600", "only 512 new digits"),
    ("targeted_finetuning", "--device cuda", "this machine has none"),
    ("reproduce", "--published nosuch", "there is no vae/vae_l5_linear_512_no0.pt in it"),
    ("bench", "--repeats 0", "--repeats must be a whole number"),
    ("datasets", "--root /dev/null", "cannot"),
]


@pytest.mark.parametrize(("name", "words", "says"), MISTAKES, ids=[f"{m[0]} {m[1]}" for m in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(name, words, says, tmp_path, call, monkeypatch):
    import torch

    import datasets

    if name == "datasets":  # no minutes of fetching for a folder that cannot be written
        monkeypatch.setattr(datasets, "_fetch_mnist", lambda: datasets._read_mnist(datasets.ROOT / "mnist.npz"))
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    results = [] if name in ("datasets", "reproduce") else ["--results", tmp_path / "results"]
    code, _, err = call(name, *words.format(tmp=tmp_path / "run").split(), *results)
    assert code == 2
    assert says in err
    assert err.startswith(f"{name}.py: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "results/metrics.jsonl").exists()


def test_in_a_process_of_its_own_too():
    done = shell("ablate.py", "--fraction", "2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "ablate.py: --fraction must be a number above 0 and at most 1, not 2.0\n"


def test_an_empty_selection_in_a_worker_process_is_one_line_too(tmp_path, call):
    code, _, err = call("targeted_finetuning", "--sizes", 8, "--seeds", 1, "--sweep", "--test", 300, "--threshold", -9,
                        "--inception", "off", "--results", tmp_path)  # fmt: skip
    assert code == 2
    assert err.startswith("targeted_finetuning.py: the selection is empty or too large: no score is below -9")
    assert err.count("\n") == 1
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("damage", ["truncated", "another model"])
def test_a_damaged_run_is_one_line(tmp_path, call, damage):
    (tmp_path / "run/ckpt").mkdir(parents=True)
    data = Path(VAE).read_bytes()
    if damage == "truncated":
        (tmp_path / "run/ckpt/best.pt").write_bytes(data[:-100_000])
    else:
        state = storage.load_checkpoint(VAE)
        state["architecture"] = {"name": "linear_vae", "settings": {}}
        storage.save_checkpoint(tmp_path / "run/ckpt/best.pt", state)
    code, _, err = call("ablate", "--run", tmp_path / "run", "--results", tmp_path / "results")
    assert code == 2
    assert err.count("\n") == 1
    assert ("truncated" if damage == "truncated" else "not the weights of a LinearVAE") in err


def at_most(size):
    """For a child process: no file may grow beyond size bytes, which fails as a full disk does."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


SMALL = ("train.py", "--n", "64", "--n-validation", "32", "--epochs", "2", "--device", "cpu")


def test_a_full_disk_stops_training_with_one_line_and_the_same_command_goes_on(tmp_path):
    words = (*SMALL, "--run", tmp_path / "run", "--results", tmp_path / "results")
    done = shell(*words, preexec_fn=at_most(1_000_000))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"train.py: cannot write {tmp_path}/run/ckpt/best.pt")
    assert len(done.stderr.splitlines()) == 1
    assert list((tmp_path / "run/ckpt").iterdir()) == []
    assert shell(*words).returncode == 0
    assert (tmp_path / "run/ckpt/best.pt").is_file()


def test_a_full_disk_leaves_earlier_results_as_they_were(tmp_path):
    words = ("ablate.py", "--samples", "2", "--sweep", "--published", "0", "--sweep-samples", "1",
             "--results", tmp_path)  # fmt: skip
    assert shell(*words).returncode == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    done = shell(*words, "--seed", "1", preexec_fn=at_most(3_000))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr or "No space" in done.stderr
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_small_file_system(tmp_path):
    """A real full disk, where the system lets the test mount one."""
    mount = shutil.which("mount")
    where = tmp_path / "small"
    where.mkdir()
    words = [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", where]
    if not mount or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = shell(*SMALL, "--run", where / "run", "--results", tmp_path / "results")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith("No space left on device")
        assert list((where / "run/ckpt").iterdir()) == []
    finally:
        subprocess.run(["umount", where], check=True)

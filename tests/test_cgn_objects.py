"""The CGN of objects: what its parts are, each loss by hand, training, and generation."""

import functools
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy
import pytest
import torch
from conftest import ROOT, shell
from PIL import Image

import experiment
import storage
import trainer
from cgn import (
    biggan,
    folders,
    generate_objects,
    losses,
    objects,
    objects64,
    sets,
    train_gan,
    train_objects,
    train_saliency,
    u2net,
)
from cgn.mechanisms import Parts
from experiment import UserError

TINY = biggan.Config(64, 10, 8, 8, ((True, 4, 4), (True, 4, 2), (True, 2, 2)), attention=1, fold=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Small networks and few images: what is tested here does not depend on their size."""
    monkeypatch.setitem(biggan.CONFIGS, "tiny", TINY)
    monkeypatch.setitem(train_objects.PRESETS, "objects64", train_objects.PRESETS["objects64"] | {
        "config": "tiny", "steps": 3, "batch": 4})  # fmt: skip
    monkeypatch.setattr(train_objects, "MEASURED", 20)
    for kind, n in {"train": 60, "val": 30, "test": 30}.items():
        monkeypatch.setitem(objects64.NUMBER, kind, n)
    objects64._originals.cache_clear()
    yield
    objects64._originals.cache_clear()


def started(target=True):
    """A CGN whose mechanisms are copies of one BigGAN."""
    with experiment.seeded(0, "tests"):
        generator, saliency = biggan.build("tiny"), u2net.build("u2net64")
    biggan.measure_statistics(generator, experiment.generator(0, "statistics"), n=32)
    model = objects.ObjectsCGN("tiny", "u2net64", target=target)
    return model.start_from(generator, saliency) if target else model


def drawn(model, n=4):
    latents, labels = model.draw(n, experiment.generator(0, "latents"))
    return (labels,) * 3, latents


def checkpoint_of(path, name, settings, model):
    storage.save_checkpoint(path / "ckpt/best.pt", {"architecture": {"name": name, "settings": settings}, "options": {},
                                                    "model": model.state_dict()})  # fmt: skip
    return path


@pytest.fixture
def sources(tmp_path):
    """(arguments of train_objects) that name a BigGAN and a U2-Net in run folders."""
    model = started()
    generator = checkpoint_of(tmp_path / "biggan", "biggan", {"config": "tiny"}, model.biggan_GT)
    saliency = checkpoint_of(tmp_path / "u2net", "u2net64", {}, model.u2net)
    return "--generator", generator, "--saliency", saliency, "--results", tmp_path / "results"


@pytest.fixture
def run(tmp_path):
    """A run folder of a CGN."""
    model = started()
    bare = objects.ObjectsCGN("tiny", "u2net64")
    storage.load_weights(bare, {key: value for key, value in model.state_dict().items() if key in bare.state_dict()})
    return checkpoint_of(tmp_path / "cgn_tiny", "objects", bare.settings, bare)


# --- the model --------------------------------------------------------------------------------------------


def test_mechanisms_start_as_copies_of_the_target():
    model = started()
    labels, latents = drawn(model)
    made = model.make(labels, latents)
    for image in (made.premask, made.parts.object, made.parts.background):
        assert torch.equal(image, made.target)
    assert torch.equal(made.parts.mask, model.find(made.target).clamp(1e-4, 1 - 1e-4))
    assert torch.equal(made.left, model.find(made.target))
    assert made.parts.image().shape == (4, 3, 64, 64)


def test_each_mechanism_listens_to_its_own_label_only():
    model = started()
    with torch.no_grad():
        _, latents = drawn(model)
        labels = [torch.tensor(row) for row in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1])]
        parts = model.parts(labels, latents)
        other = labels[0].roll(1)
        for k, changed in enumerate(("mask", "object", "background")):
            found = model.parts([other if j == k else label for j, label in enumerate(labels)], latents)
            for name in Parts._fields:
                assert torch.equal(getattr(found, name), getattr(parts, name)) == (name != changed)


def test_soft_labels_of_one_class_are_that_class():
    model = started()
    labels, latents = drawn(model)
    hot = torch.nn.functional.one_hot(labels[0], 10).float()
    with torch.no_grad():
        assert torch.allclose(model.parts(labels, latents).image(), model.parts((hot,) * 3, latents).image(), atol=1e-5)


def test_training_mode_changes_nothing_and_only_mechanisms_learn():
    model = started().train()
    assert not any(part.training for part in model.modules())
    learning = {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert learning == set(objects.MECHANISMS)


def test_the_published_file_loads_with_and_without_target(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "PUBLISHED", ("tiny", "u2net64"))
    model = started()
    labels, latents = drawn(model)
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, tmp_path / "cgn.pth")
    again = objects.load(tmp_path / "cgn.pth", CPU)
    assert not again.standardise
    assert torch.equal(again.f_text(latents, labels[0]), model.f_text(latents, labels[0]))
    less = {key: value for key, value in model.state_dict().items() if not key.startswith("biggan_GT")}
    torch.save(less, tmp_path / "less.pth")
    assert not hasattr(objects.load(tmp_path / "less.pth", CPU), "biggan_GT")
    less.pop("f_bg.embeddings.weight")
    torch.save(less, tmp_path / "torn.pth")
    with pytest.raises(UserError, match=r"f_bg.embeddings.weight should be .* and is absent"):
        objects.load(tmp_path / "torn.pth", CPU)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "less.pth").read_bytes()[:2000])
    with pytest.raises(UserError, match="truncated"):
        objects.load(tmp_path / "cut.pth", CPU)
    with pytest.raises(UserError, match="no weights at"):
        objects.load(tmp_path / "absent.pth", CPU)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    checkpoint_of(tmp_path, "biggan", {"config": "tiny"}, biggan.build("tiny"))
    with pytest.raises(UserError, match="is of biggan"):
        objects.load(tmp_path, CPU)


# --- losses -----------------------------------------------------------------------------------------------


def hand_made(mask):
    """A Made of constants: target 0.5, object 1, background -1, nothing left of an object but 0.25 everywhere."""
    full = lambda value, channels=3: torch.full((2, channels, 64, 64), value)
    return objects.Made(full(0.5), full(0.0), Parts(full(mask, 1), full(1.0), full(-1.0)), full(0.25, 1))


def test_losses_by_hand():
    network, patches = losses.features("random", CPU), train_objects.PRESETS["objects64"]["patches"]
    weigh = lambda made, **weights: {name: float(value) for name, value in objects.objective(
        made, network, experiment.generator(0, "patches"), weights, patches).items()}  # fmt: skip
    assert weigh(hand_made(0.5), l1=100) == {"l1": pytest.approx(50)}  # composite 0, target 0.5
    assert weigh(hand_made(0.5), entropy=300) == {"entropy": pytest.approx(300)}  # one bit
    assert weigh(hand_made(0.02), area=500) == {"area": pytest.approx(40, rel=1e-4)}  # 0.08 too little
    assert weigh(hand_made(0.5), area=500) == {"area": 0}
    assert weigh(hand_made(0.5), background=2000) == {"background": pytest.approx(500)}
    assert weigh(hand_made(0.5), l1=0, entropy=0, gram=(0,), texture=()) == {}
    target, image = hand_made(0.5).target, torch.zeros(2, 3, 64, 64)
    gap = float((losses.gram(network(target)[0]) - losses.gram(network(image)[0])).abs().mean())
    assert weigh(hand_made(0.5), gram=(3.0,)) == {"gram": pytest.approx(3 * gap, rel=1e-4)}
    gap = float((losses.gram(network(target)[0]) - losses.gram(network(torch.ones_like(target))[0])).abs().mean())
    assert weigh(hand_made(0.5), texture=(2.0,)) == {"texture": pytest.approx(2 * gap, rel=1e-3)}  # patches are alike


def test_each_loss_teaches_the_mechanisms_that_it_is_of():
    preset = train_objects.PRESETS["objects64"]
    taught = {"entropy": {"f_shape"}, "area": {"f_shape"}, "texture": {"f_text"}, "background": {"f_bg"},
              "ground": {"f_bg"}, "l1": set(objects.MECHANISMS), "gram": set(objects.MECHANISMS)}  # fmt: skip
    for name, wanted in taught.items():
        model = started()
        with torch.no_grad():
            for number, mechanism in enumerate(objects.MECHANISMS):  # no longer copies: else some gradients are zero
                bias = getattr(model, mechanism).generator.conv_to_rgb.bias
                bias.add_(torch.randn(bias.shape, generator=experiment.generator(number, "bias")))
        made = model.make(*drawn(model))
        weights = {name: preset[name]}
        if name == "area":  # beyond the bounds
            made = made._replace(parts=made.parts._replace(mask=made.parts.mask * 0.01))
        terms = objects.objective(made, losses.features("random", CPU), experiment.generator(0, "p"), weights,
                                  preset["patches"])  # fmt: skip
        terms[name].backward()
        touched = lambda part: any(p.grad is not None and p.grad.any() for p in part.parameters())
        found = {mechanism for mechanism in objects.MECHANISMS if touched(getattr(model, mechanism))}
        assert found == wanted, name


def test_presets_name_the_weights_of_paper_and_code():
    paper, code = (train_objects.PRESETS[name] for name in ("paper", "code"))
    assert paper["gram"][0] == 25 * 5e3 / 64
    assert code["gram"][0] == 16 * 5e3 / 64
    assert (paper["rates"]["f_text"], code["rates"]["f_text"]) == (1e-5, 3e-5)
    assert paper["texture"] == code["texture"] == (0, 25 * 5e3 / 128, 25 * 5e3 / 256, 0)
    assert train_objects.weights_of(code, "rec").keys() == {"entropy", "area", "texture", "background"}
    assert train_objects.weights_of(code, "shape").keys() == {"l1", "gram", "texture", "background"}
    published = {"l1", "gram", "entropy", "area", "texture", "background"}
    assert train_objects.weights_of(code, None).keys() == published
    own = train_objects.PRESETS["objects64"]
    assert train_objects.weights_of(own, "background").keys() == {"l1", "gram", "entropy", "area", "texture"}
    assert train_objects.weights_of(own, None).keys() == published | {"ground"}
    assert train_objects.weights_of(own, "ground").keys() == published
    with pytest.raises(UserError, match="no loss of this preset is called 'ground'"):
        train_objects.weights_of(code, "ground")


def test_a_weight_in_a_preset_is_of_a_loss_and_can_be_left_out():
    """A new one reaches the objective, which says so as long as it has no line for it."""
    preset = train_objects.PRESETS["objects64"] | {"new": 3.0}
    weights = train_objects.weights_of(preset, None)
    assert weights["new"] == 3.0
    assert train_objects.weights_of(preset, "new") == {name: weights[name] for name in weights if name != "new"}
    with pytest.raises(UserError, match="no loss of a CGN of objects is called 'new'; there are l1, entropy"):
        objects.objective(hand_made(0.5), None, None, weights, preset["patches"])


# --- training ---------------------------------------------------------------------------------------------


def weights_in(path):
    return storage.load_checkpoint(path / "ckpt/best.pt")["model"]


def test_a_training_is_killed_goes_on_and_ends_with_the_same_bytes(call, sources, tmp_path, monkeypatch):
    assert call("cgn.train_objects", *sources, "--run", tmp_path / "whole")[0] == 0
    monkeypatch.setattr(trainer, "SAVE_AFTER", 0)
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    step = train_objects.Game.step

    def dies(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(train_objects.Game, "step", dies)
        assert call("cgn.train_objects", *sources, "--run", tmp_path / "killed")[0] == 130
    assert call("cgn.train_objects", *sources, "--run", tmp_path / "killed")[0] == 0
    one, two = weights_in(tmp_path / "whole"), weights_in(tmp_path / "killed")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    frames = [storage.load_checkpoint(tmp_path / name / "frames.pt")["frames"] for name in ("whole", "killed")]
    assert torch.equal(*frames)
    rows = storage.read_lines(tmp_path / "results/metrics.jsonl")
    assert {row["metric"] for row in rows} == {"mean mask", "training seconds"}
    assert objects.load(tmp_path / "whole", CPU).classes == 10


def test_accumulated_batches_are_one_large_batch(sources):
    preset = train_objects.PRESETS["objects64"]
    weights = train_objects.weights_of(preset, "texture")  # whose patches are drawn batch by batch
    context = functools.partial(experiment.autocast, CPU, torch.float32)
    found = []
    for sizes in ((8, 1), (4, 2)):
        model = started()
        game = train_objects.Game(model, preset, weights, sizes, 1.0, "random", CPU, context, 0)
        latents, labels = model.draw(8, experiment.generator(0, "all"))
        parts = iter(zip(latents.split(sizes[0]), labels.split(sizes[0]), strict=True))
        model.draw = lambda *_, parts=parts: next(parts)
        game.step(0)
        found.append([p.grad.clone() for name in objects.MECHANISMS for p in getattr(model, name).parameters()])
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-4 + 1e-3 * float(one.abs().max()))


def test_a_loss_that_is_no_number_is_named(call, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(objects.losses, "binary_entropy", lambda masks: masks.mean() * float("nan"))
    code, _, error = call("cgn.train_objects", *sources, "--run", tmp_path / "run")
    assert code == 2
    assert "entropy was not finite" in error


@pytest.mark.parametrize(("words", "message"), [
    (("--preset", "paper"), "add --features vgg16"), (("--truncation", "2"), "truncation"),
    (("--generator", "nowhere"), "no checkpoint at nowhere"), (("--saliency", "README.md"), "name a run folder of"),
    (("--leave-out", "sound"), "no loss of this preset is called 'sound'"),
])  # fmt: skip
def test_what_cannot_be_trained_is_said(call, sources, tmp_path, words, message):
    code, _, error = call("cgn.train_objects", *sources, "--run", tmp_path / "run", *words)
    assert code == 2
    assert message in error


def networks_on(tmp_path):
    """Arguments of train_objects that name fresh networks in run folders, for processes of their own."""
    generator, saliency = biggan.build("objects64"), u2net.build("u2net64")
    biggan.measure_statistics(generator, experiment.generator(0, "statistics"), n=32)
    checkpoint_of(tmp_path / "g", "biggan", {"config": "objects64"}, generator)
    checkpoint_of(tmp_path / "s", "u2net64", {}, saliency)
    return ("--generator", tmp_path / "g", "--saliency", tmp_path / "s", "--steps", 2, "--batch", 4, "--device", "cpu",
            "--leave-out", "texture", "--results", tmp_path / "r")  # fmt: skip


def same(one, two):
    return all(torch.allclose(one[key].float(), two[key].float(), atol=2e-3) for key in one)


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(tmp_path):
    """The mechanisms keep their statistics, so that parts of a batch add up: weights agree up to rounding."""
    words = networks_on(tmp_path)
    for devices in (1, 2):
        done = shell("-m", "cgn.train_objects", *words, "--devices", devices, "--run", tmp_path / f"run{devices}")
        assert done.returncode == 0, done.stderr
    assert same(*(weights_in(tmp_path / f"run{k}") for k in (1, 2)))


@pytest.mark.slow
def test_two_machines_under_torchrun_take_the_same_steps_as_one(tmp_path):
    """Each machine is one torchrun with a process of its own; they share the run folder."""
    words, runs = networks_on(tmp_path), [tmp_path / "alone", tmp_path / "together"]
    assert shell("-m", "cgn.train_objects", *words, "--run", runs[0]).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node",
                                  "1", "--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port",
                                  str(port), "-m", "--", "cgn.train_objects", *map(str, words), "--run", str(runs[1])],
                                 cwd=ROOT) for rank in range(2)]  # fmt: skip
    assert [machine.wait(600) for machine in machines] == [0, 0]
    assert same(*map(weights_in, runs))


def test_a_biggan_is_trained_from_zero(call, tmp_path, monkeypatch):
    words = ("--config", "tiny", "--steps", 3, "--batch", 6, "--samples", 2, "--results", tmp_path / "results")
    assert call("cgn.train_gan", *words, "--run", tmp_path / "run")[0] == 0
    model = biggan.restore(storage.load_checkpoint(tmp_path / "run/ckpt/best.pt"))
    assert all(float(norm.running_vars.std()) > 0 for norm in model.norms())  # statistics were measured
    assert (tmp_path / "results/biggan_tiny.png").is_file()
    code, out, _ = call("cgn.train_gan", *words, "--run", tmp_path / "run")
    assert (code, "trained before" in out) == (0, True)
    code, _, error = call("cgn.train_gan", "--config", "biggan-deep-128", "--run", tmp_path / "other")
    assert code == 2
    assert "1000 classes of 128 pixels" in error


def test_a_biggan_is_trained_on_a_folder_of_class_images(call, tmp_path):
    for k in range(10):
        (tmp_path / f"images/{k}").mkdir(parents=True)
        for j in range(2):
            colour = numpy.full((70, 90, 3), 20 * k + j, dtype=numpy.uint8)
            Image.fromarray(colour).save(tmp_path / f"images/{k}/{j}.png")
    words = ("--config", "tiny", "--folder", tmp_path / "images", "--steps", 2, "--batch", 4, "--samples", 1)
    assert call("cgn.train_gan", *words, "--run", tmp_path / "run", "--results", tmp_path / "results")[0] == 0


def test_a_saliency_network_is_trained_and_measured(call, tmp_path):
    words = ("--steps", 3, "--batch", 4, "--run", tmp_path / "run", "--results", tmp_path / "results")
    code, out, _ = call("cgn.train_saliency", *words)
    assert code == 0
    assert "IoU" in out
    rows = {row["metric"]: row for row in storage.read_lines(tmp_path / "results/metrics.jsonl")}
    assert 0 <= rows["iou"]["value"] <= 1
    assert rows["iou"]["n"] == 30
    code, _, error = call("cgn.train_saliency", "--images", tmp_path)
    assert code == 2
    assert "belong together" in error


def test_overlap_of_the_truth_is_whole():
    class Knowing:
        """Says what it was told."""

        def __init__(self, masks):
            self.masks = iter(masks.float().split(50))

        def saliency(self, images):
            return next(self.masks)

    scenes = objects64.read("val")
    iou, error = train_saliency.overlaps(Knowing(scenes.masks), scenes, CPU)
    assert torch.equal(iou, torch.ones(30))
    assert torch.equal(error, torch.zeros(30))
    iou, error = train_saliency.overlaps(Knowing(~scenes.masks), scenes, CPU)
    assert torch.equal(iou, torch.zeros(30))
    assert torch.equal(error, torch.ones(30))


def test_overlaps_by_hand():
    """Found are the left pixels of 2 x 2, for sure by three quarters, of which one is in the mask, the upper row."""
    found = torch.tensor([[0.75, 0.25], [0.75, 0.0]]).view(1, 1, 2, 2)
    mask = torch.tensor([[True, True], [False, False]]).view(1, 1, 2, 2)
    source = SimpleNamespace(first=lambda n: SimpleNamespace(batches=lambda size: [(found, None, mask)]))
    iou, error = train_saliency.overlaps(SimpleNamespace(saliency=lambda images: images), source, CPU)
    assert iou.tolist() == pytest.approx([1 / 3])
    assert error.tolist() == pytest.approx([(0.25 + 0.75 + 0.75 + 0) / 4])


def test_images_with_masks_in_folders(tmp_path, call):
    for k in range(12):
        pixels = numpy.zeros((40, 50, 3), dtype=numpy.uint8)
        pixels[10:30, 20:40] = 200
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"images/{k:02d}.png")
        Image.fromarray(pixels[:, :, 0]).save(tmp_path / f"masks/{k:02d}.png")
    source = folders.Masked(tmp_path / "images", tmp_path / "masks", 40)
    assert (len(source), len(folders.Masked(tmp_path / "images", tmp_path / "masks", 40, "val"))) == (11, 1)
    images, _, masks = next(iter(source.batches(4)))
    assert torch.equal(masks, (images > 0)[:, :1])
    assert masks.float().mean() == pytest.approx(400 / 1600)
    assert len(source.first(2)) == 2
    words = ("--images", tmp_path / "images", "--masks", tmp_path / "masks", "--size", 32, "--steps", 1, "--batch", 4)
    assert call("cgn.train_saliency", *words, "--run", tmp_path / "run", "--results", tmp_path / "r")[0] == 0
    (tmp_path / "masks/03.png").unlink()
    with pytest.raises(UserError, match=r"no mask at .*03.png"):
        list(folders.Masked(tmp_path / "images", tmp_path / "masks", 40).first(6).batches(6))
    for k in range(9, 12):
        (tmp_path / f"images/{k:02d}.png").unlink()
    with pytest.raises(UserError, match=r"images has 9 images: every tenth is held out"):
        folders.Masked(tmp_path / "images", tmp_path / "masks", 40)


# --- generation -------------------------------------------------------------------------------------------


def test_figures_of_a_run(call, run, tmp_path):
    words = ("--run", run, "--classes", 0, 3, "--results", tmp_path / "results")
    code, _, error = call("cgn.generate_objects", *words)
    assert code == 0, error
    for name in ("sheet_tiny.png", "interpolation_tiny.png", "classes_tiny.gif"):
        assert (tmp_path / "results" / name).stat().st_size > 2000
    code, _, error = call("cgn.generate_objects", "--run", run, "--classes", 0, 10)
    assert code == 2
    assert "there is no class 10; they are 0 to 9" in error
    code, _, error = call("cgn.generate_objects", "--run", run, "--classes")
    assert code == 2
    assert "--classes names none" in error


def test_shards_are_the_set_and_pictures_are_its_images(call, run, tmp_path, monkeypatch):
    monkeypatch.setattr(generate_objects.Source, "size_of_chunk", 4)
    made = {}
    for shards in (1, 2):
        for shard in range(shards):
            words = ("--run", run, "--size", 16, "--shards", shards, "--shard", shard, "--classes", 0, 1)
            assert call("cgn.generate_objects", *words, "--out", tmp_path / "set", "--results", tmp_path / "r")[0] == 0
            name = "set" if shards == 1 else f"set_{shard}_of_2"
            made[shards, shard] = sets.read(tmp_path / name / "set")
    images, labels = made[1, 0]
    for shard in range(2):
        chunks = [number for number in range(4) if number % 2 == shard]
        wanted = numpy.concatenate([labels[4 * number:4 * number + 4] for number in chunks])
        assert numpy.array_equal(made[2, shard][1], wanted)
        wanted = numpy.concatenate([images[4 * number:4 * number + 4] for number in chunks]).astype(int)
        assert numpy.abs(made[2, shard][0].astype(int) - wanted).max() <= 1
    words = ("--run", run, "--size", 6, "--files", "--out", tmp_path / "files", "--classes", 0, 1)
    words += ("--results", tmp_path / "r")
    assert call("cgn.generate_objects", *words)[0] == 0
    lines = (tmp_path / "files/labels.csv").read_text().splitlines()
    assert lines[0] == "file,shape,texture,background"
    assert lines[6] == "000005.png," + ",".join(map(str, labels[5]))
    assert numpy.array_equal(numpy.array(Image.open(tmp_path / "files/000005.png")), images[5].transpose(1, 2, 0))
    code, _, error = call("cgn.generate_objects", *words, "--truncation", "1")
    assert code == 2
    assert "other options" in error
    code, _, error = call("cgn.generate_objects", "--run", run, "--shards", 2, "--shard", 2)
    assert code == 2
    assert "counted from 0" in error


def test_the_sheet_of_a_biggan_has_a_column_for_each_class(tmp_path):
    train_gan.sheet(started().biggan_GT, 1, 0, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 2000

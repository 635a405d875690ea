"""The steps of a CGN as a user runs them, on a small training set: train, generate, classify, explain, analyse."""

import functools
import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy
import pytest
import torch
from conftest import PUBLISHED

import experiment
import reproduce
import steps
import storage
import trainer
from cgn import abduction, analyse, classifiers, data, explain, games, generate, mechanisms, readers, sets, train

SHORT = ("--steps", "4", "--batch", "8")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """600 training images, 200 test images, and a short abduction."""
    whole = data.Variant.shapes
    sizes = {"train": 600, "test": 200}
    monkeypatch.setattr(data.Variant, "shapes", lambda self, split: whole(self, split)[: sizes[split]])
    monkeypatch.setattr(abduction, "STEPS", {"colored": (30, 0), "double_colored": (30, 0), "wildlife": (6, 4)})


@pytest.fixture
def trained(call, tmp_path):
    """A run of four steps on double-colored."""
    code, _, error = call("cgn.train", "--variant", "double_colored", *SHORT, "--run", tmp_path / "run",
                          "--results", tmp_path / "results")  # fmt: skip
    assert code == 0, error
    return tmp_path / "run"


def weights(run):
    return storage.load_checkpoint(run / "ckpt/best.pt")["model"]


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# --- training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "model", "more"), [
    ("colored", "cgn", ()), ("wildlife", "cgn", ()), ("double_colored", "gan", ()), ("colored", "published_cgn", ()),
    ("wildlife", "published_cgn", ()), ("double_colored", "cgn", ("--no-abduction", "--edge", "0.1")),
])  # fmt: skip
def test_every_kind_of_training_moves_and_leaves_its_record(call, tmp_path, monkeypatch, variant, model, more):
    make_game, begun = train.make_game, {}

    def noted(*arguments):
        game = make_game(*arguments)
        begun.update({name: value.clone() for name, value in game.networks["generator"].state_dict().items()})
        return game

    monkeypatch.setattr(train, "make_game", noted)
    code, _, error = call("cgn.train", "--variant", variant, "--model", model, *SHORT, *more, "--run", tmp_path / "run",
                          "--results", tmp_path / "results")  # fmt: skip
    assert code == 0, error
    lines = storage.read_lines(tmp_path / "run/log.jsonl")
    assert lines[-1]["event"] == "finished"
    assert lines[-1]["steps"] == 4
    assert (lines[0].get("event") == "abduction") == (model == "cgn" and not more)
    rows = {row["metric"]: row for row in storage.read_lines(tmp_path / "results/metrics.jsonl")}
    assert ("mean mask" in rows) == (model != "gan")
    assert ("abduction iou" in rows) == (model == "cgn" and not more)
    ended = mechanisms.restore(storage.load_checkpoint(tmp_path / "run/ckpt/best.pt")).state_dict()
    assert all(torch.isfinite(value).all() for value in ended.values())
    assert any(not torch.equal(ended[name], value) for name, value in begun.items() if name.endswith("weight"))


@pytest.mark.parametrize("model", ["cgn", "published_cgn"])
def test_a_killed_training_ends_with_the_same_bytes(call, tmp_path, monkeypatch, model):
    arguments = ("--variant", "double_colored", "--model", model, *SHORT, "--results", tmp_path / "results")
    assert call("cgn.train", *arguments, "--run", tmp_path / "whole")[0] == 0
    monkeypatch.setattr(trainer, "SAVE_AFTER", 0)
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    step = games.PartsGame.step if model == "cgn" else games.ImageGame.step

    def dies(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(games.PartsGame if model == "cgn" else games.ImageGame, "step", dies)
        assert call("cgn.train", *arguments, "--run", tmp_path / "killed")[0] == 130
    assert call("cgn.train", *arguments, "--run", tmp_path / "killed")[0] == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    film = [storage.load_checkpoint(tmp_path / name / "frames.pt")["frames"] for name in ("whole", "killed")]
    assert torch.equal(*film)


def test_a_finished_run_is_reused_and_other_options_are_refused(call, trained, tmp_path):
    again = ("--variant", "double_colored", *SHORT, "--run", trained, "--results", tmp_path / "results")
    code, out, _ = call("cgn.train", *again)
    assert code == 0
    assert "trained before" in out
    code, _, error = call("cgn.train", *again, "--entropy", "0.5")
    assert code == 2
    assert "entropy=0.1, not 0.5" in error


def test_a_loss_that_is_no_number_is_named(call, tmp_path, monkeypatch):
    monkeypatch.setattr(games.losses, "binary_entropy", lambda masks: masks.mean() * float("nan"))
    code, _, error = call("cgn.train", "--variant", "colored", *SHORT, "--run", tmp_path / "run",
                          "--results", tmp_path / "results")  # fmt: skip
    assert code == 2
    assert "entropy was not finite" in error


@pytest.mark.slow
def test_collapsed_masks_are_said(call, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "mean_masks", lambda *_: torch.tensor([0.2] * 9 + [0.9]))
    code, out, _ = call("cgn.train", "--variant", "colored", *SHORT, "--run", tmp_path / "run",
                        "--results", tmp_path / "results")  # fmt: skip
    assert code == 0
    assert "the masks of 9 have collapsed (mean mask 0.90)" in out
    assert storage.read_lines(tmp_path / "run/log.jsonl")[-1]["collapsed"] == [9]
    rows = {row["metric"]: row["value"] for row in storage.read_lines(tmp_path / "results/metrics.jsonl")}
    assert rows["collapsed classes"] == 1


def test_contradictions_are_refused(call):
    code, _, error = call("cgn.train", "--edge", "0.1")
    assert code == 2
    assert "--no-abduction" in error
    nothing = (f"--{name}" for name in ("shape-adversary", "texture-adversary", "entropy", "texture"))
    code, _, error = call("cgn.train", *(word for name in nothing for word in (name, "0")))
    assert code == 2
    assert "nothing would be trained" in error


def test_a_run_is_saved_before_its_first_picture(call, tmp_path, monkeypatch):
    """The published recipe saves every minute, and takes its first picture after an hour."""
    monkeypatch.setattr(trainer, "FRAMES", 1)
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    monkeypatch.setattr(trainer, "SAVE_AFTER", -1)
    code, _, error = call("cgn.train", "--model", "gan", *SHORT, "--run", tmp_path / "run", "--results", tmp_path / "r")
    assert code == 0, error
    assert storage.load_checkpoint(tmp_path / "run/frames.pt")["frames"].shape[0] == 1


def test_a_loss_with_weight_zero_is_left_out(call, tmp_path):
    code, _, error = call("cgn.train", "--variant", "colored", *SHORT, "--texture-adversary", "0", "--texture", "0",
                          "--run", tmp_path / "run", "--results", tmp_path / "results")  # fmt: skip
    assert code == 0, error
    with experiment.seeded(0, "initialisation"):
        fresh = mechanisms.build("cgn", side=1)
    now = weights(tmp_path / "run")
    assert torch.allclose(now["object.canvas"], fresh.object.canvas)  # nothing taught the textures
    assert not torch.allclose(now["shape.body.0.weight"], fresh.state_dict()["shape.body.0.weight"])


def test_a_step_without_a_loss_that_counts_moves_no_generator(call, tmp_path):
    """With the Gram matrices alone, which are looked at in every fourth step."""
    words = ("--variant", "colored", *SHORT, "--shape-adversary", 0, "--texture-adversary", 0, "--entropy", 0)
    code, _, error = call("cgn.train", *words, "--run", tmp_path / "run", "--results", tmp_path / "results")
    assert code == 0, error
    steps = storage.load_checkpoint(tmp_path / "run/ckpt/last.pt")["game"]["optimizers"]["generator"]["state"]
    assert {int(state["step"]) for state in steps.values()} == {1}  # in step 0


def test_abduction_is_held_against_the_true_masks():
    """Of two digits that fill the left half, one is found with a half more, the other not at all."""
    variant = data.Variant("double_colored")
    alphas = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    alphas[:, :, :, :16] = 255
    opacities = torch.zeros(2, 1, 32, 32)
    opacities[0, :, :, :24], opacities[1] = 0.6, 0.4  # a half is needed
    model = SimpleNamespace(opacities=lambda images, labels, flat: opacities)
    found, iou = train.abduce(model, variant, data.Shapes(alphas, torch.tensor([4, 7])), 0, nullcontext)
    assert iou == pytest.approx((16 / 24 + 0) / 2)
    assert found[1][:, 0, 0, 0].tolist() == [153, 102]  # of 255
    assert found[2].tolist() == [4, 7]


def test_mean_masks_are_of_each_class():
    masks = lambda labels, *_: SimpleNamespace(mask=(labels[0] / 10).view(-1, 1, 1, 1).repeat(1, 1, 2, 2))
    means = train.mean_masks(SimpleNamespace(parts=masks), torch.device("cpu"), 0, n=3)
    torch.testing.assert_close(means, torch.arange(10) / 10)
    assert train.collapsed(torch.tensor([0.01, 0.03, 0.5, 0.7])) == [0, 3]  # 0.02 to 0.6 are right


# --- generating ---------------------------------------------------------------------------------------------


def test_figures_and_a_set(call, trained, tmp_path):
    out = tmp_path / "sets/one"
    arguments = ("--variant", "double_colored", "--run", trained, "--results", tmp_path / "r", "--out", out)
    code, _, error = call("cgn.generate", *arguments, "--size", "1100", "--ratio", "3", "--shapes", "abducted")
    assert code == 0, error
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "sheet_double_colored.png", "interpolation_double_colored.png", "training_double_colored.gif"}
    images, labels = sets.read(out)
    assert images.shape == (1100, 3, 32, 32)
    assert labels.shape == (1100, 3)
    assert set(numpy.unique(labels)) <= set(range(10))
    assert (labels[:3, 0] == labels[0, 0]).all()  # three of one shape
    assert not (labels[:, 0] == labels[:, 1]).all()
    code, said, _ = call("cgn.generate", *arguments, "--size", "1100", "--ratio", "3", "--shapes", "abducted")
    assert "made before" in said
    code, _, error = call("cgn.generate", *arguments, "--size", "1100", "--ratio", "2", "--shapes", "abducted")
    assert code == 2
    assert "ratio=3, not 2" in error


def source(seed=0, **more):
    with experiment.seeded(0, "tests"):
        generator = mechanisms.build("cgn", side=8).eval()
    return generate.Source(generator, torch.device("cpu"), seed, **more)


def test_an_interrupted_set_goes_on_and_is_never_torn(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "SYNC_EVERY", 1)
    sets.write(source(), tmp_path / "whole", 1700, {"seed": 0})
    broken, chunk = source(), generate.Source.chunk

    def dies(self, number, size=generate.CHUNK):
        if number == 2 and self is broken:
            raise KeyboardInterrupt
        return chunk(self, number, size)

    monkeypatch.setattr(generate.Source, "chunk", dies)
    with pytest.raises(KeyboardInterrupt):
        sets.write(broken, tmp_path / "cut", 1700, {"seed": 0})
    with pytest.raises(experiment.UserError, match="no counterfactual set"):
        sets.read(tmp_path / "cut")
    assert json.loads((tmp_path / "cut.json").read_text())["done"] == 1000
    fresh, asked = source(), []
    monkeypatch.setattr(generate.Source, "chunk",
                        lambda self, number, size: asked.append(number) or chunk(self, number, size))
    assert sets.write(fresh, tmp_path / "cut", 1700, {"seed": 0})
    assert asked == [2, 3]
    for one, two in zip(sets.read(tmp_path / "whole"), sets.read(tmp_path / "cut"), strict=True):
        assert numpy.array_equal(one, two)


def test_a_set_begun_afresh_does_not_pass_for_the_one_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "SYNC_EVERY", 1)
    sets.write(source(), tmp_path / "set", 700, {"seed": 0})
    (tmp_path / "set.json").unlink()  # as the refusal of other options says
    whole = generate.Source.chunk

    def dies(self, number, size):
        if number == 1:
            raise KeyboardInterrupt
        return whole(self, number, size)

    monkeypatch.setattr(generate.Source, "chunk", dies)
    with pytest.raises(KeyboardInterrupt):
        sets.write(source(), tmp_path / "set", 700, {"seed": 1})
    assert not list(tmp_path.glob("*.npy"))
    for ask in (sets.read, sets.about_of):
        with pytest.raises(experiment.UserError, match="500 of 700 images are made"):
            ask(tmp_path / "set")


def test_a_set_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(experiment.UserError, match=r"a set of 10,\d+,\d+,\d+ images takes 3\d,?\d+.\d GB"):
        sets.write(source(), tmp_path / "huge", 10_000_000_000, {})
    assert not list(tmp_path.glob("huge*"))


def test_a_factual_sample_has_one_label_and_sets_in_memory_are_those_on_disk(tmp_path):
    _, labels = source(factual=True).chunk(0, 50)
    assert (labels == labels[:, :1]).all()
    gan = generate.Source(mechanisms.build("gan", width=4).eval(), torch.device("cpu"), 0, ratio=10, factual=True)
    images, _ = gan.chunk(0, 50)  # all of a GAN's image is in the label and the latent that a shape has
    assert len(torch.unique(images.flatten(1), dim=0)) == 50
    images, labels = generate.in_memory(source(), 700)
    sets.write(source(), tmp_path / "set", 700, {})
    assert numpy.array_equal(images.numpy(), sets.read(tmp_path / "set")[0])
    assert len(torch.unique(images.flatten(1), dim=0)) == 700


def test_abducted_shapes_keep_their_mask_and_label(monkeypatch):
    alphas = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    alphas[1] = 255  # the seven fills its image, the four is empty
    made = source(opacities=(alphas, torch.tensor([4, 7])))
    monkeypatch.setattr(made.generator.shape, "forward", None)  # is not asked
    images, labels = made.chunk(0, 40)
    assert set(labels[:, 0].tolist()) == {4, 7}
    with torch.no_grad():
        made.generator.background.canvas += 1
    again, _ = made.chunk(0, 40)
    changed = (images != again).flatten(1).any(1)
    assert torch.equal(changed, labels[:, 0] == 4)


def test_opacities_kept_by_the_training_are_those_found_again(trained):
    device, variant, path = torch.device("cpu"), data.Variant("double_colored"), trained / "ckpt/best.pt"
    _, finder, _ = generate.load(path, "double_colored", None, device)
    context = functools.partial(experiment.autocast, device, experiment.precise(device, "auto"))
    kept = generate.found(path, finder, variant, 0, context)
    (trained / "opacities.pt").unlink()
    again = generate.found(path, finder, variant, 0, context)
    assert len(kept[0]) == 600
    for one, two in zip(kept, again, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("cut", ["while renamed", "a part deleted", "a file deleted"])
def test_a_set_whose_files_are_half_there_is_mended(tmp_path, monkeypatch, cut):
    sets.write(source(), tmp_path / "set", 700, {})
    images = tmp_path / "set_images.npy"
    before = images.read_bytes()
    labels = tmp_path / "set_labels.npy"
    if cut == "while renamed":
        labels.rename(labels.with_suffix(".part"))
        monkeypatch.setattr(generate.Source, "chunk", None)  # all is there
    elif cut == "a part deleted":
        images.unlink()
        labels.rename(labels.with_suffix(".part"))
    else:
        labels.unlink()
    assert sets.write(source(), tmp_path / "set", 700, {})
    assert images.read_bytes() == before
    assert sets.read(tmp_path / "set")[1].shape == (700, 3)
    assert not list(tmp_path.glob("*.part"))


def test_the_room_of_a_set_is_taken_when_it_is_begun(tmp_path):
    parts = [tmp_path / "a.part", tmp_path / "b.part"]
    sets._open_parts(parts, 2000, 32, 10, fresh=True)
    assert parts[0].stat().st_blocks * 512 >= 2000 * 3 * 32 * 32


def test_a_checkpoint_of_another_variant_is_refused(call, trained, tmp_path):
    code, _, error = call("cgn.generate", "--variant", "colored", "--run", trained, "--results", tmp_path)
    assert code == 2
    assert "trained on variant double_colored, and colored is wanted" in error
    code, _, error = call("cgn.classify", "--variant", "wildlife", "--run", trained, "--results", tmp_path)
    assert code == 2
    assert "double_colored" in error


# --- classifying -------------------------------------------------------------------------------------------


def test_classifying_counterfactuals(call, trained, tmp_path):
    arguments = ("--variant", "double_colored", "--on", "original", "abducted", "--run", trained, "--size", "300",
                 "--steps", "3", "--batch", "16", "--results", tmp_path / "r")  # fmt: skip
    code, out, error = call("cgn.classify", *arguments)
    assert code == 0, error
    assert "original+abducted" in out
    rows = storage.read_lines(tmp_path / "r/metrics.jsonl")
    assert {row["split"] for row in rows} == {"train", "test", "visible", "wandering"}
    assert rows[0]["options"]["weights"] == storage.digest(trained / "ckpt/best.pt")
    step = steps.Step("cgn.classify", tuple(map(str, arguments)), tmp_path / "r")
    assert reproduce.records_of(step) == rows
    assert not reproduce.records_of(step._replace(arguments=(*step.arguments, "--ratio", "2")))
    call("cgn.classify", *arguments)
    assert [row["value"] for row in storage.read_lines(tmp_path / "r/metrics.jsonl")] == [row["value"] for row in rows]


def test_a_published_file_and_textures_are_found_again_by_name(tmp_path):
    """A record has no folder of the machine that it was made on."""
    options = {"variant": "wildlife", "textures": "procedural", "checkpoint": "a.pth"}
    records = storage.Records(tmp_path, "classify", options, torch.device("cpu"))
    records.add("cgn", "test", "accuracy", 0.5, 10, 0)
    records.save()
    found = lambda *more: len(reproduce.records_of(steps.Step(
        "cgn.classify", ("--variant", "wildlife", *more), tmp_path)))  # fmt: skip
    assert found("--checkpoint", "/some/folder/a.pth") == 1
    assert found("--checkpoint", "/some/folder/b.pth") == 0
    if PUBLISHED.exists():
        assert found("--checkpoint", "a.pth", "--textures", str(PUBLISHED / "textures")) == 0


def test_sources_are_mixed_in_equal_parts():
    draws = [lambda n, stream, k=k: (torch.full((n, 1), k), torch.full((n,), k)) for k in range(3)]
    images, labels = classifiers.mixed(draws, 10, experiment.generator(0, "m"))
    assert torch.bincount(labels).tolist() == [4, 3, 3]
    assert torch.equal(images[:, 0], labels)


def test_unknown_sources_are_refused(call):
    assert "no source is called 'real'" in call("cgn.classify", "--on", "real")[2]
    assert "no counterfactual set" in call("cgn.classify", "--on", "set", "--set", "nowhere/set")[2]


def test_a_set_of_another_variant_is_refused_and_its_making_is_recorded(call, tmp_path):
    sets.write(source(), tmp_path / "set", 200, {"variant": "colored", "textures": None, "ratio": 1})
    for name, about, message in (("other", {"variant": "wildlife", "textures": "published"}, "of textures published, "),
                                 ("objects", {"run": "runs/cgn_objects64"}, "of variant None, ")):  # fmt: skip
        sets.write(source(), tmp_path / name, 20, about)
        code, _, error = call("cgn.classify", "--variant", "wildlife", "--on", "set", "--set", tmp_path / name,
                              "--results", tmp_path / "r")  # fmt: skip
        assert (code, message in error) == (2, True)
    arguments = ("--on", "set", "--set", tmp_path / "set", "--steps", "2", "--batch", "8", "--results", tmp_path / "r")
    code, _, error = call("cgn.classify", "--variant", "wildlife", *arguments)
    assert code == 2
    assert "is of variant colored, and wildlife is wanted" in error
    assert call("cgn.classify", "--variant", "colored", *arguments)[0] == 0
    assert storage.read_lines(tmp_path / "r/metrics.jsonl")[0]["options"]["made"]["size"] == 200


def test_a_classifier_learns_what_it_is_shown():
    def draw(n, stream):
        labels = torch.randint(10, (n,), generator=stream)
        images = torch.zeros(n, 3, 32, 32)
        images[torch.arange(n), 0, labels * 3] = 1  # a line whose height tells the class
        return images, labels

    with experiment.seeded(0, "tests"):
        net = classifiers.build("reader")
    net = classifiers.learn(net, [draw], 60, 64, 6e-3, 0, nullcontext, torch.device("cpu"))
    assert classifiers.right(net, *draw(200, experiment.generator(9, "test"))).float().mean() > 0.95


# --- explaining and analysing -----------------------------------------------------------------------------------


class Linear(classifiers._Classifier):
    """Maps are the image itself: class k looks at channel k."""

    def __init__(self):
        super().__init__()
        self.model, self.cls = torch.nn.Identity(), torch.nn.Linear(3, 3, bias=False)
        torch.nn.init.eye_(self.cls.weight)


def test_grad_cam_of_a_model_that_looks_at_one_channel():
    images = torch.zeros(2, 3, 32, 32)
    images[0, 1, 4:8, 4:8] = 2
    images[1, 2, 20:30] = 1
    heat, predicted = explain.grad_cam(Linear(), images)
    assert predicted.tolist() == [1, 2]
    torch.testing.assert_close(heat[0, 0], images[0, 1] / 2)
    torch.testing.assert_close(heat[1, 0], images[1, 2])
    found = explain.overlaps(heat, heat > 0)
    for name in ("iou", "iou_both", "energy"):
        torch.testing.assert_close(found[name], torch.ones(2))


@pytest.mark.parametrize("name", ["reader", "published"])
def test_a_classifier_is_its_maps_and_its_head(name):
    """GradCAM differentiates the head at maps of 8 x 8; together they have to be the classifier."""
    model, images = classifiers.build(name).eval(), torch.rand(2, 3, 32, 32) * 2 - 1
    maps = model.maps(images)
    assert maps.shape[2:] == (8, 8)
    torch.testing.assert_close(model.head(maps), model(images))
    torch.testing.assert_close(model.cls(model.features(images)), model(images))


def test_overlaps_by_hand():
    heat, mask = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    heat[0, 0, 0] = 1.0
    heat[0, 0, 1, :2] = 0.25
    mask[0, 0, :2, :2] = True
    found = explain.overlaps(heat, mask)
    assert float(found["iou"]) == pytest.approx(2 / 6)
    assert float(found["iou_both"]) == pytest.approx((2 / 6 + 10 / 14) / 2)
    assert float(found["energy"]) == pytest.approx(2.5 / 4.5)


class Painter(torch.nn.Module):
    """Parts that show their labels in one channel each; leaky: the background follows the shape's label."""

    def __init__(self, leaky):
        super().__init__()
        self.leaky = leaky

    def parts(self, labels, latents, stream):
        shape, object_, background = (label.float()[:, None, None, None].expand(-1, 1, 32, 32) for label in labels)
        image = torch.cat([shape, object_, shape if self.leaky else background], 1)
        return mechanisms.Parts(torch.ones_like(shape), image, torch.zeros_like(image))


class Channel(torch.nn.Module):
    """Reads the class off a channel."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def forward(self, x):
        return torch.nn.functional.one_hot(x[:, self.place, 0, 0].long(), 10).float() * 20


@pytest.mark.parametrize("leaky", [False, True])
def test_moved_labels_find_a_leak(leaky):
    from contextlib import nullcontext

    nets = {name: Channel(place) for place, name in enumerate(analyse.MECHANISMS)}
    variant = data.Variant("double_colored")
    rows = {(mechanism, reader): (changed, followed) for mechanism, reader, changed, followed, _ in
            analyse.moved(Painter(leaky), variant, nets, 400, 0, nullcontext)}  # fmt: skip
    for mechanism in ("shape", "object"):
        for reader in ("shape", "object"):
            assert rows[mechanism, reader] == ((1.0, 1.0) if mechanism == reader else (0.0, None))
    assert (rows["shape", "background"][0] > 0.9) == leaky


def test_good_masks():
    net = Channel(0)
    masks = torch.ones(20, 1, 32, 32)
    labels = torch.arange(10).repeat_interleave(2)
    net.forward = lambda x: torch.nn.functional.one_hot((labels + (labels == 3).long())[: len(x)], 10).float()
    shares, good = readers.good_masks(net, masks, labels)
    assert good == 9
    assert shares[3] == 0


def test_neighbours_on_the_plane():
    places = torch.tensor([[0.0, 0], [1, 0], [10, 0], [12, 0]])
    assert explain.separation(places, torch.tensor([0, 0, 1, 0])) == 0.5  # the two on the left


def sure_of(classes, sure):
    """Logits (N, 10) of a reader that sees these classes, and is sure of some."""
    return torch.nn.functional.one_hot(torch.tensor(classes), 10) * torch.where(torch.tensor(sure), 20.0, 0.1)[:, None]


def test_mixtures_are_counted_among_what_both_readers_are_sure_of():
    logits = {"shape": sure_of([0, 1, 2, 3, 4], [True, True, False, True, True]),
              "object": sure_of([0, 2, 5, 4, 4], [True, True, True, False, True])}  # fmt: skip
    nets = {name: lambda images, found=found: found[images[:, 0].long()] for name, found in logits.items()}
    share, shape, colour, sure = analyse.mixtures(torch.arange(5).view(5, 1), nets["shape"], nets["object"])
    assert share == pytest.approx(1 / 3)  # of the first two and the last, the second
    assert (shape.tolist(), colour.tolist()) == ([0, 1, 2, 3, 4], [0, 2, 5, 4, 4])
    assert sure.tolist() == [True, True, False, False, True]


def test_blue_zeros_are_counted_among_the_zeros_that_are_sure(monkeypatch):
    """Five samples, the last one not sure: of three zeros two are blue, class 3; one of each colour is shown first."""
    shape, colour = torch.tensor([0, 0, 0, 1, 0]), torch.tensor([3, 3, 5, 3, 3])
    monkeypatch.setattr(analyse, "mixtures", lambda *_: (0.25, shape, colour, torch.arange(5) < 4))
    monkeypatch.setattr(analyse, "train_vae_cached", lambda *_: SimpleNamespace(
        sample=lambda n, stream: (torch.arange(n) / 10).view(n, 1, 1, 1).expand(-1, 3, 32, 32)))
    monkeypatch.setattr(generate, "in_memory", lambda source, n: (torch.zeros(n, 3, 32, 32, dtype=torch.uint8), None))
    rows, shown = [], []
    monkeypatch.setattr(analyse.figures, "image_grid", lambda path, images, *_: shown.extend(images))
    records = SimpleNamespace(add=lambda *row: rows.append(row))
    variant = SimpleNamespace(name="colored", device=torch.device("cpu"), shapes=lambda split: None,
                              batch=lambda shapes, n, stream: SimpleNamespace(images=torch.zeros(n, 3, 32, 32)))
    analyse.compare_vae(None, variant, {"shape": None, "object": None}, 5, 0, nullcontext, records, None)
    names = ["training images", "vae", "cgn, one label", "cgn, counterfactual"]
    assert rows[::2] == [(name, "colored", "digit in another class's colour", 0.25, 4, 0) for name in names]
    assert rows[1::2] == [(name, "colored", "blue zeros among zeros", pytest.approx(2 / 3), 3, 0) for name in names]
    assert [len(row) for row in shown] == [10] * 4
    assert [float(image.mean()) for image in shown[1]] == pytest.approx([0, 0.2, 0.1] + [1] * 7, abs=1e-6)


def test_analyse_and_explain(call, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "STEPS", 3)
    monkeypatch.setattr(readers, "reader", lambda reads, variant, textures, context, whole=readers.reader: whole(
        reads, variant, textures, context, tmp_path / "readers"))
    code, out, error = call("cgn.analyse", "--variant", "double_colored", "--run", trained, "--count", "60",
                            "--results", tmp_path / "r")  # fmt: skip
    assert code == 0, error
    assert "good masks" in out
    code, _, error = call("cgn.explain", "--variant", "double_colored", "--results", tmp_path / "r",
                          "--classifier", tmp_path / "none.pt")  # fmt: skip
    assert code == 2
    assert "python -m cgn.classify --variant double_colored --on original" in error
    net = classifiers.build("reader")
    about = {"architecture": {"name": "reader", "settings": {}}, "model": net.state_dict()}
    storage.save_checkpoint(tmp_path / "other.pt", about | {"options": {"variant": "colored", "textures": None}})
    code, _, error = call("cgn.explain", "--variant", "double_colored", "--classifier", tmp_path / "other.pt")
    assert code == 2
    assert "was trained on variant colored, and double_colored is wanted" in error
    storage.save_checkpoint(tmp_path / "net.pt", about)
    code, out, error = call("cgn.explain", "--variant", "double_colored", "--classifier", tmp_path / "net.pt", "--run",
                            trained, "--count", "40", "--tsne", "60", "--results", tmp_path / "r")  # fmt: skip
    assert code == 0, error
    assert {"gradcam_double_colored_file_net.png", "tsne_double_colored_file_net.png"} <= {
        path.name for path in (tmp_path / "r").iterdir()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("model", ["cgn", "gan", "published_cgn"])
def test_on_a_gpu(call, tmp_path, model):
    code, _, error = call("cgn.train", "--variant", "wildlife", "--model", model, *SHORT, "--device", "cuda", "--run",
                          tmp_path / "run", "--results", tmp_path / "r")  # fmt: skip
    assert code == 0, error
    assert all(value.device.type == "cpu" for value in weights(tmp_path / "run").values())

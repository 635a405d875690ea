"""Data sets and recipes by name: what fits together, what is refused, and with which words."""

import types

import pytest
import torch
from conftest import ROOT

import architecture
import backbones
import catalogue
import classifiers
import datasets
import latent_counterfactuals
import recipes
import storage
import train
from experiment import UserError

PAIRS = [(model, data) for model in [*architecture.MODELS, *classifiers.MODELS] for data in catalogue.SETS]

LARGE, COUNTED = ("crowds", "celeba", "chexpert", "mall"), ("crowds", "mall")
REFUSED = {
    *((model, data) for model in ("vae", "linear_vae", "mnist_cnn") for data in LARGE), ("mnist_cnn", "strokes"),
    ("attribute_cnn", "mnist"), *((m, data) for m in ("attribute_cnn", "class_autoencoders") for data in COUNTED),
    *(("counting_unet", data) for data in catalogue.SETS if data not in COUNTED),
}  # fmt: skip


def made(model, data):
    recipe = recipes.for_pair(model, data)
    if data in ("celeba", "chexpert", "mall") and model == "glow":  # hundreds of megabytes
        recipe["settings"] |= {"steps": 1, "hidden": 8}
    return train.build(model, 0, "cpu", recipe.get("settings"))[0], recipe


@pytest.mark.parametrize(("model", "data"), PAIRS)
def test_every_pair_is_built_or_refused_in_one_line(model, data):
    """What is built takes the images of its data set."""
    shape = catalogue.find(data).shape
    if (model, data) in REFUSED:
        with pytest.raises(UserError, match=model):
            made(model, data)
        return
    net, recipe = made(model, data)
    assert {"n", "epochs", "batch", "lr", "n_validation", "schedule", "held_out"} <= recipe.keys()
    x = torch.rand(2, *shape)
    if model == "class_autoencoders":
        assert net.reconstruct(x).shape[1] == len(catalogue.find(data).classes) + 1
    elif model in classifiers.MODELS:
        out = net.eval()(x)
        counted = catalogue.find(data).classes is None
        assert out.shape in ({(2, 1), (2, 1, *shape[1:])} if counted else {(2, len(catalogue.find(data).classes))})
    else:
        assert net.eval().sample(2, torch.Generator().manual_seed(0)).shape == (2, *shape)


def test_the_pairs_that_make_no_sense_are_refused():
    for model, data, words in (("vae", "crowds", "takes images of 1 x 28 x 28"), ("counting_unet", "mnist", "counts"),
                               ("mnist_cnn", "strokes", "residual_cnn does"), ("attribute_cnn", "mnist", "10 classes"),
                               ("class_autoencoders", "crowds", "are counted"), ("nosuch", "mnist", "there are vae"),
                               ("glow", "nosuch", "there are mnist, strokes, crowds")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            recipes.for_pair(model, data)


def test_settings_of_something_else_are_refused():
    for build, given in ((architecture.build, ("vae",)), (classifiers.build, ("mnist_cnn",)),
                         (backbones.build, ("small", 2)), (backbones.build, ("resnet18", 2))):  # fmt: skip
        for setting in ("foo", "name"):
            with pytest.raises(UserError, match=f"cannot be made with these settings: .*'{setting}'"):
                build(*given, **{setting: 1})


def test_class_names_and_numbers():
    assert catalogue.class_number("mnist", "7") == 7
    assert catalogue.class_number("strokes", "thick") == 1
    assert catalogue.class_number("celeba", "0") == 0
    with pytest.raises(UserError, match="strokes has no class 'fat'; there are thin, thick"):
        catalogue.class_number("strokes", "fat")
    with pytest.raises(UserError, match="no class '10'"):
        catalogue.class_number("mnist", "10")
    with pytest.raises(UserError, match="say --maximize"):
        catalogue.class_number("crowds", "5")


def test_splits_are_disjoint_and_drawn_by_the_seed():
    training, validation = catalogue.split("strokes", 200, 50, 0, root=ROOT / "data")
    assert (len(training), len(validation)) == (200, 50)
    rows = lambda part: {bytes(image.mul(255).byte().numpy().tobytes()) for image in part.images}
    assert len(rows(training) & rows(validation)) <= 1  # MNIST has hardly any doubles
    again, _ = catalogue.split("strokes", 200, 50, 0, root=ROOT / "data")
    other, _ = catalogue.split("strokes", 200, 50, 1, root=ROOT / "data")
    assert torch.equal(again.images, training.images)
    assert not torch.equal(other.images, training.images)


def test_options_for_sets_that_have_none_are_refused():
    with pytest.raises(UserError, match="no attributes to choose from"):
        catalogue.load("mnist", "test", attribute="Bald", root=ROOT / "data")
    with pytest.raises(UserError, match="no uncertain labels"):
        catalogue.load("mnist", "test", uncertain="ones", root=ROOT / "data")


def rings(split, attribute, device="cpu", root=None):
    """A data set of somebody else's: rings of two sizes, whose size is the attribute."""
    assert attribute == "size"
    n, far = {"train": 96, "test": 200}[split], torch.linspace(-1, 1, 28).square()
    labels = torch.arange(n) % 2
    radius = (far[:, None] + far).sqrt()
    images = ((radius - 0.4 - 0.3 * labels.view(-1, 1, 1, 1)).abs() < 0.1).float()
    return datasets.Digits(images.to(device), labels.to(device))


class Own(architecture.ImageVAE):
    """A generator of somebody else's."""


class OwnClassifier(classifiers.AttributeCNN):
    """A classifier of somebody else's."""


def test_a_line_in_a_registry_is_all_that_a_data_set_a_generator_and_a_classifier_need(call, monkeypatch, tmp_path):
    rings_of_size = catalogue.DataSet((1, 28, 28), 8, ("small", "large"), rings, "size")
    monkeypatch.setitem(catalogue.SETS, "rings", rings_of_size)
    monkeypatch.setitem(architecture.MODELS, "own", Own)
    monkeypatch.setitem(classifiers.MODELS, "own_cnn", OwnClassifier)
    words = ("--data", "rings", "--epochs", 1, "--n-validation", 32, "--results", tmp_path / "results")
    for model in ("own", "own_cnn", "attribute_cnn", "residual_cnn", "class_autoencoders"):
        monkeypatch.setitem(recipes.RUNS, (model, "rings"), str(tmp_path / model))
        code, _, error = call("train", "--model", model, *words)
        assert code == 0, error
    restored = architecture.restore(storage.load_checkpoint(tmp_path / "own/ckpt/best.pt"))
    assert isinstance(restored, Own)
    assert recipes.for_pair("own", "mnist")["epochs"] == recipes.USUAL["epochs"]
    explain = ("latent_counterfactuals", "--dataset", "rings", "--model", "own", "--steps", 1,
               "--results", tmp_path / "explained")  # fmt: skip
    for classifier in ((), ("--classifier", tmp_path / "own_cnn")):
        code, out, error = call(*explain, *classifier)
        assert code == 0, error
        assert "| own |" in out
    code, _, error = call(*explain, "--classifier", tmp_path / "class_autoencoders")
    assert code == 2
    assert "holds class_autoencoders trained on rings, and attribute_cnn trained on rings is needed" in error


def test_a_set_of_somebody_else_s_is_explained_by_a_classifier_that_fits_it(monkeypatch):
    for name, classes, usual in (("two", ("a", "b"), "attribute_cnn"), ("three", ("a", "b", "c"), "residual_cnn"),
                                 ("many", None, "counting_unet")):  # fmt: skip
        monkeypatch.setitem(catalogue.SETS, name, catalogue.DataSet((3, 64, 64), 8, classes, rings))
        assert latent_counterfactuals.usual_classifier(name) == usual
    with pytest.raises(UserError, match="no usual count to stop at for many: say --stop-at"):
        latent_counterfactuals.count_goal(types.SimpleNamespace(data="many"), torch.zeros(1), True, False, None)

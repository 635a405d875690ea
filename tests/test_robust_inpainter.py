"""Inpainting: known pixels stay, attention copies, the foreground has no influence, a killed training goes on."""

import types

import pytest
import torch

import experiment
import storage
import trainer
from experiment import UserError
from robust_training import digits, formats, inpaint, inpainter, photos
from robust_training.batch import from_masks, rectangles

SHORT = ("--steps", "4", "--batch", "4", "--width", "4")


@pytest.fixture
def model():
    with experiment.seeded(0, "inpainter"):
        return inpainter.Inpainter(4)


@pytest.fixture
def critics():
    with experiment.seeded(0, "critics"):
        return inpainter.Critics(4)


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 48, generator=experiment.generator(0, "images")) * 2 - 1


def box(top, bottom, left, right, n=3, height=32, width=48):
    where = torch.zeros(n, 1, height, width, dtype=torch.bool)
    where[:, :, top:bottom, left:right] = True
    return where


HOLES, FOREGROUNDS = box(2, 15, 3, 20), box(18, 31, 20, 47)


# --- filling ------------------------------------------------------------------------------------------


def test_known_pixels_are_the_very_same_and_those_of_the_hole_have_no_influence(model, images):
    filled = model.fill(images, HOLES)
    assert filled.shape == images.shape
    assert torch.equal(filled[~HOLES.expand_as(images)], images[~HOLES.expand_as(images)])
    assert (filled != images).any(1, keepdim=True)[HOLES].all()
    assert torch.equal(model.fill(torch.where(HOLES, 0.7, images), HOLES), filled)
    assert not torch.equal(model.fill(torch.where(HOLES, images, -images), HOLES)[:, :, 8, 8], filled[:, :, 8, 8])


def test_a_hole_over_everything_is_filled_with_numbers(model, images):
    everything = torch.ones_like(HOLES)
    assert model.fill(images, everything).isfinite().all()
    assert torch.equal(model.fill(images, torch.zeros_like(HOLES)), images)


def test_images_are_filled_each_by_itself(model, images):
    assert torch.allclose(model.fill(images[1:2], HOLES[1:2]), model.fill(images, HOLES)[1:2], atol=1e-5)


@pytest.mark.parametrize(("shape", "match"), [
    ((2, 3, 30, 32), "30 x 32 pixels cannot be filled"), ((2, 3, 8, 8), "at least 16"),
    ((2, 1, 32, 32), "do not fit"), ((1, 3, 32, 32), "do not fit")])  # fmt: skip
def test_images_of_a_wrong_shape_are_refused(model, shape, match):
    with pytest.raises(UserError, match=match):
        model.fill(torch.zeros(shape), torch.zeros(2, 1, *shape[2:], dtype=torch.bool))
    with pytest.raises(UserError, match=r"not torch\.float32"):
        model.fill(torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32))


def test_the_default_is_small_enough_to_be_kept(tmp_path):
    network = inpainter.Inpainter()
    storage.save_checkpoint(tmp_path / "a.pt", {"model": network.state_dict()})
    assert (tmp_path / "a.pt").stat().st_size < 2_000_000


def test_a_checkpoint_rebuilds_its_network(model, images):
    state = {"architecture": {"name": "inpainter", "settings": model.settings}, "model": model.state_dict()}
    assert torch.equal(inpainter.restore(state).fill(images, HOLES), model.fill(images, HOLES))
    with pytest.raises(UserError, match="this checkpoint is of small"):
        inpainter.restore(state | {"architecture": {"name": "small", "settings": {}}})


# --- attention ----------------------------------------------------------------------------------------


def test_attention_copies_the_patch_that_fits():
    """On a ground that repeats itself every 4 cells the hole is filled exactly, though its features are damped."""
    tile = torch.randn(2, 8, 4, 4, generator=experiment.generator(0, "tile"))
    ground = (tile - tile.mean((2, 3), keepdim=True)).repeat(1, 1, 4, 4)
    holes = box(5, 9, 6, 9, 2, 16, 16)
    damped = torch.where(holes, 0.4 * ground, ground)
    assert torch.allclose(inpainter.attend(damped, holes, inpainter.shares(damped, holes, 1e4)), ground, atol=1e-4)
    alike = inpainter.shares(damped, holes, 0.0)  # every known patch counts the same: their mean
    vague = inpainter.attend(damped, holes, alike)
    assert (vague - ground).abs()[holes.expand_as(ground)].mean() > 0.3
    assert torch.equal(vague[~holes.expand_as(ground)], ground[~holes.expand_as(ground)])


def test_attention_is_a_softmax_of_cosines_over_the_known_patches():
    """Against a loop over the nine patches that cover the hole of one cell, and over the patches they may copy."""
    x = torch.ones(1, 2, 8, 16)
    x[..., 8:] = -1
    holes = box(3, 4, 2, 3, 1, 8, 16)
    known = inpainter.usable(holes)[0, 0].view(8, 16)
    got = inpainter.attend(x, holes, inpainter.shares(x, holes, 0.5))[0, 0, 3, 2]
    whole = inpainter.patches(x)[0].T
    unit = torch.nn.functional.normalize(inpainter.patches(x - x.mean((2, 3), keepdim=True))[0].T, dim=1)
    wanted = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            query = unit[(3 + dy) * 16 + 2 + dx]
            share = torch.stack([torch.exp(0.5 * query @ unit[k]) if known.flatten()[k] else torch.tensor(0.0)
                                 for k in range(128)])  # fmt: skip
            wanted.append((share / share.sum()) @ whole[:, (1 - dy) * 3 + 1 - dx])
    assert got.item() == pytest.approx(torch.stack(wanted).mean().item(), abs=1e-5)
    assert 0.1 < got < 0.5


def test_pixels_are_copied_cell_by_cell():
    images = torch.rand(1, 3, 16, 16, generator=experiment.generator(0, "images"))
    share = torch.zeros(1, 16, 16)
    share[:, :, 7] = 1  # every cell copies the one in row 1, column 3
    hole = box(9, 12, 0, 6, 1, 16, 16)
    got = inpainter.copy_pixels(images, hole, share)
    wanted = images.clone()
    wanted[:, :, 9:12, 0:4], wanted[:, :, 9:12, 4:6] = images[:, :, 5:8, 12:16], images[:, :, 5:8, 12:14]
    assert torch.equal(got, wanted)


def test_only_known_patches_may_be_copied():
    holes = torch.cat([box(2, 3, 2, 3, 1, 5, 5), torch.ones(1, 1, 5, 5, dtype=torch.bool), box(0, 5, 1, 4, 1, 5, 5)])
    ring = torch.ones(5, 5, dtype=torch.bool)
    ring[1:4, 1:4] = False
    wanted = torch.stack([ring, torch.ones_like(ring), ~holes[2, 0]])
    assert torch.equal(inpainter.usable(holes).view(3, 5, 5), wanted)


# --- holes --------------------------------------------------------------------------------------------


def test_holes_are_rectangles_that_never_touch_the_foreground():
    stream = experiment.generator(0, "holes")
    foregrounds = torch.cat([box(0, 20, 0, 20, 40), box(12, 20, 10, 40, 40), box(31, 32, 47, 48, 40)])
    holes = inpainter.draw_holes(foregrounds, torch.ones(120, dtype=torch.bool), stream)
    assert holes.flatten(1).any(1).all()
    assert not (holes & foregrounds).any()
    assert torch.equal(rectangles(holes), holes)
    assert len({tuple(hole.nonzero()[0].tolist()) for hole in holes}) > 40  # anywhere
    assert holes.sum((1, 2, 3)).max() > 100


def test_there_is_no_hole_where_none_fits_or_the_foreground_is_not_known():
    known = torch.tensor([True, False, True])
    foregrounds = torch.cat([box(0, 32, 0, 48, 1), box(0, 0, 0, 0, 1), box(2, 9, 2, 9, 1)])
    for k in range(20):
        holes = inpainter.draw_holes(foregrounds, known, experiment.generator(k, "holes"))
        assert not holes[:2].any()
        assert 4 <= holes[2].sum() <= 49  # like the only other foreground there is that fits: its own
    nothing = inpainter.draw_holes(box(0, 0, 0, 0), torch.zeros(3, dtype=torch.bool), experiment.generator(0, "holes"))
    assert not nothing.any()


# --- losses -------------------------------------------------------------------------------------------


def losses(model, critics, images):
    terms, filled = inpainter.generator_losses(model, critics, images, HOLES, FOREGROUNDS)
    against = inpainter.critics_loss(critics, images, filled, HOLES, FOREGROUNDS)
    return {name: value.item() for name, value in (terms | {f"against {k}": v for k, v in against.items()}).items()}


def test_the_foreground_has_no_influence_on_any_loss(model, critics, images):
    for network in (model, critics):
        network.eval()  # spectral norms move in training
    before = losses(model, critics, images)
    assert set(before) == {"coarse hole", "coarse known", "fine hole", "fine known", "local", "global",
                           "against local", "against global"}  # fmt: skip
    assert losses(model, critics, torch.where(FOREGROUNDS, -images, images)) == before
    other = losses(model, critics, torch.where(HOLES, -images, images))
    assert all(other[name] != before[name] for name in ("coarse hole", "fine hole", "against local", "against global"))
    assert other["fine known"] == before["fine known"]


def test_gradients_reach_every_parameter(model, critics, images):
    terms, _ = inpainter.generator_losses(model, critics, images, HOLES, FOREGROUNDS)
    sum(terms.values()).backward()  # the critics' hinge is left out: within its margins the last bias cancels
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in model.parameters())
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in critics.parameters())


@pytest.mark.parametrize("term", ["fine hole", "local", "global"])
def test_each_term_alone_trains_the_refinement(model, critics, images, term):
    terms, _ = inpainter.generator_losses(model, critics, images, HOLES, FOREGROUNDS)
    terms[term].backward()
    assert model.decoders["fine"].large[1].weight.grad.abs().sum() > 0


def test_hinge_and_l1_by_hand():
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 0.0])
    assert inpainter.hinge(real, fake).item() == pytest.approx(0.25 + 0.5)
    assert inpainter.hinge(fake).item() == pytest.approx(1.5)
    hole = box(1, 3, 1, 3, 1, 4, 4)
    made, image = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 7.0)
    image[:, :, 1, 1:3], image[:, :, 2, 1:3] = 1.0, -2.0
    assert inpainter.distance(made, image, hole * 1.0).item() == pytest.approx(1.5)
    assert inpainter.distance(made, image, hole * 0.0).item() == 0


def of_mean(images, holes, foregrounds):
    """Critics whose logits are the images' mean and twice that."""
    return {"local": images.mean((1, 2, 3)), "global": 2 * images.mean((1, 2, 3))}


def test_reconstruction_by_hand():
    """A hole of 3 x 3 pixels is wrong by 1 in its middle, which weighs 0.99; the ground is wrong by 2."""
    hole, foreground = box(1, 4, 1, 4, 1, 8, 8), box(5, 8, 5, 8, 1, 8, 8)
    images = torch.full((1, 3, 8, 8), 2.0)
    images[:, :, 1:4, 1:4], images[:, :, 2, 2], images[:, :, 5:, 5:] = 0.0, 1.0, 9.0
    found = inpainter.reconstruction(torch.zeros_like(images), images, hole, foreground)
    assert found["hole"].item() == pytest.approx(0.99 / 8.99)
    assert found["known"].item() == pytest.approx(2.0)


def test_the_losses_of_critics_and_generator_by_hand():
    """Two by two of four by four pixels are filled with 0, where all is 1 else: a mean of 3/4."""
    images, nothing = torch.ones(1, 3, 4, 4), box(0, 0, 0, 0, 1, 4, 4)
    hole, half = box(1, 3, 1, 3, 1, 4, 4), torch.tensor(0.5, requires_grad=True)
    network = lambda images, holes: (half.expand_as(images), 0 * half.expand_as(images))
    terms, filled = inpainter.generator_losses(network, of_mean, images, hole, nothing)
    assert {name: value.item() for name, value in terms.items()} == {
        "coarse hole": 0.5, "coarse known": 0.5, "fine hole": 1.0, "fine known": 1.0, "local": -0.75, "global": -1.5}
    assert filled.requires_grad
    assert set(inpainter.generator_losses(network, None, images, hole, nothing)[0]) == {*terms} - {"local", "global"}
    found = inpainter.critics_loss(of_mean, images / 4, filled, hole, nothing)
    assert {name: value.item() for name, value in found.items()} == {"local": 0.75 + 1.75, "global": 0.5 + 2.5}
    assert not found["local"].requires_grad  # the generator learns nothing of it


def test_errors_in_held_out_holes_by_hand():
    """Images of 0.5 alone, one of which has no known foreground and so no hole."""
    batch = from_masks(torch.full((2, 3, 32, 32), 0.5), torch.zeros(2), torch.zeros(2),
                       torch.cat([box(2, 9, 2, 9, 1, 32, 32), box(0, 0, 0, 0, 1, 32, 32)]))  # fmt: skip
    source = types.SimpleNamespace(batches=lambda size: iter([batch]))
    network = lambda images, holes: (torch.full_like(images, 1.0), torch.full_like(images, 0.75))
    found = inpaint.errors(network, source, 0, "cpu")
    assert torch.cat([found[arm] for arm in ("coarse", "cagan", "mean", "ring")]).tolist() == [0.5, 0.25, 0.5, 0.0]


def test_weights_fall_towards_the_middle_of_a_hole():
    got = inpainter.weights_of(box(1, 6, 2, 6, 1, 8, 8), 0.5)[0, 0, 1:6, 2:6]
    wanted = torch.tensor([[1, 1, 1, 1], [1, 0.5, 0.5, 1], [1, 0.5, 0.5, 1], [1, 0.5, 0.5, 1], [1, 1, 1, 1]])
    assert torch.equal(got, wanted)
    assert inpainter.weights_of(box(1, 6, 2, 6, 1, 8, 8)).sum() == inpainter.weights_of(
        box(1, 6, 2, 6, 1, 8, 8))[0, 0, 1:6, 2:6].sum()  # fmt: skip


def test_the_window_is_around_the_hole_and_inside_the_image(images):
    holes = torch.cat([box(0, 4, 0, 4, 1), box(10, 20, 20, 24, 1), box(30, 32, 40, 48, 1)])
    got = inpainter.window(images, holes)
    for k, (top, left) in enumerate([(0, 0), (7, 10), (16, 24)]):
        assert torch.equal(got[k], images[k, :, top:top + 16, left:left + 24])


def test_the_colour_of_the_ring_is_that_of_the_ground_around_the_hole():
    image = torch.full((1, 3, 32, 48), 9.0)
    hole, foreground = box(10, 20, 10, 20, 1), box(10, 20, 21, 30, 1)
    image[:, :, 6:24, 6:24] = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
    image = torch.where(foreground | hole, -5.0, image)
    assert inpaint.ring_colour(image, hole, foreground).flatten().tolist() == pytest.approx([1, 2, 3])
    assert inpaint.ring_colour(image, hole, ~hole).abs().max() == 0


# --- the script ----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(digits, "NUMBER", {"train": 30, "val": 20, "test": 10})


def weights(run):
    return storage.load_checkpoint(run / "ckpt/best.pt")["model"]


def test_a_training_leaves_its_record_and_figure_and_is_reused(few, call, tmp_path):
    arguments = (*SHORT, "--run", tmp_path / "run", "--results", tmp_path / "results")
    code, out, error = call("robust_training.inpaint", *arguments, "--write", tmp_path / "infills")
    assert code == 0, error
    assert "50 infills written, 0 were there" in out
    rows = storage.read_lines(tmp_path / "results/metrics.jsonl")
    found = {row["arm"]: row for row in rows if row["metric"] == "hole l1"}
    assert set(found) == {"coarse", "cagan", "mean", "ring"}
    assert all(0 < row["value"] < 2 and 10 < row["n"] <= 20 and row["split"] == "val" for row in found.values())
    assert (tmp_path / "results/inpainting_digits_ten.png").is_file()
    (tmp_path / "results/inpainting_digits_ten.png").unlink()  # as if killed before
    code, out, _ = call("robust_training.inpaint", *arguments, "--write", tmp_path / "infills")
    assert (tmp_path / "results/inpainting_digits_ten.png").is_file()
    assert (code, "trained before" in out, "0 infills written, 50 were there" in out) == (0, True, True)
    assert len(storage.read_lines(tmp_path / "results/metrics.jsonl")) == len(rows)
    code, _, error = call("robust_training.inpaint", *arguments, "--lr", "0.1")
    assert code == 2
    assert "lr=0.002, not 0.1" in error


def test_a_killed_training_ends_with_the_same_bytes(few, call, tmp_path, monkeypatch):
    arguments = (*SHORT, "--steps", "10", "--results", tmp_path / "results")  # ten of seven in a pass
    assert call("robust_training.inpaint", *arguments, "--run", tmp_path / "whole")[0] == 0
    monkeypatch.setattr(trainer, "SAVE_AFTER", 0)
    monkeypatch.setattr(trainer, "LOG_EVERY", 1)
    play = inpaint.Game.play

    def dies(self, batch, number):
        if number == 8:
            raise KeyboardInterrupt
        return play(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(inpaint.Game, "play", dies)
        assert call("robust_training.inpaint", *arguments, "--run", tmp_path / "killed")[0] == 130
    assert call("robust_training.inpaint", *arguments, "--run", tmp_path / "killed")[0] == 0
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [line["step"] for line in storage.read_lines(tmp_path / "killed/log.jsonl")[:-1]] == list(range(1, 11))


def test_a_loss_that_is_no_number_is_named(few, call, tmp_path, monkeypatch):
    monkeypatch.setattr(inpainter, "hinge", lambda real, fake=None: real.mean() * (1 if fake is None else torch.nan))
    code, _, error = call("robust_training.inpaint", *SHORT, "--run", tmp_path / "run", "--results", tmp_path / "r")
    assert code == 2
    assert "local critic was not finite" in error


def test_without_critics_there_are_no_adversarial_terms(few, call, tmp_path):
    arguments = (*SHORT, "--adversary", "0", "--run", tmp_path / "run", "--results", tmp_path / "results")
    assert call("robust_training.inpaint", *arguments)[0] == 0
    line = storage.read_lines(tmp_path / "run/log.jsonl")[0]
    assert "fine hole" in line
    assert "local" not in line


def test_sizes_that_cannot_be_filled_are_refused(call, tmp_path):
    for words in (("--size", "60"), ("--size", "72"), ("--dataset", "wb", "--size", "36")):
        code, _, error = call("robust_training.inpaint", *words, "--run", tmp_path / "run")
        assert code == 2
        assert f"--size {words[-1]}" in error
    assert not (tmp_path / "run").exists()


def test_a_ground_without_room_for_a_hole_is_said(few, call, tmp_path, monkeypatch):
    monkeypatch.setattr(inpainter, "draw_holes", lambda foregrounds, *_: torch.zeros_like(foregrounds))
    code, _, error = call("robust_training.inpaint", *SHORT, "--run", tmp_path / "run", "--results", tmp_path / "r")
    assert code == 2
    assert "no hole fits beside the foreground" in error


# --- photographs -----------------------------------------------------------------------------------------


def test_infills_of_photographs_load_as_precomputed_ones(call, tmp_path, waterbirds):
    folder = tmp_path / "infills"
    arguments = ("--dataset", "wb", "--data", waterbirds, "--size", "32", *SHORT, "--results", tmp_path / "results")
    code, out, error = call("robust_training.inpaint", *arguments, "--run", tmp_path / "run", "--write", folder)
    assert code == 0, error
    assert "9 infills written" in out
    sample = formats.read("wb", "train", waterbirds)[0]
    image, infill = photos.read_image(sample.path), photos.read_image(folder / f"{sample.name}.png")
    hole = rectangles(photos.read_outline(sample, image)[None])[0].expand_as(image)
    assert torch.equal(infill[~hole], image[~hole])
    assert (infill[hole] != image[hole]).float().mean() > 0.9
    source = photos.Photos(formats.read("wb", "train", waterbirds), 32, infills=folder)
    assert sum(len(batch.infills) for batch in source.batches(4)) == 6
    (folder / f"{sample.name}.png").unlink()
    _, out, _ = call("robust_training.inpaint", *arguments, "--run", tmp_path / "run", "--write", folder)
    assert "1 infills written, 8 were there" in out
    other = ("--seed", "1", "--run", tmp_path / "other", "--write", folder)
    code, _, error = call("robust_training.inpaint", *arguments, *other)
    assert code == 2
    assert "infills of another training" in error


def test_a_set_without_marked_foreground_is_refused(monkeypatch):
    sample = formats.Sample("a", 0, -1, (), None, "none", "a")
    monkeypatch.setattr(formats, "read", lambda *_: [sample])
    with pytest.raises(UserError, match="no foreground is marked in in9 val"):
        inpaint.samples_of("in9", "val", "data")


def test_holes_of_photographs_are_their_boxes():
    sample = formats.Sample("a", 0, -1, ((0.0, 0.5, 0.5, 1.0), (0.75, 0.0, 1.0, 0.25)), None, "boxes", "a")
    wanted = torch.zeros(1, 8, 16, dtype=torch.bool)
    wanted[:, 4:, :8], wanted[:, :2, 12:] = True, True
    assert torch.equal(inpaint.foreground_of(sample, torch.zeros(3, 8, 16)), wanted)
    sample = sample._replace(boxes=(*sample.boxes, (0.5, 0.5, 0.51, 0.51)))  # less than a pixel
    assert torch.equal(inpaint.foreground_of(sample, torch.zeros(3, 8, 16)), wanted)

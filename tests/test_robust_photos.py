"""Photographs as batches: transformed with masks, boxes and infills, in any order, by any number of workers."""

import numpy
import pytest
import torch
from painting import BLUE, BOX, GREEN, inside, paint
from PIL import Image

from experiment import UserError
from robust_training import photos
from robust_training.formats import Sample
from robust_training.photos import Photos


def scenes(folder, n=6, size=(32, 32), boxed=False):
    """Noisy pictures, each with a green rectangle somewhere that a mask or a box tells; names are their numbers."""
    samples, stream = [], numpy.random.default_rng(0)
    for k in range(n):
        left, top = (int(stream.integers(0, side - 8)) for side in size)
        pixels = stream.integers(0, 200, (size[1], size[0], 3), dtype=numpy.uint8)
        picture, outline = Image.fromarray(pixels), Image.new("L", size)
        picture.paste(GREEN, (left, top, left + 8, top + 6))
        outline.paste(255, (left, top, left + 8, top + 6))
        picture.save(folder / f"{k}.png")
        outline.save(folder / f"{k}_mask.png")
        width, height = size
        box = (left / width, top / height, (left + 8) / width, (top + 6) / height)
        samples.append(Sample(folder / f"{k}.png", k % 3, k % 2, (box,) if boxed else (),
                              None if boxed else folder / f"{k}_mask.png", "boxes" if boxed else "png", str(k)))
    return samples


def green(images):
    return ((images[:, 1:2] == 1) & (images[:, :1] == -1) & (images[:, 2:] == -1))


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize(("resize", "size"), [("squash", (32, 32)), ("short", (48, 28)), ("short", (28, 40))])
def test_image_and_foreground_stay_aligned(tmp_path, resize, size, boxed):
    """The mask is the green pixels, whatever crop and mirror were drawn; some always stay."""
    source = Photos(scenes(tmp_path, size=size, boxed=boxed), size=28, resize=resize, train=True)
    for epoch in range(4):
        for batch in source.batches(4, epoch):
            assert batch.images.shape[1:] == (3, 28, 28)
            assert torch.equal(batch.masks, green(batch.images))
            assert torch.equal(batch.rectangles, batch.masks)
            assert batch.known.all()


def test_images_are_mirrored_and_moved(tmp_path):
    """Over many passes both orientations and many places are drawn."""
    source = Photos(scenes(tmp_path, n=1), size=28, train=True)
    plain = photos.read_image(tmp_path / "0.png").float() / 127.5 - 1
    crops = {(top, left): plain[:, top:top + 28, left:left + 28] for top in range(5) for left in range(5)}
    crops = {(*at, flip): crop.flip(2) if flip else crop for at, crop in crops.items() for flip in (0, 1)}
    drawn = {next(key for key, crop in crops.items() if torch.allclose(crop, source.example(0, epoch)[0]))
             for epoch in range(40)}
    assert {flip for _, _, flip in drawn} == {0, 1}
    assert len(drawn) > 15


def test_evaluation_squashes_in_order(tmp_path):
    source = Photos(scenes(tmp_path, size=(64, 32)), size=16, train=True)
    batches = list(source.batches(4))
    assert [len(batch) for batch in batches] == [4, 2]
    assert torch.cat([batch.labels for batch in batches]).tolist() == source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.cat([batch.places for batch in batches]).tolist() == source.places.tolist() == [0, 1, 0, 1, 0, 1]
    assert batches[0].images.shape == (4, 3, 16, 16)
    assert batches[0].infills is None
    assert torch.equal(batches[0].images, next(source.batches(4)).images)
    assert -1 <= batches[0].images.min() < -0.5
    assert 0.5 < batches[0].images.max() <= 1


def test_what_is_drawn_does_not_depend_on_workers_or_batches(tmp_path):
    samples, state = scenes(tmp_path), torch.get_rng_state()
    passes = [list(Photos(samples, size=28, train=True, workers=workers).batches(size, stream))
              for workers, size, stream in [(0, 2, 1), (2, 2, 1), (0, 6, 1), (0, 6, 2)]]
    one, two, large, other = (torch.cat([batch.images for batch in part]) for part in passes)
    assert torch.equal(one, two)
    assert torch.equal(one, large)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)  # nothing else is moved
    assert sorted(torch.cat([batch.labels for batch in passes[0]]).tolist()) == [0, 0, 1, 1, 2, 2]


def test_a_crop_keeps_some_of_a_tiny_foreground():
    """One pixel of 100 x 100 is in few of the crops of 5 x 5: it is in every one that is chosen."""
    for seed, (row, column) in enumerate([(0, 0), (99, 99), (0, 99), (50, 3), (97, 50)] * 4):
        mask = torch.zeros(1, 100, 100, dtype=torch.bool)
        mask[:, row, column] = True
        top, left = photos.window(mask, 5, torch.Generator().manual_seed(seed))
        assert mask[:, top:top + 5, left:left + 5].sum() == 1
        assert min(top, left) >= 0
        assert max(top, left) <= 95


@pytest.mark.parametrize("boxed", [False, True])
def test_a_foreground_that_shrinks_to_nothing_is_not_known(tmp_path, boxed):
    paint(tmp_path / "a.png", (64, 64))
    paint(tmp_path / "mask.png", (64, 64), (3, 3, 4, 4), (255,) * 3, (0, 0, 0))
    sample = Sample(tmp_path / "a.png", 0, -1, ((0.05, 0.05, 0.06, 0.06),) if boxed else (),
                    None if boxed else tmp_path / "mask.png", "boxes" if boxed else "png", "a")
    batch = next(Photos([sample], size=8).batches(1))
    assert batch.known.tolist() == [False]
    assert not batch.rectangles.any()


def test_a_foreground_is_an_outline_and_its_rectangle_or_not_read_at_all(tmp_path):
    samples = scenes(tmp_path, n=1)
    outline = Image.new("L", (32, 32))
    outline.putpixel((2, 4), 1)
    outline.putpixel((9, 7), 1)
    outline.save(tmp_path / "0_mask.png")
    outlined, none = (next(Photos(samples, size=32, known=known).batches(1)) for known in (True, False))
    assert outlined.masks.sum() == 2
    assert torch.equal(outlined.rectangles[0], inside((32, 32), (2, 4, 10, 8)))
    assert none.known.tolist() == [False]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
@pytest.mark.parametrize("stream", [None, 0, 1, 2])
def test_infills_move_with_their_image(tmp_path, suffix, stream):
    """The infill is blue where the image is green; an image without foreground is its own infill."""
    samples = []
    for name in ("a", "b"):
        paint(tmp_path / f"{name}.png", (32, 32), BOX)
        samples.append(Sample(tmp_path / f"{name}.png", 0, -1, (), None, "none", name))
    samples[0] = samples[0]._replace(boxes=((0, 0.5, 0.75, 1),), kind="boxes")
    paint(tmp_path / f"infills/a{suffix}", (32, 32), BOX, BLUE)
    source = Photos(samples, size=28 if stream is not None else 32, train=True, infills=tmp_path / "infills")
    batch = next(source.batches(2, stream))
    known, other = int(batch.known.int().argmax()), int(batch.known.int().argmin())
    image, infill, mask = batch.images[known], batch.infills[known], batch.masks[known, 0]
    assert mask.any()
    assert (infill[2] - image[2])[mask].min() > 1.9
    assert (infill - image)[:, ~mask].abs().max() < 0.02
    assert torch.equal(batch.infills[other], batch.images[other])


def test_an_infill_that_is_missing_or_does_not_fit_is_named(tmp_path):
    samples = scenes(tmp_path, n=2)
    (tmp_path / "infills").mkdir()
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^\S*0.png has no infill: neither \S*infills/0.jpg nor .png is there$"):
            list(Photos(samples, infills=tmp_path / "infills", workers=workers).batches(2))
    paint(tmp_path / "infills/0.png", (32, 31))
    with pytest.raises(UserError, match=r"infills/0.png is of 32 x 31 pixels and its image .*0.png of 32 x 32"):
        list(Photos(samples, infills=tmp_path / "infills").batches(2))
    with pytest.raises(UserError, match="elsewhere is missing"):
        Photos(samples, infills=tmp_path / "elsewhere")


def test_wrong_settings_and_images_are_one_line(tmp_path):
    samples = scenes(tmp_path, n=1)
    for settings, message in [({"resize": "fit"}, "resize can be squash, short, not 'fit'"),
                              ({"known": False, "infills": tmp_path}, "infills replace a foreground")]:
        with pytest.raises(UserError, match=message):
            Photos(samples, **settings)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0.png is not an image that can be read"):
        next(Photos(samples).batches(1))
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match=r"no image at .*0.png"):
        next(Photos(samples).batches(1))

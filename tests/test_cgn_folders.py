"""Folders of images on tiny trees: what is read, in which order, and what is refused."""

import pytest
import torch
from PIL import Image

import datasets
from cgn import folders
from cgn.folders import Folder, Pictures, cue_conflict, in9
from experiment import UserError


def paint(path, colour=(9, 9, 9), size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    """Three classes with 4, 2 and 1 images, each of a grey of its own, and files that are no images."""
    names = ("n02/a.png", "n02/b.PNG", "n02/c.jpg", "n02/d.JPEG", "n01/x.png", "n01/y.jpeg", "n10/only.JPG")
    for k, name in enumerate(names):
        paint(tmp_path / name, (30 * k,) * 3)
    for name in ("n01/notes.txt", "n01/.x.png", "README.md", ".git/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    return tmp_path


GREYS = (120, 150, 0, 30, 60, 90, 180)  # in the order of classes n01, n02, n10 and of their files' names


def greys(batches):
    """The grey of every image, in the order in which they come."""
    return torch.cat([datasets.to_bytes(images)[:, 0, 0, 0] for images, _, _ in batches]).tolist()


def test_classes_and_files_come_in_the_order_of_their_names(tree):
    folder = Folder(tree, 16)
    assert folder.classes == ("n01", "n02", "n10")
    assert len(folder) == 7
    parts = list(folder.batches(3))
    assert [images.shape for images, _, _ in parts] == [(3, 3, 16, 16), (3, 3, 16, 16), (1, 3, 16, 16)]
    assert parts[0][0].dtype == torch.float32
    assert torch.cat([labels for _, labels, _ in parts]).tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert {masks for _, _, masks in parts} == {None}
    assert greys(parts) == pytest.approx(GREYS, abs=1)  # a JPEG may round


def gradient(path, width, height):
    """An image whose red is its column and whose green is its row."""
    pixels = torch.zeros(height, width, 3, dtype=torch.uint8)
    pixels[..., 0], pixels[..., 1] = torch.arange(width), torch.arange(height)[:, None]
    Image.fromarray(pixels.numpy()).save(path)
    return path


def test_the_centre_is_kept_at_its_proportions(tmp_path):
    wide, high = gradient(tmp_path / "wide.png", 100, 64), gradient(tmp_path / "high.png", 64, 100)
    images = datasets.to_bytes(next(Pictures([wide, high], torch.zeros(2), 64).batches(2))[0])
    line = torch.arange(64, dtype=torch.uint8)
    assert torch.equal(images[0, 0], (line + 18).expand(64, 64))
    assert torch.equal(images[0, 1], line[:, None].expand(64, 64))
    assert torch.equal(images[1, 1], (line + 18)[:, None].expand(64, 64))
    inner = next(Pictures([wide], torch.zeros(1), 56, share=0.875).batches(1))[0]
    assert torch.equal(datasets.to_bytes(inner)[0, 0, 0], line[:56] + 22)  # 56 of 64 columns, from the 22nd on
    small = datasets.to_bytes(next(Pictures([wide], torch.zeros(1), 32).batches(1))[0])
    off = small[0, 0].float() - (2 * torch.arange(32) + 18.5)
    assert off[:, 1:-1].abs().max() <= 1  # the mean of two columns each


def test_a_number_names_the_order_of_a_pass(tree):
    folder = Folder(tree, 8)
    assert greys(folder.batches(3, "a")) == greys(folder.batches(2, "a"))
    assert greys(folder.batches(3, "a")) != greys(folder.batches(3, "b"))
    assert greys(folder.batches(3, "a")) != greys(Folder(tree, 8, seed=1).batches(3, "a"))
    assert sorted(greys(folder.batches(3, "a"))) == sorted(greys(folder.batches(3)))
    known = dict(zip(greys(folder.batches(7)), folder.labels.tolist(), strict=True))
    for images, labels, _ in folder.batches(3, "a"):
        assert [known[int(grey)] for grey in datasets.to_bytes(images)[:, 0, 0, 0]] == labels.tolist()


def test_half_the_images_are_mirrored_in_shuffled_passes_if_asked(tmp_path):
    path = gradient(tmp_path / "a.png", 64, 64)
    pictures = lambda **settings: Pictures([path] * 200, torch.zeros(200), 64, **settings)
    first = lambda batches: torch.cat([images[:, 0, 0, 0] for images, _, _ in batches]) > -0.9  # red from the right
    assert not first(pictures(flip=True).batches(50)).any()
    assert not first(pictures().batches(50, "a")).any()
    mirrored = first(pictures(flip=True).batches(50, "a"))
    assert 70 < mirrored.sum() < 130
    assert torch.equal(mirrored, first(pictures(flip=True).batches(7, "a")))
    assert not torch.equal(mirrored, first(pictures(flip=True).batches(50, "b")))
    images = next(pictures(flip=True).batches(50, "a"))[0]
    plain = next(pictures().batches(1))[0][0]
    for image, turned in zip(images, mirrored[:50], strict=True):
        assert torch.equal(image, plain.flip(2) if turned else plain)


def test_a_set_is_decoded_once_where_it_fits_into_memory(tree, monkeypatch):
    opened = []
    monkeypatch.setattr(folders, "open_image", lambda path: opened.append(path) or Image.open(path))
    folder = Folder(tree, 16)
    assert folder.is_kept()
    kept = [greys(folder.batches(3, "a")) for _ in range(2)]
    assert len(opened) == 7
    monkeypatch.setattr(folders, "KEPT", 7 * 3 * 16 * 16 - 1)
    assert not folder.is_kept()
    opened.clear()
    assert [greys(Folder(tree, 16).batches(3, "a")) for _ in range(2)] == kept
    assert len(opened) == 14


@pytest.mark.parametrize("kept", [0, folders.KEPT])
def test_a_damaged_image_is_named(tree, monkeypatch, kept):
    monkeypatch.setattr(folders, "KEPT", kept)
    (tree / "n02/c.jpg").write_bytes(b"\xff\xd8\xff and no more")
    folder = Folder(tree, 8)
    with pytest.raises(UserError, match=r"n02/c\.jpg is not an image that can be read"):
        list(folder.batches(2))


def test_what_is_no_tree_of_classes_is_refused(tree):
    with pytest.raises(UserError, match=r"no folder .*nowhere: it should hold one folder of images for each class"):
        Folder(tree / "nowhere", 8)
    with pytest.raises(UserError, match=r"no folder .*README"):
        Folder(tree / "README.md", 8)
    with pytest.raises(UserError, match="n01 has no class folders: images of a class belong into"):
        Folder(tree / "n01", 8)
    (tree / "n05").mkdir()
    (tree / "n05/notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"n05 has no images \(\.jpeg, \.jpg, \.png\)"):
        Folder(tree, 8)


# --- cue conflict -----------------------------------------------------------------------------------


@pytest.fixture
def stimuli(tmp_path):
    """One image of every category; the texture of each is that of the next, and in one more its own."""
    for shape, texture in zip(folders.CATEGORIES, folders.CATEGORIES[1:] + folders.CATEGORIES[:1], strict=True):
        paint(tmp_path / shape / f"{shape}10-{texture}3.png")
    paint(tmp_path / "cat/cat4-cat12.png")
    return tmp_path


def test_stimuli_say_shape_and_texture(stimuli):
    paths, labels = cue_conflict(stimuli)
    assert len(folders.CATEGORIES) == len(set(folders.CATEGORIES)) == 16
    assert list(folders.CATEGORIES) == sorted(folders.CATEGORIES)
    assert labels.shape == (17, 2)
    told = {path.name: tuple(folders.CATEGORIES[k] for k in pair) for path, pair in
            zip(paths, labels.tolist(), strict=True)}  # fmt: skip
    assert told["cat10-chair3.png"] == ("cat", "chair")
    assert told["truck10-airplane3.png"] == ("truck", "airplane")
    assert told["cat4-cat12.png"] == ("cat", "cat")
    assert (labels[:, 0] == labels[:, 1]).sum() == 1
    images, found, _ = next(Pictures(paths, labels, 8).batches(17))
    assert images.shape == (17, 3, 8, 8)
    assert torch.equal(found, labels)


@pytest.mark.parametrize("name", ["cat4.png", "cat4-lamp2.png", "dog4-truck2.png", "cat-truck2.png", "cat4_truck2.png",
                                  "cat4-truck.png", "xcat4-truck2.png", "cat4-truck2-dog1.png"])  # fmt: skip
def test_names_that_do_not_parse_are_refused(stimuli, name):
    paint(stimuli / "cat" / name)
    with pytest.raises(UserError, match=f"cat/{name} should be called cat<n>-<texture><m>"):
        cue_conflict(stimuli)


def test_stimuli_need_their_sixteen_folders(stimuli):
    paint(stimuli / "lamp/lamp1-cat1.png")
    with pytest.raises(UserError, match="lamp is none of them"):
        cue_conflict(stimuli)
    (stimuli / "lamp").rename(stimuli / ".lamp")
    (stimuli / "oven").rename(stimuli / ".oven")
    with pytest.raises(UserError, match="oven is missing"):
        cue_conflict(stimuli)


# --- IN-9 -------------------------------------------------------------------------------------------


@pytest.fixture
def backgrounds(tmp_path):
    titles = ("dog", "bird", "wheeled vehicle", "reptile", "carnivore", "insect", "musical instrument", "primate",
              "fish")  # fmt: skip
    for k, title in enumerate(titles):
        for split in ("original", "mixed_rand"):
            for number in range(k % 2 + 1):
                paint(tmp_path / split / "val" / f"{k:02d}_{title}" / f"fg_n0{k}_{number}_bg_n09_9.JPEG")
    return tmp_path


def test_in9_numbers_its_nine_classes(backgrounds):
    paths, labels = in9(backgrounds, "mixed_rand")
    assert labels.tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7, 8]
    assert paths[3].parent == backgrounds / "mixed_rand/val/02_wheeled vehicle"


def test_what_is_wrong_with_in9_is_said(backgrounds):
    with pytest.raises(UserError, match=r"no variation of IN-9 is called 'mixed'; there are original, mixed_same"):
        in9(backgrounds, "mixed")
    with pytest.raises(UserError, match=r"no folder .*only_fg/val"):
        in9(backgrounds, "only_fg")
    base = backgrounds / "original/val"
    paint(base / "00_cat/a.png")
    with pytest.raises(UserError, match="val has 10 class folders"):
        in9(backgrounds, "original")
    (base / "00_cat").rename(base / "n02123045")
    with pytest.raises(UserError, match="n02123045 is none of them"):
        in9(backgrounds, "original")
    (base / "n02123045").rename(base / ".away")
    (base / "03_reptile").rename(base / ".too")
    with pytest.raises(UserError, match="03 is missing"):
        in9(backgrounds, "original")

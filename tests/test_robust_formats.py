"""IN-9, Waterbirds and CCT from tiny trees in their published formats: parsed, and fetched."""

import csv
import hashlib
import io
import json
import tarfile

import numpy
import pytest
import torch
from painting import BOX, inside, paint
from PIL import Image

import downloads
from experiment import UserError
from robust_training import fetch, formats, photos
from robust_training.formats import Sample
from robust_training.photos import Photos

# --- IN-9 -----------------------------------------------------------------------------------------


@pytest.fixture
def in9(tmp_path):
    """One image of every class in every split; birds have no outline in training."""
    base = tmp_path / "bg_challenge"
    for k, title in enumerate(formats.IN9):
        part, name = f"{k:02d}_{title}", f"n0{k}_7"
        for folder in ("train/original/train", "train/original/val", "train/in9l/train", "train/in9l/val",
                       "test/original/val"):  # fmt: skip
            paint(base / folder / part / f"{name}.JPEG")
        for folder in ("mixed_same", "mixed_rand", "mixed_next"):
            paint(base / "test" / folder / "val" / part / f"fg_{name}_bg_n09_9.JPEG")
        (base / "train/no_fg/train" / part).mkdir(parents=True)
        if k != 1:
            paint(base / "train/no_fg/train" / part / f"{name}.JPEG", colour=(0, 0, 0))
        (base / "test/fg_mask/val" / part).mkdir(parents=True)
        numpy.save(base / "test/fg_mask/val" / part / f"{name}.npy", inside()[0].numpy())
    return tmp_path


@pytest.mark.parametrize(("split", "kind"), [
    ("train", "pair"), ("val", "none"), ("original", "npy"), ("mixed_same", "npy"), ("mixed_rand", "npy"),
    ("mixed_next", "npy")])  # fmt: skip
@pytest.mark.parametrize("name", ["in9", "in9l"])
def test_in9(in9, name, split, kind):
    samples = formats.read(name, split, in9)
    assert [sample.label for sample in samples] == list(range(9))
    assert {sample.place for sample in samples} == {-1}
    assert [sample.kind for sample in samples] == [kind, "none" if split == "train" else kind, *[kind] * 7]
    assert samples[2].name.startswith("02_wheeled vehicle/")
    variant = "in9l" if name == "in9l" else "original"
    folder = f"train/{variant}/{split}" if split in ("train", "val") else f"test/{split}/val"
    assert samples[0].path.parent == in9 / "bg_challenge" / folder / "00_dog"
    if kind != "none":
        assert torch.equal(photos.read_outline(samples[0], photos.read_image(samples[0].path)), inside())


def test_black_of_the_image_itself_is_no_foreground(tmp_path):
    """A pixel that is 0 in both images of the pair was black before."""
    image = paint(tmp_path / "a.png", box=(0, 0, 64, 8), colour=(0, 0, 0))
    without = Image.open(image)
    without.paste((0, 0, 0), BOX)
    without.save(tmp_path / "b.png")
    sample = Sample(image, 0, -1, (), tmp_path / "b.png", "pair", "a")
    assert torch.equal(photos.read_outline(sample, photos.read_image(image)), inside())


def test_what_is_missing_of_in9_is_named(in9):
    with pytest.raises(UserError, match=r"fg_mask/val is missing: fetch it .*--set in9\) or put a copy there by hand"):
        formats.read("in9", "mixed_rand", in9 / "elsewhere")
    folder = in9 / "bg_challenge/train/original/train/06_musical instrument"
    folder.rename(in9 / "away")
    with pytest.raises(UserError, match="06_musical instrument is missing"):
        formats.read("in9", "train", in9)


def test_a_mask_of_another_size_or_kind_is_refused(in9):
    masks = in9 / "bg_challenge/test/fg_mask/val/00_dog"
    numpy.save(masks / "n00_7.npy", numpy.ones((40, 64)))
    sample = formats.read("in9", "original", in9)[0]
    image = photos.read_image(sample.path)
    with pytest.raises(UserError, match=r"n00_7.npy is of 64 x 40 pixels and its image .*n00_7.JPEG of 64 x 48"):
        photos.read_outline(sample, image)
    numpy.save(masks / "n00_7.npy", numpy.ones((48, 64, 3)))
    with pytest.raises(UserError, match=r"n00_7.npy should be an array of rows and columns"):
        photos.read_outline(sample, image)
    numpy.save(masks / "n00_7.npy", numpy.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"n00_7.npy is not a mask that can be read"):
        photos.read_outline(sample, image)
    paint(in9 / "bg_challenge/train/no_fg/train/00_dog/n00_7.JPEG", (32, 48))
    with pytest.raises(UserError, match=r"n00_7.JPEG is of 32 x 48 pixels"):
        photos.read_outline(formats.read("in9", "train", in9)[0], image)


# --- Waterbirds -----------------------------------------------------------------------------------

COLUMNS = ["img_id", "img_filename", "y", "split", "place", "place_filename"]
BIRDS = [(0, 0, 0), (1, 0, 1), (1, 1, 0), (0, 2, 0), (0, 2, 1), (1, 2, 0), (1, 2, 1)]  # y, split, place


def metadata(folder, rows, columns=COLUMNS):
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def birds(tmp_path):
    folder, rows = tmp_path / "waterbird_complete95_forest2water2", []
    for k, (y, split, place) in enumerate(BIRDS):
        paint(folder / f"001.Black/Bird_{k}.jpg")
        paint(folder / f"segmentations/001.Black/Bird_{k}.png", colour=(51, 51, 51), ground=(0, 0, 0))
        rows.append([k, f"001.Black/Bird_{k}.jpg", y, split, place, "/o/ocean/1.jpg"])
    metadata(folder, rows)
    return tmp_path


@pytest.mark.parametrize(("split", "rows"), [
    ("train", [0, 1]), ("val", [2]), ("test", [3, 4, 5, 6]), ("orig", [3, 6]), ("flip", [4, 5])])  # fmt: skip
def test_waterbirds(birds, split, rows):
    samples = formats.read("wb", split, birds)
    assert [sample.name for sample in samples] == [f"001.Black/Bird_{k}" for k in rows]
    assert [(sample.label, sample.place) for sample in samples] == [BIRDS[k][::2] for k in rows]
    assert torch.equal(photos.read_outline(samples[0], photos.read_image(samples[0].path)), inside())


@pytest.mark.parametrize(("row", "message"), [
    ([0, "001.Black/Bird_0.jpg", 0, 3, 0, ""], r"metadata.csv, line 2: split should be one of 0, 1, 2, not '3'"),
    ([0, "001.Black/Bird_0.jpg", 2, 0, 0, ""], "line 2: y should be one of 0, 1, not '2'"),
    ([0, "001.Black/Bird_0.jpg", 0, 0, "", ""], "line 2: place should be one of 0, 1, not ''"),
    ([0, "001.Black/Bird_0.jpg", 0], "line 2: there is nothing in column split"),
    ([0, "001.Black/Bird_99.jpg", 0, 0, 0, ""], r"line 2: .*Bird_99.jpg is missing"),
    ([0, "", 0, 0, 0, ""], r"line 2: .*forest2water2 is missing")])  # fmt: skip
def test_waterbirds_with_a_wrong_row(birds, row, message):
    metadata(birds / "waterbird_complete95_forest2water2", [row])
    with pytest.raises(UserError, match=message):
        formats.read("wb", "train", birds)


def test_waterbirds_with_wrong_files(birds):
    folder = birds / "waterbird_complete95_forest2water2"
    (folder / "segmentations/001.Black/Bird_1.png").unlink()
    with pytest.raises(UserError, match=r"line 3: .*Bird_1.png is missing"):
        formats.read("wb", "train", birds)
    metadata(folder, [[0, "a.jpg"]], ["img_id", "img_filename"])
    with pytest.raises(UserError, match=r"metadata.csv has no column y, split, place"):
        formats.read("wb", "train", birds)
    (folder / "metadata.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"metadata.csv is not a CSV file that can be read"):
        formats.read("wb", "train", birds)
    metadata(folder, [], COLUMNS)
    with pytest.raises(UserError, match=r"wb train has no images"):
        formats.read("wb", "train", birds)
    (folder / "segmentations").rename(birds / "away")
    with pytest.raises(UserError, match=r"segmentations is missing: fetch it"):
        formats.read("wb", "train", birds)


# --- CCT ------------------------------------------------------------------------------------------


def trap(root, annotations, images="abcdef", split="train", present=None):
    """A CCT tree: originals of 2048 x 1536, of which copies of 1024 x 747 lie on disk."""
    for folder in ("eccv_18_annotation_files", "eccv_18_all_images_sm"):
        (root / folder).mkdir(exist_ok=True)
    content = {"images": [{"id": name, "file_name": f"{name}.jpg", "width": 2048, "height": 1536, "location": 3}
                          for name in images],
               "annotations": [{"id": str(k), "image_id": name, "category_id": category}
                               | ({} if box is None else {"bbox": box})
                               for k, (name, category, box) in enumerate(annotations)],
               "categories": [{"id": 1, "name": "opossum"}, {"id": 30, "name": "empty"}]}  # fmt: skip
    (root / f"eccv_18_annotation_files/{split}_annotations.json").write_text(json.dumps(content))
    for name in images if present is None else present:
        Image.new("RGB", (1024, 747)).save(root / f"eccv_18_all_images_sm/{name}.jpg")
    return root


def test_cct(tmp_path):
    """Several boxes, none, one at the edge, two categories, an empty image, one without a row."""
    trap(tmp_path, [
        ("a", 99, [0, 0, 1024, 768]), ("a", 99, [1024, 768, 512, 384]), ("b", 1, None), ("c", 33, [1024, 0, 2000, 384]),
        ("d", 1, [0, 0, 9, 9]), ("d", 9, [0, 0, 9, 9]), ("e", 30, None)])  # fmt: skip
    samples = formats.read("cct", "train", tmp_path)
    assert [(sample.name, sample.label, sample.kind) for sample in samples] == [
        ("a", 14, "boxes"), ("b", 0, "none"), ("c", 11, "boxes")]  # fmt: skip
    assert samples.left_out == 1
    assert [sample.boxes for sample in samples] == [
        ((0, 0, 0.5, 0.5), (0.5, 0.5, 0.75, 0.75)), (), ((0.5, 0, 1, 0.25),)]  # fmt: skip
    assert formats.CLASSES["cct"][14] == "rodent"


def test_cct_does_not_trust_half_the_boxes(tmp_path):
    samples = formats.read("cct", "train", trap(tmp_path, [("a", 1, [0, 0, 9, 9]), ("a", 1, None)]))
    assert [(sample.boxes, sample.kind) for sample in samples] == [((), "none")]


def test_cct_validates_on_places_it_has_seen(tmp_path):
    trap(tmp_path, [("a", 3, None)], split="cis_val")
    assert formats.read("cct", "val", tmp_path)[0].label == 1
    with pytest.raises(UserError, match=r"trans_test_annotations.json is missing: fetch it .*--set cct"):
        formats.read("cct", "trans_test", tmp_path)


def test_boxes_of_a_rescaled_image_fit_it(tmp_path):
    """A box of the 2048 x 1536 original fits the 1024 x 747 copy, at the left edge as well (a published bug)."""
    boxes = [("a", 1, [0, 768, 512, 768]), ("a", 1, [1024, 0, 1024, 384])]
    batch = next(Photos(formats.read("cct", "train", trap(tmp_path, boxes, "a")), size=32).batches(1))
    expected = inside((32, 32), (0, 16, 8, 32)) | inside((32, 32), (16, 0, 32, 8))
    assert torch.equal(batch.masks[0], expected)
    assert torch.equal(batch.rectangles[0], expected)  # each box, not one rectangle around both
    assert batch.known.tolist() == [True]


@pytest.mark.parametrize(("annotation", "message"), [
    (("z", 1, None), r"train_annotations.json, annotation 1: its image 'z' is not among the images"),
    ((["a"], 1, None), r"annotation 1: its image \['a'\] is not among the images"),
    (("a", 1, None), r"image 'a' is annotated, but .*a.jpg is missing"),
    (("a", 2, None), "annotation 1: category 2 is none of CCT-20's 1, 3, 5"),
    (("a", 1, [5, 5, 0, 9]), r"annotation 1: the box \(5, 5, 5, 14\) is empty or outside its image of 2048 x 1536"),
    (("a", 1, [2048, 5, 9, 9]), "annotation 1: the box .* is empty or outside"),
    (("a", 1, [-20, 5, 9, 9]), "annotation 1: the box .* is empty or outside"),
    (("a", 1, [5, 5, float("nan"), 9]), "annotation 1: the box .* is empty or outside"),
    (("a", 1, [5, 5, 9]), r"annotation 1: bbox should be four numbers, not \[5, 5, 9\]")])  # fmt: skip
def test_cct_with_a_wrong_annotation(tmp_path, annotation, message):
    with pytest.raises(UserError, match=message):
        formats.read("cct", "train", trap(tmp_path, [annotation], "ab", present="b"))


@pytest.mark.parametrize(("text", "message"), [
    ('{"images": [', r"train_annotations.json is broken JSON"), ("[1]", "there is no images, annotations"),
    ('{"images": 3, "annotations": []}', "should be lists"),
    ('{"images": [{"id": "a", "width": 9}], "annotations": []}', "image 1: there is no height"),
    ('{"images": [{"id": "a", "width": 9, "height": 0}], "annotations": []}', "image 1: .* numbers above 0"),
    ('{"images": [], "annotations": [{"image_id": "a"}]}', "annotation 1: there is no category_id")])  # fmt: skip
def test_cct_with_a_wrong_file(tmp_path, text, message):
    trap(tmp_path, [])
    (tmp_path / "eccv_18_annotation_files/train_annotations.json").write_text(text)
    with pytest.raises(UserError, match=message):
        formats.read("cct", "train", tmp_path)


def test_unknown_sets_and_splits_are_named():
    with pytest.raises(UserError, match="no set is called 'in8'; there are in9, in9l, wb, cct"):
        formats.read("in8", "train")
    with pytest.raises(UserError, match="no split of wb is called 'cis_test'; there are train, val"):
        formats.read("wb", "cis_test")


# --- fetching -------------------------------------------------------------------------------------


def packed(path, members):
    """A tar.gz of {name: content}."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def source(url, **how):
    return fetch.Source("set.tar.gz", url, "from its site", "top", "a/b", **how)


def test_fetching_unpacks_what_it_says(tmp_path, capsys):
    archive = packed(tmp_path / "there.tar.gz", {"top/x.txt": b"hello", "other/y.txt": b"not wanted"})
    root = tmp_path / "data"
    assert fetch.fetch(source(archive.as_uri()), root)
    assert (root / "a/b/x.txt").read_text() == "hello"
    assert sorted(path.name for path in root.iterdir()) == ["a"]  # neither the archive nor a temporary folder stays
    out = capsys.readouterr().out
    assert f"{archive.stat().st_size:,} bytes, SHA-256 {hashlib.sha256(archive.read_bytes()).hexdigest()}" in out
    assert "states no checksum" in out
    archive.unlink()
    assert fetch.fetch(source(archive.as_uri()), root)
    assert "is here already" in capsys.readouterr().out


@pytest.mark.parametrize(("members", "message"), [
    ({"top/x": b"", "../out.txt": b"bad"}, "set.tar.gz is refused"),
    ({"top/../../out.txt": b"bad"}, "set.tar.gz is refused"),
    ({"else/x": b""}, "holds no folder top")])  # fmt: skip
def test_an_archive_that_is_malicious_or_another_is_refused(tmp_path, members, message):
    packed(tmp_path / "there.tar.gz", members)
    with pytest.raises(UserError, match=message):
        fetch.fetch(source((tmp_path / "there.tar.gz").as_uri()), tmp_path / "data")
    assert not list(tmp_path.rglob("out.txt"))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["set.tar.gz"]


def test_an_archive_that_is_damaged_is_one_line(tmp_path):
    archive = packed(tmp_path / "set.tar.gz", {"top/x.txt": numpy.random.default_rng(0).bytes(100_000)})
    whole = archive.read_bytes()
    for content in (whole[:50_000], b"no archive"):
        archive.write_bytes(content)
        with pytest.raises(UserError, match=r"^\S* cannot be unpacked .* delete it and run this again$"):
            fetch.fetch(source(None), tmp_path)
    archive.write_bytes(whole)
    with pytest.raises(UserError, match=r"is damaged or another file: it has .* delete it"):
        fetch.fetch(source(None, size=3, md5="0" * 32), tmp_path)
    digest = hashlib.md5(whole).hexdigest()
    assert fetch.fetch(source(None, size=len(whole), md5=digest), tmp_path)  # it lay there: placed by hand


def test_a_dead_source_names_the_way_by_hand(tmp_path, call, monkeypatch):
    dead = source((tmp_path / "nowhere.tar.gz").as_uri())
    monkeypatch.setitem(fetch.SOURCES, "wb", (dead,))
    code, _, err = call("robust_training.fetch", "--set", "wb", "--root", tmp_path / "data")
    assert (code, err.count("\n")) == (2, 1)
    assert f"put set.tar.gz into {tmp_path / 'data'}/ by hand (from its site) and run this again" in err
    assert not list((tmp_path / "data").iterdir())
    code, _, err = call("robust_training.fetch")
    assert (code, err.count("\n")) == (2, 1)


def test_what_only_a_person_can_fetch_is_said(tmp_path, call, monkeypatch):
    monkeypatch.setitem(fetch.SOURCES, "in9", fetch.SOURCES["in9"][1:])
    code, out, _ = call("robust_training.fetch", "--set", "in9", "--root", tmp_path)
    assert code == 0
    assert "original.tar.gz" in out
    assert "no_fg has no lasting address" in out
    assert "--check" not in out


def test_a_download_that_ends_early_leaves_nothing(tmp_path, monkeypatch):
    class Answer(io.BytesIO):
        headers = {"Content-Length": "10"}  # noqa: RUF012

    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda url, timeout: Answer(b"short"))
    with pytest.raises(UserError, match=r"ended after 5 of 10 bytes\); by hand"):
        downloads.download("http://x", tmp_path / "x.tgz", "by hand")
    Answer.headers = {"Content-Length": str(10**18)}
    with pytest.raises(UserError, match="has room for"):
        downloads.download("http://x", tmp_path / "x.tgz", "by hand")
    assert not list(tmp_path.iterdir())


def test_weights_are_recognised(tmp_path, call):
    path = tmp_path / "BiT-S-R50x1.npz"
    numpy.savez(path, **{fetch.KERNEL: numpy.zeros((7, 7, 3, 64), numpy.float32)})
    code, out, _ = call("robust_training.fetch", "--set", "bit", "--root", tmp_path)
    assert code == 0
    assert "1 arrays, the first convolution is (7, 7, 3, 64)" in out
    numpy.savez(path, other=numpy.zeros(3))
    assert call("robust_training.fetch", "--set", "bit", "--root", tmp_path, "--check")[0] == 2
    path.write_bytes(b"no weights")
    code, _, err = call("robust_training.fetch", "--set", "bit", "--root", tmp_path)
    assert code == 2
    assert "cannot be read as BiT's weights" in err


def test_check_says_what_was_found(birds, call):
    code, out, _ = call("robust_training.fetch", "--set", "wb", "--root", birds, "--check")
    assert code == 0
    assert "wb train: 2 images, foreground known in 100.0%; landbird 1, waterbird 1" in out
    assert out.count("\n") == 5


def test_check_says_what_is_wrong_and_goes_on(tmp_path, call):
    trap(tmp_path, [("a", 1, None), ("b", 1, [0, 0, 999, 999]), ("c", 1, None), ("c", 3, None)], "abc")
    code, out, err = call("robust_training.fetch", "--set", "cct", "--root", tmp_path, "--check")
    assert code == 2
    assert "cct train: 2 images, foreground known in 50.0%; opossum 2, raccoon 0" in out
    assert "; 1 of two classes left out" in out
    assert "cannot be read in full: see above for val, cis_test, trans_test, trans_val" in err

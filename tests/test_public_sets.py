"""CelebA, CheXpert and Mall from tiny trees in their published formats; images of any mode and size."""

import csv

import numpy
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import catalogue
import downloads
import public_sets
import stand_ins
from experiment import UserError

ATTRIBUTES = "Bald Blond_Hair Smiling"
FINDINGS = ["No Finding", "Cardiomegaly", "Edema"]


@pytest.fixture
def celeba(tmp_path):
    """Six faces: four to train, one to validate, one to test; blond are 2, 3 and 6."""
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    rows, parts = [], []
    for k in range(1, 7):
        Image.new("RGB", (178, 218), (40 * k, 10, 10)).save(folder / f"img_align_celeba/{k:06d}.jpg")
        rows.append(f"{k:06d}.jpg  -1  {1 if k in (2, 3, 6) else -1}  1")
        parts.append(f"{k:06d}.jpg {[0, 0, 0, 0, 1, 2][k - 1]}")
    (folder / "list_attr_celeba.txt").write_text("6\n" + ATTRIBUTES + " \n" + "\n".join(rows) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return tmp_path


def test_celeba(celeba):
    faces = public_sets.celeba("train", root=celeba)
    assert faces.images.shape == (4, 3, 64, 64)
    assert faces.labels.tolist() == [0, 1, 1, 0]
    assert faces.images[:, 0].float().mean((1, 2)).tolist() == pytest.approx([40, 80, 120, 160], abs=3)
    assert public_sets.celeba("test", root=celeba).labels.tolist() == [1]
    assert public_sets.celeba("train", "Smiling", root=celeba).labels.tolist() == [1, 1, 1, 1]
    with pytest.raises(UserError, match="no attribute 'Blond'; there are Bald, Blond_Hair, Smiling"):
        public_sets.celeba("train", "Blond", root=celeba)


def test_celeba_keeps_the_centre():
    picture = Image.new("RGB", (178, 218), "white")
    picture.paste((0, 0, 0), (15, 35, 163, 183))
    assert public_sets.to_tensor(picture, (3, 64, 64), 148).max() == 0


def test_what_was_read_is_read_once(celeba, monkeypatch):
    first = public_sets.celeba("train", root=celeba)
    monkeypatch.setattr(public_sets, "open_image", lambda path: pytest.fail("read again"))
    assert torch.equal(public_sets.celeba("train", root=celeba).images, first.images)


def test_a_cache_that_is_damaged_or_cannot_be_written_is_gone_without(celeba, monkeypatch):
    whole = public_sets.celeba("train", root=celeba).images
    cache = next((celeba / "celeba").glob("cache_train_64_*.npy"))
    for content in (cache.read_bytes()[:100], b"damaged", b""):
        cache.write_bytes(content)
        assert torch.equal(public_sets.celeba("train", root=celeba).images, whole)
        assert cache.stat().st_size > whole.numel()

    def refuse(path, data):
        raise UserError(f"cannot write {path}")

    cache.unlink()
    monkeypatch.setattr(public_sets.storage, "write_atomically", refuse)
    assert torch.equal(public_sets.celeba("train", root=celeba).images, whole)


def test_a_split_without_images_is_one_line(mall):
    with pytest.raises(UserError, match="mall_dataset has no images of this split"):
        public_sets.mall("test", root=mall)  # of three frames none is after the 800th


@pytest.fixture
def chexpert(tmp_path):
    """Five radiographs of the released CSV: positive, negative, uncertain, blank, and a lateral one."""
    folder = tmp_path / "CheXpert-v1.0-small"
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS]
    for name in ("train", "valid"):
        rows = []
        for k, (view, label) in enumerate([("Frontal", "1.0"), ("Frontal", "0.0"), ("Frontal", "-1.0"), ("Frontal", ""),
                                           ("Lateral", "1.0")]):  # fmt: skip
            path = f"CheXpert-v1.0-small/{name}/patient{k:05d}/study1/view1_{view.lower()}.jpg"
            (tmp_path / path).parent.mkdir(parents=True)
            Image.new("L", (390, 320), 50 * k).save(tmp_path / path)
            rows.append([path, "Female", 60, view, "AP" if view == "Frontal" else "", "", label, "1.0"])
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return tmp_path


@pytest.mark.parametrize(("uncertain", "labels"), [
    ("ignore", [1, 0, 0]), ("zeros", [1, 0, 0, 0]), ("ones", [1, 0, 1, 0])])  # fmt: skip
def test_chexpert(chexpert, uncertain, labels):
    found = public_sets.chexpert("train", uncertain=uncertain, root=chexpert)
    assert found.labels.tolist() == labels
    assert found.images.shape == (len(labels), 1, 128, 128)
    assert len(public_sets.chexpert("test", root=chexpert)) == 3


def test_chexpert_refuses_what_it_does_not_know(chexpert):
    with pytest.raises(UserError, match="no finding 'Flu'; there are No Finding, Cardiomegaly, Edema"):
        public_sets.chexpert("train", "Flu", root=chexpert)
    with pytest.raises(UserError, match="uncertain labels can be ignore, zeros, ones, not 'maybe'"):
        public_sets.chexpert("train", uncertain="maybe", root=chexpert)


@pytest.fixture
def mall(tmp_path):
    """Three frames with 2, 0 and 1 heads, in the nested struct of the released .mat file."""
    (tmp_path / "mall_dataset/frames").mkdir(parents=True)
    heads = [numpy.array([[320.0, 240.0], [10.0, 470.0]]), numpy.zeros((0, 2)), numpy.array([[639.0, 0.0]])]
    frame = numpy.empty((1, 3), dtype=object)
    for k, points in enumerate(heads):
        Image.new("RGB", (640, 480), (0, 80 * k, 0)).save(tmp_path / f"mall_dataset/frames/seq_{k + 1:06d}.jpg")
        inner = numpy.zeros((1, 1), dtype=[("loc", "O")])
        inner[0, 0]["loc"] = points
        frame[0, k] = inner
    savemat(tmp_path / "mall_dataset/mall_gt.mat", {"frame": frame, "count": numpy.array([[2], [0], [1]])})
    return tmp_path


def test_mall(mall):
    found = public_sets.mall("train", root=mall)
    assert isinstance(found, stand_ins.Crowds)
    assert found.labels.tolist() == [2, 0, 1]
    assert found.images.shape == (3, 3, 64, 64)
    assert torch.allclose(found.densities.sum((1, 2, 3)), found.labels, atol=1e-4)
    assert found.densities[0, 0, 32, 32].item() == pytest.approx(1 / (2 * 3.14159 * 2**2), rel=0.01)
    assert found.densities[2, 0, 0].argmax() == 63  # the head at the right end of the top row


@pytest.mark.parametrize("name", ["celeba", "chexpert", "mall"])
def test_a_set_that_is_not_here_says_what_to_do(name, tmp_path):
    with pytest.raises(UserError, match=r"is not here: .* is missing \(README.md, Data, says how to get it\)"):
        catalogue.load(name, "train", root=tmp_path)


def test_a_damaged_annotation_or_image_is_one_line(mall, celeba):
    (mall / "mall_dataset/mall_gt.mat").write_bytes(b"no matrix")
    with pytest.raises(UserError, match="cannot be read as Mall's annotation"):
        public_sets.mall("train", root=mall)
    (celeba / "celeba/img_align_celeba/000002.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"000002.jpg is not an image that can be read"):
        public_sets.celeba("train", root=celeba)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "LA", "CMYK"])
def test_images_of_any_mode(mode, tmp_path):
    """A white image is white whatever its mode, in grey and in colour; and of any size."""
    white = {"I;16": 65535, "1": 1, "RGBA": (255, 255, 255, 255), "LA": (255, 255), "CMYK": (0, 0, 0, 0), "P": 0}
    picture = Image.new(mode, (37, 50), white.get(mode, "white"))
    if mode == "P":
        picture.putpalette([255] * 768)
    for shape in ((1, 28, 28), (3, 64, 64)):
        tensor = public_sets.to_tensor(picture, shape)
        assert tensor.shape == shape
        assert tensor.dtype == torch.uint8
        assert tensor.min() == 255


@pytest.mark.parametrize(("white", "half"), [(1.0, 127), (255.0, 127), (65535.0, 127)])
def test_greys_of_floats_have_the_range_that_their_largest_says(white, half):
    pixels = numpy.full((4, 4), white, dtype=numpy.float32)
    pixels[2:] /= 2
    found = public_sets.to_tensor(Image.fromarray(pixels), (1, 4, 4))
    assert found[0, :, 0].tolist() == [255, 255, half, half]


def test_transparency_is_laid_on_white():
    assert public_sets.to_tensor(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (1, 8, 8)).min() == 255


def test_fetching_without_a_network_is_one_line(tmp_path, call, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(downloads.urllib.request, "urlopen", refuse)
    code, _, err = call("public_sets", "--fetch", "mall", "--root", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "no route to host" in err
    code, _, err = call("public_sets")
    assert (code, err.count("\n")) == (2, 1)


def test_check_says_what_was_found(celeba, call):
    code, out, _ = call("public_sets", "--check", "celeba", "--root", celeba)
    assert code == 0
    assert "celeba train: 4 images (3, 64, 64), mean label 0.500" in out

"""The manifest of part 5: every entry well formed and in agreement with what is installed; fetched, checked, found."""

import hashlib
import re
import typing
from pathlib import Path

import pytest
from PIL import Image
from pytorch_fid.inception import FID_WEIGHTS_URL
from torchvision.models import Inception_V3_Weights, ResNet50_Weights, VGG16_Weights

import downloads
from cgn import biggan, fetch
from experiment import UserError

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WEIGHTS = [name for name, artefact in fetch.MANIFEST.items() if artefact.to.startswith("weights/")]
SETS = [name for name in fetch.MANIFEST if name not in WEIGHTS]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """published(name, content): puts content in the place of an artefact's source, under a file address."""

    def publish(name, content=CONTENT, **known):
        there = tmp_path / "there" / name
        there.parent.mkdir(exist_ok=True)
        there.write_bytes(content)
        artefact = fetch.MANIFEST[name]
        source = artefact.sources[0]._replace(url=there.as_uri(), **({"size": None, "sha256": None} | known))
        monkeypatch.setitem(fetch.MANIFEST, name, artefact._replace(sources=(source,)))
        return there

    return publish


@pytest.fixture
def unplugged(monkeypatch):
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *_, **__: pytest.fail("something was fetched"))


# --- the manifest -----------------------------------------------------------------------------------


def test_the_manifest_names_what_can_be_asked_for():
    assert tuple(fetch.MANIFEST) == typing.get_args(fetch.Name)
    assert len({artefact.to for artefact in fetch.MANIFEST.values()}) == len(fetch.MANIFEST)
    assert len(WEIGHTS) == 10


@pytest.mark.parametrize("name", fetch.MANIFEST)
def test_every_entry_is_well_formed(name):
    artefact = fetch.MANIFEST[name]
    assert re.fullmatch(r"[\w.-]+\.(com|org)(/[\w.-]+)*", artefact.page)
    assert artefact.licence
    assert artefact.needs
    assert bool(artefact.sources) != bool(artefact.by_hand)  # fetched, or told how to be had
    assert "http" not in artefact.by_hand
    assert not Path(artefact.to).is_absolute()
    for source in artefact.sources:
        assert re.fullmatch(r"https://\S+", source.url)
        assert re.search(r"\w+\.(com|org)/", source.hint)
        assert source.size is None or source.size > 0
        assert source.sha256 is None or re.fullmatch("[0-9a-f]{64}|[0-9a-f]{8}", source.sha256)
        assert source.md5 is None
        if source.sha256 and len(source.sha256) == 8:  # a publisher states it in the name of the file
            assert source.file.endswith(f"-{source.sha256}.pth")
            assert source.whose == "its publisher's"


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_lie_flat_in_one_folder(name):
    for source in fetch.MANIFEST[name].sources:
        assert re.fullmatch(r"weights/[\w.-]+\.(pth|bin|json)", source.file)
        assert (source.to, source.inside) == (source.file, None)
    assert fetch.MANIFEST[name].to == fetch.MANIFEST[name].sources[0].to


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_a_folder_of_an_archive_below_the_root(name):
    for source in fetch.MANIFEST[name].sources:
        assert re.fullmatch(r"[\w.-]+\.(tar\.gz|tar|zip)", source.file)
        assert source.inside
        assert source.to == fetch.MANIFEST[name].to


@pytest.mark.parametrize(("name", "weights"), [
    ("vgg16", VGG16_Weights.IMAGENET1K_V1), ("inception-v3", Inception_V3_Weights.IMAGENET1K_V1),
    ("resnet50", ResNet50_Weights.IMAGENET1K_V1)])  # fmt: skip
def test_torchvision_states_the_same(name, weights):
    (source,) = fetch.MANIFEST[name].sources
    assert source.url == weights.url
    assert round(source.size / 2**20, 3) == weights.meta["_file_size"]


def test_pytorch_fid_states_the_same():
    assert fetch.MANIFEST["inception-fid"].sources[0].url == FID_WEIGHTS_URL


def test_the_generators_are_those_that_are_read():
    assert {name for name in biggan.CONFIGS if name.startswith("biggan")} == {
        name for name in fetch.MANIFEST if name.startswith("biggan")}  # fmt: skip


# --- the table --------------------------------------------------------------------------------------


def test_the_table_shows_what_is_there_and_fetches_nothing(tmp_path, call, unplugged):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/u2net.pth").write_bytes(CONTENT)
    (tmp_path / "imagenet-a").mkdir()  # and nothing in it
    code, out, err = call("cgn.fetch", "--root", tmp_path)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert (code, err) == (0, "")
    assert list(lines) == ["what", *fetch.MANIFEST]
    assert re.split(r"\s\s+", lines["what"]) == ["what", "size", "licence", "source", "folder", "there", "for"]
    assert re.search(rf"176.3 MB +Apache-2.0 +github.com/xuebinqin/U-2-Net +{tmp_path}/weights/ +yes ", lines["u2net"])
    assert re.search(rf"687.6 MB +MIT .* {tmp_path}/imagenet-a/ +no ", lines["imagenet-a"])
    assert re.search(r"not published +MIT .*counterfactual_generative_networks", lines["cgn"])
    assert "about 201 MB" in lines["biggan-deep-128"]
    assert "image-net.org (by hand)" in lines["imagenet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imagenet-a", "weights"]


# --- fetching ---------------------------------------------------------------------------------------


def test_weights_are_fetched_once(tmp_path, call, published):
    there = published("cgn", sha256=SHA256[:8], size=len(CONTENT))
    root = tmp_path / "data"
    code, out, _ = call("cgn.fetch", "--what", "cgn", "--root", root)
    assert code == 0
    assert f"7,000 bytes, SHA-256 {SHA256}; the first 8 digits of its publisher's SHA-256 match" in out
    assert fetch.path_of("cgn", root).read_bytes() == CONTENT
    there.unlink()
    code, out, _ = call("cgn.fetch", "--what", "cgn", "--root", root)
    assert (code, out.count("is ready")) == (0, 1)


@pytest.mark.parametrize("known", [{"sha256": "0" * 8}, {"sha256": "0" * 64}, {"size": 7_001}])
def test_weights_that_are_others_are_thrown_away(tmp_path, call, published, known):
    published("u2net", **known)
    code, _, err = call("cgn.fetch", "--what", "u2net", "--root", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "is damaged or another file: it has 7,000 bytes" in err
    assert f"put u2net.pth into {tmp_path}/weights/ by hand (drive.google.com/file/d/1ao1" in err
    assert not list((tmp_path / "weights").iterdir())


@pytest.mark.parametrize("name", [name for name in fetch.MANIFEST if fetch.MANIFEST[name].sources])
def test_a_dead_source_names_an_address_and_a_folder(tmp_path, call, monkeypatch, name):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(downloads.urllib.request, "urlopen", refuse)
    code, _, err = call("cgn.fetch", "--what", name, "--root", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    source = fetch.MANIFEST[name].sources[0]
    place = (tmp_path / source.file).parent
    assert f"{source.url} cannot be fetched (no route to host); put {Path(source.file).name} into {place}/" in err
    assert source.hint in err
    assert not list(place.glob("*.part"))


@pytest.mark.parametrize(("name", "words"), [("imagenet", "image-net.org/download"),
                                             ("stylized-imagenet", "github.com/rgeirhos/Stylized-ImageNet")])
def test_what_only_a_person_can_fetch_is_said(tmp_path, call, unplugged, name, words):
    code, _, err = call("cgn.fetch", "--what", name, "--root", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{name} cannot be fetched: put it into {tmp_path}/{name}/ by hand" in err
    assert words in err
    (tmp_path / name / "val").mkdir(parents=True)
    code, out, _ = call("cgn.fetch", "--what", name, "--root", tmp_path)
    assert (code, out) == (0, f"{tmp_path}/{name} is here already\n")


def test_an_unknown_name_is_refused(call):
    code, _, err = call("cgn.fetch", "--what", "u3net")
    assert (code, err.count("\n")) == (2, 1)
    assert "--what must be one of biggan-deep-128," in err


# --- checking and finding ---------------------------------------------------------------------------


def test_check_verifies_what_is_there(tmp_path, call, published, unplugged):
    published("u2net", sha256=SHA256)
    published("cgn")
    (tmp_path / "weights").mkdir()
    for name in ("u2net", "cgn"):
        (tmp_path / f"weights/{name}.pth").write_bytes(CONTENT)
    (tmp_path / "imagenet-sketch/n01440764").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "imagenet-sketch/n01440764/sketch_0.JPEG", format="JPEG")
    code, out, err = call("cgn.fetch", "--check", "--root", tmp_path)
    assert (code, err) == (0, "")
    assert out.count("not there") == len(fetch.MANIFEST) - 3
    assert f"u2net.pth: 7,000 bytes, SHA-256 {SHA256}; other projects' SHA-256 matches" in out
    assert f"cgn.pth: 7,000 bytes, SHA-256 {SHA256}; its publisher states no checksum" in out
    assert f"{tmp_path}/imagenet-sketch: 1 images" in out


def test_check_says_what_is_wrong_and_goes_on(tmp_path, call, published, unplugged):
    published("u2net", sha256=SHA256)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/u2net.pth").write_bytes(CONTENT[:-1])
    for name in ("cue-conflict", "imagenet-sketch"):
        (tmp_path / name / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "cue-conflict/cat/cat1-bear1.png")
    code, out, err = call("cgn.fetch", "--check", "--root", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "something is wrong with u2net, cue-conflict, imagenet-sketch: see above" in err
    assert "it has 6,999 bytes and SHA-256" in out
    assert f"{tmp_path}/cue-conflict holds 1 images, and 1,280 are wanted: delete it; python -m cgn.fetch" in out
    assert f"{tmp_path}/imagenet-sketch holds 0 images: delete it; python -m cgn.fetch --what imagenet-sketch" in out
    assert (tmp_path / "weights/u2net.pth").read_bytes() == CONTENT[:-1]
    code, out, err = call("cgn.fetch", "--what", "vgg16", "--check", "--root", tmp_path)
    assert code == 2
    assert f"vgg16: {tmp_path}/weights/vgg16-397923af.pth is missing: python -m cgn.fetch --what vgg16" in out


def test_what_is_missing_is_missing_with_the_ways_to_get_it(tmp_path):
    command = f"python -m cgn.fetch --what cgn --root {tmp_path} fetches it"
    by_hand = rf"put it at {tmp_path}/weights/cgn.pth by hand \(drive.google.com/file/d/\w+, linked in .*\)"
    with pytest.raises(UserError, match=rf"^{tmp_path}/weights/cgn.pth is missing: {command}, or {by_hand}$"):
        fetch.path_of("cgn", tmp_path)
    with pytest.raises(UserError, match=rf"^{tmp_path}/imagenet is missing: put it into {tmp_path}/imagenet/ by hand"):
        fetch.path_of("imagenet", tmp_path)
    with pytest.raises(UserError, match="no artefact is called 'u3net'; there are biggan-deep-128, "):
        fetch.path_of("u3net", tmp_path)


@pytest.mark.parametrize("name", fetch.MANIFEST)
def test_what_is_there_is_found(tmp_path, name):
    place = tmp_path / fetch.MANIFEST[name].to
    place.parent.mkdir(parents=True, exist_ok=True)
    if name in WEIGHTS:
        place.write_bytes(CONTENT)
    else:
        (place / "train").mkdir(parents=True)
    assert fetch.path_of(name, tmp_path) == place

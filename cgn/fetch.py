"""What part 5 can use of others' work, in one table: where it is, what is known of it, how it gets here.

    python -m cgn.fetch                                       # the table; nothing is fetched unasked
    python -m cgn.fetch --what biggan-deep-256 u2net cgn      # weights, into data/weights/
    python -m cgn.fetch --what in9 cue-conflict               # image sets, into data/
    python -m cgn.fetch --check                               # verifies what is there

Nothing else in this repository needs any of it. A file that is there and is the one wanted is not fetched again; one
whose download broke off is gone on with. What cannot be reached, or only a person may fetch, can be put in its folder
by hand. Sizes and checksums are those that the publishers state (torchvision has the first eight digits of the SHA-256
in its file names) or, where they state none, those that other projects do; where nobody does, nothing is
compared, and size and SHA-256 are printed.
"""

import functools
from pathlib import Path
from typing import Literal, NamedTuple

import downloads
import experiment
from downloads import Source
from experiment import UserError
from storage import one_of

Name = Literal["biggan-deep-128", "biggan-deep-256", "biggan-deep-512", "u2net", "u2netp", "cgn", "vgg16",
               "inception-fid", "inception-v3", "resnet50", "in9", "cue-conflict", "imagenet-a", "imagenet-sketch",
               "stylized-imagenet", "imagenet"]  # fmt: skip

WHAT: tuple[Name, ...] | None = None  # what is fetched or checked; without it, the table is printed, or all is checked
ROOT: Path = Path("data")  # where it lies
CHECK: bool = False  # fetch nothing; verify what is there

NOT_PUBLISHED, NOT_STATED = "not published", "not stated"
SUFFIXES = {".jpeg", ".jpg", ".png"}  # of the images that are counted


class Artefact(NamedTuple):
    """Something of others' that can be used here.

    page     where a person reads of it, and finds it
    sources  its published files, the one that is loaded first; none if only a person can get it
    to       the file or folder that is loaded, below the root
    licence  of the weights or images, as far as it is stated
    needs    what here needs it
    by_hand  what a person does to get it, where there are no sources
    about    its size as its publisher states it, where that is not exact
    images   how many images there are in it, where that is stated
    """

    page: str
    sources: tuple[Source, ...]
    to: str
    licence: str
    needs: str
    by_hand: str = ""
    about: str | None = None
    images: int | None = None


# --- the manifest -----------------------------------------------------------------------------------

BIGGAN = "github.com/huggingface/pytorch-pretrained-BigGAN"
BIGGAN_FILES = "https://s3.amazonaws.com/models.huggingface.co/biggan/"  # pytorch_pretrained_biggan/model.py
U2NET = "github.com/xuebinqin/U-2-Net"
CGN = "github.com/autonomousvision/counterfactual_generative_networks"
TEXTURES = "github.com/rgeirhos/texture-vs-shape"
TEXTURES_COMMIT = "ccd0c01d42c0a8a834e90ec141e7f24fa915dc23"  # of its main branch, 2 May 2023
TORCHVISION = "pytorch.org/vision/stable/models"


def _weights(file, url, hint, **known):
    return Source(f"weights/{file}", url, hint, None, f"weights/{file}", **known)


def _biggan(name, needs, about=None, weights=None, config=None):
    """A generator of pytorch-pretrained-BigGAN: its weights and, for the reader only, the settings beside them."""
    hint = f"linked in pytorch_pretrained_biggan/model.py of {BIGGAN}"
    files = [(f"{name}-pytorch_model.bin", weights), (f"{name}-config.json", config)]
    sources = tuple(_weights(file, BIGGAN_FILES + file, hint, **(known or {})) for file, known in files)
    return Artefact(BIGGAN, sources, sources[0].to, f"{NOT_STATED} (code: MIT)", needs, about=about)


def _drive(file, key, page, hint, licence, needs, **known):
    """Weights on Google Drive, where a page that asks back stands before a large file unless it is confirmed."""
    url = f"https://drive.usercontent.google.com/download?id={key}&export=download&confirm=t"
    source = _weights(file, url, f"drive.google.com/file/d/{key}, {hint} of {page}", **known)
    return Artefact(page, (source,), source.to, licence, needs)


def _torchvision(file, needs, size):
    """Weights of torchvision, whose name ends with the first eight digits of their SHA-256."""
    place = f"download.pytorch.org/models/{file}"
    source = _weights(file, f"https://{place}", f"from {place}", size=size, sha256=file.removesuffix(".pth")[-8:])
    return Artefact(TORCHVISION, (source,), source.to, f"{NOT_STATED} (code: BSD-3-Clause)", needs)


def _images(page, source, licence, needs, **more):
    return Artefact(page, (source,), source.to, licence, needs, **more)


MANIFEST = {
    "biggan-deep-128": _biggan("biggan-deep-128", "BigGAN at 128 pixels", "201 MB"),
    "biggan-deep-256": _biggan(
        "biggan-deep-256", "the CGN of ImageNet: its target, and what its mechanisms start from",
        weights={"size": 234_411_737, "whose": "another project's",
                 "sha256": "5900ef4065047e3aa0d1b66197b7f2664dceb59b27080e414ad57e203c485bc5"},
        config={"size": 715, "whose": "another project's",
                "sha256": "edd106f65ff28ee1638491a978cfa6bc50dfa0344aab70749a7b8eb08bbec677"}),
    "biggan-deep-512": _biggan("biggan-deep-512", "BigGAN at 512 pixels", "225 MB"),
    "u2net": _drive("u2net.pth", "1ao1ovG1Qtx4b7EoskHXmi2E9rp5CHLcZ", U2NET, "linked in README.md",
                    "Apache-2.0", "the CGN of ImageNet: its masks", size=176_290_937, whose="other projects'",
                    sha256="10025a17f49cd3208afc342b589890e402ee63123d6f2d289a4a0903695cce58"),
    "u2netp": _drive("u2netp.pth", "1rbSTGKAE-MTxBYHd-51l2hMOQPT_7EPy", U2NET, "linked in README.md",
                     "Apache-2.0", "saliency at a fraction of the cost", size=4_683_258, whose="other projects'",
                     sha256="e7567cde013fb64813973ce6e1ecc25a80c05c3ca7adbc5a54f3c3d90991b854"),
    "cgn": _drive("cgn.pth", "12yVFHPUjKmUFGnO2D4xVlTSpF8CUj136", CGN, "linked in scripts/download_weights.sh",
                  "MIT (repository)", "the published CGN of ImageNet, without training"),
    # Exact sizes: other projects', which round to the MB that torchvision states.
    "vgg16": _torchvision("vgg16-397923af.pth", "Gram matrices: the CGN's losses, style transfer", 553_433_881),
    "inception-fid": Artefact(
        "github.com/mseitzer/pytorch-fid",
        (_weights("pt_inception-2015-12-05-6726825d.pth", "https://github.com/mseitzer/pytorch-fid/releases/download/"
                  "fid_weights/pt_inception-2015-12-05-6726825d.pth", "from github.com/mseitzer/pytorch-fid/releases",
                  size=95_628_359, sha256="6726825d"),),
        "weights/pt_inception-2015-12-05-6726825d.pth", "Apache-2.0 (repository)", "FID of images"),
    # That of torchvision since 0.10 (2021); inception_v3_google-1a9a5a14.pth was its name before.
    "inception-v3": _torchvision("inception_v3_google-0cc3c7bd.pth", "Inception Score", 108_949_747),
    # IMAGENET1K_V1, which the published classifiers start from; resnet50-11ad3fa6.pth is V2 and came after them.
    "resnet50": _torchvision("resnet50-0676ba61.pth", "the classifier trained on counterfactuals", 102_530_333),
    "in9": _images("github.com/MadryLab/backgrounds_challenge", downloads.IN9_TEST, NOT_STATED,
                   "how much classifiers rely on backgrounds"),
    "cue-conflict": _images(
        TEXTURES, Source(f"texture-vs-shape-{TEXTURES_COMMIT}.tar.gz",
                         f"https://{TEXTURES}/archive/{TEXTURES_COMMIT}.tar.gz", f"from {TEXTURES}",
                         f"texture-vs-shape-{TEXTURES_COMMIT}/stimuli/style-transfer-preprocessed-512", "cue-conflict"),
        "CC BY 4.0", "whether classifiers go by shape or by texture", images=1_280),
    "imagenet-a": _images(
        "github.com/hendrycks/natural-adv-examples",
        Source("imagenet-a.tar", "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
               "from github.com/hendrycks/natural-adv-examples", "imagenet-a", "imagenet-a", size=687_552_512,
               sha256="3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
               whose="TensorFlow Datasets'"),
        "MIT (repository)", "classifiers off their training distribution", images=7_500),
    "imagenet-sketch": _images(
        "github.com/HaohanWang/ImageNet-Sketch",
        Source("ImageNet-Sketch.zip", "https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/"
               "ImageNet-Sketch.zip", "linked in README.md of github.com/HaohanWang/ImageNet-Sketch", "sketch",
               "imagenet-sketch"),
        f"{NOT_STATED} (code: MIT)", "classifiers off their training distribution", about="7.8 GB"),
    "stylized-imagenet": Artefact(
        "github.com/rgeirhos/Stylized-ImageNet", (), "stylized-imagenet", f"{NOT_STATED} (code: MIT)",
        "classifiers off their training distribution",
        "its authors may not share it: make it with github.com/rgeirhos/Stylized-ImageNet; train/ and val/ hold a "
        "folder of images for each class"),
    "imagenet": Artefact(
        "image-net.org", (), "imagenet", "its terms: nothing commercial",
        "training and testing classifiers",
        "it takes an account: ILSVRC 2012, classification, from image-net.org/download; train/ and val/ hold a folder "
        "of images for each class, as torchvision unpacks them", about="138 GB + 6.3 GB"),
}  # fmt: skip


# --- what is there ----------------------------------------------------------------------------------


def _command(name, root):
    return f"python -m cgn.fetch --what {name}" + (f" --root {root}" if Path(root) != ROOT else "")


def _by_hand(name, root):
    """What a person does to have an artefact: an address and a folder."""
    artefact = MANIFEST[name]
    path = Path(root) / artefact.to
    if artefact.sources:
        return f"put it at {path} by hand ({artefact.sources[0].hint})"
    return f"put it into {path}/ by hand ({artefact.by_hand})"


def _ways(name, root):
    return (f"{_command(name, root)} fetches it, or " if MANIFEST[name].sources else "") + _by_hand(name, root)


def path_of(name, root=ROOT):
    """Where the file or folder of an artefact is; raises UserError, with the ways to get it, if it is not there."""
    path = Path(root) / one_of(MANIFEST, "artefact", name).to
    if not downloads.is_there(path):
        raise UserError(f"{path} is missing: {_ways(name, root)}")
    return path


def size_of(artefact):
    """The size of what is downloaded, in words."""
    sizes = [source.size for source in artefact.sources]
    if sizes and None not in sizes:
        return f"{sum(sizes) / 1e6:,.1f} MB"
    return f"about {artefact.about}" if artefact.about else NOT_PUBLISHED


def table(root):
    """The manifest for a reader: a line for each artefact."""
    rows = [("what", "size", "licence", "source", "folder", "there", "for")]
    for name, artefact in MANIFEST.items():
        path = Path(root) / artefact.to
        source = artefact.page + ("" if artefact.sources else " (by hand)")
        folder = f"{path.parent if path.suffix else path}/"
        there = "yes" if downloads.is_there(path) else "no"
        rows.append((name, size_of(artefact), artefact.licence, source, folder, there, artefact.needs))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


# --- fetching and checking --------------------------------------------------------------------------


def fetch(name, root):
    """Bring an artefact to its place; UserError, with the way by hand, if it cannot be had or is not what it should be.

    What is there already is verified and stays.
    """
    artefact = MANIFEST[name]
    if artefact.sources:
        for source in artefact.sources:
            downloads.fetch(source, root)
    elif downloads.is_there(Path(root) / artefact.to):
        print(f"{Path(root) / artefact.to} is here already")
    else:
        raise UserError(f"{name} cannot be fetched: {_by_hand(name, root)}")


def check(name, root):
    """Say what is there of an artefact; UserError if it is missing, damaged or something else."""
    artefact, path = MANIFEST[name], path_of(name, root)
    if path.is_dir():
        images = sum(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))
        if images == 0 or artefact.images not in (None, images):
            wanted = f", and {artefact.images:,} are wanted" if artefact.images else ""
            raise UserError(f"{path} holds {images:,} images{wanted}: delete it; {_ways(name, root)}")
        print(f"{path}: {images:,} images")
    for source in artefact.sources:
        file = Path(root) / source.to
        if file.is_file():
            print(f"{file}: {downloads.verify(file, source, file, 'delete it and fetch it again')}")


def check_all(what, root):
    """Check the artefacts named, or all that are there; UserError at the end if something is wrong with any."""
    def one(name):
        if not what and not downloads.is_there(Path(root) / MANIFEST[name].to):
            print(f"{name}: not there")
        else:
            check(name, root)

    wrong = downloads.failures({name: functools.partial(one, name) for name in what or MANIFEST})
    if wrong:
        raise UserError(f"something is wrong with {', '.join(wrong)}: see above")


def main(what, root, check):
    if check:
        return check_all(what, root)
    if not what:
        print(table(root))
    for name in what or ():
        fetch(name, root)


if __name__ == "__main__":
    experiment.run(main)

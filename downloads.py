"""What others have published: downloaded under a temporary name, verified, unpacked; wholly or not at all.

A Source says where a file is, what is known of it, and where it belongs; `fetch` brings it there. A file that a person
has put in its place is used instead of a download, and is verified in the same way. Nothing here knows what is in a
file; who does passes a check of its own.
"""

import contextlib
import email.utils
import hashlib
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import storage
from experiment import UserError

BLOCK = 1 << 20  # bytes that are read at once
WAIT = 60  # seconds without an answer after which a server counts as dead
NAMES = {"md5": "MD5", "sha256": "SHA-256"}


class Source(NamedTuple):
    """One published file.

    file    its name below the root, where a copy made by hand is looked for
    url     where it is, or None if only a person can fetch it
    hint    where a person finds it
    inside  the folder of the archive that is kept, or None for a file that is no archive
    to      where that folder, or the file, belongs, below the root
    size    its size in bytes where it is known for sure, else None
    md5     its MD5 sum where somebody states it, else None
    sha256  its SHA-256 likewise; the first digits of it where no more is stated, as in the names of torchvision's files
    whose   whose statement the checksum is
    """

    file: str
    url: str | None
    hint: str
    inside: str | None
    to: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    whose: str = "its publisher's"


# The test sets of IN-9 (Xiao et al. 2020, arXiv 2006.09994), which parts 5 and 6 both measure on.
IN9_TEST = Source("backgrounds_challenge_data.tar.gz", "https://github.com/MadryLab/backgrounds_challenge/releases/"
                  "download/data/backgrounds_challenge_data.tar.gz", "from github.com/MadryLab/backgrounds_challenge",
                  "bg_challenge", "bg_challenge/test")  # fmt: skip


def is_there(path):
    """Whether there is a file at path, or a folder with something in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def fetch(source, root, check=None):
    """Bring one Source to its place below root; a line is printed for each step. Returns whether it is there now.

    check(path): looks further into a file that is no archive, and raises UserError if something is wrong with it.
    Raises UserError, naming the way by hand, if it cannot be reached, is damaged or is not what its publisher states.
    """
    target, archive = Path(root) / source.to, Path(root) / source.file
    if target != archive and is_there(target):
        print(f"{target} is here already")
        return True
    by_hand = f"put {archive.name} into {archive.parent}/ by hand ({source.hint}) and run this again"
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.is_file():
        found = verify(archive, source, archive, "delete it and run this again")
    elif source.url is None:
        print(f"{target} has no lasting address: {by_hand}")
        return False
    else:
        found = download(source.url, archive, by_hand, accept=lambda part: verify(part, source, source.url, by_hand))
    print(f"{archive}: {found}")
    if source.inside is not None:
        unpack(archive, source.inside, target)
        archive.unlink()
    elif check:
        check(archive)
    print(f"{target} is ready")
    return True


# --- downloading ------------------------------------------------------------------------------------


def download(url, path, by_hand, what=None, accept=None):
    """Save what is at url to path, wholly or not at all; returns what accept says.

    Where a server can go on in the middle of a file, what came before a connection broke off is kept under a temporary
    name, and the next call goes on from there, unless the file has changed.
    by_hand: what else the user can do, for the UserError; what: the name of the file in it, if not its address.
    accept(part): called before the file gets its name; raises UserError for a file that is to be thrown away.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file, storage.locked(part, wait=False):
            _receive(url, part, file)
            try:
                found = accept(part) if accept else None
            except UserError:
                part.unlink()
                raise
            os.replace(part, path)
            return found
    except BlockingIOError:
        raise UserError(f"{path} is being fetched by another run") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{what or url} cannot be fetched ({error}); {by_hand}") from None


def _receive(url, part, file):
    """Fill a part, which is open for appending, up; when that fails, it stays only if a later call can go on with it.

    The time of the part is then that of the file on the server, by which the later call knows that it is the same.
    """
    stamp = int(part.stat().st_mtime) if file.tell() else None
    try:
        with _answer(url, file, stamp) as answer:
            stamp = _stamp(answer)
            _copy(answer, file, url, part)
            file.flush()
    except BaseException:  # an interruption, too
        with contextlib.suppress(OSError):
            file.flush()
        if stamp is None or not file.tell():
            part.unlink()
        else:
            os.utime(part, (stamp, stamp))
        raise


def _copy(answer, file, url, part):
    """Append an answer to the part; raises OSError if it is not the file or ends early."""
    if (answer.headers.get("Content-Type") or "").startswith("text/html"):
        raise OSError("a web page came instead of the file")
    before, rest = file.tell(), int(answer.headers.get("Content-Length") or 0)
    free = shutil.disk_usage(part.parent).free
    if rest > free:
        raise UserError(f"{url} is {rest:,} bytes, and {part.parent} has room for {free:,}")
    title, whole = part.name.removeprefix(".").removesuffix(".part"), before + rest if rest else None
    with tqdm(total=whole, initial=before, desc=title, unit="B", unit_scale=True, disable=None) as bar:
        while block := answer.read(BLOCK):
            file.write(block)
            bar.update(len(block))
    if whole and file.tell() != whole:
        goes_on = "" if _stamp(answer) is None else ", from where the next run goes on"
        raise OSError(f"the connection ended after {file.tell():,} of {whole:,} bytes{goes_on}")


def _answer(url, file, stamp):
    """The server's answer: the rest of the file if there is a part and it is of the same file, else all of it."""
    have = file.tell()
    if have:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})
        with contextlib.suppress(urllib.error.HTTPError):  # 416, for one: there is nothing after the part
            answer = urllib.request.urlopen(request, timeout=WAIT)
            goes_on = (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
            if goes_on and _stamp(answer) == stamp:
                return answer
            answer.close()
    answer = urllib.request.urlopen(url, timeout=WAIT)
    file.seek(0)
    file.truncate()
    return answer


def _stamp(answer):
    """When the file on the server was last changed, in seconds; None if it cannot be gone on with in the middle."""
    date = email.utils.parsedate_tz(answer.headers.get("Last-Modified") or "")
    ranges = answer.headers.get("Accept-Ranges") == "bytes" or answer.headers.get("Content-Range")
    return email.utils.mktime_tz(date) if date and ranges else None


# --- verifying --------------------------------------------------------------------------------------


def digests(path):
    """{"md5": ..., "sha256": ...} of a file, in hexadecimal digits."""
    found = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            for digest in found.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in found.items()}


def verify(path, source, shown, remedy):
    """Size and SHA-256 of a file in words, and whether anything is known to compare them with.

    Raises UserError, which calls the file `shown` and ends with the remedy, if it differs from what its Source states.
    """
    size, found = path.stat().st_size, digests(path)
    stated = {name: digits for name in NAMES if (digits := getattr(source, name))}
    if source.size not in (None, size) or any(not found[name].startswith(stated[name]) for name in stated):
        has = [f"{size:,} bytes", *(f"{NAMES[name]} {found[name]}" for name in stated)]
        wanted = [*([f"{source.size:,}"] if source.size else []), *stated.values()]
        raise UserError(f"{shown} is damaged or another file: it has {' and '.join(has)}, not {' and '.join(wanted)}; "
                        f"{remedy}")
    known = " and ".join(_matches(source, name, stated[name], found[name]) for name in stated)
    known = known or "its publisher states no checksum to compare with"
    return f"{size:,} bytes, SHA-256 {found['sha256']}; {known}"


def _matches(source, name, stated, found):
    if len(stated) < len(found):
        return f"the first {len(stated)} digits of {source.whose} {NAMES[name]} match"
    return f"{source.whose} {NAMES[name]} matches"


# --- unpacking --------------------------------------------------------------------------------------


def failures(checks):
    """The names in {name: a function} whose function raises UserError; what it says is printed, and the rest go on."""
    wrong = []
    for name, check in checks.items():
        try:
            check()
        except UserError as error:
            wrong.append(name)
            print(f"{name}: {error}")
    return wrong


def unpack(archive, inside, target):
    """Put the folder `inside` of a tar or zip archive at target, wholly or not at all."""
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacking-") as folder:
        extract(archive, folder)
        found = Path(folder) / inside
        if not found.is_dir():
            raise UserError(f"{archive} is another archive than it should be: it holds no folder {inside}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(found, target)


def extract(archive, folder):
    """Unpack a tar or zip archive into a folder.

    In a tar archive, members that would land outside the folder, links that point outside it, and devices are refused;
    in a zip archive there are no links, and names that lead outside lose what does so. Raises UserError.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is refused: {error}") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise UserError(f"{archive} cannot be unpacked ({reason}); if it is damaged, delete it and run this "
                        "again") from None

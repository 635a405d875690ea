"""Downloads from a server of the test's own: whole, broken off, gone on with, refused; files verified and unpacked."""

import hashlib
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy
import pytest

import downloads
import storage
from downloads import Source
from experiment import UserError

CONTENT = numpy.random.default_rng(0).bytes(100_000)
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
MONDAY, TUESDAY = "Mon, 04 Jan 2021 12:00:00 GMT", "Tue, 05 Jan 2021 12:00:00 GMT"
DEAD = "http://127.0.0.1:1/file"  # nothing listens at port 1


class Server:
    """What is served, how, and which ranges were asked for.

    cut: bytes after which an answer breaks off. ranges: "yes", "no", or "ignored": promised and not kept.
    """

    def __init__(self):
        self.content, self.date, self.kind, self.cut, self.ranges, self.asked = CONTENT, MONDAY, None, None, "yes", []

    def answer(self, handler):
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges == "yes" else 0
        if asked and start >= len(self.content):
            return handler.send_error(416)
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        headers = {"Content-Length": len(body), "Last-Modified": self.date, "Content-Type": self.kind}
        headers["Accept-Ranges"] = None if self.ranges == "no" else "bytes"
        headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}" if start else None
        for name, value in headers.items():
            if value is not None:
                handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(body[: self.cut])


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.answer(self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        served.url = f"http://127.0.0.1:{listening.server_address[1]}/file"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        listening.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights/file.bin"


def names(path):
    return sorted(file.name for file in path.parent.iterdir())


def broken_off(server, path, after=60_000):
    """The part that a download leaves whose connection ends after so many bytes."""
    server.cut = after
    with pytest.raises(UserError, match="the connection ended"):
        downloads.download(server.url, path, "by hand")
    server.cut = None
    server.asked.clear()
    return path.with_name(".file.bin.part")


# --- downloading ------------------------------------------------------------------------------------


def test_a_file_arrives(server, path):
    assert downloads.download(server.url, path, "by hand") is None
    assert path.read_bytes() == CONTENT
    assert names(path) == ["file.bin"]
    assert server.asked == [None]


def test_a_file_address_does_as_well(tmp_path, path):
    (tmp_path / "there").write_bytes(CONTENT)
    downloads.download((tmp_path / "there").as_uri(), path, "by hand")
    assert path.read_bytes() == CONTENT


def test_a_broken_download_is_no_file_and_is_gone_on_with(server, path):
    server.cut = 60_000
    so_far = "the connection ended after 60,000 of 100,000 bytes, from where the next run goes on"
    with pytest.raises(UserError, match=rf"^{server.url} cannot be fetched \({so_far}\); by hand$"):
        downloads.download(server.url, path, "by hand")
    assert names(path) == [".file.bin.part"]
    server.cut, server.asked = 20_000, []
    with pytest.raises(UserError, match="ended after 80,000 of 100,000 bytes"):  # and again
        downloads.download(server.url, path, "by hand")
    server.cut = None
    downloads.download(server.url, path, "by hand")
    assert path.read_bytes() == CONTENT
    assert names(path) == ["file.bin"]
    assert server.asked == ["bytes=60000-", "bytes=80000-"]


def test_a_file_that_has_changed_begins_anew(server, path):
    broken_off(server, path)
    server.content, server.date = CONTENT[::-1], TUESDAY
    downloads.download(server.url, path, "by hand")
    assert path.read_bytes() == CONTENT[::-1]


def test_a_part_that_nobody_vouches_for_begins_anew(server, path):
    """A process that was killed could not put the server's time on its part."""
    part = broken_off(server, path)
    part.write_bytes(b"something else")
    downloads.download(server.url, path, "by hand")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [100_000, 120_000])
def test_a_part_that_is_too_long_begins_anew(server, path, length):
    part = broken_off(server, path)
    date = part.stat().st_mtime
    part.write_bytes(bytes(length))
    os.utime(part, (date, date))
    downloads.download(server.url, path, "by hand")
    assert path.read_bytes() == CONTENT
    assert server.asked == [f"bytes={length}-", None]


def test_a_server_that_cannot_go_on_leaves_nothing(server, path):
    server.ranges, server.cut = "no", 60_000
    with pytest.raises(UserError, match=r"ended after 60,000 of 100,000 bytes\); by hand"):
        downloads.download(server.url, path, "by hand")
    assert names(path) == []


def test_a_server_that_sends_all_again_is_understood(server, path):
    server.ranges = "ignored"
    broken_off(server, path)
    downloads.download(server.url, path, "by hand")
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=60000-", None]


def test_what_came_outlives_a_dead_server(server, path):
    part = broken_off(server, path)
    with pytest.raises(UserError, match=rf"^{DEAD} cannot be fetched \(.*refused.*\); by hand$"):
        downloads.download(DEAD, path, "by hand")
    assert part.read_bytes() == CONTENT[:60_000]
    downloads.download(server.url, path, "by hand")
    assert (path.read_bytes(), server.asked) == (CONTENT, ["bytes=60000-"])


def test_a_dead_server_leaves_nothing_and_is_called_by_its_name(path):
    with pytest.raises(UserError, match=r"^Mall cannot be fetched \(.*\); by hand$"):
        downloads.download(DEAD, path, "by hand", what="Mall")
    assert names(path) == []


def test_a_page_in_place_of_a_file_is_refused(server, path):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(UserError, match=r"cannot be fetched \(a web page came instead of the file\); by hand"):
        downloads.download(server.url, path, "by hand")
    assert names(path) == []


def test_two_runs_do_not_write_the_same_file(server, path):
    part = broken_off(server, path)
    with (storage.locked(part, wait=False),
          pytest.raises(UserError, match=r"file.bin is being fetched by another run")):  # fmt: skip
        downloads.download(server.url, path, "by hand")
    assert part.read_bytes() == CONTENT[:60_000]
    assert server.asked == []


def test_a_file_is_looked_at_before_it_gets_its_name(server, path):
    def refuse(part):
        assert part.read_bytes() == CONTENT
        raise UserError("not this one")

    with pytest.raises(UserError, match="not this one"):
        downloads.download(server.url, path, "by hand", accept=refuse)
    assert names(path) == []
    assert downloads.download(server.url, path, "by hand", accept=lambda part: part.stat().st_size) == 100_000


# --- verifying --------------------------------------------------------------------------------------


def source(**known):
    return Source("weights/file.bin", None, "from its site", None, "weights/file.bin", **known)


@pytest.mark.parametrize(("known", "words"), [
    ({}, "its publisher states no checksum to compare with"),
    ({"size": 100_000}, "its publisher states no checksum to compare with"),
    ({"md5": MD5}, "its publisher's MD5 matches"),
    ({"sha256": SHA256, "size": 100_000}, "its publisher's SHA-256 matches"),
    ({"sha256": SHA256, "whose": "others'"}, "others' SHA-256 matches"),
    ({"sha256": SHA256[:8]}, "the first 8 digits of its publisher's SHA-256 match")])  # fmt: skip
def test_a_file_that_is_the_one_stated(tmp_path, known, words):
    (tmp_path / "file").write_bytes(CONTENT)
    found = downloads.verify(tmp_path / "file", source(**known), "it", "delete it")
    assert found == f"100,000 bytes, SHA-256 {SHA256}; {words}"


@pytest.mark.parametrize(("known", "words"), [
    ({"size": 99_999}, "100,000 bytes, not 99,999"),
    ({"size": 99_999, "md5": MD5}, f"100,000 bytes and MD5 {MD5}, not 99,999 and {MD5}"),
    ({"sha256": "0" * 64}, f"100,000 bytes and SHA-256 {SHA256}, not {'0' * 64}"),
    ({"sha256": SHA256[1:9]}, f"100,000 bytes and SHA-256 {SHA256}, not {SHA256[1:9]}"),
    ({"sha256": SHA256, "md5": "0" * 32}, f"and SHA-256 {SHA256}, not {'0' * 32} and {SHA256}")])  # fmt: skip
def test_a_file_that_is_another(tmp_path, known, words):
    (tmp_path / "file").write_bytes(CONTENT)
    with pytest.raises(UserError, match=rf"^it is damaged or another file: it has .*{words}; delete it$"):
        downloads.verify(tmp_path / "file", source(**known), "it", "delete it")


# --- a source ---------------------------------------------------------------------------------------


def test_a_source_is_fetched_once(server, tmp_path, path, capsys):
    wanted = source(sha256=SHA256[:8], size=100_000)._replace(url=server.url)
    looked_at = []
    assert downloads.fetch(wanted, tmp_path, looked_at.append)
    assert downloads.fetch(wanted._replace(url=DEAD), tmp_path, looked_at.append)
    assert path.read_bytes() == CONTENT
    assert (server.asked, looked_at) == ([None], [path, path])
    line = f"{path}: 100,000 bytes, SHA-256 {SHA256}; the first 8 digits of its publisher's SHA-256 match"
    assert capsys.readouterr().out.splitlines() == [line, f"{path} is ready"] * 2


def test_another_file_does_not_get_the_name(server, tmp_path, path):
    server.content = CONTENT[::-1]
    wanted = source(sha256=SHA256)._replace(url=server.url)
    way = r"put file.bin into \S*/weights/ by hand \(from its site\) and run this again"
    with pytest.raises(UserError, match=rf"^{server.url} is damaged or another file: .*; {way}$"):
        downloads.fetch(wanted, tmp_path)
    assert names(path) == []


def test_another_file_that_lies_there_is_left_to_the_user(tmp_path, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match=rf"^{path} is damaged or another file: .*; delete it and run this again$"):
        downloads.fetch(source(sha256=SHA256)._replace(url=DEAD), tmp_path)
    assert path.read_bytes() == CONTENT[::-1]


def archived(path, kind, members):
    """A tar or zip archive of {name: content}."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as packed:
            for name, content in members.items():
                (path.parent / "member").write_bytes(content)
                packed.add(path.parent / "member", name)
    return path


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_is_unpacked_into_a_folder_that_is_absent_or_empty(tmp_path, kind):
    archive = archived(tmp_path / "there", kind, {"top/deep/x.txt": b"hello", "other/y.txt": b"not wanted"})
    root = tmp_path / "data"
    wanted = Source("set.archive", archive.as_uri(), "from its site", "top/deep", "set")
    (root / "set").mkdir(parents=True)
    assert downloads.fetch(wanted, root)
    assert [file.name for file in root.iterdir()] == ["set"]
    assert (root / "set/x.txt").read_text() == "hello"


def test_no_member_of_a_zip_archive_lands_outside(tmp_path):
    archived(tmp_path / "there", "zip", {"top/x.txt": b"", "../out.txt": b"bad", "/out.txt": b"bad"})
    downloads.unpack(tmp_path / "there", "top", tmp_path / "data/set")
    assert [file.name for file in (tmp_path / "data/set").iterdir()] == ["x.txt"]
    assert not list(tmp_path.rglob("out.txt"))


def test_a_damaged_zip_archive_is_one_line(tmp_path):
    archive = archived(tmp_path / "there", "zip", {"top/x.txt": CONTENT})
    content = bytearray(archive.read_bytes())
    content[50_000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be unpacked \(Bad CRC-32 .*\); if it is damaged, delete it and run"):
        downloads.unpack(archive, "top", tmp_path / "set")
    assert [file.name for file in tmp_path.iterdir()] == ["there"]

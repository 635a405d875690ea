"""The demo: what its page shows, what it refuses, and the page itself in a browser."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from importlib.util import find_spec

import numpy
import pytest
import torch
from conftest import ROOT, shell
from PIL import Image

import demo
import demo_actions as actions
import experiment
from experiment import UserError

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT = 600  # seconds that the page may take on a machine that has other things to do


def images(answer):
    return [picture for _, row in answer.rows for picture in row]


def same(one, other):
    return all(numpy.array_equal(a.pixels, b.pixels) and a[1:] == b[1:]
               for a, b in zip(images(one), images(other), strict=True))


def refused(action, *values):
    """The sentence with which an action refuses; it is one line, and ends as a sentence does."""
    with pytest.raises(UserError) as caught:
        action(*values)
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith(".")
    return line


def timed(action, *values):
    """The answer, with its HTML made as well. On a machine that does nothing else it takes less than 2 s."""
    started = time.process_time()
    answer = getattr(actions, action)(*values)
    demo.page_of(answer)
    spent = time.process_time() - started
    print(f"{action}{values}: {spent:.2f} s of the processor, answered in {answer.seconds:.2f} s")
    assert spent < 20
    return answer


# --- a latent counterfactual -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default():
    return timed("search_latent", *demo.FIRST[:2], None, demo.FIRST[2], "RealNVP", demo.STEPS)


def test_the_default_search_reaches_its_target(default):
    assert "Goal reached" in default.said
    before, after = default.confidences
    assert after[demo.FIRST[2]] >= 0.99 > before[demo.FIRST[2]]
    assert sum(after) == pytest.approx(1, abs=1e-4)
    assert len(default.rows[0][1]) == 4
    assert 2 <= len(default.rows[1][1]) <= actions.STRIP
    assert default.rows[1][1][0].title == "step 0"


def test_pictures_are_large_and_say_what_they_are(default):
    for picture in images(default):
        assert picture.pixels.shape == (224, 224, 3)
        assert picture.pixels.dtype == numpy.uint8
        assert picture.alt
        assert (picture.pixels[:8, :8] == picture.pixels[0, 0]).all()  # squares, not a blur
    film = Image.open(io.BytesIO(default.film))
    assert film.format == "GIF"
    assert film.size == (224, 224)
    assert 2 <= film.n_frames <= actions.FILM


def test_a_search_is_the_same_again(default):
    assert same(default, actions.search_latent(*demo.FIRST[:2], None, demo.FIRST[2], "RealNVP", demo.STEPS))


def test_the_vae_searches_as_well():
    answer = timed("search_latent", 7, 0, None, 9, "VAE", 20)
    before, after = answer.confidences
    assert after[9] > before[9]


def test_a_search_may_fail_and_says_so():
    answer = actions.search_latent(1, 0, None, 0, "RealNVP", 1)
    assert "Not the 99%" in answer.said


# --- bad inputs ----------------------------------------------------------------------------------------

BAD = (None, "7", -1, 1e10, 10**5000, float("nan"), float("inf"), 0.5, True, [7], {"a": 1})
GOOD = {
    "search_latent": (7, 0, None, 9, "RealNVP", 1),
    "compose": ("colored", 3, 5, 8, 0),
    "remove_sample": (0, 0.01),
    "add_sample": (0, 2e-4),
}
NUMBERS = [("search_latent", 0), ("search_latent", 1), ("search_latent", 3), ("search_latent", 5), ("compose", 1),
           ("compose", 2), ("compose", 3), ("compose", 4), ("remove_sample", 0), ("add_sample", 0)]  # fmt: skip


@pytest.mark.parametrize(("action", "place"), NUMBERS)
@pytest.mark.parametrize("value", BAD, ids=lambda value: str(type(value).__name__))
def test_bad_numbers_are_refused_in_a_line(action, place, value):
    given = list(GOOD[action])
    given[place] = value
    assert "must be a whole number from" in refused(getattr(actions, action), *given)


@pytest.mark.parametrize("action", ["remove_sample", "add_sample"])
@pytest.mark.parametrize("value", [None, "1", 0, -1, 5, float("nan"), 10**5000, True, [1]],
                         ids=lambda value: str(type(value).__name__))  # fmt: skip
def test_bad_strengths_are_refused_in_a_line(action, value):
    assert "must be a number from" in refused(getattr(actions, action), 0, value)


@pytest.mark.parametrize("value", [None, "", "realnvp", 3, ["RealNVP"], "../vae"], ids=str)
def test_unknown_names_are_refused_in_a_line(value):
    assert "must be one of RealNVP, VAE" in refused(actions.search_latent, 7, 0, None, 9, value, 1)
    assert "must be one of colored" in refused(actions.compose, value, 0, 0, 0, 0)


def test_what_is_seen_already_is_no_target():
    assert "sees 7 in this image already" in refused(actions.search_latent, 7, 0, None, 7, "RealNVP", 1)


def test_the_page_shows_a_refusal_as_a_line_and_escapes_it():
    html = demo.shown(actions.compose, "colored", 0, 0, 0, -1)
    assert html.startswith('<p class="demo-wrong"')
    assert "The seed must be" in html

    def wrong():
        raise UserError("<b>\n&")

    assert "&lt;b&gt; &amp;" in demo.shown(wrong)


# --- uploads ----------------------------------------------------------------------------------------------


def saved(path, picture, **how):
    picture.save(path, **how)
    return path


@pytest.fixture
def drawn(test_digits):
    """Test digit 0, a 7, as Pillow's image: light on dark, 280 pixels wide."""
    pixels = (255 * test_digits.images[0, 0]).round().byte().numpy()
    return Image.fromarray(pixels).resize((280, 280), Image.Resampling.NEAREST)


def test_an_uploaded_digit_is_searched_from(tmp_path, drawn):
    answer = actions.search_latent(None, None, str(saved(tmp_path / "seven.png", drawn)), 9, "RealNVP", 1)
    assert "From 7 to 9" in answer.said


@pytest.mark.parametrize("kind", ["RGBA", "LA", "RGB", "P", "I;16", "dark on light", "wide", "jpeg"])
def test_uploads_of_every_kind_become_the_same_digit(tmp_path, drawn, test_digits, kind):
    path, light = tmp_path / "it.png", drawn
    if kind == "dark on light":
        light = Image.eval(drawn, lambda value: 255 - value)
    elif kind == "wide":
        light = Image.new("L", (400, 280))
        light.paste(drawn, (60, 0))
    elif kind == "I;16":
        light = Image.fromarray(numpy.asarray(drawn).astype(numpy.uint16) * 257)
    elif kind in ("RGBA", "LA"):  # ink of which the rest is transparent
        light = Image.new(kind, drawn.size)
        light.putalpha(drawn)
    elif kind == "jpeg":
        path = tmp_path / "it.jpg"
    else:
        light = drawn.convert(kind)
    digit = actions.read_upload(saved(path, light))
    assert digit.shape == (1, 1, 28, 28)
    assert digit.dtype == torch.float32
    assert float((digit - test_digits.images[:1]).abs().max()) < 0.3  # resizing softens the squares a little
    assert float((digit - test_digits.images[:1]).abs().mean()) < 0.02


def test_a_photograph_is_turned_as_it_says(tmp_path, drawn):
    turned = drawn.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a turn by 90 degrees, clockwise
    straight = actions.read_upload(saved(tmp_path / "straight.png", drawn))
    assert torch.equal(actions.read_upload(saved(tmp_path / "turned.png", turned, exif=exif)), straight)


def png(width, height, data):
    """A PNG that claims this size."""
    chunk = lambda kind, body: (len(body).to_bytes(4, "big") + kind + body
                                + zlib.crc32(kind + body).to_bytes(4, "big"))  # fmt: skip
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))


def bad_files(folder, drawn):
    """{name: (path, what is said of it)}"""
    whole = io.BytesIO()
    drawn.save(whole, format="png")
    other = Image.eval(drawn, lambda value: value // 2)
    made = {
        "huge": (b"\x89PNG\r\n\x1a\n" + bytes(actions.UPLOAD_BYTES), "file is too large"),
        "truncated": (whole.getvalue()[:-200], "not a PNG or JPEG"),
        "text": (b"hello", "not a PNG or JPEG"),
        "empty": (b"", "not a PNG or JPEG"),
        "vector": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG or JPEG"),
        "bomb": (png(30_000, 30_000, bytes(10_000_000)), "not a PNG or JPEG|too large"),
        "large": (png(5_000, 5_000, bytes(5_000 * 5_001)), "picture is too large"),
        "no pixels": (png(0, 0, b""), "not a PNG or JPEG"),
    }
    for name, (data, _) in made.items():
        (folder / name).write_bytes(data)
    drawn.save(folder / "animated", format="png", save_all=True, append_images=[other])
    drawn.convert("P").save(folder / "gif", format="gif")
    found = {name: (folder / name, words) for name, (_, words) in made.items()}
    return found | {"animated": (folder / "animated", "animated"), "gif": (folder / "gif", "not a PNG or JPEG"),
                    "absent": (folder / "absent", "not a PNG or JPEG"), "folder": (folder, "not a PNG or JPEG")}


def test_other_uploads_are_refused_in_a_line(tmp_path, drawn):
    for name, (path, words) in bad_files(tmp_path, drawn).items():
        line = refused(actions.search_latent, 7, 0, str(path), 9, "RealNVP", 1)
        assert re.search(words, line), name
        assert str(tmp_path) not in line


# --- three mechanisms, and a memory ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", actions.variants())
def test_composites_follow_their_labels_and_seed(variant):
    answer = timed("compose", variant, 3, 5, 8, 0)
    mask, _, background, composite = images(answer)
    assert len({picture.pixels.shape for picture in images(answer)}) == 1
    assert mask.pixels.shape[0] >= 224
    assert "A counterfactual" in answer.said
    assert same(answer, actions.compose(variant, 3, 5, 8, 0))
    other = images(actions.compose(variant, 3, 5, 8, 1))
    assert not numpy.array_equal(other[0].pixels, mask.pixels)
    ground = images(actions.compose(variant, 3, 5, 2, 0))
    assert numpy.array_equal(ground[0].pixels, mask.pixels)  # the background's label moves nothing else
    if variant != "colored":  # whose backgrounds are all black
        assert not numpy.array_equal(ground[2].pixels, background.pixels)
        assert not numpy.array_equal(ground[3].pixels, composite.pixels)
    assert "trained to make" in actions.compose(variant, 3, 3, 3, 0).said


def test_a_sample_is_removed_and_the_model_stays_as_it_was():
    model, _ = actions.vae()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    answer = timed("remove_sample", 0, 0.01)
    assert "99 of 990,633" in answer.said
    assert [len(row) for _, row in answer.rows] == [3, 3, 3]
    _, before, after = answer.rows[0][1]
    assert not numpy.array_equal(before.pixels, after.pixels)
    added = timed("add_sample", 0, 2e-4)
    assert [name for name, _ in added.rows] == ["the added 0", "another 0, never shown", "a known 7", "a known 2"]
    assert re.search(r"changes by -\d", added.said)  # the loss of the added zero falls
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert same(answer, actions.remove_sample(0, 0.01))


# --- the page -------------------------------------------------------------------------------------------------


def test_pictures_are_in_the_page_itself(default):
    html = demo.page_of(default)
    sources = re.findall(r'src="([^"]{0,30})', html)
    assert len(sources) == len(images(default)) + 1
    assert all(source.startswith("data:image/") for source in sources)
    assert html.count('alt="') == len(sources)
    assert "http" not in html


def test_without_gradio_a_line_says_how_to_get_it():
    hidden = "import sys; sys.modules['gradio'] = None; import demo, experiment; experiment.run(demo.main, [])"
    done = shell("-c", hidden)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "make demo" in done.stderr


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, what, seconds=WAIT):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.25)
    raise AssertionError(f"no {what} within {seconds} s")


@pytest.fixture
def served():
    """The address of the page, served by a process of its own."""
    port = free_port()
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "demo.py", "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env=os.environ | {"no_proxy": "127.0.0.1"})
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert process.poll() is None, process.stdout.read()
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            return opener.open(address, timeout=30).status == 200
        except OSError:
            return False

    try:
        until(answers, "page")
        print(f"the page was there after {time.monotonic() - started:.1f} s")
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update", f"user-data-dir={tmp_path / 'profile'}",
                 "window-size=1280,1500", "no-proxy-server", "disable-dev-shm-usage"):  # fmt: skip
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.set_page_load_timeout(WAIT)
    yield driver
    driver.quit()


class Reader:
    """A reader of the page, who clicks and looks."""

    def __init__(self, driver):
        self.driver = driver

    def html(self, place):
        found = self.driver.find_elements("css selector", f"#{place}")
        return found[0].get_attribute("innerHTML") if found else ""

    def see(self, place, words, other_than=""):
        """Wait until there are these words, and something else than before."""
        return until(lambda: words in (now := self.html(place)) and now != other_than and now, f"{words} in {place}")

    def click(self, words):
        """Click the visible button with these words, or the one with this id."""
        xpath = f"//button[normalize-space()='{words}' or @id='{words}']"
        visible = lambda: [one for one in self.driver.find_elements("xpath", xpath) if one.is_displayed()]
        until(visible, f"button {words}")[0].click()

    def shot(self, name):
        if folder := os.environ.get("DEMO_SHOTS"):
            self.driver.save_screenshot(f"{folder}/{name}.png")

    def requests(self):
        """Addresses that the page asked for."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("gradio"), reason="gradio is not installed (requirements-demo.txt)")
@pytest.mark.skipif(not find_spec("selenium"), reason="selenium is not installed (requirements-dev.txt)")
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="neither chromium nor chromedriver is here")
def test_the_page_in_a_browser(served, browser, tmp_path):
    browser.get(served)
    reader = Reader(browser)
    first = reader.see("latent", "Goal reached")
    reader.shot("latent")
    reader.click("A random digit")
    reader.see("latent", "Confidence of the classifier", other_than=first)
    (tmp_path / "wrong.png").write_text("no picture")
    files = browser.find_element("css selector", "input[type=file]")
    files.send_keys(str(tmp_path / "wrong.png"))
    reader.see("latent", "not a PNG or JPEG picture")
    reader.click("Shape, texture, background")
    parts = reader.see("cgn", "composite")
    reader.shot("cgn")
    reader.click("new_latent")
    reader.see("cgn", "composite", other_than=parts)
    reader.click("Forget a sample, learn a sample")
    reader.see("added", "another 0, never shown")
    removed = reader.see("removed", "parameters set to zero")
    reader.shot("memory")
    box = browser.find_element("css selector", "#sample input")
    box.clear()
    box.send_keys("512")
    reader.see("removed", "must be a whole number from 0 to 511")
    box.clear()
    box.send_keys("3")
    reader.see("removed", "parameters set to zero", other_than=removed)
    reader.shot("removed")
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
    own = (served, "data:", "blob:", "chrome:", "chrome-untrusted:")  # the last two are the browser's empty first page
    foreign = [url for url in reader.requests() if not url.startswith(own)]
    assert not foreign


def test_a_port_is_one_that_there_is():
    assert experiment.parse_options(demo, ["--port", "65535"])["port"] == 65535
    with pytest.raises(UserError, match="a whole number from 1 to 65535, not 65536"):
        experiment.parse_options(demo, ["--port", "65536"])

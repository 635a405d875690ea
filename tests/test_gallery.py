"""The gallery: rows by hand, commands that parse, texts that stay texts, and the page in a real browser."""

import fcntl
import importlib
import itertools
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import time

import pytest
from conftest import ROOT
from PIL import Image

import experiment
import gallery
import gallery_page
import gallery_records
from experiment import UserError

EVIL = '<script>alert("x")</script>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 300  # seconds that a busy machine may take for an answer


def record(value, seed=0, **changed):
    """A record of ablate.py, changed."""
    options = {"samples": 4, "seed": seed, "results": "results/ablate"} | changed.pop("options", {})
    return {"experiment": "ablate", "arm": "ablated", "split": "same class", "metric": "vae_loss", "value": value,
            "n": 1, "seed": seed, "setting": {}, "options": options, "commit": "abc", "versions": "python 3",
            "device": "cpu", "seconds": 1.0} | changed  # fmt: skip


def write(folder, rows, name="metrics.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def grouped(folder, rows):
    write(folder / "ablate", rows)
    return gallery_records.groups(gallery_records.read(folder))


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def committed():
    """(all records, their groups)."""
    os.chdir(ROOT)
    rows = gallery_records.read("results")
    return rows, gallery_records.groups(rows)


# --- rows ---------------------------------------------------------------------------------------------


def test_seeds_are_one_row_with_their_mean_and_interval(tmp_path):
    group, = grouped(tmp_path, [record(1.0, 0), record(2.0, 1), record(3.0, 2)])
    mean, half = group.mean()
    assert mean == 2
    assert half == pytest.approx(4.302653 / 3**0.5)  # Student's t of 2 degrees of freedom, a deviation of 1
    assert group.repetitions() == "0–2"


def test_samples_of_one_seed_are_one_row_and_one_value_has_no_interval(tmp_path):
    several, alone = grouped(tmp_path, [record(1.0, setting={"sample": 5}), record(3.0, setting={"sample": 9}),
                                        record(4.0, metric="mse")])  # fmt: skip
    assert several.mean()[0] == 2
    assert several.repetitions() == "0 (2 samples)"
    assert alone.mean() == (4, None)


@pytest.mark.parametrize("changed", [{"arm": "x"}, {"split": "x"}, {"metric": "x"}, {"setting": {"fraction": 0.5}},
                                     {"options": {"samples": 8}}, {"experiment": "bench"}])  # fmt: skip
def test_what_differs_in_more_than_the_seed_is_another_row(tmp_path, changed):
    assert len(grouped(tmp_path, [record(1.0, 0), record(2.0, 1, **changed)])) == 2


def test_names_and_weights_that_follow_from_the_seed_do_not_split_a_row(tmp_path):
    rows = [record(float(k), k, options={"generator": "cgn" + f"_seed{k}" * bool(k), "weights": f"{k:032x}",
                                         "trained": {"seed": k, "lr": 1}}) for k in range(3)]  # fmt: skip
    assert len(grouped(tmp_path, rows)) == 1
    rows[2]["options"]["trained"]["lr"] = 2
    assert len(grouped(tmp_path, rows)) == 2


def test_two_values_of_one_seed_are_two_rows(tmp_path):
    assert [group.mean()[0] for group in grouped(tmp_path, [record(1.0), record(2.0)])] == [1, 2]


def test_undefined_values_are_left_out_of_the_mean_and_of_the_seeds(tmp_path):
    group, nothing = grouped(tmp_path, [record(1.0, 0), record(None, 1), record(3.0, 2), record(None, metric="x")])
    assert (group.mean()[0], group.repetitions()) == (2, "0, 2")
    assert nothing.mean() == (None, None)


def test_a_recorded_half_interval_stands_beside_its_value(tmp_path):
    group, = grouped(tmp_path, [record(1.0, metric="l1"), record(0.25, metric="l1 half")])
    assert group.mean() == (1, 0.25)


def test_rows_that_look_the_same_get_the_options_that_tell_them_apart(tmp_path):
    found = grouped(tmp_path, [record(1.0, options={"samples": k, "strength": 1}) for k in (4, 8)])
    assert gallery_records.telling(found) == ["", "samples 8"]  # the most frequent number goes without saying
    found = grouped(tmp_path, [record(1.0, options={"variant": name}, setting={"bin": 3}) for name in "ab"])
    assert gallery_records.telling(found) == ["bin 3, variant a", "bin 3, variant b"]


def test_means_of_the_committed_records_are_those_of_the_readme(committed):
    readme = (ROOT / "README.md").read_text()
    loss = next(group for group in committed[1] if group.first["experiment"] == "ablate" and not group.setting
                and [group.first[name] for name in ("arm", "split", "metric")] == ["before", "ablated sample",
                                                                                   "vae_loss"])  # fmt: skip
    assert re.search(rf"\| ablated sample \| {loss.mean()[0]:.1f} ± {loss.mean()[1]:.1f} ", readme)


# --- commands -----------------------------------------------------------------------------------------


def test_the_command_of_every_committed_row_parses_and_says_what_was_recorded(committed):
    seen = {}
    for group in committed[1]:
        seen.setdefault(gallery_records.command_of(group.first), group.first)
    assert len(seen) > 50
    for command, first in seen.items():
        words = [word for word in shlex.split(command)[1:] if word != "-m"]
        options = experiment.parse_options(importlib.import_module(words[0].removesuffix(".py")), words[1:])
        options = json.loads(json.dumps(options, default=str))
        options.pop("abduction" if options.get("model") == "gan" else None, None)  # a GAN has none to turn off
        for name in options.keys() & first["options"].keys() - {"textures", "weights", "generator", "checkpoint",
                                                                "classifier", "set", "run", "saliency", "target",
                                                                "reader", "segmenter", "images", "size"}:  # fmt: skip
            assert options[name] in (first["options"][name], None), (command, name)


def test_no_command_knows_this_machine(committed):
    assert not [group for group in committed[1] if re.search(r" (/|\.\.)", gallery_records.command_of(group.first))]


# --- the page -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of records with 120 rows of one metric, three of another, a film and a picture; and its page."""
    folder = tmp_path_factory.mktemp("results")
    os.chdir(ROOT)
    write(folder / "ablate", [record(float(k * 37 % 120 + seed), seed, arm=f"arm {k}", metric="mse",
                                     options={"results": "results/ablate"}) for k in range(120) for seed in (0, 1)]
          + [record(value, arm=EVIL, split=EVIL, metric="vae_loss", setting={"fraction": value})
             for value in (3.0, 1.0, 2.0)])  # fmt: skip
    Image.new("RGB", (400, 200), "teal").save(folder / "ablate/sheet_of_all.png")
    frames = [Image.new("RGB", (60, 60), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "ablate/path_x.gif", save_all=True, append_images=frames[1:], duration=200, loop=0)
    write(folder / "quick/ablate", [record(1.0)])
    Image.new("RGB", (8, 8)).save(folder / "quick/ablate/sweep.png")
    (folder / "index.html").write_text(gallery.build(folder, folder / "index.html"))
    return folder


def test_the_same_records_make_the_same_page(small):
    text = (small / "index.html").read_text()
    assert gallery.build(small, small / "index.html") == text
    assert sum(len(table["rows"]) for table in data_of(text)) == 123


def test_texts_of_records_are_inert(small):
    text = (small / "index.html").read_text()
    assert "<script>alert" not in text
    assert EVIL in data_of(text)[0]["texts"]
    figure = gallery_page.Figure("a.png", EVIL + '"', 2, 1, True)
    assert gallery_page.figure(figure).count("<") == 7  # the tags of a figure, and no other


def test_every_committed_figure_is_there_once_in_words_and_with_its_size():
    drawn = gallery.figures(ROOT / "results", ROOT / "results/index.html")
    text = "".join(gallery_page.figures(each) for each in drawn.values())
    wanted = sorted(path.relative_to(ROOT / "results").as_posix() for path in (ROOT / "results").glob("**/*")
                    if path.suffix in gallery.PICTURES and not {"quick", "kept"} & set(path.parts))  # fmt: skip
    assert sorted(re.findall(r'<img src="([^"]+)"', text)) == wanted
    whole = re.findall(r'<img src="[^"]+" alt="[^"]{8,}" width="\d+" height="\d+" loading="lazy"', text)
    assert len(whole) == len(wanted)
    readme = gallery.readme_alts()
    assert readme["results/ablate/sweep.png"] in [figure.alt for figure in drawn["remove"]]


def test_the_page_is_small_whole_and_loads_nothing_from_elsewhere(committed, monkeypatch, tmp_path):
    monkeypatch.setattr(gallery_records, "read", lambda folder: committed[0])
    text = gallery.build(gallery.Path("results"), gallery.Path("results/index.html"))
    assert len(text.encode()) < 3_000_000
    assert sum(len(table["rows"]) for table in data_of(text)) == len(committed[1])
    assert not re.search(r'(src|href)="(https?:)?//', text)
    for number in range(1, 7):
        assert f"Part {number}" in text
    assert text.count("<noscript>") == text.count('<div class="data"') == len(data_of(text))
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_missing_and_damaged_records_and_pictures_are_named(tmp_path, call):
    assert "is no folder of records" in call("gallery", "--results", tmp_path / "none", "--out", tmp_path / "x.html")[2]
    assert "holds no records" in call("gallery", "--results", tmp_path, "--out", tmp_path / "x.html")[2]
    for line in ("{", "[]\n", '{"experiment": "ablate"}\n', json.dumps(record("1")) + "\n"):
        write(tmp_path / "ablate", [])
        (tmp_path / "ablate/metrics.jsonl").write_text(line if line.endswith("\n") else line + "\n")
        code, _, error = call("gallery", "--results", tmp_path, "--out", tmp_path / "x.html")
        assert (code, error.count("\n")) == (2, 1)
        assert f"{tmp_path}/ablate/metrics.jsonl" in error
    write(tmp_path / "ablate", [record(1.0, experiment="nosuch")])
    assert "no such script" in call("gallery", "--results", tmp_path, "--out", tmp_path / "x.html")[2]
    write(tmp_path / "ablate", [record(1.0)])
    (tmp_path / "ablate/broken.png").write_bytes(b"no picture")
    assert "broken.png is no picture" in call("gallery", "--results", tmp_path, "--out", tmp_path / "x.html")[2]
    assert not (tmp_path / "x.html").exists()


def test_an_unknown_experiment_is_no_way_to_run_something(tmp_path):
    with pytest.raises(UserError, match="no such script"):
        gallery_records.script_of(record(1.0, experiment="../x") | {"file": tmp_path})


# --- in a browser: slow, as a busy machine lets it wait -----------------------------------------------


class Browser:
    """A headless Chromium with one page, driven through the two pipes of its DevTools protocol."""

    FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             "--remote-debugging-pipe", "--window-size=1280,900")  # fmt: skip

    def __init__(self, profile):
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for pipe in (os.pipe(), os.pipe()) for end in pipe]
        theirs = lambda: (os.dup2(ends[0], 3), os.dup2(ends[3], 4))
        self.process = subprocess.Popen([CHROMIUM, *self.FLAGS, f"--user-data-dir={profile}"], close_fds=False,
                                        preexec_fn=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(ends[0])
        os.close(ends[3])
        self.write, self.read = ends[1], ends[2]
        self.rest, self.last, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of a method; events that come before it are kept."""
        self.last += 1
        about = {"id": self.last, "method": method, "params": parameters}
        os.write(self.write, json.dumps(about | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                assert select.select([self.read], [], [], WAIT)[0], f"no answer to {method}"
                read = os.read(self.read, 1 << 20)
                assert read, "the browser has ended"
                self.rest += read
            message, self.rest = self.rest.split(b"\0", 1)
            message = json.loads(message)
            if message.get("id") == self.last:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def js(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, url):
        self.events.clear()
        self.js("window.left = true")  # a page of the same address is waited for, too
        self.call("Page.navigate", url=url)
        started = time.monotonic()
        state = "window.left + location.href + document.readyState"
        while self.js(state) != f"undefined{url}complete":
            assert time.monotonic() - started < WAIT
            time.sleep(0.05)

    def press(self, key, text=""):
        code = {"Enter": 13, "Tab": 9}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                      **({"text": text} if text and kind == "keyDown" else {}))

    def width(self, pixels):
        self.call("Emulation.setDeviceMetricsOverride", width=pixels, height=800, deviceScaleFactor=1, mobile=False)

    def media(self, **features):
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()])  # fmt: skip

    def close(self):
        self.process.terminate()
        self.process.wait()
        os.close(self.write)
        os.close(self.read)

    def complaints(self):
        """What the console was told, and the addresses that were asked for outside the page's folder."""
        errors = [event for event in self.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded",
                                                                        "Runtime.consoleAPICalled")]  # fmt: skip
        asked = [event["params"]["request"]["url"] for event in self.events
                 if event["method"] == "Network.requestWillBeSent"]  # fmt: skip
        return errors + [url for url in asked if not url.startswith(("file:///", "data:"))]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def page(browser, small):
    """The small page, freshly opened at 1280 pixels in light."""
    browser.width(1280)
    browser.media(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    browser.open((small / "index.html").as_uri())
    return browser


CELLS = "[...document.querySelectorAll('tbody tr')].map(line => line.cells[{}].textContent)"
MEAN = "[...document.querySelectorAll('th button')].find(button => button.textContent === 'Mean')"
CHOOSE = """(() => {{ const select = document.querySelectorAll('select')[{}]; select.value = {};
  select.dispatchEvent(new Event('change')); }})()"""
CONTRASTS = r"""(() => {
  const numbers = color => color.match(/[\d.]+/g).map(Number);
  const linear = c => c <= 10.3 ? c / 3294.6 : ((c / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const ground = node => {
    const color = numbers(getComputedStyle(node).backgroundColor);
    return color[3] === 0 && node.parentElement ? ground(node.parentElement) : color;
  };
  const texts = [...document.querySelectorAll('body *')].filter(node => node.checkVisibility()
    && [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()));
  const ratio = node => {
    const [low, high] = [numbers(getComputedStyle(node).color), ground(node)].map(light).sort((a, b) => a - b);
    return (high + .05) / (low + .05);
  };
  return texts.map(node => [ratio(node), `${node.tagName}.${node.className}`]).sort((a, b) => a[0] - b[0])[0];
})()"""


@pytest.mark.slow
def test_it_opens_without_a_complaint_and_texts_stay_texts(page):
    assert page.complaints() == []
    assert page.js("document.querySelectorAll('tbody tr').length") == 3  # it opens on the table's own metric
    assert page.js(CELLS.format(0)) == [EVIL] * 3
    assert page.js("document.scripts.length") == 3
    assert page.js("document.querySelectorAll('main > section').length") == 1


@pytest.mark.slow
def test_a_click_sorts_and_another_turns_the_order(page):
    page.js(f"{MEAN}.click()")
    assert page.js(CELLS.format(4)) == ["1", "2", "3"]
    assert page.js(f"{MEAN}.parentElement.getAttribute('aria-sort')") == "ascending"
    page.js(f"{MEAN}.click()")
    assert page.js(CELLS.format(4)) == ["3", "2", "1"]
    assert page.js("document.querySelectorAll('[aria-sort]:not([aria-sort=none])').length") == 1


@pytest.mark.slow
def test_the_keyboard_sorts_and_its_focus_is_seen(page):
    page.js(f"{MEAN}.focus()")
    page.press("Enter", "\r")
    assert page.js(CELLS.format(4)) == ["1", "2", "3"]
    page.press("Tab")
    assert page.js("document.activeElement.textContent") == "± 95 %"
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.slow
def test_rows_come_fifty_at_a_time_and_the_filter_wants_all_words(page):
    page.js(CHOOSE.format(1, "'mse'"))
    count = "document.querySelectorAll('tbody tr').length"
    for shown in (10, 60, 110):
        assert page.js(count) == shown
        page.js("document.querySelector('.after').click()")
    assert (page.js(count), page.js("document.querySelector('.after').checkVisibility()")) == (120, False)
    page.js("document.querySelector('[type=search]').focus()")
    page.call("Input.insertText", text="ARM 11 class")
    assert page.js("document.querySelector('[role=status]').textContent").startswith("11 of 123 rows")
    page.js(f"{MEAN}.click()")
    page.js("document.querySelector('.after').click()")
    means = [float(value) for value in page.js(CELLS.format(4))]
    assert (len(means), means) == (11, sorted(means))


@pytest.mark.slow
def test_a_row_shows_the_command_behind_it(page):
    page.js("document.querySelector('tbody .link').click()")
    assert page.js("document.querySelector('code').textContent").startswith("python ablate.py --samples 4")
    page.js("document.querySelector('tbody .link').click()")
    assert page.js("document.querySelector('code')") is None


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_is_never_wider_than_the_screen(page, width):
    page.width(width)
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js("document.querySelector('table').offsetWidth > 0")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast_enough(page, scheme):
    page.media(prefers_color_scheme=scheme)
    page.js("document.querySelector('tbody .link').click()")
    ratio, where = page.js(CONTRASTS)
    assert ratio >= 4.5, where


@pytest.mark.slow
def test_films_stand_still_where_motion_is_not_wanted(page):
    page.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    page.open(page.js("location.href"))
    page.js("document.querySelector('canvas').closest('figure').scrollIntoView()")
    moving = "document.querySelector('img[src$=gif]').checkVisibility()"
    started = time.monotonic()
    while page.js(moving):
        assert time.monotonic() - started < WAIT
        time.sleep(0.1)
    page.js("document.querySelector('figure .button').click()")
    assert page.js(moving)


@pytest.mark.slow
def test_dark_follows_the_system_and_the_toggle_which_is_remembered(page):
    """The last test of the small page, as what it leaves behind is remembered."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.js(ground)
    page.media(prefers_color_scheme="dark")
    assert page.js(ground) != light
    page.js("document.getElementById('theme').click()")
    assert page.js(ground) == light
    started = time.monotonic()
    page.open(page.js("location.href"))
    while page.js(ground) != light and time.monotonic() - started < 60:  # storage is written when there is time for it
        page.open(page.js("location.href"))
    assert (page.js(ground), page.js("document.getElementById('theme').textContent")) == (light, "Dark")


@pytest.mark.slow
def test_the_committed_page_opens_and_fits_a_phone(browser):
    if not (ROOT / "results/index.html").is_file():
        pytest.skip("results/index.html is not there: python gallery.py makes it")
    browser.width(360)
    browser.open((ROOT / "results/index.html").as_uri())
    assert browser.complaints() == []
    assert browser.js("document.documentElement.scrollWidth") <= 360


def test_the_committed_page_is_what_the_records_say():
    """A page that its records have left behind fails here; `make gallery` makes it anew."""
    os.chdir(ROOT)  # commands name folders as they are given
    assert gallery.build(gallery.RESULTS, gallery.OUT) == gallery.OUT.read_text()

"""The gallery's page: its HTML, with gallery.css and gallery.js inside.

    whole(sections)    the page as text; every text from outside is escaped here, and the script only ever sets text

Nothing is loaded but the figures. Tables are data in the page, and their rows are made when they are looked at.
"""

import html
import json
from typing import NamedTuple
from urllib.parse import quote

import experiment


class Figure(NamedTuple):
    """A picture: its address, its words, its size in pixels, and whether README.md shows it."""

    source: str
    alt: str
    width: int
    height: int
    told: bool


class Table(NamedTuple):
    """A table: the files and versions that its n records are from, and what the script makes it of.

    data: {"title", "start": [split, metric], "texts", "rows"}; a row has the places, among the texts, of arm, split,
    metric, setting, n, seeds, hardware, commit and command, and then the mean and half its interval or None.
    """

    title: str
    files: list
    versions: list
    n: int
    data: dict


class Section(NamedTuple):
    """A part of the page."""

    key: str
    number: str
    title: str
    text: str
    figures: list
    tables: list


STYLE = (experiment.ROOT / "gallery.css").read_text().rstrip()
SCRIPT = (experiment.ROOT / "gallery.js").read_text().rstrip()
THEME = """try {
  const kept = localStorage.getItem("theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch (error) { /* storage is closed: the system decides */ }"""  # before the page is drawn, so that nothing flashes
ICON = "data:image/svg+xml," + quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="12" cy="16" r="10" fill="#0d5f63"/>'
    '<circle cx="21" cy="16" r="9" fill="none" stroke="#3e9a9a" stroke-width="2"/></svg>')  # fmt: skip

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Counterfactuals in images: results</title>
<meta name="description" content="Every figure and every measurement of six experiments on counterfactuals in images.">
<link rel="icon" href="{icon}">
<style>
{style}
</style>
<script>
{theme}
</script>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<div class="wrap">
<header class="top">
<button id="theme" class="button" type="button" aria-label="Switch between light and dark" hidden>Dark</button>
<p class="eyebrow">Results</p>
<h1>Counterfactuals in images</h1>
<p class="lede">What would a model have done had it never seen this sample? What is the least that must change in this
image for a classifier to see something else? And what would it look like with the texture of another class? Six
experiments, with every figure and every measurement.</p>
<ul class="facts">
{facts}
</ul>
</header>
<div class="layout">
<nav aria-label="Sections">
<ol>
{links}
</ol>
</nav>
<main id="main" tabindex="-1">
{sections}
</main>
</div>
<footer class="notes">
<p>Each row is a mean over the seeds listed, or over the samples where one seed was measured on several; “± 95 %” is
half a 95 % interval of that mean (Student’s t), or the recorded one over the images where there is a single seed. A
commit with a + had changes beside it.</p>
<p>A command names the options that differ from the script’s defaults. Records hold no folders of published files: a
file’s name alone, or textures called “published”, stand for one’s own copy.</p>
</footer>
</div>
<script type="application/json" id="data">{data}</script>
<script>
{script}
</script>
</body>
</html>
"""
ROOM = ' style="--r:{ratio:.3f};--w:{width}"'  # a figure's share of its line, and the width that it does not exceed
OUTSIDE = 18  # pixels of a figure's frame
MANY = 3  # figures that README does not show are behind a click if they are more


def text_of(value):
    """A text as HTML."""
    return html.escape(str(value))


def counted(n, word):
    """1 figure, 2 figures."""
    return f"{n:,} {word}" + "s" * (n != 1)


def figure(drawn):
    """A figure that links to its file."""
    source, alt = text_of(drawn.source), text_of(drawn.alt)
    room = ROOM.format(ratio=drawn.width / drawn.height, width=max(drawn.width, 220) + OUTSIDE)
    return (f'<figure{room}><a href="{source}"><img src="{source}" alt="{alt}" width="{drawn.width}" '
            f'height="{drawn.height}" loading="lazy" decoding="async"></a>'
            f'<figcaption aria-hidden="true">{alt}</figcaption></figure>')


def figures(drawn):
    """README's figures in large, the others in small."""
    told, others = ([one for one in drawn if one.told is which] for which in (True, False))
    found = [f'<div class="figures">\n{lines(map(figure, told))}\n</div>'] if told else []
    if others:
        small = f'<div class="figures small">\n{lines(map(figure, others))}\n</div>'
        more = f"{len(others)} {'more ' if told else ''}figures"
        found.append(small if len(others) <= MANY else f'<details class="more"><summary>{more}</summary>\n{small}\n'
                                                       "</details>")
    return lines(found)


def table(made, place):
    """A table's heading and source; the script makes the rest."""
    files = ", ".join(f'<a href="{quote(name)}">{text_of(name)}</a>' for name in made.files)
    return (f'<div class="data" data-table="{place}">\n<h3>{text_of(made.title)}</h3>\n'
            f'<p class="source">{counted(made.n, "record")} from {files}; {text_of("; ".join(made.versions))}.</p>\n'
            f"<noscript><p>This table needs JavaScript. Its numbers are in {files}, one measurement a line.</p>"
            "</noscript>\n</div>")


def section(part, place):
    """A section; place: the number of its first table."""
    number = f"Part {part.number}" if part.number else "Beside them"
    return lines([
        f'<section id="{part.key}" aria-labelledby="title-{part.key}">',
        f'<p class="eyebrow">{text_of(number)}</p>',
        f'<h2 id="title-{part.key}">{text_of(part.title)}</h2>',
        f'<p class="text">{text_of(part.text)}</p>',
        figures(part.figures),
        *(table(made, place + k) for k, made in enumerate(part.tables)),
        "</section>"])  # fmt: skip


def lines(texts):
    return "\n".join(text for text in texts if text)


def whole(sections):
    """The page of these Sections."""
    tables = [made for part in sections for made in part.tables]
    places = [sum(len(part.tables) for part in sections[:k]) for k in range(len(sections))]
    facts = {"measurements": sum(made.n for made in tables), "rows": sum(len(made.data["rows"]) for made in tables),
             "figures": sum(len(part.figures) for part in sections)}  # fmt: skip
    data = json.dumps([made.data for made in tables], ensure_ascii=False, separators=(",", ":"))
    return PAGE.format(
        icon=ICON, style=STYLE, theme=THEME, script=SCRIPT,
        facts=lines(f"<li><b>{n:,}</b> {name}</li>" for name, n in facts.items()),
        links=lines(f'<li><a href="#{part.key}"><span>{text_of(part.number)}</span>{text_of(part.title)}</a></li>'
                    for part in sections),
        sections=lines(map(section, sections, places)),
        data=data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # fmt: skip

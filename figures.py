"""Figures: grids of images with what they show written beside them, and curves with bands. Nothing is global.

All but change_map write one file atomically, a PNG, and `animation` a GIF. Colours are Okabe and Ito's, which survive
colour blindness and grey print.
"""

import io

import numpy
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from storage import write_atomically

COLOURS = {"blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "purple": "#CC79A7",
           "sky": "#56B4E9", "grey": "#6E6E6E"}
TEN = (*COLOURS.values(), "#F0E442", "#000000", "#8C564B")  # ten classes
HEAT = LinearSegmentedColormap.from_list("heat", ["white", "#F5B041", "#D55E00", "#641E16"])  # prints in grey, too
INK = "#222222"
STYLE = {"fontsize": 9, "color": INK}


def save(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def image_grid(path, rows, columns, labels, captions, title, heat=()):
    """Images in a grid: `rows` is a list of lists of (1 or 3, H, W) tensors in [0, 1].

    columns: a heading for each column; labels: a text for each row, on its left; captions: a list of lists of texts
    (or "") under the images. Greyscale is drawn dark on light ink, as digits are written. heat: the (row, column) of
    heat maps, (1, H, W) tensors from 0 up, drawn from white over orange to dark red at 1.
    """
    high, wide = len(rows), len(columns)
    width, height = 1.35 + 1.15 * wide, 0.75 + 1.38 * high
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - 0.1 / height, title, ha="center", va="top", fontsize=10, color=INK)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            place = ((1.3 + 1.15 * j) / width, 1 - (0.62 + 1.38 * i + 1.05) / height, 1.05 / width, 1.05 / height)
            axes = figure.add_axes(place)
            pixels = image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
            colours = HEAT if (i, j) in heat else "gray_r"
            axes.imshow(pixels.squeeze(), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color="#BBBBBB", linewidth=0.6)
            axes.set_xlabel(captions[i][j], labelpad=3, fontsize=8, color=INK)
            if i == 0:
                axes.set_title(columns[j], pad=4, **STYLE)
            if j == 0:
                axes.text(-0.1, 0.5, labels[i], transform=axes.transAxes, ha="right", va="center", **STYLE)
    save(figure, path)


def change_map(images, others):
    """Where images (B, C, H, W) differ: (B, 1, H, W), the sum over channels of the absolute change (published)."""
    return (images - others).abs().sum(1, keepdim=True)


def animation(path, frames, side=280, milliseconds=80):
    """A GIF of frames (T, C, H, W) in [0, 1], that rests on its last frame.

    side: pixels to which a frame is enlarged, or (width, height).
    """
    size = side if isinstance(side, tuple) else (side, side)
    pixels = (frames.detach().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    if pixels.shape[3] == 1:
        pixels = 255 - pixels.repeat(3, 3)  # dark ink, as in the figures
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in pixels]
    rests = [milliseconds] * (len(pictures) - 1) + [1500]
    buffer = io.BytesIO()
    pictures[0].save(buffer, format="gif", save_all=True, append_images=pictures[1:], duration=rests, loop=0)
    write_atomically(path, buffer.getvalue())


def boxes(path, panels, title, y_label):
    """Box plots side by side: panels is a list of (label, colour name, values)."""
    figure = Figure(figsize=(0.8 + 1.5 * len(panels), 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK)
    axes = figure.subplots()
    drawn = axes.boxplot([values for _, _, values in panels], widths=0.5, patch_artist=True,
                         tick_labels=[label for label, _, _ in panels])
    for box, median, (_, colour, _) in zip(drawn["boxes"], drawn["medians"], panels, strict=True):
        box.set(facecolor=COLOURS[colour], alpha=0.6)
        median.set(color=INK)
    axes.set_ylabel(y_label, **STYLE)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(alpha=0.25, linewidth=0.6, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def bars(path, groups, rows, title, x_label, limits):
    """Horizontal bars with intervals, side by side for each row, and a point for each single value.

    groups: (label, colour name) of the bars of a row, from top to bottom. rows: a list of (label, bars), each bar
    (mean, half width of its interval or nan, single values).
    """
    figure = Figure(figsize=(7.2, 0.9 + (0.12 + 0.17 * len(groups)) * len(rows)), layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK)
    axes, height = figure.subplots(), 0.8 / len(groups)
    for j, (label, colour) in enumerate(groups):
        places = numpy.arange(len(rows)) + (j + 0.5) * height - 0.4
        means, halves, values = zip(*(bars[j] for _, bars in rows), strict=True)
        axes.barh(places, means, height, color=COLOURS[colour], alpha=0.55, label=label)
        axes.errorbar(means, places, xerr=halves, fmt="none", ecolor=INK, elinewidth=0.8)
        for place, single in zip(places, values, strict=True):
            axes.plot(single, [place] * len(single), "o", color=COLOURS[colour], markersize=2.5)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set(xlim=limits, ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel(x_label, **STYLE)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(alpha=0.25, linewidth=0.6, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=len(groups), labelcolor=INK)
    save(figure, path)


def scatters(path, panels, title):
    """Panels of one plane side by side, points coloured by class.

    panels: a list of (title, places (N, 2), classes (N,) below 10).
    """
    figure = Figure(figsize=(0.9 + 4.0 * len(panels), 4.3), layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK)
    row = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (name, places, classes) in zip(row, panels, strict=True):
        for number in range(10):
            x, y = places[classes == number].T
            axes.plot(x, y, "o", markersize=2.5, alpha=0.7, label=str(number), color=TEN[number], markeredgewidth=0)
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.set_title(name, **STYLE)
    axes.legend(fontsize=8, frameon=False, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5), labelcolor=INK)
    save(figure, path)


def curves(path, panels, title, columns=3):
    """Panels of curves with bands, `columns` of them side by side.

    panels: a list of dicts with title, x_label, y_label, log ("x", "y", "xy" or ""), lines and zero (whether to draw
    y = 0). lines: a list of (label, colour name, x, y, half widths of the band or None). A panel may also have
    symlog (y is linear up to this value and logarithmic beyond), ticks (on the x axis) and notes, [(x, y, text)].
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(0.4 + 4.1 * columns, 0.4 + 3.3 * rows), layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(places, panels, strict=False):
        for label, colour, x, y, half in panel["lines"]:
            x, y = numpy.asarray(x, float), numpy.asarray(y, float)
            axes.plot(x, y, "o-", color=COLOURS[colour], label=label, markersize=3.5, linewidth=1.5)
            if half is not None:  # a point of one seed has no interval, and no band
                half = numpy.asarray(half, float)
                axes.fill_between(x, y - half, y + half, color=COLOURS[colour], alpha=0.18, linewidth=0)
        if panel.get("zero"):
            axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xscale("log" if "x" in panel.get("log", "") else "linear")
        if "symlog" in panel:  # linear up to this value, logarithmic beyond, on both sides of 0
            axes.set_yscale("symlog", linthresh=panel["symlog"])
        else:
            axes.set_yscale("log" if "y" in panel.get("log", "") else "linear")
        if "ticks" in panel:
            axes.set_xticks(panel["ticks"], [str(tick) for tick in panel["ticks"]], minor=False)
            axes.set_xticks([], minor=True)
        for x, y, text in panel.get("notes", ()):
            axes.annotate(text, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=INK)
        axes.set_title(panel["title"], **STYLE)
        axes.set_xlabel(panel["x_label"], **STYLE)
        axes.set_ylabel(panel["y_label"], **STYLE)
        axes.tick_params(labelsize=8, colors=INK, which="both")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    save(figure, path)

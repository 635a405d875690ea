"""Sets of counterfactuals on the disk: two memory-mapped files that are filled chunk by chunk.

NAME_images.npy (N, 3, H, W), uint8, NAME_labels.npy (N, 3: shape, object, background), and NAME.json, which says
what they were made from and how far. A run that is interrupted goes on where it was; until it is done the files are
called .part. A set of several shards, which several processes can make at once, is as many sets.
"""

import json
import os
import shutil
from pathlib import Path

import numpy
from tqdm import tqdm

import datasets
import experiment
import storage
from stand_ins import write_png

SYNC_EVERY = 20  # chunks that an interruption may cost


def _files(out):
    """([images, labels], note): the files of a set."""
    out = Path(out)
    return [out.with_name(f"{out.name}_{kind}.npy") for kind in ("images", "labels")], out.with_name(f"{out.name}.json")


def write(source, out, size, about):
    """Write a set to memory-mapped files, going on where an interrupted run of the same `about` was.

    source: chunk(number, n) gives (images (n, 3, side, side) in [-1, 1], labels (n, 3) below `classes`), size_of_chunk
    of them but for the last chunk. about: what the set is made from and how; a set that is there already and differs is
    refused. Raises UserError if the disk has not enough room. Returns whether anything was made.
    """
    paths, note = _files(out)
    note.parent.mkdir(parents=True, exist_ok=True)
    about = about | {"size": size}
    with storage.locked(note.parent, wait=True):
        known = storage.read_json(note) if note.exists() else {"done": 0, "about": about}
        if known["about"] != about:
            changed = next(key for key in sorted(about) if known["about"].get(key) != about[key])
            raise experiment.UserError(f"{paths[0]} was made with {changed}={known['about'].get(changed)}, not "
                                       f"{about[changed]}: name another --out or delete {note}")
        if known["done"] >= size and all(path.exists() for path in paths):
            return False
        parts = [path.with_suffix(".part") for path in paths]
        for part, path in zip(parts, paths, strict=True):
            if known["done"] >= size and path.exists() and not part.exists():
                path.replace(part)  # interrupted while they were renamed
        done = known["done"] if all(part.exists() for part in parts) else 0
        arrays = _open_parts(parts, size, source.side, source.classes, fresh=not done)
        for path in paths:  # those of a set whose note was deleted would pass for this one's
            path.unlink(missing_ok=True)
        _fill(source, arrays, done, size, lambda done: storage.write_atomically(
            note, json.dumps({"done": done, "about": about})))  # fmt: skip
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    return True


def _open_parts(parts, size, side, classes, fresh):
    """The two memory-mapped arrays; their room on the disk is taken now, not page by page."""
    kinds = numpy.dtype(numpy.uint8), numpy.dtype(numpy.uint8 if classes <= 256 else numpy.uint16)
    if fresh:
        need, free = size * (3 * side**2 + 3 * kinds[1].itemsize), shutil.disk_usage(parts[0].parent).free
        if need > free:
            raise experiment.UserError(f"a set of {size:,} images takes {need / 1e9:.1f} GB, and {parts[0].parent} has "
                                       f"{free / 1e9:.1f} GB left")
    shapes = ((size, 3, side, side), (size, 3))
    mode = "w+" if fresh else "r+"
    try:
        arrays = [numpy.lib.format.open_memmap(part, mode, kind, shape if fresh else None)
                  for part, kind, shape in zip(parts, kinds, shapes, strict=True)]
        for part in parts if hasattr(os, "posix_fallocate") else ():  # not on macOS
            with open(part, "r+b") as file:  # a page that finds no room later would kill the process
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
        return arrays
    except (OSError, ValueError) as error:
        raise experiment.UserError(f"cannot use {parts[0]}: {error}; delete it to start over") from None


def _fill(source, arrays, done, size, note):
    each = source.size_of_chunk
    with tqdm(total=size, initial=done, desc="counterfactuals", unit="image", disable=None) as bar:
        while done < size:
            images, labels = source.chunk(done // each, min(each, size - done))
            arrays[0][done : done + len(images)] = datasets.to_bytes(images).cpu().numpy()
            arrays[1][done : done + len(images)] = labels.cpu().numpy()
            done += len(images)
            bar.update(len(images))
            if done // each % SYNC_EVERY == 0 or done == size:
                for array in arrays:
                    array.flush()
                note(done)


def about_of(out):
    """What a set was made from and how; raises UserError if there is none, or none that is finished."""
    _, note = _files(out)
    if not note.exists():
        raise experiment.UserError(f"no counterfactual set at {out}; cgn.generate makes one")
    known = storage.read_json(note)
    if known["done"] < known["about"]["size"]:
        raise experiment.UserError(f"no counterfactual set at {out}: {known['done']:,} of {known['about']['size']:,} "
                                   "images are made; the command that began it goes on")
    return known["about"]


def read(out):
    """(images, labels) of a finished set as memory-mapped arrays; raises UserError if it is not there, or torn."""
    about_of(out)
    try:
        return tuple(numpy.load(path, mmap_mode="r") for path in _files(out)[0])
    except (OSError, ValueError) as error:
        raise experiment.UserError(f"no counterfactual set at {out}: {error}; cgn.generate makes one") from None


# --- as files ------------------------------------------------------------------------------------------

COLUMNS = ("file", "shape", "texture", "background")


def write_files(source, folder, size, about):
    """Write a set as pictures FOLDER/000000.png and so on with labels.csv, for other programs; returns how many now.

    Chunks whose pictures are all there are not made again; labels.csv is written last, so that a folder without it is
    not done. source, about: as in `write`.
    """
    folder, note, made = Path(folder), Path(folder) / "about.json", 0
    folder.mkdir(parents=True, exist_ok=True)
    about = about | {"size": size}
    if note.exists() and storage.read_json(note) != about:
        raise experiment.UserError(f"{folder} holds a set that was made with other options: name another --out or "
                                   "delete it")
    storage.write_atomically(note, json.dumps(about))
    rows, each = [",".join(COLUMNS)], source.size_of_chunk
    for number, start in enumerate(tqdm(range(0, size, each), str(folder), disable=None)):
        names = [f"{k:06d}.png" for k in range(start, min(start + each, size))]
        labels = source.labels(number, len(names))
        if not all((folder / name).is_file() for name in names):
            images, _ = source.chunk(number, len(names))
            for name, image in zip(names, datasets.to_bytes(images).cpu(), strict=True):
                write_png(folder / name, image)
            made += len(names)
        rows += [",".join([name, *map(str, row)]) for name, row in zip(names, labels.tolist(), strict=True)]
    storage.write_atomically(folder / "labels.csv", "\n".join(rows) + "\n")
    return made

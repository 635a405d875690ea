"""Pictures with a coloured rectangle on a plain ground, for tests of what reads photographs."""

import torch
from PIL import Image

GREEN, GREY, BLUE = (0, 255, 0), (120, 90, 90), (0, 0, 255)
BOX = (0, 16, 24, 32)  # left, top, right, bottom of the foreground; it touches the left edge


def paint(path, size=(64, 48), box=BOX, colour=GREEN, ground=GREY):
    """A picture with one rectangle; blocks of 8 x 8 and quality 100 keep it exact in a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, ground)
    if box:
        picture.paste(colour, box)
    picture.save(path, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=100, subsampling=0)
    return path


def inside(size=(64, 48), box=BOX):
    """(1, height, width): the rectangle as a mask."""
    mask = torch.zeros(1, size[1], size[0], dtype=torch.bool)
    mask[:, box[1]:box[3], box[0]:box[2]] = True
    return mask

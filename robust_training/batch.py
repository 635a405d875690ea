"""A batch of images with what is known of their foreground, and the geometry of boxes and masks.

Counterfactuals fill the box around the foreground, so that its outline gives nothing away; factuals keep what the mask
covers. Whatever else is in this package takes and gives a Batch.
"""

from typing import NamedTuple

import torch

from experiment import UserError


class Batch(NamedTuple):
    """B images of one size, on one device.

    images      (B, 3, H, W), float32 in [-1, 1]
    labels      (B,), int64
    places      (B,), int64: class of the background, -1 where it is not known
    masks       (B, 1, H, W), boolean: the foreground, by its outline or, where only that is known, by its boxes
    rectangles  (B, 1, H, W), boolean: the boxes around it
    known       (B,), boolean: whether any foreground is marked; masks and rectangles are empty where not
    infills     (B, 3, H, W), float32 in [-1, 1]: the images with the foreground painted over beforehand, or None
    """

    images: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor
    masks: torch.Tensor
    rectangles: torch.Tensor
    known: torch.Tensor
    infills: torch.Tensor | None = None

    def __getitem__(self, index):
        """The images with these indices (a boolean mask, positions or a slice)."""
        return Batch(*(part if part is None else part[index] for part in tuple(self)))

    def __len__(self):
        return len(self.labels)

    def but(self, **changes):
        """The same batch with other parts, by name (NamedTuple's own _replace counts images where it means parts)."""
        return Batch(**(self._asdict() | changes))

    def to(self, device):
        return Batch(*(part if part is None else part.to(device, non_blocking=True) for part in tuple(self)))


def from_masks(images, labels, places, masks, infills=None):
    """A Batch of images whose foreground is marked by masks (B, 1, H, W); an empty mask counts as not known."""
    if masks.shape[2:] != images.shape[2:]:
        raise UserError(f"masks of {tuple(masks.shape[2:])} do not fit images of {tuple(images.shape[2:])}")
    return Batch(images, labels, places, masks, rectangles(masks), masks.flatten(1).any(1), infills)


def extent(masks):
    """(top, bottom, left, right), each (B,), int64, of masks (B, 1, H, W).

    Bottom and right are one past the last pixel; all four are 0 for an empty mask.
    """
    bounds = []
    for axis in (3, 2):  # rows, then columns, that hold any of it
        line = masks.any(axis).flatten(1)
        size = line.shape[1]
        first = line.int().argmax(1)
        last = size - line.flip(1).int().argmax(1)
        bounds += [first, torch.where(line.any(1), last, 0)]
    return bounds


def rectangles(masks):
    """The smallest rectangle around each of masks (B, 1, H, W), as a mask; empty for an empty one."""
    return within(*extent(masks), *masks.shape[2:])


def within(top, bottom, left, right, height, width):
    """Rectangles of these bounds, each (B,) and as those of `extent`, as masks (B, 1, height, width)."""
    top, bottom, left, right = (bound[:, None] for bound in (top, bottom, left, right))
    rows, columns = (torch.arange(size, device=top.device) for size in (height, width))
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
    return inside[:, None]


def boxes_to_masks(boxes, height, width):
    """(1, height, width), boolean: the union of boxes (K, 4), each (left, top, right, bottom) in pixels.

    A box is cut at the border of the image. Raises UserError for one that is empty or lies wholly outside.
    """
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    for left, top, right, bottom in boxes.tolist():
        x0, y0, x1, y1 = max(0, round(left)), max(0, round(top)), min(width, round(right)), min(height, round(bottom))
        if x0 >= x1 or y0 >= y1:
            raise UserError(f"the box ({left:g}, {top:g}, {right:g}, {bottom:g}) is empty or outside an image of "
                            f"{width} x {height} pixels")
        mask[:, y0:y1, x0:x1] = True
    return mask

"""Five kinds of silhouette, drawn with signed distances: star, fish, house, tree, mug. No two of a kind are alike.

A silhouette lives in the square from -1 to 1, x to the right and y down. A distance (N, S, S) is below 0 inside and
its size is that of a length in the same units, so that a drawing is smooth at its edge whatever its number of pixels.
All N of a kind are drawn at once; what is drawn by chance comes from a torch.Generator.
"""

import torch

import storage

SIDE = 64  # pixels of a drawing
WAVE = 0.04  # outlines are bent by waves of at most this height


def draw(kind, n, stream):
    """Opacities (n, 1, SIDE, SIDE) in [0, 1] of n silhouettes of a kind of KINDS, anti-aliased.

    stream: a CPU torch.Generator. Raises UserError for another kind.
    """
    make = storage.one_of(KINDS, "silhouette", kind)
    distance = make(*_bent_plane(n, stream), stream)
    return (0.5 - distance * SIDE / 2).clamp(0, 1)[:, None]  # from 1 to 0 over the width of a pixel


def _between(low, high, n, stream):
    """n draws, (n, 1, 1)."""
    return low + (high - low) * torch.rand(n, 1, 1, generator=stream)


def _side(n, stream):
    """-1 or 1, (n, 1, 1): which way something looks."""
    return torch.randint(2, (n, 1, 1), generator=stream) * 2.0 - 1


def _bent_plane(n, stream):
    """(x, y), each (n, SIDE, SIDE): the pixels' places in a plane that is bent by a wave along each axis."""
    line = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = []
    for along, across in ((x, y), (y, x)):
        height, phase = _between(0, WAVE, n, stream), _between(0, 2 * torch.pi, n, stream)
        places.append(along + height * torch.sin(_between(2, 5, n, stream) * across + phase))
    return places


# --- distances of figures ---------------------------------------------------------------------------


def polygon(corners, x, y):
    """Signed distance (N, H, W) from polygons with corners (N, K, 2), (x, y) in order, to places x, y (N, H, W).

    The size is that of the nearest edge, the sign flips at every edge that a ray to the right crosses.
    """
    nearest = torch.full_like(x, torch.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for start, end in zip(corners.unbind(1), corners.roll(-1, 1).unbind(1), strict=True):
        (x0, y0), (dx, dy) = (pair.view(-1, 2, 1, 1).unbind(1) for pair in (start, end - start))
        ahead, below = x - x0, y - y0
        along = ((ahead * dx + below * dy) / (dx * dx + dy * dy)).clamp(0, 1)
        nearest = torch.minimum(nearest, (ahead - dx * along).square_() + (below - dy * along).square_())
        between = (below < 0) != (below < dy)
        inside ^= between & ((ahead * dy < below * dx) == (dy > 0))
    return nearest.sqrt_() * torch.where(inside, -1.0, 1.0)


def disc(x, y, radius):
    """Signed distance from circles of a radius (N, 1, 1) around the origin."""
    return torch.hypot(x, y) - radius


def _corners(*points):
    """Corners (N, K, 2) of K pairs of coordinates, each a number or (N, 1, 1)."""
    values = (torch.as_tensor(value, dtype=torch.float32) for point in points for value in point)
    return torch.stack(torch.broadcast_tensors(*values), -1).view(-1, len(points), 2)


# --- the five kinds ---------------------------------------------------------------------------------


def star(x, y, stream):
    """Five points of uneven length, slim or stout."""
    n, slim = len(x), _between(0.38, 0.52, len(x), stream)[:, :, 0]
    lengths = 0.95 - 0.15 * torch.rand(n, 10, generator=stream)
    radii = lengths * torch.where(torch.arange(10) % 2 == 0, 1.0, slim)
    angles = (torch.arange(10) + 0.3 * torch.rand(n, 10, generator=stream) - 0.15) * torch.pi / 5
    return polygon(torch.stack([radii * angles.sin(), -radii * angles.cos()], 2), x, y)


def fish(x, y, stream):
    """A body between two arcs, a notched tail, a fin on its back; it swims to either side."""
    n = len(x)
    x = x * _side(n, stream)
    high, nose = _between(0.36, 0.52, n, stream), _between(0.88, 0.95, n, stream)
    rear = _between(-0.5, -0.38, n, stream)
    half, middle = (nose - rear) / 2, (nose + rear) / 2
    radius = (half.square() + high.square()) / (2 * high)
    body = torch.maximum(disc(x - middle, y + high - radius, radius), disc(x - middle, y - high + radius, radius))
    spread, notch = _between(0.36, 0.52, n, stream), _between(-0.86, -0.76, n, stream)
    tail = polygon(_corners((rear + 0.22, 0), (-0.95, -spread), (notch, 0), (-0.95, spread)), x, y)
    root, tip = -0.7 * high, -high - _between(0.14, 0.3, n, stream)
    lean = _between(-0.3, -0.1, n, stream)
    back = polygon(_corners((middle + 0.3, root), (middle + lean, tip), (middle - 0.3, root)), x, y)
    return torch.minimum(torch.minimum(body, tail), back)


def house(x, y, stream):
    """Walls with a door that is cut out, a roof with eaves, a chimney on either slope."""
    n = len(x)
    x = x * _side(n, stream)
    wall, eaves = _between(0.52, 0.72, n, stream), _between(0.1, 0.22, n, stream)
    sill, floor = _between(-0.2, 0.05, n, stream), _between(0.75, 0.9, n, stream)
    wide, high, door = (_between(low, top, n, stream) for low, top in ((0.12, 0.18), (0.38, 0.55), (-0.25, 0.25)))
    outline = polygon(_corners(
        (0, -0.9), (wall + eaves, sill), (wall, sill), (wall, floor), (door + wide, floor), (door + wide, floor - high),
        (door - wide, floor - high), (door - wide, floor), (-wall, floor), (-wall, sill), (-wall - eaves, sill)), x, y)
    left, top = _between(0.3, 0.42, n, stream), _between(-0.95, -0.8, n, stream)
    chimney = polygon(_corners((left, top), (left + 0.2, top), (left + 0.2, sill), (left, sill)), x, y)
    return torch.minimum(outline, chimney)


def tree(x, y, stream):
    """A fir: three tiers that widen towards the ground, on a trunk."""
    n = len(x)
    widths = [_between(low, high, n, stream) for low, high in ((0.32, 0.45), (0.48, 0.62), (0.65, 0.82))]
    ends = [_between(level - 0.05, level + 0.05, n, stream) for level in (-0.38, 0.08, 0.55)]
    trunk, lean = _between(0.11, 0.18, n, stream), _between(-0.1, 0.1, n, stream)
    right = [(widths[0], ends[0]), (0.45 * widths[0], ends[0]), (widths[1], ends[1]), (0.45 * widths[1], ends[1]),
             (widths[2], ends[2]), (trunk, ends[2]), (trunk, 0.93)]
    left = [(-across, down) for across, down in reversed(right)]
    return polygon(_corners((lean, -0.93), *right, *left), x, y)


def mug(x, y, stream):
    """A cup that narrows to its foot, with a handle on either side."""
    n = len(x)
    x = x * _side(n, stream) + 0.22
    rim, foot = _between(0.48, 0.62, n, stream), _between(0.38, 0.48, n, stream)
    top, bottom = _between(-0.85, -0.65, n, stream), _between(0.65, 0.85, n, stream)
    rounded = 0.08
    body = polygon(_corners((rounded - rim, top + rounded), (rim - rounded, top + rounded),
                            (foot - rounded, bottom - rounded), (rounded - foot, bottom - rounded)), x, y) - rounded
    radius, thick = _between(0.3, 0.4, n, stream), _between(0.085, 0.12, n, stream)
    middle = (top + bottom) / 2 - _between(0, 0.1, n, stream)
    handle = disc(x - (rim + foot) / 2 - 0.1, y - middle, radius).abs() - thick
    return torch.minimum(body, torch.maximum(handle, (rim + foot) / 2 - 0.1 - x))


KINDS = {"star": star, "fish": fish, "house": house, "tree": tree, "mug": mug}

"""Finds the saturated objects of a clip: where each one is in every frame, and what colour, shape and size it has.

A pixel on an object's edge is a mix ``p = alpha C + (1 - alpha) b`` of the object's colour and the background, so after the background's
chroma is taken off, its chroma points towards the object's colour and its length is alpha. Marks are grey and vanish from the chroma.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from .render import distance
from .scene import COLORS, SHAPES

_RGB = np.float32(list(COLORS.values()))  # 7 3
_SMALLEST = 0.007  # area of a visible object in squared frame heights; the smallest of Toy World has 0.013
_SIZE_RANGES = {"small": (0.07, 0.138), "big": (0.142, 0.25)}
_COLOR_TOLERANCE = 0.24
_SHAPE_TOLERANCE = 0.80
_GRID = 33
_REACH = 1.9  # half the side of the normalised picture of an object, in radii of the disc of equal area


@dataclass(frozen=True)
class Track:
    """One object over a clip. Lengths are in frame heights, areas in squared ones; T entries each."""

    mask: np.ndarray
    """Coverage in 0..1, float32 [T, H, W]."""
    x: np.ndarray
    y: np.ndarray
    area: np.ndarray
    whole: np.ndarray
    """True where the object is neither cut by the frame's edge nor hidden."""
    shown: np.ndarray
    """The share of the object that can be seen, 0..1."""


@dataclass(frozen=True)
class Appearance:
    """What an object looks like; None for what fits no word of Toy World."""

    color: str | None = None
    shape: str | None = None
    size: str | None = None
    radius: float | None = None
    """In frame heights, before the camera's zoom."""


_PLANE = np.float32([[1, -1, 0], [1, 1, -2]]) / np.sqrt(np.float32([[2], [6]]))
"""Two axes across the grey one: what is left of a colour when its lightness doesn't count."""


def find_objects(frames: np.ndarray, wall: np.ndarray | None, zoom: np.ndarray | None = None) -> list[Track]:
    """At most two tracks in ``frames`` float32 [T, H, W, 3] in 0..1, the larger one first.

    ``wall`` masks the columns [W] of a grey wall. Two objects are told apart by their colours, which always differ in Toy World.
    """
    _, height, _, _ = frames.shape
    chroma = frames @ _PLANE.T  # T H W 2
    behind = np.median(chroma[:, :, ::2], axis=2, keepdims=True)  # T H 1 2: a row of a background has one colour, but for the hills
    offset = chroma - behind
    if wall is not None:
        offset[:, :, wall] = chroma[:, :, wall]
    towards = _RGB @ _PLANE.T - behind.mean((0, 1, 2))  # 7 2
    length = np.hypot(*towards.T)
    candidates = np.abs(offset[..., 0]) + np.abs(offset[..., 1]) > 0.1  # only these few pixels are looked at closely
    time = np.nonzero(candidates)[0]
    offset = offset[candidates]  # N 2
    along = offset @ (towards / length[:, None]).T  # N 7
    label = along.argmax(1)
    best = along[np.arange(len(label)), label]
    alpha = best / length[label] * (best > 0.8 * np.hypot(*offset.T))

    areas = np.zeros((len(frames), len(_RGB)))
    strong = alpha > 0.35
    np.add.at(areas, (time[strong], label[strong]), 1 / height**2)
    order = np.argsort(-areas.sum(0))
    first = order[0]
    if (areas.sum(1) > _SMALLEST).mean() < 0.15:
        return []

    def track(values: np.ndarray) -> Track:
        whole = np.zeros(candidates.shape, np.float32)
        whole[candidates] = values
        return _track(whole, zoom)

    for second in order[1:3]:
        if (areas[:, second] > _SMALLEST).mean() < 0.6:
            break
        mine = along[:, first] >= along[:, second]
        tracks = [track(alpha * mine), track(alpha * ~mine)]
        apart = np.hypot(tracks[0].x - tracks[1].x, tracks[0].y - tracks[1].y) > 0.12
        if (apart & (tracks[1].area > _SMALLEST)).mean() > 0.5:
            return tracks
    return [track(alpha)]


def _track(alpha: np.ndarray, zoom: np.ndarray | None) -> Track:
    _, height, width = alpha.shape
    inside = alpha[alpha > 0.45]
    core = float(np.percentile(inside, 70)) if inside.size else 1.0
    mask = np.clip((alpha / core - 0.25) / 0.5, 0, 1)
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    x, y = _middle(mask.sum(1), columns), _middle(mask.sum(2), rows)
    window = mask
    for _ in range(2):  # specks far from the object don't count
        near_x = np.abs(columns - x[:, None]) < 0.42 * height
        near_y = np.abs(rows - y[:, None]) < 0.42 * height
        window = mask * near_y[:, :, None] * near_x[:, None]
        by_column, by_row = window.sum(1), window.sum(2)
        total = by_column.sum(1)
        x = (by_column @ columns) / np.maximum(total, 1e-6)
        y = (by_row @ rows) / np.maximum(total, 1e-6)
    area = total / height**2
    steady = area if zoom is None else area / zoom**2
    seen = steady[area > _SMALLEST / 3]
    usual = float(np.percentile(seen, 80)) if seen.size else 1.0
    shown = np.minimum(steady / usual, 1.0)
    reach = 0.75 * np.sqrt(area / np.pi) * height
    within = (x > reach) & (x < width - reach) & (y > reach) & (y < height - reach)
    return Track(window.astype(np.float32), x / height, y / height, area, (shown > 0.86) & within, shown)


def _middle(mass: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The weighted median of each row of ``mass`` [T, N]."""
    total = np.cumsum(mass, 1)
    return at[(total >= total[:, -1:] / 2).argmax(1)]


def appearance(frames: np.ndarray, track: Track, zoom: np.ndarray, indices: np.ndarray) -> Appearance:
    """Colour, shape and size of an object, read from the frames ``indices`` in which it is whole."""
    indices = indices[track.whole[indices]]
    if not len(indices):
        return Appearance()
    indices = indices[np.unique(np.linspace(0, len(indices) - 1, 12).round().astype(int))]
    shape = _shape(np.mean([_normalised(track.mask[i]) for i in indices], axis=0))
    unit = _templates()[1][shape] if shape else 2.2
    radius = float(np.median(np.sqrt(track.area[indices] / unit) / zoom[indices]))
    size = next((name for name, (low, high) in _SIZE_RANGES.items() if low <= radius <= high), None)
    core = track.mask[indices] > 0.98
    return Appearance(_color(frames[indices][core]), shape, size, radius)


def _color(pixels: np.ndarray) -> str | None:
    """The word for the pixels [N, 3] of an object's inside, whose shading darkens them by at most 15 %."""
    if len(pixels) < 4:
        return None
    rgb = np.median(pixels, axis=0)
    shades = np.linspace(0.84, 1.0, 5, dtype=np.float32)[:, None, None] * _RGB  # 5 7 3
    misses = np.linalg.norm(rgb - shades, axis=-1).min(0)
    return list(COLORS)[int(misses.argmin())] if misses.min() < _COLOR_TOLERANCE else None


def _shape(picture: np.ndarray) -> str | None:
    """The shape whose outline overlaps best (soft intersection over union), unless none fits well."""
    fits = {name: max(_overlap(picture, t) for t in templates) for name, templates in _templates()[0].items()}
    best = max(fits, key=fits.get)
    return best if fits[best] >= _SHAPE_TOLERANCE else None


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum() / max(np.maximum(a, b).sum(), 1e-6))


def _normalised(mask: np.ndarray) -> np.ndarray:
    """An object's mask [H, W] about its centroid, scaled to unit area: the same for all sizes. [_GRID, _GRID]"""
    height, width = mask.shape
    total = max(float(mask.sum()), 1e-6)
    cy = float(mask.sum(1) @ np.arange(height)) / total
    cx = float(mask.sum(0) @ np.arange(width)) / total
    steps = np.linspace(-_REACH, _REACH, _GRID) * np.sqrt(total / np.pi)
    return (_linear(cy + steps, height) @ mask @ _linear(cx + steps, width).T).astype(np.float32)


def _linear(at: np.ndarray, size: int) -> np.ndarray:
    """Weights [N, size] that read a line at the places ``at`` by linear interpolation; outside it is 0."""
    return np.clip(1 - np.abs(at[:, None] - np.arange(size)), 0, None)


@cache
def _templates() -> tuple[dict[str, list[np.ndarray]], dict[str, float]]:
    """Each shape's normalised pictures, sharp and softened, and its area at radius 1."""
    pictures: dict[str, list[np.ndarray]] = {}
    areas: dict[str, float] = {}
    for shape in SHAPES:
        pictures[shape] = []
        for radius in (5.5, 8.0, 14.0):  # an edge is one pixel wide, so a small object's is softer
            at = np.arange(64, dtype=np.float32) - 31.5
            d = distance(shape, at[None], at[:, None], radius)
            for softness in (1.0, 2.6):
                mask = np.clip((np.clip(0.5 - d / softness, 0, 1) - 0.25) / 0.5, 0, 1)
                pictures[shape].append(_normalised(mask))
        areas[shape] = float(np.clip(0.5 - d, 0, 1).sum()) / radius**2
    return pictures, areas

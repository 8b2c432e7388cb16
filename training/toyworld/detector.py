"""Reads a Toy World clip back: what is in it, where it goes, what the camera does. The judge of generated clips.

Everything is measured on the pixels: the background by its palette, objects as soft coverage masks unmixed from the row's
background colour, shapes against the renderer's own outlines, the camera by aligning the layers between key frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .render import SHADING, WALL_COLOR, WALL_WIDTH, distance
from .scene import BACKGROUNDS, COLORS, GROUND, SHAPES, SIZES, ClipSpec

ATTRIBUTES = ("color", "shape", "size", "background", "motion", "camera")

_NAMES = tuple(COLORS)
_PALETTE = np.array([COLORS[name] for name in _NAMES], np.float32) * (1 - SHADING * 0.45)
_AREA = {"ball": np.pi, "box": 1.7**2, "triangle": 27**0.5 * 0.56**2, "star": 5 * 1.12 * 0.5 * np.sin(np.pi / 5)}
"""Area of a shape of radius 1."""
_CENTROID = {"ball": 0.0, "box": 0.0, "triangle": 0.12, "star": 0.0}
"""How far the centroid lies below the centre, in radii."""
_SPLIT = (SIZES["small"][1] + SIZES["big"][0]) / 2
_FIT = 0.72
"""Least overlap (intersection over union) with an outline for a shape to count as that shape."""


@dataclass(frozen=True)
class Detection:
    """What a clip shows; None where nothing fits. Lengths are in frame heights, right and down positive."""

    color: str | None
    shape: str | None
    size: str | None
    background: str | None
    motion: str | None
    camera: str | None
    second_color: str | None
    second_shape: str | None
    second_size: str | None
    track: np.ndarray
    """[T, 2]: x, y of the main object's centre on the frame, NaN where it is out of view."""
    near_shift: float = 0.0
    far_shift: float = 0.0
    """How far the ground and the hills moved to the right over the clip."""
    before: tuple[str | None, str | None, str | None] = (None, None, None)
    after: tuple[str | None, str | None, str | None] = (None, None, None)
    """Colour, shape and size on the first and on the last third of the frames that show the object wholly."""
    zoom: np.ndarray | None = None
    """[T]: how far the camera has zoomed in; ones where it does not."""


@dataclass
class _Object:
    color: str
    cover: np.ndarray  # [T, H, W] soft coverage of this object alone
    area: np.ndarray  # [T] pixels
    track: np.ndarray  # [T, 2] centroid in pixels, NaN when absent
    whole: np.ndarray  # [T] wholly in view


def detect(frames: np.ndarray) -> Detection:
    """Read a clip, uint8 [T, H, W, 3] (at least 8 x 8 pixels). Never fails on an odd picture: attributes become None."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size or min(frames.shape[1:3]) < 8:
        raise ValueError(f"a clip is uint8 [frames, height, width, 3] of at least 8x8 pixels, got {frames.dtype} {list(frames.shape)}")
    video = frames.astype(np.float32) / 255
    count, height, width = video.shape[:3]
    background = _background(video)
    wall = _has_wall(video)
    columns = np.abs(np.arange(width) + 0.5 - width / 2) < WALL_WIDTH * width / 2 + 1.5 if wall else np.zeros(width, bool)
    difference = _difference(video, columns)
    objects = _objects(video, difference, columns)
    near, far, zoom = _camera_path(video, objects, columns)
    camera = "zooms in" if zoom[-1] > 1.3 else "still"
    if abs(near[-1]) > 0.35 * width and zoom[-1] < 1.2:
        camera = "pans left" if near[-1] > 0 else "pans right"
    path = np.stack([near, np.zeros_like(near)], 1)
    empty = np.full((count, 2), np.nan)
    if not objects:
        return Detection(None, None, None, background, None, camera, None, None, None, empty, near[-1] / height, far[-1] / height, zoom=np.ones(count))
    if camera != "zooms in":
        zoom = np.ones(count)
    if camera == "still":
        path = np.zeros_like(path)
    centre = np.array([width, height]) / 2
    own = [((o.track - centre) / zoom[:, None] + centre - path) / height for o in objects]
    second, motion = None, None
    if len(objects) == 2:
        motion = _hit(objects, own, width / height)
        second = objects[1]
    motion = motion or _motion(objects[0], own[0], wall, width / height, camera)
    look = _look(objects[0], zoom)
    whole = np.flatnonzero(objects[0].whole)
    third = max(1, len(whole) // 3)
    other = _look(second, zoom) if second else (None, None, None)
    return Detection(
        look[0], look[1], look[2], background, motion, camera, *other, objects[0].track / height, near[-1] / height, far[-1] / height,
        _look(objects[0], zoom, whole[:third]), _look(objects[0], zoom, whole[-third:]), zoom,
    )  # fmt: skip


def shows(spec: ClipSpec, frames: np.ndarray, zoom: np.ndarray) -> bool:
    """Whether a part of a clip shows all of ``spec`` that a part can show: colour, shape and size of its objects, and the background.

    Args:
        frames: uint8 [T, H, W, 3] of the part.
        zoom: [T] of the whole clip's ``Detection``, for these frames: sizes are meant before the camera.
    """
    video = frames.astype(np.float32) / 255
    width = video.shape[2]
    columns = np.abs(np.arange(width) + 0.5 - width / 2) < WALL_WIDTH * width / 2 + 1.5 if _has_wall(video) else np.zeros(width, bool)
    objects = _objects(video, _difference(video, columns), columns)
    wanted = [(spec.color, spec.shape, spec.size)] + ([(spec.second_color, spec.second_shape, spec.second_size)] if spec.motion == "hits" else [])
    return _background(video) == spec.background and len(objects) >= len(wanted) and [_look(item, zoom) for item in objects[: len(wanted)]] == wanted


def score(spec: ClipSpec, frames: np.ndarray) -> dict[str, bool]:
    """Right or wrong for each attribute of ``spec``; "all" also asks for the second object of a hit."""
    return compare(spec, detect(frames))


def compare(spec: ClipSpec, found: Detection) -> dict[str, bool]:
    """``score`` of a clip that has been read already."""
    marks = {name: getattr(found, name) == getattr(spec, name) for name in ATTRIBUTES}
    names = ATTRIBUTES
    if spec.motion == "hits":
        names = ATTRIBUTES + ("second_color", "second_shape", "second_size")
    marks["all"] = all(getattr(found, name) == getattr(spec, name) for name in names)
    return marks


# -- background --------------------------------------------------------------------------------------------


def _background(video: np.ndarray) -> str:
    height = video.shape[1]
    keys = video[:: max(1, len(video) // 8)]
    sky = np.median(keys[:, : max(1, int(0.3 * height))].reshape(-1, 3), axis=0)
    ground = np.median(keys[:, int(0.72 * height) :].reshape(-1, 3), axis=0)
    gap = {name: np.abs(sky - c[0]).sum() + 2 * np.abs(ground - c[2]).sum() for name, c in BACKGROUNDS.items()}
    return min(gap, key=gap.get)


def _has_wall(video: np.ndarray) -> bool:
    width = video.shape[2]
    half = 0.4 * WALL_WIDTH * width
    strip = video[:: max(1, len(video) // 8), :, int(width / 2 - half) : int(width / 2 + half) + 1]
    return bool((np.abs(strip - np.float32(WALL_COLOR)).max(-1) < 0.1).mean() > 0.75)


def _brightness(colors: np.ndarray) -> np.ndarray:
    """The mean of the channels (several times as fast as ``mean(-1)`` over an axis of three)."""
    return (colors[..., 0] + colors[..., 1] + colors[..., 2]) * np.float32(1 / 3)


def _space(colors: np.ndarray) -> np.ndarray:
    """Colour with its brightness at half weight: marks and shading change mostly that."""
    return colors - 0.5 * _brightness(colors)[..., None]


def _difference(video: np.ndarray, wall: np.ndarray) -> np.ndarray:
    """[T, H, W, 3] from the background of the row (its median, taken where no wall stands)."""
    step = max(1, video.shape[2] // 64)
    rows = np.median(video[:, :, ~wall][:, :, ::step], axis=2, keepdims=True)
    difference = _space(video) - _space(rows)
    difference[:, :, wall] = 0
    return difference


# -- objects -----------------------------------------------------------------------------------------------


def _chroma(colors: np.ndarray) -> np.ndarray:
    return colors - _brightness(colors)[..., None]


def _objects(video: np.ndarray, difference: np.ndarray, wall: np.ndarray) -> list[_Object]:
    """The one or two objects, the left one at the start first."""
    count, height, width = video.shape[:3]
    chroma = _chroma(difference)
    strong = _brightness(chroma * chroma) > 0.19**2 / 3
    core = ndimage.binary_erosion(strong, np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool))
    t, y, x = np.nonzero(core)
    if not len(t):
        return []
    gaps = ((_space(video[t, y, x])[:, None] - _space(_PALETTE)[None]) ** 2).sum(-1)
    label = gaps.argmin(1)
    amount = np.zeros((len(_NAMES), count))
    np.add.at(amount, (label, t), 1)
    least = 0.5 * (SIZES["small"][0] * height) ** 2
    order = np.argsort(-amount.sum(1))
    if amount[order[0]].max() < least:
        return []
    chosen = [order[0]]
    for k in order[1:]:
        if np.median(amount[k]) >= least and np.median(amount[order[0]]) >= least:
            chosen.append(k)
            break
    background = _space(video) - difference
    covers = _unmix(difference, background, [_space(_PALETTE[k]) for k in chosen])
    found = [_follow(_NAMES[k], cover, wall) for k, cover in zip(chosen, covers)]
    if len(found) == 2:
        starts = [o.track[np.isfinite(o.track[:, 0])][:1, 0] for o in found]
        if not len(starts[1]):
            return found[:1]
        if len(starts[0]) and starts[1][0] < starts[0][0]:
            found.reverse()
    return found


def _unmix(difference: np.ndarray, background: np.ndarray, colors: list[np.ndarray]) -> list[np.ndarray]:
    """Coverage of each colour, 0..1: least squares of the difference on the ways from the background to the colours."""
    ways = [c - background for c in colors]
    dot = lambda p, q: 3 * _brightness(p * q)  # noqa: E731
    if len(ways) == 1:
        return [np.clip(dot(difference, ways[0]) / np.maximum(dot(ways[0], ways[0]), 1e-3), 0, 1)]
    a, b, c = dot(ways[0], ways[0]), dot(ways[0], ways[1]), dot(ways[1], ways[1])
    p, q = dot(difference, ways[0]), dot(difference, ways[1])
    det = np.maximum(a * c - b * b, 1e-4)
    return [np.clip((c * p - b * q) / det, 0, 1), np.clip((a * q - b * p) / det, 0, 1)]


def _follow(color: str, cover: np.ndarray, wall: np.ndarray) -> _Object:
    """The largest connected piece of a colour in every frame."""
    count, height, width = cover.shape
    least = 0.25 * (SIZES["small"][0] * height) ** 2
    area, track = np.zeros(count), np.full((count, 2), np.nan)
    whole = np.zeros(count, bool)
    alone = np.zeros_like(cover)
    edges = np.flatnonzero(np.diff(wall.astype(np.int8)))
    for i in range(count):
        pieces, number = ndimage.label(cover[i] > 0.5)
        if not number:
            continue
        sizes = np.bincount(pieces.ravel())[1:]
        k = int(sizes.argmax())
        if sizes[k] < least:
            continue
        rows, columns = ndimage.find_objects(pieces, max_label=k + 1)[k]
        y0, y1, x0, x1 = max(0, rows.start - 2), min(height, rows.stop + 2), max(0, columns.start - 2), min(width, columns.stop + 2)
        near = ndimage.binary_dilation(pieces[y0:y1, x0:x1] == k + 1, iterations=2)
        soft = np.where(near & (cover[i, y0:y1, x0:x1] > 0.1), cover[i, y0:y1, x0:x1], 0)
        alone[i, y0:y1, x0:x1] = soft
        area[i] = soft.sum()
        track[i] = (soft.sum(0) @ (np.arange(x0, x1) + 0.5)) / area[i], (soft.sum(1) @ (np.arange(y0, y1) + 0.5)) / area[i]
        inside = rows.start > 0 and columns.start > 0 and rows.stop < height and columns.stop < width
        whole[i] = inside and not any(columns.start - 2 <= e <= columns.stop + 1 for e in edges)
    return _Object(color, alone, area, track, whole)


def _look(item: _Object, zoom: np.ndarray, frames: np.ndarray | None = None) -> tuple[str | None, str | None, str | None]:
    """Colour, shape and size from up to eight of ``frames`` (default: all that show the object wholly)."""
    seen = np.flatnonzero(item.whole) if frames is None else frames
    if not len(seen):
        seen = np.argsort(-item.area)[:1]
    seen = seen[np.isfinite(item.track[seen, 0])]
    if not len(seen):
        return item.color, None, None
    if len(seen) > 8:
        seen = seen[np.linspace(0, len(seen) - 1, 8).round().astype(int)]
    height, width = item.cover.shape[1:]
    fits = {shape: [] for shape in SHAPES}
    for i in seen:
        x, y = item.track[i]
        reach = 1.8 * (item.area[i] / 1.6) ** 0.5 / 1.2 + 2
        x0, x1, y0, y1 = max(0, int(x - reach)), min(width, int(x + reach) + 1), max(0, int(y - reach)), min(height, int(y + reach) + 1)
        mask = item.cover[i, y0:y1, x0:x1]
        dx, dy = np.arange(x0, x1)[None] + 0.5 - x, np.arange(y0, y1)[:, None] + 0.5 - y
        for shape in SHAPES:
            radius = (item.area[i] / _AREA[shape]) ** 0.5
            outline = np.clip(0.5 - distance(shape, dx, dy + _CENTROID[shape] * radius, radius), 0, 1)
            fits[shape].append(np.minimum(mask, outline).sum() / max(1e-6, np.maximum(mask, outline).sum()))
    means = {shape: float(np.mean(values)) for shape, values in fits.items()}
    best = max(means, key=means.get)
    radius = float(np.median((item.area[seen] / _AREA[best]) ** 0.5 / zoom[seen])) / height
    size = None if not 0.6 * SIZES["small"][0] < radius < 1.5 * SIZES["big"][1] else "small" if radius < _SPLIT else "big"
    return item.color, best if means[best] >= _FIT else None, size


# -- camera ------------------------------------------------------------------------------------------------


def _camera_path(video: np.ndarray, objects: list[_Object], wall: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift of the near and of the far layer to the right (pixels) and zoom, each [T], from the first frame on."""
    count, height, width = video.shape[:3]
    keys = np.unique(np.linspace(0, count - 1, 9).round().astype(int))
    grey = ndimage.gaussian_filter(_brightness(video[keys]), (0, 0.6, 0.6))
    valid = np.ones(grey.shape, bool)
    valid[:, :, wall] = False
    for item in objects:
        valid &= ~ndimage.binary_dilation(item.cover[keys] > 0.1, np.ones((1, 3, 3), bool), iterations=2)
    near, far, zoom = [0.0], [0.0], [1.0]
    split = int(GROUND * height) + 2
    for a in range(len(keys) - 1):
        reach = int(1.6 * width * (keys[a + 1] - keys[a]) / max(1, count - 1)) // 2 * 2 + 2
        shifts = np.arange(-min(reach, width // 2), min(reach, width // 2) + 1)
        first, second = (grey[a], valid[a]), (grey[a + 1], valid[a + 1])
        ground = [_shift_cost(first, second, s, slice(split, height)) for s in shifts]
        sky = [_shift_cost(first, second, s, slice(0, split - 4)) if abs(s) <= reach // 2 + 2 else 1.0 for s in shifts]
        middle = len(shifts) // 2
        halves = np.interp(shifts / 2, shifts, sky)
        share = 1 - GROUND
        pan = share * np.array(ground) + (1 - share) * halves
        scales = np.append(np.linspace(1.015, 1 + 0.9 * (keys[a + 1] - keys[a]) / max(1, count - 1), 10), 1.0)
        grown = [_zoom_cost(first, second, z) for z in scales]
        best = int(np.argmin(grown))
        if grown[best] < 0.97 * pan.min() and scales[best] > 1.0:
            near.append(near[-1]), far.append(far[-1]), zoom.append(zoom[-1] * scales[best])
            continue
        k = int(pan.argmin())
        if pan[k] > 0.97 * pan[middle]:
            k = middle
        window = np.abs(shifts - shifts[k] / 2) <= max(1, abs(shifts[k]) / 3)
        near.append(near[-1] + (shifts[k] and _vertex(shifts, pan, k)))
        far.append(far[-1] + (shifts[k] and _vertex(shifts, np.array(sky), int(np.flatnonzero(window)[np.array(sky)[window].argmin()]))))
        zoom.append(zoom[-1])
    every = np.arange(count)
    return np.interp(every, keys, near), np.interp(every, keys, far), np.interp(every, keys, zoom)


def _shift_cost(first, second, shift: int, rows: slice) -> float:
    width = first[0].shape[1]
    here, there = slice(max(0, shift), width + min(0, shift)), slice(max(0, -shift), width - max(0, shift))
    both = second[1][rows, here] & first[1][rows, there]
    if not both.any():
        return 1.0
    gap = second[0][rows, here] - first[0][rows, there]
    return float((gap * gap * both).sum() / both.sum()) + 1e-6


def _zoom_cost(first, second, scale: float) -> float:
    height, width = first[0].shape
    xs = ((np.arange(width) + 0.5 - width / 2) / scale + width / 2 - 0.5)
    ys = ((np.arange(height) + 0.5 - height / 2) / scale + height / 2 - 0.5)
    x0, y0 = np.clip(xs.astype(int), 0, width - 2), np.clip(ys.astype(int), 0, height - 2)
    fx, fy = (xs - x0).astype(np.float32)[None], (ys - y0).astype(np.float32)[:, None]
    rows = first[0][y0] * (1 - fy) + first[0][y0 + 1] * fy
    warped = rows[:, x0] * (1 - fx) + rows[:, x0 + 1] * fx
    both = second[1] & first[1][np.ix_(ys.round().astype(int), xs.round().astype(int))]
    if not both.any():
        return 1.0
    gap = second[0] - warped
    return float((gap * gap * both).sum() / both.sum()) + 1e-6


def _vertex(xs: np.ndarray, ys: np.ndarray, k: int) -> float:
    """The minimum of a parabola through three neighbours of a minimum."""
    if not 0 < k < len(xs) - 1:
        return float(xs[k])
    bend = ys[k - 1] - 2 * ys[k] + ys[k + 1]
    return float(xs[k] + (np.clip(0.5 * (ys[k - 1] - ys[k + 1]) / bend, -0.5, 0.5) if bend > 1e-12 else 0.0))


# -- motion ------------------------------------------------------------------------------------------------


def _hit(objects: list[_Object], own: list[np.ndarray], aspect: float) -> str | None:
    """Whether the first object moves right to the second, which stands until then and then goes right."""
    first, second = own
    if not (np.isfinite(first).all(1) & np.isfinite(second).all(1)).mean() > 0.7:
        return None
    good = np.isfinite(first[:, 0]) & np.isfinite(second[:, 0])
    a, b, u = first[good, 0], second[good, 0], np.linspace(0, 1, len(first))[good]
    if b[-1] - b[0] < 0.06 * aspect or a[-1] - a[0] < 0.1 * aspect:
        return None
    touch = u[np.flatnonzero(a - a[0] > 0.9 * (a.max() - a[0]))[0]]  # the first object is about there
    early = b[u < touch - 0.03]
    late = a[u > touch + 0.2]
    stands = not len(early) or np.ptp(early) < 0.05
    stops = not len(late) or np.ptp(late) < 0.06
    return "hits" if stands and stops else None


def _motion(item: _Object, own: np.ndarray, wall: bool, aspect: float, camera: str) -> str | None:
    seen = np.isfinite(own[:, 0])
    u = np.linspace(0, 1, len(own))
    if wall:
        x = own[seen, 0]
        crosses = len(x) > 1 and min(x[0], x[-1]) < 0.42 * aspect and max(x[0], x[-1]) > 0.58 * aspect
        steps = np.diff(x)
        return "passes behind a wall" if crosses and (np.sign(x[-1] - x[0]) * steps > -0.04).all() else None
    if camera == "still" and not seen.all() and seen[: max(1, len(seen) // 6)].all() and seen[-max(1, len(seen) // 6) :].all():
        out = np.flatnonzero(~seen)
        if len(out) >= max(1, int(0.1 * len(seen))) and out[-1] - out[0] + 1 == len(out):
            before, after = own[out[0] - 1, 0], own[out[-1] + 1, 0]
            side = 0.3 * aspect
            if (before < side and after < side) or (before > aspect - side and after > aspect - side):
                return "leaves and returns"
    good = seen & item.whole if (seen & item.whole).sum() >= 3 else seen
    if good.sum() < 3:
        return None
    path, u = own[good], u[good]
    wide, high = np.ptp(path, axis=0)
    loose = 0.07 if camera == "still" else 0.15
    if wide < loose and high < loose:
        return "stays still"
    speed = np.polyfit(u, path, 1)[0]
    bend = np.abs(path - np.stack([np.polyval(np.polyfit(u, path[:, k], 1), u) for k in (0, 1)], 1)).max(0)
    if bend.max() < 0.12:
        if abs(speed[0]) > 0.4 * aspect and abs(speed[1]) < 0.2:
            return "moves right" if speed[0] > 0 else "moves left"
        if abs(speed[1]) > 0.4 and abs(speed[0]) < 0.25:
            return "falls" if speed[1] > 0 else "rises"
    if wide < 0.3 and high > 0.2:
        return "bounces" if _turns(path[:, 1], 0.1) >= 2 else None
    if wide > 0.28 and high > 0.28 and 0.55 < wide / high < 1.8:
        centre = (path.max(0) + path.min(0)) / 2
        offset = path - centre
        radius = np.hypot(*offset.T)
        angle = np.unwrap(np.arctan2(offset[:, 1], offset[:, 0]))
        if radius.min() > 0.5 * radius.mean() and abs(angle[-1] - angle[0]) > 0.85 * 2 * np.pi * (u[-1] - u[0]):
            return "circles"
    return None


def _turns(y: np.ndarray, least: float) -> int:
    """How often ``y`` changes its direction by more than ``least``."""
    turns, low, high, up = 0, y[0], y[0], None
    for value in y[1:]:
        low, high = min(low, value), max(high, value)
        if up is not True and value - low > least:
            turns, up, high = turns + (up is False), True, value
        elif up is not False and high - value > least:
            turns, up, low = turns + (up is True), False, value
    return turns

"""Reads a clip's attributes back from its frames: the judge of what a model draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .camera_motion import CameraMotion, measure_camera
from .motion import Hit, Path, leaves_and_returns, measure_hit, name_motion
from .objects import Appearance, Track, appearance, find_objects
from .render import WALL_COLOR, WALL_WIDTH, World
from .scene import BACKGROUNDS, ClipSpec

ATTRIBUTES = ("color", "shape", "size", "background", "motion", "camera")
_HEIGHT = 80
_BACKGROUND_TOLERANCE = 0.14


@dataclass(frozen=True)
class Detection:
    """What a clip shows, in the words of Toy World; None stands for what isn't there or fits no word."""

    color: str | None
    shape: str | None
    size: str | None
    background: str | None
    motion: str | None
    camera: str | None
    second_color: str | None = None
    second_shape: str | None = None
    second_size: str | None = None
    camera_motion: CameraMotion = CameraMotion(None, 0.0, 0.0, 1.0)
    hit: Hit | None = None
    same_after: bool | None = None
    """Whether the object that was hidden by a wall, or out of view, came out with the same colour, shape and size."""


def detect(frames: np.ndarray) -> Detection:
    """Read ``frames`` uint8 [T, H, W, 3]. Any video may be given: what can't be found is None."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape or frames.dtype != np.uint8:
        raise ValueError(f"detect needs uint8 frames of the shape [T, H, W, 3]; these are {frames.dtype} {tuple(frames.shape)}.")
    frames = _resized(frames)
    num_frames, height, width, _ = frames.shape
    aspect = width / height
    background = _background(frames)
    wall = _wall(frames)
    tracks = find_objects(frames, wall)
    camera = measure_camera(frames @ np.full(3, 1 / 3, np.float32), _hidden(tracks, frames.shape))
    u = np.linspace(0, 1, num_frames) if num_frames > 1 else np.zeros(1)
    zoom = 1 + (camera.zoom - 1) * u
    if camera.zoom != 1.0 and tracks:
        tracks = find_objects(frames, wall, zoom)
    everything = np.arange(num_frames)
    looks = [appearance(frames, track, zoom, everything) for track in tracks]
    paths = [_path(track, look, camera, zoom, u, aspect) for track, look in zip(tracks, looks)]
    hit = None
    if len(tracks) == 2:
        if _start(paths[1]) < _start(paths[0]) and min(p.whole.mean() for p in paths) > 0.6:  # the one on the left does the hitting
            tracks, looks, paths = tracks[::-1], looks[::-1], paths[::-1]
        hit = measure_hit(*paths)
    looks += [Appearance()] * (2 - len(looks))
    motion = None
    if hit is not None and hit.complete:
        motion = "hits"
    elif paths:
        motion = name_motion(paths[0], aspect, wall is not None, slack=0.1 if camera.near_shift else 0.0)
    main, second = looks
    return Detection(
        main.color, main.shape, main.size, background, motion, camera.name, second.color, second.shape, second.size, camera, hit,
        same_after=_same_after(frames, tracks[0], paths[0], zoom, wall is not None, aspect) if tracks else None,
    )


def score(spec: ClipSpec, frames: np.ndarray, found: Detection | None = None) -> dict[str, bool]:
    """Per attribute whether ``frames`` show what ``spec`` says, and ``all``, which for ``hits`` asks for the second object's looks too."""
    found = found or detect(frames)
    right = {name: getattr(found, name) == getattr(spec, name) for name in ATTRIBUTES}
    second = spec.second_color is None or all(getattr(found, f"second_{k}") == getattr(spec, f"second_{k}") for k in ("color", "shape", "size"))
    return right | {"all": all(right.values()) and second}


def _resized(frames: np.ndarray) -> np.ndarray:
    """Float32 in 0..1, brought down to about 80 rows by averaging; smaller frames stay as they are."""
    _, height, width, _ = frames.shape
    frames = frames.astype(np.float32) / 255
    if height <= 1.2 * _HEIGHT:
        return frames
    rows, columns = _averaging(height, _HEIGHT), _averaging(width, max(1, round(width * _HEIGHT / height)))
    return np.einsum("rh,thwc->trwc", rows, np.einsum("kw,thwc->thkc", columns, frames, optimize=True), optimize=True)


def _averaging(size: int, target: int) -> np.ndarray:
    """The matrix [target, size] that averages what each new pixel covers."""
    edges = np.linspace(0, size, target + 1)
    at = np.arange(size)
    cover = np.clip(np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at), 0, None)
    return (cover / cover.sum(1, keepdims=True)).astype(np.float32)


def _sample(frames: np.ndarray, count: int = 8) -> np.ndarray:
    return frames[np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))]


def _background(frames: np.ndarray) -> str | None:
    """The background whose sky and ground are nearest in colour."""
    some = _sample(frames)
    height = frames.shape[1]
    r, g, b = np.moveaxis(some, -1, 0)
    dull = np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b) < 0.35

    def colour(rows: slice) -> np.ndarray | None:
        pixels = some[:, rows][dull[:, rows]]
        return np.median(pixels, axis=0) if len(pixels) else None

    sky, ground = colour(slice(0, max(1, int(0.3 * height)))), colour(slice(int(0.76 * height), height))
    if sky is None or ground is None:
        return None
    misses = {name: max(np.linalg.norm(sky - layers[0]), np.linalg.norm(ground - layers[2])) for name, layers in BACKGROUNDS.items()}
    best = min(misses, key=misses.get)
    return best if misses[best] < _BACKGROUND_TOLERANCE else None


def _wall(frames: np.ndarray) -> np.ndarray | None:
    """The columns [W] of a grey wall in the middle, None where there is none."""
    some = _sample(frames)
    width = frames.shape[2]
    r, g, b = np.moveaxis(np.abs(some - np.float32(WALL_COLOR)), -1, 0)
    grey = (np.maximum(np.maximum(r, g), b) < 0.1).mean((0, 1))  # W
    from_middle = np.abs((np.arange(width) + 0.5) / width - 0.5)
    inside, outside = from_middle < 0.4 * WALL_WIDTH, from_middle > 0.65 * WALL_WIDTH
    if not inside.any() or grey[inside].mean() < 0.8 or grey[outside].mean() > 0.3:
        return None
    return from_middle < WALL_WIDTH / 2


def _hidden(tracks: list[Track], shape: tuple[int, ...]) -> np.ndarray:
    """The pixels [T, H, W] on or next to an object."""
    hidden = np.zeros(shape[:3], bool)
    for track in tracks:
        hidden |= track.mask > 0.05
    for axis in (1, 2):
        for step in (1, 2):  # three pixels each way
            hidden = hidden | np.roll(hidden, step, axis) | np.roll(hidden, -step, axis)
    return hidden


def _path(track: Track, look: Appearance, camera: CameraMotion, zoom: np.ndarray, u: np.ndarray, aspect: float) -> Path:
    x = 0.5 * aspect + (track.x - 0.5 * aspect) / zoom - camera.near_shift * aspect * u
    y = 0.5 + (track.y - 0.5) / zoom
    half_width = World._half_width(look.shape, look.radius) if look.shape else (look.radius or 0.1)
    return Path(u, x, y, track.whole, track.shown, half_width)


def _start(path: Path) -> float:
    return float(path.x[path.whole.argmax()])


def _same_after(frames: np.ndarray, track: Track, path: Path, zoom: np.ndarray, wall: bool, aspect: float) -> bool | None:
    """Compares the object before and after it was hidden; None when it never was."""
    everything = np.arange(len(frames))
    if wall:
        left, right = (everything[path.whole & side] for side in (path.x < 0.42 * aspect, path.x > 0.58 * aspect))
        parts = (left, right) if len(left) and len(right) else None
    else:
        gap = leaves_and_returns(path, aspect)
        parts = (everything[: gap[0]], everything[gap[1] :]) if gap else None
    if parts is None:
        return None
    before, after = (appearance(frames, track, zoom, part) for part in parts)
    looks = [(a.color, a.shape, a.size) for a in (before, after)]
    return looks[0] == looks[1] and None not in looks[0]

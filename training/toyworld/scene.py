"""The words of Toy World and what a clip is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.14),
    "orange": (1.0, 0.55, 0.05),
    "yellow": (0.98, 0.88, 0.10),
    "green": (0.08, 0.70, 0.25),
    "blue": (0.10, 0.30, 0.95),
    "purple": (0.55, 0.15, 0.80),
    "pink": (1.0, 0.35, 0.70),
}
SHAPES = ("ball", "box", "star", "triangle")
SIZES: dict[str, tuple[float, float]] = {"small": (0.09, 0.11), "big": (0.17, 0.20)}
"""Radius as a share of the frame height."""
BACKGROUNDS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "a meadow": ((0.78, 0.88, 0.94), (0.66, 0.76, 0.72), (0.62, 0.74, 0.58)),
    "a desert": ((0.96, 0.86, 0.72), (0.90, 0.78, 0.64), (0.86, 0.76, 0.62)),
    "the sea": ((0.82, 0.88, 0.92), (0.66, 0.74, 0.80), (0.50, 0.62, 0.72)),
    "the night": ((0.07, 0.08, 0.16), (0.11, 0.12, 0.20), (0.16, 0.17, 0.22)),
}
"""Sky, hills, ground."""
MOTIONS = (
    "moves left",
    "moves right",
    "rises",
    "falls",
    "bounces",
    "circles",
    "stays still",
    "passes behind a wall",
    "leaves and returns",
    "hits",
)
CAMERAS = ("still", "pans left", "pans right", "zooms in")
HELD_OUT_PAIRS = frozenset({("red", "star"), ("blue", "triangle"), ("yellow", "box"), ("purple", "ball")})
GROUND = 0.62
"""Where the ground begins, as a share of the frame height."""
ZOOM = 1.6
NO_CAMERA_MOTIONS = ("passes behind a wall", "leaves and returns", "hits")
"""Their captions say where things are on the frame, so the camera stays still."""
MOVING_CAMERAS = 0.3
"""In what share of the other clips the camera moves."""


@dataclass(frozen=True)
class ClipSpec:
    """All that decides a clip. ``seed`` draws positions, speeds and marks; they never depend on ``num_frames``."""

    size: str
    color: str
    shape: str
    motion: str
    background: str
    camera: str = "still"
    second_size: str | None = None
    second_color: str | None = None
    second_shape: str | None = None
    num_frames: int = 24
    height: int = 80
    width: int = 128
    seed: int = 0


def _pick(rng: np.random.Generator, values) -> str:
    return str(rng.choice(list(values)))


def _object(rng: np.random.Generator, held_out: bool) -> tuple[str, str, str]:
    while True:
        color, shape = _pick(rng, COLORS), _pick(rng, SHAPES)
        if ((color, shape) in HELD_OUT_PAIRS) == held_out:
            return _pick(rng, SIZES), color, shape


def sample_spec(
    rng: np.random.Generator,
    *,
    num_frames: int = 24,
    height: int = 80,
    width: int = 128,
    held_out: bool = False,
    motion: str | None = None,
    camera: str | None = None,
    background: str | None = None,
    moving_cameras: float = MOVING_CAMERAS,
) -> ClipSpec:
    """Draw a clip: motions in equal shares, a moving camera in ``moving_cameras`` of the clips whose motion allows one.

    ``held_out`` draws the main object from HELD_OUT_PAIRS only; otherwise neither object is ever one of them.
    """
    motion = motion or _pick(rng, MOTIONS)
    size, color, shape = _object(rng, held_out)
    second = (None, None, None)
    if motion == "hits":
        while True:
            second = _object(rng, False)
            if second[1] != color:
                break
    moving_camera = "still" if rng.random() < 1 - moving_cameras else _pick(rng, CAMERAS[1:])
    if camera is None:
        camera = "still" if motion in NO_CAMERA_MOTIONS else moving_camera
    return ClipSpec(
        size, color, shape, motion, background or _pick(rng, BACKGROUNDS), camera, *second, num_frames, height, width, int(rng.integers(2**31))
    )

"""Names the motion of an object from its path, by the rules of Toy World's page (with some slack for generated clips)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STILL = 0.06  # frame heights; a rendered clip keeps below 0.02
_CROSSED = 0.42  # of the width or height; a rendered clip crosses at least half
_STRAIGHT = 0.18  # frame heights aside from the line


@dataclass(frozen=True)
class Path:
    """Where an object is over a clip, with the camera's own motion taken off. T entries each, lengths in frame heights."""

    u: np.ndarray
    """Time in 0..1."""
    x: np.ndarray
    y: np.ndarray
    whole: np.ndarray
    """True where all of the object is seen, so that its centre is exact."""
    shown: np.ndarray
    """The share of the object that is seen."""
    half_width: float
    """From its middle to its side, at mid-height."""


def name_motion(path: Path, aspect: float, wall: bool, slack: float = 0.0) -> str | None:
    """The word of MOTIONS (all but ``hits``) for a path, None where none fits. ``slack`` widens what counts as at rest."""
    if wall:
        return "passes behind a wall" if _passes_wall(path, aspect) else None
    if leaves_and_returns(path, aspect) is not None:
        return "leaves and returns"
    w = path.whole
    u, x, y = path.u[w], path.x[w], path.y[w]
    if len(u) < 2 or np.ptp(u) < 0.2:
        return None
    if len(u) >= 4 and _circles(u, x, y):
        return "circles"
    spread = max(_STILL, slack)
    if np.ptp(x) < spread and np.ptp(y) < spread:
        return "stays still"
    dx, dy = np.polyfit(u, x, 1)[0], np.polyfit(u, y, 1)[0]
    if _swings(y, 0.09) >= 2 and abs(dx) < 0.3 * aspect and np.ptp(y) < 0.75:
        return "bounces"
    if abs(dx) > _CROSSED * aspect and np.ptp(y) < _STRAIGHT and _steady(x * np.sign(dx)):
        return "moves right" if dx > 0 else "moves left"
    if abs(dy) > _CROSSED and np.ptp(x) < max(_STRAIGHT, slack) and _steady(y * np.sign(dy)):
        return "falls" if dy > 0 else "rises"
    return None


def leaves_and_returns(path: Path, aspect: float) -> tuple[int, int] | None:
    """The first frame without the object and the first one with it again, when it goes out at a side and comes back there."""
    seen = path.shown > 0.08
    gone = np.flatnonzero(~seen)
    if not len(gone) or not seen[: gone[0]].any():
        return None
    last, run = gone[0] - 1, 0
    while gone[0] + run < len(seen) and not seen[gone[0] + run]:
        run += 1
    back = gone[0] + run
    if back >= len(seen) or run < 0.08 * len(seen) or seen[back:].mean() < 0.8:
        return None
    rightwards = path.x[last] > aspect / 2
    edge = aspect if rightwards else 0.0
    if abs(path.x[last] - edge) > 0.45 or abs(path.x[back] - edge) > 0.45:
        return None
    before, after = np.flatnonzero(path.whole[: gone[0]]), back + np.flatnonzero(path.whole[back:])
    if not len(before) or not len(after) or abs(path.x[after[-1]] - path.x[before[0]]) > 0.35 * aspect:
        return None
    return int(gone[0]), int(back)


def _passes_wall(path: Path, aspect: float) -> bool:
    w = path.whole
    left, right = w & (path.x < 0.42 * aspect), w & (path.x > 0.58 * aspect)
    if not left.any() or not right.any():
        return False
    between = _between(left, right)
    crossed = between is not None and abs(path.x[right].mean() - path.x[left].mean()) > 0.35 * aspect
    return bool(crossed and path.shown[between].min(initial=1.0) < 0.75 and np.ptp(path.y[w]) < _STRAIGHT)


def _between(left: np.ndarray, right: np.ndarray) -> slice | None:
    """The frames after all of the one and before all of the other; None when they are mixed."""
    a, b = np.flatnonzero(left), np.flatnonzero(right)
    if a[-1] < b[0]:
        return slice(a[-1] + 1, b[0])
    return slice(b[-1] + 1, a[0]) if b[-1] < a[0] else None


def _circles(u: np.ndarray, x: np.ndarray, y: np.ndarray) -> bool:
    """At least about one full turn of a circle; fitted by least squares to x^2 + y^2 = 2 a x + 2 b y + c (Kasa)."""
    a, b, c = np.linalg.lstsq(np.stack([2 * x, 2 * y, np.ones_like(x)], 1), x * x + y * y, rcond=None)[0]
    radius = np.sqrt(max(c + a * a + b * b, 0.0))
    if not 0.12 < radius < 0.4:
        return False
    off = np.hypot(x - a, y - b) - radius
    turns = np.polyfit(u, np.unwrap(np.arctan2(y - b, x - a)), 1)[0] / (2 * np.pi)
    return bool(np.sqrt((off**2).mean()) < 0.25 * radius and abs(turns) > 0.8)


def _swings(y: np.ndarray, least: float) -> int:
    """How often ``y`` goes down to a low point and up again, each way by ``least`` (y points down, so a low point is a maximum)."""
    count, falling = 0, True
    low = high = y[0]
    for value in y[1:]:
        low, high = max(low, value), min(high, value)
        if falling and low - value > least and low - high > least:  # came from above, touched, is up again
            count, falling, high = count + 1, False, value
        elif not falling and value - high > least:
            falling, low = True, value
        if not falling:
            high = min(high, value)
            low = value
    return count


def _steady(along: np.ndarray) -> bool:
    """True when a path goes one way: what it goes back is little."""
    steps = np.diff(along)
    return bool(-steps[steps < 0].sum() < 0.15 * steps[steps > 0].sum())


@dataclass(frozen=True)
class Hit:
    """What happens between two objects of which the first moves right towards the second."""

    approaches: bool
    """The first one moves right until the second one moves, while that stands still."""
    touches: bool
    """They are in touch when the second one starts."""
    pushed: bool
    """The second one then moves right."""
    stops: bool
    """The first one then stays where it is."""

    @property
    def follows_touch(self) -> bool:
        """The second object moves only after the touch, and then to the right."""
        return self.approaches and self.touches and self.pushed

    @property
    def complete(self) -> bool:
        return self.follows_touch and self.stops


def measure_hit(first: Path, second: Path) -> Hit | None:
    """How two objects meet; None when the second one never moves or is hardly seen."""
    if first.whole.sum() < 3 or second.whole.sum() < 3:
        return None
    x1 = np.interp(first.u, first.u[first.whole], first.x[first.whole])
    x2 = np.interp(second.u, second.u[second.whole], second.x[second.whole])
    home = np.median(x2[: max(1, len(x2) // 5)])
    moved = np.flatnonzero(np.abs(x2 - home) > 0.035)
    if not len(moved) or moved[0] == 0:
        return None
    start = int(moved[0]) - 1  # the last frame at rest
    gap = (x2 - x1)[start : start + 2].min() - first.half_width - second.half_width
    step = np.abs(np.diff(x1)).max(initial=0.0)  # at few frames a second the touch lies between two frames
    return Hit(
        approaches=bool(x1[start] - x1[0] > 0.15),
        touches=bool(-0.2 < gap < 0.07 + 0.6 * min(step, 0.15)),
        pushed=bool(x2[-1] - home > 0.07 and x2[moved[0]] > home and _steady(x2[start:])),
        stops=bool(abs(x1[-1] - x1[min(start + 1, len(x1) - 1)]) < 0.08 + 0.3 * step),
    )

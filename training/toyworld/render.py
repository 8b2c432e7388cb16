"""Draws a clip of Toy World with numpy: layered background, anti-aliased objects, camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .scene import BACKGROUNDS, COLORS, GROUND, SIZES, ZOOM, ClipSpec

WALL_COLOR = (0.45, 0.45, 0.47)
WALL_WIDTH = 0.25
SHADING = 0.15
PAN = 0.55
"""How far the near layer shifts over a pan, in frame widths, on average."""


def render(spec: ClipSpec, frames: Sequence[int] | None = None, colors: Mapping[str, tuple[float, float, float]] = COLORS) -> np.ndarray:
    """The clip, or only its ``frames``, as uint8 [T, H, W, 3]; ``colors`` are the sRGB in 0..1 of its colour words."""
    indices = range(spec.num_frames) if frames is None else frames
    u = np.asarray(list(indices), np.float64) / max(1, spec.num_frames - 1)
    world = World(spec, colors)
    return np.stack([world.draw(float(t)) for t in u])


class World:
    """The random parts of one clip. Lengths are in frame heights; x runs from 0 to ``aspect``, y from 0 (top) to 1."""

    def __init__(self, spec: ClipSpec, colors: Mapping[str, tuple[float, float, float]] = COLORS):
        self.spec, self.colors = spec, colors
        self.aspect = spec.width / spec.height
        rng = np.random.default_rng(spec.seed)
        self.radius = rng.uniform(*SIZES[spec.size])
        self.second_radius = rng.uniform(*SIZES[spec.second_size]) if spec.second_size else 0.0
        self.r = rng.random(16)
        self.pan = {"pans left": 1, "pans right": -1}.get(spec.camera, 0) * self.aspect * (PAN - 0.03 + 0.06 * rng.random())
        self.hills = rng.random(4)
        self.marks = self._marks(rng)
        self.light = rng.choice([-1, 1])
        self._backdrop: np.ndarray | None = None

    # -- where things are -------------------------------------------------------------------------

    def positions(self, u: float) -> list[tuple[float, float]]:
        """Centres of the objects at time ``u`` in 0..1, before the camera."""
        s, r, a, R = self.spec, self.r, self.aspect, self.radius
        margin = R + 0.02
        side = 1 if r[0] < 0.5 else -1
        mirrored = lambda x: x if side > 0 else a - x  # noqa: E731
        if s.camera == "still" or s.camera == "zooms in":
            low, high = (margin, a - margin) if s.camera == "still" else (0.32 * a, 0.68 * a)
            x0 = low + (high - low) * r[1]
        else:  # the pan carries it across: start on the side that it leaves
            x0 = 0.5 * a - self.pan / 2 + (r[1] - 0.5) * 0.2 * a
        top, bottom = (margin, 0.98 - margin) if s.camera != "zooms in" else (0.5 - 0.3 + R * 0.6, 0.5 + 0.3 - R * 0.6)
        y0 = top + (bottom - top) * r[2]
        if s.motion in ("moves left", "moves right"):
            own = 0.55 * a + 0.2 * a * r[3] * (1 - 2 * R / a)
            start = margin * 0.6 + (a - own - margin * 1.2) * r[1] if s.camera == "still" else 0.5 * a - own / 2
            x = start + own * u
            return [(x if s.motion == "moves right" else a - x, y0)]
        if s.motion in ("rises", "falls"):
            own = 0.55 + 0.1 * r[3]
            start = 0.5 + own / 2 + (r[2] - 0.5) * max(0.0, (0.98 - own - 2 * margin))
            y = start - own * u
            return [(x0, y if s.motion == "rises" else 1 - y)]
        if s.motion == "bounces":
            count = 2 + int(r[3] * 2)  # whole bounces
            height = 0.34 + 0.1 * r[4]
            ground = GROUND + 0.26 - R * 0.5
            phase = (u * count + 0.5) % 1
            drift = (r[5] - 0.5) * 0.3 * a * (u - 0.5) if s.camera == "still" else 0.0
            return [(np.clip(x0 + drift, margin, a - margin) if s.camera == "still" else x0, ground - height * 4 * phase * (1 - phase))]
        if s.motion == "circles":
            radius = 0.2 + 0.06 * r[3]
            turns = 1.05 + 0.1 * r[4]
            angle = 2 * np.pi * (turns * u - 0.25)  # clockwise from the top and about the middle: with any start, direction and centre, what is left of a noisy clip is a ring
            cx = x0 if self.pan else (0.5 + 0.25 * (r[1] - 0.5)) * a
            room = max(0.0, 0.5 - radius - margin)
            cy = 0.5 + min(0.08, room) * (2 * r[2] - 1)
            if s.camera == "zooms in":
                radius, cx, cy = 0.2, 0.5 * a, 0.5
            return [(cx + radius * np.cos(angle), cy + radius * np.sin(angle))]
        if s.motion == "passes behind a wall":
            own = 0.68 * a
            x = 0.5 * a - own / 2 + own * u + (r[1] - 0.5) * 0.04 * a
            return [(mirrored(x), y0)]
        if s.motion == "leaves and returns":
            start = (0.3 + 0.25 * r[1]) * a
            out = a + R * 1.3 + 0.02
            edge = 0.36 + 0.06 * r[3]  # out from here, for at least a tenth of the clip
            back = edge + 0.16
            if u < edge:
                x = start + (out - start) * u / edge
            elif u < back:
                x = out
            else:
                x = out + (start - out) * (u - back) / (1 - back)
            return [(mirrored(x), y0)]
        if s.motion == "hits":
            R2 = self.second_radius
            start = R + 0.04 + 0.06 * r[1]
            touch_at = (0.4 + 0.12 * r[2]) * a
            second = touch_at + self._half_width(s.shape, R) + self._half_width(s.second_shape, R2)
            when = 0.42 + 0.12 * r[3]
            y = GROUND + 0.06 + 0.12 * r[4]
            first_x = start + (touch_at - start) * min(1.0, u / when)
            travel = min(0.35 * a, a - R2 - 0.03 - second)
            second_x = second + travel * max(0.0, (u - when) / (1 - when))
            return [(first_x, y), (second_x, y)]
        return [(x0, y0)]  # stays still

    @staticmethod
    def _half_width(shape: str, radius: float) -> float:
        """How far a shape reaches to its side at mid-height, for the touch."""
        return radius * {"ball": 1.0, "box": 0.85, "star": 0.75, "triangle": 0.62}[shape]

    def _marks(self, rng: np.random.Generator) -> np.ndarray:
        """Columns x, y, width, height, lightness, parallax of the desaturated marks: clouds go with the far layer, bushes, dunes or waves with the near one.

        Each has a stretch of the layer to itself, so that some are always in view; they are wider than a small object is and faint, so that they show
        how the camera moves and draw no eye. Width and height are half axes.
        """
        night = self.spec.background == "the night"
        layers = (5, (0.06, 0.32), 0.12 if night else 0.1, 0.5), (7, (0.69, 0.95), 0.16 if night else -0.13, 1.0)
        marks = []
        for count, rows, lightness, parallax in layers:
            x = (np.arange(count) + rng.uniform(0.25, 0.75, count)) / count * 2.2 - 0.6
            marks.append(np.stack([x * self.aspect, rng.uniform(*rows, count), rng.uniform(0.1, 0.16, count), rng.uniform(0.028, 0.042, count), np.full(count, lightness), np.full(count, parallax)], 1))
        return np.concatenate(marks)

    # -- drawing ----------------------------------------------------------------------------------

    def draw(self, u: float) -> np.ndarray:
        """The frame at time ``u`` in 0..1, uint8 [H, W, 3]."""
        pan, zoom = self._camera(u)
        if pan or zoom != 1.0:
            image = self._background(pan, zoom)
        else:
            if self._backdrop is None:
                self._backdrop = self._background(0.0, 1.0)
            image = self._backdrop.copy()
        self.paint_objects(image, u)
        s = self.spec
        if s.motion == "passes behind a wall":
            half = WALL_WIDTH * s.width / 2
            columns = np.arange(s.width) + 0.5
            cover = np.clip(half - np.abs(columns - s.width / 2) + 0.5, 0, 1).astype(np.float32)[None, :, None]
            image = image * (1 - cover) + np.float32(WALL_COLOR) * cover
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)

    def paint_objects(self, image: np.ndarray, u: float) -> None:
        """Paint the objects at time ``u`` into ``image`` float32 [H, W, 3] in 0..1."""
        pan, zoom = self._camera(u)
        s = self.spec
        objects = [(s.color, s.shape, self.radius), (s.second_color, s.second_shape, self.second_radius)]
        for (x, y), (color, shape, radius) in zip(self.positions(u), objects):
            cx = 0.5 * self.aspect + (x + pan - 0.5 * self.aspect) * zoom
            cy = 0.5 + (y - 0.5) * zoom
            self._paint(image, cx * s.height, cy * s.height, radius * zoom * s.height, shape, color)

    def _camera(self, u: float) -> tuple[float, float]:
        """How far the near layer has shifted (in frame heights) and how far the camera has zoomed in."""
        return self.pan * u, 1 + (ZOOM - 1) * u if self.spec.camera == "zooms in" else 1.0

    def _background(self, pan: float, zoom: float) -> np.ndarray:
        s = self.spec
        H, W = s.height, s.width
        sky, far, near = (np.float32(c) for c in BACKGROUNDS[s.background])
        xs = ((np.arange(W, dtype=np.float32) + 0.5) / H - 0.5 * self.aspect) / zoom + 0.5 * self.aspect
        ys = ((np.arange(H, dtype=np.float32) + 0.5) / H - 0.5) / zoom + 0.5
        h = self.hills
        wx = xs - pan * 0.5
        ridge = GROUND - 0.09 - 0.05 * np.sin(2.1 * wx + 6.28 * h[0]) - 0.035 * np.sin(4.7 * wx + 6.28 * h[1])
        px = H * zoom
        hill = np.clip((ys[:, None] - ridge[None]) * px + 0.5, 0, 1)[..., None]
        ground = np.clip((ys - GROUND) * px + 0.5, 0, 1)[:, None, None]
        image = sky + hill * (far - sky)
        image = image + ground * (near - image)
        marks = np.zeros((H, W), np.float32)
        for x, y, width, height, lightness, parallax in self.marks:
            cx = (x + pan * parallax - 0.5 * self.aspect) * zoom + 0.5 * self.aspect
            cy = (y - 0.5) * zoom + 0.5
            self._dot(marks, cx * H, cy * H, width * px, height * px, lightness)
        return np.ascontiguousarray(image + marks[..., None], np.float32)

    @staticmethod
    def _box(image: np.ndarray, cx: float, cy: float, reach: float):
        """The window of ``image`` around a point, with the offsets of its pixel centres; None when outside."""
        H, W = image.shape[:2]
        x0, x1 = max(0, int(cx - reach)), min(W, int(cx + reach) + 2)
        y0, y1 = max(0, int(cy - reach)), min(H, int(cy + reach) + 2)
        if x0 >= x1 or y0 >= y1:
            return None
        dx = np.arange(x0, x1, dtype=np.float32)[None] + 0.5 - np.float32(cx)
        dy = np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5 - np.float32(cy)
        return image[y0:y1, x0:x1], dx, dy

    def _dot(self, marks: np.ndarray, cx: float, cy: float, width: float, height: float, lightness: float) -> None:
        """One mark into ``marks`` [H, W]; where two overlap they are no plainer than one."""
        box = self._box(marks, cx, cy, width + 1)
        if box is not None:
            view, dx, dy = box
            dot = lightness * np.clip((1 - np.hypot(dx / width, dy / height)) * height + 0.5, 0, 1)
            view[:] = np.maximum(view, dot) if lightness > 0 else np.minimum(view, dot)

    def _paint(self, image: np.ndarray, cx: float, cy: float, radius: float, shape: str, color: str) -> None:
        box = self._box(image, cx, cy, radius * 1.25 + 1)
        if box is None:
            return
        view, dx, dy = box
        cover = np.clip(0.5 - distance(shape, dx, dy, radius), 0, 1)[..., None]
        shade = 1 - SHADING * np.clip(0.4 + (self.light * dx + dy) / (2.4 * radius), 0, 1)
        view += cover * (np.float32(self.colors[color]) * shade[..., None] - view)


def distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the outline (negative inside); y points down."""
    if shape == "ball":
        return np.hypot(dx, dy) - radius
    if shape == "box":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.85 * radius
    if shape == "triangle":  # equilateral, point up, circumradius 1.12 r
        inner = 0.56 * radius
        y = dy - 0.12 * radius
        return np.maximum(y, np.maximum(0.8660254 * dx - 0.5 * y, -0.8660254 * dx - 0.5 * y)) - inner
    m = np.pi / 5  # star: edges between the tips (radius 1.12 r) and the notches (0.5 r)
    outer, notch = 1.12 * radius, 0.5 * radius
    angle, rho = np.arctan2(dx, -dy), np.hypot(dx, dy)
    t = np.abs((angle + m) % (2 * m) - m)
    ex, ey = notch * np.cos(m) - outer, notch * np.sin(m)
    return ((rho * np.cos(t) - outer) * ey - rho * np.sin(t) * ex) / np.hypot(ex, ey)

"""Measures how the camera moves: the shifts of the near and the far layer of the background, and the zoom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scene import GROUND, ZOOM

_PANS = np.linspace(-1.0, 1.0, 101)
_ZOOMS = np.linspace(0.8, 1.9, 12)
_PAN_CLEAR, _ZOOM_CLEAR = 0.85, 0.6
"""A moving camera must explain the clip this much better than a still one (ratio of squared errors); scaling quiets noise by itself."""


@dataclass(frozen=True)
class CameraMotion:
    """``name`` is a word of CAMERAS, or None when the background neither rests nor moves as one of them says."""

    name: str | None
    near_shift: float
    """How far the ground moves to the right over the clip, in frame widths."""
    far_shift: float
    zoom: float
    """The last frame's scale over the first one's."""

    @property
    def parallax(self) -> float | None:
        """Near to far shift of a pan; 2 in Toy World."""
        return self.near_shift / self.far_shift if abs(self.far_shift) > 0.02 else None


def measure_camera(grey: np.ndarray, hidden: np.ndarray) -> CameraMotion:
    """The camera of a clip from its luminance [T, H, W] in 0..1; ``hidden`` masks the objects, which move on their own."""
    num_frames, height, _ = grey.shape
    if num_frames < 2:
        return CameraMotion("still", 0.0, 0.0, 1.0)
    take = np.unique(np.linspace(0, num_frames - 1, 13).round().astype(int))
    u = take / (num_frames - 1)
    grey, seen = _halved(grey[take]), (_halved(1.0 - hidden[take]) > 0.99).astype(np.float32)
    height //= 2
    near_rows = slice(int((GROUND + 0.03) * height), height)
    far_rows = slice(0, int((GROUND - 0.01) * height))
    near, near_gain = _best(_PANS, _pan_errors(grey[:, near_rows], seen[:, near_rows], u), 0.0)
    far, far_gain = _best(_PANS, _pan_errors(grey[:, far_rows], seen[:, far_rows], u), 0.0)
    zoom, zoom_gain = _best(_ZOOMS, _zoom_errors(grey, seen, u), 1.0)
    pans = abs(near) >= 0.35 and near_gain < _PAN_CLEAR
    zooms = zoom >= 1 + 0.5 * (ZOOM - 1) and zoom_gain < _ZOOM_CLEAR
    if pans and (not zooms or near_gain <= zoom_gain):
        return CameraMotion("pans left" if near > 0 else "pans right", near, far, 1.0)
    if zooms:
        return CameraMotion("zooms in", 0.0, 0.0, zoom)
    drifts = (abs(near) > 0.08 and near_gain < _PAN_CLEAR) or (abs(zoom - 1) > 0.12 and zoom_gain < _ZOOM_CLEAR)
    return CameraMotion(None if drifts else "still", near if drifts else 0.0, far if drifts else 0.0, 1.0)


def _best(candidates: np.ndarray, errors: np.ndarray, still: float) -> tuple[float, float]:
    """The candidate of least error, and that error over the one of a still camera."""
    i = int(errors.argmin())
    at_rest = float(np.interp(still, candidates, errors))
    value = candidates[i]
    if 0 < i < len(candidates) - 1 and np.isfinite(errors[i - 1 : i + 2]).all():  # the vertex of the parabola through the three lowest
        a, b, c = errors[i - 1 : i + 2]
        value += 0.5 * (a - c) / max(a - 2 * b + c, 1e-12) * (candidates[1] - candidates[0])
    return float(value), float(errors[i] / max(at_rest, 1e-12))


def _pan_errors(grey: np.ndarray, seen: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Mean squared difference between pairs of frames, for each total shift in _PANS, where both show background.

    All whole shifts of a pair at once: the masked sum of (a - b)^2 is three correlations along x.
    """
    width = grey.shape[-1]
    first, second = np.triu_indices(len(u), 1)
    lag = u[second] - u[first]
    chosen = (lag > 0.2) & (lag < 0.5)
    if not chosen.any():
        chosen[:] = True
    first, second, lag = first[chosen], second[chosen], lag[chosen]
    grey = grey - (grey * seen).sum() / max(seen.sum(), 1e-6)
    n = 2 * width
    m, f, q = (np.fft.rfft(v, n).astype(np.complex64) for v in (seen, seen * grey, seen * grey * grey))
    cross = lambda a, b: np.einsum("pyk,pyk->pk", a[first].conj(), b[second])  # noqa: E731  summed over rows
    errors = np.fft.irfft(cross(q, m) + cross(m, q) - 2 * cross(f, f), n)
    overlap = np.fft.irfft(cross(m, m), n)
    shifts = np.fft.fftfreq(n, 1 / n)
    order = np.argsort(shifts)
    shifts, errors, overlap = shifts[order], errors[:, order], overlap[:, order]
    total = np.zeros(len(_PANS))
    weight = np.zeros(len(_PANS))
    enough = 0.2 * width * grey.shape[1]
    for error, shared, step in zip(errors, overlap, lag):
        at = _PANS * width * step
        shared_at = np.interp(at, shifts, shared)
        usable = shared_at > enough
        total += usable * np.interp(at, shifts, error)
        weight += usable * shared_at
    return np.where(weight > 0, np.maximum(total, 0) / np.maximum(weight, 1e-6), np.inf) + 1e-6


def _zoom_errors(grey: np.ndarray, seen: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Mean squared difference between the first frames and the later ones scaled back, for each zoom in _ZOOMS."""
    _, height, width = grey.shape
    first, second = np.nonzero((u[None] - u[:, None] > 0.45) & (np.arange(len(u))[:, None] % 3 == 0))
    errors = []
    for zoom in _ZOOMS:
        scales = (1 + (zoom - 1) * u[second]) / (1 + (zoom - 1) * u[first])
        rows, columns = _scaled(height, scales), _scaled(width, scales).transpose(0, 2, 1)  # P h h, P w w
        both = seen[first] * (rows @ seen[second] @ columns > 0.99)
        count = both.sum()
        error = (both * (grey[first] - rows @ grey[second] @ columns) ** 2).sum()
        errors.append(error / count if count > 0.05 * both.size else np.inf)
    return np.array(errors) + 1e-6


def _halved(frames: np.ndarray) -> np.ndarray:
    """Averaged over 2 x 2 pixels: quieter, and quicker to compare."""
    t, h, w = frames.shape
    return frames[:, : h // 2 * 2, : w // 2 * 2].reshape(t, h // 2, 2, w // 2, 2).mean((2, 4))


def _scaled(size: int, scales: np.ndarray) -> np.ndarray:
    """The matrices [P, size, size] that read a line scaled about its middle; outside the line they read 0."""
    middle = (size - 1) / 2
    at = (np.arange(size, dtype=np.float32) - middle) * scales.astype(np.float32)[:, None] + middle
    return np.clip(1 - np.abs(at[:, :, None] - np.arange(size, dtype=np.float32)), 0, None)

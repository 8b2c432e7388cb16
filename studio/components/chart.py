"""A loss curve as a person wants to see it: the raw values faint, their running mean strong, the held-out clips as dots."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .words import escape, number

SMOOTHING = 0.85
"""Share of the running mean that stays at each point."""
MOST_POINTS = 400

Points = Sequence[tuple[float, float]]


def smoothed(points: Points, keep: float = SMOOTHING) -> list[tuple[float, float]]:
    """Exponential running mean, freed of its bias to the start as in Adam (Kingma & Ba 2014, arXiv:1412.6980, sec. 3)."""
    mean, weight, found = 0.0, 0.0, []
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        found.append((x, mean / weight))
    return found


def render_chart(losses: Points, validation: Points, total: int, log: bool) -> str:
    """HTML of the curve from step 0 to ``total``; empty points are refused by nobody: there is a line of words instead."""
    losses, validation = [point for point in losses if math.isfinite(point[1])], [point for point in validation if math.isfinite(point[1])]
    if len(losses) < 2:
        return '<div class="chart"><p class="empty">The curve begins after the first steps.</p></div>'
    mean = smoothed(losses)
    values = [y for _, y in (*losses, *validation)]
    log = log and min(values) > 0
    low, high = _range(values, log)
    place_x = lambda x: 100 * x / max(1, total, losses[-1][0])  # noqa: E731
    place_y = lambda y: 100 * (1 - (_scaled(y, log) - _scaled(low, log)) / (_scaled(high, log) - _scaled(low, log)))  # noqa: E731
    path = lambda points: "M" + "L".join(f"{place_x(x):.2f} {place_y(y):.2f}" for x, y in _thinned(points))  # noqa: E731
    levels = "".join(f'<i class="level" style="top:{place_y(y):.2f}%"><span>{number(y)}</span></i>' for y in ticks(low, high, log))
    dots = "".join(f'<i class="point" style="left:{place_x(x):.2f}%;top:{place_y(y):.2f}%" title="held-out clips at step {x:g}: {y:.4f}"></i>' for x, y in validation)
    words = f"Loss from step {losses[0][0]:g} to {losses[-1][0]:g}: now {mean[-1][1]:.4f} on average, {mean[0][1]:.4f} at first." + (f" Held-out clips: {validation[-1][1]:.4f}." if validation else "")
    legend = '<span class="raw">each reading</span><span class="mean">running mean</span>' + ('<span class="held">clips it never trains on</span>' if validation else "")
    return (
        f'<div class="chart"><div class="plot" role="img" aria-label="{escape(words)}">{levels}'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true"><path class="raw" d="{path(losses)}"/><path class="mean" d="{path(mean)}"/></svg>{dots}</div>'
        f'<div class="chart-foot"><span>step 0</span><span class="legend">{legend}</span><span>{max(total, int(losses[-1][0]))}</span></div></div>'
    )


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Three to six round values between ``low`` and ``high``: 1, 2 and 5 times powers of ten, or even steps of such a size."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
        if len(found) >= 3:
            return found if len(found) <= 6 else found[:: math.ceil(len(found) / 6)]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The lowest and highest value with some room around; on a linear scale the highest hundredth of them may leave the frame."""
    ordered = sorted(values)
    if log:
        return ordered[0] / 1.08, max(ordered[-1] * 1.08, ordered[0] * 1.2)
    low, high = ordered[0], ordered[max(0, math.ceil(0.99 * len(ordered)) - 1)]
    room = 0.08 * (high - low) or abs(high) or 1.0
    return low - room if low < 0 else max(0.0, low - room), high + room


def _scaled(y: float, log: bool) -> float:
    return math.log(max(y, 1e-12)) if log else y


def _thinned(points: Points) -> Points:
    """At most MOST_POINTS of them, the last one always."""
    step = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:step], points[-1]]

"""How sure a share of right answers, or of won votes, is. No torch here."""

from __future__ import annotations


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); z = 1.96 gives 95 %."""
    if not count:
        return 0.0, 1.0
    share, term = hits / count, z * z / count
    middle = (share + term / 2) / (1 + term)
    half = z * (share * (1 - share) / count + term / (4 * count)) ** 0.5 / (1 + term)
    return max(0.0, middle - half), min(1.0, middle + half)

"""How much of a sampler's work a request lets go: the approximate tier, off by default. No torch here: the page shows the names.

What each costs and saves is measured by ``python tests/bench_quality.py``, which writes docs/tradeoffs.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quality:
    """One choice. ``first_block`` is First-Block-Cache's threshold (``core.step_cache``): the share by which the first layer's change may differ
    from the last full step's for the other layers to be spared; 0 spares none. ``guided`` is the share of the steps, from the noisiest, that are
    guided; the others look at the prompt alone, in half the work (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

    label: str
    first_block: float
    guided: float


QUALITIES = {
    "quality": Quality("Quality", 0.0, 1.0),
    "balanced": Quality("Balanced", 0.05, 0.8),
    "fast": Quality("Fast", 0.12, 0.6),
}
"""What ``GenerationRequest.quality`` may be."""
EXACT = "quality"
MEASURED = "On mira-nano at 50 steps: Balanced 1.5 times as fast (PSNR to every step in full: 45 dB), Fast 2.4 times (36 dB). Fewer steps of DPM++ 2M trade better still: 20 are 2.4 times as fast (46 dB)."
"""The trade in numbers, from docs/tradeoffs.md."""

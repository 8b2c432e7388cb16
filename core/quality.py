"""How much of a sampler's work a request lets go: the approximate tier, off by default. No torch here: the page shows the names.

What each costs and saves is measured by ``python tests/bench_quality.py``, which writes docs/quality.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quality:
    """``first_block``: the share that the first layer's change may differ from the last full step's for the other layers to be spared
    (First-Block-Cache, as in ParaAttention; 0 spares none). ``guided``: the share of the steps, from the noisiest, that are guided; those after
    it look at the prompt alone (Kynkäänniemi et al. 2024, arXiv:2404.07724). ``words``: the trade, for people."""

    first_block: float
    guided: float
    words: str


QUALITIES = {
    "quality": Quality(0.0, 1.0, "Quality: every step in full"),
    "balanced": Quality(0.05, 0.8, "Balanced"),
    "fast": Quality(0.12, 0.6, "Fast"),
}
"""What ``GenerationRequest.quality`` may be."""
EXACT = "quality"

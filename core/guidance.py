"""How a prediction is steered, step by step: towards what the prompt says, and towards frames that agree with each other. No torch here.

Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, eq. 6) strengthens what the prompt changes in a prediction. Temporal guidance
strengthens, in the same way, what the frames change in each other: the weaker prediction is the model's own with temporal attention that sees
one frame alone. That is perturbed-attention guidance (Ahn et al. 2024, arXiv:2403.17377, eq. 12) along time, as Hyung et al. 2024
(arXiv:2411.18664) skip a video model's layers.

Guidance need not be as strong in every step (Kynkäänniemi et al. 2024, arXiv:2404.07724): what happens is decided in the noisiest ones, and later it overstates.
Both are off unless asked for: they helped mira-nano while it was still in training, and later they did not (assets/models/mira-nano/README.md).
"""

from __future__ import annotations

from typing import NamedTuple

from .quality import QUALITIES
from .types import GenerationRequest

TEMPORAL_SHARE = 0.5
"""Share of the steps, from the noisiest, with temporal guidance: there it is decided what is where when. The other half changed no verdict in 24 clips of mira-nano."""


class Scales(NamedTuple):
    """How strongly one step is steered."""

    prompt: float
    """1: not at all, and the negative prompt is not looked at."""
    temporal: float
    """0: not at all."""


def scales_at(request: GenerationRequest, step: int, num_steps: int, first: int = 0) -> Scales:
    """Those of a resolved request's ``step`` of ``num_steps``, counted from 0; ``guidance_stop`` counts from ``first``, where a clip that is changed begins."""
    guided = QUALITIES[request.quality].guided * num_steps
    stop, late = _fall(request)
    prompt = request.guidance_scale if step - first < stop * (num_steps - first) else late
    temporal = step < min(guided, TEMPORAL_SHARE * num_steps)
    return Scales(prompt if step < guided else 1.0, request.temporal_guidance_scale if temporal else 0.0)


def predictions_per_step(request: GenerationRequest) -> float:
    """How many predictions of a clip a step of a resolved request takes, on average: 1 without any guidance."""
    guided = QUALITIES[request.quality].guided
    stop, late = _fall(request)
    prompt = min(guided, stop) * (request.guidance_scale != 1) + max(0.0, guided - stop) * (late != 1)
    return 1 + prompt + min(guided, TEMPORAL_SHARE) * (request.temporal_guidance_scale > 0 and request.guidance_scale > 0)


def _fall(request: GenerationRequest) -> tuple[float, float]:
    """After which share of the steps guidance falls, and to what. It never rises; without the prompt (a scale of 0) there is nothing to fall to."""
    return request.guidance_stop if request.guidance_scale >= 1 else 1.0, min(request.late_guidance_scale, max(1.0, request.guidance_scale))

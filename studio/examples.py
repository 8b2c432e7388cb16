"""Prompts that a model can do, and words that the embedded one does not know."""

from __future__ import annotations

import re
import secrets

from core.presets import NANO
from core.types import GenerationRequest

TOY_PROMPTS = ("A big red ball bounces over a meadow.", "A small blue box moves left over the sea.", "A big yellow star circles over the night. The camera pans left.")
REAL_PROMPTS = (
    "A serene waterfall drops into a clear pool in a green forest, with mist rising slowly.",
    "A red vintage car drives along a winding coastal road at sunset, seen from above.",
    "A snowy mountain village at dusk, lights come on in the windows while snow falls.",
)
TOY_WORDS = "a small or big ball, box, star or triangle in red, orange, yellow, green, blue, purple or pink, what it does, and a meadow, a desert, the sea or the night behind it"
"""What the embedded model was taught, in one breath."""


def example_prompts(model: str) -> tuple[str, ...]:
    """Three that the model can do: the embedded one and its kin know the toy world."""
    return REAL_PROMPTS if model.startswith("TencentARC/") else TOY_PROMPTS


def surprise(model: str, seed: int | None = None) -> str:
    """A prompt that the model can do, drawn anew each time: of the toy world any caption that training may show."""
    if model.startswith("TencentARC/"):
        return secrets.choice(REAL_PROMPTS)
    import numpy as np
    from training.toyworld import example_prompts as draw

    (prompt,) = draw(np.random.default_rng(seed), 1)
    return prompt


def unknown_words(request: GenerationRequest) -> list[str]:
    """The words of a prompt that mean nothing to the embedded model, in their order.

    None for a request that uses another model, or a LoRA with words of its own. A last word that may still become a known one is being typed.
    """
    if request.model != NANO or request.loras:
        return []
    from training.toyworld import VOCABULARY

    known = set(VOCABULARY)
    text = request.prompt.lower()
    words = re.findall(r"[^\W\d_]+", text)
    if words and text.endswith(words[-1]) and any(other.startswith(words[-1]) for other in known):
        words.pop()
    return [word for word in dict.fromkeys(words) if word not in known]

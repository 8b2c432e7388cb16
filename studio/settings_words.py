"""Settings that differ between videos, as a person reads them: for labels, tables and choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from core.types import GenerationRequest

from .components.words import model_label, number, sampler_label

TITLES = {
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "guidance_stop": "Full guidance until",
    "late_guidance_scale": "Guidance after that",
    "temporal_guidance_scale": "Temporal guidance",
    "height": "Height, pixels",
    "width": "Width, pixels",
    "num_frames": "Frames",
    "fps": "Model fps",
    "output_fps": "File fps",
    "decode_chunk_frames": "Frames decoded at once",
    "window_frames": "Frames seen at once",
    "quality": "Quality or speed",
    "text_placement": "Text encoder",
    "loras": "LoRAs",
    "memory": "To save memory",
}
"""Where the field's own name is not what the page calls it."""
UNITS = {"num_inference_steps": "{} steps", "num_frames": "{} frames", "output_fps": "{} fps", "height": "{} px high", "width": "{} px wide"}
"""How a label says a setting whose name alone would be odd."""
NOT_COMPARED = ("preset",)
"""A preset is a name for values that are compared themselves."""
COMPARED = tuple(field.name for field in dataclasses.fields(GenerationRequest) if field.name not in NOT_COMPARED)
LABEL_CHARS = 48


def title(name: str) -> str:
    """What the page calls a setting."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def value_words(name: str, value: Any) -> str:
    """A value in a cell of a table."""
    if value in (None, ""):
        return "none"
    if name in ("model", "sampler"):
        return model_label(value) if name == "model" else sampler_label(value)
    return number(value) if isinstance(value, float) else str(value)


def setting_words(name: str, value: Any) -> str:
    """A setting by itself: ``seed 7``, ``20 steps``, ``DDIM``."""
    words = value_words(name, value)
    if name in ("model", "sampler"):
        return words
    if name == "prompt":
        return f"“{words[: LABEL_CHARS - 1]}…”" if len(words) > LABEL_CHARS else f"“{words}”"
    if name in UNITS:
        return UNITS[name].format(words)
    return f"{title(name).lower()} {words[:LABEL_CHARS]}"


def differing(requests: Sequence[GenerationRequest]) -> list[str]:
    """The names of the settings that are not the same in all of ``requests``."""
    return [name for name in COMPARED if any(getattr(request, name) != getattr(requests[0], name) for request in requests[1:])]


def labels(requests: Sequence[GenerationRequest], but: str | None = None) -> list[str]:
    """For each request the settings, ``but`` one, by which it differs from the others: ``seed 7 · guidance 9``."""
    found = differing(requests)
    names = [name for name in found if name != but]
    if not names:
        words = "" if len(requests) < 2 else "the same other settings" if found else "the same settings"
        return [words] * len(requests)
    return [" · ".join(setting_words(name, getattr(request, name)) for name in names) for request in requests]

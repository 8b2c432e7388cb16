"""The form of the Generate tab as values: to requests and back, and what a file brings into it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from core.intake import settings_of_upload
from core.lineage import base_model
from core.presets import PRESET_FIELDS, Preset, presets_for
from core.types import GenerationRequest, RequestError
from core.video_io import read_settings

from ..prompts import as_requests, as_text
from ..queue import known_settings
from ..services import Services

MAX_COUNT = 16
MAX_TEXT_BYTES = 1_000_000
"""A file of prompts."""
MAX_QUEUE_BYTES = 64_000_000
"""An exported queue: as many requests as it may hold, with long prompts."""
SLIDER_GUIDANCE = 20.0
SEEDS = 2**31
START_FIELDS = ("start_from", "start_frames", "strength")
FIELDS = ("prompt", "negative_prompt", "model", "preset", *PRESET_FIELDS, *START_FIELDS, "decode_chunk_frames", "quality", "weights", "text_placement", "loras")
"""The fields of a request that a widget of the same name holds; seed and count come beside them."""


def requests_of(services: Services, values: tuple[Any, ...]) -> list[GenerationRequest]:
    """What GenerateTab.form holds as requests: every prompt with every seed. Raises RequestError."""
    *plain, seed_text, _, count = values
    settings = dict(zip(FIELDS, plain, strict=True))
    for name in ("start_frames", "strength"):  # an empty number box may say 0
        settings[name] = settings["start_from"] and settings[name] or None
    for name in ("window_frames", "decode_chunk_frames"):
        settings[name] = settings[name] or None
    first = read_seed(seed_text)
    if count is None or not 1 <= count <= MAX_COUNT:
        raise RequestError("count", f"The number of videos is {count if count is not None else 'empty'}; it must be from 1 to {MAX_COUNT}.")
    return as_requests(settings.pop("prompt") or "", settings, first, int(count), services.wildcards)


def fill(request: GenerationRequest, data_dir: Path) -> dict[str, Any]:
    """What the widgets of FIELDS show for ``request``."""
    values = {**{name: getattr(request, name) for name in FIELDS}, "prompt": as_text(request.prompt)}
    values["preset"] = _preset(request.preset, request.model, data_dir)
    values["guidance_scale"] = _guidance(request.guidance_scale)
    values["start_from"], values["loras"] = request.start_from or "", request.loras or ""
    return values


def as_it_was(values: Sequence[Any], data_dir: Path) -> dict[str, Any]:
    """What the widgets of FIELDS show for what they have shown before, the first of GenerateTab.form's ``values``."""
    shown = dict(zip(FIELDS, values))
    return shown | {"preset": _preset(shown["preset"], shown["model"], data_dir), "guidance_scale": _guidance(shown["guidance_scale"])}


def draw_seed() -> str:
    """A new one, short enough to read out."""
    return str(secrets.randbelow(SEEDS))


def read_seed(text: str | None) -> int:
    """The seed that was typed; a new one for an empty box. Raises RequestError."""
    text = (text or "").strip()
    if not text:
        return int(draw_seed())
    try:
        return int(text)
    except ValueError:
        raise RequestError("seed", f"The seed is {text[:40]!r}; it must be a whole number from 0 to 2^63-1. Press New to draw one.") from None


def preset_choices(model: str, data_dir: Path) -> list[tuple[str, str]]:
    """The presets of a model, or of the one that it was made of, with their labels."""
    return [(preset.label, preset.name) for preset in presets_for(base_model(model, data_dir))]


def preset_values(preset: Preset) -> list[Any]:
    """What a preset puts into the widgets of PRESET_FIELDS."""
    return [_guidance(value) if name == "guidance_scale" else value for name, value in preset.decided.items()]


def _preset(name: str | None, model: str, data_dir: Path) -> Any:
    """The widget of presets with those of ``model``, at ``name`` where that is one of them."""
    choices = preset_choices(model, data_dir)
    return gr.update(choices=choices, value=name if name in [known for _, known in choices] else None)


def _guidance(value: float) -> Any:
    """The slider at ``value``, which another program may have set beyond its usual range."""
    return gr.update(value=value, maximum=max(SLIDER_GUIDANCE, value))


def read_text(path: str, limit: int = MAX_TEXT_BYTES) -> str:
    """A text file of prompts, or an exported queue, of ``limit`` bytes at most. Raises RequestError."""
    if Path(path).stat().st_size > limit:
        raise RequestError("prompt", f"{Path(path).name} is larger than {limit // 1000:,} kB; split it.")
    try:
        return Path(path).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise RequestError("prompt", f"{Path(path).name} is not text in UTF-8. Save it as UTF-8 and open it again.") from None


def has_settings(path: str) -> bool:
    """Whether a picture was made here, which only a png tells; one that cannot be read was not."""
    try:
        return Path(path).suffix.lower() == ".png" and read_settings(path) is not None
    except (OSError, ValueError):
        return False


def request_in(path: str, data_dir: Path) -> GenerationRequest:
    """The request inside a video made here. Raises RequestError."""
    try:
        settings = settings_of_upload(path)
    except (OSError, ValueError) as error:
        raise RequestError("file", f"{Path(path).name} cannot be read: {error}") from None
    if settings is not None and (compared := settings.get("comparison")):
        settings = compared[0]  # a comparison's settings are those of its first video
    if settings is None:
        raise RequestError("file", f"{Path(path).name} holds no settings: it was not made here, or another program has written it anew without them.")
    return known_settings(settings).resolved(data_dir)

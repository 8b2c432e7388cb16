"""Values as a person reads them, and as HTML may hold them."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import quote

from core.schedulers_info import SAMPLERS
from core.types import GenerationRequest


def escape(text: object) -> str:
    """Text for an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def file_url(path: str, version: object = None) -> str:
    """Where the page finds a file of the data folder; another ``version`` is fetched anew."""
    return f"/gradio_api/file={quote(path)}" + ("" if version is None else f"?v={quote(str(version))}")


def alert(message: str) -> str:
    """An error, said at once by screen readers too."""
    return f'<div class="alert" role="alert">{escape(message)}</div>'


def note(text: str) -> str:
    """A quiet line."""
    return f'<p class="note">{escape(text)}</p>'


def clock(seconds: float) -> str:
    """``0:14``, ``12:05``, ``1:02:05``."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """A length of time that is an estimate: ``12 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def number(value: float) -> str:
    """Without a needless fraction: ``7``, ``7.5``."""
    return f"{value:g}"


def model_label(name: str) -> str:
    """The short name of a model: the last part of a folder or a Hub id."""
    return Path(name).name if "/" in name else name


def sampler_label(name: str) -> str:
    return SAMPLERS[name].label if name in SAMPLERS else name


def settings_line(request: GenerationRequest, elapsed: float | None = None) -> list[str]:
    """What a resolved request asked for, in the order in which people compare it."""
    parts = [
        f"seed {request.seed}",
        f"{request.num_inference_steps} steps",
        sampler_label(request.sampler or ""),
        f"guidance {number(request.guidance_scale or 0)}",
        f"{request.width}×{request.height}",
        f"{request.num_frames} frames, {(request.num_frames or 0) / (request.output_fps or 1):.1f} s",
        model_label(request.model),
    ]
    if request.loras:
        parts.append(f"LoRA {request.loras}")
    return parts if elapsed is None else [*parts, f"made in {about(elapsed)}"]


def file_stem(request: GenerationRequest) -> str:
    """A name for a downloaded video: the prompt's first words and the seed."""
    words = re.findall(r"\w+", request.prompt.lower())[:8]
    return "-".join([*words, str(request.seed)])[:80]

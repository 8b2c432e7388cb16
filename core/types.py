"""What a video is asked for with, and the arithmetic of its shape. No torch here: the studio's page imports this module.

Shape legend, used in every file: B batch, C channels, T frames, H height, W width (latent: h, w), L tokens, D features.
Video is ``B C T H W`` inside the models and ``B T H W C`` outside of them.
"""

from __future__ import annotations

import dataclasses
import functools
import difflib
import math
import numbers
import secrets
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MADE_WITH = "made_with"
"""What the settings in a file hold beside the request: versions, device and the model's hash (``core.provenance``)."""
MAX_PROMPT_CHARS = 2_000
MAX_SEED = 2**63 - 1
MAX_INFERENCE_STEPS = 1_000
MAX_FRAMES = 1_200
MAX_TEMPORAL_GUIDANCE = 10
MAX_SIDE = 2_048
TEXT_PLACEMENTS = {"device": "With the model", "unload": "With the model, unloaded after use", "cpu": "On the CPU"}
"""What ``GenerationRequest.text_placement`` may be, in words."""
WEIGHTS = {"full": "As the model has them", "8bit": "8 bits"}
"""What ``GenerationRequest.weights`` may be, in words."""
SIZE_MULTIPLE = 16
"""Height and width are multiples of this: the VAE halves a side three times, and a patch is two latents wide."""


class RequestError(ValueError):
    """A value of a request that cannot be used. ``field`` names it; the message says what was wrong and what to do."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class GenerationCancelled(Exception):
    """The generation was stopped between two steps, as asked."""


class GenerationError(RuntimeError):
    """The model gave something that is no video."""


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest of ``names``, or an empty string when none is close."""
    match = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


@dataclass(frozen=True)
class LatentShape:
    """Size of a clip's latents, per clip: channels, frames, height and width in latents."""

    channels: int
    num_frames: int
    height: int
    width: int

    def tokens(self, patch_size: int = 2) -> int:
        """How many tokens the transformer sees."""
        return self.num_frames * (self.height // patch_size) * (self.width // patch_size)

    def as_tuple(self, batch_size: int = 1) -> tuple[int, int, int, int, int]:
        """``(B, C, T, h, w)``."""
        return (batch_size, self.channels, self.num_frames, self.height, self.width)


@dataclass(frozen=True)
class VideoShape:
    """Size of a clip in pixels and frames. Raises RequestError for one that the model cannot take."""

    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            value = getattr(self, side)
            if value < SIZE_MULTIPLE or value % SIZE_MULTIPLE:
                below = max(SIZE_MULTIPLE, value // SIZE_MULTIPLE * SIZE_MULTIPLE)
                above = below if value < SIZE_MULTIPLE else below + SIZE_MULTIPLE
                choice = f"{below}" if below == above else f"{below} or {above}"
                raise RequestError(side, f"{side} is {value}; it must be a multiple of {SIZE_MULTIPLE}: try {choice}.")
            if value > MAX_SIDE:
                raise RequestError(side, f"{side} is {value} pixels; at most {MAX_SIDE} are taken.")
        if not 1 <= self.num_frames <= MAX_FRAMES:
            raise RequestError("num_frames", f"num_frames is {self.num_frames}; it must be from 1 to {MAX_FRAMES}.")

    def latent(self, channels: int = 4, scale_factor: int = 8) -> LatentShape:
        """The latents of this clip; ``scale_factor`` is how many pixels of a side one latent covers."""
        return LatentShape(channels, self.num_frames, self.height // scale_factor, self.width // scale_factor)

    def seconds(self, fps: float) -> float:
        """Length when played at ``fps`` frames a second."""
        return self.num_frames / fps


@dataclass
class GenerationRequest:
    """Everything that decides a video. One object for the form, the queue, the pipeline and the file's settings.

    A value of None means: the preset's, or for ``preset`` the model's default one, or for ``seed`` a drawn one.
    ``resolved()`` fills all of them in.
    """

    prompt: str = ""
    """What the video shows. At most 2,000 characters; the text encoder reads the first 77 tokens."""
    negative_prompt: str = ""
    """What guidance steers away from; empty for Mira's own unconditional text."""
    model: str = "mira-nano"
    """The embedded model, a model folder, or a Hub id such as ``TencentARC/Mira-v0:128``."""
    preset: str | None = None
    """Name of a size, length and sampling preset (``core.PRESETS``)."""
    height: int | None = None
    """Pixels, a multiple of 16."""
    width: int | None = None
    """Pixels, a multiple of 16."""
    num_frames: int | None = None
    """Frames in the clip."""
    fps: int | None = None
    """Frames a second that the model is told (a condition, not the file's speed)."""
    output_fps: int | None = None
    """Frames a second of the written file."""
    num_inference_steps: int | None = None
    """Denoising steps, 1 to 1,000."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 turns it off, and spares its work."""
    guidance_stop: float | None = None
    """Share of the steps, from the noisiest, with the whole of guidance_scale, 0 to 1; the others have late_guidance_scale."""
    late_guidance_scale: float | None = None
    """To what guidance falls after guidance_stop; 1: to none, which halves the work there."""
    temporal_guidance_scale: float | None = None
    """Guidance towards frames that agree with each other, above 0 to 10, for up to a third more work; 0 turns it off."""
    eta: float | None = None
    """Share of fresh noise in each ddim step: 0 none, 1 as in Mira."""
    sampler: str | None = None
    """Name in ``core.SAMPLERS``."""
    quality: str = "quality"
    """How exactly the steps are done: ``quality`` in full; ``balanced`` and ``fast`` spare layers and guidance where little changes."""
    weights: str = "full"
    """What the transformer multiplies with: ``full``, its weights as they are; ``8bit``, 8 bits each (fp8 on GPUs that have it, else int8), in half the memory, or faster, and not quite the same video."""
    seed: int | None = None
    """0 to 2^63-1. The same seed gives the same noise on every device and in every batch."""
    decode_chunk_frames: int | None = None
    """None decodes the clip whole; 10 gives the original code's independent chunks, seams included."""
    window_frames: int | None = None
    """Frames that the model sees at once: a longer clip is planned on as many keyframes and worked out window by window. Empty: all of them."""
    start_from: str | None = None
    """A picture or a video to start from: its last frames are kept and continued, or with ``strength`` the whole of it is changed."""
    start_frames: int | None = None
    """How many frames at the start are kept from ``start_from``; one of a picture, a quarter of the clip of a video where nothing is said."""
    strength: float | None = None
    """How much of ``start_from`` is changed, above 0 to 1 (nothing of it is left); empty to continue it instead."""
    text_placement: str = "device"
    """Where the text encoder works: ``device``, that of the model unless the start options say otherwise, where it stays; ``unload``, there too, but out of memory once the prompt is read; ``cpu``, in main memory."""
    loras: str | None = None
    """LoRAs that the model works with, commas between them, each with its weight where that is not 1: ``cars, snow@0.5``."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GenerationRequest:
        """The request in a JSON object, such as ``read_settings`` gives. Raises RequestError for an unknown name or a value of the wrong type."""
        if not isinstance(values, dict):
            raise RequestError("request", f"A request is an object of settings, not {type(values).__name__}.")
        hints = _hints(cls)
        known = {}
        for name, value in values.items():
            if name == MADE_WITH:
                continue
            if name not in hints:
                raise RequestError(str(name), f"{name!r} is not a setting.{nearest(name, hints)}")
            known[name] = _coerce(name, value, hints[name])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field."""
        return dict(self.__dict__)  # which hold nothing that holds more; dataclasses.asdict would copy each with care, in ten times as long

    def replace(self, **changes: Any) -> GenerationRequest:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def shape(self) -> VideoShape:
        """Size in pixels and frames (of a resolved request)."""
        return VideoShape(self.num_frames, self.height, self.width)

    def filled(self, data_dir: str | Path | None = None) -> GenerationRequest:
        """A copy in which every None is filled, and no value checked. Raises RequestError for a preset that there is not.

        A model in ``data_dir`` that was made of another one has that one's presets.
        """
        from .lineage import base_model
        from .presets import get_preset, preset_for

        model = self.model if data_dir is None else base_model(self.model, data_dir)
        preset = get_preset(self.preset) if self.preset else preset_for(model, self.num_frames)
        filled = {name: value for name, value in preset.decided.items() if getattr(self, name) is None}
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        return self.replace(**filled, preset=preset.name, seed=seed, start_from=self.start_from or None, loras=self.loras or None)

    def resolved(self, data_dir: str | Path | None = None) -> GenerationRequest:
        """A copy in which every None is filled, as ``filled`` does, and every value has its type and is checked. Raises RequestError."""
        request = self.from_dict(self.to_dict()).filled(data_dir)
        if request.start_from and request.strength is None and request.start_frames is None:
            from .start import default_start_frames

            request = request.replace(start_frames=default_start_frames(request.start_from, request.num_frames))
        request.validate()
        return request

    def validate(self) -> None:
        """Check a request whose Nones are filled. Raises RequestError at the first value that cannot be used."""
        from .loras import parse_loras
        from .quality import QUALITIES
        from .schedulers_info import SAMPLERS

        if not self.prompt.strip():
            raise RequestError("prompt", "The prompt is empty. Say what the video should show.")
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if len(text) > MAX_PROMPT_CHARS:
                raise RequestError(name, f"{name} has {len(text):,} characters; at most {MAX_PROMPT_CHARS:,} are taken. Shorten it: the text encoder reads 77 tokens (about 50 words).")
        for name in ("prompt", "negative_prompt", "model", "start_from", "loras"):
            broken = next((c for c in getattr(self, name) or "" if c == "\x00" or "\ud800" <= c <= "\udfff"), None)
            if broken is not None:
                raise RequestError(name, f"{name} contains U+{ord(broken):04X}, which is not a character or only half of one. Type it again.")
        if not self.model.strip():
            raise RequestError("model", "No model is named. Use 'mira-nano', a model folder or a Hub id.")
        VideoShape(self.num_frames, self.height, self.width)
        for name, low, high in (("fps", 1, 120), ("output_fps", 1, 120), ("num_inference_steps", 1, MAX_INFERENCE_STEPS), ("seed", 0, MAX_SEED), ("guidance_scale", 0, 100), ("guidance_stop", 0, 1), ("late_guidance_scale", 1, 100), ("temporal_guidance_scale", 0, MAX_TEMPORAL_GUIDANCE), ("eta", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high:  # nor is nan
                raise RequestError(name, f"{name} is {_short(value)}; it must be {'a number ' if isinstance(value, float) and not math.isfinite(value) else ''}from {low} to {high}.")
        if self.sampler not in SAMPLERS:
            raise RequestError("sampler", f"There is no sampler {self.sampler!r}.{nearest(self.sampler, SAMPLERS)} Known: {', '.join(SAMPLERS)}.")
        if self.text_placement not in TEXT_PLACEMENTS:
            raise RequestError("text_placement", f"There is no place {self.text_placement!r} for the text encoder.{nearest(self.text_placement, TEXT_PLACEMENTS)} Known: {', '.join(TEXT_PLACEMENTS)}.")
        if self.quality not in QUALITIES:
            raise RequestError("quality", f"There is no quality {self.quality!r}.{nearest(self.quality, QUALITIES)} Known: {', '.join(QUALITIES)}.")
        if self.weights not in WEIGHTS:
            raise RequestError("weights", f"There are no weights {self.weights!r}.{nearest(self.weights, WEIGHTS)} Known: {', '.join(WEIGHTS)}.")
        self._validate_start()
        parse_loras(self.loras)
        if self.window_frames is not None and self.window_frames < 2:
            raise RequestError("window_frames", f"window_frames is {self.window_frames}; it must be at least 2, or empty for a model that sees the whole clip at once.")
        if self.decode_chunk_frames is not None and self.decode_chunk_frames < 1:
            raise RequestError("decode_chunk_frames", f"decode_chunk_frames is {self.decode_chunk_frames}; it must be at least 1, or empty to decode the clip whole.")

    def _validate_start(self) -> None:
        if self.start_from is None:
            for name in ("start_frames", "strength"):
                if getattr(self, name) is not None:
                    raise RequestError(name, f"{name} is {getattr(self, name)}, but there is nothing to start from. Choose a picture or a video (start_from), or leave it empty.")
        elif self.strength is not None:
            if self.start_frames is not None:
                raise RequestError("strength", "Both start_frames and strength are given. Keep the first to continue the source, or the second to change all of it.")
            if not 0 < self.strength <= 1:
                raise RequestError("strength", f"strength is {self.strength}; it must be above 0 and at most 1.")
        elif not 1 <= self.start_frames < self.num_frames:
            raise RequestError("start_frames", f"start_frames is {self.start_frames}; it must be from 1 to {self.num_frames - 1}, so that something new follows.")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Its fields' types: reading them from their words takes ten times as long as checking a request."""
    return typing.get_type_hints(cls)


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the field's type; JSON has one kind of number, so 7.0 is an int's 7 and 7 a float's 7.0. NumPy's numbers count as Python's."""
    wanted, optional = _wanted(hint)
    if type(value) is wanted and wanted is not float or value is None and optional:
        return value
    if isinstance(value, numbers.Number) and hasattr(value, "item"):
        value = value.item()
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) > sys.float_info.max:
        return float(value)
    if wanted is int and (isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and value.is_integer()):
        return int(value)
    if wanted is str and isinstance(value, str):
        return value
    word = {int: "a whole number", float: "a number", str: "text"}[wanted]
    raise RequestError(name, f"{name} is {_short(repr(value))}; it must be {word}.")


@functools.cache
def _wanted(hint: Any) -> tuple[type, bool]:
    """The type that a field's hint asks for, and whether None is taken too."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next(t for t in allowed if t is not type(None)), type(None) in allowed


def _short(value: Any) -> str:
    """``value`` for a message, which hundreds of digits would fill."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"

"""Named sizes, lengths and sampling defaults. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .types import RequestError, VideoShape, nearest


@dataclass(frozen=True)
class Preset:
    """Size, length and sampling that a model was made for."""

    name: str
    label: str
    models: tuple[str, ...]
    """Models that it suits; the first preset that lists a model is that model's default."""
    height: int
    width: int
    num_frames: int
    fps: int
    output_fps: int = 6
    num_inference_steps: int = 50
    guidance_scale: float = 12.0
    guidance_stop: float = 1.0
    late_guidance_scale: float = 1.0
    temporal_guidance_scale: float = 0.0
    eta: float = 1.0
    sampler: str = "ddim"
    window_frames: int | None = None
    """For clips longer than the model was trained for: the frames that it sees at once."""

    @property
    def shape(self) -> VideoShape:
        return VideoShape(self.num_frames, self.height, self.width)

    @property
    def seconds(self) -> float:
        """Length of the written file."""
        return self.num_frames / self.output_fps

    @property
    def decided(self) -> dict[str, Any]:
        """What it puts into a request's PRESET_FIELDS."""
        return {name: getattr(self, name) for name in PRESET_FIELDS}


PRESET_FIELDS = ("guidance_scale", "guidance_stop", "late_guidance_scale", "temporal_guidance_scale", "num_inference_steps", "sampler", "eta", "height", "width", "num_frames", "fps", "output_fps", "window_frames")
"""The fields of a request that a preset decides."""
PLAIN_GUIDANCE = {"guidance_stop": 1.0, "late_guidance_scale": 1.0, "temporal_guidance_scale": 0.0}
"""The prompt's guidance alone, in every step: Mira's own way, and how videos were made before there was another."""

NANO = "mira-nano"
V0_128, V0_384 = "TencentARC/Mira-v0:128", "TencentARC/Mira-v0:384"
V1_384_10S, V1_384_20S = "TencentARC/Mira-v1:384-10s", "TencentARC/Mira-v1:384-20s"
V1_768_5S, V1_768_10S = "TencentARC/Mira-v1:768-5s", "TencentARC/Mira-v1:768-10s"

_NANO_SAMPLING = dict(fps=6, num_inference_steps=20, guidance_scale=3.0, eta=0.0, sampler="dpm++2m")

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("nano-4s", "128×80, 4 s", (NANO,), 80, 128, 24, **_NANO_SAMPLING),
        Preset("nano-2s", "128×80, 2 s", (NANO,), 80, 128, 12, **_NANO_SAMPLING),
        Preset("nano-160-4s", "160×96, 4 s", (NANO,), 96, 160, 24, **_NANO_SAMPLING),
        Preset("nano-192-4s", "192×112, 4 s", (NANO,), 112, 192, 24, **_NANO_SAMPLING),
        Preset("nano-10s", "128×80, 10 s", (NANO,), 80, 128, 60, window_frames=24, **_NANO_SAMPLING),
        Preset("nano-20s", "128×80, 20 s", (NANO,), 80, 128, 120, window_frames=24, **_NANO_SAMPLING),
        Preset("nano-60s", "128×80, 60 s", (NANO,), 80, 128, 360, window_frames=24, **_NANO_SAMPLING),
        Preset("128-20s", "128×80, 20 s", (V0_128,), 80, 128, 120, fps=8),
        Preset("128-60s", "128×80, 60 s", (V0_128,), 80, 128, 360, fps=8, window_frames=120),
        Preset("384-10s", "384×240, 10 s", (V0_384, V1_384_10S), 240, 384, 60, fps=8),
        Preset("384-20s", "384×240, 20 s", (V1_384_20S,), 240, 384, 120, fps=8),
        Preset("768-5s", "768×480, 5 s", (V1_768_5S,), 480, 768, 30, fps=8),
        Preset("768-10s", "768×480, 10 s", (V1_768_10S,), 480, 768, 60, fps=8),
    )
}


def get_preset(name: str) -> Preset:
    """The preset of that name. Raises RequestError naming the nearest one."""
    try:
        return PRESETS[name]
    except KeyError:
        raise RequestError("preset", f"There is no preset {name!r}.{nearest(name, PRESETS)} Known: {', '.join(PRESETS)}.") from None


def presets_for(model: str) -> list[Preset]:
    """The presets made for ``model``; all of them for a model that no preset names. One that was made of another has the presets of its ``core.lineage.base_model``."""
    return [p for p in PRESETS.values() if model in p.models] or list(PRESETS.values())


def default_preset(model: str) -> Preset:
    """The first preset made for ``model``."""
    return presets_for(model)[0]


def preset_for(model: str, num_frames: int | None) -> Preset:
    """The model's first preset, or the shortest that is as long as ``num_frames`` where that one is not: a long clip is made in windows, whoever asks for it."""
    first, own = default_preset(model), [p for p in PRESETS.values() if model in p.models]
    if num_frames is None or num_frames <= first.num_frames or not own:
        return first
    by_length = sorted(own, key=lambda p: p.num_frames)
    return next((p for p in by_length if p.num_frames >= num_frames), by_length[-1])

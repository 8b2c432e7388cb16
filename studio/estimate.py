"""What a video will cost in time, from what the last one of its model took."""

from __future__ import annotations

from typing import Any

from core.schedulers_info import SAMPLERS
from core.types import GenerationRequest, RequestError

from .components.words import about
from .services import Services


def work(request: GenerationRequest) -> float:
    """Pixels that the transformer goes over for a resolved request: proportional to its time, near enough to plan by."""
    passes = request.num_inference_steps * SAMPLERS[request.sampler].evaluations_per_step * (1 if request.guidance_scale == 1 else 2)
    return float(request.num_frames * request.height * request.width * passes)


def seconds_for(services: Services, request: GenerationRequest) -> float | None:
    """About how long it will take; None before the model has made a video here."""
    for video in services.library.list(limit=50):
        if video.elapsed and video.request.model == request.model and video.request.sampler in SAMPLERS:
            return video.elapsed * work(request) / work(video.request)
    return None


def estimate(services: Services, settings: dict[str, Any], count: int) -> str:
    """One line below the Generate button; empty while the settings are not ones that can be used."""
    try:
        request = GenerationRequest.from_dict({**settings, "seed": 0}).resolved()
    except RequestError:
        return ""
    video = f"{request.width}×{request.height}, {request.num_frames} frames, {request.num_frames / request.output_fps:.1f} s"
    seconds = seconds_for(services, request)
    cost = "" if seconds is None else f" · about {about(seconds * count)} to make{f' all {count}' if count > 1 else ''}"
    return f"<p>{video}{cost}</p>"

"""What a video will cost in time, from what the last one of its model took."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Sequence

from core.guidance import predictions_per_step
from core.quality import EXACT
from core.schedulers_info import SAMPLERS
from core.types import GenerationRequest, RequestError

from .components.words import about, escape, model_label
from .examples import TOY_WORDS, unknown_words
from .library import Query
from .queue import Job
from .services import Services


def work(request: GenerationRequest) -> float:
    """Pixels that the transformer goes over for a resolved request: proportional to its time, near enough to plan by.

    Layers that a quality below the full one may skip are not foreseen: how many depends on the clip.
    """
    steps = max(1, round(request.num_inference_steps * (request.strength or 1)))
    passes = steps * SAMPLERS[request.sampler].evaluations_per_step * predictions_per_step(request)
    return float(request.num_frames * request.height * request.width * passes)


REACH = 8.0
"""How many times the work, or the pixels, of what was made here may be foretold from it: the share that does not grow with them is not known."""


def last_made(services: Services, model: str, quality: str) -> list[tuple[float, float]]:
    """Work and seconds of the last videos that this model made here, newest first: those of ``quality``, else those made in full, which promises rather too much."""
    made = [video for video in services.library.list(Query(model=model), limit=50) if video.elapsed and video.request.sampler in SAMPLERS]
    alike = [video for video in made if video.request.quality == quality] or [video for video in made if video.request.quality == EXACT]
    return [(work(video.request), video.elapsed) for video in alike]


def seconds_of_each(services: Services, requests: Sequence[GenerationRequest]) -> list[float] | None:
    """About how long each of resolved requests takes, in proportion to what took most nearly as much work. None where one is out of REACH."""
    made = {kind: last_made(services, *kind) for kind in {(request.model, request.quality) for request in requests}}
    asked = [(request.model, request.quality, work(request)) for request in requests]
    took = {one: _reckoned(made[one[:2]], one[2]) for one in set(asked)}
    return None if None in took.values() else [took[one] for one in asked]


def _reckoned(made: Sequence[tuple[float, float]], asked: float) -> float | None:
    """Seconds of so much work, from the work and the seconds of what was made; None where it is out of REACH."""
    known, seconds = min(made, key=lambda one: abs(math.log(one[0] / asked)), default=(0.0, 0.0))
    return None if asked > REACH * known else seconds * asked / known


def seconds_for(services: Services, requests: Sequence[GenerationRequest]) -> float | None:
    """About how long resolved requests take, one after the other. None where one is out of REACH."""
    each = seconds_of_each(services, requests)
    return None if each is None else sum(each)


def seconds_together(services: Services, requests: Sequence[GenerationRequest]) -> float | None:
    """About how long resolved requests take with the workers sharing them, as ``seconds_left`` says of the queue. None where one is out of REACH."""
    each = seconds_of_each(services, requests)
    return None if each is None else max(_shared(services, each))


def _shared(services: Services, each: Sequence[float], running: Sequence[float] = ()) -> list[float]:
    """When each worker is free again if the next request always goes to the one that is free first; those ``running`` are so after as many seconds."""
    free = [*running] + [0.0] * (len(services.executor.statuses()) - len(running))
    heapq.heapify(free)
    for seconds in each:
        heapq.heapreplace(free, free[0] + seconds)
    return free


def memory_for(services: Services, requests: Sequence[GenerationRequest]) -> float | None:
    """About how many bytes the largest of resolved requests takes at its peak; None while one of their models has made nothing here that was measured.

    The model's own share and that of every pixel, as they fit what was measured best; from one size alone larger ones are taken to be in proportion,
    which is too much, and none out of REACH is told.
    """
    needed = []
    for model in {request.model for request in requests}:
        peaks = services.library.peaks(model)
        if not peaks:
            return None
        pixels = max(request.num_frames * request.width * request.height for request in requests if request.model == model)
        sizes, bytes_ = [size for size, _ in peaks], [peak for _, peak in peaks]
        if len(set(sizes)) > 1:
            slope, base = statistics.linear_regression(sizes, bytes_)
            needed.append(max(min(bytes_), base + max(0.0, slope) * pixels))
        elif pixels > REACH * sizes[0]:
            return None
        else:
            needed.append(statistics.mean(bytes_) * max(1.0, pixels / sizes[0]))
    return max(needed)


def seconds_left(services: Services, jobs: Sequence[Job], waiting: int) -> float | None:
    """About how long the queue still takes, with the next request going to the worker that is free first; None when there is nothing to go by.
    ``jobs`` may be its first part: the rest is taken to be like that, and shared evenly."""
    each = seconds_of_each(services, [job.request for job in jobs if job.state == "waiting"])
    running = [job.seconds_left if job.seconds_left is not None else seconds_for(services, [job.request]) for job in jobs if job.state == "running"]
    if each is None or None in running:
        return None
    free = _shared(services, each, running)
    unlisted = (waiting - len(each)) * statistics.mean(each) if each else 0.0
    return max(free) + unlisted / len(free)


def words_hint(requests: Sequence[GenerationRequest]) -> str:
    """A friendly line below the prompt when the embedded model was never taught some of the words."""
    words = list(dict.fromkeys(word for request in requests for word in unknown_words(request)))
    if not words:
        return ""
    named = ", ".join(f"“{escape(word)}”" for word in words[:4]) + (" and others" if len(words) > 4 else "")
    return f'<p class="note">{model_label(requests[0].model)} was never taught {named}. It knows {TOY_WORDS}.</p>'


def estimate(services: Services, requests: Sequence[GenerationRequest]) -> str:
    """One line below the Generate button: what the requests make and how long that takes, as far as it is known."""
    try:
        filled = [request.replace(prompt=request.prompt or "any").resolved(services.data_dir) for request in requests]
    except RequestError as error:
        return f'<p class="bad">{escape(error)}</p>'
    first = filled[0]
    sizes = {(request.width, request.height, request.num_frames, request.output_fps) for request in filled}
    video = f"{first.width}×{first.height}, {first.num_frames} frames, {first.num_frames / first.output_fps:.1f} s" if len(sizes) == 1 else f"{len(sizes)} sizes and lengths"
    if first.loras and all(request.loras == first.loras for request in filled):
        video += f" · LoRA {escape(first.loras)}"
    seconds = seconds_together(services, filled)
    if seconds is None:
        return f"<p>{video}</p>"
    memory = memory_for(services, filled)
    return f"<p>{video} · about {about(seconds)}{'' if memory is None else f', {memory / 1e9:.1f} GB'} to make{f' all {len(filled)}' if len(filled) > 1 else ''}</p>"

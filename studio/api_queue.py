"""Endpoints that queue by more than one request's settings, say what that takes, and undo what the queue's others did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.lineage import base_model
from core.types import GenerationRequest, RequestError

from .api_settings import Settings
from .estimate import memory_for, seconds_together
from .examples import surprise
from .prompts import as_requests
from .queue import Job
from .services import Services
from .tabs.form import draw_seed


def endpoints(services: Services, read: Callable[[Settings], GenerationRequest], require: Callable[[str], Job]) -> tuple[Callable[..., Any], ...]:
    """The functions; ``read`` makes the request of what a client gives, ``require`` finds the one of an id."""
    queue, library = services.queue, services.library

    def enqueue_prompts(prompts: str, request: Settings | None = None, count: int = 1) -> dict[str, list[str]]:
        """Queue many prompts at once, all of them or none.

        Args:
            prompts: A prompt a line; {red|blue} makes one of each, __colour__ one for each line of the studio's wildcards/colour.txt, and a line can end with its own settings, as in --seed 7 --guidance_scale 9.
            request: Settings that all share, as for enqueue; prompt is not needed.
            count: Videos of each prompt, from the request's seed on.

        Returns:
            {"ids": [...]} of the requests.
        """
        return {"ids": queue.enqueue_many(_many(prompts, request, count))}

    def estimate(prompts: str, request: Settings | None = None, count: int = 1) -> dict[str, Any]:
        """What enqueue_prompts would queue and take, as far as this machine has measured; nothing is queued.

        Args:
            prompts: As for enqueue_prompts.
            request: Settings that all share.
            count: Videos of each prompt.

        Returns:
            requests, their number, seconds for all of them on this machine's workers, and memory, the bytes of the largest at its peak; null where nothing like them was made yet.
        """
        requests = [one.resolved(services.data_dir) for one in _many(prompts, request, count)]
        return {"requests": len(requests), "seconds": seconds_together(services, requests), "memory": memory_for(services, requests)}

    def _many(prompts: str, request: Settings | None, count: int) -> list[GenerationRequest]:
        if count < 1:
            raise RequestError("count", f"count is {count}; it must be 1 or more.")
        shared = {} if request is None else request
        seed = read({**shared, "prompt": "any"} if isinstance(shared, dict) else shared).seed
        return as_requests(prompts, {"model": services.default_model, **shared}, int(draw_seed()) if seed is None else seed, count, services.wildcards)

    def surprise_me(model: str = "") -> dict[str, str]:
        """A prompt that a model can do, drawn anew each time.

        Args:
            model: Its name; the studio's own by default.

        Returns:
            {"prompt": ...}
        """
        return {"prompt": surprise(base_model(model or services.default_model, services.data_dir))}

    def copy_requests(ids: list[str]) -> list[str]:
        """Queue requests once more, as they are, at the end; the ids of the copies.

        Args:
            ids: The requests.
        """
        return queue.copy_many([require(id).id for id in ids])

    def vary(id: str) -> dict[str, str]:
        """Queue a video's request once more with another seed.

        Args:
            id: The video's id.

        Returns:
            {"id": ...} of the new request.
        """
        video = library.get(id)
        if video is None:
            raise RequestError("id", f"There is no video {id!r}.")
        return {"id": queue.enqueue(video.request.replace(seed=None))}

    def reinstate(ids: list[str]) -> list[str]:
        """Undo cancel or cancel_waiting: each takes its old place again; the ids of those that were cancelled.

        Args:
            ids: The cancelled requests.
        """
        cancelled = [id for id in ids if require(id).state == "cancelled"]
        queue.reinstate(cancelled)
        return cancelled

    def unclear(ids: list[str]) -> list[str]:
        """Undo clear: put finished requests back on the list; their ids.

        Args:
            ids: What clear gave.
        """
        queue.restore([require(id).id for id in ids])
        return ids

    return enqueue_prompts, estimate, surprise_me, copy_requests, vary, reinstate, unclear

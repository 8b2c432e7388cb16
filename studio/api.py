"""The studio's named endpoints, JSON in and out, for ``gradio_client`` and plain HTTP.

    client = gradio_client.Client("http://127.0.0.1:7860")
    id = client.predict({"prompt": "a red ball rolls right"}, api_name="/enqueue")["id"]
    client.predict(id, api_name="/status")
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr

from core.types import GenerationRequest, RequestError

from .db import StorageError
from .queue import Job
from .services import Services

log = logging.getLogger(__name__)


def register(services: Services) -> None:
    """Add the endpoints to the Blocks whose context this is called in."""
    queue, library = services.queue, services.library

    def enqueue(request: dict[str, Any]) -> dict[str, str]:
        """Queue a GenerationRequest, given as an object of its settings. Only "prompt" is needed; ``{"id": ...}`` comes back once it is on disk."""
        values = {"model": services.default_model, **request} if isinstance(request, dict) else request
        return {"id": queue.enqueue(GenerationRequest.from_dict(values))}

    def status(id: str) -> dict[str, Any]:
        """How a request stands: state (waiting, running, done, failed or cancelled), progress from 0 to 1, error, attempts, video (its path)."""
        return _status(_require(id))

    def cancel(id: str) -> dict[str, Any]:
        """Stop a waiting or running request; its status afterwards."""
        queue.cancel(_require(id).id)
        return _status(_require(id))

    def list_videos(limit: int = 60, offset: int = 0, search: str = "") -> list[dict[str, Any]]:
        """The finished videos, newest first, with the request that made each; those only whose prompt contains every word of ``search``."""
        return [
            {"id": v.id, "video": v.path, "poster": v.poster, "created": v.created, "seconds": v.seconds, "favourite": v.favourite, "request": v.request.to_dict()}
            for v in library.list(limit=limit, offset=offset, search=search)
        ]

    def _require(id: str) -> Job:
        job = queue.get(id)
        if job is None:
            raise RequestError("id", f"There is no request {id!r}.")
        return job

    for endpoint in (enqueue, status, cancel, list_videos):
        gr.api(in_words(endpoint), api_name=endpoint.__name__, concurrency_limit=None)


def in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with what the user can put right raised as gr.Error, and so shown, in the page and to clients."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (RequestError, StorageError) as error:
            log.info("%s: %s", function.__name__, error)
            raise gr.Error(str(error), print_exception=False) from error

    return wrapper


def _status(job: Job) -> dict[str, Any]:
    return {"state": job.state, "progress": job.progress, "error": job.error, "attempts": job.attempts, "video": job.video}

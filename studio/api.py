"""The studio's named endpoints, JSON in and out, for ``gradio_client``, plain HTTP and, with ``app.py --mcp``, MCP tools.

    client = gradio_client.Client("http://127.0.0.1:7860")
    id = client.predict({"prompt": "a red ball rolls right"}, api_name="/enqueue")["id"]
    client.predict(id, api_name="/status")
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import gradio as gr

from core.files import WriteError
from core.types import GenerationRequest, RequestError
from core.video_io import VideoError
from training.config import ConfigError

from . import api_datasets, api_files, api_queue, api_training, api_votes, api_walls
from .api_settings import Settings
from .db import StorageError
from .diagnostics import last_errors, sections
from .exchange import exported, import_queue
from .library import Query
from .queue import FINISHED, STATES, Job
from .services import Services
from .tasks import begin_conversion

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.25
"""Between two looks at a request that ``generate`` waits for."""
MAX_LISTED = 1000
MENDABLE = (RequestError, StorageError, VideoError, WriteError, ConfigError)
"""What says in words what the user can put right."""
WORKED = frozenset("enqueue enqueue_prompts retry resume resume_request verify vary copy_requests reinstate import_requests grid drafts make_full".split())
"""Endpoints that put something to wait."""


HOW_TO_CALL = """# Endpoints

What the studio does with requests, videos and models, for your own programs. The button at the foot of this page shows each endpoint's address and arguments, and calls in
Python, JavaScript and curl. With `python app.py --mcp` they are MCP tools too.

```python
from gradio_client import Client

studio = Client("http://127.0.0.1:7860")  # or wherever this page is
video = studio.predict({"prompt": "A big red ball rises over the sea."}, api_name="/generate")
```

"""


def layout(services: Services) -> None:
    """The page of the endpoints, which it registers: what each of them does, in a line."""
    gr.HTML('<a href="./">Back to the studio</a>', elem_id="back")  # a link in Markdown would open another tab of the browser
    words = gr.Markdown(elem_id="endpoints")
    told = (f"- `/{name}({', '.join(inspect.signature(endpoint).parameters)})`: {inspect.getdoc(endpoint).splitlines()[0]}" for name, endpoint in register(services).items())
    words.value = HOW_TO_CALL + "\n".join(told)


def register(services: Services) -> dict[str, Callable[..., Any]]:
    """Add the endpoints to the Blocks whose context this is called in; what was added, by name."""
    queue, library, executor = services.queue, services.library, services.executor

    def worked(function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` and, where requests run inside events, what it has put to wait done before it answers."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            answer = function(*args, **kwargs)
            executor.work_through()
            return answer

        return wrapper if executor.inside_events else function

    def read(request: Settings) -> GenerationRequest:
        return GenerationRequest.from_dict({"model": services.default_model, **request} if isinstance(request, dict) else request)

    def require(id: str) -> Job:
        job = queue.get(id)
        if job is None:
            raise RequestError("id", f"There is no request {id!r}.")
        return job

    def enqueue(request: Settings) -> dict[str, str]:
        """Queue a video and return at once; on ZeroGPU, which lends its GPU to a call only while that lasts, when the video is made.

        Args:
            request: Settings of the video as an object, by the names that a video's file tells. Only "prompt" is needed; what is left out is the model's own default.

        Returns:
            {"id": ...} of the request, once it is on disk.
        """
        return {"id": queue.enqueue(read(request))}

    async def generate(request: Settings, timeout: float = 600) -> dict[str, Any]:
        """Make a video and wait for it.

        Args:
            request: Settings of the video as an object, as for enqueue; only "prompt" is needed.
            timeout: Seconds to wait at most; the request stays in the queue after that.

        Returns:
            Its status, with "id" and, when the state is "done", the path of the mp4 as "video".
        """
        id, deadline = queue.enqueue(read(request)), time.monotonic() + timeout
        if executor.inside_events:
            await anyio.to_thread.run_sync(executor.work_through)
        while (job := require(id)).state not in FINISHED and time.monotonic() < deadline:
            await asyncio.sleep(WAIT_SECONDS)
        return {"id": id, **_status(job)}

    def status(id: str) -> dict[str, Any]:
        """How a request stands.

        Args:
            id: The request's id.

        Returns:
            state (waiting, running, paused, done, failed or cancelled), progress from 0 to 1, error, attempts, and video, the path of the mp4.
        """
        return _status(require(id))

    def cancel(id: str) -> dict[str, Any]:
        """Stop a waiting, running or paused request (within one denoising step); its status afterwards.

        Args:
            id: The request's id.
        """
        queue.cancel(require(id).id)
        return _status(require(id))

    def retry(id: str) -> dict[str, Any]:
        """Put a failed or cancelled request back at the end of the queue; its status afterwards.

        Args:
            id: The request's id.
        """
        queue.retry(require(id).id)
        return _status(require(id))

    def edit(id: str, request: Settings) -> dict[str, Any]:
        """Replace a waiting request, which keeps its place; its status afterwards.

        Args:
            id: The request's id.
            request: The new settings as an object, as for enqueue.
        """
        queue.edit(require(id).id, read(request))
        return _status(require(id))

    def move(id: str, to: str) -> list[str]:
        """Change the place of a waiting request; the ids of all that wait, in their new order.

        Args:
            id: The request's id.
            to: "first", "last", "up", "down", or the id of the waiting request that it shall come before.
        """
        queue.move(require(id).id, to)
        return [job.id for job in queue.list(["waiting"], limit=MAX_LISTED)]

    def pause() -> dict[str, bool]:
        """Let the running request end and start no others."""
        queue.pause()
        return {"paused": queue.paused}

    def resume() -> dict[str, bool]:
        """Start requests again after pause."""
        queue.resume()
        return {"paused": queue.paused}

    def list_all(limit: int = 60) -> dict[str, Any]:
        """All at one look: the queue, and the finished videos, newest first.

        Args:
            limit: How many of each at most.

        Returns:
            requests and videos as list_requests and list_videos give them, counts of the requests by their state, and paused.
        """
        return {"requests": list_requests(limit=limit), "videos": list_videos(limit), "counts": queue.counts(), "paused": queue.paused}

    def pause_request(id: str) -> dict[str, Any]:
        """Put a running request on disk after its current step, to go on with it later from there; its status.

        Args:
            id: The request's id.
        """
        queue.pause_request(require(id).id)
        return _status(require(id))

    def resume_request(id: str) -> dict[str, Any]:
        """Let a paused request go on from where it was paused; its status.

        Args:
            id: The request's id.
        """
        queue.resume_request(require(id).id)
        return _status(require(id))

    def list_requests(state: str = "", limit: int = 200) -> list[dict[str, Any]]:
        """The queue: what runs, then what is paused, then what waits in its order, then what is finished, newest first.

        Args:
            state: Only those that are waiting, running, paused, done, failed or cancelled; empty for all.
            limit: How many at most.
        """
        if state and state not in STATES:
            raise RequestError("state", f"There is no state {state!r}; known are {', '.join(STATES)}.")
        jobs = queue.list([state] if state else None, limit=_limit(limit))
        return [{"id": job.id, **_status(job), "request": job.request.to_dict()} for job in jobs]

    def list_videos(limit: int = 60, offset: int = 0, search: str = "") -> list[dict[str, Any]]:
        """The finished videos, newest first, with the request that made each.

        Args:
            limit: How many at most.
            offset: How many to pass over.
            search: Only those whose prompt contains every word of this; #word is a tag.
        """
        return find_videos(limit, offset, search)

    def find_videos(
        limit: int = 60, offset: int = 0, search: str = "", favourites: bool = False, model: str = "", preset: str = "", run: str = "", days: int = 0, order: str = "newest", deleted: bool = False,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """The finished videos by the gallery's filters, with the request that made each.

        Args:
            limit: How many at most.
            offset: How many to pass over.
            search: Only those whose prompt contains every word of this; #word is a tag.
            favourites: Only the favourites.
            model: Only those of this model.
            preset: Only those of this preset.
            run: Only those that a checkpoint or LoRA of this training run made.
            days: Only those made on the last so many days, of which 1 is today; 0 for any time.
            order: newest, oldest, prompt or slowest.
            deleted: Those in the trash instead, for restore_video.
        """
        query = Query(search, favourites, model or None, preset or None, None, run or None, days or None, order, deleted)
        return [
            {"id": v.id, "video": v.path, "poster": v.poster, "created": v.created, "seconds": v.seconds, "favourite": v.favourite, "tags": list(v.tags), "verdict": v.verdict, "faults": v.faults, "request": v.request.to_dict()}
            for v in library.list(query, _limit(limit), max(0, offset))
        ]

    def star(id: str, favourite: bool = True) -> dict[str, bool]:
        """Mark a video as a favourite, or unmark it.

        Args:
            id: The video's id, which is that of its request.
            favourite: Whether it is one.
        """
        library.set_favourite([id], favourite)
        return {"favourite": favourite}

    def tag(id: str, tag: str, on: bool = True) -> dict[str, list[str]]:
        """Give a video a tag, or take it away; its tags afterwards.

        Args:
            id: The video's id.
            tag: One word.
            on: Whether it is given.
        """
        library.tag([id], tag, on)
        return {"tags": list(library.get(id).tags)}

    def delete_video(id: str) -> dict[str, str]:
        """Move a video to the trash; restore_video brings it back for a week.

        Args:
            id: The video's id.
        """
        library.delete(id)
        return {"deleted": id}

    def restore_video(id: str) -> dict[str, str]:
        """Bring a deleted video back.

        Args:
            id: The video's id.
        """
        library.undelete(id)
        return {"restored": id}

    def empty_trash() -> dict[str, int]:
        """Remove all deleted videos for good; they cannot be brought back any more.

        Returns:
            removed, how many there were, and freed, their bytes.
        """
        freed = library.trash_bytes()
        return {"removed": library.purge(0), "freed": freed}

    def verify(id: str) -> dict[str, str]:
        """Queue a video's request once more, to see whether every pixel comes out again; list_videos has the verdict when that is done.

        Args:
            id: The video's id.

        Returns:
            {"id": ...} of the new request.
        """
        video = library.require_settings(id)
        return {"id": queue.verify(video.id, video.request)}

    def clear() -> list[str]:
        """Take finished, failed and cancelled requests off the list; their videos stay. Their ids."""
        return queue.clear_finished()

    def cancel_waiting() -> list[str]:
        """Cancel every request that waits; their ids."""
        return queue.cancel_waiting()

    def export_requests() -> dict[str, Any]:
        """The waiting requests and your presets, as import_requests takes them."""
        return exported(services)

    def import_requests(content: dict[str, Any]) -> dict[str, Any]:
        """Queue the requests of an export behind what waits, and add its presets, after all of it was checked.

        Args:
            content: What export_requests gave.

        Returns:
            ids of the queued requests, presets: how many were added, and replaced: the settings that presets of the same names had before, for save_preset.
        """
        ids, before = import_queue(services, json.dumps(content))
        return {"ids": ids, "presets": len(before), "replaced": {name: settings for name, settings in before.items() if settings is not None}}

    def list_models() -> list[dict[str, Any]]:
        """The models that a request can name: installed ones with their size in bytes, their hash and where they come from, and those that would be downloaded."""
        models = services.models
        return [
            {"name": m.name, "installed": m.installed, "folder": m.path, "bytes": m.size, "hash": models.hash(m) if m.installed else None, "source": m.source, "download_gigabytes": m.release and m.release.gigabytes}
            for m in models.list()
        ]

    def install_model(name: str) -> dict[str, Any]:
        """Begin to download and convert a released model, going on where an earlier download stopped; as installing tells.

        Args:
            name: Its name, as list_models gives it.
        """
        services.models.require_listed(name)
        services.installs.install(name)
        return installing()

    def installing() -> dict[str, Any]:
        """What is being downloaded or converted, or was last: model, words, done and of (bytes), working, and error; empty when there was nothing."""
        chore = services.installs.current
        return {} if chore is None else {"model": chore.dataset, "words": chore.words, "done": chore.done, "of": chore.of, "working": chore.working, "error": chore.error}

    def cancel_install() -> dict[str, Any]:
        """Stop downloading or converting. What was downloaded is kept, and install_model goes on from there."""
        services.installs.cancel()
        return installing()

    def convert_checkpoint(source: str, name: str = "", config: str = "") -> dict[str, Any]:
        """Begin to make a model folder of a .pt file of Mira on the studio's machine; as installing tells.

        Args:
            source: The file's path there.
            name: Of the model; the file's by default.
            config: Path of Mira's YAML for it; a file with a released name, such as 128-v0.pt, needs none.
        """
        begin_conversion(services, source.strip(), config.strip(), name.strip())
        return installing()

    def load_model(name: str) -> list[dict[str, Any]]:
        """Have every worker load a model once its request is done, in place of the one in its memory; as workers tells.

        Args:
            name: Its name, as list_models gives it.
        """
        services.models.require(name)
        executor.load(name)
        return workers()

    def unload_model() -> list[dict[str, Any]]:
        """Have every worker free its model's memory once its request is done; as workers tells."""
        executor.unload()
        return workers()

    def workers() -> list[dict[str, Any]]:
        """What makes videos: state, device, dtype, the model in memory, and what went wrong, for each worker."""
        return executor.statuses()

    def system() -> dict[str, Any]:
        """For a bug report: versions, workers, the machine and the studio as sections of names and values, and the last errors of the logs."""
        return {"sections": {title: dict(rows) for title, rows in sections(services)}, "errors": last_errors(services.data_dir / "logs")}

    endpoints = (enqueue, generate, status, cancel, retry, edit, move, pause, resume, pause_request, resume_request, list_requests, list_videos, find_videos, star, tag, delete_video, restore_video, empty_trash, list_all, verify, clear, cancel_waiting, export_requests, import_requests, list_models, install_model, installing, cancel_install, convert_checkpoint, workers, system)
    endpoints += (*api_queue.endpoints(services, read, require), *api_walls.endpoints(services, read), *api_votes.endpoints(services), *api_files.endpoints(services))
    if not executor.inside_events:  # where a model is in memory only while a video is made
        endpoints += (load_model, unload_model)
    if services.trains:
        endpoints += (*api_training.endpoints(services), *api_datasets.endpoints(services))
    named = {"list" if endpoint is list_all else endpoint.__name__: endpoint for endpoint in endpoints}
    for name, endpoint in named.items():
        gr.api(in_words(worked(endpoint) if name in WORKED else endpoint), api_name=name, concurrency_limit=None)
    return named


def in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with what the user can put right raised as gr.Error, and so shown, in the page and to clients."""

    def explain(error: Exception) -> gr.Error:
        log.info("%s: %s", function.__name__, error)
        return gr.Error(str(error), print_exception=False)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except MENDABLE as error:
            raise explain(error) from error

    @functools.wraps(function)
    async def waiting(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except MENDABLE as error:
            raise explain(error) from error

    return waiting if inspect.iscoroutinefunction(function) else wrapper


def _limit(limit: int) -> int:
    """Raises RequestError for a number of rows that makes no sense."""
    if not 1 <= limit <= MAX_LISTED:
        raise RequestError("limit", f"limit is {limit}; it must be from 1 to {MAX_LISTED}.")
    return limit


def _status(job: Job) -> dict[str, Any]:
    return {"state": job.state, "progress": job.progress, "error": job.error, "attempts": job.attempts, "video": job.video}

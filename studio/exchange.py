"""The waiting requests and the user's presets as one JSON file, to keep or to take to another machine."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

from core.files import replacing
from core.types import GenerationRequest, RequestError

from .queue import AS_BEFORE, is_own_file
from .services import Services

FORMAT = "mira-studio-queue"
VERSION = 1
MAX_REQUESTS = 10_000
"""Requests in a file."""


def exported(services: Services) -> dict[str, Any]:
    """What waits or is paused, but for videos to be verified, and the presets, as JSON values. Raises RequestError."""
    jobs = [job for job in services.queue.list(["paused", "waiting"], limit=MAX_REQUESTS + 1) if job.verifies is None]
    if len(jobs) > MAX_REQUESTS:
        raise RequestError("file", f"More than {MAX_REQUESTS:,} requests wait; so many fit into a file. Cancel some, or let some be made first.")
    return {"format": FORMAT, "version": VERSION, "requests": [job.request.to_dict() for job in jobs], "presets": services.own_presets.to_dict()}


def export_queue(services: Services) -> Path:
    """Write ``exported`` into the data folder's ``exports/``; the file. Raises RequestError or WriteError."""
    path = services.exports / time.strftime(f"queue-%Y%m%d-%H%M%S-{secrets.token_hex(3)}.json")
    with replacing(path) as file:
        file.write_text(json.dumps(exported(services), ensure_ascii=False, indent=1), "utf-8")
    return path


def import_queue(services: Services, text: str) -> tuple[list[str], dict[str, dict[str, Any] | None]]:
    """Queue the requests of an exported file behind what waits, and add its presets; ids, and what was under the presets' names before, for ``OwnPresets.put_back``.

    All of it is checked before any of it is stored. Raises RequestError naming what is wrong, or StorageError.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RequestError("file", f"This is not JSON ({error}). Choose a file that Export made.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RequestError("file", "This JSON file is no exported queue. Choose one that Export made.")
    if content.get("version") != VERSION:
        raise RequestError("file", f"This file was exported by another version of the studio (version {content.get('version')}, this one reads {VERSION}).")
    requests = _requests(services, content.get("requests", []))
    presets = content.get("presets", {})
    services.own_presets.check(presets)
    ids = services.queue.enqueue_many(requests) if requests else []
    return ids, services.own_presets.merge(presets)


def _requests(services: Services, values: Any) -> list[GenerationRequest]:
    if not isinstance(values, list) or len(values) > MAX_REQUESTS:
        raise RequestError("file", f"The file's requests must be a list of at most {MAX_REQUESTS:,}.")
    requests = []
    for number, value in enumerate(values, 1):
        try:
            request = GenerationRequest.from_dict(AS_BEFORE | value if isinstance(value, dict) else value)
            requests.append(services.queue.checked(_at_home(request, services.data_dir)))
        except RequestError as error:
            raise RequestError(error.field, f"Request {number} of {len(values)}: {error} Nothing was imported.") from None
    return requests


def _at_home(request: GenerationRequest, data_dir: Path) -> GenerationRequest:
    """``request`` with the file that it starts from in this data folder, where one of the same name lies in the same place: folders move, and machines have their own."""
    start = request.start_from and Path(request.start_from)
    if not start or is_own_file(str(start), data_dir):
        return request
    here = data_dir / start.parent.name / start.name
    return request.replace(start_from=str(here)) if is_own_file(str(here), data_dir) and here.is_file() else request

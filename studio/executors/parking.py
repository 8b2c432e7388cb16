"""Where a request's unfinished clip lies on disk while the request is paused, or a training run has the device."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from core.economy import Economy
from core.snapshot import Snapshot, SnapshotError
from core.types import GenerationRequest

from ..db import require_space
from ..queue import Job, Queue

log = logging.getLogger(__name__)


class Place:
    """The place of one request in ``folder``, for one worker that has leased it. Without these nothing is found or kept."""

    def __init__(self, folder: Path | None = None, queue: Queue | None = None, worker_id: str = "", job: Job | None = None):
        self.queue, self.worker_id, self.job = queue, worker_id, job
        self.path = None if job is None else folder / f"{job.id}.pt"
        self.economy: Economy | None = None
        """What the request is spared; None for what it asks for."""
        self._seconds = 0.0
        """How long the steps took that were found here."""
        self._began = time.monotonic()
        self._of: str | None = None

    def begin(self) -> None:
        """The model is there: what is made of the clip from now on counts as the time that it takes."""
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the clip took so far, with the steps that were found here."""
        return self._seconds + time.monotonic() - self._began

    @property
    def ready(self) -> bool:
        """Whether it is known what the request is made with, so that a snapshot can say so."""
        return self.path is not None and self._of is not None

    def find(self, request: GenerationRequest, made: dict[str, Any], device: torch.device) -> Snapshot | None:
        """What a request that is ``made`` with this goes on from; None when it starts anew, also because its snapshot cannot be used any more."""
        self._of = json.dumps([request.to_dict(), made], sort_keys=True)
        if self.job is None or not self.job.parked:
            return None
        try:
            snapshot, notes = Snapshot.load(self.path, self._of, device)
        except SnapshotError as error:
            log.warning("request %s starts anew: %s", self.job.id, error)
            self.queue.unpark(self.job.id, self.worker_id, self.job.attempts)
            return None
        self._seconds, self.economy = notes["seconds"], Economy(**notes["economy"])
        return snapshot

    def keep(self, snapshot: Snapshot) -> None:
        """Write ``snapshot``. Raises StorageError or WriteError."""
        require_space(self.path.parent, snapshot.num_bytes)
        snapshot.save(self.path, self._of, {"seconds": self.seconds, "economy": dataclasses.asdict(self.economy)})


def sweep(folder: Path, queue: Queue) -> None:
    """Remove the snapshots that no request goes on from any more, and what a killed worker left half written."""
    files = {file: file.name.lstrip(".").partition(".")[0] for file in folder.iterdir()}
    needed = queue.resumable() if files else set()
    for file in (file for file, id in files.items() if id not in needed):
        file.unlink(missing_ok=True)

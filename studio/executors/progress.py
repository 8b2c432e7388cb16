"""What a worker tells of its request while it works, and how it hears that it should stop."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core import GenerationCancelled, MiraPipeline
from core.files import WriteError
from core.snapshot import Snapshot

from ..db import StorageError, size_words
from ..queue import DENOISED, Job, Queue
from .parking import Place

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A worker that does not renew its lease for this long hangs."""
TELL_SECONDS = 0.25
PREVIEW_SECONDS = 0.5
PREVIEW_SHARE = 0.1
"""Previews may take at most this share of the time."""
PREVIEW_SIDE = 256
"""Pixels of a preview's longer side."""
DECODED = 0.97
"""Where the progress bar stands when the decoding ends."""


class Parked(GenerationCancelled):
    """The request was put on disk between two steps, to go on later."""


class Progress:
    """Keeps the lease of one request by a thread of its own, so that neither a long step nor a long decode loses it.

    ``on_step_end`` is the pipeline's callback: it raises GenerationCancelled once the request is cancelled or lost, and Parked once
    it is parked, because the request is to be paused or ``wanted`` says that the device is needed.
    """

    def __init__(self, queue: Queue, worker_id: str, job: Job, preview_path: Path, place: Place, wanted: Callable[[], bool], tail_seconds: float | None = None):
        self.queue, self.worker_id, self.job, self.preview_path, self.place, self.wanted = queue, worker_id, job, preview_path, place, wanted
        self.tail_seconds = tail_seconds
        """How long decoding and saving took for the last clip of this size, if there was one."""
        self._may_park = True
        self.denoised_at: float | None = None
        self._lock = threading.Lock()
        self._news: dict[str, Any] = {}
        self._over = threading.Event()
        self._lost = threading.Event()
        self._first_step: tuple[int, float] | None = None
        self._previewed_at, self._preview_cost = 0.0, 0.0
        self._tail_told: int | None = None
        self._thread = threading.Thread(target=self._keep_lease, name="lease", daemon=True)

    def __enter__(self) -> Progress:
        self.stage("text", self.job.progress)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.preview_path.unlink(missing_ok=True)

    def check(self) -> str:
        """What the request's worker shall do: 'go' or 'pause'. Raises GenerationCancelled if it is no longer this worker's."""
        order = "stop" if self._lost.is_set() else self.queue.order(self.job.id, self.worker_id, self.job.attempts)
        if order == "stop":
            raise GenerationCancelled(f"Request {self.job.id} was cancelled.")
        return order

    def stage(self, name: str, progress: float) -> None:
        """A new stage begins."""
        self.check()
        self._tell(stage=name, progress=progress)

    def on_download(self, words: str, done: int, of: int) -> None:
        """What hears of a download or conversion (``core.files.Tell``): the stage is what is being done; once that is whole, the model is loaded."""
        amount = f" {size_words(done)} of {size_words(of)}" if of else ""
        self.stage("model" if 0 < of <= done else words + amount, self.job.progress)

    def on_step_end(self, pipe: MiraPipeline, step: int, timestep: int, report: dict[str, Any]) -> None:
        """The pipeline's ``callback_on_step_end``; ``step`` counts from 0."""
        order = self.check()
        now, done, num_steps = time.monotonic(), step + 1, report["num_steps"]
        news = {"stage": "denoise", "step": done, "num_steps": num_steps, "progress": DENOISED * done / num_steps}
        if self._first_step is None:
            self._first_step = step, now
        else:
            first, then = self._first_step
            news["seconds_left"] = (now - then) / (step - first) * (num_steps - done) + (self.tail_seconds or 0.0)
        if done == num_steps:
            news["stage"], self.denoised_at = "decode", now
        elif report["preview"] is not None and now - self._previewed_at > max(PREVIEW_SECONDS, self._preview_cost / PREVIEW_SHARE):
            write_preview(report["preview"]()[0], self.preview_path, self.job.request.output_fps)
            news["preview"] = str(self.preview_path)
            self._previewed_at = time.monotonic()
            self._preview_cost = self._previewed_at - now
        self._tell(**news)
        if order == "pause" or self._may_park and self.wanted():
            self._park(report.get("snapshot"), done, num_steps, "paused" if order == "pause" else "waiting")

    def _park(self, snapshot: Callable[[], Snapshot] | None, done: int, num_steps: int, state: str) -> None:
        """Put the request aside and raise Parked; where that cannot be, go on, as stopping would lose what is done."""
        try:
            if snapshot is None or not self.place.ready:
                raise StorageError("The device is lent for one video at a time and keeps nothing of an unfinished one.")
            self.place.keep(snapshot())
        except (StorageError, WriteError) as error:
            log.warning("request %s cannot be parked: %s", self.job.id, error)
            self._may_park = False
            self.queue.not_parked(self.job.id, self.worker_id, self.job.attempts, f"It could not be paused and goes on. {error}")
            return
        if not self.queue.park(self.job.id, self.worker_id, self.job.attempts, done, num_steps, state):
            raise GenerationCancelled(f"Request {self.job.id} was cancelled.")
        raise Parked(f"Request {self.job.id} is parked after step {done} of {num_steps}.")

    def _tell(self, **news: Any) -> None:
        with self._lock:
            self._news.update(news)

    def _tail_left(self) -> dict[str, float]:
        """The time left of decoding and saving, each time that its whole seconds change; nothing while there is denoising, and where it is not known."""
        if self.denoised_at is None or self.tail_seconds is None:
            return {}
        left = max(0.0, self.denoised_at + self.tail_seconds - time.monotonic())
        before, self._tail_told = self._tail_told, round(left)
        return {} if before == self._tail_told else {"seconds_left": left}

    def _keep_lease(self) -> None:
        renewed = time.monotonic()
        while not self._over.wait(TELL_SECONDS):
            with self._lock:
                news, self._news = self._tail_left() | self._news, {}
            if not news and time.monotonic() - renewed < LEASE_SECONDS / 6:
                continue
            try:
                if not self.queue.heartbeat(self.job.id, self.worker_id, self.job.attempts, **news, seconds=LEASE_SECONDS):
                    self._lost.set()
                    return
                renewed = time.monotonic()
            except (sqlite3.Error, StorageError) as error:
                log.warning("the progress of request %s could not be written, trying again: %s", self.job.id, error)


def write_preview(frames: np.ndarray, path: Path, fps: float) -> None:
    """Write ``frames [T, h, w, 3]`` (uint8) as a small animated WebP in place of the last one."""
    _, height, width, _ = frames.shape
    scale = max(1, PREVIEW_SIDE // max(height, width))
    images = [Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.BICUBIC) for frame in frames]
    part = path.with_suffix(".part")
    images[0].save(part, format="WEBP", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, quality=70, method=0)
    os.replace(part, path)

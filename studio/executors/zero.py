"""Runs requests inside the events that ask for them: on ZeroGPU a GPU is there only while a function of an event has it, so no worker can stand by.

The queue stays what it is: an event leases a request, writes its progress and records its video in this process. Only text, denoising and decoding go
through the function that ``spaces.GPU`` decorates. ZeroGPU runs that one in a forked process, so it touches no database. Where the package ``spaces`` is
not installed (it comes with a Space) the same function runs right here, on any device.

This module loads torch, and must be imported in the main thread before torch has touched CUDA.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import spaces  # before torch, whose CUDA it stands in for
except ImportError:
    spaces = None

import gradio as gr
import numpy as np
import torch

from core.checkpoints import install
from core.compute import Compute
from core.pipeline import GenerationCancelled, GenerationError, MiraPipeline, StepCallback
from core.releases import installed_folder
from core.types import GenerationRequest

from .maker import VideoMaker
from .parking import Place
from .progress import LEASE_SECONDS, PREVIEW_SECONDS, Progress
from .words import explain

log = logging.getLogger(__name__)

WORKER_ID = "event"
MAX_TAKEN = 1000
"""Requests that one event takes on."""
UNKNOWN_SECONDS = 120.0
"""What is asked of ZeroGPU for a clip of which nothing is known: a GPU is lent for so long at most, and given back when the clip is done."""
SHORTEST_SECONDS, LONGEST_SECONDS = 30.0, 600.0
SPARE = 1.5
"""How many times the estimate is asked for."""

Told = tuple[str, Any]
"""From the GPU: ('step', (step, timestep, num_steps, preview or None)), ('made', (frames, made_with)) or ('failed', words)."""


class ZeroExecutor:
    """Makes videos inside events, one at a time."""

    inside_events = True

    def __init__(self, db_path: str | Path, data_dir: str | Path, device: str = "auto", model: str | None = None, compute: Compute = Compute()):
        self.model, self.compute = model, compute
        self._status: dict[str, Any] = {"state": "starting", "device": None, "dtype": None, "model": None, "trouble": None}
        self._stopping = threading.Event()
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._taken: set[str] = set()
        """Waiting requests that an event has taken on."""
        self.maker = EventMaker(Path(data_dir), device, WORKER_ID, self._status.update, compute=compute)
        self.maker.stopping = self._stopping
        self.maker.on_gpu = gpu(self._generate, self._seconds)

    def status(self) -> dict[str, Any]:
        return {**self._status, "error": None, "pid": None}

    def statuses(self) -> list[dict[str, Any]]:
        return [self.status()]

    def start(self) -> None:
        """Load the model that the form starts with, if it is here: before the page is launched, which is when ZeroGPU lays weights ready."""
        if self.model:
            self.maker.preload(self.model)
        self.maker.report("ready")

    def stop(self) -> None:
        """Let go of what runs, within a step; it goes back to waiting."""
        self._stopping.set()
        with self._turn:
            self.maker.queue.requeue(WORKER_ID)
        self.maker.queue.db.close()

    def work_through(self) -> None:
        """Make, in this event, the requests that wait and that no other event has taken on; return when that is done or the queue is paused."""
        waiting = self.maker.queue
        with self._lock:
            mine = {job.id for job in waiting.list(["waiting"], limit=MAX_TAKEN)} - self._taken
            self._taken |= mine
        try:
            while mine:
                with self._turn:
                    following = next((job.id for job in waiting.list(["waiting"], limit=MAX_TAKEN) if job.id in mine), None)
                    job = waiting.lease(WORKER_ID, LEASE_SECONDS, following) if following and not self._stopping.is_set() else None
                    if job is None:
                        return
                    self.maker.report("busy")
                    self.maker.work(job)
                    self.maker.report("ready")
        finally:
            with self._lock:
                self._taken -= mine

    def _seconds(self, request: GenerationRequest) -> int:
        """For how long a GPU is asked for: somewhat longer than the estimate that the page shows."""
        from ..estimate import seconds_for

        expected = seconds_for(self.maker, [request])
        return round(min(LONGEST_SECONDS, max(SHORTEST_SECONDS, UNKNOWN_SECONDS if expected is None else SPARE * expected)))

    def _generate(self, request: GenerationRequest) -> Iterator[Told]:
        """What a GPU is needed for, told step by step; closing it stops it within a step. No database here: this may be another process."""
        torch.set_num_threads(torch.get_num_threads())  # a fork's first use of torch's thread pool makes it anew, which two threads at once would do wrongly
        told: queue.SimpleQueue[Told | None] = queue.SimpleQueue()
        closed = threading.Event()
        shown = 0.0

        def on_step_end(pipe: MiraPipeline, step: int, timestep: int, report: dict[str, Any]) -> None:
            nonlocal shown
            if closed.is_set():
                raise GenerationCancelled("Nobody waits for this video any more.")
            preview = None
            if report["preview"] is not None and time.monotonic() - shown > PREVIEW_SECONDS:
                preview, shown = report["preview"]()[0], time.monotonic()
            told.put(("step", (step, int(timestep), report["num_steps"], preview)))

        def run() -> None:
            try:
                told.put(("made", VideoMaker.frames(self.maker, request, on_step_end)))
            except GenerationCancelled:
                pass
            except Exception as error:
                log.exception("making %s failed", request)
                told.put(("failed", explain(error, request, self.maker.data_dir)))
            finally:
                told.put(None)

        thread = threading.Thread(target=run, name="gpu")
        thread.start()
        try:
            while (news := told.get()) is not None:
                yield news
        finally:
            closed.set()
            thread.join()


class EventMaker(VideoMaker):
    """A VideoMaker whose frames come from ``on_gpu``."""

    on_gpu: Callable[[GenerationRequest], Iterator[Told]]
    stopping: threading.Event

    def frames(self, request: GenerationRequest, on_step_end: StepCallback, place: Place | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        try:
            with contextlib.closing(self.on_gpu(request)) as told:
                for kind, news in told:
                    if self.stopping.is_set():
                        raise GenerationCancelled("The studio is being stopped.")
                    if kind == "made":
                        return news
                    if kind == "failed":
                        raise GenerationError(news)
                    step, timestep, num_steps, preview = news
                    on_step_end(self.pipe, step, timestep, {"num_steps": num_steps, "preview": None if preview is None else lambda: [preview]})
        except gr.Error as error:  # ZeroGPU's own: no GPU is free, or the visitor's share is used up
            raise GenerationError(f"{error.title}: {error.message}" if error.title != "Error" else str(error.message)) from error
        raise GenerationError("The GPU was taken away before the video was done. Retry, or make a shorter one.")

    def prepare(self, model: str, progress: Progress) -> None:
        """Only on this machine: it comes into memory where the GPU is, and a download needs none."""
        if installed_folder(model, self.data_dir) is None:
            progress.stage("model", progress.job.progress)
            install(model, self.data_dir, progress.on_download)
            progress.stage("text", progress.job.progress)

    def leave(self) -> None:
        """This process has the page; a broken one of ZeroGPU's is ZeroGPU's to replace."""


def gpu(function: Callable[[GenerationRequest], Iterator[Told]], seconds: Callable[[GenerationRequest], int]) -> Callable[[GenerationRequest], Iterator[Told]]:
    """``function`` with a GPU lent to it for at most ``seconds``; as it is where there is nobody to lend one."""
    if spaces is None:
        log.info("The package spaces is not installed: videos are made in the page's own process.")
        return function
    return spaces.GPU(function, duration=seconds)

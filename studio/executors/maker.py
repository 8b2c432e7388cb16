"""Requests to videos, one at a time, on one device.

Whatever moment the process dies at, the queue and the library agree: a video's file is renamed into place inside the
transaction that records it and marks its request done.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core import GenerationCancelled, GenerationRequest, MiraPipeline, load_pipeline, save_video
from core.compute import Compute
from core.device import choose_device, forget_peak, peak_memory
from core.device_lock import DeviceTurn, lock_path
from core.economy import Economy
from core.files import Tell
from core.ladder import release_memory, within_memory
from core.metrics import faults
from core.pipeline import StepCallback
from core.provenance import made_with, runs_of
from core.types import MADE_WITH, RequestError
from core.video_io import save_poster, to_uint8

from ..db import Database, require_space
from ..library import Library
from ..models import Models
from ..queue import Job, Queue
from .parking import Place, sweep
from .progress import DECODED, LEASE_SECONDS, Parked, Progress
from .verify import verdict
from .words import explain, is_broken_device

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.2
PEAK = "peak_memory"
"""What ``frames`` tells beside what a video was made with: bytes. The library keeps them, not the file."""


class VideoMaker:
    """Takes requests and makes their videos, one at a time, on one device."""

    def __init__(self, data_dir: Path, device: str, worker_id: str, tell: Callable[[dict[str, Any]], None], orders: queue.SimpleQueue[dict[str, Any]] | None = None, compute: Compute = Compute()):
        self.compute, self.data_dir, self.device, self.worker_id, self.tell = compute, data_dir, device, worker_id, tell
        self.orders = orders or queue.SimpleQueue()
        """What the studio wants between two requests."""
        self.trouble: str | None = None
        """Why the last order could not be met."""
        db = Database(data_dir / "studio.db")
        self.queue, self.library = Queue(db), Library(data_dir, db)
        self.work_dir, self.previews_dir, self.parked_dir = data_dir / "tmp" / "worker", data_dir / "previews", data_dir / "parked"
        for folder in (self.work_dir, self.previews_dir, self.parked_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self.device_turn = DeviceTurn(lock_path(data_dir, choose_device(device)))
        self.aside: bool | None = None
        """Whether a training has the device; None before that is known."""
        self.pipe: MiraPipeline | None = None
        self.model: str | None = None
        self.tail_seconds: dict[tuple[str, int, int, int], float] = {}
        """How long decoding and saving took, by model, frames, height and width."""

    def run(self) -> None:
        """Work through the queue for as long as the process lives."""
        while True:
            if not self.turn():
                time.sleep(IDLE_SECONDS)

    def turn(self) -> bool:
        """Obey the studio's orders and make the next video, if there is a request and no training has the device, or asks for it; whether one was made or tried.

        While a training has the device the model is out of memory, and orders and requests wait.
        """
        if not self.device_turn.take():
            if not self.aside:
                self.aside = True
                self.unload()
                self.report("waiting")
            return False
        try:
            returns, self.aside = self.aside is not False, False
            while not self.orders.empty():
                self.obey(self.orders.get())
            if returns:
                self.report("ready")
            job = self.queue.lease(self.worker_id, LEASE_SECONDS)
            sweep(self.parked_dir, self.queue)
            if job is not None:
                self.report("busy")
                self.work(job)
                self.report("ready")
            return job is not None
        finally:
            self.device_turn.give()

    def work(self, job: Job) -> None:
        """Make one video, or record in words why not."""
        log.info("request %s, attempt %d: %s", job.id, job.attempts, job.request)
        size = (job.request.model, job.request.num_frames, job.request.height, job.request.width)
        place = Place(self.parked_dir, self.queue, self.worker_id, job)
        progress = Progress(self.queue, self.worker_id, job, self.previews_dir / f"{job.id}.webp", place, self.device_turn.wanted, self.tail_seconds.get(size))
        try:
            with progress:
                self.make(job, progress)
            if progress.denoised_at is not None:  # None in a request that goes on after its last step
                self.tail_seconds[size] = time.monotonic() - progress.denoised_at
        except Parked as parked:
            log.info("%s", parked)
        except GenerationCancelled:
            log.info("request %s was cancelled or given to another worker", job.id)
        except Exception as error:
            log.exception("request %s failed", job.id)
            self.queue.fail(job.id, self.worker_id, job.attempts, explain(error, job.request, self.data_dir, self.library.largest(job.request.model)))
            if is_broken_device(error):
                self.leave()
        else:
            return
        release_memory()  # out here, where no exception holds the tensors any more

    def leave(self) -> None:
        """End this process, to be replaced: its device cannot be used any more."""
        log.error("the device cannot be used any more: leaving, to be replaced")
        os._exit(1)

    def make(self, job: Job, progress: Progress) -> None:
        """Text, denoise, decode, save. Raises GenerationCancelled when the request is no longer this worker's."""
        request = job.request
        require_space(self.data_dir, video_bytes(request))
        self.prepare(request.model, progress)
        progress.place.begin()
        frames, made = self.frames(request, progress.on_step_end, progress.place)
        progress.stage("save", DECODED)
        peak = None if made.get("memory") else made[PEAK]  # where memory was saved it tells nothing of the next one
        made = {name: value for name, value in made.items() if name != PEAK}
        part, final = self.work_dir / f"{job.id}.mp4", self.library.videos_dir / f"{job.id}.mp4"
        try:
            save_video(frames, part, fps=request.output_fps, settings=request.to_dict() | {MADE_WITH: made})
            if job.verifies is not None:
                return self.verify(job, part, progress.place)
            save_poster(frames, part.with_suffix(".jpg"))
            wrong = faults(to_uint8(frames))
            seconds = progress.place.seconds
            with self.queue.db.write():
                if not self.queue.finish(job.id, self.worker_id, job.attempts, str(final), seconds):
                    raise GenerationCancelled(f"Request {job.id} was cancelled.")
                self.library.add(job.id, request, part, part.with_suffix(".jpg"), elapsed=seconds, faults=wrong, peak_memory=peak)
                self.library.set_runs(job.id, runs_of(made))
        finally:
            for file in (part, part.with_suffix(".jpg")):
                file.unlink(missing_ok=True)

    def prepare(self, model: str, progress: Progress) -> None:
        """Have ``model`` in memory. Raises GenerationCancelled when the request is cancelled during a download or conversion."""
        if self.model != model:
            progress.stage("model", progress.job.progress)
            self.pipeline(model, progress.on_download)
            progress.stage("text", progress.job.progress)

    def frames(self, request: GenerationRequest, on_step_end: StepCallback, place: Place | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """What ``request`` (resolved) shows, [T, H, W, C], and what that was made with; it goes on from what lies at ``place``.

        Where memory runs out it goes on from the last step that was done, with one thing more spared, for this request alone. Raises
        OutOfMemory when nothing is left to spare.
        """
        pipe, asked = self.pipeline(request.model), Economy.asked(request)
        pipe.spare(asked)
        pipe.use_weights(request.weights)  # of which made_with tells
        device, made = pipe.execution_device, made_with(pipe, request.loras) | told(self.compute)
        place = place or Place()
        done = place.find(request, {name: value for name, value in made.items() if name != "commit"}, device)  # an update of the studio loses no steps
        place.economy = place.economy or asked.after_deaths(place.job.crashes if place.job else 0, request)

        def remember(pipe: MiraPipeline, step: int, timestep: int, report: dict[str, Any]) -> None:
            nonlocal done
            on_step_end(pipe, step, timestep, report)
            done = report["snapshot"]()

        def make() -> np.ndarray:
            forget_peak(device)
            return pipe.generate(request, callback=remember, resume=done).frames[0]

        def spared(economy: Economy) -> None:
            place.economy = economy

        try:
            frames = within_memory(pipe, request, make, place.economy, spared)
            return frames, made | place.economy.told(request) | {PEAK: peak_memory(device)}
        finally:
            pipe.spare(asked)

    def verify(self, job: Job, part: Path, place: Place) -> None:
        """Keep the verdict on the video that ``part`` is the second making of; ``part`` itself is thrown away."""
        video = self.library.get(job.verifies)
        if video is None:
            raise RequestError("id", "The video that was to be verified is deleted.")
        words = verdict(Path(video.path), part)
        with self.queue.db.write():
            if not self.queue.finish(job.id, self.worker_id, job.attempts, video.path, place.seconds):
                raise GenerationCancelled(f"Request {job.id} was cancelled.")
            self.library.set_verdict(video.id, words)

    def pipeline(self, model: str, tell: Tell | None = None) -> MiraPipeline:
        """The pipeline of ``model``: the one at hand, or loaded in its place; ``tell`` hears of downloads."""
        if self.model != model:
            self.unload()
            self.pipe = load_pipeline(model, device=self.device, data_dir=self.data_dir, compute=self.compute, tell=tell)
            self.pipe.set_progress_bar_config(disable=True)
            self.model = model
            self.report("busy")
        self.pipe.share_work(self.compute.gpus_per_video)
        return self.pipe

    def unload(self) -> None:
        """Free the model's memory, and end the processes that worked with it."""
        if self.pipe is not None:
            self.pipe.share_work(1)
        self.pipe = self.model = None
        release_memory()

    def obey(self, order: dict[str, Any]) -> None:
        """``{"do": "load", "model": NAME}`` loads a model, which may download it; ``preload`` does so if that takes no download; ``{"do": "unload"}`` frees its memory."""
        self.trouble = None
        if order["do"] == "unload":
            self.unload()
        elif order["do"] == "preload":
            self.preload(order["model"])
        elif order["do"] == "load":
            self.report("loading", model=order["model"])
            try:
                self.pipeline(order["model"])
            except Exception as error:
                log.exception("loading %s failed", order["model"])
                self.trouble = explain(error, GenerationRequest(model=order["model"]), self.data_dir)
        self.report("ready")

    def preload(self, model: str) -> None:
        """Load ``model`` ahead of the first request, if that takes no download; a model that cannot be loaded is told by the first request."""
        known = Models(self.data_dir).get(model)
        if known is None or not known.installed:
            return
        try:
            self.pipeline(model)
        except Exception:
            log.exception("loading %s ahead of time failed", model)

    def report(self, state: str, model: str | None = None) -> None:
        """Tell the supervisor how this worker stands; ``model`` is the one that it is loading."""
        pipe = self.pipe
        device, dtype = (None, None) if pipe is None else (str(pipe.execution_device), str(pipe.transformer.dtype).removeprefix("torch."))
        self.tell({"state": state, "device": device, "dtype": dtype, "model": model or self.model, "trouble": self.trouble})


def told(compute: Compute) -> dict[str, Any]:
    """What may change a video's last bits and is not left at its default."""
    return {name: getattr(compute, name) for name in ("compile", "gpus_per_video") if getattr(compute, name) != getattr(Compute, name)}


def video_bytes(request: GenerationRequest) -> int:
    """More than the mp4, its poster and the previews of ``request`` can take on disk."""
    return request.height * request.width * request.num_frames

"""Runs requests on this machine: a worker process for each device, watched and replaced when it dies."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from core.compute import Compute

from ..db import Database, StorageError
from ..queue import Queue

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 30.0
MAX_LOG_BYTES = 5 * 2**20
ROOT = Path(__file__).resolve().parents[2]

Status = dict[str, str | int | None]
"""``state`` (starting, ready, busy, loading, waiting, stopped), ``device``, ``dtype``, ``model`` (the loaded one) and ``pid`` of a worker;
``error``: how the last one died, in words, until its successor is ready; ``trouble``: why it could not do what it was ordered."""


class LocalExecutor:
    """One supervised worker for each device of ``device``: 'auto', 'cpu', or several as in 'cuda:0,cuda:1'."""

    inside_events = False
    """Whether requests run only while an event of the page works through them."""

    def __init__(self, db_path: str | Path, data_dir: str | Path, device: str = "auto", model: str | None = None, compute: Compute = Compute()):
        self.queue, self.compute = Queue(Database(db_path)), compute
        self.workers = [Worker(self.queue, Path(data_dir), name, model, compute) for name in device.split(",")]

    def status(self) -> Status:
        """Of the first worker; ``statuses`` has all of them."""
        return self.workers[0].status()

    def statuses(self) -> list[Status]:
        return [worker.status() for worker in self.workers]

    def load(self, model: str) -> None:
        """Have every worker load ``model`` once its request is done; one that is not installed is downloaded."""
        self._order({"do": "load", "model": model})

    def unload(self) -> None:
        """Have every worker free its model's memory once its request is done; the next request loads it again."""
        self._order({"do": "unload"})

    def _order(self, order: dict[str, str]) -> None:
        for worker in self.workers:
            worker.order(order)

    def start(self) -> None:
        """Start the workers and the threads that watch them."""
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        """Stop the workers; what they were running goes back to waiting."""
        for worker in self.workers:
            worker.ask_to_stop()
        for worker in self.workers:
            worker.join()
        self.queue.db.close()


class Worker:
    """Supervises ``python -m studio.executors.worker`` for one device.

    The worker's standard input is its tie to this process: when it closes, on purpose or because this process died, the
    worker exits at once. Its standard output carries one JSON status a line; its log is ``data_dir/logs/worker.log``.
    """

    def __init__(self, queue: Queue, data_dir: Path, device: str, model: str | None, compute: Compute = Compute()):
        self.queue, self.data_dir, self.device, self.model, self.compute = queue, data_dir, device, model, compute
        self.log_path = data_dir / "logs" / "worker.log"
        self._status: Status = _idle("stopped")
        self._process: subprocess.Popen[str] | None = None
        self._death: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name=f"supervisor-{device}", daemon=True)

    def status(self) -> Status:
        process = self._process
        return {**self._status, "error": self._death if self._status["state"] == "starting" else None, "pid": process.pid if process is not None and process.returncode is None else None}

    def start(self) -> None:
        self._thread.start()

    def order(self, order: dict[str, str]) -> None:
        """Send an order to the process, if there is one."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(OSError, ValueError):  # it is ending: its successor starts afresh
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()

    def ask_to_stop(self) -> None:
        self._stopping.set()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()
        self._status = _idle("stopped")

    def _supervise(self) -> None:
        deaths = 0
        for generation in itertools.count(1):
            started = time.monotonic()
            try:
                self._run(f"{self.device}-{generation}")
            except (OSError, sqlite3.Error, StorageError):
                log.exception("supervising worker %s-%d failed", self.device, generation)
            deaths = 1 if time.monotonic() - started > 2 * MAX_BACKOFF_SECONDS else deaths + 1
            if self._stopping.wait(min(MAX_BACKOFF_SECONDS, 0.25 * 2 ** (deaths - 1))):
                return

    def _run(self, worker_id: str) -> None:
        """One worker process from its start to its end, and its request put back."""
        self._status = _idle("starting")
        self.queue.expire()
        process = self._spawn(worker_id)
        reader = threading.Thread(target=self._read_status, args=(process,), name="worker-status", daemon=True)
        reader.start()
        try:
            while process.poll() is None and not self._stopping.is_set():
                if self.queue.expire(worker_id):
                    log.error("worker %s hangs (its lease ran out): killing it", worker_id)
                    process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        finally:
            _end(process)
            reader.join()
            process.stdout.close()
            if self._stopping.is_set():
                self.queue.requeue(worker_id)
            else:
                how = _how_it_ended(process.returncode)
                self._death = f"The worker process {how}. It is being started again; its log is {self.log_path}."
                log.error("worker %s %s; see %s", worker_id, how, self.log_path)
                self.queue.worker_died(worker_id, how)

    def _spawn(self, worker_id: str) -> subprocess.Popen[str]:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._rotate()
        command = [sys.executable, "-m", "studio.executors.worker", "--data-dir", str(self.data_dir), "--device", self.device, "--worker-id", worker_id, *self.compute.arguments()]
        if self.model:
            command += ["--model", self.model]
        with open(self.log_path, "ab") as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, start_new_session=True)
        self._process = process
        log.info("worker %s started as process %d", worker_id, process.pid)
        return process

    def _read_status(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout:
            self._status = json.loads(line)
            self._rotate()

    def _rotate(self) -> None:
        """Keep the log from growing without bound: what is in it becomes the old one. The worker appends, and so goes on at the start."""
        if self.log_path.exists() and self.log_path.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(self.log_path, self.log_path.with_suffix(".log.1"))
            os.truncate(self.log_path, 0)


def _idle(state: str) -> Status:
    return {"state": state, "device": None, "dtype": None, "model": None, "trouble": None}


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the worker to exit by closing its standard input; kill it if it does not."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"exited with status {returncode}"
    name = signal.Signals(-returncode).name
    return f"was killed by {name}" + (" (often the system's answer to a lack of memory)" if name == "SIGKILL" else "")

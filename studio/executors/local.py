"""Runs requests on this machine: one worker process, watched and replaced when it dies."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from ..db import Database, StorageError
from ..queue import Queue

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A worker that has not renewed its lease for this long hangs: it is killed, and its request put back."""
MAX_BACKOFF_SECONDS = 30.0
MAX_LOG_BYTES = 5 * 2**20
ROOT = Path(__file__).resolve().parents[2]


class LocalExecutor:
    """Supervises ``python -m studio.executors.worker`` for one device.

    The worker's standard input is its tie to this process: when it closes, on purpose or because this process died, the
    worker exits at once. Its standard output carries one JSON status a line; its log is ``data_dir/logs/worker.log``.
    """

    def __init__(self, db_path: str | Path, data_dir: str | Path, device: str = "auto", model: str | None = None, command: list[str] | None = None):
        self.queue = Queue(Database(db_path))
        self.data_dir = Path(data_dir)
        self.device = device
        self.model = model
        self.log_path = self.data_dir / "logs" / "worker.log"
        self.command = command or [sys.executable, "-m", "studio.executors.worker"]
        self._status: dict[str, str | int | None] = {"state": "stopped", "device": None, "dtype": None, "model": None}
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._deaths = 0

    def status(self) -> dict[str, str | int | None]:
        """``state`` (starting, ready, busy, stopped), ``device``, ``dtype``, ``model`` (the loaded one) and ``pid``, as last told."""
        return {**self._status, "pid": self.pid}

    @property
    def pid(self) -> int | None:
        """The worker's process id, or None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the worker and the thread that watches it."""
        if self._thread is not None:
            raise RuntimeError("The executor runs already.")
        self._stopping.clear()
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the worker; what it was running goes back to waiting."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._status = {"state": "stopped", "device": None, "dtype": None, "model": None}
        self.queue.db.close()

    def _supervise(self) -> None:
        for attempt in itertools.count(1):
            started = time.monotonic()
            try:
                self._run_worker(f"local-{attempt}")
            except (OSError, sqlite3.Error, StorageError):
                log.exception("supervising worker local-%d failed", attempt)
            if self._stopping.is_set():
                return
            self._deaths = 1 if time.monotonic() - started > 2 * MAX_BACKOFF_SECONDS else self._deaths + 1
            if self._stopping.wait(min(MAX_BACKOFF_SECONDS, 0.25 * 2 ** (self._deaths - 1))):
                return

    def _run_worker(self, worker_id: str) -> None:
        """One worker from its start to its end, and its request put back."""
        self._status = {"state": "starting", "device": None, "dtype": None, "model": None}
        process = self._spawn(worker_id)
        reader = threading.Thread(target=self._read_status, args=(process,), name="worker-status", daemon=True)
        reader.start()
        try:
            while process.poll() is None and not self._stopping.is_set():
                if self.queue.expire():
                    log.error("worker %s has not renewed its lease for %.0f s: killing it", worker_id, LEASE_SECONDS)
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
                log.error("worker %s %s; see %s", worker_id, how, self.log_path)
                self.queue.worker_died(worker_id, how)

    def _spawn(self, worker_id: str) -> subprocess.Popen[str]:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > MAX_LOG_BYTES:
            os.replace(self.log_path, self.log_path.with_suffix(".log.1"))
        arguments = ["--data-dir", str(self.data_dir), "--device", self.device, "--worker-id", worker_id]
        if self.model:
            arguments += ["--model", self.model]
        with open(self.log_path, "ab") as errors:
            process = subprocess.Popen(
                [*self.command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        self._process = process
        log.info("worker %s started as process %d", worker_id, process.pid)
        return process

    def _read_status(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout:
            self._status = json.loads(line)


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

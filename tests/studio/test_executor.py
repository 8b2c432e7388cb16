"""The supervisor of the worker process, beside what ``test_app`` shows of it."""

from __future__ import annotations

from pathlib import Path

from studio_app import wait_for

from core import GenerationRequest
from studio.db import Database
from studio.executors.local import LocalExecutor
from studio.queue import Queue


def test_a_worker_that_hangs_is_replaced_and_its_request_put_back(tmp_path: Path) -> None:
    queue = Queue(Database(tmp_path / "studio.db"))
    executor = LocalExecutor(queue.db.path, tmp_path, device="cpu")
    assert executor.status() == {"state": "stopped", "device": None, "dtype": None, "model": None, "error": None, "pid": None}
    executor.start()
    try:
        wait_for(lambda: executor.status()["pid"] is not None, 60, "a worker")
        first = executor.status()["pid"]
        id = queue.enqueue(GenerationRequest(prompt="a red ball"))
        queue.lease("cpu-1", seconds=0.1)  # as that worker would, if it were not heard of afterwards
        queue.pause()
        wait_for(lambda: executor.status()["pid"] not in (None, first), 60, "another worker")
        status = executor.status()
        assert status["state"] == "starting" and "killed by SIGKILL" in status["error"] and "worker.log" in status["error"]
        assert queue.get(id).state == "waiting"
    finally:
        executor.stop()
    assert executor.status()["state"] == "stopped" and executor.status()["pid"] is None

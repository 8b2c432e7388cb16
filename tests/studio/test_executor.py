"""The supervisor of the worker process, beside what ``test_app`` shows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from studio_app import wait_for

from core import GenerationRequest
from studio.db import Database
from studio.executors import local
from studio.executors.local import LocalExecutor
from studio.queue import Queue


def test_a_worker_that_hangs_is_replaced_and_its_request_put_back(tmp_path: Path) -> None:
    queue = Queue(Database(tmp_path / "studio.db"))
    executor = LocalExecutor(queue.db.path, tmp_path, device="cpu")
    assert executor.status() == {"state": "stopped", "device": None, "dtype": None, "model": None, "trouble": None, "error": None, "pid": None}
    executor.start()
    try:
        wait_for(lambda: executor.status()["pid"] is not None, "a worker")
        first = executor.status()["pid"]
        id = queue.enqueue(GenerationRequest(prompt="a red ball"))
        queue.lease("cpu-1", seconds=0.1)  # as that worker would, if it were not heard of afterwards
        queue.pause()
        wait_for(lambda: executor.status()["pid"] not in (None, first), "another worker")
        status = executor.status()
        assert status["state"] == "starting" and "killed by SIGKILL" in status["error"] and "worker.log" in status["error"]
        assert queue.get(id).state == "waiting"
    finally:
        executor.stop()
    assert executor.status()["state"] == "stopped" and executor.status()["pid"] is None


def test_models_are_loaded_and_unloaded_on_request_and_the_log_stays_short(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(Database(tmp_path / "studio.db"))
    executor = LocalExecutor(queue.db.path, tmp_path, device="cpu")
    executor.start()
    try:
        wait_for(lambda: executor.status()["state"] == "ready", lambda: f"a worker; it is {executor.status()}")
        executor.load(str(tiny_model))
        wait_for(lambda: executor.status()["model"] == str(tiny_model) and executor.status()["state"] == "ready", lambda: f"the model; it is {executor.status()}")
        assert executor.status()["device"] == "cpu"
        monkeypatch.setattr(local, "MAX_LOG_BYTES", 1000)
        log = tmp_path / "logs" / "worker.log"
        with log.open("ab") as file:
            file.write(b"x" * 1001)
        executor.unload()
        wait_for(lambda: executor.status()["model"] is None, "the model to go")
        executor.load("no-such-model")
        wait_for(lambda: executor.status()["trouble"] is not None, "the reason")
        assert "no-such-model" in executor.status()["trouble"] and executor.status()["state"] == "ready"
        pid = executor.status()["pid"]
        executor.load(str(tiny_model))
        wait_for(lambda: executor.status()["model"] == str(tiny_model) and executor.status()["state"] == "ready", "the model again")
        assert executor.status()["trouble"] is None and executor.status()["pid"] == pid
        assert log.with_suffix(".log.1").exists() and b"x" * 1001 not in log.read_bytes()
    finally:
        executor.stop()

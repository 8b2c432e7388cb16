"""``python app.py`` as a process of its own, for the tests that ask it, click it and kill it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300
"""Seconds after which something is taken never to happen: a busy machine is slow, not wrong."""


def chromium() -> str | None:
    """This machine's Chromium; None for Playwright's own."""
    return next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"))), None)


class StudioApp:
    """``python app.py`` on a free port, started, asked and killed as a user's would be."""

    program = "app.py"

    def __init__(self, data_dir: Path, model: str | Path, *options: str):
        self.data_dir, self.model, self.options = data_dir, model, options
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Any = None

    def start(self, port: int | None = None) -> None:
        """On ``port``, else on a free one."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = port or probe.getsockname()[1]
        command = [sys.executable, self.program, "--port", str(port), "--data-dir", str(self.data_dir), "--model", str(self.model), "--device", "cpu", *self.options]
        self.log = open(self.data_dir.parent / "app.log", "ab")
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self.log, stderr=self.log, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
        self.url = f"http://127.0.0.1:{port}"
        wait_for(self.answers, "the page")
        self._client = None

    @property
    def client(self) -> Any:
        """A ``gradio_client.Client`` of the studio."""
        if self._client is None:
            from gradio_client import Client

            self._client = Client(self.url, verbose=False)
        return self._client

    def answers(self) -> bool:
        """Whether the page is up."""
        import httpx

        assert self.process.poll() is None, Path(self.log.name).read_text()
        try:
            return httpx.get(self.url, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def call(self, name: str, *values: Any) -> Any:
        return self.client.predict(*values, api_name=f"/{name}")

    def enqueue(self, **settings: Any) -> str:
        """Queue a clip of the smallest kind."""
        small = {"prompt": "a red ball", "height": 32, "width": 32, "num_frames": 4, "num_inference_steps": 2, "sampler": "ddim", "seed": 1}
        return self.call("enqueue", {**small, **settings})["id"]

    def wait(self, id: str, *states: str) -> dict[str, Any]:
        """The status of a request once it is in one of ``states``."""
        found: dict[str, Any] = {}

        def reached() -> bool:
            found.update(self.call("status", id))
            return found["state"] in states

        wait_for(reached, lambda: f"{states}; it is {found}; {self.worker_log()[-3000:]}")
        return found

    def worker_log(self) -> str:
        return (self.data_dir / "logs" / "worker.log").read_text()

    def worker_pid(self) -> int:
        """The process id of the newest worker."""
        return int(re.findall(r"started as process (\d+)", (self.data_dir / "logs" / "studio.log").read_text())[-1])

    def end_runs(self) -> None:
        """Stop training runs, which outlive the studio."""
        from training.runs import Runs

        runs = Runs(self.data_dir / "runs")
        for run in runs.list():
            if run.working:
                runs.stop(run.name)

    def end(self, signum: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signum)
            self.process.wait(timeout=30)
            self.log.close()


def wait_for(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Return once ``condition`` holds; fail when it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what() if callable(what) else what}"
        time.sleep(0.05)

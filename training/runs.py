"""Run folders, as anyone may read and steer them: the Training tab, a shell, another program. No torch here.

    config.yaml       the settings (of the last start)
    status.json       what the run is doing, and which process does it
    metrics.jsonl     a line every ``log_every`` steps
    log.txt           what the process printed, with its command first
    environment.json  versions, machine; dataset.json: what was trained on, and what was not
    checkpoints/step-N/, samples/step-N/*.mp4
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from core.files import replacing

from .config import ConfigError, TrainConfig, load_config, save_config

ROOT = Path(__file__).resolve().parents[1]
WORKING = ("starting", "waiting", "preparing", "training")
"""States in which a process is at work."""
SAVE_NOW = "save-now"
"""A file of this name in a run folder asks for a checkpoint after the present step."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass
class Status:
    """What a run is doing. ``state``: starting, waiting (for the device), preparing (latents), training, paused, finished, failed."""

    state: str
    pid: int = 0
    created: float = 0.0
    """When the process began: a number that a later process of the same id does not have."""
    step: int = 0
    message: str = ""
    """Why it failed, or how far the preparation is."""

    def write(self, folder: Path) -> None:
        with replacing(folder / "status.json") as file:
            file.write_text(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Run:
    """A run folder as it is now."""

    folder: Path
    state: str
    """As in Status, and ``stopped`` for one whose process is gone without having said how."""
    step: int
    message: str
    pid: int
    config: TrainConfig | None
    """None when config.yaml cannot be read."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def working(self) -> bool:
        return self.state in WORKING

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, steps rising: what a resumed run did again takes the place of what it had done."""
        rows: list[dict[str, float]] = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "metrics.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    while rows and rows[-1]["step"] >= row["step"]:
                        rows.pop()
                    rows.append(row)
        return rows

    def checkpoints(self) -> list[Path]:
        """Those that were written whole, oldest first."""
        return whole_checkpoints(self.folder)

    def samples(self) -> dict[int, list[Path]]:
        """Videos made on the way, by step."""
        folders = sorted((self.folder / "samples").glob("step-*"), key=lambda p: int(p.name.split("-")[1]))
        return {int(folder.name.split("-")[1]): sorted(folder.glob("*.mp4")) for folder in folders}


def whole_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run folder that were written whole, oldest first."""
    whole = [p for p in (output_dir / "checkpoints").glob("step-*") if (p / ".complete").exists()]
    return sorted(whole, key=lambda p: int(p.name.split("-")[1]))


class Runs:
    """The run folders below one folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def list(self) -> list[Run]:
        """All runs, newest first."""
        folders = [p.parent for p in self.folder.glob("*/config.yaml") if not p.parent.name.startswith(".")]
        return [read_run(folder) for folder in sorted(folders, key=lambda p: (p / "config.yaml").stat().st_mtime, reverse=True)]

    def get(self, name: str) -> Run:
        """Raises ConfigError for a name that no run has."""
        folder = self.folder / name
        if not NAME.fullmatch(name) or not (folder / "config.yaml").exists():
            raise ConfigError(f"There is no run {name!r}.")
        return read_run(folder)

    def resume(self, name: str, device: str = "auto") -> Run:
        """Go on from the last whole checkpoint, in a process that outlives this one. Raises ConfigError for a run that is at work."""
        run = self.get(name)
        if run.working:
            raise ConfigError(f"{name} is at work already.")
        folder, command = run.folder, [sys.executable, "-m", "training", "--config", str(run.folder / "config.yaml"), "--device", device]
        with open(folder / "log.txt", "ab") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            Status("starting", process.pid, psutil.Process(process.pid).create_time(), _last_step(folder)).write(folder)
        threading.Thread(target=process.wait, name=f"run-{folder.name}", daemon=True).start()  # so that no zombie is left
        return read_run(folder)

    def pause(self, name: str) -> None:
        """Ask the process to write a checkpoint after its step, and to end. ``resume`` goes on from there."""
        self._signal(name, signal.SIGTERM)

    def _signal(self, name: str, signum: int) -> None:
        run = self.get(name)
        if not run.working:
            raise ConfigError(f"{name} is not at work.")
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid, signum)


def read_run(folder: Path) -> Run:
    """A run folder as it is now: a process that is gone is not at work, whatever the folder says."""
    try:
        config = load_config(folder / "config.yaml", [])
    except ConfigError:
        config = None
    try:
        status = Status(**json.loads((folder / "status.json").read_text()))
    except (OSError, ValueError, TypeError):
        status = Status("stopped", step=_last_step(folder))
    state, message = status.state, status.message
    if state in WORKING and not _alive(status):
        state, message = "stopped", f"The process ended without a word. Its last checkpoint is step {_last_step(folder)}; its log is {folder / 'log.txt'}."
    return Run(folder, state, status.step, message, status.pid, config)


def _alive(status: Status) -> bool:
    try:
        process = psutil.Process(status.pid)
        return abs(process.create_time() - status.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _last_step(folder: Path) -> int:
    last = whole_checkpoints(folder)[-1:]
    return int(last[0].name.split("-")[1]) if last else 0


def environment() -> dict[str, Any]:
    """Versions and machine, for the run folder."""
    import platform
    from importlib import metadata

    packages = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "peft", "numpy", "av")}
    return {"python": platform.python_version(), **packages, "machine": platform.platform(), "processor": platform.processor() or platform.machine(), "command": sys.argv}

"""Who uses a device: generation and training take turns by a lock on a file. Whoever dies lets go of it. No torch here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock
import psutil


def lock_path(data_dir: str | Path, device: object) -> Path:
    """The file that stands for a device as torch names it: ``cpu``, ``cuda``, which is ``cuda:0``, ``cuda:1`` ..."""
    kind, _, index = str(device).partition(":")
    return Path(data_dir) / "locks" / f"{kind}-{index or 0}.lock"


@contextlib.contextmanager
def device_held(path: Path) -> Iterator[None]:
    """Hold the device for a long time, once it is free. Those who hold it for short times see that it is wanted, and let go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = path.with_name(f"{path.stem}.wanted-{os.getpid()}")
    wanted.touch()
    try:
        with filelock.FileLock(path).acquire(poll_interval=0.1):
            yield
    finally:
        wanted.unlink(missing_ok=True)


class DeviceTurn:
    """A device held for short times, in between those who hold it for long."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(path)

    def take(self) -> bool:
        """Take the device if it is free and nobody has asked for it for long."""
        if self.wanted():
            return False
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        return True

    def give(self) -> None:
        """Let go of it."""
        self._lock.release()

    def wanted(self) -> bool:
        """Whether a living process asks for it for long, or has it; what a dead one left is removed."""
        for file in self.path.parent.glob(f"{self.path.stem}.wanted-*"):
            if psutil.pid_exists(int(file.name.rpartition("-")[2])):
                return True
            file.unlink(missing_ok=True)
        return False

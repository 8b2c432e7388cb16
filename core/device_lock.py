"""Who uses a device: generation and training take turns by a lock on a file. Whoever dies lets go of it. No torch here."""

from __future__ import annotations

import contextlib
import os
import sys
import time
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
    """Hold the device for a long time, once it is free, in the order of asking. Those who hold it for short times see that it is wanted, and let go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = path.with_name(f"{path.stem}.wanted-{os.getpid()}")
    wanted.touch()
    try:
        while min(_living(path), key=_asked, default=wanted) != wanted:  # whose place may change meanwhile
            time.sleep(0.1)
        with filelock.FileLock(path).acquire(poll_interval=0.1):
            yield
    finally:
        wanted.unlink(missing_ok=True)


def asked_since(data_dir: str | Path, pid: int) -> float | None:
    """Since when, in Unix seconds, a process counts as asking for a device for long; None for one that does not."""
    since = min((_asked(file)[0] for file in _asking(data_dir, pid)), default=sys.maxsize)
    return None if since == sys.maxsize else since / 1e9


def ask_first(data_dir: str | Path, pid: int) -> bool:
    """Give a process that waits for a device the first place of those that do. False where it waits for none."""
    files = _asking(data_dir, pid)
    for file in files:
        earlier = min(map(_asked, _living(file.with_name(f"{file.name.partition('.')[0]}.lock"))))[0] - 1_000_000
        with contextlib.suppress(FileNotFoundError):  # it has the device by now, and is through with it
            os.utime(file, ns=(earlier, earlier))
    return bool(files)


def _asking(data_dir: str | Path, pid: int) -> list[Path]:
    return list((Path(data_dir) / "locks").glob(f"*.wanted-{pid}"))


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
        return bool(_living(self.path))


def _living(path: Path) -> list[Path]:
    """What living processes put there to ask for the device for long; what a dead one left is removed."""
    found = []
    for file in path.parent.glob(f"{path.stem}.wanted-*"):
        if psutil.pid_exists(int(file.name.rpartition("-")[2])):
            found.append(file)
        else:
            file.unlink(missing_ok=True)
    return found


def _asked(file: Path) -> tuple[int, str]:
    """When a process asked, for sorting; one that has let go meanwhile comes last."""
    try:
        return file.stat().st_mtime_ns, file.name
    except FileNotFoundError:
        return sys.maxsize, file.name

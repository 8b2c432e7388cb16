"""What a bug report needs: versions, workers, memory, disk and the last errors. No torch here: versions are read from what is installed."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

from core.provenance import own_commit
from core.smooth import rife_missing

from .components.words import about
from .db import free_bytes, size_words
from .services import Services

PACKAGES = ("torch", "diffusers", "transformers", "xformers", "peft", "accelerate", "gradio", "av", "numpy")
SHOWN_ERRORS = 20
TAIL_BYTES = 256 * 2**10
"""How far back a log is searched."""
_ENTRY = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ (?P<level>[A-Z]+) ", re.MULTILINE)

Section = tuple[str, list[tuple[str, str]]]


def sections(services: Services) -> list[Section]:
    """Titles with names and values, as they are now."""
    memory, me = psutil.virtual_memory(), psutil.Process()
    workers = []
    for number, status in enumerate(services.executor.statuses(), 1):
        parts = [str(status[name]) for name in ("state", "model", "device", "dtype", "error") if status[name]]
        if status["pid"] and (size := _memory_of(int(status["pid"]))):
            parts.append(f"{size_words(size)} of memory")
        workers.append((f"Worker {number}", ", ".join(parts)))
    workers.append(("Each uses", services.executor.compute.words))
    counts = services.queue.counts()
    return [
        ("Versions", [("Python", platform.python_version()), ("System", platform.platform()), *((name, version) for name in PACKAGES if (version := _version(name)))]),
        ("Workers", workers),
        (
            "Machine",
            [
                ("Processors", f"{psutil.cpu_count()} ({platform.machine()})"),
                *((f"GPU {number}", words) for number, words in enumerate(_gpus())),
                ("Memory", f"{size_words(memory.available)} free of {size_words(memory.total)}; the page uses {size_words(me.memory_info().rss)}"),
                ("Disk", f"{size_words(free_bytes(services.data_dir))} free at {services.data_dir}"),
            ],
        ),
        (
            "Studio",
            [
                ("Version", own_commit() or "not known: this is no git checkout"),
                ("Queue", ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "empty"),
                ("Videos", f"{services.library.count():,}, {size_words(_size_of(services.library.videos_dir))}"),
                ("Deleted videos", f"{size_words(_size_of(services.library.trash_dir))}, removed for good after a week"),
                ("Smooth playback", f"by ffmpeg. For RIFE: {missing}" if (missing := rife_missing(services.data_dir)) else "by RIFE 4.26"),
                ("Up for", about(max(0.0, time.time() - me.create_time()))),
            ],
        ),
    ]


def last_errors(logs: Path, count: int = SHOWN_ERRORS) -> list[str]:
    """The last warnings and errors of the log files, oldest first, each with its traceback."""
    found = []
    for path in sorted(logs.glob("*.log*")):  # what was rotated too
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
        starts = [*_ENTRY.finditer(text)]
        for entry, following in zip(starts, [*starts[1:], None]):
            if entry["level"] in ("WARNING", "ERROR", "CRITICAL"):
                found.append(text[entry.start() : following.start() if following else None].rstrip())
    return sorted(found)[-count:]


def as_text(parts: Sequence[Section], errors: Sequence[str]) -> str:
    """All of it for a bug report."""
    blocks = ["\n".join([title, *(f"  {name}: {value}" for name, value in rows)]) for title, rows in parts]
    return "\n".join([*blocks, "Last errors", *(errors or ["  none"])])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory_of(pid: int) -> int | None:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU, as its driver tells; the page's process leaves torch alone."""
    command = ["nvidia-smi", "--query-gpu=name,memory.used,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines() if line.count(",") == 3]
    return [f"{name}, {used} of {total} MiB of memory in use, driver {driver}" for name, used, total, driver in rows]

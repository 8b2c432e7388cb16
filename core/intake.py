"""Files from anyone: opened by PyAV, under the one format that their first bytes name, in a child process with limits. No torch here.

``python -m core.intake settings FILE`` and ``python -m core.intake picture FILE OUT.png`` are that process.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from .types import MAX_SIDE
from .video_io import VideoError, read_settings

MAX_PIXELS = 100_000_000
"""Of a picture, before it is decoded."""
MEMORY_BYTES, CPU_SECONDS, FILE_BYTES, WAIT_SECONDS = 2**30, 20, 64 * 2**20, 60
"""What the process may use beyond what its libraries take, compute, write, and how long it may last."""
FORMATS = ((b"\x89PNG\r\n\x1a\n", "png_pipe"), (b"\xff\xd8\xff", "jpeg_pipe"), (b"RIFF", "webp_pipe"))
"""ffmpeg's names of the pictures that are taken, by their first bytes. It must not guess: a text file may be a playlist of other files."""
ROOT = Path(__file__).resolve().parents[1]


def settings_of_upload(path: str | Path) -> dict[str, Any] | None:
    """``read_settings`` of a file from anyone. Raises VideoError."""
    return json.loads(_in_child("settings", path))


def copy_of_upload(path: str | Path, target: str | Path) -> None:
    """Write the picture ``path`` from anyone anew as the png ``target``, upright and no side longer than a clip's may be. Raises VideoError."""
    _in_child("picture", path, target)


def read_picture(path: str | Path) -> np.ndarray:
    """A png, jpeg or webp, [H, W, 3] in uint8, upright. Raises VideoError. In this process: for files of one's own."""
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(16)
    kind = next((name for magic, name in FORMATS if start.startswith(magic)), None)
    if kind is None:
        raise VideoError("it is no png, jpeg or webp")
    try:
        with av.open(os.fspath(path), format=kind) as container:
            stream = container.streams.video[0]
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                raise VideoError(f"it has {stream.codec_context.width}×{stream.codec_context.height} pixels; at most {MAX_PIXELS:,} are taken")
            frame = next(container.decode(stream), None)
            if frame is None:
                raise VideoError("it holds no picture")
            return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4))
    except (av.error.FFmpegError, MemoryError) as error:
        raise VideoError(f"it cannot be decoded: {error}") from None


def _in_child(what: str, path: str | Path, *more: str | Path) -> str:
    """What the child process says. Raises VideoError with its words, or for one that broke a limit."""
    command = [sys.executable, "-m", "core.intake", what, os.path.abspath(path), *map(os.path.abspath, more)]
    try:
        child = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise VideoError("reading it took too long") from None
    if child.returncode:
        raise VideoError((child.stderr.strip().splitlines() or ["?"])[-1] if child.returncode == 2 else "reading it took more memory or time than it may")
    return child.stdout


def _limit() -> None:
    """Keep this process from taking more than its share."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else 2**32
    for what, most in ((resource.RLIMIT_AS, used + MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_FSIZE, FILE_BYTES), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))


def main(what: str, path: str, *more: str) -> int:
    """Exit status 0, or 2 with one line that says what is wrong with the file."""
    _limit()
    try:
        if what == "settings":
            print(json.dumps(read_settings(path)))
        else:
            image = Image.fromarray(read_picture(path))
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
            image.save(more[0], format="PNG")
    except (VideoError, OSError, MemoryError) as error:
        print(str(error) or "it takes too much memory", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))

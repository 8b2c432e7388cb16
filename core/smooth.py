"""More frames a second for watching: motion interpolation after the fact. No torch here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .files import replacing
from .types import MADE_WITH
from .video_io import SETTINGS_KEY, VideoError, read_settings

SMOOTH_FPS = 24
POST_PROCESSING = "post_processing"
"""What tells of it under ``made_with``."""
RIFE_FILE = "interpolation/RIFE_IFNet_v426_heavy.pkl"
"""Where RIFE's weights lie in the data folder."""
RIFE_URL = "https://github.com/EutropicAI/ccvfi/releases/download/model_zoo/RIFE_IFNet_v426_heavy.pkl"


def rife_missing(data_dir: Path) -> str | None:
    """What RIFE lacks and how to get it; None where it can be used."""
    steps = [] if find_spec("ccvfi") else ["pip install --no-deps ccvfi tenacity"]
    steps += [] if (data_dir / RIFE_FILE).is_file() else [f"download {RIFE_URL} to {data_dir / RIFE_FILE}"]
    return "; then ".join(steps) or None


def interpolate(source: str | os.PathLike, path: str | os.PathLike, fps: int = SMOOTH_FPS, rife: Path | None = None) -> Path:
    """``source`` at ``fps`` frames a second as an mp4: by RIFE with the weights ``rife``, in a process of its own, else by ffmpeg's motion-compensated ``minterpolate`` (its binary comes with imageio-ffmpeg).

    The new frames are guesses between those that the model made; the file's settings say so under ``made_with``. Raises VideoError or WriteError.
    """
    source, path = Path(source).absolute(), Path(path).absolute()
    with replacing(path) as temporary:
        command = _by_ffmpeg(source, temporary, fps) if rife is None else [sys.executable, "-m", "core.rife", os.fspath(source), os.fspath(temporary), "--weights", os.fspath(rife), "--fps", str(fps)]
        run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        if run.returncode or not temporary.exists():
            raise VideoError(f"{source.name} cannot be interpolated: {(run.stderr.strip().splitlines() or ['no reason was given'])[-1]}")
    return path


def with_note(source: Path, note: str) -> dict[str, Any]:
    """The settings in ``source``, and that its frames were worked on after the model."""
    settings = read_settings(source) or {}
    return {**settings, MADE_WITH: {**(settings.get(MADE_WITH) or {}), POST_PROCESSING: note}}


def _by_ffmpeg(source: Path, path: Path, fps: int) -> list[str]:
    import imageio_ffmpeg

    comment = json.dumps(with_note(source, f"interpolated to {fps} frames a second by ffmpeg's minterpolate"))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-i", os.fspath(source), "-vf", f"minterpolate=fps={fps}:mi_mode=mci"]
    return [*command, "-c:v", "libx264", "-crf", "14", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-metadata", f"{SETTINGS_KEY}={comment}", os.fspath(path)]

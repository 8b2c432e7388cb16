"""More frames a second for watching: motion interpolation after the fact. No torch here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from .files import replacing
from .types import MADE_WITH
from .video_io import SETTINGS_KEY, VideoError, read_settings

SMOOTH_FPS = 24


def interpolate(source: str | os.PathLike, path: str | os.PathLike, fps: int = SMOOTH_FPS) -> Path:
    """``source`` at ``fps`` frames a second as an mp4, by ffmpeg's motion-compensated ``minterpolate`` (its binary comes with imageio-ffmpeg).

    The new frames are guesses between those that the model made; the file's settings say so under ``made_with``. Raises VideoError or WriteError.
    """
    import imageio_ffmpeg

    source, path = Path(source), Path(path)
    settings = read_settings(source) or {}
    note = {"post_processing": f"interpolated to {fps} frames a second by ffmpeg's minterpolate"}
    comment = json.dumps({**settings, MADE_WITH: {**(settings.get(MADE_WITH) or {}), **note}})
    with replacing(path) as temporary:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-i", os.fspath(source), "-vf", f"minterpolate=fps={fps}:mi_mode=mci"]
        command += ["-c:v", "libx264", "-crf", "14", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-metadata", f"{SETTINGS_KEY}={comment}", os.fspath(temporary)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode or not temporary.exists():
            raise VideoError(f"{source.name} cannot be interpolated: {(run.stderr.strip().splitlines() or ['ffmpeg gave no reason'])[-1]}")
    return path

"""Files that are made for a download: many videos in one zip, a gif, an mp4 without its settings. They lie in ``exports`` until the studio starts anew."""

from __future__ import annotations

import secrets
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from core.files import replacing
from core.smooth import POST_PROCESSING, RIFE_FILE, SMOOTH_FPS, interpolate, rife_missing
from core.types import MADE_WITH, RequestError
from core.video_io import copy_without_settings, read_settings, read_video, save_video

from .components.words import file_stem
from .db import require_space, size_words
from .library import Video
from .settings_words import title, value_words


def write_zip(videos: Sequence[Video], folder: Path, settings: bool = True) -> Path:
    """One file with all of ``videos`` under their prompts' names, with or without the ``settings`` in them. Raises RequestError, StorageError, VideoError or WriteError."""
    if not videos:
        raise RequestError("id", "None of these videos is there any more.")
    require_space(folder, sum(Path(video.path).stat().st_size for video in videos))
    path = folder / time.strftime(f"videos-%Y%m%d-%H%M%S-{secrets.token_hex(3)}.zip")
    taken: dict[str, int] = {}
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # an mp4 does not shrink
        for video in videos:
            stem = file_stem(video.request)
            taken[stem] = taken.get(stem, 0) + 1
            archive.write(video.path if settings else write_plain(video, folder), f"{stem}.mp4" if taken[stem] == 1 else f"{stem}-{taken[stem]}.mp4")
    return path


def write_gif(video: Video, folder: Path) -> Path:
    """``video`` as a gif with its settings. Raises VideoError or WriteError."""
    path = folder / f"{file_stem(video.request)}-{video.id[-6:]}.gif"
    return path if path.exists() else save_video(read_video(video.path), path, video.fps, video.request.to_dict())


def write_plain(video: Video, folder: Path) -> Path:
    """``video`` without the settings that its file carries; the pictures are the same bits. Raises VideoError or WriteError."""
    path = folder / f"{file_stem(video.request)}-{video.id[-6:]}-plain.mp4"
    return path if path.exists() else copy_without_settings(video.path, path)


def write_smooth(video: Video, folder: Path, data_dir: Path) -> tuple[str, str]:
    """``video`` with frames put in between for smooth playback, by RIFE where ``data_dir`` has it: the path, and what was done. Raises RequestError, VideoError or WriteError."""
    if video.fps >= SMOOTH_FPS:
        raise RequestError("fps", f"It plays at {video.fps:g} frames a second already, so no frames are put in between.")
    rife = None if rife_missing(data_dir) else data_dir / RIFE_FILE
    path = folder / f"{video.id}-{SMOOTH_FPS}fps{'-rife' if rife else ''}.mp4"
    if not path.exists():
        interpolate(video.path, path, rife=rife)
    return str(path), read_settings(path)[MADE_WITH][POST_PROCESSING]


def file_facts(video: Video) -> list[tuple[str, str]]:
    """What the file of ``video`` tells: its size, the whole request, and what made it."""
    path = Path(video.path)
    try:
        settings, size = read_settings(path) or {}, path.stat().st_size
    except (OSError, ValueError) as error:
        return [("File", f"{path.name} cannot be read: {error}")]
    made = settings.get(MADE_WITH) or {}
    request = [(title(name), value_words(name, value)) for name, value in video.request.to_dict().items() if value not in (None, "")]
    peak = [("Memory at its peak", size_words(video.peak_memory))] if video.peak_memory else []
    return [("File", f"{path.name}, {size_words(size)}"), *request, *peak, *((title(name), value_words(name, value)) for name, value in made.items())]

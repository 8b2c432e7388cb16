"""Writes Toy World as a folder of videos with MiraData's metadata, for training code that reads such folders."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from core.video_io import save_video

from .captions import captions
from .render import render
from .scene import ClipSpec, sample_spec

FPS = 6
COLUMNS = (
    "index", "clip_id", "video_id", "file_path", "seconds", "fps", "frames", "height", "width",
    "short_caption", "dense_caption", "main_object_caption", "background_caption", "style_caption", "camera_caption",
)  # fmt: skip


def clip(index: int, *, seed: int, num_frames: int = 24, height: int = 80, width: int = 128) -> tuple[ClipSpec, dict[str, str]]:
    """Clip ``index`` of the folder drawn from ``seed``, with its captions; it doesn't depend on the other clips."""
    rng = np.random.default_rng([seed, index])
    spec = sample_spec(rng, num_frames=num_frames, height=height, width=width)
    return spec, captions(spec, rng)


def write_folder(out: str | os.PathLike, clips: int, *, seed: int = 0, num_frames: int = 24, height: int = 80, width: int = 128, progress: Callable[[int, int], None] | None = None) -> int:
    """Write ``out/videos/000000.mp4`` ... and ``out/metadata.csv`` (one row a clip); returns how many videos were rendered.

    A second call goes on where the first one stopped. Every file is whole or not there, and metadata.csv comes last:
    it names only videos that exist. Videos that another seed or size wrote are an error, not mixed in.
    """
    out = Path(out)
    videos = out / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    settings = f"seed={seed} num_frames={num_frames} height={height} width={width}"
    note = out / "settings.txt"
    if note.exists() and note.read_text() != settings:
        raise ValueError(f"{out} holds clips of {note.read_text()}, not of {settings}; choose another folder.")
    note.write_text(settings)
    rendered, rows = 0, []
    for index in range(clips):
        spec, texts = clip(index, seed=seed, num_frames=num_frames, height=height, width=width)
        path = videos / f"{index:06d}.mp4"
        if not path.exists():
            save_video(render(spec), path, FPS)
            rendered += 1
        facts = dict(index=index, clip_id=index, video_id=f"toyworld-{seed}-{index}", file_path=f"videos/{path.name}", seconds=round(num_frames / FPS, 3), fps=FPS, frames=num_frames, height=height, width=width)
        rows.append(facts | texts)
        if progress is not None:
            progress(index + 1, clips)
    part = out / "metadata.csv.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, out / "metadata.csv")
    return rendered

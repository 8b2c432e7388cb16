"""What a clip starts from: a picture, the end of a video, or a whole video. No torch here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .intake import read_picture
from .types import GenerationRequest, RequestError
from .video_io import VideoError, as_rgb, decoded_frames, probe

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".gif", ".webm", ".mov", ".mkv")


def is_picture(path: str | Path) -> bool:
    """Whether the file's name says that it is a picture."""
    return Path(path).suffix.lower() in PICTURES


def default_start_frames(path: str | Path, num_frames: int) -> int:
    """How many frames of a clip of ``num_frames`` are kept from ``path`` where nothing is said: one of a picture, a quarter of a video."""
    return 1 if is_picture(path) else max(1, num_frames // 4)


def load_start(request: GenerationRequest) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] at the size and speed of ``request`` (resolved, with ``start_from``).

    With ``strength`` they are as many as the clip's, spread over the whole source; without it the last ``start_frames`` of it.
    A source of another shape is scaled to cover the frame and cut at its middle. Raises RequestError for a file that cannot be used.
    """
    path = Path(request.start_from)
    if not path.is_file():
        raise RequestError("start_from", f"There is no file {path} to start from. Choose the picture or the video again.")
    try:
        picture = read_picture(path) if is_picture(path) else None
        count, fps = (sum(1 for _ in decoded_frames(path)), float(probe(path)["fps"])) if picture is None else (1, float(request.output_fps))
        if not count:
            raise VideoError("it holds no frame")
    except (VideoError, OSError, ValueError) as error:
        raise RequestError("start_from", f"{path.name} cannot be read as a picture or a video ({error}).") from None
    order = _order(request, count, fps)
    if picture is not None:
        return np.stack([_fit(picture, request)] * len(order))
    wanted = set(order)
    found = {index: _fit(as_rgb(frame), request) for index, frame in enumerate(decoded_frames(path)) if index in wanted}  # a film may be longer than memory
    return np.stack([found[index] for index in order])


def _order(request: GenerationRequest, count: int, fps: float) -> list[int]:
    """Which of the ``count`` frames of the source, at ``fps``, the clip starts from. Raises RequestError where there are too few."""
    last = count - 1
    if request.strength is not None:
        return np.linspace(0, last, request.num_frames).round().astype(int).tolist()
    back = np.arange(request.start_frames)[::-1] * fps / request.output_fps
    if request.start_frames > 1 and back[0] > last + 0.5:
        most = int(last * request.output_fps / fps) + 1
        raise RequestError("start_frames", f"start_frames is {request.start_frames}, but {Path(request.start_from).name} has only {most} at {request.output_fps} frames a second. Use at most {most}.")
    return np.clip((last - back).round().astype(int), 0, last).tolist()


def _fit(frame: np.ndarray, request: GenerationRequest) -> np.ndarray:
    """``frame`` scaled to cover the request's size, its middle cut out."""
    size = (request.width, request.height)
    if frame.shape[1::-1] == size:
        return frame
    return np.asarray(ImageOps.fit(Image.fromarray(frame), size, Image.Resampling.LANCZOS))

"""Videos under one clock: how much they differ in every frame, and one file that shows them beside each other."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.files import WriteError, replacing
from core.types import RequestError
from core.video_io import VideoError, read_video, save_video

from .db import StorageError, require_space
from .downloads import write_smooth
from .library import Video
from .settings_words import labels

log = logging.getLogger(__name__)

MOST = 4
"""Videos that are compared at once."""
LETTERS = "ABCD"
ROOT = Path(__file__).resolve().parents[1]
PARTED = 0.01
"""Mean difference of a frame, of 1, above which two videos have parted; what the mp4's compression makes of equal frames is far below."""
SMALL = (64, 40)
"""Width and height at which frames are compared."""
MEASURES = "measures-2"
"""Names what was measured in the cache; another number when the metrics change."""
MAX_BYTES = 2**30
"""Of decoded frames in memory at once."""
PANE_WIDTH = 384
"""Pixels that a pane of the file has at least, so that its label can be read."""
LABEL_HEIGHT, MARGIN, TEXT_SIZE = 32, 8, 16
INK, PAPER = (235, 235, 239), (17, 17, 19)


@dataclass(frozen=True)
class Timeline:
    """The clock that compared videos share: the fastest one's, for as long as the longest one lasts."""

    fps: float
    num_frames: int

    @classmethod
    def of(cls, videos: Sequence[Video]) -> Timeline:
        fps = max(video.fps for video in videos)
        return cls(fps, max(1, round(max(video.num_frames / video.fps for video in videos) * fps)))

    def frames(self, video: Video) -> np.ndarray:
        """Which frame of ``video`` is shown at each tick, [num_frames]; a shorter one holds its last. assets/compare.js does the same."""
        return np.minimum(np.floor(np.arange(self.num_frames) * video.fps / self.fps + 1e-6).astype(int), video.num_frames - 1)


@dataclass(frozen=True)
class Work:
    """What is made in the background: ``result`` when it is done, ``error`` in words when it cannot be made."""

    share: float = 0.0
    result: Any = None
    error: str | None = None

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


def differences(videos: Sequence[Video]) -> list[list[float]]:
    """Mean absolute difference of 0 to 1 between the first video and each other one, at every tick of their Timeline.

    Raises RequestError for videos that take too much memory, VideoError for one that cannot be read.
    """
    timeline = Timeline.of(videos)
    _require_memory(max(_bytes(video) for video in videos))
    shrunk = [_shrink(read_video(video.path))[timeline.frames(video)] for video in videos]  # each T h w 3
    return [[round(float(value), 4) for value in np.abs(other - shrunk[0]).mean(axis=(1, 2, 3)) / 255] for other in shrunk[1:]]


def measures(videos: Sequence[Video], tick: Callable[[], object] = lambda: None) -> list[dict[str, float | int | None]]:
    """``core.metrics.measure`` of each video; of those after the first also ``psnr`` and ``ssim`` to it, where they are of one length and size. ``tick`` is called all the while, and ends it by raising.

    Raises RequestError for videos that take too much memory, VideoError for one that cannot be read.
    """
    from core.metrics import compare, measure

    _require_memory(2 * max(_bytes(video) for video in videos))
    first, found = None, []
    for video in videos:
        frames = read_video(video.path)
        first = frames if first is None else first
        found.append(measure(frames, tick) | (compare(frames, first) if frames is not first and frames.shape == first.shape else {}))
    return [figures | told for figures, told in zip(found, clip_measures(videos, tick))]


def clip_measures(videos: Sequence[Video], tick: Callable[[], object] = lambda: None) -> list[dict[str, float | None]]:
    """What CLIP_METRICS are of each video, by a process of its own, as torch is not for this one; nothing where CLIP's weights are not there, or fail (the log says why)."""
    from core.learned_metrics import CLIP_METRICS, clip_files

    nothing: list[dict[str, float | None]] = [{} for _ in videos]
    if not clip_files():
        return nothing
    command = [sys.executable, "-m", "core.metrics", "--json", "--clip-only", *(video.path for video in videos)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, text=True)
        try:
            while process.poll() is None:
                tick()
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        out.seek(0), errors.seek(0)
        if process.returncode:
            log.warning("CLIP could not look at the videos: %s", errors.read()[-2000:])
            return nothing
        return [{name: row.get(name) for name in CLIP_METRICS if not isinstance(row.get(name), str)} for row in json.load(out)]  # words, where open_clip knows none of the weights


def measured_facts(work: Work) -> list[tuple[str, str]]:
    """What was measured on one video, as rows of words."""
    if not work.done:
        return [("Measured", "in a moment …")]
    if work.error:
        return [("Measured", work.error)]
    return [(measure_title(name), measure_words(value)) for name, value in work.result[0].items()]


def measure_title(name: str) -> str:
    """What the page calls a metric, with its unit."""
    from core.learned_metrics import CLIP_METRICS
    from core.metrics import METRICS

    if name not in METRICS:
        return {"psnr": "PSNR to A, dB", "ssim": "SSIM to A", **CLIP_METRICS}[name]
    metric = METRICS[name]
    return f"{metric.label}, {metric.unit}" if metric.unit else metric.label


def measure_words(value: float | int | None) -> str:
    """A figure in a cell."""
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def parting(series: Sequence[Sequence[float]]) -> int | None:
    """The first tick at which any of the videos differs from the first one; None when they never do."""
    return next((tick for tick, values in enumerate(zip(*series)) if max(values) > PARTED), None)


def write_side_by_side(videos: Sequence[Video], path: Path, progress: Callable[[float], None]) -> Path:
    """An mp4 of all videos on one Timeline, with what differs below each; the settings of all of them are embedded.

    Raises RequestError for videos that take too much memory, VideoError or OSError for a file that cannot be read or written.
    """
    timeline, count = Timeline.of(videos), len(videos)
    columns = 2 if count == MOST else count
    rows = math.ceil(count / columns)
    widest, highest = max(video.width for video in videos), max(video.height for video in videos)
    scale = max(1, math.ceil(PANE_WIDTH / widest))
    pane = (widest * scale, highest * scale)
    size = (columns * pane[0] + (columns + 1) * MARGIN, rows * (pane[1] + LABEL_HEIGHT) + MARGIN)
    size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    _require_memory(timeline.num_frames * size[0] * size[1] * 3 + sum(_bytes(video) for video in videos))
    require_space(path.parent, timeline.num_frames * size[0] * size[1])
    texts = [f"{letter}   {label.replace(' · ', ', ')}" for letter, label in zip(LETTERS, labels([video.request for video in videos]))]
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    corners = [(MARGIN + index % columns * (pane[0] + MARGIN), MARGIN + index // columns * (pane[1] + LABEL_HEIGHT)) for index in range(count)]
    for (x, y), text in zip(corners, texts, strict=True):
        draw.text((x, y + pane[1] + LABEL_HEIGHT / 2 - MARGIN / 2), _fit(text, font, pane[0]), INK, font, anchor="lm")
    frames = [read_video(video.path) for video in videos]
    shown = [timeline.frames(video) for video in videos]
    pictures = np.empty((timeline.num_frames, size[1], size[0], 3), np.uint8)
    for tick in range(timeline.num_frames):
        for (x, y), clip, order in zip(corners, frames, shown, strict=True):
            picture = Image.fromarray(clip[order[tick]])
            fit = min(pane[0] / picture.width, pane[1] / picture.height)
            picture = picture.resize((round(picture.width * fit), round(picture.height * fit)), Image.Resampling.BICUBIC)
            sheet.paste(picture, (x + (pane[0] - picture.width) // 2, y + (pane[1] - picture.height) // 2))
        pictures[tick] = sheet
        progress((tick + 1) / timeline.num_frames)
    settings = {"comparison": [{"label": text, "id": video.id, **video.request.to_dict()} for text, video in zip(texts, videos)]}
    return save_video(pictures, path, timeline.fps, settings)


class Comparisons:
    """Differences and files of compared videos, made by one thread. ``version()`` changes whenever there is more to show.

    Differences are kept in ``cache/differences`` of the data folder, files in ``exports`` until the studio starts anew.
    """

    def __init__(self, data_dir: Path):
        self._data_dir = data_dir
        self.exports_dir = data_dir / "exports"
        self._cache = data_dir / "cache" / "differences"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compare")
        self._lock = threading.Lock()
        self._works: dict[str, Work] = {}
        self._version = 0
        self._closing = False
        self.exports_dir.mkdir(parents=True, exist_ok=True)

    def version(self) -> int:
        return self._version

    def differences(self, videos: Sequence[Video]) -> Work:
        """``result`` is that of ``differences``; the first call for these videos starts the work."""
        name = _name(videos)
        return self._started(f"differences {name}", lambda progress: self._cached(self._cache / f"{name}.json", lambda: differences(videos)))

    def measures(self, videos: Sequence[Video]) -> Work:
        """``result`` is that of ``measures``; the first call for these videos starts the work."""
        name = _name(videos)
        return self._started(f"measures {name}", lambda progress: self._cached(self._cache / measures_file(videos), lambda: measures(videos, lambda: progress(0.0))))

    def measured_each(self, videos: Sequence[Video]) -> list[dict[str, float | int | None] | str | None]:
        """What was measured on each video by itself, in words why it cannot be, or None while it is not done; one is begun at a time, so that Compare need not wait for all."""
        found: list[dict[str, float | int | None] | str | None] = []
        working = False
        for video in videos:
            known = f"measures {_name([video])}" in self._works or (self._cache / measures_file([video])).exists()
            work = self.measures([video]) if known or not working else Work()
            working = working or not work.done
            found.append(work.result[0] if work.result else work.error)
        return found

    def export(self, videos: Sequence[Video]) -> None:
        """Start making the labelled file of these videos, unless it is there."""
        name = _name(videos)
        self.forget_failures()
        self._started(f"export {name}", lambda progress: write_side_by_side(videos, self.exports_dir / f"{name}.mp4", progress))

    def exported(self, videos: Sequence[Video]) -> Work | None:
        """How the file of these videos stands, ``result`` being its path; None when it was not asked for."""
        return self._works.get(f"export {_name(videos)}")

    def smoothed(self, video: Video) -> Work:
        """``result`` is the path of the video with frames put in between, and by what; the first call for it starts the work."""
        return self._started(f"smooth {video.id}", lambda progress: write_smooth(video, self.exports_dir, self._data_dir))

    def forget_failures(self) -> None:
        """Let what failed be tried again when it is next asked for."""
        with self._lock:
            failed = [name for name, work in self._works.items() if work.error]
            for name in failed:
                del self._works[name]
            self._version += bool(failed)

    def close(self) -> None:
        """Start nothing more, and give up the file that is being made."""
        self._closing = True
        self._pool.shutdown(cancel_futures=True)

    def _started(self, name: str, make: Callable[[Callable[[float], None]], Any]) -> Work:
        with self._lock:
            if name not in self._works:
                self._works[name] = Work()
                self._version += 1
                self._pool.submit(self._run, name, make)
            return self._works[name]

    def _run(self, name: str, make: Callable[[Callable[[float], None]], Any]) -> None:
        def progress(share: float) -> None:
            if self._closing:
                raise StorageError("The studio was stopped.")
            if share - self._works[name].share >= 0.1:
                self._set(name, replace(self._works[name], share=share))

        try:
            work = Work(1.0, make(progress))
        except (RequestError, StorageError, VideoError, OSError) as error:
            log.warning("%s: %s", name, error)
            work = Work(error=str(error))
        except Exception:
            log.exception("%s failed", name)
            work = Work(error="It failed for a reason that was not foreseen; logs/studio.log in the data folder has it.")
        self._set(name, work)

    def _set(self, name: str, work: Work) -> None:
        with self._lock:
            self._works[name] = work
            self._version += 1

    def _cached(self, path: Path, make: Callable[[], Any]) -> Any:
        if path.exists():
            return json.loads(path.read_text("utf-8"))
        found = make()
        try:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(found), "utf-8")
        except WriteError as error:
            log.warning("what was measured is not kept: %s", error)
        return found


def _name(videos: Sequence[Video]) -> str:
    """A file name for these videos in this order; a video's file never changes."""
    return hashlib.sha256("\n".join(video.id for video in videos).encode()).hexdigest()[:24]


def measures_file(videos: Sequence[Video]) -> str:
    """Where in the cache the measures of these videos are: elsewhere once CLIP is there, or another one."""
    from core.learned_metrics import clip_files

    weights = "\n".join(map(str, clip_files()))
    return f"{_name(videos)}-{MEASURES}{f'-clip-{hashlib.sha256(weights.encode()).hexdigest()[:8]}' if weights else ''}.json"


def _shrink(frames: np.ndarray) -> np.ndarray:
    """``frames [T, H, W, 3]`` at SMALL, as signed numbers."""
    return np.stack([np.asarray(Image.fromarray(frame).resize(SMALL, Image.Resampling.BOX), np.int16) for frame in frames])


def _bytes(video: Video) -> int:
    return video.width * video.height * video.num_frames * 3


def _require_memory(needed: int) -> None:
    if needed > MAX_BYTES:
        raise RequestError("videos", f"These videos take {needed / 2**30:.1f} GiB of memory when decoded; at most {MAX_BYTES / 2**30:.0f} GiB are taken. Choose smaller or fewer ones.")


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """``text``, or as much of its start as ``width`` pixels hold."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."

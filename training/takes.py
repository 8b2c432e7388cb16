"""What training sees of a clip: which frames, how far apart, and how large. No torch here."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.types import SIZE_MULTIPLE, RequestError, VideoShape
from core.video_io import save_video

from .config import ConfigError, Stage, TrainConfig
from .dataset import Reject
from .doctor import Report, Usable
from .video import DECODING, UnusableVideo, read_frames

log = logging.getLogger(__name__)

HASHED_WHOLE = 64 * 2**20
HASHED_END = 2**16
"""Bytes; see ``content_digests``."""


@dataclass(frozen=True)
class Take:
    """The frames that training sees of a clip: where they begin, how far apart they are, and how large."""

    path: Path
    captions: tuple[str, ...]
    start: float
    """Seconds into the file."""
    stride: int
    """Distance of two frames, in frames of the file."""
    num_frames: int
    width: int
    height: int
    file_fps: float
    still: bool = False
    """A picture, or the one frame of a clip too short for every stage: any stage may have it."""

    @property
    def fps(self) -> float:
        """Frames a second of what training sees: the model's condition."""
        return self.file_fps / self.stride

    @property
    def times(self) -> list[float]:
        """When each frame is shown, in seconds into the file."""
        return [self.start + i / self.fps for i in range(self.num_frames)]

    def frames(self) -> np.ndarray:
        """uint8 [T, H, W, 3]. Raises UnusableVideo."""
        return read_frames(self.path, self.times, self.width, self.height)

    def key(self, model_hash: str) -> str:
        """Names the latents of this take: of this file as it is now, this crop, this way of decoding, this VAE. Raises UnusableVideo for a file that is gone."""
        try:
            status = self.path.stat()
        except OSError:
            raise UnusableVideo("is not there any more") from None
        words = (str(self.path.resolve()), status.st_size, status.st_mtime_ns, f"{self.start:.4f}", self.stride, self.num_frames, self.width, self.height, DECODING, model_hash)
        return hashlib.sha256(repr(words).encode()).hexdigest()[:32]


def parse_sizes(sizes: Sequence[str]) -> list[tuple[int, int]]:
    """``["128x80"]`` as widths and heights. Raises ConfigError for one that the model cannot take."""
    found = []
    for text in sizes:
        width, _, height = str(text).lower().partition("x")
        try:
            found.append((int(width), int(height)))
            VideoShape(1, int(height), int(width))
        except (ValueError, RequestError) as error:
            why = f" {error}" if isinstance(error, RequestError) else f" Write WIDTHxHEIGHT in multiples of {SIZE_MULTIPLE}, such as 128x80."
            raise ConfigError(f"sizes holds {text!r}.{why}") from None
    if not found:
        raise ConfigError("sizes is empty; name at least one, such as 128x80.")
    return found


def take_of(item: Usable, lengths: Sequence[int], sizes: Sequence[tuple[int, int]], frame_stride: int, rng: np.random.Generator) -> Take:
    """A stretch of a clip, drawn: the longest of ``lengths`` that it can fill, at any stride up to ``frame_stride``, in the size of the nearest shape."""
    num_frames = max((n for n in lengths if n <= item.num_frames), default=1)
    widest = (item.num_frames - 1) // max(1, num_frames - 1) if num_frames > 1 else 1
    stride = int(rng.integers(1, min(frame_stride, widest) + 1))
    room = item.num_frames - 1 - (num_frames - 1) * stride
    shape = item.facts.width / item.facts.height
    width, height = min(sizes, key=lambda size: abs(np.log(size[0] / size[1] / shape)))
    start = item.clip.start + int(rng.integers(0, room + 1)) / item.facts.fps
    return Take(item.clip.path, item.clip.captions, start, stride, num_frames, width, height, item.facts.fps)


def lengths_of(item: Usable, config: TrainConfig) -> list[int]:
    """How long a clip's takes are: for each stage the longest of its lengths that the clip can fill; 1 for a picture."""
    longest = {max((n for n in stage.num_frames if n <= item.num_frames), default=0) for stage in config.stages} if item.facts.num_frames > 1 else {0}
    return sorted(longest - {0}, reverse=True) or [1]


def takes_of(report: Report, config: TrainConfig) -> list[Take]:
    """All takes of a dataset: ``takes_per_clip`` of each clip and length, drawn from the run's seed and the clip alone."""
    sizes = parse_sizes(config.sizes)
    takes = []
    for item in report.clips[: config.clips or None]:
        seed = int.from_bytes(hashlib.sha256(f"{item.clip.path.name} {item.clip.start:.3f}".encode()).digest()[:8])
        count = config.takes_per_clip if item.facts.num_frames > 1 else 1
        lengths = lengths_of(item, config)
        drawn = (take_of(item, [n], sizes, config.frame_stride, np.random.default_rng([config.seed, seed, k])) for n in lengths for k in range(count))
        takes += [replace(take, still=lengths == [1]) for take in drawn]
    return takes


def of_stage(takes: Sequence[Take], indices: Sequence[int], stage: Stage) -> list[int]:
    """Those of ``indices`` whose takes are for a stage: of its lengths, and still ones. Raises ConfigError where there is none."""
    found = [i for i in indices if takes[i].num_frames in stage.num_frames or takes[i].still]
    if not found:
        longest = max((takes[i].num_frames for i in indices), default=0)
        raise ConfigError(f"No clip that is trained on has {' or '.join(map(str, stage.num_frames))} frames; the longest is taken with {longest}. Bring longer clips, or leave that length out.")
    return found


def divided(takes: Sequence[Take], config: TrainConfig) -> tuple[list[int], list[int]]:
    """As ``split_held_out``; raises ConfigError for a stage of the curriculum that none of the others is for, now rather than when it begins."""
    held_out, trained = split_held_out(takes, config.validation_clips)
    for stage in config.stages:
        if (stage.height, stage.width) != (Stage.height, Stage.width):
            raise ConfigError(f"A stage of the curriculum has the size {stage.width}x{stage.height}, which is for target=vae alone. Leave its height and width out; sizes says what videos are brought to.")
        of_stage(takes, trained, stage)
    return held_out, trained


def split_held_out(takes: Sequence[Take], validation_clips: int) -> tuple[list[int], list[int]]:
    """Indices of the takes that training never sees, at most a quarter, and of the others: decided by the files' names alone.

    All takes of a file are on the same side. Where no file has so few of them, one is held out whose takes are at most a quarter.
    """
    files: dict[Path, list[int]] = {}
    for i, take in enumerate(takes):
        files.setdefault(take.path, []).append(i)
    order = sorted(files.values(), key=lambda of_file: hashlib.sha256(takes[of_file[0]].path.name.encode()).digest())
    quarter, held = len(takes) // 4, []
    for of_file in order:
        if len(held) + len(of_file) <= min(validation_clips, quarter):
            held += of_file
    if validation_clips and not held:
        held = next((of_file for of_file in order if len(of_file) <= quarter), [])
    return sorted(held), sorted(set(range(len(takes))) - set(held))


def dataset_hash(takes: Sequence[Take]) -> str:
    """Twelve digits of what is trained on: of each take in its order, the file's content, the stretch, the size and the captions. A copy of a dataset, wherever and whenever made, has the same."""
    contents, digest = content_digests({take.path for take in takes}), hashlib.sha256()
    for take in takes:
        words = (contents[take.path], f"{take.start:.4f}", take.stride, take.num_frames, take.width, take.height, take.captions)
        digest.update(f"{words!r}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:12]


def content_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """A SHA-256 of each file: of all of it where they have at most HASHED_WHOLE bytes together, else of its size and its first and last HASHED_END bytes. One that is gone counts as empty."""
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in paths}
    most = None if sum(sizes.values()) <= HASHED_WHOLE else HASHED_END
    return {path: _digest(path, size, most) for path, size in sizes.items()}


def _digest(path: Path, size: int, most: int | None) -> str:
    digest = hashlib.sha256(b"" if most is None else f"{size}\n".encode())
    with contextlib.suppress(OSError), path.open("rb") as file:
        digest.update(file.read(size if most is None else most))
        if most is not None:
            file.seek(max(0, size - most))
            digest.update(file.read(most))
    return digest.hexdigest()


def frames_or_reject(take: Take, rejects: list[Reject]) -> np.ndarray | None:
    """The frames of a take; None for a file that broke meanwhile, which is then among ``rejects``, once."""
    try:
        return take.frames()
    except UnusableVideo as error:
        reject = Reject(take.path.name, str(error))
        if reject not in rejects:
            log.warning("not used: %s %s", reject.name, reject.reason)
            rejects.append(reject)
        return None


def unusable(config: TrainConfig, rejects: Sequence[Reject]) -> ConfigError:
    """What is said of a dataset of which nothing is left."""
    reasons = "; ".join(f"{reject.name} {reject.reason}" for reject in rejects[:3])
    return ConfigError(f"{config.dataset} holds no clip that can be trained on: {reasons}. `python -m training.dataset check {config.dataset}` tells all.")


def write_preview(report: Report, config: TrainConfig, folder: Path, count: int) -> list[dict[str, Any]]:
    """Write the first ``count`` takes that training sees as ``folder/000.mp4`` ...; of each its file, frames, size, fps and captions."""
    shown = []
    for number, take in enumerate(takes_of(report, replace(config, takes_per_clip=1))[:count]):
        file = folder / f"{number:03}.mp4"
        try:
            save_video(take.frames(), file, max(1, round(take.fps)))
        except UnusableVideo as error:
            report.rejects.append(Reject(take.path.name, str(error)))
            continue
        facts = {"name": take.path.name, "num_frames": take.num_frames, "width": take.width, "height": take.height, "fps": round(take.fps, 2), "stride": take.stride}
        shown.append({"file": str(file), **facts, "captions": list(take.captions)})
    return shown

"""Latents of anyone's captioned videos, computed once: each take of a clip is a file named by what it was made of."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.files import replacing
from core.types import SIZE_MULTIPLE, RequestError, VideoShape

from .config import ConfigError, Stage, TrainConfig
from .dataset import Reject
from .doctor import Report, Usable, examine
from .video import UnusableVideo, read_frames

log = logging.getLogger(__name__)


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
        """Names the latents of this take: of this file as it is now, this crop, this VAE."""
        status = self.path.stat()
        words = (str(self.path.resolve()), status.st_size, status.st_mtime_ns, f"{self.start:.4f}", self.stride, self.num_frames, self.width, self.height, model_hash)
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


def takes_of(report: Report, config: TrainConfig) -> list[Take]:
    """All takes of a dataset: ``takes_per_clip`` of each clip, drawn from the run's seed and the clip alone."""
    lengths, sizes = config.lengths, parse_sizes(config.sizes)
    takes = []
    for item in report.clips:
        seed = int.from_bytes(hashlib.sha256(f"{item.clip.path.name} {item.clip.start:.3f}".encode()).digest()[:8])
        count = config.takes_per_clip if item.facts.num_frames > 1 else 1
        takes += [take_of(item, lengths, sizes, config.frame_stride, np.random.default_rng([config.seed, seed, k])) for k in range(count)]
    return takes


class VideoLatents:
    """The takes of a dataset with their latents on disk, made now where they are missing.

    Args:
        encode: Frames uint8 [T, H, W, 3] to latents [C, T, h, w], called only for takes whose file is not there.
        progress: Called with how many takes are ready, and of how many.

    A file that breaks while it is read is counted among ``rejects`` and stops nothing. Raises ConfigError when no clip can be used.
    """

    fps: float | None = None
    """Each take has its own."""

    def __init__(self, config: TrainConfig, folder: Path, model_hash: str, encode: Callable[[np.ndarray], torch.Tensor], progress: Callable[[int, int], None] | None = None):
        self.report = examine(config.dataset, config.dataset_root or None, min((n for n in config.lengths if n > 1), default=1), config.frame_stride, look=False)
        self.rejects: list[Reject] = list(self.report.rejects)
        self.takes: list[Take] = []
        self.files: list[Path] = []
        takes = takes_of(self.report, config)[: config.clips or None]
        for number, take in enumerate(takes, 1):
            file = folder / take.key(model_hash)[:2] / f"{take.key(model_hash)}.safetensors"
            try:
                if not _whole(file):
                    latents = encode(take.frames()).to("cpu", torch.bfloat16).contiguous()
                    with replacing(file) as work:
                        save_file({"latents": latents}, work)
                self.takes.append(take)
                self.files.append(file)
            except UnusableVideo as error:
                self.rejects.append(Reject(take.path.name, str(error)))
            if progress is not None:
                progress(number, len(takes))
        for reject in self.rejects:
            log.warning("not used: %s %s", reject.name, reject.reason)
        if not self.takes:
            reasons = "; ".join(f"{reject.name} {reject.reason}" for reject in self.rejects[:3])
            raise ConfigError(f"{config.dataset} holds no clip that can be trained on: {reasons}. `python -m training.dataset check {config.dataset}` tells all.")
        held = min(config.validation_clips, len(self.takes) // 4)
        order = sorted(range(len(self.takes)), key=lambda i: hashlib.sha256(self.takes[i].path.name.encode()).digest())
        self.held_out, self.trained = sorted(order[:held]), sorted(order[held:])
        self.latents(0)
        self.channels = self.latents(0).shape[0]

    def __len__(self) -> int:
        return len(self.takes)

    @property
    def captions(self) -> list[str]:
        """All different captions."""
        return list(dict.fromkeys(caption for take in self.takes for caption in take.captions))

    @property
    def hash(self) -> str:
        """Twelve digits of what is trained on: files, crops and captions."""
        words = [(file.stem, take.captions) for file, take in zip(self.files, self.takes)]
        return hashlib.sha256(repr(words).encode()).hexdigest()[:12]

    def facts(self) -> dict[str, Any]:
        """What the run's folder keeps of the dataset."""
        shapes = sorted({(take.width, take.height, take.num_frames) for take in self.takes})
        return {
            "hash": self.hash, "takes": len(self.takes), "held_out": len(self.held_out), "captions": len(self.captions),
            "shapes": [f"{w}x{h}, {n} frames" for w, h, n in shapes], "rejected": [asdict(reject) for reject in self.rejects],
        }  # fmt: skip

    def latents(self, index: int) -> torch.Tensor:
        """[C, T, h, w] fp32."""
        with safe_open(self.files[index], "pt") as file:
            return file.get_tensor("latents").float()

    def batch(self, stage: Stage, rng: np.random.Generator) -> dict[str, Any]:
        """``latents`` [B, C, T, h, w], ``texts`` and ``fps`` [B] of clips of one shape; shapes are drawn by how many clips they have."""
        allowed = [i for i in self.trained if self.takes[i].num_frames in (*stage.num_frames, 1)]
        if not allowed:
            raise ConfigError(f"No clip has {' or '.join(map(str, stage.num_frames))} frames.")
        first = self.takes[allowed[int(rng.integers(len(allowed)))]]
        alike = [i for i in allowed if (t := self.takes[i]).num_frames == first.num_frames and (t.width, t.height) == (first.width, first.height)]
        return self._together([alike[i] for i in rng.integers(0, len(alike), stage.clips(first.num_frames))], rng)

    def held_out_batches(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The clips that training never sees, one by one."""
        return [self._together([i], rng) for i in self.held_out]

    def _together(self, chosen: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
        takes = [self.takes[i] for i in chosen]
        texts = [take.captions[int(rng.integers(len(take.captions)))] for take in takes]
        return {"latents": torch.stack([self.latents(i) for i in chosen]), "masks": None, "texts": texts, "fps": torch.tensor([round(take.fps, 2) for take in takes])}


def _whole(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as shard:
            return "latents" in shard.keys()
    except (OSError, SafetensorError):
        return False

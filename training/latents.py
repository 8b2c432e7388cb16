"""Latents of anyone's captioned videos, computed once: each take of a clip is a file named by what it was made of."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from core.files import replacing

from .config import Stage, TrainConfig
from .dataset import Reject
from .doctor import examine_for
from .takes import Take, dataset_hash, divided, frames_or_reject, lengths_of, of_stage, take_of, takes_of, unusable
from .video import UnusableVideo

log = logging.getLogger(__name__)

KEPT_IN = torch.bfloat16
"""The number format of latents."""
LEFT_SECONDS = 3600.0
"""After which a half-written file of a cache is what a killed process left: one is written in far less."""


class VideoLatents:
    """The takes of a dataset with their latents on disk, made now where they are missing.

    Args:
        encode: Frames uint8 [T, H, W, 3] to latents [C, T, h, w], called only for takes whose file is not there.
        progress: Called with how many clips were looked at, and of how many; then with how many takes are ready.

    A file that breaks while it is read is counted among ``rejects`` and stops nothing. Raises ConfigError when no clip can be used.
    """

    fps: float | None = None
    """Each take has its own."""

    def __init__(self, config: TrainConfig, folder: Path, model_hash: str, encode: Callable[[np.ndarray], torch.Tensor], progress: Callable[[int, int], None] | None = None):
        self.report = examine_for(config, progress)
        self.rejects: list[Reject] = list(self.report.rejects)
        self.takes: list[Take] = []
        self.files: list[Path] = []
        remove_leftovers(folder)
        takes = takes_of(self.report, config)
        for number, take in enumerate(takes, 1):
            try:
                key = take.key(model_hash)
                file = folder / key[:2] / f"{key}.safetensors"
                if not _whole(file):
                    latents = encode(take.frames()).to("cpu", KEPT_IN).contiguous()
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
            raise unusable(config, self.rejects)
        self.held_out, self.trained = divided(self.takes, config)
        self.channels = self.latents(0).shape[0]

    def __len__(self) -> int:
        return len(self.takes)

    @property
    def captions(self) -> list[str]:
        """All different captions."""
        return list(dict.fromkeys(caption for take in self.takes for caption in take.captions))

    @cached_property
    def hash(self) -> str:
        """Twelve digits of what is trained on: the files' contents, the takes and their captions."""
        return dataset_hash(self.takes)

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
        """``latents`` [B, C, T, h, w] (or ``frames`` to make them of), ``texts`` and ``fps`` [B] of clips of one shape; shapes are drawn by how many clips they have."""
        allowed, by_shape = self._allowed(stage)
        shape = self._shape(allowed[int(rng.integers(len(allowed)))])
        alike = by_shape[shape]
        return self._together([alike[i] for i in rng.integers(0, len(alike), stage.clips(shape[0]))], rng)

    def _allowed(self, stage: Stage) -> tuple[list[int], dict[tuple[int, int, int], list[int]]]:
        """The takes for a stage, and the same by their shapes: there may be a hundred thousand, so they are gone through once."""
        lengths = tuple(stage.num_frames)
        if lengths not in self._stages:
            allowed, by_shape = of_stage(self.takes, self.trained, stage), {}
            for i in allowed:
                by_shape.setdefault(self._shape(i), []).append(i)
            self._stages[lengths] = allowed, by_shape
        return self._stages[lengths]

    @cached_property
    def _stages(self) -> dict[tuple[int, ...], tuple[list[int], dict[tuple[int, int, int], list[int]]]]:
        """What ``_allowed`` has found, by the lengths of a stage."""
        return {}

    def _shape(self, index: int) -> tuple[int, int, int]:
        take = self.takes[index]
        return take.num_frames, take.width, take.height

    def held_out_batches(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The clips that training never sees, one by one."""
        return [self._together([i], rng) for i in self.held_out]

    def _together(self, chosen: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
        return _batch([self.takes[i] for i in chosen], rng, latents=torch.stack([self.latents(i) for i in chosen]))


class FreshTakes(VideoLatents):
    """The same clips without a cache: whenever one is drawn, another stretch of it at another stride, as ``frames`` for the VAE. Those that are held out stay as they are.

    A file that breaks meanwhile is counted among ``rejects``, and another clip of its shape stands in for it. Raises ConfigError when no clip can be used.
    """

    def __init__(self, config: TrainConfig, channels: int, progress: Callable[[int, int], None] | None = None):
        self.config, self.channels = config, channels
        self.report = examine_for(config, progress)
        self.rejects = list(self.report.rejects)
        self.takes = takes_of(self.report, replace(config, takes_per_clip=1))
        self.items = [item for item in self.report.clips[: config.clips or None] for _ in lengths_of(item, config)]  # of each take its clip
        for reject in self.rejects:
            log.warning("not used: %s %s", reject.name, reject.reason)
        if not self.takes:
            raise unusable(config, self.rejects)
        self.held_out, self.trained = divided(self.takes, config)

    def held_out_clips(self) -> Iterator[tuple[int, Take, np.ndarray]]:
        """The clips that training never sees: number, take, and frames uint8 [T, H, W, 3]."""
        for number, index in enumerate(self.held_out):
            if (frames := frames_or_reject(self.takes[index], self.rejects)) is not None:
                yield number, self.takes[index], frames

    def held_out_batches(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """The same as batches of one."""
        return [_batch([take], rng, frames=frames[None]) for _, take, frames in self.held_out_clips()]

    def _together(self, chosen: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
        own = rng.spawn(1)[0]  # captions are then drawn as with a cache
        drawn = [self._drawn(i, own) for i in chosen]
        return _batch([take for take, _ in drawn], rng, frames=np.stack([frames for _, frames in drawn]))

    def _drawn(self, index: int, rng: np.random.Generator) -> tuple[Take, np.ndarray]:
        """A take of the clip, or of another one of its shape where that is broken, and its frames uint8 [T, H, W, 3]."""
        num_frames, width, height = shape = self._shape(index)

        def candidates() -> Iterator[int]:
            yield index
            yield from rng.permutation([i for i in self.trained if self._shape(i) == shape]).tolist()

        for i in candidates():
            take = take_of(self.items[i], [num_frames], [(width, height)], self.config.frame_stride, rng)
            if (frames := frames_or_reject(take, self.rejects)) is not None:
                return take, frames
        raise unusable(self.config, self.rejects)


def _batch(takes: Sequence[Take], rng: np.random.Generator, **clips: Any) -> dict[str, Any]:
    """Clips with one of the captions and the fps of each."""
    texts = [take.captions[int(rng.integers(len(take.captions)))] for take in takes]
    return {**clips, "masks": None, "texts": texts, "fps": torch.tensor([round(take.fps, 2) for take in takes]), "frame_indices": None}


def remove_leftovers(folder: Path) -> None:
    """Remove from a cache, with the folders in it, what processes were writing when they were killed; not what another run is just writing."""
    for file in folder.rglob(".*.tmp.safetensors"):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < time.time() - LEFT_SECONDS:
                file.unlink()


def _whole(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as shard:
            return "latents" in shard.keys()
    except (OSError, SafetensorError):
        return False

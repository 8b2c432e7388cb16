"""Latents of clips, computed once: training reads them from memory-mapped shards and never runs the VAE."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.files import replacing

from .config import Stage
from .takes import content_digests
from .toyworld import captions, render, sample_spec
from .toyworld.scene import MOTIONS, MOVING_CAMERAS, NO_CAMERA_MOTIONS

log = logging.getLogger(__name__)

SHARD_CLIPS = 250
CAPTIONS_PER_CLIP = 4
TOYWORLD_FPS = 6
LATENT_PIXELS = 8
SIZE = (128, 80)
"""Width and height of a clip that is asked for without them."""
MOVED = 12
"""Of 255: less is shading and rounding."""


def precompute_toyworld(model: str, out: str, clips: int, num_frames: int, seed: int = 0, device: str = "auto", motions: Mapping[str, float] | None = None, moving_cameras: float = MOVING_CAMERAS, camera: str | None = None, sizes: Sequence[tuple[int, int]] = (SIZE,)) -> None:
    """Render Toy World clips, encode them with ``model``'s VAE and write shards of bf16 latents under ``out``.

    Shard k holds 250 clips of one of ``sizes`` (width, height), one after the other, and depends on (seed, k), ``motions`` and cameras alone,
    which its name tells; shards that are there are kept, so a killed run goes on. ``num_frames`` is the length of each clip; training thins it to shorter ones. ``motions`` says how often each motion
    comes, 1 where it says nothing; ``moving_cameras`` in what share of the clips whose motion allows it the camera moves; or ``camera`` what it
    does in all clips, whose motions are then those that allow it. Masks tell where a clip shows an object or moves. An encoder in closed form (``training.principal``) is read out and applied as one matrix product. Raises ValueError
    where no motion is left.
    """
    from core.device import choose_device
    from core.temporal_vae import TemporalVAE

    from .principal import encoder_of

    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    device = choose_device(device)
    vae = TemporalVAE.from_pretrained(Path(model) / "vae", dtype=torch.float32).to(device).eval()
    encode = encoder_of(vae)
    shares = np.array([0.0 if camera and motion in NO_CAMERA_MOTIONS else (motions or {}).get(motion, 1.0) for motion in MOTIONS])
    if not shares.any():
        raise ValueError("All motions have a share of 0; leave one.")
    told = f"-{zlib.crc32(np.array([*shares, moving_cameras]).tobytes()):08x}" if motions or camera or moving_cameras != MOVING_CAMERAS else ""
    if camera:
        told += f"-{camera.replace(' ', '-')}"
    index = {"model": str(model), "num_frames": num_frames, "fps": TOYWORLD_FPS, "seed": seed, "channels": vae.config.latent_channels, "motions": dict(zip(MOTIONS, shares)), "moving_cameras": moving_cameras, "camera": camera}
    with replacing(target / "dataset.json") as file:
        file.write_text(json.dumps(index))
    tidy(target)
    for shard in range((clips + SHARD_CLIPS - 1) // SHARD_CLIPS):
        width, height = sizes[shard % len(sizes)]
        size = "" if (width, height) == SIZE else f"-{width}x{height}"
        path = target / f"{num_frames:03d}f{size}-seed{seed}{told}-{shard:05d}.safetensors"
        if path.exists():
            continue
        began, rng = time.time(), np.random.default_rng([seed, shard])
        latents, masks, texts = [], [], []
        for _ in range(SHARD_CLIPS):
            motion = str(rng.choice(MOTIONS, p=shares / shares.sum())) if motions or camera else None
            spec = sample_spec(rng, num_frames=num_frames, height=height, width=width, motion=motion, camera=camera, moving_cameras=moving_cameras)
            clip = render(spec)
            masks.append(object_mask(clip) | moving_mask(clip))
            latents.append(encode(clip).to("cpu", torch.bfloat16))
            dense = [captions(spec, rng)["dense_caption"] for _ in range(CAPTIONS_PER_CLIP - 1)]
            texts.append([captions(spec, rng)["short_caption"], *dense])
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"latents": torch.stack(latents), "masks": torch.stack(masks)}, partial, metadata={"captions": json.dumps(texts)})
        os.replace(partial, path)
        log.info("%s: %.1f clips a second", path.name, SHARD_CLIPS / (time.time() - began))


def tidy(folder: Path) -> None:
    """Remove what processes that were killed had half written; another one may be at work in the same folder."""
    for partial in folder.glob("*.tmp"):
        owner = "".join(partial.suffixes[-2:-1]).removeprefix(".")
        if not owner.isdigit() or not psutil.pid_exists(int(owner)):
            partial.unlink(missing_ok=True)


def object_mask(clip: np.ndarray) -> torch.Tensor:
    """Which latents [T, h, w] of a clip uint8 [T, H, W, 3] touch an object: Toy World's objects are saturated, all else is not."""
    red, green, blue = (clip[..., i] for i in range(3))  # channel by channel: several times as fast as over an axis of three
    return _touched(np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue) > 90)


def moving_mask(clip: np.ndarray) -> torch.Tensor:
    """Which latents [T, h, w] of a clip uint8 [T, H, W, 3] touch something that is elsewhere in other frames: what differs from the clip's median."""
    some = np.sort(clip[::2], axis=0)
    usual = some[len(some) // 2]
    moved = np.maximum(clip, usual) - np.minimum(clip, usual) > MOVED
    return _touched(moved[..., 0] | moved[..., 1] | moved[..., 2])


def _touched(pixels: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(torch.from_numpy(pixels)[:, None].float(), LATENT_PIXELS)[:, 0].bool()


def one_of_each_part(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """A number of each of ``count`` equal parts of 0 .. ``total`` - 1, in order."""
    edges = np.linspace(0, total, count + 1).round().astype(int)
    return [int(rng.integers(low, high)) for low, high in zip(edges, edges[1:])]


class LatentDataset:
    """The shards of a folder, memory-mapped."""

    def __init__(self, folder: str | Path, limit: int = 0):
        self.folder = Path(folder)
        if not (self.folder / "dataset.json").exists():
            raise FileNotFoundError(f"{self.folder} holds no latents (no dataset.json). Make them with `python -m training precompute --out {self.folder}`.")
        self.index = json.loads((self.folder / "dataset.json").read_text())
        self.fps, self.channels = self.index["fps"], self.index["channels"]
        self.latents: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []
        self.captions: list[list[str]] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, "pt") as shard:
                self.latents += list(shard.get_tensor("latents"))
                self.masks += list(shard.get_tensor("masks"))
                self.captions += json.loads(shard.metadata()["captions"])
        if limit:
            self.latents, self.masks, self.captions = self.latents[:limit], self.masks[:limit], self.captions[:limit]
        if not self.latents:
            raise FileNotFoundError(f"{self.folder} holds no shards yet.")
        self.lengths = np.array([x.shape[1] for x in self.latents])
        self.places = np.array([x.shape[2] * x.shape[3] for x in self.latents])  # which tells their sizes apart

    def __len__(self) -> int:
        return len(self.latents)

    @cached_property
    def hash(self) -> str:
        """Twelve digits of what is trained on: the shards' contents, and how many clips of them."""
        contents = [len(self), *content_digests(sorted(self.folder.glob("*.safetensors"))).values()]
        return hashlib.sha256(repr(contents).encode()).hexdigest()[:12]

    def facts(self) -> dict[str, Any]:
        """What the run's folder keeps of the dataset."""
        return {"hash": self.hash, "takes": len(self), "held_out": 0, **self.index}

    def draw(self, count: int, num_frames: int, rng: np.random.Generator, keep_frame_indices: bool = False) -> tuple[torch.Tensor, torch.Tensor, list[str], torch.Tensor | None]:
        """``count`` clips of ``num_frames`` [B, C, T, h, w] fp32, the masks of their objects and of what moves [B, 1, T, h, w], for each one of its captions (half of them the short one), and ``frame_indices``.

        All have one size, drawn as often as there are clips of it; of larger ones there are as many fewer as keep the number of latents.
        A longer clip is thinned evenly, from its first frame to its last, which Toy World defines as the same clip; one frame is any of its frames.
        With ``keep_frame_indices`` they are one of each of ``num_frames`` equal parts, the same of all clips, and ``frame_indices`` [T] says which; None otherwise.
        """
        enough = np.flatnonzero(self.lengths >= num_frames)
        if not len(enough):
            raise ValueError(f"No clip in {self.folder} has {num_frames} frames; the longest has {self.lengths.max()}.")
        if self.places.min() != self.places.max():
            places = self.places[rng.choice(enough)]
            enough, count = enough[self.places[enough] == places], max(1, round(count * self.places.min() / places))
        chosen = enough[rng.integers(0, len(enough), count)]
        clips, masks, texts = [], [], []
        kept = one_of_each_part(int(self.lengths[chosen].min()), num_frames, rng) if keep_frame_indices and num_frames > 1 else None
        for i in chosen:
            total = int(self.lengths[i])
            if kept is not None:
                frames = kept
            else:
                frames = [int(rng.integers(total))] if num_frames == 1 else np.linspace(0, total - 1, num_frames).round().astype(int).tolist()
            clips.append(self.latents[i][:, frames])
            masks.append(self.masks[i][frames])
            texts.append(self.captions[i][0 if rng.random() < 0.5 else int(rng.integers(1, CAPTIONS_PER_CLIP))])
        return torch.stack(clips).float(), torch.stack(masks)[:, None].float(), texts, None if kept is None else torch.tensor(kept)

    def batch(self, stage: Stage, rng: np.random.Generator) -> dict[str, Any]:
        """``latents`` [B, C, T, h, w] fp32, masks of the objects and of what moves [B, 1, T, h, w], ``texts``, ``fps`` [B] and ``frame_indices`` [T] or None."""
        num_frames = int(rng.choice(stage.num_frames))
        latents, masks, texts, frame_indices = self.draw(stage.clips(num_frames), num_frames, rng, stage.keep_frame_indices)
        return {"latents": latents, "masks": masks, "texts": texts, "fps": torch.full((len(texts),), self.fps), "frame_indices": frame_indices}

    def held_out_batches(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        """None: Toy World renders what it is judged by."""
        return []

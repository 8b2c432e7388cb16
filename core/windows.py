"""Clips longer than a model was trained for: it sees ``window_frames`` of them at once, and memory is bounded by that.

What a prompt says is told over a whole clip. So the noisier steps see the clip whole but thinned out: as many keyframes, evenly spread, in one
window; between them the guess of the clean latents is interpolated over time (the coarse of NUWA-XL, arXiv:2303.12346, and the global path of
GLC-Diffusion, arXiv:2501.05484, in one denoising). Once the guess shows where things are, overlapping windows of neighbouring frames work it out,
and where they overlap their predictions are averaged (MultiDiffusion, arXiv:2302.08113, eq. 3, over time as in Gen-L-Video, arXiv:2305.18264).
Windows alone, with noise shuffled between them (FreeNoise, arXiv:2310.15169), keep colours and places, but each of them tells the whole story.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .schedulers import MiraScheduler

PLANNED_BELOW = 0.5
"""Share of the signal (alpha_t) up to which the keyframes decide."""


def predict_in_windows(predict: Callable[[Tensor], Tensor], schedule: MiraScheduler, x_t: Tensor, timestep: int, window_frames: int) -> Tensor:
    """``predict(x_t)`` for ``x_t [B, C, T, h, w]`` at ``timestep``, which is given at most ``window_frames`` frames at once; all of them where there are no more."""
    num_frames = x_t.shape[2]
    if num_frames <= window_frames:
        return predict(x_t)
    if schedule.alpha[timestep] < PLANNED_BELOW:
        at = torch.full((len(x_t),), timestep)
        keys = _keyframes_on(x_t.device, num_frames, window_frames)
        x0 = schedule.to_x0(predict(x_t[:, :, keys]), x_t[:, :, keys], at)
        return schedule.from_x0(between(x0, *_places_on(x_t.device, num_frames, window_frames)), x_t, at)
    return merged(predict, x_t, window_frames, window_frames // 2)


def decode_in_windows(decode: Callable[[Tensor], Tensor], latents: Tensor, window_frames: int) -> Tensor:
    """``decode(latents)`` of ``latents [B, C, T, h, w]``, which is given at most ``window_frames`` frames at once, each window faded into the next over a quarter of it.

    The decoder normalises over all frames that it is given, so this is not quite what it makes of the whole; a window is what it was trained on.
    """
    if latents.shape[2] <= window_frames:
        return decode(latents)
    return merged(decode, latents, window_frames, window_frames // 4)


def merged(work: Callable[[Tensor], Tensor], clip: Tensor, window_frames: int, overlap: int) -> Tensor:
    """``work`` of each window of ``clip [B, C, T, h, w]``, averaged where they overlap, in fp32."""
    total = None
    for start, weights in _windows_on(clip.device, clip.shape[2], window_frames, overlap):
        part = slice(start, start + window_frames)
        done = work(clip[:, :, part]).float()
        if total is None:
            total = done.new_zeros(*done.shape[:2], clip.shape[2], *done.shape[3:])
        total[:, :, part] += weights[:, None, None] * done
    return total


def keyframes(num_frames: int, window_frames: int) -> list[int]:
    """``window_frames`` frames evenly spread from the first to the last."""
    return torch.linspace(0, num_frames - 1, window_frames, dtype=torch.float64).round().int().tolist()


def places(keys: list[int], num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each frame ``[T]``: which of ``keys`` are to its left and right, and how far it is on the way between them, 0 to 1."""
    at = torch.tensor(keys)
    frames = torch.arange(num_frames)
    right = torch.searchsorted(at, frames).clamp(1, len(keys) - 1)
    return right - 1, right, (frames - at[right - 1]) / (at[right] - at[right - 1])


def between(x0: Tensor, left: Tensor, right: Tensor, share: Tensor) -> Tensor:
    """Frames ``[B, C, T, h, w]`` on the straight lines between those of ``x0 [B, C, K, h, w]``, at their ``places``."""
    return torch.lerp(x0[:, :, left], x0[:, :, right], share.to(x0.dtype)[:, None, None])


def windows(num_frames: int, window_frames: int, overlap: int) -> list[tuple[int, Tensor]]:
    """The first frame of each window and the weights ``[window_frames]`` of its frames, which add up to one at every frame of the clip.

    Neighbours overlap by ``overlap`` frames, the last two perhaps by more; windows count less towards their ends.
    """
    last = num_frames - window_frames
    starts = [*range(0, last, window_frames - overlap), last]
    ramp = torch.minimum(torch.arange(1, window_frames + 1), torch.arange(window_frames, 0, -1)).double()
    total = torch.zeros(num_frames, dtype=torch.float64)
    for start in starts:
        total[start : start + window_frames] += ramp
    return [(start, ramp / total[start : start + window_frames]) for start in starts]


# What depends on a clip's length alone lies on its device from its first step on: a copy from main memory would have every step wait.


@lru_cache(maxsize=8)
def _keyframes_on(device: torch.device, num_frames: int, window_frames: int) -> Tensor:
    return torch.tensor(keyframes(num_frames, window_frames), device=device)


@lru_cache(maxsize=8)
def _places_on(device: torch.device, num_frames: int, window_frames: int) -> tuple[Tensor, ...]:
    return tuple(place.to(device) for place in places(keyframes(num_frames, window_frames), num_frames))


@lru_cache(maxsize=8)
def _windows_on(device: torch.device, num_frames: int, window_frames: int, overlap: int) -> list[tuple[int, Tensor]]:
    return [(start, weights.float().to(device)) for start, weights in windows(num_frames, window_frames, overlap)]

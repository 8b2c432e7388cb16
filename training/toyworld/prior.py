"""What a model takes for likely before it has seen anything: where paths of a clip are decided first.

From nothing but noise the best prediction is the mean of all clips that a caption allows, and it steers the first steps of a sampler. A model that
saw little of such noise in training has it wrong, and then draws other paths than the words say, however well it knows clips with less noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .captions import captions
from .evaluate import FPS
from .render import render
from .scene import MOTIONS, ClipSpec

NOISE_STEP = 0.985
"""Of the schedule: nothing of a clip is left."""
CLIP = {"size": "big", "color": "red", "shape": "ball", "background": "the sea"}
"""What moves, and where: the same for all motions."""


@dataclass(frozen=True)
class Prior:
    """A model's mean clip of one motion against the true one, in what changes over time (latents less their mean over the frames)."""

    likeness: float
    """Cosine, -1 to 1, higher is better; 0 where nothing changes in truth."""
    size: float
    """Root mean square of the model's over that of the true one; infinite where nothing changes in truth."""
    error: float
    """Mean squared difference of the whole clips."""


def compare_means(predicted: Tensor, true: Tensor) -> Prior:
    """Of mean latents [C, T, h, w]."""
    ours, theirs = (clip - clip.mean(1, keepdim=True) for clip in (predicted, true))
    error = float((predicted - true).square().mean())
    if not theirs.norm() > 1e-3 * true.norm():
        return Prior(0.0, float("inf"), error)
    return Prior(float((ours * theirs).sum() / (ours.norm() * theirs.norm()).clamp(min=1e-9)), float(ours.norm() / theirs.norm()), error)


@torch.no_grad()
def priors(model: str, *, clips: int = 120, noises: int = 6, num_frames: int = 24, motions: tuple[str, ...] = tuple(m for m in MOTIONS if m != "hits")) -> dict[str, Prior]:
    """What ``model`` makes of ``noises`` clips of noise for each of ``motions``, against the mean of ``clips`` rendered ones of the same caption."""
    from core.checkpoints import load_pipeline

    from ..principal import encoder_of

    pipe, found = load_pipeline(model, dtype="fp32"), {}
    encode, device, step = encoder_of(pipe.vae), pipe.transformer.device, round(NOISE_STEP * pipe.scheduler.config.num_train_timesteps)
    for motion in motions:
        specs = [ClipSpec(motion=motion, num_frames=num_frames, seed=seed, **CLIP) for seed in range(clips)]
        total = 0.0
        for spec in specs:
            total = total + encode(render(spec))
        text = pipe.encode_prompt([captions(specs[0], np.random.default_rng(0))["short_caption"]])
        predicted = 0.0
        for seed in range(noises):
            noise = torch.randn(1, *total.shape, generator=torch.Generator().manual_seed(seed)).to(device)
            answer = pipe.transformer(noise, step, text.to(device), FPS).sample
            predicted = predicted + pipe.scheduler.to_x0(answer, noise, torch.full((1,), step))[0]
        found[motion] = compare_means(predicted / noises, total / clips)
    return found

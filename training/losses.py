"""The diffusion loss."""

from __future__ import annotations

from typing import Callable

import torch

from core.schedulers import MiraScheduler


UNIFORM_SHARE = 0.3
"""Share of timesteps drawn uniformly, so that none is ever left out."""


def draw_timesteps(count: int, steps: int, logit_mean: float | None, logit_std: float, generator: torch.Generator) -> torch.Tensor:
    """``count`` noise steps [B], stratified: one in each of ``count`` equal parts of the distribution.

    Uniform for ``logit_mean=None``; else seven of ten are logit-normal (Esser et al. 2024, arXiv:2403.03206, section 3.1), which spends the
    compute where a model can still learn something from a step.
    """
    u = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    if logit_mean is not None:
        normal = torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))
        uniform = torch.rand(count, generator=generator)
        u = torch.where(torch.rand(count, generator=generator) < UNIFORM_SHARE, uniform, torch.sigmoid(logit_mean + logit_std * normal))
    return (u * steps).long().clamp(max=steps - 1)


def draw_training_noise(shape: tuple[int, ...], generator: torch.Generator, offset: float = 0.0) -> torch.Tensor:
    """Unit noise of the latents' ``shape`` [B, C, T, h, w], on the CPU; ``offset`` adds that share of noise that a whole frame has in common."""
    noise = torch.randn(shape, generator=generator)
    return noise + offset * torch.randn((*shape[:3], 1, 1), generator=generator) if offset else noise


def diffusion_loss(
    transformer: Callable,
    scheduler: MiraScheduler,
    latents: torch.Tensor,
    prompt_embeds: torch.Tensor,
    fps: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    enable_temporal_attention: bool = True,
    weights: torch.Tensor | None = None,
    snr_gamma: float = 0.0,
    frame_indices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean squared error of the predicted noise (or v), as in DDPM (Ho et al. 2020, eq. 14) on Mira's rescaled schedule.

    ``latents`` and ``noise`` [B, C, T, h, w], ``prompt_embeds`` [B, L, D], ``fps`` and ``timesteps`` [B]; ``weights`` [B, 1, T, h, w] of mean
    one weigh the places of a clip. ``frame_indices`` [T] are those of the frames in a longer clip. ``snr_gamma`` weighs noise steps as in Min-SNR
    (Hang et al. 2023, arXiv:2303.09556, eq. 12). Returns the loss and its mean over the clean and the noisy half of the schedule.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.target(latents, noise, timesteps)
    predicted = transformer(noisy, timesteps, prompt_embeds, fps, enable_temporal_attention=enable_temporal_attention, frame_indices=frame_indices).sample

    squares = (predicted.float() - target).square()
    errors = (squares if weights is None else squares * weights).mean(dim=(1, 2, 3, 4))  # B
    with torch.no_grad():
        late = timesteps >= scheduler.config.num_train_timesteps // 2
        figures = {name: float(errors[mask].mean()) for name, mask in (("clean", ~late), ("noisy", late)) if mask.any()}
    return (errors * min_snr_weights(scheduler, timesteps, snr_gamma) if snr_gamma else errors).mean(), figures


def min_snr_weights(scheduler: MiraScheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR, gamma) of the noise steps [B], as a weight of the error in what the model predicts: over SNR for noise, over SNR + 1 for v."""
    alpha = scheduler.alpha.to(timesteps.device)[timesteps].clamp(1e-6, 1 - 1e-6)
    snr = alpha.square() / (1 - alpha.square())
    return snr.clamp(max=gamma) / (snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr)

"""The diffusion loss."""

from __future__ import annotations

from typing import Callable

import torch

from core.schedulers import MiraScheduler


def diffusion_loss(
    transformer: Callable,
    scheduler: MiraScheduler,
    latents: torch.Tensor,
    prompt_embeds: torch.Tensor,
    fps: torch.Tensor,
    generator: torch.Generator,
    enable_temporal_attention: bool = True,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean squared error of the predicted noise (or v), as in DDPM (Ho et al. 2020, eq. 14) on Mira's rescaled schedule.

    ``latents`` [B, C, T, h, w] scaled, ``prompt_embeds`` [B, L, D], ``fps`` [B]. Noise steps are stratified over the batch: one
    in each of B equal parts of the schedule, which has the same expectation as drawing them freely and less variance.
    Returns the loss and its mean over the clean and the noisy half of the schedule.
    """
    B, steps = len(latents), scheduler.config.num_train_timesteps
    strata = (torch.randperm(B, generator=generator) + torch.rand(B, generator=generator)) / B
    timesteps = (strata * steps).long().clamp(max=steps - 1)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps, noise = timesteps.to(latents.device), noise.to(latents.device)

    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.target(latents, noise, timesteps)
    predicted = transformer(noisy, timesteps, prompt_embeds, fps, enable_temporal_attention=enable_temporal_attention).sample

    errors = (predicted.float() - target).square().mean(dim=(1, 2, 3, 4))  # B
    with torch.no_grad():
        late = timesteps >= steps // 2
        figures = {name: float(errors[mask].mean()) for name, mask in (("clean", ~late), ("noisy", late)) if mask.any()}
    return errors.mean(), figures

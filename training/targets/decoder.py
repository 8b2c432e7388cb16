"""Train a model's VAE decoder on anyone's videos. Latents stay as they are, so transformers and LoRAs made for them go on working."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from core.learned_metrics import LPIPS_MISSING, installed_lpips
from core.temporal_vae import TemporalVAE
from core.vae import decode_latents, encode_video
from core.video_io import save_video, to_uint8

from ..config import TrainConfig
from ..ema import using
from ..latents import FreshTakes
from ..processes import Processes
from ..trainer import step_rng
from .transformer import mean_figures, model_folder
from .vae import use_exact_temporal_convolutions

log = logging.getLogger(__name__)

FLICKER_WEIGHT = 0.5
"""Weight of the difference between how neighbouring frames change and how they should: Mira names reconstruction artifacts as a limitation."""
LPIPS_WEIGHT = 0.1
SAMPLED = 8
"""Held-out clips that are shown at each checkpoint."""
SAMPLES_MEASURED = ("flicker", "sharpness")
"""Of ``core.metrics``, on what the decoder makes of them."""


class DecoderTask:
    """L1 on pixels, L1 on changes from frame to frame, and LPIPS (Zhang et al. 2018, arXiv:1801.03924) where the package lpips and its weights are on this machine."""

    casts_weights = False

    def __init__(self, config: TrainConfig, device: torch.device, progress: Callable[[int, int], None] | None = None, processes: Processes | None = None):
        self.config, self.device = config, device
        self.processes = processes or Processes(str(device))
        self.model = self._model()
        self.dataset = FreshTakes(config, self.model.config.latent_channels, progress)
        self.perceptual = _lpips(device)
        self.network: torch.nn.Module = Decoder(self.model)
        self.units = [self.model.decoder]

    def _model(self) -> TemporalVAE:
        """The VAE that the run starts from; its decoder is trained."""
        model = TemporalVAE.from_pretrained(model_folder(self.config) / "vae").to(self.device).float().train()
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
        if self.device.type == "cpu":
            use_exact_temporal_convolutions(model)
        if self.config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        return model

    def batch(self, index: int) -> dict[str, Any]:
        """``frames`` uint8 [B, T, H, W, 3] of takes of one shape: this process's share."""
        stage = self.config.stage_at(index // self.config.gradient_accumulation_steps)
        return {"frames": self.processes.share(self.dataset.batch(stage, step_rng(self.config.seed, index))["frames"])}

    def loss(self, batch: dict[str, Any], index: int) -> tuple[torch.Tensor, dict[str, float]]:
        return self._loss(self.network, batch)

    def _loss(self, decoder: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
        pixels = torch.from_numpy(batch["frames"]).to(self.device).float().div(127.5).sub(1)
        B, T = pixels.shape[:2]
        images = rearrange(pixels, "B T H W C -> (B T) C H W")
        with torch.no_grad():
            latents = self.model.encode(images).latent_dist.mode()
        decoded = decoder(latents, T).float()
        distance = (decoded - images).abs().mean()
        error = rearrange(decoded - images, "(B T) C H W -> B T C H W", B=B)
        flicker = error.diff(dim=1).abs().mean() if T > 1 else distance.new_zeros(())
        loss = distance + FLICKER_WEIGHT * flicker
        figures = {"l1": float(distance.detach()), "flicker": float(flicker.detach()), "psnr": float(-10 * torch.log10(error.detach().square().mean() / 4))}
        if self.perceptual is not None:
            perceived = self.perceptual(decoded, images).mean()
            loss, figures["lpips"] = loss + LPIPS_WEIGHT * perceived, float(perceived.detach())
        return loss, figures

    @torch.no_grad()
    def validate(self, weights: dict[str, torch.Tensor]) -> float | None:
        """Mean loss of the held-out clips; None where no clip is held out."""
        model = self._model() if self.processes.sharded else self.model
        with using(model, weights):
            losses = [float(self._loss(Decoder(model), {"frames": frames[None]})[0]) for _, _, frames in self.dataset.held_out_clips()]
        return float(np.mean(losses)) if losses else None

    @torch.no_grad()
    def sample(self, weights: dict[str, torch.Tensor], folder: Path) -> dict[str, float]:
        """The first SAMPLED held-out clips, each with what becomes of it on its right, decoded as everyone's videos are: ``folder/00.mp4`` and so on.

        Returns the mean of what each of SAMPLES_MEASURED is on the right, where it can be measured at all.
        """
        clips = []
        model = self._model() if self.processes.sharded else self.model
        with using(model, weights):
            for number, take, frames in itertools.islice(self.dataset.held_out_clips(), SAMPLED):
                pixels = rearrange(torch.from_numpy(frames), "T H W C -> 1 C T H W").to(self.device).float().div(127.5).sub(1)
                decoded = decode_latents(model, encode_video(model, pixels))[0].add(1).div(2).clamp(0, 1)
                clips.append(to_uint8(rearrange(decoded, "C T H W -> T H W C").cpu().numpy()))
                save_video(np.concatenate([frames, clips[-1]], axis=2), folder / f"{number:02}.mp4", max(1, round(take.fps)))
        return mean_figures(clips, SAMPLES_MEASURED)

    @torch.no_grad()
    def save(self, folder: Path, weights: dict[str, torch.Tensor], step: int) -> None:
        """``folder/vae``: the whole VAE."""
        vae = TemporalVAE.from_config(self.model.config)
        vae.load_state_dict({name: p.cpu() for name, p in weights.items()})
        vae.save_pretrained(folder / "vae")


class Decoder(torch.nn.Module):
    """A VAE as a module whose forward decodes latents [(B T), C, h, w]."""

    def __init__(self, vae: TemporalVAE):
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor, num_frames: int) -> torch.Tensor:
        return self.vae.decode(latents, num_frames=num_frames).sample


def _lpips(device: torch.device) -> torch.nn.Module | None:
    """LPIPS where the package and its weights are there; it is not asked to download any."""
    model = installed_lpips()
    if model is None:
        log.info("the loss goes without LPIPS; %s", LPIPS_MISSING)
        return None
    return model.to(device).requires_grad_(False)

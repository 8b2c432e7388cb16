"""Train the transformer on precomputed latents, with Mira's loss on Mira's schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.schedulers import MiraScheduler
from core.transformer import MiraTransformer3DModel

from ..config import TrainConfig
from ..losses import diffusion_loss
from ..precompute import LatentDataset
from ..trainer import step_generator, step_rng


class TransformerTask:
    """Noise, target, forward, MSE; captions from a frozen text encoder."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.dataset = LatentDataset(config.dataset, limit=config.clips)
        part = Path(config.model) / "transformer"
        if part.is_dir():
            self.model = MiraTransformer3DModel.from_pretrained(part)
        else:
            self.model = MiraTransformer3DModel(**config.architecture)
        self.model.to(device).float().train()
        if self.model.config.in_channels != self.dataset.channels:
            raise ValueError(f"The transformer takes {self.model.config.in_channels} latent channels, the latents in {config.dataset} have {self.dataset.channels}.")
        self.scheduler = MiraScheduler(**config.scheduler)
        self.encode = self.dataset.text_encoder(config.model, device)
        self.forward = torch.compile(self.model, dynamic=False) if config.compile else self.model

    def batch(self, step: int) -> dict[str, Any]:
        """``latents`` [B, C, T, h, w] fp32 and ``prompt_embeds`` [B, L, D]."""
        rng, stage = step_rng(self.config.seed, step), self.config.stage_at(step)
        num_frames = int(rng.choice(stage.num_frames))
        latents, texts = self.dataset.draw(stage.train_batch_size, num_frames, rng)
        texts = ["" if rng.random() < self.config.caption_dropout else text for text in texts]
        return {"latents": latents, "prompt_embeds": self.encode(texts)}

    def loss(self, batch: dict[str, Any], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        stage = self.config.stage_at(step)
        generator = step_generator(self.config.seed, step)
        loss, by_time = diffusion_loss(
            self.forward,
            self.scheduler,
            batch["latents"].to(self.device),
            batch["prompt_embeds"].to(self.device),
            fps=torch.full((len(batch["latents"]),), self.dataset.fps, device=self.device),
            generator=generator,
            enable_temporal_attention=stage.enable_temporal_attention,
        )
        return loss, {f"{name}_{batch['latents'].shape[2]}f": value for name, value in by_time.items()}

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """``folder/transformer`` and ``folder/scheduler``."""
        with torch.device("meta"):
            model = MiraTransformer3DModel.from_config(self.model.config)
        model.load_state_dict(weights, assign=True)
        model.save_pretrained(folder / "transformer")
        self.scheduler.save_pretrained(folder / "scheduler")

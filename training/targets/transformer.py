"""Train the transformer on precomputed latents, with Mira's loss on Mira's schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.device import choose_dtype
from core.schedulers import MiraScheduler
from core.transformer import MiraTransformer3DModel

from ..config import TrainConfig
from ..losses import diffusion_loss, draw_timesteps
from ..precompute import LatentDataset
from ..trainer import step_generator, step_rng


OBJECTS_VISIBLE_ABOVE = 0.4
"""Share of the signal (alpha_t of the normalised process) above which one noisy frame shows where the objects are."""


class TransformerTask:
    """Noise, target, forward, MSE; captions from a frozen text encoder."""

    casts_weights = True

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.dataset = LatentDataset(config.dataset, limit=config.clips)
        part = Path(config.model) / "transformer"
        if part.is_dir():
            self.model = MiraTransformer3DModel.from_pretrained(part)
            if "window_attn" in config.architecture:
                self.model.look_over_time(config.architecture["window_attn"])
        else:
            self.model = MiraTransformer3DModel(**config.architecture)
        self.model.to(device).float().train()
        if self.model.config.in_channels != self.dataset.channels:
            raise ValueError(f"The transformer takes {self.model.config.in_channels} latent channels, the latents in {config.dataset} have {self.dataset.channels}.")
        self.scheduler = MiraScheduler(**config.scheduler)
        self.dtype = torch.float32 if config.mixed_precision == "fp32" else choose_dtype("bf16" if config.mixed_precision == "bf16" else "auto", device)
        self.encode = self.dataset.text_encoder(config.model, device)

    def predict(self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, fps: torch.Tensor, **options: Any):
        """The transformer with its weights cast once a step; gradients reach the fp32 weights.

        Autocast would cast them at every use and keep norms and gates in fp32: 1.2 to 1.4 times slower on a CPU.
        """
        if self.dtype == torch.float32:
            return self.model(noisy, timesteps, text, fps, **options)
        cast = {name: p.to(self.dtype) for name, p in self.model.named_parameters()}
        return torch.func.functional_call(self.model, cast, (noisy.to(self.dtype), timesteps, text.to(self.dtype), fps), options)

    def batch(self, step: int) -> dict[str, Any]:
        """``latents`` [B, C, T, h, w] fp32, ``masks`` [B, 1, T, h, w] of the objects, ``prompt_embeds`` [B, L, D]."""
        rng, stage = step_rng(self.config.seed, step), self.config.stage_at(step)
        num_frames = int(rng.choice(stage.num_frames))
        latents, masks, texts = self.dataset.draw(stage.clips(num_frames), num_frames, rng)
        texts = ["" if rng.random() < self.config.caption_dropout else text for text in texts]
        return {"latents": latents, "masks": masks, "prompt_embeds": self.encode(texts)}

    def loss(self, batch: dict[str, Any], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        stage = self.config.stage_at(step)
        generator = step_generator(self.config.seed, step)
        steps = self.scheduler.config.num_train_timesteps
        timesteps = draw_timesteps(len(batch["latents"]), steps, stage.timestep_logit_mean, self.config.timestep_logit_std, generator).to(self.device)
        loss, by_time = diffusion_loss(
            self.predict,
            self.scheduler,
            batch["latents"].to(self.device),
            batch["prompt_embeds"].to(self.device),
            fps=torch.full((len(batch["latents"]),), self.dataset.fps, device=self.device),
            timesteps=timesteps,
            generator=generator,
            weights=self.weights(batch["masks"].to(self.device), timesteps),
            enable_temporal_attention=stage.enable_temporal_attention,
        )
        return loss, {f"{name}_{batch['latents'].shape[2]}f": value for name, value in by_time.items()}

    def weights(self, masks: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor | None:
        """Heavier where the objects are, at noise steps whose latents still show where that is; of mean one in each clip.

        Given x_t the weight is then nearly certain, so the optimum stays E[target | x_t]. At higher noise all places count the same: to weigh
        up the places where objects happen to be would teach the model to see objects wherever one is possible.
        """
        extra = self.config.object_weight - 1
        if not extra:
            return None
        visible = (self.scheduler.alpha.to(timesteps.device)[timesteps] > OBJECTS_VISIBLE_ABOVE).view(-1, 1, 1, 1, 1)
        weights = 1 + extra * masks * visible
        return weights / weights.mean(dim=(1, 2, 3, 4), keepdim=True)

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """``folder/transformer`` and ``folder/scheduler``."""
        with torch.device("meta"):
            model = MiraTransformer3DModel.from_config(self.model.config)
        model.load_state_dict(weights, assign=True)
        model.save_pretrained(folder / "transformer")
        self.scheduler.save_pretrained(folder / "scheduler")

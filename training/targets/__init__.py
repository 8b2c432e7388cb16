"""What can be trained: each target says how its batches, its loss and its folder are made."""

from __future__ import annotations

import torch

from ..config import TrainConfig


def build_task(config: TrainConfig, device: torch.device):
    """The task for ``config.target``, on ``device``."""
    if config.target in ("vae", "vae_decoder"):
        from .vae import VAETask as task
    elif config.target == "text_encoder":
        from .text_encoder import TextEncoderTask as task
    else:
        from .transformer import TransformerTask as task
    return task(config, device)

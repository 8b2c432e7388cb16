"""What can be trained: each target says how its batches, its loss and its folder are made."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..config import TrainConfig
from ..processes import Processes


def build_task(config: TrainConfig, device: torch.device, progress: Callable[[int, int], None] | None = None, processes: Processes | None = None):
    """The task for ``config.target``, on ``device``; ``progress`` hears how many clips were looked at, and of how many, then the same of takes that are encoded and of captions."""
    if config.target == "vae_decoder" and config.dataset:
        from .decoder import DecoderTask

        return DecoderTask(config, device, progress, processes)
    if config.target in ("vae", "vae_decoder"):
        from .vae import VAETask as task
    elif config.target == "text_encoder":
        from .text_encoder import TextEncoderTask as task
    else:
        from .transformer import TransformerTask

        return TransformerTask(config, device, progress, processes)
    return task(config, device)

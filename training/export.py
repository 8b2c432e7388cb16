"""Put the parts of finished runs together as a model folder that ``load_pipeline`` takes."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import torch

from .config import ConfigError
from .runs import latest_checkpoint

log = logging.getLogger(__name__)


def find_part(run: str | Path, part: str) -> Path:
    """``run``'s newest checkpoint (or ``run`` itself) where it holds the folder ``part``."""
    root = Path(run)
    for candidate in (root, latest_checkpoint(root)):
        if candidate and (candidate / part).is_dir():
            return candidate / part
    raise ConfigError(f"{root} holds no {part}/, neither itself nor in a whole checkpoint under {root / 'checkpoints'}.")


def export_model(vae: str, text_encoder: str, transformer: str | None, out: str) -> Path:
    """Write ``out`` with bf16 weights.

    Without a transformer it has only what ``precompute`` and a transformer's training need.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    from core.temporal_vae import TemporalVAE
    from core.vae import fit_latent_rgb

    from .toyworld import render, sample_spec

    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    parts = {"vae": find_part(vae, "vae"), "text_encoder": find_part(text_encoder, "text_encoder")}
    shutil.copytree(find_part(text_encoder, "tokenizer"), target / "tokenizer", dirs_exist_ok=True)
    vae_model = TemporalVAE.from_pretrained(parts["vae"]).eval()
    encoder = T5EncoderModel.from_pretrained(parts["text_encoder"]).eval()
    if transformer is None:
        vae_model.to(torch.bfloat16).save_pretrained(target / "vae")
        encoder.to(torch.bfloat16).save_pretrained(target / "text_encoder")
        return target

    from core.pipeline import MiraPipeline
    from core.schedulers import MiraScheduler
    from core.transformer import MiraTransformer3DModel

    rng = np.random.default_rng(0)
    clips = np.stack([render(sample_spec(rng, num_frames=24), frames=range(0, 24, 4)) for _ in range(64)])
    frames = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1)  # B 3 T H W
    latent_rgb = fit_latent_rgb(vae_model, frames)
    pipeline = MiraPipeline(
        transformer=MiraTransformer3DModel.from_pretrained(find_part(transformer, "transformer")).to(torch.bfloat16),
        vae=vae_model.to(torch.bfloat16),
        text_encoder=encoder.to(torch.bfloat16),
        tokenizer=AutoTokenizer.from_pretrained(target / "tokenizer"),
        scheduler=MiraScheduler.from_pretrained(find_part(transformer, "scheduler")),
        latent_rgb=latent_rgb,
    )
    pipeline.save_pretrained(target)
    log.info("%s: %.1f MiB", target, sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) / 2**20)
    return target

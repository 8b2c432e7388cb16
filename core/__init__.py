"""Mira as a package: the spatial-temporal diffusion transformer, its VAE, text encoder, samplers and pipeline.

Public names load when they are first used: ``from core import GenerationRequest`` does not import torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "GenerationRequest": "types",
    "RequestError": "types",
    "GenerationCancelled": "types",
    "GenerationError": "types",
    "VideoShape": "types",
    "LatentShape": "types",
    "PRESETS": "presets",
    "get_preset": "presets",
    "SAMPLERS": "schedulers_info",
    "MiraScheduler": "schedulers",
    "MiraTransformer3DModel": "transformer",
    "TemporalVAE": "temporal_vae",
    "MiraPipeline": "pipeline",
    "encode_video": "vae",
    "decode_latents": "vae",
    "load_pipeline": "checkpoints",
    "CheckpointError": "originals",
    "ResourceError": "device",
    "convert_checkpoint": "convert",
    "save_video": "video_io",
    "read_settings": "video_io",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'core' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

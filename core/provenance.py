"""What a video was made with, beside its request: the model's weights, the libraries, the device. It travels in the file."""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import MiraPipeline

HASHED = ("transformer/*.safetensors", "vae/*.safetensors", "scheduler/*.json")
"""The files of a model folder that decide a video; the text encoder's work is decided by its embeddings, which are cached."""
PACKAGES = ("torch", "diffusers", "transformers")


def made_with(pipe: MiraPipeline) -> dict[str, Any]:
    """Plain JSON values: versions, device, number format, and ``model_hash`` of a pipeline from a folder."""
    device = pipe.transformer.device
    name = platform.processor() or platform.machine() if device.type == "cpu" else _gpu_name(device)
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
        "device": f"{device.type} ({name})",
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "model_hash": None if pipe.model_folder is None else model_hash(pipe.model_folder),
    }


def model_hash(folder: Path) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a model folder's HASHED files. A file is read again only when its size or time has changed."""
    files = sorted(file for pattern in HASHED for file in folder.glob(pattern))
    digests = [_digest(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


@lru_cache(maxsize=256)
def _digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _gpu_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

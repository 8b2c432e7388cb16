"""What a video was made with, beside its request: the model's weights, the libraries, the device. It travels in the file."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .loras import find_lora, made_from, parse_loras

if TYPE_CHECKING:
    import torch

    from .pipeline import MiraPipeline

HASHED = ("transformer/*.safetensors", "vae/*.safetensors", "scheduler/*.json")
"""The files of a model folder that decide a video, beside its text encoder: several folders may share that, and tens of gigabytes are not read whole for it."""
PACKAGES = ("torch", "diffusers", "transformers", "av", "xformers")
ROOT = Path(__file__).resolve().parents[1]

TRAINED = "trained.json"
"""In a model folder that a training run made: its run, step, base model and dataset."""


def made_with(pipe: MiraPipeline, loras: str | None = None) -> dict[str, Any]:
    """Plain JSON values: versions (this program's own as ``commit``), device, number format (and that of weights in 8 bits), ``model_hash`` and ``text_hash`` of a pipeline from a folder, and the training runs behind it and behind its ``loras``."""
    from .attention import get_attention_backend

    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES if find_spec(package)},
        "device": device_words(pipe.execution_device),
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "attention": get_attention_backend(),
        **({"weights": pipe.weights_format} if pipe.weights_format else {}),
        **({"commit": commit} if (commit := own_commit()) else {}),
        "model_hash": None if pipe.model_folder is None else model_hash(pipe.model_folder),
        **({"text_hash": hashlib.sha256(lazy.cache.fingerprint.encode()).hexdigest()[:12]} if (lazy := pipe.lazy_text_encoder) else {}),
        **_training(pipe, loras),
    }


@lru_cache(maxsize=1)
def own_commit() -> str | None:
    """The commit of this program's checkout, with ``-dirty`` where files were changed since; None where there is no checkout or no git."""
    if not (ROOT / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _training(pipe: MiraPipeline, loras: str | None) -> dict[str, Any]:
    """``trained`` and ``loras``: what is known of the runs that made the weights; nothing where there were none."""
    told: dict[str, Any] = {}
    record = pipe.model_folder and pipe.model_folder / TRAINED
    if record and record.is_file():
        told["trained"] = json.loads(record.read_text())
    files = {name: find_lora(name, pipe.data_dir) for name, _ in parse_loras(loras)}
    if files:
        told["loras"] = {name: {"hash": _digest(str(path), path.stat().st_size, path.stat().st_mtime_ns)[:12], **made_from(path)} for name, path in files.items()}
    return told


def runs_of(made: dict[str, Any] | None) -> list[str]:
    """The training runs that ``made_with`` tells of: the model's, then its LoRAs'."""
    told = [(made or {}).get("trained"), *((made or {}).get("loras") or {}).values()]
    return list(dict.fromkeys(record["run"] for record in told if isinstance(record, dict) and isinstance(record.get("run"), str)))


def model_hash(folder: Path, patterns: tuple[str, ...] = HASHED) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a model folder's files. A file is read again only when its size or time has changed."""
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    digests = [_digest(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


@lru_cache(maxsize=256)
def _digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def device_words(device: torch.device) -> str:
    """A device by kind and name: ``cuda (NVIDIA H100)``, ``cpu (x86_64)``."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{device.type} ({name})"

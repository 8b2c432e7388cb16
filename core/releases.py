"""The released Mira checkpoints (where they are, how large, how their models are built) and where models lie on this machine. No torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "models"
TEXT_ENCODER = "google/flan-t5-xxl"
TEXT_ENCODER_BYTES = 9_524_000_000
"""The encoder half in bf16, as it is kept."""
TEXT_ENCODER_DOWNLOAD_BYTES = 45_100_000_000
"""All its fp32 weights on the Hub."""


@dataclass(frozen=True)
class Release:
    """One checkpoint file on the Hub."""

    name: str
    """As ``load_pipeline`` and the form name it."""
    repo: str
    file: str
    gigabytes: float
    """About how large the file is. Reckoned, not read off: 1.06e9 parameters in the transformer, 0.10e9 in the VAE, 4.76e9 in the
    text encoder (the original loads these files strictly, so they hold it), in half precision or fp32, as its training config says."""
    transformer: dict[str, Any] = field(default_factory=dict)
    """What differs from MiraTransformer3DModel's defaults."""
    scale_b: float = 0.7

    @property
    def page(self) -> str:
        """Where a person can download it."""
        return f"https://huggingface.co/{self.repo}/blob/main/{self.file}"


SHAPES = Path(__file__).with_name("released_shapes.json")
LAYERS, PATCH_TOKENS = 28, 4
"""Of every release: layers, and latents in a token."""

_V1 = {"text_spatial_cond": False}
_V1_768 = {**_V1, "out_channels": 8, "temporal_length": 30}

RELEASES: dict[str, Release] = {
    release.name: release
    for release in (
        Release("TencentARC/Mira-v0:128", "TencentARC/Mira-v0", "128-v0.pt", 12),
        Release("TencentARC/Mira-v0:384", "TencentARC/Mira-v0", "384-v0.pt", 12, {"temporal_length": 60}),
        Release("TencentARC/Mira-v1:384-10s", "TencentARC/Mira-v1", "384-v1-10s.pt", 24, {**_V1, "temporal_length": 60}, 0.3),
        Release("TencentARC/Mira-v1:384-20s", "TencentARC/Mira-v1", "384-v1-20s.pt", 12, {"temporal_length": 120}),
        Release("TencentARC/Mira-v1:768-5s", "TencentARC/Mira-v1", "768-v1-5s.pt", 24, _V1_768, 0.3),
        Release("TencentARC/Mira-v1:768-10s", "TencentARC/Mira-v1", "768-v1-10s.pt", 24, _V1_768, 0.3),
    )
}


def released_shapes(release: Release, part: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a release's ``transformer`` or ``vae``, known before it is downloaded.

    They are in released_shapes.json, once for all layers, so that nothing has to be built here; a test builds the models and compares.
    """
    shapes = json.loads(SHAPES.read_text(encoding="utf-8"))[part]
    if wider := release.transformer.get("out_channels"):
        shapes |= {name: [PATCH_TOKENS * wider, *shape[1:]] for name, shape in shapes.items() if name.startswith("proj_out.")}
    layers = {name: range(LAYERS) if "{}" in name else (0,) for name in shapes}
    return {name.format(layer): tuple(shape) for name, shape in shapes.items() for layer in layers[name]}


def release_of_file(filename: str) -> Release | None:
    """The release whose file has this name, if any."""
    return next((r for r in RELEASES.values() if r.file == filename), None)


def installed_folder(name: str, data_dir: str | Path) -> Path | None:
    """The folder of a model that is on this machine, else None."""
    return next((folder for folder in _places(EMBEDDED, name, str(data_dir)) if (folder / "model_index.json").is_file()), None)


@lru_cache(maxsize=64)
def _places(embedded: Path, name: str, data_dir: str) -> tuple[Path, Path, Path]:
    """Where a model of that name may lie."""
    return embedded / name, Path(data_dir, "models", folder_name(name)), Path(name)


def folder_name(name: str) -> str:
    """A model's folder under ``data_dir/models``: its name without the characters that folders do not like."""
    return name.replace("/", "--").replace(":", "-")

"""Which models there are, for the page: no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.presets import PRESETS

EMBEDDED_DIR = Path(__file__).resolve().parents[1] / "assets" / "models"


@dataclass(frozen=True)
class Model:
    """A model that a request can name."""

    name: str
    """What goes into ``GenerationRequest.model``."""
    path: str | None
    """Its folder, or None when it is not installed."""
    size: int
    """Bytes on disk; 0 when it is not installed."""

    @property
    def installed(self) -> bool:
        return self.path is not None


class Models:
    """The models of this installation and of ``data_dir/models``, and those that presets know."""

    def __init__(self, data_dir: str | Path):
        self.models_dir = Path(data_dir) / "models"

    def list(self) -> list[Model]:
        """Installed ones first, in the order of their names; then those that can be downloaded."""
        found = {folder.name: folder for root in (self.models_dir, EMBEDDED_DIR) for folder in _model_folders(root)}
        installed = [Model(name, str(folder), _size(folder)) for name, folder in sorted(found.items())]
        known = dict.fromkeys(name for preset in PRESETS.values() for name in preset.models)
        return installed + [Model(name, None, 0) for name in known if name not in found]

    def get(self, name: str) -> Model | None:
        """The model of that name, if it is known."""
        return next((model for model in self.list() if model.name == name), None)


def _model_folders(root: Path) -> list[Path]:
    return [index.parent for index in root.glob("*/model_index.json")]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

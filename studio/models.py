"""Which models there are, for the page: no torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.presets import NANO
from core.releases import EMBEDDED, RELEASES, Release, installed_folder
from core.types import RequestError, nearest


@dataclass(frozen=True)
class Model:
    """A model that a request can name."""

    name: str
    """What goes into ``GenerationRequest.model``."""
    path: str | None
    """Its folder, or None when it is not installed."""
    size: int
    """Bytes on disk; 0 when it is not installed."""
    release: Release | None = None
    """Where it comes from and how large the download is, for one of Mira's."""

    @property
    def installed(self) -> bool:
        return self.path is not None


class Models:
    """The embedded models, those in ``data_dir/models``, and Mira's releases, installed or not."""

    def __init__(self, data_dir: str | Path, own: Sequence[str] | None = None):
        """``own``: where other machines can reach the page, what may be named beside these; None lets any folder and Hub id be named."""
        self.data_dir = Path(data_dir)
        self.own = own

    def require(self, name: str) -> None:
        """Raise RequestError for a model that this studio's users may not name: a folder from elsewhere on this machine, or a download of their choice."""
        if self.own is None or name in self.own or name == NANO or name in RELEASES:
            return
        folder = installed_folder(name, self.data_dir)
        if folder is None or not any(folder.resolve().is_relative_to(root.resolve()) for root in (EMBEDDED, self.data_dir / "models")):
            known = [model.name for model in self.list()]
            raise RequestError("model", f"{name!r} is none of this studio's models, and other machines can reach it, so no others may be named.{nearest(name, known)} There are {', '.join(known)}.")

    def list(self) -> list[Model]:
        """Embedded ones, then what the data folder has, then releases that can be downloaded."""
        releases = [Model(name, *_where(installed_folder(name, self.data_dir)), release) for name, release in RELEASES.items()]
        taken = {model.path for model in releases}
        folders = [index.parent for root in (EMBEDDED, self.data_dir / "models") for index in sorted(root.glob("*/model_index.json"))]
        others = [Model(folder.name, *_where(folder)) for folder in folders if str(folder) not in taken]
        if all(model.name != NANO for model in others):
            others.insert(0, Model(NANO, None, 0))
        return others + sorted(releases, key=lambda model: not model.installed)

    def get(self, name: str) -> Model | None:
        """The model of that name or folder, if it is known."""
        known = next((model for model in self.list() if model.name == name), None)
        folder = None if known else installed_folder(name, self.data_dir)
        return Model(name, *_where(folder)) if folder else known


def _where(folder: Path | None) -> tuple[str | None, int]:
    """A folder's path and its size in bytes."""
    if folder is None:
        return None, 0
    return str(folder), sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

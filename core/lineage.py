"""What a model was made of, by training or by conversion, as its folder tells. No torch here."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from .provenance import TRAINED
from .releases import installed_folder, release_of_file

SOURCE_FILE = "source.json"
"""In a model folder that was converted, and in those that were trained from it: the checkpoint file's name and the text encoder."""


def base_model(name: str, data_dir: str | Path) -> str:
    """The model at the beginning of ``name``, whose presets it has: the release whose checkpoint was converted, else the one that training began with, however often.

    ``name`` itself for a model that is not made of another, as far as is known. Cheap enough for every drawing of the page.
    """
    known = {name}
    while (folder := _folder(name, data_dir)) is not None:
        release = release_of_file(_told(folder / SOURCE_FILE, "checkpoint"))
        if release is not None:
            return release.name
        before = _told(folder / TRAINED, "model")
        if not before or before in known:
            break
        known.add(before)
        name = before
    return name


def _folder(name: str, data_dir: str | Path) -> Path | None:
    """The folder of an installed model; None also for a name that no folder can have."""
    try:
        return installed_folder(name, data_dir)
    except OSError:
        return None


def _told(file: Path, field: str) -> str:
    """A text in a model folder's JSON file; '' where there is none."""
    try:
        return _read(file, file.stat().st_mtime_ns, field)
    except OSError:
        return ""


@lru_cache(maxsize=256)
def _read(file: Path, changed: int, field: str) -> str:
    """``_told`` of a file that is read again only when it has ``changed``."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))[field]
    except (ValueError, KeyError, TypeError):
        return ""
    return value if isinstance(value, str) else ""

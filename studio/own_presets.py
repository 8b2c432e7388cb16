"""The user's own presets: all settings of the form under a name, but not what one video is of (the prompt, the seed, a source and the frames kept of it) nor how many are asked for. They lie in ``presets.json``, which can be copied to another machine."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from core.files import replacing
from core.presets import PRESET_FIELDS
from core.types import GenerationRequest, RequestError, nearest

from .queue import AS_BEFORE

FIELDS = ("negative_prompt", "model", "preset", *PRESET_FIELDS, "strength", "decode_chunk_frames", "quality", "weights", "text_placement", "loras")
"""What a preset holds, by the names of a request. ``strength`` waits there for a source; the number of videos is no setting of a request."""
MAX_NAME_CHARS = 60
MAX_PRESETS = 200


class OwnPresets:
    """Named settings in one JSON file. Every call reads it, so that two browsers, or an editor, see the same."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()

    def list(self) -> list[str]:
        """The names, in the order of the alphabet. Raises RequestError for a file that cannot be read."""
        return sorted(self._read(), key=str.casefold)

    def get(self, name: str) -> GenerationRequest:
        """A request with the settings of that name, and no prompt. Raises RequestError."""
        presets = self._read()
        if name not in presets:
            raise RequestError("preset", f"There is no preset of your own called {name!r}.{nearest(name, presets)}")
        return presets[name]

    def save(self, name: str, settings: GenerationRequest) -> GenerationRequest | None:
        """Store the FIELDS of ``settings`` under ``name``; those whose place they took, if any. Raises RequestError or WriteError."""
        name = name.strip()
        if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise RequestError("preset", f"Type a name of 1 to {MAX_NAME_CHARS} characters for these settings.")
        _checked(settings, self.path.parent)
        with self._lock:
            presets = self._read()
            replaced = presets.get(name)
            if replaced is None and len(presets) >= MAX_PRESETS:
                raise RequestError("preset", f"There are {MAX_PRESETS} presets already. Delete one first.")
            self._write(presets | {name: settings})
        return replaced

    def delete(self, name: str) -> GenerationRequest:
        """Take a preset away; its settings, for ``save`` to bring it back. Raises RequestError or WriteError."""
        with self._lock:
            settings = self.get(name)
            self._write({key: value for key, value in self._read().items() if key != name})
        return settings

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """All of them as plain JSON values."""
        return _plain(self._read())

    def check(self, values: Any) -> dict[str, GenerationRequest]:
        """What the presets of ``to_dict`` and those that are here add up to. Raises RequestError for what ``merge`` would not take."""
        presets = self._read() | _parse(values, "The presets", self.path.parent)
        if len(presets) > MAX_PRESETS:
            raise RequestError("preset", f"That would make {len(presets)} presets; at most {MAX_PRESETS} are kept.")
        return presets

    def merge(self, values: Any) -> dict[str, dict[str, Any] | None]:
        """Add the presets of ``to_dict``, over those of the same name; what was under their names before, or None. All are checked before any is stored. Raises RequestError or WriteError."""
        with self._lock:
            before = self.to_dict()
            if presets := self.check(values):
                self._write(presets)
        return {name: before.get(name) for name in values}

    def put_back(self, before: dict[str, dict[str, Any] | None]) -> None:
        """Undo ``merge``. Raises RequestError or WriteError."""
        old = _parse({name: settings for name, settings in before.items() if settings is not None}, "The presets", self.path.parent)
        with self._lock:
            self._write({name: settings for name, settings in self._read().items() if name not in before} | old)

    def _read(self) -> dict[str, GenerationRequest]:
        try:
            values = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RequestError("preset", f"{self.path} cannot be read ({error}). Mend it, or move it away to start without presets of your own.") from None
        return _parse(values, str(self.path), self.path.parent)

    def _write(self, presets: dict[str, GenerationRequest]) -> None:
        with replacing(self.path) as file:
            file.write_text(json.dumps(_plain(presets), ensure_ascii=False, indent=1), "utf-8")


def _plain(presets: dict[str, GenerationRequest]) -> dict[str, dict[str, Any]]:
    return {name: {field: value for field, value in settings.to_dict().items() if field in FIELDS} for name, settings in presets.items()}


def _parse(values: Any, source: str, data_dir: Path) -> dict[str, GenerationRequest]:
    """Presets from JSON; what one leaves out is its size preset's. Raises RequestError naming the one that is wrong."""
    if not isinstance(values, dict):
        raise RequestError("preset", f"{source} must be an object of presets by name, not {type(values).__name__}.")
    presets = {}
    for name, settings in values.items():
        try:
            settings = GenerationRequest.from_dict(AS_BEFORE | settings if isinstance(settings, dict) else settings)
            presets[name] = _checked(settings, data_dir)
        except RequestError as error:
            raise RequestError(error.field, f"{source}: {name!r}: {error}") from None
    return presets


def _checked(settings: GenerationRequest, data_dir: Path) -> GenerationRequest:
    """``settings`` resolved, without what a preset leaves out. Raises RequestError."""
    source = None if settings.strength is None else "any"  # without one a request takes no strength
    return settings.replace(prompt="any", start_from=source, start_frames=None).resolved(data_dir).replace(prompt="", seed=None, start_from=None)

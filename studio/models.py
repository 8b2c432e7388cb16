"""Which models there are, for the page: no torch here."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.lineage import SOURCE_FILE
from core.presets import NANO
from core.provenance import TRAINED, model_hash
from core.releases import EMBEDDED, RELEASES, Release, installed_folder
from core.types import RequestError, nearest

log = logging.getLogger(__name__)


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
    source: str = ""
    """Where an installed one comes from, in words."""

    @property
    def installed(self) -> bool:
        return self.path is not None


class Models:
    """The embedded models, those in ``data_dir/models``, and Mira's releases, installed or not."""

    def __init__(self, data_dir: str | Path, own: Sequence[str] | None = None):
        """``own``: where other machines can reach the page, what may be named beside these; None lets any folder and Hub id be named."""
        self.data_dir = Path(data_dir)
        self.own = own
        self._hashes: dict[tuple[str | None, int], str | None] = {}
        self._asked: queue.SimpleQueue[tuple[str | None, int]] = queue.SimpleQueue()
        self._hasher: threading.Thread | None = None
        self._lock = threading.Lock()

    def require(self, name: str) -> None:
        """Raise RequestError for a model that there is not, which would else be found when its turn comes, with the one in memory let go of; and for one that this studio's users may not name: a folder from elsewhere on this machine, or a download of their choice."""
        if name == NANO or name in RELEASES or self.own is not None and name in self.own:
            return
        try:
            folder = installed_folder(name, self.data_dir)
            is_there = folder is not None or Path(name).exists()
        except OSError:  # no folder can have such a name
            folder, is_there = None, False
        if self.own is None:
            if not is_there and not may_be_on_hub(name):
                known = [model.name for model in self.list()]
                raise RequestError("model", f"There is no model {name!r}.{nearest(name, known)} There are {', '.join(known)}; a model folder and the Hub id of one can be named too.")
            return
        if folder is None or not any(folder.resolve().is_relative_to(root.resolve()) for root in (EMBEDDED, self.data_dir / "models")):
            known = [model.name for model in self.list()]
            raise RequestError("model", f"{name!r} is none of this studio's models, and other machines can reach it, so no others may be named.{nearest(name, known)} There are {', '.join(known)}.")

    def require_listed(self, name: str) -> None:
        """Raise RequestError for a name that ``list`` does not have: what is downloaded ahead of a request is one of these, as a slip in a name would be found out late."""
        known = [model.name for model in self.list()]
        if name not in known:
            raise RequestError("model", f"There is no model {name!r} to install.{nearest(name, known)} There are {', '.join(known)}. Another one of the Hub is downloaded when a request names it.")

    def list(self) -> list[Model]:
        """Embedded ones, then what the data folder has, then releases that can be downloaded."""
        releases = [Model(name, *_where(folder := installed_folder(name, self.data_dir)), release, _source(folder)) for name, release in RELEASES.items()]
        taken = {model.path for model in releases}
        folders = [index.parent for root in (EMBEDDED, self.data_dir / "models") for index in sorted(root.glob("*/model_index.json"))]
        others = [Model(folder.name, *_where(folder), source=_source(folder)) for folder in folders if str(folder) not in taken]
        if all(model.name != NANO for model in others):
            others.insert(0, Model(NANO, None, 0))
        return others + sorted(releases, key=lambda model: not model.installed)

    def get(self, name: str) -> Model | None:
        """The model of that name or folder, if it is known."""
        known = next((model for model in self.list() if model.name == name), None)
        folder = None if known else installed_folder(name, self.data_dir)
        return Model(name, *_where(folder), source=_source(folder)) if folder else known

    def hash(self, model: Model) -> str | None:
        """The hash that the model's videos carry; None until a thread of its own has computed it, which takes a while for a large one."""
        key = model.path, model.size
        with self._lock:
            known = self._hashes.get(key)
            if known is None and key not in self._hashes:
                self._hashes[key] = None
                self._asked.put(key)
                if self._hasher is None:
                    self._hasher = threading.Thread(target=self._compute, name="hashes", daemon=True)
                    self._hasher.start()
        return known

    def version(self) -> int:
        """A number that changes whenever ``hash`` knows more."""
        return sum(value is not None for value in self._hashes.values())

    def _compute(self) -> None:
        while True:
            key = self._asked.get()
            try:
                self._hashes[key] = model_hash(Path(key[0]))
            except OSError as error:  # it was deleted in the meantime
                log.info("%s has no hash: %s", key[0], error)

    def require_readable(self, path: Path) -> None:
        """Raise RequestError for a checkpoint file that this studio's users may not have read."""
        if self.own is not None and not path.resolve().is_relative_to(self.data_dir.resolve() / "models"):
            raise RequestError("model", f"Other machines can reach this studio, so checkpoint files may only lie in {self.data_dir / 'models'}. Put {path.name} there.")


def may_be_on_hub(name: str) -> bool:
    """Whether it is written as a Hub id, OWNER/NAME, as ``core.checkpoints`` takes it; whether there is one is not asked."""
    return name.count("/") == 1 and ":" not in name and not name.startswith((".", "/"))


def _where(folder: Path | None) -> tuple[str | None, int]:
    """A folder's path and its size in bytes."""
    if folder is None:
        return None, 0
    return str(folder), sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _source(folder: Path | None) -> str:
    """Where a model comes from, as far as its folder tells."""
    if folder is None:
        return ""
    if folder.parent == EMBEDDED:
        return "comes with the studio"
    for name, words in ((TRAINED, "step {step} of the run {run}, which began with {model}"), (SOURCE_FILE, "made of {checkpoint}")):
        try:
            return words.format(**json.loads((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError):
            continue
    return ""

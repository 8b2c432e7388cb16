"""What the pages work with: built once from the arguments, passed in, closed at the end. No globals."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from core.compute import Compute
from core.files import replacing
from core.intake import FILE_BYTES, copy_of_upload
from core.loras import installed_loras
from core.types import RequestError
from core.video_io import VideoError
from training.runs import Runs

from .chores import Chores
from .comparison import Comparisons
from .db import Database, StorageError, require_space
from .executors.local import LocalExecutor
from .library import Library
from .models import Models
from .own_presets import OwnPresets
from .queue import Queue
from .votes import Votes
from .walls import Walls

if TYPE_CHECKING:
    from .executors.zero import ZeroExecutor

DEFAULT_MODEL = "mira-nano"


@dataclass
class Services:
    """The studio behind its pages."""

    data_dir: Path
    default_model: str
    queue: Queue
    library: Library
    models: Models
    walls: Walls
    own_presets: OwnPresets
    comparisons: Comparisons
    votes: Votes
    runs: Runs
    chores: Chores
    installs: Chores
    """Models that are being downloaded or converted."""
    executor: LocalExecutor | ZeroExecutor
    training_device: str
    """Where runs train: the last of the executor's devices, so that with several the first ones go on making videos."""
    dataset_roots: tuple[Path, ...]
    """Folders that datasets may be in; none given means any."""
    lock: filelock.BaseFileLock

    @property
    def wildcards(self) -> Path:
        """The folder of wildcard files: ``__colour__`` in a prompt is a line of ``colour.txt``."""
        return self.data_dir / "wildcards"

    @property
    def exports(self) -> Path:
        """The folder of exported queues."""
        return self.data_dir / "exports"

    @property
    def sources(self) -> Path:
        """The folder of pictures that clips start from."""
        return self.data_dir / "sources"

    @property
    def datasets(self) -> Path:
        """The folder of clips that were brought here, or rendered."""
        return self.data_dir / "datasets"

    def keep_source(self, path: str | Path) -> Path:
        """A picture from anyone, written anew into ``sources`` under a name by its content. Raises RequestError for one that cannot be read, StorageError or WriteError."""
        path = Path(path)
        target = self.sources / f"{hashlib.sha256(path.read_bytes()).hexdigest()[:24]}.png"
        if not target.exists():
            require_space(self.data_dir, FILE_BYTES)
            try:
                with replacing(target) as file:
                    copy_of_upload(path, file)
            except VideoError as error:
                raise RequestError("start_from", f"{path.name} cannot be used as a picture: {error}.") from None
        return target

    @classmethod
    def open(cls, data_dir: str | Path, executor: str = "local", default_model: str = DEFAULT_MODEL, start_worker: bool = True, device: str = "auto", dataset_roots: Sequence[Path] = (), any_model: bool = True, compute: Compute = Compute()) -> Services:
        """Open the data folder, put back what an earlier run left unfinished, and start the worker.

        Without ``any_model`` requests may name the known models only. Raises StorageError when the folder is in use by another studio or cannot hold the queue.
        """
        data_dir = Path(data_dir).resolve()
        db = Database(data_dir / "studio.db")
        lock = filelock.FileLock(data_dir / "studio.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            owner = db.meta("app_pid")
            db.close()
            raise StorageError(f"{data_dir} is in use by another studio (process {owner}). Use that one, stop it, or give another --data-dir.") from None
        db.set_meta("app_pid", os.getpid())
        models = Models(data_dir, None if any_model else [default_model])
        queue, library = Queue(db, models), Library(data_dir, db)
        for leftovers in ("tmp", "previews", "exports"):
            shutil.rmtree(data_dir / leftovers, ignore_errors=True)
        library.recover(queue)
        queue.requeue()
        library.purge()
        Runs(data_dir / "runs").purge()
        parts = queue, library, models, Walls(db, queue), OwnPresets(data_dir / "presets.json"), Comparisons(data_dir), Votes(db, library), Runs(data_dir / "runs"), Chores(data_dir), Chores(data_dir)
        roots = tuple(Path(root).resolve() for root in dataset_roots)
        services = cls(data_dir, default_model, *parts, executor_class(executor)(db.path, data_dir, device, default_model, compute), device.rpartition(",")[2], roots, lock)
        if start_worker:
            services.executor.start()
        return services

    def version(self) -> str:
        """A word that changes whenever anything that a page shows of the studio has changed."""
        parts = self.queue.version(), self.library.version(), self.models.version(), self.installs.current, self.executor.statuses(), installed_loras(self.data_dir), self.comparisons.version(), self.votes.version(), self.runs.version(), self.chores.current
        return f"{zlib.crc32(repr(parts).encode()):08x}"

    @property
    def trains(self) -> bool:
        """Whether models can be trained here: a run needs a device that stays."""
        return not self.executor.inside_events

    def close(self) -> None:
        """Stop the worker (what it was running waits for the next start) and let go of the data folder."""
        self.executor.stop()
        self.chores.cancel()
        self.installs.cancel()
        self.comparisons.close()
        self.queue.db.close()
        self.lock.release()


def executor_class(name: str) -> type[LocalExecutor] | type[ZeroExecutor]:
    """By the name that ``--executor`` takes: workers of their own, or the page's events, which loads torch here."""
    if name == "zero":
        from .executors.zero import ZeroExecutor

        return ZeroExecutor
    return LocalExecutor

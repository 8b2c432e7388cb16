"""Finished videos and their settings. The files lie in ``videos/``, deleted ones in ``trash/`` until they are purged."""

from __future__ import annotations

import datetime
import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.provenance import runs_of
from core.types import MADE_WITH, GenerationRequest, RequestError

from .db import Database
from .queue import Queue, dump_request, known_settings, load_request, new_id

log = logging.getLogger(__name__)

SORTS = {"newest": "created DESC, id DESC", "oldest": "created, id", "prompt": "casefold(prompt), created DESC", "slowest": "elapsed DESC, created DESC"}
"""Orders of a list of videos, by name."""
MAX_TAG_CHARS = 40
TRASH_DAYS = 7
"""Deleted videos can be brought back for this long."""


@dataclass(frozen=True)
class Video:
    """A finished video. ``id`` is that of the request it came from, or drawn for a file that was put there."""

    id: str
    request: GenerationRequest
    path: str
    """The mp4, absolute."""
    poster: str | None
    """A still picture of it, absolute."""
    created: float
    """Unix seconds."""
    seconds: float
    """Length when played."""
    elapsed: float | None
    """Seconds that it took to make; None for an imported file."""
    width: int
    height: int
    num_frames: int
    fps: float
    """Frames a second of the file."""
    favourite: bool
    tags: tuple[str, ...] = ()
    verdict: str | None = None
    """What came out when it was made again, in words."""
    faults: str | None = None
    """What is plainly wrong with it, in words: that it is blank, stands still, flickers or jumps."""
    peak_memory: int | None = None
    """The most bytes in use while it was made, where that was measured and nothing was done to save memory."""
    deleted: float | None = None
    """When it was put into the trash, in Unix seconds."""


@dataclass(frozen=True)
class Query:
    """Which videos, and in which order."""

    search: str = ""
    """Words that the prompt contains, all of them; ``#word`` is a tag."""
    favourites: bool = False
    model: str | None = None
    preset: str | None = None
    tag: str | None = None
    run: str | None = None
    """A training run whose checkpoint or LoRA made it."""
    days: int | None = None
    """Made on the last so many days, of which 1 is today, from midnight on."""
    sort: str = "newest"
    """One of SORTS."""
    deleted: bool = False
    """Those in the trash instead; of them the newest is the one that was deleted last."""

    @property
    def narrows(self) -> bool:
        """Whether it may leave videos out."""
        return self != Query(sort=self.sort, deleted=self.deleted)

    def order(self) -> str:
        """The order, in SQL. Raises RequestError for one that there is not."""
        if self.sort not in SORTS:
            raise RequestError("sort", f"There is no order {self.sort!r}; known are {', '.join(SORTS)}.")
        return "deleted DESC, id DESC" if self.deleted and self.sort == "newest" else SORTS[self.sort]

    def where(self) -> tuple[str, list[object]]:
        """The condition, and its values."""
        words = self.search.split()
        tags = [word[1:] for word in words if word[0] == "#" and len(word) > 1] + ([self.tag] if self.tag else [])
        plain = [word.casefold() for word in words if word[0] != "#" or len(word) == 1]
        clauses: dict[str, list[object]] = {_state(self.deleted): []}
        if self.favourites:
            clauses["favourite"] = []
        if self.days is not None:
            first = datetime.date.today() - datetime.timedelta(self.days - 1)
            clauses["created >= ?"] = [datetime.datetime.combine(first, datetime.time()).timestamp()]
        for name in ("model", "preset"):
            if getattr(self, name) is not None:
                clauses[f"json_extract(request, '$.{name}') = ?"] = [getattr(self, name)]
        if self.run is not None:
            clauses["id IN (SELECT video FROM video_runs WHERE run = ?)"] = [self.run]
        parts = [*clauses, *["instr(casefold(prompt), ?)"] * len(plain), *["id IN (SELECT video FROM tags WHERE casefold(tag) = casefold(?))"] * len(tags)]
        return " AND ".join(parts), [*(value for values in clauses.values() for value in values), *plain, *tags]


class Library:
    """The videos under ``data_dir``. Pages and workers each open their own on the same database."""

    def __init__(self, data_dir: str | Path, db: Database):
        self.data_dir = Path(data_dir).resolve()
        self.db = db
        self.videos_dir = self.data_dir / "videos"
        self.trash_dir = self.data_dir / "trash"
        for folder in (self.videos_dir, self.trash_dir):
            folder.mkdir(parents=True, exist_ok=True)

    def list(self, query: Query = Query(), limit: int = 60, offset: int = 0) -> list[Video]:
        """The videos that ``query`` asks for, in its order. Raises RequestError for an order that there is not."""
        where, values = query.where()
        return self._videos(self.db.read(f"SELECT * FROM videos WHERE {where} ORDER BY {query.order()} LIMIT ? OFFSET ?", *values, limit, offset))

    def count(self, query: Query = Query()) -> int:
        """How many videos ``list`` would show in all."""
        where, values = query.where()
        return self.db.read(f"SELECT count(*) AS n FROM videos WHERE {where}", *values)[0]["n"]

    def choices(self) -> dict[str, list[str]]:
        """The models, presets, tags and training runs that there are videos of, each in the order of the alphabet."""
        found = {name: self.db.read(f"SELECT DISTINCT json_extract(request, '$.{name}') AS value FROM videos WHERE deleted IS NULL") for name in ("model", "preset")}
        found["tag"] = self.db.read("SELECT DISTINCT tag AS value FROM tags JOIN videos ON id = video WHERE deleted IS NULL")
        found["run"] = self.db.read("SELECT DISTINCT run AS value FROM video_runs JOIN videos ON id = video WHERE deleted IS NULL")
        return {name: sorted((row["value"] for row in rows if row["value"]), key=str.casefold) for name, rows in found.items()}

    def get(self, id: str, deleted: bool = False) -> Video | None:
        """The video of that id, unless it is deleted; or only if it is, from the trash."""
        rows = self.db.read(f"SELECT * FROM videos WHERE id = ? AND {_state(deleted)}", id)
        return self._videos(rows)[0] if rows else None

    def require_file(self, id: str) -> Video:
        """The video of that id. Raises RequestError when it is deleted, or when its file is gone."""
        video = self.get(id)
        if video is None:
            raise _missing(id)
        if not Path(video.path).is_file():
            raise RequestError("id", f"The file of “{video.request.prompt[:60]}” is gone: {video.path} was deleted or moved by hand. Put it back, or delete the video here too.")
        return video

    def require_settings(self, id: str) -> Video:
        """The video of that id, whose file says how it was made, so that it can be made again. Raises RequestError."""
        video = self.require_file(id)
        if "seed" not in _settings(Path(video.path)):
            raise RequestError("id", f"{Path(video.path).name} does not say how it was made, so it cannot be made again and compared. Verify is for videos that were made here.")
        return video

    def peaks(self, model: str) -> list[tuple[int, int]]:
        """Pixels and peak memory in bytes of the last videos that ``model`` made here, where it was measured."""
        rows = self.db.read(
            "SELECT num_frames * width * height AS pixels, peak_memory FROM videos WHERE json_extract(request, '$.model') = ? AND peak_memory IS NOT NULL ORDER BY created DESC LIMIT 50", model
        )  # fmt: skip
        return [(row["pixels"], row["peak_memory"]) for row in rows]

    def largest(self, model: str) -> GenerationRequest | None:
        """The request of the largest video that ``model`` has made here; None where it has made none."""
        rows = self.db.read("SELECT request FROM videos WHERE json_extract(request, '$.model') = ? AND elapsed IS NOT NULL ORDER BY num_frames * width * height DESC LIMIT 1", model)
        return load_request(rows[0]["request"]) if rows else None

    def faults(self) -> dict[str, str]:
        """What is plainly wrong with videos, by id; those with nothing wrong are left out."""
        return {row["id"]: row["faults"] for row in self.db.read("SELECT id, faults FROM videos WHERE faults IS NOT NULL AND deleted IS NULL ORDER BY created DESC LIMIT 500")}

    def version(self) -> int:
        """A number that changes whenever ``list`` may give something else."""
        return self.db.version("library")

    def add(
        self, id: str, request: GenerationRequest, file: Path, poster: Path | None = None, elapsed: float | None = None, created: float | None = None, faults: Sequence[str] = (), peak_memory: int | None = None,
    ) -> None:  # fmt: skip
        """Record ``file``, which ``request`` (resolved) made, and move it and its poster into ``videos/`` as ``id.mp4``.

        All of it or, when a file cannot be moved, nothing. A second time under the same id changes nothing in the list.
        """
        target = self.videos_dir / f"{id}{file.suffix}"
        still = poster and target.with_suffix(poster.suffix)
        with self.db.write() as tx:
            tx.execute(
                "INSERT INTO videos (id, request, prompt, file, poster, created, elapsed, width, height, num_frames, fps, faults, peak_memory) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (id, dump_request(request), request.prompt, target.name, still and still.name, created or time.time(), elapsed,
                 request.width, request.height, request.num_frames, request.output_fps, ", ".join(faults) or None, peak_memory),
            )  # fmt: skip
            self.db.touch("library")
            if still:
                os.replace(poster, still)
            os.replace(file, target)

    def recover(self, queue: Queue) -> int:
        """Make the list agree with the folders after a crash or a change by hand; how many videos were added to the list.

        A file of ``videos/`` that is not listed is one whose worker died right before it could say so, and its request is
        done, or one that someone put there. A listed one is deleted if and only if its file lies in the trash.
        """
        rows = {row["file"]: row for row in self.db.read("SELECT id, file, poster, deleted FROM videos")}
        self._learn_runs(rows)
        self._fill_requests()
        for name, row in rows.items():
            if row["deleted"] is not None and (self.videos_dir / name).exists():
                self.undelete(row["id"])
            elif row["deleted"] is None and not (self.videos_dir / name).exists() and (self.trash_dir / name).exists():
                self._move_files(row, self.trash_dir, self.videos_dir)
        return sum(self._import(path, queue) for path in sorted(self.videos_dir.glob("*.mp4")) if path.name not in rows)

    def set_runs(self, id: str, runs: Sequence[str]) -> None:
        """Keep which training runs a video comes from."""
        with self.db.write() as tx:
            tx.executemany("INSERT OR IGNORE INTO video_runs (video, run) VALUES (?, ?)", [(id, run) for run in runs])

    def _learn_runs(self, rows: dict[str, sqlite3.Row]) -> None:
        """Once: read from the files of videos that an older version has made which training runs they come from."""
        if self.db.meta("runs_known"):
            return
        with self.db.write():
            for name, row in rows.items():
                self.set_runs(row["id"], runs_of(_settings(self.videos_dir / name).get(MADE_WITH)))
            self.db.set_meta("runs_known", 1)

    def _fill_requests(self) -> None:
        """What an older version has listed with an unfinished request: the files of other programs."""
        with self.db.write() as tx:
            for row in self.db.read("SELECT id, request FROM videos WHERE json_extract(request, '$.seed') IS NULL"):
                tx.execute("UPDATE videos SET request = ?, fps = max(fps, 1) WHERE id = ?", (dump_request(load_request(row["request"]).filled()), row["id"]))

    def _import(self, path: Path, queue: Queue) -> bool:
        from core.video_io import VideoError, probe, read_settings

        try:
            info, settings = probe(path), read_settings(path)
            request = known_settings({"prompt": path.stem} | (settings or {}))
            if request.seed is None:  # another program's file
                request = request.filled()
            (path.name + dump_request(request)).encode()  # what SQLite will do
        except (VideoError, RequestError, OSError, UnicodeError) as error:
            log.warning("%r is not listed: %s", str(path), error)
            return False
        request = request.replace(width=int(info["width"]), height=int(info["height"]), num_frames=int(info["num_frames"]), output_fps=max(1, round(info["fps"])))
        poster = path.with_suffix(".jpg")
        with self.db.write():
            if self.db.read("SELECT 1 FROM videos WHERE file = ?", path.name):
                return False
            id = path.stem if queue.adopt(path.stem, str(path)) else new_id()
            self.add(id, request, path, poster if poster.exists() else None, created=path.stat().st_mtime)
            self.set_runs(id, runs_of((settings or {}).get(MADE_WITH)))
        log.info("%s was not listed; it is now, as %s", path, id)
        return True

    def set_favourite(self, ids: Sequence[str], favourite: bool) -> None:
        """Mark or unmark videos, all or none. Raises RequestError when there is none of an id."""
        with self.db.write() as tx:
            for id in ids:
                if not tx.execute("UPDATE videos SET favourite = ? WHERE id = ? AND deleted IS NULL", (int(favourite), id)).rowcount:
                    raise _missing(id)
            self.db.touch("library")

    def tag(self, ids: Sequence[str], tag: str, on: bool = True) -> None:
        """Give ``tag`` to videos, or take it from them. Raises RequestError for a tag that is none, or a video that is gone."""
        tag = tag.strip().lstrip("#")
        if not tag or len(tag) > MAX_TAG_CHARS or not tag.isprintable() or any(c.isspace() for c in tag):
            raise RequestError("tag", f"A tag is one word of at most {MAX_TAG_CHARS} characters, such as keep or for-the-talk.")
        with self.db.write() as tx:
            for id in ids:
                if self.get(id) is None:
                    raise _missing(id)
                if on:
                    tx.execute("INSERT OR IGNORE INTO tags (video, tag) SELECT ?, coalesce((SELECT tag FROM tags WHERE casefold(tag) = casefold(?) LIMIT 1), ?)", (id, tag, tag))
                else:
                    tx.execute("DELETE FROM tags WHERE video = ? AND casefold(tag) = casefold(?)", (id, tag))
            self.db.touch("library")

    def set_verdict(self, id: str, verdict: str) -> None:
        """Keep what came out when a video was made again."""
        with self.db.write() as tx:
            tx.execute("UPDATE videos SET verdict = ? WHERE id = ?", (verdict, id))
            self.db.touch("library")

    def delete(self, *ids: str) -> None:
        """Move videos to the trash, all or none; ``undelete`` brings them back until they are purged."""
        with self.db.write():
            for id in ids:
                self._move(id, deleted=time.time(), state=_state(False), source=self.videos_dir, target=self.trash_dir)

    def undelete(self, *ids: str) -> None:
        """Bring deleted videos back, all or none."""
        with self.db.write():
            for id in ids:
                self._move(id, deleted=None, state=_state(True), source=self.trash_dir, target=self.videos_dir)

    def purge(self, older_than_days: float = TRASH_DAYS) -> int:
        """Remove videos for good that were deleted that long ago, 0 for all in the trash; how many."""
        until = (time.time() - older_than_days * 86_400,)
        with self.db.write() as tx:
            for table in ("tags", "video_runs"):
                tx.execute(f"DELETE FROM {table} WHERE video IN (SELECT id FROM videos WHERE deleted <= ?)", until)
            rows = tx.execute("DELETE FROM videos WHERE deleted <= ? RETURNING file, poster", until).fetchall()
            self.db.touch("library")
        for row in rows:
            for name in filter(None, (row["file"], row["poster"])):
                (self.trash_dir / name).unlink(missing_ok=True)
        return len(rows)

    def trash_bytes(self) -> int:
        """What ``purge(0)`` would free."""
        names = (name for row in self.db.read("SELECT file, poster FROM videos WHERE deleted IS NOT NULL") for name in (row["file"], row["poster"]) if name)
        return sum(path.stat().st_size for name in names if (path := self.trash_dir / name).exists())

    def _move(self, id: str, deleted: float | None, state: str, source: Path, target: Path) -> None:
        with self.db.write() as tx:
            row = tx.execute(f"UPDATE videos SET deleted = ? WHERE id = ? AND {state} RETURNING file, poster", (deleted, id)).fetchone()
            if row is None:
                raise _missing(id)
            self._move_files(row, source, target)
            self.db.touch("library")

    def _move_files(self, row: sqlite3.Row, source: Path, target: Path) -> None:
        for name in filter(None, (row["file"], row["poster"])):
            if (source / name).exists():
                os.replace(source / name, target / name)

    def _videos(self, rows: Sequence[sqlite3.Row]) -> list[Video]:
        tags: dict[str, list[str]] = {}
        marks = ", ".join("?" * len(rows))
        for row in self.db.read(f"SELECT video, tag FROM tags WHERE video IN ({marks}) ORDER BY casefold(tag)", *(row["id"] for row in rows)) if rows else []:
            tags.setdefault(row["video"], []).append(row["tag"])
        return [self._video(row, tuple(tags.get(row["id"], ()))) for row in rows]

    def _video(self, row: sqlite3.Row, tags: tuple[str, ...]) -> Video:
        folder = self.videos_dir if row["deleted"] is None else self.trash_dir
        return Video(
            id=row["id"],
            request=load_request(row["request"]),
            path=str(folder / row["file"]),
            poster=row["poster"] and str(folder / row["poster"]),
            created=row["created"],
            seconds=row["num_frames"] / row["fps"],
            elapsed=row["elapsed"],
            width=row["width"],
            height=row["height"],
            num_frames=row["num_frames"],
            fps=row["fps"],
            favourite=bool(row["favourite"]),
            tags=tags,
            verdict=row["verdict"],
            faults=row["faults"],
            peak_memory=row["peak_memory"],
            deleted=row["deleted"],
        )


def _state(deleted: bool) -> str:
    """The condition that a video is in the trash, or is not."""
    return "deleted IS NOT NULL" if deleted else "deleted IS NULL"


def _settings(path: Path) -> dict[str, Any]:
    """What a video's file tells; nothing of one that is gone or cannot be read."""
    from core.video_io import read_settings

    try:
        return read_settings(path) or {}
    except (OSError, ValueError):
        return {}


def _missing(id: str) -> RequestError:
    return RequestError("id", f"There is no video {id!r}.")

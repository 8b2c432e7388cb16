"""The durable queue of requests.

A request is on disk when ``enqueue`` returns. A worker takes the first waiting one by a single ``UPDATE … RETURNING`` and
holds it by a lease that it renews; every later write of that worker names the worker and the attempt, so that one
whose lease was lost or whose request was cancelled can change nothing any more. Leases count the monotonic clock, which
all processes of a machine share and which neither a sleeping laptop nor a corrected clock moves; a restart requeues all.

    waiting -> running -> done | failed
    waiting | running | paused -> cancelled          running -> waiting (worker lost)          failed | cancelled -> waiting (retry, undo)
    running -> paused -> waiting (by hand)           running -> waiting (a training run wants the device)

In the last line the worker has parked the unfinished clip in a file first (``core.snapshot``), and ``parked`` counts the steps in it:
whoever leases the request goes on from there. Only the worker touches that file; editing or retrying the request sets ``parked`` to 0, and a cancelled
one keeps its file for KEPT_SECONDS, for Undo.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.loras import find_lora, parse_loras
from core.presets import PLAIN_GUIDANCE
from core.types import GenerationRequest, RequestError

from .db import Database, require_space
from .models import Models

STATES = ("waiting", "running", "paused", "done", "failed", "cancelled")
FINISHED = ("done", "failed", "cancelled")
MAX_CRASHES = 3
"""A request that took this many workers with it is failed rather than tried again."""
KEPT_SECONDS = 3600.0
"""How long a cancelled request's snapshot is kept: after that, Undo makes it from the beginning."""
DENOISED = 0.9
"""Where the progress bar stands when the denoising ends."""
START_FOLDERS = ("videos", "sources")
"""Where in the data folder a file must lie for a request to start from it."""
LISTED = 200
"""Requests that are listed where no other number is asked for."""
ROW_BYTES = 16 * 2**10
"""Room that one queued request may take in the database and its log."""

_REQUEST_FIELDS = frozenset(field.name for field in dataclasses.fields(GenerationRequest))
AS_BEFORE = PLAIN_GUIDANCE
"""What settings that are written in full do not name if they are older than the setting: how things were done then, whatever a preset says now."""
_ORDER = "ORDER BY CASE state WHEN 'running' THEN 0 WHEN 'paused' THEN 1 WHEN 'waiting' THEN 2 ELSE 3 END, CASE WHEN finished IS NULL THEN position ELSE -finished END"
_AT_REST = "stage = '', seconds_left = NULL, preview = NULL, worker = NULL, lease_until = NULL, pausing = 0"
_FROM_PARKED = f"step = parked, progress = CASE WHEN parked > 0 THEN {DENOISED} * parked / num_steps ELSE 0 END"
_OVER = "stage = '', seconds_left = NULL, preview = NULL, lease_until = NULL"
_ENDED = f"{_OVER}, pausing = 0, parked = 0"
_CANCELLED = f"state = 'cancelled', {_OVER}, pausing = state = 'paused', finished = ?"


@dataclass(frozen=True)
class Job:
    """A request in the queue, as it stood when it was read. Times are Unix seconds."""

    id: str
    request: GenerationRequest
    state: str
    """One of STATES."""
    progress: float
    """0 to 1."""
    stage: str
    """What the worker is at: 'model', 'text', 'denoise', 'decode', 'save', the words of a download, or '' when it is not running."""
    step: int
    num_steps: int
    seconds_left: float | None
    error: str | None
    """Why it failed, in words."""
    attempts: int
    """How often a worker took it."""
    crashes: int
    """How many workers died while they made it."""
    video: str | None
    """Path of the finished mp4."""
    created: float
    started: float | None
    finished: float | None
    preview: str | None
    """Path of an animated WebP of the unfinished clip."""
    pausing: int = 0
    """Whether its worker has been asked to pause it; of a cancelled one whether it was paused."""
    parked: int = 0
    """Steps done that lie in its snapshot, for the next worker to go on from."""
    verifies: str | None = None
    """The video that is made again only to be compared with what comes out; None for an ordinary request."""


class Queue:
    """Requests in order, for the page and the workers alike; every process opens its own on the same file."""

    def __init__(self, db: Database | str | Path, models: Models | None = None):
        self.db = db if isinstance(db, Database) else Database(db)
        self.models = models
        """Says which models a request may name; None lets any be named."""

    # The page's side

    def enqueue(self, request: GenerationRequest) -> str:
        """Resolve, check and store one request; its id. Raises RequestError or StorageError, and then nothing is stored."""
        return self.enqueue_many([request])[0]

    def enqueue_many(self, requests: Iterable[GenerationRequest]) -> list[str]:
        """Store all of ``requests`` in their order, or none of them; their ids."""
        rows = [(new_id(), dump_request(self.checked(request))) for request in requests]
        require_space(self.db.path.parent, ROW_BYTES * len(rows))
        now = time.time()
        with self.db.write() as tx:
            last = tx.execute("SELECT coalesce(max(position), 0) FROM requests").fetchone()[0]
            tx.executemany(
                "INSERT INTO requests (id, position, request, created) VALUES (?, ?, ?, ?)",
                [(id, last + index, text, now) for index, (id, text) in enumerate(rows, 1)],
            )
            self.db.touch("queue")
        return [id for id, _ in rows]

    def verify(self, video: str, request: GenerationRequest) -> str:
        """Queue ``request`` once more, to be compared with the video that it made; the new request's id."""
        with self.db.write() as tx:
            id = self.enqueue(request)
            tx.execute("UPDATE requests SET verifies = ? WHERE id = ?", (video, id))
        return id

    def get(self, id: str) -> Job | None:
        """The request of that id, cleared ones included."""
        rows = self.db.read("SELECT * FROM requests WHERE id = ?", id)
        return _job(rows[0]) if rows else None

    def list(self, states: Sequence[str] | None = None, limit: int = LISTED) -> list[Job]:
        """Running ones, then paused and waiting ones in their order, then finished ones, newest first; without cleared ones."""
        states = STATES if states is None else tuple(states)
        marks = ", ".join("?" * len(states))
        return [_job(row) for row in self.db.read(f"SELECT * FROM requests WHERE NOT hidden AND state IN ({marks}) {_ORDER} LIMIT ?", *states, limit)]

    def counts(self) -> dict[str, int]:
        """How many requests are in each state; without cleared ones."""
        found = {row["state"]: row["n"] for row in self.db.read("SELECT state, count(*) AS n FROM requests WHERE NOT hidden GROUP BY state")}
        return {state: found.get(state, 0) for state in STATES}

    def version(self) -> int:
        """A number that changes whenever anything that this class shows has changed."""
        return self.db.version("queue")

    def cancel(self, id: str) -> bool:
        """Stop a request that is not finished (its worker notices within a step). False when it was finished already."""
        return bool(self.cancel_many([id]))

    def pause_request(self, id: str) -> None:
        """Have the worker of a running request park it after its current step; it stays so until ``resume_request``. Raises RequestError when it is not running."""
        self._require(id)
        if not self._change("UPDATE requests SET pausing = 1, error = NULL WHERE id = ? AND state = 'running'", id):
            raise RequestError("id", "That request is not running, so it cannot be paused.")

    def resume_request(self, id: str) -> None:
        """Let a paused request go on, in its old place in line. Raises RequestError when it is not paused."""
        self._require(id)
        if not self._change("UPDATE requests SET state = 'waiting' WHERE id = ? AND state = 'paused'", id):
            raise RequestError("id", "That request is not paused.")

    def retry(self, id: str) -> str:
        """Put a failed or cancelled request back at the end of the queue, under the same id."""
        job = self._require(id)
        if job.state == "done":
            raise RequestError("id", f"Request {id} is done; there is nothing to retry. Queue it again for another video.")
        self._change(
            "UPDATE requests SET state = 'waiting', position = (SELECT max(position) + 1 FROM requests), progress = 0, step = 0, num_steps = 0, "
            f"parked = 0, {_AT_REST}, error = NULL, crashes = 0, hidden = 0, started = NULL, finished = NULL WHERE id = ? AND state IN ('failed', 'cancelled')",
            id,
        )
        return id

    def move(self, id: str, to: str) -> None:
        """Put a waiting request elsewhere in line: ``to`` is 'first', 'last', 'up', 'down', or the id of the waiting one that it shall come before.

        Raises RequestError when either is not waiting (any more).
        """
        with self.db.write() as tx:
            rows = tx.execute("SELECT id, position FROM requests WHERE state = 'waiting' ORDER BY position").fetchall()
            ids, places = [row["id"] for row in rows], [row["position"] for row in rows]
            for name in (id, to) if to not in ("first", "last", "up", "down") else (id,):
                if name not in ids:
                    raise RequestError("id", "That request is not waiting any more, so its place cannot change.")
            before = ids.index(id)
            ids.remove(id)
            after = {"first": 0, "last": len(ids), "up": max(0, before - 1), "down": before + 1}.get(to)
            ids.insert(ids.index(to) if after is None else after, id)
            tx.executemany("UPDATE requests SET position = ? WHERE id = ?", list(zip(places, ids)))
            self.db.touch("queue")

    def move_first(self, ids: Iterable[str]) -> None:
        """Put those of ``ids`` that wait before all others, in the order that they have. Raises RequestError when none of them waits."""
        chosen = set(ids)
        with self.db.write() as tx:
            rows = tx.execute("SELECT id, position FROM requests WHERE state = 'waiting' ORDER BY position").fetchall()
            waiting, places = [row["id"] for row in rows], [row["position"] for row in rows]
            order = sorted(waiting, key=lambda id: id not in chosen)
            if not chosen.intersection(waiting):
                raise RequestError("id", "None of the ticked requests is waiting, so their places cannot change.")
            tx.executemany("UPDATE requests SET position = ? WHERE id = ?", list(zip(places, order)))
            self.db.touch("queue")

    def edit(self, id: str, request: GenerationRequest) -> None:
        """Replace a request that waits or is paused, which keeps its place and starts anew, and verifies no video any more. Raises RequestError for a bad one, or when the old one is not waiting any more."""
        self._require(id)
        text = dump_request(self.checked(request))
        if not self._change("UPDATE requests SET request = ?, verifies = NULL, parked = 0, progress = 0, step = 0, num_steps = 0 WHERE id = ? AND state IN ('waiting', 'paused')", text, id):
            raise RequestError("id", "That request has started or ended in the meantime, so it stays as it was. Press Generate to queue this version as a new one.")

    def cancel_waiting(self) -> list[str]:
        """Cancel everything that waits; the ids, for ``reinstate``."""
        with self.db.write() as tx:
            ids = [row["id"] for row in tx.execute(f"UPDATE requests SET {_CANCELLED} WHERE state = 'waiting' RETURNING id", (time.time(),))]
            self.db.touch("queue")
        return ids

    def cancel_many(self, ids: Iterable[str]) -> list[str]:
        """Cancel those of ``ids`` that are not finished; their ids, for ``reinstate``. Raises RequestError, with none cancelled, for one that there is not."""
        ids = [*dict.fromkeys(ids)]
        named = json.dumps(ids)
        with self.db.write() as tx:
            known = {row["id"] for row in tx.execute("SELECT id FROM requests WHERE id IN (SELECT value FROM json_each(?))", (named,))}
            for id in ids:
                if id not in known:
                    raise RequestError("id", f"There is no request {id!r}.")
            changed = {
                row["id"]
                for row in tx.execute(
                    f"UPDATE requests SET {_CANCELLED} WHERE id IN (SELECT value FROM json_each(?)) AND state IN ('waiting', 'running', 'paused') RETURNING id",
                    (time.time(), named),
                )
            }
            if changed:
                self.db.touch("queue")
        return [id for id in ids if id in changed]

    def retry_many(self, ids: Iterable[str]) -> list[str]:
        """Queue those of ``ids`` again that failed or were cancelled; their ids."""
        with self.db.write():
            return [self.retry(id) for id in ids if self._require(id).state in ("failed", "cancelled")]

    def copy_many(self, ids: Iterable[str]) -> list[str]:
        """Queue those of ``ids`` that there are once more; ids of the copies. What verifies a video does so again."""
        with self.db.write():
            jobs = [job for id in ids if (job := self.get(id))]
            return [self.verify(job.verifies, job.request) if job.verifies else self.enqueue(job.request) for job in jobs]

    def reinstate(self, ids: Sequence[str]) -> None:
        """Undo ``cancel``, ``cancel_waiting`` or ``cancel_many``: each takes its old place (also one that was cleared meanwhile), a paused one is paused again, and what was parked is gone on from."""
        with self.db.write() as tx:
            tx.executemany(
                f"UPDATE requests SET state = CASE WHEN pausing THEN 'paused' ELSE 'waiting' END, pausing = 0, hidden = 0, finished = NULL, {_FROM_PARKED}, "
                "num_steps = CASE WHEN parked > 0 THEN num_steps ELSE 0 END WHERE id = ? AND state = 'cancelled'",
                [(id,) for id in ids],
            )
            self.db.touch("queue")

    def clear_finished(self) -> list[str]:
        """Hide done, failed and cancelled requests (their videos stay); the ids, for ``restore``."""
        with self.db.write() as tx:
            ids = [row["id"] for row in tx.execute("UPDATE requests SET hidden = 1 WHERE NOT hidden AND state IN ('done', 'failed', 'cancelled') RETURNING id")]
            self.db.touch("queue")
        return ids

    def restore(self, ids: Sequence[str]) -> None:
        """Undo ``clear_finished``."""
        with self.db.write() as tx:
            tx.executemany("UPDATE requests SET hidden = 0 WHERE id = ?", [(id,) for id in ids])
            self.db.touch("queue")

    @property
    def paused(self) -> bool:
        """Whether workers are kept from taking new requests."""
        return bool(self.db.meta("paused"))

    def pause(self) -> None:
        """Let running requests end and start no others."""
        self._set_paused(1)

    def resume(self) -> None:
        """Start requests again."""
        self._set_paused(0)

    # The worker's side

    def lease(self, worker_id: str, seconds: float, id: str | None = None) -> Job | None:
        """Take the first waiting request, or the one of that id, for ``seconds``; None when it does not wait or the queue is paused."""
        if not self.db.read("SELECT 1 FROM requests WHERE state = 'waiting' LIMIT 1"):
            return None
        with self.db.write() as tx:
            row = tx.execute(
                f"UPDATE requests SET state = 'running', attempts = attempts + 1, worker = ?, lease_until = ?, started = ?, finished = NULL, {_FROM_PARKED}, "
                "num_steps = CASE WHEN parked > 0 THEN num_steps ELSE 0 END, stage = '', seconds_left = NULL, preview = NULL, error = NULL, pausing = 0 "
                "WHERE id = (SELECT id FROM requests WHERE state = 'waiting' AND (? IS NULL OR id = ?) ORDER BY position LIMIT 1) "
                "AND NOT (SELECT value FROM meta WHERE name = 'paused') RETURNING *",
                (worker_id, time.monotonic() + seconds, time.time(), id, id),
            ).fetchone()
            if row is not None:
                self.db.touch("queue")
        return None if row is None else _job(row)

    def order(self, id: str, worker_id: str, attempt: int) -> str:
        """What this worker shall do with the request: 'go' on, 'pause' it, or 'stop', once it was cancelled or given to another. Reads only."""
        rows = self.db.read("SELECT pausing FROM requests WHERE id = ? AND worker = ? AND attempts = ? AND state = 'running'", id, worker_id, attempt)
        return "stop" if not rows else "pause" if rows[0]["pausing"] else "go"

    def holds(self, id: str, worker_id: str, attempt: int) -> bool:
        """Whether the request is still this worker's."""
        return self.order(id, worker_id, attempt) != "stop"

    def park(self, id: str, worker_id: str, attempt: int, steps: int, num_steps: int, state: str) -> bool:
        """Let go of a request whose snapshot after ``steps`` is on disk: 'paused' by hand, or 'waiting' to go on as soon as the device is free. False: lost or cancelled."""
        return self._fenced(f"state = ?, {_AT_REST}, parked = ?, step = ?, num_steps = ?, progress = ?", id, worker_id, attempt, state, steps, steps, num_steps, DENOISED * steps / num_steps)

    def not_parked(self, id: str, worker_id: str, attempt: int, why: str) -> bool:
        """Go on with a request that could not be paused, and say why."""
        return self._fenced("pausing = 0, error = ?", id, worker_id, attempt, why)

    def unpark(self, id: str, worker_id: str, attempt: int) -> bool:
        """Forget a snapshot that cannot be gone on from: the request starts anew."""
        return self._fenced("parked = 0, progress = 0, step = 0", id, worker_id, attempt)

    def resumable(self) -> set[str]:
        """Ids of the requests whose snapshots may be needed yet."""
        return {row["id"] for row in self.db.read("SELECT id FROM requests WHERE state = 'running' OR parked > 0 AND coalesce(finished, 1e99) > ?", time.time() - KEPT_SECONDS)}

    def heartbeat(
        self, id: str, worker_id: str, attempt: int, progress: float | None = None, stage: str | None = None, step: int | None = None,
        num_steps: int | None = None, seconds_left: float | None = None, preview: str | None = None, seconds: float = 60,
    ) -> bool:  # fmt: skip
        """Renew the lease by ``seconds`` and record what is not None. False: lost or cancelled, so stop the work."""
        shown = {"progress": progress, "stage": stage, "step": step, "num_steps": num_steps, "seconds_left": seconds_left, "preview": preview}
        shown = {name: value for name, value in shown.items() if value is not None}
        changes = "".join(f", {name} = ?" for name in shown)
        return self._fenced(f"lease_until = ?{changes}", id, worker_id, attempt, time.monotonic() + seconds, *shown.values(), visible=bool(shown))

    def finish(self, id: str, worker_id: str, attempt: int, video: str, seconds: float | None = None) -> bool:
        """Mark done with the path of its video. False when the request was no longer this worker's.

        ``started`` becomes ``seconds`` before the end where they are given: how long the video took, which the model's download and loading, and a pause, are no part of.
        Called with ``Library.add`` inside one ``db.write()``, so that both are recorded or neither.
        """
        now = time.time()
        return self._fenced(
            f"state = 'done', progress = 1, {_ENDED}, error = NULL, video = ?, started = coalesce(?, started), finished = ?",
            id, worker_id, attempt, video, None if seconds is None else now - seconds, now,
        )  # fmt: skip

    def fail(self, id: str, worker_id: str, attempt: int, error: str) -> bool:
        """Mark failed, with the reason in words. False when the request was no longer this worker's."""
        return self._fenced(f"state = 'failed', {_ENDED}, error = ?, finished = ?", id, worker_id, attempt, error, time.time())

    # The supervisor's side

    def requeue(self, worker_id: str | None = None) -> int:
        """Put back what ``worker_id`` (None: any) was running when it was stopped on purpose, or when the app died."""
        return self._put_back("crashes = crashes", "(? IS NULL OR worker = ?)", worker_id, worker_id)

    def worker_died(self, worker_id: str, how: str) -> int:
        """Put back what ``worker_id`` was running, or fail it if it did so to MAX_CRASHES workers; how many there were."""
        with self.db.write() as tx:
            failed = tx.execute(
                f"UPDATE requests SET state = 'failed', crashes = crashes + 1, {_ENDED}, finished = ?, error = ? "
                "WHERE state = 'running' AND worker = ? AND crashes + 1 >= ?",
                (time.time(), f"The worker process died {MAX_CRASHES} times while making this video; the last time it {how}. "
                 "It may need more memory than there is: try a smaller size, fewer frames or a decode chunk, then retry.", worker_id, MAX_CRASHES),
            ).rowcount  # fmt: skip
            if failed:
                self.db.touch("queue")
            return failed + self._put_back("crashes = crashes + 1", "worker = ?", worker_id)

    def expire(self, worker_id: str | None = None) -> int:
        """Put back requests of ``worker_id`` (None: any) whose lease ran out, since it hangs; how many there were."""
        return self._put_back("crashes = crashes + 1", "lease_until < ? AND (? IS NULL OR worker = ?)", time.monotonic(), worker_id, worker_id)

    def adopt(self, id: str, video: str) -> bool:
        """Mark an unfinished request done whose whole video was found; how long that took is not known. False when there is none of that id."""
        return self._change(
            f"UPDATE requests SET state = 'done', progress = 1, {_ENDED}, video = ?, started = NULL, finished = ? WHERE id = ? AND state IN ('waiting', 'running', 'paused')",
            video, time.time(), id,
        )  # fmt: skip

    def _put_back(self, change: str, where: str, *values: object) -> int:
        if not self.db.read(f"SELECT 1 FROM requests WHERE state = 'running' AND {where}", *values):
            return 0
        with self.db.write() as tx:
            count = tx.execute(
                f"UPDATE requests SET {change}, state = CASE WHEN pausing THEN 'paused' ELSE 'waiting' END, {_FROM_PARKED}, {_AT_REST} WHERE state = 'running' AND {where}",
                values,
            ).rowcount
            self.db.touch("queue")
        return count

    def _fenced(self, change: str, id: str, worker_id: str, attempt: int, *values: object, visible: bool = True) -> bool:
        sql = f"UPDATE requests SET {change} WHERE id = ? AND worker = ? AND attempts = ? AND state = 'running'"
        return self._change(sql, *values, id, worker_id, attempt, visible=visible)

    def _change(self, sql: str, *values: object, visible: bool = True) -> bool:
        with self.db.write() as tx:
            changed = tx.execute(sql, values).rowcount > 0
            if changed and visible:
                self.db.touch("queue")
        return changed

    def _set_paused(self, value: int) -> None:
        with self.db.write():
            self.db.set_meta("paused", value)
            self.db.touch("queue")

    def checked(self, request: GenerationRequest) -> GenerationRequest:
        """``request`` resolved. A file that it starts from, and its LoRAs, must be the studio's own: whoever reaches the page must not read others."""
        request = request.resolved(self.db.path.parent)
        if self.models is not None:
            self.models.require(request.model)
        for name, _ in parse_loras(request.loras):
            find_lora(name, self.db.path.parent, files=False)
        if request.start_from and not is_own_file(request.start_from, self.db.path.parent):
            raise RequestError("start_from", f"{request.start_from} is none of this studio's files. Start from one of its videos, or open the picture on the page.")
        return request

    def _require(self, id: str) -> Job:
        job = self.get(id)
        if job is None:
            raise RequestError("id", f"There is no request {id!r}.")
        return job


def is_own_file(path: str, data_dir: Path) -> bool:
    """Whether a request may start from ``path``: it lies in one of START_FOLDERS of the data folder. Does not look whether it is there."""
    try:
        return any(Path(path).resolve().is_relative_to(data_dir.resolve() / name) for name in START_FOLDERS)
    except (OSError, ValueError):
        return False


def new_id() -> str:
    """An id that sorts by time and can be a file name: ``20261123-134501-3fa2b1c4d5e6``."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(6)


def dump_request(request: GenerationRequest) -> str:
    """JSON for a row."""
    return json.dumps(request.to_dict(), ensure_ascii=False)


def load_request(text: str) -> GenerationRequest:
    """The request in a row."""
    return GenerationRequest(**_known(json.loads(text)))


def known_settings(settings: dict[str, Any]) -> GenerationRequest:
    """The request in a file's settings, which may hold more than one. Raises RequestError for a value of the wrong type."""
    return GenerationRequest.from_dict(_known(settings))


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what a newer version wrote and this one does not know, and with what an older one did not know as it was then."""
    return AS_BEFORE | {name: value for name, value in settings.items() if name in _REQUEST_FIELDS}


_JOB_FIELDS = tuple(field.name for field in dataclasses.fields(Job) if field.name != "request")


def _job(row: sqlite3.Row) -> Job:
    return Job(request=load_request(row["request"]), **{name: row[name] for name in _JOB_FIELDS})

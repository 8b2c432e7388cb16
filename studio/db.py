"""The studio's database: one SQLite file in WAL mode, shared by the page's threads and the worker processes."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs4 cifs smb smb2 smb3 smbfs 9p afs ceph lustre beegfs gpfs glusterfs ncpfs "
    "fuse.sshfs fuse.glusterfs fuse.ceph fuse.s3fs fuse.gcsfuse fuse.rclone fuse.davfs2 fuse.goofys fuse.mount-s3".split()
)
"""File systems whose shared memory or locks do not reach other machines' writers: SQLite's WAL loses data on them."""

MIN_FREE_BYTES = 64 * 2**20
"""What must stay free for the database, the log and the previews."""

SCHEMA = (
    """
CREATE TABLE requests (
    id TEXT PRIMARY KEY,
    position REAL NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'done', 'failed', 'cancelled')),
    progress REAL NOT NULL DEFAULT 0,
    stage TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0,
    num_steps INTEGER NOT NULL DEFAULT 0,
    seconds_left REAL,
    error TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    lease_until REAL,
    preview TEXT,
    video TEXT,
    hidden INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    started REAL,
    finished REAL
);
CREATE INDEX requests_by_state ON requests (state, position);
CREATE TABLE videos (
    id TEXT PRIMARY KEY,
    request TEXT NOT NULL,
    prompt TEXT NOT NULL,
    file TEXT NOT NULL UNIQUE,
    poster TEXT,
    created REAL NOT NULL,
    elapsed REAL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    num_frames INTEGER NOT NULL,
    fps REAL NOT NULL,
    favourite INTEGER NOT NULL DEFAULT 0,
    deleted REAL
);
CREATE INDEX videos_by_time ON videos (created);
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO meta VALUES ('queue_version', 1), ('library_version', 1), ('paused', 0), ('app_pid', 0)
""",
    """
CREATE TABLE walls (
    id TEXT PRIMARY KEY,
    axes TEXT NOT NULL,
    full_steps INTEGER,
    created REAL NOT NULL
);
CREATE TABLE wall_cells (
    wall TEXT NOT NULL REFERENCES walls (id),
    place INTEGER NOT NULL,
    request TEXT NOT NULL,
    PRIMARY KEY (wall, place)
) WITHOUT ROWID;
CREATE INDEX wall_cells_by_request ON wall_cells (request)
""",
    """
CREATE TABLE votes (
    id INTEGER PRIMARY KEY,
    setting TEXT NOT NULL,
    a TEXT NOT NULL,
    b TEXT NOT NULL,
    a_value TEXT NOT NULL,
    b_value TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie')),
    created REAL NOT NULL
);
CREATE INDEX votes_by_setting ON votes (setting);
INSERT INTO meta VALUES ('votes_version', 1)
""",
    """
CREATE TABLE tags (
    video TEXT NOT NULL REFERENCES videos (id),
    tag TEXT NOT NULL,
    PRIMARY KEY (tag, video)
) WITHOUT ROWID;
CREATE INDEX tags_by_video ON tags (video);
CREATE INDEX videos_by_model ON videos (json_extract(request, '$.model'), created);
CREATE INDEX videos_by_preset ON videos (json_extract(request, '$.preset'), created)
""",
    """
ALTER TABLE requests ADD COLUMN verifies TEXT;
ALTER TABLE videos ADD COLUMN verdict TEXT
""",
    """
ALTER TABLE videos ADD COLUMN faults TEXT
""",
    """
CREATE TABLE new_requests (
    id TEXT PRIMARY KEY,
    position REAL NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'running', 'paused', 'done', 'failed', 'cancelled')),
    progress REAL NOT NULL DEFAULT 0,
    stage TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0,
    num_steps INTEGER NOT NULL DEFAULT 0,
    seconds_left REAL,
    error TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    lease_until REAL,
    preview TEXT,
    video TEXT,
    hidden INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    verifies TEXT,
    pausing INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0
);
INSERT INTO new_requests (id, position, request, state, progress, stage, step, num_steps, seconds_left, error, attempts, crashes, worker, lease_until, preview, video, hidden, created, started, finished, verifies)
SELECT id, position, request, state, progress, stage, step, num_steps, seconds_left, error, attempts, crashes, worker, lease_until, preview, video, hidden, created, started, finished, verifies FROM requests;
DROP TABLE requests;
ALTER TABLE new_requests RENAME TO requests;
CREATE INDEX requests_by_state ON requests (state, position);
ALTER TABLE videos ADD COLUMN peak_memory INTEGER
""",
    """
CREATE TABLE video_runs (
    video TEXT NOT NULL REFERENCES videos (id),
    run TEXT NOT NULL,
    PRIMARY KEY (run, video)
) WITHOUT ROWID;
INSERT INTO meta VALUES ('runs_known', 0)
""",
)
"""Each entry brings a file from the version of its index (SQLite's user_version) to the next; what was released is never changed, only added to."""


class StorageError(Exception):
    """The disk or the data folder cannot take the work: full, on a network file system, or in use. The message is for the user."""


class Database:
    """Connections to ``path``, one per thread. ``write()`` is a transaction that other calls of the same thread join."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            refuse_network_file_system(self.path.parent)
            self._migrate()
        except OSError as error:
            raise StorageError(f"The data folder {self.path.parent} cannot be used: {error.strerror}. Give another --data-dir.") from error
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{self.path} cannot be used: {error}. Move it away to start with an empty queue (the videos stay), or give another --data-dir.") from error

    def _migrate(self) -> None:
        """Bring a new or older file to this version. Raises StorageError for a newer one."""
        with self.write() as tx:
            version = tx.execute("PRAGMA user_version").fetchone()[0]
            if version > len(SCHEMA):
                raise StorageError(f"{self.path} was written by a newer version of the studio (schema {version}, this one knows {len(SCHEMA)}). Update the studio, or give another --data-dir.")
            for statements in SCHEMA[version:]:
                for statement in statements.split(";\n"):
                    tx.execute(statement)
            tx.execute(f"PRAGMA user_version = {len(SCHEMA)}")

    def connection(self) -> sqlite3.Connection:
        """This thread's connection; statements outside of ``write()`` commit by themselves."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            connection.row_factory = sqlite3.Row
            connection.create_function("casefold", 1, str.casefold, deterministic=True)  # SQLite's own folding knows ASCII only
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection, self._local.depth = connection, 0
            with self._lock:
                self._all.append(connection)
        return connection

    def read(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """The rows of one SELECT."""
        return self.connection().execute(sql, values).fetchall()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, on disk when the outermost block ends. Raises StorageError when the disk is full."""
        connection = self.connection()
        self._local.depth += 1
        try:
            if self._local.depth == 1:
                connection.execute("BEGIN IMMEDIATE")
            yield connection
            if self._local.depth == 1:
                connection.execute("COMMIT")
        except BaseException as error:
            if self._local.depth == 1 and connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and _is_full(error, self.path.parent):
                raise disk_full(self.path.parent, MIN_FREE_BYTES) from error
            raise
        finally:
            self._local.depth -= 1

    def touch(self, name: str) -> None:
        """Count one change of ``name`` ('queue', 'library' or 'votes'), so that a page can ask cheaply whether anything is new."""
        self.set_meta(f"{name}_version", self.meta(f"{name}_version") + 1)

    def version(self, name: str) -> int:
        return self.meta(f"{name}_version")

    def meta(self, name: str) -> int:
        return self.read("SELECT value FROM meta WHERE name = ?", name)[0]["value"]

    def set_meta(self, name: str, value: int) -> None:
        with self.write() as tx:
            tx.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    def close(self) -> None:
        """Close every thread's connection; the threads must have ended their work."""
        with self._lock:
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._local = threading.local()


def free_bytes(folder: Path) -> int:
    """Bytes that a user may still write where ``folder`` lies."""
    return shutil.disk_usage(folder).free


def _is_full(error: sqlite3.OperationalError, folder: Path) -> bool:
    code = error.sqlite_errorcode & 0xFF  # the low byte is the primary code
    return code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and free_bytes(folder) < MIN_FREE_BYTES)


def disk_full(folder: Path, needed: int) -> StorageError:
    return StorageError(
        f"The disk is full: {size_words(free_bytes(folder))} free at {folder}, {size_words(needed)} needed. "
        "Delete videos or other files there, or start the studio with another --data-dir."
    )


def require_space(folder: Path, needed: int) -> None:
    """Raise StorageError unless ``needed`` bytes, and what must stay free besides, can be written in ``folder``."""
    needed += MIN_FREE_BYTES
    if free_bytes(folder) < needed:
        raise disk_full(folder, needed)


def size_words(count: float) -> str:
    """Bytes as a person reads them: ``1.5 GiB``."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.4g} {units[0]}"


def file_system(folder: Path, mountinfo: str | None = None) -> str:
    """Type of the file system that ``folder`` lies on, as Linux names it; '' where that cannot be told."""
    if mountinfo is None:
        source = Path("/proc/self/mountinfo")
        mountinfo = source.read_text() if source.exists() else ""
    parts = folder.resolve().parts
    best: tuple[int, str] = (0, "")
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(before.split()[4].encode().decode("unicode_escape")).parts
        if parts[: len(mount)] == mount and len(mount) >= best[0]:
            best = (len(mount), after.split()[0])
    return best[1]


def refuse_network_file_system(folder: Path) -> None:
    """Raise StorageError where SQLite's write-ahead log is not safe."""
    kind = file_system(folder)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StorageError(f"{folder} lies on a network file system ({kind}), where the queue's database can lose requests. Give a --data-dir on a local disk.")

"""Files that are whole or not there: written under a temporary name, synced, then renamed. No torch here."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

Tell = Callable[[str, int, int], None]
"""``tell(words, done, of)``: what is being done, and how many bytes of how many; 0 of 0 where that is not known."""


class WriteError(OSError):
    """A file could not be written; the message says where, why and what to do."""

    def __init__(self, path: Path, cause: OSError):
        super().__init__(cause.errno or errno.EIO, describe(path, cause))
        self.path = path

    def __str__(self) -> str:
        return self.strerror


def describe(path: Path, cause: OSError) -> str:
    """Why ``path`` could not be written, in words."""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {path} could not be written ({_free(path)} free). Free some space, or choose another folder."
    if cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} may not be written: {cause.strerror or cause}. Choose another folder, or change its permissions."
    if cause.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"{path} could not be written: a file stands where a folder should be, or the other way round. Choose another name."
    return f"{path} could not be written: {cause.strerror or cause}."


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside ``path`` (same suffix) to write a file or a folder under; renamed to ``path`` at the end.

    Missing parent folders are made. When the block fails nothing is left behind and an older ``path`` stays as it was.
    Raises WriteError for any OSError, of the block or of the renaming.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        _move(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and not isinstance(error, WriteError):
            raise WriteError(path, error) from error
        raise


def _move(temporary: Path, path: Path) -> None:
    """Put ``temporary`` at ``path``. A folder that is there already is moved aside first, as a rename cannot replace it."""
    if not (temporary.is_dir() and path.is_dir()):
        os.replace(temporary, path)
        return
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    _remove(old)


def _sync(path: Path) -> None:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable (not possible on Windows, where folders cannot be opened)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def _free(path: Path) -> str:
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path("."))
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"

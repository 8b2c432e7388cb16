"""Files from the Hugging Face Hub: each goes on where an earlier try stopped, tells how far it is, and is checked before it counts."""

from __future__ import annotations

import hashlib
import io
import logging
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from .device import require_disk
from .files import Tell
from .originals import CheckpointError

log = logging.getLogger(__name__)


def fetch(repo: str, name: str, target: Path, beside: float = 0, tell: Tell | None = None) -> Path:
    """The file ``name`` of ``repo`` as ``target``, which is returned.

    What an earlier try brought is kept in a ``.part`` beside it (the Hub's own client starts a file anew in every process). ``tell`` may raise, to stop.
    Raises one of ``not_reached()``, ResourceError where there is not room for what is still to come and ``beside`` times the file, or CheckpointError
    for a file that came damaged.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo, name)
    facts = get_hf_file_metadata(url)
    if target.is_file() and target.stat().st_size == facts.size:  # what was to follow was interrupted
        return target
    part = target.with_name(f"{target.name}.{(facts.etag or 'unknown')[:16]}.part")  # another version of the file is another one
    here, size = part.stat().st_size if part.exists() else 0, facts.size or 0
    target.parent.mkdir(parents=True, exist_ok=True)
    require_disk(int((1 + beside) * size) - here, target.parent, f"{repo}/{name}" + (" (the download and what is made of it)" if beside else ""))
    log.info("Downloading %s (%.1f GB, of which %.1f GB are here)", name, size / 1e9, here / 1e9)
    with open(part, "ab") as file:
        if not size or here < size:
            http_get(url, file, resume_size=here, headers=build_hf_headers(), expected_size=facts.size, displayed_filename=name, tqdm_class=tell and _bar(tell, f"Downloading {name}"))
    _check_whole(part, facts.etag)
    part.rename(target)
    return target


def fetch_folder(repo: str, target: Path, patterns: tuple[str, ...], required: str, beside: float = 0, tell: Tell | None = None, hint: str = "") -> Path:
    """The files of ``repo`` whose paths fit one of ``patterns``, in ``target``. Raises as ``fetch`` does, and CheckpointError, with ``hint``, unless ``required`` is among them."""
    from huggingface_hub import HfApi

    sizes = {entry.path: entry.size for entry in HfApi().list_repo_tree(repo, recursive=True) if hasattr(entry, "size") and ".." not in PurePosixPath(entry.path).parts and any(fnmatch(entry.path, pattern) for pattern in patterns)}
    if required not in sizes:
        raise CheckpointError(f"{repo} is not what is needed here: it has no {required}.{hint}")
    here = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    target.mkdir(parents=True, exist_ok=True)
    require_disk(max(0, int((1 + beside) * sum(sizes.values())) - here), target, repo)
    for name in sorted(sizes, key=sizes.__getitem__):  # settings first
        fetch(repo, name, target / name, tell=tell)
    return target


def not_reached() -> tuple[type[Exception], ...]:
    """What the Hub's client raises when it is offline, or when there is no such file or repository."""
    from httpx import HTTPError
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    return OSError, HTTPError, EntryNotFoundError, HFValidationError


def _check_whole(part: Path, etag: str | None) -> None:
    """Raise CheckpointError, and drop the file, unless it has the SHA-256 that the Hub gives as a large file's etag."""
    if etag is None or len(etag) != 64:
        return
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != etag:
        part.unlink()
        raise CheckpointError(f"The download of {part.name} is damaged: its SHA-256 is {digest[:12]}... and should be {etag[:12]}... Download it again.")


def _bar(tell: Tell, words: str) -> type:
    """A progress bar for the Hub's client that tells instead of drawing."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **{**options, "disable": False, "file": io.StringIO(), "mininterval": 60})

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            tell(words, int(self.n), int(self.total or 0))
            return drawn

    return Bar

"""What went wrong, in words for the person who asked."""

from __future__ import annotations

import errno
from pathlib import Path

from core.attention import AttentionError
from core.checkpoints import CheckpointError
from core.device import ResourceError
from core.files import WriteError
from core.ladder import is_out_of_memory, lack_of_memory
from core.pipeline import GenerationError
from core.types import GenerationRequest, RequestError

from ..db import MIN_FREE_BYTES, StorageError, disk_full


def explain(error: BaseException, request: GenerationRequest, data_dir: Path, largest: GenerationRequest | None = None) -> str:
    """One or two sentences: what happened, and what would help. ``largest``: what this model has made here, that took the most memory."""
    if isinstance(error, (RequestError, StorageError, GenerationError, CheckpointError, ResourceError, AttentionError)):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return str(disk_full(data_dir, MIN_FREE_BYTES))
    if isinstance(error, (WriteError, FileNotFoundError)):
        return str(error)
    if is_out_of_memory(error):
        fits = "" if largest is None else f"The largest that it has made here has {largest.num_frames} frames of {largest.width}×{largest.height}. "
        return lack_of_memory(error, request, fits)
    first_line = str(error).strip().split("\n")[0][:300]
    return f"Something unexpected happened ({type(error).__name__}: {first_line}). The details are in {data_dir / 'logs' / 'worker.log'}. Retry, or try other settings."


def is_broken_device(error: BaseException) -> bool:
    """Whether the device's context is lost, so that only a new process can use it."""
    return "CUDA error" in str(error) and not is_out_of_memory(error)

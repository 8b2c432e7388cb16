"""When memory runs out in the middle of a clip: it is made with one thing more spared, rung by rung (``core.economy``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from .device import MemoryShortage, release_memory
from .economy import Economy, OutOfMemory
from .types import GenerationRequest

if TYPE_CHECKING:
    from .pipeline import MiraPipeline

log = logging.getLogger(__name__)

Made = TypeVar("Made")
_RAN_OUT = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""What torch's allocators say, and cuBLAS and cuDNN, whose workspaces find no room."""


def within_memory(pipe: MiraPipeline, request: GenerationRequest, make: Callable[[], Made], economy: Economy, spared: Callable[[Economy], None] = lambda economy: None) -> Made:
    """What ``make`` gives with ``economy``, or with as much more spared as it takes; ``spared`` hears of each rung.

    ``make`` calls ``pipe`` for ``request`` (resolved). Raises OutOfMemory when nothing is left to spare, or the MemoryShortage whose numbers tell more, and whatever else ``make`` raises.
    """
    device = str(pipe.execution_device)
    while True:
        pipe.spare(economy)
        try:
            return make()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ran_out, short = str(error), isinstance(error, MemoryShortage)
        release_memory()  # out here, where no exception holds the tensors any more
        log.warning("memory ran out (%s) with %s: %s", pipe.stage, economy, ran_out)
        more = economy.more(pipe.stage, request, device, pipe.lazy_text_encoder is not None and pipe.lazy_text_encoder.loaded)
        if more is None:
            raise MemoryShortage(ran_out) if short else OutOfMemory(ran_out, economy)
        economy = more
        spared(economy)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device."""
    text = str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(words in text for words in _RAN_OUT)


def lack_of_memory(error: BaseException, request: GenerationRequest, advice: str = "") -> str:
    """What a user reads of it, ``advice`` being told before what always helps."""
    tried = f", even with {', '.join(error.tried.words)}" if isinstance(error, OutOfMemory) and error.tried.words else ""
    return f"There was not enough memory for {request.num_frames} frames of {request.width}×{request.height} with {request.model}{tried}. {advice}Try fewer frames or a smaller size, or close other programs; then retry."

"""When memory runs out in the middle of a clip: it is made with one thing more spared, rung by rung (``core.economy``)."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from .economy import Economy, OutOfMemory
from .types import GenerationRequest

if TYPE_CHECKING:
    from .pipeline import MiraPipeline

log = logging.getLogger(__name__)

Made = TypeVar("Made")


def within_memory(pipe: MiraPipeline, request: GenerationRequest, make: Callable[[], Made], economy: Economy, spared: Callable[[Economy], None] = lambda economy: None) -> Made:
    """What ``make`` gives with ``economy``, or with as much more spared as it takes; ``spared`` hears of each rung.

    ``make`` calls ``pipe`` for ``request`` (resolved). Raises OutOfMemory when nothing is left to spare, and whatever else ``make`` raises.
    """
    device = str(pipe.transformer.device)
    while True:
        pipe.spare(economy)
        try:
            return make()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ran_out = str(error)
        release_memory()  # out here, where no exception holds the tensors any more
        log.warning("memory ran out (%s) with %s: %s", pipe.stage, economy, ran_out)
        more = economy.more(pipe.stage, request, device, pipe.lazy_text_encoder is not None and pipe.lazy_text_encoder.loaded)
        if more is None:
            raise OutOfMemory(ran_out, economy)
        economy = more
        spared(economy)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device."""
    text = str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text


def release_memory() -> None:
    """Give back what the last pipeline or a failed request held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def lack_of_memory(error: BaseException, request: GenerationRequest, advice: str = "") -> str:
    """What a user reads of it, ``advice`` being told before what always helps."""
    tried = f", even with {', '.join(error.tried.words)}" if isinstance(error, OutOfMemory) and error.tried.words else ""
    return f"There was not enough memory for {request.num_frames} frames of {request.width}×{request.height} with {request.model}{tried}. {advice}Try fewer frames or a smaller size, or close other programs; then retry."

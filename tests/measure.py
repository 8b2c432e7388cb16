"""What a call takes, for tests and the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


def peak_memory(call: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes that torch holds at most, beyond what it held before, while ``call`` runs on ``device``."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        call()
    changes = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def work(call: Callable[[], object]) -> int:
    """Floating-point operations of the products in a call, those that ``core.products`` has oneDNN do among them, which torch's counter passes over."""

    def of_linear(tokens: tuple[int, ...], *_: object, out_shape: tuple[int, ...]) -> int:
        return 2 * prod(out_shape) * tokens[-1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: of_linear}) as counted:
        call()
    return counted.get_total_flops()

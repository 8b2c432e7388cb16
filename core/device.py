"""Where, in which number format and with how many threads to compute, and how much room there is."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import re
import shutil
from functools import cache
from pathlib import Path

import psutil
import torch
from safetensors import safe_open

from .types import nearest

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")
_CGROUP = Path("/sys/fs/cgroup")


class ResourceError(RuntimeError):
    """Memory or disk is too small for what was asked; the message has the numbers and says what to do."""


class DeviceError(ResourceError, ValueError):
    """A device or a number format that there is not, here or at all; the message says what there is."""


class MemoryShortage(ResourceError, MemoryError):
    """Less memory is free than was asked for. Nothing was begun, so the same may be tried with something else spared (``core.ladder``)."""


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """``auto``: CUDA, else Apple's GPU, else the CPU. Raises DeviceError for what is no device; ``require_device`` looks whether this machine has it."""
    if str(device) != "auto":
        try:
            return torch.device(device)
        except RuntimeError:
            raise DeviceError(f"There is no device {device!r}.{nearest(device, _DEVICES)} Known: {', '.join(_DEVICES)}.") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def require_device(device: torch.device) -> None:
    """Raise DeviceError for a GPU that this machine has not, or that torch cannot use."""
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = counts.get(device.type)
    if count is not None and (device.index or 0) >= count:
        raise DeviceError(f"There is no {device} here: torch {torch.__version__} finds {count or 'no'} {device.type} device{'' if count == 1 else 's'} on this machine. Use auto or cpu.")


def choose_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """``auto``: bf16 on GPUs and CPUs that multiply in it, fp16 on older GPUs, else fp32. Raises DeviceError for a name that is neither that nor one of DTYPES."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise DeviceError(f"There is no dtype {dtype!r}.{nearest(dtype, DTYPES)} Known: auto, {', '.join(DTYPES)}.")
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind == "mps":
        return torch.float16
    return torch.bfloat16 if _cpu_multiplies_in_bf16() else torch.float32


@cache
def _cpu_multiplies_in_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def set_threads() -> int:
    """Let torch use no more threads than this process has CPUs: a container's share is often far below the machine's cores,
    and threads that wait for each other's CPU are many times slower. ``OMP_NUM_THREADS`` has the last word. Returns the number.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))
    return torch.get_num_threads()


def available_cpus() -> int:
    """CPUs that this process may keep busy: its affinity, and its container's quota rounded up."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _CGROUP / "cpu.max"
    if quota.exists():
        share, period = quota.read_text().split()
        if share != "max":
            cpus = min(cpus, -(-int(share) // int(period)))
    return max(1, cpus)


def memory_available(device: str | torch.device = "cpu") -> int:
    """Bytes free on ``device``, those that torch keeps of freed tensors among them; on the CPU within the container's limit, if it has one."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    limit, usage = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(usage.read_text()) + _cached_files())
    return max(0, free)


def _cached_files() -> int:
    """Bytes of files that the container's usage counts and the system drops when memory is asked for: a model that was just read, say."""
    stat = _CGROUP / "memory.stat"
    values = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
    return sum(int(values.get(name, 0)) for name in ("active_file", "inactive_file"))


def release_memory() -> None:
    """Give back what the last pipeline or a failed request held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget_peak(device: torch.device) -> None:
    """Begin to measure ``peak_memory`` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # elsewhere than on Linux there is nothing to measure by
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use since ``forget_peak``: of a GPU those that torch held tensors in, of the CPU all that this process held. None where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if device.type == "cpu" and status.exists() else None
    return found and 1024 * int(found[1])


def require_memory(needed: int, device: str | torch.device, what: str) -> None:
    """Raise MemoryShortage when ``what`` needs more bytes than ``device`` has free."""
    free = memory_available(device)
    if needed > free:
        raise MemoryShortage(f"{what} takes {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free ({device}). Close other programs, use a machine with more memory, or a smaller model.")


def weights_memory(file: Path, dtype: torch.dtype) -> int:
    """Bytes that the tensors of a safetensors file take in ``dtype``; only its header is read. Raises SafetensorError."""
    with safe_open(file, "pt") as tensors:
        return dtype.itemsize * sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())


def require_disk(needed: int, place: str | Path, what: str) -> None:
    """Raise ResourceError when ``what`` needs more bytes than the disk of ``place`` has free."""
    place = Path(place).resolve()
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
    if needed > free:
        raise ResourceError(f"{what} takes {needed / 1e9:.1f} GB on disk and {place} has {free / 1e9:.1f} GB free. Free some space, or choose another folder.")

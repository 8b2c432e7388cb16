"""The one place where attention is computed, and the choice of what computes it."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

from .compute import ATTENTION as BACKENDS
from .types import nearest

_SMALL = 400 * 400
"""Below this many scores a head, training on a CPU is 3 to 6 times faster with plain products than with torch's fused kernel."""

_backend = "sdpa"


class AttentionError(ValueError):
    """What was chosen to compute attention is not there, or cannot; the message says what to do."""


def available_backends() -> list[str]:
    """Backends that are installed; sdpa always is."""
    return [name for name in BACKENDS if name == "sdpa" or importlib.util.find_spec(name)]


def set_attention_backend(name: str, device: torch.device | str) -> None:
    """Choose ``sdpa`` (torch's own flash, cuDNN or CPU kernels) or ``xformers`` (CUDA only) for a model on ``device``. Raises AttentionError with what is missing."""
    global _backend
    if name not in BACKENDS:
        raise AttentionError(f"There is no attention backend {name!r}.{nearest(name, BACKENDS)} Known: {', '.join(BACKENDS)}.")
    if name not in available_backends():
        raise AttentionError(f"{name} is not installed. Install it with `pip install {name}` or use sdpa.")
    if name == "xformers" and torch.device(device).type != "cuda":
        raise AttentionError(f"xformers computes attention on CUDA alone, and the model is on {device}. Use sdpa.")
    _backend = name


def get_attention_backend() -> str:
    """The backend in use."""
    return _backend


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d)) V for every head (Vaswani et al. 2017, eq. 1).

    ``query`` [B, N, D], ``key`` and ``value`` [B, M, D], D = heads x head width. Returns [B, N, D].
    """
    if _backend == "xformers" and query.is_cuda:
        from xformers.ops import memory_efficient_attention

        q, k, v = (t.unflatten(-1, (heads, -1)) for t in (query, key, value))  # B N h d
        return memory_efficient_attention(q, k, v).flatten(-2)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(-2, -3) for t in (query, key, value))  # B h N d
    if not query.is_cuda and torch.is_grad_enabled() and q.shape[-2] * k.shape[-2] <= _SMALL:
        out = torch.softmax(q @ (k.transpose(-1, -2) * q.shape[-1] ** -0.5), -1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(-2, -3).flatten(-2)

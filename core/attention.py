"""The one place where attention is computed, and the choice of what computes it."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F

from .compute import ATTENTION as BACKENDS
from .types import nearest

_SMALL, _MODERATE, _IN_ALL = 400 * 400, 1000 * 1000, 2**25
"""Up to _SMALL scores a head, training on a CPU is 3 to 6 times faster with plain products than with torch's fused kernel; up to _MODERATE 1.2 times. Those are kept for the
gradient: where they would be more than _IN_ALL together, the kernel keeps none."""

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
    q, k, v = (_by_head(t, heads) for t in (query, key, value))  # B h N d
    if not query.is_cuda and torch.is_grad_enabled() and _few(q.shape[-2] * k.shape[-2], len(q) * heads):
        out = torch.softmax(q @ (k.transpose(-1, -2) * q.shape[-1] ** -0.5), -1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(-2, -3).flatten(-2)


def attend_both(query: torch.Tensor, shared: tuple[torch.Tensor, torch.Tensor], own: tuple[torch.Tensor, torch.Tensor], heads: int) -> torch.Tensor:
    """``attend`` of G groups a clip to keys and values that a clip's groups share and to their own, under one softmax.

    ``query`` [B G, N, D]; ``shared`` key and value [B, L, D]; ``own`` [B G, M, D]. Returns [B G, N, D].

    Where there is more to share than to own, nothing is copied to every group: each part is asked alone, and the answers are weighed by
    the sums under their softmaxes, exp(lse) (Milakov & Gimelshein 2018, online softmax; Dao et al. 2022, section 3.1). So it is on CPUs, where
    it was measured to win; what is trained through asks both at once, as the kernel that tells the sums has no gradient of them.
    """
    groups = len(query) // len(shared[0])
    if query.device.type == "cpu" and not torch.is_grad_enabled() and shared[0].shape[1] > own[0].shape[1]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        clips = query.unflatten(0, (-1, groups)).flatten(1, 2)  # B GN D
        told, told_sum = kernel(*(_by_head(t, heads) for t in (clips, *shared)))[:2]  # B h GN d, B h GN
        seen, seen_sum = kernel(*(_by_head(t, heads) for t in (query, *own)))[:2]  # BG h N d, BG h N
        told, told_sum = (t.transpose(1, 2).reshape(len(query), -1, heads, *t.shape[3:]) for t in (told, told_sum))  # BG N h (d)
        weight = torch.sigmoid(told_sum - seen_sum.transpose(1, 2)).to(query.dtype)
        return torch.lerp(seen.transpose(1, 2), told, weight[..., None]).flatten(-2)
    spread = (x[:, None].expand(-1, groups, -1, -1) for x in shared)
    key, value = (torch.cat([x, y.unflatten(0, (-1, groups))], 2).flatten(0, 1) for x, y in zip(spread, own))  # BG L+M D
    return attend(query, key, value, heads)


def _few(scores: int, matrices: int) -> bool:
    return scores <= _SMALL or scores <= _MODERATE and scores * matrices <= _IN_ALL


def _by_head(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, D] as [B, heads, N, D / heads]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(-2, -3)

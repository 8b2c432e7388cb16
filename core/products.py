"""A linear layer in one kernel with its bias and its activation, on CPUs that multiply in bf16.

torch writes the bias first and adds the product up on it, and the activation reads and writes everything once more: a third of a step of mira-nano on a CPU with
AMX. oneDNN does both inside the product, for weights that lie in tiles as its kernels read them; laying them so each time is cheaper than holding them twice.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pays(tokens: Tensor, weight: Tensor) -> bool:
    """Whether ``linear`` is faster than torch's own: with fewer tokens than a token has values, laying the weights out takes longer than what is spared."""
    return (
        tokens.device.type == "cpu" and tokens.dtype == weight.dtype == torch.bfloat16 and tokens.numel() >= weight.shape[1] ** 2
        and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )  # fmt: skip


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``tokens`` [..., in] times ``weight`` [out, in] plus ``bias`` [out], then the tanh-approximated GELU if asked for: [..., out]. Where ``pays`` says so, and without a gradient.

    The kernels are those that torch.compile calls on CPUs; sums and GELU are in fp32 (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2).
    """
    tiles = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), tokens.numel() // weight.shape[1])
    return torch.ops.mkldnn._linear_pointwise(tokens, tiles, bias, *(("gelu", [], "tanh") if gelu else ("none", [], "")))

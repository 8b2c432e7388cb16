"""A linear layer in one kernel with its bias and its activation, on CPUs.

torch writes the bias first and adds the product up on it, and the activation reads and writes everything once more: a third of a step of mira-nano in bf16 on a
CPU with AMX. oneDNN does both inside the product. In bf16 it does so for weights that lie in tiles as its kernels read them; laying them so each time is cheaper
than holding them twice. In fp32 it takes them as they are, and is as fast as torch's MKL but for the GELU, which then costs next to nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST, FEWEST_WITH_GELU = 1536, 512
"""Tokens, in bf16: with fewer, to lay the weights out takes longer than what is spared."""


def apply(layer: nn.Module, tokens: Tensor, gelu: bool = False) -> Tensor:
    """What ``layer`` makes of ``tokens`` [..., in], and then the tanh-approximated GELU if asked for: in one kernel where that is faster and the layer is a plain linear one, of its own weights alone."""
    if type(layer) is nn.Linear and pays(tokens, layer.weight, gelu):
        return linear(tokens, layer.weight, layer.bias, gelu)
    made = layer(tokens)
    if not gelu:
        return made
    return F.gelu(made, approximate="tanh") if torch.is_grad_enabled() else torch.ops.aten.gelu_(made, approximate="tanh")


def pays(tokens: Tensor, weight: Tensor, gelu: bool = False) -> bool:
    """Whether ``linear`` is faster than torch's own: in bf16 for many tokens, in fp32 for the GELU."""
    if tokens.device.type != "cpu" or tokens.dtype != weight.dtype or torch.is_grad_enabled() or torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return False
    if tokens.dtype == torch.float32:
        return gelu
    many = tokens.numel() >= (FEWEST_WITH_GELU if gelu else FEWEST) * weight.shape[1]
    return many and tokens.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``tokens`` [..., in] times ``weight`` [out, in] plus ``bias`` [out], then the tanh-approximated GELU if asked for: [..., out]. Where ``pays`` says so, and without a gradient.

    The kernels are those that torch.compile calls on CPUs; sums and GELU are in fp32 (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2).
    """
    weight = weight.detach()
    if weight.dtype == torch.bfloat16:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, tokens.numel() // weight.shape[1])
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, *(("gelu", [], "tanh") if gelu else ("none", [], "")))

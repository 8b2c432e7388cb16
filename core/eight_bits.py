"""The transformer's blocks with 8 bits a weight: half the memory of bf16, and matrix products that devices do at up to twice the speed.

Weights keep a scale for each output, what they are multiplied with gets one for each token as it comes (W8A8, "dynamic"): Micikevicius et al. 2022
(arXiv:2209.05433) for fp8, Dettmers et al. 2022 (arXiv:2208.07339, section 2) for int8. Approximate, and so never used without being asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .types import RequestError

if TYPE_CHECKING:
    from .transformer import MiraTransformer3DModel

FORMATS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_LARGEST = {"fp8": 448.0, "int8": 127.0}
_MULTIPLE = 16
"""Of which a layer's sides have to be multiples, for cuBLAS; others stay as they are."""
_SMALLEST = 1e-12
"""Below every scale, so that a row of zeros stays one."""
_FEW = 16
"""So many tokens are too few for CUDA's product of int8."""


def format_for(device: torch.device, dtype: torch.dtype) -> str:
    """``fp8`` on NVIDIA's GPUs that multiply in it (Ada, Hopper and later) with a model in bf16, ``int8`` on older ones and on CPUs. Raises RequestError("weights") for other devices."""
    if device.type == "cpu":
        return "int8"
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 9) and dtype == torch.bfloat16:
            return "fp8"
        if capability >= (7, 5):
            return "int8"
        raise RequestError("weights", f"{torch.cuda.get_device_name(device)} cannot multiply in 8 bits: that takes compute capability 7.5 (Turing) or later, and it has {capability[0]}.{capability[1]}. Use weights 'full'.")
    raise RequestError("weights", f"Weights of 8 bits are for NVIDIA's GPUs and CPUs, and the model is on {device}. Use weights 'full'.")


class EightBitLinear(nn.Linear):
    """A linear layer, for inference alone, that holds ``weight`` int8 [out, in] (of fp8 the bits) and ``scale`` fp32 [out]."""

    def __init__(self, linear: nn.Linear, format: str):
        nn.Module.__init__(self)  # its weight is no parameter, which nothing could train
        self.in_features, self.out_features, self.format = linear.in_features, linear.out_features, format
        self.register_parameter("bias", linear.bias)
        rows, scale = by_row(linear.weight.detach(), format)
        self.register_buffer("weight", rows.view(torch.int8))  # as whole numbers, which no change of the model's dtype touches
        self.register_buffer("scale", scale[:, 0])

    def forward(self, tokens: Tensor) -> Tensor:
        return multiply(tokens, self.weight, self.scale, self.bias, format=self.format)


def by_row(values: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """``values`` [..., D] in 8 bits, and what to multiply each row with to have them back: fp32 [..., 1]."""
    scale = values.abs().amax(-1, keepdim=True).float().clamp(min=_SMALLEST) / _LARGEST[format]
    scaled = values / scale
    return (scaled.round() if format == "int8" else scaled).to(FORMATS[format]), scale


def multiply(tokens: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, format: str) -> Tensor:
    """``tokens`` [..., in] through a linear layer of ``weight`` int8 [out, in], ``scale`` fp32 [out] and ``bias`` [out]: [..., out] in the tokens' dtype."""
    flat = tokens.flatten(0, -2)
    if flat.is_cuda and format == "int8" and len(flat) <= _FEW:
        return F.linear(tokens, (weight * scale[:, None]).to(tokens.dtype), bias)
    rows, row_scale = by_row(flat, format)
    if format == "fp8":
        out = torch._scaled_mm(rows, weight.view(FORMATS[format]).t(), scale_a=row_scale, scale_b=scale[None], bias=bias, out_dtype=tokens.dtype, use_fast_accum=True)
    else:
        out = torch._int_mm(rows, weight.t()).float().mul_(row_scale).mul_(scale).to(tokens.dtype)  # fp16 could not hold the sums
        out = out if bias is None else out.add_(bias)
    return out.view(*tokens.shape[:-1], -1)


def keep_in_eight_bits(transformer: MiraTransformer3DModel, format: str) -> None:
    """Put layers of 8 bits in the place of the linear layers of all blocks, one after the other: no second copy of the whole is held. Those of LoRAs are not to be there."""
    for block in (*transformer.transformer_blocks, *transformer.temporal_transformer_blocks):
        for name, layer in list(block.named_modules()):
            if type(layer) is nn.Linear and layer.in_features % _MULTIPLE == layer.out_features % _MULTIPLE == 0:
                block.set_submodule(name, EightBitLinear(layer, format))
        block.join_projections()

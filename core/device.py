"""Where and in which number format to compute."""

from __future__ import annotations

import torch


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """``auto``: CUDA, else Apple's GPU, else the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """``auto``: bf16 on GPUs and CPUs that multiply in it, fp16 on older GPUs, else fp32."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind == "mps":
        return torch.float16
    with open("/proc/cpuinfo") as f:
        flags = f.read()
    return torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32

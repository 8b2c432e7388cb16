"""Muon for many small matrices: those of one shape go through Newton-Schulz together."""

from __future__ import annotations

import torch
from torch import Tensor

from core.device import choose_dtype

COEFFICIENTS = (3.4445, -4.775, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal (Jordan 2024, https://kellerjordan.github.io/posts/muon).

    The same mathematics as ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``, which takes one matrix at a time: batched products halve the optimizer's
    time for a transformer of many small matrices. Updates are as large as AdamW's (Liu et al. 2025,
    arXiv:2502.16982, eq. 4), so that one learning rate and one schedule serve both.

    Args:
        params: Matrices [m, n].
        lr: Learning rate, in AdamW's measure.
        momentum: Of the gradients' average; Nesterov's look-ahead is on.
        weight_decay: Decoupled, as AdamW's.
    """

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, matrices in by_shape.items():
                averages = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in matrices]
                gradients = [p.grad for p in matrices]
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                updates = orthogonalised(torch.stack(torch._foreach_lerp(gradients, averages, group["momentum"])))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(updates.to(matrices[0].dtype).unbind()), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices [k, m, n] with all singular values near 1: five steps of the quintic Newton-Schulz iteration, in bf16 where the device multiplies in it.

    On a CPU that only emulates bf16 it would take longer than everything else of a training step.
    """
    a, b, c = COEFFICIENTS
    fast = choose_dtype("auto", matrices.device) == torch.bfloat16
    x = matrices.to(torch.bfloat16 if fast else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x

"""ZeRO's second stage (Rajbhandari et al. 2020, arXiv:1910.02054) by DeepSpeed itself, as Mira was trained: ``sharding=deepspeed``.

Weights and their average are whole in every process; gradients, the optimizer's moments and the fp32 weights that it steps are divided among
them, whatever weight they belong to. ``sharding=zero2`` divides as much by torch alone (see ``processes``) and holds no second copy of the weights;
this is for those who have DeepSpeed's ways of communicating tuned for their machines. It needs the package deepspeed.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
from torch import nn

BUCKET = 50_000_000
"""Numbers of the gradient that are reduced together: DeepSpeed holds room for so many, ten times more if one lets it."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW, by torch's names."""


class Trained(nn.Module):
    """A network of which only the weights that are trained are seen: DeepSpeed wants all that it sees in one number format."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.weights = nn.ParameterList(p for p in network.parameters() if p.requires_grad)
        self.__dict__["network"] = network  # past nn.Module, which would see all of it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)


class ZeroTwo:
    """AdamW over weights whose gradients and moments are divided; to the loop an optimizer, whose state is the whole one of AdamW.

    ``network`` is what the loss has to run on. The fp32 weights that ``optimizer`` has must be all that ``network`` trains.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float, device: torch.device):
        os.environ.setdefault("DS_ACCELERATOR", device.type)  # it would look for one, and ask for a compiler on the way
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.WARNING)
        self.param_groups = [dict(group) for group in optimizer.param_groups]  # DeepSpeed puts its parts in theirs
        settings = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": max_grad_norm, "zero_allow_untested_optimizer": True, "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET}}
        self.network, self._zero, *_ = deepspeed.initialize(model=Trained(network), optimizer=optimizer, config=settings, dist_init_required=False)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def norm(self) -> float:
        """Of the whole gradient, before ``step`` clips it; NaN where it is not finite. All processes call it together."""
        norm = float(self._zero.scaled_global_norm())
        return norm if norm >= 0 else math.nan

    def step(self) -> None:
        """Clip and step. All processes call it together."""
        for group, own in zip(self._zero.param_groups, self.param_groups):
            group.update({name: value for name, value in own.items() if name != "params"})
        self.network.step()

    def state_dict(self) -> dict[str, Any]:
        """That of AdamW in one process. All processes call it together."""
        from deepspeed.utils import safe_get_full_optimizer_state

        taken = next((moments["step"] for moments in self._zero.state.values()), None)
        state = {} if taken is None else {number: {"step": taken.clone(), **{name: safe_get_full_optimizer_state(p, name) for name in MOMENTS}} for number, p in enumerate(self._parameters)}
        numbers = iter(range(len(self._parameters)))
        return {"state": state, "param_groups": [{**group, "params": [next(numbers) for _ in group["params"]]} for group in self.param_groups]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over the state of AdamW in one process, and the weights as the network has them now. Before the first step."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.refresh_fp32_params()
        if not saved["state"]:
            return
        taken = max(moments["step"] for moments in saved["state"].values())
        for group in self._zero.param_groups:
            for part in group["params"]:
                self._zero.state[part] = {"step": taken.clone(), **{name: torch.zeros_like(part) for name in MOMENTS}}
        self._zero._lazy_init_hp_params_optimizer_state()  # as after its first step: now it knows whose moments are where
        for number, moments in saved["state"].items():
            for name in MOMENTS:
                safe_set_full_optimizer_state(self._parameters[number], moments[name], name)

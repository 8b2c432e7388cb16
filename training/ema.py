"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from .processes import Processes


class EMA:
    """Of the weights that are trained: keeps ``average = d average + (1 - d) weights`` with the decay warmed up as min(decay, (1 + n) / (10 + n)).

    The warm-up is the usual one (TensorFlow's ``ExponentialMovingAverage``): early averages follow the weights closely.
    """

    def __init__(self, module: torch.nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.average = {name: p.detach().clone().float() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Take in the module's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = dict(module.named_parameters())
        averages = list(self.average.values())
        torch._foreach_lerp_(averages, [weights[name].detach().float() for name in self.average], 1 - decay)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(Processes.part_of(value, self.average[name]))


@contextmanager
def using(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The model with these weights in place of those that are trained, and in evaluation mode."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name: p.data for name, p in own.items()}
    for name, parameter in own.items():
        parameter.data = weights[name].to(parameter.data)
    model.eval()
    try:
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = kept[name]
        model.train()

"""A GPU that is not there: tensors that say they are on one, computed on the CPU, and that fail where a process would wait for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda:0")
_LOOK = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")
"""Operations whose result, or the shape of it, the process has to know."""


class Waited(AssertionError):
    """What was done would have this process wait until a GPU has finished its work."""


class OnGPU(torch.Tensor):
    """``inner``, as if it were on a GPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGPU:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=GPU)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class NoWaiting(TorchDispatchMode):
    """Within it what is asked for on a GPU becomes an OnGPU, and waiting for one raises Waited."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    name, here = func.overloadpacket.__name__, any(isinstance(each, OnGPU) for each in given)
    asked = kwargs.get("device")
    there = here if asked is None else torch.device(asked).type == "cuda"
    crosses = asked is not None and bool(given) and there != here
    if crosses and not kwargs.get("non_blocking") or here and name in _LOOK:
        raise Waited(f"{func} between {[str(each.device) for each in given]} and {asked}")
    plain_args, plain_kwargs = tree_map(lambda each: each.inner if isinstance(each, OnGPU) else each, (args, kwargs | ({"device": "cpu"} if asked is not None else {})))
    made = func(*plain_args, **plain_kwargs)
    return tree_map(lambda each: OnGPU(each) if there and isinstance(each, torch.Tensor) else each, made)

"""Several processes that train one model, each on its share of every batch: torch's DistributedDataParallel, its FSDP2, or DeepSpeed, set up by accelerate.

With FSDP2 (``fully_shard``) each process keeps a part of every weight, its gradient and its optimizer's moments: ``sharding=full`` gathers a
block's weights whenever it runs; ``sharding=zero2`` keeps them gathered from the forward pass to the backward pass, which is ZeRO's second
stage (Rajbhandari et al. 2020, arXiv:1910.02054), what Mira was trained with through DeepSpeed; ``sharding=deepspeed`` is DeepSpeed itself (see ``zero``).
Checkpoints are whole and the same in every case, and a run may go on another way than it began. They are started by ``num_processes=N`` on one machine, or by ``torchrun`` (or ``accelerate launch``) on one or many, ``-m training`` being
what it starts. A batch is divided among them, so that a run does the same, up to rounding, in one process or in many.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from core.device import available_cpus, choose_device

from .config import USER_TARGETS, ConfigError, TrainConfig
from .zero import ZeroTwo

PATIENCE = timedelta(days=1)
"""How long the others wait while one process encodes the clips, or makes samples."""


def started_by_a_launcher() -> bool:
    """Whether this process is one of several already."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(config: TrainConfig, device: str, argv: Sequence[str]) -> NoReturn:
    """Become torchrun with ``config.num_processes`` processes of ``python -m training ARGV``. Raises ConfigError for a run that they cannot share."""
    count = config.num_processes
    check_divides(config, count)
    if choose_device(device).type == "cuda" and count > torch.cuda.device_count():
        raise ConfigError(f"num_processes is {count}, and this machine has {torch.cuda.device_count()} GPUs. Each process needs one.")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpus() // count)))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "training", *argv])


def check_divides(config: TrainConfig, count: int) -> None:
    """Raises ConfigError for a run that ``count`` processes cannot share."""
    if count == 1:
        return
    if config.target not in USER_TARGETS or not config.dataset:
        raise ConfigError(f"{config.target} on Toy World is trained by one process; {count} are asked for.")
    for stage in config.stages:
        batch = stage.train_batch_size
        if batch % count:
            raise ConfigError(f"train_batch_size is {batch}; {count} processes share it, so it must be a multiple of {count}.")
        if odd := next((length for length in stage.num_frames if stage.clips(length) % count), None):
            fits = next(size for size in itertools.count(batch + 1) if not any(replace(stage, train_batch_size=size).clips(length) % count for length in stage.num_frames))
            raise ConfigError(f"train_batch_size is {batch} for clips of {max(stage.num_frames)} frames, which makes {stage.clips(odd)} of {odd} frames a step; {count} processes share these, so it must be a multiple of {count}. The next train_batch_size that fits is {fits}; or leave that length out.")


class Processes:
    """This process among those that train together; alone where no launcher started it."""

    def __init__(self, device: str = "auto", sharding: str = "none"):
        self.device, self.sharding = choose_device(device), sharding
        self.rank, self.count, self._state = 0, 1, None
        if started_by_a_launcher():
            self._state = PartialState(cpu=self.device.type == "cpu", timeout=PATIENCE)
            self.rank, self.count = self._state.process_index, self._state.num_processes
            self.device = self._state.device

    @property
    def main(self) -> bool:
        """Whether this one writes the run folder."""
        return self.rank == 0

    @property
    def holds_device(self) -> bool:
        """Whether this one has its device to itself; on a CPU the first of a machine holds it for all."""
        return self._state is None or self.device.type != "cpu" or self._state.is_local_main_process

    def share(self, items: Any) -> Any:
        """This process's part of a batch: of a tensor's first dimension, or of a list."""
        return items if self.count == 1 else items[self.rank :: self.count]

    @property
    def sharded(self) -> bool:
        """Whether each process keeps only a part of the weights."""
        return self.count > 1 and self.sharding in ("zero2", "full")

    def prepare(self, network: nn.Module, units: Sequence[nn.Module | list[nn.Module]], dtype: torch.dtype | None = None) -> nn.Module:
        """``network`` whose gradients are the mean over all processes; weights that a step leaves out (temporal blocks of single frames) are no error.

        ``units`` are the modules whose weights are gathered together where they are sharded, the inner ones first; they compute in ``dtype``.
        """
        if self.count == 1:
            return network
        if self.sharding == "deepspeed":
            return network  # it takes it together with its optimizer: ``divided``
        if not self.sharded:
            return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None, find_unused_parameters=True)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)  # gradients add up in fp32, as in one process
        mesh = init_device_mesh(self.device.type, (self.count,))
        for unit in units:
            fully_shard(unit, mesh=mesh, reshard_after_forward=self.sharding == "full", mp_policy=policy)
        return network

    def divided(self, network: nn.Module, optimizers: list[Any], max_grad_norm: float) -> tuple[nn.Module, list[Any]]:
        """What the loss runs on, and what steps its weights: as they are, but for DeepSpeed."""
        if self.count == 1 or self.sharding != "deepspeed":
            return network, optimizers
        zero = ZeroTwo(network, *optimizers, max_grad_norm, self.device)
        return zero.network, [zero]

    @contextmanager
    def apart(self, network: nn.Module) -> Iterator[None]:
        """Gradients stay in this process: for all but the last batch of a step."""
        with network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext():
            roots = [module for module in network.modules() if isinstance(module, FSDPModule)] if self.sharded else []
            for module in roots:
                module.set_requires_gradient_sync(False, recurse=False)
            last = getattr(network, "set_gradient_accumulation_boundary", lambda last: None)  # DeepSpeed's
            last(False)
            yield
            last(True)
            for module in roots:
                module.set_requires_gradient_sync(True, recurse=False)

    def whole(self, state: Any) -> Any:
        """``state`` with every tensor whole, on the CPU where it was in parts. All processes call it together."""
        if isinstance(state, DTensor):
            return state.full_tensor().cpu()
        if isinstance(state, dict):
            return {name: self.whole(value) for name, value in state.items()}
        return [self.whole(value) for value in state] if isinstance(state, list) else state

    @staticmethod
    def part_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What this process keeps of a whole tensor, if ``like`` is kept in parts. All processes call it together."""
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements) if isinstance(like, DTensor) else value

    def mean(self, value: torch.Tensor) -> float:
        """A number's mean over the processes."""
        if self.count == 1:
            return float(value)
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return float(total) / self.count

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, raised where one process raises it: all then do the same."""
        if self.count == 1:
            return flags
        raised = torch.tensor([int(flag) for flag in flags], device=self.device)
        torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def gather(self, rows: list[Any]) -> list[Any]:
        """The rows of all processes, one after the other."""
        if self.count == 1:
            return rows
        parts: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process of each machine goes ahead, and the others find its files."""
        with self._state.local_main_process_first() if self._state else nullcontext():
            yield

    def wait(self) -> None:
        """Until all are here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def end(self) -> None:
        """Leave the group, all at once: one that is late should not close connections whose other end, and the store that the first process keeps, have long gone."""
        if self._state is not None:
            self.wait()
            self._state.destroy_process_group()

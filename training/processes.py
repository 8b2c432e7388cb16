"""Several processes that train one model, each on its share of every batch: torch's DistributedDataParallel, set up by accelerate.

They are started by ``num_processes=N`` on one machine, or by ``torchrun`` (or ``accelerate launch``) on one or many, ``-m training`` being
what it starts. A batch is divided among them, so that a run does the same, up to rounding, in one process or in many.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from core.device import available_cpus, choose_device

from .config import USER_TARGETS, ConfigError, TrainConfig

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
        if stage.train_batch_size % count:
            raise ConfigError(f"train_batch_size is {stage.train_batch_size}; {count} processes share it, so it must be a multiple of {count}.")


class Processes:
    """This process among those that train together; alone where no launcher started it."""

    def __init__(self, device: str = "auto"):
        self.device = choose_device(device)
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

    def prepare(self, network: nn.Module) -> nn.Module:
        """``network`` whose gradients are the mean over all processes; weights that a step leaves out (temporal blocks of single frames) are no error."""
        if self.count == 1:
            return network
        return DistributedDataParallel(network, device_ids=[self.device] if self.device.type == "cuda" else None, find_unused_parameters=True)

    @staticmethod
    def apart(network: nn.Module) -> AbstractContextManager:
        """Gradients stay in this process: for all but the last batch of a step."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

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
        """Leave the group."""
        if self._state is not None:
            self._state.destroy_process_group()

"""What begins a run: its checks, its turn at the device, its task, and then the loop (``trainer``)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from core.device import choose_device, require_device
from core.device_lock import DeviceTurn, device_held, lock_path
from core.files import WriteError, replacing
from core.provenance import device_words

from .config import ConfigError, TrainConfig, missing_package, save_config
from .preflight import memory_free
from .processes import Processes, check_divides
from .runs import SAMPLE_NOW, SAVE_NOW, Status, begun_from, environment, first_process, last_step, read_run, step_of
from .trainer import Trainer

log = logging.getLogger(__name__)


def train(config: TrainConfig, device: str = "auto") -> Path:
    """Run the training that ``config`` describes; returns the last checkpoint's folder.

    It waits until the studio over the same data folder has finished its video, or another run has ended, and holds the device to its own end.
    What it is doing, and why it ended, is in the run folder's status.json. Raises ConfigError, ResourceError for a device that this machine has
    not, WriteError, and what ``Trainer.run`` raises.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    require_alone(output_dir)
    for name in (SAVE_NOW, SAMPLE_NOW):
        (output_dir / name).unlink(missing_ok=True)
    status, trainer = Status("waiting", os.getpid(), psutil.Process().create_time(), last_step(output_dir)), None
    tell = (lambda new: new.write(output_dir)) if first_process() else (lambda new: None)
    try:
        require_device(choose_device(device))
        if missing := missing_package(config):
            raise ConfigError(missing)
        processes, done = Processes(device, config.sharding), begun_from(config)
        if len(steps := set(processes.gather([step_of(done) if done else 0]))) > 1:
            raise ConfigError(f"The processes would begin at different steps ({', '.join(map(str, sorted(steps)))}): {output_dir} is not the same folder on all machines. Name one that they share.")
        if done and step_of(done) >= config.total_steps and config.resume == "auto":
            log.warning("nothing is left to train: %s has all of the %d steps. To go on, name a larger max_train_steps; to begin anew, another output_dir, or resume=none.", done, config.total_steps)
            tell(replace(status, state="finished"))
            processes.end()
            return done
        check_divides(config, processes.count)
        tell(status)
        if first_process() and not (file := output_dir / "config.yaml").exists():
            save_config(config, file)  # so that it is in the list while it waits
        with ExitStack() as stack:
            if processes.holds_device:
                processes.device = stack.enter_context(held(config.data_dir, processes.device, processes.count == 1))
            tell(replace(status, state="preparing"))
            task = prepare(config, processes, lambda done, total: _tell_progress(tell, status, done, total))
            trainer = Trainer(config, task, processes)
            folder = trainer.run()
        trainer.tell("finished" if trainer.step >= config.total_steps else "paused")
        processes.end()
        return folder
    except Exception as error:
        with contextlib.suppress(WriteError):  # on a full disk the first error is the one to be told
            tell(replace(trainer.status if trainer else status, state="failed", message=str(error) or type(error).__name__))
        raise


@contextlib.contextmanager
def held(data_dir: str | Path, device: torch.device, any_gpu: bool = True) -> Iterator[torch.device]:
    """Hold a device, once it is free; with ``any_gpu`` and a device that is only said to be a GPU the freest one, so that runs and videos spread over them."""
    if any_gpu and device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1:
        gpus = sorted((torch.device("cuda", index) for index in range(torch.cuda.device_count())), key=lambda gpu: -memory_free(str(gpu)))
        for gpu in gpus:
            if (turn := DeviceTurn(lock_path(data_dir, gpu))).take():
                try:
                    yield gpu
                finally:
                    turn.give()
                return
        device = gpus[0]
    with device_held(lock_path(data_dir, device)):
        yield device


def require_alone(output_dir: Path) -> None:
    """Raises ConfigError where another process is at work in a run folder: the two would write over each other's files. One that began this one is the same run's."""
    run, own = read_run(output_dir), psutil.Process()
    if run.working and first_process() and run.pid not in (own.pid, *(parent.pid for parent in own.parents())):
        raise ConfigError(f"{output_dir} is at work already, in process {run.pid}, at step {run.step}. Name another output_dir, or pause that run first.")


def prepare(config: TrainConfig, processes: Processes, progress: Callable[[int, int], None]) -> Any:
    """What is trained (``trainer.Task``), with its clips encoded; the run folder then says on what, and on which machine."""
    from .targets import build_task

    with processes.first_alone():
        task = build_task(config, processes.device, progress, processes)
    if processes.main:
        output_dir = Path(config.output_dir)
        _write(output_dir / "environment.json", environment(config, device_words(processes.device)))
        if hasattr(getattr(task, "dataset", None), "facts"):
            facts = task.dataset.facts()
            log.info("%d takes of clips are trained on, %d are held out, %d cannot be used", facts["takes"] - facts["held_out"], facts["held_out"], len(facts.get("rejected", ())))
            if (kept := getattr(task, "kept", None)) is not None:
                facts |= {"kept": kept.facts()}
                log.info("held to what the model makes of %d takes of clips without the LoRA", facts["kept"]["takes"])
            _write(output_dir / "dataset.json", facts)
    return task


def _write(file: Path, facts: Mapping[str, Any]) -> None:
    """Raises WriteError."""
    with replacing(file) as work:
        work.write_text(json.dumps(facts, indent=1))


def _tell_progress(tell: Callable[[Status], None], status: Status, done: int, total: int) -> None:
    """Of clips that are looked at, then encoded, and of captions: what is counted goes without a name."""
    if done % max(1, total // 50) == 0 or done == total:
        tell(replace(status, state="preparing", message=f"{done} of {total}"))

"""Where a run's figures go beside its metrics.jsonl: TensorBoard's files in its folder, and trackio or W&B where ``report_to`` names them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from core.files import WriteError

from .config import TrainConfig

PROJECT = "mira"
Log = Callable[[int, Mapping[str, float]], None]


def open_trackers(config: TrainConfig, step: int) -> list[Log]:
    """What takes the figures of a step, for each of ``config.report_to``; a run that is resumed at ``step`` goes on there.

    TensorBoard and trackio stay on this machine; W&B sends them to its servers. They must be installed. Raises WriteError, at any step, where TensorBoard's files cannot be written.
    """
    openers = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
    return [openers[name](config, step) for name in config.report_to]


def _tensorboard(config: TrainConfig, step: int) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(config.output_dir) / "tensorboard"
    with _into(folder):
        writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(at: int, figures: Mapping[str, float]) -> None:
        with _into(folder):
            for name, value in figures.items():
                writer.add_scalar(name, value, at)
            writer.flush()

    return log


@contextlib.contextmanager
def _into(folder: Path) -> Iterator[None]:
    """Raises WriteError for any OSError: what tensorboard could not write a moment ago, in a thread of its own, it tells at the next call."""
    try:
        yield
    except OSError as error:
        raise WriteError(folder, error) from error


def _trackio(config: TrainConfig, step: int) -> Log:
    import trackio

    trackio.init(project=PROJECT, name=Path(config.output_dir).name, config=dataclasses.asdict(config), resume="allow")
    return lambda at, figures: trackio.log(dict(figures), step=at)


def _wandb(config: TrainConfig, step: int) -> Log:
    import wandb

    name = Path(config.output_dir).name
    run = wandb.init(project=PROJECT, name=name, id=name, resume="allow", dir=config.output_dir, config=dataclasses.asdict(config))
    return lambda at, figures: run.log(dict(figures), step=at)

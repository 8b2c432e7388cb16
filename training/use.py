"""A checkpoint of a run becomes a model, or a LoRA, that requests can name."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from core.files import replacing
from core.loras import FOLDER, SUFFIX
from core.provenance import TRAINED
from core.releases import installed_folder

from .config import ConfigError
from .runs import Run

LORA_FILE = "lora.safetensors"
"""In a LoRA's checkpoint."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def use_checkpoint(run: Run, data_dir: str | Path, step: int | None = None, name: str | None = None) -> Path:
    """Put a run's checkpoint (the newest by default) where requests find it; returns the model folder, or the LoRA's file.

    Raises ConfigError when the checkpoint, or the model it began with, is not there.
    """
    checkpoint = checkpoint_of(run, step)
    data_dir, name = Path(data_dir), name or f"{run.name}-{checkpoint.name}"
    if not NAME.fullmatch(name):
        raise ConfigError(f"The name {name!r} cannot be a file's. Use letters, digits, dots, dashes and underscores.")
    if (checkpoint / LORA_FILE).is_file():
        target = data_dir / FOLDER / f"{name}{SUFFIX}"
        with replacing(target) as file:
            shutil.copyfile(checkpoint / LORA_FILE, file)
        return target
    return write_model(run, checkpoint, data_dir / "models" / name)


def checkpoint_of(run: Run, step: int | None) -> Path:
    """The folder of a step's checkpoint; of the newest one for None. Raises ConfigError."""
    found = next((c for c in reversed(run.checkpoints()) if step is None or c.name == f"step-{step}"), None)
    if found is None:
        there = ", ".join(c.name for c in run.checkpoints()) or "none yet"
        raise ConfigError(f"{run.name} has no checkpoint{'' if step is None else f' of step {step}'}; there are: {there}.")
    return found


def write_model(run: Run, checkpoint: Path, target: Path) -> Path:
    """A checkpoint as a whole model folder, in diffusers' layout. Raises ConfigError.

    It shares the files of the parts that were not trained with the model that the run began with, where the disk allows it, and keeps in
    ``trained.json`` what it comes from.
    """
    trained = [part for part in ("transformer", "scheduler", "vae") if (checkpoint / part).is_dir()]
    if not trained or run.config is None or not run.config.model:
        raise ConfigError(f"{checkpoint} holds no part of a model that it began with. A LoRA stays a file of its own; `python -m training export` puts parts of a new model together.")
    base = installed_folder(run.config.model, run.config.data_dir)
    if base is None:
        raise ConfigError(f"The model {run.config.model}, which {run.name} began with, is not on this machine; its other parts are needed.")
    with replacing(target) as folder:
        shutil.copytree(base, folder, copy_function=_link)
        for part in trained:
            shutil.rmtree(folder / part, ignore_errors=True)
            shutil.copytree(checkpoint / part, folder / part)
        dataset = run.folder / "dataset.json"
        record = {"run": run.name, "step": int(checkpoint.name.split("-")[1]), "model": run.config.model, "dataset": Path(run.config.dataset).name}
        record["dataset_hash"] = json.loads(dataset.read_text())["hash"] if dataset.is_file() else None
        for stale in ("README.md", "scores.json", TRAINED):  # they tell of the other model
            (folder / stale).unlink(missing_ok=True)
        (folder / TRAINED).write_text(json.dumps(record, indent=1))
    return target


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

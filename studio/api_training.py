"""Endpoints for training runs, where the studio trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from training.config import make_config
from training.runs import Run
from training.use import use_checkpoint

from .services import Services
from .training_form import PRESETS, launch_run, preset_config, require_preset
from .training_screen import compare_checkpoints


def endpoints(services: Services) -> tuple[Callable[..., Any], ...]:
    """The functions."""
    runs = services.runs

    def list_runs() -> list[dict[str, Any]]:
        """The training runs, newest first: name, state, step, message, their checkpoints' steps, and the last figures that were logged."""
        return [_told(run) for run in runs.list()]

    def start_run(settings: dict[str, Any], preset: str = PRESETS[0], name: str = "") -> dict[str, Any]:
        """Begin a training run in a process of its own; as list_runs tells of it.

        Args:
            settings: What differs from the preset, by the names of its YAML file: {"dataset": "/clips", "max_train_steps": 500}. "dataset" is needed.
            preset: A kind of training: lora_nano, nano, lora_128, finetune_128 or finetune_384.
            name: Of the run; one is made if none is given.
        """
        require_preset(preset)
        config = make_config(dataclasses.asdict(preset_config(preset, services.default_model)), settings, {"data_dir": str(services.data_dir), "resume": "auto"})
        return _told(launch_run(services, name, config))

    def pause_run(name: str) -> dict[str, Any]:
        """Have a run write a checkpoint after its present step, and end; as list_runs tells of it.

        Args:
            name: The run's name.
        """
        runs.pause(name)
        return _told(runs.get(name))

    def resume_run(name: str) -> dict[str, Any]:
        """Let a run that has ended before its last step go on from its last checkpoint; as list_runs tells of it.

        Args:
            name: The run's name.
        """
        return _told(runs.resume(name, services.training_device))

    def stop_run(name: str) -> dict[str, Any]:
        """End a run at once; what it did since its last checkpoint is lost, and resume_run goes on from that. As list_runs tells of it.

        Args:
            name: The run's name.
        """
        return _told(runs.stop(name))

    def save_run(name: str) -> dict[str, Any]:
        """Have a run write a checkpoint, with its samples, after its present step, and go on; as list_runs tells of it.

        Args:
            name: The run's name.
        """
        runs.save_now(name)
        return _told(runs.get(name))

    def sample_run(name: str) -> dict[str, Any]:
        """Have a run make videos of its prompts after its present step, and go on; as list_runs tells of it.

        Args:
            name: The run's name.
        """
        runs.sample_now(name)
        return _told(runs.get(name))

    def compare_run(name: str) -> dict[str, str]:
        """Queue a run's prompts with each of its checkpoints, and with what it began from.

        Args:
            name: The run's name.

        Returns:
            {"id": ...} of the grid, of which wall tells.
        """
        return {"id": compare_checkpoints(services, runs.get(name))}

    def delete_run(name: str) -> dict[str, str]:
        """Move a run that has ended to the trash; restore_run brings it back for a week.

        Args:
            name: The run's name.

        Returns:
            {"deleted": ...}: what restore_run takes.
        """
        return {"deleted": runs.delete(name)}

    def restore_run(deleted: str) -> dict[str, Any]:
        """Bring a deleted run back; as list_runs tells of it.

        Args:
            deleted: What delete_run gave.
        """
        return _told(runs.restore(deleted))

    def use_run(name: str, step: int | None = None) -> dict[str, str]:
        """Make a run's checkpoint something that a request can name.

        Args:
            name: The run's name.
            step: The checkpoint; the newest by default.

        Returns:
            {"loras": ...} or {"model": ...}: what to put into a request.
        """
        run = runs.get(name)
        made = use_checkpoint(run, services.data_dir, step)
        return {"loras": made.stem} if made.is_file() else {"model": made.name}

    return list_runs, start_run, pause_run, stop_run, resume_run, save_run, sample_run, use_run, compare_run, delete_run, restore_run


def _told(run: Run) -> dict[str, Any]:
    logged = next((row for row in reversed(run.metrics()) if "loss" in row), {})
    return {"name": run.name, "state": run.state, "step": run.step, "message": run.message, "of": run.config.total_steps if run.config else None, "checkpoints": [int(path.name.split("-")[1]) for path in run.checkpoints()], "logged": logged}

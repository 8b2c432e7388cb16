"""Endpoints for training runs, where the studio trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from training.config import ConfigError, TrainConfig
from training.runs import Run
from training.use import use_checkpoint

from .components.run_list import last_lines
from .services import Services
from .tasks import pack_checkpoint, push_checkpoint, write_yaml
from .training_form import OURS, PRESETS, command, config_over, free_name, launch_run, needs, preset_config, require_preset
from .training_screen import compare_checkpoints


def endpoints(services: Services) -> tuple[Callable[..., Any], ...]:
    """The functions."""
    runs = services.runs

    def _config(settings: dict[str, Any], preset: str) -> TrainConfig:
        require_preset(preset)
        return config_over(services, preset_config(preset, services.default_model), settings)

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
        return _told(launch_run(services, name, _config(settings, preset)))

    def plan_run(settings: dict[str, Any], preset: str = PRESETS[0], name: str = "") -> dict[str, Any]:
        """What start_run would take of this machine; nothing is started.

        Args:
            settings: What differs from the preset, as for start_run.
            preset: A kind of training, as for start_run.
            name: Of the run.

        Returns:
            steps, trained (numbers), memory, disk for checkpoints and cache for latents (bytes, with what is free) and seconds, null where nothing is known; reckoned, whether seconds come from a run with other steps; download, bytes that come first; problems, why it would fail; and command, the same from a shell.
        """
        config = _config(settings, preset)
        return {"steps": config.total_steps, **dataclasses.asdict(needs(services, config)), "command": command(config, preset, services, name.strip() or free_name(services, config.target))}

    def run_yaml(settings: dict[str, Any], preset: str = PRESETS[0], name: str = "") -> dict[str, str]:
        """Write a training's settings as a YAML file, which `python -m training --config FILE` and the Training tab read.

        Args:
            settings: What differs from the preset, as for start_run.
            preset: A kind of training, as for start_run.
            name: Of the file; one is made if none is given.

        Returns:
            {"file": ...}, its path.
        """
        return {"file": str(write_yaml(services, name, _config(settings, preset)))}

    def run_settings(name: str) -> dict[str, Any]:
        """The settings of a run, for start_run to begin another one like it.

        Args:
            name: The run's name.
        """
        run = runs.get(name)
        if run.config is None:
            raise ConfigError(f"The settings of {run.name} cannot be read.")
        return {field: value for field, value in dataclasses.asdict(run.config).items() if field not in OURS}

    def run_log(name: str) -> list[str]:
        """The last lines that a run's process said.

        Args:
            name: The run's name.
        """
        lines = last_lines(runs.get(name))
        if lines is None:
            raise ConfigError(f"{name} has no log: an earlier version started it from a shell, and kept none.")
        return lines

    def first_run(name: str) -> dict[str, Any]:
        """Let a run that waits for its device have it before the other runs that do; as list_runs tells of it.

        Args:
            name: The run's name.
        """
        return _told(runs.put_first(name))

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

    def pack_run(name: str, kind: str, step: int | None = None) -> dict[str, Any]:
        """Begin to write a run's checkpoint as others can take it; chore tells how far it is, and then the path as "file" of its report.

        Args:
            name: The run's name.
            kind: "lora", a LoRA's safetensors; "diffusers", a whole model folder; or "mira", one .pt in Mira's own layout.
            step: The checkpoint; the newest by default.

        Returns:
            {"words": ...}: what was begun.
        """
        pack_checkpoint(services, runs.get(name), step, kind)
        return {"words": services.chores.current.words}

    def push_run(name: str, repo: str, token: str, step: int | None = None, private: bool = True) -> dict[str, Any]:
        """Begin to put a run's checkpoint on the Hugging Face Hub, with a model card; chore tells how far it is, and then the "address" in its report.

        Args:
            name: The run's name.
            repo: The repository, USER/NAME; it is made if there is none.
            token: Of the Hub, with the right to write. It is used once and kept nowhere.
            step: The checkpoint; the newest by default.
            private: Whether a new repository is seen by its owner alone.

        Returns:
            {"words": ...}: what was begun.
        """
        push_checkpoint(services, runs.get(name), step, repo, token, private)
        return {"words": services.chores.current.words}

    return list_runs, start_run, plan_run, run_yaml, run_settings, run_log, first_run, pause_run, stop_run, resume_run, save_run, sample_run, use_run, compare_run, pack_run, push_run, delete_run, restore_run


def _told(run: Run) -> dict[str, Any]:
    logged = next((row for row in reversed(run.metrics()) if "loss" in row), {})
    return {"name": run.name, "state": run.state, "step": run.step, "message": run.message, "of": run.config.total_steps if run.config else None, "checkpoints": [int(path.name.split("-")[1]) for path in run.checkpoints()], "logged": logged}

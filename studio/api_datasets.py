"""Endpoints for the clips that runs are trained on, where the studio trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from training.captions import read_captions, write_captions
from training.config import ConfigError

from .api_settings import File, uploaded
from .services import Services
from .tasks import SAMPLE_CLIPS, bring_clips, render_samples, split_clips
from .training_form import PRESETS, config_over, preset_config, require_allowed, require_preset


def endpoints(services: Services) -> tuple[Callable[..., Any], ...]:
    """The functions."""
    chores = services.chores

    def bring_clip(file: File, name: str = "") -> dict[str, str]:
        """Keep a file of a dataset in the studio's data folder: a video, a picture, a caption (NAME.txt beside NAME.mp4) or a table (.csv, .jsonl). One file a call.

        Args:
            file: The file; with gradio_client, handle_file of its path.
            name: The dataset that it is for; "clips" by default.

        Returns:
            {"dataset": ...}: what start_run takes.
        """
        return {"dataset": str(bring_clips(services, name, [uploaded(file)]))}

    def render_clips(clips: int = SAMPLE_CLIPS) -> dict[str, Any]:
        """Begin to render sample clips of the toy world with captions, for a first training; as chore tells.

        Args:
            clips: How many.
        """
        render_samples(services, clips)
        return chore()

    def split_videos(dataset: str, dataset_root: str = "") -> dict[str, Any]:
        """Begin to cut a dataset's videos into clips of one shot each, with their captions; as chore tells, whose report names the new folder.

        Args:
            dataset: A folder of videos, or a table of them.
            dataset_root: Where the paths in a table begin.
        """
        split_clips(services, dataset, dataset_root)
        return chore()

    def check_clips(settings: dict[str, Any], preset: str = PRESETS[0]) -> dict[str, Any]:
        """Begin to look at a dataset as a training will; as chore tells, whose report has what can be used, what cannot and why, and previews of what training sees.

        Args:
            settings: Of the training, as for start_run; "dataset" is needed.
            preset: A kind of training, as for start_run.
        """
        require_preset(preset)
        chores.check(config_over(services, preset_config(preset, services.default_model), settings))
        return chore()

    def chore() -> dict[str, Any]:
        """What is being done to a dataset or a checkpoint, or was last: dataset (or run), words, done and of, working, error and report; empty when there was nothing."""
        return {} if chores.current is None else dataclasses.asdict(chores.current)

    def cancel_chore() -> dict[str, Any]:
        """Stop what chore tells of, and forget what it found."""
        chores.cancel()
        return chore()

    def captions(dataset: str, column: str = "") -> dict[str, str]:
        """The captions of a dataset, by file and, where a table has several columns of them, by column; empty for videos without one.

        Args:
            dataset: A folder with NAME.mp4 and NAME.txt, or a table.
            column: Only those of this column of a table.
        """
        return read_captions(_allowed(dataset), column)

    def edit_captions(dataset: str, captions: dict[str, str]) -> dict[str, int]:
        """Write captions of a dataset; the others stay.

        Args:
            dataset: A folder or a table, as for captions.
            captions: The new captions by file, as captions names them.

        Returns:
            {"changed": how many were not so before}
        """
        return {"changed": write_captions(_allowed(dataset), captions)}

    def replace_in_captions(dataset: str, find: str, replace: str, column: str = "") -> dict[str, int]:
        """Put other words in the place of some in all captions of a dataset, and save them.

        Args:
            dataset: A folder or a table, as for captions.
            find: What is replaced wherever it stands, letter by letter.
            replace: What is put in its place.
            column: Only in this column of a table.

        Returns:
            {"changed": in how many captions it was}
        """
        if not find:
            raise ConfigError("find is empty; say what is to be found.")
        found = {name: text.replace(find, replace) for name, text in read_captions(_allowed(dataset), column).items() if find in text}
        return {"changed": write_captions(dataset.strip(), found)}

    def _allowed(dataset: str) -> str:
        """Raises ConfigError for none, or one that lies where this studio's users must not read."""
        if not dataset.strip():
            raise ConfigError("dataset is empty; name a folder of clips or a table of them.")
        require_allowed(services, dataset.strip())
        return dataset.strip()

    return bring_clip, render_clips, split_videos, check_clips, chore, cancel_chore, captions, edit_captions, replace_in_captions

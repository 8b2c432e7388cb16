"""What buttons and endpoints begin in the background, or bring in and hand out, for training and models: checked first, then begun."""

from __future__ import annotations

import filecmp
import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.files import replacing
from core.types import RequestError
from training.config import ConfigError, TrainConfig, save_config
from training.runs import Run
from training.split import split_of
from training.use import NAME, checkpoint_of
from training.video import PICTURES, VIDEOS

from .db import require_space
from .services import Services
from .training_form import folder_for_upload, free_name, require_allowed

SAMPLE_CLIPS = 32
"""Of the toy world, that are rendered for a first try."""
MOST_SAMPLES = 1000
UPLOADED = (*VIDEOS, *PICTURES, ".txt", ".csv", ".jsonl")
"""Suffixes of the files that a dataset is made of."""
KINDS = {"lora": ".safetensors", "diffusers": "", "mira": ".pt"}
"""What a checkpoint can be written as, and the suffix of each."""


def begin_conversion(services: Services, source: str, config: str, name: str) -> None:
    """Check what can be checked at once, and start to make a model of a checkpoint file. Raises RequestError."""
    models = services.models
    if not source:
        raise RequestError("model", "Name the checkpoint file first.")
    for path in filter(None, (source, config)):
        models.require_readable(Path(path))
        if not Path(path).is_file():
            raise RequestError("model", f"There is no file {path} on this machine.")
    name = name or Path(source).stem
    if not NAME.fullmatch(name):
        raise RequestError("model", f"{name!r} cannot be a model's name. Use letters, digits, dots, dashes and underscores.")
    if models.get(name) is not None:
        raise RequestError("model", f"There is a model {name!r} already. Give another name.")
    services.installs.convert(Path(source).resolve(), name, Path(config).resolve() if config else None)


def render_samples(services: Services, clips: int = SAMPLE_CLIPS) -> Path:
    """Begin to render clips of the toy world; the folder that they come into. Raises RequestError."""
    if not 1 <= clips <= MOST_SAMPLES:
        raise RequestError("clips", f"clips is {clips}; it must be from 1 to {MOST_SAMPLES}.")
    folder = services.datasets / "toyworld"
    services.chores.render(clips, folder)
    return folder


def split_clips(services: Services, dataset: str, root: str) -> Path:
    """Begin to cut a dataset's videos at their cuts; the folder that the clips come into. Raises ConfigError or RequestError."""
    for path in filter(None, (dataset, root)):
        require_allowed(services, path)
    if not dataset.strip() or not Path(dataset).exists():
        raise ConfigError(f"There is nothing at {dataset!r}. Name a folder of videos, or a table of them, on this machine.")
    folder = next(folder for folder in _folders(services, f"{Path(dataset).stem}-split") if not folder.exists() or split_of(folder) == Path(dataset).resolve())
    services.chores.split(dataset, root, folder)
    return folder


def _folders(services: Services, name: str) -> Iterator[Path]:
    """Folders of the data folder for clips, of which the first has that name and the others a number behind it."""
    return (services.datasets / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))


def bring_clips(services: Services, name: str, files: Sequence[Path], dataset: str | None = None) -> Path:
    """Keep uploaded clips, captions or a table in the data folder: all or none, and beside what is there already; their folder.

    They are added to ``dataset`` where that is one of the data folder's; other words there ask for a folder of their own, and None for the one called ``name``. Raises ConfigError, StorageError or WriteError.
    """
    folder = folder_for_upload(services, name)
    if dataset is not None:
        named = Path(dataset.strip() or ".").resolve()
        own = named.is_dir() and named.parent.is_relative_to(services.datasets.resolve())
        folder = named if own else next(other for other in _folders(services, folder.name) if not other.exists())
    copies: dict[Path, Path] = {}
    for file in files:
        if file.suffix.lower() not in UPLOADED:
            raise ConfigError(f"{file.name} is neither a video, a picture, a caption (.txt) nor a table (.csv, .jsonl).")
        table = file.suffix.lower() in (".csv", ".jsonl")
        copy = folder / (f"metadata{file.suffix.lower()}" if table else file.name)
        there = copies.get(copy, copy)
        if there.exists() and not filecmp.cmp(file, there, shallow=False):
            raise ConfigError(f"{copy.name} is there already, in {folder}. Nothing was copied: {'clear the Clips field for a folder of its own' if table else 'rename the file'}, or delete the other one first.")
        copies[copy] = file
    require_space(services.data_dir, sum(file.stat().st_size for file in files))
    for copy, file in copies.items():
        with replacing(copy) as work:
            shutil.copyfile(file, work)
    return folder


def pack_checkpoint(services: Services, run: Run, step: int | None, kind: str) -> None:
    """Begin to write a run's checkpoint (the newest for None) into its folder as one of KINDS. Raises ConfigError or RequestError."""
    checkpoint = checkpoint_of(run, step)
    if kind not in KINDS:
        raise ConfigError(f"A checkpoint cannot be written as {kind!r}; known are {', '.join(KINDS)}.")
    services.chores.pack(run.name, _step(checkpoint), kind, run.folder / "packed" / f"{run.name}-{checkpoint.name}{KINDS[kind]}")


def push_checkpoint(services: Services, run: Run, step: int | None, repo: str, token: str, private: bool) -> None:
    """Begin to put a run's checkpoint (the newest for None) on the Hub. The token is used for that and kept nowhere. Raises ConfigError or RequestError."""
    checkpoint = checkpoint_of(run, step)
    if not repo.strip() or not token.strip():
        raise ConfigError("Name the repository (USER/NAME) and give a token with the right to write: https://huggingface.co/settings/tokens makes one.")
    services.chores.push(run.name, _step(checkpoint), repo.strip(), token.strip(), private)


def write_yaml(services: Services, name: str, config: TrainConfig) -> Path:
    """A training's settings as a file in ``exports``, under the name of a run (a free one if it is empty). Raises ConfigError or WriteError."""
    target = services.exports / f"{name.strip() or free_name(services, config.target)}.yaml"
    if target.parent != services.exports:
        raise ConfigError("A run's name cannot hold slashes.")
    save_config(config, target)
    return target


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])

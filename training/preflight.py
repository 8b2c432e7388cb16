"""What a run will need, before it begins: memory, disk and time, from the model's files and from what earlier runs took. No torch here."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

from core.releases import RELEASES, TEXT_ENCODER, TEXT_ENCODER_BYTES, folder_name, released_shapes
from core.types import VideoShape

from .config import LATENT_TARGETS, ConfigError, TrainConfig, missing_package
from .dataset import count_clips
from .doctor import TOKENS
from .runs import Run, base_folder
from .takes import parse_sizes

TEMPORAL = "temporal_transformer_blocks."
TRAINED_BYTES = 20
"""A trained number in memory: its weight, its gradient, two moments of AdamW and its average, in fp32."""
WHOLE_BYTES = 8
"""Of these, what DeepSpeed leaves whole in each process: the weight and its average. It divides a second copy of the weight among them."""
SAVED_BY_8_BITS = 6
"""Of these, where the moments have 8 bits each."""
TEXT_WIDTH = 4096
"""Of an embedding of flan-t5-xxl, for a release that is not here."""
KEPT_BYTES = 5 * 10**8
"""About what a worker keeps when it has let go of its model: libraries, and a GPU's context."""
STATE_BYTES = 16
"""A trained number in training_state.pt: the same without the gradient."""
ALIKE = ("target", "model", "num_frames", "sizes", "train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "selective_checkpointing", "curriculum", "mixed_precision", "latent_cache", "optimizer", "sharding", "num_processes", "keep_dataset")
"""Settings that two runs must share for one to tell how long the other takes."""
AKIN = ("target", "model", "mixed_precision", "latent_cache")
"""Those that they must share for its time to be reckoned from the other's. Without a cache of latents, clips and captions are encoded in each step."""


KEPT_CLIPS = 4 / 3
"""Clips of a batch that the clip of ``keep_dataset`` in each step weighs: there and back as one of the batch does, and once more without the LoRA."""


@dataclass(frozen=True)
class Preflight:
    """What is known before the start; None where nothing is."""

    trained: int | None
    """Numbers that are trained."""
    memory: int | None
    """Bytes of one process: measured on an earlier run, or the least that weights and optimizer take (activations come on top); among the weights are those of encoders that stay."""
    measured: bool
    """Whether memory comes from an earlier run like this one on this machine."""
    memory_free: int
    disk: int | None
    """Bytes of the checkpoints that are kept at a time."""
    disk_free: int
    seconds: float | None
    """All steps, without preparation and validation: of an earlier run like this one, or ``reckoned``."""
    problems: tuple[str, ...]
    """Why it would fail, in words."""
    reckoned: bool = False
    """Whether the time is only about right: that of an earlier run whose steps are larger or smaller, or of a video that the model made, in proportion."""
    cache: int = 0
    """Bytes of the latents and prompt embeddings that are made of the clips before the first step, about, and kept for other runs; 0 without a cache of latents."""
    download: int = 0
    """Bytes that come from the Hub before it begins, about: a release's file that is not on this machine, with its text encoder in it."""


def preflight(config: TrainConfig, runs: Sequence[Run], device: str = "cpu", gives_way: int | None = None) -> Preflight:
    """Look at the model's files (for a release that is not here, at how it is built), this machine's memory and disk, and earlier runs. The config must be valid.

    ``gives_way`` is the process that has a model on the device now and lets go of it when the run begins: the studio's worker.
    """
    problems = [missing] if (missing := missing_package(config)) else []
    folder, part = _part(config), "vae" if config.target == "vae_decoder" else "transformer"
    coming = RELEASES.get(config.model) if folder is None else None
    if folder is None and coming is None:
        problems.append(f"There is no model {config.model} on this machine. The Models tab has those that there are.")
    shapes = tensor_shapes(folder) if folder else released_shapes(coming, part) if coming else {}
    download = int(coming.gigabytes * 1e9) if coming and not (Path(config.data_dir) / "models" / coming.file).is_file() else 0
    total = sum(math.prod(shape) for shape in shapes.values())
    trained = count_trained(config, shapes) if shapes else None
    like = next((run for run in runs if _share(run, config, ALIKE) and _speed(run)), None)
    pace, gigabytes = _speed(like) if like else (_reckoned_pace(config, runs), None)
    least = None
    if trained is not None:
        parts = config.num_processes if config.sharding == "full" else 1
        frozen = total - (0 if config.target == "lora" else trained)
        bytes_each = 4 if device == "cpu" and config.mixed_precision == "fp32" else 2
        least = int(trained * trained_bytes(config)) + frozen * bytes_each // parts + count_encoders(config) * bytes_each
    memory = int(gigabytes * 1e9) if gigabytes else least
    free = memory_free(device) + (max(0, memory_held(gives_way, device) - KEPT_BYTES) if gives_way else 0)
    if memory is not None and memory > free:
        problems.append(f"It needs {'' if like else 'at least '}{memory / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free. {_remedy(config)}")
    checkpoints = config.keep_last + 2 + (config.total_steps // config.keep_every if config.keep_every else 0)
    disk = checkpoints * (trained * STATE_BYTES + (trained if config.target == "lora" else total) * 4) if trained is not None else None
    cache = cache_bytes(config, device)
    disk_free = shutil.disk_usage(next(p for p in (Path(config.data_dir).resolve(), *Path(config.data_dir).resolve().parents) if p.is_dir())).free
    if 2 * download > disk_free:
        problems.append(f"The download of {config.model} and the model that is made of it need {2 * download / 1e9:.0f} GB for a while, and {disk_free / 1e9:.1f} GB of disk are free. Free some.")
    elif disk is not None and disk + cache + download > disk_free:
        clips = f", the latents and embeddings of its clips {cache / 1e9:.1f} GB" if cache else ""
        remedy = "set latent_cache to false" if cache > disk else "raise keep_every" if config.keep_every else "lower keep_last"
        problems.append(f"Its checkpoints need {disk / 1e9:.1f} GB{clips}{' beside the model' if download else ''} and {disk_free / 1e9:.1f} GB of disk are free. Free some, or {remedy}.")
    return Preflight(trained, memory, like is not None, free, disk, disk_free, pace * config.total_steps if pace else None, tuple(problems), like is None and pace is not None, cache, download)


def trained_bytes(config: TrainConfig) -> float:
    """Bytes that a number which is trained takes in each process."""
    each = TRAINED_BYTES - (SAVED_BY_8_BITS if config.optimizer == "adamw8bit" else 0)
    if config.sharding == "none":
        return each
    return WHOLE_BYTES + (each - 4) / config.num_processes if config.sharding == "deepspeed" and config.num_processes > 1 else each / config.num_processes


def tensor_shapes(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a folder's safetensors files, from their headers alone."""
    from safetensors import safe_open

    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return shapes


def count_trained(config: TrainConfig, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers the run changes. A LoRA's are rank * (in + out) for each projection (Hu et al. 2021, arXiv:2106.09685)."""
    if config.target == "lora":
        return sum(config.lora_rank * sum(shape) for name, shape in shapes.items() if len(shape) == 2 and name.endswith(".weight") and config.adapts(name.removesuffix(".weight")))
    starts = {"temporal": TEMPORAL, "vae_decoder": "decoder."}.get(config.target, "")
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(starts))


def count_encoders(config: TrainConfig) -> int:
    """How many numbers stay in memory beside the transformer: without a cache of latents the VAE's and the text encoder's; the latter's with Toy World's latents too."""
    if config.target not in LATENT_TARGETS or (config.latent_cache and not _holds_latents(config)):
        return 0
    folder, shared = base_folder(config), Path(config.data_dir) / "models" / folder_name(TEXT_ENCODER)
    vae = tensor_shapes(folder / "vae") if folder else released_shapes(RELEASES[config.model], "vae") if config.model in RELEASES else {}
    text = next((found for place in (folder, shared) if place and (found := tensor_shapes(place / "text_encoder"))), None)
    text_numbers = TEXT_ENCODER_BYTES // 2 if text is None else sum(map(math.prod, text.values()))
    return text_numbers + (0 if config.latent_cache else sum(map(math.prod, vae.values())))


def cache_bytes(config: TrainConfig, device: str = "cpu") -> int:
    """Bytes of the latents of all takes and of the embeddings of all captions, if every clip is as long as each stage's longest; 0 for a run that keeps none."""
    if config.target not in LATENT_TARGETS or not config.latent_cache or _holds_latents(config):
        return 0
    with contextlib.suppress(ConfigError, OSError):
        clips, captions = _counted(source := Path(config.dataset), source.stat().st_mtime_ns)
        clips = min(clips, config.clips or clips)
        if config.keep_dataset:
            kept, told = _counted(source := Path(config.keep_dataset), source.stat().st_mtime_ns)
            clips, captions = clips + kept, captions + told
        frames = sum({max(stage.num_frames) for stage in config.stages}) * config.takes_per_clip * clips
        width, height = max(parse_sizes(config.sizes), key=math.prod)
        channels, text_width = _setting(config, "vae", "latent_channels", 4), _setting(config, "text_encoder", "d_model", TEXT_WIDTH)
        embedding = TOKENS * text_width * (4 if device == "cpu" and config.mixed_precision in ("fp32", "auto") else 2)
        return frames * math.prod(VideoShape(1, height, width).latent(channels).as_tuple()) * 2 + captions * embedding
    return 0


@lru_cache(maxsize=16)
def _counted(source: Path, changed: int) -> tuple[int, int]:
    """``count_clips`` of a dataset as it was when it last changed: it is asked for at every key that is typed."""
    return count_clips(source)


def _setting(config: TrainConfig, part: str, name: str, otherwise: int) -> int:
    """A number in the config.json of a part of the model that the run begins with; ``otherwise`` for a release that is not here."""
    folder = base_folder(config)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((folder / part / "config.json").read_text(encoding="utf-8"))[name])
    return otherwise


def _holds_latents(config: TrainConfig) -> bool:
    """Whether the dataset is one of latents of Toy World."""
    return bool(config.dataset) and (Path(config.dataset) / "dataset.json").exists()


def memory_free(device: str) -> int:
    """Bytes that a new process may use on the device: of the GPU by nvidia-smi, else of this machine."""
    told = _of_gpu(device, "--query-gpu=memory.free")
    return told[0][0] * 2**20 if told else psutil.virtual_memory().available


def memory_held(pid: int, device: str) -> int:
    """Bytes of the device that a process has to itself; 0 where that is not known."""
    if device.startswith("cuda"):
        return sum(size * 2**20 for process, size in _of_gpu(device, "--query-compute-apps=pid,used_memory") if process == pid)
    with contextlib.suppress(psutil.Error):
        told = psutil.Process(pid).memory_info()
        return max(0, told.rss - getattr(told, "shared", 0))
    return 0


def _of_gpu(device: str, query: str) -> list[tuple[int, ...]]:
    """The lines of numbers that nvidia-smi answers about a GPU, as torch numbers them; none for another device, or where it tells no numbers."""
    if not device.startswith("cuda") or not shutil.which("nvidia-smi"):
        return []
    index = device.partition(":")[2] or "0"
    visible = dict(enumerate(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))))
    command = ["nvidia-smi", "-i", visible.get(int(index), index), query, "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.splitlines()
    return [tuple(map(int, line.split(","))) for line in lines if line.replace(",", "").replace(" ", "").isdigit()]


def _part(config: TrainConfig) -> Path | None:
    """The folder of what is trained."""
    part, folder = "vae" if config.target == "vae_decoder" else "transformer", base_folder(config)
    return folder / part if folder and (folder / part).is_dir() else None


def _share(run: Run, config: TrainConfig, names: Sequence[str]) -> bool:
    """Whether a run's settings of these names are the config's."""
    return run.config is not None and all(getattr(run.config, name) == getattr(config, name) for name in names)


def _reckoned_pace(config: TrainConfig, runs: Sequence[Run]) -> float | None:
    """Seconds a step in proportion to its pixels, from the run of AKIN settings whose steps are nearest in size; None where there is none."""
    with contextlib.suppress(ConfigError):
        ours = pixels_a_step(config)
        measured = [(pixels_a_step(run.config), speed[0]) for run in runs if _share(run, config, AKIN) and (speed := _speed(run))]
        theirs, seconds = min(measured, key=lambda one: abs(math.log(one[0] / ours)), default=(1, None))
        return seconds and seconds * ours / theirs
    return None


def pixels_a_step(config: TrainConfig) -> float:
    """Batch, accumulation, frames and pixels multiplied, a process, in the mean over the stages, and what a kept clip is worth. Raises ConfigError for sizes that the model cannot take."""
    kept = KEPT_CLIPS if config.keep_dataset else 0
    frames = sum(stage.steps * (stage.train_batch_size + kept) * max(stage.num_frames) for stage in config.stages) / sum(stage.steps for stage in config.stages)
    sizes = parse_sizes(config.sizes)
    return frames * config.gradient_accumulation_steps / config.num_processes * sum(width * height for width, height in sizes) / len(sizes)


def _speed(run: Run) -> tuple[float, float] | None:
    """Seconds a step and gigabytes, as the run measured them last."""
    return next(((row["seconds_per_step"], row["memory_gb"]) for row in reversed(run.metrics()) if "seconds_per_step" in row), None)


def _remedy(config: TrainConfig) -> str:
    if config.target in LATENT_TARGETS and not config.latent_cache:
        return "Set latent_cache to true: then neither the VAE nor the text encoder is in memory while it trains."
    if config.target == "lora":
        return "Unload the model on the Models tab, or choose a smaller batch."
    return "Train a LoRA instead, or only the temporal blocks."

"""A training's settings as texts in a form, and back. No gradio here."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from core.field_docs import field_docs
from core.loras import FOLDER
from core.quality import EXACT
from core.types import RequestError
from training.config import CHOICES as ALL_CHOICES
from training.config import LATENT_TARGETS, USER_TARGETS, ConfigError, TrainConfig, as_words, load_config, make_config
from training.preflight import Preflight, pixels_a_step, preflight
from training.runs import ROOT, TRASH, Run

from .components.words import about, escape
from .db import size_words
from .estimate import last_made
from .examples import example_prompts
from .services import Services

PRESETS = ("lora_nano", "nano", "lora_128", "finetune_128", "finetune_384")
"""Files of training/configs, for those who bring clips of their own."""
CONFIGS = ROOT / "training" / "configs"
CHOICES: dict[str, tuple[str, ...]] = {**ALL_CHOICES, "target": USER_TARGETS}
BASIC = ("model", "dataset", "target", "max_train_steps", "learning_rate", "train_batch_size", "num_frames", "sizes", "validation_prompts")
"""Shown first."""
OURS = ("output_dir", "data_dir", "resume")
"""Decided by the studio."""
BESIDE = ("curriculum", "architecture", "scheduler", "clips", "crowd", "any_color", "hard_clips", "hard_share", "kl_weight", "object_weight")
"""Kept from the file that the form began with, and not in the form: they are for making models anew."""
ADVANCED = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.name not in (*BASIC, *OURS, *BESIDE))
FIELDS = (*BASIC, *ADVANCED)
PROMPT_LISTS = ("validation_prompts",)
"""Typed one a line."""
PASSES = 3
"""Of a training step, in forward passes: a forward one, and a backward one of twice its products."""
DOCS = field_docs(TrainConfig)
LABELS = {
    "model": "Start from", "dataset": "Clips", "target": "What is trained", "max_train_steps": "Steps", "train_batch_size": "Clips a step", "num_frames": "Frames",
    "sizes": "Size, pixels", "validation_prompts": "Sample prompts", "keep_dataset": "Clips of what should stay", "lr_warmup_steps": "Warm-up steps", "lr_decay_steps": "Decay steps", "snr_gamma": "Min-SNR gamma",
    "ema_decay": "EMA decay", "max_grad_norm": "Largest gradient norm", "adam_beta2": "AdamW beta 2", "lora_rank": "LoRA rank", "lora_alpha": "LoRA alpha", "lora_layers": "LoRA layers", "lora_blocks": "LoRA blocks", "num_threads": "CPU threads",
}  # fmt: skip
HINTS = {
    "dataset": "A folder with name.mp4 and name.txt, or a .csv or .jsonl table, on the machine that runs the studio.",
    "target": "A LoRA is small and quick; temporal changes only how things move; vae_decoder only how sharp and steady it looks.",
    "validation_prompts": "One a line. At each checkpoint a video of each is made, with the run's seed.",
    "sizes": None, "num_frames": None, "model": None, "max_train_steps": None, "learning_rate": None, "train_batch_size": None,
}  # fmt: skip


def label(name: str) -> str:
    """What the form calls a setting."""
    return LABELS.get(name) or name.replace("_", " ").capitalize()


def hint(name: str) -> str | None:
    """One line below it."""
    return HINTS[name] if name in HINTS else DOCS.get(name)


def kind(name: str) -> type:
    """bool for a tick box, str for text."""
    return bool if get_type_hints(TrainConfig)[name] is bool else str


def preset_path(name: str) -> Path:
    """The file of a preset."""
    return CONFIGS / f"{name}.yaml"


def preset_words(name: str) -> tuple[str, str]:
    """What its first line says it is, and what for."""
    title, _, rest = preset_path(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ").rstrip(".").partition(", ")
    return title, rest[:1].upper() + rest[1:] + "."


def as_text(name: str, value: Any) -> Any:
    """A setting as the form shows it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, list):
        return ("\n" if name in PROMPT_LISTS else ", ").join(map(str, value))
    return "" if value is None else repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def texts_of(config: TrainConfig) -> dict[str, Any]:
    """What the form shows for a config."""
    return {name: as_text(name, getattr(config, name)) for name in FIELDS}


def config_of(services: Services, base: TrainConfig, texts: Mapping[str, Any]) -> TrainConfig:
    """The config that a form says, over the one it began with. Raises ConfigError."""
    return config_over(services, base, {name: _value(name, text) for name, text in texts.items()})


def config_over(services: Services, base: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """``base`` with other settings, for a run of this studio. Raises ConfigError."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings is {settings!r}; it must be an object, such as {{\"max_train_steps\": 100}}.")
    config = make_config(dataclasses.asdict(base), settings, {"data_dir": str(services.data_dir), "resume": "auto"})
    require_usable(services, config)
    return config


def require_usable(services: Services, config: TrainConfig) -> None:
    """Raises ConfigError for a dataset or a model that this studio's users must not read, or cannot, and for a target that is trained from a shell alone."""
    if config.target not in USER_TARGETS:
        raise ConfigError(f"target={config.target} is a part of a new model; that goes from a shell: python -m training --config FILE. Here: {', '.join(USER_TARGETS)}.")
    for path in filter(None, (config.dataset, config.dataset_root, config.keep_dataset)):
        require_allowed(services, path)
    try:
        services.models.require(config.model)
    except RequestError as error:
        raise ConfigError(str(error)) from None


def require_allowed(services: Services, path: str) -> None:
    """Raises ConfigError for a dataset that lies where this studio's users must not read."""
    roots = services.dataset_roots
    if roots and not any(Path(path).resolve().is_relative_to(root) for root in roots):
        raise ConfigError(f"Datasets may only be in {' or '.join(map(str, roots))}, since other machines can reach this studio. Put {Path(path).name} there, or start it with --dataset-dir.")


def _value(name: str, text: Any) -> Any:
    """What OmegaConf takes for a form's text."""
    if isinstance(text, bool):
        return text
    text = str(text or "").strip()
    hint_ = get_type_hints(TrainConfig)[name]
    if name in PROMPT_LISTS:
        return [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if getattr(hint_, "__origin__", None) is list:
        return [entry.strip() for entry in text.split(",") if entry.strip()]
    if text == "" and hint_ is not str:
        if type(None) in getattr(hint_, "__args__", ()):
            return None
        raise ConfigError(f"{label(name)} is empty. Its usual value is {as_text(name, getattr(TrainConfig(), name))}.")
    return text


def preset_config(name: str, model: str) -> TrainConfig:
    """A preset's settings; what it leaves open is filled with what shows something: a prompt that the model knows."""
    config = load_config(preset_path(name), ["dataset=."])
    return dataclasses.replace(config, dataset="", validation_prompts=config.validation_prompts or [example_prompts(config.model or model)[0]])


def require_preset(name: str) -> None:
    """Raises ConfigError for a preset that is not there."""
    if name not in PRESETS:
        raise ConfigError(f"There is no kind of training {name!r}. Known: {', '.join(PRESETS)}.")


def launch_run(services: Services, name: str, config: TrainConfig) -> Run:
    """Start a run, under a free name if it is given none. Raises ConfigError, or WriteError where its folder cannot be made."""
    require_usable(services, config)
    for path in filter(None, (config.dataset, config.keep_dataset)):
        if not Path(path).exists():
            raise ConfigError(f"There is nothing at {path}. Name a folder of clips with captions, or a table of them, on this machine.")
    return services.runs.launch(name.strip() or free_name(services, config.target), config, services.training_device)


def free_name(services: Services, target: str) -> str:
    """A name for a run that was given none: no run has it, none in the trash, and nothing that ``use`` made of one."""
    runs = services.runs.folder
    taken = [*(run.name for run in services.runs.list()), *(path.name.partition("-")[2] for path in (runs / TRASH).glob("*-*"))]
    used = [path.name for folder in (FOLDER, "models") for path in (services.data_dir / folder).glob("*")]
    names = (f"{target.replace('_', '-')}-{count}" for count in itertools.count(1))
    return next(name for name in names if name not in taken and not any(other.startswith(f"{name}-step-") for other in used))


def command(config: TrainConfig, origin: str, services: Services, name: str) -> str:
    """The shell command that does the same: a preset's file and what differs from it."""
    file = preset_path(origin) if origin in PRESETS else None
    base = load_config(file, ["dataset=.", *(["model=."] if file is None else [])])
    words = as_words(dataclasses.replace(config, output_dir=str(services.runs.folder / name)), base)
    device = [] if services.training_device == "auto" else ["--device", services.training_device]
    return shlex.join(["python", "-m", "training", *(["--config", str(file.relative_to(ROOT))] if file else []), *device, *words])


def needs(services: Services, config: TrainConfig) -> Preflight:
    """What a run will take of this machine."""
    worker = services.executor.statuses()[-1]
    told = preflight(config, services.runs.list(), str(worker["device"] or services.training_device), worker["pid"] if worker["model"] else None)
    if told.seconds is None and (seconds := _seconds_by_videos(services, config)) is not None:
        return dataclasses.replace(told, seconds=seconds, reckoned=True)
    return told


def _seconds_by_videos(services: Services, config: TrainConfig) -> float | None:
    """About how long all steps take, by the last video that the model made here: what the transformer goes over in a step is a batch, PASSES times. None where it has made none."""
    made = next(iter(last_made(services, config.model, EXACT)), None)
    if made is None or config.target not in LATENT_TARGETS or not config.latent_cache:
        return None
    with contextlib.suppress(ConfigError):
        return config.total_steps * pixels_a_step(config) * (PASSES + config.gradient_checkpointing) * made[1] / made[0]
    return None


def preflight_line(services: Services, config: TrainConfig) -> str:
    """HTML of what the run will need."""
    told = needs(services, config)
    first = f"<p>{escape(config.model)} is not on this machine yet: about {told.download / 1e9:.0f} GB are downloaded first, when the run begins, or now on the Models tab.</p>" if told.download else ""
    parts = [f"{config.total_steps:,} steps"]
    if told.trained:
        parts.append(f"{told.trained / 1e6:.1f} M numbers trained")
    if told.seconds is not None:
        parts.append(f"about {about(told.seconds)}, {'reckoned from what it took here before' if told.reckoned else 'as the last run like it took'}")
    if told.memory is not None and told.measured:
        parts.append(f"{size_words(told.memory)} of {size_words(told.memory_free)} of memory")
    elif told.memory is not None:
        parts.append(f"{size_words(told.memory)} of {size_words(told.memory_free)} of memory for weights and optimizer, and more for the clips")
    if told.disk is not None:
        parts.append(f"up to {size_words(told.disk + told.cache)} of {size_words(told.disk_free)} of disk")
    problems = "".join(f'<p class="bad">{escape(problem)}</p>' for problem in told.problems)
    curriculum = f"<p>By the stages in the file that it began with, {escape(config.plan())}.</p>" if config.curriculum else ""
    return f"{first}<p>{escape(' · '.join(parts))}</p>{curriculum}{problems}"


def folder_for_upload(services: Services, name: str) -> Path:
    """A folder of the data folder for clips that are brought by the page; ``name`` is a run's, which may be empty."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "clips"
    return services.datasets / stem

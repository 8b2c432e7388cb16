"""The settings of a training run: one dataclass for the YAML file, the command line and the checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.types import nearest

OPTIMIZERS = ("adamw", "muon")
TARGETS = ("vae", "vae_decoder", "text_encoder", "transformer")


class ConfigError(ValueError):
    """A training setting that cannot be used; the message names it and says what to do."""


@dataclass
class Stage:
    """A stretch of the curriculum: clips of these lengths, until its steps are done."""

    steps: int = 1000
    """Optimizer steps in this stage."""
    train_batch_size: int = 16
    """Clips a step, if they are the longest of ``num_frames``; of shorter ones as many more as make the same number of frames."""
    num_frames: list[int] = field(default_factory=lambda: [24])
    """Lengths of clips; each step draws one of them. A clip is thinned evenly to that length; one frame is any of its frames."""
    height: int = 80
    """Pixels of the crops that the VAE sees."""
    width: int = 128
    """Pixels of the crops that the VAE sees."""
    timestep_logit_mean: float | None = None
    """Centre of the logit-normal share of noise steps (0 is half-way, negative is cleaner); null draws all of them uniformly."""
    enable_temporal_attention: bool = True
    """False trains the image path (spatial blocks only)."""

    def clips(self, num_frames: int) -> int:
        """Clips in a step of that length: steps on images and on clips cost the same (joint training, Ho et al. 2022, arXiv:2204.03458)."""
        return self.train_batch_size * max(self.num_frames) // num_frames


@dataclass
class TrainConfig:
    """Every setting of a run. Unknown names are refused."""

    target: str = "transformer"
    """What is trained: vae, vae_decoder (the encoder, and so all latents, stay as they are; a new encoder is written in closed form), text_encoder or transformer."""
    model: str = ""
    """Folder that holds the parts this run builds on; a part of the same name as the target is where it starts from."""
    dataset: str = ""
    """Folder of precomputed latents (python -m training precompute)."""
    output_dir: str = "workspace/runs/run"
    """Run folder: config.yaml, log.jsonl, checkpoints/step-N/."""
    seed: int = 0
    """Decides initial weights and every batch."""
    resume: str = "auto"
    """auto: the newest whole checkpoint in output_dir; none: from the start; or a checkpoint folder."""
    max_train_steps: int = 0
    """Steps in all; 0 means the sum of the curriculum."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    keep_last: int = 2
    """Checkpoints kept."""
    log_every: int = 20
    """Steps between lines of log.jsonl."""

    curriculum: list[Stage] = field(default_factory=lambda: [Stage()])
    """Stages, one after the other."""
    learning_rate: float = 5e-4
    """Peak, after warm-up."""
    lr_warmup_steps: int = 100
    """Linear warm-up."""
    lr_decay_steps: int = 0
    """Length of the linear decay to a twentieth at the end; before it the rate is constant."""
    optimizer: str = "adamw"
    """adamw, or muon (for the matrices inside a transformer's blocks; AdamW has the rest)."""
    muon_scale: float = 1.0
    """Muon's learning rate as a multiple of learning_rate."""
    adam_beta2: float = 0.99
    """Second-moment decay of AdamW."""
    weight_decay: float = 0.0
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    ema_decay: float = 0.999
    """Exponential moving average of the weights; it is what gets exported."""
    mixed_precision: str = "auto"
    """auto, bf16 or fp32: the type of matrix products (weights and optimizer stay in fp32)."""
    num_threads: int = 0
    """CPU threads; 0 means all cores."""

    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, for guidance."""
    timestep_logit_std: float = 0.9
    """Spread of the logit-normal noise steps."""
    object_weight: float = 1.0
    """How much heavier the loss is where Toy World's objects are, at low noise."""
    crowd: int = 0
    """At most so many more objects in each clip that the VAE sees."""
    kl_weight: float = 1e-6
    """Weight of the VAE's KL term."""
    clips: int = 0
    """How many clips of the dataset are used; 0 means all."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the target when it starts from nothing. A transformer that starts from another one takes window_attn from it."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of MiraScheduler."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.max_train_steps or sum(stage.steps for stage in self.curriculum)

    def stage_at(self, step: int) -> Stage:
        """The stage that ``step`` (from 0) belongs to; the last one goes on for ever."""
        for stage in self.curriculum:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.curriculum[-1]

    def validate(self) -> None:
        """Raises ConfigError at the first setting that cannot be used."""
        if self.target not in TARGETS:
            raise ConfigError(f"target is {self.target!r}; it must be one of {', '.join(TARGETS)}.{nearest(self.target, TARGETS)}")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer is {self.optimizer!r}; it must be one of {', '.join(OPTIMIZERS)}.{nearest(self.optimizer, OPTIMIZERS)}")
        if self.mixed_precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"mixed_precision is {self.mixed_precision!r}; it must be auto, bf16 or fp32.")
        if self.target == "transformer" and not self.model:
            raise ConfigError("model is empty; name a folder with vae/, text_encoder/ and tokenizer/ (made by `python -m training export`).")
        if self.target == "transformer" and not self.dataset:
            raise ConfigError("dataset is empty; name a folder made by `python -m training precompute`.")
        for name in ("checkpoint_every", "log_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for stage in self.curriculum:
            if stage.steps < 1 or stage.train_batch_size < 1 or not stage.num_frames or min(stage.num_frames) < 1:
                raise ConfigError(f"A stage of the curriculum needs steps, a batch size and lengths of at least 1: {dataclasses.asdict(stage)}.")


def load_config(path: str | Path | None, overrides: list[str]) -> TrainConfig:
    """Defaults, then the YAML file, then ``key=value`` words. Raises ConfigError with the offending name."""
    base = OmegaConf.structured(TrainConfig)
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    try:
        layers = [base]
        if path is not None:
            layers.append(OmegaConf.load(path))
        layers.append(OmegaConf.from_dotlist(overrides))
        config = OmegaConf.to_object(OmegaConf.merge(*layers))
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}.") from None
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key or "").split(".")[0]
        hint = nearest(key, names) if key and key not in names else ""
        raise ConfigError(f"{str(error).splitlines()[0]}{hint}") from None
    config.validate()
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the settings as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))

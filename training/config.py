"""The settings of a training run: one dataclass for the YAML file, the command line and the checkpoint."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.files import replacing
from core.types import nearest

OPTIMIZERS = ("adamw", "adamw8bit", "muon")
SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
SHARDINGS = ("none", "zero2", "full", "deepspeed")
TRACKERS = ("tensorboard", "trackio", "wandb")
TARGETS = ("transformer", "temporal", "lora", "vae_decoder", "vae", "text_encoder")
LATENT_TARGETS = ("transformer", "temporal", "lora")
"""Those that train the transformer, or a part of it, on latents."""
USER_TARGETS = (*LATENT_TARGETS, "vae_decoder")
"""Those that train on anyone's videos."""

LORA_BLOCKS = {"all": ("transformer_blocks.", "temporal_transformer_blocks."), "spatial": ("transformer_blocks.",), "temporal": ("temporal_transformer_blocks.",)}
"""How the names of their layers begin."""
CHOICES = {"target": TARGETS, "optimizer": OPTIMIZERS, "lr_schedule": SCHEDULES, "mixed_precision": PRECISIONS, "sharding": SHARDINGS, "lora_blocks": tuple(LORA_BLOCKS)}
"""Settings that are one of a few words."""

UNPRINTABLE = re.compile(r"[\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""What YAML does not take as it is."""
PATHS = ("model", "dataset", "dataset_root", "keep_dataset", "output_dir", "data_dir", "resume")
"""Settings that can be a path."""


class ConfigError(ValueError):
    """A training setting that cannot be used; the message names it and says what to do."""


@dataclass
class Stage:
    """A stretch of the curriculum: clips of these lengths, until its steps are done. What it leaves out is as the run has it."""

    steps: int = 1000
    """Optimizer steps in this stage."""
    train_batch_size: int | None = None
    """Clips a step, if they are the longest of ``num_frames``; of shorter ones as many more as make the same number of frames. null: as many as the run's."""
    num_frames: list[int] | None = None
    """Lengths of clips; each step draws one of them. Toy World's clips are thinned evenly to that length; one frame is any of its frames. null: the run's."""
    keep_frame_indices: bool = False
    """Toy World: frames of a thinned clip keep their indices in the whole one, whose motion the model so sees at the cost of a few frames."""
    height: int = 80
    """Pixels of the crops that target=vae sees."""
    width: int = 128
    """Pixels of the crops that target=vae sees."""
    timestep_logit_mean: float | None = None
    """Centre of the logit-normal share of noise steps (0 is half-way, negative is cleaner); null: the run's."""
    enable_temporal_attention: bool = True
    """False trains the image path (spatial blocks only)."""
    camera_only: bool = False
    """With camera_weight: the first layers learn from the teacher alone, at a third of a step's time."""

    def clips(self, num_frames: int) -> int:
        """Clips in a step of that length: steps on images and on clips cost the same (joint training, Ho et al. 2022, arXiv:2204.03458)."""
        return self.train_batch_size * max(self.num_frames) // num_frames


@dataclass
class TrainConfig:
    """Every setting of a run. Unknown names are refused."""

    target: str = "transformer"
    """What is trained: transformer (all of it), temporal (its temporal blocks), lora (small matrices beside its projections), vae_decoder (how latents
    become pixels; they stay as they are); or a part of a new embedded model on Toy World: vae, text_encoder."""
    model: str = ""
    """What the run starts from: mira-nano, a release such as TencentARC/Mira-v0:128, or a folder that holds a model or parts of one."""
    dataset: str = ""
    """Videos with captions: a folder or a table (see training/dataset.py); or a folder of latents of Toy World (python -m training precompute)."""
    dataset_root: str = ""
    """Where the paths in a table begin; its own folder by default."""
    output_dir: str = "workspace/runs/run"
    """Run folder: config.yaml, environment.json, log.txt, metrics.jsonl, samples/, checkpoints/step-N/."""
    data_dir: str = "workspace"
    """Where models are found, and where latents and prompt embeddings are kept for other runs."""
    seed: int = 0
    """Decides initial weights and every batch."""
    resume: str = "auto"
    """auto: the newest whole checkpoint in output_dir; none: from the start; or a checkpoint folder. Later checkpoints in output_dir go when the first new one is written."""
    max_train_steps: int = 0
    """Steps in all; 0 means the sum of the curriculum."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints that are kept, beside the best one by validation loss."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are kept for good; 0 keeps none so."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Where its figures go beside metrics.jsonl: tensorboard and trackio stay on this machine, wandb sends them to its servers; may be empty."""

    train_batch_size: int = 4
    """Clips a step."""
    num_frames: list[int] = field(default_factory=lambda: [24])
    """Lengths of clips; each video gives the longest that it can fill."""
    sizes: list[str] = field(default_factory=lambda: ["128x80"])
    """WIDTHxHEIGHT that videos are brought to: each to the one whose shape is nearest its own."""
    frame_stride: int = 4
    """Largest distance of two frames, in frames of the file; drawn anew for each take, and told to the model as its frame rate."""
    takes_per_clip: int = 1
    """Stretches drawn from each video, of each length that a stage of the curriculum takes of it, and kept as latents; without a cache of latents each time another one."""
    latent_cache: bool = True
    """False encodes every batch anew, each time a clip is drawn another stretch of it at another stride: more to see, no disk, but the VAE and the text encoder stay in memory and take their time in each step."""
    timestep_logit_mean: float | None = None
    """Centre of the logit-normal share of noise steps (0 is half-way, negative is cleaner); null draws all of them uniformly, as Mira does."""
    curriculum: list[Stage] = field(default_factory=list)
    """Stages, one after the other, each with steps and what differs from the batch size, lengths and noise steps above."""

    lora_rank: int = 16
    """Width of the LoRA's matrices."""
    lora_alpha: float = 16.0
    """Its weight is alpha / rank."""
    lora_layers: list[str] = field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    """Projections that get one: to_q, to_k, to_v, to_out.0 of all attentions; net.0.proj and net.2 of the feed-forwards."""
    lora_blocks: str = "all"
    """Blocks whose projections get one: all; spatial, for what things look like (temporal blocks, and so how they move, stay as they are); temporal, for how they move."""
    keep_dataset: str = ""
    """Captioned videos of what should stay as it is: a LoRA is held, on one of them each step, to what the model makes of it without the LoRA. They are taken as long as those that are trained on, lest it tell the two apart by that."""
    keep_weight: float = 1.0
    """Weight of the difference, in the loss."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients make one optimizer step."""
    gradient_checkpointing: bool = False
    """Compute activations a second time rather than keep them: less memory, about a third more time."""
    selective_checkpointing: bool = False
    """With gradient_checkpointing: keep the results of matrix products and attention, and compute only the cheap rest again."""
    snr_gamma: float = 0.0
    """Min-SNR weighting of noise steps (5 is usual); 0 weighs all alike, as Mira does."""
    noise_offset: float = 0.0
    """Share of noise that is the same in all of a frame; 0 as in Mira."""

    validation_clips: int = 8
    """Clips, at most a quarter, that training never sees: their loss is measured at each checkpoint."""
    validation_prompts: list[str] = field(default_factory=list)
    """Prompts of which a video is made at each checkpoint; the seed is the run's."""
    validation_steps: int = 20
    """Denoising steps of those videos."""
    learning_rate: float = 5e-4
    """Peak, after warm-up."""
    lr_warmup_steps: int = 100
    """Linear warm-up."""
    lr_schedule: str = "linear"
    """How the rate falls at the end, to a twentieth: linear or cosine; constant: it does not fall."""
    lr_decay_steps: int = 0
    """Length of that fall; before it the rate is constant. 0: it does not fall."""
    optimizer: str = "adamw"
    """adamw, adamw8bit (a quarter of its memory; needs bitsandbytes), or muon (for the matrices inside a transformer's blocks; AdamW has the rest)."""
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
    """auto, bf16, fp16 or fp32: the type of matrix products (what is trained and its optimizer stay in fp32; fp16 scales the loss)."""
    num_threads: int = 0
    """CPU threads; 0 means all cores."""
    num_processes: int = 1
    """Processes on this machine that share every batch, one a GPU (torchrun starts them on several machines, see training/processes.py)."""
    sharding: str = "none"
    """What several processes divide beside the batch: none (DDP), zero2 (gradients and optimizer), full (weights too, FSDP2), or deepspeed (as zero2, by the package of that name)."""

    caption_dropout: float = 0.05
    """Share of captions replaced by the empty one, for guidance."""
    timestep_logit_std: float = 0.9
    """Spread of the logit-normal noise steps."""
    object_weight: float = 1.0
    """How much heavier the loss is where Toy World's objects are and where anything moves, at low noise."""
    camera_weight: float = 0.0
    """Toy World: weight of the difference between the first layers' tokens and those of a teacher that is told how the camera moves (training/camera.py)."""
    crowd: int = 0
    """At most so many more objects in each clip that the VAE sees."""
    any_color: float = 0.0
    """Share of those objects that have any colour, not one of the seven with a name."""
    hard_clips: dict[str, str] = field(default_factory=dict)
    """What a clip that the VAE finds hard shows, and all objects in it: of size, shape, color and background what is not left to chance."""
    hard_share: float = 0.0
    """Share of such clips."""
    kl_weight: float = 1e-6
    """Weight of the VAE's KL term."""
    clips: int = 0
    """How many clips of the dataset are used; 0 means all."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the target when it starts from nothing. A transformer that starts from another one takes window_attn from it."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of MiraScheduler."""

    def adapts(self, layer: str) -> bool:
        """Whether the layer of that name in the transformer gets a LoRA."""
        return layer.startswith(LORA_BLOCKS[self.lora_blocks]) and layer.endswith(tuple(f".{ending}" for ending in self.lora_layers))

    @property
    def stages(self) -> list[Stage]:
        """The curriculum with nothing left out, or the one stage that the settings beside it make."""
        run = {name: getattr(self, name) for name in ("train_batch_size", "num_frames", "timestep_logit_mean")}
        said = [{name: value for name in run if (value := getattr(stage, name)) is not None} for stage in self.curriculum]
        return [dataclasses.replace(stage, **{**run, **own}) for stage, own in zip(self.curriculum, said)] or [Stage(self.max_train_steps or 1000, **run)]

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.max_train_steps or sum(stage.steps for stage in self.stages)

    @property
    def lengths(self) -> list[int]:
        """All lengths of clips, in frames."""
        return sorted({n for stage in self.stages for n in stage.num_frames})

    @property
    def shortest(self) -> int:
        """Frames that a video must have: the shortest length of a clip that is more than a picture."""
        return min((n for n in self.lengths if n > 1), default=1)

    def stage_at(self, step: int) -> Stage:
        """The stage that ``step`` (from 0) belongs to; the last one goes on for ever."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def plan(self) -> str:
        """What each stage does in how many of the run's steps, in words; also of those that the run ends before."""
        lines, begun = [], 0
        for number, stage in enumerate(self.stages, 1):
            end = self.total_steps if number == len(self.stages) else min(begun + stage.steps, self.total_steps)
            counts = {length: stage.clips(length) for length in stage.num_frames}
            clips = " or ".join(f"{count} clip{'s' if count > 1 else ''} of {length} frame{'s' if length > 1 else ''}" for length, count in counts.items())
            lines.append(f"steps {begun + 1} to {end}: {clips}" if end > begun else f"never (the run ends at step {self.total_steps}; max_train_steps=0 runs all stages): {clips}")
            begun = max(begun, end)
        return "; ".join(lines)

    def validate(self, dataset_follows: bool = False) -> None:
        """Raises ConfigError at the first setting that cannot be used; with ``dataset_follows`` the clips may not be named yet."""
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.{nearest(value, allowed)}")
        for name in self.report_to:
            if name not in TRACKERS:
                raise ConfigError(f"report_to holds {name!r}; it can hold {', '.join(TRACKERS)}.{nearest(name, TRACKERS)}")
        if self.lr_schedule == "cosine" and not self.lr_decay_steps:
            raise ConfigError("lr_schedule is cosine and lr_decay_steps is 0; say over how many of the last steps the rate falls.")
        if any(stage.camera_only for stage in self.stages) and (not self.camera_weight or self.num_processes > 1):
            raise ConfigError("camera_only is for a run with camera_weight above 0, in one process. Leave it out.")
        if self.keep_dataset and (self.target != "lora" or self.num_processes > 1):
            raise ConfigError("keep_dataset is for a LoRA (target=lora), in one process. Leave it out.")
        if self.sharding != "none" and (self.optimizer != "adamw" or self.mixed_precision == "fp16"):
            raise ConfigError(f"sharding is {self.sharding}; it goes with optimizer=adamw and mixed_precision=bf16 or fp32.")
        if (self.target in LATENT_TARGETS or self.dataset) and not self.model:
            raise ConfigError("model is empty; name what to start from: mira-nano, a release such as TencentARC/Mira-v0:128, or a model folder.")
        if self.target in LATENT_TARGETS and not self.dataset and not dataset_follows:
            raise ConfigError("dataset is empty; name a folder of videos with captions (name.mp4 and name.txt), or a table of them.")
        if self.target not in USER_TARGETS and self.dataset:
            raise ConfigError(f"dataset is {self.dataset!r}, but {self.target} is trained on Toy World, which it renders itself. Leave dataset empty, or choose one of {', '.join(USER_TARGETS)}.")
        if self.selective_checkpointing and self.target not in LATENT_TARGETS:
            raise ConfigError(f"selective_checkpointing keeps a transformer's matrix products; {self.target} has none to speak of. Leave it out{'; gradient_checkpointing alone saves memory' if self.target in USER_TARGETS else ''}.")
        if self.gradient_checkpointing and self.target not in USER_TARGETS:
            raise ConfigError(f"gradient_checkpointing is not for {self.target}. Leave it out, or choose one of {', '.join(USER_TARGETS)}.")
        for name in ("checkpoint_every", "log_every", "keep_last", "frame_stride", "takes_per_clip", "gradient_accumulation_steps", "lora_rank", "validation_steps", "num_processes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("max_train_steps", "validation_clips", "snr_gamma", "noise_offset", "keep_every", "keep_weight", "lr_warmup_steps", "lr_decay_steps", "weight_decay", "num_threads", "object_weight", "camera_weight", "crowd", "kl_weight", "clips"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("max_grad_norm", "muon_scale", "lora_alpha", "timestep_logit_std"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("ema_decay", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from 0 to less than 1.")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"learning_rate is {self.learning_rate:g}; it must be above 0 and below 1 (1e-5 for a whole model, 1e-4 for a LoRA).")
        for name in ("caption_dropout", "any_color", "hard_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name):g}; it must be from 0 to 1.")
        for stage in self.stages:
            if stage.steps < 1 or stage.train_batch_size < 1 or not stage.num_frames or min(stage.num_frames) < 1:
                raise ConfigError(f"Steps, train_batch_size and num_frames must be at least 1: {dataclasses.asdict(stage)}.")


HINTS = get_type_hints(TrainConfig)


def load_config(path: str | Path | None, overrides: list[str], dataset_follows: bool = False) -> TrainConfig:
    """Defaults, then the YAML file, then ``key=value`` words; see ``make_config``. Raises ConfigError with the offending name.

    The value of a word is YAML, but a name or a path is taken as it is, unless it stands in quotes: ``dataset=/clips #2`` has no comment in it.
    """
    said = OmegaConf.create()
    for word in overrides:
        name, _, value = word.partition("=")
        try:
            if HINTS.get(name) is str and not value.startswith(("'", '"')):
                said[name] = value.strip()
            else:
                said.merge_with_dotlist([word])
        except yaml.YAMLError as error:
            raise ConfigError(f"{word!r} cannot be read: {' '.join(str(error).split())}. Write name=value, with the value as in YAML.") from None
    try:
        layers = [] if path is None else [_plain(OmegaConf.load(path), path)]
        return make_config(*layers, said, dataset_follows=dataset_follows)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"There is no config file {path}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}.") from None
    except OSError as error:  # OmegaConf has one without a number for a file that holds a single value
        raise ConfigError(f"{path} cannot be read: {error.strerror}." if error.errno else f"{path} is not a list of settings (name: value).") from None


def make_config(*layers: Mapping[str, Any], dataset_follows: bool = False) -> TrainConfig:
    """Defaults, then each layer's settings over those before it; with ``dataset_follows`` they need not name the clips yet.

    Raises ConfigError with the offending name, or for one that would read from its surroundings (``${oc.env:...}``).
    """
    layers = tuple(OmegaConf.create(layer) for layer in layers)
    for line in (line for layer in layers for line in OmegaConf.to_yaml(layer).splitlines() if "${" in line):
        raise ConfigError(f"{line.strip()!r}: values that are taken from elsewhere are refused. Write the value itself.")
    said = [{name: _meant(name, value) for name, value in OmegaConf.to_container(layer).items()} for layer in layers]
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), *said))
    except OmegaConfBaseException as error:
        names = [f.name for f in dataclasses.fields(Stage if error.object_type is Stage else TrainConfig)]
        key = str(error.full_key or error.key or "").split(".")[0]
        hint = nearest(key, names) if key and key not in names else ""
        where = f"{key}: " if key in names else ""
        raise ConfigError(f"{where}{str(error).splitlines()[0].rstrip('.')}.{hint}") from None
    config.validate(dataset_follows)
    return config


def _meant(name: str, value: Any) -> Any:
    """A value as it was meant: nothing, or one of what may be several, stands for a list of that, and a path below ``~`` is in the home folder."""
    if get_origin(HINTS.get(name)) is list and not isinstance(value, (list, dict)):
        return [] if value is None else [value]
    return str(Path(value).expanduser()) if name in PATHS and isinstance(value, str) and value.startswith("~/") else value


def arguments_for(constructor: type, name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """``values`` of the setting ``name``, which ``constructor`` takes. Raises ConfigError for one that it does not know."""
    known = list(inspect.signature(constructor).parameters)
    if strange := next((key for key in values if key not in known), None):
        raise ConfigError(f"{name} holds {strange!r}, which {constructor.__name__} does not know.{nearest(strange, known)}")
    return values


def missing_package(config: TrainConfig) -> str:
    """What to do about the first package that a run needs and this machine has not; empty where it has all."""
    if config.optimizer == "adamw8bit" and find_spec("bitsandbytes") is None:
        return "optimizer=adamw8bit needs the package bitsandbytes, which is not installed: pip install bitsandbytes. Or use adamw."
    if config.sharding == "deepspeed" and find_spec("deepspeed") is None:
        return "sharding=deepspeed needs the package deepspeed, which is not installed: DS_BUILD_OPS=0 pip install deepspeed. Or use zero2, which divides the same without it."
    absent = next((name for name in config.report_to if find_spec(name) is None), None)
    return f"report_to names {absent}, which is not installed. pip install {absent}, or leave it out." if absent else ""


def as_words(config: TrainConfig, base: TrainConfig) -> list[str]:
    """The ``key=value`` words that make ``config`` of ``base``, for a shell: ``load_config`` reads them back."""
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(base)
    return [f"{name}={as_word(value)}" for name, value in ours.items() if value != theirs[name]]


def as_word(value: Any) -> str:
    """A value as YAML on one line; text that YAML would read as something else stands in quotes."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/~_][\w./~:@-]*(?<!:)", value) and yaml.safe_load(value) == value:
        return value
    if value is None:
        return "null"
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def _plain(settings: Any, path: str | Path) -> Any:
    """``settings`` of a file. Raises ConfigError for one that is no mapping."""
    if not OmegaConf.is_dict(settings):
        raise ConfigError(f"{path} is not a list of settings (name: value).")
    return settings


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the settings as YAML. Raises WriteError."""
    with replacing(path) as file:
        file.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")

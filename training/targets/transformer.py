"""Train the transformer, its temporal blocks or a LoRA beside it on latents, with Mira's loss on Mira's schedule."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from core.checkpoints import find_model, text_encoder_folder
from core.loras import MADE_FROM
from core.provenance import model_hash
from core.schedulers import MiraScheduler
from core.text_encoder import LazyTextEncoder, encode_prompts
from core.temporal_vae import TemporalVAE
from core.transformer import MiraTransformer3DModel, MiraTransformerOutput

from ..camera import CameraTeacher, watching
from ..config import ConfigError, Stage, TrainConfig, arguments_for
from ..ema import using
from ..latents import KEPT_IN, FreshTakes, VideoLatents, remove_leftovers
from ..losses import diffusion_loss, draw_timesteps, draw_training_noise
from ..precompute import LatentDataset
from ..processes import Processes
from ..trainer import step_generator, step_rng, training_dtype
from ..use import LORA_FILE

log = logging.getLogger(__name__)
logging.getLogger("diffusers.models.modeling_utils").addFilter(lambda record: "should be kept in float32: []" not in record.getMessage())
"""It says so of no module at all, whenever a LoRA is saved."""

OBJECTS_VISIBLE_ABOVE = 0.4
"""Share of the signal (alpha_t of the normalised process) above which one noisy frame shows where the objects are."""
TEMPORAL = "temporal_transformer_blocks."
SAMPLES_MEASURED = ("motion_strength", "flicker", "warping_error", "sharpness", "tracking_persistence")
"""Of ``core.metrics``, on the samples of a checkpoint."""
UNTOLD = 0.15
"""Share of the clips of ``keep_dataset`` without their captions: what the model makes of none at all is one side of guidance, and should stay too."""
VALIDATED_AT = (100, 250, 400, 550, 700, 850)
"""Noise steps, of 1,000, at which the loss of held-out clips is measured."""
_aten = torch.ops.aten
EXPENSIVE = (
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default, _aten._scaled_dot_product_flash_attention.default, _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default, _aten._scaled_dot_product_cudnn_attention.default,
)  # fmt: skip
"""Operations whose results selective checkpointing keeps, as torchtitan does: matrix products and attention."""


class TransformerTask:
    """Noise, target, forward, MSE; captions from a frozen text encoder."""

    casts_weights = True

    def __init__(self, config: TrainConfig, device: torch.device, progress: Callable[[int, int], None] | None = None, processes: Processes | None = None):
        self.config, self.device = config, device
        self.processes = processes or Processes(str(device))
        self.dtype = training_dtype(config, device)
        self.folder = model_folder(config)
        self.text_encoder = LazyTextEncoder(text_encoder_folder(self.folder, Path(config.data_dir) / "models"), Path(config.data_dir) / "cache" / "prompts", device, self.dtype)
        self.dataset = self._dataset(config, progress)
        self.kept = None
        """What the LoRA must not change, if the run says so."""
        if config.keep_dataset:
            self.kept = self._dataset(replace(config, dataset=config.keep_dataset, dataset_root="", validation_clips=0, clips=0), progress)
        self.model = self._model().to(device).train()
        if self.model.config.in_channels != self.dataset.channels:
            raise ConfigError(f"The transformer takes {self.model.config.in_channels} latent channels, the latents of {config.dataset} have {self.dataset.channels}.")
        self.network: torch.nn.Module = Predictor(self.model, self.dtype, self.processes.sharded)
        blocks = (*self.model.transformer_blocks, *self.model.temporal_transformer_blocks)
        attentions = [attention for block in blocks for attention in (block.attn1, block.attn2) if attention is not None]
        layers = [layer for attention in attentions for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])]
        self.units = [*layers, *(block.ff for block in blocks), self.model]  # not blocks: their tables and the text's projections are used before they run
        self.teacher = self._teacher()
        if config.scheduler or not (self.folder / "scheduler").is_dir():
            self.scheduler = MiraScheduler(**arguments_for(MiraScheduler, "scheduler", config.scheduler))
        else:
            self.scheduler = MiraScheduler.from_pretrained(self.folder / "scheduler")

    def _dataset(self, config: TrainConfig, progress: Callable[[int, int], None] | None) -> LatentDataset | VideoLatents:
        """Latents of Toy World, or those of the user's videos, for which the VAE is loaded if any are missing, and then forgotten; without a cache the videos, and the VAE and the text encoder stay."""
        ready = (Path(config.dataset) / "dataset.json").exists()
        if ready and not config.latent_cache:
            raise ConfigError(f"latent_cache is false, but {config.dataset} holds latents, not videos. Leave it out.")
        if ready or not config.latent_cache:
            self.encode = self._text_encoder_at_hand()
        if ready:
            return LatentDataset(config.dataset, limit=config.clips)
        if any(stage.keep_frame_indices for stage in config.stages):
            raise ConfigError(f"keep_frame_indices is for latents of Toy World, whose clips are thinned; {config.dataset} holds videos. Leave it out.")
        self.frame_encoder = FrameEncoder(self.folder, self.device, self.dtype)
        if not config.latent_cache:
            return FreshTakes(config, self.frame_encoder.load().config.latent_channels, progress)
        dataset = VideoLatents(config, Path(config.data_dir) / "cache" / "latents", model_hash(self.folder, ("vae/*",)), self.frame_encoder, progress)
        self.frame_encoder.release()
        remove_leftovers(self.text_encoder.cache.folder)
        self.text_encoder.keep(["", *dataset.captions, *config.validation_prompts], progress)
        self.text_encoder.release()
        self.encode = self.text_encoder
        return dataset

    def _text_encoder_at_hand(self) -> Callable[[list[str]], torch.Tensor]:
        """What encodes captions in every step, those of a batch to come and of a checkpoint one after the other: a tokenizer serves one thread at a time. Sample prompts are kept on disk."""
        if self.config.validation_prompts:
            self.text_encoder(["", *self.config.validation_prompts])
        (tokenizer, encoder), turn = self.text_encoder.load(), threading.Lock()

        def encode(texts: list[str]) -> torch.Tensor:
            with turn:
                return encode_prompts(texts, tokenizer, encoder, batch_size=64)

        return encode

    def _teacher(self) -> CameraTeacher | None:
        """What tells the first layers how the camera moves, if the run has one: made of what the run starts from, so that a resumed one has the same."""
        if not self.config.camera_weight:
            return None
        part = self.folder / "transformer"
        if not isinstance(self.dataset, LatentDataset) or not part.is_dir() or self.config.target != "transformer":
            raise ConfigError("camera_weight is for target=transformer on latents of Toy World, from a model with a transformer. Leave it out.")
        return CameraTeacher(MiraTransformer3DModel.from_pretrained(part).to(self.device), self.dtype)

    def _model(self) -> MiraTransformer3DModel:
        """The transformer with ``requires_grad`` on what is trained; that is in fp32, the rest in the number format of the computation."""
        config, part = self.config, self.folder / "transformer"
        if config.target == "lora":
            from peft import LoraConfig

            model = MiraTransformer3DModel.from_pretrained(part, dtype=self.dtype).requires_grad_(False)
            names = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and config.adapts(name)]
            if not names:
                where = "" if config.lora_blocks == "all" else f"'s {config.lora_blocks} blocks"
                raise ConfigError(f"lora_layers is {config.lora_layers}; no projection of the model{where} ends so. Use to_q, to_k, to_v, to_out.0, net.0.proj or net.2.")
            model.add_adapter(LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=names))
        elif part.is_dir():
            model = MiraTransformer3DModel.from_pretrained(part, dtype=self.dtype if config.target == "temporal" else torch.float32)
            if "window_attn" in config.architecture:
                model.look_over_time(config.architecture["window_attn"])
        elif config.target == "transformer":
            model = MiraTransformer3DModel(**arguments_for(MiraTransformer3DModel, "architecture", config.architecture))
        else:
            raise ConfigError(f"{self.folder} holds no transformer/ whose {config.target} could be trained.")
        if config.target == "temporal":
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(TEMPORAL))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if config.gradient_checkpointing:
            kept = {"context_fn": partial(create_selective_checkpoint_contexts, list(EXPENSIVE))} if config.selective_checkpointing else {}
            model.enable_gradient_checkpointing(lambda block, *args: checkpoint(block.__call__, *args, use_reentrant=False, **kept))
        return model

    def batch(self, index: int) -> dict[str, Any]:
        """This process's share: ``latents`` [B, C, T, h, w] fp32, ``masks`` [B, 1, T, h, w] of the objects or None, ``prompt_embeds`` [B, L, D], ``fps`` [B]; ``frame_indices`` [T] or None; and ``kept``, the same of one clip of ``keep_dataset``, or None."""
        rng, stage = step_rng(self.config.seed, index), self.config.stage_at(index // self.config.gradient_accumulation_steps)
        batch = self._drawn(self.dataset, stage, rng, self.config.caption_dropout)
        return {**batch, "kept": None if self.kept is None else self._drawn(self.kept, replace(stage, train_batch_size=1), rng, UNTOLD)}

    def _drawn(self, dataset: LatentDataset | VideoLatents, stage: Stage, rng: np.random.Generator, untold: float) -> dict[str, Any]:
        batch = dataset.batch(stage, rng)
        texts = ["" if rng.random() < untold else text for text in batch.pop("texts")]
        frame_indices = batch.pop("frame_indices")
        batch = self._encoded({name: None if value is None else self.processes.share(value) for name, value in batch.items()})
        return {**batch, "frame_indices": frame_indices, "prompt_embeds": self.encode(self.processes.share(texts)), "texts": self.processes.share(texts)}

    def _encoded(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with ``latents`` in place of ``frames``, where it has these: as exact as a cache keeps them."""
        if (frames := batch.pop("frames", None)) is not None:
            batch["latents"] = torch.stack([self.frame_encoder(clip).to(KEPT_IN).float() for clip in frames])
        return batch

    def loss(self, batch: dict[str, Any], index: int) -> tuple[torch.Tensor, dict[str, float]]:
        stage = self.config.stage_at(index // self.config.gradient_accumulation_steps)
        generator = step_generator(self.config.seed, index)
        steps = self.scheduler.config.num_train_timesteps
        count, *shape = batch["latents"].shape
        whole = count * self.processes.count  # drawn for all processes, so that clip i has the same noise however many there are
        timesteps = draw_timesteps(whole, steps, stage.timestep_logit_mean, self.config.timestep_logit_std, generator)
        noise = draw_training_noise((whole, *shape), generator, self.config.noise_offset)
        timesteps, noise = self.processes.share(timesteps), self.processes.share(noise)
        if self.teacher is None:
            loss, figures = self._loss(self.network, batch, timesteps, noise, stage.enable_temporal_attention)
        else:
            with watching(self.model, stage.camera_only) as seen:
                loss, figures = self._loss(self.network, batch, timesteps, noise, stage.enable_temporal_attention)
            distance = self._camera_distance(seen[0], batch, timesteps.to(self.device), noise.to(self.device))
            loss, figures = (0.0, {}) if stage.camera_only else (loss, figures)
            loss, figures = loss + self.config.camera_weight * distance, figures | {"camera": float(distance.detach())}
        if batch["kept"] is not None:
            forgotten = self._forgotten(batch["kept"], stage, generator)
            loss, figures = loss + self.config.keep_weight * forgotten, figures | {"forgotten": float(forgotten.detach())}
        return loss, {f"{name}_{batch['latents'].shape[2]}f": value for name, value in figures.items()}

    def _forgotten(self, kept: dict[str, Any], stage: Stage, generator: torch.Generator) -> torch.Tensor:
        """How far the model is, on a clip of ``keep_dataset``, from what it says without its LoRA: the mean squared difference of the two predictions
        (Li and Hoiem 2016, arXiv:1606.09282, section 3, of a network's own answers; the clips are what Ruiz et al. 2023, arXiv:2208.12242, section 3.2, keep of a class)."""
        count, *shape = kept["latents"].shape
        timesteps = draw_timesteps(count, self.scheduler.config.num_train_timesteps, stage.timestep_logit_mean, self.config.timestep_logit_std, generator).to(self.device)
        noise = draw_training_noise((count, *shape), generator, self.config.noise_offset).to(self.device)
        asked = self.scheduler.add_noise(kept["latents"].to(self.device), noise, timesteps), timesteps, kept["prompt_embeds"].to(self.device), kept["fps"].to(self.device)
        with torch.no_grad(), without_loras(self.model):
            before = self.network(*asked).sample.float()
        return torch.nn.functional.mse_loss(self.network(*asked).sample.float(), before)

    def _camera_distance(self, seen: torch.Tensor, batch: dict[str, Any], timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        latents, frame_indices = batch["latents"].to(self.device), batch["frame_indices"]
        num_frames = latents.shape[2] if frame_indices is None else self.dataset.index["num_frames"]
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        return self.teacher.distance(seen, noisy, timesteps, batch["prompt_embeds"].to(self.device), batch["fps"].to(self.device), batch["texts"], frame_indices, num_frames)

    def _loss(self, network: torch.nn.Module, batch: dict[str, Any], timesteps: torch.Tensor, noise: torch.Tensor, enable_temporal_attention: bool = True) -> tuple[torch.Tensor, dict[str, float]]:
        timesteps = timesteps.to(self.device)
        return diffusion_loss(
            network,
            self.scheduler,
            batch["latents"].to(self.device),
            batch["prompt_embeds"].to(self.device),
            fps=batch["fps"].to(self.device),
            timesteps=timesteps,
            noise=noise.to(self.device),
            weights=None if batch["masks"] is None else self.weights(batch["masks"].to(self.device), timesteps),
            enable_temporal_attention=enable_temporal_attention,
            snr_gamma=self.config.snr_gamma,
            frame_indices=batch["frame_indices"],
        )

    def weights(self, masks: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor | None:
        """Heavier where the objects are, at noise steps whose latents still show where that is; of mean one in each clip.

        Given x_t the weight is then nearly certain, so the optimum stays E[target | x_t]. At higher noise all places count the same: to weigh
        up the places where objects happen to be would teach the model to see objects wherever one is possible.
        """
        extra = self.config.object_weight - 1
        if not extra:
            return None
        visible = (self.scheduler.alpha.to(timesteps.device)[timesteps] > OBJECTS_VISIBLE_ABOVE).view(-1, 1, 1, 1, 1)
        weights = 1 + extra * masks * visible
        return weights / weights.mean(dim=(1, 2, 3, 4), keepdim=True)

    # -- what a checkpoint is judged by -------------------------------------------------------------

    @contextmanager
    def judged(self, weights: dict[str, torch.Tensor]) -> Iterator[MiraTransformer3DModel]:
        """The model with these weights: the one that is trained, or another where each process has only a part of that."""
        model = self._model().to(self.device) if self.processes.sharded else self.model
        with using(model, weights):
            yield model

    @torch.no_grad()
    def validate(self, weights: dict[str, torch.Tensor]) -> float | None:
        """Mean loss of the held-out clips at VALIDATED_AT with noise that never changes; None where no clip is held out."""
        batches = [self._encoded(batch) for batch in self.dataset.held_out_batches(np.random.default_rng(0))]
        losses = []
        with self.judged(weights) as model:
            network = Predictor(model, self.dtype)
            for number, batch in enumerate(batches):
                batch["prompt_embeds"] = self.encode(batch.pop("texts"))
                for step in VALIDATED_AT:
                    noise = draw_training_noise(batch["latents"].shape, torch.Generator().manual_seed(1000 * number + step), self.config.noise_offset)
                    loss, _ = self._loss(network, batch, torch.tensor([step]), noise)
                    losses.append(float(loss))
        return float(np.mean(losses)) if losses else None

    @torch.no_grad()
    def sample(self, weights: dict[str, torch.Tensor], folder: Path) -> dict[str, float]:
        """A video of each of ``validation_prompts``, through the pipeline that makes everyone's videos: ``folder/00.mp4`` and so on.

        Returns the mean of what each of SAMPLES_MEASURED is on them, where it can be measured at all.
        """
        if not self.config.validation_prompts:
            return {}
        from core.pipeline import MiraPipeline
        from core.lineage import base_model
        from core.presets import default_preset
        from core.types import GenerationRequest
        from core.video_io import save_video, to_uint8

        config = self.config
        preset = default_preset(base_model(config.model, config.data_dir))
        takes = getattr(self.dataset, "takes", None)
        shape = {"num_frames": preset.num_frames, "height": preset.height, "width": preset.width, "fps": preset.fps}
        if takes:
            longest = max(takes, key=lambda take: take.num_frames)
            shape = {"num_frames": longest.num_frames, "height": longest.height, "width": longest.width, "fps": max(1, min(120, round(longest.fps)))}
        clips = []
        with self.judged(weights) as model:
            pipe = MiraPipeline(model, TemporalVAE.from_pretrained(self.folder / "vae", dtype=self.dtype).to(self.device), self.scheduler)
            pipe.lazy_text_encoder = self.text_encoder
            pipe.set_progress_bar_config(disable=True)
            for number, prompt in enumerate(config.validation_prompts):
                request = GenerationRequest(prompt, model=config.model, seed=config.seed, preset=preset.name, num_inference_steps=config.validation_steps, **shape).resolved(config.data_dir)
                folder.mkdir(parents=True, exist_ok=True)
                settings = {name: getattr(request, name) for name in (*shape, "num_inference_steps", "guidance_scale", "guidance_stop", "late_guidance_scale", "temporal_guidance_scale", "eta", "sampler", "seed")}
                frames = to_uint8(pipe(request.prompt, **settings).frames[0])
                save_video(frames, folder / f"{number:02}.mp4", request.output_fps, request.to_dict())
                clips.append(frames)
        return mean_figures(clips, SAMPLES_MEASURED)

    def save(self, folder: Path, weights: dict[str, torch.Tensor], step: int) -> None:
        """``folder/lora.safetensors``; or ``folder/transformer`` and ``folder/scheduler``."""
        if self.config.target == "lora":
            import json

            from safetensors import safe_open
            from safetensors.torch import load_file, save_file

            with self.judged(weights) as model:
                model.save_lora_adapter(folder, weight_name=LORA_FILE)
            with safe_open(folder / LORA_FILE, "pt") as file:
                metadata = file.metadata()
            origin = {"run": Path(self.config.output_dir).name, "step": step, "model": self.config.model, "dataset": Path(self.config.dataset).name, "dataset_hash": self.dataset.hash}
            save_file(load_file(folder / LORA_FILE), folder / LORA_FILE, {**metadata, MADE_FROM: json.dumps(origin)})
            return
        with torch.device("meta"):
            model = MiraTransformer3DModel.from_config(self.model.config)
        model.load_state_dict(weights, assign=True)
        model.save_pretrained(folder / "transformer")
        self.scheduler.save_pretrained(folder / "scheduler")


@contextmanager
def without_loras(model: MiraTransformer3DModel) -> Iterator[None]:
    """The model as it is without what is trained beside it."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


class Predictor(torch.nn.Module):
    """The transformer with its weights cast to ``dtype`` once a step; gradients reach the fp32 weights.

    Autocast would cast them at every use and keep norms and gates in fp32: 1.2 to 1.4 times slower on a CPU. Checkpointed blocks run a second
    time, when cast weights are gone: they need it.
    """

    def __init__(self, model: MiraTransformer3DModel, dtype: torch.dtype, sharded: bool = False):
        super().__init__()
        self.model, self.dtype, self.sharded = model, dtype, sharded

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, fps: torch.Tensor, **options: Any) -> MiraTransformerOutput:
        if self.dtype == torch.float32:
            return self.model(noisy, timesteps, text, fps, **options)
        if self.sharded:  # weights are gathered in that number format
            return self.model(noisy.to(self.dtype), timesteps, text.to(self.dtype), fps, **options)
        if self.model.gradient_checkpointing:
            with torch.autocast(noisy.device.type, self.dtype):
                return self.model(noisy, timesteps, text, fps, **options)
        cast = {name: p.to(self.dtype) for name, p in self.model.named_parameters()}
        return torch.func.functional_call(self.model, cast, (noisy.to(self.dtype), timesteps, text.to(self.dtype), fps), options)


class FrameEncoder:
    """A model folder's VAE, loaded when it is first needed."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self.folder, self.device, self.dtype = folder, device, dtype
        self.vae: TemporalVAE | None = None

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        """Latents [C, T, h, w] of ``frames`` uint8 [T, H, W, 3]."""
        from core.vae import encode_video

        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(self.device, self.dtype)
        return encode_video(self.load(), pixels.div(127.5).sub(1))[0]

    def load(self) -> TemporalVAE:
        """The VAE, loaded now if it was not."""
        if self.vae is None:
            self.vae = TemporalVAE.from_pretrained(self.folder / "vae", dtype=self.dtype).to(self.device).eval().requires_grad_(False)
        return self.vae

    def release(self) -> None:
        """Give its memory back."""
        self.vae = None


def mean_figures(clips: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, float]:
    """The mean over clips uint8 [T, H, W, 3] of each of these of ``core.metrics``; without those that can be measured on none."""
    from core.metrics import METRICS, Frames

    looked = [Frames(clip) for clip in clips]
    measured = {name: [value for clip in looked if (value := METRICS[name].measure(clip)) is not None] for name in names}
    return {name: float(np.mean(values)) for name, values in measured.items() if values}


def model_folder(config: TrainConfig) -> Path:
    """The folder of what a run starts from: a folder of parts as it is, else a model by name, downloaded if need be. Raises ConfigError."""
    from core.originals import CheckpointError

    folder = Path(config.model)
    if (folder / "vae").is_dir():
        return folder
    try:
        return find_model(config.model, Path(config.data_dir))
    except CheckpointError as error:
        raise ConfigError(str(error)) from None

"""MiraPipeline: a prompt to a video."""

from __future__ import annotations

import contextlib
import numbers
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, DiffusionPipeline
from diffusers.pipelines import pipeline_loading_utils
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from .compute import Compute
from .economy import Economy
from .eight_bits import format_for, keep_in_eight_bits
from .guidance import Scales, scales_at
from .loras import apply_loras
from .parallel import Crew, form_crew
from .quality import EXACT, QUALITIES
from .schedulers import MiraScheduler, Sampler, draw_noise, make_sampler
from .snapshot import Generators, Snapshot
from .start import load_start
from .step_cache import StepCache
from .text_encoder import LazyTextEncoder, encode_prompts
from .transformer import MiraTransformer3DModel, Modulation, ProjectedText
from .types import MAX_SEED, GenerationCancelled, GenerationError, GenerationRequest, RequestError
from .vae import decode_latents, encode_video, preview_frames
from .windows import decode_in_windows, predict_in_windows

# A model folder names its parts as ["core", "MiraTransformer3DModel"]: the public names, wherever the modules move.
for _classes in (pipeline_loading_utils.LOADABLE_CLASSES.setdefault("core", {}), pipeline_loading_utils.ALL_IMPORTABLE_CLASSES):
    _classes |= {name: ["save_pretrained", "from_pretrained"] for name in ("MiraTransformer3DModel", "MiraScheduler", "TemporalVAE")}

StepCallback = Callable[["MiraPipeline", int, int, dict[str, Any]], None]
"""``callback(pipe, step, timestep, {"latents", "preview", "num_steps", "snapshot"})`` after each model evaluation, ``step`` from 0.

``snapshot`` makes, when called, all that the rest of the denoising depends on: ``pipe(..., resume=snapshot)`` goes on to the same bits. ``latents`` is x_t ``[B, C, T, h, w]``. ``preview`` makes, when called, small frames (uint8 ``[B, T, h, w, 3]``) of the clip as it
is guessed so far; None for a model without a latent-to-RGB map. A callback may raise GenerationCancelled.
"""


@dataclass
class MiraPipelineOutput(BaseOutput):
    """``frames [B, T, H, W, C]`` in 0..1 (np, pt), a list of lists of images (pil), or latents ``[B, C, T, h, w]`` (latent)."""

    frames: np.ndarray | Tensor | list[list[Image.Image]]


@dataclass
class _Denoising:
    """A clip on its way from noise to latents: ``state`` changes with every step, and with it what solver, generators and cache hold."""

    solver: Sampler
    state: Tensor
    """The solver's ``[B, C, T, h, w]``."""
    noise: Tensor
    """x_T of unit variance."""
    start_latents: Tensor | None
    """What the clip starts from ``[B, C, T', h, w]``."""
    kept: Tensor | None
    """Its first frames, where they are known."""
    first: int
    """The first of the solver's steps that is taken."""
    begin: int
    """The first that is taken now: a later one in a clip that goes on."""
    context: Tensor
    """The text ``[B or 2 B, L, D]``."""
    generators: Generators
    cache: StepCache | None
    arguments: dict[str, Any]
    """Of the call: those that the steps follow."""

    def snapshot(self, step: int) -> Snapshot:
        """What the denoising goes on from at ``step``."""
        return Snapshot.take(step, self.state, self.noise, self.start_latents, self.context, self.solver, self.generators, self.cache, self.arguments)


class MiraPipeline(DiffusionPipeline):
    """Text to video with Mira's spatial-temporal diffusion transformer.

    Args:
        transformer, vae, scheduler: The model. Latents stay in fp32; the transformer and the VAE are run in their own dtype.
        text_encoder, tokenizer: T5. Optional: without them prompts are encoded by ``lazy_text_encoder``, or given as embeddings.
        latent_rgb: A linear map from latents to RGB for previews: C rows of weights and one of biases, 3 numbers each.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]

    def __init__(
        self,
        transformer: MiraTransformer3DModel,
        vae: AutoencoderKLTemporalDecoder,
        scheduler: MiraScheduler,
        text_encoder: T5EncoderModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        latent_rgb: list[list[float]] | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_to_config(latent_rgb=latent_rgb)
        self.lazy_text_encoder: LazyTextEncoder | None = None
        self.model_name = ""
        """Decides the default preset of a call; ``load_pipeline`` sets it."""
        self.model_folder: Path | None = None
        """Where the weights come from; ``load_pipeline`` sets it."""
        self.data_dir = Path("workspace")
        """Where LoRAs lie; ``load_pipeline`` sets it."""
        self.loras: str | None = None
        """What the transformer works with now; ``use_loras`` changes it."""
        self.weights = "full"
        """What the transformer's weights are now; ``use_weights`` changes it."""
        self.weights_format: str | None = None
        """Of weights in 8 bits: fp8 or int8."""
        self.crew: Crew | None = None
        """The processes that make a video together; None where this one makes it alone. ``share_work`` changes it."""
        self.compute = Compute()
        """How the machine is used; ``load_pipeline`` sets it."""
        self.economy = Economy()
        """What clips are spared now; ``spare`` changes it."""
        self.stage = "text"
        """What the last call was at: 'text', 'denoise' or 'decode'."""
        self._interrupted = False

    def use_loras(self, loras: str | None) -> None:
        """Have the transformer work with the LoRAs of a request's ``loras`` and with no others. Raises RequestError("loras")."""
        apply_loras(self.transformer, loras, self.data_dir)
        self.loras = loras

    def use_weights(self, weights: str) -> None:
        """Have the transformer work with a request's ``weights``, without LoRAs where they change. Those that are full again are read from the model's folder. Raises RequestError("weights") where the device cannot, there is no folder, or diffusers moves the parts."""
        if weights == self.weights:
            return
        transformer = self.transformer
        if hasattr(transformer, "_hf_hook"):
            raise RequestError("weights", "The weights cannot be changed under diffusers' own offloading (enable_model_cpu_offload). Change them first.")
        format = format_for(self._execution_device, transformer.dtype) if weights == "8bit" else None
        anew = self.weights != "full"
        if anew and self.model_folder is None:
            raise RequestError("weights", "The transformer's weights are in 8 bits, and this pipeline has no folder to read them from anew. Load it again for weights 'full'.")
        self.use_loras(None)  # whose own layers stay as they are
        self.weights = ""  # neither, should memory run out on the way
        if anew:
            dtype = transformer.dtype
            transformer.to("meta")  # two would not fit where one does
            transformer = type(transformer).from_pretrained(self.model_folder, subfolder="transformer", torch_dtype=dtype).to(self.vae.device)
            if self.compute.compile:
                transformer.compile_repeated_blocks()
            self.register_modules(transformer=transformer)
        if format is not None:
            keep_in_eight_bits(transformer, format)
        self.weights, self.weights_format = weights, format

    def share_work(self, processes: int) -> None:
        """Make the next videos in so many processes, a GPU each; they load what ``load_pipeline`` loaded here. Raises ResourceError for too few GPUs."""
        if processes == (1 if self.crew is None else self.crew.size):
            return
        if self.crew is not None:
            self.crew.close()
            self.crew = None
        if processes > 1:
            self.crew = form_crew(processes, self._execution_device)

    def spare(self, economy: Economy) -> None:
        """Make the next clips with ``economy``. Parts that need not take turns any more are brought back to the device."""
        home = self._execution_device
        self.economy = economy
        if economy.turns_on is None:
            self.transformer.to(home)
            self.vae.to(home)
        if self.lazy_text_encoder is not None:
            place = torch.device("cpu") if economy.text_on_cpu or self.lazy_text_encoder.stays else home
            if economy.unload_text or self.lazy_text_encoder.device.type != place.type:
                self.lazy_text_encoder.release()
            self.lazy_text_encoder.to(place)

    @property
    def _execution_device(self) -> torch.device:
        return torch.device(self.economy.turns_on) if self.economy.turns_on else super()._execution_device

    @property
    def execution_device(self) -> torch.device:
        """Where clips are made, wherever the parts lie that take turns there."""
        return self._execution_device

    def _turn(self, part: str) -> None:
        """Where parts take turns on the device, it is that of ``part``: 'text', 'transformer' or 'vae'."""
        if self.economy.turns_on:
            for name in sorted(("transformer", "vae"), key=lambda name: name == part):  # the one that goes makes room first
                getattr(self, name).to(self.economy.turns_on if name == part else "cpu")

    def interrupt(self) -> None:
        """Stop the running generation after its current step (from another thread, or from a callback): it raises GenerationCancelled."""
        self._interrupted = True

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        """A diffusers model folder: the model without LoRAs, which have files of their own, with full weights, and with the whole text encoder even where it was not loaded yet, or in 8 bits.

        Raises ValueError for adapters that ``use_loras`` did not put on, as they would stand in the way of the weights' names.
        """
        if self.loras is None and (adapters := getattr(self.transformer, "peft_config", None)):
            raise ValueError(f"The transformer has adapters ({', '.join(adapters)}), which a model folder does not hold. Add them to its weights with pipe.transformer.fuse_lora() if you want them in it, and take them off with pipe.transformer.unload_lora().")
        loras, weights, lazy, text = self.loras, self.weights, self.lazy_text_encoder, {}
        if self.text_encoder is None and lazy is not None:
            text = dict(zip(("tokenizer", "text_encoder"), lazy.read() if lazy.eight_bits else lazy.load()))
        try:
            self.use_loras(None)
            self.use_weights("full")
            self.register_modules(**text)
            super().save_pretrained(save_directory, **options)
        finally:
            self.register_modules(**dict.fromkeys(text))
            self.use_weights(weights)
            self.use_loras(loras)

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """``prompts`` to embeddings ``[B, L, D]`` in fp32."""
        if self.text_encoder is not None and self.tokenizer is not None:
            self._turn("text")
            return encode_prompts(prompts, self.tokenizer, self.text_encoder)
        if self.lazy_text_encoder is not None:
            if not self.lazy_text_encoder.knows(prompts):
                self._turn("text")
            embeds = self.lazy_text_encoder(prompts)
            if self.economy.unload_text:
                self.lazy_text_encoder.release()
            return embeds
        raise ValueError("This pipeline has no text encoder. Load it with text_encoder=True, or pass prompt_embeds (and negative_prompt_embeds for guidance).")

    def generate(self, request: GenerationRequest, callback: StepCallback | None = None, output_type: str = "np", resume: Snapshot | None = None) -> MiraPipelineOutput:
        """The video of one request, whatever model it names, or the rest of it from where ``resume`` was taken. Raises RequestError for one that cannot be met, GenerationCancelled when interrupted."""
        request, self.stage = request.replace(model=self.model_name or _UNNAMED).resolved(self.data_dir), "text"
        self.use_weights(request.weights)
        self.use_loras(request.loras)
        sampling = {name: getattr(request, name) for name in _SHARED_FIELDS} | {"window_frames": window_of(request)}
        return self(request.prompt, request.negative_prompt, seed=request.seed, callback_on_step_end=callback, output_type=output_type, resume=resume, start_latents=None if resume else self.encode_start(request), **sampling)

    @torch.no_grad()
    def encode_start(self, request: GenerationRequest) -> Tensor | None:
        """The latents ``[1, C, T, h, w]`` of what a resolved request starts from; None where it starts from noise. Raises RequestError."""
        if request.start_from is None:
            return None
        self._turn("vae")
        frames = torch.from_numpy(load_start(request)).to(self._execution_device)  # T H W C
        return encode_video(self.vae, frames.permute(3, 0, 1, 2)[None].to(self.vae.dtype).div(127.5).sub(1)).float()

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_stop: float | None = None,
        late_guidance_scale: float | None = None,
        temporal_guidance_scale: float | None = None,
        eta: float | None = None,
        sampler: str | None = None,
        quality: str = EXACT,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        start_latents: Tensor | None = None,
        strength: float | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: Literal["np", "pt", "pil", "latent"] = "np",
        callback_on_step_end: StepCallback | None = None,
        decode_chunk_frames: int | None = None,
        window_frames: int | None = None,
        resume: Snapshot | None = None,
        return_dict: bool = True,
    ) -> MiraPipelineOutput | tuple:
        """One video for each prompt. What is None is what a GenerationRequest for ``model_name`` has: a clip longer than that was trained for is made in windows.

        Args:
            prompt, negative_prompt: Text, or a list of texts; one negative prompt serves all. Or the embeddings ``[B, L, D]``.
            seed: Item i of a batch draws all its noise from seed + i, or from its own of a list of seeds, on the CPU: it comes
                out as it would alone, on any device. ``generator`` (one, or one an item) takes its place.
            latents: x_T ``[B, C, T, h, w]`` of unit variance, instead of drawn noise.
            start_latents: Clean latents ``[B or 1, C, T', h, w]``, of ``encode_video``. Without ``strength`` they are the first frames of the
                clip: at every step they take the place of what was sampled, noised to that step (as in Mira's sampler and RePaint, arXiv:2201.09865,
                eq. 8), and in the end as they are. With ``strength`` they are the whole clip, noised so far that this share of the steps remains
                (SDEdit, arXiv:2108.01073).
            quality: A key of ``core.quality.QUALITIES``: how much of the work is spared, at a price; "quality" spares none.
            guidance_scale, guidance_stop, late_guidance_scale, temporal_guidance_scale: How strongly the prompt, up to which share of the steps and after it, and the agreement of the frames steer (``core.guidance``).
            eta: Share of fresh noise in a ddim step; other samplers ignore it.
            decode_chunk_frames: None decodes a clip whole; 10 gives the original code's independent chunks.
            window_frames: Frames that the transformer and the decoder are given at once (see ``core.windows``); of a longer clip they never see more.
            resume: What a callback's ``snapshot`` gave, in a call with the same arguments; its noise, start and embeddings take the place of theirs.

        Raises RequestError for a value that cannot be used, GenerationCancelled when interrupted, GenerationError for NaN.
        """
        self._interrupted, self.stage = False, "text"
        if output_type not in ("np", "pt", "pil", "latent"):
            raise RequestError("output_type", f"output_type is {output_type!r}; np, pt, pil or latent are known.")
        prompts = _texts(prompt, prompt_embeds)
        batch_size = len(prompts)
        asked = dict(height=height, width=width, num_frames=num_frames, fps=fps, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, guidance_stop=guidance_stop, late_guidance_scale=late_guidance_scale, temporal_guidance_scale=temporal_guidance_scale, eta=eta, sampler=sampler, quality=quality, decode_chunk_frames=decode_chunk_frames, window_frames=window_frames)
        negatives = _spread("negative_prompt", negative_prompt or "", batch_size)
        settings = [GenerationRequest(text, negative, self.model_name or _UNNAMED, **asked).resolved(self.data_dir) for text, negative in zip(prompts, negatives)][0]
        shape = settings.shape.latent(self.transformer.config.in_channels, self.vae_scale_factor).as_tuple(batch_size)
        device = self._execution_device
        generators = generator if generator is not None else _generators(seed, batch_size)
        guided = settings.guidance_scale != 1
        arguments = {name: getattr(settings, name) for name in _SHARED_FIELDS if name != "decode_chunk_frames"} | {"strength": strength}
        if resume is not None:
            resume = resume.checked(shape, arguments).to(device)
            latents, start_latents = resume.noise, resume.start_latents
        context = self._context(prompts, negatives, prompt_embeds, negative_prompt_embeds, guided, device) if resume is None else resume.context
        self.stage = "denoise"
        self._turn("transformer")
        latents = self._denoise(self._begin(settings, shape, context, generators, latents, start_latents, arguments, resume), settings, callback_on_step_end)
        frames = self._finish(latents, output_type, settings.decode_chunk_frames, settings.window_frames)
        self.maybe_free_model_hooks()
        return MiraPipelineOutput(frames=frames) if return_dict else (frames,)

    def _begin(self, settings: GenerationRequest, shape: tuple[int, ...], context: Tensor, generators: Generators, latents: Tensor | None, start_latents: Tensor | None, arguments: dict[str, Any], resume: Snapshot | None) -> _Denoising:
        """The clip before its first step, or as ``resume`` left it. Raises RequestError."""
        device, strength = context.device, arguments["strength"]
        solver = make_sampler(self.scheduler, settings.sampler, settings.num_inference_steps, settings.eta)
        if latents is None:
            latents = draw_noise(shape, generators, device)
        elif latents.shape != shape:
            raise RequestError("latents", f"latents have the shape {tuple(latents.shape)}; {shape} is needed for {shape[0]} x {settings.num_frames} frames of {settings.width}x{settings.height}.")
        noise = latents.to(device, torch.float32)
        if strength is not None and (start_latents is None or not 0 < strength <= 1):
            raise RequestError("strength", f"strength is {strength}; it needs start_latents, and must be above 0 and at most 1.")
        if start_latents is not None:
            start_latents = _start(start_latents, shape, strength).to(device, torch.float32)
        first = 0 if strength is None else solver.first(strength)
        state = solver.start(start_latents, noise, first) if first else solver.init(noise)
        alone = settings.num_frames <= (settings.window_frames or settings.num_frames) and self.crew is None  # windows take turns, and processes have to agree: no cache for these
        saving = QUALITIES[settings.quality]
        cache = StepCache(saving.first_block) if saving.first_block and alone else None
        work = _Denoising(solver, state, noise, start_latents, start_latents if strength is None else None, first, first, context, generators, cache, arguments)
        if resume is not None:
            work.begin, work.state = resume.step, resume.state
            resume.restore(solver, generators, cache)
        return work

    def _denoise(self, work: _Denoising, settings: GenerationRequest, callback: StepCallback | None) -> Tensor:
        """The clean latents ``[B, C, T, h, w]``. Raises GenerationCancelled between two steps, or GenerationError for NaN."""
        solver, device = work.solver, work.context.device
        num_steps = len(solver.timesteps)
        text = self.transformer.project_text(work.context)
        modulation = self.transformer.modulate_steps(torch.tensor(solver.timesteps, device=device), settings.fps)
        finite: list[Tensor] = []
        shared = contextlib.nullcontext()
        if self.crew is not None:
            shared = self.crew.denoising(self, work.snapshot(work.begin), work.arguments, settings.guidance_scale != 1)

        with shared, self.progress_bar(total=num_steps - work.begin) as progress_bar:
            for step, timestep in list(enumerate(solver.timesteps))[work.begin :]:
                x_t = solver.latents(work.state, step)
                if work.kept is not None:
                    x_t = self._keep(work.kept, x_t, work.noise, timestep)
                predict = partial(self._predict, modulation=modulation(step), text=text, scales=scales_at(settings, step, num_steps, work.first), cache=work.cache)
                prediction = predict_in_windows(predict, self.scheduler, x_t, timestep, settings.window_frames or settings.num_frames)
                work.state = solver.step(prediction, step, work.state, work.generators)
                finite.append(torch.isfinite(work.state).all())
                if device.type == "cpu":  # elsewhere a look at the result would have the device wait for this process
                    self._require_finite(finite, work.begin, num_steps, settings.sampler)
                progress_bar.update()
                if callback is not None:
                    report = dict(latents=solver.latents(work.state, step + 1), preview=self._preview(prediction, x_t, timestep), num_steps=num_steps - work.first, snapshot=partial(work.snapshot, step + 1))
                    callback(self, step - work.first, timestep, report)
                if self._interrupted:
                    raise GenerationCancelled(f"Cancelled after step {step + 1} of {num_steps}.")
                if self.crew is not None:
                    self.crew.step()
            self._require_finite(finite, work.begin, num_steps, settings.sampler)  # in here, so that other processes hear of it
        latents = solver.latents(work.state, num_steps)
        return latents if work.kept is None else torch.cat([work.kept, latents[:, :, work.kept.shape[2] :]], 2)

    def _keep(self, kept: Tensor, x_t: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """``x_t`` with its first frames being ``kept``, noised to ``timestep`` by the clip's own noise."""
        count = kept.shape[2]
        noised = self.scheduler.add_noise(kept, noise[:, :, :count], torch.full((len(kept),), timestep))
        return torch.cat([noised, x_t[:, :, count:]], 2)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of a side that one latent covers."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _context(self, prompts: list[str], negatives: list[str], prompt_embeds: Tensor | None, negative_prompt_embeds: Tensor | None, guided: bool, device: torch.device) -> Tensor:
        """Text for the transformer ``[B, L, D]``; with guidance ``[2 B, L, D]``, the negative half first."""
        texts = []
        if prompt_embeds is None:
            texts += prompts
        if guided and negative_prompt_embeds is None:
            texts += negatives
        encoded = self.encode_prompt(texts) if texts else None
        if prompt_embeds is None:
            prompt_embeds, encoded = encoded[: len(prompts)], encoded[len(prompts) :]
        if not guided:
            return prompt_embeds.to(device, self.transformer.dtype)
        negative = encoded if negative_prompt_embeds is None else negative_prompt_embeds
        if len(negative) == 1:
            negative = negative.expand(len(prompt_embeds), -1, -1)
        if negative.shape != prompt_embeds.shape:
            raise RequestError("negative_prompt_embeds", f"negative_prompt_embeds have the shape {tuple(negative.shape)}, prompt_embeds {tuple(prompt_embeds.shape)}; they must agree.")
        return torch.cat([negative.to(device), prompt_embeds.to(device)]).to(self.transformer.dtype)

    def _predict(self, x_t: Tensor, modulation: Modulation, text: ProjectedText, scales: Scales, cache: StepCache | None) -> Tensor:
        """The transformer's prediction in fp32, steered (``core.guidance``): in one forward of 2 B for ``text`` of both halves, and with ``scales.temporal`` one more of B."""

        def forward(text: ProjectedText, cache: StepCache | None = None, frames_apart: bool = False) -> Tensor:
            latents = torch.cat([x_t] * (len(text[0][0]) // len(x_t))).to(self.transformer.dtype)
            return self.transformer(hidden_states=latents, timestep=modulation, encoder_hidden_states=text, frames_apart=frames_apart, cache=cache).sample.float()  # b c t h w

        def agreeing(conditional: Tensor) -> Tensor:
            if not scales.temporal or not scales.prompt:
                return conditional
            return conditional + scales.temporal / scales.prompt * (conditional - forward(positive, frames_apart=True))

        negative, positive = ([(key[half], value[half]) for key, value in text] for half in (slice(len(x_t)), slice(-len(x_t), None)))
        if scales.prompt == 1:
            return agreeing(forward(positive, cache))
        if self.crew is not None and self.crew.branch is not None:
            own = forward(negative) if self.crew.branch == 0 else agreeing(forward(positive))
            unconditional, conditional = self.crew.exchange(own)
        elif self.economy.one_at_a_time:
            unconditional, conditional = forward(negative), agreeing(forward(positive))  # each in full: the cache knows both together
        else:
            unconditional, conditional = forward(text, cache).chunk(2)
            conditional = agreeing(conditional)
        return unconditional + scales.prompt * (conditional - unconditional)

    def _require_finite(self, finite: list[Tensor], begin: int, num_steps: int, sampler: str) -> None:
        """Raise GenerationError where the last state, or one before it, was not ``finite``; the first of them is that of step ``begin``."""
        if finite and not finite[-1]:
            step = begin + [bool(each) for each in finite].index(False) + 1
            raise GenerationError(f"The latents are no longer finite numbers after step {step} of {num_steps} ({sampler}, {self.transformer.dtype}). Try bfloat16 or float32, a smaller guidance_scale, or more steps.")

    def _preview(self, prediction: Tensor, x_t: Tensor, timestep: int) -> Callable[[], np.ndarray] | None:
        if self.config.latent_rgb is None:
            return None
        return partial(self._guess_frames, prediction, x_t, timestep)

    def _guess_frames(self, prediction: Tensor, x_t: Tensor, timestep: int) -> np.ndarray:
        """uint8 ``[B, T, h, w, 3]`` of the clean latents that the prediction stands for."""
        x0 = self.scheduler.to_x0(prediction, x_t, torch.full((len(x_t),), timestep))
        return np.asarray(preview_frames(x0.cpu(), self.config.latent_rgb))

    def _finish(self, latents: Tensor, output_type: str, chunk_frames: int | None, window_frames: int | None) -> np.ndarray | Tensor | list[list[Image.Image]]:
        if output_type == "latent":
            return latents
        self.stage = "decode"
        self._turn("vae")
        chunk_frames = self.economy.decode_chunk_frames or chunk_frames
        decode = partial(decode_latents, self.vae, chunk_frames=chunk_frames)
        video = decode_in_windows(decode, latents, (None if chunk_frames else window_frames) or latents.shape[2]).float()  # b c t h w in -1..1
        frames = (video / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)  # b t h w c
        if not torch.isfinite(frames).all():
            raise GenerationError(f"The VAE decoded finite latents to values that are not finite numbers ({self.vae.dtype}). Run the VAE in float32.")
        if output_type == "pt":
            return frames
        array = frames.cpu().numpy()
        if output_type == "np":
            return array
        return [[Image.fromarray(frame) for frame in clip] for clip in (array * 255).round().astype(np.uint8)]


_UNNAMED = "unnamed"
"""The model's name where none is known: one that no preset was made for."""
_SHARED_FIELDS = ("height", "width", "num_frames", "fps", "num_inference_steps", "guidance_scale", "guidance_stop", "late_guidance_scale", "temporal_guidance_scale", "eta", "sampler", "quality", "decode_chunk_frames", "window_frames", "strength")
"""Fields of a request that are arguments of a call under the same name."""


def window_of(request: GenerationRequest) -> int:
    """The ``window_frames`` of a call for a resolved request: all frames at once where it says nothing, as for a call that says nothing the preset does."""
    return request.window_frames or max(2, request.num_frames)


def _texts(prompt: str | Sequence[str] | None, prompt_embeds: Tensor | None) -> list[str]:
    """The prompts of a batch; a stand-in for each of ``prompt_embeds [B, L, D]``."""
    if (prompt is None) == (prompt_embeds is None):
        raise RequestError("prompt", "Pass either prompt or prompt_embeds, and not both.")
    if prompt_embeds is not None:
        if prompt_embeds.ndim != 3:
            raise RequestError("prompt_embeds", f"prompt_embeds have the shape {tuple(prompt_embeds.shape)}; [B, L, D] is needed.")
        return ["(prompt_embeds)"] * len(prompt_embeds)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise RequestError("prompt", "The list of prompts is empty.")
    return prompts


def _start(start_latents: Tensor, shape: tuple[int, ...], strength: float | None) -> Tensor:
    """``start_latents`` for a batch of ``shape``. Raises RequestError for a shape that does not fit."""
    batch, channels, num_frames, height, width = shape
    frames = start_latents.shape[2] if start_latents.ndim == 5 else 0
    fits = 0 < frames < num_frames if strength is None else frames == num_frames
    if not fits or start_latents.shape[0] not in (1, batch) or (start_latents.shape[1], *start_latents.shape[3:]) != (channels, height, width):
        wanted = f"fewer than {num_frames}" if strength is None else f"{num_frames}"
        raise RequestError("start_latents", f"start_latents have the shape {tuple(start_latents.shape)}; [1 or {batch}, {channels}, {wanted}, {height}, {width}] is needed.")
    return start_latents.expand(batch, -1, -1, -1, -1)


def _spread(name: str, value: str | Sequence[str], batch_size: int) -> list[str]:
    values = [value] * batch_size if isinstance(value, str) else list(value)
    if len(values) != batch_size:
        raise RequestError(name, f"{name} has {len(values)} texts for {batch_size} prompts; give one, or as many.")
    return values


def _generators(seed: int | Sequence[int] | None, batch_size: int) -> list[torch.Generator]:
    """A CPU generator for each item: item i of an int seed has seed + i, and without a seed a drawn one."""
    if seed is None:
        seed = [secrets.randbelow(2**31) for _ in range(batch_size)]
    given = [seed + i for i in range(batch_size)] if isinstance(seed, numbers.Real) else seed
    seeds = [GenerationRequest.from_dict({"seed": value}).seed for value in given]
    if len(seeds) != batch_size:
        raise RequestError("seed", f"There are {len(seeds)} seeds for {batch_size} prompts; give one, or as many.")
    for value in seeds:
        if not 0 <= value <= MAX_SEED:
            raise RequestError("seed", f"seed is {value}; it must be from 0 to {MAX_SEED}.")
    return [torch.Generator("cpu").manual_seed(value) for value in seeds]

"""What a model costs on this machine, in one run of a few minutes: ``make bench``, or ``python tests/bench.py --model M``.

Calls that are compared take turns, so that both see the same machine; figures are medians of their turns. What is computed on a CPU is told in
seconds of its processors (all threads' together, over their number), which other programs on the machine disturb little.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, LatteTransformer3DModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench_rows import PROMPT, Count, Growth, Row, compare, machine, plot, seconds_in_words, table, working_clock  # noqa: E402
from bench_studio import crowded_studio, studio_app  # noqa: E402
from core.checkpoints import CheckpointError, load_pipeline  # noqa: E402
from core.device import ResourceError, choose_device, choose_dtype  # noqa: E402
from core.files import replacing  # noqa: E402
from core.pipeline import MiraPipeline  # noqa: E402
from core.presets import NANO, Preset, default_preset  # noqa: E402
from core.schedulers import draw_noise  # noqa: E402
from core.text_encoder import LazyTextEncoder, encode_prompts  # noqa: E402
from core.transformer import MiraTransformer3DModel, ProjectedText  # noqa: E402
from core.types import GenerationRequest  # noqa: E402
from core.vae import decode_latents  # noqa: E402
from core.video_io import save_video  # noqa: E402
from core.whole_decode import decode_whole  # noqa: E402
from measure import peak_memory, work  # noqa: E402
from plain import plain_forward  # noqa: E402
from training.config import load_config  # noqa: E402
from training.targets.transformer import FrameEncoder, TransformerTask  # noqa: E402
from training.toyworld.folder import write_folder  # noqa: E402
from training.trainer import Trainer  # noqa: E402

WIDE = ((24, 80, 128), (6, 240, 384))
"""Frames, height and width of what is measured at Mira's width: as many frames as a CPU does in seconds."""
GROWTH = {"frames, 128x80": [(n, 80, 128, 1) for n in (8, 24, 60, 120)], "size, 24 frames": [(24, 80, 128, 1), (24, 160, 256, 1), (24, 240, 384, 1)], "batch, 128x80x24": [(24, 80, 128, n) for n in (1, 2, 4)]}
"""Frames, height, width and clips of what is measured to see how time and memory grow."""
TRAININGS = {"LoRA": "lora_nano.yaml", "all of the model": "nano.yaml"}
"""Of which steps are measured, and their settings."""
PARTS = ("step", "decode", "layer", "growth", "prompts", "video", "training", "studio")
"""What is measured, in this order."""


@torch.no_grad()
def measure(model: str, device: torch.device, data_dir: Path, parts: Sequence[str] = PARTS) -> Iterator[Row | Count | Growth]:
    """All rows and counts of these PARTS, as they are measured. Raises CheckpointError for a model that is not there."""
    preset = default_preset(model)
    best = choose_dtype("auto", device)
    pipe = _quiet(load_pipeline(model, device, best, data_dir=data_dir))
    pipes = {_name(best): pipe}
    if best != torch.float32:
        pipes["fp32"] = _quiet(load_pipeline(model, device, torch.float32, data_dir=data_dir))

    if "step" in parts:
        step = "a denoising step with guidance"
        yield from compare(step, {name: _step(p, preset) for name, p in pipes.items()}, device, 25, rounds=9)
        yield from compare("guidance", {"both prompts in one forward": _step(pipe, preset), "two forwards": _step(pipe, preset, apart=True)}, device, 20, rounds=9)
    if "decode" in parts:
        latents = _noise(pipe, preset)
        decode = {"whole": lambda: decode_latents(pipe.vae, latents), "chunks of 10 frames": lambda: decode_latents(pipe.vae, latents, chunk_frames=10)}
        yield from compare(f"decoding {preset.num_frames} frames", decode, device, 25)
        yield from _whole_decode(device)
    for shape in WIDE if "layer" in parts else ():
        yield from _full_width(device, *shape)
    if "growth" in parts:
        yield from _growth(device)
    if "prompts" in parts:
        yield from _prompts(pipe, device)
    if "video" in parts:
        request = GenerationRequest(PROMPT, model=model, preset=preset.name, seed=0)
        videos = {name: lambda p=p: p.generate(request) for name, p in pipes.items()}
        videos["with temporal guidance"] = lambda: pipe.generate(request.replace(temporal_guidance_scale=1.0))
        yield from compare(f"a video ({preset.name}, {preset.num_inference_steps} steps)", videos, device, 60, rounds=1)
        del videos
        if model == NANO:
            yield from _prompt_to_file(pipe, device)
    del pipes
    for what, file in TRAININGS.items() if "training" in parts else ():
        yield from _training(model, preset, device, what, ROOT / "training" / "configs" / file)
    if "studio" in parts:
        yield from studio_app()
        yield from crowded_studio()


def _noise(pipe: MiraPipeline, preset: Preset) -> torch.Tensor:
    shape = preset.shape.latent(pipe.transformer.config.in_channels, pipe.vae_scale_factor).as_tuple(1)
    return draw_noise(shape, [torch.Generator("cpu").manual_seed(0)], pipe.device)


def _step(pipe: MiraPipeline, preset: Preset, apart: bool = False) -> Callable[[], object]:
    """One guided evaluation of the transformer, as the pipeline does it; ``apart`` evaluates the two prompts one after the other."""
    x_t = _noise(pipe, preset).to(pipe.transformer.dtype)
    context = pipe.encode_prompt([PROMPT, ""]).to(pipe.device, pipe.transformer.dtype)
    with torch.no_grad():
        text = pipe.transformer.project_text(context)
        modulation = pipe.transformer.modulate_steps(torch.tensor([500], device=pipe.device), preset.fps)(0)
    halves = [[(key[half], value[half]) for key, value in text] for half in (slice(0, 1), slice(1, 2))]

    def forward(text: ProjectedText) -> torch.Tensor:
        copies = len(text[0][0])
        return pipe.transformer(x_t.expand(copies, -1, -1, -1, -1), modulation, text).sample

    return (lambda: [forward(half) for half in halves]) if apart else (lambda: forward(text))


def _full_width(device: torch.device, frames: int, height: int, width: int) -> Iterator[Row | Count]:
    """A layer of Mira at its full width, both prompts of a guided step, against what others make of the same weights or sizes.

    What a sampler does once a video is left out of ours (the text's keys and values, the modulation), and what happens once a forward, not once a layer,
    out of the original's (the caption projection): at one layer they would weigh 28 times what they do in a whole model.
    """
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_attention_heads": 16, "attention_head_dim": 72}
    ours = MiraTransformer3DModel(**sizes).eval().to(device)
    without = MiraTransformer3DModel(**sizes, text_spatial_cond=False).eval().to(device)
    latte = LatteTransformer3DModel(
        **sizes, in_channels=4, out_channels=4, cross_attention_dim=1152, attention_bias=True, sample_size=64, patch_size=2, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=4096, video_length=frames,
    ).eval().to(device)  # fmt: skip
    latents, words = torch.randn(1, 4, frames, height // 8, width // 8, device=device), torch.randn(2, 77, 4096, device=device)
    both, steps, fps = latents.expand(2, -1, -1, -1, -1), torch.full((2,), 500, device=device), torch.full((2,), 8, device=device)
    text, text_without, captions = ours.project_text(words), without.project_text(words), ours.caption_projection(words)
    modulation, modulation_without = (model.modulate_steps(steps[:1], 8)(0) for model in (ours, without))
    side, best = 2048, choose_dtype("auto", device)
    square = torch.randn(side, side, device=device)
    own, original, as_latte, diffusers, product = "ours", "the original's order of work", "ours, as Latte is (the text alone in cross-attention)", "diffusers' LatteTransformer3DModel", f"a product of {side} x {side} matrices"
    calls = {own: lambda: ours(both, modulation, text), original: lambda: [plain_forward(ours, latents, steps[:1], one[None], fps[:1]) for one in captions]}
    own_best, product_best = (f"{name}, {_name(best)}" for name in (own, product))
    if best != torch.float32:  # what dtype "auto" takes here
        model = deepcopy(ours).to(best)
        text_best, modulation_best, square_best = model.project_text(words.to(best)), model.modulate_steps(steps[:1], 8)(0), square.to(best)
        calls |= {own_best: lambda: model(both.to(best), modulation_best, text_best), product_best: lambda: square_best @ square_best}
    calls |= {product: lambda: square @ square, as_latte: lambda: without(both, modulation_without, text_without), diffusers: lambda: latte(both, steps, words)}
    rows = {row.name: row for row in compare(f"one layer at full width, fp32, {width}x{height}x{frames}, both prompts", calls, device, 120, rounds=15, clock=working_clock(device))}
    yield from rows.values()
    counted, theirs = work(calls[own]), work(calls[original])
    reached = {name: counted / (2 * side**3) / rows[name].times(rows[other]) for name, other in ((own, product), (own_best, product_best)) if name in rows}
    yield Count(
        f"A layer at full width and {width}x{height}: {rows[original].times(rows[own]):.2f} times as fast as the original's order of work, with {counted / theirs:.3f} of its work ({counted / 1e12:.2f} against {theirs / 1e12:.2f} TFLOP); "
        f"{rows[diffusers].times(rows[as_latte]):.2f} times as fast as diffusers' Latte at the same work; {100 * reached[own]:.0f} % of the speed of a plain product of matrices."
        + (f" In {_name(best)}, which dtype auto takes here: {rows[original].times(rows[own_best]):.1f} times as fast as the original's fp32, and {100 * reached[own_best]:.0f} % of the speed of a product in {_name(best)}." if own_best in rows else "")
    )


def _growth(device: torch.device) -> Iterator[Row | Growth]:
    """A guided step of two layers at a quarter of Mira's width: seconds and the memory it takes, by frames, size and clips."""
    torch.manual_seed(0)
    model = MiraTransformer3DModel(num_layers=2, num_attention_heads=4, attention_head_dim=72).eval().to(device)
    modulation = model.modulate_steps(torch.tensor([500], device=device), 8)(0)
    for what, shapes in GROWTH.items():
        calls, memory = {}, {}
        for frames, height, width, clips in shapes:
            latents = torch.randn(2 * clips, 4, frames, height // 8, width // 8, device=device)
            text = model.project_text(torch.randn(2 * clips, 77, 4096, device=device))
            call = lambda latents=latents, text=text: model(latents, modulation, text)  # noqa: E731
            memory[f"{width}x{height}x{frames}, {clips} at once"] = peak_memory(call, device)
            calls[f"{width}x{height}x{frames}, {clips} at once"] = call
        rows = list(compare(f"growth with {what}: two layers, a quarter of the width, both prompts", calls, device, 15, rounds=3, clock=working_clock(device)))
        yield from rows
        yield Growth(what, [(row.name, row.seconds, memory[row.name]) for row in rows])


def _prompt_to_file(pipe: MiraPipeline, device: torch.device) -> Iterator[Row]:
    """mira-nano, loaded, from a prompt to an mp4 on disk."""
    with tempfile.TemporaryDirectory() as folder:
        for preset in ("nano-4s", "nano-20s"):
            request = GenerationRequest(PROMPT, seed=0, preset=preset).resolved()
            began = time.perf_counter()
            save_video(pipe.generate(request).frames[0], Path(folder) / "clip.mp4", request.output_fps, request.to_dict())
            yield Row(f"{NANO}, prompt to mp4 on disk, model loaded", f"{request.num_frames} frames, {request.num_inference_steps} steps", time.perf_counter() - began, 1, 1.0)


def _whole_decode(device: torch.device) -> Iterator[Row | Count]:
    """The bounded-memory decode against diffusers' own, on a VAE of a quarter of Mira's width."""
    torch.manual_seed(0)
    frames, height, width = WIDE[0]
    vae = AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32, 64, 128, 128), layers_per_block=2).eval().to(device)
    latents = torch.randn(frames, 4, height // 8, width // 8, device=device)
    calls = {"layer by layer": lambda: decode_whole(vae, latents), "undivided": lambda: vae.decode(latents, num_frames=frames).sample}
    yield from compare(f"decoding {width}x{height}x{frames} whole, a quarter of Mira's width, fp32", calls, device, 30, clock=working_clock(device))
    ours, theirs = (peak_memory(call, device) for call in calls.values())
    counts = [work(call) for call in calls.values()]
    frames_ours, frames_theirs = (call() for call in calls.values())
    apart = float((frames_ours - frames_theirs).abs().max() / frames_theirs.abs().max())
    yield Count(f"Decoding layer by layer holds {ours / 1e6:.0f} MB at most, undivided {theirs / 1e6:.0f} MB ({ours / theirs:.2f} of it), with {counts[0] / counts[1]:.3f} of its work; the largest difference is {apart:.0e} of the largest value.")


def _prompts(pipe: MiraPipeline, device: torch.device) -> Iterator[Row]:
    """A prompt from the on-disk cache, through the encoder, and with the encoder's loading."""
    with tempfile.TemporaryDirectory() as folder:
        lazy = LazyTextEncoder(pipe.lazy_text_encoder.folder, folder, device, pipe.lazy_text_encoder.dtype)

        def miss() -> None:
            lazy.cache.path(PROMPT).unlink(missing_ok=True)
            lazy([PROMPT])

        def load() -> None:
            lazy.release()
            miss()

        lazy([PROMPT])
        yield from compare("a prompt", {"cached": lambda: lazy([PROMPT]), "encoded": miss, "encoder loaded, then encoded": load}, device, 15, rounds=5)


def _training(model: str, preset: Preset, device: torch.device, what: str, file: Path) -> Iterator[Row | Count]:
    """A step with the settings of ``file`` on 4 clips of the preset's shape: with latents and prompt embeddings ready, with both computed in the step, and as a
    plain loop of diffusers' and transformers' parts does it."""
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        write_folder(Path(folder) / "clips", 5, num_frames=preset.num_frames, height=preset.height, width=preset.width)
        words = [f"model={model}", f"dataset={folder}/clips", f"data_dir={folder}", f"output_dir={folder}/run", f"num_frames=[{preset.num_frames}]", f"sizes=[{preset.width}x{preset.height}]"]
        config = load_config(file, words)
        task = TransformerTask(config, device)
        trainer, numbers = Trainer(config, task), itertools.count()
        encode, takes = FrameEncoder(task.folder, task.device, task.dtype), task.dataset.takes[:4]
        tokenizer, encoder = task.text_encoder.load()

        def encoded() -> None:
            with torch.no_grad():
                latents = torch.stack([encode(take.frames()) for take in takes]).float()
                texts = encode_prompts([take.captions[0] for take in takes], tokenizer, encoder)
            fps = torch.tensor([round(take.fps, 2) for take in takes])
            trainer.train_step([{"latents": latents, "masks": None, "prompt_embeds": texts, "fps": fps, "frame_indices": None, "kept": None}])

        vae = AutoencoderKLTemporalDecoder.from_pretrained(task.folder / "vae", torch_dtype=task.dtype).to(device).eval()
        trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)

        def plain() -> None:
            with torch.no_grad():
                pixels = torch.from_numpy(np.stack([take.frames() for take in takes])).to(device, task.dtype) / 127.5 - 1  # b t h w c
                latents = vae.encode(pixels.flatten(0, 1).movedim(-1, 1)).latent_dist.mode() * vae.config.scaling_factor
                latents = latents.unflatten(0, pixels.shape[:2]).transpose(1, 2).float()
                words = tokenizer([take.captions[0] for take in takes], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
                texts = encoder(words.input_ids.to(device)).last_hidden_state
            noise, timesteps = torch.randn_like(latents), torch.randint(1000, (len(latents),), device=device)
            with torch.autocast(device.type, task.dtype, enabled=task.dtype != torch.float32):
                predicted = task.model(task.scheduler.add_noise(latents, noise, timesteps), timesteps, texts, torch.full((len(latents),), 6.0, device=device)).sample
            torch.nn.functional.mse_loss(predicted.float(), task.scheduler.target(latents, noise, timesteps)).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        calls = {"latents and prompts ready": lambda: trainer.train_step([task.batch(next(numbers))]), "encoded in the step": encoded, "a plain loop, encoded in the step": plain, "fetching a batch alone": lambda: task.batch(next(numbers))}
        rows = list(compare(f"a training step ({what}, 4 clips of {preset.num_frames} frames)", calls, device, 30))
        held = [peak_memory(call, device) / 1e6 for call in list(calls.values())[:3]]  # before a yield, after which no gradients are kept
        yield from rows
        ready, *_, fetched = (row.seconds for row in rows)
        yield Count(f"Training, {what}: {1 / ready:.2f} steps a second with latents and prompts ready, of which fetching a batch is {100 * fetched / ready:.2f} %. A step holds {held[0]:.0f} MB at most, {held[1]:.0f} MB with encoding in it, {held[2]:.0f} MB in the plain loop; weights and optimizer come on top.")


def _quiet(pipe: MiraPipeline) -> MiraPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when the table is written, 2 with one line for a model that cannot be measured."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure a model on this machine and write a table.")
    parser.add_argument("--model", default=NANO, help="what load_pipeline takes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--data-dir", type=Path, default=Path("workspace"), help="where models are kept")
    parser.add_argument("--out", type=Path, help="the markdown file to write; docs/benchmarks.md, and none for some parts alone")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured; all by default")
    args = parser.parse_args(argv)
    out = args.out or (ROOT / "docs" / "benchmarks.md" if set(args.parts) == set(PARTS) else None)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    device, rows, counts, growths, started = choose_device(args.device), [], [], [], time.monotonic()
    try:
        where = machine(device)
        for row in measure(args.model, device, args.data_dir, args.parts):
            if isinstance(row, Count):
                counts.append(row.words)
                print(row.words, flush=True)
            elif isinstance(row, Growth):
                growths.append(row)
                counts.append(f"Memory with {row.what}: " + "; ".join(f"{name} {memory / 1e6:.0f} MB" for name, _, memory in row.points) + ".")
            else:
                print(f"{row.section}, {row.name}: {seconds_in_words(row.seconds)} ({row.ratio:.2f})", flush=True)
                rows.append(row)
    except (CheckpointError, ResourceError) as error:
        print(f"{parser.prog}: nothing was measured. {error}", file=sys.stderr)
        return 2
    gpu = "" if device.type == "cuda" else "\nNo GPU was at hand: `python tests/bench_gpu.py` measures a whole Mira on one, and is tested at small size.\n"
    text = (
        f"# {args.model}: what it costs\n\n{datetime.date.today()}: {where}. Written by `make bench` in {time.monotonic() - started:.0f} s; a ratio is to the first row of its kind, the median over rounds that take turns. "
        f"Rows at Mira's width, of the bounded decode and of growth are in seconds that the process had its processors, over its threads; others by the clock.\n\n{table(rows)}\n\n" + "".join(f"- {words}\n" for words in counts) + f"\n![Time and memory by size](growth.svg)\n{gpu}\nWhat Balanced and Fast cost and save: [tradeoffs.md](tradeoffs.md).\n"
    )
    print(f"\n{text}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, content in ((out, text), *([(out.with_name("growth.svg"), plot(growths))] if growths else [])):
            with replacing(path) as work:
                work.write_text(content)
        print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

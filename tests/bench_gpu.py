"""A whole Mira on a GPU, with random weights: ``python tests/bench_gpu.py`` adds its table to docs/benchmarks.md. Needs about 30 GB of GPU memory.

Sampling is a whole call of the pipeline, from embeddings to latents: 50 ddim steps with guidance 12 and eta 1; the share is of the peak that ``--peak-tflops``
names (989: an H100 in bf16). Decoding is of the VAE at its full width. Training is a step of all weights on one clip, with gradient checkpointing. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.files import replacing  # noqa: E402
from core.pipeline import MiraPipeline  # noqa: E402
from core.schedulers import MiraScheduler  # noqa: E402
from core.transformer import MiraTransformer3DModel  # noqa: E402
from core.vae import build_mira_vae, decode_latents  # noqa: E402
from measure import peak_memory, work  # noqa: E402
from training.losses import diffusion_loss  # noqa: E402

SAMPLED = ((128, 80, 120), (384, 240, 60))
TRAINED = ((384, 240, 60),)
DECODED = ((128, 80, 120), (384, 240, 60), (768, 480, 60))
STEPS = 50
MARK = "## A whole Mira on a GPU"


def measure(device: torch.device, dtype: torch.dtype, peak: float, sampled: tuple, decoded: tuple, trained: tuple, rounds: int = 3, steps: int = STEPS, compiled: bool = False, transformer: dict[str, Any] | None = None, vae: dict[str, Any] | None = None) -> Iterator[str]:
    """Rows of the table; ``peak`` in operations a second, ``transformer`` and ``vae`` what differs from Mira-v0."""
    torch.manual_seed(0)
    decoder = build_mira_vae(**(vae or {})).to(device, dtype).eval()
    yield from _sampling(decoder, device, dtype, peak, sampled, rounds, steps, compiled, transformer or {})
    for width, height, frames in decoded:
        latents = torch.randn(1, 4, frames, height // 8, width // 8, device=device, dtype=dtype)
        call = lambda latents=latents: decode_latents(decoder, latents)  # noqa: E731
        yield f"| decoding {width}x{height}x{frames} whole | {_seconds(call, device, rounds):.2f} s | {peak_memory(call, device) / 1e9:.2f} GB | |"
    del decoder
    for shape in trained:
        yield _training(device, dtype, shape, rounds, transformer or {})


def _sampling(vae: torch.nn.Module, device: torch.device, dtype: torch.dtype, peak: float, sampled: tuple, rounds: int, steps: int, compiled: bool, sizes: dict[str, Any]) -> Iterator[str]:
    pipe = MiraPipeline(MiraTransformer3DModel(**sizes).to(device, dtype).eval(), vae, MiraScheduler())
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.transformer.compile_repeated_blocks()
    embeds = torch.randn(2, 1, 77, pipe.transformer.config.caption_channels)
    for width, height, frames in sampled:
        call = lambda width=width, height=height, frames=frames: pipe(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], width=width, height=height, num_frames=frames, fps=8, num_inference_steps=steps, guidance_scale=12, temporal_guidance_scale=0, eta=1, sampler="ddim", seed=0, output_type="latent")  # noqa: E731
        seconds, counted = _seconds(call, device, rounds), work(call)
        yield f"| {steps} steps with guidance, {width}x{height}x{frames} | {seconds:.2f} s | {peak_memory(call, device) / 1e9:.1f} GB | {counted / steps / 1e12:.3g} TFLOP a step, {100 * counted / seconds / peak:.0f} % of {peak / 1e12:.0f} TFLOP/s |"


def _training(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], rounds: int, sizes: dict[str, Any]) -> str:
    width, height, frames = shape
    model, scheduler = MiraTransformer3DModel(**sizes).to(device).train(), MiraScheduler()
    model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    latents, text = torch.randn(1, 4, frames, height // 8, width // 8, device=device), torch.randn(1, 77, model.config.caption_channels, device=device)
    timesteps, fps = torch.tensor([500], device=device), torch.tensor([8.0], device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, _ = diffusion_loss(model, scheduler, latents, text, fps, timesteps, torch.randn_like(latents))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()

    seconds, tokens = _seconds(step, device, rounds), frames * (height // 16) * (width // 16)
    return f"| a step of full fine-tuning, {width}x{height}x{frames} | {seconds:.2f} s | {peak_memory(step, device) / 1e9:.1f} GB | {tokens / seconds:,.0f} tokens a second |"


def _seconds(call: Any, device: torch.device, rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):  # the first one warms up
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/bench_gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--compile", action="store_true", help="with compiled blocks")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(f"{parser.prog}: torch sees no GPU here, and a whole Mira takes minutes a step on a CPU. Run it where `nvidia-smi` shows one.", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    rows = []
    for row in measure(device, torch.bfloat16, args.peak_tflops * 1e12, SAMPLED, DECODED, TRAINED, compiled=args.compile):
        print(row, flush=True)
        rows.append(row)
    section = f"{MARK}\n\n{datetime.date.today()}: {torch.cuda.get_device_name(device)}, bf16, torch {torch.__version__}, {'compiled' if args.compile else 'not compiled'}; random weights.\n\n| what | median | memory beside weights | |\n|---|---:|---:|---|\n" + "\n".join(rows) + "\n"
    before = args.out.read_text() if args.out.exists() else ""
    with replacing(args.out) as part:
        part.write_text(f"{before.partition(MARK)[0].rstrip()}\n\n{section}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A whole Mira on a GPU, with random weights: ``python tests/bench_gpu.py`` adds its table to docs/benchmarks.md. Needs about 30 GB of GPU memory.

Sampling is 50 steps with guidance as the pipeline does them, the sampler's own arithmetic left out; the share is of the peak that ``--peak-tflops`` names (989: an
H100 in bf16). Decoding is of the VAE at its full width. Nothing is downloaded.
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
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.files import replacing  # noqa: E402
from core.transformer import MiraTransformer3DModel  # noqa: E402
from core.vae import build_mira_vae, decode_latents  # noqa: E402
from measure import peak_memory  # noqa: E402

SAMPLED = ((128, 80, 120), (384, 240, 60))
DECODED = ((128, 80, 120), (384, 240, 60), (768, 480, 60))
STEPS = 50
MARK = "## A whole Mira on a GPU"


@torch.no_grad()
def measure(device: torch.device, dtype: torch.dtype, peak: float, sampled: tuple, decoded: tuple, rounds: int = 5, compiled: bool = False, transformer: dict[str, Any] | None = None, vae: dict[str, Any] | None = None) -> Iterator[str]:
    """Rows of the table; ``peak`` in operations a second, ``transformer`` and ``vae`` what differs from Mira-v0."""
    torch.manual_seed(0)
    model = MiraTransformer3DModel(**(transformer or {})).to(device, dtype).eval()
    if compiled:
        model.compile_repeated_blocks()
    text = model.project_text(torch.randn(2, 77, model.config.caption_channels, device=device, dtype=dtype))
    modulation = model.modulate_steps(torch.linspace(999, 1, STEPS, device=device).long(), 8)
    for width, height, frames in sampled:
        latents = torch.randn(2, 4, frames, height // 8, width // 8, device=device, dtype=dtype)
        with FlopCounterMode(display=False) as counted:
            model(latents, modulation(0), text)
        seconds = _seconds(lambda latents=latents: [model(latents, modulation(step), text) for step in range(5)], device, rounds) / 5
        memory = peak_memory(lambda latents=latents: model(latents, modulation(0), text), device)
        work = counted.get_total_flops()
        yield f"| {STEPS} steps with guidance, {width}x{height}x{frames} | {STEPS * seconds:.2f} s | {memory / 1e9:.1f} GB | {work / 1e12:.3g} TFLOP a step, {100 * work / seconds / peak:.0f} % of {peak / 1e12:.0f} TFLOP/s |"
    del model, text, modulation
    decoder = build_mira_vae(**(vae or {})).to(device, dtype).eval()
    for width, height, frames in decoded:
        latents = torch.randn(1, 4, frames, height // 8, width // 8, device=device, dtype=dtype)
        call = lambda latents=latents: decode_latents(decoder, latents)  # noqa: E731
        yield f"| decoding {width}x{height}x{frames} whole | {_seconds(call, device, rounds):.2f} s | {peak_memory(call, device) / 1e9:.2f} GB | |"


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
    for row in measure(device, torch.bfloat16, args.peak_tflops * 1e12, SAMPLED, DECODED, compiled=args.compile):
        print(row, flush=True)
        rows.append(row)
    section = f"{MARK}\n\n{datetime.date.today()}: {torch.cuda.get_device_name(device)}, bf16, torch {torch.__version__}, {'compiled' if args.compile else 'not compiled'}; random weights.\n\n| what | median | memory beside weights | |\n|---|---:|---:|---|\n" + "\n".join(rows) + "\n"
    before = args.out.read_text() if args.out.exists() else ""
    with replacing(args.out) as work:
        work.write_text(f"{before.partition(MARK)[0].rstrip()}\n\n{section}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

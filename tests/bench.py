"""``make bench``: how fast this machine is, as a table of medians and ratios from one run.

Writes assets/bench.md. Everything is measured on the embedded model, at the preset that the studio starts with.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .checkpoints import load_pipeline
from .device import choose_device, choose_dtype
from .presets import NANO, default_preset
from .vae import decode_latents

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "A big red ball bounces over a meadow."


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    """Median wall time of ``action`` after one unmeasured call."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def processor() -> str:
    """The processor's name and how many cores of it there are."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def rows(repeats: int) -> list[tuple[str, float, str]]:
    """``(what, seconds, remark)`` of everything that is measured."""
    preset, device = default_preset(NANO), choose_device("auto")
    best = choose_dtype("auto", device)
    found: list[tuple[str, float, str]] = []
    with tempfile.TemporaryDirectory() as data_dir:
        pipes = {dtype: load_pipeline(NANO, device=device, dtype=dtype, data_dir=data_dir) for dtype in dict.fromkeys((best, torch.float32))}
        pipe = pipes[best]
        latents = torch.randn(preset.shape.latent(pipe.transformer.config.in_channels).as_tuple(), device=device)
        both = torch.cat([latents, latents])
        text = torch.randn(2, 77, pipe.transformer.config.caption_channels, device=device)

        def forward(pipe, latents, text):
            with torch.inference_mode():
                dtype = pipe.transformer.dtype
                pipe.transformer(latents.to(dtype), torch.full((len(latents),), 500, device=device), text.to(dtype), preset.fps)
                if device.type == "cuda":
                    torch.cuda.synchronize()

        seconds = {dtype: median_seconds(lambda p=p: forward(p, both, text), repeats) for dtype, p in pipes.items()}
        for dtype, value in seconds.items():
            found.append((f"guided step, {_name(dtype)}", value, f"{seconds[torch.float32] / value:.2f} times as fast as fp32"))
        apart = median_seconds(lambda: (forward(pipe, latents, text[:1]), forward(pipe, latents, text[1:])), repeats)
        found.append((f"guided step, {_name(best)}, two forwards one after the other", apart, f"one batch of two: {apart / seconds[best]:.2f} times as fast"))

        whole = median_seconds(lambda: decode_latents(pipe.vae, latents), repeats)
        chunks = median_seconds(lambda: decode_latents(pipe.vae, latents, 10), repeats)
        found.append(("decode, whole clip", whole, ""))
        found.append(("decode, chunks of 10 frames (as the original)", chunks, f"{chunks / whole:.2f} times the whole decode"))

        pipe.set_progress_bar_config(disable=True)
        began = time.perf_counter()
        pipe.encode_prompt([PROMPT, ""])
        miss = time.perf_counter() - began
        hit = median_seconds(lambda: pipe.encode_prompt([PROMPT, ""]), repeats)
        found.append(("prompt, first time (loads the text encoder)", miss, ""))
        found.append(("prompt, from the cache", hit, f"{miss / hit:.0f} times as fast"))
        video = median_seconds(lambda: pipe(PROMPT, seed=1), max(1, repeats // 3))
        found.append((f"video: {preset.label}, {preset.num_inference_steps} steps", video, ""))
    code = "import studio.ui, studio.services"
    start = median_seconds(lambda: subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True), 3)
    found.append(("imports of the studio's page", start, "torch is not among them"))
    return found


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m core.bench", description="Measure this machine on the embedded model.")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each short measurement; the median counts")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "bench.md", help="where the table is written")
    args = parser.parse_args(argv)
    table = rows(args.repeats)
    lines = [
        f"Measured by `make bench` on {processor()}, torch {torch.__version__}; medians of {args.repeats} runs.",
        "",
        "| what | seconds | |",
        "|---|---|---|",
        *(f"| {what} | {seconds:.3g} | {remark} |" for what, seconds, remark in table),
    ]
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

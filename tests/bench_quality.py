"""What Balanced and Fast cost and save, measured on mira-nano: ``python tests/bench_quality.py``, a few minutes, writes docs/tradeoffs.md.

Every way starts from the same noise as the exact run of 50 steps, and is compared with that run's frames; the toy world's detector tells whether a
clip still shows what its caption says. Times are seconds that the process had its processors.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.checkpoints import load_pipeline  # noqa: E402
from core.files import replacing  # noqa: E402
from core.metrics import psnr  # noqa: E402
from core.presets import NANO, default_preset  # noqa: E402
from core.quality import QUALITIES  # noqa: E402
from core.types import GenerationRequest  # noqa: E402
from core.video_io import to_uint8  # noqa: E402
from bench import machine  # noqa: E402
from training.toyworld.captions import captions  # noqa: E402
from training.toyworld.evaluate import evaluation_specs, judge  # noqa: E402

WAYS = {
    "dpm++2m, 50 steps, exact": {"num_inference_steps": 50},
    "50 steps, balanced": {"num_inference_steps": 50, "quality": "balanced"},
    "50 steps, fast": {"num_inference_steps": 50, "quality": "fast"},
    "20 steps, exact": {},
    "20 steps, balanced": {"quality": "balanced"},
    "20 steps, fast": {"quality": "fast"},
    "20 steps, exact, weights of 8 bits": {"weights": "8bit"},
    "unipc, 20 steps, exact": {"sampler": "unipc"},
    "10 steps, exact": {"num_inference_steps": 10},
}
"""By what the table calls them: what differs from the preset."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/bench_quality.py", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tradeoffs.md")
    args = parser.parse_args(argv)
    pipe = load_pipeline(NANO, device="cpu", dtype="fp32")
    pipe.set_progress_bar_config(disable=True)
    preset = default_preset(NANO)
    specs = evaluation_specs(args.clips, seed=0, num_frames=args.frames, height=preset.height, width=preset.width)
    prompts = [captions(spec, np.random.default_rng(0))["short_caption"] for spec in specs]
    first, lines = None, []
    for name, settings in WAYS.items():
        seconds, clips = [], []
        for number, prompt in enumerate(prompts):
            began = time.process_time()
            clips.append(pipe.generate(GenerationRequest(prompt, preset=preset.name, num_frames=args.frames, seed=number, **settings)).frames[0])
            seconds.append((time.process_time() - began) / torch.get_num_threads())
        clips = [to_uint8(clip) for clip in clips]
        first = first or (clips, seconds)
        near = [float(np.mean(psnr(clip, exact))) for clip, exact in zip(clips, first[0])]
        marks = [judge(spec, clip)["marks"] for spec, clip in zip(specs, clips)]
        right = sum(sum(mark.values()) for mark in marks) / sum(len(mark) for mark in marks)
        faster = statistics.mean(first[1]) / statistics.mean(seconds)
        lines.append(f"| {name} | {statistics.mean(seconds):.1f} s | {faster:.2f} | {'' if clips is first[0] else f'{statistics.mean(near):.1f} dB'} | {100 * right:.0f} % |")
        print(lines[-1], flush=True)
    text = (
        f"# What Balanced and Fast cost\n\n{datetime.date.today()}: {machine(torch.device('cpu'))}. mira-nano, {args.clips} clips of {args.frames} frames at {preset.width}x{preset.height}, guidance {preset.guidance_scale:g}, written by "
        "`python tests/bench_quality.py`. Every row starts from the same noise; PSNR is to the frames of the first row; marks are the attributes of the caption (colour, shape, motion ...) that the "
        "toy world's detector reads back. So few clips tell a large loss from a small one, and no more.\n\n| way | seconds of processor a clip | times as fast | PSNR | marks |\n|---|---:|---:|---:|---:|\n" + "\n".join(lines) + "\n\n"
        + "".join(f"- {quality.label}: " + (f"a step is spared the layers after the first where that one's change differs by less than {100 * quality.first_block:g} % from the last full step's (First-Block-Cache); guidance in the first {100 * quality.guided:g} % of the steps.\n" if quality.first_block else "every step in full.\n") for quality in QUALITIES.values())
    )  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.out) as work:
        work.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

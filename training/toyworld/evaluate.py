"""Measures the detector on rendered clips, and a model on generated ones."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
from scipy import ndimage

from core.intervals import wilson

from .captions import captions
from .detector import ATTRIBUTES, Detection, compare, detect
from .render import render
from .scene import ClipSpec, sample_spec

logger = logging.getLogger(__name__)

FPS = 6
CHECK_FRAMES = (8, 12, 16, 24, 24, 24, 40)
CHECK_SIZES = ((80, 128), (96, 160), (112, 192))
"""Height, width."""


def degrade(frames: np.ndarray, rng: np.random.Generator, sigma: float = 0.8, noise: float = 4.0) -> np.ndarray:
    """Blur (pixels) and noise (of 255) like a VAE's."""
    soft = ndimage.gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0))
    return np.clip(soft + rng.normal(0, noise, frames.shape), 0, 255).astype(np.uint8)


@dataclass
class Tally:
    """Right answers over questions, by name."""

    counts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, right: bool) -> None:
        entry = self.counts.setdefault(name, [0, 0])
        entry[0] += bool(right)
        entry[1] += 1

    def as_dict(self) -> dict[str, dict]:
        return {k: {"share": h / n, "right": h, "n": n, "interval95": list(wilson(h, n))} for k, (h, n) in self.counts.items()}


@dataclass
class Report:
    """Attributes, *all* by motion, and the traits that Toy World's page names."""

    attributes: Tally = field(default_factory=Tally)
    motions: Tally = field(default_factory=Tally)
    traits: Tally = field(default_factory=Tally)

    def add(self, spec: ClipSpec, found: Detection) -> dict[str, bool]:
        """Count one clip; returns its marks."""
        marks = compare(spec, found)
        for name in (*ATTRIBUTES, "all"):
            self.attributes.add(name, marks[name])
        self.motions.add(spec.motion, marks["motion"])
        if spec.motion != "stays still":
            self.traits.add("dynamics", marks["motion"])
        if spec.motion == "hits":
            self.traits.add("interaction", marks["motion"])
        if spec.camera.startswith("pans"):
            ratio = abs(found.near_shift / found.far_shift) if abs(found.far_shift) > 1e-3 else 0.0
            self.traits.add("3D consistency", marks["camera"] and abs(ratio - 2) <= 0.5)
        if spec.motion in ("passes behind a wall", "leaves and returns"):
            self.traits.add("object consistency", marks["motion"] and None not in found.after and found.before == found.after)
        return marks

    def as_dict(self) -> dict[str, dict]:
        return {"attributes": self.attributes.as_dict(), "motions": self.motions.as_dict(), "traits": self.traits.as_dict()}

    def table(self) -> str:
        lines = []
        for title, values in self.as_dict().items():
            lines.append(f"{title:<24}{'share':>8}{'n':>6}   95 % interval")
            for name, v in values.items():
                low, high = v["interval95"]
                lines.append(f"  {name:<22}{v['share']:>8.1%}{v['n']:>6}   {low:.1%} to {high:.1%}")
        return "\n".join(lines)


def check(clips: int, *, blur: bool = False, seed: int = 0) -> Report:
    """How well the detector reads ``clips`` fresh renders of all sizes and lengths."""
    rng = np.random.default_rng(seed)
    report = Report()
    for _ in range(clips):
        height, width = CHECK_SIZES[rng.integers(len(CHECK_SIZES))]
        spec = sample_spec(rng, num_frames=int(rng.choice(CHECK_FRAMES)), height=height, width=width, held_out=rng.random() < 0.15)
        frames = render(spec)
        marks = report.add(spec, detect(degrade(frames, rng) if blur else frames))
        if not marks["all"]:
            logger.info("misread %s of %s", [k for k, right in marks.items() if not right], spec)
    return report


def evaluation_specs(clips: int, *, seed: int, num_frames: int, height: int, width: int, held_out: bool = False) -> list[ClipSpec]:
    """The clips that a model is asked for."""
    rng = np.random.default_rng(seed)
    return [sample_spec(rng, num_frames=num_frames, height=height, width=width, held_out=held_out) for _ in range(clips)]


def generate(pipe, specs: Iterable[ClipSpec], *, seed: int, batch_size: int, **settings) -> Iterator[tuple[ClipSpec, str, np.ndarray]]:
    """A generated clip (uint8 [T, H, W, 3]) for the short caption of every spec; clip i is drawn from seed + i."""
    from core.video_io import to_uint8

    specs = list(specs)
    rng = np.random.default_rng(seed)
    prompts = [captions(spec, rng)["short_caption"] for spec in specs]
    for start in range(0, len(specs), batch_size):
        part = slice(start, start + batch_size)
        seeds = [seed + i for i in range(len(specs))[part]]
        made = pipe(prompt=prompts[part], seed=seeds, **settings).frames
        yield from zip(specs[part], prompts[part], (to_uint8(np.asarray(frames)) for frames in made))


def evaluate(
    model: str,
    clips: int,
    *,
    seed: int = 0,
    held_out: bool = False,
    num_frames: int = 24,
    height: int = 80,
    width: int = 128,
    batch_size: int = 8,
    save_dir: Path | None = None,
    **settings,
) -> Report:
    """Generate ``clips`` clips with a model and read them back. ``settings`` go to the pipeline (sampler, guidance_scale ...)."""
    from core.checkpoints import load_pipeline
    from core.video_io import save_video

    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)  # one line a clip is progress enough
    specs = evaluation_specs(clips, seed=seed, num_frames=num_frames, height=height, width=width, held_out=held_out)
    report, rows = Report(), []
    shape = dict(num_frames=num_frames, height=height, width=width, fps=FPS)
    for i, (spec, prompt, frames) in enumerate(generate(pipe, specs, seed=seed, batch_size=batch_size, **shape, **settings)):
        found = detect(frames)
        marks = report.add(spec, found)
        logger.info("%d/%d %s: %s", i + 1, clips, prompt, "right" if marks["all"] else [k for k, right in marks.items() if not right])
        if save_dir is not None:
            save_dir.mkdir(parents=True, exist_ok=True)
            save_video(frames, save_dir / f"{i:05d}.mp4", FPS)
            rows.append({"prompt": prompt, "marks": marks, "seed": seed + i} | {n: getattr(found, n) for n in ATTRIBUTES})
    if save_dir is not None:
        (save_dir / "marks.json").write_text(json.dumps(rows, indent=1))
    return report

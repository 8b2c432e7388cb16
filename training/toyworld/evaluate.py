"""Measures the detector on rendered clips, a model's VAE on what it makes of them, and a model on generated ones."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from core.intervals import wilson

from .captions import captions
from .detector import ATTRIBUTES, Detection, compare, detect, shows
from .render import render
from .scene import ClipSpec, sample_spec

logger = logging.getLogger(__name__)

FPS = 6
CHECK_FRAMES = (8, 12, 16, 24, 24, 24, 40)
CHECK_SIZES = ((80, 128), (96, 160), (112, 192))
"""Height, width."""
SPLITS = ("trained", "heldout")
"""Colour and shape pairs that training shows, and those that it never does."""
LENGTH_FROM = 60
"""Frames from which a clip counts for the trait of length (Toy World's page: 120 of them)."""
STRIPS, STRIP_FRAMES = 8, 8
"""Of the first so many clips, so many frames side by side are kept beside the figures."""
STILL_MARGIN = 8
"""Pixels around what moves that do not count as still: one latent's side, across which the decoder's convolutions carry it."""


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


def judge(spec: ClipSpec, frames: np.ndarray, found: Detection | None = None) -> dict[str, Any]:
    """What counts of one clip, as plain JSON: ``marks`` and ``traits``, right or wrong by name, and what was ``read`` of each attribute."""
    found = found or detect(frames)
    marks = compare(spec, found)
    traits: dict[str, bool] = {}
    if spec.motion != "stays still":
        traits["dynamics"] = marks["motion"]
    if spec.motion == "hits":
        traits["interaction"] = marks["motion"]
    if spec.camera.startswith("pans"):
        ratio = abs(found.near_shift / found.far_shift) if abs(found.far_shift) > 1e-3 else 0.0
        traits["3D consistency"] = bool(marks["camera"] and abs(ratio - 2) <= 0.5)
    if spec.motion in ("passes behind a wall", "leaves and returns"):
        traits["object consistency"] = marks["motion"] and None not in found.after and found.before == found.after
    if len(frames) >= LENGTH_FROM:
        quarter = len(frames) // 4
        traits["first quarter"] = shows(spec, frames[:quarter], found.zoom[:quarter])
        traits["last quarter"] = shows(spec, frames[-quarter:], found.zoom[-quarter:])
    return {"marks": marks, "traits": traits, "read": {name: getattr(found, name) for name in ATTRIBUTES}}


@dataclass
class Report:
    """Attributes, each motion by itself, and the traits that Toy World's page names.

    The trait of length is a ratio: clips whose last quarter shows all that a part of a clip can show (``detector.shows``), over those whose first
    one does. Motion and camera are read over a whole clip, and count in *all*.
    """

    attributes: Tally = field(default_factory=Tally)
    motions: Tally = field(default_factory=Tally)
    """Clips of each motion in which the motion is right."""
    wholly: Tally = field(default_factory=Tally)
    """Clips of each motion in which all is right."""
    traits: Tally = field(default_factory=Tally)
    confusions: dict[str, Counter] = field(default_factory=dict)
    """What was read instead, by motion."""

    def add(self, spec: ClipSpec, frames: np.ndarray) -> dict[str, Any]:
        """Count one clip; what ``judge`` found."""
        row = judge(spec, frames)
        self.count(spec.motion, row)
        return row

    def count(self, motion: str, row: dict[str, Any]) -> None:
        """Count a clip that was judged already."""
        for name in (*ATTRIBUTES, "all"):
            self.attributes.add(name, row["marks"][name])
        self.motions.add(motion, row["marks"]["motion"])
        self.wholly.add(motion, row["marks"]["all"])
        for name, right in row["traits"].items():
            self.traits.add(name, right)
        if not row["marks"]["motion"]:
            self.confusions.setdefault(motion, Counter())[row["read"]["motion"] or "none of them"] += 1

    @property
    def length(self) -> float | None:
        """Last quarter over first; None without long clips, or where no first quarter is right."""
        first = self.traits.counts.get("first quarter", [0, 0])[0]
        return self.traits.counts["last quarter"][0] / first if first else None

    def as_dict(self) -> dict[str, Any]:
        """Tallies as JSON, motions in the order of the alphabet."""
        by_motion = {"motions": self.motions, "wholly": self.wholly}
        tables = {name: dict(sorted(tally.as_dict().items())) for name, tally in by_motion.items()}
        confusions = {motion: dict(read.most_common()) for motion, read in sorted(self.confusions.items())}
        return {"attributes": self.attributes.as_dict(), **tables, "traits": self.traits.as_dict(), "length": self.length, "confusions": confusions}

    def table(self) -> str:
        """All of it in columns."""
        found, lines = self.as_dict(), []
        for title, name in (("attribute", "attributes"), ("motion", "motions"), ("all of a motion's clips", "wholly"), ("trait", "traits")):
            lines.append(f"{title:<24}{'share':>8}{'n':>6}   95 % interval")
            for key, v in found[name].items():
                low, high = v["interval95"]
                lines.append(f"  {key:<22}{v['share']:>8.1%}{v['n']:>6}   {low:.1%} to {high:.1%}")
        if self.length is not None:
            lines.append(f"  {'length':<22}{self.length:>8.2f}         last quarter over first")
        lines += [f"read as instead of {motion}: {', '.join(f'{name} {n}' for name, n in read.items())}" for motion, read in found["confusions"].items()]
        return "\n".join(lines)


def check(clips: int, *, blur: bool = False, seed: int = 0) -> Report:
    """How well the detector reads ``clips`` fresh renders of all sizes and lengths."""
    rng = np.random.default_rng(seed)
    report = Report()
    for _ in range(clips):
        height, width = CHECK_SIZES[rng.integers(len(CHECK_SIZES))]
        spec = sample_spec(rng, num_frames=int(rng.choice(CHECK_FRAMES)), height=height, width=width, held_out=rng.random() < 0.15)
        frames = render(spec)
        marks = report.add(spec, degrade(frames, rng) if blur else frames)["marks"]
        if not marks["all"]:
            logger.info("misread %s of %s", [k for k, right in marks.items() if not right], spec)
    return report


def evaluation_specs(clips: int, *, seed: int, num_frames: int, height: int, width: int, split: str = "trained") -> list[ClipSpec]:
    """The clips that a model is asked for; fewer ``clips`` are the first of more."""
    rng = np.random.default_rng(seed)
    return [sample_spec(rng, num_frames=num_frames, height=height, width=width, held_out=split == "heldout") for _ in range(clips)]


class Results:
    """The figures of an evaluation in one JSON file, whole after every batch, so that one which was interrupted goes on.

    Args:
        file: Where; None keeps them in memory.
        settings: What decides clip i. Raises ValueError where the file holds results of others.
    """

    def __init__(self, file: Path | None, settings: dict[str, Any]):
        self.file, self.settings = file, json.loads(json.dumps(settings))
        self.rows: list[dict[str, Any]] = []
        if file is not None and file.exists():
            kept = json.loads(file.read_text())
            was = kept["settings"]
            other = [f"{name} was {was.get(name)!r} and is {self.settings.get(name)!r}" for name in {**was, **self.settings} if was.get(name) != self.settings.get(name)]
            if other:
                raise ValueError(f"{file} holds results of other settings: {'; '.join(other)}. Name another file, or delete it.")
            self.rows = kept["rows"]

    def report(self, clips: int) -> Report:
        """What the first ``clips`` rows add up to."""
        report = Report()
        for row in self.rows[:clips]:
            report.count(row["asked"]["motion"], row)
        return report

    def write(self, clips: int) -> None:
        """Put the file in place as one."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        report = self.report(clips)
        part = self.file.with_name(self.file.name + ".part")
        rows = ",\n".join("  " + json.dumps(row) for row in self.rows)
        head = json.dumps({"settings": self.settings, "clips": min(clips, len(self.rows)), **report.as_dict()}, indent=1)
        part.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')
        os.replace(part, self.file)


def evaluate(
    model: str,
    clips: int,
    *,
    seed: int = 0,
    split: str = "trained",
    num_frames: int = 24,
    height: int = 80,
    width: int = 128,
    batch_size: int = 8,
    loras: str | None = None,
    data_dir: Path | None = None,
    json_file: Path | None = None,
    save_dir: Path | None = None,
    **settings: Any,
) -> Report:
    """Generate ``clips`` clips with a model and read them back: the short caption of spec i, drawn from seed + i. No clip is left out.

    Args:
        loras: The model works with, as in a request (``teal`` or ``teal@0.8``); they lie in ``data_dir``, the workspace by default.
        json_file: Keeps the figures and every clip's marks there, strips of the first clips beside it, and goes on where it stopped; with more
            ``clips`` than it has it adds to them.
        save_dir: Keeps the clips themselves.
        settings: To the pipeline (sampler, guidance_scale ...); what is None is the preset's.

    Raises ValueError where ``json_file`` is of other settings, or of other weights, RequestError for a LoRA that is not there.
    """
    from core.checkpoints import load_pipeline
    from core.provenance import model_hash
    from core.video_io import save_video, to_uint8

    pipe = load_pipeline(model, data_dir=data_dir)
    pipe.set_progress_bar_config(disable=True)  # one line a clip is progress enough
    pipe.use_loras(loras)
    specs = evaluation_specs(clips, seed=seed, num_frames=num_frames, height=height, width=width, split=split)
    shape = dict(num_frames=num_frames, height=height, width=width, fps=FPS)
    asked = {name: value for name, value in settings.items() if value is not None}
    facts = {"model": model, **({"loras": loras} if loras else {}), "model_hash": pipe.model_folder and model_hash(pipe.model_folder), "split": split, "seed": seed, **shape, **sampling_defaults(model), **asked}
    results = Results(json_file, facts)
    for start in range(len(results.rows), clips, batch_size):
        part = range(start, min(start + batch_size, clips))
        prompts = [captions(specs[i], np.random.default_rng(seed))["short_caption"] for i in part]
        made = pipe(prompt=prompts, seed=[seed + i for i in part], **shape, **asked).frames
        for i, prompt, frames in zip(part, prompts, map(to_uint8, made)):
            row = judge(specs[i], frames)
            results.rows.append({"prompt": prompt, "seed": seed + i, "asked": asdict(specs[i]), **row})
            logger.info("%d/%d %s: %s", i + 1, clips, prompt, "right" if row["marks"]["all"] else [k for k, right in row["marks"].items() if not right])
            if save_dir is not None:
                save_dir.mkdir(parents=True, exist_ok=True)
                save_video(frames, save_dir / f"{i:05d}.mp4", FPS)
            if json_file is not None and i < STRIPS:
                json_file.parent.mkdir(parents=True, exist_ok=True)
                write_strip(frames, strip_path(json_file, i))
        results.write(clips)
    return results.report(clips)


def sampling_defaults(model: str) -> dict[str, Any]:
    """How a request that says nothing of it samples with the model: another one than the embedded may have its shapes and not its guidance."""
    from core.types import GenerationRequest

    request = GenerationRequest("a ball", model=model).resolved()
    return {name: getattr(request, name) for name in ("num_inference_steps", "guidance_scale", "guidance_stop", "late_guidance_scale", "temporal_guidance_scale", "eta", "sampler")}


def strip_path(json_file: Path, index: int) -> Path:
    """Where the frames of clip ``index`` are, beside its figures."""
    return json_file.with_name(f"{json_file.stem}-{index}.webp")


def write_strip(frames: np.ndarray, path: Path) -> None:
    """STRIP_FRAMES of a clip, evenly spread, side by side with two white pixels between them: a picture of about 10 KB."""
    from PIL import Image

    chosen = frames[np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)]
    gap = np.full((frames.shape[1], 2, 3), 255, np.uint8)
    parts = [part for frame in chosen for part in (gap, frame)][1:]
    Image.fromarray(np.concatenate(parts, 1)).save(path, "WEBP", quality=80, method=6)


def reconstruct(model: str, clips: int, *, seed: int = 0, num_frames: int = 24, height: int = 80, width: int = 128) -> dict[str, Any]:
    """What a model's VAE makes of ``clips`` rendered clips, as JSON: ``psnr`` in dB (mean, and the worst clip's), ``still_change`` in 1/255, and what the detector reads of them.

    ``still_change`` is the mean change from frame to frame of the pixels in whose neighbourhood (STILL_MARGIN) the render itself does not change: flicker, where nothing
    should move. The attributes are the ceiling for what a model over this VAE can be read to do.
    """
    import torch

    from core.checkpoints import load_pipeline
    from core.provenance import model_hash
    from core.vae import decode_latents, encode_video

    pipe = load_pipeline(model, text_encoder=False)
    rng, report = np.random.default_rng(seed), Report()
    ratios, changes = [], []
    for index in range(clips):
        spec = sample_spec(rng, num_frames=num_frames, height=height, width=width)
        frames = render(spec)
        with torch.no_grad():
            pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(pipe.device, pipe.vae.dtype)  # 1 C T H W
            decoded = decode_latents(pipe.vae, encode_video(pipe.vae, pixels.div(127.5).sub(1)))[0].float()
        again = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0).cpu().numpy()
        ratios.append(10 * np.log10(255**2 / np.mean((frames.astype(np.float64) - again) ** 2)))
        changes.append(still_change(frames, again))
        report.add(spec, again)
        logger.info("%d/%d %.1f dB", index + 1, clips, ratios[-1])
    known = [change for change in changes if change is not None]
    facts = {"model": model, "model_hash": pipe.model_folder and model_hash(pipe.model_folder), "clips": clips, "seed": seed, "num_frames": num_frames, "height": height, "width": width}
    return {"settings": facts, "psnr": float(np.mean(ratios)), "lowest_psnr": float(np.min(ratios)), "still_change": float(np.mean(known)) if known else None, "attributes": report.attributes.as_dict()}


def still_change(frames: np.ndarray, again: np.ndarray) -> float | None:
    """Mean change from frame to frame of ``again`` [T, H, W, 3] in 1/255, where ``frames`` stands still; None where nothing does."""
    moved = (np.diff(frames.astype(np.int16), axis=0) != 0).any(-1)  # T-1 H W
    side = 2 * STILL_MARGIN + 1
    still = ~ndimage.binary_dilation(moved, np.ones((3, side, side), bool))
    return float(np.abs(np.diff(again.astype(np.int16), axis=0))[still].mean()) if still.any() else None

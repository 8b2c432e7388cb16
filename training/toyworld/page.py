"""docs/quality.md: tables and strips out of the JSON files in docs/quality/, whatever there is of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from core.presets import PLAIN_GUIDANCE

from .evaluate import STRIPS, sampling_defaults, strip_path

TARGETS: dict[str, dict[str, float]] = {
    "trained": {"color": 0.98, "background": 0.98, "size": 0.95, "motion": 0.95, "camera": 0.95, "shape": 0.92, "all": 0.85},
    "heldout": {"color": 0.95, "background": 0.95, "size": 0.92, "motion": 0.92, "camera": 0.92, "shape": 0.85, "all": 0.75},
}
TRAITS: dict[str, float] = {"dynamics": 0.95, "interaction": 0.75, "3D consistency": 0.80, "object consistency": 0.85}
LENGTH_TARGET, LONG_TARGET, LONG_FROM = 0.9, 0.8, 300
"""Of 120 frames; and of clips from LONG_FROM frames on."""
READ_TARGET = 0.99
WORDS = {"color": "colour", "all": "**all**", "first quarter": "look right in the first quarter", "last quarter": "look right in the last quarter"}
PSNR_TARGET, STILL_TARGET = 30.0, 1.0


def write_page(docs: Path) -> Path:
    """Write ``docs/quality.md``; where it is. Raises ValueError where ``docs/quality`` has no figures."""
    files = sorted((docs / "quality").glob("*.json"))
    if not files:
        raise ValueError(f"There are no figures in {docs / 'quality'}. Make some with: python -m training.toyworld evaluate --json {docs / 'quality' / 'trained.json'}")
    found = [(file, json.loads(file.read_text())) for file in files]
    found.sort(key=lambda entry: (entry[1]["settings"].get("num_frames", 0), entry[1]["settings"].get("split") != "trained"))
    parts = [
        "# What mira-nano does, in numbers",
        "Written by `python -m training.toyworld page` from the files in [quality/](quality/), each made by the command above its table. The clips are the "
        "first of their seed, none left out; intervals are Wilson's of 95 %. What a figure means stands in `training/toyworld/evaluate.py`.",
        *(_evaluation(file, figures) for file, figures in found if "rows" in figures),
        *(_reconstruction(file, figures) for file, figures in found if "psnr" in figures),
        *(_detector(file, figures) for file, figures in found if "rows" not in figures and "psnr" not in figures),
    ]
    page = docs / "quality.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


def command(name: str, file: Path, settings: dict[str, Any], clips: int) -> str:
    """The shell command behind ``file``."""
    asked = {"model": settings.get("model"), "split": settings.get("split"), "clips": clips, "seed": settings["seed"]}
    plain = {"num_frames": 24, "height": 80, "width": 128, "window_frames": None, **(sampling_defaults(settings["model"]) if name == "evaluate" else {})}
    asked |= {key: settings[key] for key, value in plain.items() if key in settings and settings[key] != value and key != "eta"}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asked.items() if value is not None)
    return f"`python -m training.toyworld {name} {flags}{' --blur' if settings.get('blur') else ''} --json {file}`"


def _evaluation(file: Path, figures: dict[str, Any]) -> str:
    settings = {**PLAIN_GUIDANCE, **figures["settings"]}  # which older figures do not name
    frames = settings["num_frames"]
    targets, short = TARGETS[settings["split"]], frames <= 24
    title = f"## {'Colour and shape pairs that it was trained on' if settings['split'] == 'trained' else 'Colour and shape pairs that it never saw'}, {frames} frames ({frames / settings['fps']:g} s)"
    if settings.get("window_frames"):
        title += f", in windows of {settings['window_frames']}"
    rows = [_row(name, entry, targets[name] if short else None) for name, entry in figures["attributes"].items()]
    rows += [_row(name, entry, TRAITS.get(name) if short else None) for name, entry in figures["traits"].items()]
    if figures["length"] is not None:
        target = LONG_TARGET if frames >= LONG_FROM else LENGTH_TARGET
        rows.append(f"| **length**: last quarter over first | {figures['length']:.2f} | | | {target}{' ✓' if figures['length'] >= target else ''} |")
    motions = [
        f"| {motion} | {_share(entry)} | {_share(figures['wholly'][motion])} | {', '.join(f'{name} ({n})' for name, n in figures['confusions'].get(motion, {}).items()) or '–'} |"
        for motion, entry in figures["motions"].items()
    ]
    strips = []
    for index, row in enumerate(figures["rows"][:STRIPS]):
        picture = strip_path(file, index)
        if picture.exists():
            wrong = [name for name, right in row["marks"].items() if not right and name != "all"]
            wrong = [WORDS.get(name, name) for name in wrong]
            strips.append(f"{row['prompt']} {'**Wrong: ' + ', '.join(wrong) + '.**' if wrong else 'All right.'}\n\n![{row['prompt']}]({file.parent.name}/{picture.name})")
    return "\n\n".join(
        [
            title,
            f"{command('evaluate', file, settings, figures['clips'])} (weights {settings['model_hash']}, {settings['num_inference_steps']} steps of {settings['sampler']}, {_guidance(settings)})",
            _table(("", "right", "share", "95 % interval", "target"), rows),
            _table(("motion", "motion right", "all right", "read instead"), motions),
            *strips,
        ]
    )


def _guidance(settings: dict[str, Any]) -> str:
    words = f"guidance {settings['guidance_scale']:g}"
    if settings["guidance_stop"] < 1:
        words += f" in {settings['guidance_stop']:.0%} of them and then {settings['late_guidance_scale']:g}"
    return words + (f", temporal guidance {settings['temporal_guidance_scale']:g}" if settings["temporal_guidance_scale"] else "")


def _reconstruction(file: Path, figures: dict[str, Any]) -> str:
    still = figures["still_change"]
    rows = [
        f"| PSNR, dB | {figures['psnr']:.1f} (worst clip {figures['lowest_psnr']:.1f}) | {PSNR_TARGET:g} at least |",
        f"| frame-to-frame change where the render stands still, 1/255 | {'–' if still is None else f'{still:.2f}'} | under {STILL_TARGET:g} |",
        *(f"| {WORDS.get(name, name)} can still be read | {_share(entry)} | |" for name, entry in figures["attributes"].items()),
    ]
    return "\n\n".join(["## The VAE alone: rendered clips, encoded and decoded", command("reconstruct", file, figures["settings"], figures["settings"]["clips"]), _table(("", "measured", "target"), rows)])


def _detector(file: Path, figures: dict[str, Any]) -> str:
    title = f"## The detector itself, on rendered clips{', blurred and noisy as a VAE makes them' if figures['settings']['blur'] else ''}"
    rows = [_row(name, entry, READ_TARGET) for name, entry in (figures["attributes"] | figures["traits"]).items()]
    return "\n\n".join([title, command("check", file, figures["settings"], figures["settings"]["clips"]), _table(("", "right", "share", "95 % interval", "target"), rows)])


def _row(name: str, entry: dict[str, Any], target: float | None) -> str:
    low, high = entry["interval95"]
    mark = "" if target is None else f"{target:.0%}{' ✓' if entry['share'] >= target else ''}"
    name = WORDS.get(name, name)
    return f"| {name} | {entry['right']} of {entry['n']} | {entry['share']:.1%} | {math.floor(1000 * low) / 10:.1f} to {math.ceil(1000 * high) / 10:.1f} % | {mark} |"


def _share(entry: dict[str, Any]) -> str:
    return f"{entry['right']} of {entry['n']}"


def _table(head: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])

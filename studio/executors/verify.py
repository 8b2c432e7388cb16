"""Whether a video comes out again, and if not, what is different now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from core.types import MADE_WITH
from core.video_io import read_settings, read_video

SEEN = 2.0
"""Mean difference of 255 up to which two clips look the same: what other kernels and versions make of the same weights."""
NAMES = {"model_hash": "the model's weights", "text_hash": "the text encoder or its number format", "dtype": "the number format", "weights": "the format of the weights in 8 bits", "device": "the device", "memory": "what was done to save memory", "attention": "what computes attention", "commit": "the studio's version"}
NEWER = ("attention", "av", "commit", "text_hash", "xformers")
"""What files of older versions do not tell: nothing is known of a difference."""


def verdict(old: Path, new: Path) -> str:
    """Bit-exact, within tolerance or drifted, in words; both files as they were written, so that the codec adds nothing. Raises VideoError."""
    before, after = read_video(old).astype(np.int16), read_video(new).astype(np.int16)
    if before.shape != after.shape:
        return f"Drifted: it has another shape now. {differences(old, new)}"
    apart = np.abs(before - after)
    if not apart.any():
        return "Bit-exact: every pixel came out again."
    words = f"{apart.mean():.2g} of 255 on average, {apart.max()} at most"
    kind = "Within tolerance" if apart.mean() <= SEEN else "Drifted"
    return f"{kind}: the frames differ by {words}. {differences(old, new)}"


def differences(old: Path, new: Path) -> str:
    """What the two files were made with that is not the same."""
    then, now = ((read_settings(path) or {}).get(MADE_WITH) or {} for path in (old, new))
    if not then:
        return "The file does not say what it was made with."
    changed = [f"{NAMES.get(name, name)} ({_short(then.get(name))} then, {_short(now.get(name))} now)" for name in sorted({*then, *now}) if then.get(name) != now.get(name) and (name in then or name not in NEWER)]
    return f"Different now: {', '.join(changed)}." if changed else "Nothing that the file tells of is different now."


def _short(value: Any) -> str:
    return "unknown" if value is None else str(value)

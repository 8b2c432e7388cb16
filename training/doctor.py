"""The dataset doctor: what is in a dataset, what of it can be trained on, and what looks wrong with the rest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from core.files import WriteError, replacing
from core.metrics import STILL, Frames, cuts

from .config import TrainConfig
from .dataset import MARKS, MIRADATA_CAPTIONS, Clip, Reject, decoded, find_clips, plain_row, table_of, table_rows
from .video import UnusableVideo, VideoFacts, probe_video, read_frames

log = logging.getLogger(__name__)

LOOKED_AT = 12
"""Frames of a clip that it is judged by."""
TOKENS = 77
"""Of a caption, that the text encoder reads."""
ALIKE = 2.0
"""Mean difference of two clips' middle frames (of 255, on 8 x 8 pixels) below which they are near-duplicates."""


@dataclass(frozen=True)
class Usable:
    """A clip that training can use."""

    clip: Clip
    facts: VideoFacts
    num_frames: int
    """Frames of the file between the clip's start and end."""

    @property
    def seconds(self) -> float:
        return self.num_frames / self.facts.fps


@dataclass
class Report:
    """What ``examine`` found. Remarks are about clips that are used all the same."""

    source: str
    clips: list[Usable] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    remarks: list[Reject] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``lengths`` are the shortest, the median and the longest in seconds."""
        lengths = [item.seconds for item in self.clips]
        return {
            "source": self.source,
            "usable": len(self.clips),
            "seconds": round(sum(lengths), 2),
            "lengths": [round(of(lengths), 2) for of in (min, median, max)] if lengths else [],
            "sizes": dict(Counter(f"{item.facts.width}x{item.facts.height}" for item in self.clips).most_common()),
            "fps": dict(Counter(f"{item.facts.fps:g}" for item in self.clips).most_common()),
            "captions": len({caption for item in self.clips for caption in item.clip.captions}),
            "rejected": [asdict(item) for item in self.rejects],
            "remarks": [asdict(item) for item in self.remarks],
        }

    def text(self) -> str:
        """The same for a terminal."""
        facts = self.to_dict()
        lines = [f"{self.source}: {len(self.clips)} clips can be used, {len(self.rejects)} cannot."]
        if self.clips:
            shortest, middle, longest = facts["lengths"]
            lines.append(f"Length {shortest:.1f} to {longest:.1f} s (median {middle:.1f}), {facts['seconds'] / 60:.1f} min in all; {facts['captions']} different captions.")
            lines.append(f"Sizes: {_counted(facts['sizes'])}. Frames a second: {_counted(facts['fps'])}.")
        lines += [f"not used: {item.name} {item.reason}" for item in self.rejects] + [f"remark: {item.name} {item.reason}" for item in self.remarks]
        return "\n".join(lines)


def _counted(counts: dict[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:6]]
    return ", ".join(shown) + (f" and {len(counts) - 6} others" if len(counts) > 6 else "")


def examine(source: str | Path, root: str | Path | None = None, num_frames: int = 24, frame_stride: int = 4, progress: Callable[[int, int], None] | None = None, look: bool = True, known: Path | None = None) -> Report:
    """Open every clip of a dataset. One that cannot be used is named with its reason and stops nothing.

    A clip is usable with at least ``num_frames`` frames; a picture always is, for the image path. ``look`` also decodes a few frames of each,
    for remarks on still clips, cuts and near-duplicates. What files hold is kept in the folder ``known``, so that those which stay as they are need not be opened again. Raises ConfigError for a source that names no clips.
    """
    clips, rejects = find_clips(source, root)
    report, seen, facts = Report(str(source), rejects=list(rejects)), Lookalikes(), KnownFacts(source, known)
    for number, clip in enumerate(clips, 1):
        try:
            usable = _measured(clip, facts.of(clip.path), num_frames)
            report.clips.append(usable)
            if look:
                frames = read_frames(clip.path, _spread(usable, LOOKED_AT), 32, 32)
                report.remarks += [Reject(clip.name, remark) for remark in _remarks(frames, seen, clip.name)]
        except UnusableVideo as error:
            report.clips = [item for item in report.clips if item.clip is not clip]
            report.rejects.append(Reject(clip.name, str(error)))
        if progress is not None:
            progress(number, len(clips))
    facts.keep()
    captions = Counter(caption for item in report.clips for caption in item.clip.captions)
    same = [caption for caption, count in captions.items() if count > max(3, len(report.clips) // 2)]
    if look and (table := table_of(source)) and (encoding := decoded(table)[1]) not in ("utf-8", *MARKS):
        report.remarks.append(Reject(table.name, f"is not UTF-8 and was read as {encoding}; if letters of its captions look wrong, save it as UTF-8"))
    report.remarks += [Reject("captions:", gap) for gap in _gaps(table)] if look and table else []
    if long := sum(len(caption.split()) > TOKENS for caption in captions):
        report.remarks.append(Reject("captions:", f"{long} of {len(captions)} have more than {TOKENS} words; the model reads the first {TOKENS} tokens of a caption, at most as many words, and nothing of the rest"))
    report.remarks += [Reject("captions:", f"{captions[caption]} clips say the same, “{caption[:60]}”") for caption in same]
    return report


def examine_for(config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> Report:
    """``examine`` at the start of a run: no frame is decoded, and a file that was looked at for an earlier one is not opened. Raises ConfigError."""
    return examine(config.dataset, config.dataset_root or None, config.shortest, config.frame_stride, progress, look=False, known=Path(config.data_dir) / "cache" / "clips")


def _gaps(table: Path) -> list[str]:
    """Of each of MiraData's columns of captions that a table has, in how many rows it is empty, if it is in any."""
    rows = [plain_row(row) for row in table_rows(table)]
    empty = {name: sum(not row.get(name) for row in rows) for name in MIRADATA_CAPTIONS if any(name in row for row in rows)}
    return [f"{count} of {len(rows)} rows have no {name}; training reads what else they say" for name, count in empty.items() if count]


def _measured(clip: Clip, facts: VideoFacts, num_frames: int) -> Usable:
    if clip.start >= facts.seconds:
        raise UnusableVideo(f"ends after {facts.seconds:.2f} s, before the clip starts")
    end = facts.num_frames if clip.end is None else round(min(clip.end, facts.seconds) * facts.fps)
    inside = end - round(clip.start * facts.fps)
    if facts.num_frames > 1 and inside < num_frames:
        raise UnusableVideo(f"is too short: {max(0, inside)} frames, and {num_frames} are needed")
    return Usable(clip, facts, max(1, inside))


def _spread(usable: Usable, count: int) -> list[float]:
    first, last = usable.clip.start, usable.clip.start + (usable.num_frames - 1) / usable.facts.fps
    return np.linspace(first, last, min(count, usable.num_frames)).tolist()


def _remarks(frames: np.ndarray, seen: Lookalikes, name: str) -> list[str]:
    """What looks wrong with a clip's frames [T, 32, 32, 3]; its middle one joins ``seen``."""
    remarks = []
    looked = Frames(frames)
    if len(frames) > 1 and looked.steps.max() < STILL:
        remarks.append("stands still")
    if places := cuts(looked):
        remarks.append(f"may hold a cut about {places[0] / len(frames):.0%} of the way in: split it there")
    middle = frames[len(frames) // 2].astype(np.float32).reshape(8, 4, 8, 4, 3).mean((1, 3))
    if (twin := seen.add(name, middle)) is not None:
        remarks.append(f"looks nearly like {twin}")
    return remarks


class KnownFacts:
    """What the files of a dataset hold, kept in a file of ``folder`` by their paths, sizes and times; without a folder they are opened each time."""

    def __init__(self, source: str | Path, folder: Path | None):
        self._file = folder and folder / f"{hashlib.sha256(str(Path(source).resolve()).encode()).hexdigest()[:32]}.json"
        self._before: dict[str, list[float]] = {}
        self._now: dict[str, list[float]] = {}
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                self._before = dict(json.loads(self._file.read_text(encoding="utf-8")))

    def of(self, path: Path) -> VideoFacts:
        """As ``probe_video``. Raises UnusableVideo."""
        try:
            status = path.stat()
        except OSError:
            raise UnusableVideo("is not there any more") from None
        key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        if key not in self._now:
            self._now[key] = self._before.get(key) or list(astuple(probe_video(path)))
        return VideoFacts(*self._now[key])

    def keep(self) -> None:
        """Write them down where there are new ones; a full disk is no reason to stop."""
        if self._file is not None and self._now != self._before:
            with contextlib.suppress(WriteError), replacing(self._file) as file:
                file.write_text(json.dumps(self._now), encoding="utf-8")


class Lookalikes:
    """Pictures of which each is compared only with those of nearly its mean colour: all that can be alike, and few of many."""

    def __init__(self):
        self._cells: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}

    def add(self, name: str, picture: np.ndarray) -> str | None:
        """The first of the earlier pictures [8, 8, 3] that differs by less than ALIKE on average; None where there is none.

        Pictures that alike differ by less than 3 ALIKE in the mean of each colour: they lie in cells of that size that touch.
        """
        cell = tuple(int(mean // (3 * ALIKE)) for mean in picture.mean((0, 1)))
        near = [other for step in product((-1, 0, 1), repeat=3) for other in self._cells.get(tuple(map(sum, zip(cell, step))), ())]
        self._cells.setdefault(cell, []).append((name, picture))
        return next((other for other, seen in near if np.abs(seen - picture).mean() < ALIKE), None)

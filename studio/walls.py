"""Walls: requests that are looked at together. A grid varies up to three settings of one request; drafts are few-step tries from many seeds."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from core.presets import get_preset
from core.types import GenerationRequest, RequestError

from .db import Database
from .prompts import parse_value
from .queue import Queue, new_id
from .settings_words import title, value_words

MAX_AXES = 3
MAX_CELLS = 144
DRAFT_STEPS = 6

EXAMPLES = {
    "seed": "1..4",
    "guidance_scale": "2..8:2",
    "guidance_stop": "0.2, 0.35, 0.5, 1",
    "late_guidance_scale": "1, 1.5, 2",
    "temporal_guidance_scale": "0, 0.5, 1, 2",
    "num_inference_steps": "10, 20, 50",
    "sampler": "ddim, dpm++2m",
    "quality": "quality, balanced, fast",
    "eta": "0, 0.5, 1",
    "model": "mira-nano",
    "preset": "nano-4s, nano-160-4s, nano-192-4s",
    "prompt": "red, blue, green",
    "negative_prompt": "blurry, dark",
    "fps": "4, 6, 8",
    "output_fps": "8, 24",
    "num_frames": "24, 48, 120",
    "height": "80, 96, 112",
    "width": "128, 160, 192",
    "window_frames": "24, 48",
    "decode_chunk_frames": "10, 24",
    "start_frames": "1, 4, 8",
    "strength": "0.3..0.9:0.2",
    "weights": "full, 8bit",
    "text_placement": "device, unload, cpu",
    "loras": "name@0..1:0.25",
}
"""What an axis may vary, with values that it may have."""
FIELDS = tuple(EXAMPLES)
_RANGE = re.compile(r"(?P<before>[^,@]*@)?\s*(?P<first>-?\d+(?:\.\d+)?)\s*\.\.\s*(?P<last>-?\d+(?:\.\d+)?)(?:\s*:\s*(?P<step>\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Axis:
    """One setting and the values that it takes; those of ``prompt`` are texts that take the place of the first of them."""

    field: str
    values: tuple[Any, ...]

    @property
    def title(self) -> str:
        return axis_title(self.field)

    @property
    def labels(self) -> list[str]:
        """The values as a person reads them."""
        return [value_words(self.field, value) for value in self.values]

    def apply(self, request: GenerationRequest, value: Any) -> GenerationRequest:
        """``request`` with this axis at ``value``."""
        if self.field == "prompt":
            return request.replace(prompt=_whole(self.values[0]).sub(lambda _: value, request.prompt))
        if self.field == "preset":  # with all that it decides
            return request.replace(preset=value, **get_preset(value).decided)
        return request.replace(**{self.field: value})


@dataclass(frozen=True)
class Wall:
    """Requests in the order of their cells: the first axis runs along a row, the second down the rows, the third over tables."""

    id: str
    axes: tuple[Axis, ...]
    cells: tuple[str, ...]
    """Ids of requests, which are those of their videos."""
    full_steps: int | None = None
    """For drafts: the steps of a full run; None for a grid."""


class Walls:
    """The walls in the studio's database."""

    def __init__(self, db: Database, queue: Queue):
        self.db, self.queue = db, queue

    def enqueue_grid(self, base: GenerationRequest, axes: Sequence[Axis]) -> str:
        """Queue every combination, all or none; the wall's id. Raises RequestError or StorageError."""
        return self._enqueue(grid(base.filled(self.db.path.parent), axes), axes, None)

    def enqueue_drafts(self, base: GenerationRequest, count: int, steps: int) -> str:
        """Queue ``count`` tries of ``steps`` steps, from base's seed on; the wall's id. Raises RequestError or StorageError."""
        base = base.filled(self.db.path.parent)
        requests, axis = drafts(base, count, steps)
        return self._enqueue(requests, [axis], base.num_inference_steps)

    def enqueue_full(self, id: str, picked: Sequence[str]) -> list[str]:
        """Queue picked drafts with all their steps. The seed decides the initial noise, so they start from the same. Raises RequestError."""
        wall = self.require(id)
        if wall.full_steps is None or not picked:
            raise RequestError("id", "Tick the drafts that you want in full, then press the button again.")
        jobs = [self.queue.get(request) for request in picked if request in wall.cells]
        return self.queue.enqueue_many([job.request.replace(num_inference_steps=wall.full_steps) for job in jobs if job])

    def get(self, id: str) -> Wall | None:
        """The wall of that id."""
        rows = self.db.read("SELECT * FROM walls WHERE id = ?", id)
        if not rows:
            return None
        axes = tuple(Axis(axis["field"], tuple(axis["values"])) for axis in json.loads(rows[0]["axes"]))
        cells = self.db.read("SELECT request FROM wall_cells WHERE wall = ? ORDER BY place", id)
        return Wall(id, axes, tuple(row["request"] for row in cells), rows[0]["full_steps"])

    def of(self, request: str) -> str | None:
        """The wall that a request belongs to, if any."""
        rows = self.db.read("SELECT wall FROM wall_cells WHERE request = ? LIMIT 1", request)
        return rows[0]["wall"] if rows else None

    def _enqueue(self, requests: Sequence[GenerationRequest], axes: Sequence[Axis], full_steps: int | None) -> str:
        id = new_id()
        with self.db.write() as tx:
            cells = self.queue.enqueue_many(requests)
            tx.execute("INSERT INTO walls VALUES (?, ?, ?, ?)", (id, json.dumps([asdict(axis) for axis in axes]), full_steps, time.time()))
            tx.executemany("INSERT INTO wall_cells VALUES (?, ?, ?)", [(id, place, request) for place, request in enumerate(cells)])
        return id

    def require(self, id: str) -> Wall:
        """The wall of that id. Raises RequestError."""
        wall = self.get(id)
        if wall is None:
            raise RequestError("id", f"There is no grid {id!r}.")
        return wall


def parse_axis(field: str, text: str) -> Axis:
    """The axis that ``text`` describes: values between commas, ``1..4``, ``2..12:5`` or ``cars@0..1:0.25`` for whole ranges. Raises RequestError.

    For words of the prompt the first value is what is replaced, as in ``red, blue, "dark, deep green"``.
    """
    if field not in FIELDS:
        raise RequestError(field, f"{field!r} cannot vary over a grid. These can: {', '.join(FIELDS)}.")
    words = [word.strip() for word in next(csv.reader([text], skipinitialspace=True), [])]
    if field not in ("prompt", "negative_prompt"):
        words = [value for word in words if word for value in _range(field, word)]
    values = tuple(dict.fromkeys(parse_value(field, word) for word in words))
    if not values or field == "prompt" and not values[0]:
        raise RequestError(field, f"{axis_title(field)} has no values. Type some, with commas between them: {example(field)}.")
    if field == "prompt" and len(values) < 2:
        raise RequestError(field, f"Words of the prompt: {values[0]!r} is what is replaced; add what comes in its place: {example(field)}.")
    return Axis(field, values)


def axis_title(field: str) -> str:
    """What the page calls an axis: of the prompt it varies words, of anything else all of it."""
    return "Words of the prompt" if field == "prompt" else title(field)


def example(field: str) -> str:
    """Values that such an axis may have."""
    return EXAMPLES[field]


def grid(base: GenerationRequest, axes: Sequence[Axis]) -> list[GenerationRequest]:
    """Every combination, in the order of a wall's cells. Raises RequestError, also for a combination that cannot be made."""
    if not 1 <= len(axes) <= MAX_AXES:
        raise RequestError("axes", f"A grid has one to {MAX_AXES} axes. Choose what varies.")
    if len({axis.field for axis in axes}) < len(axes):
        raise RequestError("axes", "Two axes vary the same setting. Choose another one, or put all the values on one axis.")
    total = math.prod(len(axis.values) for axis in axes)
    if total > MAX_CELLS:
        raise RequestError("axes", f"This grid has {total} videos; at most {MAX_CELLS} can be looked at together.")
    for axis in axes:
        if axis.field == "prompt" and not _whole(axis.values[0]).search(base.prompt):
            raise RequestError("prompt", f"{axis.values[0]!r} is not in the prompt, so it cannot be replaced. The first of the words must stand there as you typed it, and not as a part of a longer word.")
    base = base.resolved()
    requests = []
    for cell in itertools.product(*(axis.values for axis in reversed(axes))):
        request = base
        for axis, value in sorted(zip(reversed(axes), cell, strict=True), key=lambda one: one[0].field != "preset"):  # what another axis varies is not the preset's to decide
            request = axis.apply(request, value)
        requests.append(request.resolved())
    return requests


def drafts(base: GenerationRequest, count: int, steps: int) -> tuple[list[GenerationRequest], Axis]:
    """``count`` requests of ``steps`` steps from base's seed on, and the axis that they vary. Raises RequestError."""
    base = base.resolved()
    if not 2 <= count <= MAX_CELLS:
        raise RequestError("count", f"The number of drafts is {count}; it must be from 2 to {MAX_CELLS}.")
    if not 1 <= steps < base.num_inference_steps:
        raise RequestError("num_inference_steps", f"A draft of {steps} steps must have fewer than the full run's {base.num_inference_steps}.")
    axis = Axis("seed", tuple(base.seed + index for index in range(count)))
    return grid(base.replace(num_inference_steps=steps), [axis]), axis


def _whole(words: str) -> re.Pattern[str]:
    """``words`` where they are no part of a longer word."""
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")


def _range(field: str, word: str) -> list[str]:
    """``1..4`` as its numbers, ``name@0..1`` as a LoRA with each of them for its weight; any other word as it is."""
    match = _RANGE.fullmatch(word)
    if match is None or bool(match["before"]) != (field == "loras"):
        return [word]
    first, last, step = (Decimal(match[name] or 1) for name in ("first", "last", "step"))  # exact: a seed has up to nineteen digits
    if last < first or not step or (last - first) / step >= MAX_CELLS:
        raise RequestError(field, f"{word!r} must go upwards, in at most {MAX_CELLS} values.")
    return [f"{match['before'] or ''}{(first + index * step).normalize():f}" for index in range(int((last - first) // step) + 1)]

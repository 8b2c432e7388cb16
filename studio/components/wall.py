"""A wall: labelled cells that play beside each other. The cells are filled by assets/studio.js from ``render_cells``, so that one that is done does not start the others anew."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..library import Video
from ..queue import Job
from ..walls import Axis, Wall
from .queue_list import stage_words
from .words import escape, file_url


def render_wall(wall: Wall, prompt: str, aspect: float) -> str:
    """The empty tables with their labels; it stays the same while the requests are made."""
    across, down, deep = (*wall.axes, None, None)[:3]
    columns = across.labels
    per_table = len(columns) * (len(down.values) if down else 1)
    tables = [wall.cells[start : start + per_table] for start in range(0, len(wall.cells), per_table)]
    titles = [f"{deep.title} {label}" for label in deep.labels] if deep else [""]
    pick = wall.full_steps is not None
    parts = [_table(cells, title, across, down, pick) for cells, title in zip(tables, titles, strict=True)]
    if pick:
        make = f'<button class="small strong" data-action="full" data-id="{wall.id}" data-with-picked title="The same seeds, so the same initial noise, with {wall.full_steps} steps">Make the ticked ones in full</button>'
    else:
        make = ""
    kind = "Drafts" if pick else "Grid"
    return (
        f'<div class="wall" style="--aspect:{aspect:.4f}"><div class="panel-head"><h2>{kind}</h2><span class="note">{escape(" × ".join(axis.title for axis in wall.axes))}</span>'
        f'<span class="tools">{make}<button class="small" data-action="compare-wall" data-id="{wall.id}" title="The first of its videos, under one clock on the Compare tab">Compare</button><button class="small" data-play-all title="All from their first frame">Play together</button><button class="small" data-action="wall-close">Close</button></span></div>'
        f'<p class="caption-prompt" dir="auto">{escape(prompt)}</p>{"".join(parts)}</div>'
    )


def _table(cells: Sequence[str], title: str, across: Axis, down: Axis | None, pick: bool) -> str:
    columns = across.labels
    if down is None:  # one axis: a row that wraps
        tiles = "".join(f'<figure class="tile">{_cell(id, f"{across.title} {label}")}<figcaption>{_label(id, f"{across.title} {label}", pick)}</figcaption></figure>' for id, label in zip(cells, columns, strict=True))
        return f'<div class="tiles">{tiles}</div>'
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in columns)
    rows = []
    for place, label in enumerate(down.labels):
        row = cells[place * len(columns) : (place + 1) * len(columns)]
        tiles = "".join(f"<td>{_cell(id, f'{across.title} {column}, {down.title} {label}')}</td>" for id, column in zip(row, columns, strict=True))
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{tiles}</tr>')
    corner = f'<th class="corner">{escape(across.title)} →<br>{escape(down.title)} ↓</th>'
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f'<div class="scroll"><table class="wall-table">{caption}<thead><tr>{corner}{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(id: str, label: str) -> str:
    return f'<div class="cell" data-cell="{id}" data-label="{escape(label)}"></div>'


def _label(id: str, label: str, pick: bool) -> str:
    return f'<label><input type="checkbox" data-pick="{id}"> {escape(label)}</label>' if pick else escape(label)


def render_cells(jobs: dict[str, Job], videos: dict[str, Video]) -> str:
    """What each cell shows now, as JSON for the script; the element itself is not seen. Keys are the cells' ids."""
    cells = {id: _state(job, videos.get(id)) for id, job in jobs.items()}
    return f'<div hidden data-cells="{escape(json.dumps(cells))}"></div>'


def _state(job: Job, video: Video | None) -> dict[str, str]:
    if video is not None:
        return {"video": file_url(video.path), "poster": file_url(video.poster) if video.poster else ""}
    words = {
        "waiting": "Waiting",
        "running": f"{stage_words(job)} · {round(100 * job.progress)} %",
        "paused": f"Paused · {round(100 * job.progress)} %",
        "done": "Deleted",
        "failed": job.error or "It failed.",
        "cancelled": "Cancelled",
    }
    return {"words": words[job.state], "state": job.state}

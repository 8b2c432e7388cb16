"""Videos side by side: the strip below the viewer and the gallery's grid. Pointing at one plays it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from ..db import size_words
from ..library import TRASH_DAYS, Video
from ..comparison import measure_title, measure_words
from .comparing import compare_button
from .viewer import example_buttons
from .words import escape, file_url

PICKED = (
    '<div class="picked" data-picks="trash" role="group" aria-label="Selected videos"><span class="note" data-picked-count="Tick videos to restore many at once." role="status">Tick videos to restore many at once.</span>'
    '<button class="quiet" data-pick-all>Select all shown</button><span class="for-picked" hidden><button class="quiet" data-pick-none>Select none</button>'
    '<button class="small" data-action="restore" data-with="trash">Restore selected</button></span></div>'
)
"""What can be done with all ticked videos of the trash."""


def render_strip(videos: Sequence[Video], selected: str | None) -> str:
    """The newest videos in one row."""
    if not videos:
        return '<p class="empty">Finished videos line up here, newest first.</p>'
    return f'<div class="strip">{"".join(_card(video, video.id == selected) for video in videos)}</div>'


def render_grid(videos: Sequence[Video], total: int, filtered: bool, page: int, examples: Sequence[str] = ()) -> str:
    """Videos with their prompts, and how many more there are; ``page`` is how many another click shows, ``examples`` are prompts to begin with."""
    if not videos and filtered:
        return '<p class="empty">No video matches. Try fewer words.</p>'
    if not videos:
        return f'<div class="welcome empty"><div><p>No videos yet. Those that you make are kept here with their settings. Start with one of these:</p>{example_buttons(examples)}</div></div>'
    return f'{_head(total, False)}<div class="grid">{"".join(map(_slot, videos))}</div>{_more(len(videos), total, page)}'


def render_table(videos: Sequence[Video], total: int, filtered: bool, page: int, measured: Sequence[dict[str, float | int | None] | str | None], order: str, examples: Sequence[str] = ()) -> str:
    """The gallery as rows with what was measured in columns, sorted by the one called ``order``, the largest first; by ``-name`` the smallest first. What is not measured comes last."""
    from core.metrics import METRICS

    if not videos:
        return render_grid(videos, total, filtered, page, examples)
    name, falling = order.removeprefix("-"), not order.startswith("-")
    rows = list(zip(videos, measured))
    if name in METRICS:
        known = [row for row in rows if isinstance(row[1], dict) and row[1].get(name) is not None]
        rows = sorted(known, key=lambda row: row[1][name], reverse=falling) + [row for row in rows if row not in known]
    return (
        f'{_head(total, True)}<div class="scroll"><table class="facts measured"><thead><tr><th scope="col">Video</th>{"".join(_column(metric, name, falling) for metric in METRICS)}</tr></thead>'
        f'<tbody>{"".join(_row(video, values) for video, values in rows)}</tbody></table></div>{_more(len(videos), total, page)}'
    )


def render_trash(videos: Sequence[Video], total: int, filtered: bool, page: int, count: int, freed: int) -> str:
    """The deleted videos that were found, ``total`` in all; ``count`` are in the trash, and removing them frees so many bytes."""
    if not count:
        return '<p class="empty trash">Nothing is in the trash. Deleted videos can be restored here.</p>'
    videos_words, size = f'{count} deleted {"video" if count == 1 else "videos"}', size_words(freed)
    empty = (
        '<details class="menu" data-menu="trash"><summary class="small">Empty the trash …</summary>'
        f'<div><button class="quiet" data-action="empty-trash">Remove {videos_words} for good: frees {size}</button></div></details>'
    )
    head = f'<div class="panel-head"><p class="note">{videos_words}, {size}. Each is kept for {TRASH_DAYS} days, then removed for good when the studio next starts.</p><span class="tools">{empty}</span></div>'
    shown = f'{PICKED}<div class="grid">{"".join(map(_thrown_away, videos))}</div>' if videos else '<p class="empty">No deleted video matches. Try fewer words.</p>' if filtered else ""
    return f'<div class="trash">{head}{shown}{_more(len(videos), total, page)}</div>'


def _thrown_away(video: Video) -> str:
    """A card of the trash: it plays as the others do, and has a way back."""
    prompt, deleted = escape(video.request.prompt), datetime.datetime.fromtimestamp(video.deleted)
    until = deleted + datetime.timedelta(TRASH_DAYS)
    line = f"Deleted {deleted.day} {deleted:%b %H:%M} · kept until {until.day} {until:%b}"
    return (
        f'<div class="slot" data-slot="{video.id}"><div class="card" tabindex="0" role="group" aria-label="{prompt}" title="{prompt}">{_picture(video)}<span class="card-prompt" dir="auto">{prompt}</span><span class="card-line">{line}</span></div>'
        f'<input type="checkbox" class="tick" data-trash="{video.id}" aria-label="Select: {prompt}">'
        f'<div class="slot-foot"><button class="small" data-action="restore" data-id="{video.id}" aria-label="Restore: {prompt}">Restore</button></div></div>'
    )


def _column(metric: str, order: str, falling: bool) -> str:
    """The head of a column: pressing it sorts, pressing it again turns the order round."""
    from core.metrics import METRICS

    chosen = metric == order
    sort, arrow = (' aria-sort="descending"', " ↓") if chosen and falling else (' aria-sort="ascending"', " ↑") if chosen else ("", "")
    docs = escape(" ".join((METRICS[metric].measure.__doc__ or "").split()))
    return f'<th scope="col"{sort}><button class="quiet" data-action="gallery-order" data-id="{"-" if chosen and falling else ""}{metric}" title="{docs}">{escape(measure_title(metric))}{arrow}</button></th>'


def _row(video: Video, values: dict[str, float | int | None] | str | None) -> str:
    from core.metrics import METRICS

    tick = f'<input type="checkbox" class="tick" data-video="{video.id}" aria-label="Select: {escape(video.request.prompt)}">'
    if isinstance(values, dict):
        cells = "".join(f"<td>{measure_words(values.get(name))}</td>" for name in METRICS)
    else:
        cells = f'<td colspan="{len(METRICS)}"><span class="note">{escape(values) if values else "Measuring …"}</span></td>'
    return f'<tr data-slot="{video.id}"><th scope="row"><div class="row-video">{tick}{_card(video, False)}<span dir="auto">{escape(video.request.prompt)}</span></div></th>{cells}</tr>'


def _head(total: int, table: bool) -> str:
    words = "As pictures" if table else "As a table"
    return f'<div class="panel-head"><p class="note">{total} {"video" if total == 1 else "videos"}</p><span class="tools"><button class="small" data-action="gallery-table" title="Pictures, or rows with what is measured on each video">{words}</button></span></div>'


def _more(shown: int, total: int, page: int) -> str:
    left = total - shown
    return f'<button class="small more" data-action="more">Show {min(left, page)} more</button>' if left > 0 else ""


def _slot(video: Video) -> str:
    """A card, and what can be done with it right there."""
    tags = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in video.tags)
    fault = f'<span class="tag fault">{escape(video.faults)}</span>' if video.faults else ""
    tick = f'<input type="checkbox" class="tick" data-video="{video.id}" aria-label="Select: {escape(video.request.prompt)}">'
    return f'<div class="slot" data-slot="{video.id}">{_card(video, False, wide=True)}{tick}<div class="slot-foot">{compare_button(video)}{fault}{tags}</div></div>'


def _card(video: Video, selected: bool, wide: bool = False) -> str:
    prompt = escape(video.request.prompt)
    star = '<span class="star" aria-label="starred">★</span>' if video.favourite else ""
    line = f"{video.seconds:.1f} s · {video.width}×{video.height}"
    text = f'<span class="card-prompt" dir="auto">{prompt}</span><span class="card-line">{line}</span>' if wide else ""
    current = ' aria-current="true"' if selected else ""
    return (
        f'<button class="card" data-action="show" data-id="{video.id}" title="{prompt}" aria-label="Show: {prompt}"{current}>'
        f'{_picture(video)}{star}{text}</button>'
    )


def _picture(video: Video) -> str:
    poster = f' poster="{file_url(video.poster)}"' if video.poster else ""
    preload = "none" if video.poster else "metadata"
    return f'<video muted loop playsinline preload="{preload}" tabindex="-1" aria-hidden="true" style="--aspect:{video.width / video.height:.4f}"{poster} src="{file_url(video.path)}"></video>'

"""Videos side by side: the strip below the viewer and the gallery's grid. Pointing at one plays it."""

from __future__ import annotations

from collections.abc import Sequence

from ..library import Video
from .comparing import compare_button
from .words import escape, file_url


def render_strip(videos: Sequence[Video], selected: str | None) -> str:
    """The newest videos in one row."""
    if not videos:
        return '<p class="empty">Finished videos line up here, newest first.</p>'
    return f'<div class="strip">{"".join(_card(video, video.id == selected) for video in videos)}</div>'


def render_grid(videos: Sequence[Video], total: int, filtered: bool, page: int) -> str:
    """Videos with their prompts, and how many more there are; ``page`` is how many another click shows."""
    if not videos:
        words = "No video matches. Try fewer words." if filtered else "No videos yet. Those that you make on the Generate tab are kept here with their settings."
        return f'<p class="empty">{words}</p>'
    count = f'<p class="note">{total} {"video" if total == 1 else "videos"}</p>'
    left = total - len(videos)
    more = f'<button class="small more" data-action="more">Show {min(left, page)} more</button>' if left > 0 else ""
    return f'{count}<div class="grid">{"".join(map(_slot, videos))}</div>{more}'


def _slot(video: Video) -> str:
    """A card, and what can be done with it right there."""
    tags = "".join(f'<span class="tag">{escape(tag)}</span>' for tag in video.tags)
    fault = f'<span class="tag fault">{escape(video.faults)}</span>' if video.faults else ""
    tick = f'<input type="checkbox" class="tick" data-video="{video.id}" aria-label="Select: {escape(video.request.prompt)}">'
    return f'<div class="slot" data-slot="{video.id}">{_card(video, False, wide=True)}{tick}<div class="slot-foot">{compare_button(video)}{fault}{tags}</div></div>'


def _card(video: Video, selected: bool, wide: bool = False) -> str:
    prompt = escape(video.request.prompt)
    poster = f' poster="{file_url(video.poster)}"' if video.poster else ""
    preload = "none" if video.poster else "metadata"
    star = '<span class="star" aria-label="starred">★</span>' if video.favourite else ""
    line = f"{video.seconds:.1f} s · {video.width}×{video.height}"
    text = f'<span class="card-prompt" dir="auto">{prompt}</span><span class="card-line">{line}</span>' if wide else ""
    current = ' aria-current="true"' if selected else ""
    return (
        f'<button class="card" data-action="show" data-id="{video.id}" title="{prompt}" aria-label="Show: {prompt}"{current}>'
        f'<video muted loop playsinline preload="{preload}" tabindex="-1" aria-hidden="true" style="--aspect:{video.width / video.height:.4f}"{poster} src="{file_url(video.path)}"></video>{star}{text}</button>'
    )

"""The synchronous player: a gr.HTML component whose template, style and script (assets/compare.*) stay in place while its value changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..comparison import LETTERS, Timeline, parting
from ..library import Video
from ..settings_words import labels
from .theme import ASSETS
from .words import file_url

TEMPLATE = """
<div class="player" role="group" aria-label="Player" data-player hidden>
  <div class="views">
    <div class="segments" role="group" aria-label="View">
      <button type="button" data-view="side" aria-pressed="true">Side by side</button><button type="button" data-view="wipe" aria-pressed="false">Wipe</button><button
        type="button" data-view="onion" aria-pressed="false">Onion skin</button><button type="button" data-view="difference" aria-pressed="false">Difference</button>
    </div>
    <span class="overlay-tools" hidden>
      <label class="pick">Of <select data-pick="0" aria-label="First video"></select></label>
      <label class="pick">and <select data-pick="1" aria-label="Second video"></select></label>
      <label class="amount"><span></span> <input type="range"></label>
    </span>
  </div>
  <div class="screens"></div>
  <figure class="overlay" hidden><canvas role="img"></canvas><figcaption></figcaption></figure>
  <p class="reading" role="status"></p>
  <div class="time">
    <svg class="curve" preserveAspectRatio="none" role="img" hidden></svg>
    <input class="scrub" type="range" min="0" step="1" value="0" aria-label="Frame">
  </div>
  <div class="transport">
    <button type="button" class="small" data-do="first" title="First frame (Home)" aria-label="First frame">|◀</button>
    <button type="button" class="small" data-do="back" title="One frame back (←)" aria-label="One frame back">◀|</button>
    <button type="button" class="small strong" data-do="play" title="Play or pause (space)">Play</button>
    <button type="button" class="small" data-do="on" title="One frame on (→)" aria-label="One frame on">|▶</button>
    <button type="button" class="small" data-do="last" title="Last frame (End)" aria-label="Last frame">▶|</button>
    <label>Speed <select class="speed"><option value="0.25">¼</option><option value="0.5">½</option><option value="1" selected>1</option><option value="2">2</option></select></label>
    <label><input type="checkbox" class="loop" checked> Loop</label>
    <span class="clock"></span>
    <span class="jumps" hidden><button type="button" class="small" data-do="part">Where they part</button><button type="button" class="small" data-do="most">Most different</button></span>
  </div>
  <p class="note legend"></p>
</div>
"""
"""Handlebars and JavaScript's templates both read it: no braces, backslashes or backticks."""


def player(elem_id: str) -> gr.HTML:
    """The component; its value is what ``player_value`` or ``blind_value`` gives."""
    style, script = ((ASSETS / f"compare.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return gr.HTML(_value((), ()), elem_id=elem_id, html_template=TEMPLATE, css_template=style, js_on_load=script, apply_default_css=False)


def player_value(videos: Sequence[Video], series: Sequence[Sequence[float]] | None) -> dict[str, Any]:
    """``videos`` with what differs as their labels; ``series`` are their differences from the first one, None while they are measured and empty when they cannot be."""
    named = [f"{letter} · {label}" if label else letter for letter, label in zip(LETTERS, labels([video.request for video in videos]))]
    value = _value(videos, named)
    if series is not None:
        value["series"], value["part"] = [list(values) for values in series], parting(series)
    return value


def blind_value(videos: Sequence[Video]) -> dict[str, Any]:
    """Two videos without a word on what differs."""
    return {**_value(videos, LETTERS[: len(videos)]), "blind": True}


def _value(videos: Sequence[Video], named: Sequence[str]) -> dict[str, Any]:
    timeline = Timeline.of(videos) if videos else None
    return {
        "videos": [
            {"src": file_url(video.path), "label": label, "prompt": video.request.prompt, "fps": video.fps, "frames": video.num_frames, "width": video.width, "height": video.height}
            for video, label in zip(videos, named, strict=True)
        ],
        "fps": timeline.fps if timeline else 1,
        "ticks": timeline.num_frames if timeline else 1,
    }

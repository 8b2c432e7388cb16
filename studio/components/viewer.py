"""The viewer: a request while it is made, or a finished video with its settings and what can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.smooth import SMOOTH_FPS

from ..comparison import Work
from ..library import Video
from ..queue import Job
from .comparing import compare_button
from .queue_list import stage_words, time_left
from .words import escape, file_stem, file_url, settings_line

PAUSE_HINT = "Puts the unfinished clip on disk and lets others go first; Resume goes on from there"
MAX_VIEWER_HEIGHT = 560
"""Pixels; a clip's shape decides the width, up to the column's."""
TRANSPORT = (
    '<div class="transport" role="group" aria-label="Playback"><button class="small icon" data-frames="-1" title="One frame back (←)" aria-label="One frame back">◀|</button>'
    '<button class="small icon" data-frames="1" title="One frame on (→)" aria-label="One frame on">|▶</button>'
    '<select data-speed aria-label="Speed" title="Speed"><option value="0.25">¼×</option><option value="0.5">½×</option><option value="1" selected>1×</option><option value="2">2×</option></select>'
    '<label><input type="checkbox" data-loop checked> Loop</label></div>'
)
"""What the browser's own controls lack; ``assets/studio.js`` does it, and keeps what is chosen for the next video."""


def render_running(job: Job) -> str:
    """The live preview of a running request, with its stage and the time left over it."""
    request, left = job.request, time_left(job)
    percent = round(100 * job.progress)
    if job.preview:
        picture = f'<img src="{file_url(job.preview, job.step)}" alt="Unfinished: {escape(request.prompt)}">'
    else:
        picture = '<div class="shimmer"></div>'
    may_pause = job.stage in ("text", "denoise") and not job.pausing
    pause = f'<button class="small" data-action="pause-request" data-id="{job.id}" aria-label="Pause this video" title="{PAUSE_HINT}">Pause</button>' if may_pause else ""
    return (
        f'<div class="stage live"{_shape(request.width, request.height)}>{picture}'
        f'<div class="stage-words"><span>{stage_words(job)}</span><span>{left}</span></div>'
        f'<div class="stage-bar"><i style="width:{percent}%"></i></div></div>'
        f'<div class="caption"><p class="caption-prompt" dir="auto">{escape(request.prompt)}</p><p class="caption-line">{_line(settings_line(request))}</p>'
        f'<div class="caption-buttons">{pause}<button class="small" data-action="cancel" data-id="{job.id}">Cancel</button></div></div>'
    )


def render_video(video: Video, wall: str | None = None, smoothed: Work | None = None, details: Sequence[tuple[str, str]] = ()) -> str:
    """A finished video, looping, and its settings in one quiet line; ``wall`` is the grid or drafts that it belongs to, ``smoothed`` how the file stands that plays instead,
    ``details`` what is told of the file below it."""
    if not Path(video.path).is_file():
        return (
            f'<div class="stage"{_shape(video.width, video.height)}><div class="stage-words"><span>The file is gone</span></div></div>'
            f'<div class="caption"><p class="caption-prompt" dir="auto">{escape(video.request.prompt)}</p><p class="note" role="status">{escape(video.path)} was deleted or moved by hand. Put it back, or delete the video here too.</p>'
            f'<div class="caption-buttons"><button class="small strong" data-action="use" data-id="{video.id}" title="Fills the form with this video\'s prompt, seed and settings">Use these settings</button>'
            f'<button class="small" data-action="delete" data-id="{video.id}">Delete</button></div></div>'
        )
    smooth = smoothed and smoothed.result and smoothed.result[0]
    request, source, played = video.request, file_url(video.path), file_url(smooth or video.path)
    fps = SMOOTH_FPS if smooth else video.fps
    parts = [*settings_line(request, video.elapsed), *([_smooth_words(smoothed)] if smoothed else [])]
    poster = f' poster="{file_url(video.poster)}"' if video.poster else ""
    star = "Unstar" if video.favourite else "Star"
    verdict = f'<p class="note verdict" role="status">{escape(video.verdict)}</p>' if video.verdict else ""
    verdict += f'<p class="note verdict">This video {escape(video.faults)}.</p>' if video.faults else ""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td dir="auto">{escape(value)}</td></tr>' for name, value in details)
    table = f'<table class="facts details">{rows}</table>' if rows else ""
    beside = f'<button class="small" data-action="wall" data-id="{wall}" title="The videos that were queued together with this one">Its grid</button>' if wall else ""
    return (
        f'<div class="stage"{_shape(video.width, video.height)}><video loop muted autoplay controls playsinline preload="auto" data-fps="{fps:g}"{poster} '
        f'src="{played}" aria-label="{escape(request.prompt)}"></video></div>'
        f'<div class="caption"><div class="caption-head"><p class="caption-prompt" dir="auto">{escape(request.prompt)}</p>{TRANSPORT}</div><p class="caption-line">{_line(parts)}</p>'
        f'<div class="caption-buttons"><button class="small strong" data-action="use" data-id="{video.id}" title="Fills the form with this video\'s prompt, seed and settings">Use these settings</button>'
        f'<button class="small" data-action="vary" data-id="{video.id}" title="Another one with a new seed, queued at once">Vary</button>{compare_button(video)}'
        f'<button class="small" data-action="continue" data-id="{video.id}" title="A new clip that begins with the end of this one">Continue</button>'
        f'<button class="small" data-action="change" data-id="{video.id}" title="A new clip made out of this one">Change</button>'
        f'<a class="small" href="{source}" download="{escape(file_stem(request))}.mp4" title="MP4 with its settings inside">Download</a>'
        f'<button class="small" data-action="star" data-id="{video.id}" aria-pressed="{str(video.favourite).lower()}">{star}</button>'
        f'{beside}<button class="small" data-action="delete" data-id="{video.id}">Delete</button>'
        f'<details class="menu" data-menu="video"><summary class="small" aria-label="More downloads" title="More downloads">⋯</summary><div>'
        f'<button class="quiet" data-action="gif" data-id="{video.id}">Download as gif</button>'
        f'<button class="quiet" data-action="plain" data-id="{video.id}" title="The same mp4, without the prompt and settings in it">Download without settings</button>'
        f'<button class="quiet" data-action="smooth" aria-pressed="{str(bool(smoothed)).lower()}" title="Frames are put in between for watching; the file stays as it is. By ffmpeg, or by RIFE where it is installed: the System tab tells how.">Smooth playback</button>'
        f'<button class="quiet" data-action="details" aria-pressed="{str(bool(details)).lower()}">Details</button>'
        f'<button class="quiet" data-action="verify" data-id="{video.id}" title="Makes it once more and says whether every pixel comes out again">Verify</button></div></details></div>{verdict}{table}</div>'
    )


def render_waiting(job: Job, ahead: int, status: dict[str, Any], paused: bool) -> str:
    """The next request in line, and what it waits for."""
    if paused:
        why = "The queue is paused. Press Resume to start."
    elif status["state"] in ("starting", "loading"):
        why = "The model is being loaded. Your video starts as soon as it is ready."
    elif status["state"] == "waiting":
        why = "A training run has the device. Your video starts when the run ends or is paused."
    elif status["state"] == "stopped":
        why = "The worker is stopped."
    else:
        why = f"{ahead} before it." if ahead else "It starts at once."
    words = f'<div class="stage-words"><span>Waiting</span><span>{escape(why)}</span></div>'
    request = job.request
    return (
        f'<div class="stage live"{_shape(request.width, request.height)}><div class="shimmer"></div>{words}<div class="stage-bar"><i style="width:0%"></i></div></div>'
        f'<div class="caption"><p class="caption-prompt" dir="auto">{escape(request.prompt)}</p><p class="caption-line">{_line(settings_line(request))}</p>'
        f'<div class="caption-buttons"><button class="small" data-action="cancel" data-id="{job.id}">Cancel</button></div></div>'
    )


def render_examples(prompts: Sequence[str], width: int, height: int) -> str:
    """What a new user sees: prompts that this model can do, one click each."""
    return (
        f'<div class="stage welcome"{_shape(width, height)}><div><h2>Your first video appears here</h2>'
        f"<p>Type what it should show and press Generate, or start with one of these:</p>{example_buttons(prompts)}</div></div>"
    )


def example_buttons(prompts: Sequence[str]) -> str:
    """One for each of ``examples.example_prompts``, which makes it at once."""
    return "".join(f'<button class="example" data-action="example" data-id="{index}">{escape(prompt)}</button>' for index, prompt in enumerate(prompts))


def _smooth_words(smoothed: Work) -> str:
    """What is done after the model, so that nobody takes it for the model's."""
    if smoothed.error:
        return smoothed.error
    return f"post-processed: {smoothed.result[1]}" if smoothed.done else f"frames are being put in between for {SMOOTH_FPS} fps ..."


def _shape(width: int | None, height: int | None) -> str:
    """Reserves the clip's place before it is there."""
    width, height = width or 16, height or 10
    return f' style="--aspect:{width / height:.4f};--max-height:{MAX_VIEWER_HEIGHT}px"'


def _line(parts: Sequence[str]) -> str:
    return "".join(f"<span>{escape(part)}</span>" for part in parts)

"""The queue as a list with a button for everything that can be done to a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ..queue import FINISHED, Job
from .words import about, clock, escape

SHOWN = 40
"""Rows drawn at first, and at each *Show more*."""
STATE_WORDS = {"waiting": "Waiting", "running": "Running", "paused": "Paused", "done": "Done", "failed": "Failed", "cancelled": "Cancelled"}
PICKED = (
    '<div class="picked" data-picks="job" role="group" aria-label="Selected requests"><span class="note" data-picked-count="Tick to change many at once." role="status">Tick to change many at once.</span>'
    '<button class="quiet" data-pick-all>All</button><span class="for-picked" hidden><button class="quiet" data-pick-none>None</button>'
    '<button class="small" data-action="first-many" data-with="job" title="Puts those that wait before all others">Next</button>'
    '<button class="small" data-action="copy-many" data-with="job" title="Queues each of them once more">Copy</button>'
    '<button class="small" data-action="retry-many" data-with="job" title="Queues those that failed or were cancelled again">Retry</button>'
    '<button class="small" data-action="cancel-many" data-with="job" title="Stops those that are not finished; this can be undone">Cancel</button></span></div>'
)
"""What can be done with all ticked requests."""


def stage_words(job: Job) -> str:
    """What a running request is at, as HTML: ``Step 5 of 20``."""
    if job.pausing and job.stage in ("text", "denoise"):
        return "Pausing after this step"
    if job.stage == "denoise":
        return f"Step {job.step} of {job.num_steps}"
    return {"model": "Loading the model", "text": "Reading the prompt", "decode": "Decoding the frames", "save": "Saving the file", "": "Starting"}.get(job.stage, escape(job.stage))


def time_left(job: Job) -> str:
    """``0:14 left`` of a running request; nothing where that is not known, or no whole second."""
    return f"{clock(job.seconds_left)} left" if round(job.seconds_left or 0) > 0 else ""


def render_queue(jobs: Sequence[Job], counts: dict[str, int], paused: bool, seconds_left: float | None, faults: Mapping[str, str] = MappingProxyType({}), shown: int = SHOWN) -> str:
    """HTML of the whole panel: heading, pause and clear, the time that all of it takes, one row for each of the first ``shown`` requests; ``faults`` tells what is wrong with videos."""
    open_count = counts["running"] + counts["paused"] + counts["waiting"]
    finished = sum(counts[state] for state in FINISHED)
    turn = "resume" if paused else "pause"
    tools = [f'<button class="quiet" data-action="{turn}" title="{_turn_hint(paused)}">{turn.capitalize()}</button>'] if open_count or paused else []
    if finished:
        tools.append('<button class="quiet" data-action="clear" title="Takes finished requests off this list; their videos stay">Clear finished</button>')
    cancel = '<button class="quiet" data-action="cancel-waiting" title="Cancels every request that waits; this can be undone">Cancel waiting</button>' if counts["waiting"] > 1 else ""
    more = (
        f'<details class="menu" data-menu="queue"><summary class="quiet" aria-label="More" title="More">⋯</summary><div>{cancel}'
        '<button class="quiet" data-action="export" title="The waiting requests and your presets as a file">Export</button>'
        '<button class="quiet" data-open-file title="A file that Export made">Import</button>'
        '<button class="quiet" data-notify aria-pressed="false" title="The browser tells you once when nothing is left to do">Tell me when done</button></div></details>'
    )
    tools.append(more)
    ended = max((job.finished for job in jobs if job.finished), default=0)
    numbers = 'data-open="{}" data-done="{}" data-failed="{}" data-ended="{}"'.format(counts["running"] + counts["waiting"], counts["done"], counts["failed"], ended)  # what is paused by hand waits for nobody
    running = next((job for job in jobs if job.state == "running"), None)
    fold = f'<span class="fold-line">{"Paused" if paused else _right(running) if running else ""}</span><button class="quiet" data-fold aria-expanded="false">Show</button>'
    head = f'<div class="panel-head"><h2>Queue</h2><span class="badge" {numbers}>{open_count}</span>{fold}<span class="tools">{"".join(tools)}</span></div>'
    notes = ["Paused: what runs is finished, nothing new starts."] if paused else []
    if open_count > 1 and seconds_left is not None:
        notes.append(f"About {about(seconds_left)} in all.")
    note = f'<p class="note">{" ".join(notes)}</p>' if notes else ""
    if not jobs:
        return head + note + '<p class="empty">Nothing is queued. Every request waits its turn here, and survives a restart.</p>'
    first = next((job.id for job in jobs if job.state == "waiting"), None)
    rows = "".join(_row(job, job.id == first, counts["waiting"] > 1, faults.get(job.id)) for job in jobs[:shown])
    left = open_count + finished - min(len(jobs), shown)
    more = f'<button class="small more" data-action="more-requests" title="{left} are not shown">Show {min(left, SHOWN)} more of {left}</button>' if left > 0 else ""
    return f'{head}{note}{PICKED if len(jobs) > 1 else ""}<ul class="jobs">{rows}</ul>{more}'


def _turn_hint(paused: bool) -> str:
    return "Start requests again" if paused else "Let the running one end and start no others"


def _row(job: Job, first: bool, several: bool, fault: str | None) -> str:
    """``first``: the next to start; ``several``: there is more than one that waits, so that they have an order; ``fault``: what is wrong with its video."""
    tick = f'<input type="checkbox" class="tick" data-job="{job.id}" aria-label="Select: {escape(job.request.prompt)}">'
    parts = [f'<div class="job-head">{tick}<span class="dot"></span><span class="job-state">{STATE_WORDS[job.state]}</span><span class="job-right">{_right(job)}</span></div>']
    prompt = escape(f"Verify: {job.request.prompt}" if job.verifies else job.request.prompt)
    if job.state == "running":
        percent = round(100 * job.progress)
        parts.append(f'<button class="job-prompt" data-action="follow" data-id="{job.id}" title="Watch it: {prompt}" dir="auto">{prompt}</button>')
        parts.append(f'<progress max="100" value="{percent}" aria-label="Progress">{percent} %</progress>')
        if job.error:
            parts.append(f'<p class="job-fault">{escape(job.error)}</p>')
        pause = _button("pause-request", job, "Pause") if job.stage in ("text", "denoise") and not job.pausing else ""
        parts.append(f'<div class="job-foot"><span>{stage_words(job)}</span>{pause}{_button("cancel", job)}</div>')
    elif job.state == "paused":
        parts.append(f'<div class="job-prompt" title="{prompt}" dir="auto">{prompt}</div>{_parked_bar(job)}')
        parts.append(f'<div class="job-foot"><span>{_parked_words(job)}</span>{_button("resume-request", job, "Resume")}{_button("cancel", job)}</div>')
    elif job.state == "done":
        parts.append(f'<button class="job-prompt" data-action="show" data-id="{job.verifies or job.id}" title="Show the video: {prompt}" dir="auto">{prompt}</button>')
        if fault:
            parts.append(f'<p class="job-fault">It {escape(fault)}.</p>')
    else:
        parts.append(f'<div class="job-prompt" title="{prompt}" dir="auto">{prompt}</div>')
        if job.state == "failed":
            parts.append(f'<p class="job-error">{escape(job.error or "It failed.")}</p>')
        if job.parked and job.state == "waiting":
            parts.append(f'{_parked_bar(job)}<p class="note">{_parked_words(job)} is on disk; it goes on by itself.</p>')
        if job.state == "waiting":
            places = [_icon("up", "↑", "Move up", job), _icon("down", "↓", "Move down", job), *([] if first else [_button("first", job, "Next")])] if several else []
            buttons = [*places, *([] if job.verifies else [_button("edit", job), _button("copy", job)]), _button("cancel", job)]
        else:
            buttons = [f"<span>seed {job.request.seed}</span>", _button("retry", job)]
        parts.append(f'<div class="job-foot">{"".join(buttons)}</div>')
    drag = ' draggable="true"' if job.state == "waiting" and several else ""
    return f'<li class="job {job.state}" data-job="{job.id}"{drag}>{"".join(parts)}</li>'


def _right(job: Job) -> str:
    if job.state == "running":
        return " · ".join(filter(None, (f"{round(100 * job.progress)} %", time_left(job))))
    if job.state == "paused":
        return f"{round(100 * job.progress)} %"
    if job.state == "waiting":
        return f"seed {job.request.seed}"
    if job.state == "done" and job.started and job.finished:
        return f"in {clock(job.finished - job.started)}"
    return ""


def _parked_words(job: Job) -> str:
    """Where an unfinished request lies on disk."""
    return f"Step {job.parked} of {job.num_steps}" if job.parked else "Before its first step"


def _parked_bar(job: Job) -> str:
    percent = round(100 * job.progress)
    return f'<progress max="100" value="{percent}" aria-label="Progress">{percent} %</progress>'


def _button(action: str, job: Job, word: str | None = None) -> str:
    word = word or action.capitalize()
    return f'<button class="small" data-action="{action}" data-id="{job.id}" aria-label="{word}: {escape(job.request.prompt)}">{word}</button>'


def _icon(action: str, sign: str, word: str, job: Job) -> str:
    return f'<button class="small icon" data-action="{action}" data-id="{job.id}" title="{word}" aria-label="{word}: {escape(job.request.prompt)}">{sign}</button>'

"""The queue as a list with a button for everything that can be done to a request."""

from __future__ import annotations

from collections.abc import Sequence

from ..queue import FINISHED, Job
from .words import clock, escape

SHOWN = 40
"""Rows drawn; the rest is counted."""
STATE_WORDS = {"waiting": "Waiting", "running": "Running", "done": "Done", "failed": "Failed", "cancelled": "Cancelled"}


def stage_words(job: Job) -> str:
    """What a running request is at: ``Step 5 of 20``."""
    if job.stage == "denoise":
        return f"Step {job.step} of {job.num_steps}"
    return {"text": "Reading the prompt", "decode": "Decoding the frames", "save": "Saving the file"}.get(job.stage, "Starting")


def render_queue(jobs: Sequence[Job], counts: dict[str, int], paused: bool) -> str:
    """HTML of the whole panel: heading, pause and clear, one row for each request."""
    open_count = counts["running"] + counts["waiting"]
    finished = sum(counts[state] for state in FINISHED)
    turn = "resume" if paused else "pause"
    tools = [f'<button class="quiet" data-action="{turn}" title="{_turn_hint(paused)}">{turn.capitalize()}</button>'] if open_count or paused else []
    if finished:
        tools.append('<button class="quiet" data-action="clear" title="Takes finished requests off this list; their videos stay">Clear finished</button>')
    head = f'<div class="panel-head"><h2>Queue</h2><span class="badge">{open_count}</span><span class="tools">{"".join(tools)}</span></div>'
    note = '<p class="note">Paused: what runs is finished, nothing new starts.</p>' if paused else ""
    if not jobs:
        return head + note + '<p class="empty">Nothing is queued. Every request waits its turn here, and survives a restart.</p>'
    rows = "".join(_row(job) for job in jobs[:SHOWN])
    left = open_count + finished - min(len(jobs), SHOWN)
    more = f'<p class="note">and {left} more</p>' if left > 0 else ""
    return f'{head}{note}<ul class="jobs">{rows}</ul>{more}'


def _turn_hint(paused: bool) -> str:
    return "Start requests again" if paused else "Let the running one end and start no others"


def _row(job: Job) -> str:
    parts = [f'<div class="job-head"><span class="dot"></span><span class="job-state">{STATE_WORDS[job.state]}</span><span class="job-right">{_right(job)}</span></div>']
    prompt = escape(job.request.prompt)
    if job.state == "running":
        percent = round(100 * job.progress)
        parts.append(f'<button class="job-prompt" data-action="follow" data-id="{job.id}" title="Watch it: {prompt}" dir="auto">{prompt}</button>')
        parts.append(f'<progress max="100" value="{percent}" aria-label="Progress">{percent} %</progress>')
        parts.append(f'<div class="job-foot"><span>{stage_words(job)}</span>{_button("cancel", job)}</div>')
    elif job.state == "done":
        parts.append(f'<button class="job-prompt" data-action="show" data-id="{job.id}" title="Show the video: {prompt}" dir="auto">{prompt}</button>')
    else:
        parts.append(f'<div class="job-prompt" title="{prompt}" dir="auto">{prompt}</div>')
        if job.state == "failed":
            parts.append(f'<p class="job-error">{escape(job.error or "It failed.")}</p>')
        action = "cancel" if job.state == "waiting" else "retry"
        parts.append(f'<div class="job-foot"><span>seed {job.request.seed}</span>{_button(action, job)}</div>')
    return f'<li class="job {job.state}" data-job="{job.id}">{"".join(parts)}</li>'


def _right(job: Job) -> str:
    if job.state == "running":
        left = "" if job.seconds_left is None else f" · {clock(job.seconds_left)} left"
        return f"{round(100 * job.progress)} %{left}"
    if job.state == "done" and job.started and job.finished:
        return f"in {clock(job.finished - job.started)}"
    return ""


def _button(action: str, job: Job) -> str:
    return f'<button class="small" data-action="{action}" data-id="{job.id}" aria-label="{action.capitalize()}: {escape(job.request.prompt)}">{action.capitalize()}</button>'

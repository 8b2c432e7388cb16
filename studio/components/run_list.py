"""Training runs: the list of them, and all that is to be seen of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from training.config import LATENT_TARGETS, USER_TARGETS
from training.runs import LOG, SAMPLE_FIGURE, Run

from ..chores import Chore
from ..db import size_words
from .chart import render_chart
from .words import about, escape, file_url, model_label, number

STATE_WORDS = {
    "starting": "Starting", "waiting": "Waits for the device", "preparing": "Preparing the clips", "training": "Training",
    "paused": "Paused", "finished": "Finished", "failed": "Failed", "stopped": "Stopped",
}  # fmt: skip
COLOURS = {"finished": "done", "failed": "failed", "stopped": "failed", "paused": "waiting"}
"""Classes of the dot before a state, as the queue has them; those at work run."""
SHOWN_SAMPLES = 8
LOG_LINES = 60
LISTED = 100


def render_runs(runs: Sequence[Run], chosen: str | None) -> str:
    """The list: what each is at, newest first."""
    head = f'<div class="panel-head"><h2>Runs</h2><span class="badge">{len(runs)}</span></div>'
    if not runs:
        return f'{head}<p class="empty">None yet. A run goes on when this page is closed, and when the studio is stopped; it is found here again.</p>'
    return f'{head}<ul class="runs">{"".join(_row(run, run.name == chosen) for run in runs)}</ul>'


def _row(run: Run, chosen: bool) -> str:
    total = run.config.total_steps if run.config else 0
    current = ' aria-current="true"' if chosen else ""
    bar = f'<progress max="{max(1, total)}" value="{min(run.step, total)}" aria-label="Steps">{run.step}</progress>' if run.working else ""
    target = run.config.target.replace("_", " ") if run.config else "unreadable settings"
    return (
        f'<li class="job {COLOURS.get(run.state, "running")}"><button class="run" data-action="run-open" data-id="{escape(run.name)}"{current} aria-label="Show the run {escape(run.name)}">'
        f'<span class="job-head"><span class="dot"></span><strong>{escape(run.name)}</strong><span class="job-right">{run.step} of {total or "?"}</span></span>'
        f'<span class="note">{STATE_WORDS.get(run.state, run.state)} · {escape(target)}</span>{bar}</button></li>'
    )


def render_run(run: Run | None, log_scale: bool, before: Sequence[Run] = ()) -> str:
    """What one run is doing: its state, its buttons, its figures and its curve; ``before`` are the runs that a waiting one waits for."""
    if run is None:
        return (
            '<div class="tray-empty"><h2>Teach it something of your own</h2><p>Give it a folder of short clips with captions, press Start, and watch the loss fall. '
            "No clips at hand? Render samples makes some, so that you can try all of it.</p></div>"
        )
    rows = run.metrics()
    steps = [row for row in rows if "loss" in row]
    validation = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    total = run.config.total_steps if run.config else run.step
    if run.state == "waiting":
        who = f"{' and '.join(other.name for other in before)} {'has' if len(before) == 1 else 'have'} it first" if before else "a video is being made on it"
        run = replace(run, message=f"It begins by itself when the device is free: {who}.")
    trouble = f'<div class="alert" role="alert">{escape(run.message)}</div>' if run.state in ("failed", "stopped") and run.message else f'<p class="note">{escape(run.message)}</p>' if run.message else ""
    scale = f'<button class="quiet" data-action="run-scale" aria-pressed="{str(log_scale).lower()}">{"Linear scale" if log_scale else "Log scale"}</button>' if len(steps) > 1 else ""
    return (
        f'<div class="panel-head"><h2>{escape(run.name)}</h2><span class="note">{STATE_WORDS.get(run.state, run.state)}</span><span class="tools">{_tools(run, before)}</span></div>'
        f"{trouble}{_figures(run, steps, total)}"
        f'<div class="panel-head"><h3>Loss</h3><span class="tools">{scale}</span></div>{render_chart([(row["step"], row["loss"]) for row in steps], validation, total, log_scale)}'
    )


def _tools(run: Run, before: Sequence[Run]) -> str:
    """What can be done with a run in its state, and with ``before`` it."""
    if run.working:
        steps = run.state == "training"  # before it does, its buttons are there all the same: Stop now keeps its place, and whoever is about to press it presses no other one
        return (
            _button("run-save", run, "Save now", "Writes a checkpoint, with its samples, after this step", disabled=not steps)
            + (_button("run-sample", run, "Sample now", "Makes the sample videos after this step, without a checkpoint", disabled=not steps) if run.makes_samples else "")
            + _button("run-pause", run, "Pause", "Writes a checkpoint and ends; Resume goes on from there", disabled=not steps)
            + _button("run-stop", run, "Stop now", "Ends at once; steps since the last checkpoint are lost")
            + (_button("run-first", run, "First", "Gets the device before the other runs that wait for it") if any(other.state == "waiting" for other in before) else "")
        )
    resume = _button("run-resume", run, "Resume", "Goes on from the last checkpoint", strong=True) if run.config and run.step < run.config.total_steps else ""
    return resume + _button("run-clone", run, "Clone", "Fills the form with what this run was started with, for another run") + _button("run-delete", run, "Delete", "Can be undone")


def _button(action: str, run: Run, word: str, hint: str, strong: bool = False, disabled: bool = False) -> str:
    name = escape(run.name)
    return f'<button class="small{" strong" if strong else ""}" data-action="{action}" data-id="{name}" title="{escape(hint)}" aria-label="{word}: {name}"{" disabled" if disabled else ""}>{word}</button>'


def _figures(run: Run, steps: Sequence[dict[str, float]], total: int) -> str:
    """Numbers of the last reading, and what is left."""
    last = steps[-1] if steps else {}
    seconds = last.get("seconds_per_step")
    figures = [("Step", f"{run.step} of {total}")]
    if run.state == "training" and seconds:
        figures.append(("Left", about(seconds * max(0, total - run.step))))
    if seconds:
        figures.append(("A step", f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"))
    if "data_wait" in last and seconds:
        figures.append(("Waits for data", f"{100 * last['data_wait'] / seconds:.1f} %"))
    if "learning_rate" in last:
        figures.append(("Learning rate", f"{last['learning_rate']:.3g}"))
    if "memory_gb" in last:
        figures.append(("Memory", f"{last['memory_gb']:.2f} GB"))
    if run.config:
        figures.append(("From", model_label(run.config.model)))
        figures.append(("Clips", Path(run.config.dataset).name if run.config.dataset else "Toy World"))
    return f'<dl class="figures">{"".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)}</dl>'


def render_checkpoints(run: Run | None) -> str:
    """What the run has kept, newest first, and what can be done with each."""
    kept = run.checkpoints() if run else []
    if not kept:
        return ""
    judged = {int(row["step"]): row["validation_loss"] for row in run.metrics() if "validation_loss" in row}
    usable = run.config is not None and run.config.target in USER_TARGETS
    steps = [int(path.name.split("-")[1]) for path in reversed(kept)]
    best = min((step for step in steps if step in judged), key=judged.get, default=None)
    rows = []
    for step in steps:
        loss = f"validation loss {judged[step]:.4f}" if step in judged else ""
        mark = '<span class="better">best</span>' if step == best and len(steps) > 1 else ""
        use = f'<button class="small strong" data-action="run-use" data-id="{escape(run.name)}|{step}" title="Fills the Generate form with it" aria-label="Use step {step} in Generate">Use in Generate</button>' if usable else ""
        lora = run.folder / "checkpoints" / f"step-{step}" / "lora.safetensors"
        if lora.is_file():
            use += f'<a class="small" href="{file_url(str(lora))}" download="{escape(run.name)}-step-{step}.safetensors" title="The LoRA as a safetensors file, {size_words(lora.stat().st_size)}">Download</a>'
        rows.append(f'<li><div><strong>Step {step}</strong>{mark}<p class="note">{loss}</p></div><div class="caption-buttons">{use}</div></li>')
    compare = _button("run-compare", run, "Compare them", "The same prompts and seeds with each of them, in one grid") if usable else ""
    return f'<div class="panel-head"><h3>Checkpoints</h3><span class="tools">{compare}</span></div><ul class="models">{"".join(rows)}</ul>'


def render_samples(run: Run | None) -> str:
    """The videos made on the way: a row for each prompt or held-out clip, a column for each checkpoint, the newest first; below them what was measured on them, the mean of each column."""
    samples = run.samples() if run else {}
    steps = [step for step in sorted(samples, reverse=True) if samples[step]][:SHOWN_SAMPLES]
    if not steps or run.config is None:
        return ""
    head = "".join(f'<th scope="col">step {step}</th>' for step in steps)
    rows = []
    for number_, prompt in _shown_in(run, samples):
        cells = "".join(f'<td><div class="cell playable">{_sample(samples[step], number_, prompt, step)}</div></td>' for step in steps)
        rows.append(f'<tr><th scope="row" dir="auto">{escape(prompt)}</th>{cells}</tr>')
    rows += _measured(run, steps)
    play = '<button class="small" data-play-all title="All from their first frame">Play together</button>'
    return (
        f'<div class="wall samples"><div class="panel-head"><h3>Samples</h3><span class="tools">{play}</span></div>'
        f'<div class="scroll"><table class="wall-table"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></div>'
    )


def _shown_in(run: Run, samples: Mapping[int, Sequence[Path]]) -> list[tuple[int, str]]:
    """The number in the files' names, and the words, of each row of samples."""
    if run.config.target in LATENT_TARGETS:
        return list(enumerate(run.config.validation_prompts))
    numbers = sorted({int(file.stem) for files in samples.values() for file in files if file.stem.isdecimal()})
    return [(number_, f"Held-out clip {number_ + 1}; on its right, as it is decoded") for number_ in numbers]


def _measured(run: Run, steps: Sequence[int]) -> list[str]:
    """Rows of the figures that the run noted about its samples."""
    from core.metrics import METRICS

    noted = {int(row["step"]): row for row in run.metrics() if any(name.startswith(SAMPLE_FIGURE) for name in row)}
    names = [name for name in METRICS if any(SAMPLE_FIGURE + name in row for row in noted.values())]
    rows = []
    for name in names:
        values = (noted.get(step, {}).get(SAMPLE_FIGURE + name) for step in steps)
        cells = "".join(f"<td>{'–' if value is None else f'{value:.3g}'}</td>" for value in values)
        rows.append(f'<tr><th scope="row">{escape(METRICS[name].label)}{f", {METRICS[name].unit}" if METRICS[name].unit else ""}</th>{cells}</tr>')
    return rows


def _sample(files: Sequence[Path], place: int, prompt: str, step: int) -> str:
    file = next((file for file in files if file.stem == f"{place:02}"), None)
    if file is None:
        return '<span class="cell-words">not made</span>'
    return f'<video muted loop playsinline tabindex="0" preload="auto" aria-label="{escape(prompt)}, step {step}" src="{file_url(str(file), file.stat().st_mtime_ns)}"></video>'


def render_log(run: Run | None, open: bool) -> str:
    """The last lines of what the process said, when asked for."""
    if run is None:
        return ""
    button = f'<button class="small" data-action="run-log" aria-expanded="{str(open).lower()}">{"Hide the log" if open else "Show the log"}</button>'
    if not open:
        return button
    lines = last_lines(run)
    if lines is None:
        return f'{button}<p class="note">It has no log: an earlier version started it from a shell, and kept none.</p>'
    return f'{button}<pre tabindex="0" aria-label="The end of {escape(run.folder / "log.txt")}"><code>{escape(chr(10).join(lines))}</code></pre>'


def last_lines(run: Run) -> list[str] | None:
    """The end of what the run's process said; None where it has no log."""
    file = run.folder / LOG
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 32_768))
        return stream.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]


def render_chore(chore: Chore | None) -> str:
    """What was found in a dataset, or how far the looking is."""
    if chore is None:
        return ""
    if chore.working:
        share = f'<progress max="{chore.of}" value="{chore.done}" aria-label="Clips">{chore.done}</progress>' if chore.of else ""
        count = f"{chore.done} of {chore.of}" if chore.of else ""
        return f'<div class="chore job running"><div class="job-foot"><span>{escape(chore.words)} {count}</span><button class="small" data-action="chore-cancel">Cancel</button></div>{share}</div>'
    close = '<button class="quiet" data-action="chore-cancel" aria-label="Close">✕</button>'
    if chore.error:
        return f'<div class="alert" role="alert">{escape(chore.error)}</div>{close}'
    if chore.report is not None and "usable" not in chore.report:
        return f'<div class="panel-head"><p class="note">{_made(chore.report)}</p><span class="tools">{close}</span></div>{_named(chore.report.get("left_out", ()), "left out")}'
    if chore.report is None:
        return f'<div class="panel-head"><p class="note">{chore.of} clips are ready in {escape(chore.dataset)}.</p><span class="tools">{close}</span></div>'
    return _report(chore.report, close)


def _made(report: dict) -> str:
    """What a chore other than a look has made."""
    if "address" in report:
        return f'It is at <a href="{escape(report["address"])}" target="_blank" rel="noopener">{escape(report["address"])}</a>.'
    if "clips" in report:
        return f"{report['clips']} clips of one shot each are in {escape(report['folder'])}."
    file = Path(report["file"])
    link = f' <a href="{file_url(str(file))}" download="{escape(file.name)}">Download</a>, {size_words(file.stat().st_size)}' if file.is_file() else ""
    return f"It is in {escape(file)}.{link}"


def _report(report: dict, close: str) -> str:
    usable, rejected, remarks = report["usable"], report["rejected"], report["remarks"]
    counted = lambda counts: ", ".join(f"{escape(name)} ({count})" for name, count in list(counts.items())[:4])  # noqa: E731
    shortest, middle, longest = report["lengths"] or (0, 0, 0)
    facts = f'{shortest:.1f} to {longest:.1f} s each, {middle:.1f} in the middle · {report["seconds"] / 60:.1f} min in all · {counted(report["sizes"])} · {counted(report["fps"])} frames a second · {report["captions"]} captions' if usable else ""
    lists = _named(rejected, "cannot be used") + _named(remarks, "worth a look")
    tiles = "".join(
        f'<figure class="tile playable"><div class="cell" style="--aspect:{item["width"] / item["height"]:.4f}"><video muted loop playsinline tabindex="0" preload="auto" aria-label="{escape(item["captions"][0])}" src="{file_url(item["file"])}"></video></div>'
        f'<figcaption><span dir="auto" title="{escape(" / ".join(item["captions"]))}">{escape(item["captions"][0])}</span><br>{item["num_frames"]} frames, {item["width"]}×{item["height"]}, {number(item["fps"])} fps</figcaption></figure>'
        for item in report["preview"]
    )
    shown = f'<div class="panel-head"><h3>What training sees</h3><span class="tools"><button class="quiet" data-play-all>Play together</button></span></div><div class="scroll"><div class="seen">{tiles}</div></div>' if tiles else ""
    return (
        f'<div class="report wall"><div class="panel-head"><h2>{usable} {"clip" if usable == 1 else "clips"} can be used</h2><span class="tools">{close}</span></div>'
        f'<p class="note">{escape(report["source"])}</p><p class="note">{facts}</p>{lists}{shown}</div>'
    )


def _named(items: Sequence[dict[str, str]], words: str) -> str:
    """Clips with what is said of each, folded away."""
    if not items:
        return ""
    rows = "".join(f'<li><strong>{escape(item["name"])}</strong> {escape(item["reason"])}</li>' for item in items[:LISTED])
    return f"<details><summary>{len(items)} {words}</summary><ul>{rows}</ul></details>"

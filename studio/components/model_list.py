"""The models as a list: what is here, what is in memory and where, what could be fetched and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.loras import made_from
from core.releases import TEXT_ENCODER, TEXT_ENCODER_BYTES, TEXT_ENCODER_DOWNLOAD_BYTES
from training.runs import Run

from ..chores import Chore
from ..db import size_words
from ..models import Model
from .words import escape, model_label

Status = dict[str, Any]
SHOWN_STEPS = 4
"""Checkpoints of a run, the newest ones."""


def render_models(
    models: Sequence[Model], hashes: Mapping[str, str | None], workers: Sequence[Status], can_load: bool, free: int, loras: Mapping[str, Path], runs: Sequence[Run], chore: Chore | None,
) -> str:  # fmt: skip
    """HTML of the lists. ``hashes`` are known or None by name, ``can_load`` whether a worker can be told to load one, ``free`` the bytes that may still be
    written where models go, ``loras`` the files by name, ``chore`` what is being installed."""
    trouble = "".join(f'<div class="alert" role="alert">{escape(worker["trouble"])}</div>' for worker in workers if worker["trouble"])
    aside = '<p class="note">A training run has the device: a model is loaded when the run ends or is paused.</p>' if any(worker["state"] == "waiting" for worker in workers) else ""
    here = "".join(_installed(model, hashes.get(model.name), workers, can_load) for model in models if model.installed)
    others = "".join(_release(model, free, chore) for model in models if not model.installed)
    return (
        f'<div class="panel-head"><h2>On this machine</h2></div>{trouble}{aside}{_chore(chore)}'
        f'<ul class="models">{here}</ul>'
        f'<div class="panel-head"><h2>LoRAs</h2></div>{_loras(loras)}'
        f"{_checkpoints(runs)}"
        f'<div class="panel-head"><h2>Mira\'s own</h2></div><p class="note">Free here: {free / 1e9:.0f} GB. A download needs twice its size for a while, since it is converted. Each model also needs the text encoder '
        f"{TEXT_ENCODER} once: {TEXT_ENCODER_DOWNLOAD_BYTES / 1e9:.0f} GB to download, {TEXT_ENCODER_BYTES / 1e9:.0f} GB kept.</p>"
        f'<ul class="models">{others}</ul>'
    )


def _installed(model: Model, digest: str | None, workers: Sequence[Status], can_load: bool) -> str:
    """A model with where it is in memory; with several devices, on each of them."""
    holders = [worker for worker in workers if worker["model"] is not None and worker["model"] in (model.name, model.path)]
    words = ["being loaded" if worker["state"] == "loading" else f"on {worker['device']} in {str(worker['dtype']).replace('bfloat', 'bf').replace('float', 'fp')}" for worker in holders]
    line = [size_words(model.size), ", ".join(words) or "not in memory", f"hash {digest or 'is being computed'}", *([model.source] if model.source else [])]
    buttons = _button("use-model", model, "Use", "Fills the form with this model", strong=True)
    if holders and can_load and "being loaded" not in words:
        buttons += '<button class="small" data-action="unload" title="Frees its memory; the next video loads it again">Unload</button>'
    elif not holders and can_load:
        buttons += _button("load", model, "Load", "Takes the place of the one in memory")
    return _row(model, escape(" · ".join(line)), escape(model.path or ""), buttons, bool(holders))


def _loras(loras: Mapping[str, Path]) -> str:
    """What can be added to a model, or how to come by one."""
    if not loras:
        return '<p class="note">None yet. Fine-tuning on your clips makes one, and so does a .safetensors file in the folder <code>loras</code> of the data folder.</p>'
    rows = "".join(
        f'<li><div><strong>{escape(name)}</strong><p class="note">{escape(_lora_line(path))}</p><p class="note source">{escape(path)}</p></div><div class="caption-buttons">'
        f'<button class="small strong" data-action="use-lora" data-id="{escape(name)}" title="Adds it to the form" aria-label="Use: {escape(name)}">Use</button></div></li>'
        for name, path in loras.items()
    )
    return f'<ul class="models">{rows}</ul>'


def _lora_line(path: Path) -> str:
    """Its size, and what its header says of its making."""
    try:
        made = made_from(path)
        size = size_words(path.stat().st_size)
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    told = [f"from the run {made['run']}"] if made.get("run") else []
    return " · ".join([size, *told, *([f"for {model_label(str(made['model']))}"] if made.get("model") else [])])


def _checkpoints(runs: Sequence[Run]) -> str:
    """What own runs have made so far; nothing where there are none."""
    rows = ""
    for run in runs:
        steps = [int(path.name.split("-")[1]) for path in run.checkpoints()]
        if not steps or run.config is None or not run.config.model:
            continue
        buttons = "".join(
            f'<button class="small" data-action="run-use" data-id="{escape(run.name)}|{step}" title="Fills the form with it" aria-label="Use step {step} of {escape(run.name)}">Use step {step}</button>'
            for step in reversed(steps[-SHOWN_STEPS:])
        )
        count = f"{len(steps)} {'checkpoint' if len(steps) == 1 else 'checkpoints'}, of {model_label(run.config.model)}"
        rows += f'<li><div><strong>{escape(run.name)}</strong><p class="note">{escape(count)}</p></div><div class="caption-buttons">{buttons}</div></li>'
    return f'<div class="panel-head"><h2>Checkpoints of your runs</h2></div><ul class="models">{rows}</ul>' if rows else ""


def _release(model: Model, free: int, chore: Chore | None) -> str:
    if model.release is None:
        return _row(model, "missing from this copy of the studio", "", "", False)
    size = int(model.release.gigabytes * 1e9)
    room = "" if free > 2 * size else f' · <b class="bad">needs about {2 * model.release.gigabytes:g} GB of disk, and {free / 1e9:.0f} GB are free</b>'
    source = f'<a href="{escape(model.release.page)}" target="_blank" rel="noreferrer">{escape(model.release.repo)}/{escape(model.release.file)}</a>'
    working = chore is not None and chore.working
    if working and chore.dataset == model.name:
        return _row(model, "being installed, see above", source, "", False)
    buttons = "" if working else _button("install", model, "Download", "Goes on where an earlier download stopped")
    return _row(model, f"about {model.release.gigabytes:g} GB to download{room}", source, buttons, False)


def _chore(chore: Chore | None) -> str:
    """What is being installed, how far it is, and how it ended."""
    if chore is None:
        return ""
    if chore.working:
        count = f"{size_words(chore.done)} of {size_words(chore.of)}" if chore.of else ""
        bar = f'<progress max="{chore.of}" value="{chore.done}" aria-label="{escape(chore.words)}">{count}</progress>' if chore.of else ""
        return f'<div class="chore job running" role="status"><div class="job-foot"><span>{escape(chore.words)} {count}</span><button class="small" data-action="install-cancel">Cancel</button></div>{bar}</div>'
    close = '<button class="quiet" data-action="install-cancel" aria-label="Close">✕</button>'
    if chore.error:
        return f'<div class="alert" role="alert">{escape(chore.error)}</div>{close}'
    return f'<div class="panel-head"><p class="note">{escape(chore.dataset)} is here.</p><span class="tools">{close}</span></div>'


def _row(model: Model, line: str, source: str, buttons: str, loaded: bool) -> str:
    """``line`` and ``source`` are HTML."""
    mark = ' class="loaded"' if loaded else ""
    name = model_label(model.name) if model.installed else model.name
    return f'<li{mark}><div><strong>{escape(name)}</strong><p class="note">{line}</p><p class="note source">{source}</p></div><div class="caption-buttons">{buttons}</div></li>'


def _button(action: str, model: Model, word: str, title: str, strong: bool = False) -> str:
    return f'<button class="small{" strong" if strong else ""}" data-action="{action}" data-id="{escape(model.name)}" title="{title}" aria-label="{word}: {escape(model.name)}">{word}</button>'

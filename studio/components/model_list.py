"""The models as a list: what is here, what is in memory, what could be fetched and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.releases import TEXT_ENCODER, TEXT_ENCODER_DOWNLOAD_BYTES

from ..db import size_words
from ..models import Model
from .words import escape, model_label


def render_models(models: Sequence[Model], status: dict[str, Any], free: int, loras: Mapping[str, Path]) -> str:
    """HTML of the lists; ``free`` are the bytes that may still be written where models go, ``loras`` the files by name."""
    trouble = f'<div class="alert" role="alert">{escape(status["trouble"])}</div>' if status["trouble"] else ""
    here = "".join(_installed(model, status) for model in models if model.installed)
    others = "".join(_release(model, status, free) for model in models if not model.installed)
    return (
        f'<div class="panel-head"><h2>On this machine</h2></div>{trouble}'
        f'<ul class="models">{here}</ul>'
        f'<div class="panel-head"><h2>LoRAs</h2></div>{_loras(loras)}'
        f'<div class="panel-head"><h2>Mira\'s own</h2></div><p class="note">Each one also needs the text encoder {TEXT_ENCODER} once: a download of {TEXT_ENCODER_DOWNLOAD_BYTES / 1e9:.0f} GB. '
        f"Free here: {free / 1e9:.0f} GB. A checkpoint that you have becomes a model with <code>python -m core.checkpoints convert FILE.pt FOLDER</code>.</p>"
        f'<ul class="models">{others}</ul>'
    )


def _installed(model: Model, status: dict[str, Any]) -> str:
    loaded = status["model"] in (model.name, model.path) and status["model"] is not None
    if loaded and status["state"] == "loading":
        state, buttons = "being loaded", ""
    elif loaded:
        state = f"on {status['device']} in {str(status['dtype']).replace('bfloat', 'bf').replace('float', 'fp')}"
        buttons = '<button class="small" data-action="unload" title="Frees its memory; the next video loads it again">Unload</button>'
    else:
        state, buttons = "not in memory", _button("load", model, "Load", "Takes the place of the one in memory")
    return _row(model, f"{size_words(model.size)} · {state}", model.path or "", _button("use-model", model, "Use", "Fills the form with this model", strong=True) + buttons, loaded)


def _loras(loras: Mapping[str, Path]) -> str:
    """What can be added to a model, or how to come by one."""
    if not loras:
        return (
            '<p class="note">None yet. <code>python -m training --config training/configs/lora_nano.yaml dataset=MY_CLIPS output_dir=workspace/runs/mine</code> trains one on your clips, '
            "and <code>python -m training use mine</code> puts it here.</p>"
        )
    rows = "".join(
        f'<li><div><strong>{escape(name)}</strong><p class="note">{size_words(path.stat().st_size)}</p><p class="note source">{escape(path)}</p></div><div class="caption-buttons">'
        f'<button class="small strong" data-action="use-lora" data-id="{escape(name)}" title="Adds it to the form" aria-label="Use: {escape(name)}">Use</button></div></li>'
        for name, path in loras.items()
    )
    return f'<ul class="models">{rows}</ul>'


def _release(model: Model, status: dict[str, Any], free: int) -> str:
    if model.release is None:
        return _row(model, "missing from this copy of the studio", "", "", False)
    size = int(model.release.gigabytes * 1e9)
    room = "" if free > 2 * size else f' · <b class="bad">needs about {2 * model.release.gigabytes:g} GB of disk</b>'
    if status["state"] == "loading" and status["model"] == model.name:
        return _row(model, "being downloaded and converted; the log has the progress", "", "", False)
    buttons = _button("load", model, "Download and load", "Resumes where an earlier download stopped")
    source = f'<a href="{escape(model.release.page)}" target="_blank" rel="noreferrer">{escape(model.release.repo)}/{escape(model.release.file)}</a>'
    return _row(model, f"about {model.release.gigabytes:g} GB to download{room}", source, buttons, False, html=True)


def _row(model: Model, line: str, source: str, buttons: str, loaded: bool, html: bool = False) -> str:
    line, source = (line, source) if html else (escape(line), escape(source))
    mark = ' class="loaded"' if loaded else ""
    return f'<li{mark}><div><strong>{escape(model_label(model.name) if model.installed else model.name)}</strong><p class="note">{line}</p><p class="note source">{source}</p></div><div class="caption-buttons">{buttons}</div></li>'


def _button(action: str, model: Model, word: str, title: str, strong: bool = False) -> str:
    return f'<button class="small{" strong" if strong else ""}" data-action="{action}" data-id="{escape(model.name)}" title="{title}" aria-label="{word}: {escape(model.name)}">{word}</button>'

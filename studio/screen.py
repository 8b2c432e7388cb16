"""What one browser tab shows, and which of its panes have to be drawn again."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from core.files import WriteError
from core.lineage import base_model
from core.loras import installed_loras
from core.presets import default_preset
from core.types import RequestError
from core.video_io import VideoError
from training.config import ConfigError

from .compare_screen import COMPARE_ACTIONS, COMPARE_PANES, Blind, compare_act, compare_key, compare_panes
from .components.cards import render_grid, render_strip, render_table, render_trash
from .components.model_list import render_models
from .components.queue_list import SHOWN as QUEUE_PAGE
from .components.queue_list import render_queue
from .components.viewer import render_examples, render_running, render_video, render_waiting
from .components.wall import render_cells, render_wall
from .components.words import escape, file_url, model_label
from .db import StorageError, free_bytes
from .comparison import measured_facts
from .downloads import file_facts, write_gif, write_plain, write_zip
from .estimate import seconds_left
from .examples import example_prompts
from .exchange import export_queue
from .library import Query, Video
from .models import Model
from .queue import LISTED, load_request
from .services import Services
from .training_screen import TRAINING_ACTIONS, TRAINING_PANES, training_act, training_key, training_panes
from .walls import Wall

PANES = ("painted", "kept", "device", "viewer", "cells", "strip", "queue", "gallery", "models", "toast", *COMPARE_PANES, *TRAINING_PANES)
STRIP_VIDEOS = 24
GALLERY_PAGE = 24
UNDOS = 20
"""How many steps back there are."""


@dataclass
class Session:
    """One browser tab. It is changed in place by the events of its tab."""

    selected: str | None = None
    """The video that was picked; None follows the queue: what runs, else the newest video."""
    wall: str | None = None
    """The grid or drafts that the viewer shows while no video is picked."""
    editing: str | None = None
    """The waiting request that the form holds."""
    draft: tuple[Any, ...] | None = None
    """What the form held before a request or a video was put into it."""
    undos: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    """What Undo does, again and again, the newest last: words, 'video', 'cleared', 'cancelled', 'imported', 'preset', 'compare', 'vote' or 'run', ids (of a preset its name and settings, of an import what its presets replaced and then ids)."""
    trouble: str | None = None
    """Why the last button could not do what it says."""
    exported: str | None = None
    """The file that the page downloads now."""
    handed_out: int = 0
    """How many files were: each has a message of its own, also when it is the same file again."""
    compared: tuple[str, ...] = ()
    """Ids of the videos on the Compare tab, in their order."""
    blind: Blind | None = None
    """The blind test, while it is open."""
    run: str | None = None
    """The training run that was picked; None follows the one at work, else the newest."""
    log_scale: bool = True
    """Whether losses are drawn on a logarithmic scale."""
    run_log: bool = False
    """Whether the end of the run's log stands below it."""
    smooth: bool = False
    """Whether videos are shown with frames put in between."""
    details: bool = False
    """Whether all that a video's file tells stands below it."""
    table: bool = False
    """The gallery is a table of what was measured."""
    table_order: str = ""
    """The metric that the table is sorted by; with a minus before it the smallest comes first."""
    query: Query = Query()
    """What the gallery shows."""
    queue_shown: int = QUEUE_PAGE
    """Rows of the queue that are drawn."""
    shown: int = GALLERY_PAGE
    """How many videos the gallery shows."""
    key: Any = None
    """What the panes were drawn from."""
    sent: dict[str, Any] = field(default_factory=dict)
    """The panes as the browser was last sent them."""
    painted: int = 0
    """How many paintings were sent that drew anything; the browser says with each poll which one it has."""
    drawn: dict[str, int] = field(default_factory=dict)
    """In which of them each pane was last drawn."""

    @property
    def undo(self) -> tuple[str, str, tuple[str, ...]] | None:
        """What Undo does now."""
        return self.undos[-1] if self.undos else None

    @property
    def toast(self) -> str:
        """Which message the page shows: what its buttons mean, when others have come meanwhile."""
        return f"{zlib.crc32(repr((self.trouble, self.exported, self.handed_out, self.undos)).encode()):08x}"

    def offer_undo(self, words: str, kind: str, ids: Iterable[str]) -> None:
        """Say what was done, with a way back beside it; when that has been gone, the ones before it come up again."""
        self.undos = [*self.undos, (words, kind, tuple(ids))][-UNDOS:]
        self.exported = None

    def hand_out(self, file: Path) -> None:
        """Have the browser download ``file``, also when it has had it before."""
        self.exported, self.key = str(file), None
        self.handed_out += 1
        self.sent.pop("toast", None)


class Screen:
    """Draws the panes of a session from the services."""

    def __init__(self, services: Services):
        self.services = services
        self._painting = threading.Lock()
        self.names = tuple(name for name in PANES if services.trains or name not in TRAINING_PANES)
        """The panes that there are, in the order in which ``paint`` gives them."""

    def paint(self, session: Session) -> list[Any]:
        """The number of this painting and HTML for each pane, in the order of ``names``; ``gr.skip()`` for what is as the browser has it: a video plays on, a list keeps its place.

        One at a time, so that what a slow poll has drawn is not sent after the answer of a button that was pressed meanwhile.
        """
        with self._painting:
            return self._paint(session)

    def poll(self, session: Session, seen: str) -> list[Any]:
        """``paint`` for a browser that found a new ``Services.version``, or a painting that it has not confirmed: what came after number ``seen``, which it has, is drawn again.

        Two answers may reach a browser in another order than they left in; without this a pane that was overwritten by an older one would stay so.
        """
        with self._painting:
            late = [name for name, number in session.drawn.items() if number > int(seen or 0)]
            if late:
                session.key = None
                for name in late:
                    session.sent.pop(name, None)
            return self._paint(session)

    def _paint(self, session: Session) -> list[Any]:
        services = self.services
        status = services.executor.status()
        chosen = session.editing, session.draft, session.selected, session.wall, session.toast, session.smooth, session.details, session.table, session.table_order, session.query, session.shown, session.queue_shown
        key = services.version(), chosen, compare_key(session), training_key(session)
        if key == session.key:
            return [gr.skip()] * len(self.names)
        panes = self._panes(session, status)
        changed = {name: pane for name, pane in panes.items() if name not in session.sent or session.sent[name] != pane}
        session.key, session.sent = key, panes
        if changed:
            session.painted += 1
            session.drawn.update(dict.fromkeys(changed, session.painted))
            changed["painted"] = str(session.painted)
        return [changed.get(name, gr.skip()) for name in self.names]

    def _panes(self, session: Session, status: dict[str, Any]) -> dict[str, Any]:
        queue, library = self.services.queue, self.services.library
        videos = library.list(limit=STRIP_VIDEOS)
        found, total = library.list(session.query, session.shown), library.count(session.query)
        jobs, paused, counts = queue.list(limit=max(LISTED, session.queue_shown)), queue.paused, queue.counts()
        viewer, current = self._viewer(session, status, videos, jobs, paused)
        wall = self.services.walls.get(session.wall) if session.wall else None
        return {
            "kept": render_kept(session),
            "device": render_device(status, self.services.default_model),
            "viewer": viewer,
            "cells": self._cells(wall),
            "strip": render_strip(videos, current),
            "queue": render_queue(jobs, counts, paused, seconds_left(self.services, jobs, counts["waiting"]), library.faults(), session.queue_shown),
            "gallery": self._gallery(session, found, total),
            "models": self._models_pane(status),
            "toast": render_toast(session),
            **compare_panes(self.services, session, library.count()),
            **(training_panes(self.services, session) if self.services.trains else {}),
        }

    def _gallery(self, session: Session, found: list[Video], total: int) -> str:
        if session.query.deleted:
            library = self.services.library
            return render_trash(found, total, session.query.narrows, GALLERY_PAGE, library.count(Query(deleted=True)), library.trash_bytes())
        examples = example_prompts(base_model(self.services.default_model, self.services.data_dir))
        if not session.table:
            return render_grid(found, total, session.query.narrows, GALLERY_PAGE, examples)
        return render_table(found, total, session.query.narrows, GALLERY_PAGE, self.services.comparisons.measured_each(found), session.table_order, examples)

    def _viewer(self, session: Session, status: dict[str, Any], videos: list[Video], jobs: list[Any], paused: bool) -> tuple[str, str | None]:
        """The viewer, and the id of the video in it."""
        video = self.services.library.get(session.selected) if session.selected else None
        if video is None:
            session.selected = None
            wall = self.services.walls.get(session.wall) if session.wall else None
            first = self.services.queue.get(wall.cells[0]) if wall else None
            if first is not None:
                return render_wall(wall, first.request.prompt, first.request.width / first.request.height), None
            running = next((job for job in jobs if job.state == "running"), None)
            if running is not None:
                return render_running(running), None
            waiting = next((job for job in jobs if job.state == "waiting"), None)
            if waiting is not None and not (paused and videos):
                return render_waiting(waiting, 0, status, paused), None
            video = videos[0] if videos else None
        if video is not None:
            return render_video(video, self.services.walls.of(video.id), self.services.comparisons.smoothed(video) if session.smooth else None, [*file_facts(video), *measured_facts(self.services.comparisons.measures([video]))] if session.details else ()), video.id
        model = base_model(self.services.default_model, self.services.data_dir)
        preset = default_preset(model)
        return render_examples(example_prompts(model), preset.width, preset.height), None

    def _picked(self, ids: str) -> list[Video]:
        """The videos of these ids, with commas between them. Raises RequestError when there are none."""
        videos = [video for id in ids.split(",") if (video := self.services.library.get(id))]
        if not videos:
            raise RequestError("id", "Tick some videos first.")
        return videos

    def _restore(self, session: Session, ids: Iterable[str]) -> list[str]:
        """Bring back those of these videos that are in the trash; their ids. Raises RequestError when none is."""
        library = self.services.library
        found = [id for id in ids if library.get(id, deleted=True)]
        if not found:
            raise RequestError("id", "None of these videos is in the trash any more: they were brought back, or removed for good.")
        library.undelete(*found)
        self._forget_deleted(session)
        return found

    def _forget_deleted(self, session: Session) -> None:
        """Undo no longer offers to bring back what is not in the trash."""
        session.undos = [undo for undo in session.undos if undo[1] != "video" or any(self.services.library.get(id, deleted=True) for id in undo[2])]

    def _models(self, status: dict[str, Any]) -> list[Model]:
        """All that are known, and the one in memory, which may be any folder."""
        models = self.services.models.list()
        loaded = status["model"] and self.services.models.get(str(status["model"]))
        return models if not loaded or loaded.path in {model.path for model in models} else [loaded, *models]

    def _models_pane(self, status: dict[str, Any]) -> str:
        services = self.services
        models = self._models(status)
        hashes = {model.name: services.models.hash(model) for model in models if model.installed}
        runs = services.runs.list() if services.trains else []
        return render_models(models, hashes, services.executor.statuses(), not services.executor.inside_events, free_bytes(services.data_dir), installed_loras(services.data_dir), runs, services.installs.current)

    def _cells(self, wall: Wall | None) -> str:
        if wall is None:
            return ""
        jobs = {id: job for id in wall.cells if (job := self.services.queue.get(id))}
        return render_cells(jobs, {id: video for id in jobs if (video := self.services.library.get(id))})

    def act(self, session: Session, action: str, id: str) -> bool:
        """Do what a button of a pane says. False when it could not be done; the page then says why, on any tab."""
        shown, trouble, session.trouble = session.toast, session.trouble, None
        if action == "dismiss" and trouble is not None:
            return True
        try:
            self._act(session, action, id, shown)
        except (ConfigError, RequestError, StorageError, VideoError, WriteError) as error:
            session.trouble = str(error)
        return session.trouble is None

    def _act(self, session: Session, action: str, id: str, shown: str) -> None:
        queue, library = self.services.queue, self.services.library
        match action:
            case "cancel":
                if queue.cancel(id):
                    session.offer_undo("Request cancelled.", "cancelled", (id,))
            case "retry":
                queue.retry(id)
                session.selected = None
            case "pause-request":
                queue.pause_request(id)
            case "resume-request":
                queue.resume_request(id)
            case "pause":
                queue.pause()
            case "resume":
                queue.resume()
            case "clear":
                ids = tuple(queue.clear_finished())
                session.offer_undo(f"{len(ids)} finished {'request' if len(ids) == 1 else 'requests'} cleared; the videos stay.", "cleared", ids)
            case "cancel-waiting":
                ids = tuple(queue.cancel_waiting())
                session.offer_undo(f"{len(ids)} waiting {'request' if len(ids) == 1 else 'requests'} cancelled.", "cancelled", ids)
            case "cancel-many":
                ids = tuple(queue.cancel_many(id.split(",")))
                if not ids:
                    raise RequestError("id", "All of the ticked requests are finished; there is nothing to cancel.")
                session.offer_undo(f"{len(ids)} {'request' if len(ids) == 1 else 'requests'} cancelled.", "cancelled", ids)
            case "retry-many":
                if not queue.retry_many(id.split(",")):
                    raise RequestError("id", "None of the ticked requests has failed or was cancelled; there is nothing to retry.")
                session.selected = None
            case "copy-many":
                queue.copy_many(id.split(","))
            case "first-many":
                queue.move_first(id.split(","))
            case "up" | "down" | "first":
                queue.move(id, action)
            case "place":
                moved, _, before = id.partition(">")
                queue.move(moved, before)
            case "export":
                session.hand_out(export_queue(self.services))
            case "copy":
                job = queue.get(id)
                if job is None:
                    raise RequestError("id", "That request is gone.")
                queue.enqueue(job.request)
            case "load":
                self.services.models.require(id)
                self.services.executor.load(id)
            case "install":
                self.services.models.require_listed(id)
                self.services.installs.install(id)
            case "install-cancel":
                self.services.installs.cancel()
            case "unload":
                self.services.executor.unload()
            case "follow":
                session.selected = session.wall = None
            case "wall":
                session.selected, session.wall = None, id
            case "wall-close":
                session.wall = None
            case "full":
                id, *picked = id.split(",")
                self.services.walls.enqueue_full(id, picked)
                session.selected = session.wall = None
            case "show":
                if library.get(id) is None:
                    raise RequestError("id", "That video was deleted.")
                session.selected = id
            case "vary":
                video = library.get(id)
                if video is None:
                    raise RequestError("id", "That video was deleted.")
                queue.enqueue(video.request.replace(seed=None))
                session.selected = None
            case "smooth":
                session.smooth = not session.smooth
                self.services.comparisons.forget_failures()
            case "details":
                session.details = not session.details
                self.services.comparisons.forget_failures()
            case "gallery-table":
                session.table = not session.table
                self.services.comparisons.forget_failures()
            case "gallery-order":
                session.table_order = id
            case "verify":
                video = library.require_settings(id)
                queue.verify(video.id, video.request)
            case "star":
                video = library.get(id)
                library.set_favourite([id], not (video is not None and video.favourite))
            case "delete":
                library.delete(id)
                session.offer_undo("Video deleted.", "video", (id,))
            case "delete-many":
                ids = tuple(video.id for video in self._picked(id))
                library.delete(*ids)
                session.offer_undo("Video deleted." if len(ids) == 1 else f"{len(ids)} videos deleted.", "video", ids)
            case "restore":
                self._restore(session, id.split(","))
            case "empty-trash":
                library.purge(0)
                self._forget_deleted(session)
            case "star-many" | "unstar-many":
                library.set_favourite([video.id for video in self._picked(id)], action == "star-many")
            case "tag-many" | "untag-many":
                tag, _, ids = id.rpartition("|")
                library.tag([video.id for video in self._picked(ids)], tag, action == "tag-many")
            case "zip" | "zip-plain":
                session.hand_out(write_zip([library.require_file(video.id) for video in self._picked(id)], self.services.exports, settings=action == "zip"))
            case "gif" | "plain":
                write = write_gif if action == "gif" else write_plain
                session.hand_out(write(library.require_file(id), self.services.exports))
            case "undo" if session.undo is not None and id in ("", shown):
                _, kind, ids = session.undos.pop()
                if kind == "video":
                    found = self._restore(session, ids)
                    session.selected = found[0] if len(found) == 1 else session.selected
                elif kind == "cancelled":
                    queue.reinstate(ids)
                elif kind == "imported":
                    queue.cancel_many(ids[1:])
                    self.services.own_presets.put_back(json.loads(ids[0]))
                elif kind == "preset":
                    self.services.own_presets.save(ids[0], load_request(ids[1]))
                elif kind == "compare":
                    session.compared = ids
                elif kind == "vote":
                    self.services.votes.retract(int(ids[0]))
                elif kind == "run":
                    session.run = self.services.runs.restore(ids[0]).name
                else:
                    queue.restore(ids)
            case _ if action in COMPARE_ACTIONS:
                compare_act(self.services, session, action, id)
            case _ if action in TRAINING_ACTIONS and self.services.trains:
                training_act(self.services, session, action, id)
            case "dismiss" if id in ("", shown):
                if session.exported is not None:
                    session.exported = None
                else:
                    session.undos.clear()
            case "compare-open" if session.undo is not None and id in ("", shown):
                session.undos.pop()
            case "more":
                session.shown += GALLERY_PAGE
            case "more-requests":
                session.queue_shown += QUEUE_PAGE


def read_message(message: str) -> tuple[str, str]:
    """The action and the id of a bus's ``action:id:nonce``."""
    action, _, rest = message.partition(":")
    return action, rest.rpartition(":")[0]  # the id may hold colons itself, as a model's does


def render_kept(session: Session) -> str:
    """What assets/studio.js keeps for the next visit; the element itself is not seen. It is on the page from the start, as a tab's panes are not before the tab is opened."""
    edit = json.dumps({"editing": session.editing, "draft": session.draft}) if session.editing or session.draft else ""
    return f'<div hidden data-compared="{",".join(session.compared)}" data-edit="{escape(edit)}"></div>'


def render_device(status: dict[str, Any], default_model: str) -> str:
    """The model at hand and where it runs."""
    words = {"starting": "loading", "loading": "loading", "ready": "ready", "busy": "working", "waiting": "waits for a training run", "stopped": "stopped"}[str(status["state"])]
    parts = [model_label(str(status["model"] or default_model)), *(str(status[name]).replace("bfloat", "bf").replace("float", "fp") for name in ("device", "dtype") if status[name]), words]
    spans = "".join(f"<span>{escape(part)}</span>" for part in parts)
    error = f'<p class="device-error" role="status">{escape(status["error"])}</p>' if status["error"] else ""
    return f'<div class="device {status["state"]}" title="The model in memory and the device it runs on"><span class="dot"></span>{spans}</div>{error}'


def render_toast(session: Session) -> str:
    """What could not be done, what was just removed, and the way back. Its buttons say which message they belong to: a late click leaves the next one alone."""
    mine = f'data-id="{session.toast}"'
    if session.trouble is not None:
        return f'<div class="toast bad" role="alert"><span>{escape(session.trouble)}</span><button class="quiet" data-action="dismiss" {mine} aria-label="Dismiss">✕</button></div>'
    if session.exported is not None:
        link = f'<a class="strong" href="{file_url(session.exported)}" download="{escape(Path(session.exported).name)}" data-now>Download</a>'
        return f'<div class="toast" role="status"><span>Your file is ready.</span>{link}<button class="quiet" data-action="dismiss" {mine} aria-label="Dismiss">✕</button></div>'
    if session.undo is None:
        return ""
    words, kind, ids = session.undo
    buttons = "" if kind == "compare" and ids == session.compared else f'<button class="strong" data-action="undo" {mine}>Undo</button>'
    if kind == "compare" and session.compared:
        buttons += f'<button class="strong" data-action="compare-open" {mine}>Open Compare</button>'
    return (
        f'<div class="toast" role="status"><span>{escape(words)}</span>{buttons}'
        f'<button class="quiet" data-action="dismiss" {mine} aria-label="Dismiss">✕</button></div>'
    )

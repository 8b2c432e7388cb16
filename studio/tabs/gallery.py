"""The Gallery tab: every finished video, searched, filtered and sorted; what can be done to many at once stands above them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..components.words import model_label
from ..library import Query
from ..screen import GALLERY_PAGE, Session

if TYPE_CHECKING:
    from ..ui import Page

SINCE = [("Any time", 0), ("Today", 1), ("7 days", 7), ("30 days", 30)]
ORDERS = [("Newest first", "newest"), ("Oldest first", "oldest"), ("By prompt", "prompt"), ("Slowest first", "slowest")]
MANY_TOOLS = (
    '<div class="picked" data-picks="video" role="group" aria-label="Selected videos"><span class="note" data-picked-count="Tick videos to work on many at once." role="status">Tick videos to work on many at once.</span>'
    '<button class="quiet" data-pick-all>Select all shown</button><span class="for-picked" hidden><button class="quiet" data-pick-none>Select none</button>'
    '<button class="small" data-action="star-many" data-with="video">Star</button><button class="small" data-action="unstar-many" data-with="video">Unstar</button>'
    '<input class="tag-box" data-tag placeholder="tag" aria-label="Tag" maxlength="40"><button class="small" data-action="tag-many" data-with="video" data-with-tag>Add tag</button>'
    '<button class="small" data-action="untag-many" data-with="video" data-with-tag>Remove tag</button>'
    '<button class="small" data-action="zip" data-with="video">Download zip</button><button class="small" data-action="zip-plain" data-with="video" title="The same mp4s, without the prompts and settings in them">Zip without settings</button><button class="small" data-action="delete-many" data-with="video">Delete</button></span></div>'
)
KEYS = '<p class="note keys"><kbd>←</kbd> <kbd>→</kbd> move, <kbd>Enter</kbd> shows, <kbd>S</kbd> stars, <kbd>X</kbd> selects, <kbd>Delete</kbd> deletes, <kbd>/</kbd> searches</p>'


def layout(page: Page) -> list[gr.components.Component]:
    """Build the widgets: search, starred, model, preset, tag, run, since, order and deleted, which make a Query."""
    with gr.Row(elem_id="gallery-tools"):
        search = gr.Textbox(label="Search prompts and #tags", show_label=False, placeholder="Search prompts and #tags", container=False, max_lines=1, elem_id="gallery-search")
        model = gr.Dropdown([("All models", "")], value="", label="Model", show_label=False, container=False, min_width=120, elem_id="gallery-model", filterable=False)
        preset = gr.Dropdown([("All presets", "")], value="", label="Preset", show_label=False, container=False, min_width=120, elem_id="gallery-preset", filterable=False)
        tag = gr.Dropdown([("All tags", "")], value="", label="Tag", show_label=False, container=False, min_width=120, elem_id="gallery-tag", filterable=False)
        run = gr.Dropdown([("All runs", "")], value="", label="Training run", show_label=False, container=False, min_width=120, elem_id="gallery-run", filterable=False, visible=page.services.trains)
        since = gr.Dropdown(SINCE, value=0, label="Made", show_label=False, container=False, min_width=120, elem_id="gallery-since", filterable=False)
        order = gr.Dropdown(ORDERS, value="newest", label="Order", show_label=False, container=False, min_width=120, elem_id="gallery-order", filterable=False)
        starred = gr.Checkbox(label="Starred only", container=False, elem_id="gallery-starred")
        deleted = gr.Checkbox(label="Deleted", container=False, elem_id="gallery-deleted")
    gr.HTML(MANY_TOOLS, elem_id="gallery-many")
    page.panes["gallery"] = gr.HTML(elem_id="gallery")
    gr.HTML(KEYS)
    return [search, starred, model, preset, tag, run, since, order, deleted]


def wire(page: Page, tab: gr.Tab, widgets: list[gr.components.Component]) -> None:
    """Connect the widgets."""

    def find(session: Session, search: str, starred: bool, model: str, preset: str, tag: str, run: str, since: int, order: str, deleted: bool) -> list[Any]:
        session.query = Query(search or "", starred, model or None, preset or None, tag or None, run or None, since or None, order, deleted)
        session.shown = GALLERY_PAGE
        return page.screen.paint(session)

    def choices(model: str, preset: str, tag: str, run: str) -> list[Any]:
        """What there are videos of; a chosen value stays."""
        found, updates = page.services.library.choices(), []
        for name, chosen, everything in (("model", model, "All models"), ("preset", preset, "All presets"), ("tag", tag, "All tags"), ("run", run, "All runs")):
            names = found[name] + ([chosen] if chosen and chosen not in found[name] else [])
            updates.append(gr.update(choices=[(everything, ""), *((model_label(value) if name == "model" else value, value) for value in names)]))
        return updates

    def restore(text: str) -> list[Any]:
        """The filters and the order as the page was left; nothing where the browser has kept none. Gives ``kept``."""
        try:
            search, starred, *chosen, since, order = json.loads(text)
            if since not in dict(SINCE).values() or order not in dict(ORDERS).values() or not all(isinstance(value, str) for value in (search, *chosen)):
                raise ValueError(text)
            updates = choices(*chosen)
        except (TypeError, ValueError):
            return [gr.skip()] * len(kept)
        return [search, bool(starred), *({**update, "value": value} for update, value in zip(updates, chosen, strict=True)), since, order]

    lists, kept = widgets[2:6], widgets[:-1]  # the trash is a place to go to, and no filter
    keep = "(session, ...values) => { window.studio.keepGallery(values.slice(0, -1)); return [session, ...values]; }"
    back = tab.select(restore, page.buses["action"], kept, js="() => window.studio.keptGallery()", **page.event)
    back.then(None, js="() => window.studio.startKeepingGallery()", **page.event)
    page.greeted.then(find, [page.session, *widgets], page.outputs, **page.event)
    gr.on([widget.change for widget in widgets], find, [page.session, *widgets], page.outputs, js=keep, trigger_mode="always_last", **page.event)
    gr.on([tab.select, *(widget.focus for widget in lists)], choices, lists, lists, **page.event)

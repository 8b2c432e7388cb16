"""The Gallery tab: every finished video, searchable by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..screen import GALLERY_PAGE, Session

if TYPE_CHECKING:
    from ..ui import Page


@dataclass
class GalleryTab:
    """The widgets of the tab."""

    search: gr.Textbox
    starred: gr.Checkbox


def layout(page: Page) -> GalleryTab:
    """Build the widgets."""
    with gr.Row(elem_id="gallery-tools"):
        search = gr.Textbox(label="Search prompts", show_label=False, placeholder="Search prompts", container=False, max_lines=1, elem_id="gallery-search")
        starred = gr.Checkbox(label="Starred only", container=False, elem_id="gallery-starred")
    page.panes["gallery"] = gr.HTML(elem_id="gallery")
    return GalleryTab(search, starred)


def wire(page: Page, tab: GalleryTab) -> None:
    """Connect the widgets."""

    def find(session: Session, search: str, starred: bool) -> list[Any]:
        session.search, session.starred, session.shown = search, starred, GALLERY_PAGE
        return page.screen.paint(session)

    gr.on([tab.search.change, tab.starred.change], find, [page.session, tab.search, tab.starred], page.outputs, trigger_mode="always_last", **page.event)

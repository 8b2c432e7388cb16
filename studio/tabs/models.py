"""The Models tab: what is installed, what is in memory, what can be fetched, and checkpoint files made into models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from core.types import RequestError

from ..components.words import alert
from ..screen import Session
from ..tasks import begin_conversion

if TYPE_CHECKING:
    from ..ui import Page


def layout(page: Page) -> dict[str, Any]:
    """Build the pane, which the screen draws, and the form below it; the form's widgets by name."""
    page.panes["models"] = gr.HTML(elem_id="models")
    widgets: dict[str, Any] = {}
    with gr.Accordion("Convert a checkpoint file", open=False, elem_id="convert"):
        gr.HTML('<p class="note">A .pt file of Mira on the machine that the studio runs on becomes a model folder. One with a released name, such as 128-v0.pt, needs no YAML.</p>')
        with gr.Row():
            widgets["source"] = gr.Textbox("", label="Checkpoint file", placeholder="/path/to/MINE.pt", max_lines=1, min_width=200, elem_id="convert-source")
            widgets["config"] = gr.Textbox("", label="Mira's YAML, if needed", placeholder="/path/to/config.yaml", max_lines=1, min_width=200, elem_id="convert-config")
            widgets["name"] = gr.Textbox("", label="Name of the model", placeholder="the file's", max_lines=1, min_width=120, elem_id="convert-name")
        widgets["go"] = gr.Button("Convert", size="sm", elem_id="convert-go")
        widgets["error"] = gr.HTML(elem_id="convert-error")
    return widgets


def wire(page: Page, widgets: dict[str, Any]) -> None:
    """Connect the form."""

    def convert(session: Session, source: str, config: str, name: str) -> list[Any]:
        """Begin to convert. Gives error and panes."""
        try:
            begin_conversion(page.services, source.strip().strip('"'), config.strip().strip('"'), name.strip())
        except RequestError as problem:
            return [alert(str(problem)), *page.screen.paint(session)]
        return ["", *page.screen.paint(session)]

    form = [widgets[name] for name in ("source", "config", "name")]
    widgets["go"].click(convert, [page.session, *form], [widgets["error"], *page.outputs], **page.event)

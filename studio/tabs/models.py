"""The Models tab: what is installed, what is in memory, what can be fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

if TYPE_CHECKING:
    from ..ui import Page


def layout(page: Page) -> None:
    """Build the pane; the screen draws it."""
    page.panes["models"] = gr.HTML(elem_id="models")

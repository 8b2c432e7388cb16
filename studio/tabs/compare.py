"""The Compare tab: two to four videos under one clock, and the blind test. Its buttons reach the server through the action bus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from ..components.player import player

if TYPE_CHECKING:
    from ..ui import Page


def layout(page: Page) -> None:
    """Build the panes, which ``studio.compare_screen`` draws."""
    panes = page.panes
    with gr.Column(elem_id="compare", min_width=0):
        panes["tray"] = gr.HTML(elem_id="tray")
        panes["player"] = player("player")
        panes["facts"] = gr.HTML(elem_id="facts")
        with gr.Column(elem_id="blind-test", min_width=0):
            panes["blind"] = gr.HTML(elem_id="blind")
            panes["blind_player"] = player("blind-player")
            panes["verdict"] = gr.HTML(elem_id="verdict")

"""The System tab: versions, workers, memory, disk and the last errors, to be copied into a bug report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from ..components.words import escape
from ..diagnostics import as_text, last_errors, sections

if TYPE_CHECKING:
    from ..ui import Page


def layout() -> gr.HTML:
    """Build the pane."""
    return gr.HTML(elem_id="system")


def wire(page: Page, tab: gr.Tab, pane: gr.HTML) -> None:
    """Draw it whenever the tab is opened, and on request."""

    def show() -> str:
        parts, errors = sections(page.services), last_errors(page.services.data_dir / "logs")
        tables = "".join(
            f'<section><h2>{escape(title)}</h2><table class="facts">{"".join(f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)}</table></section>'
            for title, rows in parts
        )
        log = f'<pre tabindex="0" aria-label="Last errors">{escape(chr(10).join(errors))}</pre>' if errors else '<p class="empty">Nothing went wrong so far.</p>'
        return (
            f'<div class="panel-head"><h2>System</h2><span class="tools"><button class="small" data-copy="{escape(as_text(parts, errors))}">Copy for a bug report</button></span></div>'
            f'<div class="facts-grid">{tables}</div><section><h2>Last errors</h2>{log}</section>'
        )

    tab.select(show, None, pane, **page.event)

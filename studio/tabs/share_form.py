"""The part of the Training tab that takes a checkpoint elsewhere: as a file or a folder, or to the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from core.types import RequestError
from training.config import ConfigError

from ..components.words import alert
from ..screen import Session
from ..tasks import pack_checkpoint, push_checkpoint
from ..training_screen import chosen_run

if TYPE_CHECKING:
    from ..ui import Page

KINDS = {"lora": "LoRA file", "diffusers": "Diffusers folder", "mira": "Mira's own .pt", "hub": "Hugging Face Hub"}


def layout() -> dict[str, Any]:
    """Build the widgets, by name."""
    with gr.Accordion("Take it elsewhere", open=False, elem_id="share"):
        with gr.Row():
            widgets: dict[str, Any] = {"kind": gr.Dropdown([(words, kind) for kind, words in KINDS.items()], value="lora", label="As", min_width=120, filterable=False, elem_id="share-kind")}
            widgets["step"] = gr.Textbox("", label="Step", placeholder="the newest", max_lines=1, min_width=88, elem_id="share-step")
        with gr.Row(visible=False) as hub:
            widgets["repo"] = gr.Textbox("", label="Repository", placeholder="USER/NAME", max_lines=1, min_width=200, elem_id="share-repo")
            widgets["token"] = gr.Textbox("", label="Token", info="With the right to write. It is used once and kept nowhere.", type="password", max_lines=1, min_width=200, elem_id="share-token")
            widgets["private"] = gr.Checkbox(True, label="Private", min_width=88, elem_id="share-private")
        widgets["hub"] = hub
        widgets["write"] = gr.Button("Write it", size="sm", elem_id="share-write")
        widgets["error"] = gr.HTML(elem_id="share-error")
    return widgets


def wire(page: Page, widgets: dict[str, Any]) -> None:
    """Connect the widgets."""
    services, event = page.services, page.event

    def write(session: Session, kind: str, step: str, repo: str, token: str, private: bool) -> list[Any]:
        """Begin to write the shown run's checkpoint. Gives error, token and panes."""
        try:
            run = chosen_run(services.runs.list(), session)
            if run is None:
                raise ConfigError("There is no run yet.")
            if step.strip() and not step.strip().isdigit():
                raise ConfigError(f"Step is {step.strip()!r}; it must be a checkpoint's number, or empty for the newest.")
            number = int(step) if step.strip() else None
            if kind == "hub":
                push_checkpoint(services, run, number, repo, token, private)
            else:
                pack_checkpoint(services, run, number, kind)
        except (ConfigError, RequestError) as error:
            return [alert(str(error)), "", *page.screen.paint(session)]
        return ["", "", *page.screen.paint(session)]

    widgets["kind"].change(lambda kind: [gr.update(visible=kind == "hub"), gr.update(value="Send it" if kind == "hub" else "Write it")], widgets["kind"], [widgets["hub"], widgets["write"]], **event)
    widgets["write"].click(write, [page.session, *(widgets[name] for name in ("kind", "step", "repo", "token", "private"))], [widgets["error"], widgets["token"], *page.outputs], **event)

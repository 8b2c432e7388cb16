"""The part of the Generate tab that says what a clip starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.start import default_start_frames, is_picture
from core.types import GenerationRequest

from ..components.words import escape, file_url
from ..library import Video
from ..queue import is_own_file
from .form import START_FIELDS

if TYPE_CHECKING:
    from ..ui import Page
    from .generate import GenerateTab

NOTHING = '<p class="note">Open a picture above, drop one on the page, or press Continue or Change below a video.</p>'
CHANGE = 0.6
"""The strength that "Change" begins with."""


@dataclass
class StartForm:
    """The widgets beside the request's own fields."""

    box: gr.Accordion
    line: gr.HTML
    clear: gr.Button


def layout(fields: dict[str, gr.components.Component]) -> StartForm:
    """Build the widgets; those of START_FIELDS go into ``fields``."""
    fields["start_from"] = gr.Textbox("", label="start from", show_label=False, container=False, elem_id="start-from", elem_classes="offstage")
    with gr.Accordion("Start from a picture or a video", open=False, elem_id="start") as box:
        line = gr.HTML(NOTHING, elem_id="start-line")
        with gr.Row():
            fields["start_frames"] = gr.Number(None, label="Frames kept", precision=0, min_width=72, elem_id="start-frames", info="at the start")
            fields["strength"] = gr.Number(None, label="or change it by", minimum=0, maximum=1, step=0.05, min_width=72, elem_id="strength", info="0 nothing, 1 all")
        clear = gr.Button("Start from noise again", size="sm", elem_id="start-clear")
    return StartForm(box, line, clear)


def wire(page: Page, tab: GenerateTab, form: StartForm) -> None:
    """Connect the widgets."""
    fields = [tab.fields[name] for name in START_FIELDS]
    data_dir = page.services.data_dir

    def tell(path: str, start_frames: float | None, strength: float | None) -> str:
        return words(path, start_frames, strength) if path and is_own_file(path, data_dir) else NOTHING

    gr.on([widget.change for widget in fields], tell, fields, form.line, trigger_mode="always_last", **page.event)
    fields[0].change(lambda path: gr.update(open=bool(path)), fields[0], form.box, **page.event)
    for typed, other in (fields[1:], fields[:0:-1]):  # one of the two: a start that is kept, or one that is changed
        typed.input(lambda value: None if value else gr.skip(), typed, other, **page.event)
    form.clear.click(lambda: ["", None, None], None, fields, **page.event)


def words(path: str, start_frames: float | None, strength: float | None) -> str:
    """A thumbnail and one sentence on what the source, a file of the studio's own, is used for."""
    name = "the picture" if is_picture(path) else "the video"
    poster = Path(path) if is_picture(path) else Path(path).with_suffix(".jpg")
    picture = f'<img src="{file_url(str(poster))}" alt="">' if poster.is_file() else ""
    if not Path(path).is_file():
        says = "It is not there any more: choose another one."
    elif strength:
        says = f"The whole of {name} is noised and made anew by {strength:g}."
    elif start_frames == 1:
        says = f"The first frame is {name}." if is_picture(path) else f"The first frame is the last one of {name}."
    else:
        says = f"The first {start_frames or 'quarter of the'} frames are the last ones of {name}."
    return f'<div class="start-source">{picture}<p class="note">{escape(says)}</p></div>'


def without_strange_start(request: GenerationRequest, data_dir: Path) -> tuple[GenerationRequest, str]:
    """``request`` from noise where its start is no file of this studio's, and what to say of that; '' where nothing was dropped."""
    if not request.start_from or is_own_file(request.start_from, data_dir):
        return request, ""
    dropped = f"It was made from {Path(request.start_from).name} of another studio, which is not here: open that picture or video to start from it."
    return request.replace(**dict.fromkeys(START_FIELDS)), f'<p class="note">{escape(dropped)}</p>'


def continued(video: Video) -> GenerationRequest:
    """The request for a clip that begins with the end of ``video``."""
    return video.request.replace(start_from=video.path, start_frames=default_start_frames(video.path, video.num_frames), strength=None)


def changed(video: Video) -> GenerationRequest:
    """The request for a clip made out of ``video``."""
    return video.request.replace(start_from=video.path, start_frames=None, strength=CHANGE)


def from_picture(path: Path) -> dict[str, Any]:
    """The values of START_FIELDS for a picture of the studio's own."""
    return {"start_from": str(path), "start_frames": 1, "strength": None}

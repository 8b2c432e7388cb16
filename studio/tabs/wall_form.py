"""The parts of the Generate tab that queue a grid or drafts, below its button."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.types import GenerationRequest, RequestError

from ..components.words import alert
from ..db import StorageError
from ..estimate import estimate
from ..screen import Session
from ..walls import DRAFT_STEPS, FIELDS, MAX_AXES, Axis, axis_title, drafts, example, grid, parse_axis
from .form import requests_of

if TYPE_CHECKING:
    from ..services import Services
    from ..ui import Page
    from .generate import GenerateTab

AXIS_NAMES = ("Columns", "Rows", "Tables")
DRAFTS = 8


@dataclass
class WallForm:
    """The widgets."""

    axes: list[gr.components.Component]
    """Field and values of each axis in turn."""
    grid: gr.Button
    grid_error: gr.HTML
    grid_cost: gr.HTML
    drafts: gr.Number
    draft_steps: gr.Number
    make_drafts: gr.Button
    drafts_error: gr.HTML
    drafts_cost: gr.HTML

    @property
    def told(self) -> list[gr.components.Component]:
        """What ``tell`` tells."""
        return [self.grid, self.grid_error, self.grid_cost, self.drafts_cost]


def layout() -> WallForm:
    """Build the widgets."""
    axes: list[gr.components.Component] = []
    with gr.Accordion("Drafts first", open=False, elem_id="drafts"):
        gr.HTML('<p class="note">Quick tries of this prompt from many seeds. Tick the ones you like to make them in full from the same start.</p>')
        with gr.Row():
            draft_count = gr.Number(DRAFTS, label="Drafts", precision=0, min_width=72, elem_id="draft-count")
            draft_steps = gr.Number(DRAFT_STEPS, label="Steps of each", precision=0, min_width=72, elem_id="draft-steps")
        make_drafts = gr.Button("Make drafts", size="sm", elem_id="make-drafts")
        drafts_error = gr.HTML(elem_id="drafts-error")
        drafts_cost = gr.HTML(elem_id="drafts-cost", elem_classes="wall-cost")
    with gr.Accordion("Grid of settings", open=False, elem_id="grid"):
        gr.HTML('<p class="note">One video for each combination, shown in a table. Values stand between commas; 1..4 or 2..8:2 is a range.</p>')
        for index, name in enumerate(AXIS_NAMES[:MAX_AXES]):
            with gr.Row(elem_classes="axis"):
                field = gr.Dropdown([("(none)", ""), *((axis_title(field), field) for field in FIELDS)], value="guidance_scale" if index == 0 else "", label=name, min_width=100, elem_id=f"axis-{index}", filterable=False)
                axes += [field, gr.Textbox("", label="Values", placeholder=example("guidance_scale") if index == 0 else "", min_width=100, max_lines=1, elem_id=f"axis-{index}-values")]
        make_grid = gr.Button("Make the grid", size="sm", elem_id="make-grid")
        grid_error = gr.HTML(elem_id="grid-error")
        grid_cost = gr.HTML(elem_id="grid-cost", elem_classes="wall-cost")
    return WallForm(axes, make_grid, grid_error, grid_cost, draft_count, draft_steps, make_drafts, drafts_error, drafts_cost)


def base_of(services: Services, values: Sequence[Any]) -> GenerationRequest:
    """The one request that the form stands for. Raises RequestError."""
    requests = requests_of(services, tuple(values))
    if len(requests) > 1:
        raise RequestError("prompt", f"The form stands for {len(requests)} videos. A grid or drafts vary a single one: leave one prompt, and set Videos to 1.")
    return requests[0]


def axes_of(values: Sequence[Any]) -> list[Axis]:
    """Of each axis field and values in turn. Raises RequestError."""
    return [parse_axis(field, text or "") for field, text in zip(values[::2], values[1::2], strict=True) if field]


def tell(services: Services, values: Sequence[Any], walls: Sequence[Any]) -> tuple[str, str, str, str]:
    """For the form's values and those of axes, drafts and draft_steps: the grid button with what it does, what is wrong with the axes, what it costs, and what the drafts cost."""

    def cost(requests_of_wall: Callable[[], Sequence[GenerationRequest]]) -> str:
        """How long they take, and how much memory; nothing as long as the form stands for none."""
        try:
            return estimate(services, requests_of_wall())
        except RequestError:
            return ""

    *typed, count, steps = walls
    cost_of_drafts = cost(lambda: drafts(base_of(services, values), int(count or 0), int(steps or 0))[0])
    try:
        axes = axes_of(typed)
    except RequestError as error:
        return "Make the grid", alert(str(error)) if any(typed[1::2]) else "", "", cost_of_drafts
    if not axes:
        return "Make the grid", "", "", cost_of_drafts
    return f"Make the grid of {math.prod(len(axis.values) for axis in axes)} videos", "", cost(lambda: grid(base_of(services, values), axes)), cost_of_drafts


def wire(page: Page, tab: GenerateTab, form: WallForm) -> None:
    """Connect the widgets."""
    services, walls, event = page.services, page.services.walls, page.event

    def show(session: Session, make: Any) -> list[Any]:
        try:
            session.wall, session.selected = make(), None  # a request that is edited goes on being so, as the form goes on saying
        except (RequestError, StorageError) as error:
            return [alert(str(error)), *page.screen.paint(session)]
        return ["", *page.screen.paint(session)]

    def make_grid(session: Session, *values: Any) -> list[Any]:
        size = len(form.axes)
        return show(session, lambda: walls.enqueue_grid(base_of(services, values[:-size]), axes_of(values[-size:])))

    def make_drafts(session: Session, *values: Any) -> list[Any]:
        *plain, count, steps = values
        return show(session, lambda: walls.enqueue_drafts(base_of(services, plain), int(count or 0), int(steps or 0)))

    def hint(field: str) -> Any:
        return gr.update(placeholder=example(field) if field else "")

    page.then_work(form.grid.click(make_grid, [page.session, *tab.form, *form.axes], [form.grid_error, *page.outputs], **event))
    page.then_work(form.make_drafts.click(make_drafts, [page.session, *tab.form, form.drafts, form.draft_steps], [form.drafts_error, *page.outputs], **event))
    for field, values in zip(form.axes[::2], form.axes[1::2], strict=True):
        field.input(hint, field, values, **event)

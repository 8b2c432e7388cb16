"""The studio's page: the tabs, and what they share."""

from __future__ import annotations

import secrets
import zlib
from dataclasses import dataclass
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from . import api, frontend
from .components.theme import launch_options
from .once import Once
from .screen import Screen, Session
from .services import Services
from .tabs import compare, gallery, generate, models, system, training

__all__ = ["Page", "build", "launch_options"]

VERSION_PATH = "studio/version"
"""Where the page asks whether anything has changed."""
QUEUE_SECONDS = 0.02
"""How often Gradio looks into its queue of events; by itself it does so a thousand times a second, which takes a tenth of a core."""
QUEUE_EVENTS = 1000
"""How many events may wait in it: none waits for another, but on ZeroGPU Gradio by itself has room for one, and refuses what comes within QUEUE_SECONDS of that."""
API_PAGE = "endpoints"
"""Path of the page of the API."""
BUSES = ("action", "form", "training")
"""What a button inside a pane touches: panes alone, the form of the Generate tab too, or that of the Training tab. Gradio takes its time for each widget of an event."""
EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
"""Options of an event of the page itself: not an endpoint, without Gradio's spinner over what it changes, and outside Gradio's queue, which drops a
click that comes while the stream of the last answer is being closed."""


@dataclass
class Page:
    """What a tab needs to wire its events."""

    services: Services
    screen: Screen
    session: gr.State
    panes: dict[str, gr.HTML]
    buses: dict[str, gr.Textbox]
    """By BUSES: get ``action:id:nonce`` from assets/studio.js when a button inside a pane is pressed."""
    tabs: gr.Tabs
    event: dict[str, Any]
    greeted: Any = None
    """The event after which a page that was open while the studio was started again goes on; the Generate tab sets it."""

    @property
    def outputs(self) -> list[gr.HTML]:
        """The components that ``screen.paint`` draws, in its order."""
        return [self.panes[name] for name in self.screen.names]

    def then_work(self, event: Any) -> None:
        """Where requests run inside events, let another one follow ``event`` that works through what it has queued. Its answer may take long, so it goes through Gradio's queue."""
        if self.services.executor.inside_events:
            event.then(self.services.executor.work_through, None, None, **{**self.event, "queue": True}, concurrency_limit=None)


def serving(services: Services, demo: gr.Blocks) -> dict[str, Any]:
    """What the page's server does beside Gradio's own (of FastAPI's arguments). Faster: Gradio's files, and what each page asks for twice a second, which takes a tenth of an
    endpoint's time: which page this is, which start of the studio, and ``services.version()``, with spaces between them. Once: events that are sent again."""
    here = f"{fingerprint(demo)} {secrets.token_hex(4)}"

    async def version(_: Request) -> PlainTextResponse:  # a coroutine, and so without a thread of its own: it takes a tenth of a millisecond
        return PlainTextResponse(f"{here} {services.version()}")

    return {"routes": [Route(f"/{VERSION_PATH}", version), *frontend.routes()], "middleware": [Middleware(Once)]}


def fingerprint(demo: gr.Blocks) -> str:
    """The same for two pages whose widgets and events mean the same to a browser that has one of them open."""
    widgets = [(block._id, type(block).__name__, block.elem_id, getattr(block, "label", None)) for block in demo.blocks.values()]
    events = [(id, fn.targets, fn.js, [block._id for block in fn.inputs], [block._id for block in fn.outputs]) for id, fn in demo.fns.items()]
    return f"{zlib.crc32(repr((widgets, events, launch_options()['head'])).encode()):08x}"


def build(services: Services) -> gr.Blocks:
    """The page over ``services``, with the named endpoints of ``studio.api``."""
    screen = Screen(services)

    with gr.Blocks(title="Mira studio", fill_width=True, analytics_enabled=False) as demo:
        session = gr.State(Session())
        buses = {name: gr.Textbox(elem_id=f"{name}-bus", elem_classes="offstage", label="action", show_label=False, container=False, max_lines=1) for name in BUSES}
        painted = gr.Textbox(interactive=False, elem_id="painted", elem_classes="offstage", label="painted", show_label=False, container=False, max_lines=1)
        kept = gr.HTML(elem_id="kept", elem_classes="offstage")
        with gr.Row(elem_id="top"):
            gr.HTML('<div class="brand"><span class="mark" aria-hidden="true"></span><h1>Mira studio</h1></div>', elem_id="brand")
            device = gr.HTML(elem_id="device")
        toast = gr.HTML(elem_id="toast")
        with gr.Tabs(elem_id="tabs") as tabs:
            page = Page(services, screen, session, {"painted": painted, "kept": kept, "device": device, "toast": toast}, buses, tabs, EVENT)
            with gr.Tab("Generate", id="generate"):
                generate_tab = generate.layout(page)
            with gr.Tab("Compare", id="compare"):
                compare.layout(page)
            with gr.Tab("Gallery", id="gallery") as gallery_tab:
                gallery_widgets = gallery.layout(page)
            if services.trains:
                with gr.Tab("Training", id="training") as training_tab:
                    training_widgets = training.layout(page)
            with gr.Tab("Models", id="models"):
                models_widgets = models.layout(page)
            with gr.Tab("System", id="system") as system_tab:
                system_pane = system.layout()
        generate.wire(page, generate_tab)
        gallery.wire(page, gallery_tab, gallery_widgets)
        if services.trains:
            training.wire(page, training_tab, training_widgets)
        models.wire(page, models_widgets)
        system.wire(page, system_tab, system_pane)
        look = gr.Textbox(elem_id="look", elem_classes="offstage", label="look", show_label=False, container=False, max_lines=1)
        look.change(screen.poll, [session, painted], page.outputs, trigger_mode="always_last", **EVENT)  # assets/studio.js writes into it when there is something new
        gr.HTML(f'<a href="{API_PAGE}/">Use via API</a>', elem_id="foot")
    # Gradio makes a component of each argument of an endpoint. Clients need them, but the studio's page would build 54 of them each time it opens.
    with demo.route("Endpoints", API_PAGE, show_in_navbar=False):
        api.layout(services)
    demo.queue(max_size=QUEUE_EVENTS)
    demo._queue.sleep_when_free = QUEUE_SECONDS  # no argument of Gradio's sets it
    return demo

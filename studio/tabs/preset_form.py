"""The part of the Generate tab that keeps the user's own presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.files import WriteError
from core.types import RequestError

from ..components.words import alert, note
from ..own_presets import FIELDS
from ..queue import dump_request
from ..screen import Session
from .form import fill, requests_of

if TYPE_CHECKING:
    from ..ui import Page
    from .generate import GenerateTab


@dataclass
class PresetForm:
    """The widgets."""

    name: gr.Dropdown
    save: gr.Button
    delete: gr.Button
    line: gr.HTML


def layout(page: Page) -> PresetForm:
    """Build the widgets."""
    with gr.Accordion("My presets", open=False, elem_id="own-presets"):
        name = gr.Dropdown([], value=None, label="Name", info="Choose one to use it, or type a new name and save.", allow_custom_value=True, elem_id="own-preset")
        with gr.Row():
            save = gr.Button("Save these settings", size="sm", min_width=120, elem_id="save-preset")
            delete = gr.Button("Delete", size="sm", min_width=60, elem_id="delete-preset")
        line = gr.HTML(elem_id="preset-line")
    return PresetForm(name, save, delete, line)


def wire(page: Page, tab: GenerateTab, form: PresetForm) -> None:
    """Connect the widgets."""
    presets, event = page.services.own_presets, page.event
    filled = ("start_frames", *FIELDS)
    fields = [tab.fields[name] for name in filled]

    def names() -> Any:
        return gr.update(choices=presets.list())

    def use(name: str | None) -> list[Any]:
        """The form with the settings of that name; a name that is new changes nothing."""
        try:
            if not name or name not in presets.list():
                return [""] + [gr.skip()] * len(fields)
            values = fill(presets.get(name), page.services.data_dir)
        except RequestError as error:
            return [alert(str(error))] + [gr.skip()] * len(fields)
        if values["strength"] is None:  # then what is done with a source stays as the form says
            values["start_frames"] = values["strength"] = gr.skip()
        return [note(f"{name}: in use."), *(values[field] for field in filled)]

    def save(session: Session, name: str | None, *values: Any) -> list[Any]:
        strength = dict(zip(tab.fields, values))["strength"] or None  # kept also where there is no source yet
        try:
            replaced = presets.save(name or "", requests_of(page.services, ("any", *values[1:]))[0].replace(strength=strength))
        except (RequestError, WriteError) as error:
            return [gr.skip(), alert(str(error)), *page.screen.paint(session)]
        if replaced:
            session.offer_undo(f"Preset {name.strip()} replaced.", "preset", (name.strip(), dump_request(replaced)))
        return [names(), note(f"{name.strip()}: {'saved in place of the old one' if replaced else 'saved'}."), *page.screen.paint(session)]

    def delete(session: Session, name: str | None) -> list[Any]:
        try:
            settings = presets.delete(name or "")
        except (RequestError, WriteError) as error:
            return [gr.skip(), alert(str(error)), *page.screen.paint(session)]
        session.offer_undo(f"Preset {name} deleted.", "preset", (name, dump_request(settings)))
        return [gr.update(choices=presets.list(), value=None), "", *page.screen.paint(session)]

    form.name.focus(names, None, form.name, **event)
    form.name.input(use, form.name, [form.line, *fields], **event)
    form.save.click(save, [page.session, form.name, *tab.form], [form.name, form.line, *page.outputs], **event)
    form.delete.click(delete, [page.session, form.name], [form.name, form.line, *page.outputs], **event)

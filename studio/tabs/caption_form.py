"""The part of the Training tab that edits captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from core.files import WriteError
from training.captions import caption_columns, is_of, read_captions, write_captions
from training.config import ConfigError

from ..components.words import alert, note
from ..training_form import require_allowed

if TYPE_CHECKING:
    from ..ui import Page

HEADERS = ["Clip", "Caption"]
ALL = ("all of them", "")


def layout() -> dict[str, Any]:
    """Build the widgets, by name."""
    with gr.Accordion("Edit captions", open=False, elem_id="captions"):
        widgets: dict[str, Any] = {"load": gr.Button("Read them", size="sm", elem_id="read-captions")}
        widgets["table"] = gr.Dataframe(  # not shown before there is something in it: a page that shows one is slower to open
            [], headers=HEADERS, datatype="str", type="array", column_count=(2, "fixed"), static_columns=[0], wrap=True, max_height=360, column_widths=["35%", "65%"], show_label=False, interactive=True, visible=False, elem_id="caption-table"
        )  # fmt: skip
        widgets["column"] = gr.Dropdown([ALL], value="", label="Columns", info="What is read, and where something is put in its place", visible=False, filterable=False, elem_id="caption-column")
        with gr.Row():
            widgets["find"] = gr.Textbox("", label="Find", max_lines=1, min_width=88, elem_id="caption-find")
            widgets["replace"] = gr.Textbox("", label="Put in its place", max_lines=1, min_width=88, elem_id="caption-replace")
        with gr.Row():
            widgets["all"] = gr.Button("Replace in all", size="sm", min_width=88, elem_id="caption-replace-all")
            widgets["save"] = gr.Button("Save captions", size="sm", min_width=88, elem_id="save-captions")
        widgets["line"] = gr.HTML(elem_id="caption-line")
        widgets["read"] = gr.State(None)
    return widgets


def wire(page: Page, dataset: gr.Textbox, widgets: dict[str, Any]) -> None:
    """Connect the widgets; ``dataset`` names the clips."""
    table, column, line, read, event = widgets["table"], widgets["column"], widgets["line"], widgets["read"], page.event

    def load(source: str, chosen: str) -> tuple[Any, Any, str, Any]:
        """Gives table, columns, line, and what was read: the dataset and its captions."""
        choice = gr.skip()
        try:
            columns = _source(page, source, caption_columns)
            chosen = chosen if chosen in columns else ""
            choice = gr.update(choices=[ALL, *columns], value=chosen, visible=len(columns) > 1)
            captions = _source(page, source, lambda path: read_captions(path, chosen))
        except ConfigError as error:
            return gr.skip(), choice, alert(str(error)), gr.skip()
        empty = sum(not text for text in captions.values())
        if len(columns) > 1:
            words = f"{len(captions)} captions in {1 if chosen else len(columns)} of {len(columns)} columns{f', {empty} of them empty' if empty else ''}."
        else:
            words = f"{len(captions)} clips{f', {empty} of them without a caption' if empty else ''}."
        return gr.update(value=[list(row) for row in captions.items()], visible=True), choice, note(f"{words} Click a caption to change it, then save."), (source.strip(), captions)

    def replace_all(rows: list[list[str]], chosen: str, find: str, put: str) -> tuple[Any, str]:
        if not find:
            return gr.skip(), alert("Type what is to be found.")
        there = [find in text and (not chosen or is_of(name, chosen)) for name, text in rows]
        return [[name, text.replace(find, put) if found else text] for (name, text), found in zip(rows, there)], note(f"Changed in {sum(there)} captions; not saved yet.")

    def save(source: str, rows: list[list[str]], read: tuple[str, dict[str, str]] | None) -> tuple[str, Any]:
        """Write what was edited here, and nothing over what others have written since. Gives line and what was read."""
        try:
            edited = edits(source.strip(), rows, read)
            changed = _source(page, source, lambda path: write_captions(path, edited))
        except (ConfigError, WriteError) as error:
            return alert(str(error)), gr.skip()
        return note(f"{changed} captions saved." if changed else "Nothing had changed."), (source.strip(), {**read[1], **edited})

    widgets["load"].click(load, [dataset, column], [table, column, line, read], **event)
    widgets["all"].click(replace_all, [table, column, widgets["find"], widgets["replace"]], [table, line], **event)
    widgets["save"].click(save, [dataset, table, read], [line, read], **event)


def edits(source: str, rows: list[list[str]], read: tuple[str, dict[str, str]] | None) -> dict[str, str]:
    """The captions that differ from those that were read. Raises ConfigError where these are of another dataset than ``source``."""
    if read is None:
        raise ConfigError("Read the captions first.")
    if read[0] != source:
        raise ConfigError(f"These captions are those of {read[0]}, and the clips above are now {source or 'not named'}. Read them again; nothing was saved.")
    return {name: text for name, text in rows if name and text != read[1].get(name)}


def _source(page: Page, source: str, use: Any) -> Any:
    """What ``use`` gives for a dataset that this page may read. Raises ConfigError."""
    if not source.strip():
        raise ConfigError("Name your clips above first.")
    require_allowed(page.services, source.strip())
    return use(source.strip())

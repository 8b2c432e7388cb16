"""The Training tab: the form on the left; runs, and all that is to be seen of one, on the right."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.files import WriteError
from core.types import RequestError
from training.config import USER_TARGETS, ConfigError, TrainConfig, load_config

from ..components.words import alert, escape
from ..db import StorageError
from ..screen import Session, read_message
from ..tasks import UPLOADED, bring_clips, render_samples, split_clips, write_yaml
from ..training_form import ADVANCED, BASIC, BESIDE, CHOICES, FIELDS, PRESETS, PROMPT_LISTS, command, config_of, free_name, hint, kind, label, launch_run, preflight_line, preset_config, preset_words, texts_of
from . import caption_form, share_form

if TYPE_CHECKING:
    from ..ui import Page


def layout(page: Page) -> dict[str, Any]:
    """Build the widgets, by name; ``fields`` has those of FIELDS."""
    widgets: dict[str, Any] = {}
    start = texts_of(preset_config(PRESETS[0], page.services.default_model))
    with gr.Row(elem_id="training"):
        with gr.Column(elem_id="train-form", min_width=0):
            widgets["origin"] = gr.Dropdown([(preset_words(name)[0], name) for name in PRESETS], value=PRESETS[0], label="Kind of training", info=preset_words(PRESETS[0])[1], elem_id="train-preset", filterable=False)
            fields: dict[str, Any] = {}
            for name in BASIC[:2]:
                fields[name] = _field(page, name, start[name])
            with gr.Row(elem_classes="clip-buttons"):
                widgets["check"] = gr.Button("Look at them", size="sm", min_width=0, elem_id="check-clips")
                widgets["upload"] = gr.UploadButton("Bring clips", file_count="multiple", file_types=list(UPLOADED), size="sm", min_width=0, elem_id="bring-clips")
                widgets["render"] = gr.Button("Render samples", size="sm", min_width=0, elem_id="render-clips")
                widgets["split"] = gr.Button("Split at cuts", size="sm", min_width=0, elem_id="split-clips")
            page.panes["chore"] = gr.HTML(elem_id="chore")
            widgets["captions"] = caption_form.layout()
            for row in (BASIC[2:3], BASIC[3:5], BASIC[5:8], BASIC[8:]):
                with gr.Row():
                    for name in row:
                        fields[name] = _field(page, name, start[name])
            with gr.Accordion("All settings", open=False, elem_id="train-more"):
                with gr.Column(elem_classes="all-settings", min_width=0):
                    for name in ADVANCED:
                        fields[name] = _field(page, name, start[name])
            with gr.Accordion("As a file, as a command", open=False, elem_id="train-file"):
                with gr.Row():
                    widgets["open"] = gr.UploadButton("Open YAML", file_types=[".yaml", ".yml"], size="sm", min_width=0, elem_id="open-yaml")
                    widgets["save"] = gr.Button("Save as YAML", size="sm", min_width=0, elem_id="save-yaml")
                widgets["command"] = gr.Textbox("", label="The same from a shell", lines=3, max_lines=12, interactive=False, buttons=["copy"], elem_id="train-command")
            widgets["name"] = gr.Textbox("", label="Name of the run", max_lines=1, elem_id="run-name", placeholder="a name is made if you give none")
            widgets["launch"] = gr.Button("Start training", variant="primary", size="lg", elem_id="launch")
            widgets["error"] = gr.HTML(elem_id="train-error")
            widgets["needs"] = gr.HTML(elem_id="train-needs")
        with gr.Column(elem_id="train-view", min_width=0):
            for name in ("runs", "run", "samples", "checkpoints"):
                page.panes[name] = gr.HTML(elem_id=name)
            widgets["share"] = share_form.layout()
            page.panes["run_log"] = gr.HTML(elem_id="run-log")
    widgets["base"] = gr.State(preset_config(PRESETS[0], page.services.default_model))
    widgets["beside"] = gr.Textbox("{}", label="beside", show_label=False, container=False, elem_id="train-beside", elem_classes="offstage")  # what the form keeps of base for the next visit
    return {**widgets, "fields": {name: fields[name] for name in FIELDS}}


def _field(page: Page, name: str, value: Any) -> gr.components.Component:
    """The widget of one setting."""
    options: dict[str, Any] = {"label": label(name), "info": hint(name), "elem_id": f"train-{name.replace('_', '-')}", "min_width": 88}
    if kind(name) is bool:
        return gr.Checkbox(value, **options)
    if name == "model":
        return gr.Dropdown([model.name for model in page.services.models.list()], value=value, allow_custom_value=True, **options)
    if name in CHOICES:
        return gr.Dropdown(list(CHOICES[name]), value=value, filterable=False, **options)
    lines = 3 if name in PROMPT_LISTS else 1
    return gr.Textbox(value, lines=lines, max_lines=6 if lines > 1 else 1, **options)


def wire(page: Page, tab: gr.Tab, widgets: dict[str, Any]) -> None:
    """Connect the widgets."""
    services, event, fields = page.services, page.event, widgets["fields"]
    form = [widgets["origin"], widgets["base"], widgets["name"], *fields.values()]

    def config_in(base: TrainConfig, values: tuple[Any, ...]) -> TrainConfig:
        return config_of(services, base, dict(zip(FIELDS, values, strict=True)))

    def tell(origin: str, base: TrainConfig, name: str, *values: Any) -> list[str]:
        """What the run will need, and its command."""
        if not values[FIELDS.index("dataset")]:
            return ["<p>Name your clips above to see what it takes.</p>", ""]
        try:
            config = config_in(base, values)
        except ConfigError as error:
            return [f'<p class="bad">{escape(error)}</p>', ""]
        return [preflight_line(services, config), command(config, origin, services, name.strip() or free_name(services, config.target))]

    def launch(session: Session, origin: str, base: TrainConfig, name: str, *values: Any) -> list[Any]:
        """Start the run, and show it. Gives error, name and panes."""
        try:
            run = launch_run(services, name, config_in(base, values))
        except (ConfigError, OSError) as error:
            return [alert(str(error)), gr.skip(), *page.screen.paint(session)]
        session.run = run.name
        return ["", "", *page.screen.paint(session)]

    def filled(config: TrainConfig, dataset: str) -> list[Any]:
        """Base, beside and the form's fields for a config; a dataset that was named stays where the config has none."""
        texts = texts_of(config)
        texts["dataset"] = texts["dataset"] or dataset
        return [config, json.dumps({name: value for name, value in asdict(config).items() if name in BESIDE}), *texts.values()]

    def restore(text: str) -> list[Any]:
        """The form as it was left; nothing where the browser has kept none of this version's. Gives the preset with its hint, base, beside, name and fields."""
        try:
            origin, beside, name, *values = json.loads(text)
            base = replace(preset_config(origin, services.default_model), **json.loads(beside))
            dict(zip(FIELDS, values, strict=True))
        except (ConfigError, TypeError, ValueError):
            return [gr.skip()] * len(restored)
        return [gr.update(value=origin, info=preset_words(origin)[1]), base, beside, name, *values]

    def choose(origin: str, dataset: str) -> list[Any]:
        """Gives the preset's hint, base, beside and fields."""
        return [gr.update(info=preset_words(origin)[1]), *filled(preset_config(origin, services.default_model), dataset)]

    def open_yaml(path: str, dataset: str) -> list[Any]:
        """Gives error, base, beside and fields."""
        try:
            config = load_config(path, [], dataset_follows=True)
            if config.target not in USER_TARGETS:
                raise ConfigError(f"{Path(path).name} trains {config.target}, a part of a new model; that goes from a shell: python -m training --config FILE.")
        except ConfigError as error:
            return [alert(str(error)), *[gr.skip()] * len(based)]
        return ["", *filled(config, dataset)]

    def save_yaml(session: Session, origin: str, base: TrainConfig, name: str, *values: Any) -> list[Any]:
        """Hand the settings out as a file, which may be before the clips are named. Gives error and panes."""
        dataset = values[FIELDS.index("dataset")]
        try:
            config = config_of(services, base, {**dict(zip(FIELDS, values, strict=True)), "dataset": dataset or str(services.datasets)})
            target = write_yaml(services, name, replace(config, dataset=dataset))
        except (ConfigError, WriteError) as error:
            return [alert(str(error)), *page.screen.paint(session)]
        session.hand_out(target)
        return ["", *page.screen.paint(session)]

    def check(session: Session, origin: str, base: TrainConfig, name: str, *values: Any) -> list[Any]:
        """Begin to look at the clips. Gives error and panes."""
        try:
            services.chores.check(config_in(base, values))
        except (ConfigError, RequestError, OSError) as error:
            return [alert(str(error)), *page.screen.paint(session)]
        return ["", *page.screen.paint(session)]

    def render(session: Session) -> list[Any]:
        """Begin to render sample clips. Gives error, dataset and panes."""
        try:
            folder = render_samples(services)
        except RequestError as error:
            return [alert(str(error)), gr.skip(), *page.screen.paint(session)]
        return ["", str(folder), *page.screen.paint(session)]

    def split(session: Session, origin: str, base: TrainConfig, name: str, *values: Any) -> list[Any]:
        """Begin to cut the videos at their cuts, and name the clips that come of it. Gives error, dataset and panes."""
        try:
            config = config_in(base, values)
            folder = split_clips(services, config.dataset, config.dataset_root)
        except (ConfigError, RequestError, OSError) as error:
            return [alert(str(error)), gr.skip(), *page.screen.paint(session)]
        return ["", str(folder), *page.screen.paint(session)]

    def bring(session: Session, name: str, dataset: str, files: list[str]) -> list[Any]:
        """Keep uploaded clips and captions in the data folder, with those that the form names or by themselves. Gives error, dataset and panes."""
        try:
            folder = bring_clips(services, name, [Path(file) for file in files], dataset)
        except (ConfigError, StorageError, WriteError) as error:
            return [alert(str(error)), gr.skip(), *page.screen.paint(session)]
        return ["", str(folder), *page.screen.paint(session)]

    def clone(message: str) -> list[Any]:
        """Fill the form with a run's settings. Gives error, base, beside and fields."""
        try:
            run = services.runs.get(read_message(message)[1])
            if run.config is None:
                raise ConfigError(f"The settings of {run.name} cannot be read.")
            return ["", *filled(run.config, "")]
        except ConfigError as error:
            return [alert(str(error)), *[gr.skip()] * len(based)]

    def models() -> Any:
        return gr.update(choices=[model.name for model in services.models.list()])

    error, base, dataset = widgets["error"], widgets["base"], fields["dataset"]
    based = [base, widgets["beside"], *fields.values()]
    caption_form.wire(page, dataset, widgets["captions"])
    told = [widgets["needs"], widgets["command"]]
    widgets["launch"].click(launch, [page.session, *form], [error, widgets["name"], *page.outputs], **event)
    widgets["origin"].input(choose, [widgets["origin"], dataset], [widgets["origin"], *based], **event)
    widgets["open"].upload(open_yaml, [widgets["open"], dataset], [error, *based], **event)
    widgets["save"].click(save_yaml, [page.session, *form], [error, *page.outputs], **event)
    widgets["check"].click(check, [page.session, *form], [error, *page.outputs], **event)
    widgets["render"].click(render, [page.session], [error, dataset, *page.outputs], **event)
    widgets["split"].click(split, [page.session, *form], [error, dataset, *page.outputs], **event)
    share_form.wire(page, widgets["share"])
    widgets["upload"].upload(bring, [page.session, widgets["name"], dataset, widgets["upload"]], [error, dataset, *page.outputs], **event)
    page.buses["training"].change(clone, page.buses["training"], [error, *based], **event)
    gr.on([tab.select, fields["model"].focus], models, None, fields["model"], **event)
    kept = [widgets["origin"], widgets["beside"], widgets["name"], *fields.values()]
    restored = [widgets["origin"], base, widgets["beside"], widgets["name"], *fields.values()]
    back = tab.select(restore, page.buses["training"], restored, js="() => window.studio.keptTraining()", **event)
    back.then(None, js="() => window.studio.startKeepingTraining()", **event)
    changed = gr.on([tab.select, base.change, *(widget.change for widget in kept)], None, kept, js="(...values) => window.studio.keepTraining(values)", **event)
    changed.then(tell, form, told, trigger_mode="always_last", **event)

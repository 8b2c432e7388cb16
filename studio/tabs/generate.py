"""The Generate tab: the form, the viewer with the strip below it, and the queue."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.files import WriteError
from core.lineage import base_model
from core.loras import installed_loras
from core.presets import PRESET_FIELDS, PRESETS, default_preset
from core.quality import EXACT, MEASURED, QUALITIES
from core.schedulers_info import SAMPLERS
from core.start import PICTURES
from core.types import MAX_TEMPORAL_GUIDANCE, TEXT_PLACEMENTS, WEIGHTS, RequestError
from training.config import ConfigError

from ..compare_screen import bring_back
from ..components.words import alert, escape
from ..db import StorageError
from ..estimate import estimate, words_hint
from ..exchange import import_queue
from ..examples import example_prompts, surprise
from ..screen import Session, read_message
from ..training_screen import request_with
from . import preset_form, start_form, wall_form
from .form import FIELDS, MAX_QUEUE_BYTES, SLIDER_GUIDANCE, as_it_was, draw_seed, fill, has_settings, preset_choices, preset_values, read_text, request_in, requests_of

if TYPE_CHECKING:
    from ..ui import Page

LEADS_TO = {"show": "generate", "compare-open": "compare", "run-compare": "compare"}
"""The tab that an action's outcome is seen on."""
FILLED = '<p class="note">{} <button class="quiet" data-action="form-back">Back to what was there</button></p>'
SEED_TOO = FILLED.format('The video\'s settings are in the form, its seed too. <button class="quiet" data-press="#dice">Another seed</button>')
SETTINGS_FILES = (".mp4", ".gif", ".png")
MANY_HINT = (
    '<ul class="hint"><li>Each line of the prompt is a video of its own.</li>'
    "<li><code>{red|blue} ball</code> makes one of each; <code>__colour__</code> one for each line of <code>wildcards/colour.txt</code> in the data folder.</li>"
    "<li>A line can end with settings of its own: <code>--seed 7 --guidance_scale {2|4|8}</code></li>"
    "<li>A .txt file of such lines, or a video made here, whose settings come back, can be opened below or dropped anywhere on the page.</li></ul>"
)


@dataclass
class GenerateTab:
    """The widgets of the tab."""

    fields: dict[str, gr.components.Component]
    """By the request's field names, in the order of FIELDS."""
    seed: gr.Textbox
    dice: gr.Button
    keep_seed: gr.Checkbox
    count: gr.Number
    opener: gr.UploadButton
    surprise: gr.Button
    button: gr.Button
    error: gr.HTML
    estimate: gr.HTML
    hint: gr.HTML
    """Below the prompt: words that the model does not know."""
    start: start_form.StartForm
    own_presets: preset_form.PresetForm
    walls: wall_form.WallForm

    @property
    def form(self) -> list[gr.components.Component]:
        """Everything that ``Generate`` reads."""
        return [*self.fields.values(), self.seed, self.keep_seed, self.count]


@dataclass
class Answer:
    """What an event does to the form; it leaves alone what isn't named."""

    error: str = ""
    """HTML below the button."""
    seed: Any = field(default_factory=gr.skip)
    keep: Any = field(default_factory=gr.skip)
    count: Any = field(default_factory=gr.skip)
    tabs: Any = field(default_factory=gr.skip)
    form: dict[str, Any] = field(default_factory=dict)
    """By the names of FIELDS."""


def layout(page: Page) -> GenerateTab:
    """Build the widgets."""
    model, data_dir = page.services.default_model, page.services.data_dir
    base = base_model(model, data_dir)
    preset = default_preset(base)
    fields: dict[str, gr.components.Component] = {}
    with gr.Row(elem_id="workbench"):
        with gr.Column(elem_id="left", min_width=0):
            with gr.Column(elem_id="ask", min_width=0):
                fields["prompt"] = gr.Textbox(
                    "", label="Prompt", lines=3, max_lines=8, autofocus=True, elem_id="prompt", placeholder=f"What should the video show? For example: {example_prompts(base)[0]}", html_attributes=gr.InputHTMLAttributes(spellcheck=True)
                )  # fmt: skip
                hint = gr.HTML(elem_id="prompt-hint")
                with gr.Accordion("Negative prompt", open=False, elem_id="negative"):
                    fields["negative_prompt"] = gr.Textbox("", label="What to steer away from", lines=2, max_lines=4, elem_id="negative-prompt", info="Needs guidance above 1.")
                with gr.Accordion("Many prompts at once", open=False, elem_id="many"):
                    gr.HTML(MANY_HINT)
                with gr.Column(elem_id="opener-box", min_width=0):  # outside the accordion, whose contents are not on the page while it is closed
                    surprise_me = gr.Button("Surprise me", size="sm", elem_id="surprise")
                    opener = gr.UploadButton("Open prompts, a picture or a video", file_count="multiple", file_types=[".txt", ".json", *SETTINGS_FILES, *PICTURES], size="sm", elem_id="opener")
                start = start_form.layout(fields)
            with gr.Column(elem_id="settings", min_width=0):
                fields["model"] = gr.Dropdown(model_choices(page), value=model, label="Model", elem_id="model", allow_custom_value=True)
                fields["preset"] = gr.Dropdown(preset_choices(model, data_dir), value=preset.name, label="Size and length", elem_id="preset", filterable=False)
                with gr.Row(elem_id="seed-row", equal_height=True):
                    seed = gr.Textbox(label="Seed", elem_id="seed", max_lines=1, min_width=80, scale=4)
                    dice = gr.Button("New", elem_id="dice", size="sm", min_width=48, scale=1)
                    keep_seed = gr.Checkbox(label="Keep", elem_id="keep-seed", min_width=64, scale=1, container=False)
                    count = gr.Number(1, label="Videos", elem_id="count", precision=0, min_width=64, scale=2)
                fields["guidance_scale"] = gr.Slider(0, SLIDER_GUIDANCE, value=preset.guidance_scale, step=0.1, label="Guidance", elem_id="guidance", info="How closely it follows the prompt; 1 turns it off.")
                with gr.Accordion("More settings", open=False, elem_id="more"):
                    with gr.Row():
                        fields["num_inference_steps"] = gr.Number(preset.num_inference_steps, label="Steps", precision=0, min_width=72, elem_id="steps")
                        fields["sampler"] = gr.Dropdown([(info.label, name) for name, info in SAMPLERS.items()], value=preset.sampler, label="Sampler", min_width=120, elem_id="sampler", filterable=False)
                    with gr.Row():
                        fields["guidance_stop"] = gr.Number(preset.guidance_stop, minimum=0, maximum=1, step=0.05, label="Full guidance until", min_width=120, elem_id="guidance-stop", info="Of the steps, 0 to 1: the first settle what happens.")
                        fields["late_guidance_scale"] = gr.Number(preset.late_guidance_scale, minimum=1, step=0.1, label="Guidance after that", min_width=120, elem_id="late-guidance", info="Much of it exaggerates; 1: none.")
                    fields["temporal_guidance_scale"] = gr.Slider(0, MAX_TEMPORAL_GUIDANCE, value=preset.temporal_guidance_scale, step=0.1, label="Temporal guidance", elem_id="temporal-guidance", info="How much the frames are made to agree with each other, for up to a third more time; 0 turns it off.")
                    fields["eta"] = gr.Slider(0, 1, value=preset.eta, step=0.05, label="Eta", elem_id="eta", info="Fresh noise in each step; DDIM only.")
                    fields["quality"] = gr.Dropdown([(quality.label, name) for name, quality in QUALITIES.items()], value=EXACT, label="Quality or speed", elem_id="quality", filterable=False, info=MEASURED)
                    fields["weights"] = gr.Dropdown([(words, name) for name, words in WEIGHTS.items()], value="full", label="Weights", elem_id="weights", filterable=False, info="8 bits take half the memory, or less time, and do not make quite the same video.")
                    with gr.Row():
                        fields["height"] = gr.Number(preset.height, label="Height, pixels", precision=0, min_width=72, elem_id="height")
                        fields["width"] = gr.Number(preset.width, label="Width, pixels", precision=0, min_width=72, elem_id="width")
                    with gr.Row():
                        fields["num_frames"] = gr.Number(preset.num_frames, label="Frames", precision=0, min_width=64, elem_id="frames")
                        fields["fps"] = gr.Number(preset.fps, label="Model fps", precision=0, min_width=64, elem_id="fps")
                        fields["output_fps"] = gr.Number(preset.output_fps, label="File fps", precision=0, min_width=64, elem_id="output-fps")
                    gr.HTML('<p class="note">The model draws motion for the first speed; the file plays at the second.</p>')
                    fields["window_frames"] = gr.Number(preset.window_frames, label="Frames seen at once", precision=0, elem_id="window-frames", info="For clips longer than the model was trained for, which it then makes window by window. 0: the preset's, or all.")
                    fields["decode_chunk_frames"] = gr.Number(None, label="Frames decoded at once", precision=0, elem_id="decode-chunk-frames", info="Less memory, and a seam between the parts; 10 is the original code's. 0: the whole clip, without seams.")
                    fields["text_placement"] = gr.Dropdown([(words, name) for name, words in TEXT_PLACEMENTS.items()], value="device", label="Text encoder", elem_id="text-placement", filterable=False, info="Off the device it leaves room for larger videos, and new prompts take longer.")
                    fields["loras"] = gr.Textbox("", label="LoRAs", max_lines=1, elem_id="loras", info="Names with commas between them; name@0.5 uses one by half.", placeholder=lora_names(page))
                own_presets = preset_form.layout(page)
            with gr.Column(elem_id="go", min_width=0):
                button = gr.Button("Generate", variant="primary", size="lg", elem_id="generate")
                error = gr.HTML(elem_id="form-error")
                estimate_line = gr.HTML(elem_id="estimate")
            with gr.Column(elem_id="ways", min_width=0):
                walls = wall_form.layout()
        with gr.Column(elem_id="middle", min_width=0):
            page.panes["viewer"] = gr.HTML(elem_id="viewer")
            page.panes["cells"] = gr.HTML(elem_id="cells", elem_classes="offstage")
            page.panes["strip"] = gr.HTML(elem_id="strip")
        with gr.Column(elem_id="right", min_width=0):
            page.panes["queue"] = gr.HTML(elem_id="queue")
    return GenerateTab({name: fields[name] for name in FIELDS}, seed, dice, keep_seed, count, opener, surprise_me, button, error, estimate_line, hint, start, own_presets, walls)


def model_choices(page: Page) -> list[tuple[str, str]]:
    """Models at hand, then those that would be downloaded, with what that costs."""
    choices = []
    for model in page.services.models.list():
        download = "" if model.installed or model.release is None else f" (downloads {model.release.gigabytes:g} GB and the text encoder)"
        choices.append((f"{model.name}{download}", model.name))
    default = page.services.default_model
    return choices if default in [name for _, name in choices] else [(default, default), *choices]


def lora_names(page: Page) -> str:
    """What the empty field of LoRAs says."""
    return ", ".join(installed_loras(page.services.data_dir)) or "none is installed yet"


def wire(page: Page, tab: GenerateTab) -> None:
    """Connect the widgets."""
    sampling = [tab.fields[name] for name in PRESET_FIELDS]
    prompt, model, preset = tab.fields["prompt"], tab.fields["model"], tab.fields["preset"]
    data_dir = page.services.data_dir

    def send(session: Session, values: tuple[Any, ...], answer: Answer) -> list[Any]:
        """``answer`` as the values of ``filled``."""
        form = [answer.form.get(name, gr.skip()) for name in FIELDS]
        return [answer.error, *tell(session, *values), answer.tabs, answer.seed, answer.keep, answer.count, *form, *page.screen.paint(session)]

    def keep_draft(session: Session, values: tuple[Any, ...]) -> None:
        """Remember what is in the form, which is about to be filled with something else; while a request is edited, what was there before that."""
        if session.editing is None:
            session.draft = values

    def back(session: Session, error: str = "") -> Answer:
        """The form as it was before it was filled."""
        draft, session.editing, session.draft = session.draft, None, None
        if draft is None:
            return Answer(error)
        *_, seed, keep, count = draft
        return Answer(error, seed, keep, count, form=as_it_was(draft, data_dir))

    def enqueue(session: Session, values: tuple[Any, ...]) -> Answer:
        """Queue what the form says, or put it in place of the request that is edited, which leaves the form as it was before that."""
        queue, id = page.services.queue, session.editing
        try:
            requests = requests_of(page.services, values)
            if id is None:
                queue.enqueue_many(requests)
            elif len(requests) > 1:
                raise RequestError("prompt", f"This makes {len(requests)} requests, and one is being edited. Leave one line and one video, or stop editing.")
            else:
                queue.edit(id, requests[0])
        except (RequestError, StorageError) as error:
            if id is not None and queue.get(id).state != "waiting":
                session.editing = None
            return Answer(alert(str(error)))
        session.selected = session.wall = None
        if id is not None:
            return back(session)
        session.draft, keep = None, values[-2]
        return Answer(seed=gr.skip() if keep else draw_seed())

    def submit(session: Session, *values: Any) -> list[Any]:
        answer = enqueue(session, values)
        return send(session, values, answer)

    def act(session: Session, message: str) -> list[Any]:
        """A button inside a pane that leaves the form alone. Gives error, tab and panes."""
        action, id = read_message(message)
        done = page.screen.act(session, action, id)
        return ["", gr.Tabs(selected=LEADS_TO[action]) if done and action in LEADS_TO else gr.skip(), *page.screen.paint(session)]

    def act_on_form(session: Session, message: str, *values: Any) -> list[Any]:
        """A button inside a pane that reads or fills the form."""
        return send(session, values, answer_to(session, *read_message(message), values))

    def answer_to(session: Session, action: str, id: str, values: tuple[Any, ...]) -> Answer:
        here = gr.Tabs(selected="generate")
        typed = (values[0] or "").strip()
        if action == "example":
            session.editing = None
            text = example_prompts(base_model(page.services.default_model, data_dir))[int(id)]
            answer = enqueue(session, (text, *values[1:]))
            answer.tabs, answer.form = here, {} if typed else {"prompt": text}
            return answer
        if action in ("edit-stop", "form-back"):
            return back(session)
        if action in ("use", "edit"):
            found = page.services.library.get(id) if action == "use" else page.services.queue.get(id)
            if found is None or action == "edit" and found.state != "waiting":
                return Answer(alert("That video was deleted." if action == "use" else "That request is not waiting any more."))
            keep_draft(session, values)
            session.editing = id if action == "edit" else None
            request, dropped = start_form.without_strange_start(found.request, data_dir)
            return Answer((SEED_TOO if action == "use" else "") + dropped, str(request.seed), True, 1 if action == "edit" else gr.skip(), here, fill(request, data_dir))
        if action in ("continue", "change"):
            video = page.services.library.get(id)
            if video is None:
                return Answer(alert("That video was deleted."))
            keep_draft(session, values)
            session.editing = None
            form = fill(start_form.continued(video) if action == "continue" else start_form.changed(video), data_dir)
            return Answer(FILLED.format("The video's settings are in the form."), draw_seed(), tabs=here, form=form | ({"prompt": gr.skip()} if typed else {}))
        if action == "use-model":
            return Answer(tabs=here, form=dict(zip(("preset", *PRESET_FIELDS), change_model(id), strict=True)) | {"model": id})
        if action == "use-lora":
            chosen = [entry.strip() for entry in (values[FIELDS.index("loras")] or "").split(",") if entry.strip()]
            return Answer(tabs=here, form={"loras": ", ".join(chosen if id in [entry.partition("@")[0].strip() for entry in chosen] else [*chosen, id])})
        if action == "run-use":
            name, _, step = id.rpartition("|")
            try:
                request = request_with(page.services, page.services.runs.get(name), int(step), "")
            except (ConfigError, WriteError) as problem:
                session.trouble = str(problem)
            else:
                session.editing = None
                updates = dict(zip(("preset", *PRESET_FIELDS), change_model(request.model), strict=True))
                return Answer(tabs=here, form=updates | {"model": request.model, "loras": request.loras or ""})
        return Answer()

    def open_files(session: Session, paths: list[str], *values: Any) -> list[Any]:
        """Prompts from text files, the settings of a video, a picture to start from, or an exported queue."""
        try:
            answer = read_files(session, paths, values)
        except (RequestError, StorageError, WriteError) as error:
            answer = Answer(alert(str(error)))
        return send(session, values, answer)

    def read_files(session: Session, paths: list[str], values: tuple[Any, ...]) -> Answer:
        path = paths[0]
        if all(Path(path).suffix.lower() == ".txt" for path in paths):
            prompts = "\n".join(filter(None, map(read_text, paths)))
            keep_draft(session, values)
            return Answer(FILLED.format("Prompts from a file are in the form.") if (values[0] or "").strip() else "", form={"prompt": prompts})
        if len(paths) > 1:
            raise RequestError("file", f"{len(paths)} files came at once. Text files of prompts may come together; a picture, a video or a queue comes alone.")
        if Path(path).suffix.lower() == ".json":
            ids, before = import_queue(page.services, read_text(path, MAX_QUEUE_BYTES))
            session.offer_undo(f"{len(ids)} requests and {len(before)} presets imported.", "imported", (json.dumps(before), *ids))
            return Answer()
        if Path(path).suffix.lower() in PICTURES and not has_settings(path):
            return Answer(form=start_form.from_picture(page.services.keep_source(path)))
        request, dropped = start_form.without_strange_start(request_in(path, data_dir), data_dir)
        keep_draft(session, values)
        session.editing = None
        return Answer(SEED_TOO + dropped, str(request.seed), True, form=fill(request, data_dir))

    def arrive(session: Session, compared: str, kept: str, *values: Any) -> list[Any]:
        """A page that has just been opened, as it was left: one event, for a page that waits for its first sight. Gives ``restored`` and panes."""
        bring_back(page.services, session, compared)
        return [*restore(session, kept, values), *page.screen.paint(session)]

    def greet(session: Session, compared: str, left: str, _: str, *values: Any) -> list[Any]:
        """A page that was open while the studio was started again goes on as it is. Gives go and panes."""
        bring_back(page.services, session, compared)
        take_up(session, json.loads(left)["edit"] or {})
        return [*tell(session, *values), *page.screen.paint(session)]

    def take_up(session: Session, left: dict[str, Any]) -> None:
        """Go on with the request that was being edited, if it still waits, and with what its settings took the place of."""
        draft, found = left.get("draft"), page.services.queue.get(left.get("editing"))
        session.draft = tuple(draft) if draft and len(draft) == len(tab.form) else None
        session.editing = found.id if found is not None and found.state == "waiting" else None

    def restore(session: Session, text: str, here: tuple[Any, ...]) -> list[Any]:
        """What the form held when the page was left, with the request that was being edited in it and what lay below that; as it is ``here`` where the browser has kept none, or
        the studio can't make it any more, and for settings that it did not have then. Gives error, go, keep, count and FIELDS but for the prompt."""
        try:
            kept = json.loads(text)
            at_hand = lambda values: [dict(zip(kept["names"], values, strict=True)).get(name, now) for name, now in zip(names, here, strict=True)]  # noqa: E731
            values, left = at_hand(kept["values"]), kept["edit"] or {}
            if left.get("draft"):
                left["draft"] = at_hand(left["draft"])
            requests_of(page.services, ("any", *values[1:]))
        except (KeyError, RequestError, TypeError, ValueError):
            return [gr.skip(), *tell(session, *here), *[gr.skip()] * (len(restored) - 1 - len(go))]
        take_up(session, left)
        error = FILLED.format("The form is as you left it.") if session.draft and not session.editing else ""
        form = as_it_was(values, data_dir)
        return [error, *tell(session, here[0], *values[1:]), *values[-2:], *(form[name] for name in FIELDS[1:])]

    def change_model(name: str) -> list[Any]:
        chosen = default_preset(base_model(name, data_dir))
        return [gr.update(choices=preset_choices(name, data_dir), value=chosen.name), *preset_values(chosen)]

    def tell(session: Session, *values: Any) -> list[Any]:
        """The line below the button, the button with what it does, and the line below the prompt."""
        if session.editing is not None:
            return ['<p>You are editing a waiting request. <button class="quiet" data-action="edit-stop">Leave it as it is</button></p>', "Save the request", ""]
        try:
            requests = requests_of(page.services, values)
        except RequestError as error:
            return [f'<p class="bad">{escape(error)}</p>', "Generate", ""]
        return [estimate(page.services, requests), "Generate" if len(requests) == 1 else f"Generate {len(requests)} videos", words_hint(requests)]

    def tell_all(session: Session, *values: Any) -> list[Any]:
        """``tell`` of the form, and what the walls say of it."""
        form, walls = values[: len(tab.form)], values[len(tab.form) :]
        return [*tell(session, *form), *wall_form.tell(page.services, form, walls)]

    event = page.event
    go = [tab.estimate, tab.button, tab.hint]
    filled = [tab.error, *go, page.tabs, tab.seed, tab.keep_seed, tab.count, *tab.fields.values(), *page.outputs]
    page.then_work(tab.button.click(submit, [page.session, *tab.form], filled, trigger_mode="multiple", **event))
    page.then_work(page.buses["action"].change(act, [page.session, page.buses["action"]], [tab.error, page.tabs, *page.outputs], trigger_mode="multiple", **event))
    page.then_work(page.buses["form"].change(act_on_form, [page.session, page.buses["form"], *tab.form], filled, trigger_mode="multiple", **event))
    page.then_work(tab.opener.upload(open_files, [page.session, tab.opener, *tab.form], filled, **event))
    tab.surprise.click(lambda model: surprise(base_model(model, data_dir)), model, prompt, **event)
    tab.dice.click(draw_seed, None, tab.seed, **event)
    preset.input(lambda name: preset_values(PRESETS[name]), preset, sampling, **event)
    model.input(change_model, model, [preset, *sampling], **event)
    walls = [*tab.walls.axes, tab.walls.drafts, tab.walls.draft_steps]
    names = [*tab.fields, "seed", "keep_seed", "count"]  # of tab.form
    mine = json.dumps(page.services.default_model)  # a studio that is started with another model begins with that one's settings
    keep = f"(...values) => window.studio.keepForm({mine}, {json.dumps(names)}, values)"
    changed = gr.on([widget.change for widget in [*tab.form, *walls]], None, tab.form, js=keep, **event)  # Gradio goes through all targets of all events for each widget of the page: few
    changed.then(tell_all, [page.session, *tab.form, *walls], [*go, *tab.walls.told], trigger_mode="always_last", **event)  # one event: no answer to an older form comes last
    model.focus(lambda: gr.update(choices=model_choices(page)), None, model, **event)
    tab.fields["loras"].focus(lambda: gr.update(placeholder=lora_names(page)), None, tab.fields["loras"], **event)
    start_form.wire(page, tab, tab.start)
    preset_form.wire(page, tab, tab.own_presets)
    wall_form.wire(page, tab, tab.walls)
    demo = gr.context.Context.root_block
    demo.load(None, None, [prompt, tab.seed], js=f"() => [window.studio.draft(), window.studio.seed({mine})]", **event)
    prompt.change(None, prompt, None, js="(text) => window.studio.keepDraft(text)", **event)
    restored = [tab.error, *go, tab.keep_seed, tab.count, *(tab.fields[name] for name in FIELDS[1:])]
    left = f"(session, compared, kept, ...values) => [session, ...window.studio.left({mine}), ...window.studio.typedIn({mine}, values)]"
    here = demo.load(arrive, [page.session, page.buses["action"], page.buses["form"], *tab.form], [*restored, *page.outputs], js=left, **event)  # the buses are there to be filled
    here.then(None, js="() => window.studio.startKeeping()", **event)
    restarted = gr.Textbox(elem_id="back", elem_classes="offstage", label="back", show_label=False, container=False, max_lines=1)
    again = f"(session, compared, kept, back, ...values) => [session, ...window.studio.left({mine}), back, ...values]"
    greeted = restarted.change(greet, [page.session, page.buses["action"], page.buses["form"], restarted, *tab.form], [*go, *page.outputs], js=again, trigger_mode="always_last", **event)
    page.greeted = greeted.then(None, js="() => window.studio.greeted()", **event)

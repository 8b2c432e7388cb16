"""The Training tab's form: settings to texts and back, its command, what it refuses; and the curve."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from studio_app import wait_for

from core import save_video
from core.types import GenerationRequest, RequestError
from studio.chores import Chore
from studio.compare_screen import compare_panes
from studio.components.chart import render_chart, smoothed, ticks
from studio.components.run_list import render_chore, render_run
from studio.examples import REAL_PROMPTS
from studio.screen import Screen, Session
from studio.services import Services
from studio.tabs import caption_form
from studio.tabs.generate import LEADS_TO
from studio.training_form import BESIDE, CHOICES, FIELDS, OURS, PRESETS, command, config_of, free_name, hint, label, needs, preflight_line, preset_config, preset_path, preset_words, texts_of
from studio.training_screen import compare_checkpoints, request_with, runs_before, training_act
from studio.ui import build
from training.config import ConfigError, TrainConfig, as_words, load_config
from training.runs import Run
from training.use import LORA_FILE


@pytest.fixture
def services(tmp_path):
    services = Services.open(tmp_path / "data", start_worker=False)
    yield services
    services.close()


def test_every_setting_is_in_the_form_or_left_out_for_a_reason():
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(FIELDS) | set(OURS) | set(BESIDE) == names and len(FIELDS) + len(OURS) + len(BESIDE) == len(names)
    assert all(label(name) for name in FIELDS) and set(CHOICES) <= set(FIELDS)
    assert all(hint(name) for name in FIELDS if name not in ("model", "sizes", "num_frames", "max_train_steps", "learning_rate", "train_batch_size"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_through_the_form_unchanged(services, name):
    config = dataclasses.replace(preset_config(name, "mira-nano"), dataset="clips")
    assert config.validation_prompts and all(preset_words(name))
    back = config_of(services, config, texts_of(config))
    assert dataclasses.replace(back, data_dir=config.data_dir) == config


def test_the_command_makes_the_same_settings(services):
    base = preset_config("lora_nano", "mira-nano")
    texts = {**texts_of(base), "dataset": "my clips/a.csv", "validation_prompts": 'a "red" ball, slowly\nit\'s 5: $HOME', "learning_rate": "3e-5", "num_frames": "1, 8", "timestep_logit_mean": "", "gradient_checkpointing": True}
    config = config_of(services, base, texts)
    assert config.validation_prompts == ['a "red" ball, slowly', "it's 5: $HOME"] and config.num_frames == [1, 8] and config.learning_rate == 3e-5 and config.timestep_logit_mean is None
    python, m, training, flag, file, *words = shlex.split(command(config, "lora_nano", services, "mine"))
    assert (python, m, training, flag) == ("python", "-m", "training", "--config")
    assert load_config(file, words) == dataclasses.replace(config, output_dir=str(services.runs.folder / "mine"))


def test_the_command_names_the_device_and_all_digits(services):
    base = dataclasses.replace(preset_config("lora_nano", "mira-nano"), dataset="clips")
    services.training_device = "cuda:1"
    config = config_of(services, base, {**texts_of(base), "learning_rate": "0.000123456789", "lora_alpha": "7"})
    assert texts_of(config)["learning_rate"] == "0.000123456789" and texts_of(config)["lora_alpha"] == "7"
    words = shlex.split(command(config, "lora_nano", services, "mine"))
    assert words[5:7] == ["--device", "cuda:1"] and "learning_rate=0.000123456789" in words


@pytest.mark.parametrize("value", ["plain", "", "no", "1e3", "null", "a: b", "x #y", "[1]", "~", "trailing:", "ä ö", "a,b"])
def test_any_text_survives_the_shell_words(value):
    config = TrainConfig(model="m", dataset="d", dataset_root=value)
    assert load_config(None, as_words(config, TrainConfig())) == config


@pytest.mark.parametrize(
    "name, text, words",
    [("max_train_steps", "many", "max_train_steps: .*many"), ("learning_rate", "", "Learning rate is empty. Its usual value is 0.0005"), ("num_frames", "8, x", "num_frames"), ("target", "lore", "Did you mean 'lora'"), ("dataset", "", "dataset is empty"), ("lora_rank", "0", "at least 1"), ("dataset", "${oc.env:HOME}", "taken from elsewhere are refused")],
)  # fmt: skip
def test_what_cannot_be_used_is_said_in_words(services, name, text, words):
    base = dataclasses.replace(preset_config("lora_nano", "mira-nano"), dataset="clips")
    with pytest.raises(ConfigError, match=words):
        config_of(services, base, {**texts_of(base), name: text})


def test_datasets_are_kept_to_their_folders_where_others_reach_the_page(services, tmp_path):
    base = dataclasses.replace(preset_config("lora_nano", "mira-nano"), dataset=str(services.datasets / "mine"))
    services.dataset_roots = (services.datasets,)
    assert config_of(services, base, texts_of(base)).dataset == base.dataset
    for away in ({"dataset": "/etc"}, {"dataset": str(services.datasets / ".." / "x")}, {"dataset_root": "/"}, {"keep_dataset": "/"}):
        with pytest.raises(ConfigError, match="only be in"):
            config_of(services, base, {**texts_of(base), **away})


def test_a_run_without_a_name_gets_a_free_one(services):
    assert free_name(services, "vae_decoder") == "vae-decoder-1"
    for name in ("lora-1", "lora-3"):
        (services.runs.folder / name).mkdir(parents=True)
        (services.runs.folder / name / "config.yaml").write_text("target: lora\n")
    assert free_name(services, "lora") == "lora-2"
    (services.runs.folder / "lora-2").mkdir()
    (services.runs.folder / "lora-2" / "config.yaml").write_text("target: lora\n")
    services.runs.delete("lora-2")
    (services.data_dir / "loras").mkdir(exist_ok=True)
    (services.data_dir / "loras" / "lora-4-step-250.safetensors").touch()
    (services.data_dir / "models" / "lora-5-step-250").mkdir(parents=True)
    assert free_name(services, "lora") == "lora-6", "a deleted run can come back, and what was made of runs stays what it is"


@pytest.fixture
def captions_page(services):
    """The functions behind the caption editor's buttons, by name."""
    page = SimpleNamespace(services=services, event={})
    with gr.Blocks() as demo:
        caption_form.wire(page, gr.Textbox(), caption_form.layout())
    return {block.fn.__name__: block.fn for block in demo.fns.values()}


def test_an_edited_caption_leaves_what_others_wrote_since_and_other_datasets_alone(captions_page, tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
        for name in ("one", "two"):
            (folder / f"{name}.mp4").write_bytes(b"video")
            (folder / f"{name}.txt").write_text(f"{name} of {folder.name}")
    source, other = map(str, folders)
    load, save, texts = captions_page["load"], captions_page["save"], lambda folder: [(folder / f"{name}.txt").read_text().strip() for name in ("one", "two")]
    table, _, _, read = load(source, "")
    rows = table["value"]
    (folders[0] / "one.txt").write_text("by another page")
    rows[1][1] = "mine"
    line, read = save(f" {source} ", rows, read)
    assert "1 captions saved" in line and texts(folders[0]) == ["by another page", "mine"]
    (folders[0] / "two.txt").write_text("by another page")
    assert "Nothing had changed" in save(source, rows, read)[0] and texts(folders[0])[1] == "by another page"
    rows[1][1] = "two of a"
    assert "Read them again" in save(other, rows, read)[0] and texts(folders[1]) == ["one of b", "two of b"]
    assert "1 captions saved" in save(source, rows, read)[0] and texts(folders[0])[1] == "two of a"
    assert "Read the captions first" in save(source, [], None)[0]


def test_files_are_opened_and_saved_before_the_clips_are_named(services, tmp_path):
    training = {block.fn.__name__: block.fn for block in build(services).fns.values() if getattr(block.fn, "__module__", "") == "studio.tabs.training"}
    form = lambda told: dict(zip(FIELDS, told[3:], strict=True))  # noqa: E731
    for preset in PRESETS:
        for clips in ("", "my clips"):
            told = training["open_yaml"](str(preset_path(preset)), clips)
            assert told[0] == "" and form(told)["dataset"] == clips and told[1].target == form(told)["target"]
    session = Session()
    values = list({**texts_of(preset_config("lora_nano", "mira-nano")), "dataset": ""}.values())
    assert training["save_yaml"](session, "lora_nano", preset_config("lora_nano", "mira-nano"), "mine", *values)[0] == ""
    told = training["open_yaml"](session.exported, "my clips")
    assert told[0] == "" and list(form(told).values()) == list({**dict(zip(FIELDS, values)), "dataset": "my clips"}.values())
    (named := tmp_path / "named.yaml").write_text("target: lora\nmodel: mira-nano\ndataset: theirs\n")
    assert form(training["open_yaml"](str(named), "my clips"))["dataset"] == "theirs"
    for text, words in (("target: vae\n", "trains vae, a part of a new model"), ("target: lora\nmodel: m\nlearning_rate: 5\n", "learning_rate is 5"), ("target: lora\n", "model is empty")):
        named.write_text(text)
        assert words in training["open_yaml"](str(named), "my clips")[0]


def fake_run(tmp_path, name, state, began, **settings):
    (tmp_path / name).mkdir(exist_ok=True)
    return Run(tmp_path / name, state, 3, "", 1, TrainConfig(target="lora", model="m", dataset="d", validation_prompts=["a ball"], **settings), began)


def test_a_release_that_is_not_here_says_that_its_download_comes_first(services):
    line = preflight_line(services, dataclasses.replace(preset_config("lora_128", "mira-nano"), dataset="clips"))
    assert "TencentARC/Mira-v0:128 is not on this machine yet: about 12 GB are downloaded first" in line and "24.8 M numbers trained" in line and "of memory for weights and optimizer" in line and "of disk" in line
    assert "downloaded" not in preflight_line(services, dataclasses.replace(preset_config("lora_nano", "mira-nano"), dataset="clips"))


@pytest.mark.parametrize("model, pid", [("mira-nano", 7), (None, None)])
def test_what_a_run_needs_is_asked_of_the_device_that_it_will_be_on_and_of_the_worker_that_lets_go_of_it(services, monkeypatch, model, pid):
    monkeypatch.setattr(services.executor, "statuses", lambda: [{"device": "cuda:0", "model": "other", "pid": 6}, {"device": "cuda:1", "model": model, "pid": 7}])
    monkeypatch.setattr("studio.training_form.preflight", lambda config, runs, device, gives_way: SimpleNamespace(seconds=1.0, asked=(device, gives_way)))
    assert needs(services, TrainConfig()).asked == ("cuda:1", pid)


def test_the_time_of_a_first_run_is_reckoned_from_a_video(services, tmp_path):
    config = dataclasses.replace(preset_config("lora_nano", "mira-nano"), dataset="clips", max_train_steps=300, train_batch_size=4)
    assert needs(services, config).seconds is None
    (tmp_path / "made.mp4").touch()
    request = GenerationRequest("a ball", seed=1).resolved()
    services.library.add("made", request, tmp_path / "made.mp4", elapsed=20 * 0.265)  # of docs/benchmarks.md, where a step of this preset took 1.69 s
    told = needs(services, config)
    assert told.reckoned and not told.measured and told.seconds / config.total_steps == pytest.approx(1.69, rel=0.1)
    assert "about 8 min, reckoned from what it took here before" in preflight_line(services, config)
    other = {words: needs(services, config_of(services, config, {**texts_of(config), **dict([words])})).seconds for words in (("gradient_checkpointing", True), ("latent_cache", False), ("target", "vae_decoder"))}
    assert list(other.values()) == [pytest.approx(told.seconds * 4 / 3), None, None]
    assert needs(services, dataclasses.replace(config, keep_dataset="kept")).seconds == pytest.approx(told.seconds * (4 + 4 / 3) / 4), "one clip more, and once more forward"


def test_a_waiting_run_says_which_runs_come_first(tmp_path):
    runs = [fake_run(tmp_path, "third", "waiting", 30.0), fake_run(tmp_path, "second", "waiting", 20.0), fake_run(tmp_path, "first", "training", 10.0), fake_run(tmp_path, "old", "finished", 5.0)]
    assert [[other.name for other in runs_before(runs, run)] for run in runs[:2]] == [["first", "second"], ["first"]]
    assert "first and second have it first" in render_run(runs[0], False, runs_before(runs, runs[0]))
    assert "a video is being made on it" in render_run(runs[1], False, [])
    shown = [render_run(run, False, runs_before(runs, run)) for run in runs]
    assert ['data-action="run-first"' in one for one in shown] == [True, False, False, False], "where another one that waits comes first"


def test_stop_now_stays_the_same_button_while_a_run_begins(tmp_path):
    """A pane that is drawn anew fills its elements in their order: one that was about to be pressed must not stand for another action then."""
    shown = {state: re.findall(r'data-action="([\w-]+)"[^>]*?( disabled)?>', render_run(fake_run(tmp_path, "mine", state, 1.0), False)) for state in ("starting", "waiting", "preparing", "training")}
    assert shown["training"] == [("run-save", ""), ("run-sample", ""), ("run-pause", ""), ("run-stop", "")]
    for state in ("starting", "waiting", "preparing"):
        assert shown[state] == [("run-save", " disabled"), ("run-sample", " disabled"), ("run-pause", " disabled"), ("run-stop", "")], state


def test_a_checkpoint_is_used_with_the_defaults_of_the_model_that_its_run_began_with(services, tmp_path):
    folder, run = services.data_dir / "models" / "128-v0", tmp_path / "tuned"
    for path in (folder, run / "checkpoints" / "step-2" / "transformer", run / "checkpoints" / "step-4" / "transformer"):
        path.mkdir(parents=True)
        (path.parent / ".complete").touch()
    (folder / "model_index.json").write_text("{}")
    (folder / "source.json").write_text(json.dumps({"checkpoint": "128-v0.pt"}))
    tuned = Run(run, "finished", 4, "", 1, TrainConfig(target="transformer", model="128-v0", dataset="d", data_dir=str(services.data_dir)))
    request = request_with(services, tuned, 4, "")
    assert (request.model, request.preset, request.num_frames, request.sampler) == ("tuned-step-4", "128-20s", 120, "ddim")
    cells = [services.queue.get(id).request for id in services.walls.get(compare_checkpoints(services, tuned)).cells]
    assert [(cell.model, cell.preset, cell.prompt) for cell in cells] == [(name, "128-20s", REAL_PROMPTS[0]) for name in ("128-v0", "tuned-step-2", "tuned-step-4")]


def test_checkpoints_are_compared_at_a_press_and_come_as_they_are_made(services, tmp_path, monkeypatch):
    for step in (1, 2, 3, 4):
        (tmp_path / "tuned" / "checkpoints" / f"step-{step}").mkdir(parents=True)
        for name in (".complete", LORA_FILE):
            (tmp_path / "tuned" / "checkpoints" / f"step-{step}" / name).touch()
    config = TrainConfig(target="lora", model="mira-nano", dataset="d", data_dir=str(services.data_dir), validation_prompts=["a ball", "a star"])
    monkeypatch.setattr(services.runs, "get", lambda name: Run(tmp_path / name, "finished", 4, "", 1, config))
    session = Session(compared=("before",))
    training_act(services, session, "run-compare", "tuned")
    asked = [services.queue.get(id).request for id in session.compared]
    assert [request.loras for request in asked] == [None, "tuned-step-2", "tuned-step-3", "tuned-step-4"] and {(request.prompt, request.seed) for request in asked} == {("a ball", 0)}
    assert len(services.walls.get(session.wall).cells) == 10, "the grid has them all"
    assert "4 are being made" in compare_panes(services, session, 0)["tray"]
    job = services.queue.lease("worker", 60.0)
    (tmp_path / "made.mp4").touch()
    services.library.add(job.id, job.request, tmp_path / "made.mp4")
    assert services.queue.finish(job.id, "worker", job.attempts, "made.mp4", 1.0)
    tray = compare_panes(services, session, 1)["tray"]
    assert tray.count("<li>") == 1 and "3 more to come" in tray
    assert LEADS_TO["run-compare"] == "compare"
    assert Screen(services).act(session, "undo", "")
    assert session.compared == ("before",)


def test_one_chore_at_a_time_and_words_of_its_own_end_nothing(services):
    chore, told = Chore("x", "clips", "Looking at the clips"), "Loading the weights\n42\n{\"done\": 1, \"of\": 2}\n{\"odd\": 1}\n"
    services.chores.current = chore
    for begin in (lambda: services.chores.check(TrainConfig(dataset="x")), lambda: services.chores.render(1, services.datasets), lambda: services.chores.split("x", "", services.datasets)):
        with pytest.raises(RequestError, match="Looking at the clips is not done yet"):
            begin()
    services.chores._listen(chore, subprocess.Popen([sys.executable, "-c", f"print({told!r})"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert (services.chores.current.done, services.chores.current.working) == (1, False)


def test_videos_are_split_and_a_checkpoint_is_written_by_a_chore(services, tmp_path):
    shots = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in (20, 230)]).repeat(8, 0)
    save_video(shots, tmp_path / "long" / "a.mp4", fps=8)
    services.chores.split(str(tmp_path / "long"), "", tmp_path / "out")
    wait_for(lambda: not services.chores.current.working, "the split")
    assert services.chores.current.report == {"clips": 2, "folder": str(tmp_path / "out"), "left_out": []} and f"2 clips of one shot each are in {tmp_path / 'out'}" in render_chore(services.chores.current)
    run = services.runs.folder / "mine"
    last = run / "checkpoints" / "step-3"
    last.mkdir(parents=True)
    (run / "config.yaml").write_text("target: lora\nmodel: mira-nano\ndataset: x\n")
    (last / "lora.safetensors").write_bytes(b"weights")
    (last / ".complete").touch()
    services.chores.pack("mine", 3, "lora", run / "packed" / "mine.safetensors")
    with pytest.raises(RequestError, match="not done yet"):
        services.chores.push("mine", 3, "me/x", "hf_t", True)
    wait_for(lambda: not services.chores.current.working, "the file")
    assert (run / "packed" / "mine.safetensors").read_bytes() == b"weights" and 'download="mine.safetensors"' in render_chore(services.chores.current)


def test_the_running_mean_is_unbiased_and_ticks_are_round():
    assert [y for _, y in smoothed([(i, 3.0) for i in range(20)])] == pytest.approx([3.0] * 20)
    first, *_, last = [y for _, y in smoothed([(i, float(i)) for i in range(50)])]
    assert first == 0 and 40 < last < 49
    assert ticks(0.009, 0.3, log=True) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2])
    assert ticks(0.0, 1.0, log=False) == pytest.approx([0, 0.5, 1.0])
    for low, high in ((0.031, 0.034), (1e-6, 1.0), (0.5, 700.0)):
        for log in (True, False):
            found = ticks(low, high, log)
            assert 2 <= len(found) <= 7 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_the_curve_stays_inside_its_frame():
    losses = [(float(step), 0.1 / step**0.5) for step in range(1, 3000)]
    html = render_chart(losses, [(100.0, 0.02), (200.0, 0.015)], 5000, log=True)
    numbers = [tuple(map(float, pair.split())) for path in re.findall(r' d="M([^"]+)"', html) for pair in path.split("L")]
    assert len(numbers) < 1000 and all(0 <= x <= 60.1 and 0 <= y <= 100 for x, y in numbers)
    assert html.count('class="point"') == 2 and "Held-out clips: 0.0150" in html
    assert "begins after" in render_chart([(1, float("nan")), (2, 0.1)], [], 10, log=True)

"""The Training tab, from sample clips to a video made with what was trained."""

from __future__ import annotations

import re
import signal

import numpy as np
from hands import unfold
from playwright.sync_api import Locator, Page, expect
from safetensors import safe_open

from core import read_settings, save_video
from core.video_io import read_video
from studio.training_form import ADVANCED
from studio_app import StudioApp, wait_for
from training.runs import Runs

TEAL = np.array([20, 160, 150])


def test_clips_are_rendered_looked_at_trained_on_and_the_lora_makes_a_video(page: Page, studio: StudioApp) -> None:
    page.get_by_role("button", name="Skip").click()
    page.get_by_role("tab", name="Training").click()
    expect(page.locator("#run")).to_contain_text("Teach it something of your own")
    page.click("#launch")
    expect(page.locator("#train-error")).to_contain_text("dataset is empty")
    page.click("#render-clips")
    expect(page.locator("#chore")).to_contain_text("32 clips are ready in")
    page.locator("#train-num-frames").get_by_role("textbox").fill("4")
    page.locator("#train-sizes").get_by_role("textbox").fill("32x33")
    page.click("#check-clips")
    expect(page.locator("#chore [role=alert]")).to_contain_text("32x33")
    page.locator("#train-sizes").get_by_role("textbox").fill("32x32")
    page.click("#check-clips")
    expect(page.locator("#chore h2")).to_have_text("32 clips can be used")
    expect(page.locator("#chore video")).to_have_count(8)
    expect(page.locator("#chore figcaption").first).to_contain_text("4 frames, 32×32")
    for name, text in {"max-train-steps": "12", "learning-rate": "fast"}.items():
        page.locator(f"#train-{name}").get_by_role("textbox").fill(text)
    expect(page.locator("#train-needs .bad")).to_contain_text("learning_rate")
    page.locator("#train-learning-rate").get_by_role("textbox").fill("1e-3")
    unfold(page, "All settings")
    expect(page.locator(f"#train-{ADVANCED[-1].replace('_', '-')}")).to_be_visible()  # what is typed while the others are still drawn is lost
    for name, text in {"checkpoint-every": "6", "log-every": "1", "validation-clips": "2", "validation-steps": "2", "num-threads": "1"}.items():
        page.locator(f"#train-{name}").get_by_role("textbox").fill(text)
    expect(page.locator("#train-needs")).to_contain_text("12 steps")
    page.get_by_role("button", name="As a file").click()
    command = page.locator("#train-command textarea")
    for words in ("python -m training --config training/configs/lora_nano.yaml ", "max_train_steps=12 ", "checkpoint_every=6 ", "num_threads=1", "/lora-1"):
        expect(command).to_have_value(re.compile(re.escape(words)))
    page.click("#launch")
    expect(page.locator("#run h2")).to_have_text("lora-1")
    expect(page.locator("#samples video")).to_have_count(2)
    expect(page.locator("#run")).to_contain_text("Finished")
    expect(page.locator("#run .plot")).to_have_attribute("aria-label", re.compile("Loss from step 1 to 12"))
    expect(page.locator("#run .point")).to_have_count(2)
    with page.expect_download() as download:
        page.locator("#checkpoints a[download]").first.click()
    assert download.value.suggested_filename == "lora-1-step-12.safetensors"
    with safe_open(download.value.path(), "pt") as file:
        assert all("lora" in name for name in file.keys())
    page.get_by_role("button", name="Take it elsewhere").click()
    page.click("#share-write")
    expect(page.locator("#chore")).to_contain_text("lora-1-step-12.safetensors")
    page.get_by_role("button", name="Use step 12 in Generate").click()
    expect(page.locator("#estimate")).to_contain_text("LoRA lora-1-step-12")
    page.fill("#prompt textarea", "a red ball")
    unfold(page, "More settings")
    page.fill("#steps input", "2")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#viewer .caption-line")).to_contain_text("LoRA lora-1-step-12")
    expect(page.locator("#strip .card")).to_have_count(1)
    (video,) = (studio.data_dir / "videos").glob("*.mp4")
    origin = read_settings(video)["made_with"]["loras"]["lora-1-step-12"]
    assert origin["run"] == "lora-1" and origin["dataset"] == "toyworld"


def test_checkpoints_are_compared_at_a_press_and_in_a_grid(page: Page, studio: StudioApp) -> None:
    page.get_by_role("tab", name="Training").click()
    page.get_by_role("button", name="Compare them: lora-1").click()
    expect(page.locator("#tray")).to_contain_text(re.compile("3 are being made|more to come"))
    page.get_by_role("tab", name="Generate").click()
    expect(page.locator("#viewer .wall .cell")).to_have_count(3)
    expect(page.locator("#viewer .wall")).to_contain_text("lora-1-step-6")
    page.get_by_role("button", name="Pause", exact=True).click()
    for _ in range(3):
        if (buttons := page.locator("#queue [data-action=cancel]")).count():
            buttons.last.click()
            page.wait_for_timeout(500)
    page.get_by_role("button", name="Resume", exact=True).click()


def click_while_drawn_anew(button: Locator) -> None:
    """A click whose button is replaced between press and release, by one in another place, as by a poll that finds news: the browser sends none by itself."""
    button.hover()
    button.page.mouse.down()
    button.evaluate("old => { const anew = old.cloneNode(true); anew.style = 'position: relative; top: 90px'; old.replaceWith(anew); }")
    button.page.mouse.up()


def test_a_run_outlives_the_page_and_the_studio_and_is_paused_resumed_deleted_and_brought_back(page: Page, studio: StudioApp) -> None:
    runs = Runs(studio.data_dir / "runs")
    page.get_by_role("tab", name="Training").click()
    page.get_by_role("button", name="Clone: lora-1").click()
    expect(page.locator("#train-sizes").get_by_role("textbox")).to_have_value("32x32")
    page.locator("#train-max-train-steps").get_by_role("textbox").fill("100000")
    page.locator("#run-name").get_by_role("textbox").fill("lora-1")
    page.click("#launch")
    expect(page.locator("#train-error")).to_contain_text("There is a run lora-1 already")
    page.locator("#run-name").get_by_role("textbox").fill("long")
    page.click("#launch")
    expect(page.locator("#run h2")).to_have_text("long")
    wait_for(lambda: runs.get("long").step > 0, lambda: (runs.folder / "long" / "log.txt").read_text()[-2000:])
    page.goto("about:blank")
    studio.end(signal.SIGKILL)
    before = runs.get("long").step
    wait_for(lambda: runs.get("long").step > before, lambda: (runs.folder / "long" / "log.txt").read_text()[-2000:])
    studio.start(int(studio.url.rpartition(":")[2]))
    page.goto(studio.url)
    page.get_by_role("tab", name="Training").click()
    expect(page.locator("#run h2")).to_have_text("long")
    page.get_by_role("button", name="Pause: long").click()
    expect(page.locator("#run")).to_contain_text("Paused")
    paused = runs.get("long").step
    page.get_by_role("button", name="Resume: long").click()
    wait_for(lambda: runs.get("long").step > paused, lambda: (runs.folder / "long" / "log.txt").read_text()[-2000:])
    page.get_by_role("button", name="Stop now: long").click()
    expect(page.locator("#run")).to_contain_text("stopped at once")
    click_while_drawn_anew(page.get_by_role("button", name="Show the log"))
    expect(page.locator("#run-log pre")).to_contain_text("resumed at step")
    page.get_by_role("button", name="Delete: long").click()
    expect(page.locator("#runs .run")).to_have_count(1)
    page.locator("#toast").get_by_role("button", name="Undo").click()
    expect(page.locator("#run h2")).to_have_text("long")
    assert runs.get("long").checkpoints()


def test_settings_are_opened_and_saved_as_yaml(page: Page, studio: StudioApp, tmp_path) -> None:
    page.get_by_role("tab", name="Training").click()
    page.get_by_role("button", name="As a file").click()
    (tmp_path / "bad.yaml").write_text("target: lora\nmodel: mira-nano\ndataset: x\nlearning_rat: 1\n")
    page.locator("#train-file input[type=file]").set_input_files(tmp_path / "bad.yaml")
    expect(page.locator("#train-error")).to_contain_text("Did you mean 'learning_rate'")
    (tmp_path / "good.yaml").write_text(f"target: temporal\nmodel: mira-nano\ndataset: {studio.data_dir}/datasets/toyworld\nlearning_rate: 3.0e-4\n")
    page.locator("#train-file input[type=file]").set_input_files(tmp_path / "good.yaml")
    expect(page.locator("#train-learning-rate").get_by_role("textbox")).to_have_value("0.0003")
    page.locator("#run-name").get_by_role("textbox").fill("mine")
    with page.expect_download() as download:
        page.click("#save-yaml")
    assert download.value.suggested_filename == "mine.yaml"
    text = download.value.path().read_text()
    assert "target: temporal" in text and "learning_rate: 0.0003" in text


def test_captions_are_edited_in_the_page(page: Page, studio: StudioApp, tmp_path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"")
        (tmp_path / f"{name}.txt").write_text(f"a red ball {name}")
    page.get_by_role("tab", name="Training").click()
    page.get_by_role("button", name="Edit captions").click()
    page.click("#read-captions")
    expect(page.locator("#caption-line")).to_contain_text("Name your clips above")
    page.locator("#train-dataset").get_by_role("textbox").fill(str(tmp_path))
    page.click("#read-captions")
    expect(page.locator("#caption-table")).to_contain_text("a red ball b")
    page.locator("#caption-find").get_by_role("textbox").fill("red")
    page.locator("#caption-replace").get_by_role("textbox").fill("blue")
    page.click("#caption-replace-all")
    expect(page.locator("#caption-line")).to_contain_text("Changed in 2 captions; not saved yet")
    assert (tmp_path / "a.txt").read_text() == "a red ball a"
    page.click("#save-captions")
    expect(page.locator("#caption-line")).to_contain_text("2 captions saved")
    assert (tmp_path / "a.txt").read_text().strip() == "a blue ball a" and (tmp_path / "b.txt").read_text().strip() == "a blue ball b"


def test_what_the_tab_taught_a_lora_is_in_the_video_with_it_and_not_without(page: Page, studio: StudioApp, tmp_path) -> None:
    """A new look at small size: a word whose clips are nothing but one colour."""
    for number in range(4):
        save_video(np.full((4, 80, 128, 3), TEAL, np.uint8), tmp_path / f"{number}.mp4", fps=6)
        (tmp_path / f"{number}.txt").write_text("a zorp")
    page.get_by_role("tab", name="Training").click()
    basic = {"dataset": tmp_path, "max-train-steps": 24, "learning-rate": "4e-3", "train-batch-size": 1, "num-frames": 4, "validation-prompts": ""}
    more = {"lr-warmup-steps": 2, "lr-decay-steps": 0, "ema-decay": 0.5, "validation-clips": 0, "checkpoint-every": 24, "caption-dropout": 0, "timestep-logit-mean": 0.2, "num-threads": 1}
    for name, text in basic.items():
        page.locator(f"#train-{name}").get_by_role("textbox").fill(str(text))
    unfold(page, "All settings")
    expect(page.locator(f"#train-{ADVANCED[-1].replace('_', '-')}")).to_be_visible()
    for name, text in more.items():
        page.locator(f"#train-{name}").get_by_role("textbox").fill(str(text))
    page.locator("#run-name").get_by_role("textbox").fill("zorp")
    page.click("#launch")
    expect(page.locator("#run h2")).to_have_text("zorp")
    expect(page.locator("#run")).to_contain_text("Finished")
    page.get_by_role("button", name="Use step 24 in Generate").click()
    expect(page.locator("#estimate")).to_contain_text("LoRA zorp-step-24")
    page.fill("#prompt textarea", "a zorp")
    page.locator("#seed").get_by_role("textbox").fill("3")
    page.locator("#keep-seed input").check()
    unfold(page, "More settings")
    page.fill("#steps input", "6")
    page.fill("#frames input", "4")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#viewer .caption-line")).to_contain_text("LoRA zorp-step-24")
    page.get_by_label("LoRAs").fill("")
    page.get_by_role("button", name="Generate", exact=True).click()
    made: dict[str | None, np.ndarray] = {}

    def both() -> bool:
        for file in (studio.data_dir / "videos").glob("*.mp4"):
            settings = read_settings(file)
            if (settings["prompt"], settings["seed"], settings["num_inference_steps"]) == ("a zorp", 3, 6):
                made[settings["loras"] or None] = read_video(file)
        return len(made) == 2

    wait_for(both, "the two videos")
    distances = {lora: np.abs(frames.astype(float) - TEAL).mean() for lora, frames in made.items()}
    assert distances["zorp-step-24"] < distances[None] / 2

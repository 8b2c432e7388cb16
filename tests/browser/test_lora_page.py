"""A LoRA from the Models tab to a video, and a training run that has the device."""

from __future__ import annotations

import torch
from peft import LoraConfig
from hands import unfold
from playwright.sync_api import Page, expect
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core import MiraTransformer3DModel, read_settings
from core.device_lock import device_held, lock_path
from core.loras import MADE_FROM
from core.provenance import model_hash
from core.releases import EMBEDDED
from studio_app import StudioApp
from training.targets.transformer import LORA_FILE


def test_a_lora_is_chosen_and_used(page: Page, studio: StudioApp) -> None:
    page.get_by_role("tab", name="Models").click()
    expect(page.locator("#models")).to_contain_text("None yet.")
    transformer = MiraTransformer3DModel.from_pretrained(EMBEDDED / "mira-nano" / "transformer")
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    torch.manual_seed(0)
    transformer.save_lora_adapter(studio.data_dir / "made", weight_name=LORA_FILE)
    (studio.data_dir / "loras").mkdir()
    made = studio.data_dir / "made" / LORA_FILE
    with safe_open(made, "pt") as file:
        save_file(load_file(made), studio.data_dir / "loras" / "snow.safetensors", {**file.metadata(), MADE_FROM: '{"run": "winter", "model": "mira-nano"}'})
    expect(page.locator("#models")).to_contain_text("from the run winter · for mira-nano")
    page.get_by_role("button", name="Use: snow").click()
    unfold(page, "More settings")
    field = page.get_by_label("LoRAs")
    expect(field).to_have_value("snow")
    field.fill("snow@0.5, ice")
    page.fill("#prompt textarea", "a red ball")
    page.fill("#steps input", "2")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#form-error")).to_contain_text("There is no LoRA 'ice'")
    field.fill("snow@0.5")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#viewer .caption-line")).to_contain_text("LoRA snow@0.5")
    expect(page.locator("#strip .card")).to_have_count(1)
    (video,) = (studio.data_dir / "videos").glob("*.mp4")
    settings = read_settings(video)
    assert settings["loras"] == "snow@0.5" and len(settings["made_with"]["loras"]["snow"]["hash"]) == 12
    studio.wait(studio.enqueue(), "done")
    page.get_by_role("tab", name="Gallery").click()
    expect(page.locator("#gallery [data-slot]")).to_have_count(2)
    page.locator("#gallery-run input").click()
    page.get_by_role("option", name="winter").click()
    expect(page.locator("#gallery [data-slot]")).to_have_count(1)


def test_what_cannot_be_installed_is_said_on_the_models_tab(page: Page, studio: StudioApp) -> None:
    page.get_by_role("tab", name="Models").click()
    expect(page.locator("#models")).to_contain_text("comes with the studio")
    expect(page.locator("#models")).to_contain_text(model_hash(EMBEDDED / "mira-nano"))
    page.get_by_role("button", name="Download: TencentARC/Mira-v0:128").click()
    expect(page.locator("#models .chore")).to_contain_text("Getting TencentARC/Mira-v0:128")
    expect(page.locator("#models [role=alert]")).to_contain_text("Download 128-v0.pt (about 12 GB) from https://huggingface.co/TencentARC/Mira-v0")
    page.locator("#models").get_by_role("button", name="Close").click()
    expect(page.locator("#models [role=alert]")).to_have_count(0)
    page.get_by_role("button", name="Convert a checkpoint file").click()
    page.wait_for_timeout(500)  # a box that is filled in the moment in which it appears loses what was typed
    page.get_by_label("Checkpoint file").fill("/nowhere/mine.pt")
    expect(page.get_by_label("Checkpoint file")).to_have_value("/nowhere/mine.pt")
    page.get_by_role("button", name="Convert", exact=True).click()
    expect(page.locator("#convert-error")).to_contain_text("There is no file /nowhere/mine.pt on this machine.")


def test_requests_wait_while_a_run_has_the_device_and_say_so(page: Page, studio: StudioApp) -> None:
    with device_held(lock_path(studio.data_dir, "cpu")):
        expect(page.locator("#device")).to_contain_text("waits for a training run")
        id = studio.enqueue()
        expect(page.locator("#viewer")).to_contain_text("A training run has the device")
        assert studio.call("status", id)["state"] == "waiting"
    studio.wait(id, "done")

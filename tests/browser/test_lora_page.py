"""A LoRA from the Models tab to a video, and a training run that has the device."""

from __future__ import annotations

import torch
from peft import LoraConfig
from playwright.sync_api import Page, expect

from core import MiraTransformer3DModel, read_settings
from core.device_lock import device_held, lock_path
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
    (studio.data_dir / "made" / LORA_FILE).rename(studio.data_dir / "loras" / "snow.safetensors")
    page.get_by_role("button", name="Use: snow").click()
    page.get_by_role("button", name="More settings").click()
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


def test_requests_wait_while_a_run_has_the_device_and_say_so(page: Page, studio: StudioApp) -> None:
    with device_held(lock_path(studio.data_dir, "cpu")):
        expect(page.locator("#device")).to_contain_text("waits for a training run")
        id = studio.enqueue()
        expect(page.locator("#viewer")).to_contain_text("A training run has the device")
        assert studio.call("status", id)["state"] == "waiting"
    studio.wait(id, "done")

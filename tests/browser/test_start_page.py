"""Clips that start from a picture or a video, from the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image
from hands import unfold
from playwright.sync_api import Page, expect

from core.video_io import read_video


def shown_video(page: Page) -> Path:
    """The file in the viewer."""
    return Path(re.search(r"file=(/.*\.mp4)", page.locator("#viewer video").get_attribute("src")).group(1))


def test_a_video_is_continued_and_a_picture_begins_one(page: Page, tmp_path: Path) -> None:
    unfold(page, "More settings")
    for field, value in (("height", "32"), ("width", "32"), ("frames", "8"), ("steps", "8")):
        page.locator(f"#{field} input").fill(value)
    page.locator("#prompt textarea").fill("A big red ball stays still over the night.")
    page.locator("#generate").click()
    expect(page.locator("#viewer video")).to_be_visible()
    first = read_video(shown_video(page))

    page.get_by_role("button", name="Continue", exact=True).click()
    expect(page.locator("#start-line")).to_contain_text("The first 2 frames are the last ones of the video.")
    page.locator("#prompt textarea").fill("A big red ball stays still over a desert.")
    page.locator("#generate").click()
    expect(page.locator("#viewer video[aria-label='A big red ball stays still over a desert.']")).to_be_visible()
    second = read_video(shown_video(page))
    assert len(second) == 8
    dark, begins = first[-2].mean(), second[0].mean()
    assert dark < 90 and abs(begins - dark) < 20, "the night goes on before the desert comes"

    page.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#start-frames input")).to_have_value("2")
    page.get_by_role("button", name="Start from noise again").click()
    expect(page.locator("#start-line")).to_contain_text("Open a picture above")

    Image.fromarray(np.full((32, 32, 3), (200, 30, 30), np.uint8)).save(tmp_path / "red.png")
    page.locator("#opener-box input[type=file]").set_input_files(tmp_path / "red.png")
    expect(page.locator("#start-line")).to_contain_text("The first frame is the picture.")
    page.locator("#prompt textarea").fill("It begins red.")
    page.locator("#generate").click()
    expect(page.locator("#viewer video[aria-label='It begins red.']")).to_be_visible()
    red = read_video(shown_video(page))[0].reshape(-1, 3).mean(0)
    assert red[0] > red[1] + 60 and red[0] > red[2] + 60, "the picture"

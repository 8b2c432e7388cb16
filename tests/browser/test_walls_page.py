"""Grids, drafts and the user's own presets, on the page."""

from __future__ import annotations

import pytest
from hands import unfold
from playwright.sync_api import Page, expect

SMALL = (("height", "32"), ("width", "32"), ("frames", "4"), ("steps", "3"))


@pytest.fixture
def form(page: Page) -> Page:
    """The page with the smallest settings typed in."""
    expect.set_options(timeout=120_000)
    unfold(page, "More settings")
    for field, value in SMALL:
        page.locator(f"#{field} input").fill(value)
    return page


def test_a_grid_fills_while_its_videos_play(form: Page) -> None:
    form.locator("#prompt textarea").fill("A red ball.")
    unfold(form, "Grid of settings")
    form.locator("#axis-0-values input, #axis-0-values textarea").fill("2, blue")
    expect(form.locator("#grid-error")).to_contain_text("guidance_scale is 'blue'")
    form.locator("#axis-0-values input, #axis-0-values textarea").fill("2..4")
    form.locator("#axis-1 input").click()
    form.get_by_role("option", name="Words of the prompt").click()
    form.locator("#axis-1-values input, #axis-1-values textarea").fill("red, blue")
    expect(form.locator("#make-grid")).to_have_text("Make the grid of 6 videos")
    expect(form.locator("#grid-cost")).to_contain_text("32×32, 4 frames, 0.7 s")
    form.locator("#make-grid").click()
    cells = form.locator("#viewer .cell")
    expect(cells).to_have_count(6)
    expect(cells.first.locator("video")).to_be_visible()
    form.evaluate("window.first = document.querySelector('#viewer .cell video'); first.addEventListener('emptied', () => { window.restarted = true })")
    expect(form.locator("#viewer .cell video")).to_have_count(6)
    assert form.evaluate("[window.first === document.querySelector('#viewer .cell video'), Boolean(window.restarted)]") == [True, False]
    expect(form.locator("#viewer thead th")).to_have_text(["Guidance →\nWords of the prompt ↓", "2", "3", "4"], use_inner_text=True)
    expect(form.locator("#viewer tbody th")).to_have_text(["red", "blue"])
    cells.nth(4).locator("button").click()
    expect(form.locator("#viewer .caption-prompt")).to_have_text("A blue ball.")
    expect(form.locator("#viewer .caption-line")).to_contain_text("guidance 3")
    form.get_by_role("button", name="Its grid").click()
    expect(form.locator("#viewer .cell video")).to_have_count(6)
    form.get_by_role("button", name="Close").click()
    expect(form.locator("#viewer .caption-prompt")).to_be_visible()


def test_ticked_drafts_are_made_in_full(form: Page) -> None:
    form.locator("#prompt textarea").fill("A draft.")
    form.locator("#seed input, #seed textarea").first.fill("40")
    form.get_by_role("button", name="Drafts first").click()
    expect(form.locator("#draft-count input")).to_have_value("8")  # it is there, and stays what is typed
    form.locator("#draft-count input").fill("3")
    form.locator("#draft-steps input").fill("2")
    expect(form.locator("#drafts-cost")).to_contain_text("GB to make all 3")
    form.locator("#draft-steps input").fill("6")
    expect(form.locator("#drafts-cost p")).to_have_count(0)
    form.locator("#make-drafts").click()
    expect(form.locator("#drafts-error")).to_contain_text("fewer than the full run's 3")
    form.locator("#draft-steps input").fill("1")
    form.locator("#make-drafts").click()
    expect(form.locator("#viewer .cell video")).to_have_count(3)
    form.get_by_role("button", name="Make the ticked ones in full").click()
    expect(form.locator("#toast")).to_contain_text("Tick the drafts")
    form.get_by_role("checkbox", name="Seed 41").check()
    form.get_by_role("button", name="Make the ticked ones in full").click()
    expect(form.locator("#viewer .caption-line")).to_contain_text("seed 41")
    expect(form.locator("#viewer .caption-line")).to_contain_text("3 steps")
    for seed in (60, 70):  # the ticks of one wall are not those of the next, which gets its elements
        form.locator("#seed input, #seed textarea").first.fill(str(seed))
        form.locator("#make-drafts").click()
        expect(form.get_by_role("checkbox", name=f"Seed {seed + 1}")).not_to_be_checked()
        form.get_by_role("checkbox", name=f"Seed {seed + 1}").check()


def test_settings_are_kept_under_a_name(form: Page) -> None:
    form.get_by_role("button", name="My presets").click()
    name, line = form.locator("#own-preset input"), form.locator("#preset-line")
    form.locator("#save-preset").click()
    expect(line).to_contain_text("Type a name")
    name.fill("Tiny")
    name.press("Enter")
    form.locator("#save-preset").click()
    expect(line).to_contain_text("Tiny: saved")
    form.locator("#steps input").fill("9")
    form.locator("#start > button").click()
    form.locator("#strength input").fill("0.3")
    name.fill("Soft")
    name.press("Enter")
    form.locator("#save-preset").click()
    expect(line).to_contain_text("Soft: saved")
    form.locator("#strength input").fill("0.9")
    name.click()
    form.get_by_role("option", name="Soft").click()
    expect(form.locator("#strength input")).to_have_value("0.3")
    name.click()
    form.get_by_role("option", name="Tiny").click()
    expect(line).to_contain_text("Tiny: in use")
    expect(form.locator("#strength input")).to_have_value("0.3")
    expect(form.locator("#steps input")).to_have_value("3")
    form.locator("#steps input").fill("8")
    form.locator("#save-preset").click()
    expect(form.locator(".toast")).to_contain_text("Preset Tiny replaced.")
    form.get_by_role("button", name="Undo").click()
    expect(form.locator(".toast")).to_have_count(0)
    name.click()
    form.get_by_role("option", name="Tiny").click()
    expect(form.locator("#steps input")).to_have_value("3")
    form.locator("#delete-preset").click()
    expect(form.locator(".toast")).to_contain_text("Preset Tiny deleted.")
    form.get_by_role("button", name="Undo").click()
    name.click()
    expect(form.get_by_role("option", name="Tiny")).to_be_visible()

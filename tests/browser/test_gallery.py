"""The gallery: filters, tags, many at once, files, keys."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import APIResponse, Browser, Page, Route, expect

from core.types import GenerationRequest
from core.video_io import read_settings, save_video
from studio_app import StudioApp


def call(studio_url: str, name: str, *data: Any) -> Any:
    """The answer of an endpoint."""
    return httpx.post(f"{studio_url}/gradio_api/run/{name}", json={"data": list(data)}, timeout=200).raise_for_status().json()["data"][0]


@pytest.fixture
def gallery(page: Page, studio_url: str) -> Page:
    """The Gallery tab with three videos, made once for this file."""
    small = {"height": 32, "width": 32, "num_frames": 4, "num_inference_steps": 1, "seed": 1}
    for prompt in ("First fish.", "Second fish.", "Third stone."):
        if not call(studio_url, "list_videos", 60, 0, prompt):
            assert call(studio_url, "generate", {**small, "prompt": prompt}, 180)["state"] == "done"
    page.get_by_role("tab", name="Gallery").click()
    expect(page.locator("#gallery .slot")).to_have_count(3)
    return page


def test_hundreds_of_videos_come_a_page_at_a_time(browser: Browser, tmp_path: Path, model: str) -> None:
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    for number in range(60):
        path = save_video(frames + number, tmp_path / "data" / "videos" / f"{number:03}.mp4", 6, GenerationRequest(f"Number {number:02}.", num_frames=4, height=32, width=32, seed=number).resolved().to_dict())
        os.utime(path, (1e9 + number, 1e9 + number))
    app = StudioApp(tmp_path / "data", model)
    app.start()
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        page = context.new_page()
        page.goto(app.url)
        page.get_by_role("tab", name="Gallery").click()
        expect(slots(page)).to_have_count(24)
        expect(slots(page).first).to_have_text("Number 59.")
        for more, shown in ((24, 48), (12, 60)):
            page.get_by_role("button", name=f"Show {more} more").click()
            expect(slots(page)).to_have_count(shown)
        expect(slots(page).last).to_have_text("Number 00.")
        expect(page.locator("#gallery .more")).to_have_count(0)
        page.get_by_role("textbox", name="Search prompts and #tags").fill("number 0")
        expect(slots(page)).to_have_count(15)
    finally:
        context.close()
        app.end()


def slots(page: Page):
    return page.locator("#gallery .card-prompt")


def test_filters_and_order_outlive_the_page(gallery: Page) -> None:
    def choose(widget: str, option: str) -> None:
        gallery.locator(f"#{widget} input").click()
        gallery.get_by_role("option", name=option).click()

    choose("gallery-order", "Oldest first")
    choose("gallery-model", "mira-nano")
    gallery.locator("#gallery-search :is(input, textarea)").fill("fish")
    expect(slots(gallery)).to_have_text(["First fish.", "Second fish."])
    gallery.wait_for_function("(localStorage.getItem('studio.gallery') || '').includes('fish')")
    gallery.reload()
    gallery.get_by_role("tab", name="Gallery").click()
    expect(slots(gallery)).to_have_text(["First fish.", "Second fish."])
    expect(gallery.locator("#gallery-search :is(input, textarea)")).to_have_value("fish")
    expect(gallery.locator("#gallery-order input")).to_have_value("Oldest first")
    expect(gallery.locator("#gallery-model input")).to_have_value("mira-nano")
    gallery.locator("#gallery-search :is(input, textarea)").fill("")
    expect(slots(gallery)).to_have_count(3)
    gallery.evaluate("localStorage.setItem('studio.gallery', '[1, 2, 3]')")  # another version's
    gallery.reload()
    gallery.get_by_role("tab", name="Gallery").click()
    expect(slots(gallery)).to_have_text(["Third stone.", "Second fish.", "First fish."])


def test_many_videos_are_tagged_filtered_zipped_deleted_and_brought_back(gallery: Page, tmp_path: Path) -> None:
    gallery.get_by_role("checkbox", name="Select: First fish.").check()
    gallery.get_by_role("checkbox", name="Select: Third stone.").check()
    expect(gallery.locator("#gallery-many [data-picked-count]")).to_have_text("2 selected")
    gallery.get_by_label("Tag", exact=True).last.fill("keep")
    gallery.get_by_role("button", name="Add tag").click()
    expect(gallery.locator("#gallery .tag:not(.fault)")).to_have_count(2)  # clips of one step may well flicker, and are told so
    gallery.get_by_role("textbox", name="Search prompts and #tags").fill("#keep fish")
    expect(slots(gallery)).to_have_text(["First fish."])
    expect(gallery.locator("#gallery-many [data-picked-count]")).to_have_text("2 selected")
    gallery.get_by_role("textbox", name="Search prompts and #tags").fill("")
    expect(slots(gallery)).to_have_count(3)
    with gallery.expect_download() as download:
        gallery.get_by_role("button", name="Download zip").click()
    download.value.save_as(tmp_path / "many.zip")
    with zipfile.ZipFile(tmp_path / "many.zip") as archive:
        assert sorted(archive.namelist()) == ["first-fish-1.mp4", "third-stone-1.mp4"]
    gallery.get_by_role("button", name="Dismiss").click()
    gallery.get_by_role("button", name="Delete", exact=True).click()
    expect(slots(gallery)).to_have_text(["Second fish."])
    expect(gallery.locator("#gallery-many [data-picked-count]")).to_have_text("Tick videos to work on many at once.")
    gallery.get_by_role("button", name="Undo").click()
    expect(slots(gallery)).to_have_count(3)


def test_an_answer_that_another_overtakes_does_not_stay(gallery: Page, studio_url: str) -> None:
    """A poll that shows a new star is answered after the search that was typed meanwhile: the search stays what is shown."""
    held: list[tuple[Route, APIResponse]] = []

    def withhold(route: Route) -> None:
        answer = route.fetch()
        if not held and answer.text().count("card-prompt") == 3:
            held.append((route, answer))
        else:
            route.fulfill(response=answer)

    gallery.route("**/gradio_api/run/predict*", withhold)
    id = gallery.locator("#gallery .slot").first.get_attribute("data-slot")
    call(studio_url, "star", id, True)
    for _ in range(2400):
        if held:
            break
        gallery.wait_for_timeout(50)
    assert held, "no poll showed the star"
    gallery.get_by_role("textbox", name="Search prompts and #tags").fill("Second")
    expect(slots(gallery)).to_have_text(["Second fish."])
    route, answer = held[0]
    with gallery.expect_request_finished(lambda request: request == route.request):
        route.fulfill(response=answer)
    gallery.wait_for_timeout(200)
    expect(slots(gallery)).to_have_text(["Second fish."])
    call(studio_url, "star", id, False)


def test_the_order_and_the_keys(gallery: Page) -> None:
    gallery.locator("#gallery-order input").click()
    gallery.get_by_role("option", name="By prompt").click()
    expect(slots(gallery)).to_have_text(["First fish.", "Second fish.", "Third stone."])
    gallery.locator("#gallery .card").first.focus()
    gallery.keyboard.press("ArrowRight")
    gallery.keyboard.press("x")
    expect(gallery.get_by_role("checkbox", name="Select: Second fish.")).to_be_checked()
    gallery.keyboard.press("s")
    expect(gallery.locator(".slot").nth(1).locator(".star")).to_be_visible()
    gallery.keyboard.press("/")
    expect(gallery.get_by_role("textbox", name="Search prompts and #tags")).to_be_focused()


def test_the_table_has_what_is_measured_in_columns_and_is_sorted_by_one(gallery: Page) -> None:
    gallery.get_by_role("button", name="As a table").click()
    rows = gallery.locator("#gallery .measured tbody tr")
    expect(rows).to_have_count(3)
    expect(gallery.locator("#gallery .measured")).not_to_contain_text("Measuring")
    column = [header.split(",")[0].strip() for header in gallery.locator("#gallery .measured thead th").all_inner_texts()].index("Sharpness")
    values = lambda: [float(text) for text in gallery.locator(f"#gallery .measured tbody tr > :nth-child({column + 1})").all_inner_texts()]  # noqa: E731
    before = values()
    assert len(set(before)) == 3
    for arrow, order in (("↓", sorted(before, reverse=True)), ("↑", sorted(before))):
        gallery.get_by_role("button", name="Sharpness", exact=True).or_(gallery.get_by_role("button", name="Sharpness ↓")).click()
        expect(gallery.get_by_role("columnheader", name=f"Sharpness {arrow}")).to_be_visible()
        assert values() == order
    rows.first.locator(".card").focus()
    gallery.keyboard.press("ArrowDown")
    gallery.keyboard.press("x")
    expect(rows.nth(1).locator(".tick")).to_be_checked()
    gallery.get_by_role("button", name="As pictures").click()
    expect(gallery.locator("#gallery .slot")).to_have_count(3)


def test_a_gif_and_a_file_without_settings(gallery: Page, tmp_path: Path) -> None:
    gallery.get_by_role("button", name="Show: First fish.").last.click()
    expect(gallery.locator("#viewer .caption-prompt")).to_have_text("First fish.")
    for choice, suffix, kept in (("Download as gif", ".gif", True), ("Download as gif", ".gif", True), ("Download without settings", ".mp4", False)):
        gallery.locator("#viewer summary").click()
        with gallery.expect_download() as download:
            gallery.get_by_role("button", name=choice).click()
        assert download.value.suggested_filename.endswith(suffix)
        file = tmp_path / f"file{suffix}"
        download.value.save_as(file)
        assert (read_settings(file) is not None) == kept
    gallery.locator("#viewer summary").click()
    gallery.get_by_role("button", name="Smooth playback").click()
    expect(gallery.locator("#viewer .caption-line")).to_contain_text("interpolated to 24 frames a second by ffmpeg")
    gallery.wait_for_function("(() => { const v = document.querySelector('#viewer video'); return v.readyState >= 2 && v.src.includes('24fps') })()")


def test_a_video_is_verified(gallery: Page) -> None:
    gallery.get_by_role("button", name="Show: Second fish.").last.click()
    gallery.locator("#viewer summary").click()
    gallery.get_by_role("button", name="Verify", exact=True).click()
    expect(gallery.locator("#queue")).to_contain_text("Verify: Second fish.")
    expect(gallery.locator("#viewer .verdict[role=status]")).to_contain_text("Bit-exact")
    gallery.locator("#viewer summary").click()
    gallery.get_by_role("button", name="Details").click()
    expect(gallery.locator("#viewer .details")).to_contain_text("Model hash")


def test_deleted_videos_are_found_restored_and_removed_for_good(gallery: Page, studio_url: str) -> None:
    """In place of Undo, which is dismissed; by keys alone, and at the width of a phone."""
    trash = gallery.get_by_role("checkbox", name="Deleted")
    for prompt in ("Third stone.", "First fish."):
        gallery.get_by_role("checkbox", name=f"Select: {prompt}").check()
        gallery.get_by_role("button", name="Delete", exact=True).click()
        expect(gallery.get_by_role("button", name=f"Show: {prompt}").locator("visible=true")).to_have_count(0)
    gallery.get_by_role("button", name="Dismiss").click()
    trash.focus()
    gallery.keyboard.press("Space")
    expect(slots(gallery)).to_have_text(["First fish.", "Third stone."])
    expect(gallery.locator("#gallery")).to_contain_text("2 deleted videos")
    expect(gallery.locator("#gallery .card-line").first).to_contain_text("kept until")
    expect(gallery.locator("#gallery-many")).to_be_hidden()
    assert gallery.evaluate("(() => { const box = document.querySelector('#gallery-deleted'); return box.scrollWidth <= box.clientWidth })()"), "its label is whole"
    assert gallery.evaluate("Promise.all([...document.querySelectorAll('#gallery video')].flatMap((video) => [video.src, video.poster]).map(async (url) => (await fetch(url)).status))") == [200] * 4
    gallery.set_viewport_size({"width": 390, "height": 844})
    gallery.locator("#gallery .card").first.focus()
    gallery.keyboard.press("Delete")  # nothing more can be deleted here
    gallery.keyboard.press("ArrowRight")
    gallery.keyboard.press("x")
    expect(gallery.locator("#gallery .picked [data-picked-count]")).to_have_text("1 selected")
    assert gallery.evaluate("document.documentElement.scrollWidth") <= 390
    gallery.get_by_role("button", name="Restore selected").focus()
    gallery.keyboard.press("Enter")
    expect(slots(gallery)).to_have_text(["First fish."])
    gallery.locator("#gallery summary").focus()
    gallery.keyboard.press("Enter")
    expect(gallery.get_by_role("button", name="Remove 1 deleted video for good: frees")).to_be_visible()
    assert gallery.evaluate("document.querySelector('#gallery .menu > div').getBoundingClientRect().left") >= 0
    gallery.get_by_role("button", name="Remove 1 deleted video for good: frees").focus()
    gallery.keyboard.press("Enter")
    expect(gallery.locator("#gallery")).to_contain_text("Nothing is in the trash")
    trash.uncheck()
    gallery.set_viewport_size({"width": 1440, "height": 900})
    expect(slots(gallery)).to_have_text(["Third stone.", "Second fish."])
    assert call(studio_url, "find_videos", 60, 0, "", False, "", "", "", 0, "newest", True) == []

"""The Compare tab: videos that stay in step, what differs between them, the labelled file and the blind test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from core.types import GenerationRequest
from core.video_io import read_settings, save_video
from studio_app import StudioApp, wait_for

pytestmark = pytest.mark.clock

BALL, FOURTH, LARGE = "A ball.", "A fourth.", "A large one."
PARTED = 10
"""The first frame in which the second video differs from the first."""


def grey(levels: np.ndarray, height: int = 80, width: int = 128) -> np.ndarray:
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (len(levels), height, width, 3)).copy()


FIVE = 16 + 8 * np.arange(24)
TWENTY = FIVE + np.where(np.arange(24) < PARTED, 0, 40)
FORTY = 16 + 16 * np.arange(12)
"""Half as many frames, at half the speed."""
LEVELS = {"5 steps": FIVE, "20 steps": TWENTY, "40 steps": FORTY}
"""The grey of each frame, so that a frame can be told by its looks."""


@pytest.fixture(scope="module")
def studio_url(tmp_path_factory: pytest.TempPathFactory, model: str) -> Iterator[str]:
    """A studio with six videos: three of one prompt and seed, newest first 5, 20 and 40 steps, one more like the first, and two too large to be held as pictures."""
    data = tmp_path_factory.mktemp("compare") / "data"
    made = [
        (FOURTH, 5, grey(FIVE), 6),
        (LARGE, 5, grey(16 + 4 * np.arange(40), 960, 960), 6),
        (LARGE, 20, grey(24 + 4 * np.arange(40), 960, 960), 6),
        (BALL, 40, grey(FORTY), 3),
        (BALL, 20, grey(TWENTY), 6),
        (BALL, 5, grey(FIVE), 6),
    ]
    for age, (prompt, steps, frames, fps) in enumerate(made):
        request = GenerationRequest(prompt=prompt, num_inference_steps=steps, num_frames=len(frames), height=frames.shape[1], width=frames.shape[2], output_fps=fps, seed=7).resolved()
        path = save_video(frames, data / "videos" / f"{age}.mp4", fps, request.to_dict())
        os.utime(path, (1e9 + age, 1e9 + age))
    app = StudioApp(data, model)
    app.start()
    yield app.url
    app.end()


def add(page: Page, search: str, count: int) -> None:
    """Add the newest videos of a prompt, from the gallery."""
    page.get_by_role("tab", name="Gallery").click()
    page.fill("#gallery-search input", search)
    expect(page.locator("#gallery .note").first).to_contain_text(re.compile("^[23] videos"))
    for index in range(count):
        page.locator("#gallery .slot").nth(index).get_by_role("button", name="Compare").click()
        expect(page.locator(".toast")).to_contain_text(f"{index + 1} of 4")
    page.get_by_role("button", name="Open Compare").click()
    expect(page.locator("#player [data-player]")).to_have_attribute("data-ready", "true")


def watch(page: Page, seconds: float) -> list[dict]:
    """What the page shows at each of its own frames: the clock, and each pane's frame number and grey."""
    return page.evaluate(
        """(seconds) => new Promise((done) => {
            const player = document.querySelector("#player [data-player]"), seen = [], end = performance.now() + 1000 * seconds;
            const look = () => {
                const panes = [...player.querySelectorAll(".screens figure")].map((figure) => {
                    const canvas = figure.firstChild, [grey] = canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
                    return { label: figure.innerText, frame: Number(figure.dataset.frame), grey };
                });
                seen.push({ tick: Number(player.dataset.tick), panes });
                if (performance.now() < end) requestAnimationFrame(look); else done(seen);
            };
            requestAnimationFrame(look);
        })""",
        seconds,
    )


def tick(page: Page) -> int:
    return int(page.locator("#player [data-player]").get_attribute("data-tick"))


def stage(page: Page, share: float) -> int:
    """The grey at that share of the overlay's width."""
    return page.evaluate("(share) => { const c = document.querySelector('#player .overlay canvas'); return c.getContext('2d').getImageData(c.width * share, c.height / 2, 1, 1).data[0] }", share)


def test_three_videos_stay_in_step_while_playing(page: Page) -> None:
    add(page, BALL, 3)
    expect(page.locator("#player [data-do=play]")).to_have_text("Pause")
    seen = watch(page, 3)
    assert len({look["tick"] for look in seen}) > 8, "it plays"
    late = 0
    for look in seen:
        for pane in look["panes"]:
            levels = next(levels for steps, levels in LEVELS.items() if steps in pane["label"])
            assert pane["frame"] == look["tick"] * len(levels) // 24, look
            apart = [abs(int(level) - pane["grey"]) for level in levels[max(0, pane["frame"] - 1) : pane["frame"] + 1]]
            assert min(apart) <= 3, f"the picture is not that of its frame, nor of the one before: {look}"
            late += apart[-1] > 3
    assert late <= 0.02 * 3 * len(seen), "a busy browser shows a new picture late now and then, no more"

    focus = page.locator("#player [data-do=play]")
    focus.click()
    expect(focus).to_have_text("Play")
    for key, to in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 23)):
        page.keyboard.press(key)
        assert tick(page) == to
    assert [pane["frame"] for pane in watch(page, 0)[-1]["panes"]] == [23, 23, 11]
    page.get_by_role("button", name="Difference", exact=True).click()
    page.locator("#player").get_by_label("Second video").select_option("C")
    assert abs(stage(page, 0.5) - 4 * (FIVE[23] - FORTY[11])) <= 16, "the first and the third"
    page.locator("#player .loop").uncheck()
    focus.click()
    expect(page.locator("#player [data-player]")).to_have_attribute("data-tick", "23")
    expect(focus).to_have_text("Play")


def test_four_videos_are_compared_and_a_fifth_is_refused_in_words(page: Page, studio_url: str) -> None:
    add(page, BALL, 3)
    page.get_by_role("tab", name="Gallery").click()
    page.fill("#gallery-search input", FOURTH)
    expect(page.locator("#gallery .slot")).to_have_count(1)
    page.locator("#gallery .slot").get_by_role("button", name="Compare").click()
    expect(page.locator(".toast")).to_contain_text("4 of 4")
    page.fill("#gallery-search input", LARGE)
    expect(page.locator("#gallery .slot")).to_have_count(2)
    page.locator("#gallery .slot").first.get_by_role("button", name="Compare").click()
    expect(page.locator(".toast")).to_contain_text("4 videos are compared at most")
    page.get_by_role("button", name="Open Compare").click()
    expect(page.locator("#player [data-player]")).to_have_attribute("data-ready", "true")
    expect(page.locator("#player .screens figure")).to_have_count(4)
    seen = watch(page, 2)
    assert len({look["tick"] for look in seen}) > 5, "they play"
    for look in seen:
        assert [pane["frame"] for pane in look["panes"]] == [look["tick"], look["tick"], look["tick"] // 2, look["tick"]], look


def test_what_was_chosen_is_compared_after_a_reload_though_its_tab_was_never_opened(page: Page) -> None:
    page.get_by_role("tab", name="Gallery").click()
    for index in range(2):
        page.locator("#gallery .slot").nth(index).get_by_role("button", name="Compare").click()
        expect(page.locator(".toast")).to_contain_text(f"{index + 1} of 4")
    expect(page.locator("#tray")).to_have_count(0)
    page.reload()
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#tray .chosen li")).to_have_count(2)


def test_what_is_compared_is_so_after_a_reload_but_for_what_was_deleted(page: Page, studio_url: str) -> None:
    add(page, BALL, 3)
    chosen = page.locator("#tray .chosen li")
    words = chosen.locator(".card-line").all_inner_texts()
    page.reload()
    page.get_by_role("tab", name="Compare").click()
    expect(chosen.locator(".card-line")).to_have_text(words)
    first = page.locator("#kept [data-compared]").get_attribute("data-compared").split(",")[0]
    page.goto(f"{studio_url}/studio/version")
    httpx.post(f"{studio_url}/gradio_api/run/delete_video", json={"data": [first]}, timeout=200).raise_for_status()
    try:
        page.goto(studio_url)
        page.get_by_role("tab", name="Compare").click()
        expect(chosen.locator(".card-line")).to_have_text(words[1:])
        expect(page.locator("#player .screens figure")).to_have_count(2)
    finally:
        httpx.post(f"{studio_url}/gradio_api/run/restore_video", json={"data": [first]}, timeout=200).raise_for_status()
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#tray .tray-empty")).to_be_visible()
    page.wait_for_function("localStorage.getItem('studio.compared') === ''")


def soon(condition: Callable[[], bool], what: str = "the page to show it") -> None:
    """A seek and the picture of its frame take a busy browser a moment."""
    wait_for(condition, what)


def test_views_differences_and_a_poll(page: Page, studio_url: str) -> None:
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#tray")).to_contain_text("Press Compare below a video")
    page.get_by_role("button", name="Compare the two newest").click()
    player = page.locator("#player [data-player]")
    expect(player).to_have_attribute("data-ready", "true")
    expect(page.locator("#player figcaption").nth(0)).to_have_text("A · 20 steps")
    expect(page.locator("#player figcaption").nth(1)).to_have_text("B · 5 steps")
    expect(page.locator("#facts table", has_text="Settings that differ").locator("tbody tr")).to_have_text(["Steps205"])
    part = page.get_by_role("button", name="Where they part")
    part.click()
    soon(lambda: tick(page) == PARTED)
    expect(page.locator("#player .legend")).to_contain_text(f"They part at frame {PARTED + 1}.")
    curve = page.locator("#player .curve")
    curve.click(position={"x": curve.bounding_box()["width"] * 3 / 23, "y": 20})
    soon(lambda: tick(page) == 3)

    part.click()
    for view, expected in (("Wipe", (TWENTY[PARTED], FIVE[PARTED])), ("Onion skin", (FIVE[PARTED] + 20,) * 2), ("Difference", (160, 160))):
        page.get_by_role("button", name=view, exact=True).click()
        soon(lambda: np.abs(np.subtract([stage(page, 0.2), stage(page, 0.8)], expected)).max() <= (16 if view == "Difference" else 4), view)
    page.keyboard.press("ArrowLeft")
    soon(lambda: stage(page, 0.5) <= 12, "before they part nothing differs")
    page.get_by_role("button", name="Wipe", exact=True).click()
    page.keyboard.press("ArrowRight")
    overlay = page.locator("#player .overlay canvas")
    overlay.click(position={"x": overlay.bounding_box()["width"] * 0.9, "y": 40})
    soon(lambda: abs(stage(page, 0.8) - TWENTY[PARTED]) <= 4, "the wipe follows the pointer")

    page.evaluate("window.kept = document.querySelector('#player canvas')")
    StudioApp.enqueue(Remote(studio_url), prompt="Meanwhile.")
    expect(page.locator("#queue .job.done")).to_have_count(1)
    assert page.evaluate("kept === document.querySelector('#player canvas')") and tick(page) == PARTED
    page.get_by_role("button", name="Swap B with A").click()
    expect(page.locator("#player figcaption").nth(0)).to_have_text("A · 5 steps")
    assert tick(page) == PARTED, "the clock keeps its place"

    page.get_by_role("button", name="Make a labelled mp4").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the labelled mp4").click()
    told = read_settings(download.value.path())["comparison"]
    assert [one["num_inference_steps"] for one in told] == [5, 20]
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(player).to_be_hidden()
    page.get_by_role("button", name="Undo").click()
    expect(player).to_be_visible()


class Remote:
    """The endpoints of a studio that another fixture has started."""

    def __init__(self, url: str):
        from gradio_client import Client

        self.client = Client(url, verbose=False)
        self.call = lambda name, *values: self.client.predict(*values, api_name=f"/{name}")


def test_large_videos_are_put_right_while_they_play(page: Page) -> None:
    add(page, LARGE, 2)
    expect(page.locator("#player [data-player]")).to_have_attribute("data-drawn", "videos")
    watch(page, 1)
    seen = [[pane["frame"] for pane in look["panes"]] for look in watch(page, 4)]
    assert len({first for first, _ in seen}) > 8, "they play"
    together = [abs(first - second) <= 1 for first, second in seen]
    assert sum(together) >= 0.95 * len(together), seen


def test_a_blind_vote_is_counted_and_can_be_taken_back(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Start a blind test").click()
    page.locator("#blind").get_by_role("button", name="Steps").click()
    blind = page.locator("#blind-player [data-player]")
    expect(blind).to_have_attribute("data-ready", "true")
    expect(blind.locator(".screens figcaption")).to_have_text(["A", "B"])
    page.keyboard.press("1")
    expect(page.locator("#verdict caption")).to_have_text("Steps: 1 vote")
    expect(page.locator("#verdict")).to_contain_text("None is surely better yet")
    page.get_by_role("button", name="No difference").click()
    expect(page.locator("#verdict caption")).to_have_text("Steps: 2 votes")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#verdict caption")).to_have_text("Steps: 1 vote")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_panes_stack(browser: Browser, studio_url: str, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(studio_url)
    page.wait_for_selector("#queue h2")
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare the two newest").click()
    expect(page.locator("#player [data-player]")).to_have_attribute("data-ready", "true")
    first, second = (page.locator("#player .screens figure").nth(index).bounding_box() for index in range(2))
    assert second["y"] >= first["y"] + first["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()

"""What the page promises beside the main path: polls disturb nothing, prompts are text, files carry their settings."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import APIResponse, Browser, Locator, Page, Route, expect
from studio_app import PATIENCE

from core.types import GenerationRequest
from core.video_io import read_settings, save_video

LONG = 1000
"""Steps of a request that is still running when something is done to it."""


class Api:
    """The studio's named endpoints: another user at work beside the page."""

    def __init__(self, url: str):
        self.url = url

    def call(self, name: str, *data: Any) -> Any:
        return httpx.post(f"{self.url}/gradio_api/run/{name}", json={"data": list(data)}, timeout=PATIENCE).raise_for_status().json()["data"][0]

    def enqueue(self, prompt: str, **settings: Any) -> str:
        """Queue a clip of the smallest kind."""
        small = {"height": 32, "width": 32, "num_frames": 4, "num_inference_steps": 2, "seed": 1}
        return self.call("enqueue", {**small, "prompt": prompt, **settings})["id"]

    def finish(self, id: str) -> str:
        """The state in which a request ended."""
        deadline = time.monotonic() + PATIENCE
        while (status := self.call("status", id))["state"] in ("waiting", "running"):
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        return status["state"]


@pytest.fixture
def api(studio_url: str) -> Api:
    return Api(studio_url)


def job(page: Page, prompt: str, state: str) -> Locator:
    """The row of the queue with that prompt, once it is in that state."""
    return page.locator(f".job.{state}").filter(has_text=prompt)


def drag(moved: Locator, other: Locator, side: str) -> None:
    """Drag a row to above or below another one."""
    box = other.bounding_box()
    moved.drag_to(other, target_position={"x": box["width"] / 2, "y": box["height"] * (0.2 if side == "above" else 0.8)})


def test_the_form_is_as_it_was_left_and_as_it_was_before_it_was_filled(api: Api, page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="More settings").click()
    typed = {"steps": "9", "height": "32", "width": "48", "guidance": "4.5", "count": "2", "seed": "123"}
    for field, value in typed.items():
        page.locator(f"#{field} :is(input[type=number], input[type=text], textarea)").first.fill(value)
    page.locator("#keep-seed input").check()
    page.locator("#prompt textarea").fill("Mine.")
    page.wait_for_function("localStorage.getItem('studio.prompt') === 'Mine.' && localStorage.getItem('studio.form').includes('Mine.')")
    page.reload()

    def shown() -> None:
        for field, value in typed.items():
            if field in ("count", "seed", "guidance") or page.is_visible(f"#{field}"):
                expect(page.locator(f"#{field} :is(input[type=number], input[type=text], textarea)").first).to_have_value(value)
        expect(page.locator("#prompt textarea")).to_have_value("Mine.")
        expect(page.locator("#keep-seed input")).to_be_checked()

    shown()
    expect(page.locator("#generate")).to_have_text("Generate 2 videos")
    page.get_by_role("button", name="More settings").click()
    shown()
    id = api.enqueue("Of another day.", seed=5)
    assert api.finish(id) == "done"
    drop(page, Path(api.call("status", id)["video"]))
    expect(page.locator("#prompt textarea")).to_have_value("Of another day.")
    page.get_by_role("button", name="Back to what was there").click()
    shown()
    expect(page.locator("#form-error")).to_be_empty()


def test_a_poll_leaves_the_playing_video_and_the_focus_alone(api: Api, page: Page) -> None:
    assert api.finish(api.enqueue("Watch me.")) == "done"
    page.locator(".strip").get_by_role("button", name="Show: Watch me.").click()
    expect(page.locator("#viewer video[aria-label='Watch me.']")).to_be_visible()
    page.evaluate("window.watched = document.querySelector('#viewer video'); watched.addEventListener('emptied', () => { window.restarted = true })")
    prompt = page.locator("#prompt textarea")
    prompt.fill("")
    id = api.enqueue("Meanwhile.", num_inference_steps=LONG)
    expect(job(page, "Meanwhile.", "running")).to_be_visible()
    page.keyboard.type("typed while it runs")
    api.call("cancel", id)
    expect(job(page, "Meanwhile.", "cancelled")).to_be_visible()
    assert page.evaluate("[watched === document.querySelector('#viewer video'), watched.paused, Boolean(window.restarted)]") == [True, False, False]
    expect(prompt).to_be_focused()
    expect(prompt).to_have_value("typed while it runs")


def test_what_is_typed_while_the_page_comes_up_stays(browser: Browser, studio_url: str) -> None:
    """By one who types as soon as there is a box, and has a draft of another day; the first answer on what the form makes is late."""
    held: list[tuple[Route, APIResponse]] = []

    def withhold(route: Route) -> None:
        answer = route.fetch()
        if not held and '"Generate"' in answer.text():
            held.append((route, answer))
        else:
            route.fulfill(response=answer)

    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("""
        localStorage.setItem("studio.prompt", "A draft.");
        const early = new MutationObserver(() => {
            for (const [selector, text] of [["#prompt textarea", "Typed early."], ["#seed :is(input, textarea)", "77"]]) {
                const box = document.querySelector(selector);
                if (!box || box.dataset.early) continue;
                box.dataset.early = "yes";
                setTimeout(() => { box.value = text; box.dispatchEvent(new Event("input", { bubbles: true })); });
            }
        });
        early.observe(document, { childList: true, subtree: true });
    """)
    page.route("**/gradio_api/run/predict*", withhold)
    page.goto(studio_url)
    page.wait_for_selector("#queue h2")
    prompt = page.locator("#prompt textarea")
    expect(prompt).to_have_value("Typed early.")
    expect(page.locator("#seed :is(input, textarea)")).to_have_value("77")
    prompt.fill("One.\nTwo.")
    for _ in range(20 * PATIENCE):
        if held:
            break
        page.wait_for_timeout(50)
    assert held, "nothing said what the form makes"
    page.wait_for_timeout(1000)  # for the answer to what was typed last, were it asked for before this one is here
    route, answer = held[0]
    route.fulfill(response=answer)
    expect(page.get_by_role("button", name="Generate 2 videos")).to_be_visible()
    page.wait_for_timeout(500)
    expect(page.get_by_role("button", name="Generate 2 videos")).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")
    context.close()


def test_nothing_jumps_while_a_video_is_made(api: Api, page: Page) -> None:
    """The shifts that the browser itself counts (layout-shift, 0 is none) from a queued request to its video."""
    api.finish(api.enqueue("One before."))
    expect(page.locator("#viewer video")).to_have_attribute("aria-label", "One before.")
    page.evaluate(
        """() => {
            window.shifts = [];
            new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) window.shifts.push([entry.value, ...entry.sources.map((source) => source.node?.outerHTML?.slice(0, 120))]);
            }).observe({ type: "layout-shift" });
        }"""
    )
    api.finish(api.enqueue("One that is watched.", num_inference_steps=30))
    expect(page.locator("#viewer video")).to_have_attribute("aria-label", "One that is watched.")
    page.wait_for_timeout(1000)
    shifts = page.evaluate("window.shifts")
    assert sum(shift[0] for shift in shifts) < 0.02, shifts


def test_a_prompt_is_text_not_markup(api: Api, page: Page) -> None:
    prompt = "<img src=x onerror='window.broken=1'><b>bold</b> & \"quoted\""
    assert api.finish(api.enqueue(prompt)) == "done"
    expect(page.locator("#viewer .caption-prompt")).to_have_text(prompt)
    expect(job(page, prompt, "done")).to_be_visible()
    assert page.evaluate("window.broken") is None


def test_a_failed_request_says_why(api: Api, page: Page) -> None:
    assert api.finish(api.enqueue("Not with this model.", model="no-such-model")) == "failed"
    row = job(page, "Not with this model.", "failed")
    expect(row).to_contain_text("no-such-model")
    expect(row.get_by_role("button", name="Retry")).to_be_visible()


def test_a_paused_queue_waits(api: Api, page: Page) -> None:
    running = api.enqueue("The one that runs.", num_inference_steps=LONG)
    expect(job(page, "The one that runs.", "running")).to_be_visible()
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("button", name="Resume", exact=True)).to_be_visible()
    waiting = api.enqueue("The one that waits.")
    page.get_by_role("button", name="Pause: The one that runs.").click()
    paused = job(page, "The one that runs.", "paused")
    expect(paused.locator(".job-foot")).to_contain_text(f"of {LONG}")
    page.get_by_role("button", name="Resume: The one that runs.").click()
    expect(job(page, "The one that runs.", "waiting")).to_contain_text("goes on by itself")
    api.call("cancel", running)
    expect(job(page, "The one that runs.", "cancelled")).to_be_visible()
    expect(job(page, "The one that waits.", "waiting")).to_be_visible()
    page.get_by_role("button", name="Resume", exact=True).click()
    assert api.finish(waiting) == "done"


def test_a_download_carries_its_settings(api: Api, page: Page, tmp_path: Path) -> None:
    assert api.finish(api.enqueue("Take me home.", seed=9)) == "done"
    expect(page.locator("#viewer video[aria-label='Take me home.']")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#viewer").get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "take-me-home-9.mp4"
    download.value.save_as(tmp_path / "file.mp4")
    request = GenerationRequest.from_dict(read_settings(tmp_path / "file.mp4"))
    assert (request.prompt, request.seed) == ("Take me home.", 9)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_can_be_read_and_worked_by_everyone(api: Api, page: Page, scheme: str) -> None:
    """Names of controls, contrast and structure, by the rules of WCAG 2.1 A and AA that axe-core checks; a done request and its video are in sight."""
    page.emulate_media(color_scheme=scheme)
    page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", scheme == "dark")
    api.finish(api.enqueue("A done one."))
    expect(job(page, "A done one.", "done").first).to_be_visible()
    if not page.is_visible("#steps"):
        page.click("#more > button")
    expect(page.locator("#frames input")).to_be_visible()
    for tab in page.get_by_role("tab").all_inner_texts():
        page.get_by_role("tab", name=tab, exact=True).click()
        expect(page.get_by_role("tabpanel").locator("visible=true").first).to_be_visible()
        page.wait_for_timeout(500)  # a colour that is still changing is no colour
        found = Axe().run(page, options={"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}).response["violations"]
        assert not [(tab, rule["id"], node["html"][:160], node["failureSummary"]) for rule in found for node in rule["nodes"]]


def drop(page: Page, *paths: Path) -> None:
    """Drop files on the middle of the page, as from a file manager."""
    page.evaluate(
        """(files) => {
            const data = new DataTransfer();
            for (const [name, bytes] of files) data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name));
            for (const type of ["dragover", "drop"]) document.querySelector("#viewer").dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths],
    )


def test_a_line_is_a_video_and_braces_make_one_of_each(api: Api, page: Page) -> None:
    page.get_by_role("button", name="More settings").click()
    for field, value in (("height", "32"), ("width", "32"), ("frames", "4"), ("steps", "2")):
        page.locator(f"#{field} input").fill(value)
    page.locator("#prompt textarea").fill("A {red|blue} fish.\nA stone. --seed 5")
    page.locator("#count input").fill("2")
    button = page.locator("#generate")
    expect(button).to_have_text("Generate 6 videos")
    page.locator("#prompt textarea").fill("A {red|blue fish.")
    expect(page.locator("#estimate")).to_contain_text("{ without its }")
    page.locator("#prompt textarea").fill("A {red|blue} fish.\nA stone. --seed 5")
    expect(button).to_have_text("Generate 6 videos")
    page.locator("#seed input, #seed textarea").first.fill("3")
    button.click()
    expect(page.locator(".job").filter(has_text="fish.")).to_have_count(4)
    expect(page.locator(".job").filter(has_text="A stone.")).to_have_count(2)
    expect(page.locator(".job.done").filter(has_text="A stone.")).to_have_count(2)
    made = {(video["request"]["prompt"], video["request"]["seed"]) for video in api.call("list_videos", 60, 0, "")}
    assert made >= {(f"A {colour} fish.", seed) for colour in ("red", "blue") for seed in (3, 4)} | {("A stone.", 5), ("A stone.", 6)}


def test_dropped_files_bring_prompts_or_the_settings_of_a_video(api: Api, page: Page, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("First one.\nSecond one. --seed 7\n")
    drop(page, prompts)
    expect(page.locator("#prompt textarea")).to_have_value("First one.\nSecond one. --seed 7")
    expect(page.locator("#generate")).to_have_text("Generate 2 videos")
    more = tmp_path / "more.txt"
    more.write_text("Third one.\n")
    drop(page, prompts, more)
    expect(page.locator("#prompt textarea")).to_have_value("First one.\nSecond one. --seed 7\nThird one.")

    id = api.enqueue("A {brace} by the sea.", seed=11, guidance_scale=3.5)
    assert api.finish(id) == "done"
    drop(page, Path(api.call("status", id)["video"]))
    expect(page.locator("#prompt textarea")).to_have_value("A \\{brace\\} by the sea.")
    expect(page.locator("#seed input, #seed textarea").first).to_have_value("11")
    expect(page.locator("#guidance input[type=number]")).to_have_value("3.5")
    expect(page.locator("#generate")).to_have_text("Generate")
    page.get_by_role("button", name="Another seed").click()
    expect(page.locator("#seed input, #seed textarea").first).not_to_have_value("11")

    foreign = tmp_path / "foreign.mp4"
    save_video(np.zeros((2, 32, 32, 3), np.uint8), foreign, fps=6)
    drop(page, foreign)
    expect(page.locator("#form-error")).to_contain_text("foreign.mp4 holds no settings")
    drop(page, foreign, prompts)
    expect(page.locator("#form-error")).to_contain_text("2 files came at once")
    expect(page.locator("#prompt textarea")).to_have_value("A \\{brace\\} by the sea.")


def test_waiting_requests_are_reordered_edited_copied_and_cancelled_with_a_way_back(api: Api, page: Page) -> None:
    api.call("pause")
    waiting = page.locator(".job.waiting .job-prompt")
    for name in ("One.", "Two.", "Three."):
        api.enqueue(name)
    expect(waiting).to_have_text(["One.", "Two.", "Three."])
    page.get_by_role("button", name="Next: Three.").click()
    expect(waiting).to_have_text(["Three.", "One.", "Two."])
    page.get_by_role("button", name="Move up: Two.").click()
    expect(waiting).to_have_text(["Three.", "Two.", "One."])
    drag(job(page, "Three.", "waiting"), job(page, "Two.", "waiting"), "below")
    expect(waiting).to_have_text(["Two.", "Three.", "One."])
    drag(job(page, "Two.", "waiting"), job(page, "One.", "waiting"), "below")
    expect(waiting).to_have_text(["Three.", "One.", "Two."])
    drag(job(page, "One.", "waiting"), job(page, "Three.", "waiting"), "above")
    expect(waiting).to_have_text(["One.", "Three.", "Two."])
    page.get_by_role("button", name="Copy: Two.").click()
    expect(waiting).to_have_text(["One.", "Three.", "Two.", "Two."])

    page.get_by_role("checkbox", name="Select: Two.").first.check()
    page.get_by_role("checkbox", name="Select: Two.").last.click(modifiers=["Shift"])
    picked = page.get_by_role("group", name="Selected requests")
    expect(picked).to_contain_text("2 selected")
    picked.get_by_role("button", name="Next", exact=True).click()
    expect(waiting).to_have_text(["Two.", "Two.", "One.", "Three."])
    page.get_by_role("checkbox", name="Select: Two.").first.check()
    page.get_by_role("checkbox", name="Select: One.").check()
    page.wait_for_timeout(1500)  # the pane is drawn again while they are ticked
    expect(picked).to_contain_text("2 selected")
    picked.get_by_role("button", name="Cancel", exact=True).click()
    expect(waiting).to_have_text(["Two.", "Three."])
    page.get_by_role("button", name="Undo").click()
    expect(waiting).to_have_text(["Two.", "Two.", "One.", "Three."])
    drag(job(page, "One.", "waiting"), job(page, "Two.", "waiting").first, "above")
    expect(waiting).to_have_text(["One.", "Two.", "Two.", "Three."])

    prompt, count, button = page.locator("#prompt textarea"), page.locator("#count input"), page.locator("#generate")
    prompt.fill("A long draft.")
    count.fill("3")
    page.get_by_role("button", name="Edit: Three.").click()
    expect(prompt).to_have_value("Three.")
    expect(button).to_have_text("Save the request")
    expect(count).to_have_value("1")
    prompt.fill("Three, but better.")
    button.click()
    expect(waiting).to_have_text(["One.", "Two.", "Two.", "Three, but better."])
    expect(button).to_have_text("Generate 3 videos")
    expect(prompt).to_have_value("A long draft.")
    expect(page.locator("#keep-seed input")).not_to_be_checked()

    page.get_by_role("button", name="Edit: One.").click()
    expect(prompt).to_have_value("One.")
    page.get_by_role("button", name="Leave it as it is").click()
    expect(button).to_have_text("Generate 3 videos")
    expect(prompt).to_have_value("A long draft.")
    expect(count).to_have_value("3")
    page.locator("#queue summary").click()
    page.get_by_role("button", name="Cancel waiting").click()
    expect(waiting).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(waiting).to_have_text(["One.", "Two.", "Two.", "Three, but better."])
    page.locator("#queue summary").click()
    page.get_by_role("button", name="Cancel waiting").click()
    expect(waiting).to_have_count(0)
    api.call("resume")


def test_rows_that_move_take_the_press_and_the_focus_along(api: Api, page: Page) -> None:
    """Gradio fills the elements of a pane anew in their order: the pressed button may stand for another request at release."""
    api.call("pause")
    ids = [api.enqueue(f"{name} row.") for name in ("First", "Second", "Third", "Fourth", "Fifth")]
    waiting = page.locator(".job.waiting .job-prompt")
    expect(waiting).to_have_count(5)
    page.get_by_role("button", name="Cancel: Second row.").hover()
    page.mouse.down()
    api.call("cancel", ids[0])
    expect(waiting).to_have_text(["Second row.", "Third row.", "Fourth row.", "Fifth row."])
    page.mouse.up()
    expect(waiting).to_have_text(["Third row.", "Fourth row.", "Fifth row."])
    page.get_by_role("button", name="Cancel: Fourth row.").focus()
    api.call("cancel", ids[2])
    expect(waiting).to_have_text(["Fourth row.", "Fifth row."])
    expect(page.get_by_role("button", name="Cancel: Fourth row.")).to_be_focused()
    page.keyboard.press("Enter")
    expect(waiting).to_have_text(["Fifth row."])
    expect(page.get_by_role("button", name="Retry: Fourth row.")).to_be_focused()
    api.call("cancel_waiting")
    api.call("resume")


def test_a_browser_that_may_not_tell_says_so(page: Page) -> None:
    page.evaluate("() => { window.Notification = class { static requestPermission() { return Promise.resolve('denied'); } }; }")
    page.locator("#queue summary").click()
    page.locator("[data-notify]").click()
    expect(page.locator("[data-notify]")).to_contain_text("does not allow it")
    expect(page.locator("[data-notify]")).to_have_attribute("aria-pressed", "false")


def test_the_queue_leaves_and_comes_back_as_a_file(api: Api, page: Page, tmp_path: Path) -> None:
    running = api.enqueue("It takes long, too.", num_inference_steps=LONG, num_frames=8)
    expect(job(page, "It takes long, too.", "running")).to_be_visible()
    waiting = page.locator(".job.waiting .job-prompt")
    for name in ("Packed.", "Packed, too."):
        api.enqueue(name)
    expect(waiting).to_have_text(["Packed.", "Packed, too."])
    page.locator("#queue summary").click()
    page.wait_for_timeout(2500)  # the pane is drawn again while the menu is open
    with page.expect_download() as download:
        page.get_by_role("button", name="Export", exact=True).click()
    file = tmp_path / "queue.json"
    download.value.save_as(file)
    page.get_by_role("button", name="Dismiss").click()
    page.locator("#queue summary").click()
    page.get_by_role("button", name="Cancel waiting").click()
    expect(waiting).to_have_count(0)
    drop(page, file)
    expect(waiting).to_have_text(["Packed.", "Packed, too."])
    expect(page.locator(".toast")).to_contain_text("2 requests and 0 presets imported.")
    file.write_text(file.read_text().replace("mira-studio-queue", "something else"))
    drop(page, file)
    expect(page.locator("#form-error")).to_contain_text("no exported queue")
    page.get_by_role("button", name="Undo").click()
    expect(waiting).to_have_count(0)
    api.call("cancel", running)


def test_the_browser_tells_once_that_the_queue_is_done(api: Api, page: Page) -> None:
    page.evaluate(
        """() => {
            window.told = [];
            window.Notification = class { constructor(title, options) { window.told.push([title, options.body]); } static requestPermission() { return Promise.resolve("granted"); } };
            Object.defineProperty(document, "hidden", { get: () => true });
        }"""
    )
    page.locator("#queue summary").click()
    page.locator("[data-notify]").click()
    expect(page.locator("[data-notify]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    for prompt in ("Tell me.", "Tell me, too."):
        api.enqueue(prompt)
    expect(job(page, "Tell me, too.", "done")).to_be_visible()
    page.wait_for_function("window.told.length > 0")
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Clear finished").click()
    expect(page.locator(".job")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(job(page, "Tell me, too.", "done")).to_be_visible()
    page.wait_for_timeout(1500)
    assert page.evaluate("window.told") == [["The queue is done", "2 videos"]]
    assert api.finish(api.enqueue("Fail me.", model="TencentARC/Mira-v0:128")) == "failed"
    page.wait_for_function("window.told.length > 1")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.told")[1:] == [["The queue is done", "1 failed"]]


def test_two_browsers_show_and_change_the_same(api: Api, page: Page, browser: Browser, studio_url: str) -> None:
    api.call("pause")
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    other = context.new_page()
    other.goto(studio_url)
    page.locator("#prompt textarea").fill("Here one.\nHere two.")
    page.get_by_role("button", name="Generate 2 videos").click()
    rows = [tab.locator(".job.waiting .job-prompt") for tab in (page, other)]
    for row in rows:
        expect(row).to_have_text(["Here one.", "Here two."])
    other.get_by_role("button", name="Next: Here two.").click()
    for row in rows:
        expect(row).to_have_text(["Here two.", "Here one."])
    page.get_by_role("button", name="Cancel: Here one.").click()
    for row in rows:
        expect(row).to_have_text(["Here two."])
    assert other.locator("#prompt textarea").input_value() == "", "what is typed in one browser is its own"
    page.locator("#queue [data-action=cancel]").last.click()
    expect(rows[1]).to_have_count(0)
    made = api.enqueue("Seen by both.")
    other.get_by_role("button", name="Resume", exact=True).click()
    for tab in (page, other):
        expect(job(tab, "Seen by both.", "done")).to_be_visible()
        tab.get_by_role("tab", name="Gallery").click()
        expect(tab.locator("#gallery .slot").filter(has_text="Seen by both.")).to_be_visible()
    api.call("star", made, True)
    for tab in (page, other):
        expect(tab.locator("#gallery .slot").filter(has_text="Seen by both.").locator(".star")).to_be_visible()
    context.close()


def test_five_requests_survive_a_closed_browser(api: Api, browser: Browser, studio_url: str) -> None:
    names = [f"Number {number}." for number in range(1, 6)]
    api.call("pause")
    first = browser.new_context(viewport={"width": 1440, "height": 900})
    page = first.new_page()
    page.goto(studio_url)
    page.locator("#prompt textarea").fill("\n".join(names))
    page.get_by_role("button", name="Generate 5 videos").click()
    waiting = page.locator(".job.waiting .job-prompt")
    expect(waiting).to_have_text(names)
    page.get_by_role("button", name="Next: Number 4.").click()
    expect(waiting).to_have_text([names[3], *names[:3], names[4]])
    page.get_by_role("button", name="Cancel: Number 2.").click()
    left = [names[3], names[0], names[2], names[4]]
    expect(waiting).to_have_text(left)
    first.close()
    again = browser.new_context(viewport={"width": 1440, "height": 900})
    page = again.new_page()
    page.goto(studio_url)
    expect(page.locator(".job.waiting .job-prompt")).to_have_text(left)
    expect(job(page, names[1], "cancelled")).to_be_visible()
    again.close()
    api.call("cancel_waiting")
    api.call("resume")


def test_the_system_tab_can_be_copied_into_a_bug_report(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("tab", name="System").click()
    expect(page.locator("#system")).to_contain_text("diffusers")
    page.get_by_role("button", name="Copy for a bug report").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("Versions\n  Python: 3") and "Last errors" in text
    page.get_by_role("link", name="Use via API").click()
    expect(page.locator("#endpoints")).to_contain_text("/enqueue(request)")
    page.get_by_role("link", name="Back to the studio").click()
    expect(page.locator("#prompt textarea")).to_be_visible()


def test_models_are_loaded_unloaded_and_chosen(page: Page) -> None:
    page.get_by_role("tab", name="Models").click()
    models = page.locator("#models")
    expect(models).to_contain_text("TencentARC/Mira-v0:128")
    expect(models).to_contain_text("to download")
    loaded = models.locator("li.loaded")
    expect(loaded).to_have_count(1)
    loaded.get_by_role("button", name="Unload").click()
    expect(loaded).to_have_count(0)
    models.get_by_role("button", name="Load: mira-nano", exact=True).click()
    expect(models.locator("li.loaded")).to_contain_text("mira-nano")
    models.get_by_role("button", name="Use: mira-nano").click()
    expect(page.locator("#prompt textarea")).to_be_visible()
    expect(page.locator("#model input")).to_have_value("mira-nano")

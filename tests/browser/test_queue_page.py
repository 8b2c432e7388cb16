"""The queue on the page: lines become rows, which are moved, edited, paused, cancelled, exported, and told of; it is the same in every browser."""

from __future__ import annotations

from pathlib import Path

from hands import LONG, Api, drag, drop, job, unfold
from playwright.sync_api import Browser, Page, expect


def test_a_line_is_a_video_and_braces_make_one_of_each(api: Api, page: Page) -> None:
    unfold(page, "More settings")
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


def test_a_failed_request_says_why(api: Api, page: Page) -> None:
    assert api.finish(api.enqueue("Not with this model.", model="nobody/no-such-model")) == "failed"
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

"""What the page promises beside the main path: polls disturb nothing, prompts are text, files carry their settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from hands import LONG, Api, drop, job, unfold
from playwright.sync_api import APIResponse, Browser, Page, Route, expect
from studio_app import PATIENCE

from core.types import GenerationRequest
from core.video_io import read_settings, save_video


def test_the_form_is_as_it_was_left_and_as_it_was_before_it_was_filled(api: Api, page: Page, tmp_path: Path) -> None:
    unfold(page, "More settings")
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
    unfold(page, "More settings")
    shown()
    id = api.enqueue("Of another day.", seed=5)
    assert api.finish(id) == "done"
    drop(page, Path(api.call("status", id)["video"]))
    expect(page.locator("#prompt textarea")).to_have_value("Of another day.")
    page.get_by_role("button", name="Back to what was there").click()
    shown()
    expect(page.locator("#form-error")).to_be_empty()


def test_an_edit_outlives_the_page_and_drafts_that_are_made_meanwhile(api: Api, page: Page) -> None:
    api.call("pause")
    try:
        page.locator("#prompt textarea").fill("Mine.")
        page.locator("#seed input, #seed textarea").first.fill("123")
        page.locator("#keep-seed input").check()
        id = api.enqueue("A far hill.", num_inference_steps=20)
        page.get_by_role("button", name="Edit: A far hill.").click()
        expect(page.locator("#generate")).to_have_text("Save the request")
        page.locator("#prompt textarea").fill("Edited.")
        page.wait_for_function("localStorage.getItem('studio.form').includes('Edited.') && (sessionStorage.getItem('studio.edit') || '').includes('Mine.')")
        page.reload()
        expect(page.locator("#generate")).to_have_text("Save the request")
        expect(page.locator("#prompt textarea")).to_have_value("Edited.")
        page.get_by_role("button", name="Drafts first").click()
        page.click("#make-drafts")
        expect(page.locator("#viewer .wall .cell")).to_have_count(8)
        page.click("#generate")
        expect(page.locator("#prompt textarea")).to_have_value("Mine.")
        expect(page.locator("#seed input, #seed textarea").first).to_have_value("123")
        expect(page.locator("#generate")).to_have_text("Generate")
        waiting = api.call("list_requests", "waiting", 50)
        assert waiting[0]["id"] == id and [row["request"]["prompt"] for row in waiting] == ["Edited."] * 9
    finally:
        api.call("cancel_waiting")
        api.call("resume")


def test_the_form_of_a_training_is_as_it_was_left(page: Page, tmp_path: Path) -> None:
    """Also what stands in no field: the stages of a file that was opened."""
    (tmp_path / "staged.yaml").write_text("target: lora\nmodel: mira-nano\nlearning_rate: 3.0e-4\ncurriculum:\n  - {num_frames: [4, 8], steps: 10}\n")
    field = lambda name: page.locator(f"#train-{name}").get_by_role("textbox")  # noqa: E731
    page.get_by_role("tab", name="Training").click()
    page.get_by_role("button", name="As a file").click()
    page.locator("#train-file input[type=file]").set_input_files(tmp_path / "staged.yaml")
    expect(field("learning-rate")).to_have_value("0.0003")
    field("dataset").fill("/my/clips")
    page.locator("#run-name").get_by_role("textbox").fill("mine")
    page.wait_for_function("(localStorage.getItem('studio.training') || '').includes('mine')")
    page.reload()
    page.get_by_role("tab", name="Training").click()
    expect(field("dataset")).to_have_value("/my/clips")
    expect(field("learning-rate")).to_have_value("0.0003")
    expect(page.locator("#run-name").get_by_role("textbox")).to_have_value("mine")
    page.get_by_role("button", name="As a file").click()
    with page.expect_download() as download:
        page.click("#save-yaml")
    assert "curriculum" in download.value.path().read_text()


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


def test_a_download_carries_its_settings(api: Api, page: Page, tmp_path: Path) -> None:
    assert api.finish(api.enqueue("Take me home.", seed=9)) == "done"
    expect(page.locator("#viewer video[aria-label='Take me home.']")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#viewer").get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "take-me-home-9.mp4"
    download.value.save_as(tmp_path / "file.mp4")
    request = GenerationRequest.from_dict(read_settings(tmp_path / "file.mp4"))
    assert (request.prompt, request.seed) == ("Take me home.", 9)


def test_the_button_and_what_it_costs_stay_in_sight(page: Page) -> None:
    """Also where the settings above them are longer than the window, and what has the focus is not below them."""
    parts = [page.locator("#generate"), page.locator("#estimate p")]
    for part in parts:
        expect(part).to_be_in_viewport(ratio=1)
    if not page.is_visible("#steps"):
        page.click("#more > button")
    expect(page.locator("#loras")).to_be_attached()
    for part in parts:
        expect(part).to_be_in_viewport(ratio=1)
    page.locator("#eta input[type=number]").focus()
    for _ in range(6):
        page.keyboard.press("Tab")
        low = page.evaluate("document.activeElement.getBoundingClientRect().bottom - document.querySelector('#go').getBoundingClientRect().top")
        assert low <= 0, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def contrast(page: Page, control: str, ground: str) -> float:
    """Of the edge of a control to what it stands on, by WCAG."""
    edge, opacity, below = page.evaluate(
        "([control, ground]) => { const edge = getComputedStyle(document.querySelector(control)), numbers = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map(Number);"
        " return [numbers(edge.borderTopColor), Number(edge.opacity), numbers(getComputedStyle(document.querySelector(ground)).backgroundColor)]; }",
        [control, ground],
    )
    seen = [opacity * over + (1 - opacity) * under for over, under in zip(edge, below, strict=True)]

    def light(colour: list[float]) -> float:
        linear = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (number / 255 for number in colour))
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    darker, lighter = sorted((light(seen), light(below)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_can_be_read_and_worked_by_everyone(api: Api, page: Page, scheme: str) -> None:
    """Names of controls, contrast and structure, by the rules of WCAG 2.1 A and AA that axe-core checks; a done request and its video are in sight."""
    page.emulate_media(color_scheme=scheme)
    page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", scheme == "dark")
    api.finish(api.enqueue("A done one."))
    expect(job(page, "A done one.", "done").first).to_be_visible()
    assert contrast(page, "#queue .job .tick", "#queue") >= 3, "WCAG 2.1 1.4.11, which axe-core does not look at: the edge of a control"
    if not page.is_visible("#steps"):
        page.click("#more > button")
    expect(page.locator("#frames input")).to_be_visible()
    for tab in page.get_by_role("tab").all_inner_texts():
        page.get_by_role("tab", name=tab, exact=True).click()
        expect(page.get_by_role("tabpanel").locator("visible=true").first).to_be_visible()
        page.wait_for_timeout(500)  # a colour that is still changing is no colour
        found = Axe().run(page, options={"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}).response["violations"]
        assert not [(tab, rule["id"], node["html"][:160], node["failureSummary"]) for rule in found for node in rule["nodes"]]


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

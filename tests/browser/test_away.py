"""A page whose studio is stopped, and started again."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hands import Api, job, unfold
from playwright.sync_api import Browser, Page, Request, Route, expect
from studio_app import StudioApp

from studio.ui import VERSION_PATH


@pytest.fixture
def open_page(browser: Browser, studio: StudioApp) -> Iterator[Page]:
    """A page that may complain: its studio goes away."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(studio.url)
    page.wait_for_selector("#queue h2")
    page.wait_for_function("document.querySelector('#estimate p') !== null")
    yield page
    context.close()


def test_a_page_outlives_its_studio(studio: StudioApp, open_page: Page) -> None:
    page, prompt = open_page, open_page.locator("#prompt textarea")
    page.evaluate("window.mine = true")
    Api(studio.url).call("pause")
    Api(studio.url).enqueue("To be edited.")
    prompt.fill("Before.")
    page.get_by_role("button", name="Edit: To be edited.").click()
    expect(page.locator("#generate")).to_have_text("Save the request")
    page.wait_for_function("(sessionStorage.getItem('studio.edit') || '').includes('Before.')")
    expect(page.locator("#away")).to_have_count(0)
    studio.end()
    expect(page.locator("#away")).to_have_text("The studio is not answering. What you typed is kept here, and this line goes when it is back.")
    prompt.fill("Edited while it was away.")
    page.locator("#generate").click()  # not heard
    page.wait_for_function("localStorage.getItem('studio.form').includes('Edited while it was away.')")
    studio.start(int(studio.url.rpartition(":")[2]))
    expect(page.locator("#away")).to_have_count(0)
    assert page.evaluate("window.mine"), "the page was loaded again"
    expect(prompt).to_have_value("Edited while it was away.")
    expect(page.locator("#generate")).to_have_text("Save the request")
    expect(job(page, "To be edited.", "waiting")).to_be_visible()  # the button was not heard while the studio was away
    page.locator("#generate").click()
    expect(job(page, "Edited while it was away.", "waiting")).to_be_visible()
    expect(prompt).to_have_value("Before.")
    prompt.fill("One.\nTwo.")
    expect(page.locator("#generate")).to_have_text("Generate 2 videos")
    page.locator("#generate").click()
    expect(job(page, "Two.", "waiting")).to_be_visible()
    assert page.get_by_text("Connection").count() == 0


def test_what_is_pressed_as_the_studio_goes_is_done_when_it_is_back(studio: StudioApp, open_page: Page) -> None:
    page = open_page
    page.locator("#prompt textarea").fill("Pressed in time.")
    page.wait_for_function("localStorage.getItem('studio.form').includes('Pressed in time.')")
    page.route("**/gradio_api/run/**", lambda route: route.abort())  # the page has not noticed yet
    page.locator("#generate").click()
    expect(page.locator("#away")).to_be_visible()
    studio.end()
    page.unroute_all(behavior="ignoreErrors")
    studio.start(int(studio.url.rpartition(":")[2]))
    expect(page.locator(".job").filter(has_text="Pressed in time.")).to_have_count(1)


def test_the_gallery_stays_narrowed_over_a_start_of_the_studio(studio: StudioApp, open_page: Page) -> None:
    page, api = open_page, Api(studio.url)
    api.call("resume")
    for prompt in ("First fish.", "Second stone."):
        assert api.finish(api.enqueue(prompt)) == "done"
    page.get_by_role("tab", name="Gallery").click()
    shown, search = page.locator("#gallery .slot .card-prompt"), page.locator("#gallery-search :is(input, textarea)")
    search.fill("fish")
    expect(shown).to_have_text(["First fish."])
    page.evaluate("window.mine = true")
    studio.end()
    expect(page.locator("#away")).to_be_visible()
    studio.start(int(studio.url.rpartition(":")[2]))
    expect(page.locator("#away")).to_have_count(0)
    for prompt in ("Third fish.", "Fourth stone."):
        assert api.finish(api.enqueue(prompt)) == "done"
    expect(shown).to_have_text(["Third fish.", "First fish."])
    expect(search).to_have_value("fish")
    assert page.evaluate("window.mine"), "the page was loaded again"


def test_another_page_is_asked_for_and_the_form_is_kept(studio: StudioApp, open_page: Page) -> None:
    """A studio that was started with another version of the program: events of this page would mean something else to it."""
    page = open_page
    here, start, version = httpx.get(f"{studio.url}/{VERSION_PATH}").text.split(" ")

    reloads: list[Request] = []
    page.on("request", lambda request: reloads.append(request) if request.is_navigation_request() else None)

    def other(route: Route) -> None:
        """Another version, to the page that was there before: were it told of its own again, the line would go with its button."""
        route.continue_() if reloads else route.fulfill(body=f"another {start} {version}")

    page.locator("#prompt textarea").fill("Kept.")
    page.wait_for_function("localStorage.getItem('studio.form').includes('Kept.')")
    unfold(page, "More settings")
    page.locator("#eta input[type=number]").fill("0.5")
    page.wait_for_function("JSON.parse(localStorage.getItem('studio.form')).values.includes(0.5)")
    page.evaluate("""() => {  // as a version kept it that did not have the setting yet
        const kept = JSON.parse(localStorage.getItem('studio.form')), at = kept.names.indexOf('guidance_scale');
        kept.names.splice(at, 1); kept.values.splice(at, 1);
        const set = Storage.prototype.setItem;
        Storage.prototype.setItem = function (key, text) { if (key !== 'studio.form') set.call(this, key, text); };
        set.call(localStorage, 'studio.form', JSON.stringify(kept));
    }""")
    page.route(f"**/{VERSION_PATH}", other)
    expect(page.locator("#away")).to_contain_text("started again with another page")
    page.get_by_role("button", name="Reload").click()
    page.wait_for_selector("#queue h2")
    expect(page.locator("#away")).to_have_count(0)
    expect(page.locator("#prompt textarea")).to_have_value("Kept.")
    unfold(page, "More settings")
    expect(page.locator("#eta input[type=number]")).to_have_value("0.5")
    expect(page.locator("#guidance input[type=number]")).to_have_value("3")

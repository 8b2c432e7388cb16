"""What the browser tests share: the studio as a process of its own, and a page in Chromium."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hands import Api
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from studio_app import PATIENCE, StudioApp, chromium
from tiny import save_tiny_model

from studio.ui import VERSION_PATH

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "assets" / "models" / "mira-nano"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()

CUT_OFF = ("AbortError: signal is aborted", "Connection errored out")
"""What a page logs when it is left while it waits for an answer."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model, or a tiny random one where it is not built yet."""
    if (EMBEDDED / "model_index.json").exists():
        return "mira-nano"
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, model: str) -> Iterator[StudioApp]:
    """The studio with a fresh data folder, for the tests of one file."""
    app = StudioApp(tmp_path_factory.mktemp("studio") / "data", model)
    app.start()
    try:
        yield app
    finally:
        app.end_runs()
        app.end()


@pytest.fixture(scope="module")
def studio_url(studio: StudioApp) -> str:
    return studio.url


@pytest.fixture
def api(studio_url: str) -> Api:
    return Api(studio_url)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """This machine's Chromium, else Playwright's own."""
    expect.set_options(timeout=1000 * PATIENCE)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        new_context = launched.new_context

        def patient(**options: Any) -> BrowserContext:
            context = new_context(**options)
            context.set_default_timeout(1000 * PATIENCE)
            return context

        launched.new_context = patient
        yield launched
        launched.close()


@dataclass
class Window:
    """A page, and what it has logged since its test began."""

    page: Page
    url: str
    errors: list[tuple[float, str]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        page = self.page
        page.on("console", self.listen)
        page.on("pageerror", lambda error: self.note(str(error)))
        page.on("request", lambda request: request.url.startswith((self.url, "data:", "blob:")) or self.note(f"fetched from elsewhere: {request.url}"))
        page.on("framenavigated", lambda frame: self.arrivals.append(time.monotonic()) if frame == page.main_frame else None)

    def note(self, text: str) -> None:
        self.errors.append((time.monotonic(), text))

    def listen(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "/previews/" not in message.location["url"]:  # a preview goes when its video is done
            self.note(message.text)

    def arrive(self) -> None:
        """The page as it is for one who comes for the first time."""
        self.page.unroute_all(behavior="ignoreErrors")
        self.page.context.clear_permissions()
        self.page.emulate_media(color_scheme="light")
        self.page.goto(f"{self.url}/{VERSION_PATH}")
        self.page.evaluate("localStorage.clear(); sessionStorage.clear()")
        self.page.goto(self.url)
        self.page.wait_for_selector("#queue h2")
        self.page.wait_for_function("document.querySelector('#estimate p') !== null")

    def complaints(self) -> list[str]:
        """What was logged, but for what the arrival at a page cut off; from now on it begins anew."""

        def cut_off(when: float, text: str) -> bool:
            return any(words in text for words in CUT_OFF) and any(abs(arrival - when) < 5 for arrival in self.arrivals)

        found = [text for when, text in self.errors if not cut_off(when, text)]
        self.errors.clear()
        return found


@pytest.fixture(scope="module")
def window(browser: Browser, studio_url: str) -> Iterator[Window]:
    """One page for the tests of a file: what it has compiled it need not compile for each of them."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield Window(context.new_page(), studio_url)
    context.close()


@pytest.fixture
def page(window: Window) -> Iterator[Page]:
    """The studio at 1440 pixels; the test fails when the page logged an error or fetched anything from another host."""
    window.arrive()
    yield window.page
    left = window.complaints()
    assert not left, left


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """What the studio said last, beside what a failed test of its page missed."""
    report = yield
    if report.when == "call" and report.failed and {"page", "studio"} <= item.funcargs.keys():
        page, studio = item.funcargs["page"], item.funcargs["studio"]
        said = [f"{pane}: {page.locator(pane).text_content()}" for pane in ("#toast", "#device") if page.locator(pane).count()]
        touched = [f"{bus}: {page.locator(bus).get_by_role('textbox').input_value()}" for bus in ("#action-bus", "#form-bus", "#training-bus") if page.locator(bus).count()]
        report.sections.append(("the studio", "\n".join([*said, *touched, (studio.data_dir.parent / "app.log").read_text()[-3000:]])))
    return report

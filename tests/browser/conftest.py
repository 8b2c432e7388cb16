"""What the browser tests share: the studio as a process of its own, and a page in Chromium."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from studio_app import PATIENCE, StudioApp, chromium
from tiny import save_tiny_model

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


@pytest.fixture
def page(browser: Browser, studio_url: str) -> Iterator[Page]:
    """The studio at 1440 pixels; the test fails when the page logged an error or fetched anything from another host."""
    errors: list[tuple[float, str]] = []
    arrivals: list[float] = []

    def note(text: str) -> None:
        errors.append((time.monotonic(), text))

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error" and "/previews/" not in message.location["url"]:  # a preview goes when its video is done
            note(message.text)

    def cut_off(when: float, text: str) -> bool:
        """Whether a reload ended what was under way."""
        return any(words in text for words in CUT_OFF) and any(abs(arrival - when) < 5 for arrival in arrivals)

    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.on("console", listen)
    page.on("pageerror", lambda error: note(str(error)))
    page.on("request", lambda request: request.url.startswith((studio_url, "data:", "blob:")) or note(f"fetched from elsewhere: {request.url}"))
    page.on("framenavigated", lambda frame: arrivals.append(time.monotonic()) if frame == page.main_frame else None)
    page.goto(studio_url)
    page.wait_for_selector("#queue h2")
    page.wait_for_function("document.querySelector('#estimate p') !== null")
    yield page
    context.close()
    left = [text for when, text in errors if not cut_off(when, text)]
    assert not left, left

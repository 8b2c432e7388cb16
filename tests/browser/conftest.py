"""What the browser tests share: the studio as a process of its own, and a page in Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "assets" / "models" / "mira-nano"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
START_SECONDS = 120
sys.path.insert(0, str(ROOT / "tests" / "core"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model, or a tiny random one where it is not built yet."""
    if (EMBEDDED / "model_index.json").exists():
        return "mira-nano"
    from tiny import save_tiny_model

    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def studio_url(tmp_path_factory: pytest.TempPathFactory, model: str) -> Iterator[str]:
    """``python app.py`` on a free port with a fresh data folder, for the tests of one file."""
    folder = tmp_path_factory.mktemp("studio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{(port := probe.getsockname()[1])}"
    command = [sys.executable, "app.py", "--port", str(port), "--data-dir", str(folder / "data"), "--model", model, "--device", "cpu"]
    log_path = folder / "app.log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={"OMP_NUM_THREADS": "2", **os.environ})

    def answers() -> bool:
        assert process.poll() is None, log_path.read_text()
        try:
            return httpx.get(url, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, START_SECONDS, "the page is served")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """This machine's Chromium, else Playwright's own."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, studio_url: str) -> Iterator[Page]:
    """The studio at 1440 pixels; the test fails when the page logged an error or fetched anything from another host."""
    errors: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error" and "/previews/" not in message.location["url"]:  # a preview goes when its video is done
            errors.append(message.text)

    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("console", listen)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: request.url.startswith((studio_url, "data:", "blob:")) or errors.append(f"fetched from elsewhere: {request.url}"))
    page.goto(studio_url)
    page.wait_for_selector("#queue h2")
    page.wait_for_function("document.querySelector('#estimate p') !== null")
    yield page
    context.close()
    assert not errors, errors


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return once ``condition`` holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s until {what}"
        time.sleep(0.1)

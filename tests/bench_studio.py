"""What the studio takes: until its page can be used, when nothing happens, and for each action when there is a lot to show. Part of ``python tests/bench.py``."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from bench_rows import PROMPT, Row, compare
from studio_app import StudioApp, chromium

from core.presets import NANO
from core.types import GenerationRequest
from studio.library import Query
from studio.screen import Screen, Session
from studio.services import Services

CROWD = 1000
"""Requests, and videos, of a studio that is used a lot."""
STARTS = 3
"""Of the studio, and how often its page is then opened."""
IDLE_SECONDS = 10
"""How long a studio is watched that does nothing, and how long it is left alone before."""


def studio_app() -> Iterator[Row]:
    """``python app.py`` until it answers, and in Chromium until its page takes a prompt and shows the queue: at once, while the worker is starting, and later; and what both take when nothing happens."""
    started, first, later, server, page = [], [], [], [], []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as folder:
            app, began = StudioApp(Path(folder) / "data", NANO), time.monotonic()
            try:
                app.start()
                started.append(time.monotonic() - began)
                for open_page, idle in _pages(app.url):
                    first.append(open_page())
                    while app.call("workers")[0]["state"] != "ready":
                        time.sleep(0.2)
                    later += [open_page() for _ in range(STARTS)]
                    for taken, seconds in zip((server, page), idle(app.process.pid), strict=True):
                        taken.append(seconds)
            finally:
                app.end()
    rows = {"from start to first answer": started, "first page, until it can be used": first, "a later page, until it can be used": later, "a second of idling, CPU of the server": server, "a second of idling, CPU of an open page": page}
    yield from (Row("the studio", name, statistics.median(taken), len(taken), statistics.median(taken) / statistics.median(started)) for name, taken in rows.items() if taken)


def _pages(url: str) -> Iterator[tuple[Callable[[], float], Callable[[int], list[float]]]]:
    """What opens a page at ``url`` in a Chromium with an empty cache, and how many seconds it took, and what measures the server with that process id and an open page while nothing happens; nothing where Playwright is not installed (``make test`` installs it)."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])

        def open_page() -> float:
            page, began = browser.new_page(viewport={"width": 1440, "height": 900}), time.monotonic()
            page.goto(url, wait_until="commit")
            page.wait_for_function("document.querySelector('#prompt textarea') && document.querySelector('#queue h2') && document.querySelector('#estimate p')")
            page.fill("#prompt textarea", PROMPT)
            taken = time.monotonic() - began
            page.close()
            return taken

        def idle(server: int) -> list[float]:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(url)
            page.wait_for_timeout(1000 * IDLE_SECONDS)
            groups = [psutil.Process(server)], [process for process in psutil.Process().children(recursive=True) if "chrom" in process.name()]

            def used() -> list[float]:
                return [sum(process.cpu_times().user + process.cpu_times().system for process in group) for group in groups]

            before = used()
            page.wait_for_timeout(1000 * IDLE_SECONDS)
            taken = [(after - earlier) / IDLE_SECONDS for earlier, after in zip(before, used(), strict=True)]
            page.close()
            return taken

        yield open_page, idle
        browser.close()


def crowded_studio() -> Iterator[Row]:
    """What the server does for an action of the page, from the button to the new panes, when there is a lot to show."""
    with tempfile.TemporaryDirectory() as folder:
        services = Services.open(folder, start_worker=False)
        try:
            request = GenerationRequest(PROMPT, seed=0).resolved()
            waiting = services.queue.enqueue_many([request] * CROWD)
            for number in range(CROWD):
                file = Path(folder) / f"{number}.mp4"
                file.write_bytes(b"")
                services.library.add(f"video-{number:04}", request.replace(seed=number), file, elapsed=4.0, created=float(number))
            screen, session = Screen(services), Session()

            def act(action: str, *ids: str) -> Callable[[], object]:
                turns = itertools.cycle(ids)
                return lambda: (screen.act(session, action, next(turns)), screen.paint(session))

            def search() -> None:
                session.query = Query() if session.query.search else Query("ball")
                screen.paint(session)

            calls = {
                "a new page": lambda: screen.paint(Session()),
                "a poll that finds nothing new": lambda: screen.paint(session),
                "queue one more": lambda: (services.queue.enqueue(request), screen.paint(session)),
                "put one first": act("first", *waiting[500:510]),
                "cancel one": act("cancel", *waiting[20:30]),
                "star a video": act("star", "video-0500"),
                "delete a video, with undo": lambda: (act("delete", "video-0700")(), act("undo", "")()),
                "search": search,
            }
            yield from compare(f"the studio with {CROWD:,} waiting requests and {CROWD:,} videos", calls, torch.device("cpu"), 20, rounds=9)
        finally:
            services.close()

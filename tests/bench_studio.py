"""What the studio takes: until its page can be used, when nothing happens, and for each action when there is a lot to show. Part of ``python tests/bench.py``."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from bench_rows import PROMPT, Count, Row, compare, seconds_in_words
from studio_app import StudioApp, chromium

from core.presets import NANO
from core.types import GenerationRequest
from core.video_io import save_video
from studio.estimate import estimate, words_hint
from studio.library import Query
from studio.screen import GALLERY_PAGE, Screen, Session
from studio.services import Services
from studio.tabs.form import FIELDS, requests_of

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


def crowded_studio() -> Iterator[Row | Count]:
    """What the server does for an action of the page, from the button to the new panes, when there is a lot to show."""
    with tempfile.TemporaryDirectory() as folder:
        services = Services.open(folder, start_worker=False)
        try:
            rows = list(compare(f"the studio with {CROWD:,} waiting requests and {CROWD:,} videos", crowd_calls(services), torch.device("cpu"), 120, rounds=9))
            yield from rows
            slowest = max(rows, key=lambda row: row.seconds)
            yield Count(f"Of {len(rows)} actions with {CROWD:,} waiting requests and {CROWD:,} videos the slowest ({slowest.name}) takes {seconds_in_words(slowest.seconds)}; 300 ms are allowed.")
        finally:
            services.close()


def crowd_calls(services: Services) -> dict[str, Callable[[], object]]:
    """Fill a studio, and give what is then done in it by names; each can be called again and again."""
    request = GenerationRequest(PROMPT, seed=0).resolved()
    waiting = services.queue.enqueue_many([request] * CROWD)
    clip = save_video(np.zeros((2, 80, 128, 3), np.uint8), services.data_dir / "clip.mp4", 6, request.to_dict())
    videos = [f"video-{number:04}" for number in range(CROWD)]
    for number, id in enumerate(videos):  # grids of four guidances, so that there are pairs to be judged
        file = services.library.videos_dir / f"{id}.mp4"
        os.link(clip, file)
        services.library.add(id, request.replace(seed=number // 4, guidance_scale=2.0 + number % 4), file, elapsed=4.0, created=float(number))
    screen, session, judging, measured = Screen(services), Session(), Session(), Session()
    form = tuple(getattr(request, name) or "" if name in ("start_from", "loras") else getattr(request, name) for name in FIELDS)

    def paint(here: Session = session) -> None:
        screen.paint(here)

    def act(*actions: tuple[str, str], here: Session = session) -> Callable[[], None]:
        """These, one after the other; ``a;b`` as an id are two that take turns, and nothing is left of what could not be done."""
        turns = [(action, itertools.cycle(ids.split(";"))) for action, ids in actions]

        def call() -> None:
            for action, ids in turns:
                if not screen.act(here, action, next(ids)):
                    raise AssertionError(f"{action}: {here.trouble}")
            paint(here)

        return call

    def search(query: Query) -> Callable[[], None]:
        def call() -> None:
            session.query = Query() if session.query.narrows else query
            paint()

        return call

    def typed(text: str) -> Callable[[], None]:
        def call() -> None:
            requests = requests_of(services, (text, *form[1:], "7", False, 1))
            estimate(services, requests)
            words_hint(requests)

        return call

    def more() -> None:
        act(("more", ""))()
        session.shown = GALLERY_PAGE

    def vote() -> None:
        screen.act(judging, "blind", "guidance_scale")
        screen.act(judging, "vote", ",".join(("a", *judging.blind.pair)))
        paint(judging)

    act(("blind-open", ""), here=judging)()
    services.library.tag(videos[::2], "even")
    many, starred = ",".join(waiting[40:80]), ",".join(videos[40:80])
    return {
        "a new page": lambda: paint(Session()),
        "a poll that finds nothing new": paint,
        "a prompt as it is typed": typed(PROMPT),
        f"{CROWD:,} prompts as they are typed": typed("\n".join([PROMPT] * CROWD)),
        "queue one more": lambda: (services.queue.enqueue(request), paint()),
        f"queue {CROWD:,} more, and cancel them": lambda: (services.queue.cancel_many(services.queue.enqueue_many([request] * CROWD)), paint()),
        "put one first": act(("first", ";".join(waiting[500:510]))),
        "drag one to the end": act(("place", ";".join(f"{id}>last" for id in waiting[510:520]))),
        "edit one": lambda: (services.queue.edit(waiting[530], request.replace(seed=random.randrange(1000))), paint()),
        "cancel one, and undo that": act(("cancel", waiting[20]), ("undo", "")),
        "cancel 40": act(("cancel-many", many), ("undo", "")),
        "put 40 first": act(("first-many", many)),
        "copy 40, and cancel the copies": lambda: (services.queue.cancel_many(services.queue.copy_many(many.split(","))), paint()),
        "cancel all that waits, and undo that": act(("cancel-waiting", ""), ("undo", "")),
        "clear what is finished, and undo that": act(("clear", ""), ("undo", "")),
        "pause and resume": act(("pause", ""), ("resume", "")),
        "export the queue": act(("export", "")),
        "show a video": act(("show", ";".join(videos[600:610]))),
        "star a video": act(("star", videos[500])),
        "star 40": act(("star-many", starred), ("unstar-many", starred)),
        "tag 40, and untag them": act(("tag-many", f"new|{starred}"), ("untag-many", f"new|{starred}")),
        "delete a video, with undo": act(("delete", videos[700]), ("undo", "")),
        "delete 40 videos, with undo": act(("delete-many", starred), ("undo", "")),
        "search": search(Query("ball")),
        "filter by tag, model and preset": search(Query(tag="even", model=request.model, preset=request.preset)),
        "what there is to filter by": services.library.choices,
        "more of the gallery": more,
        "the gallery as a table, and as pictures": act(("gallery-table", ""), here=measured),
        "compare two": act(("compare-newest", ""), ("compare-clear", "")),
        "judge a pair blindly": vote,
        "verify a video, and cancel that": lambda: (services.queue.cancel(services.queue.verify(videos[0], request)), paint()),
        "a new page after a video has come": lambda: (services.library.set_verdict(videos[1], str(random.random())), paint(judging), paint()),
    }

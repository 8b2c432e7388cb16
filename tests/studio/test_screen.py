"""What is sent to a page, and when."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import pytest

from core.types import GenerationRequest
from studio.estimate import seconds_left
from studio.library import Query
from studio.screen import Screen, Session, render_toast
from studio.services import Services
from studio_app import wait_for


def test_an_older_drawing_never_follows_a_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a poll that takes its time and a button that is pressed meanwhile: the browser would keep the older one."""
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        screen, session = Screen(services), Session(trouble="That video was deleted.")
        panes, drawn = screen._panes, threading.Event()

        def slowly(*given):
            found = panes(*given)
            if not drawn.is_set():
                drawn.set()
                time.sleep(0.3)
            return found

        monkeypatch.setattr(screen, "_panes", slowly)
        toast = screen.names.index("toast")
        with ThreadPoolExecutor(1) as thread:
            poll = thread.submit(screen.paint, session)
            drawn.wait()
            assert screen.act(session, "dismiss", "")
            after = screen.paint(session)
            assert poll.done() and "That video was deleted." in poll.result()[toast] and after[toast] == ""
    finally:
        services.close()


def test_what_a_browser_missed_is_drawn_again(tmp_path: Path) -> None:
    """A poll says which painting the browser has; what came to it in the wrong order, or never, comes with the next one."""
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        screen, session = Screen(services), Session()
        painted, gallery, toast = map(screen.names.index, ("painted", "gallery", "toast"))
        wait_for(lambda: all(services.models.hash(model) for model in services.models.list() if model.installed), "the hashes, which the Models tab shows")
        first = screen.poll(session, "")
        assert first[painted] == "1" and all(isinstance(first[k], str) for k in (gallery, toast))
        nothing = [gr.skip()] * len(screen.names)
        wait_for(lambda: screen.poll(session, str(session.painted)) == nothing, "all to be drawn")
        had = session.painted
        session.query = Query("nothing like it")
        found = screen.paint(session)
        assert found[painted] == str(had + 1) and isinstance(found[gallery], str) and found[toast] == gr.skip()
        again = screen.poll(session, str(had))
        assert again[painted] == str(had + 2) and again[gallery] == found[gallery] and again[toast] == gr.skip()
        assert screen.poll(session, str(had + 2)) == nothing
    finally:
        services.close()


def test_a_late_click_on_an_older_message_leaves_the_newer_one_alone(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        screen, session = Screen(services), Session(undos=[("Video deleted.", "video", ("one",))])
        older = session.toast
        session.offer_undo("2 videos deleted.", "video", ("two", "three"))
        for late in ("dismiss", "undo"):
            screen.act(session, late, older)
            assert session.undo is not None and f'data-id="{session.toast}"' in render_toast(session)
        screen.act(session, "dismiss", session.toast)
        assert session.undo is None
    finally:
        services.close()


def test_each_step_back_brings_the_one_before_it_up(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        screen, session = Screen(services), Session()
        made = [services.queue.enqueue(GenerationRequest(f"Number {number}.")) for number in range(3)]
        for id in made:
            assert screen.act(session, "cancel", id)
        session.hand_out(tmp_path / "many.zip")
        assert "many.zip" in render_toast(session)
        screen.act(session, "dismiss", session.toast)
        assert not screen.act(session, "retry", "gone") and "gone" in render_toast(session)
        screen.act(session, "dismiss", session.toast)
        for left in (2, 1, 0):
            assert "Undo" in render_toast(session)
            screen.act(session, "undo", session.toast)
            assert [services.queue.get(id).state for id in made].count("cancelled") == left
        assert render_toast(session) == ""
    finally:
        services.close()


def test_a_long_queue_is_shown_in_parts(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        screen, session = Screen(services), Session()
        services.queue.enqueue_many([GenerationRequest(prompt=f"Number {n}.", seed=n).resolved() for n in range(90)])
        pane = lambda: screen._panes(session, services.executor.status())["queue"]  # noqa: E731
        assert "Number 39." in pane() and "Number 40." not in pane() and "Show 40 more of 50" in pane()
        screen.act(session, "more-requests", "")
        screen.act(session, "more-requests", "")
        assert "Number 89." in pane() and "more of" not in pane()
    finally:
        services.close()


def test_a_cancelled_request_takes_its_place_again(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        screen, session = Screen(services), Session()
        first, second = (services.queue.enqueue(GenerationRequest(prompt=prompt)) for prompt in ("One.", "Two."))
        assert screen.act(session, "cancel", first) and services.queue.get(first).state == "cancelled"
        assert screen.act(session, "undo", "") and services.queue.get(first).state == "waiting"
        assert [job.id for job in services.queue.list()] == [first, second]
    finally:
        services.close()


def test_a_request_that_has_just_started_has_its_time_in_the_total(tmp_path: Path) -> None:
    """From the first poll on: a line that comes and goes would move the list."""
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        request = GenerationRequest(prompt="One.", seed=1).resolved()

        def add(id: str, made: GenerationRequest, elapsed: float) -> None:
            (tmp_path / "made.mp4").write_bytes(b"")
            services.library.add(id, made, tmp_path / "made.mp4", elapsed=elapsed)

        add("made", request, 8.0)
        services.queue.enqueue_many([request, request])
        assert seconds_left(services, services.queue.list(), 2) == 16.0
        services.queue.lease("w", 60)
        assert services.queue.list()[0].seconds_left is None and seconds_left(services, services.queue.list(), 1) == 16.0
        for number in range(60):  # videos of another model do not hide it
            add(f"other-{number}", request.replace(model="/another"), 1.0)
        assert seconds_left(services, services.queue.list(), 1) == 16.0
    finally:
        services.close()


def test_a_file_that_is_handed_out_twice_is_downloaded_twice(tmp_path: Path) -> None:
    """The page downloads a link that is new to it: the same HTML would not be drawn again."""
    session, shown = Session(), []
    for _ in range(2):
        session.hand_out(tmp_path / "a.gif")
        shown.append(render_toast(session))
    assert shown[0] != shown[1] and all("data-now" in html for html in shown)


def test_a_request_that_verifies_is_copied_as_one(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        request = GenerationRequest(prompt="One.").resolved()
        ids = services.queue.verify("a-video", request), services.queue.enqueue(request)
        assert Screen(services).act(Session(), "copy-many", ",".join(ids))
        assert [job.verifies for job in services.queue.list()] == ["a-video", None] * 2
    finally:
        services.close()


def test_an_empty_gallery_offers_prompts_that_work(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        screen = Screen(services)
        gallery = lambda session: screen._panes(session, services.executor.status())["gallery"]  # noqa: E731
        assert gallery(Session()).count('data-action="example"') == gallery(Session(table=True)).count('data-action="example"') == 3
        assert "No video matches" in gallery(Session(query=Query("ball")))
    finally:
        services.close()


def test_the_trash_gives_back_what_is_in_it_and_undo_knows(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        screen, session, library = Screen(services), Session(query=Query(deleted=True)), services.library
        for id in ("one", "two", "three"):
            (tmp_path / "a.mp4").write_bytes(b"film" * 1000)
            library.add(id, GenerationRequest(f"Video {id}.").resolved(), tmp_path / "a.mp4")
        gallery = lambda: screen._panes(session, services.executor.status())["gallery"]  # noqa: E731
        assert "Nothing is in the trash" in gallery()
        assert screen.act(session, "delete-many", "one,two,three")
        assert "3 deleted videos" in gallery() and "11.72 KiB" in gallery() and gallery().count("kept until") == 3
        assert screen.act(session, "restore", "one") and "Restore: Video one." not in gallery() and "Restore: Video two." in gallery()
        session.query = Query("three", deleted=True)
        assert gallery().count("kept until") == 1 and "2 deleted videos" in gallery()
        assert screen.act(session, "undo", "") and library.count() == 3, "what was restored by itself does not keep Undo from the others"
        assert not screen.act(session, "restore", "one") and "in the trash any more" in session.trouble
        assert screen.act(session, "delete", "two") and session.undo
        assert screen.act(session, "empty-trash", "") and session.undo is None and library.count() == 2
    finally:
        services.close()

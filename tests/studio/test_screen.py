"""What is sent to a page, and when."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from studio.screen import Screen, Session, render_toast
from studio.services import Services


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


def test_a_late_click_on_an_older_message_leaves_the_newer_one_alone(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        screen, session = Screen(services), Session(undo=("Video deleted.", "video", ("one",)))
        older = session.toast
        session.undo = ("2 videos deleted.", "video", ("two", "three"))
        for late in ("dismiss", "undo"):
            screen.act(session, late, older)
            assert session.undo is not None and f'data-id="{session.toast}"' in render_toast(session)
        screen.act(session, "dismiss", session.toast)
        assert session.undo is None
    finally:
        services.close()

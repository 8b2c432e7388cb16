"""What is sent to a page, and when."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from studio.screen import Screen, Session
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

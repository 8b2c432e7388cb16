"""Which models the page offers."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from studio_app import wait_for
from tiny import original_checkpoint

from core.releases import folder_name
from core.types import GenerationRequest, RequestError
from studio.chores import Chores
from studio.components.model_list import render_models
from studio.models import Models
from studio.queue import Queue

IDLE = {"state": "ready", "device": None, "dtype": None, "model": None, "trouble": None}


def test_installed_models_are_found_by_the_names_that_requests_use(tmp_path: Path) -> None:
    models = Models(tmp_path)
    release = "TencentARC/Mira-v0:128"
    assert models.list()[0].name == "mira-nano" and not models.get(release).installed and models.get(release).release.gigabytes > 1
    for name in ("my-tune", folder_name(release), "unfinished"):
        (tmp_path / "models" / name).mkdir(parents=True)
    for name in ("my-tune", folder_name(release)):
        (tmp_path / "models" / name / "model_index.json").write_text("{}")
    names = [model.name for model in models.list()]
    assert names.count(release) == 1 and "my-tune" in names and "unfinished" not in names and folder_name(release) not in names
    assert models.get(release).installed and models.get(release).size == 2
    elsewhere = str(tmp_path / "models" / "my-tune")
    assert models.get(elsewhere).path == elsewhere and models.get("no-such-model") is None


def test_a_model_that_there_is_not_is_refused_at_once_with_what_was_meant(tmp_path: Path) -> None:
    """Else its request, or half a grid, would wait for its turn to fail, and the model in memory would be let go of for it."""
    queue = Queue(tmp_path / "data" / "studio.db", Models(tmp_path / "data"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model_index.json").write_text("{}")
    for name in ("mira-nano", "TencentARC/Mira-v0:128", "someone/their-mira", str(tmp_path / "elsewhere")):
        queue.enqueue(GenerationRequest("A ball.", model=name))
    for name, words in (("mira-nan", "There is no model 'mira-nan'. Did you mean 'mira-nano'"), ("TencentARC/Mira-v0:12", "Did you mean 'TencentARC/Mira-v0:128'"), ("/not/here", "There is no model '/not/here'"), ("n" * 300, "There is no model")):
        with pytest.raises(RequestError, match=re.escape(words)):
            queue.enqueue_many([GenerationRequest("A ball."), GenerationRequest("A ball.", model=name)])
    assert queue.counts()["waiting"] == 4


def test_only_what_is_listed_is_downloaded_ahead(tmp_path: Path) -> None:
    """A name that could be one of the Hub's too: whether there is such a model would be found out late."""
    models = Models(tmp_path)
    models.require_listed("TencentARC/Mira-v0:128")
    for slip, meant in (("TencentARC/Mira-v0", "TencentARC/Mira-v0:"), ("TencentARC/Mira-vo:384", "TencentARC/Mira-v0:384"), ("mira-nan", "mira-nano")):
        with pytest.raises(RequestError, match=f"no model '{slip}' to install. Did you mean '{meant}"):
            models.require_listed(slip)


def test_where_other_machines_reach_the_page_only_its_own_models_may_be_named(tmp_path: Path) -> None:
    mine, elsewhere = tmp_path / "data" / "models" / "mine", tmp_path / "elsewhere"
    for folder in (mine, elsewhere):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    queue = Queue(tmp_path / "data" / "studio.db", Models(tmp_path / "data", ["/opt/default"]))
    for name in ("mine", str(mine), "mira-nano", "TencentARC/Mira-v0:128", "/opt/default"):
        queue.enqueue(GenerationRequest("a ball", model=name))
    for name in (str(elsewhere), "../../elsewhere", str(mine / ".." / ".." / ".." / "elsewhere"), "someone/their-model", str(tmp_path)):
        with pytest.raises(RequestError, match="none of this studio's models.* There are mira-nano, mine"):
            queue.enqueue(GenerationRequest("a ball", model=name))
    Queue(tmp_path / "data" / "studio.db", Models(tmp_path / "data")).enqueue(GenerationRequest("a ball", model=str(elsewhere)))


def test_a_checkpoint_file_is_converted_from_the_page(tmp_path: Path) -> None:
    config, flat = original_checkpoint(tmp_path)
    data_dir = tmp_path / "data"
    torch.save({"state_dict": flat}, tmp_path / "mine.pt")
    installs = Chores(data_dir)
    installs.convert(tmp_path / "mine.pt", "mine", config)
    with pytest.raises(RequestError, match="Converting mine.pt is not done yet"):
        installs.install("TencentARC/Mira-v0:128")
    wait_for(lambda: not installs.current.working, lambda: installs.current)
    assert installs.current.error is None and installs.current.done == installs.current.of > 0, installs.current
    models = Models(data_dir)
    made = models.get("mine")
    assert made.source == "made of mine.pt"
    wait_for(lambda: models.hash(made) is not None, "the hash")
    pane = render_models(models.list(), {"mine": models.hash(made)}, [IDLE], True, 10**12, {}, [], installs.current)
    assert models.hash(made) in pane and "made of mine.pt" in pane and "mine is here." in pane


def test_of_two_that_begin_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chores, begun = Chores(tmp_path), []

    def start(*_: object, **options: object) -> subprocess.Popen[str]:
        begun.append(time.sleep(0.2))
        return Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    Popen = subprocess.Popen
    monkeypatch.setattr("studio.chores.subprocess.Popen", start)
    with ThreadPoolExecutor(2) as pool:
        errors = [future.exception() for future in [pool.submit(chores.render, clips, tmp_path) for clips in (1, 2)]]
    chores.cancel()
    assert len(begun) == 1 and sorted(map(type, errors), key=str) == [type(None), RequestError]


class Hub(BaseHTTPRequestHandler):
    """One file of the Hub, given slowly; notes from which byte on it was asked for."""

    content = bytes(12 * 2**20)
    starts: list[int] = []

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("ETag", '"' + "a" * 40 + '"')
        self.send_header("X-Repo-Commit", "b" * 40)
        self.end_headers()
        if body and self.path.endswith("128-v0.pt"):
            self.starts.append(start)
            with contextlib.suppress(OSError):  # the download was cancelled
                for place in range(start, len(self.content), 2**18):
                    self.wfile.write(self.content[place : place + 2**18])
                    time.sleep(0.1 if len(self.starts) == 1 else 0)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_a_download_is_cancelled_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    installs = Chores(tmp_path)
    try:
        installs.install("TencentARC/Mira-v0:128")
        wait_for(lambda: installs.current.done > 0 or not installs.current.working, "the download to begin")
        assert installs.current.words == "Downloading 128-v0.pt" and installs.current.of == len(Hub.content), installs.current
        installs.cancel()
        assert installs.current is None and list((tmp_path / "models" / "downloads").glob("128-v0.pt.*.part"))
        installs.install("TencentARC/Mira-v0:128")
        wait_for(lambda: not installs.current.working, lambda: installs.current)
        assert len(Hub.starts) == 2 and Hub.starts[0] == 0 and Hub.starts[1] > 0, "the second one went on"
        assert "128-v0.pt" in installs.current.error, "twelve megabytes of zeros are no checkpoint"
    finally:
        installs.cancel()
        server.shutdown()

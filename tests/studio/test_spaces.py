"""The studio as a Space: with a GPU of its own, and with one that is lent by the call (ZeroGPU, by its own package; see tests/zero_gpu.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import psutil
import pytest
import yaml
from studio_app import ROOT, StudioApp, wait_for

from core import GenerationRequest, read_settings
from studio.queue import Queue

SMALL = {"height": 32, "width": 32, "num_frames": 4, "num_inference_steps": 2, "seed": 1}
VISITORS = 8
"""As many at once as find no room in the queue that Gradio has on ZeroGPU by itself, which is for one."""


class ZeroSpace(StudioApp):
    """On ZeroGPU."""

    program = str(ROOT / "tests" / "zero_gpu.py")

    @property
    def ledger(self) -> Path:
        """What the lender of GPUs was asked."""
        return self.data_dir.parent / "lent.jsonl"

    def asked(self, path: str) -> list[dict[str, str]]:
        """With what, each time that it was asked this."""
        return [said for address, said in map(json.loads, self.ledger.read_text().splitlines()) if address == path]

    def join(self, token: str | None = None) -> httpx.Response:
        """The event that follows a press of Generate, as the page of a visitor sends it."""
        first = min(event["id"] for event in self.config()["dependencies"] if event["api_visibility"] == "private" and event["queue"])
        return httpx.post(f"{self.url}/gradio_api/queue/join", json={"data": [], "fn_index": first, "session_hash": "visitor"}, headers={"x-ip-token": token} if token else {}, timeout=60)

    def config(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/config", timeout=60).json()


def tabs(config: dict[str, Any]) -> list[str]:
    return [component["props"]["label"] for component in config["components"] if component["type"] == "tabitem"]


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[ZeroSpace]:
    app = ZeroSpace(tmp_path_factory.mktemp("zero") / "data", tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENT_TO", str(app.ledger))
        app.start()
    try:
        yield app
    finally:
        app.end()


def test_each_request_borrows_a_gpu_and_gives_it_back(zero: ZeroSpace) -> None:
    done = zero.call("generate", {**SMALL, "model": str(zero.model), "prompt": "Lend me a GPU."})
    assert done["state"] == "done" and read_settings(done["video"])["prompt"] == "Lend me a GPU.", done
    assert zero.call("status", zero.enqueue())["state"] == "done", "nobody else would make it"
    assert len(zero.asked("/startup-report")) == 1 and len(zero.asked("/allow")) == 2
    assert [lent["durationSeconds"] for lent in zero.asked("/schedule")] == ["120", "30"], "the second one goes by the first"
    assert [back["fail"] for back in zero.asked("/release")] == ["false", "false"]


def test_training_is_hidden_and_no_worker_stands_by(zero: ZeroSpace) -> None:
    assert "Generate" in tabs(zero.config()) and "Training" not in tabs(zero.config())
    chained = [event for event in zero.config()["dependencies"] if event["api_visibility"] == "private" and event["queue"]]
    assert len(chained) == 6, "Generate, the panes' buttons that fill the form and those that do not, an opened file, the grid and the drafts"
    assert not (zero.data_dir / "logs" / "worker.log").exists()


def test_many_visitors_may_press_at_once_and_each_gives_their_own_share(zero: ZeroSpace) -> None:
    queue = Queue(zero.data_dir / "studio.db")
    before = len(zero.asked("/schedule"))
    id = queue.enqueue(GenerationRequest(prompt="mine", model=str(zero.model), **SMALL))
    assert zero.join("of the first").is_success
    wait_for(lambda: queue.get(id).state == "done", lambda: f"the video of {queue.get(id)}")
    assert zero.asked("/schedule")[before]["token"] == "of the first"
    with ThreadPoolExecutor(VISITORS) as visitors:
        assert [answer.status_code for answer in visitors.map(zero.join, ["of another"] * VISITORS)] == [200] * VISITORS


def test_a_cancelled_request_gives_its_gpu_back(zero: ZeroSpace) -> None:
    queue = Queue(zero.data_dir / "studio.db")
    id = queue.enqueue(GenerationRequest(prompt="long", model=str(zero.model), **{**SMALL, "num_inference_steps": 1000, "num_frames": 16}))
    returned = len(zero.asked("/release"))
    zero.join()
    wait_for(lambda: queue.get(id).step > 1, lambda: f"the steps of {queue.get(id)}")
    zero.call("cancel", id)
    wait_for(lambda: len(zero.asked("/release")) == returned + 1, "the GPU to be given back")
    assert queue.get(id).state == "cancelled" and queue.get(id).step < 1000


def test_that_no_gpu_is_free_reaches_the_user(zero: ZeroSpace) -> None:
    none = zero.ledger.with_suffix(".none")
    none.touch()
    id = zero.enqueue()
    status = zero.call("status", id)
    none.unlink()
    assert (status["state"], status["error"]) == ("failed", "ZeroGPU client error: No GPU was available")
    zero.call("retry", id)
    assert zero.call("status", id)["state"] == "done"


def test_weights_are_laid_ready_for_the_gpu_before_the_page_is_there(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device that ZeroGPU makes the main process believe in."""
    app = ZeroSpace(tmp_path / "data", tiny_model, "--device", "auto")
    monkeypatch.setenv("LENT_TO", str(app.ledger))
    monkeypatch.setenv("ZEROGPU_OFFLOAD_DIR", str(tmp_path / "laid-ready"))
    app.start()
    try:
        assert app.call("workers")[0]["device"] == "cuda:0" and sum(file.stat().st_size for file in (tmp_path / "laid-ready").iterdir()) > 0
    finally:
        app.end()


def test_a_space_is_built_from_what_is_tested_here() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (ROOT / front["app_file"]).is_file() and front["sdk"] == "gradio" and front["sdk_version"] == gr.__version__
    assert f"gradio[mcp]=={front['sdk_version']}\n" in (ROOT / "requirements.txt").read_text() and front["python_version"] == "3.11"
    assert len(front["short_description"]) <= 60, "what Hugging Face takes"


def test_a_space_with_a_gpu_of_its_own_is_the_whole_studio_for_everyone(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "me/mira")
    app = StudioApp(tmp_path / "data", tiny_model)
    app.start()
    try:
        assert [listening.laddr.ip for listening in psutil.Process(app.process.pid).net_connections() if listening.status == "LISTEN"] == ["0.0.0.0"]
        assert "Training" in tabs(httpx.get(f"{app.url}/config").json())
        assert app.wait(app.enqueue(model=str(tiny_model)), "done") and app.worker_pid() != app.process.pid
        with pytest.raises(Exception, match="nobody/their-model"):
            app.enqueue(model="nobody/their-model")
    finally:
        app.end()

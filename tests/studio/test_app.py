"""The app as a whole, in real processes: from a request through the API to a video, and what survives a kill."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest
from studio_app import StudioApp, wait_for
from PIL import Image

from core import read_settings
from studio.db import StorageError
from studio.queue import Queue
from studio.services import Services
from studio.ui import VERSION_PATH

LONG = 400
"""Steps of a request that is still running when something is done to it."""


def test_a_request_becomes_a_video_with_its_settings(studio_app: StudioApp) -> None:
    id = studio_app.enqueue(prompt="a red ball 🎈 כדור", seed=2**63 - 1)
    status = studio_app.wait(id, "done", "failed")
    assert status == {"state": "done", "progress": 1.0, "error": None, "attempts": 1, "video": status["video"]}, status
    assert read_settings(status["video"])["prompt"] == "a red ball 🎈 כדור"
    video = studio_app.call("list_videos")[0]
    assert video["id"] == id and video["request"]["seed"] == 2**63 - 1 and Path(video["poster"]).exists()
    assert httpx.get(f"{studio_app.url}/gradio_api/file={status['video']}").content == Path(status["video"]).read_bytes()
    assert httpx.get(f"{studio_app.url}/gradio_api/file={studio_app.data_dir / 'studio.db'}").status_code in (403, 404), "only videos and previews are served"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "x" * 10_000}, "10,000 characters; at most 2,000"),
        ({"height": 81}, "multiple of 16: try 80 or 96"),
        ({"num_inference_steps": 0}, "must be from 1 to 1000"),
        ({"num_inference_steps": 10_000}, "must be from 1 to 1000"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**70}, "must be from 0 to"),
        ({"guidance_scale": "much"}, "must be a number"),
        ({"promt": "x"}, "Did you mean 'prompt'"),
        ({"sampler": "dimm"}, "Did you mean 'ddim'"),
    ],
)
def test_bad_input_is_answered_in_words(studio_app: StudioApp, settings: dict, words: str) -> None:
    with pytest.raises(Exception, match=words):
        studio_app.enqueue(**settings)


def test_the_version_changes_with_what_a_page_shows_and_with_nothing_else(studio_app: StudioApp) -> None:
    def version() -> str:
        return httpx.get(f"{studio_app.url}/{VERSION_PATH}").raise_for_status().text

    studio_app.call("pause")
    wait_for(lambda: version() == version(), "a version that stays while nothing happens")
    seen = [version()]
    id = studio_app.enqueue()
    seen.append(version())
    studio_app.call("cancel", id)
    seen.append(version())
    studio_app.call("resume")
    seen.append(version())
    assert len(set(seen)) == 4


def test_no_button_depends_on_gradios_queue(studio_app: StudioApp) -> None:
    """Which loses events of a page while the stream of an earlier answer is being closed."""
    events = [event for event in httpx.get(f"{studio_app.url}/config").json()["dependencies"] if event["api_visibility"] == "private"]
    assert len(events) > 20 and not [event for event in events if event["queue"]]


def test_nan_and_unknown_ids_are_answered_in_words(studio_app: StudioApp) -> None:
    body = '{"data": [{"prompt": "a", "guidance_scale": NaN}]}'
    answer = httpx.post(f"{studio_app.url}/gradio_api/run/enqueue", content=body, headers={"content-type": "application/json"})
    assert answer.json()["error"] == "guidance_scale is nan; it must be a number from 0 to 100."
    for endpoint in ("status", "cancel"):
        with pytest.raises(Exception, match="no request 'nonsense'"):
            studio_app.call(endpoint, "nonsense")


def test_an_event_that_is_sent_again_is_done_once(studio_app: StudioApp) -> None:
    """By a page that never heard the answer to it."""
    send = lambda name: httpx.post(f"{studio_app.url}/gradio_api/run/enqueue", json={"data": [{"prompt": f"Sent {name}."}]}, headers={"x-studio-event": name}).json()  # noqa: E731
    studio_app.call("pause")
    answers = [send(name) for name in ("a", "a", "b", "a")]
    assert answers[0]["data"] == answers[1]["data"] == answers[3]["data"] != answers[2]["data"]
    waiting = [one["request"]["prompt"] for one in studio_app.call("list_requests", "waiting")]
    for answer in (answers[0], answers[2]):
        studio_app.call("cancel", answer["data"][0]["id"])
    studio_app.call("resume")
    assert (waiting.count("Sent a."), waiting.count("Sent b.")) == (1, 1)


def test_a_failed_request_says_why_and_the_queue_goes_on(studio_app: StudioApp) -> None:
    failing = studio_app.enqueue(model="nobody/no-such-model")
    after = studio_app.enqueue()
    status = studio_app.wait(failing, "failed", "done")
    assert status["state"] == "failed" and "no-such-model" in status["error"], status
    assert studio_app.wait(after, "done")["attempts"] == 1


def test_progress_preview_and_cancel(studio_app: StudioApp) -> None:
    queue = Queue(studio_app.data_dir / "studio.db")
    id, after = studio_app.enqueue(num_inference_steps=LONG, num_frames=16), studio_app.enqueue()
    wait_for(lambda: queue.get(id).preview is not None and queue.get(id).step > 2, lambda: f"a preview of {queue.get(id)}")
    job = queue.get(id)
    assert job.stage == "denoise" and job.num_steps == LONG and job.seconds_left > 0 and 0 < job.progress < 0.9
    with Image.open(job.preview) as preview:
        assert preview.format == "WEBP" and preview.n_frames == 16
    assert studio_app.call("cancel", id)["state"] == "cancelled"
    assert studio_app.wait(after, "done")["state"] == "done", "the worker went on to the next one"
    assert queue.get(id).step < LONG and not Path(job.preview).exists()


def test_a_killed_worker_is_replaced_and_its_request_runs_again(studio_app: StudioApp) -> None:
    id = studio_app.enqueue(num_inference_steps=LONG)
    studio_app.wait(id, "running")
    victim = studio_app.worker_pid()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: studio_app.call("status", id)["state"] == "waiting", "the request to be put back")
    assert studio_app.answers()
    assert studio_app.wait(id, "done")["attempts"] == 2
    assert studio_app.worker_pid() != victim


def test_a_second_studio_on_the_folder_is_refused(studio_app: StudioApp) -> None:
    with pytest.raises(StorageError, match=f"in use by another studio .process {studio_app.process.pid}."):
        Services.open(studio_app.data_dir, start_worker=False)


def test_nothing_is_lost_when_the_app_is_killed_or_stopped(studio_app: StudioApp) -> None:
    finished = [video["id"] for video in studio_app.call("list_videos")]
    running = studio_app.enqueue(num_inference_steps=LONG)
    waiting = [studio_app.enqueue(prompt=f"number {n}") for n in range(2)]
    studio_app.wait(running, "running")
    worker = studio_app.worker_pid()
    studio_app.end(signal.SIGKILL)
    wait_for(lambda: not _alive(worker), "the worker to leave after the app")

    queue = Queue(studio_app.data_dir / "studio.db")
    assert queue.get(running).state == "running", "as the kill left it"
    studio_app.start()
    studio_app.wait(running, "running")
    studio_app.end(signal.SIGTERM)
    assert queue.get(running).state == "waiting", "a stop in good order puts it back"
    studio_app.start()
    assert studio_app.wait(running, "done")["attempts"] == 3
    for id in waiting:
        assert studio_app.wait(id, "done")["attempts"] == 1
    assert [video["id"] for video in studio_app.call("list_videos")] == [*reversed(waiting), running, *finished]


def test_a_machine_too_busy_to_answer_at_once_does_not_end_the_studio(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio gives its own page three seconds and gives up; here they are always over."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nif sys.argv[0] == 'app.py':\n    import gradio.networking\n    gradio.networking.url_ok = lambda url: False\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    app = StudioApp(tmp_path / "data", tiny_model)
    try:
        app.start()
    finally:
        app.end()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"

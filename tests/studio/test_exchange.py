"""An exported queue comes back whole, and a bad file changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.types import GenerationRequest, RequestError
from studio import exchange
from studio.exchange import export_queue, import_queue
from studio.screen import Screen, Session
from studio.services import Services


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    opened = Services.open(tmp_path / "one", start_worker=False)
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Services]:
    opened = Services.open(tmp_path / "other", start_worker=False)
    yield opened
    opened.close()


def test_what_waits_and_the_presets_move_to_another_studio(services: Services, other: Services) -> None:
    requests = [GenerationRequest(prompt=f"Number {n}.", seed=n).resolved() for n in range(3)]
    services.queue.enqueue_many(requests)
    services.queue.cancel(services.queue.enqueue(GenerationRequest(prompt="Not this.")))
    services.own_presets.save("Soft", requests[0].replace(guidance_scale=2.0))
    other.queue.enqueue(GenerationRequest(prompt="Already here."))
    text = export_queue(services).read_text()
    ids, presets = import_queue(other, text)
    assert presets == {"Soft": None} and other.own_presets.get("Soft").guidance_scale == 2.0
    waiting = other.queue.list(["waiting"])
    assert waiting[0].request.prompt == "Already here."
    assert [job.request for job in waiting[1:]] == requests and [job.id for job in waiting[1:]] == ids


def test_requests_that_cannot_be_queued_leave_the_presets_alone(services: Services, other: Services) -> None:
    services.queue.enqueue(GenerationRequest(prompt="One."))
    services.own_presets.save("Soft", GenerationRequest(prompt="x", guidance_scale=2.0).resolved())
    other.own_presets.save("Soft", GenerationRequest(prompt="x", guidance_scale=5.0).resolved())
    content = json.loads(export_queue(services).read_text())
    content["requests"][0]["loras"] = "nowhere"
    with pytest.raises(RequestError, match="nowhere"):
        import_queue(other, json.dumps(content))
    assert other.own_presets.get("Soft").guidance_scale == 5.0


def test_a_start_is_found_in_the_folder_that_the_queue_moved_to_or_named(services: Services, other: Services) -> None:
    for studio in (services, other):
        (studio.data_dir / "videos").mkdir(exist_ok=True)
    (services.data_dir / "videos" / "sea.mp4").touch()
    services.queue.enqueue_many([GenerationRequest("One."), GenerationRequest("Two.", start_from=str(services.data_dir / "videos" / "sea.mp4"), start_frames=2)])
    text = export_queue(services).read_text()
    with pytest.raises(RequestError, match="Request 2 of 2: .*sea.mp4 is none of this studio's files.* Nothing was imported"):
        import_queue(other, text)
    assert other.queue.list() == []
    (other.data_dir / "videos" / "sea.mp4").touch()
    import_queue(other, text)
    assert other.queue.list(["waiting"])[1].request.start_from == str(other.data_dir / "videos" / "sea.mp4")


def test_an_export_from_before_guidance_was_spread_is_made_as_then(services: Services, other: Services) -> None:
    services.queue.enqueue(GenerationRequest(prompt="Made then.").resolved())
    content = json.loads(export_queue(services).read_text())
    for name in ("temporal_guidance_scale", "guidance_stop", "late_guidance_scale"):
        del content["requests"][0][name]
    import_queue(other, json.dumps(content))
    request = other.queue.list(["waiting"])[0].request
    assert (request.temporal_guidance_scale, request.guidance_stop, request.late_guidance_scale) == (0, 1, 1)


def test_a_video_to_be_verified_stays_here(services: Services) -> None:
    services.queue.verify("a-video", GenerationRequest(prompt="One.").resolved())
    assert json.loads(export_queue(services).read_text())["requests"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: "{", "not JSON"),
        (lambda c: "[]", "no exported queue"),
        (lambda c: json.dumps(c | {"version": 99}), "another version"),
        (lambda c: json.dumps(c | {"requests": [*c["requests"], {"prompt": "x", "height": 33}]}), "Request 2 of 2: height is 33"),
        (lambda c: json.dumps(c | {"presets": {"Odd": {"height": 33}}}), "'Odd': height is 33"),
    ],
)
def test_a_bad_file_changes_nothing(services: Services, other: Services, change, words: str) -> None:
    services.queue.enqueue(GenerationRequest(prompt="One."))
    services.own_presets.save("Soft", GenerationRequest(prompt="x").resolved())
    content = json.loads(export_queue(services).read_text())
    with pytest.raises(RequestError, match=words):
        import_queue(other, change(content))
    assert other.queue.list() == [] and other.own_presets.list() == []


def test_more_requests_than_a_file_holds_are_not_cut(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    services.queue.enqueue_many([GenerationRequest(prompt="One.").resolved()] * 3)
    monkeypatch.setattr(exchange, "MAX_REQUESTS", 2)
    with pytest.raises(RequestError, match="More than 2 requests wait"):
        export_queue(services)


def test_undo_of_an_import_brings_the_presets_back(services: Services, other: Services) -> None:
    for studio, guidance in ((services, 2.0), (other, 5.0)):
        studio.own_presets.save("Soft", GenerationRequest(prompt="x", guidance_scale=guidance).resolved())
    services.own_presets.save("Hard", GenerationRequest(prompt="x").resolved())
    services.queue.enqueue(GenerationRequest(prompt="One."))
    ids, before = import_queue(other, export_queue(services).read_text())
    assert other.own_presets.get("Soft").guidance_scale == 2.0
    assert Screen(other).act(Session(undos=[("Imported.", "imported", (json.dumps(before), *ids))]), "undo", "")
    assert other.own_presets.list() == ["Soft"] and other.own_presets.get("Soft").guidance_scale == 5.0
    assert [job.state for job in other.queue.list()] == ["cancelled"]

"""How long the queue takes, as its heading says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.types import GenerationRequest
from studio.estimate import estimate, seconds_left, seconds_together
from studio.services import Services

REQUEST = GenerationRequest(prompt="One.", seed=1).resolved()


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """A studio of two devices, on which REQUEST took eight seconds."""
    services = Services.open(tmp_path / "data", start_worker=False, device="cuda:0,cuda:1")
    (tmp_path / "made.mp4").write_bytes(b"")
    services.library.add("made", REQUEST, tmp_path / "made.mp4", elapsed=8.0)
    yield services
    services.close()


def left(services: Services, listed: int = 100) -> float:
    return seconds_left(services, services.queue.list(limit=listed), services.queue.counts()["waiting"])


def test_devices_share_what_waits_and_no_request_is_cut_in_two(services: Services) -> None:
    services.queue.enqueue(REQUEST)
    assert left(services) == 8.0
    services.queue.enqueue_many([REQUEST] * 3)
    assert left(services) == 16.0
    services.queue.enqueue_many([REQUEST] * 36)
    assert left(services) == left(services, listed=10) == 160.0


def test_what_is_asked_for_takes_as_long_as_the_queue_then_says(services: Services) -> None:
    requests = [REQUEST.replace(seed=seed) for seed in range(5)]
    assert seconds_together(services, requests) == 24.0 and "about 24 s" in estimate(services, requests)
    services.queue.enqueue_many(requests)
    assert left(services) == 24.0


def test_what_waits_goes_to_the_device_that_is_free_first(services: Services) -> None:
    ids = services.queue.enqueue_many([REQUEST] * 3)
    for id, seconds in zip(ids, (20.0, 2.0)):
        job = services.queue.lease(id, 60)
        services.queue.heartbeat(id, id, job.attempts, seconds_left=seconds)
    assert left(services) == 20.0, "the other one is done with two requests by then"

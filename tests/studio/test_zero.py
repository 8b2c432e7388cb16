"""ZeroGPU's way of working: no worker, a request runs inside the event that asked for it."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from studio_app import wait_for

from core import GenerationRequest, read_settings
from studio.executors import zero
from studio.executors.zero import ZeroExecutor
from studio.services import Services


class Lender:
    """Stands in for the package ``spaces`` as ZeroGPU has it: the function runs in a forked process, and only what it yields comes back."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def GPU(self, function: Callable[[Any], Iterator[Any]], duration: Callable[[Any], float]) -> Callable[[Any], Iterator[Any]]:
        fork = multiprocessing.get_context("fork")

        def run(argument: Any, pipe: Any, stop: Any) -> None:
            told = function(argument)
            for item in told:
                if stop.is_set():
                    told.close()
                    break
                pipe.send(item)
            pipe.send(None)

        def lent(argument: Any) -> Iterator[Any]:
            self.asked.append(duration(argument))
            here, there = fork.Pipe()
            stop = fork.Event()
            process = fork.Process(target=run, args=(argument, there, stop))
            process.start()
            try:
                while (item := here.recv()) is not None:
                    yield item
            finally:
                stop.set()
                process.join()

        return lent


@pytest.fixture
def small(tiny_model: Path) -> GenerationRequest:
    return GenerationRequest(prompt="a red ball", model=str(tiny_model), height=32, width=32, num_frames=4, num_inference_steps=4, sampler="ddim", seed=1)


@pytest.fixture
def executor(tmp_path: Path, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ZeroExecutor]:
    monkeypatch.setattr(zero, "spaces", Lender())
    services = Services.open(tmp_path, executor="zero", default_model=small.model, device="cpu")
    assert services.executor.inside_events and not services.trains and services.executor.status()["state"] == "ready"
    yield services.executor
    services.close()


def test_an_event_makes_what_waits_on_a_lent_gpu(executor: ZeroExecutor, small: GenerationRequest) -> None:
    queue, library = executor.maker.queue, executor.maker.library
    ids = queue.enqueue_many([small, small.replace(seed=2)])
    executor.work_through()
    first = library.get(ids[0])
    assert [queue.get(id).state for id in ids] == ["done", "done"]
    assert read_settings(first.path)["made_with"]["model_hash"] and Path(first.poster).exists()
    assert zero.spaces.asked[0] == zero.UNKNOWN_SECONDS and zero.spaces.asked[1] == zero.SHORTEST_SECONDS, "the second one goes by the first"
    queue.pause()
    waiting = queue.enqueue(small)
    executor.work_through()
    assert queue.get(waiting).state == "waiting"


def test_threads_of_a_forked_gpu_process_may_begin_at_once(executor: ZeroExecutor, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when weights are loaded: after a fork, torch's thread pool breaks if it is first used by several threads at once."""

    def frames(*_: Any) -> tuple[list[BaseException], dict[str, Any]]:
        together, errors = threading.Barrier(8), []

        def work() -> None:
            together.wait()
            try:
                torch.ones(400, 400).add_(1).sum()
            except RuntimeError as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors, {}

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.ones(400, 400).add_(1).sum()
        monkeypatch.setattr(zero.VideoMaker, "frames", frames)
        for _ in range(5):
            assert list(executor.maker.on_gpu(small.resolved())) == [("made", ([], {}))]
    finally:
        torch.set_num_threads(before)


def test_a_cancelled_request_stops_on_the_gpu(executor: ZeroExecutor, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = executor.maker.queue
    id, after = queue.enqueue_many([small.replace(num_inference_steps=1000, num_frames=16), small])
    event = threading.Thread(target=executor.work_through)
    event.start()
    while queue.get(id).step < 2:
        assert event.is_alive()
    executor.work_through()  # another visitor's: all that waits is taken on already
    assert queue.get(id).state == "running"
    queue.cancel(id)
    event.join(60)
    assert queue.get(id).state == "cancelled" and queue.get(id).step < 1000 and queue.get(after).state == "done"


def test_a_download_for_a_request_is_told_before_a_gpu_is_asked_for(executor: ZeroExecutor, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = executor.maker.queue
    id = queue.enqueue(small.replace(model="someone/their-model"))

    def download(name: str, data_dir: Path, tell: Callable[[str, int, int], None]) -> None:
        tell("Downloading model.safetensors", 2**20, 2**30)
        wait_for(lambda: queue.get(id).stage == "Downloading model.safetensors 1 MiB of 1 GiB", "the stage to be told")
        queue.cancel(id)
        tell("Downloading model.safetensors", 2**21, 2**30)

    monkeypatch.setattr(zero, "install", download)
    executor.work_through()
    assert queue.get(id).state == "cancelled" and not zero.spaces.asked


def test_what_the_gpu_or_its_lender_says_reaches_the_user(executor: ZeroExecutor, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio as gr

    queue = executor.maker.queue
    broken, unlucky, after = queue.enqueue_many([small.replace(model="no-such-model"), small, small])
    lent, refusals = executor.maker.on_gpu, [gr.Error("You have used up your GPU time for today.")]

    def refuse(request: GenerationRequest) -> Iterator[Any]:
        if refusals:
            raise refusals.pop()
        yield from lent(request)

    executor.maker.on_gpu = refuse
    executor.work_through()
    assert "There is no model 'no-such-model'" in queue.get(broken).error
    assert queue.get(unlucky).error == "You have used up your GPU time for today."
    assert queue.get(after).state == "done"

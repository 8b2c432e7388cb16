"""The worker's inside, in this process: one request from its lease to its video, and the ways that it can fail."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from studio_app import wait_for

from core import GenerationCancelled, GenerationRequest, read_settings, save_video
from core import pipeline as pipeline_module
from core.device_lock import device_held, lock_path
from studio import db as db_module
from studio.components.queue_list import render_queue, stage_words
from studio.downloads import file_facts
from studio.executors import maker as maker_module
from studio.executors.maker import VideoMaker
from studio.executors.parking import Place
from studio.executors.progress import Progress
from studio.executors.verify import verdict
from studio.queue import STATES, Job


@pytest.fixture
def maker(tmp_path: Path) -> VideoMaker:
    return VideoMaker(tmp_path, "cpu", "w", tell=lambda status: None)


@pytest.fixture
def small(tiny_model: Path) -> GenerationRequest:
    return GenerationRequest(prompt="a red ball", model=str(tiny_model), height=32, width=32, num_frames=4, num_inference_steps=4, sampler="ddim", seed=1)


def lease(maker: VideoMaker, request: GenerationRequest) -> Job:
    maker.queue.enqueue(request)
    return maker.queue.lease("w", 60)


def test_a_video_and_its_row_appear_together(maker: VideoMaker, small: GenerationRequest) -> None:
    job = lease(maker, small)
    maker.work(job)
    done, video = maker.queue.get(job.id), maker.library.get(job.id)
    assert done.state == "done" and done.video == video.path and Path(video.path).exists() and Path(video.poster).exists()
    assert video.request == job.request and (video.width, video.height, video.num_frames) == (32, 32, 4) and video.elapsed > 0
    assert 2**26 < video.peak_memory < 2**36 and "peak_memory" not in read_settings(video.path)["made_with"] and "Memory at its peak" in dict(file_facts(video))
    assert not list(maker.work_dir.iterdir()) and not list(maker.previews_dir.iterdir())


def test_cancel_stops_at_the_next_step(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lease(maker, small)
    steps = []
    on_step_end = Progress.on_step_end

    def cancel_after_two(progress: Progress, pipe, step, timestep, report) -> None:
        steps.append(step)
        on_step_end(progress, pipe, step, timestep, report)
        if step == 1:
            maker.queue.cancel(job.id)

    monkeypatch.setattr(Progress, "on_step_end", cancel_after_two)
    maker.work(job)
    assert steps == [0, 1, 2] and maker.queue.get(job.id).state == "cancelled" and maker.library.count() == 0


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, what: Callable[[], None]) -> list[int]:
    """Have ``what`` happen during that step of the next request; the steps that are made, as they come."""
    steps: list[int] = []
    on_step_end = Progress.on_step_end

    def happens(progress: Progress, pipe, number, timestep, report) -> None:
        steps.append(number)
        if number == step and steps.count(step) == 1:
            what()
        on_step_end(progress, pipe, number, timestep, report)

    monkeypatch.setattr(Progress, "on_step_end", happens)
    return steps


@pytest.mark.parametrize("step", [1, 3])
def test_a_paused_request_goes_on_to_the_same_bits(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    small = small.replace(eta=1.0)
    whole, job = lease(maker, small), None
    maker.work(whole)
    job = lease(maker, small)
    steps = at_step(monkeypatch, step, lambda: maker.queue.pause_request(job.id))
    maker.work(job)
    paused, file = maker.queue.get(job.id), maker.parked_dir / f"{job.id}.pt"
    assert steps == [*range(step + 1)] and (paused.state, paused.step, paused.num_steps) == ("paused", step + 1, 4) and file.exists()
    assert not maker.turn() and file.exists(), "it stays where it is until it is resumed"
    (maker.parked_dir / f".{whole.id}.0a1b.tmp.pt").touch()  # left by a worker that was killed while it wrote
    maker.queue.resume_request(job.id)
    assert maker.turn() and steps == [0, 1, 2, 3] and maker.queue.get(job.id).state == "done"
    assert verdict(Path(maker.library.get(whole.id).path), Path(maker.library.get(job.id).path)).startswith("Bit-exact")
    assert not maker.turn() and not list(maker.parked_dir.iterdir())


@pytest.mark.parametrize("change", ["edited", "another model", "broken file"])
def test_a_stale_snapshot_is_not_gone_on_from(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    job = lease(maker, small)
    steps = at_step(monkeypatch, 2, lambda: maker.queue.pause_request(job.id))
    maker.work(job)
    file = maker.parked_dir / f"{job.id}.pt"
    assert steps == [0, 1, 2] and file.exists()
    maker.queue.resume_request(job.id)
    if change == "edited":
        maker.queue.edit(job.id, small.replace(seed=2))
        assert not maker.queue.resumable()
    elif change == "another model":
        monkeypatch.setattr(maker_module, "made_with", lambda *_: {"model_hash": "other"})
    else:
        file.write_bytes(b"PK")
    assert maker.turn() and steps == [0, 1, 2, 0, 1, 2, 3] and maker.queue.get(job.id).state == "done"
    maker.turn()
    assert not list(maker.parked_dir.iterdir())


def test_a_pause_that_the_disk_does_not_take_is_said_and_the_request_goes_on(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lease(maker, small)
    told = []

    def pause() -> None:
        maker.queue.pause_request(job.id)
        monkeypatch.setattr(db_module, "free_bytes", lambda folder: 2**20)

    at_step(monkeypatch, 1, pause)
    monkeypatch.setattr(maker_module, "save_poster", lambda *_: told.append(maker.queue.get(job.id)) or Path(_[1]).touch())
    maker.work(job)
    assert told[0].state == "running" and not told[0].pausing and re.search("could not be paused and goes on.*disk is full", told[0].error)
    assert maker.queue.get(job.id).state == "done" and maker.queue.get(job.id).error is None


def test_the_time_that_a_video_took_is_without_its_model_but_with_what_was_done_before_a_pause(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    now, prepare = [0.0], VideoMaker.prepare
    monkeypatch.setattr("studio.executors.parking.time", SimpleNamespace(monotonic=lambda: now[0]))

    def passes(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(VideoMaker, "prepare", lambda *arguments: (prepare(*arguments), passes(1000.0)))
    job = lease(maker, small)
    at_step(monkeypatch, 1, lambda: (passes(10.0), maker.queue.pause_request(job.id)))
    maker.work(job)
    maker.queue.resume_request(job.id)
    at_step(monkeypatch, 3, lambda: passes(5.0))
    assert maker.turn() and maker.library.get(job.id).elapsed == 15.0
    assert "in 0:15" in render_queue([maker.queue.get(job.id)], maker.queue.counts(), False, None), "the queue says the same"
    again = maker.queue.verify(job.id, small)
    at_step(monkeypatch, 2, lambda: passes(7.0))
    assert maker.turn() and "in 0:07" in render_queue([maker.queue.get(again)], maker.queue.counts(), False, None)


def test_a_lost_lease_leaves_no_video(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lease(maker, small)

    def lose_it_while_saving(frames, path, fps, settings) -> None:
        maker.queue.requeue("w")
        maker.queue.lease("another", 60)
        path.write_bytes(b"late")

    monkeypatch.setattr(maker_module, "save_video", lose_it_while_saving)
    maker.work(job)
    assert maker.queue.get(job.id).state == "running" and maker.queue.holds(job.id, "another", 2)
    assert maker.library.count() == 0 and not list(maker.library.videos_dir.iterdir()) and not list(maker.work_dir.iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), "not enough memory for 4 frames of 32×32"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (ZeroDivisionError("division by zero"), r"unexpected happened .ZeroDivisionError: division by zero.* details are in .*worker\.log"),
    ],
)
def test_failures_are_told_in_words_and_the_next_request_runs(
    maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fails(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(maker_module, "save_video", fails)
        job = lease(maker, small)
        maker.work(job)
    failed = maker.queue.get(job.id)
    assert failed.state == "failed" and re.search(words, failed.error), failed.error
    maker.queue.retry(job.id)
    maker.work(maker.queue.lease("w", 60))
    assert maker.queue.get(job.id).state == "done" and maker.queue.get(job.id).attempts == 2


def test_a_full_disk_is_told_before_the_work_starts(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lease(maker, small)
    monkeypatch.setattr(db_module, "free_bytes", lambda folder: 2**20)
    maker.work(job)
    assert maker.queue.get(job.id).state == "failed" and "disk is full: 1 MiB free" in maker.queue.get(job.id).error
    assert maker.pipe is None, "nothing was loaded for it"


def test_a_cancelled_request_stops_the_decode_from_being_saved(maker: VideoMaker, small: GenerationRequest) -> None:
    job = lease(maker, small)
    with Progress(maker.queue, "w", job, maker.previews_dir / "p.webp", Place(maker.parked_dir, maker.queue, "w", job), lambda: False) as progress:
        maker.queue.cancel(job.id)
        with pytest.raises(GenerationCancelled):
            progress.stage("save", 0.97)


@pytest.mark.parametrize(("tail_seconds", "words"), [(None, [None]), (3.0, ["0:03", "0:02", None])])
def test_the_time_left_counts_down_while_a_clip_is_decoded_if_it_is_known(
    maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch, tail_seconds: float | None, words: list[str | None]
) -> None:
    job, now, drawn = lease(maker, small), [0.0], []
    monkeypatch.setattr("studio.executors.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    with Progress(maker.queue, "w", job, maker.previews_dir / "p.webp", Place(), lambda: False, tail_seconds) as progress:
        for step in range(4):
            progress.on_step_end(None, step, 0, {"num_steps": 4, "preview": None})
        wait_for(lambda: maker.queue.get(job.id).stage == "decode", "the last step to be told")
        for now[0], left in ((0.0, 3.0), (1.0, 2.0), (2.75, 0.25))[: len(words)]:
            wait_for(lambda left=left: maker.queue.get(job.id).seconds_left == (left if tail_seconds else 0.0), "the time left to be told")
            drawn.append(re.search(r"90 %(?: · (\S+) left)?<", render_queue([maker.queue.get(job.id)], dict.fromkeys(STATES, 0), False, None)).group(1))
    assert drawn == words


def test_a_video_is_made_again_and_judged(maker: VideoMaker, small: GenerationRequest) -> None:
    job = lease(maker, small)
    maker.work(job)
    told = read_settings(maker.library.get(job.id).path)["made_with"]
    assert told["torch"] and told["dtype"] and told["av"] and told["attention"] == "sdpa" and len(told["model_hash"]) == len(told["text_hash"]) == 12

    def verify() -> str:
        id = maker.queue.verify(job.id, job.request)
        maker.work(maker.queue.lease("w", 60))
        assert maker.queue.get(id).state == "done" and maker.library.count() == 1 and not list(maker.work_dir.iterdir())
        return maker.library.get(job.id).verdict

    assert verify().startswith("Bit-exact")
    weight = maker.pipe.transformer.proj_out.weight
    weight.data += 0.5 * weight.data.abs().mean() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    maker.pipe.to(torch.float32)
    words = verify()
    assert words.startswith(("Drifted", "Within tolerance")) and "of 255 on average" in words
    assert ("the number format" in words) == (told["dtype"] != "float32")


def test_the_verdict_tells_equal_from_close_from_other(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(90, 110, (4, 32, 32, 3), dtype=np.uint8)
    clips = {"one": noise, "same": noise, "close": np.clip(noise.astype(int) + 1, 0, 255).astype(np.uint8), "other": 255 - noise, "short": noise[:2]}
    made = {name: {"torch": "3" if name == "other" else "2", **({} if name == "one" else {"attention": "sdpa", "commit": "0a1b2c3"})} for name in clips}  # the first is of an older version
    files = {name: save_video(clip, tmp_path / f"{name}.mp4", 6, {"made_with": made[name]}) for name, clip in clips.items()}
    words = {name: verdict(files["one"], file) for name, file in files.items()}
    assert words["same"] == "Bit-exact: every pixel came out again."
    assert words["close"].startswith("Within tolerance") and words["close"].endswith("Nothing that the file tells of is different now.")
    assert words["other"].startswith("Drifted") and words["other"].endswith("Different now: torch (2 then, 3 now).")
    assert words["short"].startswith("Drifted: it has another shape")


def test_a_training_run_gets_the_device_and_requests_wait_for_it(maker: VideoMaker, small: GenerationRequest) -> None:
    states: list[str] = []
    maker.tell = lambda status: states.append(status["state"])
    maker.queue.enqueue(small)
    path = lock_path(maker.data_dir, "cpu")
    with device_held(path):
        assert not maker.turn() and not maker.turn() and states == ["waiting"]
        assert maker.queue.list()[0].state == "waiting"
    assert maker.turn() and states == ["waiting", "ready", "busy", "busy", "ready"] and maker.library.count() == 1
    (path.parent / "cpu-0.wanted-999999999").touch()  # left by a process that is gone
    assert not maker.turn() and maker.device_turn.take()
    maker.device_turn.give()
    assert maker.pipe is not None


def test_a_training_run_parks_the_running_request_which_goes_on_by_itself(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, over, got = threading.Event(), threading.Event(), []

    def train() -> None:
        wanted.wait(60)
        with device_held(lock_path(maker.data_dir, "cpu")):
            got.append(maker.queue.get(id))
            over.wait(60)

    def ask() -> None:
        wanted.set()
        wait_for(maker.device_turn.wanted, "the training to ask")

    id = maker.queue.enqueue(small)
    steps = at_step(monkeypatch, 1, ask)
    trainer = threading.Thread(target=train)
    trainer.start()
    assert maker.turn() and steps == [0, 1]
    wait_for(lambda: got, "the device to change hands")
    assert (got[0].state, got[0].parked, got[0].step) == ("waiting", 2, 2) and not maker.turn() and maker.pipe is None
    over.set()
    trainer.join()
    assert maker.turn() and steps == [0, 1, 2, 3] and maker.queue.get(id).state == "done"


def runs_out(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, until: Callable[..., bool]) -> list[bool]:
    """Have memory run out in ``owner.name`` until it is called as ``until`` says; how each call went."""
    calls: list[bool] = []
    works = getattr(owner, name)

    def tight(*arguments, **named):
        calls.append(until(*arguments, **named))
        if not calls[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return works(*arguments, **named)

    monkeypatch.setattr(owner, name, tight)
    return calls


def test_out_of_memory_in_the_decode_takes_smaller_chunks_and_keeps_the_steps(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    small = small.replace(num_frames=12)
    job, after = lease(maker, small), maker.queue.enqueue(small)
    steps = at_step(monkeypatch, 99, lambda: None)
    with monkeypatch.context() as tight:
        calls = runs_out(tight, pipeline_module, "decode_latents", lambda vae, latents, chunk_frames=None: chunk_frames == 4)
        maker.work(job)
    assert calls == [False, False, False, True] and steps == [0, 1, 2, 3], "no step is made twice"
    video = maker.library.get(job.id)
    told = read_settings(video.path)["made_with"]["memory"]
    assert told == "the text encoder unloaded after use, decoding 4 frames at a time"
    assert ("To save memory", told) in file_facts(video)
    assert maker.turn() and "memory" not in read_settings(maker.library.get(after).path)["made_with"], "the next one is spared nothing"


def test_out_of_memory_in_a_step_takes_one_thing_at_a_time_and_goes_on_from_there(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    small = small.replace(guidance_scale=3.0)
    whole = lease(maker, small)
    maker.work(whole)
    job = lease(maker, small)
    steps = at_step(monkeypatch, 99, lambda: None)
    with monkeypatch.context() as tight:
        calls = runs_out(tight, maker.pipe.transformer, "forward", lambda hidden_states, **_: len(hidden_states) == 1 or len(steps) < 2)
        maker.work(job)
    assert calls == [True, True, False, False, *[True] * 4] and steps == [0, 1, 2, 3]
    assert read_settings(maker.library.get(job.id).path)["made_with"]["memory"] == "the text encoder unloaded after use, guidance in two passes"
    assert verdict(Path(maker.library.get(whole.id).path), Path(maker.library.get(job.id).path)).startswith(("Bit-exact", "Within tolerance"))


def test_a_request_that_killed_its_worker_is_spared_something(maker: VideoMaker, small: GenerationRequest) -> None:
    """The system's answer to a lack of memory is SIGKILL, which no process can catch."""
    whole = lease(maker, small)
    maker.work(whole)
    job = lease(maker, small)
    maker.queue.worker_died("w", "was killed by SIGKILL")
    assert maker.turn() and maker.queue.get(job.id).state == "done"
    video = maker.library.get(job.id)
    assert read_settings(video.path)["made_with"]["memory"] == "the text encoder unloaded after use"
    assert verdict(Path(maker.library.get(whole.id).path), Path(video.path)).startswith("Bit-exact")


def test_what_cannot_be_made_in_this_memory_says_what_can(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    maker.work(lease(maker, small))
    job = lease(maker, small.replace(num_frames=6))
    runs_out(monkeypatch, pipeline_module, "decode_latents", lambda *_, **__: False)
    maker.work(job)
    failed = maker.queue.get(job.id)
    assert failed.state == "failed" and re.search("not enough memory for 6 frames of 32×32 .* even with .*decoding frame by frame.*largest that it has made here has 4 frames of 32×32", failed.error), failed.error


def test_a_model_is_loaded_only_when_no_training_has_the_device(maker: VideoMaker, small: GenerationRequest) -> None:
    for order in ("preload", "load"):
        maker.orders.put({"do": order, "model": small.model})
    with device_held(lock_path(maker.data_dir, "cpu")):
        assert not maker.turn() and maker.pipe is None
    assert not maker.turn() and maker.model == small.model and maker.orders.empty()


def test_a_download_is_told_in_the_queue_and_stops_when_the_request_is_cancelled(maker: VideoMaker, small: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    job, stages = lease(maker, small), []

    def download(name: str, data_dir: Path, tell: Callable[[str, int, int], None]) -> None:
        for words, done, of, told in (("Downloading <b>.pt", 2**30, 3 * 2**30, "Downloading &lt;b&gt;.pt 1 GiB of 3 GiB"), ("Downloading <b>.pt", 9, 9, "Loading the model"), ("Looking for the text encoder", 0, 0, "Looking for the text encoder")):
            tell(words, done, of)
            wait_for(lambda told=told: stage_words(maker.queue.get(job.id)) == told, told)
        maker.queue.cancel(job.id)
        tell("Downloading <b>.pt", 2, 9)
        stages.append("went on")

    monkeypatch.setattr("core.checkpoints.find_model", download)
    maker.work(job)
    assert maker.queue.get(job.id).state == "cancelled" and not stages and maker.pipe is None

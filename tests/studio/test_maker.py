"""The worker's inside, in this process: one request from its lease to its video, and the ways that it can fail."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from core import GenerationCancelled, GenerationRequest, read_settings, save_video
from core.device_lock import device_held, lock_path
from studio import db as db_module
from studio.executors import maker as maker_module
from studio.executors.maker import VideoMaker
from studio.executors.progress import Progress
from studio.executors.verify import verdict
from studio.queue import Job


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
    with Progress(maker.queue, "w", job, maker.previews_dir / "p.webp") as progress:
        maker.queue.cancel(job.id)
        with pytest.raises(GenerationCancelled):
            progress.stage("save", 0.97)


def test_a_video_is_made_again_and_judged(maker: VideoMaker, small: GenerationRequest) -> None:
    job = lease(maker, small)
    maker.work(job)
    told = read_settings(maker.library.get(job.id).path)["made_with"]
    assert told["torch"] and told["dtype"] and len(told["model_hash"]) == 12

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
    files = {name: save_video(clip, tmp_path / f"{name}.mp4", 6, {"made_with": {"torch": "3" if name == "other" else "2"}}) for name, clip in clips.items()}
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

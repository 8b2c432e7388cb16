"""A denoising that is stopped after any step and goes on from a file gives the same bits as one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_pipeline

from core import RequestError
from core.quality import QUALITIES, Quality
from core.schedulers_info import SAMPLERS
from core.snapshot import Snapshot, SnapshotError

SMALL = dict(height=32, width=32, num_frames=4, num_inference_steps=3, guidance_scale=3.0, fps=6, eta=1.0, output_type="latent")
PROMPT = "a small red ball"


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def source(frames: int) -> torch.Tensor:
    return torch.randn(1, 4, frames, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("start", ["noise", "kept frames", "strength"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stopped_after_any_step_and_resumed_gives_the_same_bits(pipe, sampler: str, start: str, tmp_path: Path) -> None:
    more = {"noise": {}, "kept frames": dict(start_latents=source(2)), "strength": dict(start_latents=source(4), strength=0.7)}[start]
    taken, counted = [], []

    def keep(pipe, step, timestep, report) -> None:
        path = tmp_path / f"{step}.pt"
        report["snapshot"]().save(path, of="this")
        taken.append(path)
        counted.append((step, report["num_steps"]))

    arguments = dict(prompt=[PROMPT, PROMPT], seed=7, sampler=sampler, **SMALL)
    whole = pipe(**arguments, **more, callback_on_step_end=keep).frames
    for done, path in enumerate(taken, 1):
        seen = []
        rest = pipe(**arguments, strength=more.get("strength"), resume=Snapshot.load(path, "this", "cpu")[0], callback_on_step_end=lambda p, step, t, report: seen.append((step, report["num_steps"])))
        assert torch.equal(rest.frames, whole), f"after {done} of {len(taken)}"
        assert seen == counted[done:], "steps are counted from where it began at first"


def test_steps_are_spared_as_they_would_have_been(pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUALITIES, "fast", Quality("Fast", first_block=10.0, guided=1.0))
    arguments = dict(prompt=PROMPT, seed=7, sampler="ddim", quality="fast", **SMALL)
    taken: list[Snapshot] = []
    whole = pipe(**arguments, callback_on_step_end=lambda p, step, t, report: taken.append(report["snapshot"]())).frames
    assert [snapshot.cache["spared"] for snapshot in taken] == [0, 1, 2]
    taken[0].save(tmp_path / "one.pt", of="this")
    assert torch.equal(pipe(**arguments, resume=Snapshot.load(tmp_path / "one.pt", "this", "cpu")[0]).frames, whole)
    assert not torch.equal(pipe(**arguments | {"quality": "quality"}).frames, whole)


def test_a_snapshot_of_something_else_is_refused(pipe, tmp_path: Path) -> None:
    found = []
    pipe(PROMPT, seed=7, callback_on_step_end=lambda p, step, t, report: found.append(report["snapshot"]()), **SMALL)
    with pytest.raises(RequestError, match="The snapshot is of latents"):
        pipe(PROMPT, seed=7, resume=found[0], **SMALL | {"num_frames": 3})
    for name, value in {"sampler": "euler", "num_inference_steps": 4, "guidance_scale": 1.0, "quality": "fast", "fps": 8}.items():
        with pytest.raises(RequestError, match=f"The snapshot was taken with {name} .*; this request has {value!r}"):
            pipe(PROMPT, seed=7, resume=found[0], **SMALL | {name: value})
    path = tmp_path / "one.pt"
    found[0].save(path, of="this", notes={"seconds": 2.5})
    assert Snapshot.load(path, "this", "cpu")[1] == {"seconds": 2.5}
    with pytest.raises(SnapshotError, match="of another request"):
        Snapshot.load(path, "that", "cpu")
    path.write_bytes(path.read_bytes()[:1000])
    for broken in (path, tmp_path / "none.pt"):
        with pytest.raises(SnapshotError, match="cannot be read"):
            Snapshot.load(broken, "this", "cpu")

"""Frames put in between: more of them, of the same length, and the file says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from core.rife import in_between
from core.smooth import RIFE_FILE, RIFE_URL, interpolate, rife_missing
from core.video_io import VideoError, probe, read_settings, read_video, save_video


def test_a_moving_square_moves_in_smaller_steps(tmp_path: Path) -> None:
    frames = np.zeros((12, 64, 96, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[20:44, 4 + 5 * index : 28 + 5 * index] = 255
    source = save_video(frames, tmp_path / "a.mp4", 6, {"prompt": "x", "made_with": {"torch": "2"}})
    smooth = interpolate(source, tmp_path / "b.mp4")
    info = probe(smooth)
    assert info["fps"] == 24 and abs(info["duration"] - 2) < 0.5
    assert read_settings(smooth) == {"prompt": "x", "made_with": {"torch": "2", "post_processing": "interpolated to 24 frames a second by ffmpeg's minterpolate"}}
    places = [float((frame[..., 0] > 128).sum(0).nonzero()[0].mean()) for frame in read_video(smooth)]
    assert max(np.diff(places)) < 3.5, "steps of about a quarter of 5 pixels"
    assert read_settings(source)["made_with"] == {"torch": "2"}


def test_what_cannot_be_interpolated_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError):
        interpolate(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


@pytest.fixture(scope="module")
def rife(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of RIFE's own network, all of them zero: nothing flows, and what lies between two frames is their mean."""
    from ccvfi.arch import IFNet

    path = tmp_path_factory.mktemp("data") / RIFE_FILE
    path.parent.mkdir()
    torch.save({f"module.{name}": torch.zeros_like(tensor) for name, tensor in IFNet().state_dict().items()}, path)
    return path


def test_rife_puts_frames_between_and_leaves_the_given_ones(rife: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), dtype=np.uint8)
    made = in_between(frames, 6, 24, rife, device="cpu")
    assert len(made) == 9 and np.array_equal(made[::4], frames)
    means = (frames[:-1].astype(float) + frames[1:]) / 2
    for k in (1, 2, 3):  # RIFE resizes to a multiple of 64 and back, which softens noise
        assert np.abs(made[k::4].astype(float).mean((1, 2)) - means.mean((1, 2))).max() < 2
    assert len(in_between(frames, 24, 24, rife, device="cpu")) == 3


def test_a_video_is_smoothed_by_rife_in_a_process_of_its_own(tmp_path: Path, rife: Path) -> None:
    frames = np.repeat(np.linspace(0, 255, 4).astype(np.uint8)[:, None, None, None], 3, -1) * np.ones((1, 64, 64, 1), np.uint8)
    source = save_video(frames, tmp_path / "a.mp4", 6, {"prompt": "x"})
    smooth = interpolate(source, tmp_path / "b.mp4", rife=rife)
    assert probe(smooth)["fps"] == 24 and read_settings(smooth)["made_with"] == {"post_processing": "interpolated to 24 frames a second by RIFE 4.26"}
    seen = read_video(smooth)
    assert len(seen) == 13 and abs(int(seen[2].mean()) - 42) < 8  # the mean of the first two, half-way


def test_files_that_are_not_rifes_weights_are_refused(tmp_path: Path, rife: Path) -> None:
    source = save_video(np.zeros((2, 64, 64, 3), np.uint8), tmp_path / "a.mp4", 6)
    (tmp_path / "b.pkl").write_bytes(b"no weights")
    torch.save({name: tensor for name, tensor in torch.load(rife).items() if "block2" not in name}, tmp_path / "c.pkl")
    for name, words in (("b.pkl", "b.pkl does not hold RIFE's weights"), ("c.pkl", "c.pkl does not hold RIFE 4.26: .* tensors are missing, block2")):
        with pytest.raises(VideoError, match=words):
            interpolate(source, tmp_path / "out.mp4", rife=tmp_path / name)
    assert not (tmp_path / "out.mp4").exists()


def test_what_rife_lacks_is_said(tmp_path: Path, rife: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rife_missing(rife.parents[1]) is None
    assert rife_missing(tmp_path) == f"download {RIFE_URL} to {tmp_path / RIFE_FILE}"
    monkeypatch.setattr("core.smooth.find_spec", lambda name: None)
    assert rife_missing(rife.parents[1]) == "pip install --no-deps ccvfi tenacity"

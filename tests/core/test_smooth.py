"""Frames put in between: more of them, of the same length, and the file says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.smooth import interpolate
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

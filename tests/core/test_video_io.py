import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from core.files import WriteError, replacing
from core.types import GenerationRequest
from core.video_io import VideoError, probe, read_settings, read_video, save_poster, save_video, video_format

SETTINGS = GenerationRequest(prompt="a «big» ball 🎈 כדור\nsecond line", seed=2**62, guidance_scale=4.5).to_dict()
PATHS = ("clip.mp4", "clip.gif", "clip")


def toy_frames(num_frames=12, height=80, width=128) -> np.ndarray:
    """A red square that crosses a flat landscape."""
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:, : height // 2], frames[:, height // 2 :] = (199, 224, 240), (158, 189, 148)
    for t in range(num_frames):
        x = 8 + t * (width - 40) // num_frames
        frames[t, 20:44, x : x + 24] = (230, 31, 36)
    return frames


@pytest.mark.parametrize("name", PATHS)
def test_round_trip(tmp_path, name):
    frames = toy_frames()
    path = save_video(frames, tmp_path / "new" / "folder" / name, fps=6, settings=SETTINGS)
    assert path.exists() and read_settings(path) == SETTINGS
    facts = probe(path)
    assert (facts["width"], facts["height"], facts["num_frames"]) == (128, 80, 12)
    assert facts["fps"] == pytest.approx(6, rel=0.01) and facts["duration"] == pytest.approx(2, abs=0.01)
    error = np.abs(read_video(path).astype(int) - frames)
    assert error.mean() < (2.5 if name.endswith("mp4") else 0.5)
    assert np.abs(read_video(path)[5, 32, 8 + 5 * 88 // 12 + 12].astype(int) - (230, 31, 36)).max() < 8  # colours survive
    assert [p.name for p in path.parent.iterdir()] == [name]  # nothing but the video is left


def test_png_frames_each_carry_the_settings(tmp_path):
    folder = save_video(toy_frames(3), tmp_path / "clip.png", fps=6, settings=SETTINGS)
    assert sorted(p.name for p in folder.iterdir()) == ["frame_0000.png", "frame_0001.png", "frame_0002.png", "settings.json"]
    assert folder == tmp_path / "clip" and read_settings(folder / "frame_0001.png") == SETTINGS
    assert json.loads((folder / "settings.json").read_text()) == SETTINGS


def test_mp4_plays_in_browsers(tmp_path):
    path = save_video(toy_frames(), tmp_path / "clip.mp4", fps=8)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # faststart


@pytest.mark.parametrize("name", PATHS)
def test_without_settings(tmp_path, name):
    assert read_settings(save_video(toy_frames(2), tmp_path / name, fps=6)) is None


def test_long_settings_survive(tmp_path):
    settings = SETTINGS | {"prompt": "х🎈" * 1000}
    for name in PATHS:
        assert read_settings(save_video(toy_frames(2), tmp_path / name, 6, settings)) == settings


@pytest.mark.parametrize("name", PATHS)
def test_floats_and_one_frame(tmp_path, name):
    frames = toy_frames(1)
    path = save_video(frames.astype(np.float32) / 255, tmp_path / name, fps=29.97)
    assert read_video(path).shape == (1, 80, 128, 3)
    assert np.abs(read_video(path).astype(int) - frames).mean() < 2.5


@pytest.mark.parametrize("name", PATHS)
def test_an_older_video_is_replaced(tmp_path, name):
    save_video(toy_frames(5), tmp_path / name, fps=6, settings={"n": 1})
    path = save_video(toy_frames(3), tmp_path / name, fps=6, settings={"n": 2})
    assert read_settings(path) == {"n": 2} and probe(path)["num_frames"] == 3
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "frames, message",
    [
        (np.zeros((80, 128, 3), np.uint8), r"\(80, 128, 3\)"),
        (np.zeros((0, 80, 128, 3), np.uint8), r"\(0, 80, 128, 3\)"),
        (np.zeros((2, 80, 128, 3), np.int32), "int32"),
        (np.full((2, 8, 8, 3), np.nan, np.float32), "2 of 2 frames.*NaN"),
        (np.zeros((2, 15, 16, 3), np.uint8), "16x15"),
    ],
)
def test_frames_that_are_no_video_are_refused(tmp_path, frames, message):
    with pytest.raises(VideoError, match=message):
        save_video(frames, tmp_path / "clip.mp4", fps=6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_fps_is_checked(tmp_path, fps):
    with pytest.raises(VideoError, match="fps"):
        save_video(toy_frames(1), tmp_path / "clip.mp4", fps)


def test_formats():
    assert [video_format(p) for p in ("a.mp4", "a.GIF", "a", "a.png")] == ["mp4", "gif", "png", "png"]
    assert video_format("a.b", "gif") == "gif"
    with pytest.raises(VideoError, match="'avi'"):
        video_format("a.avi")


_SMALL_DISK = """
import resource, sys, numpy as np
from core.video_io import save_video
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
try:
    save_video(np.random.default_rng(0).integers(0, 255, (8, 80, 128, 3), np.uint8), sys.argv[1], 6)
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files through the operating system")
@pytest.mark.parametrize("name", PATHS)
def test_when_no_more_can_be_written_nothing_is_left(tmp_path, name):
    """A write that fails half-way, as on a full disk: an older file stays, no half one appears."""
    old = save_video(toy_frames(2), tmp_path / name, fps=6, settings={"old": True})
    run = subprocess.run([sys.executable, "-c", _SMALL_DISK, str(tmp_path / name)], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)
    assert run.stdout.startswith("WriteError") and "could not be written" in run.stdout, run.stderr
    assert read_settings(old) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_full_disk_and_a_closed_folder_are_told_apart(tmp_path):
    for number, message in ((28, r"disk is full.*MiB free"), (13, "may not be written"), (20, "file stands where a folder"), (5, "could not be written")):
        with pytest.raises(WriteError, match=message), replacing(tmp_path / "clip.mp4") as temporary:
            temporary.write_bytes(b"half")
            raise OSError(number, os.strerror(number))
        assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "clip.mp4") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_reading_what_is_no_video(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.mp4"):
        read_settings(tmp_path / "nothing.mp4")
    for name in ("text.mp4", "text.gif", "text.png"):
        (tmp_path / name).write_text("this is not a video")
        with pytest.raises(VideoError, match="19 bytes"):
            read_settings(tmp_path / name)
    Image.new("RGB", (16, 16)).save(tmp_path / "foreign.gif", comment=b"made elsewhere")
    assert read_settings(tmp_path / "foreign.gif") is None
    assert read_settings(tmp_path) is None


@pytest.mark.parametrize("name", ["poster.png", "poster.jpg", "poster.webp"])
def test_poster_is_the_middle_frame(tmp_path, name):
    frames = toy_frames(9)
    with Image.open(save_poster(frames, tmp_path / name)) as image:
        assert image.size == (128, 80)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frames[4]).mean() < 4


ENCODE = """
import hashlib, sys, numpy as np
from core.video_io import save_video
y, x = np.mgrid[0:32, 0:32] / 32
noise = np.random.default_rng(0).normal(0, 0.02, (4, 32, 32, 3))
clip = np.stack([np.stack([0.4 + 0.3 * np.sin(3 * x + i), 0.5 + 0.3 * y * x, 0.3 + 0.2 * np.cos(5 * y)], -1) for i in range(4)]) + noise
print(hashlib.sha256(save_video(clip, sys.argv[1], 6).read_bytes()).hexdigest())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc fills memory on demand")
def test_the_same_frames_give_the_same_file(tmp_path):
    """Whatever was in the memory that the encoder was given: x264's macroblock tree reads what nobody wrote."""
    fill = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TOP_PAD_": "1000000"}
    files = {subprocess.run([sys.executable, "-c", ENCODE, tmp_path / "a.mp4"], env=os.environ | fill | {"MALLOC_PERTURB_": byte}, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout for byte in ("", "1", "170")}
    assert len(files) == 1


def test_video_io_needs_no_torch():
    code = "import sys, core.video_io; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60).returncode == 0

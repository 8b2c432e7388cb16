"""Frames by their times, out of the containers that people have."""

import av
import numpy as np
import pytest

from training.dataset import find_clips
from training.video import _frames_from, probe_video, read_frames

OPEN_GOP = "keyint=25:min-keyint=25:open-gop=1:scenecut=0:bframes=3:b-adapt=0"
HEVC = f"{OPEN_GOP}:log-level=none:pools=none:frame-threads=1"


def write_moving(path, codec, count, rate=25, options=None):
    """A square that moves on a background that brightens: no frame is like another."""
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec} here")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = 25, 1
        if codec in ("mpeg2video", "libx264"):
            stream.codec_context.max_b_frames = 2
        for t in range(count):
            image = np.full((48, 64, 3), 20 + 2 * t, np.uint8)
            image[2 * t % 40 :, 3 * t % 56 :][:8, :8] = 255 - 2 * t
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("v.ts", "libx264", {}),
        ("v.mpg", "mpeg2video", {}),
        ("camcorder.mts", "libx264", {}),
        ("camcorder.m2ts", "libx264", {"x264-params": OPEN_GOP}),
        ("phone.3gp", "mpeg4", {}),
        ("disc.vob", "mpeg2video", {}),
        ("open.mp4", "libx264", {"x264-params": OPEN_GOP}),
        ("open.ts", "libx264", {"x264-params": OPEN_GOP}),
        ("hevc.mp4", "libx265", {"x265-params": HEVC}),
        ("hevc.ts", "libx265", {"x265-params": HEVC}),
        ("refreshed.mp4", "libx264", {"x264-params": "keyint=25:intra-refresh=1:scenecut=0"}),
    ],
)
def test_a_stretch_is_what_reading_the_whole_file_shows_wherever_a_seek_ends(tmp_path, name, codec, options):
    write_moving(tmp_path / name, codec, 80, options=options)
    (tmp_path / name).with_suffix(".txt").write_text("a square")
    assert [clip.path.name for clip in find_clips(tmp_path)[0]] == [name]
    times = [t / 25 for t in range(80)]
    whole = read_frames(tmp_path / name, times, 64, 48)
    for first in range(40, 60):
        assert np.array_equal(read_frames(tmp_path / name, times[first : first + 3], 64, 48), whole[first : first + 3]), first


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_a_late_stretch_of_a_file_without_an_index_is_decoded_from_a_key_frame_on(tmp_path, codec):
    write_moving(tmp_path / "v.mpg", codec, 110)
    frames_from = lambda time: [(begins, frame.to_ndarray().tobytes()) for begins, frame in _frames_from(tmp_path / "v.mpg", time)]  # noqa: E731
    whole = frames_from(0.0)
    assert len(whole) == 110
    for time in (t / 25 for t in range(60, 110)):
        part = frames_from(time)
        assert part == whole[-len(part) :] and time - 1 <= part[0][0] <= time, time


@pytest.mark.parametrize("rate", [24, 30, 60])
@pytest.mark.parametrize("name, codec", [("v.mkv", "libx264"), ("v.webm", "libvpx"), ("v.flv", "flv"), ("v.mp4", "libx264")])
def test_every_frame_comes_once_where_times_are_rounded(tmp_path, name, codec, rate):
    write_moving(tmp_path / name, codec, 60, rate)
    with av.open(str(tmp_path / name)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    fps = probe_video(tmp_path / name).fps
    for first, stride in ((0, 1), (1, 2), (40, 1)):
        read = read_frames(tmp_path / name, [t / fps for t in range(first, 60, stride)], 64, 48)
        nearest = [int(np.argmin([np.abs(frame.astype(int) - image).mean() for frame in frames])) for image in read]
        assert nearest == list(range(first, 60, stride))


def test_every_picture_of_a_gif_comes_once(tmp_path):
    write_moving(tmp_path / "v.gif", "gif", 40, 24)
    fps = probe_video(tmp_path / "v.gif").fps
    assert len({frame.tobytes() for frame in read_frames(tmp_path / "v.gif", [t / fps for t in range(40)], 64, 48)}) == 40

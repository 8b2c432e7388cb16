"""Frames of anyone's videos and pictures, by PyAV: at the asked times, upright, and in the asked size."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".mts", ".m2ts", ".3gp", ".vob")

DECODING = 2
"""Counts up whenever another frame is given for the same time: latents of before are then made anew."""
LEADS = (0.0, 2.0, 10.0)
"""Seconds before the first asked time that are sought, one after the other, until a key frame is found that has begun by then; after these the file is read from its beginning."""


class UnusableVideo(ValueError):
    """A file that cannot be trained on; the message says why in a few words."""


@dataclass(frozen=True)
class VideoFacts:
    """What a file holds, upright."""

    width: int
    height: int
    num_frames: int
    fps: float
    """Frames a second on average; 1 for a picture."""

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps


def probe_video(path: Path) -> VideoFacts:
    """Size, frames (counted, not taken from the header) and mean frame rate of a file; a picture is a video of one frame. Raises UnusableVideo."""
    with _opened(path) as (container, stream):
        times = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None and packet.size]
        width, height = stream.codec_context.width, stream.codec_context.height
    if not times or not width or not height:
        raise UnusableVideo("holds no frame")
    with _opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise UnusableVideo("holds no frame that can be decoded")
        if first.rotation % 180:
            width, height = height, width
    span = max(times) - min(times)
    fps = (len(times) - 1) / span if span > 0 else 1.0
    return VideoFacts(width, height, len(times), fps)


def read_frames(path: Path, times: Sequence[float], width: int, height: int) -> np.ndarray:
    """Frames uint8 [T, height, width, 3] at ``times`` (rising, seconds from the first frame): scaled to cover the size, the middle cut out.

    The frame of a time is the last one that has begun by then, whatever the distances between frames. It starts at a key frame before
    the first time, so that a short stretch of a long file is quick. Raises UnusableVideo where the file ends, or breaks, before the last time.
    """
    if not len(times):
        raise ValueError("No times are given.")
    frames: list[np.ndarray] = []
    last: av.VideoFrame | None = None
    for begins, frame in _frames_from(path, times[0]):
        due = sum(time < begins for time in times[len(frames) :])  # times that the frame before this one covers
        if due:
            frames += [_fitted(last or frame, width, height)] * due
        last = frame
        if len(frames) == len(times):
            break
    if len(frames) == len(times) - 1 and last is not None:
        frames.append(_fitted(last, width, height))
    if len(frames) < len(times):
        raise UnusableVideo(f"ends or breaks after {len(frames) + (last is not None)} of {len(times)} frames")
    return np.stack(frames)


def _frames_from(path: Path, time: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """When frames begin, and the frames as they are when the whole file is read: from one on that has begun by ``time``, or from the first one.

    A seek may end behind the time (MPEG-TS), and what comes before a key frame but refers to the one before that is lost (open GOP): then one farther back is tried.
    After a seek into MPEG-PS, which does not say of every frame when it begins, times are guessed: it is read from its beginning, and decoded from a key frame on.
    """
    for lead in LEADS:
        if time - lead > 1:
            with _opened(path) as (container, stream):
                if container.format.name == "mpeg":
                    timed = _timed(stream, _packets_from(container, stream, time - lead))
                else:
                    container.seek(int((time - lead + _origin(stream)) / stream.time_base), stream=stream)
                    timed = _timed(stream, container.demux(stream))
                early = itertools.takewhile(lambda item: item[0] <= time, timed)
                if (first := next((item for item in early if item[1].key_frame and not item[1].is_corrupt), None)) is not None:
                    yield first
                    yield from timed
                    return
    with _opened(path) as (container, stream):
        yield from _timed(stream, container.demux(stream))


def _packets_from(container: av.container.InputContainer, stream: av.VideoStream, time: float) -> Iterator[av.Packet]:
    """What the file holds from the last key frame on that has begun by ``time``: all is read, at a small part of what decoding takes."""
    latest, packets = int((time + _origin(stream)) / stream.time_base), container.demux(stream)
    group: list[av.Packet] = []
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None:
            if packet.pts > latest:
                group.append(packet)
                break
            group = []
        group.append(packet)
    yield from itertools.chain(group, packets)  # PyAV's own iterator cannot be yielded from once it has ended


def _origin(stream: av.VideoStream) -> float:
    """When the first frame begins by the file's clock, in seconds."""
    return float((stream.start_time or 0) * stream.time_base)


def _slack(stream: av.VideoStream) -> float:
    """Seconds after an asked time by which a frame may begin and still be that of the time.

    The first, the last and this frame's time are each rounded (Matroska and FLV: to 1 ms), which makes up to one unit of the file's clock. Where a unit is a whole frame (AVI) times are exact.
    """
    return max(1e-4, min(1.1 * float(stream.time_base), 0.25 / float(stream.average_rate or 100)))


def _timed(stream: av.VideoStream, packets: Iterable[av.Packet]) -> Iterator[tuple[float, av.VideoFrame]]:
    """When each frame begins, in seconds from the first one of the file and early by the slack, and the frame."""
    shift = _origin(stream) + _slack(stream)
    return (((frame.time or 0.0) - shift, frame) for frame in _decoded(packets))


def _fitted(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """[height, width, 3]: upright, scaled so that it covers, middle cut out; on black where it is transparent."""
    rotation = frame.rotation
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        pixels = frame.to_ndarray(format="rgba").astype(np.uint16)
        frame = av.VideoFrame.from_ndarray(((pixels[..., :3] * pixels[..., 3:] + 127) // 255).astype(np.uint8), format="rgb24")
    turned = rotation % 180 != 0
    w, h = (frame.height, frame.width) if turned else (frame.width, frame.height)
    scale = max(width / w, height / h)
    w, h = max(width, round(w * scale)), max(height, round(h * scale))
    small = frame.reformat(*((h, w) if turned else (w, h)), format="rgb24", interpolation="AREA" if scale < 1 else "BICUBIC").to_ndarray()
    upright = np.rot90(small, (rotation // 90) % 4)
    top, left = (h - height) // 2, (w - width) // 2
    return np.ascontiguousarray(upright[top : top + height, left : left + width])


def _decoded(packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    """Frames up to the end or to the first break in a damaged file."""
    try:
        for packet in packets:
            yield from packet.decode()
    except FFmpegError:
        return


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        container = av.open(os.path.abspath(path))
    except (FFmpegError, OSError, ValueError) as error:
        raise UnusableVideo("is not there" if not path.exists() else f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    with container:
        if not container.streams.video:
            raise UnusableVideo("holds no video")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise UnusableVideo("is coded in a way that cannot be decoded here")
        stream.codec_context.thread_count = 1
        try:
            yield container, stream
        except FFmpegError as error:
            raise UnusableVideo(f"cannot be decoded ({error.strerror})") from None

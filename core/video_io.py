"""Frames to mp4, gif or png files and back, with the settings that made them inside the file. No torch here."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image, PngImagePlugin

from .files import replacing

Format = Literal["mp4", "gif", "png"]
FORMATS: tuple[Format, ...] = ("mp4", "gif", "png")
SETTINGS_KEY = "comment"
"""Where the settings stand: this tag of an mp4, the comment of a gif, this text chunk of a png. JSON in ASCII."""
_SETTINGS_FILE = "settings.json"
_MAX_TEXT_BYTES = 1_000_000
_CRF = "14"
"""H.264's constant quality: 14 keeps a clip of 128x80 crisp (23 is ffmpeg's own choice)."""


class VideoError(ValueError):
    """A video file or an array of frames that cannot be used; the message says why."""


def video_format(path: str | os.PathLike, format: str | None = None) -> Format:
    """What ``save_video`` writes to ``path``: ``format`` where given, else by suffix (none at all or .png: a folder of png frames)."""
    name = format or Path(path).suffix.lower().removeprefix(".") or "png"
    if name not in FORMATS:
        raise VideoError(f"{name!r} is not a format that videos are written in. Use .mp4, .gif, or png for a folder of frames.")
    return name


def save_video(frames: np.ndarray, path: str | os.PathLike, fps: float, settings: dict[str, Any] | None = None, format: Format | None = None) -> Path:
    """Write ``frames [T, H, W, 3]`` (uint8, or float in 0..1) and return the path written.

    mp4 is H.264 in yuv420p, which every browser plays; gif loops; "png" makes a folder ``frame_0000.png`` ... and settings.json (a
    .png suffix is dropped for the folder's name). ``settings`` is any JSON object; ``read_settings`` gives it back. The file is whole
    or not there. Raises VideoError for frames that are not a video, WriteError (an OSError) for a full disk or an unwritable folder.
    """
    path, kind = Path(path), video_format(path, format)
    frames = to_uint8(frames)
    if not 0 < fps <= 1000:
        raise VideoError(f"fps is {fps}; it must be above 0 and at most 1,000.")
    text = None if settings is None else json.dumps(settings)
    if kind == "png":
        path = path.with_suffix("") if path.suffix.lower() == ".png" else path
        _write_png_folder(frames, path, fps, settings, text)
    elif kind == "mp4":
        _write_mp4(frames, path, fps, text)
    else:
        _write_gif(frames, path, fps, text)
    return path


def save_poster(frames: np.ndarray, path: str | os.PathLike) -> Path:
    """The middle one of ``frames [T, H, W, 3]`` as an image; the suffix of ``path`` decides its format."""
    frames, path = to_uint8(frames), Path(path)
    buffer = io.BytesIO()
    Image.fromarray(frames[len(frames) // 2]).save(buffer, format=Image.registered_extensions().get(path.suffix.lower(), "PNG"), quality=92)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path


def read_settings(path: str | os.PathLike) -> dict[str, Any] | None:
    """The settings in an mp4, a gif, a png frame or a folder of them; None where there are none.

    Raises FileNotFoundError, or VideoError for a file that is no video.
    """
    path = Path(path)
    if path.is_dir():
        file = path / _SETTINGS_FILE
        return _as_settings(file.read_text("utf-8")) if file.exists() else None
    with _readable(path):
        if path.suffix.lower() == ".png":
            return _as_settings(_png_text(path))
        with av.open(os.fspath(path), format={".gif": "gif", ".mp4": "mp4"}.get(path.suffix.lower())) as container:
            return _as_settings(container.metadata.get(SETTINGS_KEY))


def copy_without_settings(source: str | os.PathLike, path: str | os.PathLike) -> Path:
    """The mp4 ``source`` without the settings in it; its packets are copied as they are. Raises VideoError or WriteError."""
    source, path = Path(source), Path(path)
    with _readable(source), av.open(os.fspath(source)) as old, replacing(path) as temporary, _as_os_error():
        stream = _video_stream(old, source)
        with av.open(os.fspath(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as new:
            copy = new.add_stream_from_template(stream)
            for packet in old.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    new.mux(packet)
    return path


def probe(path: str | os.PathLike) -> dict[str, float]:
    """``width, height, num_frames, fps, duration`` (seconds) of a video file or a folder of png frames written here.

    A gif stores equal frames in a row once, for longer: they count as one.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("frame_*.png"))
        if not files:
            raise VideoError(f"{path} holds no frame_*.png.")
        with Image.open(files[0], formats=["PNG"]) as image:
            width, height, fps = *image.size, float(image.info.get("fps", 1))
        return dict(width=width, height=height, num_frames=len(files), fps=fps, duration=len(files) / fps)
    with _readable(path), av.open(os.fspath(path)) as container:
        stream = _video_stream(container, path)
        num_frames = stream.frames or sum(1 for _ in container.decode(stream))
        fps = float(stream.average_rate or stream.guessed_rate or 1)
        duration = float(stream.duration * stream.time_base) if stream.duration else num_frames / fps
        if path.suffix.lower() == ".gif":  # its frames may last for different times
            fps = num_frames / duration
        return dict(width=stream.codec_context.width, height=stream.codec_context.height, num_frames=num_frames, fps=fps, duration=duration)


def read_video(path: str | os.PathLike) -> np.ndarray:
    """All frames ``[T, H, W, 3]`` in uint8, upright, of a file or of a folder that this module wrote; all are in memory at once, so not for files from strangers."""
    path = Path(path)
    if path.is_dir():
        frames = [np.asarray(Image.open(file, formats=["PNG"]).convert("RGB")) for file in sorted(path.glob("frame_*.png"))]
    else:
        frames = [as_rgb(frame) for frame in decoded_frames(path)]
    if not frames:
        raise VideoError(f"{path} holds no frame.")
    return np.stack(frames)


def decoded_frames(path: str | os.PathLike) -> Iterator[av.VideoFrame]:
    """The frames of a file, one after the other, each to be read by ``as_rgb``. Raises FileNotFoundError or VideoError."""
    path = Path(path)
    with _readable(path), av.open(os.fspath(path)) as container:
        yield from container.decode(_video_stream(container, path))


def as_rgb(frame: av.VideoFrame) -> np.ndarray:
    """``[H, W, 3]`` in uint8, turned as the file says that it is to be shown: a phone's portrait videos lie on their side."""
    pixels = frame.to_ndarray(format="rgb24", src_colorspace=frame.colorspace, dst_colorspace=frame.colorspace)
    return np.rot90(pixels, frame.rotation // 90 % 4)


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """``[T, H, W, 3]`` uint8 from uint8, or from floats in 0..1 (a little outside is clipped). Raises VideoError."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise VideoError(f"Frames have the shape {tuple(frames.shape)}; [T, H, W, 3] is needed, with at least one frame.")
    if frames.dtype == np.uint8:
        return frames
    if not np.issubdtype(frames.dtype, np.floating):
        raise VideoError(f"Frames are {frames.dtype}; uint8, or floats in 0..1, are needed.")
    if not np.isfinite(frames).all():
        bad = int((~np.isfinite(frames)).any(axis=(1, 2, 3)).sum())
        raise VideoError(f"{bad} of {len(frames)} frames hold values that are not numbers (NaN or infinity): the model or its dtype is at fault.")
    return (frames.clip(0, 1) * 255).round().astype(np.uint8)


def _write_mp4(frames: np.ndarray, path: Path, fps: float, text: str | None) -> None:
    num_frames, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise VideoError(f"Frames are {width}x{height}; an mp4 needs an even width and height.")
    with replacing(path) as temporary, _as_os_error():
        # faststart moves the index to the front, so that a browser plays the file while it loads
        with av.open(os.fspath(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            if text is not None:
                container.metadata[SETTINGS_KEY] = text
            # mbtree=0: that part of x264 reads memory that nobody wrote, so that the same frames gave now these bytes, now those
            options = {"crf": _CRF, "preset": "medium", "x264-params": "mbtree=0"}
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)))
            container.mux(stream.encode())


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """ffmpeg's errors, which carry an errno, as Python's."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


def _write_gif(frames: np.ndarray, path: Path, fps: float, text: str | None) -> None:
    """One palette for the whole clip, so that still parts do not flicker."""
    num_frames, height, width, _ = frames.shape
    sample = frames[:: max(1, num_frames // 12)]
    palette = Image.fromarray(sample.reshape(-1, width, 3)).quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    ends = [round((i + 1) * 100 / fps) for i in range(num_frames)]  # a gif counts in hundredths of a second
    durations = [10 * max(end - start, 1) for start, end in zip([0, *ends], ends)]
    buffer = io.BytesIO()
    extra = {} if text is None else {"comment": text.encode("ascii")}
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, **extra)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _write_png_folder(frames: np.ndarray, folder: Path, fps: float, settings: dict[str, Any] | None, text: str | None) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("fps", str(float(fps)))
    if text is not None:
        info.add_text(SETTINGS_KEY, text)
    with replacing(folder) as temporary:
        temporary.mkdir()
        for i, frame in enumerate(frames):
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, format="PNG", pnginfo=info)
            (temporary / f"frame_{i:04d}.png").write_bytes(buffer.getvalue())
        if settings is not None:
            (temporary / _SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _png_text(path: Path) -> str | None:
    """The settings' chunk of a png; the picture is not decoded. Raises VideoError for a file that is no png."""
    with open(path, "rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            raise VideoError(f"{path} ({path.stat().st_size:,} bytes) is not a picture that can be read.")
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"tEXt" and length <= _MAX_TEXT_BYTES:
                name, _, text = file.read(length).partition(b"\0")
                if name.decode("latin-1") == SETTINGS_KEY:
                    return text.decode("latin-1")
                length = 0
            file.seek(length + 4, os.SEEK_CUR)  # 4: the checksum
    return None


def _as_settings(text: str | bytes | None) -> dict[str, Any] | None:
    """A JSON object, or None for a comment that someone else wrote."""
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise VideoError(f"{path} holds no video.")
    return container.streams.video[0]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        yield
    except (av.error.FFmpegError, Image.UnidentifiedImageError) as error:
        raise VideoError(f"{path} ({path.stat().st_size:,} bytes) is not a video that can be read: {error}.") from error


def require_alike(a: np.ndarray, b: np.ndarray) -> None:
    """Raises VideoError for two videos of different shapes."""
    if a.shape != b.shape:
        raise VideoError(f"The videos differ in shape: {tuple(a.shape)} and {tuple(b.shape)} (frames, height, width, colours). Compare videos of one length and size.")

"""Long videos to clips of one shot each: cuts are found by PySceneDetect, the pieces are written by ffmpeg."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from core.files import replacing

from .config import ConfigError
from .dataset import Reject, find_clips
from .video import VIDEOS, UnusableVideo, probe_video

THRESHOLD = 27.0
"""Mean change of hue, saturation and lightness (of 255) from frame to frame that is a cut: PySceneDetect's usual value."""
SHORTEST = 0.5
"""Seconds below which a shot is left out."""


MARGIN = 0.002
"""Seconds by which a cut is made earlier, so that rounding leaves no frame on the wrong side."""
RECORD = "split.json"
"""File beside the pieces that says of what each was made: {"source": ..., "pieces": {"NAME-000.mp4": {"path", "size", "mtime_ns", "start", "end", "caption"}}}."""


def find_shots(path: Path, threshold: float = THRESHOLD) -> list[tuple[float, float]]:
    """When each shot of a video begins, and when the next one does, in seconds. Raises UnusableVideo."""
    from scenedetect import ContentDetector, SceneManager, VideoOpenFailure, open_video

    probe_video(path)
    try:
        video, manager = open_video(str(path.absolute()), backend="pyav"), SceneManager()
    except (VideoOpenFailure, OSError) as error:
        raise UnusableVideo(f"cannot be read ({error})") from None
    manager.add_detector(ContentDetector(threshold, min_scene_len=1))
    manager.detect_scenes(video)
    return [(start.seconds, end.seconds) for start, end in manager.get_scene_list(start_in_scene=True)]


def split_videos(source: str | Path, out: str | Path, threshold: float = THRESHOLD, root: str | Path | None = None, progress: Callable[[int, int], None] | None = None) -> tuple[list[Path], list[Reject]]:
    """Write each shot of a dataset's videos as ``out/NAME-000.mp4``, with its caption beside it if it has one; the pieces, and what was left out and why.

    Pieces of a video in a folder below lie in a folder of that name. Of several captions (MiraData's) the fullest is kept. Videos without a caption are split too.
    A piece that was made of the same stretch of the same file stays, and its caption with it unless the source's has changed; one that this source does not give any more is removed. Pieces of other sources are not touched.
    Raises ConfigError for a source that names no videos, WriteError.
    """
    source, out = Path(source), Path(out)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{out} lies in {source}, so that its pieces would be split again. Name a folder beside it.")
    clips, rejects = find_clips(source, root)
    videos = [(clip.path, clip.captions[-1], clip.start, clip.end) for clip in clips if clip.path.suffix.lower() in VIDEOS]
    if source.is_dir():
        videos += [(source / reject.name, "", 0.0, None) for reject in rejects if reject.reason.startswith("has no caption") and (source / reject.name).suffix.lower() in VIDEOS]
    left_out = [reject for reject in rejects if not reject.reason.startswith("has no caption")]
    begin = Path(root or (source if source.is_dir() else source.parent)).resolve()
    before = _record(out)["pieces"]
    ours = {path.resolve() for path, *_ in videos}
    of_others = {name: made for name, made in before.items() if Path(made["path"]) not in ours and not (source.is_dir() and Path(made["path"]).is_relative_to(begin))}
    pieces: dict[Path, dict[str, Any]] = {}
    taken = {(out / name).with_name(Path(name).stem.rpartition("-")[0]) for name in of_others}
    for number, (path, caption, start, end) in enumerate(sorted(videos), 1):
        stem = _free(out / path.resolve().relative_to(begin).with_name(f"{path.stem}{f'-{start:g}s' if start else ''}"), taken)
        try:
            inside = [(max(first, start), last if end is None else min(last, end)) for first, last in find_shots(path, threshold)]
            for place, (first, last) in enumerate(shot for shot in inside if shot[1] > shot[0]):
                piece = stem.with_name(f"{stem.name}-{place:03}.mp4")
                if last - first < SHORTEST:
                    left_out.append(Reject(f"{path.name}, shot {place}", f"is too short: {last - first:.2f} s, and {SHORTEST:g} are needed"))
                    continue
                made = {"path": str(path.resolve()), "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "start": round(first, 6), "end": round(last, 6), "caption": caption}
                _make(piece, made, before.get(_name(piece, out), {}))
                pieces[piece] = made
        except UnusableVideo as error:
            left_out.append(Reject(path.name, str(error)))
        _keep(out, source, {**before, **{_name(piece, out): made for piece, made in pieces.items()}})
        if progress is not None:
            progress(number, len(videos))
    made_now = {_name(piece, out): made for piece, made in pieces.items()}
    for name in before.keys() - of_others.keys() - made_now.keys():
        for file in (out / name, (out / name).with_suffix(".txt")):
            file.unlink(missing_ok=True)
    _keep(out, source, {**of_others, **made_now})
    return list(pieces), left_out


def split_of(out: Path) -> Path | None:
    """The source that a folder's pieces were last made of; None for a folder that says of none."""
    source = _record(out)["source"]
    return Path(source) if source else None


def _make(piece: Path, made: dict[str, Any], before: dict[str, Any]) -> None:
    """Cut a piece and write its caption, except what is there and was made of the same. Raises UnusableVideo or WriteError."""
    text = piece.with_suffix(".txt")
    same = piece.exists() and {**before, "caption": ""} == {**made, "caption": ""}
    if not same:
        text.unlink(missing_ok=True)
        _cut(Path(made["path"]), piece, made["start"], made["end"])
    if made["caption"] and not (same and text.exists() and before["caption"] == made["caption"]):
        with replacing(text) as file:
            file.write_text(made["caption"] + "\n", encoding="utf-8")


def _name(piece: Path, out: Path) -> str:
    return piece.relative_to(out).as_posix()


def _record(out: Path) -> dict[str, Any]:
    """What RECORD says; nothing where it is not there or cannot be read."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        return {"source": str(record["source"]), "pieces": {str(name): dict(made) for name, made in record["pieces"].items() if made["path"]}}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {"source": "", "pieces": {}}


def _keep(out: Path, source: Path, pieces: dict[str, dict[str, Any]]) -> None:
    with replacing(out / RECORD) as file:
        file.write_text(json.dumps({"source": str(source.resolve()), "pieces": pieces}, indent=1, ensure_ascii=False), encoding="utf-8")


def _free(stem: Path, taken: set[Path]) -> Path:
    """``stem``, with a number where another video has it (a.mp4 and a.mov); taken from now on."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = stem.with_name(f"{stem.name}-{number}")
    taken.add(name)
    return name


def _cut(source: Path, target: Path, start: float, end: float) -> None:
    """Write the frames that begin in [start, end): exact, as they are encoded anew. Raises UnusableVideo."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-ss", f"{max(0.0, start - MARGIN):.6f}", "-i", str(source.resolve()), "-t", f"{end - max(start, MARGIN):.6f}"]
    with replacing(target) as file:
        done = subprocess.run([*command, "-an", "-c:v", "libx264", "-preset", "fast", "-crf", "16", "-pix_fmt", "yuv420p", "-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", str(file.absolute())], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnusableVideo(f"could not be cut ({done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode})")

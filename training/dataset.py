"""Folders and tables of captioned videos, as users have them.

    FOLDER with name.mp4 + name.txt, also in folders below (pictures too: they are videos of one frame)
    FOLDER with metadata.csv or metadata.jsonl (Hugging Face's ``videofolder``: file_name, and text or caption), or with one in train/ where it is divided
    TABLE.csv of MiraData (file_path, or index and video_id; six captions, start and end) or of WebVid (videoid, name, page_dir)

    python -m training.dataset check SOURCE [--preview DIR] [--json] [key=value ...]
    python -m training.dataset split SOURCE OUT [--threshold 27]     long videos to clips of one shot each
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .config import ConfigError, as_word, load_config
from .video import PICTURES, VIDEOS

TABLES = ("metadata.csv", "metadata.jsonl", "train/metadata.csv", "train/metadata.jsonl")
"""In a folder, the first that is there; of a dataset that is divided as on the Hub, what is for training."""
MIRADATA_CAPTIONS = ("short_caption", "dense_caption", "main_object_caption", "background_caption", "style_caption", "camera_caption")
FILE_COLUMNS = ("file_name", "filename", "file_path", "path", "video", "video_path")
TEXT_COLUMNS = ("text", "caption", "prompt", "name")
MIRADATA_INDEX = re.compile(r"(\d{1,18})_.+-\d+")
"""``{download_idx}_{video_id}-{clip_id}``."""
PREVIEWED = 8
ENCODINGS = ("utf-8", "cp1252")
MARKS = {"utf-8-sig": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
"""Encodings that a file's first bytes may name."""
csv.field_size_limit(2**24)


@dataclass(frozen=True)
class Clip:
    """A captioned video, or a stretch of one."""

    path: Path
    captions: tuple[str, ...]
    """Each of them says what the clip shows; training draws one."""
    start: float = 0.0
    """Seconds from the beginning of the file."""
    end: float | None = None
    """Seconds; None for the end of the file."""

    @property
    def name(self) -> str:
        """What it is called in a report."""
        return self.path.name if self.end is None and not self.start else f"{self.path.name} ({self.start:g} s)"


@dataclass(frozen=True)
class Reject:
    """A clip that cannot be used, and why."""

    name: str
    reason: str


def find_clips(source: str | Path, root: str | Path | None = None) -> tuple[list[Clip], list[Reject]]:
    """The clips of a folder or a table, in a fixed order, and those that have no caption or no file. Files are not opened.

    ``root`` is where a table's paths begin (its own folder by default); a path that leads out of it is rejected. Raises ConfigError
    for a source that is not there, cannot be read as a table, or names no clip at all.
    """
    source, table = Path(source), table_of(source)
    if table is not None and table.suffix.lower() in (".csv", ".jsonl"):
        found = list(_rows(table, Path(root or table.parent)))
    elif source.is_dir():
        found = list(_pairs(source))
    else:
        raise ConfigError(f"There is no dataset {source}. Name a folder of videos with captions (name.mp4 and name.txt), or a .csv or .jsonl table.")
    if not found and table is not None:
        raise ConfigError(f"{table} holds no videos: it has no rows. Its first line names the columns, such as file_name,text, and each line below it a video.")
    if not found:
        raise ConfigError(f"{source} holds no videos. Put name.mp4 with its caption in name.txt into it, or a metadata.csv with the columns file_name and text.")
    return [item for item in found if isinstance(item, Clip)], [item for item in found if isinstance(item, Reject)]


def count_clips(source: str | Path) -> tuple[int, int]:
    """How many clips and how many different captions a dataset names: no clip is looked for. Raises ConfigError for a table that cannot be read."""
    table = table_of(source)
    if table is None:
        videos = sum(path.suffix.lower() in (*VIDEOS, *PICTURES) for path in Path(source).rglob("*"))
        return videos, videos
    rows = [plain_row(row) for row in table_rows(table)]
    return len(rows), len({caption for row in rows for caption in captions_of(row)})


def table_of(source: str | Path) -> Path | None:
    """The table that a dataset is or holds; None for a folder without one, and for what is not there."""
    source = Path(source)
    places = [source / name for name in TABLES] if source.is_dir() else [source]
    return next((place for place in places if place.is_file()), None)


def _pairs(folder: Path) -> Iterator[Clip | Reject]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (*VIDEOS, *PICTURES) or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        name, text = str(path.relative_to(folder)), path.with_suffix(".txt")
        if _leads_out(path, folder):
            yield Reject(name, "leads out of the folder")
        elif not text.is_file():
            yield Reject(name, f"has no caption: {text.name} is missing")
        else:
            try:
                caption = " ".join(_decoded(text).split())
            except OSError as error:
                yield Reject(name, f"has no caption: {text.name} cannot be read ({error.strerror})")
                continue
            yield Clip(path, (caption,)) if caption else Reject(name, f"has no caption: {text.name} is empty")


def _rows(table: Path, root: Path) -> Iterator[Clip | Reject]:
    rows = table_rows(table)
    for number, cells in enumerate(rows, 1):
        row = plain_row(cells)
        where = path_of(row)
        if where is None:
            if number == 1:
                raise ConfigError(f"{table} names no files: it has the columns {', '.join(row) or 'none'}; one of {', '.join(FILE_COLUMNS)} (or video_id, or videoid and page_dir) is needed.")
            yield Reject(f"row {number}", "names no file")
            continue
        path, captions, stretch = _file_of(root, where), tuple(captions_of(row)), _stretch(row)
        if isinstance(path, str) and (downloaded := _miradata_file(root, row.get("index", ""))):
            path, cut = downloaded
            stretch = (0.0, None) if cut else stretch
        if isinstance(path, str):
            yield Reject(where, path)
        elif more := " ".join(cells.get(None, ())).strip():
            yield Reject(where, f"has more cells than the table has columns, with {more!r} in them: put its caption in double quotes")
        elif not captions:
            yield Reject(where, "has no caption")
        elif isinstance(stretch, str):
            yield Reject(where, stretch)
        else:
            yield Clip(path, captions, *stretch)


def plain_row(row: Mapping[Any, Any]) -> dict[str, str]:
    """A table's row with its names in small letters and its values as texts."""
    return {str(key).strip().lower(): str(value).strip() for key, value in row.items() if key is not None and value is not None}


def _leads_out(path: Path, root: Path) -> bool:
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _file_of(root: Path, where: str) -> Path | str:
    """The file below ``root`` that a table names, perhaps without its suffix; or why it cannot be used."""
    path = root / where
    try:
        if not path.suffix and path.name:
            path = next((p for suffix in VIDEOS if (p := path.with_name(path.name + suffix)).is_file()), path)
        if _leads_out(path, root):
            return f"leads out of {root}"
        return path if path.is_file() else "is not there"
    except (OSError, ValueError):
        return "cannot be the name of a file"


def _miradata_file(root: Path, index: str) -> tuple[Path, bool] | None:
    """The file of a MiraData row as its own download_data.py stores it below ``root``, and whether it is the clip, cut already, not the whole video; None where there is neither."""
    if (parts := MIRADATA_INDEX.fullmatch(index)) is None:
        return None
    folder = f"{int(parts[1]) // 1000:09}"
    places = ((f"{folder}/{index}.mp4", True), (f"{index}.mp4", True), (f"{folder}/{index.partition('-')[0]}.mp4", False))
    return next(((path, cut) for place, cut in places if isinstance(path := _file_of(root, place), Path)), None)


def captions_of(row: dict[str, str]) -> Iterable[str]:
    """The captions of a table's row: MiraData's as Mira mixes them (a third each: tag and short, tag and dense, all), else the one text."""
    if row.get("short_caption") or row.get("dense_caption"):
        tag = row.get("tag", "")
        mixes = ((tag, row.get("short_caption", "")), (tag, row.get("dense_caption", "")), (tag, *(row.get(name, "") for name in MIRADATA_CAPTIONS)))
        return [" ".join(" ".join(parts).split()) for parts in mixes if any(parts[1:])]
    return [" ".join(row[name].split()) for name in TEXT_COLUMNS if row.get(name)][:1]


def path_of(row: dict[str, str]) -> str | None:
    """The file that a ``plain_row`` names, below the dataset's root; None where it names none."""
    named = next((row[name] for name in FILE_COLUMNS if row.get(name)), None)
    if named is None and row.get("videoid"):
        named = f"{row.get('page_dir', '')}/{row['videoid']}.mp4".lstrip("/")
    return named or row.get("video_id") or None


def _stretch(row: dict[str, str]) -> tuple[float, float | None] | str:
    """Start and end in seconds, of columns in seconds or in frames (with fps); or why they cannot be used."""
    try:
        if row.get("start_frame") and row.get("end_frame"):
            fps = float(row.get("fps") or 0)
            if not fps > 0:
                return "gives its frames but no fps"
            start, end = float(row["start_frame"]) / fps, float(row["end_frame"]) / fps
        else:
            start, end = float(row.get("start") or 0), float(row["end"]) if row.get("end") else None
    except ValueError:
        return "has a start or an end that is no number"
    if not math.isfinite(start) or not math.isfinite(end or 0):
        return "has a start or an end that is no number"
    return (start, end) if start >= 0 and (end is None or end > start) else "ends before it starts"


def table_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a .csv or .jsonl file as it has them. Raises ConfigError."""
    text = _decoded(path)
    if path.suffix.lower() == ".jsonl":
        try:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]  # not splitlines: JSON may hold other line separators as they are
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON lines: {error}.") from None
        if not all(isinstance(row, dict) for row in rows):
            raise ConfigError(f"{path} is not JSON lines of objects.")
        return rows
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter_of(text)))  # lines may end in CR alone
    except csv.Error as error:
        raise ConfigError(f"{path} is not a table with commas: {error}.") from None


def delimiter_of(text: str) -> str:
    """What parts the cells of a .csv: where its first line has no comma, the semicolons of spreadsheets in much of Europe, or tabs."""
    head = re.split("[\r\n]", text, maxsplit=1)[0]
    return next((mark for mark in ",;\t" if mark in head), ",")


def _decoded(path: Path) -> str:
    return decoded(path)[0]


def decoded(path: Path) -> tuple[str, str]:
    """Text in UTF-8, else in UTF-16 where it says so, else in Windows' Western encoding; and the encoding, for ``encoded``."""
    content = path.read_bytes()
    marked = next((encoding for encoding, mark in MARKS.items() if content.startswith(mark)), None)
    for encoding in filter(None, (marked, *ENCODINGS)):
        with contextlib.suppress(UnicodeDecodeError):
            return content.removeprefix(MARKS.get(encoding, b"")).decode(encoding.removesuffix("-sig")), encoding
    return content.decode("latin-1"), "latin-1"


def encoded(text: str, encoding: str) -> bytes:
    """What ``decoded`` reads as that text in that encoding. Raises UnicodeEncodeError for a character that it does not have."""
    return MARKS.get(encoding, b"") + text.encode(encoding.removesuffix("-sig"))


def main(argv: list[str] | None = None) -> int:
    """``check`` and ``split``: exit status 0 when there is a clip to train on, 1 when there is none, 2 for a source that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m training.dataset", description="Look at a dataset as training will.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="how many clips can be used, and why others cannot")
    check.add_argument("source")
    check.add_argument("words", nargs="*", metavar="key=value", help="settings of the training, such as num_frames=[24] sizes=[128x80] frame_stride=4 dataset_root=DIR")
    check.add_argument("--preview", type=Path, metavar="DIR", help=f"write what training will see of the first {PREVIEWED} clips into this folder")
    check.add_argument("--json", action="store_true")
    check.add_argument("--events", action="store_true", help="JSON lines: how far it is, at last the report")
    split = commands.add_parser("split", help="cut long videos into clips of one shot each, with their captions")
    split.add_argument("source")
    split.add_argument("out", type=Path)
    split.add_argument("--threshold", type=float, default=27.0, help="change of colour and light, of 255, that is a cut; lower finds more (%(default)g)")
    split.add_argument("--root", type=Path, help="where the paths in a table begin")
    split.add_argument("--events", action="store_true", help="JSON lines: how far it is")
    args, words = parser.parse_known_args(argv)  # words may also stand between and after the options
    if unknown := [word for word in words if word.startswith("-") or "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    from .doctor import examine
    from .takes import write_preview

    told = lambda done, total: print(json.dumps({"done": done, "of": total}), flush=True)  # noqa: E731
    if args.command == "split":
        return _split(args, told if args.events else None)
    try:
        config = load_config(None, [f"dataset={as_word(args.source)}", "target=lora", "model=any", *args.words, *words])
        report = examine(args.source, config.dataset_root or None, config.shortest, config.frame_stride, told if args.events else None)
        shown = write_preview(report, config, args.preview, PREVIEWED) if args.preview and report.clips else []
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    facts = {**report.to_dict(), "preview": shown}
    print(json.dumps({"report": facts}) if args.events else json.dumps(facts, indent=1) if args.json else report.text())
    return 0 if report.clips else 1


def _split(args: argparse.Namespace, progress: Callable[[int, int], None] | None) -> int:
    from core.files import WriteError

    from .split import split_videos

    try:
        pieces, left_out = split_videos(args.source, args.out, args.threshold, args.root, progress)
    except (ConfigError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if progress is not None:
        print(json.dumps({"report": {"clips": len(pieces), "folder": str(args.out), "left_out": [asdict(item) for item in left_out]}}))
    else:
        print("\n".join([f"{len(pieces)} clips are in {args.out}.", *(f"left out: {item.name} {item.reason}" for item in left_out)]))
    return 0 if pieces else 1


if __name__ == "__main__":
    sys.exit(main())

"""Captions of a dataset as a list that can be edited and written back: name.txt beside each video, or the text column of a table."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from core.files import replacing

from .config import ConfigError
from .dataset import TABLES, TEXT_COLUMNS, column_of, find_clips, table_rows

MOST_ROWS = 5000
"""Captions that are edited at once."""


def read_captions(source: str | Path) -> dict[str, str]:
    """Captions by file, relative to a folder or as a table names it, in the dataset's order. Videos without a caption have an empty one.

    Rows of a table that name the same file (stretches of it) are told apart by their numbers: ``a.mp4, row 2``.
    Raises ConfigError for a source that cannot be read, has several captions a clip (MiraData's), or more than MOST_ROWS rows.
    """
    source, table = _table(source)
    if table is None:
        clips, rejects = find_clips(source)
        missing = {reject.name: "" for reject in rejects if reject.reason.startswith("has no caption")}
        found = {str(clip.path.relative_to(source)): clip.captions[0] for clip in clips} | missing
        found = dict(sorted(found.items()))
    else:
        rows, where, text = _columns(table)
        found = {name: str(row.get(text) or "") for name, row in zip(_names(rows, where), rows)}
    if len(found) > MOST_ROWS:
        raise ConfigError(f"{source} has {len(found):,} captions; at most {MOST_ROWS:,} are edited here. Use a table and an editor of tables.")
    return found


def write_captions(source: str | Path, captions: Mapping[str, str]) -> int:
    """Write the captions that differ; how many did. Each file is whole at all times. Raises ConfigError, also for a name that is not the dataset's."""
    known = read_captions(source)
    if strange := [name for name in captions if name not in known]:
        raise ConfigError(f"{strange[0]!r} is not in {source}.")
    changed = {name: " ".join(text.split()) for name, text in captions.items() if " ".join(text.split()) != known[name]}
    if empty := [name for name, text in changed.items() if not text]:
        raise ConfigError(f"The caption of {empty[0]} is empty. Say what the clip shows; nothing was saved.")
    source, table = _table(source)
    if table is None:
        for name, text in changed.items():
            with replacing((source / name).with_suffix(".txt")) as file:
                file.write_text(text + "\n", encoding="utf-8")
    elif changed:
        rows, where, column = _columns(table)
        for name, row in zip(_names(rows, where), rows):
            row[column] = changed.get(name, row.get(column))
        with replacing(table) as file:
            file.write_text(_dumped(rows, table), encoding="utf-8")
    return len(changed)


def _table(source: str | Path) -> tuple[Path, Path | None]:
    """The source, and the table that it is or holds."""
    source = Path(source)
    if source.is_dir():
        return source, next((source / name for name in TABLES if (source / name).is_file()), None)
    if not source.is_file():
        raise ConfigError(f"There is no dataset {source}.")
    return source, source


def _columns(table: Path) -> tuple[list[dict], str, str]:
    """The rows, and the names of the columns of files and of texts."""
    rows = table_rows(table)
    if long := next((number for number, row in enumerate(rows, 1) if None in row), None):
        raise ConfigError(f"Row {long} of {table} has more cells than the table has columns. Put its caption in double quotes if there are commas in it.")
    names = list(rows[0]) if rows else []
    where = column_of(names)
    text = next((name for known in TEXT_COLUMNS for name in names if name.strip().lower() == known), None)
    if where is None or text is None:
        raise ConfigError(f"The captions of {table} cannot be edited here: it has the columns {', '.join(names) or 'none'}, and one for files and one of {', '.join(TEXT_COLUMNS)} are needed.")
    return rows, where, text


def _names(rows: list[dict], where: str) -> list[str]:
    """What each row is called: its file, with its number where others name the same."""
    files = [str(row.get(where) or "") for row in rows]
    count = Counter(files)
    return [file if count[file] == 1 else f"{file}, row {number}" for number, file in enumerate(files, 1)]


def _dumped(rows: list[dict], table: Path) -> str:
    if table.suffix.lower() == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()

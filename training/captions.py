"""Captions of a dataset as a list that can be edited and written back: name.txt beside each video, or the text columns of a table."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.files import replacing
from core.types import nearest

from .config import ConfigError
from .dataset import MIRADATA_CAPTIONS, TEXT_COLUMNS, captions_of, decoded, delimiter_of, encoded, find_clips, path_of, plain_row, table_of, table_rows

MOST_ROWS = 5000
"""Captions that are edited at once."""


def caption_columns(source: str | Path) -> list[str]:
    """The columns of a table whose texts training reads as captions: MiraData's, or one; none for name.txt beside each video. Raises ConfigError."""
    table = _table(source)[1]
    return [] if table is None else _columns(table)[1]


def read_captions(source: str | Path, column: str = "") -> dict[str, str]:
    """Captions by file, relative to a folder or as a table names it, in the dataset's order. Videos without a caption have an empty one.

    Where a table has several columns of captions (MiraData's), each of a file's is told apart by its column: ``a.mp4, dense_caption``;
    ``column`` reads those of one. Rows that name the same file (stretches of it) are told apart by their numbers: ``a.mp4, row 2``.
    Raises ConfigError for a source that cannot be read, a column that it has not, or more than MOST_ROWS captions.
    """
    columns = caption_columns(source)
    if column and column not in columns:
        raise ConfigError(f"{source} has no captions in a column {column}.{nearest(column, columns)}")
    found = _captions(source)
    if column and len(columns) > 1:
        found = {name: text for name, text in found.items() if is_of(name, column)}
    if len(found) > MOST_ROWS:
        remedy = "Read one column at a time." if len(found) // max(1, len(columns)) <= MOST_ROWS and not column else "Use a table and an editor of tables."
        raise ConfigError(f"{source} has {len(found):,} captions; at most {MOST_ROWS:,} are edited here. {remedy}")
    return found


def is_of(name: str, column: str) -> bool:
    """Whether a caption of a table with several columns of them is that column's."""
    return name.endswith(f", {column}")


def write_captions(source: str | Path, captions: Mapping[str, str]) -> int:
    """Write the captions that differ; how many did. Each file is whole at all times, and in the encoding that it was in. Raises ConfigError, also for a name that is not the dataset's."""
    known = _captions(source)
    if strange := [name for name in captions if name not in known]:
        raise ConfigError(f"{strange[0]!r} is not in {source}.")
    changed = {name: " ".join(text.split()) for name, text in captions.items() if " ".join(text.split()) != known[name]}
    source, table = _table(source)
    if table is None:
        if empty := [name for name, text in changed.items() if not text]:
            raise _empty(empty[0])
        texts = {file: changed[name] + "\n" for name in changed for file in [(source / name).with_suffix(".txt")]}
        contents = {file: _encoded(text, file, decoded(file)[1] if file.is_file() else "utf-8") for file, text in texts.items()}
    else:
        rows, columns = _columns(table)
        for name, row in zip(_names(rows), rows):
            ours = {column: changed[full] for column in columns if (full := _full_name(name, column, columns)) in changed}
            row.update(ours)
            if not all(ours.values()) and not captions_of(plain_row(row)):
                raise _empty(name)
        text, encoding = decoded(table)
        contents = {table: _encoded(_dumped(rows, table, "\r\n" if "\r\n" in text else "\n", delimiter_of(text)), table, encoding)} if changed else {}
    for file, content in contents.items():
        with replacing(file) as work:
            work.write_bytes(content)
    return len(changed)


def _captions(source: str | Path) -> dict[str, str]:
    source, table = _table(source)
    if table is None:
        clips, rejects = find_clips(source)
        missing = {reject.name: "" for reject in rejects if reject.reason.startswith("has no caption")}
        return dict(sorted(({str(clip.path.relative_to(source)): clip.captions[0] for clip in clips} | missing).items()))
    rows, columns = _columns(table)
    return {_full_name(name, column, columns): str(row.get(column) or "") for name, row in zip(_names(rows), rows) for column in columns}


def _full_name(name: str, column: str, columns: Sequence[str]) -> str:
    return f"{name}, {column}" if len(columns) > 1 else name


def _empty(name: str) -> ConfigError:
    return ConfigError(f"The caption of {name} is empty. Say what the clip shows; nothing was saved.")


def _encoded(text: str, file: Path, encoding: str) -> bytes:
    """The text in a file's own encoding. Raises ConfigError."""
    try:
        return encoded(text, encoding)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{file.name} is in the encoding {encoding}, which has no {text[error.start]!r}. Leave that out, or save the file as UTF-8 first; nothing was saved.") from None


def _table(source: str | Path) -> tuple[Path, Path | None]:
    """The source, and the table that it is or holds."""
    source, table = Path(source), table_of(source)
    if table is None and not source.is_dir():
        raise ConfigError(f"There is no dataset {source}.")
    return source, table


def _columns(table: Path) -> tuple[list[dict], list[str]]:
    """The rows, and the names of the columns of captions. Raises ConfigError for a table without any, or whose rows name no file."""
    rows = table_rows(table)
    if long := next((number for number, row in enumerate(rows, 1) if None in row), None):
        raise ConfigError(f"Row {long} of {table} has more cells than the table has columns. Put its caption in double quotes if there are commas in it.")
    names = list(rows[0]) if rows else []
    known = {name.strip().lower(): name for name in names}
    if "short_caption" in known or "dense_caption" in known:
        columns = [known[name] for name in MIRADATA_CAPTIONS if name in known]
    else:
        columns = [known[name] for name in TEXT_COLUMNS if name in known][:1]
    if not columns or not any(path_of(plain_row(row)) for row in rows):
        raise ConfigError(f"The captions of {table} cannot be edited here: it has the columns {', '.join(names) or 'none'}, and one for files and one of {', '.join((*TEXT_COLUMNS, *MIRADATA_CAPTIONS[:2]))} are needed.")
    return rows, columns


def _names(rows: list[dict]) -> list[str]:
    """What each row is called: its file as training finds it, with its number where others name the same."""
    files = [path_of(plain_row(row)) or "" for row in rows]
    count = Counter(files)
    return [file if count[file] == 1 else f"{file}, row {number}" for number, file in enumerate(files, 1)]


def _dumped(rows: list[dict], table: Path, end: str, delimiter: str) -> str:
    if table.suffix.lower() == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), extrasaction="ignore", delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()

"""Many prompts from one text: a prompt a line, alternatives in braces, words from wildcard files, and settings of a line.

    {big|small} __colour__ ball rolls by        every combination
    A star falls over the sea. --seed 7 --guidance_scale 9

Nothing is drawn at random: what a text makes is known, and shown, before it is queued.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.presets import PRESET_FIELDS
from core.types import GenerationRequest, RequestError, nearest

MAX_DEPTH = 10
"""Braces inside braces, and wildcards inside wildcards."""
MAX_REQUESTS = 1000
"""Requests that one press of the button may queue."""
SETTINGS = tuple(f.name for f in dataclasses.fields(GenerationRequest) if f.name != "prompt")
ELSEWHERE = {"steps": "num_inference_steps", "cfg": "guidance_scale", "cfg_scale": "guidance_scale", "guidance": "guidance_scale", "sampler_name": "sampler", "negative": "negative_prompt", "frames": "num_frames", "lora": "loras"}
"""What other programs call a setting: by its letters alone another one would be guessed."""

_SETTING = re.compile(r"(?:^|\s)--(?=[a-z])")
_TOKEN = re.compile(r"\\[{}|_\\#-]|__[\w-]+__|[{}|]")
_ESCAPED = re.compile(r"\\([{}|_\\#—–-])")
_DASH = re.compile(rf"(?:(?<=\s)|^)[—–](?=(?:{'|'.join(SETTINGS)})\b)")
"""What phones and Macs make of two hyphens as they are typed, before the name of a setting."""


@dataclass(frozen=True)
class Line:
    """One prompt, with the settings that its line asked for."""

    prompt: str
    settings: dict[str, Any] = field(default_factory=dict)


def expand(text: str, wildcards: Path) -> list[Line]:
    """All prompts that ``text`` stands for, in reading order; the first alternative changes slowest.

    Empty lines and lines that start with ``#`` are passed over. ``wildcards`` is the folder where ``__colour__`` finds
    ``colour.txt``. ``\\{ \\} \\| \\_ \\# \\-`` stand for themselves. Raises RequestError naming the line.
    """
    lines: list[Line] = []
    files: dict[str, list[_Parts]] = {}
    written = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    written = [(number, line) for number, line in written if line and not line.startswith("#")]
    for number, line in written:
        try:
            parts = _parse(line, wildcards, (), files)
            count = _count(parts, {})
            if len(lines) + count > MAX_REQUESTS:
                raise RequestError("prompt", f"This makes {len(lines) + count:,} prompts; at most {MAX_REQUESTS:,} can be queued at once.")
            lines += map(_split, _texts(parts))
        except RequestError as error:
            where = f"Line {number}: " if len(written) > 1 else ""
            raise RequestError(error.field, f"{where}{error}") from None
    return lines


def as_requests(text: str, settings: dict[str, Any], seed: int, count: int, wildcards: Path) -> list[GenerationRequest]:
    """The requests of ``text``: each prompt ``count`` times, from ``seed`` on. An empty text is one request, refused when it is checked.

    A line's own settings come before those of the form; a line's seed starts that line's count, and a line's preset or model
    brings its own size and sampling. Raises RequestError.
    """
    lines = expand(text, wildcards) or [Line("")]
    if len(lines) * count > MAX_REQUESTS:
        raise RequestError("count", f"{len(lines):,} prompts with {count} videos each are {len(lines) * count:,} requests; at most {MAX_REQUESTS:,} can be queued at once.")
    requests = []
    for line in lines:
        dropped = {"model": ("preset", *PRESET_FIELDS), "preset": PRESET_FIELDS}
        kept = {name: value for name, value in settings.items() if not any(name in dropped.get(own, ()) for own in line.settings)}
        first = {**kept, "seed": seed, **line.settings, "prompt": line.prompt}
        requests += [GenerationRequest.from_dict({**first, "seed": first["seed"] + index}) for index in range(count)]
    return requests


def as_text(prompt: str) -> str:
    """The one-line text that stands for exactly this prompt (its line breaks become blanks)."""
    return re.sub(rf"[{{}}|\\]|__(?=[\w-]+__)|(?:(?<=\s)|^)--(?=[a-z])|{_DASH.pattern}|^#", r"\\\g<0>", " ".join(prompt.splitlines()).strip())


def _split(line: str) -> Line:
    """The prompt of a line, with the blanks around an empty alternative closed up, and its ``--name value`` settings."""
    line = _DASH.sub("--", re.sub(r" {2,}", " ", line).strip())
    found = _SETTING.search(line)
    if not found:
        return Line(_plain(line))
    text = line[found.start() :]
    words = shlex.shlex(text if '"' in text else re.sub("[“”„]", '"', text), posix=True)
    words.whitespace_split, words.quotes, words.escape, words.commenters = True, '"', "", ""
    settings: dict[str, Any] = {}
    try:
        for word in words:
            name, given, value = word.removeprefix("--").partition("=")
            if not word.startswith("--"):
                raise RequestError("prompt", f'{word!r} stands between settings. Quote a value of several words: --negative_prompt "blurry, dark".')
            if name not in SETTINGS:
                meant = f" Did you mean {ELSEWHERE[name]!r}?" if name in ELSEWHERE else nearest(name, SETTINGS)
                raise RequestError(name, f"--{name} is not a setting.{meant}")
            value = value if given else next(words, None)
            if value is None:
                raise RequestError(name, f"--{name} has no value.")
            settings[name] = parse_value(name, _plain(value))
    except ValueError as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError("prompt", "A quotation mark in its settings is not closed.") from None
    return Line(_plain(line[: found.start()]).strip(), settings)


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def parse_value(name: str, text: str) -> Any:
    """A setting's text as the type that its field takes. Raises RequestError."""
    hint = next(f.type for f in dataclasses.fields(GenerationRequest) if f.name == name)
    if "str" in hint:
        return text
    try:
        return float(text) if "float" in hint else int(text)
    except ValueError:
        word = "a number" if "float" in hint else "a whole number"
        raise RequestError(name, f"{name} is {text!r}; it must be {word}.") from None


# A parsed prompt is a sequence of parts; a part is text, or a list of alternatives that are such sequences.
_Parts = list["str | list[_Parts]"]


def _parse(text: str, wildcards: Path, inside: tuple[str, ...], files: dict[str, list[_Parts]]) -> _Parts:
    """The parts of a prompt; ``inside`` are the wildcard files that led here, ``files`` those that were read: each is so once, however often others name it."""
    stack: list[list[_Parts]] = [[[]]]
    end = 0
    for token in _TOKEN.finditer(text):
        stack[-1][-1].append(text[end : token.start()])
        end, mark = token.end(), token.group()
        if mark == "{":
            stack.append([[]])
            if len(stack) + len(inside) > MAX_DEPTH + 1:
                raise RequestError("prompt", f"Its braces and wildcards lie in each other too deeply; at most {MAX_DEPTH} deep are taken.")
        elif mark == "|" and len(stack) > 1:
            stack[-1].append([])
        elif mark == "}" and len(stack) > 1:
            alternatives = stack.pop()
            stack[-1][-1].append(alternatives)
        elif mark[0] == "_":
            name = mark.strip("_")
            if name not in files:
                files[name] = _wildcard(name, wildcards, inside, files)
            stack[-1][-1].append(files[name])
        elif mark == "}":
            raise RequestError("prompt", "There is a } without its {. Write \\} for a brace that is meant.")
        else:
            stack[-1][-1].append(mark)
    if len(stack) > 1:
        raise RequestError("prompt", "There is a { without its }. Write \\{ for a brace that is meant.")
    stack[0][0].append(text[end:])
    return stack[0][0]


def _wildcard(name: str, wildcards: Path, inside: tuple[str, ...], files: dict[str, list[_Parts]]) -> list[_Parts]:
    """The lines of a wildcard file as alternatives."""
    path = wildcards / f"{name}.txt"
    if name in inside:
        raise RequestError("prompt", f"The wildcard __{name}__ contains itself.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        known = sorted(p.stem for p in wildcards.glob("*.txt"))
        there = f"There are: {', '.join(known)}." if known else "There are none yet."
        raise RequestError("prompt", f"There is no wildcard __{name}__: {path} cannot be read. {there} Write \\__{name}__ for the word itself.") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise RequestError("prompt", f"The wildcard file {path} is empty: put one choice on each line.")
    return [_parse(line, wildcards, (*inside, name), files) for line in lines]


def _count(parts: _Parts, known: dict[int, int]) -> int:
    """How many texts the parts make; ``known`` is how many those of a list of alternatives are, by its id, as a wildcard's stands in many places."""
    choices = [part for part in parts if not isinstance(part, str)]
    for part in choices:
        if id(part) not in known:
            known[id(part)] = sum(_count(option, known) for option in part)
    return math.prod(known[id(part)] for part in choices)


def _texts(parts: _Parts) -> list[str]:
    """Every text that the parts make."""
    choices: Sequence[Sequence[str]] = [[part] if isinstance(part, str) else [text for option in part for text in _texts(option)] for part in parts]
    return ["".join(words) for words in itertools.product(*choices)]

"""Blind votes: which of two videos is better, without knowing by what they differ; and what the votes say about a setting's values."""

from __future__ import annotations

import collections
import itertools
import json
import random
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.intervals import wilson
from core.types import RequestError

from .db import Database
from .library import Library, Video
from .settings_words import COMPARED

CHOICES = ("a", "b", "tie")
JUDGED = tuple(name for name in COMPARED if name not in ("prompt", "seed"))
"""Settings that can be judged: pairs share the prompt, the seed and all settings but that one."""

Pair = tuple[str, str]
"""Ids of two videos."""


@dataclass(frozen=True)
class Rate:
    """How one value of a setting did against the others."""

    value: Any
    wins: int
    losses: int
    ties: int

    @property
    def share(self) -> float | None:
        """Of the votes that chose one; None when none did."""
        decided = self.wins + self.losses
        return self.wins / decided if decided else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's at 95 %."""
        return wilson(self.wins, self.wins + self.losses)

    @property
    def better(self) -> bool:
        """Whether it surely wins more often than not."""
        return self.interval[0] > 0.5


def pairs(videos: Sequence[Video]) -> dict[str, list[Pair]]:
    """All pairs that differ in nothing but one of JUDGED, by that one; of those that have any."""
    found: dict[str, list[Pair]] = {}
    settings = [(video.id, tuple(getattr(video.request, name) for name in COMPARED)) for video in videos]
    for judged in JUDGED:
        at = COMPARED.index(judged)
        groups: dict[tuple, list[tuple[str, Any]]] = collections.defaultdict(list)
        for id, values in settings:
            groups[values[:at] + values[at + 1 :]].append((id, values[at]))
        if alike := [(a, b) for group in groups.values() if len(group) > 1 for (a, value), (b, other) in itertools.combinations(group, 2) if value != other]:
            found[judged] = alike
    return found


class Votes:
    """The votes in the studio's database."""

    def __init__(self, db: Database, library: Library):
        self.db, self.library = db, library
        self._pairs: tuple[int, dict[str, list[Pair]]] = (-1, {})
        """Of that version of the library."""

    def version(self) -> int:
        return self.db.version("votes")

    def pairs(self, setting: str) -> list[Pair]:
        """Pairs of the library's videos that differ in nothing but ``setting``."""
        return self._by_setting().get(setting, [])

    def settings(self) -> dict[str, int]:
        """The settings that can be judged or were, with the number of pairs."""
        found = {name: len(pairs) for name, pairs in self._by_setting().items()}
        for row in self.db.read("SELECT DISTINCT setting FROM votes"):
            found.setdefault(row["setting"], 0)
        return found

    def draw(self, setting: str) -> Pair | None:
        """One of the pairs that were judged least, by chance, either one first; None when there is no pair."""
        judged = collections.Counter(frozenset((row["a"], row["b"])) for row in self.db.read("SELECT a, b FROM votes WHERE setting = ?", setting))
        found = self.pairs(setting)
        least = min((judged[frozenset(pair)] for pair in found), default=0)
        candidates = [pair for pair in found if judged[frozenset(pair)] == least]
        if not candidates:
            return None
        a, b = random.sample(random.choice(candidates), 2)
        return a, b

    def add(self, setting: str, pair: Pair, choice: str) -> int:
        """Store a vote for the first ('a') or second ('b') of ``pair``, or for neither ('tie'); its id. Raises RequestError."""
        videos = [self.library.get(id) for id in pair]
        if choice not in CHOICES or setting not in JUDGED:
            raise RequestError("choice", f"A vote is one of {', '.join(CHOICES)}, on one of {', '.join(JUDGED)}; this was {choice!r} on {setting!r}.")
        if None in videos:
            raise RequestError("id", "One of the two videos was deleted; the vote is not counted.")
        if frozenset(pair) not in map(frozenset, self.pairs(setting)):
            raise RequestError("id", f"These two do not differ in {setting} alone, so a vote on them would not be about it.")
        values = [json.dumps(getattr(video.request, setting)) for video in videos]
        with self.db.write() as tx:
            id = tx.execute("INSERT INTO votes (setting, a, b, a_value, b_value, choice, created) VALUES (?, ?, ?, ?, ?, ?, ?)", (setting, *pair, *values, choice, time.time())).lastrowid
            self.db.touch("votes")
        return id

    def retract(self, id: int) -> None:
        """Take a vote back."""
        with self.db.write() as tx:
            tx.execute("DELETE FROM votes WHERE id = ?", (id,))
            self.db.touch("votes")

    def count(self, setting: str) -> int:
        """Votes on a setting."""
        return self.db.read("SELECT count(*) AS n FROM votes WHERE setting = ?", setting)[0]["n"]

    def rates(self, setting: str) -> list[Rate]:
        """Each value that was judged, best first."""
        tally: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for row in self.db.read("SELECT a_value, b_value, choice FROM votes WHERE setting = ?", setting):
            for side, value in zip("ab", _values(row)):
                tally[value]["tie" if row["choice"] == "tie" else "win" if row["choice"] == side else "loss"] += 1
        rates = [Rate(json.loads(value), counts["win"], counts["loss"], counts["tie"]) for value, counts in tally.items()]
        return sorted(rates, key=lambda rate: (-(rate.share if rate.share is not None else 0.5), str(rate.value)))

    def _by_setting(self) -> dict[str, list[Pair]]:
        version = self.library.version()
        if self._pairs[0] != version:
            videos = self.library.list(limit=-1)
            self._pairs = version, pairs(videos)
        return self._pairs[1]


def _values(row: sqlite3.Row) -> tuple[str, str]:
    return row["a_value"], row["b_value"]

"""The panes of the Compare tab, and what their buttons do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.types import RequestError

from .comparison import MOST
from .components.comparing import render_blind, render_facts, render_tray, render_verdict
from .components.player import blind_value, player_value
from .library import Video
from .votes import Pair

if TYPE_CHECKING:
    from .screen import Session
    from .services import Services

COMPARE_PANES = ("tray", "player", "facts", "blind", "blind_player", "verdict")
COMPARE_ACTIONS = frozenset("compare compare-newest compare-wall compare-remove compare-earlier compare-clear compare-again compare-export blind blind-open blind-close vote".split())


@dataclass
class Blind:
    """The blind test of one browser tab."""

    setting: str | None = None
    """What is judged."""
    pair: Pair | None = None
    """The videos that are shown as A and B."""


def compare_key(session: Session) -> tuple[Any, ...]:
    """What ``compare_panes`` shows beside the studio's own state (``Services.version``)."""
    return session.compared, session.blind and (session.blind.setting, session.blind.pair)


def compare_panes(services: Services, session: Session, total: int) -> dict[str, Any]:
    """What each of COMPARE_PANES shows; ``total`` is the number of videos in the library."""
    videos = _videos(services, session.compared)
    measured = services.comparisons.differences(videos) if len(videos) > 1 else None
    votes, blind = services.votes, session.blind
    pair = _videos(services, blind.pair) if blind and blind.pair else []
    if blind and blind.setting and len(pair) < 2:  # none was drawn yet, or one of them was deleted
        blind.pair = votes.draw(blind.setting)
        pair = _videos(services, blind.pair) if blind.pair else []
    setting, ids = (blind.setting, blind.pair) if blind else (None, None)
    return {
        "tray": render_tray(videos, total, _coming(services, session.compared)),
        "player": player_value(videos, ([] if measured.error else measured.result) if measured else None),
        "facts": render_facts(videos, measured, services.comparisons.exported(videos) if measured else None, services.comparisons.measures(videos) if measured else None),
        "blind": render_blind(votes.settings() if blind else None, setting, ids, pair[0].request.prompt if pair else ""),
        "blind_player": blind_value(pair),
        "verdict": render_verdict(setting, ids, votes.rates(setting) if setting else [], votes.count(setting) if setting else 0),
    }


def compare_act(services: Services, session: Session, action: str, id: str) -> None:
    """Do one of COMPARE_ACTIONS. Raises RequestError."""
    before = session.compared
    here = tuple(video.id for video in _videos(services, before))
    if session.undo is not None and session.undo[1] == "compare":
        session.undos.pop()
    match action:
        case "compare":
            _add(services, session, here, id)
        case "compare-newest":
            session.compared = tuple(video.id for video in reversed(services.library.list(limit=2)))
        case "compare-wall":
            wall = services.walls.get(id)
            made = [video.id for video in _videos(services, wall.cells if wall else ())]
            if len(made) < 2:
                raise RequestError("id", "Two of its videos must be there to be compared. Wait for them.")
            session.compared = tuple(made[:MOST])
            session.offer_undo(f"{len(session.compared)} of its {len(wall.cells)} videos are compared.", "compare", before)
        case "compare-remove":
            session.compared = tuple(other for other in here if other != id)
        case "compare-earlier" if id in here[1:]:
            place = here.index(id)
            session.compared = (*here[: place - 1], id, here[place - 1], *here[place + 1 :])
        case "compare-clear":
            session.compared = ()
            session.offer_undo("The comparison is empty; the videos stay.", "compare", before)
        case "compare-again":
            services.comparisons.forget_failures()
        case "compare-export" if len(here) > 1:
            services.comparisons.export(_videos(services, here))
        case "blind-open":
            session.blind = Blind()
        case "blind-close":
            session.blind = None
        case "blind" if session.blind is not None and id in services.votes.settings():
            session.blind.setting, session.blind.pair = id, services.votes.draw(id)
        case "vote" if session.blind is not None:
            choice, *ids = id.split(",")
            blind = session.blind
            if blind.setting and blind.pair == tuple(ids):  # else a second press, on a pair that is gone
                vote = services.votes.add(blind.setting, blind.pair, choice)
                blind.pair = services.votes.draw(blind.setting)
                session.offer_undo("Your vote is stored.", "vote", (str(vote),))
    if session.compared != before:
        services.comparisons.forget_failures()


def bring_back(services: Services, session: Session, kept: str | None) -> None:
    """Compare again what this browser compared when its page was left, without what was deleted or cancelled since; ``kept`` is render_kept's ``data-compared``."""
    if not session.compared:
        ids = dict.fromkeys((kept or "").split(","))
        session.compared = tuple(id for id in ids if services.library.get(id) or _coming(services, (id,)))[:MOST]


def _add(services: Services, session: Session, here: tuple[str, ...], id: str) -> None:
    if services.library.get(id) is None:
        raise RequestError("id", "That video was deleted.")
    if id in here:
        words, now = "It is compared already.", here
    elif len(here) >= MOST:
        words, now = f"{MOST} videos are compared at most. Take one out on the Compare tab first.", here
    else:
        now = (*here, id)
        words = f"Added to the comparison: {len(now)} of {MOST}."
    session.offer_undo(words, "compare", here)
    session.compared = now


def _coming(services: Services, ids: tuple[str, ...]) -> int:
    """How many of them are still to be made."""
    return sum(job is not None and job.state in ("waiting", "running", "paused") for job in map(services.queue.get, ids))


def _videos(services: Services, ids: tuple[str, ...]) -> list[Video]:
    """Those that were not deleted."""
    return [video for id in ids if (video := services.library.get(id))]

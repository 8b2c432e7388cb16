"""Endpoints for the blind test: pairs of videos that differ in one setting alone, votes on them, and what the votes say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from core.types import RequestError

from .services import Services
from .votes import JUDGED


def endpoints(services: Services) -> tuple[Callable[..., Any], ...]:
    """The functions."""
    votes, library = services.votes, services.library

    def blind_settings() -> dict[str, int]:
        """The settings that a blind test can judge, or has judged, each with the number of pairs of videos that differ in it alone."""
        return votes.settings()

    def blind_pair(setting: str) -> dict[str, Any]:
        """Two videos that differ in nothing but a setting, one of the pairs judged least, in an order drawn by chance; look at both, then vote.

        Args:
            setting: What is judged, as blind_settings names it: num_inference_steps, guidance_scale, sampler, model ...

        Returns:
            setting, prompt, and a and b, each with the id and the path of its mp4 as "video".
        """
        pair = votes.draw(_judged(setting))
        if pair is None:
            raise RequestError("setting", f"No two videos differ in {setting} alone yet. Make one again with the same seed and another {setting}.")
        a, b = (library.get(id) for id in pair)
        return {"setting": setting, "prompt": a.request.prompt, "a": {"id": a.id, "video": a.path}, "b": {"id": b.id, "video": b.path}}

    def vote(setting: str, a: str, b: str, choice: str) -> dict[str, Any]:
        """Store which video of a pair is better; what the votes on that setting say now.

        Args:
            setting: What is judged.
            a: The id of the pair's first video.
            b: The id of its second video.
            choice: "a", "b" or "tie".

        Returns:
            vote, which retract_vote takes, and all that votes gives.
        """
        return {"vote": votes.add(setting, (a, b), choice), **votes_on(setting)}

    def retract_vote(vote: int) -> dict[str, int]:
        """Take a vote back.

        Args:
            vote: What vote gave.
        """
        votes.retract(vote)
        return {"retracted": vote}

    def votes_on(setting: str) -> dict[str, Any]:
        """What the blind votes say about a setting's values.

        Args:
            setting: What was judged.

        Returns:
            setting, count of its votes, and rates, best first: for each value wins, losses, ties, share of the decided votes that it won, its 95 % interval, and better, whether it surely wins more often than not.
        """
        rates = [{**dataclasses.asdict(rate), "share": rate.share, "interval": list(rate.interval), "better": rate.better} for rate in votes.rates(_judged(setting))]
        return {"setting": setting, "count": votes.count(setting), "rates": rates}

    return blind_settings, blind_pair, vote, retract_vote, votes_on


def _judged(setting: str) -> str:
    """Raises RequestError for what no vote can be on."""
    if setting not in JUDGED:
        raise RequestError("setting", f"{setting!r} cannot be judged; known are {', '.join(JUDGED)}.")
    return setting

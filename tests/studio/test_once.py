"""What becomes of an event that is sent again, by how its first sending ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from studio.once import HEADER, KEPT, Once

Serve = Callable[[int], Awaitable[Response]]
"""What the server does at which of the events that it gets, from 1 on."""


def answers(serve: Serve, sends: Callable[[Callable[[str], Awaitable[httpx.Response]]], Awaitable[object]]) -> tuple[object, int]:
    """What ``sends`` gave, told how to send an event of a name, and how many events the server got."""
    got = 0

    async def endpoint(_: Request) -> Response:
        nonlocal got
        got += 1
        return await serve(got)

    async def work() -> object:
        app = Starlette(routes=[Route("/", endpoint, methods=["POST"])], middleware=[Middleware(Once)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://studio") as client:
            return await sends(lambda name: client.post("/", headers={HEADER.decode(): name}))

    with ThreadPoolExecutor(1) as thread:  # which has no event loop yet: Playwright leaves one in that of the tests
        return thread.submit(asyncio.run, work()).result(), got


async def number(turn: int) -> Response:
    return PlainTextResponse(str(turn))


def test_a_good_answer_is_given_again() -> None:
    async def sends(send: Callable[[str], Awaitable[httpx.Response]]) -> list[str]:
        return [(await send(name)).text for name in ("a", "b", "a", "a")]

    assert answers(number, sends) == (["1", "2", "1", "1"], 2)


@pytest.mark.parametrize("ending", ["an error", "an exception"])
def test_what_ended_badly_is_tried_again(ending: str) -> None:
    async def serve(turn: int) -> Response:
        if turn > 1:
            return await number(turn)
        if ending == "an exception":
            raise OSError("The disk is away.")
        return PlainTextResponse("The disk is away.", 500)

    async def sends(send: Callable[[str], Awaitable[httpx.Response]]) -> list[int | str]:
        return [(await send("a")).status_code, (await send("a")).text, (await send("a")).text]

    assert answers(serve, sends) == ([500, "2", "2"], 2)


def test_one_that_waits_for_a_first_sending_that_fails_is_served_itself() -> None:
    async def serve(turn: int) -> Response:
        await asyncio.sleep(0.01)
        return PlainTextResponse("", 500) if turn == 1 else await number(turn)

    async def sends(send: Callable[[str], Awaitable[httpx.Response]]) -> list[tuple[int, str]]:
        return [(answer.status_code, answer.text) for answer in await asyncio.gather(*(send("a") for _ in range(3)))]

    assert answers(serve, sends) == ([(500, ""), (200, "2"), (200, "2")], 2)


def test_only_the_last_answers_are_kept() -> None:
    async def sends(send: Callable[[str], Awaitable[httpx.Response]]) -> tuple[str, str]:
        for name in range(KEPT + 1):
            await send(str(name))
        return (await send(str(KEPT))).text, (await send("0")).text

    assert answers(number, sends) == ((str(KEPT + 1), str(KEPT + 2)), KEPT + 2)

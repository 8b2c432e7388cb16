"""An event that is sent again is answered again, and not done again.

A page whose connection breaks while it waits for an answer (a laptop that sleeps, a phone that changes networks) cannot know whether the studio has done what
it was told, so it tells it again, by the same name. Kept in memory: it does not reach over a start of the studio.
What ended in an error, or was cut off, is not kept: that is tried again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-studio-event"
"""By what name assets/studio.js sends an event."""
KEPT = 64
"""So many answers, a page's worth of panes each."""


class Once:
    """ASGI middleware: the first request of a name is served, and its answer given to the others of that name."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.answers: OrderedDict[bytes, asyncio.Future[list[Message]]] = OrderedDict()
        """Those being made resolve to nothing where they come to no good end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope.get("headers") or ()).get(HEADER)
        if scope["type"] != "http" or not name:
            return await self.app(scope, receive, send)
        while (known := self.answers.get(name)) is not None:
            for message in (messages := await asyncio.shield(known)):
                await send(message)
            if messages:
                return None
        answer = self.answers[name] = asyncio.get_running_loop().create_future()
        while len(self.answers) > KEPT:
            self.answers.popitem(last=False)
        messages, good = [], False

        async def keep(message: Message) -> None:
            messages.append(message)
            await send(message)

        try:
            await self.app(scope, receive, keep)
            good = bool(messages) and messages[0]["status"] < 400
        finally:
            if not good:
                self.answers.pop(name, None)
            answer.set_result(messages if good else [])
        return None

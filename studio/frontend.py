"""Gradio's scripts and style sheets, served so that a page opens quickly.

Some 80 of them make a page. Gradio reads and compresses each of them anew for every page, and browsers ask for them again; together that takes longer than all
that the studio itself does for a page. Their names hold a hash of what is in them: here they lie compressed in memory, and a browser keeps them for good.
"""

from __future__ import annotations

import gzip
import mimetypes
from functools import cache
from pathlib import Path

import brotli
import gradio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
HEADERS = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
TEXTS = (".js", ".css", ".svg", ".json")
PLAIN_BYTES = 400
"""What is smaller is sent as it is."""
ENCODINGS = {"br": lambda data: brotli.compress(data, quality=5), "gzip": gzip.compress}
"""By their names in a browser's header, the better first; browsers take brotli over https and from this machine only."""


@cache
def _names() -> frozenset[str]:
    return frozenset(path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*") if path.is_file())


@cache
def _contents(name: str, encoding: str | None) -> bytes:
    data = (ASSETS / name).read_bytes()
    return ENCODINGS[encoding](data) if encoding else data


async def _asset(request: Request) -> Response:  # a coroutine, and so without a thread of its own
    name = request.path_params["name"]
    if name not in _names():
        raise HTTPException(404, f"Gradio has no {name}; load the page again.")
    accepted = request.headers.get("accept-encoding", "")
    packs = name.endswith(TEXTS) and (ASSETS / name).stat().st_size >= PLAIN_BYTES
    encoding = next((known for known in ENCODINGS if known in accepted), None) if packs else None
    headers = {**HEADERS, "Content-Encoding": encoding} if encoding else HEADERS
    return Response(_contents(name, encoding), media_type=mimetypes.guess_type(name)[0], headers=headers)


def routes() -> list[Route]:
    """The route that comes before Gradio's own."""
    return [Route("/assets/{name:path}", _asset)]

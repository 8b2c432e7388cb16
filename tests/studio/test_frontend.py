"""Gradio's files as the studio serves them: what Gradio has, as small as the browser takes it, for good."""

from __future__ import annotations

import gzip

import brotli
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from studio import frontend

LARGE = max(frontend.ASSETS.glob("*.js"), key=lambda path: path.stat().st_size)


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=frontend.routes()))


@pytest.mark.parametrize(("accepted", "encoding", "unpack"), [("gzip, deflate, br", "br", brotli.decompress), ("gzip, deflate", "gzip", gzip.decompress), ("", None, bytes)])
def test_a_script_is_what_gradio_has(client: TestClient, accepted: str, encoding: str | None, unpack: object) -> None:
    with client.stream("GET", f"/assets/{LARGE.name}", headers={"Accept-Encoding": accepted}) as answer:
        sent = b"".join(answer.iter_raw())
    assert answer.headers.get("content-encoding") == encoding and unpack(sent) == LARGE.read_bytes()
    assert int(answer.headers["content-length"]) == len(sent) and (encoding is None or len(sent) < LARGE.stat().st_size / 2)
    assert answer.headers["content-type"].startswith("text/javascript") and "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("name", ["none.js", "../index.html", "%2e%2e/index.html", ""])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/assets/{name}").status_code == 404

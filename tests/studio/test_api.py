"""Every action by name: over gradio_client, from another program, and as MCP tools."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from studio_app import ROOT, StudioApp, wait_for

from core import read_settings
from core.video_io import read_video
from studio.ui import API_PAGE

SMALL = {"height": 32, "width": 32, "num_frames": 4, "num_inference_steps": 2, "sampler": "ddim", "seed": 1}


def test_generate_waits_for_its_video(studio_app: StudioApp) -> None:
    done = studio_app.call("generate", {"prompt": "Wait for me.", **SMALL})
    assert done["state"] == "done" and read_settings(done["video"])["prompt"] == "Wait for me."
    late = studio_app.call("generate", {"prompt": "Too slow.", **SMALL, "num_inference_steps": 1000, "num_frames": 16}, 1)
    assert late["state"] in ("waiting", "running")
    assert studio_app.call("cancel", late["id"])["state"] == "cancelled"


def test_the_queue_is_worked_by_name(studio_app: StudioApp) -> None:
    assert studio_app.call("pause") == {"paused": True}
    one, two = (studio_app.enqueue(prompt=prompt) for prompt in ("One.", "Two."))
    assert studio_app.call("move", two, "first") == [two, one]
    studio_app.call("edit", one, {"prompt": "One, better.", **SMALL})
    listed = studio_app.call("list_requests", "waiting")
    assert [(row["id"], row["request"]["prompt"]) for row in listed] == [(two, "Two."), (one, "One, better.")]
    studio_app.call("cancel", two)
    assert studio_app.call("retry", two)["state"] == "waiting"
    assert studio_app.call("resume") == {"paused": False}
    studio_app.wait(two, "done")
    everything = studio_app.call("list")
    assert two in [row["id"] for row in everything["requests"]] and two in [row["id"] for row in everything["videos"]] and everything["counts"]["done"] >= 1 and not everything["paused"]
    with pytest.raises(Exception, match="no state 'asleep'"):
        studio_app.call("list_requests", "asleep")


def test_a_paused_request_goes_on_to_the_same_bits(studio_app: StudioApp) -> None:
    whole, paused = (studio_app.enqueue(num_inference_steps=250, eta=1.0) for _ in range(2))
    studio_app.wait(whole, "done")
    wait_for(lambda: studio_app.call("status", paused)["progress"] > 0, 60, "its first steps")
    assert studio_app.call("pause_request", paused)["state"] == "running"
    stopped = studio_app.wait(paused, "paused", "done")
    assert stopped["state"] == "paused" and 0 < stopped["progress"] < 1 and (studio_app.data_dir / "parked" / f"{paused}.pt").exists()
    assert studio_app.call("resume_request", paused)["state"] == "waiting"
    files = [studio_app.wait(id, "done")["video"] for id in (whole, paused)]
    assert np.array_equal(*(read_video(file) for file in files))
    with pytest.raises(Exception, match="not running"):
        studio_app.call("pause_request", paused)


def test_videos_and_models_are_found_by_name(studio_app: StudioApp) -> None:
    id = studio_app.enqueue(prompt="Zanzibar.")
    studio_app.wait(id, "done")
    studio_app.call("star", id)
    assert [(v["id"], v["favourite"]) for v in studio_app.call("list_videos", 60, 0, "zanzibar")] == [(id, True)]
    studio_app.call("delete_video", id)
    assert studio_app.call("list_videos", 60, 0, "zanzibar") == []
    studio_app.call("restore_video", id)
    assert len(studio_app.call("list_videos", 60, 0, "zanzibar")) == 1
    assert "TencentARC/Mira-v0:128" in [model["name"] for model in studio_app.call("list_models")]
    again = studio_app.call("verify", id)["id"]
    studio_app.wait(again, "done")
    assert studio_app.call("list_videos", 60, 0, "zanzibar")[0]["verdict"].startswith("Bit-exact")
    studio_app.call("unload_model")
    wait_for(lambda: studio_app.call("workers")[0]["model"] is None, 60, "the model to leave")
    studio_app.call("load_model", str(studio_app.model))
    wait_for(lambda: studio_app.call("workers")[0]["model"] == str(studio_app.model), 60, "the model to come back")
    assert studio_app.call("installing") == {} and studio_app.call("cancel_install") == {}
    with pytest.raises(Exception, match="limit is 0"):
        studio_app.call("list_videos", 0)


def test_the_example_client_prints_its_videos(studio_app: StudioApp) -> None:
    preset = studio_app.enqueue()  # so that the worker has its model
    studio_app.wait(preset, "done")
    run = subprocess.run([sys.executable, "examples/client.py", "A star.", "--url", studio_app.url, "--seed", "3"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    prompt, path = run.stdout.strip().split("  ")
    assert prompt == "A star." and read_settings(path)["seed"] == 3


def test_the_endpoints_are_mcp_tools(studio_app: StudioApp) -> None:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk() -> tuple[dict[str, str], dict, str]:
        async with streamablehttp_client(f"{studio_app.url}/gradio_api/mcp/") as (reads, writes, _), ClientSession(reads, writes) as session:
            await session.initialize()
            listed = (await session.list_tools()).tools
            tools = {tool.name: tool.description for tool in listed}
            enqueue = next(name for name in tools if name.endswith("enqueue"))
            answer = await session.call_tool(enqueue, {"request": {"prompt": "By a tool.", **SMALL}})
            return tools, next(tool.inputSchema for tool in listed if tool.name == enqueue), answer.content[0].text

    with ThreadPoolExecutor(1) as pool:  # Playwright's tests leave an event loop in this thread
        tools, schema, answer = pool.submit(asyncio.run, talk()).result()
    assert {name.split("mira_studio_")[-1] for name in tools} >= {"enqueue", "generate", "status", "cancel", "list_videos"}, tools
    assert all(tools.values())
    settings = schema["properties"]["request"]["properties"]
    assert settings["prompt"] == {"type": "string"} and settings["seed"]["oneOf"][1] == {"type": "integer"} and settings["guidance_scale"]["oneOf"][1] == {"type": "number"}
    assert studio_app.wait(json.loads(answer.replace("'", '"'))["id"], "done")["state"] == "done"


def test_the_page_does_not_carry_the_endpoints(studio_app: StudioApp) -> None:
    page, api = (httpx.get(f"{studio_app.url}/config", params={"page": name}).json() for name in ("", API_PAGE))
    assert "api" not in {component["type"] for component in page["components"]} and "enqueue" not in {event["api_name"] for event in page["dependencies"]}
    assert "enqueue" in {event["api_name"] for event in api["dependencies"]}
    (words,) = (component["props"]["value"] for component in api["components"] if component["type"] == "markdown")
    assert "`/move(id, to)`: Change the place of a waiting request" in words


def test_the_queue_is_emptied_exported_and_imported_by_name(studio_app: StudioApp) -> None:
    studio_app.call("pause")
    try:
        studio_app.call("cancel_waiting")
        studio_app.call("clear")
        ids = [studio_app.enqueue(prompt=prompt) for prompt in ("one", "two")]
        content = studio_app.call("export_requests")
        assert sorted(studio_app.call("cancel_waiting")) == sorted(ids)
        assert sorted(studio_app.call("clear")) == sorted(ids) and studio_app.call("list_requests", "", 10) == []
        told = studio_app.call("import_requests", content)
        assert told["presets"] == 0 and [studio_app.call("status", id)["state"] for id in told["ids"]] == ["waiting", "waiting"]
    finally:
        studio_app.call("cancel_waiting")
        studio_app.call("resume")

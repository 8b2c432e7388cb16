"""Every action by name: over gradio_client, from another program, and as MCP tools."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    wait_for(lambda: studio_app.call("status", paused)["progress"] > 0, "its first steps")
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
    (deleted,) = studio_app.call("find_videos", 60, 0, "zanzibar", False, "", "", "", 0, "newest", True)
    assert deleted["id"] == id and Path(deleted["video"]).is_file()
    studio_app.call("restore_video", id)
    assert studio_app.call("empty_trash") == {"removed": 0, "freed": 0}
    assert len(studio_app.call("list_videos", 60, 0, "zanzibar")) == 1
    assert "TencentARC/Mira-v0:128" in [model["name"] for model in studio_app.call("list_models")]
    again = studio_app.call("verify", id)["id"]
    studio_app.wait(again, "done")
    assert studio_app.call("list_videos", 60, 0, "zanzibar")[0]["verdict"].startswith("Bit-exact")
    studio_app.call("unload_model")
    wait_for(lambda: studio_app.call("workers")[0]["model"] is None, "the model to leave")
    studio_app.call("load_model", str(studio_app.model))
    wait_for(lambda: studio_app.call("workers")[0]["model"] == str(studio_app.model), "the model to come back")
    assert studio_app.call("installing") == {} and studio_app.call("cancel_install") == {}
    with pytest.raises(Exception, match="limit is 0"):
        studio_app.call("list_videos", 0)


def test_files_go_in_and_out_by_name(studio_app: StudioApp) -> None:
    from gradio_client import handle_file

    video = studio_app.call("generate", {"prompt": "A file.", **SMALL})["video"]
    assert studio_app.call("settings_in", handle_file(video))["prompt"] == "A file."
    folder = studio_app.call("bring_clip", handle_file(video), "brought")["dataset"]
    assert folder == str(studio_app.data_dir / "datasets" / "brought") and [*studio_app.call("captions", folder).values()] == [""]
    gif = studio_app.call("gif", studio_app.call("list_videos", 1)[0]["id"])["file"]
    assert httpx.get(f"{studio_app.url}/gradio_api/file={gif}").content[:3] == b"GIF"
    for strange in ({"path": video}, {"path": video, "meta": {"_type": "gradio.FileData"}}):  # not uploaded, as a client would, but named
        id = httpx.post(f"{studio_app.url}/gradio_api/call/settings_in", json={"data": [strange]}).json()["event_id"]
        assert "event: error" in httpx.get(f"{studio_app.url}/gradio_api/call/settings_in/{id}", timeout=30).text


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

    async def talk() -> tuple[dict[str, str], dict, dict, str]:
        async with streamablehttp_client(f"{studio_app.url}/gradio_api/mcp/") as (reads, writes, _), ClientSession(reads, writes) as session:
            await session.initialize()
            listed = (await session.list_tools()).tools
            tools = {tool.name: tool.description for tool in listed}
            enqueue = next(name for name in tools if name.endswith("enqueue"))
            answer = await session.call_tool(enqueue, {"request": {"prompt": "By a tool.", **SMALL}})
            picture = next(tool.inputSchema["properties"]["file"] for tool in listed if tool.name.endswith("bring_picture"))
            return tools, next(tool.inputSchema for tool in listed if tool.name == enqueue), picture, answer.content[0].text

    with ThreadPoolExecutor(1) as pool:  # Playwright's tests leave an event loop in this thread
        tools, schema, picture, answer = pool.submit(asyncio.run, talk()).result()
    assert {name.split("mira_studio_")[-1] for name in tools} >= {"enqueue", "generate", "status", "cancel", "list_videos", "bring_clip", "blind_pair", "push_run"}, tools
    assert all(tools.values()) and picture["type"] == "string" and "http" in picture["format"], "a file is an address to a tool"
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


def test_grids_and_drafts_are_made_and_compared_by_name(studio_app: StudioApp) -> None:
    grid = studio_app.call("grid", {"prompt": "A red ball.", **SMALL}, {"guidance_scale": "2..4:2", "prompt": "red, blue"})
    assert grid["axes"] == {"guidance_scale": [2.0, 4.0], "prompt": ["red", "blue"]} and len(grid["requests"]) == 4
    ids = [row["id"] for row in grid["requests"]]
    for id in ids:
        studio_app.wait(id, "done")
    videos = [row["video"] for row in studio_app.call("wall", grid["id"])["requests"]]
    assert [(read_settings(video)["prompt"], read_settings(video)["guidance_scale"]) for video in videos] == [(f"A {colour} ball.", scale) for colour in ("red", "blue") for scale in (2.0, 4.0)]
    drafts = studio_app.call("drafts", {"prompt": "A draft.", **SMALL}, 2, 1)
    picked = drafts["requests"][1]["id"]
    (whole,) = studio_app.call("make_full", drafts["id"], [picked])["ids"]
    done = studio_app.wait(whole, "done")
    assert (read_settings(done["video"])["seed"], read_settings(done["video"])["num_inference_steps"]) == (2, 2)
    told = studio_app.call("compare", [*ids[:2], whole])
    assert told["num_frames"] == 4 and [len(series) for series in told["differences"]] == [4, 4] and len(told["measures"]) == 3
    assert (told["parts_at"] is None) == (max(map(max, told["differences"])) <= 0.01) and max(told["differences"][0]) > 0
    sheet = studio_app.call("export_comparison", ids[:2])["video"]
    assert len(read_settings(sheet)["comparison"]) == 2 and len(read_video(sheet)) == 4
    for name, arguments, words in (("grid", ({"prompt": "x", **SMALL}, {"colour": "1"}), "cannot vary"), ("wall", ("none",), "no grid 'none'"), ("compare", (ids[:1],), "Two to 4"), ("compare", ([ids[0], "gone"],), "no video 'gone'")):
        with pytest.raises(Exception, match=words):
            studio_app.call(name, *arguments)


def test_own_presets_are_kept_by_name(studio_app: StudioApp) -> None:
    told = studio_app.call("save_preset", "mine", SMALL)
    assert told["own"]["mine"]["num_inference_steps"] == 2 and told["models"]["128-20s"]["num_frames"] == 120
    assert studio_app.call("delete_preset", "mine")["own"] == {}
    with pytest.raises(Exception, match="no preset of your own called 'mine'"):
        studio_app.call("delete_preset", "mine")


def test_a_model_is_trained_and_used_by_name(studio_app: StudioApp) -> None:
    from training.toyworld.folder import write_folder

    clips = studio_app.data_dir / "datasets" / "few"
    write_folder(clips, 3, num_frames=4, height=32, width=32, seed=1)
    settings = {"dataset": str(clips), "max_train_steps": 2, "num_frames": [4], "sizes": ["32x32"], "validation_prompts": [], "validation_clips": 0, "num_threads": 1, "model": str(studio_app.model)}
    started = studio_app.call("start_run", settings, "lora_nano", "by-name")
    assert started["name"] == "by-name" and started["of"] == 2
    wait_for(lambda: studio_app.call("list_runs")[0]["state"] in ("finished", "failed"), lambda: str(studio_app.call("list_runs")))
    (run,) = studio_app.call("list_runs")
    assert (run["state"], run["checkpoints"]) == ("finished", [2]), run["message"]
    loras = studio_app.call("use_run", "by-name")["loras"]
    done = studio_app.call("generate", {"prompt": "With what was learned.", "loras": loras, **SMALL})
    assert read_settings(done["video"])["made_with"]["loras"][loras]["run"] == "by-name"
    for call, words in (
        (("start_run", {"dataset": "/none", "model": str(studio_app.model)}), "nothing at /none"),
        (("start_run", {"learning_rat": 1}), "Did you mean 'learning_rate'"),
        (("start_run", settings, "lora"), "no kind of training 'lora'"),
        (("pause_run", "by-name"), "not at work"),
        (("resume_run", "none"), "no run 'none'"),
    ):
        with pytest.raises(Exception, match=words):
            studio_app.call(*call)


def test_a_run_is_saved_sampled_stopped_compared_deleted_and_brought_back_by_name(studio_app: StudioApp) -> None:
    from training.toyworld.folder import write_folder

    clips = studio_app.data_dir / "datasets" / "long"
    write_folder(clips, 3, num_frames=4, height=32, width=32, seed=1)
    settings = {"dataset": str(clips), "max_train_steps": 100_000, "num_frames": [4], "sizes": ["32x32"], "validation_prompts": ["A big red ball rises over the sea."], "validation_clips": 0, "num_threads": 1, "model": str(studio_app.model)}
    run = lambda: next((run for run in studio_app.call("list_runs") if run["name"] == "long"), None)  # noqa: E731
    studio_app.call("start_run", settings, "lora_nano", "long")
    wait_for(lambda: run()["state"] == "training", lambda: str(run()))
    with pytest.raises(Exception, match="at work"):
        studio_app.call("delete_run", "long")
    studio_app.call("save_run", "long")
    wait_for(lambda: run()["checkpoints"], lambda: str(run()))
    made = len(list(studio_app.data_dir.glob("runs/long/samples/*/*.mp4")))
    studio_app.call("sample_run", "long")
    wait_for(lambda: len(list(studio_app.data_dir.glob("runs/long/samples/*/*.mp4"))) > made, lambda: str(run()))
    stopped = studio_app.call("stop_run", "long")
    assert stopped["state"] == "paused" and stopped["step"] == stopped["checkpoints"][-1]
    grid = studio_app.call("wall", studio_app.call("compare_run", "long")["id"])
    assert grid["axes"] == {"loras": [None, *(f"long-step-{step}" for step in stopped["checkpoints"])]}
    studio_app.call("cancel_waiting")
    deleted = studio_app.call("delete_run", "long")["deleted"]
    assert run() is None
    assert studio_app.call("restore_run", deleted)["checkpoints"] == stopped["checkpoints"]
    for name in ("stop_run", "save_run", "sample_run"):
        with pytest.raises(Exception, match="not at work"):
            studio_app.call(name, "long")

"""Endpoints that need no worker: called as they are registered, over services of their own; and that no action of the page is without one."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from safetensors.numpy import save_file
from studio_app import ROOT, wait_for

from core import GenerationRequest, read_settings, save_video
from core.metrics import METRICS
from core.types import RequestError
from core.video_io import read_video
from studio import api
from studio.api_settings import uploaded
from studio.compare_screen import COMPARE_ACTIONS
from studio.services import Services
from studio.training_screen import TRAINING_ACTIONS
from training.captions import read_captions
from training.config import ConfigError, load_config, save_config

TOKEN = "hf_secretsecret"
SMALL = {"height": 32, "width": 32, "num_frames": 4, "num_inference_steps": 2, "seed": 1}


class Endpoints:
    """The registered functions as attributes, and what they work with."""

    def __init__(self, services: Services):
        self.services = services
        with gr.Blocks():
            self.named = api.register(services)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self.named[name]

    def finished(self) -> dict[str, Any]:
        """What became of the chore."""
        wait_for(lambda: not self.chore()["working"], lambda: str(self.chore()))
        return self.chore()


def awaited(answer: Coroutine[Any, Any, Any]) -> Any:
    """What ``answer`` comes to; in a thread of its own, as a test of the browser may have left a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, answer).result()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """Two videos that differ in guidance alone, a run with a LoRA of step 20, three clips, and nothing that makes more."""
    root = tmp_path_factory.mktemp("studio") / "data"
    services = Services.open(root, start_worker=False)
    frames = np.broadcast_to((40 * np.arange(4, dtype=np.uint8))[:, None, None, None], (4, 32, 32, 3)).copy()
    for id, guidance in (("low", 3.0), ("high", 6.0)):
        request = GenerationRequest("A red ball.", guidance_scale=guidance, **SMALL).resolved()
        services.library.add(id, request, save_video(frames, root / "made.mp4", request.output_fps, request.to_dict()))
    checkpoint = root / "runs" / "small" / "checkpoints" / "step-20"
    checkpoint.mkdir(parents=True)
    save_config(load_config(None, ["target=lora", "model=mira-nano", "dataset=/clips/birds", f"data_dir={root}", "lora_rank=3"]), root / "runs" / "small" / "config.yaml")
    (root / "runs" / "small" / "log.txt").write_text("first\nlast\n")
    save_file({"x.lora_A.weight": np.ones((2, 2), np.float32)}, checkpoint / "lora.safetensors")
    (checkpoint / ".complete").touch()
    for number in range(3):
        clip = save_video(np.roll(frames, number, 0), services.datasets / "few" / f"{number}.mp4", 8)
        clip.with_suffix(".txt").write_text(f"grey number {number}")
    yield Endpoints(services)
    services.close()


ENDPOINT_OF = {
    "cancel-many": "cancel", "retry-many": "retry", "copy": "copy_requests", "copy-many": "copy_requests", "first-many": "move", "up": "move", "down": "move", "first": "move", "place": "move", "export": "export_requests",
    "load": "load_model", "unload": "unload_model", "install": "install_model", "install-cancel": "cancel_install", "full": "make_full", "smooth": "smooth_copy", "details": "details", "delete": "delete_video", "delete-many": "delete_video",
    "star-many": "star", "unstar-many": "star", "tag-many": "tag", "untag-many": "tag", "zip": "zip_videos", "zip-plain": "zip_videos", "plain": "plain_copy", "undo": "reinstate", "gallery-order": "find_videos",
    "compare-newest": "compare", "compare-wall": "compare", "compare-again": "compare", "restore": "restore_video", "compare-export": "export_comparison", "blind": "blind_pair", "blind-open": "blind_settings", "chore-cancel": "cancel_chore",
    **{f"run-{name}": f"{name}_run" for name in ("first", "pause", "stop", "resume", "save", "sample", "delete", "compare")},
}  # fmt: skip
"""Where the endpoint's name is not the action's."""
VIEW = frozenset("follow wall-close show gallery-table dismiss more more-requests compare-open compare-remove compare-earlier compare-clear blind-close run-open run-scale".split())
"""Actions that only change what one tab of the browser shows."""


def test_no_action_of_the_page_is_without_an_endpoint(studio: Endpoints) -> None:
    cases = re.findall(r"case ((?:\"[\w-]+\"(?: \| )?)+)", (ROOT / "studio" / "screen.py").read_text())
    actions = {name for case in cases for name in re.findall(r"[\w-]+", case)} | COMPARE_ACTIONS | TRAINING_ACTIONS
    assert {"cancel", "gif", "vote", "run-log"} <= actions and not VIEW - actions
    without = {name for name in actions - VIEW if ENDPOINT_OF.get(name, name.replace("-", "_")) not in studio.named}
    assert not without, without


def test_every_argument_is_documented(studio: Endpoints) -> None:
    for name, endpoint in studio.named.items():
        for argument in inspect.signature(endpoint).parameters:
            assert re.search(rf"^\s+{argument}: .", inspect.getdoc(endpoint), re.MULTILINE), f"{name}: {argument}"


def test_a_pair_is_judged_blindly(studio: Endpoints) -> None:
    assert studio.blind_settings() == {"guidance_scale": 1}
    pair = studio.blind_pair("guidance_scale")
    assert {pair["a"]["id"], pair["b"]["id"]} == {"low", "high"} and pair["prompt"] == "A red ball." and read_settings(pair["a"]["video"])["seed"] == 1
    voted = studio.vote("guidance_scale", "low", "high", "b")
    assert [(rate["value"], rate["wins"], rate["share"]) for rate in voted["rates"]] == [(6.0, 1, 1.0), (3.0, 0, 0.0)] and not voted["rates"][0]["better"]
    studio.retract_vote(voted["vote"])
    assert studio.votes_on("guidance_scale") == {"setting": "guidance_scale", "count": 0, "rates": []}
    for call, words in ((lambda: studio.blind_pair("seed"), "cannot be judged"), (lambda: studio.blind_pair("sampler"), "No two videos"), (lambda: studio.vote("sampler", "low", "high", "a"), "sampler alone"), (lambda: studio.vote("guidance_scale", "low", "low", "a"), "alone")):
        with pytest.raises(RequestError, match=words):
            call()


def test_videos_are_handed_out_as_files(studio: Endpoints) -> None:
    with zipfile.ZipFile(studio.zip_videos(["low", "high"])["file"]) as archive:
        assert len(archive.namelist()) == 2
    with zipfile.ZipFile(studio.zip_videos(["low"], settings=False)["file"]) as archive:
        (name,) = archive.namelist()
        plain = Path(archive.extract(name, studio.services.exports))
    copy, video = studio.plain_copy("low")["file"], studio.services.library.get("low").path
    assert read_settings(plain) is None and read_settings(copy) is None and np.array_equal(read_video(copy), read_video(video))
    gif = studio.gif("high")["file"]
    assert gif.endswith(".gif") and read_settings(gif)["guidance_scale"] == 6.0
    smooth = awaited(studio.smooth_copy("low"))
    assert len(read_video(smooth["file"])) > 4 and smooth["made_with"]
    told = awaited(studio.details("low"))
    assert told["facts"]["Seed"] == "1" and told["measures"].keys() >= METRICS.keys()
    for name in ("gif", "plain_copy"):
        with pytest.raises(RequestError, match="no video 'gone'"):
            studio.named[name]("gone")
    with pytest.raises(RequestError, match="no video 'gone'"):
        studio.zip_videos(["low", "gone"])
    with pytest.raises(RequestError, match="None of these videos"):
        studio.zip_videos([])


def test_files_are_brought_but_only_those_that_were_uploaded(studio: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    file = lambda path: {"path": str(path), "meta": {"_type": "gradio.FileData"}}  # noqa: E731
    video = studio.services.library.get("low").path
    for strange in (file(video), file(tmp_path / "up" / ".." / ".." / "x"), file(tmp_path / "none.mp4"), "x.mp4", {}):
        with pytest.raises(RequestError, match="must be uploaded"):
            uploaded(strange)
    clip = tmp_path / "bird.mp4"
    clip.write_bytes(Path(video).read_bytes())
    assert studio.settings_in(file(clip))["guidance_scale"] == 3.0
    (tmp_path / "bird.txt").write_text("a bird")
    folder = studio.bring_clip(file(clip), "my birds")["dataset"]
    assert studio.bring_clip(file(tmp_path / "bird.txt"), "my birds") == {"dataset": folder} and studio.captions(folder) == {"bird.mp4": "a bird"}
    from PIL import Image

    Image.new("RGB", (64, 40), "red").save(tmp_path / "red.png")
    picture = studio.bring_picture(file(tmp_path / "red.png"))["start_from"]
    assert studio.enqueue({"prompt": "x", "start_from": picture, "start_frames": 1, **SMALL})["id"] in studio.cancel_waiting()
    (tmp_path / "bird.sh").write_text("")
    with pytest.raises(ConfigError, match="neither a video"):
        studio.bring_clip(file(tmp_path / "bird.sh"))
    with pytest.raises(RequestError, match="cannot be used as a picture"):
        studio.bring_picture(file(clip))


def test_many_prompts_are_queued_estimated_copied_and_put_back(studio: Endpoints) -> None:
    estimate = studio.estimate("{red|blue} ball --seed 7\nA star.", SMALL, 2)
    assert estimate == {"requests": 6, "seconds": None, "memory": None} and not studio.list_requests("waiting")
    ids = studio.enqueue_prompts("{red|blue} ball --seed 7\nA star.", SMALL, 2)["ids"]
    listed = {row["id"]: row["request"] for row in studio.list_requests("waiting")}
    assert [(listed[id]["prompt"], listed[id]["seed"]) for id in ids] == [(f"{prompt}", seed) for prompt, first in (("red ball", 7), ("blue ball", 7), ("A star.", 1)) for seed in (first, first + 1)]
    assert all(request["height"] == 32 and request["model"] == "mira-nano" for request in listed.values())
    (copy,) = studio.copy_requests(ids[:1])
    assert studio.services.queue.get(copy).request == studio.services.queue.get(ids[0]).request
    varied = studio.vary("low")["id"]
    assert studio.services.queue.get(varied).request.seed != 1 and studio.services.queue.get(varied).request.guidance_scale == 3.0
    assert set(studio.cancel_waiting()) == {*ids, copy, varied}
    assert studio.reinstate([ids[0], copy]) == [ids[0], copy] and studio.reinstate([copy]) == []
    assert {row["id"] for row in studio.list_requests("waiting")} == {ids[0], copy}
    studio.cancel_waiting()
    cleared = studio.clear()
    assert copy in cleared and studio.list_requests() == []
    assert studio.unclear([copy]) == [copy] and [row["id"] for row in studio.list_requests()] == [copy]
    assert studio.surprise_me()["prompt"]
    for call, words in ((lambda: studio.enqueue_prompts("{red ball", SMALL), "without its }"), (lambda: studio.enqueue_prompts("x", {"heigth": 32}), "height"), (lambda: studio.enqueue_prompts("x", SMALL, 0), "count is 0"), (lambda: studio.copy_requests(["none"]), "no request 'none'")):
        with pytest.raises(RequestError, match=words):
            call()


def test_videos_are_filtered_as_in_the_gallery(studio: Endpoints) -> None:
    studio.star("high")
    ids = lambda **query: [video["id"] for video in studio.find_videos(**query)]  # noqa: E731
    assert (ids(), ids(order="oldest"), ids(favourites=True), ids(model="other"), ids(run="small"), ids(days=1)) == (["high", "low"], ["low", "high"], ["high"], [], [], ["high", "low"])
    with pytest.raises(RequestError, match="no order 'best'"):
        ids(order="best")


def test_an_import_tells_which_presets_it_replaced(studio: Endpoints) -> None:
    studio.save_preset("mine", SMALL)
    content = studio.export_requests()
    studio.save_preset("mine", {**SMALL, "num_inference_steps": 9})
    assert studio.import_requests(content)["replaced"]["mine"]["num_inference_steps"] == 9 and studio.list_presets()["own"]["mine"]["num_inference_steps"] == 2


def test_a_checkpoint_file_is_converted(studio: Endpoints, tmp_path: Path) -> None:
    (tmp_path / "mine.pt").write_bytes(b"no checkpoint")
    told = studio.convert_checkpoint(str(tmp_path / "mine.pt"), "mine")
    assert (told["model"], told["words"], told["working"]) == ("mine", "Converting mine.pt", True) and studio.installing()["model"] == "mine"
    with pytest.raises(RequestError, match="not done yet"):
        studio.convert_checkpoint(str(tmp_path / "mine.pt"), "other")
    assert studio.cancel_install() == {}
    for arguments, words in (((str(tmp_path / "none.pt"),), "no file"), ((str(tmp_path / "mine.pt"), "a/b"), "cannot be a model's name"), ((str(tmp_path / "mine.pt"), "mira-nano"), "already")):
        with pytest.raises(RequestError, match=words):
            studio.convert_checkpoint(*arguments)


def test_the_system_tells_what_a_bug_report_needs(studio: Endpoints) -> None:
    told = json.loads(json.dumps(studio.system()))
    assert told["sections"]["Versions"]["gradio"] == gr.__version__ and told["sections"]["Studio"]["Videos"].startswith("2,")


def test_clips_are_captioned_looked_at_split_and_rendered(studio: Endpoints) -> None:
    few = str(studio.services.datasets / "few")
    captions = {f"{number}.mp4": f"grey number {number}" for number in range(3)}
    assert studio.captions(few) == captions
    assert studio.edit_captions(few, {"1.mp4": "a  quiet  zebra"}) == {"changed": 1} and studio.replace_in_captions(few, "zebra", "horse") == {"changed": 1}
    assert read_captions(few) == {**captions, "1.mp4": "a quiet horse"} and studio.replace_in_captions(few, "zebra", "x") == {"changed": 0}
    with pytest.raises(ConfigError, match="dense_caption"):
        studio.captions(few, "dense_caption")
    begun = studio.check_clips({"dataset": few, "num_frames": [4], "sizes": ["32x32"]})
    assert begun["words"] == "Looking at the clips"
    with pytest.raises(RequestError, match="not done yet"):
        studio.split_videos(few)
    report = studio.finished()["report"]
    assert report["usable"] == 3 and len(report["preview"]) == 3 and Path(report["preview"][0]["file"]).is_file()
    studio.render_clips(1)
    assert studio.finished()["error"] is None and len(list((studio.services.datasets / "toyworld").rglob("*.mp4"))) == 1
    studio.split_videos(str(studio.services.datasets / "toyworld"))
    split = studio.finished()
    assert split["report"]["clips"] == 1 and len(list(Path(split["report"]["folder"]).rglob("*.mp4"))) == 1, split
    assert studio.cancel_chore() == {} and studio.chore() == {}
    for call, words in ((lambda: studio.captions(" "), "dataset is empty"), (lambda: studio.edit_captions(few, {"none.mp4": "x"}), "is not in"), (lambda: studio.replace_in_captions(few, "", "x"), "find is empty"), (lambda: studio.split_videos(""), "nothing at"), (lambda: studio.check_clips({"dataset": few}, "none"), "no kind of training"), (lambda: studio.render_clips(0), "clips is 0")):
        with pytest.raises((ConfigError, RequestError), match=words):
            call()


def test_datasets_from_elsewhere_are_not_for_other_machines(studio: Endpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    studio.cancel_chore()
    monkeypatch.setattr(studio.services, "dataset_roots", (studio.services.datasets,))
    theirs = str(shutil.copytree(studio.services.datasets / "few", tmp_path / "theirs"))
    for call in (lambda: studio.captions(theirs), lambda: studio.edit_captions(theirs, {}), lambda: studio.replace_in_captions(theirs, "a", "b"), lambda: studio.split_videos(theirs), lambda: studio.split_videos(str(studio.services.datasets / "few"), theirs), lambda: studio.check_clips({"dataset": theirs})):
        with pytest.raises(ConfigError, match="Datasets may only be in"):
            call()
    assert studio.chore() == {}


def test_a_run_is_planned_written_down_and_read(studio: Endpoints, tmp_path: Path) -> None:
    settings = {"dataset": str(studio.services.datasets / "few"), "max_train_steps": 7, "num_frames": [4], "sizes": ["32x32"]}
    plan = studio.plan_run(settings, name="planned")
    assert plan["steps"] == 7 and plan["disk_free"] > 0 and "max_train_steps=7" in plan["command"] and "runs/planned" in plan["command"] and not (studio.services.runs.folder / "planned").exists()
    file = studio.run_yaml(settings, name="planned")["file"]
    assert Path(file).name == "planned.yaml" and load_config(file, []).max_train_steps == 7
    again = studio.run_settings("small")
    assert again["lora_rank"] == 3 and "output_dir" not in again and load_config(studio.run_yaml(again)["file"], []).lora_rank == 3
    assert studio.run_log("small") == ["first", "last"]
    with pytest.raises(ConfigError, match="no run 'none'"):
        studio.run_log("none")
    with pytest.raises(ConfigError, match="must be an object"):
        studio.plan_run(None)
    (studio.services.runs.folder / "small" / "log.txt").rename(tmp_path / "log.txt")
    with pytest.raises(ConfigError, match="small has no log"):
        studio.run_log("small")
    (tmp_path / "log.txt").rename(studio.services.runs.folder / "small" / "log.txt")
    with pytest.raises(ConfigError, match="slashes"):
        studio.run_yaml(settings, name="../planned")


def test_a_checkpoint_is_packed_and_its_token_is_kept_nowhere(studio: Endpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert studio.pack_run("small", "lora")["words"] == "Writing step 20 of small"
    file = Path(studio.finished()["report"]["file"])
    assert file.read_bytes() == (studio.services.runs.folder / "small" / "checkpoints" / "step-20" / "lora.safetensors").read_bytes()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with caplog.at_level("DEBUG"):
        assert studio.push_run("small", "someone/thing", TOKEN)["words"] == "Sending step 20 of small to someone/thing"
        told = studio.finished()
    assert "someone/thing could not be written on the Hub" in told["error"], told
    written = [path for path in studio.services.data_dir.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in str(told) + caplog.text and not written
    for call, words in ((lambda: studio.pack_run("small", "zip"), "cannot be written as 'zip'"), (lambda: studio.pack_run("small", "lora", 7), "no checkpoint of step 7"), (lambda: studio.push_run("small", "a/b", " "), "give a token")):
        with pytest.raises(ConfigError, match=words):
            call()

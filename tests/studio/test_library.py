"""The library's questions, tags and files for a download."""

from __future__ import annotations

import datetime
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from core.presets import PRESET_FIELDS
from core.provenance import runs_of
from core.types import MADE_WITH, GenerationRequest, RequestError
from core.video_io import read_settings, read_video, save_video
from studio.components.viewer import render_video
from studio.db import Database
from studio.downloads import file_facts, write_gif, write_plain, write_smooth, write_zip
from studio.estimate import memory_for, seconds_for
from studio.library import Library, Query
from studio.queue import Queue, dump_request
from studio.tabs.form import fill


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Three videos: v0 is old and of another model, v1 has no elapsed time, v2 is the newest."""
    found = Library(tmp_path, Database(tmp_path / "studio.db"))
    rows = [("zebra", "TencentARC/Mira-v0:128", 9.0, 40), ("a ball", "mira-nano", None, 3), ("a ball", "mira-nano", 2.0, 0)]
    for number, (prompt, model, elapsed, days) in enumerate(rows):
        request = GenerationRequest(prompt=prompt, model=model, seed=5).resolved()
        file = tmp_path / f"{number}.mp4"
        save_video(np.full((3, 32, 32, 3), 80 * number, np.uint8), file, 6, request.to_dict())
        found.add(f"v{number}", request, file, elapsed=elapsed, created=time.time() - days * 86_400)
    return found


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        (Query(), ["v2", "v1", "v0"]),
        (Query(sort="oldest"), ["v0", "v1", "v2"]),
        (Query(sort="prompt"), ["v2", "v1", "v0"]),
        (Query(sort="slowest"), ["v0", "v2", "v1"]),
        (Query(model="mira-nano"), ["v2", "v1"]),
        (Query(preset="128-20s"), ["v0"]),
        (Query(days=7), ["v2", "v1"]),
        (Query("ball", days=1), ["v2"]),
    ],
)
def test_a_query_narrows_and_orders(library: Library, query: Query, ids: list[str]) -> None:
    assert [video.id for video in library.list(query)] == ids and library.count(query) == len(ids)


def test_the_trash_lists_what_was_deleted_last_first_until_it_is_emptied(library: Library) -> None:
    thrown = Query(deleted=True)
    for id in ("v2", "v0"):
        library.delete(id)
    assert [video.id for video in library.list(thrown)] == ["v0", "v2"] and [video.id for video in library.list()] == ["v1"]
    assert [video.id for video in library.list(Query("ball", deleted=True))] == ["v2"] and not thrown.narrows
    assert library.get("v2") is None and library.get("v1", deleted=True) is None
    video = library.get("v2", deleted=True)
    assert Path(video.path).is_file() and video.deleted is not None
    size = sum(file.stat().st_size for file in library.trash_dir.iterdir())
    assert library.trash_bytes() == size > 0
    version = library.version()
    assert library.purge(0) == 2 and library.version() > version
    assert library.trash_bytes() == library.count(thrown) == 0 and library.count() == 1 and not list(library.trash_dir.iterdir())


def test_an_unknown_order_is_refused(library: Library) -> None:
    with pytest.raises(RequestError, match="no order 'best'"):
        library.list(Query(sort="best"))


def test_tags_are_given_found_and_taken(library: Library) -> None:
    library.tag(["v0", "v1"], "#Keep")
    library.tag(["v1", "v2"], "keep")
    library.tag(["v1"], "talk")
    assert library.get("v1").tags == ("Keep", "talk") and library.choices()["tag"] == ["Keep", "talk"]
    assert [v.id for v in library.list(Query(tag="keep"))] == ["v2", "v1", "v0"]
    assert [v.id for v in library.list(Query("ball #KEEP #talk"))] == ["v1"]
    library.tag(["v0", "v1"], "KEEP", on=False)
    assert [v.id for v in library.list(Query("#keep"))] == ["v2"]
    for bad in ("", "two words", "x" * 41):
        with pytest.raises(RequestError, match="A tag is one word"):
            library.tag(["v0"], bad)
    with pytest.raises(RequestError, match="no video 'gone'"):
        library.tag(["v0", "gone"], "late")
    assert library.get("v0").tags == (), "all of them or none"


def test_choices_are_what_there_are_videos_of(library: Library) -> None:
    library.delete("v0")
    assert library.choices() == {"model": ["mira-nano"], "preset": ["nano-4s"], "tag": [], "run": []}


def test_videos_are_found_by_the_training_run_behind_them(library: Library, tmp_path: Path) -> None:
    made = {"trained": {"run": "first", "step": 20}, "loras": {"mine": {"hash": "0", "run": "second"}, "theirs": {"hash": "1"}}}
    assert runs_of(made) == ["first", "second"] and runs_of(None) == runs_of({"trained": None}) == []
    library.set_runs("v1", runs_of(made))
    assert [v.id for v in library.list(Query(run="second"))] == ["v1"] and library.choices()["run"] == ["first", "second"] and Query(run="second").narrows
    older = Path(library.get("v0").path)
    save_video(np.zeros((3, 32, 32, 3), np.uint8), older, 6, library.get("v0").request.to_dict() | {MADE_WITH: {"loras": {"mine": {"run": "second"}}}})
    queue = Queue(library.db)
    library.recover(queue)
    assert [v.id for v in library.list(Query(run="second"))] == ["v1", "v0"], "a video of an older version tells by its file"
    save_video(np.zeros((3, 32, 32, 3), np.uint8), library.videos_dir / "brought.mp4", 6, library.get("v0").request.to_dict() | {MADE_WITH: made})
    library.recover(queue)
    assert library.count(Query(run="first")) == 2


def test_memory_is_told_by_what_was_measured(library: Library, tmp_path: Path) -> None:
    request = GenerationRequest(prompt="a ball", width=32, height=32, num_frames=10, seed=1).resolved()

    def made(frames: int, peak: int | None) -> None:
        file = tmp_path / "made.mp4"
        file.write_bytes(b"film")
        library.add(f"made-{frames}-{peak}", request.replace(num_frames=frames), file, elapsed=1.0, peak_memory=peak)

    def told(*frames: int) -> float | None:
        return memory_for(SimpleNamespace(library=library), [request.replace(num_frames=count) for count in frames])

    made(10, None)
    assert told(10) is None
    made(10, 1000)
    assert told(10) == told(5) == 1000 and told(5, 20) == 2000
    assert told(100) is None, "from one small clip nothing is told of a large one"
    made(30, 1400)
    assert [round(told(count)) for count in (10, 20, 50)] == [1000, 1200, 1800]
    assert library.largest("mira-nano").width == 128 and memory_for(SimpleNamespace(library=library), [request.replace(model="other")]) is None


def test_time_is_told_by_what_took_most_nearly_as_much_work(library: Library, tmp_path: Path) -> None:
    request = GenerationRequest(prompt="a ball", model="mine", width=32, height=32, num_frames=10, seed=1).resolved()

    def told(*frames: int) -> float | None:
        return seconds_for(SimpleNamespace(library=library), [request.replace(num_frames=count) for count in frames])

    assert told(10) is None
    for number, (frames, seconds) in enumerate(((100, 40.0), (10, 8.0))):
        (tmp_path / f"{frames}.mp4").write_bytes(b"film")
        library.add(str(frames), request.replace(num_frames=frames), tmp_path / f"{frames}.mp4", elapsed=seconds, created=float(number))
    assert told(10) == 8.0 and told(100) == 40.0 and told(20) == 16.0 and told(200) == 80.0
    assert told(10, 100) == 48.0 and told(10, 1000) is None


def test_a_zip_holds_each_file_once(library: Library, tmp_path: Path) -> None:
    with zipfile.ZipFile(write_zip(library.list(), tmp_path)) as archive:
        assert archive.namelist() == ["a-ball-5.mp4", "a-ball-5-2.mp4", "zebra-5.mp4"]
        assert archive.read("zebra-5.mp4") == Path(library.get("v0").path).read_bytes()
    with zipfile.ZipFile(write_zip(library.list(), tmp_path, settings=False)) as archive:
        archive.extract("zebra-5.mp4", tmp_path)
    assert read_settings(tmp_path / "zebra-5.mp4") is None and np.array_equal(read_video(tmp_path / "zebra-5.mp4"), read_video(library.get("v0").path))
    with pytest.raises(RequestError, match="None of these"):
        write_zip([], tmp_path)


def test_a_gif_keeps_the_settings_and_a_plain_file_does_not(library: Library, tmp_path: Path) -> None:
    video = library.get("v2")
    assert read_settings(write_gif(video, tmp_path))["prompt"] == "a ball"
    plain = write_plain(video, tmp_path)
    assert read_settings(plain) is None and b"a ball" not in plain.read_bytes()
    assert np.array_equal(read_video(plain), read_video(video.path))


def test_the_facts_of_a_file(library: Library, tmp_path: Path) -> None:
    facts = dict(file_facts(library.get("v2")))
    assert facts["Prompt"] == "a ball" and facts["Seed"] == "5" and facts["File"].startswith("v2.mp4, ") and "Strength" not in facts
    Path(library.get("v2").path).write_bytes(b"broken")
    assert "cannot be read" in dict(file_facts(library.get("v2")))["File"]


def test_another_programs_file_gets_a_whole_request(library: Library) -> None:
    """Its fields fill the form; it says nothing of how it was made, so it is not made again and called drifted."""
    path = library.videos_dir / "holiday.mp4"
    save_video(np.zeros((3, 32, 32, 3), np.uint8), path, 0.25)
    library.recover(Queue(library.db))
    (video,) = (video for video in library.list() if video.request.prompt == "holiday")
    assert video.seconds == 3.0 and not [name for name, value in video.request.to_dict().items() if value is None and name in ("seed", "preset", *PRESET_FIELDS[:-1])]
    assert fill(video.request, library.videos_dir.parent)["guidance_scale"]["value"] == video.request.guidance_scale
    with pytest.raises(RequestError, match="does not say how it was made"):
        library.require_settings(video.id)


def test_an_unfinished_request_of_an_older_version_is_filled(library: Library) -> None:
    with library.db.write() as tx:
        tx.execute("UPDATE videos SET fps = 0, request = ? WHERE id = 'v1'", (dump_request(GenerationRequest(prompt="a ball", width=640)),))
    library.recover(Queue(library.db))
    video = library.get("v1")
    assert video.fps == 1 and video.request.width == 640 and None not in (video.request.seed, video.request.guidance_scale)


def test_a_file_that_is_gone_is_told(library: Library) -> None:
    video = library.get("v1")
    assert library.require_settings("v1") == video and "<video" in render_video(video)
    Path(video.path).unlink()
    shown = render_video(video)
    assert "deleted or moved by hand" in shown and 'data-action="delete"' in shown and "<video" not in shown
    with pytest.raises(RequestError, match="The file of “a ball” is gone"):
        library.require_file("v1")


def test_letters_of_any_alphabet_are_found_in_either_case(library: Library, tmp_path: Path) -> None:
    (tmp_path / "red.mp4").write_bytes(b"film")
    library.add("red", GenerationRequest(prompt="Красный 100% мяч").resolved(), tmp_path / "red.mp4")
    library.tag(["red"], "Ночь")
    assert [v.id for v in library.list(Query("КРАСНЫЙ #ночь"))] == [v.id for v in library.list(Query("100% мяч"))] == ["red"]
    assert not library.list(Query("1_0"))


def test_today_begins_at_midnight(library: Library) -> None:
    midnight = datetime.datetime.combine(datetime.date.today(), datetime.time()).timestamp()
    for id, seconds in (("v0", 1), ("v1", -1), ("v2", -86_401)):
        library.db.connection().execute("UPDATE videos SET created = ? WHERE id = ?", (midnight + seconds, id))
    assert [v.id for v in library.list(Query(days=1))] == ["v0"] and [v.id for v in library.list(Query(days=2))] == ["v0", "v1"]


def test_time_is_told_by_videos_of_the_same_quality(library: Library, tmp_path: Path) -> None:
    request = GenerationRequest(prompt="a ball", model="mine", width=32, height=32, num_frames=10, guidance_scale=1.0, seed=1).resolved()

    def told(quality: str) -> float | None:
        return seconds_for(SimpleNamespace(library=library), [request.replace(quality=quality)])

    for quality, seconds in (("fast", 3.0), ("quality", 8.0)):
        (tmp_path / "a.mp4").write_bytes(b"film")
        library.add(quality, request.replace(quality=quality), tmp_path / "a.mp4", elapsed=seconds)
    assert (told("fast"), told("quality"), told("balanced")) == (3.0, 8.0, 8.0)
    library.delete("quality")
    assert told("quality") is None, "a fast one would promise too little"


def test_a_fast_file_is_not_slowed_down_for_smooth_playback(library: Library, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="plays at 30 frames a second already"):
        write_smooth(replace(library.get("v2"), fps=30.0), tmp_path, tmp_path)

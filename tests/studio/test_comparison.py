"""Comparing videos: what differs in settings and frames, the labelled file, blind votes and what they say."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import numpy as np
import pytest

from core.metrics import faults, measure
from core.types import GenerationRequest, RequestError
from core.video_io import VideoError, read_settings, read_video, save_video
from studio import comparison, db
from studio.compare_screen import bring_back
from studio.comparison import Comparisons, Timeline, Work, clip_measures, differences, measured_facts, measures_file, parting, write_side_by_side
from studio.components.comparing import best_of, render_facts, render_verdict
from studio.components.player import TEMPLATE, blind_value, player_value
from studio.db import Database, StorageError
from studio.library import Library, Video
from studio.services import Services
from studio.screen import PANES, Screen, Session
from studio.settings_words import differing, labels
from studio.votes import Rate, Votes, pairs
from studio.walls import Axis
from tiny import tiny_clip


def request(**settings) -> GenerationRequest:
    small = {"prompt": "a ball", "height": 32, "width": 32, "num_frames": 6, "output_fps": 6, "seed": 7}
    return GenerationRequest(**{**small, **settings}).resolved()


def grey_levels(count: int, start: int = 16, height: int = 32, width: int = 32) -> np.ndarray:
    """Frame k is grey, at ``start + 8 k``."""
    return np.broadcast_to((start + 8 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, height, width, 3)).copy()


def finished(found: Callable[[], Work]) -> Work:
    """The work that ``found`` gives, once it is done."""
    deadline = time.monotonic() + 60
    while not found().done:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path, Database(tmp_path / "studio.db"))


def add(library: Library, id: str, frames: np.ndarray | None = None, **settings) -> Video:
    """A video of the library with these frames."""
    frames = grey_levels(6) if frames is None else frames
    made = request(num_frames=len(frames), height=frames.shape[1], width=frames.shape[2], **settings)
    library.add(id, made, save_video(frames, library.data_dir / f"{id}.tmp.mp4", made.output_fps, made.to_dict()))
    return library.get(id)


def test_what_differs_is_named() -> None:
    three = [request(), request(seed=8), request(seed=8, guidance_scale=9.5)]
    assert differing(three) == ["guidance_scale", "seed"]
    assert labels(three[1:]) == [f"guidance {three[1].guidance_scale:g}", "guidance 9.5"]
    assert labels([request(), request()]) == ["the same settings"] * 2
    assert labels([request(), request(prompt="a box")], but="prompt") == ["the same other settings"] * 2
    assert labels([request(), request(preset="nano-4s")]) == ["the same settings"] * 2, "a preset is a name for the other settings"


def test_one_clock_for_videos_of_other_speeds_and_lengths(library: Library) -> None:
    long, short = add(library, "long", grey_levels(12), output_fps=6), add(library, "short", grey_levels(2), output_fps=3)
    clock = Timeline.of([short, long])
    assert clock == Timeline(6, 12)
    assert clock.frames(long).tolist() == list(range(12))
    assert clock.frames(short).tolist() == [0, 0] + [1] * 10, "the shorter one holds its last frame"


def test_the_frame_where_they_part_is_found(library: Library) -> None:
    changed = grey_levels(6)
    changed[4:, :, :16] = 200
    one, same, other = add(library, "one"), add(library, "same"), add(library, "other", changed)
    series = differences([one, same, other])
    assert max(series[0]) == 0 and len(series[1]) == 6
    assert max(series[1][:4]) < comparison.PARTED and series[1][4] == pytest.approx((200 - 48) / 255 / 2, abs=0.03)
    assert parting(series) == 4 and parting(series[:1]) is None


def test_differences_are_made_once_and_kept(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [add(library, "one"), add(library, "two", grey_levels(6, start=40))]
    first = Comparisons(library.data_dir)
    version = first.version()
    found = finished(lambda: first.differences(videos)).result
    assert found == differences(videos) and first.version() > version
    first.close()
    monkeypatch.setattr(comparison, "differences", None)
    again = Comparisons(library.data_dir)
    assert finished(lambda: again.differences(videos)).result == found
    again.close()


def test_the_labelled_file_shows_all_and_carries_their_settings(library: Library) -> None:
    videos = [add(library, "dark", grey_levels(6, 16)), add(library, "light", grey_levels(3, 160), output_fps=3, guidance_scale=9), add(library, "wide", grey_levels(6, 90, 32, 64))]
    shares: list[float] = []
    path = write_side_by_side(videos, library.data_dir / "all.mp4", shares.append)
    frames = read_video(path)
    assert len(frames) == 6 and shares[-1] == 1
    height, width = frames.shape[1:3]
    middle = (height - comparison.LABEL_HEIGHT) // 2
    shown = frames[:, middle, [width // 6, width // 2, width * 5 // 6]].astype(int).mean(axis=-1)
    assert np.abs(shown - [[16 + 8 * k, 160 + 8 * (k // 2), 90 + 8 * k] for k in range(6)]).max() < 6, "each pane at its own frame of the common clock"
    assert frames[:, -comparison.LABEL_HEIGHT + 4 : -4].max() > 180, "the labels"
    told = read_settings(path)["comparison"]
    assert [one["id"] for one in told] == ["dark", "light", "wide"] and told[1]["guidance_scale"] == 9 and "guidance 9" in told[1]["label"]


def test_what_takes_too_much_memory_is_told_in_words(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [add(library, "one"), add(library, "two")]
    monkeypatch.setattr(comparison, "MAX_BYTES", 1000)
    comparisons = Comparisons(library.data_dir)
    comparisons.export(videos)
    work = finished(lambda: comparisons.exported(videos))
    comparisons.close()
    assert "Choose smaller or fewer ones" in work.error


def test_pairs_differ_in_one_setting_only(library: Library) -> None:
    add(library, "few", num_inference_steps=5)
    add(library, "many", num_inference_steps=20)
    add(library, "seed", num_inference_steps=20, seed=8)
    add(library, "prompt", num_inference_steps=5, prompt="a box")
    assert {name: [set(pair) for pair in found] for name, found in pairs(library.list()).items()} == {"num_inference_steps": [{"few", "many"}]}
    votes = Votes(library.db, library)
    assert votes.settings() == {"num_inference_steps": 1}
    add(library, "sampler", num_inference_steps=20, sampler="euler")
    assert votes.settings() == {"num_inference_steps": 1, "sampler": 1}, "a new video is seen"


def test_votes_are_drawn_evenly_in_either_order_and_stored(library: Library) -> None:
    for id, steps in (("five", 5), ("ten", 10), ("twenty", 20)):
        add(library, id, num_inference_steps=steps)
    votes = Votes(library.db, library)
    seen: list[frozenset[str]] = []
    orders: set[tuple[str, str]] = set()
    for _ in range(60):
        pair = votes.draw("num_inference_steps")
        seen.append(frozenset(pair))
        orders.add(pair)
        better = max(pair, key=["five", "ten", "twenty"].index)
        votes.add("num_inference_steps", pair, "ab"[pair.index(better)])
    assert {seen.count(pair) for pair in set(seen)} == {20} and len(orders) == 6
    rates = votes.rates("num_inference_steps")
    assert [(rate.value, rate.wins, rate.losses) for rate in rates] == [(20, 40, 0), (10, 20, 20), (5, 0, 40)]
    assert [rate.better for rate in rates] == [True, False, False]
    library.delete("five")
    assert [rate.value for rate in votes.rates("num_inference_steps")] == [20, 10, 5], "what was judged stays judged"
    with pytest.raises(RequestError, match="was deleted"):
        votes.add("num_inference_steps", ("five", "ten"), "a")
    with pytest.raises(RequestError, match="one of a, b, tie"):
        votes.add("num_inference_steps", ("ten", "twenty"), "c")


def test_ties_and_retracted_votes(library: Library) -> None:
    add(library, "one", guidance_scale=3)
    add(library, "two", guidance_scale=6)
    votes = Votes(library.db, library)
    votes.add("guidance_scale", ("one", "two"), "tie")
    votes.retract(votes.add("guidance_scale", ("one", "two"), "a"))
    assert [(rate.wins, rate.losses, rate.ties, rate.share) for rate in votes.rates("guidance_scale")] == [(0, 0, 1, None)] * 2


def test_better_is_marked_only_if_the_interval_says_so() -> None:
    assert not Rate("x", 3, 0, 0).better and Rate("x", 4, 0, 0).better
    assert "better</span>" not in render_verdict("sampler", None, [Rate("ddim", 3, 0, 1), Rate("euler", 0, 3, 1)], 4)
    assert render_verdict("sampler", None, [Rate("ddim", 9, 0, 1), Rate("euler", 0, 9, 1)], 10).count("better</span>") == 1


def test_a_blind_pair_gives_nothing_away(library: Library) -> None:
    videos = [add(library, "one", guidance_scale=3), add(library, "two", guidance_scale=6)]
    assert [video["label"] for video in player_value(videos, None)["videos"]] == ["A · guidance 3", "B · guidance 6"]
    assert "guidance" not in str(blind_value(videos))
    assert not set(TEMPLATE) & set("{}`\\"), "Gradio would read them as a template"


def test_a_database_of_the_first_version_gets_the_votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "studio.db"
    with monkeypatch.context() as old:
        old.setattr(db, "SCHEMA", db.SCHEMA[:1])
        Database(path).close()
    new = Database(path)
    assert new.version("votes") == 1 and new.read("SELECT * FROM votes") == []
    new.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="newer version of the studio"):
        Database(path)


@pytest.fixture
def screen(tmp_path: Path):
    services = Services.open(tmp_path / "data", start_worker=False)
    for index, steps in enumerate((5, 10, 15, 20, 25)):
        add(services.library, f"v{index}", num_inference_steps=steps)
    yield Screen(services)
    services.close()


def test_choosing_and_ordering(screen: Screen) -> None:
    session = Session()
    for id in ("v0", "v1", "v1", "v2", "v3"):
        assert screen.act(session, "compare", id)
    assert session.compared == ("v0", "v1", "v2", "v3") and session.undo[0] == "Added to the comparison: 4 of 4."
    screen.act(session, "compare", "v4")
    assert session.compared == ("v0", "v1", "v2", "v3") and "Take one out" in session.undo[0]
    screen.act(session, "compare-earlier", "v1")
    screen.act(session, "compare-remove", "v3")
    assert session.compared == ("v1", "v0", "v2") and session.undo is None
    screen.act(session, "compare", "v4")
    screen.act(session, "undo", "")
    assert session.compared == ("v1", "v0", "v2")
    screen.act(session, "compare-clear", "")
    assert session.compared == ()
    screen.act(session, "undo", "")
    assert session.compared == ("v1", "v0", "v2")
    assert not screen.act(session, "compare", "gone") and "deleted" in session.trouble
    screen.act(session, "compare-newest", "")
    assert session.compared == ("v3", "v4")
    walls = screen.services.walls
    wall = walls.get(walls.enqueue_grid(GenerationRequest("A ball.", seed=1), [Axis("seed", (1, 2, 3, 4, 5, 6))]))
    assert not screen.act(session, "compare-wall", wall.id) and "must be there to be compared" in session.trouble
    for cell in wall.cells[:5]:
        add(screen.services.library, cell)
    screen.act(session, "compare-wall", wall.id)
    assert session.compared == tuple(wall.cells[:4]) and session.undo[0] == "4 of its 6 videos are compared."
    screen.act(session, "undo", "")
    assert session.compared == ("v3", "v4")


def test_a_browser_brings_back_what_it_compared(screen: Screen) -> None:
    services = screen.services
    for kept, found in (("v1,v0", ("v1", "v0")), ("", ()), (None, ()), ("v1,gone,v1,,v2", ("v1", "v2")), ("v0,v1,v2,v3,v4", ("v0", "v1", "v2", "v3"))):
        session = Session()
        bring_back(services, session, kept)
        screen.paint(session)
        assert session.compared == found and f'data-compared="{",".join(found)}"' in session.sent["kept"]
    services.library.delete("v0")
    screen.paint(session)
    assert 'data-compared="v0,v1,v2,v3"' in session.sent["kept"], "it may be brought back from the trash"
    left = Session()
    bring_back(services, left, "v0,v1,v2,v3")
    assert left.compared == ("v1", "v2", "v3")
    bring_back(services, session, "v4")
    assert session.compared == ("v0", "v1", "v2", "v3"), "what was chosen meanwhile stays"
    coming, not_coming = services.queue.enqueue_many([GenerationRequest("a ball")] * 2)
    services.queue.cancel(not_coming)
    early = Session()
    bring_back(services, early, f"{coming},{not_coming},v1")
    assert early.compared == (coming, "v1"), "what is still to be made keeps its place"


def test_what_failed_says_so_and_is_tried_again_when_asked(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    session, comparisons, videos = Session(), screen.services.comparisons, [screen.services.library.get(id) for id in ("v0", "v1")]
    calls = []

    def failing(path):
        calls.append(path)
        raise VideoError("The disk was away")

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "read_video", failing)
        for id in ("v0", "v1"):
            screen.act(session, "compare", id)
        screen.paint(session)
        finished(lambda: comparisons.differences(videos)), finished(lambda: comparisons.measures(videos))
        for _ in range(3):  # by itself it is not
            screen.paint(session)
        facts = session.sent["facts"]
        assert len(calls) == 2 and "The differences cannot be shown. The disk was away" in facts and "The videos cannot be measured. The disk was away" in facts and "compare-again" in facts
        screen.act(session, "compare-remove", "v1")
        screen.act(session, "compare", "v1")
        assert finished(lambda: comparisons.differences(videos)).error and len(calls) == 3, "by opening it anew it is"
    screen.act(session, "compare-again", "")
    screen.paint(session)
    assert finished(lambda: comparisons.differences(videos)).result == [[0.0] * 6] and finished(lambda: comparisons.measures(videos)).result
    screen.paint(session)
    assert "compare-again" not in session.sent["facts"]


def test_the_player_is_drawn_again_only_when_its_videos_change(screen: Screen) -> None:
    session = Session()
    screen.act(session, "compare-newest", "")
    first = dict(zip(PANES, screen.paint(session), strict=True))
    assert [video["label"] for video in first["player"]["videos"]] == ["A · 20 steps", "B · 25 steps"]
    deadline = time.monotonic() + 60
    while "series" not in session.sent["player"] and time.monotonic() < deadline:
        screen.paint(session)
        time.sleep(0.05)
    assert session.sent["player"]["series"] == [[0.0] * 6]
    screen.services.queue.enqueue(request(prompt="meanwhile"))
    after = dict(zip(PANES, screen.paint(session), strict=True))
    assert isinstance(after["queue"], str) and after["player"] == gr.skip()
    screen.services.library.delete("v4")
    assert len(dict(zip(PANES, screen.paint(session), strict=True))["player"]["videos"]) == 1


def test_a_second_press_does_not_vote_on_an_unseen_pair(screen: Screen) -> None:
    session, votes = Session(), screen.services.votes
    screen.act(session, "blind-open", "")
    screen.act(session, "blind", "num_inference_steps")
    pair = session.blind.pair
    vote = f"a,{pair[0]},{pair[1]}"
    screen.act(session, "vote", vote)
    assert votes.count("num_inference_steps") == 1 and session.blind.pair != pair
    screen.act(session, "vote", vote)
    assert votes.count("num_inference_steps") == 1
    screen.act(session, "undo", "")
    assert votes.count("num_inference_steps") == 0


def test_videos_are_measured_in_the_background_and_the_better_one_is_marked(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 255, (1, 32, 32, 3), dtype=np.uint8), 6, 0)
    flickering = (still // 2 + (60 * (np.arange(6) % 2)).astype(np.uint8)[:, None, None, None]).astype(np.uint8)
    for name, frames in (("still", still), ("flickering", flickering)):
        save_video(frames, tmp_path / "one.mp4", 6)
        services.library.add(name, request(), tmp_path / "one.mp4", faults=faults(frames))
    videos = [services.library.get(name) for name in ("still", "flickering")]
    assert [video.faults for video in videos] == ["stands still", "flickers"] and services.library.faults() == {"still": "stands still", "flickering": "flickers"}
    work = finished(lambda: services.comparisons.measures(videos))
    first, second = work.result
    assert first == measure(read_video(videos[0].path)) and second["flicker"] > 50 and second["psnr"] < 30 and "psnr" not in first
    html = render_facts(videos, None, None, work)
    row = next(row for row in html.split("<tr>") if "Flicker, levels" in row)
    assert row.index("better") < row.index("</td>") and "PSNR to A" in html and html.count("SSIM") == 1
    assert ("Flicker, levels", "0") in measured_facts(finished(lambda: services.comparisons.measures(videos[:1])))
    session, screen = Session(selected="flickering", details=True), Screen(services)
    screen.paint(session)
    assert "This video flickers." in session.sent["viewer"] and "flickers" in session.sent["gallery"]
    newest = services.library.list()
    assert services.comparisons.measured_each(newest).count(None) == 1  # the second by itself is begun here
    finished(lambda: services.comparisons.measures([videos[1]]))
    assert {video.id: values["flicker"] for video, values in zip(newest, services.comparisons.measured_each(newest))} == {"still": 0, "flickering": second["flicker"]}
    for order, names in (("flicker", ["flickering", "still"]), ("-flicker", ["still", "flickering"])):
        session.table, session.table_order = True, order
        screen.paint(session)
        assert re.findall('<tr data-slot="(.*?)">', session.sent["gallery"]) == names and f'data-id="{"" if order[0] == "-" else "-"}flicker"' in session.sent["gallery"]
    services.close()


def test_clip_looks_at_compared_videos_once_its_weights_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP of random weights, through the process that looks at the videos with the real ones."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    services = Services.open(tmp_path / "data", start_worker=False)
    for name, seed in (("one", 0), ("two", 1)):
        frames = np.repeat(np.random.default_rng(seed).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8), 4, 0)
        save_video(frames, tmp_path / "one.mp4", 6, {"prompt": "a red ball"})
        services.library.add(name, request(), tmp_path / "one.mp4")
    videos = [services.library.get(name) for name in ("one", "two")]
    before = measures_file(videos)
    without = finished(lambda: services.comparisons.measures(videos))
    assert "clip_text" not in without.result[0] and "not installed: hf download" in render_facts(videos, None, None, without)
    (cache / "models--someone--clip" / "refs").mkdir(parents=True)
    (cache / "models--someone--clip" / "refs" / "main").write_text("abc")
    tiny_clip(cache / "models--someone--clip" / "snapshots" / "abc")
    assert measures_file(videos) != before
    with monkeypatch.context() as patch:
        patch.setattr(comparison.sys, "executable", "false")
        assert clip_measures(videos) == [{}, {}]  # why is in the log, and the other figures are there
    told = clip_measures(videos)
    assert all(figures["clip_consistency"] == pytest.approx(1, abs=0.02) and -1 <= figures["clip_text"] <= 1 for figures in told)
    assert told[0]["clip_text"] != told[1]["clip_text"]
    work = Work(1.0, [figures | more for figures, more in zip(without.result, told)])
    assert "Fits its prompt (CLIP)" in (html := render_facts(videos, None, None, work)) and "not installed" not in html
    services.close()


@pytest.mark.parametrize("values, better, best", [([1.0, 2.0], "higher", 1), ([1.0, 2.0], "lower", 0), ([1.0, 1.01], "lower", None), ([None, 2.0], "lower", None), ([3.0, 1.0], None, None), ([0.0, 0.0, 5.0], "lower", None), ([2.0, None, 0.5], "lower", 2)])
def test_the_better_value_is_clearly_better(values, better, best) -> None:
    assert best_of(values, better) == best


def test_a_long_measuring_ends_when_the_studio_does(tmp_path: Path) -> None:
    services = Services.open(tmp_path / "data", start_worker=False)
    save_video(np.random.default_rng(0).integers(0, 255, (90, 480, 640, 3), dtype=np.uint8), tmp_path / "one.mp4", 6)
    services.library.add("long", request(num_frames=90, height=480, width=640), tmp_path / "one.mp4")
    services.comparisons.measures([services.library.get("long")])
    time.sleep(1.0)
    began = time.monotonic()
    services.close()
    assert time.monotonic() - began < 15  # all of it would take a minute


def test_smooth_playback_is_made_while_the_page_goes_on(screen: Screen) -> None:
    session = Session(selected="v3")
    screen.act(session, "smooth", "")
    screen.paint(session)
    assert "frames are being put in between" in session.sent["viewer"] and "v3.mp4" in session.sent["viewer"]
    finished(lambda: screen.services.comparisons.smoothed(screen.services.library.get("v3")))
    screen.paint(session)
    assert "v3-24fps.mp4" in session.sent["viewer"] and 'data-fps="24"' in session.sent["viewer"] and "post-processed" in session.sent["viewer"]

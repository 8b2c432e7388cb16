"""Grids and drafts: what they queue, and in which order they are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.types import GenerationRequest, RequestError
from studio.db import Database
from studio.queue import Queue
from studio.walls import EXAMPLES, FIELDS, MAX_CELLS, Axis, Walls, drafts, grid, parse_axis

BASE = GenerationRequest(prompt="A red ball.", seed=5, num_inference_steps=20)


@pytest.fixture
def walls(tmp_path: Path) -> Walls:
    db = Database(tmp_path / "studio.db")
    return Walls(db, Queue(db))


def test_a_preset_comes_with_all_that_it_decides_but_for_what_another_axis_varies() -> None:
    made = grid(BASE, [parse_axis("guidance_scale", "2, 4"), parse_axis("preset", "nano-4s, nano-192-4s, 128-20s")])
    assert [(one.preset, one.width, one.num_frames, one.sampler, one.guidance_scale) for one in made] == [
        ("nano-4s", 128, 24, "dpm++2m", 2.0), ("nano-4s", 128, 24, "dpm++2m", 4.0),
        ("nano-192-4s", 192, 24, "dpm++2m", 2.0), ("nano-192-4s", 192, 24, "dpm++2m", 4.0),
        ("128-20s", 128, 120, "ddim", 2.0), ("128-20s", 128, 120, "ddim", 4.0),
    ]  # fmt: skip
    with pytest.raises(RequestError, match="no preset 'nano-5s'. Did you mean 'nano-"):
        grid(BASE, [parse_axis("preset", "nano-5s")])


@pytest.mark.parametrize(
    ("field", "text", "values"),
    [
        ("seed", "1..4", (1, 2, 3, 4)),
        ("seed", "7, 9,7", (7, 9)),
        ("seed", "1482938411..1482938413", (1482938411, 1482938412, 1482938413)),
        ("seed", "9223372036854775806..9223372036854775807", (2**63 - 2, 2**63 - 1)),
        ("guidance_scale", "0..0.3:0.1", (0.0, 0.1, 0.2, 0.3)),
        ("guidance_scale", "2..8:2, 12", (2.0, 4.0, 6.0, 8.0, 12.0)),
        ("guidance_scale", "1..2:0.5", (1.0, 1.5, 2.0)),
        ("sampler", "ddim, dpm++2m", ("ddim", "dpm++2m")),
        ("prompt", 'red, blue, "dark, deep green"', ("red", "blue", "dark, deep green")),
        ("negative_prompt", ", blurry", ("", "blurry")),
        ("loras", 'cars@0..1:0.5, "cars, snow@2", snow', ("cars@0", "cars@0.5", "cars@1", "cars, snow@2", "snow")),
    ],
)
def test_values_are_read(field: str, text: str, values: tuple) -> None:
    assert parse_axis(field, text) == Axis(field, values)


@pytest.mark.parametrize("field", FIELDS)
def test_the_examples_of_values_make_a_grid(field: str) -> None:
    base = BASE.replace(start_from="clip.mp4", strength=0.5 if field == "strength" else None) if field in ("start_frames", "strength") else BASE
    axis = parse_axis(field, EXAMPLES[field])
    assert [getattr(request, field) for request in grid(base, [axis])] == list(axis.values) or field == "prompt"


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("seed", "", "Seed has no values"),
        ("seed", "a", "seed is 'a'; it must be a whole number"),
        ("seed", "4..1", "must go upwards"),
        ("seed", "1..1000", f"at most {MAX_CELLS} values"),
        ("seed", "1..4:0", "must go upwards"),
        ("loras", "cars@2..1", "must go upwards"),
        ("prompt", "red", "add what comes in its place"),
        ("start_from", "a.png", "cannot vary"),
    ],
)
def test_what_cannot_be_read_is_refused(field: str, text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        parse_axis(field, text)


def test_the_first_axis_runs_along_a_row() -> None:
    made = grid(BASE, [parse_axis("guidance_scale", "2, 4"), parse_axis("prompt", "red, blue"), parse_axis("seed", "1, 2")])
    assert [(r.seed, r.prompt, r.guidance_scale) for r in made] == [
        (1, "A red ball.", 2.0), (1, "A red ball.", 4.0), (1, "A blue ball.", 2.0), (1, "A blue ball.", 4.0),
        (2, "A red ball.", 2.0), (2, "A red ball.", 4.0), (2, "A blue ball.", 2.0), (2, "A blue ball.", 4.0),
    ]  # fmt: skip
    assert {r.num_inference_steps for r in made} == {20}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([], "one to 3 axes"),
        ([("seed", "1"), ("seed", "2")], "same setting"),
        ([("seed", "1..20"), ("eta", "0..1:0.1")], "220 videos"),
        ([("prompt", "green, blue")], "'green' is not in the prompt"),
        ([("height", "80, 81")], "height is 81"),
        ([("sampler", "dimm")], "There is no sampler 'dimm'"),
    ],
)
def test_a_grid_that_cannot_be_made_is_refused_whole(walls: Walls, axes: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        walls.enqueue_grid(BASE, [parse_axis(*axis) for axis in axes])
    assert walls.queue.list() == []


def test_a_wall_is_found_again_by_its_requests(walls: Walls) -> None:
    axes = (parse_axis("seed", "1, 2"), parse_axis("guidance_scale", "2, 4"))
    id = walls.enqueue_grid(BASE, axes)
    wall = Walls(walls.db, walls.queue).get(id)
    assert (wall.axes, wall.full_steps) == (axes, None)
    assert [(walls.queue.get(cell).request.guidance_scale, walls.queue.get(cell).request.seed) for cell in wall.cells] == [(2, 1), (2, 2), (4, 1), (4, 2)]
    assert {walls.of(cell) for cell in wall.cells} == {id}
    assert walls.of(walls.queue.enqueue(BASE)) is None and walls.get("none") is None


def test_a_part_of_a_longer_word_is_not_replaced() -> None:
    made = grid(BASE.replace(prompt="A red, blurred ball: C++ red."), [parse_axis("prompt", "red, dark blue")])
    assert [r.prompt for r in made] == ["A red, blurred ball: C++ red.", "A dark blue, blurred ball: C++ dark blue."]
    with pytest.raises(RequestError, match="not as a part of a longer word"):
        grid(BASE.replace(prompt="A blurred ball."), [parse_axis("prompt", "red, blue")])


def test_picked_drafts_are_made_in_full_from_the_same_noise(walls: Walls) -> None:
    wall = walls.get(walls.enqueue_drafts(BASE, 3, steps=4))
    made = [walls.queue.get(cell).request for cell in wall.cells]
    assert [(r.seed, r.num_inference_steps) for r in made] == [(5, 4), (6, 4), (7, 4)]
    full = [walls.queue.get(id).request for id in walls.enqueue_full(wall.id, [wall.cells[2], "not of this wall", wall.cells[0]])]
    assert full == [made[2].replace(num_inference_steps=20), made[0].replace(num_inference_steps=20)]
    with pytest.raises(RequestError, match="Tick the drafts"):
        walls.enqueue_full(wall.id, [])


@pytest.mark.parametrize(("count", "steps", "words"), [(1, 4, "number of drafts is 1"), (4, 20, "fewer than the full run's 20"), (4, 0, "A draft of 0 steps")])
def test_drafts_that_are_none_are_refused(count: int, steps: int, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        drafts(BASE, count, steps)

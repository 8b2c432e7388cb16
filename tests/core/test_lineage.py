"""Whose presets a model has that was converted or trained here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core import GenerationRequest
from core.convert import SOURCE_FILE
from core.lineage import base_model
from core.provenance import TRAINED


def model(data_dir: Path, name: str, **files: object) -> str:
    """A model folder of which only what it tells of itself is there; ``files`` by ``source`` or ``trained``."""
    folder = data_dir / "models" / name
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    for kind, told in files.items():
        (folder / {"source": SOURCE_FILE, "trained": TRAINED}[kind]).write_text(told if isinstance(told, str) else json.dumps(told))
    return name


def test_a_converted_release_has_the_presets_of_the_release(tmp_path: Path) -> None:
    name = model(tmp_path, "128-v0", source={"checkpoint": "128-v0.pt"})
    request = GenerationRequest("a", model=name).resolved(tmp_path)
    assert base_model(name, tmp_path) == "TencentARC/Mira-v0:128" and request.model == name
    assert (request.preset, request.num_frames, request.sampler, request.num_inference_steps, request.guidance_scale) == ("128-20s", 120, "ddim", 50, 12.0)
    assert GenerationRequest("a", model=name, num_frames=121).resolved(tmp_path).window_frames == 120


def test_a_trained_model_has_the_presets_of_the_one_that_it_began_with_however_often(tmp_path: Path) -> None:
    model(tmp_path, "128-v0", source={"checkpoint": "128-v0.pt"})
    first = model(tmp_path, "first-step-9", trained={"model": "mira-nano"})
    assert base_model(model(tmp_path, "second-step-9", trained={"model": first}), tmp_path) == "mira-nano"
    assert GenerationRequest("a", model="second-step-9").resolved(tmp_path).preset == "nano-4s"
    assert base_model(model(tmp_path, "third-step-9", trained={"model": "128-v0"}), tmp_path) == "TencentARC/Mira-v0:128"
    assert base_model(str(tmp_path / "models" / "third-step-9"), tmp_path) == "TencentARC/Mira-v0:128"
    assert base_model(model(tmp_path, "orphan", source={"checkpoint": "384-v0.pt"}, trained={"model": "gone"}), tmp_path) == "TencentARC/Mira-v0:384", "a copy of what its base was made of lies in its folder"
    assert base_model(model(tmp_path, "odd", trained={"model": "odd"}), tmp_path) == "odd"


@pytest.mark.parametrize("told", ["", "[]", "3", '{"model": 7}', '{"model": null}', "\udcff"])
def test_a_folder_that_tells_nothing_is_its_own_beginning(tmp_path: Path, told: str) -> None:
    name = model(tmp_path, "mine", source={"checkpoint": "mine.pt"}, trained=told.encode("utf-8", "surrogateescape").decode("latin-1"))
    assert base_model(name, tmp_path) == name
    for unusable in ("nowhere", "", "a\x00b", "\ud800", "x" * 5000):
        assert base_model(unusable, tmp_path) == unusable


def test_a_name_that_is_given_to_another_model_has_that_ones_presets(tmp_path: Path) -> None:
    name = model(tmp_path, "mine", trained={"model": "mira-nano"})
    assert base_model(name, tmp_path) == "mira-nano"
    (tmp_path / "models" / "mine" / TRAINED).unlink()
    assert base_model(name, tmp_path) == "mine"
    (tmp_path / "models" / "mine" / SOURCE_FILE).write_text(json.dumps({"checkpoint": "128-v0.pt"}))
    assert base_model(name, tmp_path) == "TencentARC/Mira-v0:128"

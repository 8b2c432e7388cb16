"""What files and videos bring into the form."""

from __future__ import annotations

from pathlib import Path

from core.lineage import SOURCE_FILE
from core.presets import presets_for
from core.types import GenerationRequest
from studio.tabs.form import FIELDS, as_it_was, fill, preset_choices
from studio.tabs.start_form import without_strange_start


def test_a_start_of_another_studio_is_dropped_and_said(tmp_path: Path) -> None:
    made = GenerationRequest(prompt="a ball", start_from="/home/other/data/videos/sea.mp4", start_frames=4, num_frames=8)
    request, words = without_strange_start(made, tmp_path)
    assert (request.start_from, request.start_frames, request.num_frames) == (None, None, 8) and "sea.mp4 of another studio" in words
    own = made.replace(start_from=str(tmp_path / "videos" / "sea.mp4"))
    assert without_strange_start(own, tmp_path) == (own, "")


def test_a_converted_model_is_shown_with_its_releases_presets(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "128-v0"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / SOURCE_FILE).write_text('{"checkpoint": "128-v0.pt"}')
    assert [name for _, name in preset_choices("128-v0", tmp_path)] == [preset.name for preset in presets_for("TencentARC/Mira-v0:128")]
    shown = fill(GenerationRequest("a ball", model="128-v0").resolved(tmp_path), tmp_path)
    assert (shown["preset"]["value"], shown["sampler"], shown["num_inference_steps"]) == ("128-20s", "ddim", 50)


def test_the_form_comes_back_as_it_was(tmp_path: Path) -> None:
    request = GenerationRequest("a ball", guidance_scale=25).resolved(tmp_path)
    again = as_it_was([getattr(request, name) for name in FIELDS], tmp_path)
    assert again["prompt"] == "a ball" and again["preset"]["value"] == request.preset
    assert again["guidance_scale"]["value"] == again["guidance_scale"]["maximum"] == 25
    assert as_it_was([{"preset": "gone"}.get(name, getattr(request, name)) for name in FIELDS], tmp_path)["preset"]["value"] is None

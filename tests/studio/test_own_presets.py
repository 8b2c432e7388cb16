"""The user's own presets: kept under a name, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.types import GenerationRequest, RequestError
from studio.own_presets import MAX_NAME_CHARS, OwnPresets

SETTINGS = GenerationRequest(prompt="never kept", negative_prompt="blur", guidance_scale=7.5, num_frames=12, seed=4, quality="balanced", weights="8bit", text_placement="cpu", loras="snow@0.5", decode_chunk_frames=10).resolved()


@pytest.fixture
def presets(tmp_path: Path) -> OwnPresets:
    return OwnPresets(tmp_path / "presets.json")


def test_a_preset_comes_back_without_prompt_and_seed(presets: OwnPresets) -> None:
    assert presets.list() == []
    assert presets.save(" Soft ", SETTINGS) is None
    assert presets.save("another", SETTINGS.replace(guidance_scale=2.0)) is None
    assert OwnPresets(presets.path).list() == ["another", "Soft"]
    assert presets.get("Soft") == SETTINGS.replace(prompt="", seed=None)
    assert presets.save("Soft", SETTINGS.replace(num_inference_steps=9)).num_inference_steps == SETTINGS.num_inference_steps
    assert presets.get("Soft").num_inference_steps == 9


def test_strength_is_kept_for_the_next_source(presets: OwnPresets) -> None:
    presets.save("Soft", SETTINGS.replace(start_from="sources/a.png", strength=0.3))
    presets.save("Softer", SETTINGS.replace(strength=0.2))
    assert presets.get("Soft") == SETTINGS.replace(prompt="", seed=None, strength=0.3) and "sources" not in presets.path.read_text()
    assert presets.save("Soft", presets.delete("Softer")).strength == 0.3 and presets.get("Soft").strength == 0.2
    presets.save("Kept", SETTINGS.replace(start_from="sources/a.png", start_frames=1))
    assert presets.get("Kept") == SETTINGS.replace(prompt="", seed=None)
    with pytest.raises(RequestError, match="strength is 1.5"):
        presets.save("Odd", SETTINGS.replace(strength=1.5))


def test_a_deleted_preset_can_be_saved_again(presets: OwnPresets) -> None:
    presets.save("Soft", SETTINGS)
    kept = presets.delete("Soft")
    assert presets.list() == []
    with pytest.raises(RequestError, match="no preset of your own called 'Soft'"):
        presets.get("Soft")
    presets.save("Soft", kept)
    assert presets.get("Soft") == SETTINGS.replace(prompt="", seed=None)


@pytest.mark.parametrize("name", ["", "  ", "x" * (MAX_NAME_CHARS + 1), "a\nb"])
def test_a_name_must_be_one(presets: OwnPresets, name: str) -> None:
    with pytest.raises(RequestError, match="Type a name"):
        presets.save(name, SETTINGS)


def test_settings_that_cannot_be_used_are_not_kept(presets: OwnPresets) -> None:
    with pytest.raises(RequestError, match="height is 33"):
        presets.save("bad", SETTINGS.replace(height=33))
    assert presets.list() == []


def test_merging_checks_everything_first(presets: OwnPresets, tmp_path: Path) -> None:
    presets.save("Soft", SETTINGS)
    other = OwnPresets(tmp_path / "other.json")
    other.save("Hard", SETTINGS)
    with pytest.raises(RequestError, match="'Odd': 'stepz' is not a setting"):
        other.merge(presets.to_dict() | {"Odd": {"stepz": 1}})
    assert other.list() == ["Hard"]
    before = other.merge(presets.to_dict() | {"Hard": {"num_frames": 8}})
    assert other.list() == ["Hard", "Soft"] and other.get("Hard").num_frames == 8
    other.put_back(json.loads(json.dumps(before)))
    assert other.list() == ["Hard"] and other.get("Hard").num_frames == SETTINGS.num_frames


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', json.dumps({"a": {"steps": 1}})])
def test_a_broken_file_says_so_and_stays(presets: OwnPresets, text: str) -> None:
    presets.path.write_text(text)
    with pytest.raises(RequestError, match="presets.json"):
        presets.save("Soft", SETTINGS)
    assert presets.path.read_text() == text


def test_what_a_preset_leaves_out_is_filled_in(presets: OwnPresets) -> None:
    presets.path.write_text(json.dumps({"Short": {"num_frames": 8}}))
    found = presets.get("Short")
    assert (found.num_frames, found.guidance_scale, found.height, found.seed) == (8, SETTINGS.replace(guidance_scale=None).resolved().guidance_scale, 80, None)
    assert (found.temporal_guidance_scale, found.guidance_stop) == (0, 1), "as before there was such a thing"

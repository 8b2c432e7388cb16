"""Toy World: clips, captions, the detector that reads them back, and the folder of clips."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import save_tiny_model
from training.toyworld import HELD_OUT_PAIRS, VOCABULARY, captions, detect, parse_caption, render, sample_spec, score
from training.toyworld.__main__ import main
from training.toyworld.captions import direction_spans, object_spans
from training.toyworld.evaluate import Report, check, degrade, evaluate, still_change
from training.toyworld.folder import write_folder
from training.toyworld.prior import Prior, compare_means
from training.toyworld.scene import BACKGROUNDS


@pytest.mark.parametrize("blur", [False, True])
def test_detector_reads_fresh_clips(blur):
    """A quick sample of what `python -m training.toyworld check` measures: at most one of thirty wrong, per attribute."""
    clips = 30
    report = check(clips, blur=blur, seed=20 + blur)
    for name, entry in report.attributes.as_dict().items():
        assert entry["n"] == clips
        assert entry["n"] - entry["right"] <= 1, (name, entry)


def test_detector_tells_a_wrong_clip():
    rng = np.random.default_rng(0)
    spec = sample_spec(rng, motion="moves right", camera="still")
    backwards = render(spec)[::-1]
    marks = score(spec, backwards)
    assert not marks["motion"] and not marks["all"]
    assert marks["color"] and marks["shape"] and marks["size"] and marks["background"]


def test_means_are_compared_by_what_changes():
    clip = torch.randn(4, 6, 2, 3, generator=torch.Generator().manual_seed(0))
    assert compare_means(clip, clip) == Prior(pytest.approx(1), pytest.approx(1), 0)
    again = compare_means(clip.mean(1, keepdim=True) - 2 * (clip - clip.mean(1, keepdim=True)), clip)
    assert (again.likeness, again.size) == (pytest.approx(-1), pytest.approx(2)) and again.error > 1
    assert compare_means(clip, torch.ones(4, 6, 2, 3)).size == float("inf")


SAME_WORDS = {
    ("A big red ball hits a small blue box over the sea.", "A small blue box hits a big red ball over the sea."): ("big", "red", "ball", "small", "blue", "box"),
    ("A big red ball moves left over the sea. The camera pans right.", "A big red ball moves right over the sea. The camera pans left."): ("left", "right", "moves", "pans"),
}


@pytest.mark.parametrize("texts, asked", SAME_WORDS.items(), ids=("who hits whom", "who goes left"))
def test_mira_nanos_text_encoder_tells_captions_of_the_same_words_apart(texts, asked):
    """Two objects, or the object and the camera, have changed places: the states of what belongs to them differ, and not by a little."""
    from transformers import AutoTokenizer, T5EncoderModel

    nano = Path(__file__).parents[2] / "assets/models/mira-nano"
    tokenizer, encoder = AutoTokenizer.from_pretrained(nano / "tokenizer"), T5EncoderModel.from_pretrained(nano / "text_encoder", dtype=torch.float32)
    ids = tokenizer(list(texts), padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        states = encoder(input_ids=ids).last_hidden_state
    for word in asked:
        first, second = (state[row == tokenizer.convert_tokens_to_ids(word)] for row, state in zip(ids, states))
        assert len(first) == len(second) == 1 and (first - second).norm() > 0.2 * first.norm(), word


def test_mira_nano_knows_from_the_words_alone_which_way_is_likely(capsys):
    assert main(["prior", "--clips", "24", "--noises", "1"]) == 0
    likeness = {line[:24].strip(): float(line[24:33]) for line in capsys.readouterr().out.splitlines()[1:]}
    assert all(likeness[motion] > 0.5 for motion in ("moves left", "moves right", "rises", "falls")), likeness


@pytest.mark.parametrize("name", ["black", "white", "noise", "one frame", "tiny"])
def test_detector_survives_anything(name):
    rng = np.random.default_rng(1)
    frames = {
        "black": np.zeros((8, 80, 128, 3), np.uint8),
        "white": np.full((8, 80, 128, 3), 255, np.uint8),
        "noise": rng.integers(0, 256, (8, 80, 128, 3), dtype=np.uint8),
        "one frame": rng.integers(0, 256, (1, 40, 64, 3), dtype=np.uint8),
        "tiny": rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8),
    }[name]
    found = detect(frames)
    assert found.track.shape == (len(frames), 2)
    if name in ("black", "white"):
        assert found.color is None and found.motion is None


def test_detector_names_a_wrong_array():
    with pytest.raises(ValueError, match="uint8"):
        detect(np.zeros((8, 80, 128, 3), np.float32))


def test_captions_parse_back():
    rng = np.random.default_rng(2)
    for i in range(300):
        spec = sample_spec(rng, held_out=i % 5 == 0)
        texts = captions(spec, rng)
        found = parse_caption(texts["short_caption"])
        assert found == {name: getattr(spec, name) for name in found}
        words = "".join(c if c.isalpha() else " " for c in texts["dense_caption"].lower()).split()
        assert set(words) <= set(VOCABULARY)
    assert parse_caption("a dog runs") is None


def test_the_words_of_each_object_are_found_in_any_caption():
    rng = np.random.default_rng(6)
    for _ in range(300):
        spec = sample_spec(rng)
        colors = [spec.color, spec.second_color][: 2 if spec.motion == "hits" else 1]
        for text in (captions(spec, rng)[name] for name in ("short_caption", "dense_caption")):
            assert [text[start:end].split()[1] for start, end in object_spans(text)] == colors, text


def test_the_directions_of_object_and_camera_are_found_in_any_caption():
    rng = np.random.default_rng(7)
    for _ in range(300):
        spec = sample_spec(rng)
        for text in (captions(spec, rng)[name] for name in ("short_caption", "dense_caption")):
            for spans, side in zip(direction_spans(text), (spec.motion, spec.camera)):
                words = [text[start:end] for start, end in spans]
                direction = side.split()[-1] if side.startswith(("moves", "pans")) else None
                assert words[-1:] == [direction] * (direction is not None), text


def test_held_out_pairs_are_never_drawn_for_training():
    rng = np.random.default_rng(3)
    for _ in range(3000):
        spec = sample_spec(rng)
        assert not {(spec.color, spec.shape), (spec.second_color, spec.second_shape)} & HELD_OUT_PAIRS
    assert {(s.color, s.shape) for s in (sample_spec(rng, held_out=True) for _ in range(100))} == HELD_OUT_PAIRS


@pytest.mark.parametrize("camera", ["still", "pans left", "zooms in"])
def test_a_part_of_the_frames_equals_the_full_render(camera):
    spec = sample_spec(np.random.default_rng(4), motion="circles", camera=camera)
    assert np.array_equal(render(spec, [0, 7, 23]), render(spec)[[0, 7, 23]])


@pytest.mark.parametrize("background, darkest, lightest", [("the sea", -0.13, 0.0), ("the night", 0.0, 0.16)])
@pytest.mark.parametrize("camera", ["still", "pans left", "zooms in"])
def test_some_marks_are_always_in_view_and_none_plainer_where_they_overlap(background, darkest, lightest, camera):
    for seed in range(6):
        spec = sample_spec(np.random.default_rng(seed), motion="stays still", background=background, camera=camera)
        for frame in render(spec)[::8] / 255:
            ground = frame[int(0.7 * spec.height) :] - BACKGROUNDS[background][2]
            marks = ground[np.ptp(ground, axis=-1) < 0.01]
            assert darkest - 0.003 <= marks.min() and marks.max() <= lightest + 0.003
            assert 0.01 < (np.abs(marks[:, 0]) > 0.1).mean() < 0.4


def test_blur_changes_the_clip_but_keeps_its_form():
    rng = np.random.default_rng(5)
    frames = render(sample_spec(rng))
    soft = degrade(frames, rng)
    assert soft.shape == frames.shape and soft.dtype == np.uint8 and not np.array_equal(soft, frames)


def test_report_counts_right_and_wrong():
    rng = np.random.default_rng(6)
    spec = sample_spec(rng, motion="leaves and returns")
    report = Report()
    report.add(spec, render(spec))
    report.add(spec, np.zeros((24, 80, 128, 3), np.uint8))
    counts = report.as_dict()
    assert counts["attributes"]["all"] | {"interval95": 0} == {"share": 0.5, "right": 1, "n": 2, "interval95": 0}
    assert counts["traits"]["object consistency"]["right"] == 1 and counts["length"] is None
    assert counts["motions"] == counts["wholly"] and counts["confusions"] == {"leaves and returns": {"none of them": 1}}
    assert "object consistency" in report.table()


@pytest.mark.parametrize("camera, motion", [("zooms in", "circles"), ("still", "hits")])
def test_length_is_what_the_last_quarter_still_shows(camera, motion):
    """Whole, another colour at the end, and gone at the end; a zoom does not make a small thing big."""
    spec = sample_spec(np.random.default_rng(8), num_frames=60, motion=motion, camera=camera)
    whole, report = render(spec), Report()
    other = render(replace(spec, color=next(c for c in ("red", "blue", "green") if c not in (spec.color, spec.second_color))))
    for frames in (whole, np.concatenate([whole[:45], other[45:]]), np.concatenate([whole[:45], np.full_like(whole[:15], 200)])):
        report.add(spec, frames)
    assert report.traits.counts["first quarter"] == [3, 3] and report.traits.counts["last quarter"] == [1, 3] and report.length == pytest.approx(1 / 3)


def test_an_evaluation_goes_on_where_it_stopped_and_makes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = str(save_tiny_model(tmp_path / "model"))
    quality = tmp_path / "docs" / "quality"
    small = dict(seed=5, split="heldout", num_frames=2, height=32, width=48, batch_size=2, num_inference_steps=1)
    evaluate(model, 3, json_file=tmp_path / "once.json", **small)
    evaluate(model, 2, json_file=quality / "twice.json", **small)
    made = (quality / "twice-0.webp").stat().st_mtime_ns
    evaluate(model, 3, json_file=quality / "twice.json", **small)
    once, twice = (json.loads(file.read_text()) for file in (tmp_path / "once.json", quality / "twice.json"))
    assert once == twice and once["clips"] == 3 and (quality / "twice-0.webp").stat().st_mtime_ns == made
    assert {(row["asked"]["color"], row["asked"]["shape"]) for row in once["rows"]} <= HELD_OUT_PAIRS and [row["seed"] for row in once["rows"]] == [5, 6, 7]
    assert (once["settings"]["guidance_stop"], once["settings"]["temporal_guidance_scale"]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="seed was 5 and is 6"):
        evaluate(model, 3, json_file=quality / "twice.json", **small | {"seed": 6})
    with pytest.raises(ValueError, match="model_hash"):
        save_tiny_model(tmp_path / "model", seed=1)
        evaluate(model, 4, json_file=quality / "twice.json", **small)

    assert main(["page", "--docs", str(tmp_path)]) == 2 and "There are no figures" in capsys.readouterr().err
    assert main(["check", "--clips", "1", "--seed", "3", "--json", str(quality / "detector.json")]) == 0
    assert main(["reconstruct", "--model", model, "--clips", "1", "--num-frames", "2", "--height", "32", "--width", "48", "--json", str(quality / "vae.json")]) == 0
    assert main(["page", "--docs", str(tmp_path / "docs")]) == 0
    page = (tmp_path / "docs" / "quality.md").read_text()
    assert f"--model {model} --split heldout --clips 3 --seed 5 --num-frames 2 --height 32 --width 48 --num-inference-steps 1" in page
    assert "](quality/twice-0.webp)" in page and "toyworld check --clips 1 --seed 3" in page and "PSNR" in page
    with Image.open(quality / "twice-0.webp") as strip:
        assert strip.size == (8 * 48 + 7 * 2, 32)


def test_still_regions_are_those_far_from_what_moves():
    frames = np.zeros((3, 40, 60, 3), np.uint8)
    frames[1:, 10:14, 10:14] = 255  # appears once
    flickering = np.zeros_like(frames)
    flickering[1] = 3
    assert still_change(frames, flickering) == pytest.approx(3)
    flickering[:, :, 30:] = 0
    assert 0 < still_change(frames, flickering) < 3
    assert still_change(np.random.default_rng(0).integers(0, 255, frames.shape, np.uint8), flickering) is None


def test_folder_goes_on_where_it_stopped(tmp_path):
    small = dict(num_frames=8, height=48, width=64)
    assert write_folder(tmp_path, 2, seed=7, **small) == 2
    (tmp_path / "videos" / "000001.mp4").unlink()
    first = (tmp_path / "videos" / "000000.mp4").stat().st_mtime_ns
    assert write_folder(tmp_path, 3, seed=7, **small) == 2
    assert (tmp_path / "videos" / "000000.mp4").stat().st_mtime_ns == first
    rows = list(csv.DictReader((tmp_path / "metadata.csv").open(encoding="utf-8")))
    assert [r["file_path"] for r in rows] == [f"videos/{i:06d}.mp4" for i in range(3)]
    assert all((tmp_path / r["file_path"]).exists() and parse_caption(r["short_caption"]) for r in rows)
    with pytest.raises(ValueError, match="seed=7"):
        write_folder(tmp_path, 3, seed=8, **small)

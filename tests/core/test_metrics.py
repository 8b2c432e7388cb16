"""Each metric on videos made to have a known value: a still, a known shift, a known flicker, a known blur, a shuffled video."""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates, shift

from core import save_video
from core.learned_metrics import AESTHETIC_MISSING, CLIP_FILE, CLIP_MISSING, CLIP_MODEL, CLIP_REPO, LPIPS_MISSING, Clip, ClipScorer, clip_files, installed_clip, known_clip, lpips_distance
from core.metrics import METRICS, Frames, _print_rows, compare, cuts, faults, main, measure, psnr, ssim
from core.video_io import VideoError, read_video
from tiny import tiny_clip

SIZE = (72, 96)


def texture(seed=0, size=(160, 200), sigma=1.5):
    """A grey picture full of corners, 0..255."""
    picture = gaussian_filter(np.random.default_rng(seed).normal(size=size), sigma)
    return 127 + 60 * picture / picture.std()


def coloured(grey):
    """[T, H, W] to uint8 [T, H, W, 3]."""
    return np.asarray(grey).clip(0, 255).round().astype(np.uint8)[..., None].repeat(3, -1)


def panned(right, down=0.0, count=10):
    """A camera that goes ``right`` and ``down`` so many pixels a frame over a textured plane."""
    return coloured([shift(texture(), (-down * t, -right * t), order=3, mode="nearest")[40:112, 40:136] for t in range(count)])


still = coloured([texture()[:72, :96]] * 8)


def test_a_still_does_nothing():
    values = measure(still)
    for name in ("motion_strength", "flicker", "warping_error", "scene_cuts", "loop_gap", "camera_right", "camera_down", "camera_zoom"):
        assert values[name] == pytest.approx(0, abs=5e-3), name
    for name in ("vbench_temporal_flickering", "sharpness_kept", "tracking_persistence", "matches_kept"):
        assert values[name] == pytest.approx(1), name
    assert values["epipolar_error"] < 0.01
    assert faults(still) == ["stands still"]


@pytest.mark.parametrize("right, down", [(1.5, 0.0), (-2.0, 0.0), (0.0, 1.0), (1.0, -1.5)])
def test_a_known_shift_is_measured_in_pixels(right, down):
    values = measure(panned(right, down))
    assert values["camera_right"] == pytest.approx(right, abs=0.05) and values["camera_down"] == pytest.approx(down, abs=0.05)
    assert values["camera_zoom"] == pytest.approx(0, abs=0.1)
    assert values["motion_strength"] == pytest.approx(np.hypot(right, down), rel=0.08)
    assert values["warping_error"] < 1e-3 and values["tracking_persistence"] > 0.4


@pytest.mark.parametrize("percent", [2.0, -1.5])
def test_a_known_zoom_is_measured_in_percent(percent):
    middle = np.array([79.5, 99.5])
    scales = [(1 + percent / 100) ** -t for t in range(8)]
    frames = coloured([affine_transform(texture(), np.eye(2) * s, middle - s * middle, order=3)[44:116, 52:148] for s in scales])
    assert measure(frames)["camera_zoom"] == pytest.approx(percent, abs=0.15)


def test_one_moving_object_is_not_the_camera():
    frames = still.copy()
    for t in range(len(frames)):
        frames[t, 20:40, 10 + 3 * t : 30 + 3 * t] = coloured([texture(5)[:20, :20]])[0]
    values = measure(frames)
    assert abs(values["camera_right"]) < 0.05 and 0.1 < values["motion_strength"] < 2


@pytest.mark.parametrize("levels", [3, 12])
def test_a_known_flicker_is_measured_in_grey_levels_and_fading_is_none(levels):
    base = texture()[:72, :96].clip(30, 180)
    assert measure(coloured([base + levels * (t % 2) for t in range(9)]))["flicker"] == pytest.approx(levels, abs=0.1)
    assert measure(coloured([base + levels * t for t in range(7)]))["flicker"] == pytest.approx(0, abs=0.01)
    assert ("flickers" in faults(coloured([base + levels * (t % 2) for t in range(9)]))) == (levels == 12)
    assert measure(coloured([base + levels * (t % 2) for t in range(9)]))["vbench_temporal_flickering"] == pytest.approx(1 - levels / 255, abs=1e-3)


def test_a_shuffled_video_is_worse_than_the_video():
    video = panned(1.5, count=12)
    shuffled = video[np.random.default_rng(3).permutation(12)]
    plain, mixed = measure(video), measure(shuffled)
    assert mixed["warping_error"] > 3 * plain["warping_error"] and mixed["tracking_persistence"] < plain["tracking_persistence"]
    assert mixed["vbench_temporal_flickering"] < plain["vbench_temporal_flickering"] and mixed["motion_strength"] > plain["motion_strength"]


def test_a_rigid_picture_keeps_to_its_epipolar_lines_and_a_wobbling_one_does_not():
    rigid = measure(panned(1.5, 0.5, count=9))
    assert rigid["epipolar_error"] < 0.25 and rigid["matches_kept"] > 0.9
    rng = np.random.default_rng(4)
    wobble = [[gaussian_filter(rng.normal(size=(72, 96)), 10) for _ in range(2)] for _ in range(9)]
    places = np.indices((72, 96), dtype=np.float64)
    frames = coloured([map_coordinates(texture(size=(72, 96)), places + 3 * np.array([w / w.std() for w in waves]), order=3, mode="nearest") for waves in wobble])
    loose = measure(frames)
    assert loose["matches_kept"] < rigid["matches_kept"] - 0.15 and loose["epipolar_error"] > rigid["epipolar_error"]
    assert measure(coloured(np.full((9, 72, 96), 90)))["epipolar_error"] is None


def test_blur_takes_sharpness_and_blur_that_grows_is_seen():
    blurred = coloured([gaussian_filter(texture()[:72, :96], 0.4 * t) for t in range(8)])
    values = measure(blurred)
    assert values["sharpness"] < 0.6 * measure(still)["sharpness"] and values["sharpness_kept"] < 0.2


def test_cuts_are_found_where_they_are():
    frames = np.concatenate([still, 255 - still, still])
    assert cuts(Frames(frames)) == [8, 16] and measure(frames)["scene_cuts"] == 2
    assert "jumps to another scene at frame 9, 17" in faults(frames)
    assert cuts(Frames(panned(2.0))) == []


def test_a_clip_that_ends_where_it_began_loops():
    there = panned(1.0, count=8)
    assert measure(np.concatenate([there, there[-2:0:-1]]))["loop_gap"] == pytest.approx(0, abs=0.2)
    assert measure(there)["loop_gap"] > 5


def test_blank_videos_are_named_and_short_ones_measured_as_far_as_they_go():
    assert faults(np.full((5, 32, 32, 3), 90, np.uint8)) == ["is blank"]
    alone = measure(still[:1])
    assert alone["sharpness"] > 0 and alone["scene_cuts"] == 0
    assert all(alone[name] is None for name in METRICS if name not in ("sharpness", "scene_cuts"))
    assert measure(np.zeros((3, 16, 16, 3), np.uint8))["tracking_persistence"] is None
    with pytest.raises(VideoError, match="uint8"):
        measure(still.astype(np.float32))


def test_psnr_is_its_formula_and_ssim_knows_equal_from_other():
    noisy = (still.astype(np.int16) + np.where(np.indices(still.shape).sum(0) % 2, 5, -5)).clip(0, 255).astype(np.uint8)
    assert psnr(still, noisy) == pytest.approx(np.array([10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)) for a, b in zip(still, noisy)]))
    assert np.isinf(psnr(still, still)).all() and ssim(still, still) == pytest.approx(np.ones(8))
    constant = np.full((1, 32, 32, 3), 100, np.uint8)
    brighter = np.full((1, 32, 32, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(constant, brighter) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))
    assert ssim(still, 255 - still).max() < 0
    assert compare(still, still) == {"psnr": 100, "ssim": 1.0}
    with pytest.raises(VideoError, match=r"\(8, 72, 96, 3\) and \(4, 72, 96, 3\)"):
        compare(still, still[:4])


def test_the_command_writes_a_table_json_and_csv(tmp_path, capsys):
    a = save_video(panned(1.0, count=6), tmp_path / "a.mp4", 6, {"prompt": "x"})
    b = save_video(still[:6], tmp_path / "b.mp4", 6)
    assert main([str(a), str(b), "--json", "--against", str(b)]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert {key: first[key] for key in METRICS} == measure(read_video(a)) and second["psnr"] == 100 and second["faults"] == ["stands still"]
    assert first["clip_text"] == CLIP_MISSING and first["aesthetic"] == AESTHETIC_MISSING and first["lpips"] == LPIPS_MISSING
    assert main([str(a), "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(row["motion_strength"]) == first["motion_strength"]
    assert main([str(a)]) == 0 and "Motion, px/frame" in capsys.readouterr().out
    assert main([str(tmp_path / "none.mp4")]) == 2 and "There is no file" in capsys.readouterr().err


def test_what_cannot_be_measured_costs_the_others_nothing(tmp_path, capsys):
    a, b, short = (save_video(still[:count], tmp_path / f"{name}.mp4", 6) for name, count in (("a", 6), ("b", 6), ("short", 3)))
    assert main([str(short), str(tmp_path / "none.mp4"), str(a), "--csv", "--against", str(b)]) == 2
    told = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(told.out))
    assert row["video"] == str(a) and row["faults"] == "stands still" and float(row["psnr"]) == 100
    assert len(told.err.splitlines()) == 2 and f"error: {short}: " in told.err and "There is no file" in told.err


def test_a_column_that_one_video_has_is_in_the_table(capsys):
    rows = [{"video": "a", "faults": []}, {"video": "b", "faults": ["is blank", "flickers"], "clip_text": 0.25, "clip_text_of_frames": [0.25]}]
    _print_rows(rows, argparse.Namespace(json=False, csv=True))
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert first == {"video": "a", "faults": "", "clip_text": ""} and second == {"video": "b", "faults": "is blank; flickers", "clip_text": "0.25"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of random weights: its file, and open_clip's name of it."""
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clip_is_cosines_of_what_its_encoders_give(clip):
    scorer = ClipScorer(*clip)
    video = panned(3.0, count=4)
    scores = scorer.score(video, "a red ball")
    assert scores["clip_text"] == pytest.approx(np.mean(scores["clip_text_of_frames"]), abs=1e-3) and len(scores["clip_text_of_frames"]) == 4
    assert scores["clip_text_change"] == pytest.approx(scores["clip_text_of_frames"][-1] - scores["clip_text_of_frames"][0], abs=1e-3)
    assert -1 <= scores["clip_text"] <= 1 and scores["clip_consistency"] < 1
    assert scorer.score(still[:3], None) == {"clip_consistency": pytest.approx(1.0, abs=1e-5), "aesthetic": AESTHETIC_MISSING}
    assert scorer.score(still[:3], "x")["clip_text_change"] is None and scorer.score(still[:4], "x")["clip_text_change"] == pytest.approx(0, abs=1e-5)
    assert scorer.score(video, "something else")["clip_text"] != scores["clip_text"]


def test_the_aesthetic_score_is_a_line_over_clips_embedding(clip, tmp_path, capsys):
    torch.save({"weight": torch.zeros(1, 16), "bias": torch.tensor([5.5])}, tmp_path / "flat.pth")
    assert ClipScorer(*clip, tmp_path / "flat.pth").score(still[:2], None)["aesthetic"] == 5.5
    one = torch.zeros(1, 16)
    one[0, 3] = 1.0
    torch.save({"weight": one, "bias": torch.zeros(1)}, tmp_path / "third.pth")
    assert 0 < abs(ClipScorer(*clip, tmp_path / "third.pth").score(still[:2], None)["aesthetic"]) < 1  # one coordinate of a unit vector
    video = save_video(still[:3], tmp_path / "a.mp4", 6, {"prompt": "a red ball"})
    assert main([str(video), "--json", "--clip", str(clip[0]), "--clip-model", clip[1], "--aesthetic", str(tmp_path / "flat.pth")]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["aesthetic"] == 5.5 and row["clip_consistency"] == pytest.approx(1, abs=1e-2) and len(row["clip_text_of_frames"]) == 3
    torch.save({"weight": torch.zeros(1, 512), "bias": torch.zeros(1)}, tmp_path / "wide.pth")
    assert main([str(video), "--clip", str(clip[0]), "--clip-model", clip[1], "--aesthetic", str(tmp_path / "wide.pth")]) == 2
    assert f"a head for embeddings of 512; {clip[1]} gives 16" in capsys.readouterr().err
    torch.save({"layers.0.weight": torch.zeros(1, 16)}, tmp_path / "other.pth")
    assert main([str(video), "--clip", str(clip[0]), "--clip-model", clip[1], "--aesthetic", str(tmp_path / "other.pth")]) == 2
    assert "not a linear head: it holds layers.0.weight, and weight and bias are needed" in capsys.readouterr().err


@pytest.fixture
def in_cache(tmp_path, monkeypatch):
    """Puts weights into an empty cache of the Hub's, under a repository's name."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def put(repo, name):
        folder = tmp_path / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "snapshots" / "abc" / name).write_bytes(b"weights")
        return folder / "snapshots" / "abc" / name

    return put


def test_any_clip_in_the_cache_is_found_with_how_it_was_trained(in_cache):
    assert clip_files() == [] and installed_clip() is None
    unknown = in_cache("a/first", "open_clip_pytorch_model.bin")
    assert clip_files() == [unknown] and installed_clip() is None
    openai = in_cache("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")
    assert installed_clip() == Clip(openai, "ViT-B-32", "openai")
    default = in_cache(CLIP_REPO, CLIP_FILE)
    assert clip_files()[0] == default and installed_clip() == Clip(default, CLIP_MODEL, "laion2b_s34b_b79k")
    (unknown.parent / "open_clip_config.json").write_text("{}")
    assert known_clip(unknown) == Clip(unknown, f"local-dir:{unknown.parent}")


@pytest.mark.parametrize("model, tag, activation, mean", [
    ("ViT-B-32", "openai", "QuickGELU", (0.48145466, 0.4578275, 0.40821073)),
    ("ViT-B-32", "laion2b_s34b_b79k", "GELU", (0.48145466, 0.4578275, 0.40821073)),
    ("ViT-B-16-SigLIP", "webli", "GELU", (0.5, 0.5, 0.5)),
])  # fmt: skip
def test_weights_in_a_file_work_as_they_were_trained(model, tag, activation, mean, tmp_path, monkeypatch):
    """The real configurations with a small model in the place of the large one."""
    import open_clip

    small = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}, "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
    monkeypatch.setattr(open_clip.factory, "get_model_config", lambda name: copy.deepcopy(small))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: None)
    torch.save(open_clip.create_model(model).state_dict(), tmp_path / "weights.pt")
    scorer = ClipScorer(tmp_path / "weights.pt", model, tag=tag)
    used = {type(module).__name__ for module in scorer.model.modules() if "GELU" in type(module).__name__}
    trained = open_clip.get_pretrained_cfg(model, tag)
    assert used == {activation} and tuple(scorer.preprocess.transforms[-1].mean) == mean
    assert {name: scorer.model.visual.preprocess_cfg[name] for name in ("mean", "std", "interpolation", "resize_mode")} == {name: trained[name] for name in ("mean", "std", "interpolation", "resize_mode")}


def test_lpips_says_what_it_needs_and_is_never_a_number_without_it(tmp_path, monkeypatch):
    """Its package may be there, or not; AlexNet is not in this empty cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert lpips_distance(still, still) == LPIPS_MISSING
    with pytest.raises(VideoError):
        lpips_distance(still, still[:4])

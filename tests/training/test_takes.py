"""What fine-tuning sees of a user's videos: which takes, with a cache of latents and without, and what becomes of files that break."""

import json
import os
import shutil
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from core import save_video
from small_runs import config, trained
from training.config import ConfigError, load_config
from training.latents import LEFT_SECONDS, FreshTakes, VideoLatents
from training.runs import ROOT, read_run
from training.targets import build_task
from training.targets.decoder import DecoderTask
from training.targets.transformer import TransformerTask
from training.start import train
from training.takes import of_stage


def test_frame_indices_of_videos_cannot_be_kept(place, tmp_path):
    with pytest.raises(ConfigError, match="keep_frame_indices is for latents of Toy World"):
        train(config(place, tmp_path, "curriculum=[{steps: 2, num_frames: [4], keep_frame_indices: true}]"))


def test_the_presets_for_mira_show_each_clip_at_several_places_and_strides(place, tmp_path):
    for preset in ("finetune_128", "finetune_384", "lora_128"):
        places = [f"dataset={place / 'videos'}", f"output_dir={tmp_path}", f"data_dir={tmp_path / 'data'}", "num_frames=[2]", "validation_clips=0"]
        settings = load_config(ROOT / "training" / "configs" / f"{preset}.yaml", places)
        takes = VideoLatents(settings, tmp_path / "latents", "hash", lambda frames: torch.zeros(4, len(frames), 4, 6)).takes
        stretches = {path: {(take.start, take.stride) for take in takes if take.path == path} for path in {take.path for take in takes}}
        assert len(stretches) == 8 and min(map(len, stretches.values())) >= 3, "of four that were drawn, at most two alike"
        assert {take.stride for take in takes} == {1, 2, 3, 4} and {take.fps for take in takes} == {8 / stride for stride in (1, 2, 3, 4)}


def test_a_decoder_sees_another_take_each_time(place, tmp_path):
    task = DecoderTask(config(place, tmp_path, "target=vae_decoder", "train_batch_size=1", "clips=4", "validation_clips=0"), torch.device("cpu"))
    seen = {task.batch(index)["frames"].tobytes() for index in range(30)}
    assert len(seen) > 4 + 4 and task.batch(3)["frames"].tobytes() == task.batch(3)["frames"].tobytes()


def test_a_second_run_finds_its_latents_ready(place, tmp_path, monkeypatch):
    train(config(place, tmp_path / "one", "target=lora", "max_train_steps=1"))
    monkeypatch.setattr("training.targets.transformer.FrameEncoder.__call__", lambda *_: pytest.fail("the VAE ran again"))
    train(config(place, tmp_path / "two", "target=lora", "max_train_steps=1"))


def test_what_a_killed_process_was_writing_into_the_cache_is_removed_by_the_next_start(place, tmp_path):
    data = tmp_path / "data"
    left, busy = ([data / "cache" / where / f".0a.{word}.tmp.safetensors" for where in ("latents/0a", "prompts")] for word in ("left", "busy"))
    for file in (*left, *busy):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    for file in left:
        os.utime(file, (0, time.time() - 2 * LEFT_SECONDS))
    train(config(place, tmp_path / "run", "target=lora", "max_train_steps=1", f"data_dir={data}"))
    assert not any(file.exists() for file in left) and all(file.exists() for file in busy), "another run may be writing"


def test_without_a_cache_the_same_frames_give_the_same_losses_and_nothing_is_kept(place, tmp_path):
    words = ("target=lora", "num_frames=[9]", "caption_dropout=0.5", "validation_clips=1", "max_train_steps=3", "checkpoint_every=3")  # all frames of a video: no choice
    fresh = ("latent_cache=false", f"data_dir={tmp_path / 'data'}")
    train(config(place, tmp_path / "cached", *words))
    whole = train(config(place, tmp_path / "fresh", *words, *fresh, "validation_prompts=[a red ball]", "validation_steps=1"))
    rows, others = (read_run(tmp_path / name).metrics() for name in ("cached", "fresh"))
    for name in ("loss", "validation_loss"):
        losses = [row[name] for row in rows if name in row]
        assert losses == pytest.approx([row[name] for row in others if name in row], abs=2e-6) and len(set(losses)) == (3 if name == "loss" else 1)  # as many digits as are noted
    assert not (tmp_path / "data" / "cache" / "latents").exists() and len(read_run(tmp_path / "fresh").samples()) == 1
    hashes = {json.loads((tmp_path / name / "dataset.json").read_text())["hash"] for name in ("cached", "fresh")}
    assert len(hashes) == 1
    train(config(place, tmp_path / "parts", *words, *fresh, "max_train_steps=1"))
    parts = train(config(place, tmp_path / "parts", *words, *fresh))
    assert all(torch.equal(ours, trained(parts)[0][name]) for name, ours in trained(whole)[0].items())


def test_without_a_cache_a_clip_is_another_take_each_time_and_a_broken_file_is_named(place, tmp_path):
    shutil.copytree(place / "videos", tmp_path / "videos")
    settings = config(place, tmp_path, f"dataset={tmp_path / 'videos'}", "latent_cache=false")
    dataset = FreshTakes(settings, channels=4)
    drawn = [dataset._drawn(dataset.trained[0], np.random.default_rng(seed)) for seed in range(120)]
    assert {take.path for take, _ in drawn} == {dataset.takes[dataset.trained[0]].path} and {take.stride for take, _ in drawn} == {1, 2}
    assert len({(take.start, take.stride) for take, _ in drawn}) == 6 + 3 and all(take.start + 3 * take.stride / 8 <= 1.001 for take, _ in drawn), "all that lie within nine frames"
    assert all(np.array_equal(frames, take.frames()) for take, frames in drawn)
    stage, rng = settings.stage_at(0), lambda: np.random.default_rng(1)
    first, again = dataset.batch(stage, rng()), dataset.batch(stage, rng())
    assert first["frames"].shape == (2, 4, 32, 48, 3) and np.array_equal(first["frames"], again["frames"]) and first["texts"] == again["texts"]
    held = [[batch["frames"] for batch in dataset.held_out_batches(np.random.default_rng(seed))] for seed in (0, 1)]
    assert len(held[0]) == 2 and all(map(np.array_equal, *held))
    broken = dataset.takes[dataset.trained[0]].path
    broken.write_bytes(b"broken")
    take, _ = dataset._drawn(dataset.trained[0], np.random.default_rng(0))
    assert take.path != broken and [reject.name for reject in dataset.rejects] == [broken.name]
    for file in (tmp_path / "videos").glob("*.mp4"):
        file.write_bytes(b"broken")
    with pytest.raises(ConfigError, match="no clip that can be trained on"):
        dataset.batch(stage, rng())
    (tmp_path / "videos" / "dataset.json").write_text("{}")
    with pytest.raises(ConfigError, match="latent_cache is false, but .* holds latents"):
        TransformerTask(settings, torch.device("cpu"))


def test_clips_of_all_shapes_and_pictures_train_in_one_run(place, tmp_path, monkeypatch):
    for name, shape in {"upright": (9, 48, 32, 3), "short": (5, 32, 48, 3), "picture": (32, 48, 3)}.items():
        pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        for number in range(2):
            target = tmp_path / "clips" / f"{name}{number}"
            target.parent.mkdir(exist_ok=True)
            save_video(pixels, target.with_suffix(".mp4"), fps=8) if pixels.ndim == 4 else Image.fromarray(pixels).save(target.with_suffix(".png"))
            target.with_suffix(".txt").write_text(f"{name} {number}")
    for name in ("clip0", "clip1"):
        for suffix in (".mp4", ".txt"):
            shutil.copyfile(place / "videos" / f"{name}{suffix}", tmp_path / "clips" / f"{name}{suffix}")
    words = (f"dataset={tmp_path / 'clips'}", "sizes=[48x32,32x48]", "num_frames=[8,4]", "validation_clips=0")
    shapes = {"clip": (8, 4, 6), "upright": (8, 6, 4), "short": (4, 4, 6), "picture": (1, 4, 6)}
    settings = config(place, tmp_path / "run", *words, "max_train_steps=24", "checkpoint_every=24")
    task, seen, sorted_out = build_task(settings, torch.device("cpu")), {}, []
    monkeypatch.setattr("training.latents.of_stage", lambda *words: sorted_out.append(1) or of_stage(*words))
    for index in range(24):
        batch = task.batch(index)
        for text in filter(None, batch["texts"]):  # a dropped one says nothing
            seen.setdefault(text.replace("a red ball number", "clip").split()[0], set()).add(tuple(batch["latents"].shape))
    assert seen == {name: {(2 * 8 // shape[0], 4, *shape)} for name, shape in shapes.items()}, "of each kind its own shape, and as many as make as many frames"
    assert len(sorted_out) == 1, "not in each step: there may be a hundred thousand"
    train(settings)
    logged = {name for row in read_run(tmp_path / "run").metrics() for name in row if name.startswith("clean_")}
    assert read_run(tmp_path / "run").state == "finished" and logged == {"clean_1f", "clean_4f", "clean_8f"}


def test_each_stage_of_a_curriculum_has_takes_of_its_length_of_every_clip(place, tmp_path):
    settings = config(place, tmp_path, "max_train_steps=0", "clips=7", "curriculum=[{steps: 1, num_frames: [1], train_batch_size: 2}, {steps: 1, num_frames: [4, 8], train_batch_size: 2}, {steps: 1, num_frames: [2], train_batch_size: 2}]")
    cached = VideoLatents(settings, tmp_path / "latents", "hash", lambda frames: torch.zeros(4, len(frames), 4, 6))
    for dataset, shape in ((cached, lambda batch: batch["latents"].shape[2]), (FreshTakes(settings, channels=4), lambda batch: batch["frames"].shape[1])):
        assert Counter(take.num_frames for take in dataset.takes) == {1: 7, 2: 7, 8: 7} and len({dataset.takes[i].path for i in dataset.trained}) == 7 - len({dataset.takes[i].path for i in dataset.held_out})
        for stage, num_frames in zip(settings.stages, (1, 8, 2)):
            assert {shape(dataset.batch(stage, np.random.default_rng(seed))) for seed in range(8)} == {num_frames}


def test_a_stage_has_what_it_leaves_out_from_the_run_and_says_what_it_does(place, tmp_path, caplog):
    words = ("max_train_steps=0", "train_batch_size=3", "timestep_logit_mean=0.2", "curriculum=[{steps: 1, num_frames: [8, 2]}, {steps: 2, train_batch_size: 1, timestep_logit_mean: 0.5}]")
    settings = config(place, tmp_path, *words)
    assert [(stage.train_batch_size, stage.num_frames, stage.timestep_logit_mean) for stage in settings.stages] == [(3, [8, 2], 0.2), (1, [4], 0.5)]
    assert settings.plan() == "steps 1 to 1: 3 clips of 8 frames or 12 clips of 2 frames; steps 2 to 3: 1 clip of 4 frames"
    assert config(place, tmp_path, *words, "max_train_steps=1").plan().endswith("; never (the run ends at step 1; max_train_steps=0 runs all stages): 1 clip of 4 frames")
    with caplog.at_level("INFO"):
        train(settings)
    assert f"0 of 3 steps are done; {settings.plan()}" in caplog.text and "held out, 0 cannot be used" in caplog.text
    assert [{name for name in row if name.endswith("f")} <= {"clean_4f", "noisy_4f"} for row in read_run(tmp_path).metrics() if "loss" in row] == [False, True, True]
    caplog.clear()
    dataset = (tmp_path / "dataset.json").read_text()
    shutil.copytree(place / "videos", tmp_path / "others")
    (tmp_path / "others" / "clip0.txt").write_text("another caption")
    assert train(config(place, tmp_path, *words, f"dataset={tmp_path / 'others'}")).name == "step-3"
    assert "nothing is left to train" in caplog.text and read_run(tmp_path).state == "finished"
    assert read_run(tmp_path).config.dataset == settings.dataset and (tmp_path / "dataset.json").read_text() == dataset, "what it was trained on stays what is said of it"
    train(config(place, tmp_path, *words, "max_train_steps=4", f"dataset={tmp_path / 'others'}"))
    assert f"goes on with other settings than it had: dataset={tmp_path / 'others'} max_train_steps=4" in caplog.text


@pytest.mark.parametrize("words, message", [(("num_frames: [30]",), "No clip that is trained on has 30 frames; the longest is taken with 4"), (("height: 32", "width: 48"), "the size 48x32, which is for target=vae alone")])
@pytest.mark.parametrize("other", ["latent_cache=true", "latent_cache=false", "target=vae_decoder"])
def test_a_stage_that_cannot_be_trained_is_refused_before_the_first_one_begins(place, tmp_path, words, message, other):
    with pytest.raises(ConfigError, match=message):
        build_task(config(place, tmp_path, other, f"curriculum=[{{steps: 9}}, {{{', '.join(words)}}}]"), torch.device("cpu"))


@pytest.mark.parametrize("words", [("latent_cache=false",), ("target=vae_decoder",)])
def test_how_far_the_look_at_the_clips_is_is_told_without_a_cache_too(place, tmp_path, words):
    told = []
    build_task(config(place, tmp_path, *words), torch.device("cpu"), lambda *counts: told.append(counts))
    assert told == [(done, 8) for done in range(1, 9)]

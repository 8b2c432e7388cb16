"""Training end to end on tiny sizes: the three parts, exact resume, export, and what is refused."""

import json
import math
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core import MiraScheduler, MiraTransformer3DModel, TemporalVAE, encode_video, load_pipeline
from training.__main__ import main
from training.config import ConfigError, load_config
from training.ema import EMA
from training.export import export_model
from training.losses import draw_timesteps, diffusion_loss
from training.muon import Muon
from training.preflight import preflight
from training.precompute import LatentDataset, moving_mask, object_mask, precompute_toyworld
from training.principal import principal_components, read_encoder, write_encoder
from training.runs import latest_checkpoint
from training.targets.transformer import TransformerTask
from training.targets.vae import VAETask, alike, crowded
from training.toyworld import COLORS, MOTIONS, captions, parse_caption, render, sample_spec
from training.toyworld.scene import NO_CAMERA_MOTIONS
from training.start import train
from training.trainer import NonFiniteLoss, Trainer, learning_rate_at, make_optimizers

VAE = {"latent_channels": 4, "block_out_channels": [16, 16, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}
T5 = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 1}
TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "caption_channels": 16, "window_attn": "frame"}


def config(folder, **settings):
    """A TrainConfig with the small numbers that suit a test."""
    base = load_config(None, ["target=vae", f"output_dir={folder}", f"data_dir={folder}/data", "checkpoint_every=2", "log_every=1", "lr_warmup_steps=1", "mixed_precision=fp32", "num_threads=1"])
    for name, value in settings.items():
        setattr(base, name, value)
    return base


def stage(**settings):
    from training.config import Stage

    return Stage(**{"steps": 4, "train_batch_size": 2, "num_frames": [2], "height": 32, "width": 32, **settings})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a VAE and a text encoder that were trained for a moment, and latents made with them."""
    root = tmp_path_factory.mktemp("training")
    import training.targets.vae as vae_target

    small = {**VAE, "block_out_channels": [32, 32, 32, 64]}
    train(config(root / "vae", target="vae", architecture=small, curriculum=[stage()], max_train_steps=2))
    train(config(root / "text", target="text_encoder", architecture=T5, curriculum=[stage(train_batch_size=4)], max_train_steps=2))
    assert vae_target.CLIP_FRAMES == 24
    export_model(str(root / "vae"), str(root / "text"), None, str(root / "base"))
    patch = pytest.MonkeyPatch()
    patch.setattr("training.precompute.SHARD_CLIPS", 3)
    precompute_toyworld(str(root / "base"), str(root / "latents"), clips=6, num_frames=8, device="cpu")
    patch.undo()
    return root


def transformer_config(base, folder, **settings):
    defaults = dict(target="transformer", model=str(base / "base"), dataset=str(base / "latents"), architecture={**TRANSFORMER, "in_channels": 4, "out_channels": 4}, curriculum=[stage(num_frames=[1, 4])])
    return config(folder, **{**defaults, **settings})


def weights(checkpoint):
    state = torch.load(checkpoint / "training_state.pt", weights_only=True)
    return state["model"], state["ema"]["average"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_text_encoder_goes_on_from_a_models(base, tmp_path):
    """Of what the transformer has learned to read little moves, and the tokens are the same."""
    c = config(tmp_path, target="text_encoder", model=str(base / "base"), curriculum=[stage(train_batch_size=16)], max_train_steps=2, learning_rate=1e-4)
    from training.targets import build_task

    task = build_task(c, torch.device("cpu"))
    batch = task.batch(0)
    assert float(task.loss(batch, 0)[1]["moved"]) > 0, "two heads look one way each from the start"
    owners = batch["word_labels"]["owner"]
    told = dict(zip(zip(*(place.tolist() for place in batch["places"])), owners.tolist()))
    assert set(told.values()) == {0, 1, 2} and len(told) == len(owners)
    words = [task.tokenizer.decode([batch["input_ids"][place]]) for place in told]
    assert all(word in ("left", "right") for word, owner in zip(words, told.values()) if owner == 2), "the camera has no other words that are asked for"
    assert all((size < 0) == (word in ("left", "right")) for word, size in zip(words, batch["word_labels"]["size"].tolist()))
    made = Trainer(c, task).run()
    for name in ("tokenizer/tokenizer.json", "text_encoder/config.json"):
        assert (made / name).is_file()
    assert (made / "tokenizer/tokenizer.json").read_text() == (base / "base/tokenizer/tokenizer.json").read_text()


def test_a_text_encoder_tells_order_from_the_start():
    from transformers import T5Config, T5EncoderModel

    from training.targets.text_encoder import look_both_ways

    torch.manual_seed(0)
    encoder = T5EncoderModel(T5Config(vocab_size=20, **{**T5, "num_heads": 4, "d_model": 32})).eval()
    ids = torch.zeros(2, 77, dtype=torch.long)
    ids[0, :3], ids[1, :3] = torch.tensor([5, 6, 7]), torch.tensor([7, 6, 5])

    def told() -> float:
        """How far a word's state depends on whether it comes first or last."""
        with torch.no_grad():
            one, other = encoder(input_ids=ids).last_hidden_state
        return float((one[0] - other[2]).norm() / one[0].norm())

    before = told()
    look_both_ways(encoder)
    assert told() > 5 * before
    learned = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.clone()
    look_both_ways(encoder)  # a run that goes on from this one
    assert torch.equal(learned, encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(base, tmp_path, optimizer):
    whole = train(transformer_config(base, tmp_path / "whole", optimizer=optimizer))
    train(transformer_config(base, tmp_path / "parts", optimizer=optimizer, max_train_steps=2))
    resumed = train(transformer_config(base, tmp_path / "parts", optimizer=optimizer))
    assert whole.name == resumed.name == "step-4"
    for ours, theirs in zip(weights(whole), weights(resumed)):
        assert same(ours, theirs)
    started_over = train(transformer_config(base, tmp_path / "other", optimizer=optimizer, seed=1))
    assert not same(weights(whole)[0], weights(started_over)[0])


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = MiraTransformer3DModel(**TRANSFORMER, in_channels=4, out_channels=4)
    adamw, muon = make_optimizers(model, load_config(None, ["target=vae", "optimizer=muon"]))
    by_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    by_adamw = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert by_muon | by_adamw == {id(p) for p in model.parameters()} and not by_muon & by_adamw
    assert id(model.transformer_blocks[0].ff.net[2].weight) in by_muon
    assert by_adamw >= {id(model.proj_out.weight), id(model.transformer_blocks[0].scale_shift_table), id(model.caption_projection.linear_1.weight)}


def test_muon_is_alone_where_matrices_of_the_blocks_are_all_that_is_trained():
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False)])})  # as a LoRA's are
    [muon] = make_optimizers(model, load_config(None, ["target=vae", "optimizer=muon"]))
    assert isinstance(muon, Muon) and muon.param_groups[0]["params"] == [model["blocks"][0].weight]


def test_muon_equals_torchs():
    g = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(i))) for i, shape in enumerate([(8, 8), (8, 8), (24, 8), (8, 24)])] for _ in "ab")
    settings = dict(lr=0.01, weight_decay=0.1)
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)  # one unit of bf16 in an update of 0.02


def test_more_objects_leave_a_wall_in_its_place():
    rng = np.random.default_rng(0)
    spec = sample_spec(rng, motion="passes behind a wall", num_frames=24)
    alone, crowd = (crowded(spec, range(12, 13), extra, rng)[0] for extra in (0, 4))
    wall = alone[:, 60:68]
    assert (np.ptp(wall, axis=-1) < 10).all() and object_mask(crowd[None]).any()
    unpainted = np.ptp(crowd[:, 60:68], axis=-1) < 10
    assert unpainted.mean() > 0.2 and (crowd[:, 60:68][unpainted] == wall[unpainted]).all()


def test_a_small_object_counts_as_much_as_a_big_one():
    objects = torch.zeros(1, 1, 80, 128)
    objects[..., 10:16, 0:6] = objects[..., 40:58, 90:108] = 1
    weights = alike(objects)
    small, big = weights[..., :64].sum(), weights[..., 64:].sum()
    assert 0.8 < small / big < 1.25 and not weights[objects == 0].any()


def test_the_vae_also_sees_colours_without_a_name():
    named = 255 * np.array(list(COLORS.values()))
    strange = {}
    for any_color in (0.0, 1.0):
        rng, found = np.random.default_rng(5), []
        for _ in range(12):
            spec = sample_spec(rng, num_frames=24, background="the night")
            frame = crowded(spec, range(12, 13), 5, rng, any_color)[0].reshape(-1, 3)
            vivid = frame[np.ptp(frame, axis=1) > 100].astype(float)
            shades = vivid[:, None] / np.linalg.norm(vivid, axis=1)[:, None, None] - named / np.linalg.norm(named, axis=1)[:, None]
            found.append((np.linalg.norm(shades, axis=2).min(1) > 0.25).mean())
        strange[any_color] = np.mean(found)
    assert strange[0.0] < 0.01 and strange[1.0] > 0.15


def test_the_vae_sees_more_of_what_it_finds_hard(base, tmp_path):
    """Half of the clips: over the night, and everything in them red."""
    settings = config(tmp_path, target="vae_decoder", model=str(base / "base"), crowd=4, hard_clips={"background": "the night", "color": "red"}, hard_share=0.5, curriculum=[stage(train_batch_size=1, num_frames=[1], height=80, width=128)])
    task, hard = VAETask(settings, torch.device("cpu")), 0
    for step in range(40):
        frame = task.batch(step)["frames"][0, 0].astype(int)
        vivid = frame[np.ptp(frame, axis=-1) > 150]
        hard += np.median(frame) < 60 and len(vivid) > 0 and (vivid[:, 0] > vivid[:, 1:].max(1) + 100).all()
    assert 12 <= hard <= 30
    with pytest.raises(ConfigError, match="hard_clips has shape: cube; it can have size: small or big; shape: ball or box"):
        VAETask(replace(settings, hard_clips={"shape": "cube"}), torch.device("cpu"))


def test_a_half_written_checkpoint_is_passed_over(base, tmp_path):
    last = train(transformer_config(base, tmp_path))
    (last / ".complete").unlink()
    assert latest_checkpoint(tmp_path).name == "step-2"
    with pytest.raises(ConfigError, match="not a whole checkpoint"):
        train(transformer_config(base, tmp_path, resume=str(last)))


def test_steps_on_images_and_on_clips_have_equally_many_frames(base, tmp_path):
    settings = transformer_config(base, tmp_path, curriculum=[stage(num_frames=[1, 2, 4], train_batch_size=2)])
    task = TransformerTask(settings, torch.device("cpu"))
    shapes = {task.batch(step)["latents"].shape[:3:2] for step in range(12)}
    assert shapes == {(8, 1), (4, 2), (2, 4)}


def test_only_the_newest_checkpoints_are_kept(base, tmp_path):
    train(transformer_config(base, tmp_path, checkpoint_every=1, keep_last=2))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-3", "step-4"]


def test_the_log_has_a_line_a_step(base, tmp_path):
    train(transformer_config(base, tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4] and all(math.isfinite(r["loss"]) for r in rows)


def test_figures_also_go_to_tensorboard_and_nowhere_else_by_default(base, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(transformer_config(base, tmp_path, max_train_steps=2))
    train(transformer_config(base, tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss")] == [(row["step"], round(row["loss"], 4)) for row in rows]
    assert load_config(None, ["target=vae"]).report_to == ["tensorboard"]
    with pytest.raises(ConfigError, match="report_to names wandb, which is not installed. pip install wandb"):
        train(transformer_config(base, tmp_path / "other", report_to=["wandb"]))


def test_exported_parts_load_and_make_a_video(base, tmp_path):
    run = train(transformer_config(base, tmp_path / "run"))
    export_model(str(base / "base"), str(base / "base"), str(run), str(tmp_path / "model"))
    pipe = load_pipeline(tmp_path / "model", device="cpu", dtype="fp32", data_dir=tmp_path)
    pipe.set_progress_bar_config(disable=True)
    previews = []
    frames = pipe("a red ball rises over the sea", num_frames=3, height=32, width=32, num_inference_steps=2, seed=1, callback_on_step_end=lambda p, i, t, report: previews.append(report["preview"]())).frames
    assert frames.shape == (1, 3, 32, 32, 3) and previews[0].shape == (1, 3, 4, 4, 3)
    assert pipe.scheduler.config.prediction_type == "epsilon"


def test_decoder_training_leaves_the_latents_alone(base, tmp_path):
    run = train(config(tmp_path, target="vae_decoder", model=str(base / "base"), curriculum=[stage()], max_train_steps=2))
    before, after = (TemporalVAE.from_pretrained(folder / "vae", dtype=torch.float32).eval() for folder in (base / "base", run))
    frames = torch.rand(1, 3, 2, 32, 32) * 2 - 1
    torch.testing.assert_close(encode_video(before, frames), encode_video(after, frames))
    assert not torch.equal(before.decoder.conv_in.weight, after.decoder.conv_in.weight)


@pytest.mark.parametrize("groups", [1, 8])
def test_the_written_encoder_gives_whitened_principal_components(groups):
    rng = np.random.default_rng(0)
    clips = np.concatenate([render(sample_spec(rng), frames=[8]) for _ in range(40)])
    frames, masks = torch.from_numpy(clips).permute(0, 3, 1, 2).float() / 127.5 - 1, object_mask(clips)
    weights, offsets = principal_components(frames, masks, 8)
    vae = TemporalVAE(**VAE | {"latent_channels": 8, "block_out_channels": [32, 32, 32, 64], "norm_num_groups": groups}, down_block_types=("DownEncoderBlock2D",) * 4)
    write_encoder(vae, weights, offsets)
    latents = encode_video(vae, frames[:, :, None])[:, :, 0]
    torch.testing.assert_close(latents, torch.nn.functional.conv2d(frames, weights, offsets, stride=8), rtol=1e-2, atol=1e-2)
    for read, written in zip(read_encoder(vae), (weights, offsets)):
        torch.testing.assert_close(read, written, rtol=1e-2, atol=1e-2)
    flat, inside = latents.permute(0, 2, 3, 1).reshape(-1, 8), masks.flatten()
    second = (flat[inside].T @ flat[inside] / inside.sum() + flat[~inside].T @ flat[~inside] / (~inside).sum()) / 2
    torch.testing.assert_close(second, torch.eye(8), rtol=0, atol=0.05)


def test_an_encoder_that_cannot_hold_the_components_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="architecture: 8 latent channels need block_out_channels of at least"):
        train(config(tmp_path, architecture={**VAE, "latent_channels": 8, "block_out_channels": [32, 32, 32, 32]}, curriculum=[stage()]))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(base, tmp_path):
    train(transformer_config(base, tmp_path, max_train_steps=2))
    with pytest.raises(NonFiniteLoss, match=r"at step \d+.*step-2"):
        train(transformer_config(base, tmp_path, learning_rate=float("inf")))
    assert latest_checkpoint(tmp_path).name == "step-2"


def test_shards_are_made_once_and_clips_are_thinned_evenly(base, tmp_path):
    data = LatentDataset(base / "latents")
    stamps = {p: p.stat().st_mtime_ns for p in (base / "latents").glob("*.safetensors")}
    patch = pytest.MonkeyPatch()
    patch.setattr("training.precompute.SHARD_CLIPS", 3)
    precompute_toyworld(str(base / "base"), str(base / "latents"), clips=6, num_frames=8, device="cpu")
    patch.undo()
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps} and len(data) == 6
    clips, masks, texts, indices = data.draw(5, 4, np.random.default_rng(0))
    assert clips.shape == (5, 4, 4, 10, 16) and masks.shape == (5, 1, 4, 10, 16) and len(texts) == 5 and indices is None
    first_and_last = {tuple(c[:, [0, 3]].flatten()[:4].tolist()) for c in clips}
    assert first_and_last <= {tuple(x[:, [0, 7]].float().flatten()[:4].tolist()) for x in data.latents}
    shutil.copytree(base / "latents", tmp_path / "copy", copy_function=shutil.copyfile)
    assert LatentDataset(tmp_path / "copy").facts() == data.facts() and data.facts()["takes"] == 6 and LatentDataset(base / "latents", limit=3).facts()["hash"] != data.facts()["hash"]
    with pytest.raises(ValueError, match="9 frames; the longest has 8"):
        data.draw(1, 9, np.random.default_rng(0))


def test_frames_that_keep_their_indices_are_one_of_each_part(base):
    data, rng, seen = LatentDataset(base / "latents"), np.random.default_rng(0), set()
    whole = [clip.transpose(0, 1) for clip in data.latents]
    for _ in range(20):
        clips, masks, _, indices = data.draw(3, 4, rng, keep_frame_indices=True)
        assert [int(index) // 2 for index in indices] == [0, 1, 2, 3]
        seen |= set(indices.tolist())
        for clip in clips.transpose(1, 2):
            assert any(torch.equal(clip, frames[indices].float()) for frames in whole)
    assert seen == set(range(8))


def test_a_run_on_frames_that_keep_their_indices_is_its_own(base, tmp_path):
    losses = {}
    for keep in (False, True):
        train(transformer_config(base, tmp_path / str(keep), max_train_steps=2, curriculum=[stage(num_frames=[3], keep_frame_indices=keep)]))
        losses[keep] = json.loads((tmp_path / str(keep) / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    assert losses[False] != losses[True]


def test_motions_come_as_often_as_asked(base, tmp_path, monkeypatch):
    monkeypatch.setattr("training.precompute.SHARD_CLIPS", 20)
    precompute_toyworld(str(base / "base"), str(tmp_path), clips=20, num_frames=2, device="cpu", motions={motion: 0 for motion in MOTIONS if motion not in ("circles", "hits")})
    assert {parse_caption(texts[0])["motion"] for texts in LatentDataset(tmp_path).captions} == {"circles", "hits"}
    precompute_toyworld(str(base / "base"), str(tmp_path), clips=20, num_frames=2, device="cpu")  # other shares, other shards
    assert len(LatentDataset(tmp_path)) == 40
    with pytest.raises(ValueError, match="share of 0"):
        precompute_toyworld(str(base / "base"), str(tmp_path), clips=20, num_frames=2, device="cpu", motions=dict.fromkeys(MOTIONS, 0))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_cameras_move_as_often_as_asked(share, base, tmp_path, monkeypatch):
    monkeypatch.setattr("training.precompute.SHARD_CLIPS", 20)
    precompute_toyworld(str(base / "base"), str(tmp_path), clips=20, num_frames=2, device="cpu", motions={"hits": 0}, moving_cameras=share)
    moving = [found["camera"] != "still" for found in (parse_caption(texts[0]) for texts in LatentDataset(tmp_path).captions) if found["motion"] not in NO_CAMERA_MOTIONS]
    assert moving and all(moves == bool(share) for moves in moving)


def test_what_a_killed_precompute_left_goes_and_what_another_writes_stays(base, tmp_path, monkeypatch):
    monkeypatch.setattr("training.precompute.SHARD_CLIPS", 1)
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [tmp_path / f"002f-seed3-00000{suffix}" for suffix in (f".{gone.pid}.tmp", ".tmp")]
    other = tmp_path / f"002f-seed4-00000.{os.getppid()}.tmp"
    for file in (*left, other):
        file.write_bytes(b"half")
    precompute_toyworld(str(base / "base"), str(tmp_path), clips=1, num_frames=2, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"dataset.json", "002f-seed0-00000.safetensors", other.name}


def test_all_clips_can_have_one_camera(base, tmp_path, monkeypatch):
    monkeypatch.setattr("training.precompute.SHARD_CLIPS", 20)
    precompute_toyworld(str(base / "base"), str(tmp_path), clips=20, num_frames=2, device="cpu", camera="zooms in")
    found = [parse_caption(texts[0]) for texts in LatentDataset(tmp_path).captions]
    assert {one["camera"] for one in found} == {"zooms in"} and not {one["motion"] for one in found} & set(NO_CAMERA_MOTIONS)


def test_a_step_sees_clips_of_one_size_and_fewer_of_a_larger_one(base, tmp_path, monkeypatch):
    monkeypatch.setattr("training.precompute.SHARD_CLIPS", 4)
    precompute_toyworld(str(base / "base"), str(tmp_path), clips=8, num_frames=3, device="cpu", sizes=[(128, 80), (192, 112)])
    dataset, rng = LatentDataset(tmp_path), np.random.default_rng(0)
    drawn = [dataset.draw(4, 2, rng)[0].shape for _ in range(20)]
    assert {tuple(shape) for shape in drawn} == {(4, 4, 2, 10, 16), (2, 4, 2, 14, 24)}


def test_latents_of_an_encoder_in_closed_form_are_the_encoders(tmp_path, monkeypatch):
    nano = Path(__file__).parents[2] / "assets/models/mira-nano"
    monkeypatch.setattr("training.precompute.SHARD_CLIPS", 2)
    precompute_toyworld(str(nano), str(tmp_path), clips=2, num_frames=3, seed=5, device="cpu")
    vae, rng = TemporalVAE.from_pretrained(nano / "vae", dtype=torch.float32), np.random.default_rng([5, 0])
    for latents, texts in zip((data := LatentDataset(tmp_path)).latents, data.captions):
        spec = sample_spec(rng, num_frames=3)
        assert texts[0] == [captions(spec, rng) for _ in range(4)][3]["short_caption"]
        frames = torch.from_numpy(render(spec)).permute(3, 0, 1, 2)[None].div(127.5).sub(1)
        torch.testing.assert_close(latents.float(), encode_video(vae, frames)[0], rtol=0.01, atol=0.01)


def test_the_mask_covers_the_object_and_not_much_else():
    clip = render(sample_spec(np.random.default_rng(3), motion="stays still", camera="still"))
    mask = object_mask(clip)
    assert mask.shape == (24, 10, 16) and 0 < mask.float().mean() < 0.3


@pytest.mark.parametrize("camera", ["still", "pans left", "zooms in"])
def test_what_moves_with_the_camera_is_masked(camera):
    clip = render(sample_spec(np.random.default_rng(3), motion="stays still", camera=camera, background="the sea"))
    beyond = moving_mask(clip) & ~object_mask(clip)
    assert beyond.shape == (24, 10, 16) and (beyond.float().mean() > 0.05) == (camera != "still")


def test_timesteps_cover_the_schedule_and_lean_where_they_are_told():
    g = torch.Generator().manual_seed(0)
    uniform = draw_timesteps(4000, 1000, None, 0.9, g)
    assert uniform.min() < 5 and uniform.max() > 994 and abs(uniform.float().mean() - 500) < 5
    lean = draw_timesteps(4000, 1000, -1.0, 0.5, g)
    assert lean.max() > 900 and lean.float().median() < 350


def test_the_loss_of_a_perfect_model_is_zero_and_of_a_silent_one_is_the_targets_power():
    scheduler, g = MiraScheduler(prediction_type="v_prediction"), torch.Generator().manual_seed(0)
    latents, t = torch.randn(3, 4, 2, 4, 4, generator=g), torch.tensor([10, 500, 900])

    class Answer:
        def __init__(self, sample):
            self.sample = sample

    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    target = scheduler.target(latents, noise, t)
    rest = dict(scheduler=scheduler, latents=latents, noise=noise, prompt_embeds=None, fps=None, timesteps=t)
    perfect, _ = diffusion_loss(lambda *_, **__: Answer(target), **rest)
    silent, figures = diffusion_loss(lambda *_, **__: Answer(torch.zeros_like(latents)), **rest)
    assert perfect == 0
    torch.testing.assert_close(silent, target.square().mean())
    assert set(figures) == {"clean", "noisy"}


def test_ema_follows_the_warmed_up_decay():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    ema = EMA(module, 0.5)
    torch.nn.init.ones_(module.weight)
    ema.update(module)  # decay min(0.5, 2/11)
    assert ema.average["weight"].item() == pytest.approx(1 - 2 / 11)


def test_the_learning_rate_warms_up_stays_and_falls():
    c = load_config(None, ["target=vae", "learning_rate=0.5", "lr_warmup_steps=10", "lr_decay_steps=20", "max_train_steps=100"])
    rates = [learning_rate_at(c, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.05) and rates[9] == rates[79] == 0.5 and rates[99] == pytest.approx((0.05 + 0.95 / 20) / 2)
    c.lr_schedule = "cosine"
    fall = [learning_rate_at(c, s) for s in range(100)]
    assert fall[:81] == rates[:81] and fall[90] == pytest.approx(0.5 * (0.05 + 0.95 / 2)) and fall[85] > rates[85] and fall[99] < rates[99]
    c.lr_schedule = "constant"
    assert learning_rate_at(c, 99) == 0.5


@pytest.mark.parametrize(
    "words, message",
    [
        (["learning_rat=1"], "learning_rate"),
        (["target=transformr"], "Did you mean 'transformer'"),
        (["learning_rate=fast"], "learning_rate|fast"),
        (["target=transformer", "model=x"], "dataset is empty"),
        (["checkpoint_every=0", "target=vae"], "at least 1"),
        (["target=vae", "report_to=[wandbb]"], "Did you mean 'wandb'"),
        (["target=vae", "lr_schedule=cosin"], "Did you mean 'cosine'"),
        (["target=vae", "lr_schedule=cosine"], "over how many of the last steps"),
        (["target=vae_decoder", "selective_checkpointing=true"], "selective_checkpointing keeps a transformer's matrix products; vae_decoder"),
        (["target=vae", "gradient_checkpointing=true"], "gradient_checkpointing is not for vae. Leave it out"),
        (["target=vae", "ema_decay=1.5"], "ema_decay is 1.5; it must be from 0 to less than 1"),
        (["target=vae", "adam_beta2=2"], "adam_beta2 is 2.0"),
        (["target=vae", "max_grad_norm=-1"], "max_grad_norm is -1.0; it must be above 0"),
        (["target=vae", "num_threads=-3"], "num_threads is -3; it must be 0 or more"),
        (["target=vae", "weight_decay=nan"], "weight_decay is nan"),
        (["target=vae", "num_frames=[24"], r"'num_frames=\[24' cannot be read"),
        (["target=vae", "curriculum=[{keep_frame_indice: true}]"], "Did you mean 'keep_frame_indices'"),
        (["target=vae", "curriculum=[{steps: many}]"], "^steps: .*many"),
    ],
)
def test_settings_that_cannot_be_used_are_named(words, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, words)


@pytest.mark.parametrize("setting, key, meant", [("scheduler", "prediction_typ", "prediction_type"), ("architecture", "num_layer", "num_layers")])
def test_unknown_arguments_of_what_is_trained_are_named(base, tmp_path, setting, key, meant):
    with pytest.raises(ConfigError, match=f"{setting} holds '{key}', which Mira.* does not know. Did you mean '{meant}'"):
        TransformerTask(transformer_config(base, tmp_path, **{setting: {**transformer_config(base, tmp_path).architecture, key: 1} if setting == "architecture" else {key: 1}}), torch.device("cpu"))


def test_the_command_says_what_is_wrong_in_one_line(capsys, tmp_path):
    assert main(["--config", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in capsys.readouterr().err


CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_the_recipes_are_valid(path):
    assert load_config(path, [] if path.stem.startswith("nano_") else ["dataset=videos"]).total_steps > 0


def test_every_command_of_the_embedded_models_recipe_can_be_given(tmp_path):
    """The script's own commands, with an interpreter that only says what it was given."""
    root = Path(__file__).parents[2]
    teller = tmp_path / "teller"
    teller.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\t" "$word"; done\necho\n')
    teller.chmod(0o755)
    shutil.copytree(root / "training" / "configs", tmp_path / "training" / "configs")
    told = subprocess.run(["bash", tmp_path / "training" / "configs" / "mira_nano.sh"], env={**os.environ, "PYTHON": str(teller)}, capture_output=True, text=True, check=True).stdout
    commands = [line.rstrip("\t").split("\t")[2:] for line in told.splitlines() if line.startswith("-m")]
    asked = [load_config(command[1], command[2:]) for command in commands if command[0] == "--config"]
    assert {"text_encoder", "vae_decoder", "transformer"} == {config.target for config in asked}
    shares = [word.partition("=")[0] for command in commands if "--motions" in command for word in command[command.index("--motions") + 1 :]]
    assert shares and set(shares) <= set(MOTIONS)
    made = {command[command.index("--out") + 1] for command in commands if "--out" in command}
    assert {config.model for config in asked if config.model} <= made and {config.dataset for config in asked if config.target == "transformer"} <= made | {"workspace/datasets/nano-both"}


def test_what_is_not_there_is_said_before_the_clips_are_prepared(base, tmp_path, monkeypatch):
    monkeypatch.setattr("training.config.find_spec", lambda name: None)
    monkeypatch.setattr("training.targets.build_task", lambda *_: pytest.fail("the clips are prepared first"))
    for settings, message in (({"optimizer": "adamw8bit"}, "needs the package bitsandbytes"), ({"sharding": "deepspeed"}, "sharding=deepspeed needs the package deepspeed"), ({"report_to": ["trackio"]}, "report_to names trackio, which is not installed"), ({"resume": "nowhere/step-3", "report_to": []}, "nowhere/step-3 is not a whole checkpoint")):
        with pytest.raises(ConfigError, match=message):
            train(wanted := transformer_config(base, tmp_path, **settings))
        assert "resume" in settings or any(message in problem for problem in preflight(wanted, []).problems)


def test_sigterm_stops_after_a_step_with_a_checkpoint(base, tmp_path):
    c = transformer_config(base, tmp_path, curriculum=[stage(steps=1000)])
    from training.targets import build_task

    trainer = Trainer(c, build_task(c, torch.device("cpu")))
    step = trainer.train_step
    trainer.train_step = lambda batch: (trainer._stop() if trainer.step == 2 else None, step(batch))[1]
    assert trainer.run().name == "step-3"

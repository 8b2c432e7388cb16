"""Fine-tuning on a user's videos, end to end on tiny sizes: LoRA, temporal blocks, the whole; resume, validation, use in generation."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from core import GenerationRequest, MiraTransformer3DModel, load_pipeline
from core.device_lock import DeviceTurn, ask_first, asked_since, device_held, lock_path
from core.learned_metrics import LPIPS_BACKBONE, LPIPS_MISSING
from core.loras import FOLDER, apply_loras, made_from
from core.metrics import measure
from core.provenance import made_with
from core.releases import RELEASES, TEXT_ENCODER_BYTES, released_shapes
from core.temporal_vae import TemporalVAE
from core.types import RequestError
from core.vae import build_mira_vae
from core.video_io import read_video
from studio.components.run_list import render_samples
from studio_app import wait_for
from small_runs import config, trained
from tiny import TEXT_DIM, tiny_pipeline
from training.__main__ import main
from training.config import ConfigError, load_config, save_config
from training.latents import FreshTakes
from training.preflight import memory_free, memory_held, preflight
from training.runs import ROOT, SAMPLE_NOW, TRASH, Runs, Status, read_run
from training.targets.decoder import DecoderTask, _lpips
from training.targets.transformer import TransformerTask
from training.start import train
from training.trainer import Diverged, Trainer


@pytest.mark.parametrize("preset", ["lora_128", "finetune_128", "finetune_384", "lora_nano", "nano"])
def test_the_presets_train(place, tmp_path, preset):
    places = [f"model={place / 'model'}", f"dataset={place / 'videos'}", f"output_dir={tmp_path}", f"data_dir={place / 'data'}"]
    taken = load_config(ROOT / "training" / "configs" / f"{preset}.yaml", [*places, "sizes=[48x32]", "num_frames=[2]", "max_train_steps=1", "num_threads=1"])
    assert (train(taken) / ("lora.safetensors" if taken.target == "lora" else "transformer")).exists()


@pytest.mark.parametrize("preset", ["finetune_128", "finetune_384"])
def test_the_presets_for_mira_have_the_figures_of_its_training(preset):
    taken = load_config(ROOT / "training" / "configs" / f"{preset}.yaml", ["dataset=x"])
    optimizer = torch.optim.AdamW([torch.zeros(1)]).defaults  # Mira's: torch's with a rate of its own
    assert (taken.learning_rate, (0.9, taken.adam_beta2), taken.weight_decay) == (1e-5, optimizer["betas"], optimizer["weight_decay"])
    assert (taken.gradient_accumulation_steps, taken.max_grad_norm, taken.caption_dropout, taken.frame_stride) == (2, 0.5, 0.05, 4)


@pytest.mark.parametrize("target", ["transformer", "temporal", "lora"])
def test_resumed_equals_never_stopped_and_only_the_target_changes(place, tmp_path, target):
    whole = train(config(place, tmp_path / "whole", f"target={target}"))
    train(config(place, tmp_path / "parts", f"target={target}", "max_train_steps=2"))
    parts = train(config(place, tmp_path / "parts", f"target={target}"))
    for ours, theirs in zip(trained(whole), trained(parts)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    names = set(trained(whole)[0])
    if target == "temporal":
        assert names and all(name.startswith("temporal_transformer_blocks.") for name in names)
    if target == "lora":
        assert names and all(".lora_" in name for name in names)
        assert not (whole / "transformer").exists()
    else:
        before = MiraTransformer3DModel.from_pretrained(place / "model" / "transformer").state_dict()
        after = MiraTransformer3DModel.from_pretrained(whole / "transformer").state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and changed <= names
    assert read_run(tmp_path / "whole").state == "finished"
    assert [row["step"] for row in read_run(tmp_path / "whole").metrics()] == [1, 2, 2, 3, 4, 4]
    losses = [row["validation_loss"] for row in read_run(tmp_path / "whole").metrics() if "validation_loss" in row]
    assert len(losses) == 2 and np.isfinite(losses).all()
    facts = json.loads((tmp_path / "whole" / "dataset.json").read_text())
    assert facts["takes"] == 8 and facts["held_out"] == 2 and facts["shapes"] == ["48x32, 4 frames"]


def test_a_decoder_learns_the_videos_and_is_used_while_latents_stay(place, tmp_path):
    data = tmp_path / "data"
    words = (f"data_dir={data}", "target=vae_decoder")
    whole = train(config(place, data / "runs" / "whole", *words))
    assert all(name.startswith("decoder.") for name in trained(whole)[0])
    told = preflight(config(place, tmp_path / "x", *words), [])
    assert told.trained == sum(tensor.numel() for tensor in trained(whole)[0].values())
    before, after = (TemporalVAE.from_pretrained(folder / "vae").state_dict() for folder in (place / "model", whole))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    long = train(config(place, tmp_path / "long", *words, "max_train_steps=60", "checkpoint_every=60", "learning_rate=3e-3"))
    losses = [[row["validation_loss"] for row in read_run(folder).metrics() if "validation_loss" in row] for folder in (data / "runs" / "whole", tmp_path / "long")]
    assert losses[1][-1] < losses[0][-1] and "flicker" in read_run(tmp_path / "long").metrics()[0] and long.name == "step-60"
    assert main(["use", "whole", "--data-dir", str(data)]) == 0
    request = GenerationRequest("a red ball", height=32, width=48, num_frames=2, num_inference_steps=2, seed=1)
    pipes = [load_pipeline(model, device="cpu", dtype="fp32", data_dir=data) for model in (place / "model", "whole-step-4")]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    latents = [pipe.generate(request, output_type="latent").frames for pipe in pipes]
    frames = [pipe.generate(request).frames for pipe in pipes]
    assert torch.equal(*latents) and not np.array_equal(*frames)


def test_a_decoders_activations_are_computed_again_where_that_is_asked_for(place, tmp_path):
    def gradients(*words):
        task = DecoderTask(config(place, tmp_path, "target=vae_decoder", *words), torch.device("cpu"))
        runs = []
        task.model.decoder.mid_block.register_forward_pre_hook(lambda *_: runs.append(1))
        task.loss(task.batch(0), 0)[0].backward()
        return len(runs), [parameter.grad for parameter in task.model.decoder.parameters() if parameter.grad is not None]

    (once, kept), (twice, again) = gradients(), gradients("gradient_checkpointing=true")
    assert (once, twice) == (1, 2) and len(kept) == len(again) > 0 and all(map(torch.equal, kept, again))


def test_a_decoders_loss_goes_without_lpips_rather_than_download_it(tmp_path, monkeypatch, caplog):
    package = ModuleType("lpips")
    package.__spec__, package.LPIPS = ModuleSpec("lpips", None), lambda net, verbose: torch.nn.Identity()
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with caplog.at_level("INFO"):
        assert _lpips(torch.device("cpu")) is None
    assert LPIPS_MISSING in caplog.text
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / LPIPS_BACKBONE).touch()
    assert isinstance(_lpips(torch.device("cpu")), torch.nn.Identity)


def test_a_decoder_shows_its_held_out_clips_beside_what_it_makes_of_them(place, tmp_path):
    train(config(place, tmp_path, "target=vae_decoder", "max_train_steps=2", "checkpoint_every=1", "learning_rate=0.05", "ema_decay=0"))
    run = read_run(tmp_path)
    assert run.makes_samples and {step: [file.name for file in files] for step, files in run.samples().items()} == {1: ["00.mp4", "01.mp4"], 2: ["00.mp4", "01.mp4"]}
    originals = [shown for _, _, shown in FreshTakes(run.config, channels=4).held_out_clips()]
    for number, original in enumerate(originals):
        left, right = zip(*((clip[:, :, :48], clip[:, :, 48:]) for clip in (read_video(run.samples()[step][number]).astype(int) for step in (1, 2))))
        assert all(half.shape == original.shape for half in (*left, *right))
        noise = np.abs(left[0] - original).mean()  # what the mp4 loses
        assert np.abs(left[0] - left[1]).mean() < noise / 2 and np.abs(right[0] - original).mean() > 1.2 * noise and np.abs(right[0] - right[1]).mean() > 1, "the originals stay, what is made of them changes"
    html = render_samples(run)
    assert html.count("<video") == 4 and html.count('dir="auto">Held-out clip 2; on its right') == 1 and "Sharpness" in html
    none = config(place, tmp_path / "none", "target=vae_decoder", "validation_clips=0")
    assert not replace(run, config=none).makes_samples and list(FreshTakes(none, channels=4).held_out_clips()) == []


def test_a_lora_is_used_with_its_weight_and_left_out_again(place, tmp_path):
    checkpoint = train(config(place, tmp_path / "run", "target=lora", "lora_rank=4", "learning_rate=0.05"))
    data = tmp_path / "data"
    (data / FOLDER).mkdir(parents=True)
    (data / FOLDER / "mine.safetensors").write_bytes((checkpoint / "lora.safetensors").read_bytes())
    assert made_from(data / FOLDER / "mine.safetensors")["run"] == "run"
    pipe = load_pipeline(place / "model", device="cpu", dtype="fp32", data_dir=data)
    pipe.set_progress_bar_config(disable=True)
    plain = GenerationRequest("a red ball", model="x", height=32, width=48, num_frames=3, num_inference_steps=2, guidance_scale=2.0, seed=1)
    make = lambda loras: pipe.generate(plain.replace(loras=loras), output_type="latent").frames  # noqa: E731
    without, full, half = make(None), make("mine"), make("mine@0.5")
    assert not torch.allclose(without, full, atol=1e-3) and not torch.allclose(full, half, atol=1e-3)
    assert torch.equal(make(None), without) and all(block.joined for block in pipe.transformer.transformer_blocks), "nothing is left of a LoRA that was used"
    assert torch.equal(make("mine"), full)
    torch.testing.assert_close(make("mine@0"), without)
    with pytest.raises(RequestError, match="There is no LoRA 'mime'. Did you mean 'mine'"):
        make("mime")
    other = MiraTransformer3DModel(num_attention_heads=2, attention_head_dim=12, num_layers=1, caption_channels=TEXT_DIM)
    with pytest.raises(RequestError, match="made for another model"):
        apply_loras(other, "mine", data)


@pytest.mark.parametrize("blocks", ["spatial", "temporal"])
def test_a_lora_of_some_blocks_leaves_the_others_alone(place, tmp_path, blocks):
    words = ("target=lora", "lora_rank=4", f"lora_blocks={blocks}", "max_train_steps=2", "checkpoint_every=2")
    told = preflight(config(place, tmp_path / "run", *words), []).trained
    tensors = load_file(train(config(place, tmp_path / "run", *words)) / "lora.safetensors")
    assert tensors and all(("temporal" in name) == (blocks == "temporal") for name in tensors)
    assert told == sum(tensor.numel() for tensor in tensors.values())


def test_a_lora_is_held_to_what_the_model_made_before_it(place, tmp_path):
    """The same steps on the same clips: what is kept changes less where it is asked for, and a killed run of it goes on to the same bits."""
    (tmp_path / "old").mkdir()
    for file in sorted((place / "videos").iterdir())[:4]:  # two clips and their captions
        shutil.copy(file, tmp_path / "old")
    changed = {}
    for weight in (0.0, 300.0):
        words = ("target=lora", "lora_rank=4", "learning_rate=0.01", "lr_decay_steps=16", "max_train_steps=20", f"keep_dataset={tmp_path / 'old'}", f"keep_weight={weight:g}")
        train(config(place, tmp_path / f"{weight:g}", *words))
        assert json.loads((tmp_path / f"{weight:g}" / "dataset.json").read_text())["kept"]["shapes"] == ["48x32, 4 frames"]
        rows = [row for row in read_run(tmp_path / f"{weight:g}").metrics() if "forgotten_4f" in row]
        assert len(rows) == 20 and rows[0]["forgotten_4f"] == 0, "a new LoRA changes nothing"
        changed[weight] = sum(row["forgotten_4f"] for row in rows[10:])
    assert 0 < changed[300] < changed[0] / 2
    half = train(config(place, tmp_path / "half", *words, "checkpoint_every=10"))
    assert half.name == "step-20"
    shutil.rmtree(half)
    again = train(config(place, tmp_path / "half", *words, "checkpoint_every=10"))
    whole = train(config(place, tmp_path / "whole", *words))
    for ours, theirs in zip(trained(again), trained(whole)):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_should_stay_is_as_long_as_what_is_trained_on_in_each_stage(place, tmp_path):
    words = ("target=lora", f"keep_dataset={place / 'videos'}", "max_train_steps=2", "train_batch_size=2", "curriculum=[{steps: 1, num_frames: [8]}, {steps: 1, num_frames: [4]}]")
    task = TransformerTask(config(place, tmp_path / "run", *words), torch.device("cpu"))
    batches = [task.batch(step) for step in range(2)]
    assert [(batch["latents"].shape[2], batch["kept"]["latents"].shape[2], len(batch["kept"]["latents"])) for batch in batches] == [(8, 8, 1), (4, 4, 1)]


def test_the_log_does_not_warn_of_nothing_at_each_lora(place):
    logger = logging.getLogger("diffusers.models.modeling_utils")
    said = [logger.filter(logging.makeLogRecord({"msg": f"There are modules in X that should be kept in float32: {names}. Casting"})) for names in ([], ["norm"])]
    assert not said[0] and said[1]


@pytest.mark.parametrize("target", ["temporal", "lora"])
def test_a_checkpoint_is_used_by_name_and_its_videos_tell_where_they_come_from(place, tmp_path, target, capsys):
    data = tmp_path / "data"
    words = (f"data_dir={data}", f"target={target}", "max_train_steps=2", "learning_rate=0.05")
    train(config(place, data / "runs" / "mine", *words))
    assert main(["use", "mine", "--data-dir", str(data)]) == 0
    made = capsys.readouterr().out.strip().splitlines()[-1]
    request = GenerationRequest("a red ball", height=32, width=48, num_frames=2, num_inference_steps=2, seed=1)
    if target == "lora":
        model, request = place / "model", request.replace(loras="mine-step-2")
        assert made == str(data / FOLDER / "mine-step-2.safetensors")
    else:
        model = "mine-step-2"
        shared = [(place / "model" / f).stat().st_ino == (data / "models" / model / f).stat().st_ino for f in ("model_index.json", "vae/config.json", "transformer/config.json")]
        assert shared == [True, True, False]
    pipe = load_pipeline(model, device="cpu", dtype="fp32", data_dir=data)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.generate(request).frames.shape == (1, 2, 32, 48, 3)
    told = made_with(pipe, request.loras)
    origin = told["loras"]["mine-step-2"] if target == "lora" else told["trained"]
    assert (origin["run"], origin["step"]) == ("mine", 2) and origin["model"] == str(place / "model") and len(origin["dataset_hash"]) == 12
    assert main(["use", "mine", "--data-dir", str(data), "--step", "9"]) == 2
    assert "no checkpoint of step 9; there are: step-2" in capsys.readouterr().err


def test_a_run_is_paused_and_resumed_from_outside(place, tmp_path, capsys):
    runs = Runs(tmp_path / "runs")
    save = config(place, tmp_path / "runs" / "long", f"data_dir={tmp_path}", "target=lora", "max_train_steps=100000", "checkpoint_every=100000")
    (tmp_path / "runs" / "long").mkdir(parents=True)
    save_config(save, tmp_path / "runs" / "long" / "config.yaml")
    assert runs.get("long").state == "stopped"
    for begun in range(2):
        assert main(["resume", "long", "--data-dir", str(tmp_path)]) == 0
        before = len(runs.get("long").checkpoints()) and runs.get("long").step
        wait_for(lambda: runs.get("long").state == "training" and runs.get("long").step > before, lambda: (tmp_path / "runs/long/log.txt").read_text()[-2000:])
        with pytest.raises(ConfigError, match="at work already"):
            runs.resume("long")
        assert not DeviceTurn(lock_path(tmp_path, "cpu")).take()
        assert main(["pause", "long", "--data-dir", str(tmp_path)]) == 0
        wait_for(lambda: runs.get("long").state == "paused", "the pause")
        assert runs.get("long").step == int(runs.get("long").checkpoints()[-1].name.split("-")[1]) > before
    assert DeviceTurn(lock_path(tmp_path, "cpu")).take()
    assert main(["runs", "--data-dir", str(tmp_path)]) == 0 and "long: paused, step" in capsys.readouterr().out
    assert main(["pause", "long", "--data-dir", str(tmp_path)]) == 2


@pytest.mark.parametrize("target", ["transformer", "temporal", "lora", "vae_decoder"])
def test_killed_and_resumed_equals_never_killed_bit_for_bit(place, tmp_path, target):
    words = (f"target={target}", "checkpoint_every=5", f"data_dir={tmp_path}")
    runs, folder = Runs(tmp_path / "runs"), tmp_path / "runs" / "killed"
    folder.mkdir(parents=True)
    save_config(config(place, folder, *words, "max_train_steps=100000"), folder / "config.yaml")
    pid = runs.resume("killed").pid
    wait_for(lambda: len(runs.get("killed").checkpoints()) > 0, lambda: (folder / "log.txt").read_text()[-2000:])
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: runs.get("killed").state == "stopped", "its end")
    end = int(runs.get("killed").checkpoints()[-1].name.split("-")[1]) + 5
    resumed = train(config(place, folder, *words, f"max_train_steps={end}"))
    whole = train(config(place, tmp_path / "runs" / "whole", *words, f"max_train_steps={end}"))
    for ours, theirs in zip(trained(whole), trained(resumed)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_run_is_launched_stopped_at_once_deleted_and_brought_back(place, tmp_path):
    runs = Runs(tmp_path / "runs")
    wanted = config(place, tmp_path / "elsewhere", f"data_dir={tmp_path}", "target=lora", "max_train_steps=100000", "checkpoint_every=100000")
    with pytest.raises(ConfigError, match="cannot be a folder's"):
        runs.launch("../out", wanted)
    before = runs.version()
    run = runs.launch("one", wanted, "cpu")
    assert run.folder == tmp_path / "runs" / "one" and run.working and run.config.output_dir == str(run.folder) and runs.version() != before
    with pytest.raises(ConfigError, match="a run one already"):
        runs.launch("one", wanted)
    wait_for(lambda: runs.get("one").step > 0, lambda: (run.folder / "log.txt").read_text()[-2000:])
    with pytest.raises(ConfigError, match="Stop it first"):
        runs.delete("one")
    runs.save_now("one")
    wait_for(lambda: runs.get("one").checkpoints(), "the checkpoint that was asked for")
    saved = int(runs.get("one").checkpoints()[0].name.split("-")[1])
    stopped = runs.stop("one")
    assert stopped.state == "paused" and stopped.step == saved and DeviceTurn(lock_path(tmp_path, "cpu")).take()
    with pytest.raises(ConfigError, match="not at work"):
        runs.stop("one")
    kept = runs.delete("one")
    assert runs.list() == [] and runs.restore(kept).step == saved
    with pytest.raises(ConfigError, match="another run of that name"):
        runs.restore(kept)
    kept = runs.delete("one")
    runs.purge()
    assert len(list((tmp_path / "runs" / TRASH).iterdir())) == 1
    runs.purge(older_than_days=-1)
    with pytest.raises(ConfigError, match="removed for good"):
        runs.restore(kept)
    assert not list((tmp_path / "runs" / TRASH).iterdir())


@pytest.mark.parametrize("target", ["transformer", "temporal", "lora"])
def test_what_a_run_needs_is_reckoned_from_the_model_and_from_earlier_runs(place, tmp_path, target):
    wanted = config(place, tmp_path / "runs" / "first", f"target={target}", "lora_rank=4")
    told = preflight(wanted, [])
    assert not told.measured and told.seconds is None and told.memory > told.trained * 16 and not told.problems
    assert preflight(config(place, tmp_path, f"target={target}", "lora_rank=4", "optimizer=adamw8bit"), []).memory == told.memory - 6 * told.trained
    assert preflight(config(place, tmp_path, f"target={target}", "lora_rank=4", "num_processes=2", "sharding=full"), []).memory == pytest.approx(told.memory / 2, abs=2)
    divided, whole = (preflight(config(place, tmp_path, f"target={target}", "lora_rank=4", "num_processes=2", f"sharding={sharding}"), []).memory for sharding in ("zero2", "deepspeed"))
    assert whole - divided == pytest.approx(6 * told.trained, abs=2), "weights and averages are whole, and half a copy of the weights comes on top"
    last = train(wanted)
    assert told.trained == sum(tensor.numel() for tensor in trained(last)[0].values())
    written = sum(file.stat().st_size for file in last.rglob("*") if file.is_file())
    assert written <= 1.1 * told.disk / (wanted.keep_last + 2) + 2**18
    again = preflight(wanted, Runs(tmp_path / "runs").list())
    rows = [row for row in read_run(tmp_path / "runs" / "first").metrics() if "seconds_per_step" in row]
    assert again.measured and again.seconds == pytest.approx(4 * rows[-1]["seconds_per_step"]) and again.memory == int(rows[-1]["memory_gb"] * 1e9)
    assert not preflight(load_config(None, [*(f"{k}={v}" for k, v in (("model", place / "model"), ("dataset", "x"), ("target", target))), "sizes=[64x48]"]), Runs(tmp_path / "runs").list()).measured


def test_encoders_that_stay_in_memory_are_reckoned_with(place, tmp_path, monkeypatch):
    numbers = {part: sum(parameter.numel() for parameter in getattr(tiny_pipeline(), part).parameters()) for part in ("vae", "text_encoder")}
    needed = lambda *words: preflight(config(place, tmp_path, "target=lora", *words), []).memory  # noqa: E731
    assert needed("latent_cache=false") - needed() == 4 * sum(numbers.values())
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "dataset.json").touch()
    assert needed(f"dataset={tmp_path / 'latents'}") - needed() == 4 * numbers["text_encoder"]
    decoder = [preflight(config(place, tmp_path, "target=vae_decoder", *words), []).memory for words in ((), ("latent_cache=false",))]
    assert decoder[0] == decoder[1], "it has no latents to keep"
    release = [preflight(load_config(None, ["model=TencentARC/Mira-v0:128", "dataset=x", "target=lora", f"data_dir={tmp_path}", *words]), []).memory for words in ((), ("latent_cache=false",))]
    assert release[1] - release[0] > TEXT_ENCODER_BYTES
    monkeypatch.setattr("training.preflight.memory_free", lambda device: 1000)
    assert "Set latent_cache to true" in preflight(config(place, tmp_path, "target=lora", "latent_cache=false"), []).problems[0]


def test_the_disk_that_latents_and_embeddings_take_is_reckoned_with(place, tmp_path, monkeypatch):
    words = ("target=lora", f"data_dir={tmp_path / 'data'}", "max_train_steps=1", "curriculum=[{steps: 1, num_frames: [8]}, {steps: 1}]", "takes_per_clip=2")
    told = preflight(config(place, tmp_path, *words), [])
    train(config(place, tmp_path, *words))
    written = sum(file.stat().st_size for folder in ("latents", "prompts") for file in (tmp_path / "data" / "cache" / folder).rglob("*.safetensors"))
    assert told.cache == pytest.approx(written, rel=0.1), "some takes are drawn twice, and each file has a header"
    assert preflight(config(place, tmp_path, *words, "clips=2"), []).cache < told.cache
    assert preflight(config(place, tmp_path, *words, f"keep_dataset={place / 'videos'}"), []).cache == 2 * told.cache
    assert [preflight(config(place, tmp_path, *words, other), []).cache for other in ("latent_cache=false", "target=vae_decoder", "dataset=nowhere")] == [0, 0, 0]
    assert preflight(config(place, tmp_path, *words, "keep_every=1", "max_train_steps=8"), []).disk == 3 * told.disk, "those that are kept for good"
    monkeypatch.setattr("training.preflight.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, told.disk + told.cache - 1))
    (problem,) = preflight(config(place, tmp_path, *words), []).problems
    assert "the latents and embeddings of its clips 0.0 GB" in problem and problem.endswith("or lower keep_last.")
    assert not preflight(config(place, tmp_path, *words, "latent_cache=false"), []).problems


def test_what_does_not_fit_is_said_before_it_begins(place, tmp_path, monkeypatch):
    wanted = config(place, tmp_path, "target=transformer")
    monkeypatch.setattr("training.preflight.memory_free", lambda device: 1000)
    monkeypatch.setattr("training.preflight.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    memory, disk = preflight(wanted, []).problems
    assert "of memory" in memory and "LoRA" in memory and "of disk are free" in disk
    assert "no model nowhere" in preflight(load_config(None, ["model=nowhere", "dataset=x"]), []).problems[0]


def test_memory_that_a_worker_gives_back_when_the_run_begins_counts_as_free(place, tmp_path, monkeypatch):
    code = "import sys; kept = b'x' * (700 * 2**20); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout.readline() == b"ready\n"
        assert 700 * 2**20 < memory_held(worker.pid, "cpu") < 900 * 2**20
        monkeypatch.setattr("training.preflight.memory_free", lambda device: 1000)
        wanted = config(place, tmp_path, "target=lora")
        assert preflight(wanted, []).problems and not preflight(wanted, [], "cpu", worker.pid).problems
    assert memory_held(worker.pid, "cpu") == 0 and preflight(wanted, [], "cpu", worker.pid).memory_free == 1000


def test_a_gpus_memory_is_asked_of_nvidia_smi_by_the_number_that_torch_gives_it(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\n[ "$2" = 3 ] || exit 6\ncase "$3" in *free) echo 4096;; *) printf "7, 512\\n8, 1024\\n9, [N/A]\\n";; esac\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert memory_free("cuda:1") == 4096 * 2**20 and [memory_held(pid, "cuda:1") for pid in (8, 9)] == [1024 * 2**20, 0]
    assert memory_free("cuda") == pytest.approx(memory_free("cpu"), rel=0.2), "where it answers nothing, this machine's"


@pytest.mark.parametrize("name", ["TencentARC/Mira-v0:128", "TencentARC/Mira-v1:768-5s"])
def test_what_a_release_needs_is_known_before_it_is_downloaded(tmp_path, monkeypatch, name):
    with torch.device("meta"):
        built = {"transformer": MiraTransformer3DModel(**RELEASES[name].transformer), "vae": build_mira_vae()}
    for part, model in built.items():
        assert released_shapes(RELEASES[name], part) == {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    monkeypatch.setattr("training.preflight.memory_free", lambda device: 10**11)
    monkeypatch.setattr("training.preflight.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10**12))
    wanted = {target: load_config(None, [f"model={name}", "dataset=x", f"target={target}", f"data_dir={tmp_path}"]) for target in ("transformer", "temporal", "lora", "vae_decoder")}
    told = {target: preflight(settings, []) for target, settings in wanted.items()}
    size = RELEASES[name].gigabytes * 1e9
    assert {needed.download for needed in told.values()} == {size} and not any(needed.problems or needed.measured for needed in told.values())
    blocks = built["transformer"].temporal_transformer_blocks
    assert told["transformer"].trained == sum(p.numel() for p in built["transformer"].parameters()) and told["temporal"].trained == sum(p.numel() for p in blocks.parameters())
    assert told["vae_decoder"].trained == sum(p.numel() for p in built["vae"].decoder.parameters()) and told["lora"].trained == 28 * 12 * 16 * 2 * 1152
    assert told["transformer"].memory == 20 * told["transformer"].trained and told["lora"].disk > 0
    monkeypatch.setattr("training.preflight.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, int(1.9 * size)))
    assert f"{2 * size / 1e9:.0f} GB for a while" in preflight(wanted["lora"], []).problems[0]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / RELEASES[name].file).touch()
    assert preflight(wanted["lora"], []).download == 0 and not preflight(wanted["lora"], []).problems


def test_a_process_that_was_killed_is_known_to_be_gone(place, tmp_path):
    runs = Runs(tmp_path / "runs")
    folder = tmp_path / "runs" / "dead"
    folder.mkdir(parents=True)
    save_config(config(place, folder, "target=lora"), folder / "config.yaml")
    Status("training", os.getpid(), created=1.0, step=7).write(folder)  # of another process with our number
    assert runs.get("dead").state == "stopped" and "ended without a word" in runs.get("dead").message


@pytest.mark.parametrize("text", ["a@b", "a@9", "a, a", "a@1@2"])
def test_loras_that_cannot_be_read_are_named(text):
    with pytest.raises(RequestError, match="LoRA"):
        GenerationRequest("x", loras=text).resolved()


def test_samples_are_made_by_the_pipeline_at_each_checkpoint_and_when_asked_for(place, tmp_path, monkeypatch):
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda trainer, batches: ((tmp_path / SAMPLE_NOW).touch() if trainer.step == 2 else None, step(trainer, batches))[1])
    train(config(place, tmp_path, "target=lora", "validation_prompts=[a red ball]", "validation_steps=2"))
    samples = read_run(tmp_path).samples()
    assert list(samples) == [2, 3, 4] and all(len(files) == 1 for files in samples.values())
    assert [path.name for path in read_run(tmp_path).checkpoints()] == ["step-2", "step-4"] and not (tmp_path / SAMPLE_NOW).exists()
    noted = {row["step"]: row for row in read_run(tmp_path).metrics() if "sample_sharpness" in row}
    assert list(noted) == [2, 3, 4]
    seen = measure(read_video(samples[4][0]))  # what the mp4 kept of it
    assert noted[4]["sample_sharpness"] == pytest.approx(seen["sharpness"], rel=0.5) and noted[4]["sample_flicker"] >= 0
    assert f"<td>{noted[4]['sample_sharpness']:.3g}</td><td>{noted[3]['sample_sharpness']:.3g}</td>" in render_samples(read_run(tmp_path))


def test_a_checkpoint_of_another_model_is_refused(place, tmp_path):
    other = tiny_pipeline(num_layers=1, num_attention_heads=4)
    other.save_pretrained(tmp_path / "model")
    last = train(config(place, tmp_path / "one", "target=transformer", "max_train_steps=1"))
    with pytest.raises(ConfigError, match="of another architecture: .* of its tensors do not fit the model, such as"):
        train(config(place, tmp_path / "two", "target=transformer", f"model={tmp_path / 'model'}", f"resume={last}"))


@pytest.mark.parametrize("first, order", [(None, "012"), (2, "201")])
def test_runs_get_the_device_in_the_order_of_asking_or_first_if_put_there(tmp_path, first, order):
    path = lock_path(tmp_path, "cpu")
    code = "import sys, time; from pathlib import Path; from core.device_lock import device_held\nwith device_held(Path(sys.argv[1])): print(sys.argv[2], end='', flush=True); time.sleep(0.2)"
    with device_held(path):
        waiting = []
        for number in range(3):
            waiting.append(subprocess.Popen([sys.executable, "-c", code, str(path), str(number)], stdout=(tmp_path / "order").open("a"), cwd=ROOT))
            wait_for(lambda: len(list(path.parent.glob("*.wanted-*"))) == number + 2, "its turn")
        if first is not None:
            assert ask_first(tmp_path, waiting[first].pid)
            since = [asked_since(tmp_path, process.pid) for process in waiting]
            assert min(since) == since[first]
    for process in waiting:
        assert process.wait(60) == 0
    assert (tmp_path / "order").read_text() == order
    assert not ask_first(tmp_path, waiting[0].pid) and asked_since(tmp_path, waiting[0].pid) is None


def test_a_run_from_a_shell_is_listed_while_it_waits_and_can_be_put_first(place, tmp_path):
    runs, file = Runs(tmp_path / "runs"), tmp_path / "mine.yaml"
    save_config(config(place, tmp_path / "runs" / "mine", "target=lora", f"data_dir={tmp_path}"), file)
    with device_held(lock_path(tmp_path, "cpu")):
        process = subprocess.Popen([sys.executable, "-m", "training", "--config", str(file), "--device", "cpu"], cwd=ROOT)
        try:
            wait_for(lambda: asked_since(tmp_path, process.pid), "its asking")
            (run,) = runs.list()
            assert run.state == "waiting" and run.asked > asked_since(tmp_path, os.getpid()) > runs.put_first("mine").asked
        finally:
            process.kill()
            process.wait()
    with pytest.raises(ConfigError, match="not at work"):
        runs.put_first("mine")


def test_accumulated_gradients_and_checkpointing_change_nothing_but_rounding(place, tmp_path):
    plain = train(config(place, tmp_path / "plain", "target=temporal", "max_train_steps=2"))
    for name, word in (("spared", "selective_checkpointing=false"), ("selective", "selective_checkpointing=true")):
        spared = train(config(place, tmp_path / name, "target=temporal", "max_train_steps=2", "gradient_checkpointing=true", word))
        for ours, theirs in zip(trained(plain)[0].values(), trained(spared)[0].values()):
            torch.testing.assert_close(ours, theirs)
    twice = train(config(place, tmp_path / "twice", "target=temporal", "max_train_steps=2", "gradient_accumulation_steps=2"))
    assert any(not torch.equal(a, b) for a, b in zip(trained(plain)[0].values(), trained(twice)[0].values()))


def test_fp16_scales_the_loss_and_resumes_exactly(place, tmp_path):
    words = ("target=transformer", "mixed_precision=fp16")
    train(config(place, tmp_path / "full", "target=transformer"))
    whole = train(config(place, tmp_path / "whole", *words))
    train(config(place, tmp_path / "parts", *words, "max_train_steps=2"))
    parts = train(config(place, tmp_path / "parts", *words))
    for ours, theirs in zip(trained(whole), trained(parts)):
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.load(whole / "training_state.pt", weights_only=True)["scaler"]["scale"] > 1
    losses = [[row["loss"] for row in read_run(tmp_path / name).metrics() if "loss" in row] for name in ("full", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2) and losses[0] != losses[1]  # no step was left out for an overflow


def test_selective_checkpointing_keeps_matrix_products_and_computes_the_rest_again(place, tmp_path):
    def operations(*words):
        task = TransformerTask(config(place, tmp_path, "target=transformer", *words), torch.device("cpu"))
        with CountOps() as count:
            task.loss(task.batch(0), 0)[0].backward()
        return count.seen

    plain, spared, selective = (operations(*words) for words in ((), ("gradient_checkpointing=true",), ("gradient_checkpointing=true", "selective_checkpointing=true")))
    assert spared["addmm"] > plain["addmm"] == selective["addmm"] and spared["gelu"] == selective["gelu"] > plain["gelu"]


class CountOps(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_an_exploding_loss_stops_the_run_and_says_where(place, tmp_path, monkeypatch):
    monkeypatch.setattr("training.trainer.DIVERGENCE_STEPS", 3)
    monkeypatch.setattr("training.trainer.DIVERGENCE", 1.5)
    with pytest.raises(Diverged, match="up to step"):
        train(config(place, tmp_path, "target=transformer", "learning_rate=0.9", "max_train_steps=60", "max_grad_norm=1e9", "checkpoint_every=100"))
    assert read_run(tmp_path).state == "failed" and "learning_rate" in read_run(tmp_path).message


@pytest.mark.parametrize(
    "words, message",
    [
        (["target=lora", "lora_layers=[to_z]"], "no projection of the model ends so"),
        (["target=lora", "lora_layers=[attn2.to_q]", "lora_blocks=temporal"], "no projection of the model's temporal blocks ends so"),
        (["target=lora", "sizes=[100x30]"], "sizes holds '100x30'"),
        (["target=temporal", "keep_dataset=old"], "keep_dataset is for a LoRA"),
        (["target=lora", "keep_weight=-8"], "keep_weight is -8.0; it must be 0 or more"),
        (["target=lora", "keep_dataset=old", "num_processes=2"], "keep_dataset is for a LoRA .*, in one process"),
        (["target=lora", "num_frames=[20]"], "no clip that can be trained on: .* too short: 9 frames, and 20 are needed"),
        (["target=lora", "model=nowhere"], "There is no model 'nowhere'"),
        (["target=lora", "dataset=nowhere"], "There is no dataset nowhere"),
    ],
)
def test_what_cannot_be_trained_is_said_in_words(place, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        train(config(place, tmp_path, *words))
    assert read_run(tmp_path).state == "failed" or not (tmp_path / "config.yaml").exists()

"""One run in several processes, over gloo: the same as in one, up to rounding."""

import contextlib
import json
import multiprocessing
import os
import socket
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from studio_app import PATIENCE, wait_for
from tiny import save_tiny_model

from core import save_video
from core.device_lock import DeviceTurn, lock_path
from training.__main__ import main
from training.config import ConfigError, TrainConfig, load_config
from training.runs import Runs, last_step, latest_checkpoint
from training.start import train


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model folder and eight captioned videos."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("processes")
    save_tiny_model(root / "model")
    rng = np.random.default_rng(0)
    (root / "videos").mkdir()
    for i in range(8):
        save_video(rng.integers(0, 255, (6, 32, 48, 3), dtype=np.uint8), root / "videos" / f"clip{i}.mp4", fps=8)
        (root / "videos" / f"clip{i}.txt").write_text(f"a red ball number {i}")
    return root


def config(place: Path, out: Path, *words: str) -> TrainConfig:
    plain = [f"model={place / 'model'}", f"dataset={place / 'videos'}", f"output_dir={out}", f"data_dir={place / 'data'}", "sizes=[48x32]", "num_frames=[4]", "frame_stride=1", "train_batch_size=4", "max_train_steps=4"]
    return load_config(None, [*plain, "checkpoint_every=2", "log_every=1", "mixed_precision=fp32", "num_threads=1", "validation_clips=2", "lr_warmup_steps=1", "learning_rate=1e-3", *words])


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["training.start", "training.targets.transformer", "training.targets.decoder", "torch.distributed.fsdp", "peft"])  # read once for all


def be_one_of_two(wanted: TrainConfig, rank: int, port: int) -> None:
    """What a launcher's process does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train(wanted, "cpu")


def train_in_two(wanted: TrainConfig) -> Path:
    """The last checkpoint of a training in two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [FORKS.Process(target=be_one_of_two, args=(wanted, rank, port)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
    assert [process.exitcode for process in both] == [0, 0]
    return latest_checkpoint(Path(wanted.output_dir))


def trained(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint / "training_state.pt", weights_only=True)
    return {**state["model"], **{f"average {name}": value for name, value in state["ema"]["average"].items()}}


deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed: DS_BUILD_OPS=0 pip install deepspeed")


@pytest.mark.parametrize(
    "words",
    [
        ("target=transformer", "gradient_accumulation_steps=2", "noise_offset=0.1"),
        ("target=transformer", "gradient_accumulation_steps=2", "sharding=full"),
        ("target=lora", "gradient_checkpointing=true", "snr_gamma=5", "sharding=full"),
        ("target=temporal", "sharding=zero2"),
        ("target=transformer", "gradient_accumulation_steps=2", "mixed_precision=bf16"),
        ("target=transformer", "gradient_accumulation_steps=2", "mixed_precision=bf16", "sharding=full"),
        ("target=lora", "mixed_precision=bf16", "sharding=full"),
        ("target=vae_decoder",),
        ("target=vae_decoder", "sharding=full"),
        pytest.param(("target=transformer", "gradient_accumulation_steps=2", "sharding=deepspeed"), marks=deepspeed),
        pytest.param(("target=lora", "mixed_precision=bf16", "sharding=deepspeed"), marks=deepspeed),
        pytest.param(("target=vae_decoder", "sharding=deepspeed"), marks=deepspeed),
    ],
    ids=["transformer", "transformer sharded", "lora sharded", "temporal zero2", "transformer bf16", "transformer sharded bf16", "lora sharded bf16", "vae_decoder", "vae_decoder sharded", "transformer deepspeed", "lora deepspeed", "vae_decoder deepspeed"],
)
def test_two_processes_make_what_one_makes(place, tmp_path, words):
    one = train(config(place, tmp_path / "one", *words))
    if "target=lora" in words:
        train_in_two(config(place, tmp_path / "two", *words, "max_train_steps=2"))
    two = train_in_two(config(place, tmp_path / "two", *words))
    start, ours, theirs = trained(one.with_name("step-2")), trained(one), trained(two)
    assert one.name == two.name == "step-4" and ours.keys() == theirs.keys()

    far, off = (0.1, 8e-3) if "mixed_precision=bf16" in words else (0.05, 1e-4)  # of a loss of 4, in eight binary digits

    def distance(a: dict, b: dict) -> float:
        return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5

    assert distance(ours, start) > 1e-3 and distance(ours, theirs) < far * distance(ours, start)
    curves = [[row["loss"] for row in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines()) if "loss" in row] for name in ("one", "two")]
    assert len(curves[0]) == 4 and curves[0] == pytest.approx(curves[1], abs=off)


def test_a_run_of_two_is_paused_and_goes_on_in_one(place, tmp_path):
    runs, folder = Runs(tmp_path / "runs"), tmp_path / "runs" / "long"
    wanted = config(place, folder, "target=lora", "max_train_steps=100000", "checkpoint_every=100000", "num_processes=2", "sharding=full", f"data_dir={tmp_path}")
    runs.launch("long", wanted, "cpu")
    try:
        wait_for(lambda: runs.get("long").step > 1, lambda: (folder / "log.txt").read_text()[-3000:])
        runs.save_now("long")
        wait_for(lambda: runs.get("long").checkpoints(), "the checkpoint that was asked for")
        runs.pause("long")
        wait_for(lambda: runs.get("long").state == "paused", lambda: (folder / "log.txt").read_text()[-3000:])
    finally:
        with contextlib.suppress(ConfigError):  # it ended, as it should
            runs.stop("long")
    wait_for(lambda: DeviceTurn(lock_path(tmp_path, "cpu")).take(), "the processes' end")
    step = runs.get("long").step
    wanted.max_train_steps, wanted.num_processes, wanted.output_dir = step + 1, 1, str(folder)
    assert train(wanted).name == f"step-{step + 1}"


def test_a_run_of_two_that_is_killed_goes_on_to_the_same_weights_bit_for_bit(place, tmp_path):
    runs, folder = Runs(tmp_path / "runs"), tmp_path / "runs" / "killed"
    words = ("target=transformer", "checkpoint_every=5", "num_processes=2", f"data_dir={tmp_path}")
    runs.launch("killed", config(place, folder, *words, "max_train_steps=100000"), "cpu")
    wait_for(lambda: runs.get("killed").checkpoints(), lambda: (folder / "log.txt").read_text()[-3000:])
    first = psutil.Process(runs.get("killed").pid)
    processes = [first.parent(), *first.parent().children(recursive=True)]
    first.kill()  # and torchrun ends the other one
    psutil.wait_procs(processes, timeout=PATIENCE)
    assert runs.get("killed").state == "stopped" and not any(process.is_running() for process in processes)
    end = last_step(folder) + 5
    resumed = train_in_two(config(place, folder, *words, f"max_train_steps={end}"))
    whole = train_in_two(config(place, tmp_path / "runs" / "whole", *words, f"max_train_steps={end}"))
    ours, theirs = trained(whole), trained(resumed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_machines_that_do_not_share_the_run_folder_are_told_so_rather_than_wait_for_each_other(place, tmp_path, monkeypatch):
    train(config(place, tmp_path, "target=lora", "max_train_steps=2"))
    monkeypatch.setattr("training.processes.Processes.gather", lambda processes, rows: [*rows, 0])
    with pytest.raises(ConfigError, match=r"begin at different steps \(0, 2\): .* is not the same folder on all machines"):
        train(config(place, tmp_path, "target=lora", "max_train_steps=4"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_batch_size=3"], "train_batch_size is 3; 2 processes share it"),
        (["train_batch_size=4", "num_frames=[60,48]"], "4 for clips of 60 frames, which makes 5 of 48 frames a step; 2 processes share these, so it must be a multiple of 2. The next train_batch_size that fits is 8"),
        (["target=text_encoder", 'dataset=""'], "trained by one process"),
        (["sharding=full", "optimizer=muon"], "sharding is full; it goes with optimizer=adamw"),
        (["num_processes=0"], "num_processes is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_divided_is_said_before_it_begins(place, tmp_path, capsys, words, message):
    command = ["--device", "cpu", f"model={place / 'model'}", f"dataset={place / 'videos'}", "target=lora", f"output_dir={tmp_path}", "num_processes=2", *words]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1

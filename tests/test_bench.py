"""The benchmarks' own arithmetic, and the GPU's one at a size that a CPU does at once."""

import dataclasses
import re

import numpy as np
import pytest
import torch

import bench
import bench_gpu
import bench_studio
import bench_word
from core import products
from core.presets import NANO, default_preset
from measure import work
from studio.services import Services
from tiny import save_tiny_model
from training.toyworld import render
from training.toyworld.scene import BACKGROUNDS, COLORS, SHAPES


def test_the_gpu_benchmark_at_small_size():
    small = dict(num_layers=1, num_attention_heads=2, attention_head_dim=16, caption_channels=12)
    rows = list(bench_gpu.measure(torch.device("cpu"), torch.float32, 1e9, ((32, 16, 2),), ((16, 16, 2),), ((32, 32, 2),), rounds=1, steps=2, transformer=small, vae=dict(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)))
    assert len(rows) == 3 and "2 steps with guidance, 32x16x2" in rows[0] and "16x16x2" in rows[1] and "full fine-tuning, 32x32x2" in rows[2]
    work, share = re.search(r"([\d.e-]+) TFLOP a step, (\d+) %", rows[0]).groups()
    assert float(work) > 0 and int(share) >= 0
    if not torch.cuda.is_available():
        assert bench_gpu.main([]) == 2


@pytest.mark.parametrize("dtype, tokens", ((torch.float32, 8), (torch.bfloat16, products.FEWEST)))
def test_work_that_onednn_does_is_counted_too(dtype, tokens):
    layer, rows = torch.nn.Linear(24, 40, dtype=dtype), torch.ones(2, tokens // 2, 24, dtype=dtype)
    for wanting_gradients in (True, False):  # with them torch's own product does it
        with torch.set_grad_enabled(wanting_gradients):
            assert work(lambda: products.apply(layer, rows, gelu=True)) == 2 * tokens * 24 * 40


@pytest.mark.parametrize("what, file", bench.TRAININGS.items())
def test_steps_of_a_lora_and_of_all_of_a_model_are_measured(tmp_path, what, file):
    small = dataclasses.replace(default_preset(NANO), num_frames=4, height=32, width=48)
    model = save_tiny_model(tmp_path / "model")
    *rows, told = bench._training(str(model), small, torch.device("cpu"), what, bench.ROOT / "training" / "configs" / file)
    assert [row.name for row in rows] == ["latents and prompts ready", "encoded in the step", "a plain loop, encoded in the step", "fetching a batch alone"]
    assert all(f"({what}, 4 clips of 4 frames)" in row.section and row.seconds > 0 for row in rows) and told.words.startswith(f"Training, {what}: ")


def test_the_plot_of_growth_sets_what_is_in_proportion_on_the_grey_line():
    growth = bench.Growth("frames", [("128x80x8, 1 at once", 0.5, 100), ("128x80x16, 1 at once", 1.0, 100), ("128x80x32, 1 at once", 2.0, 400)])
    grey, time, memory = (line.split('points="')[1].split('"')[0].split() for line in bench.plot([growth]).splitlines() if "polyline" in line)
    assert (time[0], time[-1]) == (grey[0], grey[-1]) and memory[0] == grey[0] and memory[-1] == grey[-1]
    assert memory[1].split(",")[1] == memory[0].split(",")[1] > time[1].split(",")[1]


@pytest.mark.parametrize("word", bench_word.SHADES)
def test_the_new_colour_and_the_old_ones_are_told_apart(word):
    rng, shade = np.random.default_rng(0), bench_word.SHADES[word]
    painted = {name: np.array(value) / np.linalg.norm(value) for name, value in {**COLORS, word: shade}.items()}
    for _ in range(20):
        spec = bench_word.one_object(rng)
        assert bench_word.color_of(render(spec, [5]), painted) == spec.color and bench_word.color_of(render(spec, [5], {**COLORS, spec.color: shade}), painted) == word
    assert bench_word.color_of(render(spec, [5], dict.fromkeys(COLORS, (0.5, 0.5, 0.5))), painted) is None


def test_the_new_colours_clips_show_each_shape_over_each_background(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_word, "KEPT", 10)
    bench_word.write_clips(tmp_path, "cyan")
    new, old = ([file.read_text() for file in sorted((tmp_path / name).glob("*.txt"))] for name in ("new", "old"))
    assert ["cyan" in text for text in new] == [True] * bench_word.CLIPS and ["cyan" in text for text in old] == [False] * 10
    shown = {(shape, background) for text in new for shape in SHAPES for background in BACKGROUNDS if f"cyan {shape}" in text and background in text}
    assert len(shown) == len(SHAPES) * len(BACKGROUNDS)


def test_what_is_done_in_a_crowded_studio_can_be_done_again_and_again(tmp_path):
    services = Services.open(tmp_path, start_worker=False)
    try:
        calls = bench_studio.crowd_calls(services)
        before = services.queue.counts()["waiting"], services.library.count(), services.votes.count("guidance_scale")
        for call in list(calls.values()) * 2:
            call()
        queued = 2  # one more in each round
        assert (services.queue.counts()["waiting"], services.library.count(), services.votes.count("guidance_scale")) == (before[0] + queued, before[1], before[2] + 2)
    finally:
        services.close()

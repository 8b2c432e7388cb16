"""Clips that start from something: what is kept stays, what is changed changes as far as asked, and nothing else moves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from core import GenerationRequest, RequestError
from core.schedulers_info import SAMPLERS
from core.start import load_start
from core.video_io import as_rgb, read_settings, read_video, save_video

SMALL = dict(height=32, width=48, num_frames=4, num_inference_steps=4, guidance_scale=3.0, fps=6, eta=0.5)
PROMPT = "a small red ball"


@pytest.fixture(scope="module")
def pipe():
    found = tiny_pipeline()
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Eight frames, each of one grey that tells its number; 6 frames a second."""
    frames = np.stack([np.full((32, 48, 3), 30 * index, np.uint8) for index in range(8)])
    return save_video(frames, tmp_path / "film.mp4", 6)


def source(pipe, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, pipe.transformer.config.in_channels, frames, 4, 6, generator=torch.Generator().manual_seed(seed))


def latents(pipe, seed: int = 5, sampler: str = "ddim", **more) -> torch.Tensor:
    return pipe(PROMPT, seed=seed, output_type="latent", sampler=sampler, **(SMALL | more)).frames


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_kept_frames_stay_and_the_others_follow_the_seed(pipe, sampler: str) -> None:
    kept = source(pipe, 2)
    one, other = (latents(pipe, seed, sampler, start_latents=kept) for seed in (5, 6))
    assert torch.equal(one[:, :, :2], kept) and torch.equal(other[:, :, :2], kept)
    assert not torch.allclose(one[:, :, 2:], other[:, :, 2:])
    assert not torch.allclose(one[:, :, 2:], latents(pipe, 5, sampler)[:, :, 2:], atol=1e-3), "the new frames see the kept ones"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_goes_from_the_source_to_a_clip_from_noise(pipe, sampler: str) -> None:
    clip = source(pipe, 4)
    free = latents(pipe, 5, sampler)
    assert torch.equal(latents(pipe, 5, sampler, start_latents=clip, strength=1.0), free)
    near, far = (latents(pipe, 5, sampler, start_latents=clip, strength=strength, num_inference_steps=20) for strength in (0.05, 0.8))
    assert (near - clip).norm() < 0.5 * (far - clip).norm()
    assert (near - clip).norm() < 0.5 * clip.norm()


def test_a_batch_gives_what_each_gives_alone(pipe) -> None:
    kept = source(pipe, 1)
    together = pipe([PROMPT, PROMPT], seed=[3, 4], output_type="latent", sampler="ddim", start_latents=kept, **SMALL).frames
    for index, seed in enumerate((3, 4)):
        assert torch.allclose(together[index : index + 1], latents(pipe, seed, start_latents=kept), rtol=1e-3, atol=1e-3)


def test_steps_are_counted_from_where_it_starts(pipe) -> None:
    seen = []
    latents(pipe, start_latents=source(pipe, 4), strength=0.5, callback_on_step_end=lambda p, step, t, report: seen.append((step, report["num_steps"])))
    assert seen == [(0, 2), (1, 2)]


@pytest.mark.parametrize(("shape", "more"), [((1, 8, 4, 4, 6), {}), ((1, 8, 2, 4, 6), {"strength": 0.5}), ((1, 8, 2, 4, 4), {}), ((3, 8, 2, 4, 6), {})])
def test_a_shape_that_does_not_fit_is_refused(pipe, shape: tuple[int, ...], more: dict) -> None:
    with pytest.raises(RequestError, match="start_latents have the shape"):
        latents(pipe, start_latents=torch.zeros(1, pipe.transformer.config.in_channels, *shape[2:]).expand(shape[0], -1, -1, -1, -1), **more)
    with pytest.raises(RequestError, match="needs start_latents"):
        latents(pipe, strength=0.5)


def test_a_continuation_keeps_the_last_frames_of_a_film(pipe, film: Path) -> None:
    request = GenerationRequest(PROMPT, start_from=str(film), start_frames=3, seed=1, height=32, width=48, num_frames=5, num_inference_steps=2, output_fps=6).resolved()
    assert np.abs(load_start(request).astype(int).mean(axis=(1, 2, 3)) - [150, 180, 210]).max() < 4
    made = pipe.generate(request, output_type="latent").frames
    assert torch.equal(made[:, :, :3], pipe.encode_start(request))
    half_speed = request.replace(output_fps=3, start_frames=2)
    assert np.abs(load_start(half_speed).astype(int).mean(axis=(1, 2, 3)) - [150, 210]).max() < 4
    with pytest.raises(RequestError, match="has only 8 at 6 frames"):
        load_start(request.replace(start_frames=12, num_frames=24))


def test_a_film_is_changed_whole(pipe, film: Path) -> None:
    request = GenerationRequest(PROMPT, start_from=str(film), strength=0.5, seed=1, height=32, width=32, num_frames=4, num_inference_steps=2).resolved()
    frames = load_start(request)
    assert frames.shape == (4, 32, 32, 3) and np.abs(frames.astype(int).mean(axis=(1, 2, 3)) - [0, 60, 150, 210]).max() < 4
    assert pipe.generate(request).frames.shape == (1, 4, 32, 32, 3)


def test_a_phones_portrait_film_stands_upright(tmp_path: Path) -> None:
    import imageio_ffmpeg

    lying = np.zeros((4, 32, 64, 3), np.uint8)
    lying[:, :, 48:] = 255  # its right end
    save_video(lying, tmp_path / "plain.mp4", 6)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", str(tmp_path / "plain.mp4"), "-c", "copy", str(tmp_path / "turned.mp4")]
    subprocess.run(command, check=True)
    frames = load_start(GenerationRequest(PROMPT, start_from=str(tmp_path / "turned.mp4"), strength=0.5, height=64, width=32, num_frames=4).resolved())
    assert frames[:, :12].mean() > 240 and frames[:, 20:].mean() < 15, "turned anticlockwise, the right end is the top"
    assert read_video(tmp_path / "turned.mp4").shape == (4, 64, 32, 3)


def test_of_a_long_film_only_what_is_used_is_kept(film: Path, monkeypatch) -> None:
    """Two hours in full size would not fit into memory."""
    read = []
    monkeypatch.setattr("core.start.as_rgb", lambda frame: read.append(frame) or as_rgb(frame))
    load_start(GenerationRequest(PROMPT, start_from=str(film), start_frames=2, height=32, width=48, num_frames=4, output_fps=6).resolved())
    assert len(read) == 2


def test_a_picture_is_the_first_frame(pipe, tmp_path: Path) -> None:
    picture = np.zeros((64, 200, 3), np.uint8)
    picture[:, 60:140, 0] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    request = GenerationRequest(PROMPT, start_from=str(tmp_path / "picture.png"), seed=1, height=32, width=32, num_frames=3, num_inference_steps=2).resolved()
    assert request.start_frames == 1
    frames = load_start(request)
    assert frames.shape == (1, 32, 32, 3) and frames[0, :, 4:-4, 0].min() > 200, "cut at its middle"
    assert pipe.generate(request).frames.shape == (1, 3, 32, 32, 3)
    save_video(np.zeros((2, 32, 32, 3), np.uint8), tmp_path / "made.mp4", 6, request.to_dict())
    assert GenerationRequest.from_dict(read_settings(tmp_path / "made.mp4")) == request


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start_frames": 2}, "nothing to start from"),
        ({"strength": 0.5}, "nothing to start from"),
        ({"start_from": "x.mp4", "start_frames": 2, "strength": 0.5}, "Both start_frames and strength"),
        ({"start_from": "x.mp4", "start_frames": 24}, "from 1 to 23"),
        ({"start_from": "x.mp4", "strength": 0.0}, "above 0"),
        ({"start_from": "x\x00.mp4"}, "start_from contains U.0000"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        GenerationRequest(PROMPT, **settings).resolved()


def test_a_file_that_cannot_be_used_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name, words in (("gone.mp4", "There is no file"), ("text.png", "cannot be read")):
        with pytest.raises(RequestError, match=words):
            load_start(GenerationRequest(PROMPT, start_from=str(tmp_path / name)).resolved())

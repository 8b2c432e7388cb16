"""Long clips window by window: what the model is given, how it is put together, and that nothing changes where one window is enough."""

import numpy as np
import pytest
import torch

from core import GenerationRequest
from core.schedulers import SAMPLERS, MiraScheduler
from core.types import RequestError
from core import windows as windows_module
from core.windows import between, decode_in_windows, keyframes, places, predict_in_windows, windows
from tiny import tiny_pipeline

SMALL = dict(height=16, width=32, fps=6, num_inference_steps=4, guidance_scale=3.0, eta=0.0)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture
def seen(pipe, monkeypatch):
    """Frames that the transformer, and the VAE, are given at each call."""
    counts = {"transformer": [], "vae": []}
    forward, decode = pipe.transformer.forward, pipe.vae.decode
    monkeypatch.setattr(pipe.transformer, "forward", lambda **inputs: counts["transformer"].append(inputs["hidden_states"].shape[2]) or forward(**inputs))
    monkeypatch.setattr(pipe.vae, "decode", lambda latents, num_frames: counts["vae"].append(num_frames) or decode(latents, num_frames=num_frames))
    return counts


def test_one_window_is_the_plain_result_bit_for_bit(pipe, seen):
    plain = pipe("a red ball", seed=3, num_frames=6, **SMALL).frames
    calls = [list(values) for values in seen.values()]
    assert np.array_equal(pipe("a red ball", seed=3, num_frames=6, window_frames=6, **SMALL).frames, plain)
    assert [values[len(before) :] for values, before in zip(seen.values(), calls)] == calls


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_makes_a_long_clip_and_neither_model_sees_more_than_a_window(pipe, seen, sampler):
    made = pipe("a red ball", seed=3, num_frames=15, window_frames=6, sampler=sampler, **SMALL).frames
    assert made.shape == (1, 15, 16, 32, 3) and np.isfinite(made).all() and made.std() > 0
    assert set(seen["transformer"]) == {6} and set(seen["vae"]) == {6} and len(seen["transformer"]) > SMALL["num_inference_steps"]


def test_a_call_has_the_windows_of_its_request_and_all_at_once_stays_possible(pipe, seen, monkeypatch):
    """Of a model whose preset is for fewer frames than are asked for."""
    monkeypatch.setattr(pipe, "model_name", "mira-nano")
    small = dict(height=16, width=32, num_inference_steps=1)
    pipe("a red ball", num_frames=30, output_type="latent", **small)
    pipe.generate(GenerationRequest("a red ball", num_frames=30, **small), output_type="latent")
    assert set(seen["transformer"]) == {24}
    seen["transformer"].clear()
    pipe.generate(GenerationRequest("a red ball", preset="nano-4s", num_frames=30, **small), output_type="latent")
    assert set(seen["transformer"]) == {30}
    assert pipe.generate(GenerationRequest("a red ball", num_frames=1, **small), output_type="latent").frames.shape[2] == 1


@pytest.mark.parametrize("window_frames, cached", [(None, True), (6, True), (4, False)])
def test_one_window_keeps_the_cache_of_steps(pipe, monkeypatch, window_frames, cached):
    caches, forward = [], pipe.transformer.forward
    monkeypatch.setattr(pipe.transformer, "forward", lambda **inputs: caches.append(inputs["cache"]) or forward(**inputs))
    pipe("a red ball", num_frames=6, window_frames=window_frames, quality="fast", output_type="latent", **SMALL)
    assert (caches[0] is not None) == cached


@pytest.mark.parametrize("num_frames, window_frames, overlap", [(25, 6, 3), (7, 6, 3), (120, 24, 6), (9, 2, 1), (13, 5, 0)])
def test_weights_of_windows_add_up_to_one_and_windows_overlap(num_frames, window_frames, overlap):
    total, ends = torch.zeros(num_frames, dtype=torch.float64), []
    for start, weights in windows(num_frames, window_frames, overlap):
        assert (weights > 0).all() and (not ends or start <= ends[-1] - overlap)
        total[start : start + window_frames] += weights
        ends.append(start + window_frames)
    assert torch.allclose(total, torch.ones(num_frames, dtype=torch.float64)) and ends[-1] == num_frames


@pytest.mark.parametrize("timestep", [999, 10])
def test_what_all_windows_agree_on_is_the_result(timestep):
    """Keyframes between which things move evenly, and windows that say the same of each frame, give just that."""
    schedule = MiraScheduler(prediction_type="v_prediction")
    clean = torch.arange(20.0).view(1, 1, 20, 1, 1).expand(1, 2, 20, 2, 2)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    at = torch.tensor([timestep])
    x_t, target = schedule.add_noise(clean, noise, at), schedule.target(clean, noise, at)

    def predict(part):  # knows the frames by their noise
        assert part.shape[2] == 8
        return target[:, :, [int((x_t[0, 0, :, 0, 0] - value).abs().argmin()) for value in part[0, 0, :, 0, 0]]]

    result = predict_in_windows(predict, schedule, x_t, timestep, 8)
    keys = keyframes(20, 8)
    assert torch.allclose(result[:, :, keys], target[:, :, keys], atol=1e-3)
    assert torch.allclose(schedule.to_x0(result, x_t, at), clean, atol=2e-2)


@pytest.mark.parametrize("timestep", [999, 10])
def test_the_second_step_of_a_clip_copies_nothing_to_its_device(timestep, monkeypatch):
    schedule, x_t = MiraScheduler(), torch.randn(1, 2, 21, 2, 2)
    first = predict_in_windows(lambda part: part, schedule, x_t, timestep, 9)
    for name in ("keyframes", "places", "windows"):
        monkeypatch.setattr(windows_module, name, lambda *_: pytest.fail("made again"))
    assert torch.equal(predict_in_windows(lambda part: part, schedule, x_t, timestep, 9), first)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_output_for_clean_latents_stands_for_them(prediction_type):
    schedule = MiraScheduler(prediction_type=prediction_type)
    clean, noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    at = torch.tensor([700, 50])
    x_t = schedule.add_noise(clean, noise, at)
    assert torch.allclose(schedule.from_x0(clean, x_t, at), schedule.target(clean, noise, at), atol=1e-4)


def test_keyframes_reach_from_end_to_end_and_frames_between_them_lie_on_lines():
    assert keyframes(9, 3) == [0, 4, 8] and keyframes(360, 24)[-1] == 359
    x0 = torch.tensor([0.0, 8.0, 0.0]).view(1, 1, 3, 1, 1)
    assert between(x0, *places([0, 4, 8], 9)).flatten().tolist() == [0, 2, 4, 6, 8, 6, 4, 2, 0]


def test_windows_that_decode_alike_leave_no_trace():
    latents = torch.randn(1, 4, 11, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(decode_in_windows(lambda part: 2 * part, latents, 4), 2 * latents, atol=1e-6)


def test_a_preset_has_windows_and_a_request_may_have_others():
    assert GenerationRequest("x", preset="nano-60s").resolved().window_frames == 24
    assert GenerationRequest("x", model="TencentARC/Mira-v0:128", preset="128-60s").resolved().window_frames == 120
    assert GenerationRequest("x", preset="nano-60s", window_frames=360).resolved().window_frames == 360
    with pytest.raises(RequestError, match="at least 2"):
        GenerationRequest("x", window_frames=1).resolved()

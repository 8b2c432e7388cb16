"""The noise schedule and every sampler on it, against exact solutions for data whose best denoiser is known."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler

from waiting import GPU, NoWaiting, OnGPU, Waited

from core.schedulers import MiraScheduler, draw_noise, make_sampler
from core.schedulers_info import SAMPLERS
from core.types import RequestError

DETERMINISTIC = {"ddim": (0.1, 0.04), "euler": (0.08, 0.025), "dpm++2m": (0.01, 0.005), "unipc": (0.01, 0.005), "heun": (0.01, 0.005)}
"""Sampler: how far 20 of its steps may be from 1,000 of ddim's on average, and 100 at most (the data spread over 1.1)."""
STOCHASTIC = ("ddim", "ddpm", "euler_a", "dpm++2m_sde")
PREDICTION_TYPES = ("epsilon", "v_prediction")
MODES, WIDTH = (-0.8, 1.2), 0.4


def mixture_denoiser(schedule: MiraScheduler):
    """The best possible prediction for x_0 drawn from two equal Gaussians around MODES."""

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        signal, noise = schedule.signal[t].double(), schedule.noise[t].double()
        x, variance = x.double(), (signal * WIDTH) ** 2 + noise**2
        responsibility = torch.softmax(torch.stack([-((x - signal * mode) ** 2) / (2 * variance) for mode in MODES]), 0)
        x0 = sum(r * (mode + signal * WIDTH**2 / variance * (x - signal * mode)) for r, mode in zip(responsibility, MODES))
        epsilon = (x - signal * x0) / noise
        if schedule.config.prediction_type == "epsilon":
            return epsilon.float()
        return (schedule.alpha[t] * epsilon - schedule.sigma[t] * x0).float()

    return predict


def run(schedule, name, steps, noise, eta=0.0, generator=None, denoiser=None):
    sampler, denoiser = make_sampler(schedule, name, steps, eta), denoiser or mixture_denoiser(schedule)
    state = sampler.init(noise)
    for i, t in enumerate(sampler.timesteps):
        state = sampler.step(denoiser(sampler.latents(state, i), t), i, state, generator)
    return sampler.latents(state, len(sampler.timesteps))


def test_schedule_follows_mira():
    schedule = MiraScheduler(scale_b=0.3)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(schedule.alphas_cumprod.double(), torch.cumprod(1 - betas, 0), atol=1e-6, rtol=1e-5)
    assert schedule.scale_arr[0] == 1 and (schedule.scale_arr[399:] == torch.tensor(0.3)).all() and schedule.scale_arr[398] > 0.3
    torch.testing.assert_close(schedule.scale_arr[:400].diff(), torch.full((399,), -0.7 / 399), atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(1000))
    assert (MiraScheduler(scale_b=1.0).norm - 1).abs().max() < 1e-6


def test_add_noise_is_the_rescaled_process():
    schedule, t = MiraScheduler(), torch.tensor([0, 250, 999])
    x0, noise = torch.randn(3, 4, 2, 3, 5), torch.randn(3, 4, 2, 3, 5)
    abar, s = (table[t].reshape(3, 1, 1, 1, 1) for table in (schedule.alphas_cumprod, schedule.scale_arr))
    torch.testing.assert_close(schedule.add_noise(x0, noise, t), abar.sqrt() * s * x0 + (1 - abar).sqrt() * noise)
    torch.testing.assert_close(schedule.snr(t), (abar * s**2 / (1 - abar)).flatten(), rtol=1e-4, atol=0)
    assert schedule.add_noise(x0.bfloat16(), noise.bfloat16(), t).dtype == torch.bfloat16


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_target_leads_back_to_noise_and_x0(prediction_type):
    schedule, t = MiraScheduler(prediction_type=prediction_type, scale_b=0.3), torch.tensor([1, 399, 900])
    x0, noise = torch.randn(3, 4, 2, 3, 5), torch.randn(3, 4, 2, 3, 5)
    x_t, target = schedule.add_noise(x0, noise, t), schedule.target(x0, noise, t)
    torch.testing.assert_close(schedule.to_epsilon(target, x_t, t), noise, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.to_x0(target, x_t, t), x0, atol=1e-4, rtol=1e-4)


def test_config_round_trip(tmp_path):
    MiraScheduler(scale_b=0.3, prediction_type="v_prediction").save_pretrained(tmp_path)
    loaded = MiraScheduler.from_pretrained(tmp_path)
    assert loaded.config.scale_b == 0.3 and loaded.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("wrong", [dict(prediction_type="eps"), dict(scale_b=0.0), dict(scale_mid_step=2000), dict(beta_schedule="cosine")])
def test_wrong_config_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        MiraScheduler(**wrong)


@pytest.mark.parametrize("scale_b", [1.0, 0.7, 0.3])
def test_ddim_equals_diffusers_ddim_on_the_normalised_process(scale_b):
    schedule, noise = MiraScheduler(scale_b=scale_b), torch.randn(64, generator=torch.Generator().manual_seed(0))
    theirs = DDIMScheduler(trained_betas=schedule.normalised_betas.tolist(), clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(20)
    denoiser, y = mixture_denoiser(schedule), noise / schedule.norm[951]
    for t in theirs.timesteps:
        y = theirs.step(denoiser(y * schedule.norm[t], int(t)), int(t), y).prev_sample
    assert make_sampler(schedule, "ddim", 20).timesteps == theirs.timesteps.tolist()
    torch.testing.assert_close(run(schedule, "ddim", 20, noise), y, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("begin", ["noise", "strength"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 20, 50])
def test_unipc_equals_diffusers_unipc_on_the_normalised_process(steps, prediction_type, begin):
    """Of order 2 with B_2, on the same timesteps, after every step."""
    schedule = MiraScheduler(prediction_type=prediction_type)
    x0, noise = torch.randn(2, 1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ours, denoiser = make_sampler(schedule, "unipc", steps), mixture_denoiser(schedule)
    first = ours.first(0.7) if begin == "strength" else 0
    theirs = UniPCMultistepScheduler(solver_order=2, solver_type="bh2", lower_order_final=True, prediction_type=prediction_type)
    theirs.set_timesteps(steps)
    theirs.num_inference_steps, theirs.timesteps = steps, torch.tensor(ours.timesteps)  # it takes a count alone
    theirs.sigmas = torch.cat([(schedule.noise / schedule.signal)[ours.timesteps], torch.zeros(1)])
    theirs.set_begin_index(first)
    state = ours.start(x0, noise, first) if first else ours.init(noise)
    y = state / schedule.norm[ours.timesteps[first]]
    for i, t in list(enumerate(ours.timesteps))[first:]:
        state = ours.step(denoiser(ours.latents(state, i), t), i, state, None)
        y = theirs.step(denoiser(y * schedule.norm[t], t), t, y).prev_sample
        norm = schedule.norm[ours.timesteps[i + 1]] if i + 1 < steps else 1.0
        torch.testing.assert_close(ours.latents(state, i + 1), y * norm, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_agree_with_long_ddim(name, prediction_type):
    schedule = MiraScheduler(scale_b=0.7, prediction_type=prediction_type)
    noise = torch.linspace(-2.5, 2.5, 41)[None]
    truth = run(MiraScheduler(scale_b=0.7), "ddim", 1000, noise)
    assert truth.std() > 0.8  # both modes are reached: the test is not about a constant
    few, many = DETERMINISTIC[name]
    assert (run(schedule, name, 20, noise) - truth).abs().mean() < few
    assert (run(schedule, name, 100, noise) - truth).abs().max() < many


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_ignore_the_generator(name):
    schedule, noise = MiraScheduler(), torch.randn(2, 3)
    first, second = (run(schedule, name, 5, noise, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_reach_the_distribution(name, prediction_type):
    schedule, generator = MiraScheduler(scale_b=0.7, prediction_type=prediction_type), torch.Generator().manual_seed(3)
    result = run(schedule, name, 200, torch.randn(1, 20_000, generator=generator), eta=1.0, generator=generator)
    middle, spread = sum(MODES) / 2, math.sqrt(WIDTH**2 + ((MODES[1] - MODES[0]) / 2) ** 2)
    assert abs(result.mean() - middle) < 0.05
    assert abs(result.std() - spread) < 0.05
    for mode in MODES:  # each mode keeps its weight and its width, not only the whole
        near = result[(result - mode).abs() < (MODES[1] - MODES[0]) / 2]
        assert abs(near.numel() / result.numel() - 0.5) < 0.05 and abs(near.mean() - mode) < 0.05


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_is_drawn_for_each_item_from_its_own_generator(name):
    schedule = MiraScheduler()
    seeds = (11, 12)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    together = run(schedule, name, 6, draw_noise((2, 4, 3), generators, "cpu"), 1.0, generators)
    for i, seed in enumerate(seeds):
        own = [torch.Generator().manual_seed(seed)]
        torch.testing.assert_close(together[i : i + 1], run(schedule, name, 6, draw_noise((1, 4, 3), own, "cpu"), 1.0, tuple(own)))
    assert not torch.allclose(together[0], together[1])


def test_ddim_eta_one_draws_the_originals_noise_scale():
    """With a denoiser that predicts zero, a step's noise has the variance of eq. 16 from abar, not from the rescaled process."""
    schedule = MiraScheduler(scale_b=0.3)
    sampler = make_sampler(schedule, "ddim", 50, eta=1.0)
    zeros = torch.zeros(1, 20_000)
    stepped = sampler.step(zeros, 0, zeros, [torch.Generator().manual_seed(0)])
    a, prev = schedule.alphas_cumprod[981].item(), schedule.alphas_cumprod[961].item()
    expected = math.sqrt((1 - prev) / (1 - a) * (1 - a / prev))
    assert stepped.std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 61, 103, 501, 999, 1000])
def test_any_number_of_steps(name, steps):
    sampler = make_sampler(MiraScheduler(), name, steps, eta=1.0)
    assert len(sampler.timesteps) == (2 * steps - 1 if name == "heun" else steps)
    assert sampler.timesteps == sorted(sampler.timesteps, reverse=True) and 0 <= sampler.timesteps[-1] <= sampler.timesteps[0] <= 999
    assert len(set(sampler.timesteps)) == steps
    if steps <= 103:
        result = run(MiraScheduler(), name, steps, torch.linspace(-2, 2, 5)[None], 1.0, torch.Generator().manual_seed(0))
        assert result.isfinite().all() and result.abs().max() < 8


def test_tiny_last_steps_stay_finite():
    for name in SAMPLERS:
        result = run(MiraScheduler(), name, 1000, torch.linspace(-2, 2, 5)[None], 1.0, torch.Generator().manual_seed(0))
        assert result.isfinite().all(), name


@pytest.mark.parametrize("name, steps, eta, field", [("ddimm", 5, 0, "sampler"), ("ddim", 0, 0, "num_inference_steps"), ("ddim", 10_000, 0, "num_inference_steps"), ("ddim", 5, math.nan, "eta")])
def test_wrong_choices_are_refused(name, steps, eta, field):
    with pytest.raises(RequestError) as error:
        make_sampler(MiraScheduler(), name, steps, eta)
    assert error.value.field == field


@pytest.fixture
def no_driver(monkeypatch):
    """Nothing asks for one."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_no_step_waits_for_a_gpu(name, prediction_type, no_driver):
    """Nor is any result another than on a CPU."""
    schedule, noise = MiraScheduler(prediction_type=prediction_type), torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    generators = [[torch.Generator().manual_seed(seed) for seed in (1, 2)] for _ in range(2)]
    expected = run(schedule, name, 6, noise, 1.0, generators[0], denoiser=lambda x, t: torch.tanh(x))
    with NoWaiting():
        result = run(schedule, name, 6, OnGPU(noise), 1.0, generators[1], denoiser=lambda x, t: torch.tanh(x))
    assert result.device == GPU and torch.equal(result.inner, expected)


def test_waiting_for_a_gpu_is_noticed(no_driver):
    there = OnGPU(torch.ones(3))
    with NoWaiting():
        assert (torch.ones(3).to(GPU, non_blocking=True) + there * torch.tensor(2.0)).inner.tolist() == [3, 3, 3]
        for wait in (lambda: there.cpu(), lambda: torch.ones(3).to(GPU), lambda: there.sum().item(), lambda: bool(there.sum() > 2)):
            with pytest.raises(Waited):
                wait()

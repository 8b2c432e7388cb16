"""Mira's noise schedule for training, and the samplers that run on it.

The process (DDPM's, arXiv:2006.11239 eq. 4, with the signal scaled down as noise grows):

    x_t = sqrt(abar_t) s_t x_0 + sqrt(1 - abar_t) eps,        s_t: 1 -> scale_b over the first scale_mid_step steps, then constant.

Its variance is not one. With ``n_t = sqrt(abar_t s_t^2 + 1 - abar_t)`` the state ``y_t = x_t / n_t`` is an ordinary
variance-preserving process,

    y_t = alpha_t x_0 + sigma_t eps,   alpha_t = sqrt(abar_t) s_t / n_t,   sigma_t = sqrt(1 - abar_t) / n_t,   alpha_t^2 + sigma_t^2 = 1,

so that diffusers' own schedulers solve it unchanged, given its betas, as long as the transformer is fed ``n_t`` times their latents.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, Protocol, Sequence

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .schedulers_info import SAMPLERS
from .types import RequestError, nearest

PREDICTION_TYPES = ("epsilon", "v_prediction")


class MiraScheduler(SchedulerMixin, ConfigMixin):
    """The noise schedule: what training adds, what the transformer predicts, and what the samplers are built from.

    Args:
        num_train_timesteps: Steps of the forward process; timesteps run from 0 (least noise) to this minus 1.
        beta_start, beta_end: First and last beta.
        beta_schedule: "scaled_linear" (linear in sqrt(beta), as in latent diffusion and Mira) or "linear".
        scale_b: Where the signal's scale ends: 0.7 in Mira-v0, 0.3 in Mira-v1, 1 for a plain schedule.
        scale_mid_step: Steps over which the scale falls from 1 to ``scale_b``.
        prediction_type: "epsilon" (Mira), or "v_prediction" (arXiv:2202.00512) on the normalised process y_t:
            ``v = alpha_t eps - sigma_t x_0``. (The original code has a v target too, but with abar_t alone; together with the
            scale it does not lead back to x_0, so no released model uses it.)

    ``alphas_cumprod`` and ``scale_arr`` are float32 tensors of length ``num_train_timesteps`` on the CPU.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear",
        scale_b: float = 0.7,
        scale_mid_step: int = 400,
        prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    ):
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"There is no prediction_type {prediction_type!r}.{nearest(prediction_type, PREDICTION_TYPES)} Known: {', '.join(PREDICTION_TYPES)}.")
        if not 0 < scale_b <= 1:
            raise ValueError(f"scale_b is {scale_b}; it must be above 0 and at most 1.")
        if not 1 <= scale_mid_step <= num_train_timesteps:
            raise ValueError(f"scale_mid_step is {scale_mid_step}; it must be from 1 to num_train_timesteps ({num_train_timesteps}).")
        if beta_schedule == "scaled_linear":
            betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        elif beta_schedule == "linear":
            betas = np.linspace(beta_start, beta_end, num_train_timesteps)
        else:
            raise ValueError(f"There is no beta_schedule {beta_schedule!r}. Known: scaled_linear, linear. (Mira's YAML calls scaled_linear 'linear'.)")

        alphas_cumprod = np.cumprod(1 - betas)
        scale = np.full(num_train_timesteps, float(scale_b))
        scale[:scale_mid_step] = np.linspace(1, scale_b, scale_mid_step)
        signal, noise = np.sqrt(alphas_cumprod) * scale, np.sqrt(1 - alphas_cumprod)
        norm = np.sqrt(signal**2 + noise**2)

        def table(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).float()

        self.alphas_cumprod, self.scale_arr = table(alphas_cumprod), table(scale)
        self.signal, self.noise = table(signal), table(noise)  # x_t = signal x_0 + noise eps
        self.norm = table(norm)  # n_t
        self.alpha, self.sigma = table(signal / norm), table(noise / norm)  # y_t = alpha x_0 + sigma eps
        normalised = (signal / norm) ** 2
        self.normalised_betas = 1 - normalised / np.concatenate(([1.0], normalised[:-1]))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of x_0 ``[B, ...]`` with ``noise`` of the same shape at ``timesteps [B]`` (integers): Mira's q_sample."""
        signal, level = _at(self.signal, timesteps, original_samples), _at(self.noise, timesteps, original_samples)
        return (signal * original_samples + level * noise).to(original_samples.dtype)

    def target(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the transformer is trained to predict at ``timesteps [B]``: eps, or v of the normalised process."""
        if self.config.prediction_type == "epsilon":
            return noise
        alpha, sigma = _at(self.alpha, timesteps, noise), _at(self.sigma, timesteps, noise)
        return (alpha * noise - sigma * original_samples).to(noise.dtype)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio ``abar_t s_t^2 / (1 - abar_t)``, float32 ``[B]`` on the device of ``timesteps``."""
        index = timesteps.long().cpu()
        return (self.signal[index] / self.noise[index]).square().to(timesteps.device)

    def to_epsilon(self, model_output: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """The noise that ``model_output`` stands for, given x_t ``sample [B, ...]`` at ``timesteps [B]``."""
        if self.config.prediction_type == "epsilon":
            return model_output
        alpha, sigma, norm = (_at(table, timesteps, sample) for table in (self.alpha, self.sigma, self.norm))
        return alpha * model_output + sigma * sample / norm

    def to_x0(self, model_output: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that ``model_output`` stands for, given x_t ``sample [B, ...]`` at ``timesteps [B]``."""
        if self.config.prediction_type == "epsilon":
            return (sample - _at(self.noise, timesteps, sample) * model_output) / _at(self.signal, timesteps, sample)
        alpha, sigma, norm = (_at(table, timesteps, sample) for table in (self.alpha, self.sigma, self.norm))
        return alpha * sample / norm - sigma * model_output

    def from_x0(self, x0: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """The model's output that stands for clean latents ``x0``, given x_t ``sample [B, ...]`` at ``timesteps [B]``: ``to_x0`` the other way round."""
        if self.config.prediction_type == "epsilon":
            return (sample - _at(self.signal, timesteps, sample) * x0) / _at(self.noise, timesteps, sample)
        alpha, sigma, norm = (_at(table, timesteps, sample) for table in (self.alpha, self.sigma, self.norm))
        return (alpha * sample / norm - x0) / sigma

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _at(table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """``table[timesteps]`` on the device of ``like``, shaped ``[B, 1, ...]`` to broadcast against it."""
    values = table[timesteps.long()] if timesteps.device == table.device else table.to(timesteps.device)[timesteps.long()]
    values = values.to(like.device, non_blocking=True)  # or a GPU would have to finish its work first
    return values.reshape(-1, *[1] * (like.ndim - 1))


class Sampler(Protocol):
    """Solves the reverse process, one model evaluation at a time:

        state = sampler.init(noise)
        for i, t in enumerate(sampler.timesteps):
            state = sampler.step(model(sampler.latents(state, i), t), i, state, generators)
        x_0 = sampler.latents(state, len(sampler.timesteps))
    """

    timesteps: list[int]
    """The timestep of every model evaluation (heun has nearly two a step)."""

    def init(self, noise: Tensor) -> Tensor:
        """The solver's own state for x_T = ``noise`` (unit variance, fp32)."""

    def start(self, original_samples: Tensor, noise: Tensor, i: int) -> Tensor:
        """The state at evaluation ``i`` for x_0 = ``original_samples`` with ``noise`` added, instead of ``init``."""

    def first(self, strength: float) -> int:
        """The evaluation to begin with so that a share of ``strength`` of them is done, one at least."""

    def latents(self, state: Tensor, i: int) -> Tensor:
        """x_t as the transformer takes it at evaluation ``i``; the result where ``i`` is the number of evaluations."""

    def step(self, model_output: Tensor, i: int, state: Tensor, generator: Sequence[torch.Generator] | torch.Generator | None) -> Tensor:
        """The state after evaluation ``i``. ``generator``: one for each batch item (noise is drawn item by item), or one for all."""

    def history(self) -> dict[str, Any]:
        """What the next steps depend on beside the state, as plain values and tensors: for ``restore`` of a sampler made alike."""

    def restore(self, history: dict[str, Any]) -> None:
        """Be where the sampler was whose ``history`` this is."""


def make_sampler(schedule: MiraScheduler, name: str, num_inference_steps: int, eta: float = 0.0) -> Sampler:
    """A fresh sampler over ``schedule``; ``name`` is a key of SAMPLERS, ``eta`` counts for ddim only.

    Raises RequestError for an unknown name, for steps outside 1..num_train_timesteps and for eta outside 0..1.
    """
    if name not in SAMPLERS:
        raise RequestError("sampler", f"There is no sampler {name!r}.{nearest(name, SAMPLERS)} Known: {', '.join(SAMPLERS)}.")
    if not 1 <= num_inference_steps <= len(schedule):
        raise RequestError("num_inference_steps", f"num_inference_steps is {num_inference_steps}; it must be from 1 to {len(schedule)}, the steps of the noise schedule.")
    if not 0 <= eta <= 1:
        raise RequestError("eta", f"eta is {eta}; it must be from 0 to 1.")
    if name == "ddim":
        return ddim(schedule, num_inference_steps, eta)
    if name in ("ddpm", "euler_a"):
        return ancestral(schedule, num_inference_steps)
    if name == "unipc":
        return UniPC(schedule, num_inference_steps)
    return DiffusersSampler(schedule, name, num_inference_steps)


def ddim(schedule: MiraScheduler, num_inference_steps: int, eta: float) -> FirstOrder:
    """DDIM (arXiv:2010.02502, eq. 12 and 16) on x_t itself, as the original samples: sigma comes from abar, without the scale.

    With eta 0 it equals diffusers' DDIMScheduler on y_t; with eta above 0 it does not, as that one's variance is y's own.
    Timesteps are spaced as the original's (leading, offset 1) wherever the steps divide ``num_train_timesteps``; it ends at
    the first abar rather than at 1.
    """
    total = len(schedule)
    offset = 1 if num_inference_steps < total else 0
    ascending = [i * total // num_inference_steps + offset for i in range(num_inference_steps)]
    steps = []
    for t, previous in zip(ascending, [0, *ascending]):
        abar, abar_prev = schedule.alphas_cumprod[t].item(), schedule.alphas_cumprod[previous].item()
        variance = eta**2 * (1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)  # eq. 16
        steps.append((schedule.signal[previous].item(), math.sqrt(max(1 - abar_prev - variance, 0.0)), math.sqrt(variance)))
    return FirstOrder(schedule, ascending[::-1], steps[::-1])


def ancestral(schedule: MiraScheduler, num_inference_steps: int) -> FirstOrder:
    """DDPM's step (arXiv:2006.11239, eq. 6 and 7) on y_t, over ``dense_end_timesteps``, to no noise. Euler ancestral is the same step, written for y_t / alpha_t."""
    timesteps = dense_end_timesteps(len(schedule), num_inference_steps)
    steps = []
    for t, previous in zip(timesteps, timesteps[1:]):
        ratio = (schedule.alpha[t] / schedule.alpha[previous]).item()
        noise = schedule.noise[previous].item()
        spread = noise / schedule.sigma[t].item() * math.sqrt(1 - ratio**2)  # n_prev sigma_prev / sigma sqrt(1 - alpha^2 / alpha_prev^2)
        steps.append((schedule.signal[previous].item(), math.sqrt(max(noise**2 - spread**2, 0.0)), spread))
    return FirstOrder(schedule, timesteps, [*steps, (1.0, 0.0, 0.0)])


class _Plain:
    """A sampler whose state is x_t, over timesteps whose shares in each step are known ahead: a step asks nothing of a GPU."""

    timesteps: list[int]
    _schedule: MiraScheduler

    def init(self, noise: Tensor) -> Tensor:
        return noise

    def start(self, original_samples: Tensor, noise: Tensor, i: int) -> Tensor:
        return self._schedule.add_noise(original_samples, noise, torch.full((len(noise),), self.timesteps[i]))

    def first(self, strength: float) -> int:
        return _first(len(self.timesteps), strength)

    def latents(self, state: Tensor, i: int) -> Tensor:
        return state


class FirstOrder(_Plain):
    """Its step goes to a mixture of the clean latents, of their noise and of fresh noise.

    Args:
        steps: The three shares of each step.
    """

    def __init__(self, schedule: MiraScheduler, timesteps: list[int], steps: list[tuple[float, float, float]]):
        self.timesteps = timesteps
        self._schedule, self._steps = schedule, steps

    def step(self, model_output: Tensor, i: int, state: Tensor, generator: Sequence[torch.Generator] | torch.Generator | None) -> Tensor:
        at = torch.full((len(state),), self.timesteps[i])
        x0, epsilon = self._schedule.to_x0(model_output, state, at), self._schedule.to_epsilon(model_output, state, at)
        signal, direction, spread = self._steps[i]
        x_prev = signal * x0 + direction * epsilon
        return x_prev + spread * draw_noise(state.shape, generator, state.device) if spread else x_prev

    def history(self) -> dict[str, Any]:
        return {}

    def restore(self, history: dict[str, Any]) -> None:
        pass


class UniPC(_Plain):
    """UniPC-2 (arXiv:2302.04867, algorithms 5 to 8: multistep, data prediction, B_2) over ``dense_end_timesteps``, to no noise.

    An evaluation gives the clean latents m. They correct the step that led there, and from there the next is predicted. On y_t, with
    lambda = log(alpha / sigma), a step from s to t over h = lambda_t - lambda_s takes B = 1 - e^-h, which is -B_2(-h), and

        y_t = sigma_t / sigma_s y_s + alpha_t B (m_s + sum_k a_k / r_k (m_k - m_s)),   r_k = (lambda_k - lambda_s) / h.

    It is exact for m of degree p in lambda if sum_k a_k r_k^(j-1) = b_j for j = 1..p, where b_j h^j B = int_0^h u^j e^(u-h) du, so that

        b_1 = 1 / B - 1 / h,   b_2 = 1 / B - 2 b_1 / h.

    The predictor knows m_k of the step before, the corrector that and m_t, where r = 1. Where there is but one m_k, a_k = 1/2, as in
    the paper. The first step has no step before, the last none of either. x_t = n_t y_t puts signal and noise for alpha and sigma.
    """

    def __init__(self, schedule: MiraScheduler, num_inference_steps: int):
        self.timesteps = dense_end_timesteps(len(schedule), num_inference_steps)
        self._schedule, self._steps = schedule, _unipc_steps(schedule, self.timesteps)
        self._history: dict[str, Tensor] = {}

    def start(self, original_samples: Tensor, noise: Tensor, i: int) -> Tensor:
        self._steps = _unipc_steps(self._schedule, self.timesteps, i)
        return super().start(original_samples, noise, i)

    def step(self, model_output: Tensor, i: int, state: Tensor, generator: Sequence[torch.Generator] | torch.Generator | None) -> Tensor:
        x0 = self._schedule.to_x0(model_output, state, torch.full((len(state),), self.timesteps[i]))
        change = 0.0
        if self._history:
            state = self._history["uncorrected"] + self._steps[i - 1][-1] * x0
            change = self._history["x0"] - x0
        noise, signal, predicted, corrected, coming = self._steps[i]
        first_order = noise * state + signal * x0
        self._history = {"x0": x0, "uncorrected": first_order + corrected * change - coming * x0}  # the next x0 is to come
        return first_order + predicted * change

    def history(self) -> dict[str, Any]:
        return dict(self._history)

    def restore(self, history: dict[str, Any]) -> None:
        self._history = dict(history)


def _unipc_steps(schedule: MiraScheduler, timesteps: list[int], begin: int = 0) -> list[tuple[float, float, float, float, float]]:
    """UniPC's shares where evaluation ``begin`` is the first: of x_s, of m_s, of m_k - m_s in the predictor and in the corrector, of m_t - m_s."""
    levels = [(schedule.signal[t].item(), schedule.noise[t].item()) for t in timesteps]
    lambdas = [math.log(signal / noise) for signal, noise in levels]
    steps = []
    for i, (signal, noise) in enumerate(levels[1:]):
        h = lambdas[i + 1] - lambdas[i]
        share = -math.expm1(-h)  # B
        predicted, corrected, coming = 0.0, 0.0, 0.5
        if i > begin:
            r = (lambdas[i - 1] - lambdas[i]) / h
            b1 = 1 / share - 1 / h
            b2 = 1 / share - 2 * b1 / h
            a = (b1 - b2) / (1 - r)  # of a + a' = b_1, a r + a' = b_2
            predicted, corrected, coming = 0.5 / r, a / r, b1 - a
        steps.append((noise / levels[i][1], *(signal * share * each for each in (1.0, predicted, corrected, coming))))
    return [*steps, (0.0, 1.0, 0.0, 0.0, 0.0)]


_SOLVERS: dict[str, tuple[type, dict[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, {}),
    "dpm++2m": (DPMSolverMultistepScheduler, dict(algorithm_type="dpmsolver++", solver_order=2)),
    "dpm++2m_sde": (DPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++", solver_order=2)),
    "heun": (HeunDiscreteScheduler, {}),
}
_VARIANCE_EXPLODING = ("euler", "heun")
"""Solvers whose state is y_t / alpha_t; they divide by sqrt(1 + sigma^2) = 1 / alpha_t in ``scale_model_input``."""


class DiffusersSampler:
    """One of diffusers' schedulers, run on the normalised process y_t, over ``dense_end_timesteps``; the last step ends at no noise."""

    def __init__(self, schedule: MiraScheduler, name: str, num_inference_steps: int):
        solver, options = _SOLVERS[name]
        self._scheduler = solver(
            num_train_timesteps=len(schedule),
            trained_betas=schedule.normalised_betas.tolist(),
            prediction_type=schedule.config.prediction_type,
            **options,
        )
        self._scheduler.set_timesteps(timesteps=dense_end_timesteps(len(schedule), num_inference_steps))
        self.timesteps = [int(t) for t in self._scheduler.timesteps]
        self._norm = [schedule.norm[t].item() for t in self.timesteps]
        self._schedule, self._name = schedule, name
        self._initial_scale = 1 / self._norm[0]
        if name in _VARIANCE_EXPLODING:
            self._initial_scale *= math.sqrt(1 + self._scheduler.sigmas[0].item() ** 2)

    def init(self, noise: Tensor) -> Tensor:
        return noise * self._initial_scale

    def start(self, original_samples: Tensor, noise: Tensor, i: int) -> Tensor:
        self._scheduler.set_begin_index(i)
        state = self._schedule.add_noise(original_samples, noise, torch.full((len(noise),), self.timesteps[i])) / self._norm[i]
        return state * math.sqrt(1 + self._scheduler.sigmas[i].item() ** 2) if self._name in _VARIANCE_EXPLODING else state

    def first(self, strength: float) -> int:
        index = _first(len(self.timesteps), strength)
        return index - index % 2 if self._name == "heun" else index  # heun's steps are pairs of evaluations

    def latents(self, state: Tensor, i: int) -> Tensor:
        if i == len(self.timesteps):
            return state
        return self._norm[i] * self._scheduler.scale_model_input(state, self._scheduler.timesteps[i])

    def step(self, model_output: Tensor, i: int, state: Tensor, generator: Sequence[torch.Generator] | torch.Generator | None) -> Tensor:
        options = dict(variance_noise=draw_noise(state.shape, generator, state.device)) if self._name == "dpm++2m_sde" else {}
        return self._scheduler.step(model_output, self._scheduler.timesteps[i], state, return_dict=False, **options)[0]

    def history(self) -> dict[str, Any]:
        """Everything that diffusers' scheduler holds but its config: earlier outputs, orders, where it is."""
        return {name: copy.deepcopy(value) for name, value in vars(self._scheduler).items() if name != "_internal_dict"}

    def restore(self, history: dict[str, Any]) -> None:
        vars(self._scheduler).update(copy.deepcopy(history))


def _first(evaluations: int, strength: float) -> int:
    """As diffusers' image-to-image pipelines count, rounding down: the last ``strength`` of all evaluations are done, but one at least."""
    return evaluations - max(1, min(evaluations, int(evaluations * strength)))


def dense_end_timesteps(num_train_timesteps: int, num_inference_steps: int, power: float = 1.5) -> list[int]:
    """Whole timesteps, no two equal, falling from the noisiest: ``(T-1) (1 - i / (S - 1/2))^power`` for i from 0 to S-1.

    Whole ones, as the model has been trained on them. The power places more of them where little noise is left: on the mixture of
    tests/core/test_schedulers.py, 20 steps of dpm++ 2m come within 0.01 of the exact solution on average; evenly spaced ones within 0.06.
    """
    span = num_inference_steps - 0.5
    descending = [round((num_train_timesteps - 1) * (1 - i / span) ** power) for i in range(num_inference_steps)]
    for i in range(num_inference_steps - 2, -1, -1):
        descending[i] = max(descending[i], descending[i + 1] + 1)
    return descending


def _listed(generator: Sequence[torch.Generator] | torch.Generator | None) -> list[torch.Generator] | torch.Generator | None:
    """As diffusers takes them: several in a list, and in nothing else."""
    return generator if generator is None or isinstance(generator, torch.Generator) else list(generator)


def draw_noise(shape: Sequence[int], generator: Sequence[torch.Generator] | torch.Generator | None, device: torch.device | str) -> Tensor:
    """Unit Gaussian noise in fp32. With one CPU generator for each batch item it is the same on every device and in every
    batch position: each item is drawn as ``[1, ...]`` from its own generator."""
    generator = _listed(generator)
    device = torch.device(device)
    first = generator[0] if isinstance(generator, list) else generator
    if device.type == "cuda" and first is not None and first.device.type == "cpu":  # from pinned memory, so that this process need not wait for the GPU
        return randn_tensor(tuple(shape), generator=generator, device=torch.device("cpu"), dtype=torch.float32).pin_memory().to(device, non_blocking=True)
    return randn_tensor(tuple(shape), generator=generator, device=device, dtype=torch.float32)

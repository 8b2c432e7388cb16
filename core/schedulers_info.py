"""The samplers by name, for forms and checks: no torch here. ``core.schedulers`` builds them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplerInfo:
    """What a form says of a sampler."""

    label: str
    hint: str
    uses_eta: bool = False
    evaluations_per_step: int = 1


SAMPLERS: dict[str, SamplerInfo] = {
    "ddim": SamplerInfo("DDIM", "Mira's own; eta 1 as released, eta 0 without fresh noise", uses_eta=True),
    "ddpm": SamplerInfo("DDPM", "ancestral; wants many steps"),
    "euler": SamplerInfo("Euler", "plain first order, no fresh noise"),
    "euler_a": SamplerInfo("Euler ancestral", "DDPM by another name: the same steps, the same video"),
    "dpm++2m": SamplerInfo("DPM++ 2M", "second order; good from 15 steps"),
    "dpm++2m_sde": SamplerInfo("DPM++ 2M SDE", "second order with fresh noise"),
    "unipc": SamplerInfo("UniPC", "predictor and corrector; good from 10 steps"),
    "heun": SamplerInfo("Heun", "second order, two forwards a step", evaluations_per_step=2),
}

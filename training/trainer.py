"""The training loop: the same for every target, resumable at any step.

A batch is a function of (seed, step) alone, so nothing about data order or random state has to be saved: a run that is
killed and resumed sees what it would have seen.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from core.device import choose_device, choose_dtype

from .config import ConfigError, TrainConfig, save_config
from .ema import EMA
from .muon import Muon

log = logging.getLogger(__name__)


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message says at which step and what to try."""


class Task(Protocol):
    """What a target gives to the loop."""

    model: torch.nn.Module
    casts_weights: bool
    """Whether the task computes in the training's number format by itself; otherwise the loop uses autocast."""

    def batch(self, step: int) -> dict[str, Any]:
        """The data of a step, a function of (seed, step). Called ahead, in a thread."""

    def loss(self, batch: dict[str, Any], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss and figures for the log."""

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Write the model with these weights as a loadable folder."""


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step."""
    return np.random.default_rng([seed, step])


def step_generator(seed: int, step: int) -> torch.Generator:
    """torch's counterpart of ``step_rng``, on the CPU."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step, 1]).generate_state(1, np.uint64)[0] >> 1))


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Linear warm-up, a plateau, and at the end a linear decay to a twentieth."""
    rate = min(1.0, (step + 1) / max(1, config.lr_warmup_steps))
    left = config.total_steps - step
    if config.lr_decay_steps and left < config.lr_decay_steps:
        rate = min(rate, 0.05 + 0.95 * left / config.lr_decay_steps)
    return config.learning_rate * rate


def make_optimizers(model: torch.nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for the matrices inside the blocks and AdamW for the rest.

    One learning rate and one schedule serve both, see ``Muon``.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name for name, p in parameters.items() if config.optimizer == "muon" and p.ndim == 2 and "blocks." in name and name.endswith(".weight")}
    rest = [p for name, p in parameters.items() if name not in matrices]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=config.learning_rate, betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay, fused=True)]
    if matrices:
        optimizers.append(Muon([parameters[name] for name in sorted(matrices)], lr=config.learning_rate, weight_decay=config.weight_decay))
    return optimizers


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written whole."""
    whole = [p for p in (output_dir / "checkpoints").glob("step-*") if (p / ".complete").exists()]
    return max(whole, key=lambda p: int(p.name.split("-")[1]), default=None)


class Trainer:
    """Runs a task from its last checkpoint to ``total_steps``."""

    def __init__(self, config: TrainConfig, task: Task):
        self.config = config
        self.task = task
        self.output_dir = Path(config.output_dir)
        self.step = 0
        self.optimizers = make_optimizers(task.model, config)
        self.ema = EMA(task.model, config.ema_decay)
        self.device = next(task.model.parameters()).device
        self.stopping = False

    def autocast(self):
        """The context of forward passes."""
        if self.task.casts_weights:
            return nullcontext()
        wanted = self.config.mixed_precision
        bf16 = wanted == "bf16" or (wanted == "auto" and choose_dtype("auto", self.device) == torch.bfloat16)
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def run(self) -> Path:
        """Train to the end (or to SIGTERM) and return the last checkpoint."""
        config = self.config
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.resume()
        save_config(config, self.output_dir / "config.yaml")
        previous = signal.signal(signal.SIGTERM, self._stop)
        started, since, losses = time.time(), self.step, []
        try:
            with ThreadPoolExecutor(1) as ahead:
                following = ahead.submit(self.task.batch, self.step)
                while self.step < config.total_steps and not self.stopping:
                    batch = following.result()
                    following = ahead.submit(self.task.batch, self.step + 1)
                    losses.append(self.train_step(batch))
                    self.step += 1
                    if self.step % config.log_every == 0:
                        self.record(losses, (time.time() - started) / (self.step - since))
                        losses = []
                        started, since = time.time(), self.step
                    if self.step % config.checkpoint_every == 0 and self.step < config.total_steps:
                        self.save()
                following.cancel()
        finally:
            signal.signal(signal.SIGTERM, previous)
        return self.save()

    def train_step(self, batch: dict[str, Any]) -> dict[str, float]:
        """One optimizer step; returns figures for the log."""
        rate = learning_rate_at(self.config, self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * (self.config.muon_scale if isinstance(optimizer, Muon) else 1)
        with self.autocast():
            loss, figures = self.task.loss(batch, self.step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLoss(f"The loss is {value} at step {self.step}. Resume with a lower learning_rate (now {rate:g}) from {latest_checkpoint(self.output_dir)}.")
        self.task.model.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), self.config.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.ema.update(self.task.model)
        return {"loss": value, "grad_norm": float(norm), **figures}

    def record(self, losses: list[dict[str, float]], seconds: float) -> None:
        """Add one line, the mean of the last steps, to log.jsonl."""
        names = sorted({name for figures in losses for name in figures})
        mean = {name: float(np.mean([f[name] for f in losses if name in f])) for name in names}
        row = {"step": self.step, **{k: round(v, 6) for k, v in mean.items()}, "learning_rate": learning_rate_at(self.config, self.step - 1), "seconds_per_step": round(seconds, 4), "time": round(time.time(), 1)}
        with (self.output_dir / "log.jsonl").open("a") as f:
            f.write(json.dumps(row) + "\n")
        log.info("%s", row)

    def save(self) -> Path:
        """Write checkpoints/step-N under another name, sync, rename, mark it complete, and drop the oldest ones."""
        root = self.output_dir / "checkpoints"
        final = root / f"step-{self.step}"
        if (final / ".complete").exists():
            return final
        work = root / f".step-{self.step}.tmp"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        self.task.save(work, self.ema.average)
        torch.save(
            {"step": self.step, "model": self.task.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers], "ema": self.ema.state_dict()},
            work / "training_state.pt",
        )
        for path in work.rglob("*"):
            if path.is_file():
                with path.open("rb") as f:
                    os.fsync(f.fileno())
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
        (final / ".complete").touch()
        whole = sorted((p for p in root.glob("step-*") if (p / ".complete").exists()), key=lambda p: int(p.name.split("-")[1]))
        for old in whole[: -self.config.keep_last]:
            shutil.rmtree(old)
        return final

    def resume(self) -> None:
        """Load the checkpoint that ``config.resume`` means, if any."""
        choice = self.config.resume
        if choice == "none":
            return
        folder = latest_checkpoint(self.output_dir) if choice == "auto" else Path(choice)
        if folder is None:
            return
        if not re.fullmatch(r"step-\d+", folder.name) or not (folder / ".complete").exists():
            raise ConfigError(f"resume={choice}: {folder} is not a whole checkpoint; there are {sorted(p.name for p in (self.output_dir / 'checkpoints').glob('step-*'))}.")
        state = torch.load(folder / "training_state.pt", map_location=self.device, weights_only=True)
        self.task.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.ema.load_state_dict(state["ema"])
        self.step = state["step"]
        log.info("resumed at step %d from %s", self.step, folder)

    def _stop(self, *_: Any) -> None:
        log.info("SIGTERM: stopping after this step")
        self.stopping = True


def train(config: TrainConfig) -> Path:
    """Run the training that ``config`` describes; returns the last checkpoint's folder."""
    from .targets import build_task

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    task = build_task(config, torch.device(choose_device("auto")))
    return Trainer(config, task).run()

"""The training loop: the same for every target, resumable at any step.

A batch is a function of (seed, step) alone, so nothing about data order or random state has to be saved: a run that is
killed and resumed sees what it would have seen.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import psutil
import torch
from safetensors import SafetensorError

from core.device import choose_dtype, forget_peak
from core.files import WriteError, replacing

from .config import ConfigError, TrainConfig, as_words, load_config, save_config
from .ema import EMA
from .muon import Muon
from .processes import Processes
from .runs import SAMPLE_FIGURE, SAMPLE_NOW, SAVE_NOW, Status, begun_from, latest_checkpoint, step_of, whole_checkpoints
from .trackers import Log, open_trackers
from .zero import ZeroTwo

log = logging.getLogger(__name__)

DIVERGENCE_STEPS = 50
DIVERGENCE = 5.0
LEAST_SCALE = 2.0**-20
"""Of fp16's loss: gradients that are not finite at less have not overflowed."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite; the message says at which step and what to try."""


class Diverged(RuntimeError):
    """The loss has grown far beyond what it was; the message says at which step and what to try."""


class Task(Protocol):
    """What a target gives to the loop. One that can also be judged has ``validate(weights)`` and ``sample(weights, folder)``."""

    model: torch.nn.Module
    network: torch.nn.Module
    """What the loss runs on ``model``'s weights; the loop puts one in its place whose gradients all processes share."""
    casts_weights: bool
    """Whether the task computes in ``training_dtype`` by itself; otherwise the loop uses autocast."""
    units: Sequence[torch.nn.Module | list[torch.nn.Module]]
    """Modules whose weights are gathered together where processes share them, the inner ones first. Only of tasks for several processes."""

    def batch(self, index: int) -> dict[str, Any]:
        """Data, a function of (seed, index); a step takes ``gradient_accumulation_steps`` of them. Called ahead, in a thread."""

    def loss(self, batch: dict[str, Any], index: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss and figures for the log."""

    def save(self, folder: Path, weights: dict[str, torch.Tensor], step: int) -> None:
        """Write the model with these weights, those of ``step``, as a loadable folder."""


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step."""
    return np.random.default_rng([seed, step])


def step_generator(seed: int, step: int) -> torch.Generator:
    """torch's counterpart of ``step_rng``, on the CPU."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step, 1]).generate_state(1, np.uint64)[0] >> 1))


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Linear warm-up, a plateau, and at the end a linear or cosine fall to a twentieth (cosine: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5)."""
    rate = min(1.0, (step + 1) / max(1, config.lr_warmup_steps))
    left = config.total_steps - step
    if config.lr_schedule != "constant" and left < config.lr_decay_steps:
        share = left / config.lr_decay_steps
        rate = min(rate, 0.05 + 0.95 * (share if config.lr_schedule == "linear" else (1 - math.cos(math.pi * share)) / 2))
    return config.learning_rate * rate


def training_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The number format of a run's matrix products; ``auto`` takes what the device is best at."""
    return choose_dtype(config.mixed_precision, device)


def make_optimizers(model: torch.nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all weights (its moments in 8 bits, Dettmers et al. 2022, arXiv:2110.02861), or Muon for the matrices inside the blocks and AdamW for the rest.

    One learning rate and one schedule serve both, see ``Muon``. 8 bits need the package bitsandbytes.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name for name, p in parameters.items() if config.optimizer == "muon" and p.ndim == 2 and "blocks." in name and name.endswith(".weight")}
    rest = [p for name, p in parameters.items() if name not in matrices]
    settings = {"lr": config.learning_rate, "betas": (0.9, config.adam_beta2), "weight_decay": config.weight_decay}
    if config.optimizer == "adamw8bit":
        import bitsandbytes

        return [bitsandbytes.optim.AdamW8bit(rest, **settings)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, **settings, fused=True)] if rest else []
    if matrices:
        optimizers.append(Muon([parameters[name] for name in sorted(matrices)], lr=config.learning_rate, weight_decay=config.weight_decay))
    return optimizers


def drop(checkpoint: Path) -> None:
    """Remove a checkpoint. It loses its name first: what is left of it by a kill meanwhile is not taken for a whole one."""
    nameless = checkpoint.with_name(f".{checkpoint.name}.dropped")
    checkpoint.rename(nameless)
    shutil.rmtree(nameless)


class Trainer:
    """Runs a task from its last checkpoint to ``total_steps``."""

    def __init__(self, config: TrainConfig, task: Task, processes: Processes | None = None):
        self.config = config
        self.task = task
        self.processes = processes or Processes(str(next(task.model.parameters()).device))
        self.output_dir = Path(config.output_dir)
        self.step = 0
        self.saved: Path | None = None
        """The checkpoint of the present step, once there is one."""
        self.stale: list[Path] = []
        """Checkpoints beyond the step that this start began at: an earlier start's."""
        self.device = next(task.model.parameters()).device
        self.dtype = training_dtype(config, self.device)
        network = self.processes.prepare(task.network, getattr(task, "units", ()), self.dtype if task.casts_weights else None)
        task.network, self.optimizers = self.processes.divided(network, make_optimizers(task.model, config), config.max_grad_norm)
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**10, enabled=self.dtype == torch.float16)
        self.ema = EMA(task.model, config.ema_decay)
        self.trackers: list[Log] = []
        self.told_to_stop = self.stopping = False
        self.status = Status("training", os.getpid(), psutil.Process().create_time())
        self.recent: deque[float] = deque(maxlen=DIVERGENCE_STEPS)
        self.lowest = math.inf

    def autocast(self):
        """The context of forward passes."""
        return contextlib.nullcontext() if self.task.casts_weights or self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def run(self) -> Path:
        """Train to the end (or to SIGTERM) and return the last checkpoint."""
        config, ahead = self.config, config_ahead(self.config)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.resume()
        if self.processes.main:
            self.tidy()
            self.tell_plan()
            save_config(config, self.output_dir / "config.yaml")
            self.trackers = open_trackers(config, self.step)
        previous = signal.signal(signal.SIGTERM, self._stop)
        started, since, losses = time.time(), self.step, []
        self.tell("training")
        forget_peak(self.device)  # what prepared the clips is gone
        try:
            with ThreadPoolExecutor(1) as pool:
                following = pool.submit(ahead, self.task, self.step)
                while self.step < config.total_steps and not self.stopping:
                    waited = time.perf_counter()
                    batches = following.result()
                    waited = time.perf_counter() - waited
                    following = pool.submit(ahead, self.task, self.step + 1)
                    losses.append({**self.train_step(batches), "data_wait": waited})
                    self.step += 1
                    if self.step % config.log_every == 0:
                        self.record(losses, (time.time() - started) / (self.step - since))
                        losses, started, since = [], time.time(), self.step
                    wanted = [self.processes.main and (self.output_dir / name).exists() for name in (SAVE_NOW, SAMPLE_NOW)]
                    asked, sample, self.stopping = self.processes.any(*wanted, self.told_to_stop)  # a signal reaches processes at different steps
                    if (self.step % config.checkpoint_every == 0 and self.step < config.total_steps) or asked:
                        self.save()
                        (self.output_dir / SAVE_NOW).unlink(missing_ok=True)
                        started, since = time.time(), self.step
                    elif sample:
                        state = self.processes.whole(self.state())
                        self.sample({**state["weights"], **state["ema"]["average"]})
                        started, since = time.time(), self.step
                    if sample and self.processes.main:
                        (self.output_dir / SAMPLE_NOW).unlink(missing_ok=True)
                following.cancel()
            return self.save()
        finally:
            signal.signal(signal.SIGTERM, previous)

    def tell_plan(self) -> None:
        """Say in the log what the steps will be of, and what a run that goes on does otherwise than before."""
        batches = self.config.gradient_accumulation_steps
        log.info("%d of %d steps are done; %s%s", self.step, self.config.total_steps, self.config.plan(), f", {batches} times" if batches > 1 else "")
        with contextlib.suppress(ConfigError):
            before = load_config(self.output_dir / "config.yaml", [])
            if self.step and (changed := as_words(replace(self.config, resume=before.resume), before)):
                log.warning("goes on with other settings than it had: %s", " ".join(changed))

    def tell(self, state: str, message: str = "") -> None:
        """Say in the run folder what is going on."""
        self.status = replace(self.status, state=state, step=self.step, message=message)
        if self.processes.main:
            self.status.write(self.output_dir)

    def train_step(self, batches: list[dict[str, Any]]) -> dict[str, float]:
        """One optimizer step on the mean gradient of ``batches``; returns figures for the log."""
        rate = learning_rate_at(self.config, self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * (self.config.muon_scale if isinstance(optimizer, Muon) else 1)
        self.task.model.zero_grad(set_to_none=True)
        value, told = 0.0, []
        for number, batch in enumerate(batches):
            with self.processes.apart(self.task.network) if number + 1 < len(batches) else contextlib.nullcontext():
                with self.autocast():
                    loss, figures = self.task.loss(batch, self.step * len(batches) + number)
                part = self.processes.mean(loss.detach())
                self.require_finite(part, rate)
                value += part / len(batches)
                told.append(figures)
                self.scaler.scale(loss / len(batches)).backward()
        self.require_steady(value, rate)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = self.clip()
        if not math.isfinite(norm) and not (self.scaler.is_enabled() and self.scaler.get_scale() > LEAST_SCALE):  # fp16's scaler leaves such a step out, and halves its scale
            raise NonFiniteLoss(f"The norm of the gradient is {norm} at step {self.step}. {self.remedy(rate)}")
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.ema.update(self.task.model)
        names = {name for figures in told for name in figures}
        means = {name: float(np.mean([figures[name] for figures in told if name in figures])) for name in sorted(names)}
        return {"loss": value, "grad_norm": norm, **means}

    def clip(self) -> float:
        """Bring the gradient to ``max_grad_norm`` at most; its norm before that."""
        if isinstance(self.optimizers[0], ZeroTwo):
            return self.optimizers[0].norm()  # clips as it steps
        return float(self.processes.whole(torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), self.config.max_grad_norm)))

    def require_finite(self, value: float, rate: float) -> None:
        """Raises NonFiniteLoss for the loss of a batch that is no number."""
        if not math.isfinite(value):
            raise NonFiniteLoss(f"The loss is {value} at step {self.step}. {self.remedy(rate)}")

    def require_steady(self, value: float, rate: float) -> None:
        """Raises Diverged when the mean loss of the last DIVERGENCE_STEPS steps is DIVERGENCE times the lowest that it was; of the first steps already a fifth as many tell how low, as a rate that is too high explodes early."""
        self.recent.append(value)
        if len(self.recent) in (DIVERGENCE_STEPS // 5, DIVERGENCE_STEPS):
            mean = float(np.mean(self.recent))
            self.lowest = min(self.lowest, mean)
            if mean > DIVERGENCE * self.lowest:
                raise Diverged(f"The loss is {mean:.3g} on average over the last {DIVERGENCE_STEPS} steps, up to step {self.step}; it has been {self.lowest:.3g}. {self.remedy(rate)}")

    def remedy(self, rate: float) -> str:
        """What to try when the loss or its gradient is of no use."""
        return f"Resume with a lower learning_rate (now {rate:g}) from {latest_checkpoint(self.output_dir) or 'the start'}."

    def record(self, losses: list[dict[str, float]], seconds: float) -> None:
        """Add one line, the mean of the last steps, to metrics.jsonl."""
        losses = self.processes.gather(losses)
        if not self.processes.main:
            return
        names = sorted({name for figures in losses for name in figures})
        mean = {name: float(np.mean([f[name] for f in losses if name in f])) for name in names}
        row = {"step": self.step, **{k: round(v, 6) for k, v in mean.items()}, "learning_rate": learning_rate_at(self.config, self.step - 1), "seconds_per_step": round(seconds, 4), "time": round(time.time(), 1)}
        if self.device.type == "cuda":
            row["memory_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
        else:
            row["memory_gb"] = round(psutil.Process().memory_info().rss / 1e9, 2)
        self.note(row)
        self.tell("training")

    def note(self, row: dict[str, float]) -> None:
        """Add a line to metrics.jsonl. Raises WriteError."""
        file = self.output_dir / "metrics.jsonl"
        with _writing(file) as f:
            f.write(json.dumps(row) + "\n")
        figures = {name: value for name, value in row.items() if name not in ("step", "time")}
        first = sorted(figures, key=lambda name: name not in ("loss", "validation_loss"))  # what one looks for
        log.info("step %d of %d: %s", self.step, self.config.total_steps, ", ".join(f"{name.replace('_', ' ')} {figures[name]:.4g}" for name in first))
        for tracker in self.trackers:
            tracker(self.step, figures)

    def save(self) -> Path:
        """Write checkpoints/step-N, whole or not at all, and drop the oldest ones. Raises WriteError; those that were there stay then."""
        final = self.output_dir / "checkpoints" / f"step-{self.step}"
        if self.saved != final:
            state = self.processes.whole(self.state())
            if self.processes.main:
                self._write(final, state)
            self.saved = final
        self.processes.wait()
        return final

    def state(self) -> dict[str, Any]:
        """What a checkpoint is made of: every weight, and what ``resume`` needs."""
        weights = {name: p.detach() for name, p in self.task.model.named_parameters()}
        return {"step": self.step, "weights": weights, "optimizers": [o.state_dict() for o in self.optimizers], "ema": self.ema.state_dict(), "scaler": self.scaler.state_dict(), "losses": {"recent": list(self.recent), "lowest": self.lowest}}

    def _write(self, final: Path, state: dict[str, Any]) -> None:
        now = state.pop("weights")
        weights = {**now, **state["ema"]["average"]}
        loss = self.judge(weights)
        with replacing(final) as work:
            work.mkdir()
            with _os_errors(work):
                self.task.save(work, weights, self.step)
                torch.save({**state, "model": {name: now[name] for name in state["ema"]["average"]}}, work / "training_state.pt")
            if loss is not None:
                (work / "validation.json").write_text(json.dumps({"step": self.step, "validation_loss": loss}))
            (work / ".complete").touch()
        self.prune()
        self.sample(weights)

    def sample(self, weights: dict[str, torch.Tensor]) -> None:
        """Videos by a task that makes any, and what is measured on them; their memory is not counted as training's."""
        if self.processes.main and hasattr(self.task, "sample") and (figures := self.task.sample(weights, self.output_dir / "samples" / f"step-{self.step}")):
            self.note({"step": self.step, **{SAMPLE_FIGURE + name: round(value, 6) for name, value in figures.items()}, "time": round(time.time(), 1)})
        forget_peak(self.device)

    def judge(self, weights: dict[str, torch.Tensor]) -> float | None:
        """The loss of the held-out clips, noted in metrics.jsonl; None for a task that has none."""
        loss = self.task.validate(weights) if hasattr(self.task, "validate") else None
        if loss is not None:
            self.note({"step": self.step, "validation_loss": round(loss, 6), "time": round(time.time(), 1)})
        return loss

    def prune(self) -> None:
        """Drop the checkpoints that an earlier start left, and those that the settings do not keep: neither new, nor the best by validation loss, nor a multiple of ``keep_every``."""
        for old in self.stale:
            if step_of(old) != self.step:
                drop(old)
            if step_of(old) > self.step:
                shutil.rmtree(self.output_dir / "samples" / old.name, ignore_errors=True)
        self.stale = []
        config, whole = self.config, whole_checkpoints(self.output_dir)
        judged = {p: json.loads((p / "validation.json").read_text())["validation_loss"] for p in whole if (p / "validation.json").exists()}
        kept = {*whole[-config.keep_last :], *([min(judged, key=judged.get)] if judged else [])}
        for old in whole:
            if old not in kept and not (config.keep_every and step_of(old) % config.keep_every == 0):
                drop(old)

    def tidy(self) -> None:
        """Remove checkpoints that were being written, or dropped, when a process was killed, end the line of figures that was, and remember those that lie beyond this start's step."""
        for half in (self.output_dir / "checkpoints").glob(".step-*"):
            shutil.rmtree(half, ignore_errors=True)
        figures = self.output_dir / "metrics.jsonl"
        if figures.is_file() and not figures.read_bytes().endswith(b"\n"):
            with _writing(figures) as file:
                file.write("\n")
        self.stale = [path for path in whole_checkpoints(self.output_dir) if step_of(path) > self.step]
        if self.stale:
            log.warning("begins at step %d: %s, of an earlier start, will go with the first checkpoint that is written", self.step, ", ".join(path.name for path in self.stale))

    def resume(self) -> None:
        """Load the checkpoint that ``config.resume`` means, if any."""
        folder = begun_from(self.config)
        if folder is None:
            return
        state = torch.load(folder / "training_state.pt", map_location=self.device, weights_only=True)
        own, saved = dict(self.task.model.named_parameters()), state["model"]
        strange = [name for name in {**saved, **self.ema.average} if name not in saved or name not in self.ema.average or saved[name].shape != own[name].shape]
        if strange:
            raise ConfigError(f"{folder} is of another architecture: {len(strange)} of its tensors do not fit the model, such as {strange[0]}. Name the model and the target that the run began with.")
        eight_bits = any("state1" in moments for optimizer in state["optimizers"] for moments in optimizer["state"].values())
        if len(state["optimizers"]) != len(self.optimizers) or eight_bits != (self.config.optimizer == "adamw8bit"):
            raise ConfigError(f"{folder} was made with another optimizer. Go on with that one, or begin a run from its weights.")
        with torch.no_grad():
            for name, value in saved.items():
                own[name].copy_(self.processes.part_of(value, own[name]))
        for optimizer, of_it in zip(self.optimizers, state["optimizers"]):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, moments in of_it["state"].items():
                of_it["state"][number] = {k: self.processes.part_of(v, parameters[number]) if torch.is_tensor(v) and v.shape == parameters[number].shape else v for k, v in moments.items()}
            settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(of_it)
            for group, own_settings in zip(optimizer.param_groups, settings):
                group.update(own_settings)  # the run's as they are now, not as they were at the checkpoint
        self.ema.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state.get("scaler") or self.scaler.state_dict())
        if losses := state.get("losses"):  # a rate that is too high is noticed across a pause
            self.recent.extend(losses["recent"])
            self.lowest = losses["lowest"]
        self.step, self.saved = state["step"], folder
        log.info("resumed at step %d from %s", self.step, folder)

    def _stop(self, *_: Any) -> None:
        log.info("SIGTERM: stopping after this step")
        self.told_to_stop = True


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[TextIO]:
    """A file to add to. Raises WriteError."""
    try:
        with file.open("a") as stream:
            yield stream
    except OSError as error:
        raise WriteError(file, error) from error


@contextlib.contextmanager
def _os_errors(folder: Path) -> Iterator[None]:
    """A failure to write into ``folder`` as an OSError, which torch and safetensors say in exceptions of their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in ("inline_container", "PytorchStreamWriter")):
            raise
        full = "os error 28" in str(error) or shutil.disk_usage(folder).free < 2**20
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error).splitlines()[0]) from error


def config_ahead(config: TrainConfig) -> Callable[[Task, int], list[dict[str, Any]]]:
    """What fetches all batches of a step."""
    count = config.gradient_accumulation_steps
    return lambda task, step: [task.batch(step * count + number) for number in range(count)]

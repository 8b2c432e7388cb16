"""Run folders, as anyone may read and steer them: the Training tab, a shell, another program. No torch here.

    config.yaml       the settings (of the last start)
    status.json       what the run is doing, and which process does it
    metrics.jsonl     a line every ``log_every`` steps; the same in tensorboard/
    log.txt           what the process printed, with its command first
    environment.json  versions, machine; dataset.json: what was trained on, and what was not
    checkpoints/step-N/, samples/step-N/*.mp4
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import psutil

from core.device_lock import ask_first, asked_since
from core.files import WriteError, replacing
from core.provenance import model_hash, own_commit
from core.releases import installed_folder

from .config import LATENT_TARGETS, USER_TARGETS, ConfigError, TrainConfig, as_words, load_config, save_config

ROOT = Path(__file__).resolve().parents[1]
LOG = "log.txt"
WORKING = ("starting", "waiting", "preparing", "training")
"""States in which a process is at work."""
SAVE_NOW = "save-now"
"""A file of this name in a run folder asks for a checkpoint after the present step."""
SAMPLE_NOW = "sample-now"
"""And one of this name for its sample videos."""
SAMPLE_FIGURE = "sample_"
"""Begins the names of what was measured on a checkpoint's samples, in metrics.jsonl; a name of ``core.metrics`` follows."""
TRASH = ".trash"
CHECKPOINT = re.compile(r"step-\d+")
"""The name of a checkpoint's folder."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Status:
    """What a run is doing. ``state``: starting, waiting (for the device), preparing (latents), training, paused, finished, failed."""

    state: str
    pid: int = 0
    created: float = 0.0
    """When the process began: a number that a later process of the same id does not have."""
    step: int = 0
    message: str = ""
    """Why it failed, or how far the preparation is."""

    def write(self, folder: Path) -> None:
        with replacing(folder / "status.json") as file:
            file.write_text(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Run:
    """A run folder as it is now."""

    folder: Path
    state: str
    """As in Status, and ``stopped`` for one whose process is gone without having said how."""
    step: int
    message: str
    pid: int
    config: TrainConfig | None
    """None when config.yaml cannot be read."""
    asked: float = 0.0
    """When its process began; of one that waits for its device, when it asked for it: the one that asked first has it next."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def working(self) -> bool:
        return self.state in WORKING

    @property
    def makes_samples(self) -> bool:
        """Whether videos are made at its checkpoints: of its prompts, or of what a decoder makes of its held-out clips."""
        config = self.config
        if config is None or config.target not in USER_TARGETS:
            return False
        return bool(config.validation_prompts) if config.target in LATENT_TARGETS else bool(config.dataset) and config.validation_clips > 0

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, steps rising: what a resumed run did again takes the place of what it had done."""
        rows: list[dict[str, float]] = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "metrics.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    first_again = row["step"] if "loss" in row else row["step"] + 1  # a checkpoint's figures stand below its step's
                    while rows and rows[-1]["step"] >= first_again:
                        rows.pop()
                    rows.append(row)
        return rows

    def checkpoints(self) -> list[Path]:
        """Those that were written whole, oldest first."""
        return whole_checkpoints(self.folder)

    def samples(self) -> dict[int, list[Path]]:
        """Videos made on the way, by step."""
        folders = sorted((p for p in (self.folder / "samples").glob("step-*") if CHECKPOINT.fullmatch(p.name)), key=step_of)
        return {step_of(folder): sorted(folder.glob("*.mp4")) for folder in folders}


def whole_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run folder that were written whole, oldest first."""
    whole = [p for p in (output_dir / "checkpoints").glob("step-*") if CHECKPOINT.fullmatch(p.name) and (p / ".complete").exists()]
    return sorted(whole, key=step_of)


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written whole."""
    return next(reversed(whole_checkpoints(output_dir)), None)


def begun_from(config: TrainConfig) -> Path | None:
    """The checkpoint that ``config.resume`` means; None for the start. Raises ConfigError."""
    if config.resume in ("auto", "none"):
        return latest_checkpoint(Path(config.output_dir)) if config.resume == "auto" else None
    folder = Path(config.resume)
    if not CHECKPOINT.fullmatch(folder.name) or not (folder / ".complete").exists():
        there = ", ".join(path.name for path in whole_checkpoints(Path(config.output_dir)))
        raise ConfigError(f"resume={folder} is not a whole checkpoint. {f'{config.output_dir}/checkpoints has {there}' if there else f'{config.output_dir} has none'}; resume=auto takes the newest.")
    return folder


def step_of(folder: Path) -> int:
    """The step that a folder ``step-N`` is of."""
    return int(folder.name.removeprefix("step-"))


def last_step(output_dir: Path) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    return max(map(step_of, whole_checkpoints(output_dir)), default=0)


class Runs:
    """The run folders below one folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def list(self) -> list[Run]:
        """All runs, newest first."""
        return [read_run(folder) for folder in self._folders()]

    def get(self, name: str) -> Run:
        """Raises ConfigError for a name that no run has."""
        folder = self.folder / name
        if Path(name).name != name or name.startswith(".") or not (folder / "config.yaml").exists():
            raise ConfigError(f"There is no run {name!r}.")
        return read_run(folder)

    def launch(self, name: str, config: TrainConfig, device: str = "auto") -> Run:
        """Begin a run of that name, in a process that outlives this one. Raises ConfigError for a name that cannot be a folder's, or is taken, WriteError where nothing can be written."""
        if not NAME.fullmatch(name):
            raise ConfigError(f"The name {name!r} cannot be a folder's. Use up to 64 letters, digits, dots, dashes and underscores.")
        folder = self.folder / name
        config = replace(config, output_dir=str(folder))
        config.validate()
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise ConfigError(f"There is a run {name} already. Choose another name, or resume that one.") from None
        except OSError as error:
            raise WriteError(folder, error) from error
        try:
            save_config(config, folder / "config.yaml")
            return self._start(folder, device)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # the name is free again
            raise

    def resume(self, name: str, device: str = "auto") -> Run:
        """Go on from the last whole checkpoint, in a process that outlives this one. Raises ConfigError for a run that is at work, WriteError where nothing can be written."""
        run = self.get(name)
        if run.working:
            raise ConfigError(f"{name} is at work already.")
        return self._start(run.folder, device, *(["resume=auto"] if run.checkpoints() else []))  # its own ``resume`` says how it first began

    def _start(self, folder: Path, device: str, *words: str) -> Run:
        file = folder / "config.yaml"
        with contextlib.suppress(ConfigError):  # the process will say what is wrong with its settings
            words = *as_words(placed(settings := load_config(file, []), folder), settings), *words
        command = [sys.executable, "-m", "training", "--config", str(file), "--device", device, *words]
        try:
            with open_log(folder, command) as log:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        except OSError as error:
            raise WriteError(folder / LOG, error) from error
        with contextlib.suppress(psutil.NoSuchProcess, WriteError):
            Status("starting", process.pid, psutil.Process(process.pid).create_time(), last_step(folder)).write(folder)
        threading.Thread(target=process.wait, name=f"run-{folder.name}", daemon=True).start()  # so that no zombie is left
        return read_run(folder)

    def pause(self, name: str) -> None:
        """Ask the process to write a checkpoint after its step, and to end. ``resume`` goes on from there."""
        os.kill(self._working(name).pid, signal.SIGTERM)

    def stop(self, name: str) -> Run:
        """End the process at once, with all that it began. What it did since its last checkpoint is lost; ``resume`` goes on from that."""
        run = self._working(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(run.pid)
            processes = [process, *process.children(recursive=True)]
            for one in processes:
                with contextlib.suppress(psutil.NoSuchProcess):  # one that ended by itself keeps none of the others alive
                    one.kill()
            psutil.wait_procs(processes, timeout=10)
        Status("paused", step=last_step(run.folder), message="It was stopped at once; what came after its last checkpoint is lost.").write(run.folder)
        return read_run(run.folder)

    def put_first(self, name: str) -> Run:
        """Let a run that waits for its device have it before the others that do. Raises ConfigError for one that does not wait."""
        run = self._working(name)
        if run.state != "waiting" or not any([ask_first(self.folder.parent, pid) for pid in _processes(run.pid)]):
            raise ConfigError(f"{name} does not wait for a device.")
        return read_run(run.folder)

    def save_now(self, name: str) -> None:
        """Ask for a checkpoint, with its samples, after the present step."""
        (self._working(name).folder / SAVE_NOW).touch()

    def sample_now(self, name: str) -> None:
        """Ask for the run's sample videos after the present step, without a checkpoint. Raises ConfigError where it makes none."""
        run = self._working(name)
        if not run.makes_samples:
            raise ConfigError(f"{name} has no sample prompts{' or held-out clips' if run.config and run.config.target == 'vae_decoder' else ''}, so it makes no videos.")
        (run.folder / SAMPLE_NOW).touch()

    def delete(self, name: str) -> str:
        """Put a run into the trash; returns what ``restore`` takes. Raises ConfigError for one that is at work."""
        run = self.get(name)
        if run.working:
            raise ConfigError(f"{name} is at work. Stop it first.")
        kept = f"{int(time.time() * 1000)}-{name}"
        (self.folder / TRASH).mkdir(exist_ok=True)
        run.folder.rename(self.folder / TRASH / kept)
        return kept

    def restore(self, kept: str) -> Run:
        """Bring back a run from the trash. Raises ConfigError when it is gone, or when its name is taken by now."""
        source, target = self.folder / TRASH / kept, self.folder / kept.partition("-")[2]
        if not source.is_dir() or target.exists():
            raise ConfigError(f"{target.name} cannot come back: {'there is another run of that name' if target.exists() else 'it was removed for good'}.")
        source.rename(target)
        return read_run(target)

    def purge(self, older_than_days: float = 7.0) -> None:
        """Remove for good what was deleted longer ago than that."""
        for folder in (self.folder / TRASH).glob("*-*"):
            if int(folder.name.partition("-")[0]) / 1000 < time.time() - older_than_days * 86_400:
                shutil.rmtree(folder, ignore_errors=True)

    def version(self) -> tuple[Any, ...]:
        """Changes whenever ``list`` may give something else: cheap enough to ask every second."""
        told = []
        for folder in self._folders():
            status = _status(folder)
            times = tuple(_changed(folder / name) for name in ("config.yaml", "metrics.jsonl", LOG, "checkpoints", "samples"))
            told.append((folder.name, status, status.state in WORKING and _alive(status), _asked(folder, status), times))
        return tuple(told)

    def _folders(self) -> list[Path]:
        found = [p.parent for p in self.folder.glob("*/config.yaml") if not p.parent.name.startswith(".")]
        return sorted(found, key=lambda p: (p / "config.yaml").stat().st_mtime, reverse=True)

    def _working(self, name: str) -> Run:
        run = self.get(name)
        if not run.working:
            raise ConfigError(f"{name} is not at work.")
        return run


def first_process() -> bool:
    """Whether this is the only process of a run, or of several that a launcher started the one that writes its folder."""
    return os.environ.get("RANK", "0") == "0"


def open_log(folder: Path, command: Sequence[str] | None) -> TextIO:
    """A run's log to add to, which now tells the time and, of a start, its command."""
    log = open(folder / LOG, "a", buffering=1, encoding="utf-8", errors="replace")
    if command is not None:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n")
    return log


@contextlib.contextmanager
def logged(folder: Path, argv: Sequence[str]) -> Iterator[None]:
    """What this process prints from here on is in the run's log as well, after its command ``python -m training ARGV``: unless it goes there already, as from ``Runs``. Raises WriteError.

    Of several processes that train together each adds its lines, and the first one the command.
    """
    if _prints_into(folder / LOG):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = open_log(folder, [sys.executable, "-m", "training", *argv] if first_process() else None)
    except OSError as error:
        raise WriteError(folder / LOG, error) from error
    streams = sys.stdout, sys.stderr
    handlers = [handler for handler in logging.getLogger().handlers if getattr(handler, "stream", None) is sys.stderr]
    sys.stdout, sys.stderr = (_Both(stream, log) for stream in streams)
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):
            traceback.print_exc(file=log)
        raise
    finally:
        sys.stdout, sys.stderr = streams
        for handler in handlers:
            handler.setStream(streams[1])
        with contextlib.suppress(OSError):
            log.close()


def _prints_into(file: Path) -> bool:
    """Whether this process's output or its errors are redirected into that file."""
    with contextlib.suppress(OSError):
        there = file.stat()
        return any(os.path.samestat(os.fstat(number), there) for number in (1, 2))
    return False


class _Both:
    """A stream whose text goes into a log too; a log that cannot take it (the disk is full) stops nothing."""

    def __init__(self, stream: TextIO, log: TextIO):
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # closed, for what keeps the stream
            self._log.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def read_run(folder: Path) -> Run:
    """A run folder as it is now: a process that is gone is not at work, whatever the folder says."""
    status = _status(folder)
    state, message = status.state, status.message
    if state in WORKING and not _alive(status):
        state, message = "stopped", f"The process ended without a word. Its last checkpoint is step {last_step(folder)}; its log is {folder / LOG}."
    return Run(folder, state, status.step, message, status.pid, _config(folder / "config.yaml", _changed(folder / "config.yaml")), _asked(folder, status))


def _changed(path: Path) -> int:
    """When a file was last written; 0 for one that is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=256)
def _config(path: Path, changed: int) -> TrainConfig | None:
    """The settings in a file as it was when it last changed."""
    try:
        return placed(load_config(path, []), path.parent)
    except ConfigError:
        return None


def placed(config: TrainConfig, folder: Path) -> TrainConfig:
    """The settings of the run in ``folder``, which may have been moved, alone or with the data folder around it, since they were written."""
    written, data, folder = ROOT / config.output_dir, ROOT / config.data_dir, folder.resolve()
    if written.resolve() == folder:
        return config
    moved = {"output_dir": str(folder)}
    if written.is_relative_to(data) and folder.parent.parts[-len(within := written.relative_to(data).parts[:-1]) :] == within:
        around = folder.parents[len(within)]
        clips = {name: around / (ROOT / value).relative_to(data) for name in ("dataset", "dataset_root", "keep_dataset") if (value := getattr(config, name)) and (ROOT / value).is_relative_to(data)}
        moved |= {"data_dir": str(around)} | {name: str(path) for name, path in clips.items() if path.exists()}
    return replace(config, **moved)


def base_folder(config: TrainConfig) -> Path | None:
    """The folder of the model, or of parts of one, that a run begins with; None where it is not on this machine."""
    folder = Path(config.model)
    return folder if config.model and (folder / "vae").is_dir() else installed_folder(config.model, config.data_dir)


def _status(folder: Path) -> Status:
    try:
        return Status(**json.loads((folder / "status.json").read_text()))
    except (OSError, ValueError, TypeError):
        return Status("stopped", step=last_step(folder))


def _asked(folder: Path, status: Status) -> float:
    """When a run that waits asked for its device."""
    asked = [asked_since(folder.parent.parent, pid) for pid in _processes(status.pid)] if status.state == "waiting" else []
    return min((time for time in asked if time is not None), default=status.created)


def _processes(pid: int) -> list[int]:
    """A process and all that it began."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return [pid]


def _alive(status: Status) -> bool:
    try:
        process = psutil.Process(status.pid)
        return abs(process.create_time() - status.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def environment(config: TrainConfig, device: str) -> dict[str, Any]:
    """Versions (this program's own as ``commit``), the hash of the model that a run begins with, and machine, for the run folder; ``device`` is what it is trained on, by name."""
    import platform
    from importlib import metadata

    packages = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "peft", "numpy", "av")}
    base = base_folder(config)
    return {
        "python": platform.python_version(), **packages, "commit": own_commit(), "model_hash": None if base is None else model_hash(base),
        "machine": platform.platform(), "processor": platform.processor() or platform.machine(), "device": device, "command": sys.argv,
    }  # fmt: skip

"""Work that takes a while, in a process of its own: clips looked at as training will see them, or rendered; models downloaded or converted.

One at a time for each Chores; every page sees the same."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.types import RequestError
from training.config import TrainConfig, as_words
from training.runs import ROOT

log = logging.getLogger(__name__)

LOOKED_AT_WITH = ("num_frames", "sizes", "frame_stride", "dataset_root", "seed", "curriculum")
"""Settings of a training that decide what it sees of a clip."""


@dataclass(frozen=True)
class Chore:
    """What is being done to a dataset or a model, or was."""

    id: str
    dataset: str
    """The dataset, or the model's name."""
    words: str
    """What it does: ``Looking at the clips``."""
    done: int = 0
    of: int = 0
    report: dict[str, Any] | None = None
    """Of a finished look: ``training.doctor.Report.to_dict`` and ``preview``; of a model: its ``folder``; of clips that were split: ``clips``,
    ``left_out`` and ``folder``; of a checkpoint: the ``file`` it was written to, or its ``address``."""
    error: str | None = None
    working: bool = True


class Chores:
    """The one chore. Its process dies with this one."""

    def __init__(self, data_dir: str | Path):
        self.data_dir = Path(data_dir)
        self.current: Chore | None = None
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._beginning = threading.Lock()

    def check(self, config: TrainConfig) -> None:
        """Look at a config's dataset; ``current.report`` has what was found, with a preview of what training sees. Raises RequestError while something else is being done."""
        id = secrets.token_hex(6)
        plain = TrainConfig(dataset=config.dataset, target=config.target, model=config.model)
        words = as_words(replace(plain, **{name: getattr(config, name) for name in LOOKED_AT_WITH}), plain)
        preview = self.data_dir / "previews" / f"dataset-{id}"
        self._begin(Chore(id, config.dataset, "Looking at the clips"), "training.dataset", "check", "--preview", str(preview), "--events", config.dataset, *words)

    def render(self, clips: int, folder: Path) -> None:
        """Render Toy World clips with captions into ``folder``. Raises RequestError while something else is being done."""
        self._begin(Chore(secrets.token_hex(6), str(folder), "Rendering clips"), "training.toyworld", "render", "--clips", str(clips), "--out", str(folder), "--events")

    def split(self, source: str, root: str, folder: Path) -> None:
        """Cut the videos of a dataset into clips of one shot each, in ``folder``. Raises RequestError while something else is being done."""
        self._begin(Chore(secrets.token_hex(6), source, "Cutting the videos"), "training.dataset", "split", source, str(folder), *(["--root", root] if root else []), "--events")

    def pack(self, run: str, step: int, kind: str, out: Path) -> None:
        """Write a checkpoint as others can take it. Raises RequestError while something else is being done."""
        words = [run, "--data-dir", str(self.data_dir), "--step", str(step), "--kind", kind, "--out", str(out), "--events"]
        self._begin(Chore(secrets.token_hex(6), run, f"Writing step {step} of {run}"), "training", "pack", *words)

    def push(self, run: str, step: int, repo: str, token: str, private: bool) -> None:
        """Put a checkpoint on the Hub. The token goes to that process alone, in its environment. Raises RequestError while something else is being done."""
        words = [run, "--data-dir", str(self.data_dir), "--step", str(step), "--repo", repo, *([] if private else ["--public"]), "--events"]
        self._begin(Chore(secrets.token_hex(6), run, f"Sending step {step} of {run} to {repo}"), "training", "push", *words, environment={"HF_TOKEN": token})

    def install(self, model: str) -> None:
        """Download a released model, going on where an earlier download stopped, and convert it. Raises RequestError while another one is being installed."""
        self._begin(Chore(secrets.token_hex(6), model, f"Getting {model}"), "core.checkpoints", "install", model, "--data-dir", str(self.data_dir), "--events")

    def convert(self, source: Path, name: str, config: Path | None = None) -> None:
        """Make the model ``name`` of a checkpoint file. Raises RequestError while another one is being installed."""
        words = [str(source), str(self.data_dir / "models" / name), *(["--config", str(config)] if config else []), "--events"]
        self._begin(Chore(secrets.token_hex(6), name, f"Converting {source.name}"), "core.checkpoints", "convert", *words)

    def _require_free(self) -> None:
        if self.current is not None and self.current.working:
            raise RequestError("model", f"{self.current.words} is not done yet. Wait for it, or cancel it.")

    def cancel(self) -> None:
        """Stop what is being done, and forget what was found."""
        with self._lock:
            process, self._process, previous, self.current = self._process, None, self.current, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if previous is not None:
            shutil.rmtree(self.data_dir / "previews" / f"dataset-{previous.id}", ignore_errors=True)

    def _begin(self, chore: Chore, module: str, *words: str, environment: Mapping[str, str] | None = None) -> None:
        with self._beginning:  # of two calls at a time, one is refused
            self._require_free()
            self.cancel()
            process = subprocess.Popen([sys.executable, "-m", module, *words], cwd=ROOT, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            with self._lock:
                self.current, self._process = chore, process
        threading.Thread(target=self._listen, args=(chore, process), name=f"chore-{chore.id}", daemon=True).start()

    def _listen(self, chore: Chore, process: subprocess.Popen[str]) -> None:
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
        reader.start()
        for line in process.stdout:
            try:
                chore = replace(chore, **json.loads(line))
            except (ValueError, TypeError):
                log.info("%s: %s", chore.words, line.strip())  # what a library printed of its own
            self._tell(chore)
        code = process.wait()
        reader.join()
        if chore.report is None and code:
            said = "".join(errors).strip()
            log.warning("%s failed: %s", chore.words, said)
            chore = replace(chore, error=said.splitlines()[-1].removeprefix("error: ").removeprefix("python -m core.checkpoints: ") if said else f"It ended with status {code}.")
        self._tell(replace(chore, working=False))

    def _tell(self, chore: Chore) -> None:
        with self._lock:
            if self.current is not None and self.current.id == chore.id:
                self.current = chore

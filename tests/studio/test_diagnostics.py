"""The page for bug reports tells what is so, and finds what went wrong."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

import pytest
import torch

import app
from core.types import GenerationRequest
from studio.diagnostics import as_text, last_errors, sections
from studio.services import Services


def test_it_tells_what_is_so(tmp_path: Path) -> None:
    services = Services.open(tmp_path, start_worker=False)
    try:
        services.queue.enqueue(GenerationRequest(prompt="One."))
        facts = {name: value for _, rows in sections(services) for name, value in rows}
    finally:
        services.close()
    assert facts["Python"] == platform.python_version() and facts["torch"] == torch.__version__.partition("+")[0]
    assert facts["Queue"] == "1 waiting" and str(tmp_path) in facts["Disk"]
    assert facts["Worker 1"].startswith("stopped") and facts["Videos"].startswith("0,")


def test_the_log_is_kept_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)  # so that it is put back
    app.log_to(tmp_path)
    (file,) = [handler for handler in logging.root.handlers if isinstance(handler, logging.FileHandler)]
    try:
        for number in range(6 * 1024):
            file.emit(logging.makeLogRecord({"msg": f"{number} {'x' * 1024}", "levelno": logging.INFO}))
    finally:
        file.close()
    kept = sorted(tmp_path.iterdir())
    assert [path.name for path in kept] == ["studio.log", "studio.log.1", "studio.log.2", "studio.log.3"]
    assert all(path.stat().st_size <= 2**20 for path in kept) and "6143 x" in kept[0].read_text()


def test_it_tells_of_the_gpus_that_the_driver_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 1024, 81559, 570.1'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{driver.parent}:/bin:/usr/bin")
    services = Services.open(tmp_path / "data", start_worker=False)
    try:
        assert ("GPU 0", "NVIDIA H100 80GB HBM3, 1024 of 81559 MiB of memory in use, driver 570.1") in dict(sections(services))["Machine"]
    finally:
        services.close()


def test_the_last_errors_come_with_their_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "studio.log").write_text("2026-11-23 10:00:00,001 INFO studio: fine\n")
    (tmp_path / "studio.log.1").write_text("2026-11-23 10:00:03,001 WARNING studio: careful\n")
    (tmp_path / "worker.log").write_text("2026-11-23 10:00:02,001 ERROR studio: broken\nTraceback (most recent call last):\n  ValueError: no\n2026-11-23 10:00:04,001 INFO studio: going on\n")
    errors = last_errors(tmp_path)
    assert errors == ["2026-11-23 10:00:02,001 ERROR studio: broken\nTraceback (most recent call last):\n  ValueError: no", "2026-11-23 10:00:03,001 WARNING studio: careful"]
    assert last_errors(tmp_path, count=1) == errors[-1:]
    assert as_text([("Versions", [("Python", "3")])], []) == "Versions\n  Python: 3\nLast errors\n  none"

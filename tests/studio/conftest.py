"""The app with a tiny random model, one for all tests of a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio_app import StudioApp
from tiny import save_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with everything real and nothing trained."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def studio_app(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path):
    """One running app for all tests of a module."""
    app = StudioApp(tmp_path_factory.mktemp("app") / "data", tiny_model, "--mcp")
    app.start()
    yield app
    app.end()

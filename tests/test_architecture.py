"""The shape of the house: who may import whom, and what the page must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["core", "training", "studio", "app"]
"""In the order of the arrow: each may import those before it."""


def files(room):
    return [ROOT / "app.py"] if room == "app" else sorted((ROOT / room).rglob("*.py"))


def imported(tree):
    """Top-level names of all absolute imports of a module, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrow(room):
    allowed = ROOMS[: ROOMS.index(room) + 1]
    assert files(room)
    for path in files(room):
        against = set(imported(ast.parse(path.read_text()))) & (set(ROOMS) - set(allowed))
        assert not against, f"{path.relative_to(ROOT)} imports {against}"


@pytest.mark.parametrize("room, foreign", [("core", {"gradio", "sqlite3"}), ("training", {"gradio", "sqlite3"})])
def test_what_a_room_must_not_know(room, foreign):
    for path in files(room):
        assert not foreign & set(imported(ast.parse(path.read_text()))), path


@pytest.mark.parametrize("module", ["studio.ui", "studio.services", "studio.executors.local", "app"])
def test_the_page_does_not_load_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_drawn_page_does_not_load_torch(tmp_path):
    """With all that a first visitor sees, and a LoRA, whose header is read."""
    code = """
import sys, numpy, pathlib
from safetensors.numpy import save_file
from studio.screen import Screen, Session
from studio.services import Services
folder = pathlib.Path(sys.argv[1])
(folder / "loras").mkdir()
save_file({"a": numpy.zeros(1)}, folder / "loras" / "mine.safetensors", {"mira_run": '{"run": "first"}'})
services = Services.open(folder, start_worker=False)
panes = dict(zip(Screen(services).names, Screen(services).paint(Session())))
assert "from the run first" in panes["models"], panes["models"]
services.close()
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=False).returncode == 0


def test_public_names():
    import core

    for name in "MiraPipeline MiraTransformer3DModel GenerationRequest PRESETS get_preset SAMPLERS load_pipeline convert_checkpoint save_video read_settings".split():
        assert getattr(core, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        core.nonsense

"""Which models the page offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.releases import folder_name
from core.types import GenerationRequest, RequestError
from studio.models import Models
from studio.queue import Queue


def test_installed_models_are_found_by_the_names_that_requests_use(tmp_path: Path) -> None:
    models = Models(tmp_path)
    release = "TencentARC/Mira-v0:128"
    assert models.list()[0].name == "mira-nano" and not models.get(release).installed and models.get(release).release.gigabytes > 1
    for name in ("my-tune", folder_name(release), "unfinished"):
        (tmp_path / "models" / name).mkdir(parents=True)
    for name in ("my-tune", folder_name(release)):
        (tmp_path / "models" / name / "model_index.json").write_text("{}")
    names = [model.name for model in models.list()]
    assert names.count(release) == 1 and "my-tune" in names and "unfinished" not in names and folder_name(release) not in names
    assert models.get(release).installed and models.get(release).size == 2
    elsewhere = str(tmp_path / "models" / "my-tune")
    assert models.get(elsewhere).path == elsewhere and models.get("no-such-model") is None


def test_where_other_machines_reach_the_page_only_its_own_models_may_be_named(tmp_path: Path) -> None:
    mine, elsewhere = tmp_path / "data" / "models" / "mine", tmp_path / "elsewhere"
    for folder in (mine, elsewhere):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    queue = Queue(tmp_path / "data" / "studio.db", Models(tmp_path / "data", ["/opt/default"]))
    for name in ("mine", str(mine), "mira-nano", "TencentARC/Mira-v0:128", "/opt/default"):
        queue.enqueue(GenerationRequest("a ball", model=name))
    for name in (str(elsewhere), "../../elsewhere", str(mine / ".." / ".." / ".." / "elsewhere"), "someone/their-model", str(tmp_path)):
        with pytest.raises(RequestError, match="none of this studio's models.* There are mira-nano, mine"):
            queue.enqueue(GenerationRequest("a ball", model=name))
    Queue(tmp_path / "data" / "studio.db", Models(tmp_path / "data")).enqueue(GenerationRequest("a ball", model=str(elsewhere)))

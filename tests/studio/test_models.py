"""Which models the page offers."""

from __future__ import annotations

from pathlib import Path

from core.releases import folder_name
from studio.models import Models


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

"""What the buttons of the Training tab begin, without the page."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from studio.tasks import split_clips
from training.split import RECORD


@pytest.fixture
def services(tmp_path):
    begun = []
    return SimpleNamespace(datasets=tmp_path / "datasets", data_dir=tmp_path, dataset_roots=(), begun=begun, chores=SimpleNamespace(split=lambda *words: begun.append(words)))


def test_videos_of_two_folders_of_one_name_are_split_into_two_folders(services, tmp_path):
    (here := tmp_path / "a" / "films").mkdir(parents=True)
    (there := tmp_path / "b" / "films").mkdir(parents=True)
    first = split_clips(services, str(here), "")
    assert first == services.datasets / "films-split"
    first.mkdir(parents=True)
    (first / RECORD).write_text(f'{{"source": "{here}", "pieces": {{}}}}')
    assert split_clips(services, str(here), "") == first
    assert split_clips(services, str(there), "") == Path(f"{first}-2") == services.begun[-1][-1]

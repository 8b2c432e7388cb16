"""What the buttons of the Training tab begin, without the page."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from studio.tasks import bring_clips, split_clips
from training.config import ConfigError
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


def uploads(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_text(content)
    return sorted(folder.iterdir())


def kept(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_clips_join_those_that_the_form_names_and_no_others(services, tmp_path):
    first = bring_clips(services, "", uploads(tmp_path / "up1", a_mp4="1", a_txt="one"), "")
    assert first == services.datasets / "clips" and kept(first) == {"a.mp4": "1", "a.txt": "one"}
    assert bring_clips(services, "", uploads(tmp_path / "up2", b_mp4="2"), str(first)) == first and kept(first).keys() == {"a.mp4", "a.txt", "b.mp4"}
    for elsewhere in ("", str(tmp_path / "up1"), str(services.datasets), str(tmp_path / "gone")):
        assert bring_clips(services, "", uploads(tmp_path / "up3", a_mp4="3"), elsewhere) not in (first, services.datasets)
    assert kept(services.datasets / "clips-2") == {"a.mp4": "3"}
    assert bring_clips(services, "my run", uploads(tmp_path / "up2"), "") == services.datasets / "my-run"
    assert bring_clips(services, "", uploads(tmp_path / "up4", c_txt="c")) == first, "the endpoint names its dataset, file by file"


def test_clips_never_replace_others(services, tmp_path):
    folder = bring_clips(services, "", uploads(tmp_path / "up1", a_txt="one", t_csv="file_name,text"), "")
    for other, name in ((uploads(tmp_path / "up2", Z_mp4="2", a_txt="new"), "a.txt"), (uploads(tmp_path / "up3", x_csv="other", x_mp4="x"), "metadata.csv")):
        with pytest.raises(ConfigError, match=f"^{name} is there already"):
            bring_clips(services, "", other, str(folder))
    with pytest.raises(ConfigError, match="metadata.csv is there already"):
        bring_clips(services, "", uploads(tmp_path / "up4", a_csv="1", b_csv="2"), "")
    with pytest.raises(ConfigError, match="neither a video"):
        bring_clips(services, "", uploads(tmp_path / "up5", a_mp4="1", b_sh="2"), str(folder))
    assert kept(folder) == {"a.txt": "one", "metadata.csv": "file_name,text"} and [*services.datasets.iterdir()] == [folder]
    assert bring_clips(services, "", uploads(tmp_path / "up1"), str(folder)) == folder, "the same once more"

"""Captions as a list that is edited and written back, for every kind of dataset."""

import csv
import json

import pytest

from training.captions import read_captions, write_captions
from training.config import ConfigError
from training.dataset import find_clips


@pytest.fixture(params=["pairs", "csv", "jsonl"])
def dataset(request, tmp_path):
    """Three videos, two of them with a caption."""
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(b"video")
    texts = {"a.mp4": "a red ball", "b.mp4": "ein „blauer“ Ball, groß"}
    if request.param == "pairs":
        for name, text in texts.items():
            (tmp_path / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    elif request.param == "csv":
        with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["file_name", "fps", "Text"], *([f"{n}.mp4", 6, texts.get(f"{n}.mp4", "")] for n in "abc")])
    else:
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps({"file_name": f"{n}.mp4", "caption": texts.get(f"{n}.mp4", ""), "kept": [1]}) + "\n" for n in "abc"))
    return tmp_path


def test_captions_come_back_as_they_were_written(dataset):
    assert read_captions(dataset) == {"a.mp4": "a red ball", "b.mp4": "ein „blauer“ Ball, groß", "c.mp4": ""}
    assert write_captions(dataset, {"a.mp4": "a  red\nball", "b.mp4": 'a "blue" ball, big', "c.mp4": "a star"}) == 2
    assert read_captions(dataset) == {"a.mp4": "a red ball", "b.mp4": 'a "blue" ball, big', "c.mp4": "a star"}
    clips, rejects = find_clips(dataset)
    assert {clip.path.name: clip.captions for clip in clips}["c.mp4"] == ("a star",) and not rejects
    if (dataset / "metadata.jsonl").exists():
        assert all(json.loads(line)["kept"] == [1] for line in (dataset / "metadata.jsonl").read_text().splitlines())
    if (dataset / "metadata.csv").exists():
        assert (dataset / "metadata.csv").read_text().splitlines()[0] == "file_name,fps,Text" and "a.mp4,6,a red ball" in (dataset / "metadata.csv").read_text()


def test_what_cannot_be_saved_changes_nothing(dataset):
    before = read_captions(dataset)
    for captions, words in (({"a.mp4": "new", "b.mp4": " "}, "The caption of b.mp4 is empty"), ({"../a.mp4": "x"}, "is not in"), ({"z.mp4": "x"}, "is not in")):
        with pytest.raises(ConfigError, match=words):
            write_captions(dataset, captions)
    assert read_captions(dataset) == before


def test_tables_that_cannot_be_edited_are_named(tmp_path, monkeypatch):
    (tmp_path / "mira.csv").write_text("video_id,short_caption,dense_caption\na.mp4,x,y\n")
    with pytest.raises(ConfigError, match="short_caption, dense_caption"):
        read_captions(tmp_path / "mira.csv")
    with pytest.raises(ConfigError, match="There is no dataset"):
        read_captions(tmp_path / "none")
    monkeypatch.setattr("training.captions.MOST_ROWS", 1)
    (tmp_path / "many.csv").write_text("path,text\na.mp4,x\nb.mp4,y\n")
    with pytest.raises(ConfigError, match="2 captions; at most 1"):
        read_captions(tmp_path / "many.csv")


def test_stretches_of_one_file_keep_their_own_captions(tmp_path):
    (table := tmp_path / "metadata.csv").write_text("file_name,text,start,end\na.mp4,first,0,1\na.mp4,second,1,2\nb.mp4,other,,\n")
    captions = read_captions(tmp_path)
    assert captions == {"a.mp4, row 1": "first", "a.mp4, row 2": "second", "b.mp4": "other"}
    assert write_captions(tmp_path, captions) == 0
    assert write_captions(tmp_path, {**captions, "a.mp4, row 2": "new"}) == 1
    assert table.read_text().splitlines()[1:3] == ["a.mp4,first,0,1", "a.mp4,new,1,2"]


@pytest.mark.parametrize("rows", ["a.mp4,a red, round ball\nb.mp4,x\n", "a.mp4,x\nb.mp4,a red, round ball\n"])
def test_a_comma_without_quotes_is_named(tmp_path, rows):
    (tmp_path / "t.csv").write_text("file_name,text\n" + rows)
    with pytest.raises(ConfigError, match=r"Row \d of .*t.csv has more cells .* double quotes"):
        read_captions(tmp_path / "t.csv")

"""Captions as a list that is edited and written back, for every kind of dataset."""

import csv
import json

import pytest

from training.captions import caption_columns, read_captions, write_captions
from training.config import ConfigError
from training.dataset import MIRADATA_CAPTIONS, find_clips


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
    (tmp_path / "tags.csv").write_text("video_id,tag,main_object_caption\na.mp4,x,y\n")
    with pytest.raises(ConfigError, match="video_id, tag, main_object_caption"):
        read_captions(tmp_path / "tags.csv")
    with pytest.raises(ConfigError, match="There is no dataset"):
        read_captions(tmp_path / "none")
    monkeypatch.setattr("training.captions.MOST_ROWS", 1)
    (tmp_path / "many.csv").write_text("path,text\na.mp4,x\nb.mp4,y\n")
    with pytest.raises(ConfigError, match="2 captions; at most 1 are edited here. Use a table"):
        read_captions(tmp_path / "many.csv")
    (tmp_path / "mira.csv").write_text("video_id,short_caption,dense_caption\na.mp4,x,y\n")
    with pytest.raises(ConfigError, match="2 captions; .* Read one column at a time"):
        read_captions(tmp_path / "mira.csv")
    assert read_captions(tmp_path / "mira.csv", "dense_caption") == {"a.mp4, dense_caption": "y"}
    with pytest.raises(ConfigError, match="no captions in a column dense. Did you mean 'dense_caption'"):
        read_captions(tmp_path / "mira.csv", "dense")


def test_stretches_of_one_file_keep_their_own_captions(tmp_path):
    (table := tmp_path / "metadata.csv").write_text("file_name,text,start,end\na.mp4,first,0,1\na.mp4,second,1,2\nb.mp4,other,,\n")
    captions = read_captions(tmp_path)
    assert captions == {"a.mp4, row 1": "first", "a.mp4, row 2": "second", "b.mp4": "other"}
    assert write_captions(tmp_path, captions) == 0
    assert write_captions(tmp_path, {**captions, "a.mp4, row 2": "new"}) == 1
    assert table.read_text().splitlines()[1:3] == ["a.mp4,first,0,1", "a.mp4,new,1,2"]


def test_webvids_captions_are_edited_by_the_file_that_training_finds(tmp_path):
    (tmp_path / "0001").mkdir()
    for name in ("7.mp4", "0001/8.mp4"):
        (tmp_path / name).write_bytes(b"video")
    (table := tmp_path / "webvid.csv").write_text("videoid,duration,page_dir,name\n7,PT1S,,a ball\n8,PT1S,0001,a star\n")
    assert read_captions(table) == {"7.mp4": "a ball", "0001/8.mp4": "a star"}
    assert write_captions(table, {"0001/8.mp4": "a red star"}) == 1
    assert [(clip.path.name, clip.captions) for clip in find_clips(table)[0]] == [("7.mp4", ("a ball",)), ("8.mp4", ("a red star",))]


@pytest.mark.parametrize("rows", ["a.mp4,a red, round ball\nb.mp4,x\n", "a.mp4,x\nb.mp4,a red, round ball\n"])
def test_a_comma_without_quotes_is_named(tmp_path, rows):
    (tmp_path / "t.csv").write_text("file_name,text\n" + rows)
    with pytest.raises(ConfigError, match=r"Row \d of .*t.csv has more cells .* double quotes"):
        read_captions(tmp_path / "t.csv")


@pytest.fixture
def mira(tmp_path):
    """MiraData's columns, of two clips, as a spreadsheet saves them."""
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"video")
    rows = [["index", "video_id", "start", "tag", *MIRADATA_CAPTIONS], *([str(i), f"{n}.mp4", "0", "a tag", *(f"{c.split('_')[0]} of {n}, schön" for c in MIRADATA_CAPTIONS)] for i, n in enumerate("ab"))]
    (table := tmp_path / "mira.csv").write_bytes("".join(",".join(f'"{cell}"' if "," in cell else cell for cell in row) + "\r\n" for row in rows).encode("cp1252"))
    return table


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_all_of_miradatas_captions_are_edited_in_the_encoding_they_are_in(mira, encoding):
    text, mark = mira.read_bytes().decode("cp1252"), {"utf-8-sig": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    mira.write_bytes(mark + text.encode(encoding.removesuffix("-sig")))
    before = mira.read_bytes()
    assert caption_columns(mira) == list(MIRADATA_CAPTIONS)
    captions = read_captions(mira)
    assert len(captions) == 12 and list(captions)[:2] == ["a.mp4, short_caption", "a.mp4, dense_caption"] and captions["b.mp4, camera_caption"] == "camera of b, schön"
    assert write_captions(mira, captions) == 0 and mira.read_bytes() == before
    assert write_captions(mira, {"b.mp4, camera_caption": "fährt links", "a.mp4, style_caption": ""}) == 2
    after = mira.read_bytes()
    assert after == mark + text.replace('"camera of b, schön"', "fährt links").replace('"style of a, schön"', "").encode(encoding.removesuffix("-sig")), "nothing else has changed"
    clips, _ = find_clips(mira)
    assert "fährt links" in clips[1].captions[2] and "style" not in clips[0].captions[2]


def test_a_clip_keeps_a_caption_and_an_encoding_is_not_left(mira):
    before = mira.read_bytes()
    with pytest.raises(ConfigError, match="The caption of a.mp4 is empty"):
        write_captions(mira, {"a.mp4, short_caption": "", "a.mp4, dense_caption": " ", "b.mp4, dense_caption": "new"})
    with pytest.raises(ConfigError, match="encoding cp1252, which has no '→'"):
        write_captions(mira, {"a.mp4, dense_caption": "left → right"})
    assert mira.read_bytes() == before and write_captions(mira, {"a.mp4, short_caption": ""}) == 1

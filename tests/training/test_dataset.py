"""Datasets as users have them: what is read, what is refused with a reason, what the doctor sees, and which frames training gets."""

import json
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from core import save_video
from core.video_io import read_video
from studio.chores import Chore
from studio.components.run_list import render_chore
from training.captions import write_captions
from training.config import ConfigError, TrainConfig, as_words, load_config
from training.dataset import Reject, captions_of, find_clips, main
from training.doctor import Lookalikes, examine, examine_for
from training.latents import VideoLatents
from training.split import split_videos
from training.takes import Take, dataset_hash, split_held_out, take_of, takes_of
from training.video import UnusableVideo, probe_video, read_frames


def numbered(count, height=32, width=48):
    """Frames whose grey tells which one they are: 10 t + 5."""
    return np.stack([np.full((height, width, 3), 10 * t + 5, np.uint8) for t in range(count)])


def number_of(frame):
    return round((float(frame.mean()) - 5) / 10)


@pytest.fixture
def folder(tmp_path):
    for name, frames in (("a", 12), ("sub/b", 20)):
        save_video(numbered(frames), tmp_path / f"{name}.mp4", fps=10)
        (tmp_path / f"{name}.txt").write_text(f"clip {name}\n")
    return tmp_path


def write_video(path, frames, codec="ffv1", pix_fmt="yuv420p", times=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for t, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[-1] == 4 else "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = (100 * t if times is None else times[t]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_frames_are_those_of_the_asked_times_from_anywhere_in_the_file(tmp_path):
    save_video(numbered(25), tmp_path / "v.mp4", fps=10)
    facts = probe_video(tmp_path / "v.mp4")
    assert (facts.num_frames, facts.width, facts.height) == (25, 48, 32) and facts.fps == pytest.approx(10)
    for first, stride in ((0, 1), (3, 2), (17, 3), (24, 1)):
        wanted = list(range(first, 25, stride))
        frames = read_frames(tmp_path / "v.mp4", [t / 10 for t in wanted], 48, 32)
        assert [number_of(frame) for frame in frames] == wanted
    with pytest.raises(UnusableVideo, match="ends or breaks after 2 of 4"):
        read_frames(tmp_path / "v.mp4", [2.3, 2.4, 2.5, 2.6], 48, 32)


def test_frames_of_a_variable_rate_are_those_shown_at_the_time(tmp_path):
    write_video(tmp_path / "v.mkv", numbered(5), times=[0, 50, 400, 450, 1000])
    frames = read_frames(tmp_path / "v.mkv", [0.0, 0.25, 0.5, 0.75, 1.0], 48, 32)
    assert [number_of(frame) for frame in frames] == [0, 1, 3, 3, 4]


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuva420p", "bgra", "gray"])
def test_ten_bits_alpha_and_grey(tmp_path, pix_fmt):
    frames = numbered(12)
    if pix_fmt in ("yuva420p", "bgra"):
        frames = np.concatenate([frames, np.full_like(frames[..., :1], 255)], -1)
    write_video(tmp_path / "v.mkv", frames, "ffv1", pix_fmt)
    read = read_frames(tmp_path / "v.mkv", [0.0, 0.55, 1.1], 48, 32)
    assert [number_of(frame) for frame in read] == [0, 5, 11]


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_video_is_read_upright(tmp_path, turn):
    """As a phone writes it: pixels lie on their side and the file says how far to turn them."""
    upright = np.full((6, 48, 64, 3), 40, np.uint8)
    upright[:, :16, :16] = 230  # a light corner, top left
    save_video(np.ascontiguousarray(np.rot90(upright, -turn // 90, (1, 2))), tmp_path / "plain.mp4", fps=10)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", str(turn), "-i", str(tmp_path / "plain.mp4"), "-c", "copy", str(tmp_path / "turned.mp4")]
    subprocess.run(command, check=True)
    facts = probe_video(tmp_path / "turned.mp4")
    assert (facts.width, facts.height) == (64, 48)
    frames = read_frames(tmp_path / "turned.mp4", [0.0, 0.5], 64, 48)
    assert frames[:, 2:14, 2:14].mean() > 200 and frames[:, 20:, 20:].mean() < 60 and frames[:, :14, 40:].mean() < 60


def test_a_picture_is_covered_by_the_size_and_its_middle_kept(tmp_path):
    picture = np.zeros((60, 200, 3), np.uint8)
    picture[:, 70:130] = 255
    Image.fromarray(picture).save(tmp_path / "p.png")
    (frame,) = read_frames(tmp_path / "p.png", [0.0], 32, 32)
    assert frame.shape == (32, 32, 3) and frame[16, 1:-1].min() > 200
    assert probe_video(tmp_path / "p.png").num_frames == 1


def test_a_folder_of_pairs(folder):
    (folder / "lonely.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "mute.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "mute.txt").write_text(" \n")
    clips, rejects = find_clips(folder)
    assert [(clip.name, clip.captions) for clip in clips] == [("a.mp4", ("clip a",)), ("b.mp4", ("clip sub/b",))]
    assert {reject.name: reject.reason for reject in rejects} == {"lonely.mp4": "has no caption: lonely.txt is missing", "mute.mp4": "has no caption: mute.txt is empty"}


def test_tables_of_hugging_face_webvid_and_miradata(folder):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mp4", "text": "from json"}) + "\n" + json.dumps({"file_name": "gone.mp4", "text": "x"}))
    clips, rejects = find_clips(folder)
    assert clips[0].captions == ("from json",) and rejects[0].reason == "is not there"
    (folder / "webvid.csv").write_text("videoid,contentUrl,duration,page_dir,name\nb,http://x,PT2S,sub,A red ball\n")
    clips, _ = find_clips(folder / "webvid.csv")
    assert clips[0].path == folder / "sub" / "b.mp4" and clips[0].captions == ("A red ball",)
    header = "index,video_id,start_frame,end_frame,fps,tag,short_caption,dense_caption,main_object_caption,background_caption,style_caption,camera_caption\n"
    (folder / "mira.csv").write_bytes((header + "0,a,2,10,10,cité,Short.,Dense.,Object.,Back.,Style.,Camera.\n").encode("cp1252"))
    (clip,), _ = find_clips(folder / "mira.csv")
    assert (clip.path, clip.start, clip.end) == (folder / "a.mp4", 0.2, 1.0)
    assert clip.captions == ("cité Short.", "cité Dense.", "cité Short. Dense. Object. Back. Style. Camera.")
    assert list(captions_of({"short_caption": "Only."})) == ["Only."] * 2


def test_a_dataset_that_is_divided_as_on_the_hub_is_trained_on_in_its_part_for_that(folder):
    for part in ("train", "test"):
        (folder / part).mkdir()
        shutil.copyfile(folder / "a.mp4", folder / part / "c.mp4")
        (folder / part / "metadata.csv").write_text(f"file_name,text\nc.mp4,for {part}\n")
    (clip,), rejects = find_clips(folder)
    assert (clip.path, clip.captions, rejects) == (folder / "train" / "c.mp4", ("for train",), [])
    write_captions(folder, {"c.mp4": "edited"})
    assert find_clips(folder)[0][0].captions == ("edited",) and "for test" in (folder / "test" / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text("file_name,text\na.mp4,the whole\n")
    assert [clip.captions for clip in find_clips(folder)[0]] == [("the whole",)]


def test_miradata_is_read_as_its_own_script_downloads_it(folder):
    index = "000000008783_AJp-NXo-000114"
    header = "index,video_id,start_frame,end_frame,short_caption,dense_caption,fps\n"
    (folder / "mira.csv").write_text(f"{header}{index},AJp-NXo,2,10,Short.,Dense.,10\n000000008003_gone-000002,gone,0,9,Short.,Dense.,10\n")
    (folder / "000000008").mkdir()
    for place, stretch in (("000000008/000000008783_AJp.mp4", (0.2, 1.0)), (f"{index}.mp4", (0.0, None)), (f"000000008/{index}.mp4", (0.0, None))):  # the whole video; its clip, cut already
        (folder / place).write_bytes((folder / "a.mp4").read_bytes())
        (clip,), (reject,) = find_clips(folder / "mira.csv")
        assert (clip.path, (clip.start, clip.end)) == (folder / place, stretch) and reject.reason == "is not there"


def test_paths_out_of_the_root_are_refused(folder):
    (folder / "metadata.csv").write_text("file_name,text\n../secret.mp4,x\n/etc/passwd,x\na.mp4,ok\n")
    clips, rejects = find_clips(folder)
    assert len(clips) == 1 and all("leads out of" in reject.reason for reject in rejects) and len(rejects) == 2


def test_a_path_is_looked_at_again_with_its_suffix(folder):
    root = folder / "sub"
    (folder / "sub.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (root / "linked.mp4").symlink_to(folder / "a.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    (root / "t.csv").write_text("video_id,text\n.,x\nlinked,x\nloop,x\nb,ok\n")
    clips, rejects = find_clips(root / "t.csv")
    assert [clip.name for clip in clips] == ["b.mp4"] and [reject.name for reject in rejects] == [".", "linked", "loop"]
    assert ["leads out of" in reject.reason for reject in rejects] == [True, True, False]


@pytest.mark.parametrize("row, reason", [("a\0.mp4,x,0,1", "cannot be the name"), ("n" * 300 + ".mp4,x,0,1", "cannot be the name"), ("a.mp4,x,0,inf", "is no number"), ("a.mp4,x,inf,", "is no number"), ("a.mp4,x,0,nan", "is no number")])
def test_rows_that_cannot_be_used_stop_nothing(folder, row, reason):
    (folder / "t.csv").write_text(f"file_name,text,start,end\n{row}\na.mp4,ok,0,1\n")
    clips, (reject,) = find_clips(folder / "t.csv")
    assert [clip.captions for clip in clips] == [("ok",)] and reason in reject.reason


def test_stretches_beyond_all_numbers_are_rejected_or_cut_off(folder):
    (folder / "t.csv").write_text("file_name,text,start,end\na.mp4,far,1e308,\na.mp4,long,0,1e308\n")
    report = examine(folder / "t.csv", num_frames=4)
    assert [item.num_frames for item in report.clips] == [12] and report.rejects[0].reason == "ends after 1.20 s, before the clip starts"


def test_a_codec_without_a_decoder_is_a_reject(folder):
    write_video(folder / "odd.mkv", numbered(3))
    (folder / "odd.mkv").write_bytes((folder / "odd.mkv").read_bytes().replace(b"V_FFV1", b"V_XXXX"))
    (folder / "odd.txt").write_text("x")
    report = examine(folder, num_frames=4)
    assert len(report.clips) == 2 and [(reject.name, reject.reason) for reject in report.rejects] == [("odd.mkv", "is coded in a way that cannot be decoded here")]


def test_tables_with_other_line_ends(folder):
    (folder / "mac.csv").write_bytes(b"file_name,text\ra.mp4,one\rsub/b.mp4,two\r")
    (folder / "t.jsonl").write_text('{"file_name": "a.mp4", "text": "a\u2028ball"}\r\n{"file_name": "sub/b.mp4", "text": "two"}\n', encoding="utf-8")
    assert [[clip.captions[0] for clip in find_clips(folder / name)[0]] for name in ("mac.csv", "t.jsonl")] == [["one", "two"], ["a ball", "two"]]


def test_a_file_that_vanishes_is_named(folder, tmp_path):
    config = load_config(None, [f"dataset={folder}", "model=any", "num_frames=[4]", "sizes=[48x32]"])
    gone = lambda frames: (folder / "sub" / "b.mp4").unlink() or torch.zeros(4, 4, 4, 6)  # noqa: E731
    latents = VideoLatents(config, tmp_path / "latents", "hash", gone)
    assert [take.path.name for take in latents.takes] == ["a.mp4"] and latents.rejects[-1] == Reject("b.mp4", "is not there any more")


def test_a_resumed_run_opens_no_file_again_and_tells_how_far_it_is(folder, tmp_path_factory, monkeypatch):
    config = load_config(None, [f"dataset={folder}", f"data_dir={tmp_path_factory.mktemp('data')}", "model=any", "num_frames=[4]", "sizes=[48x32]"])
    told, opened = [], []
    monkeypatch.setattr("training.doctor.probe_video", lambda path: opened.append(path.name) or probe_video(path))
    first = examine_for(config, lambda *words: told.append(words))
    assert told == [(1, 2), (2, 2)] and opened == ["a.mp4", "b.mp4"]
    assert examine_for(config) == first and len(opened) == 2
    save_video(numbered(8), folder / "a.mp4", fps=10)
    assert [item.num_frames for item in examine_for(config).clips] == [8, 20] and opened[2:] == ["a.mp4"]
    VideoLatents(config, tmp_path_factory.mktemp("latents"), "hash", lambda frames: torch.zeros(4, 4, 4, 6), lambda *words: told.append(words))
    assert told[2:] == [(1, 2), (2, 2)] * 2 and len(opened) == 3


def test_latents_of_frames_that_were_decoded_otherwise_are_made_anew(folder, tmp_path_factory, monkeypatch):
    config = load_config(None, [f"dataset={folder}", f"data_dir={tmp_path_factory.mktemp('data')}", "model=any", "num_frames=[4]", "sizes=[48x32]"])
    latents, made = tmp_path_factory.mktemp("latents"), []
    for decoding, count in ((1, 2), (1, 2), (2, 4)):
        monkeypatch.setattr("training.takes.DECODING", decoding)
        VideoLatents(config, latents, "hash", lambda frames: made.append(frames) or torch.zeros(4, 4, 4, 6))
        assert len(made) == count, decoding


def test_what_is_transparent_is_black(tmp_path):
    picture = np.full((32, 32, 4), 200, np.uint8)
    picture[:16, :, 3], picture[16:, :, 3] = 0, 255
    Image.fromarray(picture).save(tmp_path / "p.png")
    Image.fromarray(picture).save(tmp_path / "p.gif")
    write_video(tmp_path / "v.mkv", picture[None], "ffv1", "yuva420p")
    for name in ("p.png", "p.gif", "v.mkv"):
        (frame,) = read_frames(tmp_path / name, [0.0], 32, 32)
        assert frame[:15].max() <= 1 and np.abs(frame[17:].astype(int) - 200).max() < 4, name


def test_all_takes_of_a_file_are_held_out_together(folder):
    take = Take(folder, ("x",), 0.0, 1, 4, 48, 32, 10.0)
    for counts in ([3] * 10, [1] * 16, [9, 1, 1, 1], [12, 12, 12, 12, 12]):
        takes = [replace(take, path=folder / f"{name}.mp4") for name, count in enumerate(counts) for _ in range(count)]
        held, trained = split_held_out(takes, 4)
        assert sorted(held + trained) == list(range(len(takes))) and 0 < len(held) <= len(takes) / 4
        assert not {takes[i].path for i in held} & {takes[i].path for i in trained}
    assert split_held_out(takes, 0)[0] == []


def test_emoji_come_through_the_words_of_a_command(folder, capsys):
    for text in ("a 🎈 rises", "\x85\u2028", "\udcff"):
        config = TrainConfig(model="m", dataset="d", validation_prompts=[text])
        assert load_config(None, as_words(config, TrainConfig())) == config
    assert "🎈" in as_words(TrainConfig(dataset="🎈 clips"), TrainConfig())[0]
    (folder / "sub").rename(folder / "🎈 clips")
    assert main(["check", str(folder / "🎈 clips"), "num_frames=[4]", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usable"] == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_tables_in_other_encodings(folder, encoding):
    (folder / "t.csv").write_bytes("file_name,text\na.mp4,Ein großer Ball\n".encode(encoding))
    (clip,), _ = find_clips(folder / "t.csv")
    assert clip.captions == ("Ein großer Ball",)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [";", "\t"])
def test_tables_with_semicolons_or_tabs(folder, mark, end):
    rows = f'file_name{mark}text{end}a.mp4{mark}"A ball, red{mark} round"{end}'
    (folder / "t.csv").write_text(rows, encoding="utf-8", newline="")
    (clip,), rejects = find_clips(folder / "t.csv")
    assert clip.captions == (" ".join(f"A ball, red{mark} round".split()),) and not rejects
    assert write_captions(folder / "t.csv", {"a.mp4": "A, b; c"}) == 1 and (folder / "t.csv").read_bytes().decode().startswith(f"file_name{mark}text")
    assert find_clips(folder / "t.csv")[0][0].captions == ("A, b; c",)


def test_a_caption_that_a_comma_cuts_off_is_a_reject_and_an_encoding_that_is_guessed_a_remark(folder):
    (folder / "metadata.csv").write_bytes("file_name,text\na.mp4,A red ball, over the sea\nsub/b.mp4,赤いボール,,\n".encode("shift_jis"))
    report = examine(folder, num_frames=4)
    assert [(item.name, item.reason) for item in report.rejects] == [("a.mp4", "has more cells than the table has columns, with 'over the sea' in them: put its caption in double quotes")]
    assert [item.reason for item in report.remarks if item.name == "metadata.csv"] == ["is not UTF-8 and was read as latin-1; if letters of its captions look wrong, save it as UTF-8"]
    assert len(report.clips) == 1


def test_gaps_in_miradatas_captions_are_a_remark_and_lengths_are_told(folder):
    (folder / "t.csv").write_text("video_id,short_caption,dense_caption,style_caption\na,Short.,,\nsub/b,Short.,Dense.,\n")
    report = examine(folder / "t.csv", num_frames=8)
    assert [item.reason for item in report.remarks if "rows have no" in item.reason] == [f"{count} of 2 rows have no {name}; training reads what else they say" for count, name in ((1, "dense_caption"), (2, "style_caption"))]
    assert "Length 1.2 to 2.0 s (median 1.6), 0.1 min in all" in report.text()
    assert "1.2 to 2.0 s each, 1.6 in the middle · 0.1 min in all" in render_chore(Chore("1", "t", "w", report={**report.to_dict(), "preview": []}, working=False))


def test_captions_that_are_longer_than_what_the_model_reads_are_a_remark(folder):
    (folder / "a.txt").write_text("word " * 78)
    (folder / "sub" / "b.txt").write_text("word " * 77)
    said = [item.reason for item in examine(folder, num_frames=4).remarks if item.name == "captions:"]
    assert said == ["1 of 2 have more than 77 words; the model reads the first 77 tokens of a caption, at most as many words, and nothing of the rest"]


def test_names_that_look_like_addresses_are_files(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for suffix in (".mp4", ".txt"):
        shutil.copy(folder / f"a{suffix}", folder / f"12:30 walk{suffix}")
    assert "12:30 walk.mp4" in {item.clip.path.name for item in examine(".", num_frames=4).clips}


@pytest.mark.parametrize("content, message", [("a,b\n1,2\n", "names no files: it has the columns a, b"), ("", "t.csv holds no videos: it has no rows"), ("file_name,text\n", "t.csv holds no videos: it has no rows")])
def test_tables_without_clips_are_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        find_clips(tmp_path / "t.csv")


def test_the_doctor_names_what_is_wrong(folder):
    whole = (folder / "a.mp4").read_bytes()
    header = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(folder / "a.mp4"), "-frames:v", "0", "-f", "mp4", "-movflags", "empty_moov", "-"], capture_output=True).stdout
    for name, content in (("broken", whole[: len(whole) // 2]), ("empty", b""), ("text", b"no video at all"), ("frameless", header)):
        (folder / f"{name}.mp4").write_bytes(content)
        (folder / f"{name}.txt").write_text("x")
    save_video(numbered(4), folder / "short.mp4", fps=10)
    still = np.random.default_rng(0).integers(0, 255, (1, 32, 48, 3), dtype=np.uint8).repeat(12, 0)
    cut = np.concatenate([np.full((6, 32, 48, 3), 20, np.uint8), np.full((6, 32, 48, 3), 230, np.uint8)])
    for name, frames in (("still", still), ("twin", still), ("cut", cut)):
        save_video(frames, folder / f"{name}.mp4", fps=10)
    for name in ("short", "still", "twin", "cut"):
        (folder / f"{name}.txt").write_text(name)
    report = examine(folder, num_frames=8)
    reasons = {reject.name: reject.reason for reject in report.rejects}
    assert set(reasons) == {"broken.mp4", "empty.mp4", "text.mp4", "frameless.mp4", "short.mp4"} and reasons["frameless.mp4"] == "holds no frame" and reasons["short.mp4"] == "is too short: 4 frames, and 8 are needed"
    remarks = {(remark.name, remark.reason) for remark in report.remarks}
    assert ("still.mp4", "stands still") in remarks and ("twin.mp4", "looks nearly like still.mp4") in remarks
    assert any(name == "cut.mp4" and "may hold a cut about 50%" in reason for name, reason in remarks)
    assert not any(name in ("a.mp4", "b.mp4") for name, _ in remarks)


def test_the_command_tells_it_as_text_and_json(folder, capsys, tmp_path):
    assert main(["check", str(folder), "num_frames=[8]", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["usable"] == 2 and facts["sizes"] == {"48x32": 2} and facts["seconds"] == pytest.approx(3.2) and facts["lengths"] == [1.2, 1.6, 2.0]
    assert main(["check", str(folder), "num_frames=[100]"]) == 1
    assert "a.mp4 is too short: 12 frames" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "There is no dataset" in capsys.readouterr().err


def test_the_preview_shows_what_the_trainer_reads(folder, capsys, tmp_path):
    words = ["num_frames=[4]", "sizes=[48x32]", "seed=3"]
    assert main(["check", str(folder), "--preview", str(tmp_path), "--events", *words]) == 0
    *told, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[-1] == {"done": told[-1]["of"], "of": told[-1]["of"]}
    config = load_config(None, [f"dataset={folder}", "model=any", *words])
    takes = {take.path.name: take for take in takes_of(examine(folder, num_frames=4), config)}
    for item in last["report"]["preview"]:
        take = takes[item["name"]]
        seen, read = read_video(item["file"]), take.frames()
        assert seen.shape == read.shape and item["captions"] == list(take.captions) and item["fps"] == pytest.approx(take.fps, abs=0.01)
        assert np.abs(seen.astype(float) - read).mean() < 8
    assert len(last["report"]["preview"]) == len(takes)


def test_long_videos_are_split_at_their_cuts_frame_by_frame(tmp_path, capsys):
    source, out = tmp_path / "long", tmp_path / "clips"
    shots = [np.full((12, 48, 64, 3), colour, np.uint8) for colour in ((200, 30, 30), (20, 160, 60), (30, 40, 220))]
    for number, shot in enumerate(shots):
        for t, frame in enumerate(shot):
            frame[40:46, 4 * t : 4 * t + 8] = 255
    save_video(np.concatenate([*shots, shots[0][:2]]), source / "a.mp4", fps=12)
    (source / "a.txt").write_text("three colours")
    save_video(shots[1], source / "mute.mp4", fps=12)
    (source / "broken.mp4").write_bytes(b"no video")
    (source / "broken.txt").write_text("x")
    assert main(["split", str(source), str(out)]) == 0
    told = capsys.readouterr().out
    assert "4 clips are in" in told and "left out: a.mp4, shot 3 is too short: 0.17 s" in told and "left out: broken.mp4 cannot be read" in told
    assert sorted(p.name for p in out.iterdir()) == ["a-000.mp4", "a-000.txt", "a-001.mp4", "a-001.txt", "a-002.mp4", "a-002.txt", "mute-000.mp4", "split.json"]
    for number, shot in enumerate(shots):
        frames = read_video(out / f"a-{number:03}.mp4")
        assert frames.shape == shot.shape and np.abs(frames.astype(float) - shot).mean(axis=(1, 2, 3)).max() < 8
    assert main(["split", str(source), str(source / "pieces")]) == 2 and "Name a folder beside it" in capsys.readouterr().err


def test_pieces_of_videos_of_one_name_do_not_meet(tmp_path):
    for number, name in enumerate(("a/x.mp4", "b/x.mp4", "b/x.mov", "x.mp4")):
        save_video(np.full((8, 32, 32, 3), 40 + 50 * number, np.uint8), tmp_path / "long" / "v.mp4", fps=8)
        (file := tmp_path / "long" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "long" / "v.mp4").rename(file)
        file.with_suffix(".txt").write_text(name[0])
    pieces, left_out = split_videos(tmp_path / "long", tmp_path / "out")
    assert [str(piece.relative_to(tmp_path / "out")) for piece in pieces] == ["a/x-000.mp4", "b/x-000.mp4", "b/x-2-000.mp4", "x-000.mp4"] and not left_out
    assert [round((read_video(piece).mean() - 40) / 50) for piece in pieces] == [0, 2, 1, 3]  # x.mov comes before x.mp4
    clips, rejects = find_clips(tmp_path / "out")
    assert [clip.captions[0] for clip in clips] == ["a", "b", "b", "x"] and not rejects


def test_pieces_of_another_video_of_the_same_name_are_not_taken_for_this_ones(tmp_path):
    def film(folder, grey, caption):
        save_video(np.full((8, 32, 32, 3), grey, np.uint8), tmp_path / folder / "a.mp4", fps=8)
        (tmp_path / folder / "a.txt").write_text(caption)

    def shown(out):
        return [(piece.name, round(float(read_video(piece).mean()), -1), piece.with_suffix(".txt").read_text().strip()) for piece in sorted(out.glob("*.mp4"))]

    out = tmp_path / "out"
    film("one", 40, "dark")
    split_videos(tmp_path / "one", out)
    (out / "a-000.txt").write_text("very dark")
    cut = (out / "a-000.mp4").stat().st_mtime_ns
    split_videos(tmp_path / "one", out)
    assert shown(out) == [("a-000.mp4", 40, "very dark")] and (out / "a-000.mp4").stat().st_mtime_ns == cut, "what is there already stays"
    film("two", 200, "light")
    split_videos(tmp_path / "two", out)
    assert shown(out) == [("a-000.mp4", 40, "very dark"), ("a-2-000.mp4", 200, "light")], "another source has pieces of its own"
    film("one", 120, "grey")
    split_videos(tmp_path / "one", out)
    assert shown(out) == [("a-000.mp4", 120, "grey"), ("a-2-000.mp4", 200, "light")], "a changed file is cut anew"
    (tmp_path / "one" / "a.mp4").rename(tmp_path / "one" / "b.mp4")
    (tmp_path / "one" / "a.txt").rename(tmp_path / "one" / "b.txt")
    split_videos(tmp_path / "one", out)
    assert shown(out) == [("a-2-000.mp4", 200, "light"), ("b-000.mp4", 120, "grey")] and not (out / "a-000.txt").exists(), "pieces of a video that is gone go with it"


def test_lookalikes_are_those_of_comparing_all_with_all():
    rng = np.random.default_rng(0)
    pictures = [rng.uniform(0, 255, (1, 1, 3)) + rng.normal(0, 1.2, (8, 8, 3)) for _ in range(200)]
    pictures += [picture + rng.normal(0, 1.2, (8, 8, 3)) for picture in pictures]
    seen = Lookalikes()
    found = [seen.add(str(number), picture) for number, picture in enumerate(pictures)]
    alike = [any(np.abs(a - b).mean() < 2 for a in pictures[:number]) for number, b in enumerate(pictures)]
    assert [twin is not None for twin in found] == alike and 100 < sum(alike) < 300


def test_takes_stay_inside_their_clip_and_fit_it(folder):
    (item, longer) = examine(folder, num_frames=4).clips
    seen = set()
    for seed in range(60):
        take = take_of(longer, [1, 4, 8], [(128, 80), (80, 128), (64, 64)], 4, np.random.default_rng(seed))
        assert take.num_frames == 8 and (take.width, take.height) == (128, 80) and take.times[-1] <= 1.9 + 1e-6
        assert take.fps == pytest.approx(10 / take.stride)
        seen.add((round(take.start, 3), take.stride))
    assert {stride for _, stride in seen} == {1, 2} and len({start for start, _ in seen}) > 4


@pytest.mark.parametrize(
    "content, message",
    [
        ("learning_rat: 1e-4", "learning_rate"),
        ("learning_rate: ${oc.env:HOME}", "values that are taken from elsewhere are refused"),
        ("- a\n- b", "not a list of settings"),
        ("42", "not a list of settings"),
        ("a: [", "is not YAML"),
        ("max_train_steps: many", "max_train_steps|many"),
    ],
)
def test_settings_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml", [])


def test_paths_and_single_values_are_taken_as_they_are_typed(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    for typed, meant in (("/clips #2", "/clips #2"), ("/a: b, 'c' {d}", "/a: b, 'c' {d}"), ("007", "007"), ("'/in quotes #1'", "/in quotes #1"), ("~/clips", "/home/me/clips"), (" /x ", "/x")):
        settings = load_config(None, ["model=m", f"dataset={typed}", "sizes=64x32", "num_frames=8", "validation_prompts=A red ball", "report_to="])
        assert settings.dataset == meant and load_config(None, as_words(settings, TrainConfig())) == settings
        assert (settings.sizes, settings.num_frames, settings.validation_prompts, settings.report_to) == (["64x32"], [8], ["A red ball"], [])
    (tmp_path / "c.yaml").write_text("model: m\ndataset: ~/clips\nnum_frames: 8\n")
    assert (settings := load_config(tmp_path / "c.yaml", [])).dataset == "/home/me/clips" and settings.num_frames == [8]
    with pytest.raises(ConfigError, match="values that are taken from elsewhere are refused"):
        load_config(None, ["model=m", "dataset=${oc.env:HOME}"])


@pytest.mark.parametrize("whole", [True, False])
def test_a_copied_dataset_has_the_same_hash_and_a_changed_one_another(folder, tmp_path_factory, monkeypatch, whole):
    monkeypatch.setattr("training.takes.HASHED_WHOLE", 2**20 if whole else 0)
    monkeypatch.setattr("training.takes.HASHED_END", 16)
    settings = TrainConfig(num_frames=[4], sizes=["48x32"])
    shutil.copytree(folder, copy := tmp_path_factory.mktemp("elsewhere") / "copy", copy_function=shutil.copyfile)  # with times of its own
    takes = takes_of(examine(copy, num_frames=4, look=False), settings)
    hashed = lambda place: dataset_hash([replace(take, path=place / take.path.relative_to(copy)) for take in takes])  # noqa: E731
    first = hashed(folder)
    assert hashed(copy) == first == dataset_hash(takes_of(examine(folder, num_frames=4, look=False), settings)) and len(first) == 12
    file = copy / "a.mp4"
    content = file.read_bytes()
    for at, seen in ((0, True), (len(content) // 2, whole), (len(content) - 1, True)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert (hashed(copy) != first) == seen, "the middle of a large file is not read"
    file.write_bytes(content[:20] + content[20:40] + content[20:])
    assert hashed(copy) != first
    file.unlink()
    assert hashed(copy) != first
    file.write_bytes(content)
    assert hashed(copy) == first
    assert len({dataset_hash(other) for other in (takes, takes[1:], takes[::-1], [replace(takes[0], start=9.0), *takes[1:]], [replace(takes[0], captions=("new",)), *takes[1:]])}) == 5

"""Files from anyone: read alike, refused in words, and never opened in the process that asks."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from core import intake
from core.intake import copy_of_upload, read_picture, settings_of_upload
from core.video_io import VideoError, save_video

HALVES = np.zeros((40, 80, 3), np.uint8)
HALVES[:, :40, 0] = 255


@pytest.mark.parametrize(("name", "more"), [("a.png", {}), ("a.jpg", {}), ("phone.jpg", {"turned": 6}), ("upside-down.jpg", {"turned": 3}), ("a.webp", {"lossless": True}), ("alpha.png", {"mode": "RGBA"})])
def test_pictures_come_out_upright(tmp_path: Path, name: str, more: dict) -> None:
    exif = Image.Exif()
    exif[274] = more.pop("turned", 1)
    Image.fromarray(HALVES).convert(more.pop("mode", "RGB")).save(tmp_path / name, exif=exif, **more)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")).astype(int)
    seen = read_picture(tmp_path / name)
    assert seen.shape == wanted.shape and np.abs(seen - wanted).mean() < 2


def test_an_upload_is_opened_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.tile(HALVES, (60, 30, 1))).save(tmp_path / "large.jpg")
    video = save_video(np.zeros((2, 32, 32, 3), np.uint8), tmp_path / "made.gif", 6, {"prompt": "é"})
    for opener in (intake.av, intake.Image):
        monkeypatch.setattr(opener, "open", lambda *_, **__: pytest.fail("opened here"))
    copy_of_upload(tmp_path / "large.jpg", tmp_path / "copy.png")
    assert settings_of_upload(video) == {"prompt": "é"}
    monkeypatch.undo()
    with Image.open(tmp_path / "copy.png") as copy:
        assert copy.format == "PNG" and copy.size == (2048, 2048)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "playlist.png").write_text("ffconcat version 1.0\nfile /etc/hostname\n")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    Image.fromarray(HALVES).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    for name, words in (("playlist.png", "no png, jpeg or webp"), ("bomb.png", "60000×60000 pixels|cannot be decoded"), ("cut.png", "cannot be decoded|no picture")):
        with pytest.raises(VideoError, match=words):
            read_picture(tmp_path / name)
    with pytest.raises(VideoError, match="no png, jpeg or webp"):
        copy_of_upload(tmp_path / "playlist.png", tmp_path / "copy.png")
    assert not (tmp_path / "copy.png").exists()


def test_limits_end_a_file_that_takes_too_much(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9000, 11000, 3), np.uint8)).save(tmp_path / "large.png", compress_level=1)
    command = "import core.intake as intake, sys; intake.MEMORY_BYTES = 2**26; sys.exit(intake.main('picture', sys.argv[1], sys.argv[2]))"


    child = subprocess.run([sys.executable, "-c", command, tmp_path / "large.png", tmp_path / "copy.png"], cwd=intake.ROOT, capture_output=True, text=True)
    assert child.returncode and not (tmp_path / "copy.png").exists(), child.stderr

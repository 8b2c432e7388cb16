"""What files and videos bring into the form."""

from __future__ import annotations

from pathlib import Path

from core.types import GenerationRequest
from studio.tabs.start_form import without_strange_start


def test_a_start_of_another_studio_is_dropped_and_said(tmp_path: Path) -> None:
    made = GenerationRequest(prompt="a ball", start_from="/home/other/data/videos/sea.mp4", start_frames=4, num_frames=8)
    request, words = without_strange_start(made, tmp_path)
    assert (request.start_from, request.start_frames, request.num_frames) == (None, None, 8) and "sea.mp4 of another studio" in words
    own = made.replace(start_from=str(tmp_path / "videos" / "sea.mp4"))
    assert without_strange_start(own, tmp_path) == (own, "")

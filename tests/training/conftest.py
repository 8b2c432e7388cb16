"""What the tests of fine-tuning share."""

import numpy as np
import pytest
import torch

from core import save_video
from tiny import save_tiny_model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model folder and eight captioned videos."""
    root = tmp_path_factory.mktemp("finetune")
    save_tiny_model(root / "model")
    rng = np.random.default_rng(0)
    (root / "videos").mkdir()
    for i in range(8):
        frames = np.roll(rng.integers(0, 255, (1, 32, 48, 3), dtype=np.uint8), 0).repeat(9, 0)
        frames = np.stack([np.roll(frame, t, 1) for t, frame in enumerate(frames)])
        save_video(frames, root / "videos" / f"clip{i}.mp4", fps=8)
        (root / "videos" / f"clip{i}.txt").write_text(f"a red ball number {i}")
    return root

"""The teacher that is told how the camera moves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from core import MiraTransformer3DModel
from tiny import TEXT_DIM
from training.camera import CameraTeacher, places, watching
from training.config import ConfigError
from training.toyworld import captions, sample_spec
from training.toyworld.captions import camera_of
from training.toyworld.render import World
from training.toyworld.scene import CAMERAS

STILL, PAN = "A big red ball falls over the sea.", "A big red ball falls over the sea. The camera pans left."


@pytest.fixture
def model() -> MiraTransformer3DModel:
    torch.manual_seed(0)
    return MiraTransformer3DModel(num_attention_heads=2, attention_head_dim=16, num_layers=3, in_channels=4, out_channels=4, caption_channels=TEXT_DIM, window_attn="frame")


def test_every_caption_tells_the_camera():
    rng = np.random.default_rng(0)
    for camera in CAMERAS:
        for _ in range(40):
            told = captions(sample_spec(rng, camera=camera), rng)
            assert camera_of(told["short_caption"]) == camera_of(told["dense_caption"]) == camera


@pytest.mark.parametrize("camera", ["pans left", "pans right", "zooms in"])
def test_what_stands_on_the_ground_keeps_its_place(camera):
    """Where the world's own camera draws a point at two times, ``places`` says the same of both."""
    spec = sample_spec(np.random.default_rng(3), motion="stays still", camera=camera)
    world, columns = World(spec), spec.width // 16
    told = []
    for time in (0.25, 0.75):
        pan, zoom = world._camera(time)
        shown = 0.5 * world.aspect + (0.6 * world.aspect + pan - 0.5 * world.aspect) * zoom  # frame heights, of a point of the near layer
        patch = shown * spec.height / 16 - 0.5
        xs, _ = places(spec.height // 16, columns, camera, time)
        told.append(float(xs[0] + patch * (xs[1] - xs[0])))
    assert told[0] == pytest.approx(told[1], abs=0.06 * columns / 2)  # a pan's length varies by so much
    still, _ = places(5, columns, "still", 0.9)
    assert torch.equal(still, torch.arange(columns).float())


def test_a_student_learns_the_cameras_positions_from_the_words(model):
    """The teacher differs from the model it was made of where the camera moves, and there alone; the student comes nearer to it."""
    teacher = CameraTeacher(copy.deepcopy(model), torch.float32)
    texts, timesteps, fps = [STILL, PAN], torch.tensor([500, 500]), torch.tensor([6.0, 6.0])
    embeds = torch.randn(2, 3, TEXT_DIM)

    def distance(clips: slice) -> torch.Tensor:
        noisy = torch.randn(2, 4, 4, 4, 8, generator=torch.Generator().manual_seed(1))[clips]
        with watching(model) as seen:
            model(noisy, timesteps[clips], embeds[clips], fps[clips], frame_indices=torch.tensor([0, 3, 8, 11]))
        return teacher.distance(seen[0], noisy, timesteps[clips], embeds[clips], fps[clips], texts[clips], torch.tensor([0, 3, 8, 11]), 12)

    assert distance(slice(0, 1)) < 1e-10
    before = distance(slice(1, 2)).item()
    assert before > 0.01
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        loss = distance(slice(0, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distance(slice(1, 2)).item() < before / 2


def test_a_teacher_needs_toy_worlds_latents_and_a_transformer_to_begin_with(tmp_path):
    from tiny import save_tiny_model
    from training.config import load_config
    from training.targets.transformer import TransformerTask
    from training.toyworld.folder import write_folder

    save_tiny_model(tmp_path / "model")
    write_folder(tmp_path / "clips", 2, num_frames=4, height=32, width=32)
    words = [f"model={tmp_path / 'model'}", f"dataset={tmp_path / 'clips'}", f"data_dir={tmp_path}", "num_frames=[4]", "sizes=[32x32]", "camera_weight=1", "validation_clips=0"]
    with pytest.raises(ConfigError, match="camera_weight is for"):
        TransformerTask(load_config(None, words), torch.device("cpu"))


@pytest.mark.parametrize("words", [[], ["camera_weight=1", "num_processes=2"]])
def test_a_teacher_that_is_not_there_cannot_teach_alone(words):
    from training.config import load_config

    with pytest.raises(ConfigError, match="camera_only is for"):
        load_config(None, ["target=transformer", "model=any", "dataset=any", "curriculum=[{steps: 5, camera_only: true}]", *words])

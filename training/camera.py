"""Teaching a transformer how a camera moves, by a teacher that is told: Toy World's captions say it, and what it does to positions is known.

A panned clip is a still one whose patches keep the positions of what they show, not of where on the frame they are: given such positions, a model that
draws still clips well draws pans that it never could (tests/training/test_camera.py has the geometry). So the teacher is the model that a run starts
from, with its positions moved along with the camera; the student, which reads the camera from the caption alone, learns to have the same tokens after
its first layers, beside the loss that it is trained with. Sampling needs no teacher. Nor does a model that has learned it make one: it would move
positions twice (error of v of pans at t = 600 with the tenth part's: 0.090, and 0.052 untold).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid
from torch import Tensor

from core.transformer import MiraTransformer3DModel, PatchEmbed

from .toyworld.captions import camera_of
from .toyworld.render import PAN
from .toyworld.scene import ZOOM

LAYERS = 2
"""After how many the tokens are compared: enough to read the camera from the text and to move positions by it."""


class ToldPatchEmbed(PatchEmbed):
    """Patches to tokens whose positions [B T, N, D] are given in ``told`` before each call."""

    told: Tensor

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents).flatten(2).transpose(1, 2) + self.told


class CameraTeacher:
    """The first LAYERS of ``model``, which is used up, in ``dtype``."""

    def __init__(self, model: MiraTransformer3DModel, dtype: torch.dtype):
        self.base_size = model.pos_embed.base_size
        model.transformer_blocks, model.temporal_transformer_blocks = model.transformer_blocks[:LAYERS], model.temporal_transformer_blocks[:LAYERS]
        model.pos_embed.__class__ = ToldPatchEmbed
        self.model, self.dtype = model.to(dtype).requires_grad_(False).eval(), dtype

    def distance(self, seen: Tensor, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor, fps: Tensor, texts: Sequence[str], frame_indices: Tensor | None, num_frames: int) -> Tensor:
        """Mean squared difference of ``seen``, what ``watching`` saw in the student, from the teacher's tokens, over their variance.

        ``noisy`` [B, C, T, h, w] are frames of ``frame_indices`` [T] in clips of ``num_frames``, or whole clips; ``texts`` what the student reads.
        """
        T, p = noisy.shape[2], self.model.config.patch_size
        times = tuple((torch.arange(T) if frame_indices is None else frame_indices).div(max(1, num_frames - 1)).tolist())
        rows, columns = noisy.shape[3] // p, noisy.shape[4] // p
        positions = torch.stack([_positions(self.model.dim, rows, columns, self.base_size, camera_of(text), times) for text in texts])
        self.model.pos_embed.told = positions.flatten(0, 1).to(noisy.device, self.dtype)
        with watching(self.model) as told:  # not no_grad, which would have blocks called a part at a time: nothing here asks for gradients
            self.model(noisy.to(self.dtype), timesteps, prompt_embeds.to(self.dtype), fps, frame_indices=frame_indices)
        wanted = told[0].float()
        return (seen.float() - wanted).square().mean() / wanted.var()


class Enough(Exception):
    """What was to be seen has been seen."""


@contextmanager
def watching(model: MiraTransformer3DModel, no_further: bool = False) -> Iterator[list[Tensor]]:
    """The tokens after the first LAYERS of each forward within it; with ``no_further`` the one forward within it ends there."""
    seen: list[Tensor] = []

    def see(module: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        seen.append(output)
        if no_further:
            raise Enough

    handle = model.temporal_transformer_blocks[LAYERS - 1].register_forward_hook(see)
    try:
        yield seen
    except Enough:
        pass
    finally:
        handle.remove()


@lru_cache(maxsize=256)
def _positions(dim: int, rows: int, columns: int, base_size: int, camera: str, times: tuple[float, ...]) -> Tensor:
    """[T, N, dim]: of what each patch shows, at ``times`` in 0..1, on a grid that is stretched to the base grid as the model's own is."""
    grids = [torch.stack(torch.meshgrid(xs * base_size / columns, ys * base_size / rows, indexing="xy")) for xs, ys in (places(rows, columns, camera, time) for time in times)]
    return torch.stack([torch.as_tensor(get_2d_sincos_pos_embed_from_grid(dim, grid[:, None], output_type="pt")).float() for grid in grids])


def places(rows: int, columns: int, camera: str, time: float) -> tuple[Tensor, Tensor]:
    """x of each column and y of each row of a frame of ``rows`` x ``columns`` patches at ``time``, in patches of the scene's near layer half-way through the pan."""
    xs, ys = torch.arange(columns, dtype=torch.float32), torch.arange(rows, dtype=torch.float32)
    if camera == "zooms in":
        zoom = 1 + (ZOOM - 1) * time
        return (xs - (columns - 1) / 2) / zoom + (columns - 1) / 2, (ys - (rows - 1) / 2) / zoom + (rows - 1) / 2
    shift = {"pans left": 1, "pans right": -1}.get(camera, 0) * PAN * columns
    return xs - shift * (time - 0.5), ys

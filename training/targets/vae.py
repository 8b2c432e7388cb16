"""Train the video VAE on freshly rendered Toy World clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from core.temporal_vae import TemporalVAE

from ..config import ConfigError, TrainConfig
from ..precompute import object_mask
from ..principal import principal_components, write_encoder
from ..toyworld import render, sample_spec
from ..toyworld.render import World
from ..toyworld.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, ClipSpec
from ..trainer import step_generator, step_rng

CLIP_FRAMES = 24
FITTED_FRAMES = 400
"""Frames whose patches the principal components are taken from."""
DETAIL, DETAIL_CONTRAST = 9, 0.05
"""A detail differs so much (of -1..1) from the mean of so many pixels around it."""
AROUND = 33
"""Pixels, wider than an object is: an object counts for all of such a place, however little of it it covers."""
EXTRA_MOTIONS = ("moves left", "moves right", "rises", "falls", "bounces", "circles", "stays still")


class VAETask:
    """L1 and L2 on pixels and L1 on their differences, plus a small KL term.

    Objects cover a few per cent of a frame and carry nearly all that a caption says, so they count as much as all the rest of it, a small one as much
    as a big one (by their pixels a small star came out as a house), crops are drawn mostly around them, and ``crowd`` adds more of them to a scene. The small faint marks of a background, by which one sees how the camera moves,
    count as much again: without that the decoder takes them for noise and draws none.
    """

    casts_weights = False

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        part = Path(config.model) / "vae" if config.model else None
        if part and part.is_dir():
            self.model = TemporalVAE.from_pretrained(part)
        else:
            try:
                self.model = TemporalVAE(**{"down_block_types": ("DownEncoderBlock2D",) * 4, **config.architecture})
                start_from_principal_components(self.model)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"architecture: {error}") from None
        self.model.to(device).float().train()
        self.decoder_only = config.target == "vae_decoder"
        if self.decoder_only:
            self.model.encoder.requires_grad_(False)
            self.model.quant_conv.requires_grad_(False)
        use_exact_temporal_convolutions(self.model)
        self.network = self.model
        known = {"size": SIZES, "shape": SHAPES, "color": COLORS, "background": BACKGROUNDS}
        for name, value in config.hard_clips.items():
            if value not in known.get(name, ()):
                raise ConfigError(f"hard_clips has {name}: {value}; it can have " + "; ".join(f"{name}: {' or '.join(values)}" for name, values in known.items()) + ".")

    def batch(self, step: int) -> dict[str, Any]:
        """``frames`` uint8 [B, T, H, W, 3]: crops of consecutive frames."""
        rng, stage = step_rng(self.config.seed, step), self.config.stage_at(step)
        num_frames = int(rng.choice(stage.num_frames))
        crops = []
        for _ in range(stage.clips(num_frames)):
            spec = sample_spec(rng, num_frames=CLIP_FRAMES)
            start = int(rng.integers(0, CLIP_FRAMES - num_frames + 1))
            hard = self.config.hard_clips if rng.random() < self.config.hard_share else {}
            clip = crowded(spec, range(start, start + num_frames), int(rng.integers(0, self.config.crowd + 1)), rng, self.config.any_color, hard)
            crops.append(crop_near_object(clip, stage.height, stage.width, rng))
        return {"frames": np.stack(crops)}

    def loss(self, batch: dict[str, Any], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        frames = torch.from_numpy(batch["frames"]).to(self.device)
        B, T = frames.shape[:2]
        pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).float().div(127.5).sub(1)  # (B T) 3 H W
        with torch.set_grad_enabled(not self.decoder_only):
            posterior = self.model.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=step_generator(self.config.seed, step)).to(self.device)
        latents = posterior.mean + posterior.std * noise
        decoded = self.model.decode(latents, num_frames=T).sample.float()
        saturation = (pixels.amax(1, keepdim=True) - pixels.amin(1, keepdim=True)) / 2
        objects = F.max_pool2d((saturation > 0.35).float(), 5, stride=1, padding=2)  # with their outlines
        error = decoded - pixels
        slopes = F.pad(error.diff(dim=-1).abs(), (0, 1)) + F.pad(error.diff(dim=-2).abs(), (0, 0, 0, 1))
        distance = (error.abs() + error.square() + slopes).mean(1, keepdim=True)
        around = F.avg_pool2d(pixels, DETAIL, stride=1, padding=DETAIL // 2, count_include_pad=False)
        marked = ((pixels - around).abs().mean(1, keepdim=True) > DETAIL_CONTRAST).float()
        details = F.max_pool2d(marked, 3, stride=1, padding=1) * (1 - objects)
        reconstruction = distance.mean() + sum((distance * places).sum() / places.sum().clamp(min=1) for places in (alike(objects), details))
        kl = posterior.kl().mean() / pixels[0].numel()
        mse = error.detach().square().mean() / 4
        return reconstruction + self.config.kl_weight * kl, {"psnr": float(-10 * torch.log10(mse)), "kl": float(kl.detach()), "latent_std": float(posterior.mean.detach().float().std())}

    @torch.no_grad()
    def save(self, folder: Path, weights: dict[str, torch.Tensor], step: int) -> None:
        """``folder/vae``, with the scaling factor that brings these latents to unit spread."""
        vae = TemporalVAE.from_config(self.model.config).to(self.device).eval()
        vae.load_state_dict(weights)
        if not self.decoder_only:  # the latents have changed; bring them back to unit spread
            rng = step_rng(self.config.seed, 2**31)
            clips = [render(sample_spec(rng, num_frames=CLIP_FRAMES), frames=[0, CLIP_FRAMES // 2]) for _ in range(16)]
            pixels = torch.from_numpy(np.concatenate(clips)).to(self.device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
            vae.register_to_config(scaling_factor=round(float(1 / vae.encode(pixels).latent_dist.mean.std()), 5))
        vae.save_pretrained(folder / "vae")


def alike(objects: torch.Tensor) -> torch.Tensor:
    """Weights [B, 1, H, W] of the pixels that ``objects`` [B, 1, H, W], of 0 and 1, marks: those of a small object are together about as much as those of a big one."""
    return objects / F.avg_pool2d(objects, AROUND, stride=1, padding=AROUND // 2).clamp(min=1 / AROUND**2)


def start_from_principal_components(vae: TemporalVAE) -> None:
    """Set the encoder of an untrained VAE to what suits Toy World."""
    rng = np.random.default_rng(0)
    clips = np.concatenate([crowded(sample_spec(rng, num_frames=CLIP_FRAMES), range(i % CLIP_FRAMES, i % CLIP_FRAMES + 1), i % 4, rng) for i in range(FITTED_FRAMES)])
    frames = torch.from_numpy(clips).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    write_encoder(vae, *principal_components(frames, object_mask(clips), vae.config.latent_channels))


def crowded(spec: ClipSpec, frames: range, extra: int, rng: np.random.Generator, any_color: float = 0.0, hard: Mapping[str, str] = MappingProxyType({})) -> np.ndarray:
    """The clip uint8 [T, H, W, 3] with ``extra`` more objects in it, each with a motion of its own, and ``any_color`` of them in a colour without a name; all are as ``hard`` says."""
    second = {f"second_{name}": value for name, value in hard.items() if name != "background"} if spec.motion == "hits" else {}
    spec = replace(spec, **hard, **second)
    images = render(spec, frames=frames).astype(np.float32) / 255
    for _ in range(extra):
        other = replace(sample_spec(rng, motion="circles"), **hard)
        world = World(replace(spec, size=other.size, color=other.color, shape=other.shape, motion=str(rng.choice(EXTRA_MOTIONS))), {other.color: tuple(rng.random(3))} if any_color and rng.random() < any_color else COLORS)
        world.r = rng.random(len(world.r))
        for image, frame in zip(images, frames):
            world.paint_objects(image, frame / (spec.num_frames - 1))
    return (images * 255 + 0.5).astype(np.uint8)


def use_exact_temporal_convolutions(vae: torch.nn.Module) -> None:
    """Run the (3, 1, 1) convolutions as two-dimensional ones over (T, H W): the same sum.

    oneDNN's bf16 weight gradient of the three-dimensional form is not finite for short clips (torch 2.10 on AVX512-BF16: 5 to
    12 of the 16 weights, differing from run to run); that of the two-dimensional form is right.
    """

    def forward(self: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:  # B C T H W
        return F.conv2d(x.flatten(3), self.weight.squeeze(-1), self.bias, padding=(1, 0)).unflatten(3, x.shape[3:])

    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size == (3, 1, 1):
            module.forward = MethodType(forward, module)


def crop_near_object(clip: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A ``height`` x ``width`` crop of ``clip`` [T, H, W, 3]; three in four are placed over a saturated pixel."""
    H, W = clip.shape[1:3]
    if (height, width) == (H, W):
        return clip
    top, left = rng.integers(0, H - height + 1), rng.integers(0, W - width + 1)
    saturated = np.argwhere(clip[0].max(-1).astype(int) - clip[0].min(-1) > 90)
    if len(saturated) and rng.random() < 0.75:
        y, x = saturated[rng.integers(len(saturated))]
        top = int(np.clip(y - rng.integers(8, height - 8), 0, H - height))
        left = int(np.clip(x - rng.integers(8, width - 8), 0, W - width))
    return clip[:, top : top + height, left : left + width]

"""Decoding a clip whole in bounded memory.

Every residual block of the temporal decoder normalises over all frames of the clip (twice) and looks one frame back and ahead (twice): no
overlap of separately decoded chunks gives what the whole clip gives. So the clip goes through the decoder layer by layer, and through each
layer a few frames at a time: statistics first, of all frames, then convolutions with the one frame on either side that they look at. Two
tensors of the clip's size are alive at once, the block's input and its hidden layer; an undivided decode holds six.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

PIXELS_AT_ONCE = 4 * 128 * 80
"""Pixels of the frames that go through a layer together; never fewer than one frame, nor more than a twelfth of the clip."""

Clip = list[Tensor]
"""A clip [T, C, H, W] in pieces along time."""


@apply_forward_hook
@torch.no_grad()
def decode_whole(vae: AutoencoderKLTemporalDecoder, latents: Tensor, frames_at_once: int | None = None) -> Tensor:
    """Frames [T, 3, H, W] of one clip's unscaled ``latents`` [T, C, h, w]: ``vae.decode(latents, num_frames=T)`` but for rounding.

    ``frames_at_once`` bounds the working memory and changes nothing else; None chooses it by the frame's size.
    """
    decoder = vae.decoder
    if frames_at_once is None:
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        frames_at_once = max(1, min(PIXELS_AT_ONCE // (latents.shape[-2] * latents.shape[-1] * factor**2), len(latents) // 12))
    clip: Clip = list(latents.split(frames_at_once))
    _each(clip, decoder.conv_in)
    first, *rest = decoder.mid_block.resnets
    _residual(clip, first)
    for attention, block in zip(decoder.mid_block.attentions, rest):
        _each(clip, attention)
        _residual(clip, block)
    for level in decoder.up_blocks:
        for block in level.resnets:
            _residual(clip, block)
        for upsampler in level.upsamplers or ():
            _each(clip, upsampler)
    _each(clip, lambda frames: decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(frames))))
    return torch.cat(list(_along_time(clip, lambda frames: frames, decoder.time_conv_out)))


def _each(clip: Clip, layer: Callable[[Tensor], Tensor]) -> None:
    """Put a layer that looks at each frame by itself in the place of the clip."""
    for i, frames in enumerate(clip):
        clip[i] = layer(frames)


def _residual(clip: Clip, block: SpatioTemporalResBlock) -> None:
    """Put the block's output in the place of the clip."""
    _each(clip, lambda frames: block.spatial_res_block(frames, None))
    temporal = block.temporal_res_block
    hidden = list(_along_time(clip, _normalised(clip, temporal.norm1), temporal.conv1))
    mixer = block.time_mixer
    of_spatial = mixer.get_alpha(None, clip[0].ndim).to(clip[0].dtype)
    weight = of_spatial if mixer.switch_spatial_to_temporal_mix else 1 - of_spatial
    for i, change in enumerate(_along_time(hidden, _normalised(hidden, temporal.norm2), temporal.conv2)):
        clip[i] = torch.addcmul(clip[i], change, weight)  # spatial + weight (spatial + change - spatial)


def _normalised(clip: Clip, norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    """``silu(norm(frames))`` with the statistics of the whole clip: those of its pieces, put together in fp64 (Chan et al. 1983), which Apple's GPUs lack."""
    precise = torch.promote_types(clip[0].dtype, torch.float32)
    summed = _widest(clip[0].device)
    pieces = [_moments(frames.to(precise).unflatten(1, (norm.num_groups, -1))) for frames in clip]
    share = torch.tensor([len(frames) for frames in clip], dtype=summed, device=clip[0].device)[:, None]
    share = share / share.sum()
    variances, means = (torch.stack(values).to(summed) for values in zip(*pieces))  # pieces, groups
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    per_group = len(norm.weight) // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(per_group) * norm.weight
    shift = norm.bias - mean.repeat_interleave(per_group) * scale
    scale, shift = (value.to(precise)[:, None, None] for value in (scale, shift))

    def normalise(frames: Tensor) -> Tensor:
        return F.silu(torch.addcmul(shift, frames.to(precise), scale), inplace=True).to(frames.dtype)

    return normalise


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean [G] of ``values`` [T, G, C, H, W], in two passes: five times as fast as ``torch.var_mean`` on a CPU."""
    mean = values.mean((0, 2, 3, 4))
    apart = values - mean[:, None, None, None]
    return torch.linalg.vector_norm(apart, dim=(0, 2, 3, 4)).square() * (len(mean) / values.numel()), mean


def _along_time(clip: Clip, prepare: Callable[[Tensor], Tensor], conv: nn.Conv3d) -> Iterator[Tensor]:
    """``conv`` (3 x 1 x 1, zeros before the first frame and after the last) of the prepared clip, piece by piece.

    A piece may be replaced once it has been given: the next one is prepared by then.
    """
    before, now = None, prepare(clip[0])
    for number in range(1, len(clip) + 1):
        after = prepare(clip[number]) if number < len(clip) else None
        edge = torch.zeros_like(now[:1])
        window = torch.cat([edge if before is None else before, now, edge if after is None else after[:1]])
        before, now = now[-1:].clone(), after
        yield F.conv3d(window.transpose(0, 1)[None], conv.weight, conv.bias)[0].transpose(0, 1)

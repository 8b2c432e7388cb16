"""A VAE encoder in closed form: the whitened principal components of 8 x 8 patches, written into diffusers' encoder.

A small encoder that is trained by reconstruction spends itself on what covers most pixels: on Toy World it took an hour to say how light
each place is and never told yellow from orange. Principal components are the best linear code there is, need no training, and give the
transformer latents of equal spread that barely correlate. The decoder, which is trained, draws sharp shapes from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from core.vae import encode_video

PATCH = 8
POSTERIOR_STD = 0.1
"""Spread of the posterior: how wrong latents may be that the decoder learns to bear."""
STEADY = 20.0
"""Size of the constant channels that keep the last group norm from rescaling the components."""


def principal_components(frames: Tensor, masks: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weights [count, 3, 8, 8] and offsets [count] that make whitened components of patches.

    ``frames`` [N, 3, H, W] in -1..1; patches that ``masks`` [N, H/8, W/8] marks (the objects') count as much as all the others.
    """
    patches = F.unfold(frames, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)  # P 192
    inside = masks.flatten()
    groups = [patches[inside], patches[~inside]]
    mean = sum(g.mean(0) for g in groups) / 2
    second = sum((g - mean).T @ (g - mean) / len(g) for g in groups) / 2
    variances, axes = torch.linalg.eigh(second.double())
    weights = (axes[:, -count:].flip(1) / variances[-count:].flip(0).sqrt()).T.float()  # the largest first
    return weights.unflatten(1, (3, PATCH, PATCH)), -weights @ mean


@torch.no_grad()
def write_encoder(vae: AutoencoderKLTemporalDecoder, weights: Tensor, offsets: Tensor) -> None:
    """Make ``vae`` (in place) encode a patch as ``weights`` [C, 3, 8, 8] times it plus ``offsets`` [C], with a scaling factor of one.

    The residual branches are off, so that what is left is linear: each downsampler gathers 2 x 2 places, the second one already sums each
    quarter of a patch for each component. The last group norm and SiLU are undone: each component goes through as a pair x, -x, as
    ``silu(x) - silu(-x) = x``, beside large constant channels which make the group's spread a constant.
    Raises ValueError for an encoder that is too narrow or does not halve a side three times.
    """
    encoder, C = vae.encoder, len(weights)
    if len(encoder.down_blocks) != 4 or any(len(block.resnets) != 1 for block in encoder.down_blocks):
        raise ValueError("The principal components need an encoder of four levels with one residual block each.")
    widths = [block.resnets[0].out_channels for block in encoder.down_blocks]
    if widths[0] < 12 or min(widths[1:]) < 4 * C or widths[3] == widths[2]:
        raise ValueError(f"{C} latent channels need block_out_channels of at least (12, {4 * C}, {4 * C}, {4 * C}), the last one unlike the third; they are {tuple(widths)}.")
    for name, parameter in encoder.named_parameters():
        if "norm" not in name or "conv_norm_out" in name:
            parameter.zero_()
    _identity(encoder.conv_in, 3)
    _shortcuts(encoder, widths)
    quarters = [(y, x) for y in (0, 1) for x in (0, 1)]
    pixels, quarter, whole = (encoder.down_blocks[level].downsamplers[0].conv for level in range(3))
    for i, (y, x) in enumerate(quarters):
        for color in range(3):
            pixels.weight[4 * color + i, color, y, x] = 1
        for k in range(C):
            for q, (Y, X) in enumerate(quarters):  # what quarter q of a patch gives to component k: a 4 x 4 kernel over 2 x 2 gathered pixels
                kernel = weights[k, :, 4 * Y : 4 * Y + 4, 4 * X : 4 * X + 4]
                for color in range(3):
                    for j, (b, a) in enumerate(quarters):
                        quarter.weight[4 * k + q, 4 * color + j, y, x] = kernel[color, 2 * y + b, 2 * x + a]
            whole.weight[k, 4 * k + i, y, x] = 1
    whole.bias[:C] = offsets

    norm, spread = encoder.conv_norm_out, encoder.down_blocks[3].resnets[0].conv_shortcut
    size = norm.num_channels // norm.num_groups
    steady = torch.ones(norm.num_channels)
    steady[1::2] = -1
    spread.bias.copy_(STEADY * steady)
    used = {}
    for k in range(C):  # pairs go to the groups in turn
        channel = size * (k % norm.num_groups) + 2 * (k // norm.num_groups)
        used[k] = channel
        spread.weight[channel, k], spread.weight[channel + 1, k] = 1, -1
        spread.bias[channel] = spread.bias[channel + 1] = 0
        encoder.conv_out.weight[k, channel, 1, 1], encoder.conv_out.weight[k, channel + 1, 1, 1] = 1, -1
    for k, channel in used.items():
        group = spread.bias[channel // size * size : (channel // size + 1) * size]
        shared = sum(c // size == channel // size for c in used.values())  # components of spread one in this group
        norm.weight[channel : channel + 2] = math.sqrt((group.square().sum() + 2 * shared) / size)

    quant = vae.quant_conv
    quant.weight.zero_()
    quant.bias.zero_()
    quant.weight[:C, :C, 0, 0] = torch.eye(C)
    quant.bias[C:] = 2 * math.log(POSTERIOR_STD)
    vae.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def read_encoder(vae: AutoencoderKLTemporalDecoder) -> tuple[Tensor, Tensor] | None:
    """The ``weights`` [C, 3, 8, 8] and ``offsets`` [C] that an encoder of ``write_encoder`` was made of; None of any other encoder.

    Asked of the encoder itself, with one picture for each pixel of a patch, and compared with it on noise. A matrix product in its place is
    hundreds of times as fast.
    """
    if 2 ** (len(vae.config.block_out_channels) - 1) != PATCH:
        return None
    device, size = next(vae.parameters()).device, 3 * PATCH * PATCH
    basis = torch.cat([torch.zeros(1, size), torch.eye(size)]).view(1, -1, 3, PATCH, PATCH).transpose(1, 2).to(device)
    answers = encode_video(vae, basis)[0, :, :, 0, 0].float()  # C 193
    offsets, weights = answers[:, 0], (answers[:, 1:] - answers[:, :1]).unflatten(1, (3, PATCH, PATCH))
    noise = torch.rand(1, 3, 1, 4 * PATCH, 5 * PATCH, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    exact = encode_video(vae, noise)[0, :, 0].float()
    close = (project(noise[0].transpose(0, 1), weights, offsets)[0] - exact).abs().max() < 0.01 * exact.abs().max()
    return (weights, offsets) if close else None


def encoder_of(vae: AutoencoderKLTemporalDecoder) -> Callable[[np.ndarray], Tensor]:
    """What makes latents [C, T, h, w] of frames uint8 [T, H, W, 3]: ``vae`` (fp32), or the one matrix product that its encoder is."""
    device, linear = next(vae.parameters()).device, read_encoder(vae)

    def encode(frames: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).div(127.5).sub(1)  # T 3 H W
        return project(pixels, *linear).transpose(0, 1) if linear else encode_video(vae, pixels.transpose(0, 1)[None])[0]

    return encode


def project(frames: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """The components [T, C, H/8, W/8] of ``frames`` [T, 3, H, W] in -1..1."""
    return F.conv2d(frames, weights, offsets, stride=PATCH)


def _identity(conv: nn.Conv2d, channels: int) -> None:
    middle = conv.kernel_size[0] // 2
    for c in range(channels):
        conv.weight[c, c, middle, middle] = 1


def _shortcuts(encoder: nn.Module, widths: list[int]) -> None:
    """Levels that get wider pass on what they have."""
    for level in (1, 2):
        shortcut = encoder.down_blocks[level].resnets[0].conv_shortcut
        if shortcut is not None:
            _identity(shortcut, widths[level - 1])

"""Give a VAE's latents equal spread in every direction, without changing what it encodes and decodes."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder

from core.vae import encode_video

FLOOR = 0.1
"""Directions with a smaller spread than this are not brought up to one: they carry little but the encoder's noise."""


@torch.no_grad()
def whiten(vae: AutoencoderKLTemporalDecoder, frames: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Rotate and scale the latents of ``vae`` (in place) so that their covariance on ``frames`` becomes the identity.

    An autoencoder spends most of its latents' spread on what covers most pixels. On Toy World the principal directions' spreads ran from 2.6
    (how light the background is) to 0.02, so that at any noise level the background drowned the objects. PCA whitening is linear and
    invertible: it goes into the last 1 x 1 convolution of the encoder and, inverted, into the first convolution of the decoder.

    ``frames`` [B, 3, T, H, W] in -1..1; ``masks`` [B, T, h, w] say where the objects are, which count as much as all the rest.
    The posterior's variance becomes one number a direction. Returns the spreads [C] before.
    """
    C = vae.config.latent_channels
    vae.register_to_config(scaling_factor=1.0)
    latents = encode_video(vae, frames).float().permute(0, 2, 3, 4, 1)[masks.new_ones(masks.shape, dtype=torch.bool)]  # N C
    inside = masks.flatten()
    covariance = (torch.cov(latents[inside].T) + torch.cov(latents[~inside].T)) / 2
    variances, axes = torch.linalg.eigh(covariance)
    spreads = variances.clamp(min=0).sqrt()
    scale = 1 / spreads.clamp(min=FLOOR)
    forward, backward = scale[:, None] * axes.T, axes / scale  # z' = forward z, z = backward z'

    quant = vae.quant_conv
    mean_weight, mean_bias = quant.weight[:C].flatten(1).float(), quant.bias[:C].float()
    images = frames.transpose(1, 2).flatten(0, 1)[:16]
    variance = vae.encode(images.to(vae.dtype)).latent_dist.var.float().mean(dim=(0, 2, 3))  # C
    quant.weight[:C] = (forward @ mean_weight)[..., None, None].to(quant.weight)
    quant.bias[:C] = (forward @ mean_bias).to(quant.bias)
    quant.weight[C:] = 0
    quant.bias[C:] = torch.log(forward.square() @ variance).to(quant.bias)
    first = vae.decoder.conv_in
    first.weight.copy_(torch.einsum("ocxy,cd->odxy", first.weight.float(), backward).to(first.weight))
    return spreads

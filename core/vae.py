"""The video VAE: pixels to scaled latents and back, and Mira's tensors on diffusers' class.

Stable Diffusion's image encoder with Stable Video Diffusion's temporal decoder (arXiv:2311.15127). The functions here own the
scaling factor: nothing outside multiplies or divides by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from torch import Tensor

from .temporal_vae import TemporalVAE
from .whole_decode import decode_whole

ENCODE_FRAMES = 16
"""Frames that the encoder takes at once; it looks at each by itself, so this bounds memory and changes nothing."""
UNDIVIDED_ELEMENTS = 2**24
"""Elements of a decoder's widest layer up to which a clip is decoded undivided: six such tensors are 200 MB in bf16, 400 MB in fp32."""


def mira_vae_config(ch: int = 128, ch_mult: Sequence[int] = (1, 2, 4, 4), num_res_blocks: int = 2, z_channels: int = 4, scale_factor: float = 0.18215) -> dict[str, Any]:
    """Constructor arguments for a VAE as Mira's YAML describes it; the defaults are those of all released models.

    They are AutoencoderKLTemporalDecoder's, and with another ``num_res_blocks`` than 2 TemporalVAE's: Mira's decoder always has two
    residual blocks in its middle.
    """
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * len(ch_mult),
        "block_out_channels": tuple(ch * m for m in ch_mult),
        "layers_per_block": num_res_blocks,
        "latent_channels": z_channels,
        "scaling_factor": scale_factor,
        "force_upcast": False,
    }
    return config if num_res_blocks == 2 else {**config, "decoder_mid_layers": 2}


def build_mira_vae(**yaml: Any) -> AutoencoderKLTemporalDecoder:
    """An untrained VAE from the arguments of ``mira_vae_config``: diffusers' class where that fits, else TemporalVAE."""
    config = mira_vae_config(**yaml)
    return (TemporalVAE if "decoder_mid_layers" in config else AutoencoderKLTemporalDecoder)(**config)


@torch.no_grad()
def encode_video(vae: AutoencoderKLTemporalDecoder, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Scaled latents [B, C, T, h, w] of ``frames`` [B, 3, T, H, W] in -1..1: the posterior's mode, or a sample with a generator."""
    if frames.ndim != 5 or frames.shape[1] != 3:
        raise ValueError(f"Frames must be [B, 3, T, H, W]; these are {list(frames.shape)}.")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if frames.shape[-2] % factor or frames.shape[-1] % factor:
        raise ValueError(f"Frames of {frames.shape[-2]} x {frames.shape[-1]} pixels: both sides must be multiples of {factor}.")
    images = rearrange(frames, "B C T H W -> (B T) C H W").to(vae.dtype)
    posterior = DiagonalGaussianDistribution(torch.cat([vae.encode(chunk).latent_dist.parameters for chunk in images.split(ENCODE_FRAMES)]))
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    return rearrange(latents * vae.config.scaling_factor, "(B T) C h w -> B C T h w", B=len(frames))


@torch.no_grad()
def decode_latents(vae: AutoencoderKLTemporalDecoder, latents: Tensor, chunk_frames: int | None = None) -> Tensor:
    """Frames [B, 3, T, H, W], about -1..1, of scaled ``latents`` [B, C, T, h, w].

    ``chunk_frames=None`` decodes each clip whole, a large one in bounded memory (``core.whole_decode``): every frame sees its neighbours and
    normalisation spans the clip. A number decodes chunks of so many frames apart, as Mira's code does with 10; seams show between them.
    """
    if latents.ndim != 5 or latents.shape[1] != vae.config.latent_channels:
        raise ValueError(f"Latents must be [B, {vae.config.latent_channels}, T, h, w]; these are {list(latents.shape)}.")
    if chunk_frames is not None and chunk_frames < 1:
        raise ValueError(f"chunk_frames is {chunk_frames}; it must be at least 1, or None to decode the clip whole.")
    latents = latents.to(vae.dtype) / vae.config.scaling_factor
    clips = []
    for clip in latents.transpose(1, 2):  # T C h w
        at_once = chunk_frames or (len(clip) if _is_small(vae, clip) else None)
        if at_once is None:
            clips.append(decode_whole(vae, clip))
        else:
            clips.append(torch.cat([vae.decode(chunk, num_frames=len(chunk)).sample for chunk in clip.split(at_once)]))
    return torch.stack(clips).transpose(1, 2)


def _is_small(vae: AutoencoderKLTemporalDecoder, clip: Tensor) -> bool:
    """Whether the decoder's widest layers take so little for ``clip`` [T, C, h, w] that it may go through undivided, which is a little faster."""
    widths = vae.config.block_out_channels
    pixels = clip.shape[-2] * clip.shape[-1] * 4 ** (len(widths) - 1)
    return len(clip) * pixels * widths[0] <= UNDIVIDED_ELEMENTS


# -- previews ---------------------------------------------------------------------------------------


def fit_latent_rgb(vae: AutoencoderKLTemporalDecoder, frames: Tensor) -> list[list[float]]:
    """The linear map from latents to colours that fits ``frames`` [B, 3, T, H, W] in -1..1 best (least squares).

    Returns C rows of three weights and one row of three biases; ``preview_frames`` applies them.
    """
    latents = encode_video(vae, frames).float()
    small = torch.nn.functional.interpolate(rearrange(frames.float(), "B C T H W -> (B T) C H W"), latents.shape[-2:], mode="area")
    x = rearrange(latents, "B C T h w -> (B T h w) C")
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    return torch.linalg.lstsq(x, rearrange(small, "N C h w -> (N h w) C")).solution.tolist()


def preview_frames(latents: Tensor, latent_rgb: Sequence[Sequence[float]]) -> Tensor:
    """Small frames uint8 [B, T, h, w, 3] of scaled ``latents`` [B, C, T, h, w], without the VAE."""
    weights = torch.tensor(latent_rgb, dtype=torch.float32, device=latents.device)
    colours = torch.einsum("bcthw,ck->bthwk", latents.float(), weights[:-1]) + weights[-1]
    return ((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


# -- Mira's names -----------------------------------------------------------------------------------

_RESNET = {"nin_shortcut": "conv_shortcut", "time_stack.in_layers.0": "norm1", "time_stack.in_layers.2": "conv1", "time_stack.out_layers.0": "norm2", "time_stack.out_layers.3": "conv2"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _resnet_name(rest: str, temporal_decoder: bool) -> str:
    """A residual block's tensor: in the decoder each block is a spatial one, a temporal one and their mix."""
    if rest == "mix_factor":
        return "time_mixer.mix_factor"
    layer, _, kind = rest.rpartition(".")
    name = f"{_RESNET.get(layer, layer)}.{kind}"
    if not temporal_decoder:
        return name
    return ("temporal_res_block." if layer.startswith("time_stack") else "spatial_res_block.") + name


def diffusers_vae_name(name: str, num_blocks: int = 4) -> str:
    """The name in diffusers of Mira's VAE tensor ``name``. Raises KeyError for one that is not a VAE's."""
    part, _, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        raise KeyError(name)
    decoder = part == "decoder"
    rules = (
        (r"mid\.block_(\d)\.(.+)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}.{_resnet_name(m[2], decoder)}"),
        (r"mid\.attn_1\.(\w+)\.(\w+)", lambda m: f"mid_block.attentions.0.{_ATTENTION[m[1]]}.{m[2]}"),
        (r"down\.(\d)\.block\.(\d)\.(.+)", lambda m: f"down_blocks.{m[1]}.resnets.{m[2]}.{_resnet_name(m[3], False)}"),
        (r"down\.(\d)\.downsample\.conv\.(\w+)", lambda m: f"down_blocks.{m[1]}.downsamplers.0.conv.{m[2]}"),
        (r"up\.(\d)\.block\.(\d)\.(.+)", lambda m: f"up_blocks.{num_blocks - 1 - int(m[1])}.resnets.{m[2]}.{_resnet_name(m[3], True)}"),
        (r"up\.(\d)\.upsample\.conv\.(\w+)", lambda m: f"up_blocks.{num_blocks - 1 - int(m[1])}.upsamplers.0.conv.{m[2]}"),
        (r"norm_out\.(\w+)", lambda m: f"conv_norm_out.{m[1]}"),
        (r"conv_out\.time_mix_conv\.(\w+)", lambda m: f"time_conv_out.{m[1]}"),
        (r"(conv_in|conv_out)\.(\w+)", lambda m: f"{m[1]}.{m[2]}"),
    )
    for pattern, rename in rules:
        match = re.fullmatch(pattern, rest)
        if match:
            return f"{part}.{rename(match)}"
    raise KeyError(name)


def convert_vae_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mira's VAE tensors under diffusers' names, with the identity for ``quant_conv``, which Mira lacks.

    Raises KeyError with the name of a tensor that is not part of such a VAE.
    """
    blocks = 1 + max((int(m[1]) for m in (re.match(r"encoder\.down\.(\d)\.", n) for n in tensors) if m), default=0)
    converted = {}
    for name, tensor in tensors.items():
        new = diffusers_vae_name(name, blocks)
        converted[new] = tensor.flatten(1) if ".attentions." in new and tensor.ndim == 4 else tensor
    moments = converted["encoder.conv_out.bias"]
    converted["quant_conv.weight"] = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)[..., None, None]
    converted["quant_conv.bias"] = torch.zeros_like(moments)
    return converted


def original_vae_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: diffusers' VAE tensors under Mira's names, ``quant_conv`` folded into the convolution before it.

    Raises KeyError with the name of a tensor that Mira's VAE has no place for.
    """
    blocks = 1 + max(int(m[1]) for m in (re.match(r"encoder\.down_blocks\.(\d)\.", n) for n in tensors) if m)
    names = {diffusers_vae_name(name, blocks): name for name in _original_vae_names(blocks)}
    quant = {kind: tensors[f"quant_conv.{kind}"].float().flatten(1 if kind == "weight" else 0) for kind in ("weight", "bias")}
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("quant_conv."):
            continue
        if name == "encoder.conv_out.weight":
            tensor = torch.einsum("oi,ichw->ochw", quant["weight"], tensor.float()).to(tensor.dtype)
        elif name == "encoder.conv_out.bias":
            tensor = (quant["weight"] @ tensor.float() + quant["bias"]).to(tensor.dtype)
        elif ".attentions." in name and tensor.ndim == 2:
            tensor = tensor[..., None, None]
        found[names[name]] = tensor
    return found


def _original_vae_names(blocks: int) -> Iterator[str]:
    """All names that tensors of such a VAE can have."""
    spatial = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
    temporal = ("time_stack.in_layers.0", "time_stack.in_layers.2", "time_stack.out_layers.0", "time_stack.out_layers.3")
    for part in ("encoder", "decoder"):
        layers = ["conv_in", "norm_out", "conv_out", "conv_out.time_mix_conv", *(f"mid.attn_1.{name}" for name in _ATTENTION)]
        places = [f"mid.block_{i}" for i in (1, 2)] + [f"{way}.{i}.block.{j}" for way in ("down", "up") for i in range(blocks) for j in range(10)]
        layers += [f"{place}.{leaf}" for place in places for leaf in (spatial if part == "encoder" else spatial + temporal)]
        layers += [f"{way}.{i}.{scale}.conv" for i in range(blocks) for way, scale in (("down", "downsample"), ("up", "upsample"))]
        yield from (f"{part}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))
        yield from (f"{part}.{place}.mix_factor" for place in places if part == "decoder")

"""Mira's forward in the original code's order of work, as what the benchmark compares with: written from its description, on our weights.

One prompt at a time; the text repeated for every frame, and projected to keys and values there; positions computed anew at each forward; every
projection a product of its own.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from core.transformer import Attention, MiraTransformer3DModel, TransformerBlock


@torch.no_grad()
def plain_forward(model: MiraTransformer3DModel, latents: Tensor, timestep: Tensor, text: Tensor, fps: Tensor) -> Tensor:
    """What ``model`` (v0 or v1, without windows) predicts for ``latents`` [1, C, T, H, W] and ``text`` [1, L, D], or text of the model's width.

    Text of the model's width has gone through the caption projection: at few layers that would weigh more than it does in a whole model.
    """
    frames, p = latents.shape[2], model.config.patch_size
    h, w = latents.shape[3] // p, latents.shape[4] // p
    dim, base = model.dim, model.pos_embed.base_size
    tokens = model.pos_embed.proj(rearrange(latents, "b c t h w -> (b t) c h w")).flatten(2).transpose(1, 2)
    rows, columns = np.arange(h) / (h / base), np.arange(w) / (w / base)
    grid = np.stack(np.meshgrid(columns, rows))
    tokens = tokens + torch.from_numpy(np.concatenate([_sincos(dim // 2, axis.reshape(-1)) for axis in grid], 1)).to(tokens)

    embedding = model.adaln_single.emb(timestep, torch.full_like(timestep, int(fps)), latents.dtype)
    modulation = model.adaln_single.linear(F.silu(embedding)).unflatten(-1, (6, -1))
    by_frame, by_patch = (repeat(modulation, "b s d -> (b n) s d", n=n) for n in (frames, h * w))
    words = repeat(text if text.shape[-1] == dim else model.caption_projection(text), "b l d -> (b t) l d", t=frames)

    for layer, (spatial, temporal) in enumerate(zip(model.transformer_blocks, model.temporal_transformer_blocks)):
        tokens = _block(spatial, tokens, by_frame, words, model.config.text_spatial_cond)
        tokens = rearrange(tokens, "(b t) n d -> (b n) t d", t=frames)
        if layer == 0:
            tokens = tokens + torch.from_numpy(_sincos(dim, np.arange(frames))).to(tokens)
        tokens = rearrange(_block(temporal, tokens, by_patch), "(b n) t d -> (b t) n d", n=h * w)

    shift, scale = (model.scale_shift_table + embedding[:, None]).unbind(1)
    tokens = model.proj_out(F.layer_norm(tokens, (dim,), eps=1e-6) * (1 + scale) + shift)
    return rearrange(tokens, "t (h w) (p q c) -> 1 c t (h p) (w q)", h=h, w=w, p=p, q=p)[:, : latents.shape[1]]


def _block(block: TransformerBlock, tokens: Tensor, modulation: Tensor, text: Tensor | None = None, with_frame: bool = False) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.scale_shift_table + modulation).unsqueeze(2).unbind(1)
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=block.eps) * (1 + scale1) + shift1
    tokens = gate1 * _attention(block.attn1, normed, normed) + tokens
    if text is not None:
        tokens = _attention(block.attn2, tokens, torch.cat([text, normed], 1) if with_frame else text) + tokens
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=block.eps) * (1 + scale2) + shift2
    first, _, second = block.ff.net
    return gate2 * second(F.gelu(first.proj(normed), approximate="tanh")) + tokens


def _attention(attention: Attention, tokens: Tensor, context: Tensor) -> Tensor:
    query, key, value = (rearrange(x, "b n (h d) -> b h n d", h=attention.heads) for x in (attention.to_q(tokens), attention.to_k(context), attention.to_v(context)))
    return attention.to_out[0](rearrange(F.scaled_dot_product_attention(query, key, value), "b h n d -> b n (h d)"))


def _sincos(dim: int, positions: np.ndarray) -> np.ndarray:
    angles = np.outer(positions, 1 / 10000 ** (np.arange(dim // 2) / (dim / 2)))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)

"""How the weights of a new ST-DiT begin, so that a small one learns from the first step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from .transformer import Attention, MiraTransformer3DModel, TransformerBlock

SLOWEST = 0.05
"""Radians a frame: the slowest of the temporal positions' frequencies that tells frames of a clip of 120 apart well."""


def initialise(model: MiraTransformer3DModel) -> None:
    """Xavier for projections, small modulation and a silent output (as in DiT, arXiv:2212.09748), and the three starts below."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.adaln_single.linear.weight, std=0.02)
    nn.init.xavier_uniform_(model.pos_embed.proj.weight.flatten(1))
    nn.init.zeros_(model.pos_embed.proj.bias)
    for block in (*model.transformer_blocks, *model.temporal_transformer_blocks):
        look_at_the_like(block.attn1)
        open_gates(block, len(model.transformer_blocks))
    for block in model.temporal_transformer_blocks:
        look_at_near_frames(block.attn1)
    nn.init.zeros_(model.proj_out.weight)


def look_at_the_like(attention: Attention) -> None:
    """Equal query and key projections: self-attention starts with tokens of near places, times and contents, not with a plain mean.

    Mimetic initialisation (Trockman & Kolter 2023, arXiv:2305.09828, section 4): with sine-cosine positions it spares a small model the
    thousands of steps in which attention finds out what is near. Orthogonal projections of gain one give soft weights; with a gain of
    sqrt(8) each token would see itself alone.
    """
    nn.init.orthogonal_(attention.to_q.weight)
    with torch.no_grad():
        attention.to_k.weight.copy_(attention.to_q.weight)


def look_at_near_frames(attention: Attention) -> None:
    """The first head of a temporal block starts with the temporal positions alone, so that near frames weigh more than far ones.

    Temporal positions are added once, to tokens that grow from then on: a model that does not use them early finds them drowned.
    """
    dim, head = attention.to_q.in_features, attention.to_q.out_features // attention.heads
    fast_enough = math.log(1 / SLOWEST) / math.log(10000) * (dim // 2)  # frequency k is 10000^(-2 k / dim)
    chosen = torch.linspace(0, int(fast_enough), head // 2).round().long()
    rows = torch.zeros(head, dim)
    rows[torch.arange(head // 2), chosen] = rows[torch.arange(head // 2) + head // 2, chosen + dim // 2] = 1
    with torch.no_grad():
        attention.to_q.weight[:head] = attention.to_k.weight[:head] = rows


def open_gates(block: TransformerBlock, num_layers: int) -> None:
    """Gates of one, and projections into the residual stream as small as GPT-2's (Radford et al. 2019, section 2.3).

    DiT closes its gates instead. An optimizer that moves each weight by its learning rate opens them so slowly that, for the first
    thousands of steps, all tokens learn from the text through the ungated cross-attention and next to nothing from each other.
    """
    with torch.no_grad():
        block.scale_shift_table[[2, 5]] = 1.0
        for attention in (block.attn1, block.attn2):
            if attention is not None:
                attention.to_out[0].weight.mul_((5 * num_layers) ** -0.5)
        block.ff.net[2].weight.mul_((5 * num_layers) ** -0.5)

"""Mira's spatial-temporal diffusion transformer (ST-DiT), top to bottom.

A clip's latents are cut into 2 x 2 patches. Each layer looks within every frame (spatial block: self-attention, then
cross-attention to the text and to the frame itself, then a feed-forward) and then along time (temporal block). The noise step
and the frame rate steer every block through one shared adaptive layer norm (adaLN-single, PixArt-alpha, arXiv:2310.00426,
section 2.3). Parameter names are those of Mira's checkpoints. Shapes: see ``core.types``; N is patches a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import (
    PixArtAlphaTextProjection,
    TimestepEmbedding,
    Timesteps,
    get_1d_sincos_pos_embed_from_grid,
    get_2d_sincos_pos_embed,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from . import products
from .attention import attend, attend_both
from .eight_bits import EightBitLinear, multiply
from .initialisation import initialise, look_at_the_like
from .parallel import Sequence
from .step_cache import StepCache

WHOLE_FRAME = "frame"
TOKENS_AT_ONCE = 3072
"""On a CPU, how many tokens go through a block together: what it holds meanwhile stays in the caches, and is not asked of the system anew."""

ProjectedText = list[tuple[Tensor, Tensor]]
"""The text's keys and values [B, L, D] in the cross-attention of every layer."""


class Modulation(NamedTuple):
    """What a noise step and a frame rate make of every block, for B clips or one for all of them."""

    blocks: Tensor
    """[2 layers, B or 1, 6, D]: spatial blocks, then temporal ones."""
    last: Tensor
    """[B or 1, 2, D]: of the last layer."""


@dataclass
class MiraTransformerOutput(BaseOutput):
    """``sample`` [B, C, T, H, W]: the predicted noise (or v), as many channels as the latents have."""

    sample: Tensor


@lru_cache(maxsize=8)
def _spatial_positions(dim: int, height: int, width: int, base_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """2-D sine-cosine positions [N, dim] of a grid, stretched to the base grid as in PixArt."""
    return get_2d_sincos_pos_embed(dim, (height, width), base_size=base_size, output_type="pt").float().to(device, dtype)


@lru_cache(maxsize=8)
def _temporal_positions(dim: int, num_frames: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1-D sine-cosine positions [T, dim]; they go on past any trained length."""
    return get_1d_sincos_pos_embed_from_grid(dim, torch.arange(num_frames), output_type="pt").float().to(device, dtype)


class PatchEmbed(nn.Module):
    """Patches to tokens, with their place in the frame."""

    def __init__(self, patch_size: int, in_channels: int, dim: int, base_size: int):
        super().__init__()
        self.patch_size, self.dim, self.base_size = patch_size, dim, base_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents: Tensor) -> Tensor:  # (B T) C H W
        height, width = (side // self.patch_size for side in latents.shape[-2:])
        tokens = self.proj(latents).flatten(2).transpose(1, 2).contiguous()  # (B T) N D; a linear layer on strided rows is far slower
        return tokens + _spatial_positions(self.dim, height, width, self.base_size, tokens.device, tokens.dtype)


class MiraEmbeddings(nn.Module):
    """The noise step's embedding plus, if asked for, that of the frame rate."""

    def __init__(self, dim: int, fps_cond: bool):
        super().__init__()
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(256, dim)
        self.fps_embedder = TimestepEmbedding(256, dim) if fps_cond else None

    def forward(self, timestep: Tensor, fps: Tensor | None, dtype: torch.dtype) -> Tensor:
        embedding = self.timestep_embedder(self.time_proj(timestep).to(dtype))  # B D
        if self.fps_embedder is not None:
            embedding = embedding + self.fps_embedder(self.time_proj(fps).to(dtype))
        return embedding


class AdaLayerNormSingle(nn.Module):
    """One projection for all blocks: six modulation vectors, to which each block adds its own table."""

    def __init__(self, dim: int, fps_cond: bool):
        super().__init__()
        self.emb = MiraEmbeddings(dim, fps_cond)
        self.linear = nn.Linear(dim, 6 * dim)

    def forward(self, timestep: Tensor, fps: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Modulation [B, 6, D] and the embedding [B, D] that the last layer uses."""
        embedding = self.emb(timestep, fps, dtype)
        return self.linear(F.silu(embedding)).unflatten(-1, (6, -1)), embedding


class Attention(nn.Module):
    """Projections of one attention; ``core.attention`` does the rest."""

    def __init__(self, dim: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(dim, dim, bias=bias)
        self.to_v = nn.Linear(dim, dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(tokens), self.to_v(tokens)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of projected queries [G, N, D] and the keys and values [G, M, D] that they ask."""
        return products.apply(self.to_out[0], attend(query, key, value, self.heads))


class Gelu(nn.Module):
    """A linear layer and the tanh-approximated GELU."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, tokens: Tensor) -> Tensor:
        return products.apply(self.proj, tokens, gelu=True)


class FeedForward(nn.Module):
    """Four times as wide in the middle."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.ModuleList([Gelu(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, tokens: Tensor) -> Tensor:
        return products.apply(self.net[2], self.net[0](tokens))


class TransformerBlock(nn.Module):
    """A spatial block (with cross-attention) or a temporal one (without)."""

    def __init__(self, dim: int, heads: int, bias: bool, eps: float, cross_attention: bool, text_spatial_cond: bool = False):
        super().__init__()
        self.eps, self.text_spatial_cond = eps, text_spatial_cond
        self.attn1 = Attention(dim, heads, bias)
        self.attn2 = Attention(dim, heads, bias) if cross_attention else None
        self.ff = FeedForward(dim)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.joined = False
        """Whether the projections that share an input lie side by side in memory; see ``join_projections``."""

    def forward(self, tokens: Tensor, modulation: Tensor, *text: Tensor) -> Tensor:
        """``tokens`` [B, G, N, D] in G groups a clip that attend among themselves, ``modulation`` [B or 1, 6, D], the text's key and value [B, L, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.to(tokens.dtype)[:, :, None, None].unbind(1)  # B 1 1 D
        normed = self._norm(tokens, shift1, scale1)
        query, key, value, *own = (x.flatten(0, 1) for x in self._project(normed))  # (B G) N D
        tokens = torch.addcmul(tokens, gate1, self.attn1(query, key, value).view_as(tokens))
        if self.attn2 is not None:
            tokens = tokens + self._cross_attention(tokens, own, *text)
        return torch.addcmul(tokens, gate2, self.ff(self._norm(tokens, shift2, scale2)))

    def _norm(self, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """The layer norm, modulated: in one pass over the tokens where all clips share the modulation, as they do in a sampler."""
        if len(scale) == 1:
            return F.layer_norm(tokens, tokens.shape[-1:], 1 + scale.flatten(), shift.flatten(), self.eps)
        return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:], eps=self.eps), 1 + scale)

    def _cross_attention(self, tokens: Tensor, own: list[Tensor], key: Tensor, value: Tensor) -> Tensor:
        """Attention to the text and, with ``text_spatial_cond``, to the frame as it was before self-attention: its ``own`` key and value."""
        query = products.apply(self.attn2.to_q, tokens)
        if not own:  # all frames of a clip ask the same keys
            return self.attn2(query.flatten(1, 2), key, value).view_as(tokens)
        return products.apply(self.attn2.to_out[0], attend_both(query.flatten(0, 1), (key, value), own, self.attn2.heads)).view_as(tokens)

    def _sharing(self) -> list[nn.Module]:
        """The projections of the block's normed input: queries, keys and values, and with ``text_spatial_cond`` the frame's for the cross-attention."""
        own = [self.attn2.to_k, self.attn2.to_v] if self.text_spatial_cond else []
        return [self.attn1.to_q, self.attn1.to_k, self.attn1.to_v, *own]

    def _project(self, normed: Tensor) -> list[Tensor] | tuple[Tensor, ...]:
        """``normed`` through every projection of ``_sharing``."""
        layers = self._sharing()
        kind = type(layers[0])
        if not self.joined or torch.is_grad_enabled() or kind not in _JOINED or any(type(layer) is not kind for layer in layers):
            return [layer(normed) for layer in layers]
        whole = {name: _whole(part, len(layers)) for name in _JOINED[kind] if (part := getattr(layers[0], name)) is not None}
        if kind is EightBitLinear:
            joint = multiply(normed, **whole, format=layers[0].format)
        else:
            joint = (products.linear if products.pays(normed, whole["weight"]) else F.linear)(normed, **whole)
        return joint.chunk(len(layers), -1)

    @torch.no_grad()
    def join_projections(self) -> None:
        """Lay the weights of the projections that share an input side by side in memory, so that one matrix product does them all.

        They stay parameters of their own, under their own names and with what changes them (an optimizer, a loaded checkpoint) changing
        the whole; nothing is held twice. Left apart are adapted layers (LoRA), and those that another library quantised. Costs nothing where it is done already.
        """
        layers = self._sharing()
        kind = type(layers[0])
        self.joined = kind in _JOINED and all(type(layer) is kind and type(layer.weight.data) is Tensor for layer in layers)
        for name in _JOINED[kind] if self.joined else ():
            if getattr(layers[0], name) is not None:
                _side_by_side([getattr(layer, name) for layer in layers])


_JOINED = {nn.Linear: ("weight", "bias"), EightBitLinear: ("weight", "bias", "scale")}
"""Layers that one matrix product may do together, and what of theirs lies side by side then."""


def _side_by_side(tensors: list[Tensor]) -> None:
    """Let the tensors, all of one shape, be parts of one in this order."""
    first = tensors[0]
    storage, start = first.untyped_storage().data_ptr(), first.storage_offset()
    if any(t.untyped_storage().data_ptr() != storage or t.storage_offset() != start + i * first.numel() for i, t in enumerate(tensors)):
        for tensor, part in zip(tensors, torch.cat([t.data for t in tensors]).chunk(len(tensors))):
            tensor.data = part


def _whole(first: Tensor, count: int) -> Tensor:
    """What ``count`` tensors that lie side by side are together, the ``first`` of them given."""
    return first.as_strided((count * len(first), *first.shape[1:]), first.stride())


class MiraTransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Mira's ST-DiT; the defaults are Mira-v0 at 128 x 80.

    Args:
        num_attention_heads, attention_head_dim: Their product is the width D.
        in_channels, out_channels: Latent channels in and predicted; of twice as many (v1) the first half is kept.
        num_layers: Spatial and temporal blocks, each.
        caption_channels: Width of the prompt embeddings.
        patch_size: Latents a side of a token.
        sample_size: The latent size that positions were trained for (64: a base grid of 32 patches).
        temporal_length: Frames it was trained for; any number can be asked for.
        text_spatial_cond: Cross-attention sees the frame's own tokens beside the text (v0).
        window_attn: ``(h, w)`` patches that the temporal block looks at together over all frames, ``"frame"`` for all
            patches of a frame whatever its size, None for one patch over time.
        fps_cond: Whether the frame rate is a condition.
        attention_bias: Bias in the query, key and value projections.
        norm_eps: Of all layer norms.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]
    _repeated_blocks = ["TransformerBlock"]  # what ``compile_repeated_blocks`` compiles, once for all of a kind

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int = 4,
        num_layers: int = 28,
        caption_channels: int = 4096,
        patch_size: int = 2,
        sample_size: int = 64,
        temporal_length: int = 120,
        text_spatial_cond: bool = True,
        window_attn: tuple[int, int] | str | None = None,
        fps_cond: bool = True,
        attention_bias: bool = True,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        if dim % 4:
            raise ValueError(f"The width is {num_attention_heads} heads x {attention_head_dim} = {dim}; sine-cosine positions need a multiple of 4.")
        _checked_window(window_attn)
        self.dim = dim
        self.pos_embed = PatchEmbed(patch_size, in_channels, dim, base_size=sample_size // patch_size)
        self.adaln_single = AdaLayerNormSingle(dim, fps_cond)
        self.caption_projection = PixArtAlphaTextProjection(caption_channels, dim)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(dim, num_attention_heads, attention_bias, norm_eps, True, text_spatial_cond) for _ in range(num_layers)
        )
        self.temporal_transformer_blocks = nn.ModuleList(
            TransformerBlock(dim, num_attention_heads, attention_bias, norm_eps, False) for _ in range(num_layers)
        )
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, patch_size**2 * out_channels)
        self.gradient_checkpointing = False
        self.sequence: Sequence | None = None
        """With what other processes the tokens of a forward are shared (``core.parallel``)."""
        initialise(self)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float | Modulation,
        encoder_hidden_states: Tensor | ProjectedText,
        fps: Tensor | float | None = None,
        enable_temporal_attention: bool = True,
        frames_apart: bool = False,
        cache: StepCache | None = None,
        frame_indices: Tensor | None = None,
        return_dict: bool = True,
    ) -> MiraTransformerOutput | tuple[Tensor]:
        """Predict the noise (or v) in ``hidden_states``.

        Args:
            hidden_states: Noisy latents [B, C, T, H, W]; H and W multiples of the patch size.
            timestep: Noise step of each clip [B], or one number for all; or what ``modulate`` made of it and of ``fps``.
            encoder_hidden_states: Prompt embeddings [B, L, D], or what ``project_text`` made of them.
            fps: Frame rate of each clip [B], or one number for all.
            frame_indices: [T], of the frames in the clip that they are part of; None for a whole clip: 0, 1, 2 and so on.
            cache: Of the sampling that this step belongs to; spares layers (``core.step_cache``).
            frames_apart: The temporal blocks look at every frame alone, at what they would look at in all frames (for temporal guidance, ``core.guidance``).
            enable_temporal_attention: False leaves the temporal blocks out (frames are then separate images).

        Raises:
            ValueError: For a shape that it cannot take; the message has the numbers.
        """
        B, C, T, H, W = self._check(hidden_states, encoder_hidden_states, timestep, fps)
        p = self.config.patch_size
        h, w = H // p, W // p
        dtype = hidden_states.dtype

        tokens = self.pos_embed(hidden_states.transpose(1, 2).flatten(0, 1)).unflatten(0, (B, T))  # B T N D
        text = encoder_hidden_states if isinstance(encoder_hidden_states, list) else self.project_text(encoder_hidden_states.to(dtype))
        if not isinstance(timestep, Modulation):
            timestep = self.modulate(self._per_clip(timestep, hidden_states), self._per_clip(fps, hidden_states))
        of_spatial, of_temporal = timestep.blocks.chunk(2)  # layers B 6 D
        before = tokens.clone() if cache is not None else None  # blocks may work in the place of their input
        if self.sequence is not None:
            tokens = self.sequence.own(tokens, 1).contiguous()  # B t N D
        for layer, (spatial, temporal) in enumerate(zip(self.transformer_blocks, self.temporal_transformer_blocks)):
            tokens = self._run(spatial, tokens[:, None], of_spatial[layer], *text[layer])[:, 0]
            if enable_temporal_attention:
                if layer == 0:
                    positions = self._positions(T if frame_indices is None else frame_indices, tokens)[:, None]
                    tokens = tokens + (positions if self.sequence is None else self.sequence.own(positions, 0))
                if frames_apart:
                    tokens = self._within_frames(temporal, tokens, of_temporal[layer], h, w)
                else:
                    tokens = self._over_time(temporal, tokens, of_temporal[layer], T, h, w)
            if layer == 0 and cache is not None and (guessed := cache.spare(before, tokens)) is not None:
                tokens = guessed
                break
        else:
            if cache is not None:
                cache.keep(tokens)

        shift, scale = timestep.last.to(dtype)[:, :, None, None].unbind(1)
        tokens = self.proj_out(F.layer_norm(tokens, (self.dim,), eps=1e-6) * (1 + scale) + shift)  # B T N (p p C)
        if self.sequence is not None:
            tokens = self.sequence.gather(tokens, T, 1)
        sample = tokens.view(B, T, h, w, p, p, -1).permute(0, 6, 1, 2, 4, 3, 5).reshape(B, -1, T, H, W)
        sample = sample[:, :C]
        return MiraTransformerOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook  # which brings offloaded weights to the device
    def project_text(self, encoder_hidden_states: Tensor) -> ProjectedText:
        """What the cross-attentions look up of prompt embeddings [B, L, D]: the same for all frames and all steps, so a sampler asks once.

        Raises ValueError for embeddings of another width.
        """
        if encoder_hidden_states.ndim != 3 or encoder_hidden_states.shape[2] != self.config.caption_channels:
            raise ValueError(f"Prompt embeddings must be [B, L, {self.config.caption_channels}]; these are {list(encoder_hidden_states.shape)}.")
        if not torch.is_grad_enabled():
            for block in (*self.transformer_blocks, *self.temporal_transformer_blocks):
                block.join_projections()
        text = self.caption_projection(encoder_hidden_states)  # B L D
        return [block.attn2.keys_values(text) for block in self.transformer_blocks]

    @apply_forward_hook
    def modulate(self, timestep: Tensor, fps: Tensor | None) -> Modulation:
        """What ``timestep`` [B] and ``fps`` [B] make of every block."""
        vectors, embedding = self.adaln_single(timestep, fps, self.dtype)
        tables = torch.stack([block.scale_shift_table for block in (*self.transformer_blocks, *self.temporal_transformer_blocks)])
        return Modulation(tables[:, None] + vectors, self.scale_shift_table + embedding[:, None])

    @apply_forward_hook
    def modulate_steps(self, timesteps: Tensor, fps: float) -> Callable[[int], Modulation]:
        """The same for all steps of a sampler, whose clips share them: what is looked up with the number of a step, on the device and without waiting for it."""
        vectors, embeddings = self.adaln_single(timesteps, torch.full_like(timesteps, fps), self.dtype)
        tables = torch.stack([block.scale_shift_table for block in (*self.transformer_blocks, *self.temporal_transformer_blocks)])
        blocks, last = tables[:, None] + vectors, self.scale_shift_table + embeddings[:, None]  # 2 layers S 6 D, S 2 D
        return lambda step: Modulation(blocks[:, step : step + 1], last[step : step + 1])

    @torch.no_grad()
    def look_over_time(self, window_attn: tuple[int, int] | str | None) -> None:
        """Train on with other groups in the temporal blocks: another ``window_attn``, and attention that starts as in a new model.

        What it had learned to look at was among other tokens; its output counts half until it has learned again. Same groups: nothing changes.
        """
        if window_attn == self.config.window_attn:
            return
        self.register_to_config(window_attn=_checked_window(window_attn))
        for block in self.temporal_transformer_blocks:
            look_at_the_like(block.attn1)
            for projection in (block.attn1.to_q, block.attn1.to_k):
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)
            block.attn1.to_out[0].weight.mul_(0.5)

    # -- regrouping: which tokens attend to each other in the temporal block ------------------------

    def _window(self, h: int, w: int) -> tuple[int, int]:
        window = self.config.window_attn
        if window is None:
            return 1, 1
        return (h, w) if window == WHOLE_FRAME else tuple(window)

    def _over_time(self, block: TransformerBlock, tokens: Tensor, modulation: Tensor, num_frames: int, h: int, w: int) -> Tensor:
        """``tokens`` [B, T, N, D] through a temporal block; with other processes this one's frames of them, and in the block its patches of all frames."""
        window = self._window(h, w)
        if self.sequence is None:
            return self._by_frame(self._run(block, self._along_time(tokens, h, w, window), modulation))
        if window == (1, 1):
            h, w = 1, h * w  # any patch can go to any process
            patches = self.sequence.parts(w)
            grid = 1, patches[self.sequence.rank]
        else:
            patches = [rows * window[0] * w for rows in self.sequence.parts(h // window[0])]
            grid = patches[self.sequence.rank] // w, w
        tokens = self.sequence.to_patches(tokens, num_frames, patches)
        return self.sequence.to_frames(self._by_frame(self._run(block, self._along_time(tokens, *grid, window), modulation)), patches)

    def _within_frames(self, block: TransformerBlock, tokens: Tensor, modulation: Tensor, h: int, w: int) -> Tensor:
        """``tokens`` [B, T, N, D], of all frames or some, through a temporal block that sees the windows of one frame at a time."""
        B, T, N, D = tokens.shape
        windows = self._along_time(tokens.reshape(B * T, 1, N, D), h, w, self._window(h, w))  # (B T) rows columns 1 h' w' D
        groups = windows.reshape(B, -1, *windows.shape[2:])
        return self._by_frame(self._run(block, groups, modulation).reshape(windows.shape)).view(tokens.shape)

    def _along_time(self, tokens: Tensor, h: int, w: int, window: tuple[int, int]) -> Tensor:
        """B T (h w) D -> B rows columns T h' w' D, a view: a clip's windows of h' x w' patches, each over all frames."""
        rows, columns = window
        grid = tokens.view(len(tokens), -1, h // rows, rows, w // columns, columns, self.dim)
        return grid.permute(0, 2, 4, 1, 3, 5, 6)

    def _by_frame(self, windows: Tensor) -> Tensor:
        """The way back."""
        return windows.permute(0, 3, 1, 4, 2, 5, 6).reshape(len(windows), windows.shape[3], -1, self.dim)

    # -- small helpers ------------------------------------------------------------------------------

    def _run(self, block: TransformerBlock, groups: Tensor, modulation: Tensor, *text: Tensor) -> Tensor:
        """``groups`` [B, rows, columns, ..., D] of tokens through a block, which looks at each group alone.

        On a CPU many tokens go a few groups at a time, each part in the place of its input.
        """
        rows, columns, *within = groups.shape[1:-1]
        size = math.prod(within)
        if torch.is_grad_enabled() or groups.device.type != "cpu" or groups.numel() <= TOKENS_AT_ONCE * self.dim:
            inputs = (groups.flatten(1, 2).flatten(2, -2), modulation, *text)
            checkpointed = torch.is_grad_enabled() and self.gradient_checkpointing
            return (self._gradient_checkpointing_func(block, *inputs) if checkpointed else block(*inputs)).view(groups.shape)
        at_once = max(1, TOKENS_AT_ONCE // size)
        for clip, places in enumerate(groups):
            own = [x[clip : clip + 1] for x in text]
            for some_rows in places.tensor_split(math.ceil(rows / max(1, at_once // columns))):
                for part in some_rows.tensor_split(math.ceil(columns / at_once), 1):
                    changed = block(part.reshape(1, -1, size, self.dim), modulation[clip : clip + 1] if len(modulation) > 1 else modulation, *own)
                    part.copy_(changed.view(part.shape))
        return groups

    @staticmethod
    def _per_clip(value: Tensor | float | None, like: Tensor) -> Tensor | None:
        """A condition as [B] on the latents' device."""
        if value is None:
            return None
        value = torch.as_tensor(value, device=like.device).reshape(-1)
        if len(value) not in (1, len(like)):
            raise ValueError(f"timestep and fps take one number, or one for each of the {len(like)} clips; there are {len(value)}.")
        return value.expand(len(like))

    def _positions(self, frames: int | Tensor, like: Tensor) -> Tensor:
        """Temporal positions [T, D] of the first so many ``frames``, or of those of these indices [T]."""
        if isinstance(frames, int):
            return _temporal_positions(self.dim, frames, like.device, like.dtype)
        return _temporal_positions(self.dim, int(frames.max()) + 1, like.device, like.dtype)[frames.to(like.device)]

    def _check(self, latents: Tensor, text: Tensor | ProjectedText, timestep: Tensor | float | Modulation, fps: Tensor | float | None) -> torch.Size:
        config = self.config
        if latents.ndim != 5 or latents.shape[1] != config.in_channels:
            raise ValueError(f"Latents must be [B, {config.in_channels}, T, H, W]; these are {list(latents.shape)}.")
        H, W = latents.shape[-2:]
        p = config.patch_size
        if H % p or W % p or not latents.shape[2]:
            raise ValueError(f"Latents of {H} x {W} and {latents.shape[2]} frames: height and width must be multiples of {p} and there must be a frame. In pixels: multiples of {8 * p}.")
        rows, columns = self._window(H // p, W // p)
        if (H // p) % rows or (W // p) % columns:
            raise ValueError(f"A grid of {H // p} x {W // p} patches does not divide into windows of {rows} x {columns}; use latents whose sides are multiples of {rows * p} x {columns * p}.")
        if isinstance(text, list):
            if len(text) != config.num_layers or len(text[0][0]) != len(latents):
                raise ValueError(f"The projected text is of {len(text[0][0])} prompts in {len(text)} layers; {len(latents)} in {config.num_layers} are needed.")
        elif len(text) != len(latents):
            raise ValueError(f"Prompt embeddings are for {len(text)} clips; there are {len(latents)}.")
        if config.fps_cond and fps is None and not isinstance(timestep, Modulation):
            raise ValueError("This model is conditioned on the frame rate: give fps (8 as Mira was sampled with).")
        return latents.shape


def _checked_window(window_attn: tuple[int, int] | str | None) -> tuple[int, int] | str | None:
    """``window_attn`` itself. Raises ValueError."""
    bad = window_attn != WHOLE_FRAME if isinstance(window_attn, str) else window_attn is not None and (len(window_attn) != 2 or min(window_attn) < 1)
    if bad:
        raise ValueError(f"window_attn is {window_attn!r}; it must be (height, width) in patches, {WHOLE_FRAME!r} or None.")
    return window_attn

"""Mira's checkpoint files to diffusers model folders, and back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from . import device
from .device import require_disk, require_memory
from .files import Tell, replacing
from .lineage import SOURCE_FILE
from .originals import PREFIXES, Architecture, CheckpointError, damaged_file, first_line, read_tensors, some
from .releases import TEXT_ENCODER
from .schedulers import MiraScheduler
from .transformer import MiraTransformer3DModel
from .vae import build_mira_vae, convert_vae_state_dict, original_vae_state_dict

log = logging.getLogger(__name__)

DTYPES = {**device.DTYPES, "keep": None}
SD1_LATENT_RGB = [[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350], [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177], [0.0, 0.0, 0.0]]
"""For previews (``core.vae.preview_frames``): red, green and blue in -1..1 of each scaled latent channel of Stable Diffusion 1's VAE, and no biases. As ComfyUI has measured them (comfy/latent_formats.py, SD15)."""
SHARD_BYTES = 10**9
"""Weights larger than this are written in several files, one at a time: all the memory that a conversion takes."""


def convert_checkpoint(src: str | Path, dst: str | Path, config: str | Path | None = None, vae: str | Path | None = None, dtype: str = "keep", tell: Tell | None = None) -> Path:
    """Write ``dst``, a diffusers model folder, from one of Mira's checkpoints.

    The text encoder is written where the file has it; else the folder asks for flan-t5-xxl when it is loaded.

    Args:
        src: The file (``state_dict``, ``ema`` or DeepSpeed's ``module`` layout).
        dst: The folder; it appears whole or not at all, and nothing may be there yet.
        config: Mira's YAML; not needed for a file with a released name (128-v0.pt, ...).
        vae: For a file without a VAE (the ``ema`` layout): a model folder or a checkpoint that has it.
        dtype: fp32, fp16, bf16, or keep as in the file.
        tell: Hears how much is written.

    Raises CheckpointError when something is missing or left over, with names; ResourceError for too little memory or disk;
    WriteError when ``dst`` cannot be written.
    """
    src, dst = Path(src), Path(dst)
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if dst.is_file() or (dst.is_dir() and any(dst.iterdir())):
        raise CheckpointError(f"{dst} is there already. Name a folder that does not exist yet, or delete it first.")
    architecture = Architecture.of_file(src, config)
    parts = read_tensors(src)
    if not parts["vae"]:
        parts["vae"] = _vae_of(src, vae)
    text_config = _t5_config(parts["text_encoder"]) if parts["text_encoder"] else None
    try:
        with torch.device("meta"):
            transformer = MiraTransformer3DModel(**architecture.transformer)
            vae_model = build_mira_vae(**architecture.vae)
            text_encoder = T5EncoderModel(text_config) if text_config else None
        scheduler = MiraScheduler(**architecture.scheduler)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(f"{config or src} describes no model that can be built ({first_line(error)}).") from error
    weights = {
        "transformer": _fitting(transformer, parts["transformer"], "transformer"),
        "vae": _fitting(vae_model, _diffusers_names(parts["vae"]), "VAE"),
        "text_encoder": _fitting(text_encoder, parts["text_encoder"], "text encoder") if text_encoder is not None else {},
    }
    target = DTYPES[dtype]
    sizes = [_bytes(tensor, target) for part in weights.values() for tensor in part.values()]
    require_disk(sum(sizes), dst.parent, f"Writing {dst.name}")
    require_memory(min(sum(sizes), SHARD_BYTES) + max(sizes), "cpu", f"Writing {dst.name}, one file at a time,")

    written = 0

    def count(more: int) -> None:
        nonlocal written
        written += more
        if tell is not None:
            tell(f"Converting {src.name}", written, sum(sizes))

    count(0)
    with replacing(dst) as folder:
        transformer.save_config(folder / "transformer")
        vae_model.save_config(folder / "vae")
        scheduler.save_pretrained(folder / "scheduler")
        if text_encoder is not None:
            text_encoder.config.save_pretrained(folder / "text_encoder")
        for part, stem in (("transformer", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
            _write_weights(weights[part], folder / part, stem, target, count)
        vae_class = type(vae_model).__name__
        index = {
            "_class_name": "MiraPipeline",
            "transformer": ["core", "MiraTransformer3DModel"],
            "vae": ["core" if vae_class == "TemporalVAE" else "diffusers", vae_class],
            "scheduler": ["core", "MiraScheduler"],
            "text_encoder": [None, None],
            "tokenizer": [None, None],
        }
        if (vae_model.config.latent_channels, vae_model.config.scaling_factor) == (4, 0.18215):  # the latent space of Stable Diffusion 1
            index["latent_rgb"] = SD1_LATENT_RGB
        (folder / "model_index.json").write_text(json.dumps(index, indent=2))
        (folder / SOURCE_FILE).write_text(json.dumps({"checkpoint": src.name, "text_encoder": TEXT_ENCODER}, indent=2))
    log.info("%s: %s parameters in the transformer, %.1f GB in all", dst, f"{sum(p.numel() for p in transformer.parameters()):,}", sum(sizes) / 1e9)
    return dst


def write_original(src: str | Path, dst: str | Path) -> Path:
    """Write ``dst``, a file in Mira's own layout (``state_dict``), from a diffusers model folder; ``convert_checkpoint`` is the way back.

    It holds every trained tensor under the original's name, the text encoder where the folder has one. What follows from the config (the noise
    process, the sine-cosine tables) is left out, as it is not read from such a file here either: load it with ``strict=False``.
    Raises CheckpointError for a folder without weights or with tensors that the original has no place for, ResourceError, WriteError.
    """
    src, dst = Path(src), Path(dst)
    parts = {part: _tensors_in(src / part) for part in PREFIXES}
    if missing := [part for part in ("transformer", "vae") if not parts[part]]:
        raise CheckpointError(f"{src} holds no {' and no '.join(missing)}: there are no safetensors files in {', '.join(str(src / part) for part in missing)}.")
    try:
        parts["vae"] = original_vae_state_dict(parts["vae"])
    except KeyError as error:
        raise CheckpointError(f"Mira's VAE has no place for {error} of {src / 'vae'}.") from None
    require_disk(sum(_bytes(tensor, None) for tensors in parts.values() for tensor in tensors.values()), dst.parent, f"Writing {dst.name}")
    with replacing(dst) as file:
        torch.save({"state_dict": {PREFIXES[part] + name: tensor for part, tensors in parts.items() for name, tensor in tensors.items()}}, file)
    return dst


def _tensors_in(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files. Raises CheckpointError for a damaged one."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise damaged_file(file, error) from None
    return tensors


def _vae_of(src: Path, source: str | Path | None) -> dict[str, Tensor]:
    """Mira's VAE tensors from another checkpoint, or diffusers' from a model folder."""
    if source is None:
        raise CheckpointError(f"{src} has no VAE (no first_stage_model. tensors, as in the ema layout). Name a model folder or another checkpoint that has it with --vae.")
    source = Path(source)
    if not source.is_dir():
        tensors = read_tensors(source)["vae"]
        if not tensors:
            raise CheckpointError(f"{source} has no VAE either (no first_stage_model. tensors).")
        return tensors
    folder = source / "vae" if (source / "vae").is_dir() else source
    if not (tensors := _tensors_in(folder)):
        raise CheckpointError(f"{source} holds no VAE: there are no safetensors files in {folder}.")
    return tensors


def _diffusers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith("quant_conv.") for name in tensors):  # diffusers' own, from a model folder
        return tensors
    try:
        return convert_vae_state_dict(tensors)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"The VAE's tensors do not fit: {error} is missing, or not part of it.") from None


def _t5_config(tensors: Mapping[str, Tensor]) -> T5Config:
    """The shape of a T5 v1.1 encoder (flan-t5-xxl, say), read off its tensors. Raises CheckpointError."""
    try:
        vocab_size, d_model = tensors["shared.weight"].shape
        buckets, num_heads = tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape
        inner = tensors["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0]
        d_ff = tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
        num_layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.block."))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"The text encoder's tensors are not those of a T5 v1.1 encoder ({type(error).__name__}: {error}); {some(sorted(tensors))} are there.") from None
    return T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=inner // num_heads,
        d_ff=d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )


def _fitting(model: torch.nn.Module, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """``tensors`` without repeated ones, once every name and shape fits ``model``'s. Raises CheckpointError with the names."""
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    tensors = {name: tensor for name, tensor in tensors.items() if name not in tied}
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}
    missing, left_over = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    wrong = [f"{n} is {list(tensors[n].shape)} and should be {list(wanted[n])}" for n in wanted if n in tensors and tuple(tensors[n].shape) != wanted[n]]
    if missing or left_over or wrong:
        problems = [f"{len(names)} {kind}: {some(names)}" for kind, names in (("missing", missing), ("left over", left_over), ("of another shape", wrong)) if names]
        raise CheckpointError(f"The {what}'s tensors do not fit the config. {'; '.join(problems)}. Is this the right --config?")
    return tensors


def _write_weights(tensors: Mapping[str, Tensor], folder: Path, stem: str, dtype: torch.dtype | None, count: Callable[[int], None]) -> None:
    """Safetensors as diffusers and transformers name them: one file, or several and their index. One is in memory at a time; ``count`` hears its bytes."""
    shards = list(_shards(tensors, dtype))
    weight_map = {}
    for i, names in enumerate(shards, 1):
        file = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensors[name].to(dtype or tensors[name].dtype, copy=True).contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        count(sum(_bytes(tensors[name], dtype) for name in names))
    if len(shards) > 1:
        total = sum(_bytes(tensor, dtype) for tensor in tensors.values())
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[list[str]]:
    """Names in groups of at most SHARD_BYTES (or of one tensor)."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + _bytes(tensor, dtype) > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes(tensor, dtype)
    if names:
        yield names


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize

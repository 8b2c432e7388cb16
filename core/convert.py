"""Mira's checkpoint files to diffusers model folders."""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from .files import replacing
from .releases import TEXT_ENCODER, RELEASES, Release, release_of_file
from .schedulers import MiraScheduler
from .transformer import MiraTransformer3DModel
from .vae import build_mira_vae, convert_vae_state_dict

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "keep": None}
SOURCE_FILE = "source.json"
"""In a converted folder: which file it was made of and which text encoder it wants."""
_DEEPSPEED = "_forward_module."
_PARTS = {"transformer": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.transformer."}
_SCHEDULE_BUFFERS = re.compile(r"(model_ema\..*|betas|scale_arr\w*|logvar|lvlb_weights|alphas_cumprod\w*|sqrt_\w+|log_one_minus_\w+|posterior_\w+)")
"""Tensors beside the three parts that follow from the config, or are not used to sample."""

_TRANSFORMER_KEYS = ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "caption_channels", "patch_size", "sample_size", "temporal_length", "text_spatial_cond", "window_attn", "fps_cond", "attention_bias", "norm_eps")
_FIXED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "attention_type": "default",
    "double_self_attention": False,
    "only_cross_attention": False,
    "upcast_attention": False,
    "use_linear_projection": False,
    "num_vector_embeds": None,
    "dropout": 0.0,
    "distillation_stages": 0,
}
"""Settings of the original that this transformer has built in; a YAML with another value is refused."""
_UNUSED = ("norm_num_groups", "num_embeds_ada_norm", "cross_attention_dim", "pretrain")


class CheckpointError(ValueError):
    """A checkpoint or its config cannot be used; the message says what is missing, what is there and what to do."""


class Architecture:
    """How a checkpoint's parts are built: constructor arguments of the transformer, the VAE and the schedule."""

    def __init__(self, transformer: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any]):
        self.transformer, self.vae, self.scheduler = transformer, vae, scheduler

    @classmethod
    def of_release(cls, release: Release) -> Architecture:
        return cls(dict(release.transformer), {}, {"scale_b": release.scale_b})

    @classmethod
    def of_yaml(cls, path: str | Path) -> Architecture:
        """From one of Mira's own YAML files. Its ``target`` strings are never instantiated. Raises CheckpointError."""
        try:
            params = OmegaConf.to_container(OmegaConf.load(path), resolve=True)["model"]["params"]
            network = dict((params.get("denoiser_config") or params["unet_config"])["params"])
        except (OSError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is not one of Mira's YAML files: it has no model.params.denoiser_config.params ({error}).") from None
        for key, value in _FIXED.items():
            if key in network and network[key] != value:
                raise CheckpointError(f"{path} sets {key}: {network[key]!r}; only {value!r} is supported.")
        unknown = set(network) - set(_TRANSFORMER_KEYS) - set(_FIXED) - set(_UNUSED)
        if unknown:
            raise CheckpointError(f"{path} has settings of the transformer that are not known: {', '.join(sorted(unknown))}.")
        transformer = {"text_spatial_cond": False, "attention_bias": False} | {k: network[k] for k in _TRANSFORMER_KEYS if k in network}
        decoder = ((params.get("first_stage_config") or {}).get("params") or {}).get("decoder_config", {}).get("params", {})
        vae = {k: decoder[k] for k in ("ch", "ch_mult", "num_res_blocks", "z_channels") if k in decoder}
        vae["scale_factor"] = params.get("scale_factor", 0.18215)
        scheduler = {
            "beta_start": params.get("linear_start", 0.00085),
            "beta_end": params.get("linear_end", 0.012),
            "num_train_timesteps": params.get("timesteps", 1000),
            "scale_b": params.get("scale_b", 0.7) if params.get("use_scale") else 1.0,
        }
        if params.get("parameterization", "eps") != "eps":
            raise CheckpointError(f"{path} has parameterization: {params['parameterization']}; only eps is supported (no released model uses another).")
        return cls(transformer, vae, scheduler)


def read_tensors(src: str | Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by part, names without prefix, mapped from disk. Reads Mira's three layouts.

    Nothing but tensors is unpickled. Raises CheckpointError for a file that is none of them.
    """
    src = Path(src)
    if not src.is_file():
        raise CheckpointError(f"There is no file {src}.")
    try:
        if src.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(src)
        else:
            content = torch.load(src, map_location="cpu", mmap=zipfile.is_zipfile(src), weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{src} holds more than tensors and was not opened: {str(error).splitlines()[0]}") from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{src} cannot be read; the file may be cut off ({src.stat().st_size:,} bytes here). Download it again. ({cause})") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        flat = dict(content["state_dict"])
    elif isinstance(content, Mapping) and isinstance(content.get("ema"), Mapping):
        flat = {_PARTS["transformer"] + name: tensor for name, tensor in content["ema"].items()}
    elif isinstance(content, Mapping) and isinstance(content.get("module"), Mapping):
        flat = {name.removeprefix(_DEEPSPEED): tensor for name, tensor in content["module"].items()}
    elif isinstance(content, Mapping) and any(str(n).startswith(tuple(_PARTS.values())) for n in content):
        flat = dict(content)
    else:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{src} is not a Mira checkpoint: it needs state_dict, ema or module at its top, and has {keys}.")
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    left_over = []
    for name, tensor in flat.items():
        part = next((p for p, prefix in _PARTS.items() if name.startswith(prefix)), None)
        if part:
            parts[part][name.removeprefix(_PARTS[part])] = tensor
        elif not _SCHEDULE_BUFFERS.fullmatch(name):
            left_over.append(name)
    if left_over:
        raise CheckpointError(f"{src} has {len(left_over)} tensors that are part of nothing: {_some(left_over)}.")
    return parts


def convert_checkpoint(src: str | Path, dst: str | Path, config: str | Path | None = None, vae: str | Path | None = None, dtype: str = "keep") -> Path:
    """Write ``dst``, a diffusers model folder, from one of Mira's checkpoints.

    Args:
        src: The file (``state_dict``, ``ema`` or DeepSpeed's ``module`` layout).
        dst: The folder; it appears whole or not at all.
        config: Mira's YAML; not needed for a file with a released name (128-v0.pt, ...).
        vae: For a file without a VAE (the ``ema`` layout): a model folder or a checkpoint that has it.
        dtype: fp32, fp16, bf16, or keep as in the file.

    Raises CheckpointError when something is missing or left over, with names; WriteError when ``dst`` cannot be written.
    """
    src, dst = Path(src), Path(dst)
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    architecture = _architecture(src, config)
    parts = read_tensors(src)
    _check_disk(dst, sum(t.numel() * t.element_size() for part in parts.values() for t in part.values()))
    with torch.device("meta"):
        transformer = MiraTransformer3DModel(**architecture.transformer)
    _fill(transformer, parts["transformer"], "transformer", DTYPES[dtype])
    with replacing(dst) as folder:
        transformer.save_pretrained(folder / "transformer")
        _convert_vae(parts["vae"], architecture, vae, folder / "vae", DTYPES[dtype])
        MiraScheduler(**architecture.scheduler).save_pretrained(folder / "scheduler")
        vae_library, vae_class = _class_of(folder / "vae")
        index = {
            "_class_name": "MiraPipeline",
            "transformer": ["core", "MiraTransformer3DModel"],
            "vae": [vae_library, vae_class],
            "scheduler": ["core", "MiraScheduler"],
            "text_encoder": [None, None],
            "tokenizer": [None, None],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2))
        (folder / SOURCE_FILE).write_text(json.dumps({"checkpoint": src.name, "text_encoder": TEXT_ENCODER}, indent=2))
    log.info("%s: %s parameters", dst, f"{sum(p.numel() for p in transformer.parameters()):,}")
    return dst


def _architecture(src: Path, config: str | Path | None) -> Architecture:
    if config is not None:
        return Architecture.of_yaml(config)
    release = release_of_file(src.name)
    if release is None:
        raise CheckpointError(f"{src.name} is not the name of a released checkpoint ({', '.join(r.file for r in RELEASES.values())}); give its YAML with --config.")
    return Architecture.of_release(release)


def _convert_vae(tensors: dict[str, Tensor], architecture: Architecture, source: str | Path | None, target: Path, dtype: torch.dtype | None) -> None:
    if not tensors and source is None:
        raise CheckpointError("The checkpoint has no VAE (no first_stage_model. tensors, as in the ema layout). Name a model folder or another checkpoint that has it with --vae.")
    if not tensors and Path(source).is_dir():
        folder = Path(source) / "vae" if (Path(source) / "vae").is_dir() else Path(source)
        if not (folder / "config.json").exists():
            raise CheckpointError(f"{source} holds no vae/config.json.")
        shutil.copytree(folder, target)
        return
    tensors = tensors or read_tensors(source)["vae"]
    with torch.device("meta"):
        vae = build_mira_vae(**architecture.vae)
    try:
        renamed = convert_vae_state_dict(tensors)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"The VAE's tensors do not fit: {error} is not part of it.") from None
    _fill(vae, renamed, "VAE", dtype)
    vae.save_pretrained(target)


def _fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], what: str, dtype: torch.dtype | None) -> None:
    """Give a meta model its tensors; every name and shape must fit."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    missing, left_over = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    wrong = [f"{n} is {list(tensors[n].shape)} and should be {list(wanted[n])}" for n in wanted if n in tensors and tuple(tensors[n].shape) != wanted[n]]
    if missing or left_over or wrong:
        problems = [f"{len(names)} {kind}: {_some(names)}" for kind, names in (("missing", missing), ("left over", left_over), ("of another shape", wrong)) if names]
        raise CheckpointError(f"The {what}'s tensors do not fit the config. {'; '.join(problems)}. Is this the right --config?")
    model.load_state_dict({n: tensors[n].to(dtype) if dtype else tensors[n] for n in wanted}, assign=True)


def _check_disk(dst: Path, needed: int) -> None:
    existing = next(p for p in (dst, *dst.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed * 1.05:
        raise CheckpointError(f"Writing {dst} takes {needed / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB free. Free some space or choose another folder.")


def _class_of(folder: Path) -> tuple[str, str]:
    name = json.loads((folder / "config.json").read_text())["_class_name"]
    return ("core" if name == "TemporalVAE" else "diffusers"), name


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

"""What Mira's own files say: its YAML files, and its checkpoints in their three layouts."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from .releases import RELEASES, Release, release_of_file

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint or its config cannot be used; the message says what is missing, what is there and what to do."""


def damaged_file(file: Path, error: Exception) -> CheckpointError:
    """What to raise for a safetensors file that cannot be read."""
    return CheckpointError(f"{file} is damaged ({file.stat().st_size:,} bytes are here): {error}. Copy or download it again.")


# -- YAML -------------------------------------------------------------------------------------------

_NETWORK = {
    "num_attention_heads": 16,
    "attention_head_dim": 88,
    "in_channels": None,
    "out_channels": None,
    "num_layers": 1,
    "caption_channels": None,
    "patch_size": None,
    "sample_size": None,
    "temporal_length": 16,
    "text_spatial_cond": False,
    "window_attn": None,
    "fps_cond": True,
    "attention_bias": False,
    "norm_eps": 1e-5,
}
"""Settings of the transformer, with what the original takes when its YAML does not say."""
_NETWORK_FIXED = {
    "activation_fn": ("geglu", "gelu-approximate"),
    "norm_type": ("layer_norm", "ada_norm_single"),
    "norm_elementwise_affine": (True, False),
    "attention_type": ("default", "default"),
    "double_self_attention": (False, False),
    "only_cross_attention": (False, False),
    "upcast_attention": (False, False),
    "use_linear_projection": (False, False),
    "num_vector_embeds": (None, None),
    "dropout": (0.0, 0.0),
    "distillation_stages": (0, 0),
}
"""Settings that ``MiraTransformer3DModel`` has built in: the original's default, and the one value it can be."""
_NETWORK_UNUSED = ("norm_num_groups", "num_embeds_ada_norm", "cross_attention_dim", "pretrain")
_PROCESS_FIXED = {
    "beta_schedule": ("linear", "linear"),
    "parameterization": ("eps", "eps"),
    "scale_a": (1, 1),
    "scale_by_std": (False, False),
    "rescale_betas_zero_snr": (False, False),
}
"""Likewise for the noise process."""
_TARGETS = {
    "denoiser_config": "mira.modules.networks.miradit.MiraDiT",
    "first_stage_config": "mira.models.autoencoder_temporal.AutoencodingEngine",
    "cond_stage_config": "mira.modules.encoders.condition2.FrozenT5Embedder",
}
"""The one class each part can be of. A ``target`` is compared, never imported."""


@dataclass(frozen=True)
class Architecture:
    """Constructor arguments of a checkpoint's parts: MiraTransformer3DModel, ``build_mira_vae``, MiraScheduler."""

    transformer: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_file(cls, src: Path, config: str | Path | None) -> Architecture:
        """By the YAML if there is one, else by a released file's name. Raises CheckpointError."""
        if config is not None:
            return cls.of_yaml(config)
        release = release_of_file(src.name)
        if release is None:
            raise CheckpointError(f"{src.name} is not the name of a released checkpoint ({', '.join(r.file for r in RELEASES.values())}); give its YAML with --config.")
        return cls.of_release(release)

    @classmethod
    def of_release(cls, release: Release) -> Architecture:
        return cls(transformer=dict(release.transformer), scheduler={"scale_b": release.scale_b})

    @classmethod
    def of_yaml(cls, path: str | Path) -> Architecture:
        """From one of Mira's own YAML files. Raises CheckpointError for one that says something else."""
        try:
            model = OmegaConf.to_container(OmegaConf.load(path), resolve=True)["model"]
            params = model.get("params", model)  # config_384v1_10s_mira.yaml leaves this level out
            network = dict(params["denoiser_config"]["params"])
            targets = {part: (params.get(part) or {}).get("target", known) for part, known in _TARGETS.items()}
            decoder = dict((((params.get("first_stage_config") or {}).get("params") or {}).get("decoder_config") or {}).get("params") or {})
        except (OSError, YAMLError, OmegaConfBaseException, KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{path} is not one of Mira's YAML files, which have model.params.denoiser_config.params ({type(error).__name__}: {error}).") from None
        for part, target in targets.items():
            if target != _TARGETS[part]:
                raise CheckpointError(f"{path} has {part}.target: {target}; only {_TARGETS[part]} is known.")
        _require_fixed(path, network, _NETWORK_FIXED)
        _require_fixed(path, params, _PROCESS_FIXED)
        unknown = set(network) - set(_NETWORK) - set(_NETWORK_FIXED) - set(_NETWORK_UNUSED)
        if unknown:
            raise CheckpointError(f"{path} has settings of the transformer that are not known: {', '.join(sorted(unknown))}.")
        transformer = _NETWORK | {k: network[k] for k in _NETWORK if k in network}
        transformer["out_channels"] = transformer["out_channels"] or transformer["in_channels"]
        missing = [k for k in ("in_channels", "caption_channels", "patch_size", "sample_size") if transformer[k] is None]
        if missing:
            raise CheckpointError(f"{path} does not say the transformer's {', '.join(missing)}.")
        vae = {k: decoder[k] for k in ("ch", "ch_mult", "num_res_blocks", "z_channels") if k in decoder}
        scheduler = {
            "num_train_timesteps": params.get("timesteps", 1000),
            "beta_start": params.get("linear_start", 1e-4),
            "beta_end": params.get("linear_end", 2e-2),
            "scale_b": params.get("scale_b", 0.3) if params.get("use_scale") else 1.0,
            "scale_mid_step": params.get("mid_step", 400),
        }
        return cls(transformer, {**vae, "scale_factor": params.get("scale_factor", 1.0)}, scheduler)


def _require_fixed(path: str | Path, given: Mapping[str, Any], fixed: Mapping[str, tuple[Any, Any]]) -> None:
    for key, (default, supported) in fixed.items():
        if given.get(key, default) != supported:
            raise CheckpointError(f"{path} has {key}: {given.get(key, default)!r}{'' if key in given else ' (by default)'}; only {supported!r} is supported. No released model uses another.")


# -- checkpoints ------------------------------------------------------------------------------------

_DEEPSPEED = "_forward_module."
PREFIXES = {"transformer": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.transformer."}
_NOT_READ = re.compile(
    r"model_ema\..+"  # a running mean beside the weights, which the original does not sample with
    r"|betas|scale_arr|logvar|lvlb_weights|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+"  # the noise process follows from the config
    r"|model\.diffusion_model\.(temp_pos_embed|pos_embed\.pos_embed)"  # and so do the sine-cosine tables
)


def read_tensors(src: str | Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by part (transformer, vae, text_encoder), names without prefix, mapped from disk.

    Reads Mira's three layouts: ``state_dict``, ``ema`` (the transformer alone), and DeepSpeed's ``module``. Nothing but tensors
    and plain values is unpickled. Raises CheckpointError for a file that is none of them, or that has tensors of no part.
    """
    src = Path(src)
    content = _load(src)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{src} is not a Mira checkpoint: it holds a {type(content).__name__}, not a dictionary.")
    if isinstance(content.get("state_dict"), Mapping):
        flat = dict(content["state_dict"])
    elif isinstance(content.get("ema"), Mapping):
        flat = {PREFIXES["transformer"] + name: tensor for name, tensor in content["ema"].items()}
    elif isinstance(content.get("module"), Mapping):
        flat = dict(content["module"])
    else:
        raise CheckpointError(f"{src} is not a Mira checkpoint: it needs state_dict, ema or module at its top, and has {some(list(map(str, content))) or 'nothing'}.")
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PREFIXES}
    left_over = []
    for name, tensor in flat.items():
        name = str(name).removeprefix(_DEEPSPEED)
        part = next((p for p, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if _NOT_READ.fullmatch(name):
            continue
        if part is None or not isinstance(tensor, Tensor):
            left_over.append(name)
        else:
            parts[part][name.removeprefix(PREFIXES[part])] = tensor
    if left_over:
        raise CheckpointError(f"{src} has {len(left_over)} tensors that are part of nothing: {some(left_over)}.")
    return parts


def _load(src: Path) -> Any:
    if not src.is_file():
        raise CheckpointError(f"There is no file {src}.")
    mapped = zipfile.is_zipfile(src)
    try:
        with torch.serialization.safe_globals(_stand_ins(src) if mapped else []):
            content = torch.load(src, map_location="cpu", mmap=mapped, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, UnicodeDecodeError) as error:
        if mapped:
            raise CheckpointError(f"{src} was not opened, as it holds what no checkpoint needs: {first_line(error)}") from None
        cause = "it is not what torch.save writes" if isinstance(error, pickle.UnpicklingError) else first_line(error)  # torch's advice would be to run what the file says
        raise CheckpointError(f"{src} cannot be read as a checkpoint: it may be cut off ({src.stat().st_size:,} bytes are here), or be of another kind. Download it again. ({cause})") from None
    if mapped:
        with zipfile.ZipFile(src) as entries:
            entries.filelist = [entry for entry in entries.filelist if entry.CRC]  # torch writes none where set_crc32_options(False) was asked for
            if entry := entries.testzip():  # mapped tensors are not checked when they are read
                raise CheckpointError(f"{src} is damaged: the checksum of {entry} in it does not fit. Copy or download it again.")
    return content


def _stand_ins(src: Path) -> list[tuple[type, str]]:
    """For each class in ``src`` that is no tensor (a trainer's settings, say): an inert one under its name.

    Lightning and DeepSpeed put such objects beside the tensors. They are neither imported nor called, and what they held is dropped.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(src))
    if names:
        log.info("%s also holds objects that are not read: %s", src.name, some(names))
    inert = {"__new__": lambda cls, *args: object.__new__(cls), "__setstate__": lambda self, state: None}
    return [(type("NotRead", (), dict(inert)), name) for name in names]


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def first_line(error: BaseException) -> str:
    """What an error of a library says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

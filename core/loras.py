"""LoRAs: small files that change what a transformer makes. Named in a request, kept in the data folder. No torch until one is loaded."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .types import RequestError, nearest

if TYPE_CHECKING:
    from .transformer import MiraTransformer3DModel

SUFFIX = ".safetensors"
FOLDER = "loras"
"""Of the data folder."""
MADE_FROM = "mira_run"
"""Where a file's header tells what run, step and model it comes from."""
MAX_WEIGHT = 4.0
_ENTRY = re.compile(r"(?P<name>[^,@]+?)\s*(?:@\s*(?P<weight>[-+.\deE]+))?")


def parse_loras(text: str | None) -> tuple[tuple[str, float], ...]:
    """Names and weights in ``cars, snow@0.5``; a weight that is not said is 1. Raises RequestError("loras")."""
    entries = [entry.strip() for entry in (text or "").split(",") if entry.strip()]
    found: dict[str, float] = {}
    for entry in entries:
        match = _ENTRY.fullmatch(entry)
        try:
            weight = float(match["weight"] or 1) if match else math.nan
        except ValueError:
            weight = math.nan
        if not abs(weight) <= MAX_WEIGHT:
            raise RequestError("loras", f"{entry!r} is not a LoRA and its weight. Write NAME or NAME@WEIGHT with a weight from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, and commas between several.")
        if match["name"] in found:
            raise RequestError("loras", f"The LoRA {match['name']!r} is named twice; give it one weight.")
        found[match["name"]] = weight
    return tuple(found.items())


def installed_loras(data_dir: str | Path) -> dict[str, Path]:
    """The LoRAs of a data folder, by name."""
    return {path.stem: path for path in sorted((Path(data_dir) / FOLDER).glob(f"*{SUFFIX}")) if not path.name.startswith(".")}


def find_lora(name: str, data_dir: str | Path, files: bool = True) -> Path:
    """The file of a LoRA: one of the data folder's or, with ``files``, any path. Raises RequestError("loras")."""
    known = installed_loras(data_dir)
    if name in known:
        return known[name]
    if files and name.endswith(SUFFIX) and Path(name).is_file():
        return Path(name)
    here = f"Installed: {', '.join(known)}." if known else f"None is installed: put a {SUFFIX} file into {Path(data_dir) / FOLDER}, or train one."
    raise RequestError("loras", f"There is no LoRA {name!r}.{nearest(name, known)} {here}")


def made_from(path: str | Path) -> dict[str, Any]:
    """What the header of a LoRA says about its making (run, step, model, rank, caption of use); empty for a file from elsewhere."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:  # "pt" would load torch
        return json.loads((file.metadata() or {}).get(MADE_FROM, "{}"))


def apply_loras(transformer: MiraTransformer3DModel, text: str | None, data_dir: str | Path) -> None:
    """Have ``transformer`` work with the LoRAs of a request's ``loras`` and with no others. Files that are loaded already stay.

    Weights are added as in LoRA (Hu et al. 2021, arXiv:2106.09685, eq. 3), each scaled by its alpha / rank and the request's weight.
    Raises RequestError("loras") for a file that is not there, cannot be read, or is made for a model of another shape.
    """
    wanted = [(find_lora(name, data_dir), weight) for name, weight in parse_loras(text)]
    if not wanted:
        if getattr(transformer, "peft_config", None):
            transformer.unload_lora()  # its wrappers too, so that layers are plain again and their projections can be joined
        return
    names = {_adapter_name(path): path for path, _ in wanted}
    for stale in set(getattr(transformer, "peft_config", {})) - set(names):
        transformer.delete_adapters(stale)
    for adapter, path in names.items():
        if adapter not in getattr(transformer, "peft_config", {}):
            _load(transformer, path, adapter)
    transformer.enable_lora()
    transformer.set_adapters(list(names), [weight for _, weight in wanted])


def _load(transformer: MiraTransformer3DModel, path: Path, adapter: str) -> None:
    from safetensors import SafetensorError, safe_open

    problem = f"The LoRA {path.name} does not fit this model"
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise RequestError("loras", f"The LoRA {path.name} cannot be read: {error}.") from None
    layers = dict(transformer.named_modules())
    for name, shape in shapes.items():
        layer = layers.get(re.sub(r"\.lora_[AB]\.weight$", "", name))
        layer = getattr(layer, "base_layer", layer)
        if not hasattr(layer, "in_features") or ".lora_" not in name:
            raise RequestError("loras", f"{problem}: it holds {name}, and the model has no such linear layer.")
        expected = layer.in_features if ".lora_A." in name else layer.out_features
        if shape[1 if ".lora_A." in name else 0] != expected:
            raise RequestError("loras", f"{problem}: {name} is {list(shape)}, and {expected} is needed. It was made for another model.")
    transformer.load_lora_adapter(str(path.parent), weight_name=path.name, prefix=None, adapter_name=adapter)
    for name, parameter in transformer.named_parameters():
        if f".{adapter}." in name:
            parameter.data = parameter.data.to(transformer.device, transformer.dtype)
            parameter.requires_grad_(False)


def _adapter_name(path: Path) -> str:
    """One for each file as it is now: a file that was written anew is loaded anew. PEFT allows no dots in a name."""
    import hashlib

    status = path.stat()
    return "lora_" + hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]

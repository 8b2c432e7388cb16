"""Find, download, convert and load models.

python -m core.checkpoints convert SRC.pt DST [--config CONFIG.yaml] [--vae DIR] [--dtype fp16]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import torch

from .convert import DTYPES, SOURCE_FILE, CheckpointError, convert_checkpoint
from .device import choose_device, choose_dtype
from .files import WriteError, replacing
from .pipeline import MiraPipeline
from .presets import NANO
from .releases import EMBEDDED, RELEASES, TEXT_ENCODER, TEXT_ENCODER_GB, Release, folder_name, installed_folder
from .text_encoder import LazyTextEncoder
from .types import nearest

log = logging.getLogger(__name__)

DEFAULT_DATA_DIR = Path("workspace")


def load_pipeline(
    name_or_path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    text_encoder: bool = True,
    data_dir: str | Path | None = None,
) -> MiraPipeline:
    """A pipeline that is ready to be called.

    Args:
        name_or_path: ``mira-nano``, a model folder, a release (``TencentARC/Mira-v0:128``) or the Hub id of a model folder.
            A release is downloaded (resumable, with progress) and converted once; the result stays under ``data_dir/models``.
        device, dtype: ``auto`` chooses what this machine is best at (see ``core.device``).
        text_encoder: Whether prompts can be given as text. The encoder is loaded at the first prompt whose embeddings are
            not in ``data_dir/prompt_cache``.
        data_dir: Where models and prompt embeddings are kept; ``workspace`` by default.

    Raises CheckpointError, saying what is missing and how to get it.
    """
    data_dir = Path(data_dir or DEFAULT_DATA_DIR)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    folder = find_model(str(name_or_path), data_dir)
    _check_memory(folder, device, dtype)
    pipe = MiraPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None, dtype=dtype)
    pipe.model_name = str(name_or_path)
    pipe.to(device)
    if text_encoder:
        pipe.lazy_text_encoder = LazyTextEncoder(_text_encoder_folder(folder, data_dir), data_dir / "prompt_cache", device, dtype)
    return pipe


def find_model(name: str, data_dir: Path) -> Path:
    """The folder of a model, downloaded and converted now if need be. Raises CheckpointError."""
    installed = installed_folder(name, data_dir)
    if installed is not None:
        return installed
    if name in RELEASES:
        return _install_release(RELEASES[name], data_dir)
    if Path(name).exists():
        raise CheckpointError(f"{name} is not a model folder: it has no model_index.json. A Mira checkpoint becomes one with `python -m core.checkpoints convert {name} FOLDER`.")
    if name == NANO:
        raise CheckpointError(f"The embedded model is missing: {EMBEDDED / NANO} is not there. Check out the repository whole, or train it (see README).")
    if name.count("/") == 1 and ":" not in name and not name.startswith((".", "/")):
        return _download_folder(name, data_dir)
    raise CheckpointError(f"There is no model {name!r}.{nearest(name, [NANO, *RELEASES])} Known: {NANO}, {', '.join(RELEASES)}, a model folder, or the Hub id of one.")


def _install_release(release: Release, data_dir: Path) -> Path:
    """Download the file if it is not there, convert it, and keep the folder; the file itself can then be deleted."""
    target = data_dir / "models" / folder_name(release.name)
    placed = data_dir / "models" / release.file
    source = placed if placed.is_file() else _download(release, data_dir)
    log.info("Converting %s", source)
    return convert_checkpoint(source, target, dtype="fp16" if release.repo.endswith("v0") else "keep")


def _download(release: Release, data_dir: Path) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    models = data_dir / "models"
    _require_disk(models, 2 * release.gigabytes, f"{release.name} (download and converted folder)")
    log.info("Downloading %s (%.1f GB)", release.file, release.gigabytes)
    try:
        return Path(hf_hub_download(release.repo, release.file, local_dir=models / "downloads"))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{release.name} is not on this machine and could not be downloaded ({_first_line(error)}). Download {release.file} (about {release.gigabytes:g} GB) "
            f"from {release.page}, put it at {models / release.file}, and try again; it is converted when it is first used."
        ) from None


def _text_encoder_folder(folder: Path, data_dir: Path) -> Path:
    """Where ``folder``'s tokenizer and encoder are: in it, or shared under ``data_dir/models``, downloaded now if need be."""
    if (folder / "text_encoder").is_dir():
        return folder
    source = folder / SOURCE_FILE
    hub_id = json.loads(source.read_text())["text_encoder"] if source.exists() else TEXT_ENCODER
    shared = data_dir / "models" / folder_name(hub_id)
    if (shared / "text_encoder").is_dir():
        return shared
    _require_disk(shared, 1.5 * TEXT_ENCODER_GB, hub_id)
    from transformers import AutoTokenizer, T5EncoderModel

    log.info("Downloading %s (%.0f GB)", hub_id, TEXT_ENCODER_GB)
    try:
        with replacing(shared) as work:
            AutoTokenizer.from_pretrained(hub_id).save_pretrained(work / "tokenizer")
            T5EncoderModel.from_pretrained(hub_id, dtype=torch.bfloat16).save_pretrained(work / "text_encoder")
    except OSError as error:
        raise CheckpointError(
            f"The text encoder {hub_id} is not on this machine and could not be downloaded ({_first_line(error)}). Download it (about {TEXT_ENCODER_GB:g} GB) from "
            f"https://huggingface.co/{hub_id}; put its weights and config into {shared / 'text_encoder'} and its tokenizer files into {shared / 'tokenizer'}."
        ) from None
    return shared


def _download_folder(hub_id: str, data_dir: Path) -> Path:
    from huggingface_hub import snapshot_download

    target = data_dir / "models" / folder_name(hub_id)
    try:
        snapshot_download(hub_id, local_dir=target)
    except Exception as error:  # the Hub's client raises many kinds; all mean that the folder is not here
        raise CheckpointError(f"{hub_id} is not on this machine and could not be downloaded ({_first_line(error)}). Download the model folder from https://huggingface.co/{hub_id} and put it at {target}.") from None
    if not (target / "model_index.json").is_file():
        raise CheckpointError(f"{hub_id} is no model folder: it has no model_index.json. {nearest(hub_id, RELEASES)}")
    return target


def _check_memory(folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a model whose weights cannot fit before anything is read."""
    weights = sum(f.stat().st_size for part in ("transformer", "vae") for f in (folder / part).glob("*.safetensors"))
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], f"on {torch.cuda.get_device_name(device)}"
    else:
        import psutil

        free, where = psutil.virtual_memory().available, "in memory"
    if weights > free:
        raise CheckpointError(f"The weights of {folder.name} take {weights / 1e9:.1f} GB and {free / 1e9:.1f} GB are free {where}. Close other programs, or use a smaller model.")


def _require_disk(place: Path, gigabytes: float, what: str) -> None:
    existing = next(p for p in (place, *place.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < gigabytes:
        raise CheckpointError(f"{what} takes about {gigabytes:.1f} GB on disk and {existing} has {free:.1f} GB free. Free some space or choose another data folder.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when the folder stands, 2 with one line that says what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m core.checkpoints", description="Work with model checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="make a model folder of one of Mira's checkpoints")
    convert.add_argument("src", help="the checkpoint file")
    convert.add_argument("dst", help="the model folder to write")
    convert.add_argument("--config", help="Mira's YAML file; not needed for a file with a released name")
    convert.add_argument("--vae", help="for a file without a VAE: a model folder or checkpoint that has it")
    convert.add_argument("--dtype", choices=list(DTYPES), default="keep", help="number format of the weights")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        print(os.fspath(convert_checkpoint(args.src, args.dst, args.config, args.vae, args.dtype)))
    except (CheckpointError, WriteError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

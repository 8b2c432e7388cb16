"""Find, download, convert and load models.

python -m core.checkpoints convert SRC.pt DST [--config CONFIG.yaml] [--vae DIR] [--dtype fp16]
python -m core.checkpoints install NAME [--data-dir DIR]
python -m core.checkpoints original FOLDER DST.pt
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .attention import set_attention_backend
from .compute import Compute
from .convert import DTYPES, SOURCE_FILE, convert_checkpoint, write_original
from .device import ResourceError, choose_device, choose_dtype, require_device, require_disk, require_memory, set_threads, weights_memory
from .files import Tell, WriteError, replacing
from .hub import fetch, fetch_folder, not_reached
from .originals import CheckpointError, damaged_file, first_line, some
from .pipeline import MiraPipeline
from .presets import NANO
from .releases import EMBEDDED, RELEASES, TEXT_ENCODER, TEXT_ENCODER_BYTES, TEXT_ENCODER_DOWNLOAD_BYTES, Release, folder_name, installed_folder, released_shapes
from .text_encoder import LazyTextEncoder, fingerprint
from .types import nearest

log = logging.getLogger(__name__)

DEFAULT_DATA_DIR = Path("workspace")
SETTINGS = ("*.json", "*.model", "*.txt")
"""Of a folder on the Hub, the files that are neither weights nor pickles."""


def load_pipeline(
    name_or_path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    text_encoder: bool = True,
    data_dir: str | Path | None = None,
    compute: Compute = Compute(),
    tell: Tell | None = None,
) -> MiraPipeline:
    """A pipeline that is ready to be called.

    Args:
        name_or_path: ``mira-nano``, a model folder, a release (``TencentARC/Mira-v0:128``) or the Hub id of a model folder.
            A release is downloaded (resumable, with progress) and converted once; the result stays under ``data_dir/models``.
        device, dtype: ``auto`` chooses what this machine is best at (see ``core.device``).
        text_encoder: Whether prompts can be given as text. The encoder is loaded at the first prompt whose embeddings are
            not in ``data_dir/cache/prompts``.
        data_dir: Where models and prompt embeddings are kept; ``workspace`` by default.
        compute: What computes attention (in this whole process), whether blocks are compiled, and where the text encoder works. Sharing the work
            with other processes begins with the pipeline's ``share_work``.
        tell: Hears of downloads and conversions; what it raises stops them.

    Raises CheckpointError, saying what is missing and how to get it, ResourceError for too little memory or disk or a device that is not there, or AttentionError.
    """
    data_dir = Path(data_dir or DEFAULT_DATA_DIR)
    device = choose_device(device)
    require_device(device)
    set_attention_backend(compute.attention, device)
    dtype = choose_dtype(dtype, device)
    _check_release(str(name_or_path), data_dir, device, dtype)
    folder = find_model(str(name_or_path), data_dir, tell)
    _check_folder(folder, device, dtype)
    if device.type == "cpu":
        set_threads()
    pipe = _read_folder(folder, dtype)
    pipe.model_name, pipe.model_folder, pipe.data_dir = str(name_or_path), folder, data_dir
    pipe.to(device)
    pipe.compute = compute
    if compute.compile:
        pipe.transformer.compile_repeated_blocks()
    if text_encoder:
        pipe.lazy_text_encoder = _lazy_text_encoder(folder, data_dir, device, dtype, compute.text_encoder, tell)
    return pipe


def _lazy_text_encoder(folder: Path, data_dir: Path, device: torch.device, dtype: torch.dtype, where: str, tell: Tell | None) -> LazyTextEncoder:
    """The text encoder of a model: downloaded now if it is nowhere and never was, and else when a prompt comes whose embeddings are not in the cache."""
    models, cache, apart = data_dir / "models", data_dir / "cache" / "prompts", where != "with-model"
    options = {"device": "cpu", "dtype": torch.bfloat16} if apart else {"device": device, "dtype": dtype}
    options |= {"eight_bits": where == "cpu-8bit", "stays": apart}
    own, source = all((folder / part).is_dir() for part in ("tokenizer", "text_encoder")), folder / SOURCE_FILE
    if own or not source.exists():
        return LazyTextEncoder(text_encoder_folder(folder, models, tell), cache, **options)
    name = folder_name(json.loads(source.read_text())["text_encoder"])
    note, here = cache / f"{name}.fingerprint", all((models / name / part).is_dir() for part in ("tokenizer", "text_encoder"))
    if not here and not (folder / "text_encoder").is_dir() and note.is_file():
        return LazyTextEncoder(partial(text_encoder_folder, folder, models), cache, known_as=note.read_text(), **options)
    place = text_encoder_folder(folder, models, tell)
    known_as = fingerprint(place)
    if place != folder:
        with replacing(note) as work:
            work.write_text(known_as)
    return LazyTextEncoder(place, cache, known_as=known_as, **options)


def find_model(name: str, data_dir: Path, tell: Tell | None = None) -> Path:
    """The folder of a model, downloaded and converted now if need be, of which ``tell`` hears. Raises CheckpointError."""
    installed = installed_folder(name, data_dir)
    if installed is not None:
        return installed
    if name in RELEASES:
        return _install_release(RELEASES[name], data_dir, tell)
    if Path(name).exists():
        raise CheckpointError(f"{name} is not a model folder: it has no model_index.json. A Mira checkpoint becomes one with `python -m core.checkpoints convert {name} FOLDER`.")
    if name == NANO:
        raise CheckpointError(f"The embedded model is missing: {EMBEDDED / NANO} is not there. Check out the repository whole, or train it (see README).")
    if name.count("/") == 1 and ":" not in name and not name.startswith((".", "/")):
        return _download_folder(name, data_dir / "models", tell)
    raise CheckpointError(f"There is no model {name!r}.{nearest(name, [NANO, *RELEASES])} Known: {NANO}, {', '.join(RELEASES)}, a model folder, or the Hub id of one.")


def _install_release(release: Release, data_dir: Path, tell: Tell | None) -> Path:
    """Download the file if it is not there, convert it, and keep the folder. One process does it, others wait for it."""
    models = data_dir / "models"
    target = models / folder_name(release.name)
    placed = models / release.file
    with _alone(target):
        if installed_folder(release.name, data_dir) is None:
            source = placed if placed.is_file() else _download(release, models, tell)
            log.info("Converting %s", source)
            convert_checkpoint(source, target, tell=tell)
            _share_text_encoder(target, models / folder_name(TEXT_ENCODER))
            if source != placed:
                source.unlink()
    return target


def _download(release: Release, models: Path, tell: Tell | None = None) -> Path:
    """The release's file in ``models/downloads``."""
    try:
        return fetch(release.repo, release.file, models / "downloads" / release.file, beside=1, tell=tell)
    except not_reached() as error:
        raise CheckpointError(
            f"{release.name} is not on this machine and could not be downloaded ({first_line(error)}). Download {release.file} (about {release.gigabytes:g} GB) "
            f"from {release.page}, put it at {models / release.file}, and try again; it is converted when it is first used."
        ) from None


def _share_text_encoder(folder: Path, shared: Path) -> None:
    """Mira's text encoder was frozen, so all releases have the same: keep one copy for all."""
    own = folder / "text_encoder"
    if not own.is_dir():
        return
    if (shared / "text_encoder").is_dir():
        shutil.rmtree(own)
    else:
        shared.mkdir(parents=True, exist_ok=True)
        own.rename(shared / "text_encoder")


def text_encoder_folder(folder: Path, models: Path, tell: Tell | None = None) -> Path:
    """The folder with ``tokenizer/`` and ``text_encoder/`` for a model: its own, or the shared one of the releases, downloaded if need be."""
    if all((folder / part).is_dir() for part in ("tokenizer", "text_encoder")):
        return folder
    source = folder / SOURCE_FILE
    if not source.exists():
        raise CheckpointError(f"{folder} lacks tokenizer/ or text_encoder/. Copy them from the model it was made of, or load it with text_encoder=False and give prompt_embeds.")
    hub_id = json.loads(source.read_text())["text_encoder"]
    place = folder if (folder / "text_encoder").is_dir() else models / folder_name(hub_id)
    with _alone(place):
        try:
            _download_text_encoder(hub_id, place, models / "downloads" / folder_name(hub_id), tell)
        except not_reached() as error:
            raise CheckpointError(
                f"The text encoder {hub_id} is not whole on this machine and could not be downloaded ({first_line(error)}). Get it from https://huggingface.co/{hub_id} (about "
                f"{TEXT_ENCODER_DOWNLOAD_BYTES / 1e9:.0f} GB): config.json and the weights belong into {place / 'text_encoder'}, the tokenizer's files into {place / 'tokenizer'}."
            ) from None
    return place


def _download_text_encoder(hub_id: str, place: Path, work: Path, tell: Tell | None) -> None:
    """The tokenizer and the encoder half of ``hub_id`` in bf16, each if it is not there: out of the Hub's own cache, where other programs have put it, or by way of ``work``."""
    from transformers import AutoTokenizer, T5EncoderModel

    def here_or_fetched(kind: Any, patterns: tuple[str, ...], beside: float = 0, **options: Any) -> Any:
        try:
            return kind.from_pretrained(hub_id, local_files_only=True, **options)
        except (OSError, ValueError):
            return kind.from_pretrained(fetch_folder(hub_id, work, patterns, "config.json", beside, tell), **options)

    if not (place / "tokenizer").is_dir():
        tokenizer = here_or_fetched(AutoTokenizer, SETTINGS)
        with replacing(place / "tokenizer") as written:
            tokenizer.save_pretrained(written)
    if not (place / "text_encoder").is_dir():
        require_disk(TEXT_ENCODER_BYTES, place, hub_id)
        require_memory(TEXT_ENCODER_BYTES, "cpu", hub_id)
        encoder = here_or_fetched(T5EncoderModel, (*SETTINGS, "*.safetensors"), TEXT_ENCODER_BYTES / TEXT_ENCODER_DOWNLOAD_BYTES, dtype=torch.bfloat16)
        with replacing(place / "text_encoder") as written:
            encoder.save_pretrained(written)
    shutil.rmtree(work, ignore_errors=True)


def _download_folder(hub_id: str, models: Path, tell: Tell | None = None) -> Path:
    """A diffusers model folder from the Hub: settings and safetensors, no pickles."""
    target, work = models / folder_name(hub_id), models / "downloads" / folder_name(hub_id)
    with _alone(target):
        if (target / "model_index.json").is_file():
            return target
        try:
            fetch_folder(hub_id, work, (*SETTINGS, "*.safetensors", "*.md"), "model_index.json", tell=tell, hint=nearest(hub_id, RELEASES))
        except not_reached() as error:
            raise CheckpointError(f"{hub_id} is not on this machine and could not be downloaded ({first_line(error)}). Download the model folder from https://huggingface.co/{hub_id} and put it at {target}.") from None
        work.rename(target)
    return target


def install(name: str, data_dir: Path, tell: Tell | None = None) -> Path:
    """Have a model and its text encoder on this machine; the model's folder. Raises CheckpointError or ResourceError."""
    folder = find_model(name, data_dir, tell)
    if tell is not None:
        tell("Looking for the text encoder", 0, 0)
    text_encoder_folder(folder, data_dir / "models", tell)
    return folder


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Let one process at a time install ``target``."""
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        yield


def _check_release(name: str, data_dir: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a release whose weights cannot fit before it is downloaded."""
    if name in RELEASES and installed_folder(name, data_dir) is None:
        sizes = [math.prod(shape) for part in ("transformer", "vae") for shape in released_shapes(RELEASES[name], part).values()]
        require_memory(dtype.itemsize * sum(sizes), device, f"{name} in {str(dtype).removeprefix('torch.')}")


def _check_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a folder that is not whole, or whose weights cannot fit, before they are read."""
    needed = 0
    for part in ("transformer", "vae"):
        files = sorted((folder / part).glob("*.safetensors"))
        if not files or not (folder / part / "config.json").is_file():
            raise CheckpointError(f"{folder} is not whole: {part}/ must hold config.json and safetensors files, and holds {some(sorted(f.name for f in (folder / part).glob('*'))) or 'nothing'}.")
        for file in files:
            try:
                needed += weights_memory(file, dtype)
            except SafetensorError as error:
                raise damaged_file(file, error) from None
    require_memory(needed, device, f"{folder.name} in {str(dtype).removeprefix('torch.')}")


def _read_folder(folder: Path, dtype: torch.dtype) -> MiraPipeline:
    """The model of a folder, without its text encoder. Raises CheckpointError for settings that cannot be read, and for weights that do not fit them: diffusers itself warns of missing ones and goes on."""
    default = torch.get_default_dtype()
    try:
        pipe = MiraPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None, dtype=dtype)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} is not a whole model folder ({first_line(error)}). Copy or download it again.") from error
    finally:
        torch.set_default_dtype(default)  # diffusers leaves its own where a part cannot be built
    for part in ("transformer", "vae"):
        if missing := [name for name, tensor in getattr(pipe, part).state_dict().items() if tensor.is_meta]:
            raise CheckpointError(f"{folder / part} lacks tensors that its config.json asks for: {some(missing)}. Copy or download it again.")
    return pipe


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
    original = commands.add_parser("original", help="write a model folder as one file in Mira's own layout")
    original.add_argument("src", help="the model folder")
    original.add_argument("dst", help="the .pt file to write")
    add = commands.add_parser("install", help="download and convert a released model, with its text encoder")
    add.add_argument("name", help=f"a release ({', '.join(RELEASES)}) or the Hub id of a model folder")
    add.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="its models/ is where it is kept")
    for command in (convert, add, original):
        command.add_argument("--events", action="store_true", help="print progress as JSON, one object a line")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    tell = _print_events() if args.events else None
    if args.events:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half written is removed
    try:
        if args.command == "original":
            made = write_original(args.src, args.dst)
        else:
            made = install(args.name, args.data_dir, tell) if args.command == "install" else convert_checkpoint(args.src, args.dst, args.config, args.vae, args.dtype, tell)
        print(json.dumps({"report": {"folder": os.fspath(made)}}) if args.events else os.fspath(made))
    except (CheckpointError, ResourceError, WriteError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _print_events() -> Tell:
    """A Tell that prints, not oftener than a person looks."""
    last: tuple[str, float] = ("", 0.0)

    def tell(words: str, done: int, of: int) -> None:
        nonlocal last
        if words != last[0] or done == of or time.monotonic() - last[1] > 0.25:
            last = words, time.monotonic()
            print(json.dumps({"words": words, "done": done, "of": of}), flush=True)

    return tell


if __name__ == "__main__":
    raise SystemExit(main())

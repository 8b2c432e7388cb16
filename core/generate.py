"""Videos from the command line: ``python -m core.generate PROMPT... --out FILE|DIR``. Every setting of a request is a flag."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import re
import sys
import tempfile
import time
import typing
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .compute import add_arguments, from_arguments
from .economy import Economy, OutOfMemory
from .field_docs import field_docs
from .files import WriteError
from .loras import find_lora, parse_loras
from .provenance import made_with
from .start import load_start
from .types import MADE_WITH, MAX_SEED, GenerationRequest, RequestError
from .video_io import FORMATS, VideoError, save_video, video_format

if TYPE_CHECKING:
    from .pipeline import MiraPipeline
    from .snapshot import Snapshot

logger = logging.getLogger("core.generate")  # also when run as __main__


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, not the whole usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments; the flags of a request's settings come from GenerationRequest itself."""
    parser = _Parser(prog="python -m core.generate", description="Make a video from each prompt.", allow_abbrev=False)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help=field_docs(GenerationRequest)["prompt"])
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="A text file with one prompt a line, after those of the command line.")
    parser.add_argument("--out", required=True, metavar="FILE|DIR", help="A file (.mp4, .gif, or .png for a folder of frames) for one prompt; else a folder, in which names sort in prompt order.")
    parser.add_argument("--format", choices=FORMATS, help="What to write; by the suffix of --out, else mp4.")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="Prompts denoised together. Does not change a video; needs memory.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object a video (path, seconds, request) rather than its path. Logs and progress go to stderr.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ...")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bf16", "fp16", "fp32"], help="What the model is run in.")
    add_arguments(parser)
    parser.add_argument("--data-dir", type=Path, default=Path("workspace"), metavar="DIR", help="Where converted checkpoints and prompt embeddings are kept.")
    settings = parser.add_argument_group("settings of a request", "What is left out comes from the preset, and that from the model.")
    docs, hints = field_docs(GenerationRequest), typing.get_type_hints(GenerationRequest)
    for field in dataclasses.fields(GenerationRequest):
        if field.name == "prompt":
            continue
        kind = next(t for t in (*typing.get_args(hints[field.name]), hints[field.name]) if t in (int, float, str))
        settings.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar=kind.__name__.upper(), help=docs[field.name].replace("%", "%%"))
    return parser


def requests_of(arguments: argparse.Namespace) -> list[GenerationRequest]:
    """One resolved request a prompt; prompt i has the base seed + i, so that the batch size changes nothing. Raises RequestError."""
    prompts = [*arguments.prompts, *_read_prompts(arguments.prompt_file)]
    if not prompts:
        raise RequestError("prompt", "No prompt is given. Put one on the command line, or name a --prompt-file.")
    settings = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(GenerationRequest) if f.name != "prompt"}
    base = GenerationRequest(prompts[0], **settings).resolved(arguments.data_dir)
    if base.seed + len(prompts) - 1 > MAX_SEED:
        raise RequestError("seed", f"seed is {base.seed}; with {len(prompts)} prompts it must be at most {MAX_SEED - len(prompts) + 1}.")
    return [base.replace(prompt=prompt, seed=base.seed + i).resolved(arguments.data_dir) for i, prompt in enumerate(prompts)]


def output_paths(out: str, format: str | None, requests: Sequence[GenerationRequest]) -> list[Path]:
    """Where each video goes: ``out`` itself for a file name, else ``0000-words-of-the-prompt-seed1.mp4`` and so on in it."""
    path = Path(out)
    is_folder = path.is_dir() or not path.suffix or out.endswith(("/", os.sep))
    if not is_folder:
        if len(requests) > 1:
            raise RequestError("out", f"--out {out} is one file, but there are {len(requests)} prompts. Name a folder.")
        if format not in (None, video_format(path)):
            raise RequestError("out", f"--out {out} and --format {format} do not agree. Leave one out.")
        return [path]
    suffix = {"mp4": ".mp4", "gif": ".gif", "png": ""}[format or "mp4"]
    digits = max(4, len(str(len(requests) - 1)))
    return [path / f"{i:0{digits}d}-{slug(request.prompt)}-seed{request.seed}{suffix}" for i, request in enumerate(requests)]


def slug(text: str, limit: int = 48) -> str:
    """Letters, digits and dashes for a file name; ``video`` where nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:limit].strip("-") or "video"


def generate(arguments: argparse.Namespace) -> None:
    """Make the videos. Everything that can be checked is checked before the model is loaded."""
    if arguments.batch_size < 1:
        raise RequestError("batch_size", f"--batch-size is {arguments.batch_size}; it must be at least 1.")
    compute = from_arguments(arguments)
    requests = requests_of(arguments)
    paths = output_paths(arguments.out, arguments.format, requests)
    _check_writable(paths[0].parent)
    if requests[0].start_from is not None:
        load_start(requests[0])
    for name, _ in parse_loras(requests[0].loras):
        find_lora(name, arguments.data_dir)

    from .checkpoints import load_pipeline
    from .pipeline import window_of

    logger.info("Loading %s", requests[0].model)
    pipe = load_pipeline(requests[0].model, device=arguments.device, dtype=arguments.dtype, data_dir=arguments.data_dir, compute=compute)
    pipe.use_weights(requests[0].weights)
    pipe.use_loras(requests[0].loras)
    pipe.share_work(compute.gpus_per_video)
    pipe.set_progress_bar_config(desc="denoising", unit="step", leave=len(requests) == 1)
    try:
        with tqdm(total=len(requests), unit="video", disable=len(requests) == 1) as bar:
            for start in range(0, len(requests), arguments.batch_size):
                batch, began = requests[start : start + arguments.batch_size], time.monotonic()
                shared = batch[0].to_dict() | {"prompt": [r.prompt for r in batch], "seed": [r.seed for r in batch], "window_frames": window_of(batch[0])}
                plain = {name: shared[name] for name in shared if name not in ("model", "preset", "output_fps", "start_from", "start_frames", "text_placement", "weights", "loras")}
                clips = _clips(pipe, batch, plain)
                seconds = (time.monotonic() - began) / len(batch)
                for request, path, frames in zip(batch, paths[start:], clips):
                    written = save_video(frames, path, request.output_fps, request.to_dict() | {MADE_WITH: made_with(pipe, request.loras) | pipe.economy.told(request)}, format=arguments.format)
                    _report(written, request, seconds, arguments.json)
                    bar.update()
    finally:
        pipe.share_work(1)


def _clips(pipe: MiraPipeline, batch: Sequence[GenerationRequest], settings: dict[str, Any]) -> Any:
    """The frames of a batch. Where memory runs out it goes on from its last step with less. Raises ResourceError when nothing is left to spare."""
    from .device import ResourceError
    from .ladder import lack_of_memory, within_memory

    done: Snapshot | None = None

    def remember(pipe: MiraPipeline, step: int, timestep: int, report: dict[str, Any]) -> None:
        nonlocal done
        done = report["snapshot"]()

    def make() -> Any:
        return pipe(**settings, start_latents=None if done else pipe.encode_start(batch[0]), callback_on_step_end=remember, resume=done).frames

    try:
        return within_memory(pipe, batch[0], make, Economy.asked(batch[0]))
    except OutOfMemory as error:
        raise ResourceError(lack_of_memory(error, batch[0], "" if len(batch) == 1 else "--batch-size 1 needs less. ")) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the model failed, 2 bad input or a place that cannot be written, 130 interrupted."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("core").setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm():
            generate(arguments)
    except (RequestError, VideoError, WriteError, FileNotFoundError, ValueError) as error:
        print(f"{parser.prog}: {_one_line(error)}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"{parser.prog}: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the videos written so far are whole.", file=sys.stderr)
        return 130
    return 0


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RequestError("prompt_file", f"--prompt-file {path} is not UTF-8 text: {error}.") from error
    except OSError as error:
        raise RequestError("prompt_file", f"--prompt-file {path} cannot be read: {error.strerror}.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise RequestError("prompt_file", f"--prompt-file {path} holds no prompt; one a line is needed.")
    return prompts


def _check_writable(folder: Path) -> None:
    """Fail before the work, not after it. Raises WriteError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise WriteError(folder, error) from error


def _report(path: Path, request: GenerationRequest, seconds: float, as_json: bool) -> None:
    line = json.dumps(dict(path=str(path), seconds=round(seconds, 3), request=request.to_dict())) if as_json else f"{path}  ({seconds:.1f} s)"
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())

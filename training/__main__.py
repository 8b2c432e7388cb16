"""Train, from a shell.

python -m training --config FILE key=value ...      run (or resume) a training
python -m training precompute --model DIR --out DIR --clips N [--num-frames T] [--sizes WxH ...] [--motions MOTION=SHARE ...] [--moving-cameras SHARE | --camera CAMERA]
python -m training runs [--data-dir DIR]            what runs there are, and what they are doing
python -m training first NAME                       let a run that waits for its device have it before the others that do
python -m training pause|resume NAME                a run in a process of its own: write a checkpoint and end; go on from it
python -m training use RUN [--step N] [--as NAME]   make a checkpoint a model, or a LoRA, that the studio and core.generate know
python -m training pack RUN --kind diffusers|lora|mira --out PATH [--step N]     a checkpoint as others can take it
python -m training push RUN --repo USER/NAME [--step N] [--public]                or on the Hub, with a model card; the token is asked for
python -m training export --vae RUN --text-encoder RUN --transformer RUN --out DIR
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
from contextlib import ExitStack
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from .config import TrainConfig


class PausedEarly(BaseException):
    """SIGTERM before the training loop, which has a handler of its own, took a step."""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    command = argv[0] if argv else ""
    if command == "precompute":
        return _precompute(argv[1:])
    if command == "export":
        return _export(argv[1:])
    if command in ("runs", "first", "pause", "resume", "use", "pack", "push"):
        return _runs(argv)
    return _train(argv)


def _train(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train or resume a run.", epilog="Other commands: runs, first, pause, resume, use, pack, push, precompute, export (each has --help).")
    parser.add_argument("--config", help="YAML file; training/configs/ has mira-nano's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of TrainConfig that override the file")
    args = parser.parse_args(argv)
    from .config import ConfigError, load_config

    try:
        config = load_config(args.config, args.settings)
    except ConfigError as error:
        return _refuse(error)
    previous = signal.signal(signal.SIGTERM, _pause_early)
    try:
        return _run(config, args.device, argv)
    except PausedEarly:
        from .runs import Status, first_process, last_step

        folder = Path(config.output_dir)
        if first_process():
            Status("paused", step=last_step(folder), message="It was paused before it took a step. Resume begins it.").write(folder)
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def _pause_early(*_: Any) -> NoReturn:
    raise PausedEarly


def _run(config: TrainConfig, device: str, argv: list[str]) -> int:
    """Train, in as many processes as the config says."""
    from core.device import ResourceError
    from core.files import WriteError

    from .config import ConfigError
    from .processes import launch, started_by_a_launcher
    from .runs import logged
    from .start import train
    from .trainer import Diverged, NonFiniteLoss

    with ExitStack() as stack:
        try:
            if config.num_processes > 1 and not started_by_a_launcher():
                launch(config, device, argv)
            stack.enter_context(logged(Path(config.output_dir), argv))
            print(train(config, device))
        except (ConfigError, NonFiniteLoss, Diverged, FileNotFoundError, ResourceError, WriteError) as error:
            return _refuse(error)
    return 0


def _runs(argv: list[str]) -> int:
    from .share import KINDS, pack, push

    parser = argparse.ArgumentParser(prog="python -m training", description="Look at runs, steer them, and use what they made.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, words in (("runs", "list the runs"), ("first", "let a run that waits for its device have it before the others that do"), ("pause", "write a checkpoint and end"), ("resume", "go on from the last checkpoint"), ("use", "make a checkpoint a model or a LoRA"), ("pack", "write a checkpoint as others can take it"), ("push", "put a checkpoint on the Hugging Face Hub")):
        sub = commands.add_parser(command, help=words, description=words)
        sub.add_argument("--data-dir", type=Path, default=Path("workspace"), help="its runs/ holds the run folders")
        if command != "runs":
            sub.add_argument("name", help="a run folder's name")
        if command in ("use", "pack", "push"):
            sub.add_argument("--step", type=int, help="the checkpoint; the newest by default")
        if command in ("pack", "push"):
            sub.add_argument("--events", action="store_true", help="JSON lines: at last what was made")
        if command == "pack":
            sub.add_argument("--kind", choices=KINDS, required=True, help="a model folder, a LoRA file, or one file in Mira's own layout")
            sub.add_argument("--out", required=True)
        if command == "push":
            sub.add_argument("--repo", required=True, help="USER/NAME on the Hub")
            sub.add_argument("--public", action="store_true", help="for all to see; private by default")
        if command == "use":
            sub.add_argument("--as", dest="target", help="name of the model or LoRA; RUN-step-N by default")
    args = parser.parse_args(argv)
    from core.files import WriteError

    from .config import ConfigError
    from .runs import Runs
    from .use import use_checkpoint

    runs = Runs(args.data_dir / "runs")
    try:
        if args.command == "runs":
            for run in runs.list():
                print(f"{run.name}: {run.state}, step {run.step} of {run.config.total_steps if run.config else '?'}{f' ({run.message})' if run.message else ''}")
        elif args.command == "first":
            runs.put_first(args.name)
        elif args.command == "pause":
            runs.pause(args.name)
        elif args.command == "resume":
            print(runs.resume(args.name).folder)
        elif args.command == "pack":
            made = pack(runs.get(args.name), args.step, args.kind, args.out)
            print(json.dumps({"report": {"file": str(made)}}) if args.events else made)
        elif args.command == "push":
            token = os.environ.get("HF_TOKEN") or getpass("Token of the Hugging Face Hub with the right to write (it is not kept): ")
            made = push(runs.get(args.name), args.step, args.repo, token, not args.public)
            print(json.dumps({"report": {"address": made}}) if args.events else made)
        else:
            print(use_checkpoint(runs.get(args.name), args.data_dir, args.step, args.target))
    except (ConfigError, WriteError) as error:
        return _refuse(error)
    return 0


def _refuse(error: Exception) -> int:
    """One line that says what was wrong; the exit status of bad input."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def _precompute(argv: list[str]) -> int:
    from .toyworld.scene import CAMERAS, MOTIONS, MOVING_CAMERAS

    parser = argparse.ArgumentParser(prog="python -m training precompute", description="Render Toy World clips and store their latents.")
    parser.add_argument("--model", required=True, help="folder with vae/, text_encoder/ and tokenizer/")
    parser.add_argument("--out", required=True)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--num-frames", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", nargs="+", default=["128x80"], metavar="WxH", help="in pixels; shards have one after the other (default %(default)s)")
    parser.add_argument("--motions", nargs="*", default=[], metavar="MOTION=SHARE", help="how often a motion comes, 1 where nothing is said: circles=2 'moves left=0.5'")
    parser.add_argument("--moving-cameras", type=float, default=MOVING_CAMERAS, metavar="SHARE", help="of the clips whose motion allows it, those whose camera moves (default %(default)s)")
    parser.add_argument("--camera", choices=CAMERAS, help="what it does in all clips, whose motions are then those that allow it")
    args = parser.parse_args(argv)
    from .precompute import precompute_toyworld
    from .takes import parse_sizes

    if not 0 <= args.moving_cameras <= 1:
        parser.error(f"--moving-cameras {args.moving_cameras:g}: a share is from 0 to 1.")

    motions = {}
    for word in args.motions:
        motion, _, share = word.partition("=")
        try:
            motions[motion] = float(share)
        except ValueError:
            parser.error(f"--motions {word}: the share must be a number, as in circles=2.")
        if motion not in MOTIONS or not 0 <= motions[motion] < math.inf:
            parser.error(f"--motions {word}: the motions are {', '.join(MOTIONS)}; a share is 0 or more.")
    try:
        precompute_toyworld(args.model, args.out, args.clips, args.num_frames, args.seed, motions=motions, moving_cameras=args.moving_cameras, camera=args.camera, sizes=parse_sizes(args.sizes))
    except ValueError as error:
        return _refuse(error)
    return 0


def _export(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training export", description="Put the parts of finished runs together as a model folder.")
    parser.add_argument("--vae", required=True, help="run or checkpoint folder")
    parser.add_argument("--text-encoder", required=True, help="run or checkpoint folder")
    parser.add_argument("--transformer", help="run or checkpoint folder; without it the folder holds what precompute needs")
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    from .export import export_model

    export_model(args.vae, args.text_encoder, args.transformer, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

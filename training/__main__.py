"""Train, from a shell.

python -m training --config FILE key=value ...      run (or resume) a training
python -m training precompute --model DIR --out DIR --clips N [--num-frames T]
python -m training export --vae RUN --text-encoder RUN --transformer RUN --out DIR
"""

from __future__ import annotations

import argparse
import logging
import sys


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    command = argv[0] if argv else ""
    if command == "precompute":
        return _precompute(argv[1:])
    if command == "export":
        return _export(argv[1:])
    return _train(argv)


def _train(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train or resume a run.", epilog="Other commands: precompute, export (each has --help).")
    parser.add_argument("--config", help="YAML file; training/configs/ has mira-nano's")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of TrainConfig that override the file")
    args = parser.parse_args(argv)
    from .config import ConfigError, load_config

    try:
        config = load_config(args.config, args.settings)
    except ConfigError as error:
        return _refuse(error)
    from .trainer import NonFiniteLoss, train

    try:
        print(train(config))
    except (ConfigError, NonFiniteLoss, FileNotFoundError) as error:
        return _refuse(error)
    return 0


def _refuse(error: Exception) -> int:
    """One line that says what was wrong; the exit status of bad input."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def _precompute(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training precompute", description="Render Toy World clips and store their latents.")
    parser.add_argument("--model", required=True, help="folder with vae/, text_encoder/ and tokenizer/")
    parser.add_argument("--out", required=True)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--num-frames", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    from .precompute import precompute_toyworld

    precompute_toyworld(args.model, args.out, args.clips, args.num_frames, args.seed)
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

"""``python -m training.toyworld check | evaluate | reconstruct | prior | page | render``"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .evaluate import SPLITS, check, evaluate, reconstruct
from .folder import write_folder
from .page import write_page
from .prior import priors

JSON_HELP = "write the figures to FILE"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m training.toyworld", description="Toy World: check the detector, measure a model, write clips.")
    commands = root.add_subparsers(dest="command", required=True)
    add = commands.add_parser("check", help="how well the detector reads fresh renders")
    add.add_argument("--clips", type=int, default=200)
    add.add_argument("--blur", action="store_true", help="blur the clips and add noise, as a VAE does")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--json", type=Path, metavar="FILE", help=JSON_HELP)
    add = commands.add_parser("evaluate", help="generate clips with a model and read them back")
    add.add_argument("--model", default="mira-nano")
    add.add_argument("--split", choices=SPLITS, default="trained", help="colour and shape pairs that training shows, or those that it never does")
    add.add_argument("--clips", type=int, default=200)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--num-frames", type=int, default=24)
    add.add_argument("--height", type=int, default=80)
    add.add_argument("--width", type=int, default=128)
    add.add_argument("--num-inference-steps", type=int)
    add.add_argument("--guidance-scale", type=float)
    add.add_argument("--guidance-stop", type=float)
    add.add_argument("--late-guidance-scale", type=float)
    add.add_argument("--temporal-guidance-scale", type=float)
    add.add_argument("--sampler")
    add.add_argument("--window-frames", type=int, help="frames that the model sees at once, for clips longer than it was trained for")
    add.add_argument("--loras", metavar="NAME[@WEIGHT]", help="LoRAs that the model works with, commas between them")
    add.add_argument("--data-dir", type=Path, help="where they lie (workspace)")
    add.add_argument("--batch-size", type=int, default=8)
    add.add_argument("--save-dir", type=Path, help="keep the generated clips here")
    add.add_argument("--json", type=Path, metavar="FILE", help=f"{JSON_HELP}, with every clip's marks, and strips of the first clips beside it; the same command again goes on where it stopped")
    add = commands.add_parser("reconstruct", help="what a model's VAE makes of rendered clips: PSNR, flicker, and what can still be read")
    add.add_argument("--model", default="mira-nano")
    add.add_argument("--clips", type=int, default=24)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--num-frames", type=int, default=24)
    add.add_argument("--height", type=int, default=80)
    add.add_argument("--width", type=int, default=128)
    add.add_argument("--json", type=Path, metavar="FILE", help=JSON_HELP)
    add = commands.add_parser("prior", help="what a model takes for likely before it sees anything, where paths are decided first: its mean clip of each motion against the true one")
    add.add_argument("--model", default="mira-nano")
    add.add_argument("--clips", type=int, default=120, help="rendered clips that the true mean is of")
    add.add_argument("--noises", type=int, default=6)
    add.add_argument("--json", type=Path, metavar="FILE", help=JSON_HELP)
    add = commands.add_parser("page", help="write quality.md from the figures that the other commands left in its folder quality/")
    add.add_argument("--docs", type=Path, default=Path("docs"))
    add = commands.add_parser("render", help="write a folder of clips with metadata.csv")
    add.add_argument("--clips", type=int, required=True)
    add.add_argument("--out", type=Path, required=True)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--num-frames", type=int, default=24)
    add.add_argument("--height", type=int, default=80)
    add.add_argument("--width", type=int, default=128)
    add.add_argument("--events", action="store_true", help="JSON lines: how far it is")
    return root


def main(argv: list[str] | None = None) -> int:
    """Run one command; exit status 2 where it cannot."""
    args = vars(parser().parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command = args.pop("command")
    if command == "render":
        told = lambda done, total: print(json.dumps({"done": done, "of": total}), flush=True)  # noqa: E731
        progress = told if args.pop("events") else None
        made = write_folder(args.pop("out"), args["clips"], **{k: v for k, v in args.items() if k != "clips"}, progress=progress)
        if progress is None:
            print(f"{made} clips rendered, {args['clips'] - made} were there already")
        return 0
    try:
        if command == "page":
            print(write_page(args["docs"]))
            return 0
        file = args.pop("json")
        if command == "evaluate":
            print(evaluate(**args, json_file=file).table())
        elif command == "check":
            report = check(**args)
            _write(file, {"settings": args, **report.as_dict()})
            print(report.table())
        elif command == "prior":
            found = priors(**args)
            _write(file, {"settings": args, **{motion: asdict(one) for motion, one in found.items()}})
            print(f"{'motion':<24}{'likeness':>9}{'size':>7}{'error':>9}")
            print("\n".join(f"{motion:<24}{one.likeness:>9.2f}{one.size:>7.2f}{one.error:>9.4f}" for motion, one in found.items()))
        else:
            figures = reconstruct(**args)
            _write(file, figures)
            print(json.dumps(figures, indent=1))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(file: Path | None, figures: dict[str, Any]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

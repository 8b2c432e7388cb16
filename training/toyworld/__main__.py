"""``python -m training.toyworld check | evaluate | render``"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from .evaluate import check, evaluate
from .folder import write_folder


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m training.toyworld", description="Toy World: check the detector, measure a model, write clips.")
    commands = root.add_subparsers(dest="command", required=True)
    add = commands.add_parser("check", help="how well the detector reads fresh renders")
    add.add_argument("--clips", type=int, default=200)
    add.add_argument("--blur", action="store_true", help="blur the clips and add noise, as a VAE does")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--json", action="store_true")
    add = commands.add_parser("evaluate", help="generate clips with a model and read them back")
    add.add_argument("--model", default="mira-nano")
    add.add_argument("--clips", type=int, default=200)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--held-out", action="store_true", help="ask for the colour and shape pairs that training never shows")
    add.add_argument("--num-frames", type=int, default=24)
    add.add_argument("--height", type=int, default=80)
    add.add_argument("--width", type=int, default=128)
    add.add_argument("--num-inference-steps", type=int)
    add.add_argument("--guidance-scale", type=float)
    add.add_argument("--sampler")
    add.add_argument("--batch-size", type=int, default=8)
    add.add_argument("--save-dir", type=Path, help="keep the generated clips here")
    add.add_argument("--json", action="store_true")
    add = commands.add_parser("render", help="write a folder of clips with metadata.csv")
    add.add_argument("--clips", type=int, required=True)
    add.add_argument("--out", type=Path, required=True)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--num-frames", type=int, default=24)
    add.add_argument("--height", type=int, default=80)
    add.add_argument("--width", type=int, default=128)
    add.add_argument("--events", action="store_true", help="JSON lines: how far it is")
    return root


def main(argv: list[str] | None = None) -> None:
    """Run one command."""
    args = vars(parser().parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command = args.pop("command")
    if command == "render":
        told = lambda done, total: print(json.dumps({"done": done, "of": total}), flush=True)  # noqa: E731
        progress = told if args.pop("events") else None
        made = write_folder(args.pop("out"), args["clips"], **{k: v for k, v in args.items() if k != "clips"}, progress=progress)
        if progress is None:
            print(f"{made} clips rendered, {args['clips'] - made} were there already")
        return
    as_json = args.pop("json")
    report = check(**args) if command == "check" else evaluate(**args)
    print(json.dumps(report.as_dict(), indent=1) if as_json else report.table())


if __name__ == "__main__":
    main()

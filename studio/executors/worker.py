"""The process that makes videos: ``python -m studio.executors.worker --data-dir DIR --device auto --worker-id NAME``.

It exits at once when its standard input closes, which is when the studio stops it or dies, even while torch is still being
imported. Its standard output carries one JSON status a line; everything else goes to standard error, the log.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any


def leave_with_parent() -> None:
    """Exit the moment standard input closes: the studio has stopped this worker, or has died."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def own_stdout() -> Any:
    """A function that writes one JSON line to the supervisor; whatever else prints goes to the log."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(status: dict[str, Any]) -> None:
        channel.write(json.dumps(status) + "\n")
        channel.flush()

    return tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--model", help="load this one at the start")
    arguments = parser.parse_args()
    tell = own_stdout()
    leave_with_parent()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    from .maker import VideoMaker  # imports torch

    maker = VideoMaker(arguments.data_dir, arguments.device, arguments.worker_id, tell)
    if arguments.model:
        maker.preload(arguments.model)
    maker.run()


if __name__ == "__main__":
    main()

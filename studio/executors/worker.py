"""The process that makes videos: ``python -m studio.executors.worker --data-dir DIR --device auto --worker-id NAME``.

Its standard input carries orders, one JSON object a line (see ``VideoMaker.obey``), and when that closes, which is when the studio stops it or
dies, it exits at once, even while torch is still being imported. Its standard output carries one JSON status a line; everything else goes to standard error, the log.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from core.compute import add_arguments, from_arguments

QUIET = 10
"""How far an import stands back, in steps of nice."""


def hear_parent() -> queue.SimpleQueue[dict[str, Any]]:
    """The studio's orders as they come; exit the moment standard input closes: the studio has stopped this worker, or has died."""
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in os.fdopen(os.dup(0)):
            orders.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, name="parent", daemon=True).start()
    return orders


def own_stdout() -> Any:
    """A function that writes one JSON line to the supervisor; whatever else prints goes to the log."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(status: dict[str, Any]) -> None:
        channel.write(json.dumps(status) + "\n")
        channel.flush()

    return tell


def import_quietly(module: str) -> None:
    """Import in a thread that others go before: torch takes seconds, in which the page of a studio that was just started is opened. What is made afterwards is not slowed."""

    def load() -> None:
        if sys.platform == "linux":  # elsewhere it would be a whole process's
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), QUIET)
        with contextlib.suppress(Exception):  # whoever imports it next learns of it
            importlib.import_module(module)

    thread = threading.Thread(target=load, name="import")
    thread.start()
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--worker-id", required=True)
    parser.add_argument("--model", help="load this one at the start")
    add_arguments(parser)
    arguments = parser.parse_args()
    tell = own_stdout()
    orders = hear_parent()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    import_quietly("studio.executors.maker")
    from .maker import VideoMaker

    maker = VideoMaker(arguments.data_dir, arguments.device, arguments.worker_id, tell, orders, from_arguments(arguments))
    if arguments.model:
        orders.put({"do": "preload", "model": arguments.model})
    maker.run()


if __name__ == "__main__":
    main()

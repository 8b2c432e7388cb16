"""The studio: ``python app.py`` and open the address it prints."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from core.compute import add_arguments, from_arguments

log = logging.getLogger("studio")

EXECUTORS = ("local", "zero")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Text to video in the browser, with Mira.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    on_spaces, on_zero_gpu = "SPACE_ID" in os.environ, os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if on_spaces else "127.0.0.1"), help="address to listen on; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)), help="port to listen on")
    parser.add_argument("--data-dir", type=Path, default=Path("workspace"), help="folder for all that you make: queue, videos, models")
    parser.add_argument("--model", default="mira-nano", help="the model that the form starts with: a name, a model folder or a Hub id")
    parser.add_argument("--executor", choices=EXECUTORS, default="zero" if on_zero_gpu else "local", help="where requests run: in worker processes, or inside the page's events (on ZeroGPU Spaces, where a GPU is lent by the call)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, or several as in cuda:0,cuda:1: a worker process for each")
    parser.add_argument("--dataset-dir", type=Path, action="append", default=[], help="a folder that datasets may be trained from; without one any, or where other machines can reach the page only those below --data-dir")
    add_arguments(parser)
    parser.add_argument("--mcp", action="store_true", help="also serve the API as MCP tools, at /gradio_api/mcp/")
    return parser.parse_args()


def log_to(folder: Path) -> None:
    """Log to the terminal and to a file that is kept short."""
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(folder / "studio.log", maxBytes=2**20, backupCount=3, encoding="utf-8")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[logging.StreamHandler(), file])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def require_port(host: str, port: int) -> None:
    """Exit in words when the address cannot be listened on."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = error.strerror.partition(" (while")[0]
        sys.exit(f"{host}:{port} cannot be listened on: {reason}. Is another program there? Give another --port.")


def dataset_roots(args: argparse.Namespace) -> list[Path]:
    """Where datasets may be: anywhere for someone at this machine, who may read its files anyway."""
    own = args.data_dir / "datasets"
    return [own, *args.dataset_dir] if args.dataset_dir or not is_private(args) else []


def is_private(args: argparse.Namespace) -> bool:
    """Whether only this machine can reach the page."""
    return args.host in ("127.0.0.1", "localhost", "::1")


def main() -> None:
    args = arguments()
    try:
        compute = from_arguments(args)
    except ValueError as error:
        sys.exit(str(error))
    require_port(args.host, args.port)
    data_dir = args.data_dir.resolve()
    log_to(data_dir / "logs")
    os.environ["GRADIO_TEMP_DIR"] = str(data_dir / "tmp" / "gradio")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())

    from studio.db import StorageError
    from studio.services import Services

    try:
        services = Services.open(data_dir, executor=args.executor, default_model=args.model, device=args.device, start_worker=False, dataset_roots=dataset_roots(args), any_model=is_private(args), compute=compute)
    except StorageError as error:
        sys.exit(str(error))
    try:
        from studio import ui

        demo = ui.build(services)
        if services.executor.inside_events:
            services.executor.start()  # before the page: ZeroGPU lays weights ready when it is launched
        demo.launch(
            server_name=args.host,
            server_port=args.port,
            allowed_paths=[str(services.library.videos_dir), str(services.library.trash_dir), str(data_dir / "previews"), str(services.exports), str(services.sources), str(services.runs.folder)],
            max_file_size="100mb",
            show_error=True,
            mcp_server=args.mcp,
            quiet=True,
            app_kwargs=ui.serving(services, demo),
            prevent_thread_lock=True,
            _frontend=False,  # or Gradio gives the page 3 seconds to come, and on a busy machine the studio would end with "please set share=True"
            **ui.launch_options(),
        )
        if not services.executor.inside_events:
            services.executor.start()  # not before: the page comes first, and torch takes a while to import
        log.info("The studio is at %s (data in %s)", demo.local_url, data_dir)
        stop.wait()
        demo.close()
    finally:
        services.close()


if __name__ == "__main__":
    main()

"""``app.py`` as on a ZeroGPU Space: with the package ``spaces`` itself, which asks a lender for GPUs. Here that lends what there is, the CPU.

Left out is only how the lent process opens its GPU and moves the weights there. What the lender was asked goes to the file LENT_TO, a JSON list a line; while the file beside it that
ends in ``.none`` exists, it has nothing to lend.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

ROOT = Path(__file__).resolve().parents[1]


class Lender(BaseHTTPRequestHandler):
    """Answers as ZeroGPU's own address on a Space does (spaces/zero/api.py)."""

    asked = Path(os.environ["LENT_TO"])

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        with self.asked.open("a") as file:
            print(json.dumps([address.path, dict(parse_qsl(address.query))]), file=file)
        refused = address.path == "/schedule" and self.asked.with_suffix(".none").exists()
        body = json.dumps({"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "none", "allowToken": "lent"}).encode()
        self.send_response(503 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Lender)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {"SYSTEM": "spaces", "SPACE_ID": "me/mira", "SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}"}
    sys.path[0] = str(ROOT)
    import spaces.zero.torch

    spaces.zero.torch.init = lambda uuid: None
    spaces.zero.torch.move = lambda callback: None
    import app

    app.main()


if __name__ == "__main__":
    main()

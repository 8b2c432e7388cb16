"""Use a running studio from another program: python examples/client.py "A big red ball bounces over a meadow." """

from __future__ import annotations

import argparse
import time

from gradio_client import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="+", help="what the videos show")
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="address of the studio")
    parser.add_argument("--seed", type=int, help="seed of the first video; the next one has the next seed")
    arguments = parser.parse_args()
    studio = Client(arguments.url, verbose=False)

    ids = []
    for index, prompt in enumerate(arguments.prompts):
        request = {"prompt": prompt} if arguments.seed is None else {"prompt": prompt, "seed": arguments.seed + index}
        ids.append(studio.predict(request, api_name="/enqueue")["id"])

    for id, prompt in zip(ids, arguments.prompts):
        while (status := studio.predict(id, api_name="/status"))["state"] in ("waiting", "running", "paused"):
            time.sleep(0.5)
        print(f"{prompt}  {status['video'] or status['state'] + ': ' + (status['error'] or '')}")


if __name__ == "__main__":
    main()

"""What tests of the page share: another user at its endpoints, a row of the queue, and what a hand drags and drops."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Locator, Page
from studio_app import PATIENCE

LONG = 1000
"""Steps of a request that is still running when something is done to it."""


class Api:
    """The studio's named endpoints: another user at work beside the page."""

    def __init__(self, url: str):
        self.url = url

    def call(self, name: str, *data: Any) -> Any:
        return httpx.post(f"{self.url}/gradio_api/run/{name}", json={"data": list(data)}, timeout=PATIENCE).raise_for_status().json()["data"][0]

    def enqueue(self, prompt: str, **settings: Any) -> str:
        """Queue a clip of the smallest kind."""
        small = {"height": 32, "width": 32, "num_frames": 4, "num_inference_steps": 2, "seed": 1}
        return self.call("enqueue", {**small, "prompt": prompt, **settings})["id"]

    def finish(self, id: str) -> str:
        """The state in which a request ended."""
        deadline = time.monotonic() + PATIENCE
        while (status := self.call("status", id))["state"] in ("waiting", "running"):
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        return status["state"]


def job(page: Page, prompt: str, state: str) -> Locator:
    """The row of the queue with that prompt, once it is in that state."""
    return page.locator(f".job.{state}").filter(has_text=prompt)


def unfold(page: Page, name: str) -> None:
    """Open an accordion, and wait until nothing more is drawn: Gradio may lose what is typed before, which takes a machine and not a hand."""
    button = page.get_by_role("button", name=name)
    button.click()
    button.evaluate("""(button) => new Promise((calm) => {
        const rest = () => setTimeout(() => { watcher.disconnect(); calm(); }, 300);
        let waiting = rest();
        const watcher = new MutationObserver(() => { clearTimeout(waiting); waiting = rest(); });
        watcher.observe(button.closest(".block"), { childList: true, subtree: true });
    })""")


def drag(moved: Locator, other: Locator, side: str) -> None:
    """Drag a row to above or below another one."""
    box = other.bounding_box()
    moved.drag_to(other, target_position={"x": box["width"] / 2, "y": box["height"] * (0.2 if side == "above" else 0.8)})


def drop(page: Page, *paths: Path) -> None:
    """Drop files on the middle of the page, as from a file manager."""
    page.evaluate(
        """(files) => {
            const data = new DataTransfer();
            for (const [name, bytes] of files) data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name));
            for (const type of ["dragover", "drop"]) document.querySelector("#viewer").dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths],
    )

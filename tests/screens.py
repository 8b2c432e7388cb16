"""Pictures of every tab, at the width of a desk and of a phone: ``python tests/screens.py``, two minutes, writes docs/screens/ and docs/screens.md.

The studio runs on a data folder of its own, or on ``--data-dir`` to show what is there (a training run, say), and makes a few videos first.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from studio_app import StudioApp, chromium  # noqa: E402

TABS = ("Generate", "Compare", "Gallery", "Training", "Models", "System")
SIZES = {1440: 900, 390: 844}
PROMPTS = ("A big red ball bounces over a meadow.", "A small yellow box passes behind a wall over a desert.", "A big blue star rises over the sea.", "A big green triangle moves right over the night.")
WAITING = ("A big purple star falls over a meadow.", "A small pink ball moves left over the sea.")
SETTLES = 2500
"""Milliseconds after which nothing moves in."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/screens.py", description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="the studio's data folder; a new one by default")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screens")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        app = StudioApp((args.data_dir or Path(folder) / "data").resolve(), "mira-nano")
        app.start()
        try:
            for seed, prompt in enumerate(PROMPTS):
                app.call("generate", {"prompt": prompt, "seed": seed}, 300)
            app.call("pause")
            for seed, prompt in enumerate(WAITING):
                app.call("enqueue", {"prompt": prompt, "seed": seed})
            take(app.url, args.out)
        finally:
            app.end()
    lines = [f"| {tab} | ![{tab}, wide](screens/{tab.lower()}-1440.webp) | ![{tab}, on a phone](screens/{tab.lower()}-390.webp) |" for tab in TABS]
    (args.out.parent / "screens.md").write_text("# The studio's tabs\n\nWritten by `python tests/screens.py`; `--data-dir` shows what is in a data folder, such as a training run.\n\n| tab | at a desk | on a phone |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    return 0


def take(url: str, out: Path) -> None:
    """A WebP of each tab and size, of what can be seen without scrolling at a desk, and of the whole page on a phone."""
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        for width, height in SIZES.items():
            context = browser.new_context(viewport={"width": width, "height": height})
            context.add_init_script("localStorage.setItem('studio.tour', 'done')")
            page = context.new_page()
            page.goto(url)
            page.wait_for_selector("#queue h2")
            for tab in TABS:
                go_to(page, tab)
                if tab == "Compare":
                    page.locator("[data-action=compare-newest]").first.click()
                page.wait_for_timeout(SETTLES)
                too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                if too_wide:
                    raise AssertionError(f"{tab} at {width} pixels is {too_wide} pixels too wide")
                picture = Image.open(io.BytesIO(page.screenshot(full_page=width < 500)))
                picture.convert("RGB").save(out / f"{tab.lower()}-{width}.webp", "WEBP", quality=85, method=6)
            context.close()
        browser.close()


def go_to(page: Page, tab: str) -> None:
    """Open a tab, from the menu of those that find no room where it is in that."""
    button = page.get_by_role("tab", name=tab, exact=True)
    if button.count() and button.first.is_visible():
        button.first.click()
        return
    page.locator(".overflow-menu > button").first.click()
    page.locator(".overflow-dropdown").get_by_text(tab, exact=True).click()


if __name__ == "__main__":
    raise SystemExit(main())

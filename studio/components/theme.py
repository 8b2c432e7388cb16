"""How the studio looks: one neutral theme, one accent, and the style sheet and script under assets/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def launch_options() -> dict[str, Any]:
    """What ``Blocks.launch`` is given for the look of the page."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_sm,
        text_size=gr.themes.sizes.text_sm,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    script = (ASSETS / "studio.js").read_text()
    return {"theme": theme, "css": (ASSETS / "studio.css").read_text(), "head": f"<script>{script}</script>", "footer_links": ["api"]}

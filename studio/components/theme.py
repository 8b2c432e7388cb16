"""How the studio looks: Gradio's theme in our colours, our style sheet and our script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

ASSETS = Path(__file__).resolve().parents[2] / "assets"
ACCENT = gr.themes.Color(
    name="studio", c50="#eef4ff", c100="#dbe6ff", c200="#bed2ff", c300="#91b3ff", c400="#6490fb", c500="#3f6cf0", c600="#2f55d4", c700="#2644ab", c800="#223a87", c900="#1f336b", c950="#151f42",
)  # fmt: skip
SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Neutral greys and one accent; fonts of the system, so that nothing is fetched."""
    neutral = gr.themes.colors.zinc
    return gr.themes.Base(primary_hue=ACCENT, secondary_hue=neutral, neutral_hue=neutral, spacing_size="sm", radius_size="md", text_size="md", font=SANS, font_mono=MONO).set(
        body_background_fill="#f6f6f7",
        body_background_fill_dark="#111113",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#18181b",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_info_text_color="#62626b",
        block_title_text_color="#62626b",
        block_title_text_color_dark="#a0a0aa",
        block_info_text_color_dark="#a0a0aa",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1f1f23",
        input_border_width="1px",
        input_border_color="#d4d4da",
        input_border_color_dark="#3a3a42",
        input_placeholder_color="#76767f",
        input_placeholder_color_dark="#8a8a94",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_large_text_weight="600",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
    )


def launch_options() -> dict[str, Any]:
    """What ``Blocks.launch`` takes to make the page look and behave like the studio."""
    script = (ASSETS / "studio.js").read_text(encoding="utf-8")
    return {
        "theme": theme(),
        "css_paths": [ASSETS / "studio.css"],
        "head": f"<script>\n{script}\n</script>",
        "favicon_path": str(ASSETS / "favicon.svg"),
        "footer_links": ["api"],
        "ssr_mode": False,
    }

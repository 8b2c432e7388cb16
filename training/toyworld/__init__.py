"""Toy World: procedural captioned clips whose every attribute is known."""

from .captions import VOCABULARY, captions, example_prompts, parse_caption
from .detector import Detection, detect, score
from .render import render
from .scene import BACKGROUNDS, CAMERAS, COLORS, HELD_OUT_PAIRS, MOTIONS, SHAPES, SIZES, ClipSpec, sample_spec

__all__ = [
    "BACKGROUNDS",
    "CAMERAS",
    "COLORS",
    "HELD_OUT_PAIRS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "VOCABULARY",
    "ClipSpec",
    "Detection",
    "captions",
    "detect",
    "example_prompts",
    "parse_caption",
    "render",
    "sample_spec",
    "score",
]

"""Captions of a clip, in MiraData's columns."""

from __future__ import annotations

import re

import numpy as np

from .scene import BACKGROUNDS, CAMERAS, COLORS, HELD_OUT_PAIRS, MOTIONS, SHAPES, SIZES, ClipSpec, sample_spec

STYLE = "flat paper cut-out animation"

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "big": ("big", "huge", "large"),
    "ball": ("ball", "circle", "round ball"),
    "box": ("box", "square", "block"),
    "star": ("star", "five-pointed star"),
    "triangle": ("triangle", "pointed triangle"),
    "a meadow": ("a meadow", "a green meadow", "the grass"),
    "a desert": ("a desert", "a sandy desert", "the dunes"),
    "the sea": ("the sea", "the blue water", "the ocean"),
    "the night": ("the night", "a dark night", "the night sky"),
    "moves left": ("moves left", "slides to the left", "travels from right to left"),
    "moves right": ("moves right", "slides to the right", "travels from left to right"),
    "rises": ("rises", "floats up", "goes up"),
    "falls": ("falls", "drops down", "goes down"),
    "bounces": ("bounces", "jumps up and down", "hops on the ground"),
    "circles": ("circles", "goes round in a circle", "orbits a point"),
    "stays still": ("stays still", "does not move", "rests in place"),
    "passes behind a wall": ("passes behind a wall", "hides behind a grey wall and comes out", "slides behind a wall and appears again"),
    "leaves and returns": ("leaves and returns", "goes out of view and comes back", "disappears at the side and returns"),
    "pans left": ("The camera pans left.", "The view turns left.", "The camera swings to the left."),
    "pans right": ("The camera pans right.", "The view turns right.", "The camera swings to the right."),
    "zooms in": ("The camera zooms in.", "The view moves closer.", "The camera comes nearer."),
}
_HITS = ("hits {other}", "bumps into {other}", "runs into {other} and pushes it away")

_DENSE = (
    "{obj} {motion} over {bg}. {camera}",
    "Over {bg}, {obj} {motion}. {camera}",
    "We see {bg}. There {obj} {motion}. {camera}",
    "In this clip {obj} {motion}, with {bg} behind it. {camera}",
    "{camera} {obj} {motion} in front of {bg}.",
    "A paper cut-out scene of {bg}: {obj} {motion}. {camera}",
    "{obj} is the main thing to see; it {motion}. The background is {bg}. {camera}",
)


def _noun(size: str, color: str, shape: str) -> str:
    return f"a {size} {color} {shape}"


def captions(spec: ClipSpec, rng: np.random.Generator) -> dict[str, str]:
    """MiraData's six caption columns for a clip; the short one as Toy World's page fixes it, the dense one in other words."""
    pick = lambda word: str(rng.choice(_SYNONYMS[word]))  # noqa: E731
    camera = f"The camera {spec.camera}." if spec.camera != "still" else ""
    if spec.motion == "hits":
        other = _noun(spec.second_size, spec.second_color, spec.second_shape)
        motion = f"hits {other}"
        dense_motion = str(rng.choice(_HITS)).format(other=_noun(pick(spec.second_size), spec.second_color, pick(spec.second_shape)))
    else:
        motion, dense_motion = spec.motion, pick(spec.motion)
    short = f"A {spec.size} {spec.color} {spec.shape} {motion} over {spec.background}. {camera}".strip()
    obj = _noun(pick(spec.size), spec.color, pick(spec.shape))
    background = pick(spec.background)
    dense_camera = pick(spec.camera) if camera else str(rng.choice(("", "", "The camera does not move.")))
    dense = re.sub(r"\s+", " ", str(rng.choice(_DENSE)).format(obj=obj, motion=dense_motion, bg=background, camera=dense_camera)).strip()
    return {
        "short_caption": short,
        "dense_caption": dense[0].upper() + dense[1:],
        "main_object_caption": f"{_noun(spec.size, spec.color, spec.shape).capitalize()} that {motion}.",
        "background_caption": f"{spec.background.capitalize()} with a sky, hills and ground.",
        "style_caption": STYLE,
        "camera_caption": camera or "The camera does not move.",
    }


_OBJECT = re.compile(rf"\ba ({'|'.join(w for size in SIZES for w in _SYNONYMS[size])}) ({'|'.join(COLORS)}) ({'|'.join(w for shape in SHAPES for w in _SYNONYMS[shape])})\b", re.IGNORECASE)


def object_spans(text: str) -> list[tuple[int, int]]:
    """Where in a caption, short or dense, the words of its objects' sizes, colours and shapes begin and end: the main object's first."""
    return [(match.start(1), match.end()) for match in _OBJECT.finditer(text)]


_CAMERA = re.compile("|".join(re.escape(words) for camera in CAMERAS[1:] for words in _SYNONYMS[camera]), re.IGNORECASE)
_DIRECTION = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def direction_spans(text: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where in a caption, short or dense, the words "left" and "right" are: those that say how the object moves, and those that say how the camera does."""
    camera = [match.span() for match in _CAMERA.finditer(text)]
    spans: tuple[list, list] = [], []
    for match in _DIRECTION.finditer(text):
        spans[any(start <= match.start() < end for start, end in camera)].append(match.span())
    return spans


_SHORT = re.compile(
    rf"^a (?P<size>{'|'.join(SIZES)}) (?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)}) "
    rf"(?:(?P<motion>{'|'.join(m for m in MOTIONS if m != 'hits')})|hits a (?P<second_size>{'|'.join(SIZES)}) (?P<second_color>{'|'.join(COLORS)}) (?P<second_shape>{'|'.join(SHAPES)})) "
    rf"over (?P<background>{'|'.join(BACKGROUNDS)})\.?(?: the camera (?P<camera>{'|'.join(c for c in CAMERAS if c != 'still')})\.?)?$"
)


def parse_caption(text: str) -> dict[str, str | None] | None:
    """The attributes that a short caption names, or None when it isn't one."""
    match = _SHORT.match(re.sub(r"\s+", " ", text.strip().lower()))
    if match is None:
        return None
    found = match.groupdict()
    found["motion"] = found["motion"] or "hits"
    found["camera"] = found["camera"] or "still"
    return found


def camera_of(text: str) -> str:
    """What the camera does in a caption, short or dense."""
    return next((camera for camera in CAMERAS[1:] if any(words.lower() in text.lower() for words in _SYNONYMS[camera])), "still")


def _words() -> list[str]:
    texts = [t for values in _SYNONYMS.values() for t in values] + list(_HITS) + list(_DENSE) + [STYLE]
    texts += ["A The camera does not move over that with a sky, hills and ground.", *COLORS, *SHAPES, *SIZES, *MOTIONS, *BACKGROUNDS]
    plain = re.sub(r"\{\w+\}", " ", " ".join(texts)).lower()
    return sorted(set(re.findall(r"[a-z]+", plain)))


VOCABULARY: list[str] = _words()
"""Every word that a caption can contain, lower case."""


def example_prompts(rng: np.random.Generator, count: int) -> list[str]:
    """``count`` short captions of drawn clips; held-out pairs may be among them: the model can make those too."""
    return [captions(sample_spec(rng, held_out=bool(HELD_OUT_PAIRS) and rng.random() < 0.1), rng)["short_caption"] for _ in range(count)]

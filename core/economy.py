"""Making a clip with less memory than usual: what can be spared, and in which order it is when memory runs out. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .types import GenerationRequest

DECODE_CHUNKS = (10, 4, 1)
"""Frames decoded at once, when a whole clip does not fit: Mira's own number first."""


class OutOfMemory(MemoryError):
    """There was not enough memory even with all that can be spared; ``tried`` says with what."""

    def __init__(self, what: str, tried: Economy):
        super().__init__(what)
        self.tried = tried


@dataclass(frozen=True)
class Economy:
    """What one clip is spared. The defaults spare nothing."""

    text_on_cpu: bool = False
    """The text encoder works in main memory."""
    unload_text: bool = False
    """The text encoder leaves memory once the prompt is read."""
    turns_on: str | None = None
    """The transformer and the VAE wait in main memory and come to this device in turns."""
    one_at_a_time: bool = False
    """Guidance's two predictions are made one after the other, in half the memory."""
    decode_chunk_frames: int | None = None
    """The clip is decoded in chunks of so many frames, which leaves seams."""

    @classmethod
    def asked(cls, request: GenerationRequest) -> Economy:
        """What the request itself wants spared."""
        return cls(text_on_cpu=request.text_placement == "cpu", unload_text=request.text_placement == "unload")

    @property
    def words(self) -> list[str]:
        """What is spared, as a person reads it."""
        chunk = self.decode_chunk_frames
        said = {
            "the text encoder on the CPU": self.text_on_cpu,
            "the text encoder unloaded after use": self.unload_text,
            "transformer and VAE on the device in turns": self.turns_on,
            "guidance in two passes": self.one_at_a_time,
            "decoding frame by frame" if chunk == 1 else f"decoding {chunk} frames at a time": chunk,
        }
        return [words for words, holds in said.items() if holds]

    def told(self, request: GenerationRequest) -> dict[str, str]:
        """What is spared beyond what the request asked for, as one more entry of ``made_with``; empty where nothing is."""
        asked = Economy.asked(request).words
        words = [words for words in self.words if words not in asked]
        return {"memory": ", ".join(words)} if words else {}

    def more(self, stage: str, request: GenerationRequest, device: str, text_loaded: bool) -> Economy | None:
        """The next rung once memory ran out in ``stage`` ('text', 'denoise' or 'decode') on ``device``; None at the end of the ladder.

        What only costs time comes before what changes the frames by rounding, and that before what leaves seams.
        """
        on_cpu = device == "cpu"
        if stage == "text" and not on_cpu and not self.text_on_cpu:
            return dataclasses.replace(self, text_on_cpu=True)
        if stage != "text" and text_loaded and not self.unload_text:
            return dataclasses.replace(self, unload_text=True)
        if not on_cpu and self.turns_on is None:
            return dataclasses.replace(self, turns_on=device)
        if stage == "denoise" and request.guidance_scale != 1 and not self.one_at_a_time:
            return dataclasses.replace(self, one_at_a_time=True)
        if stage == "decode":
            now = self.decode_chunk_frames or request.decode_chunk_frames or request.num_frames
            smaller = next((frames for frames in DECODE_CHUNKS if frames < now), None)
            return smaller and dataclasses.replace(self, decode_chunk_frames=smaller)
        return None

    def after_deaths(self, deaths: int, request: GenerationRequest) -> Economy:
        """What to spare once ``deaths`` workers died in the middle of ``request``, as the system kills what takes too much of its memory and tells no stage.

        After the first one what changes no pixel; after more of them also a rung of every stage, as the alternative is to fail.
        """
        spared = dataclasses.replace(self, unload_text=True) if deaths else self
        for stage in ("denoise", "decode") if deaths > 1 else ():
            spared = spared.more(stage, request, "cpu", text_loaded=False) or spared
        return spared

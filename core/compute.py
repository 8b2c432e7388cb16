"""How the machine is used for a video, beside device and dtype: one list for ``app.py``, its workers and ``python -m core.generate``. No torch here."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

ATTENTION = ("sdpa", "xformers")
TEXT_ENCODER = ("with-model", "cpu", "cpu-8bit")


@dataclass(frozen=True)
class Compute:
    """The defaults are what is right without being asked."""

    attention: str = "sdpa"
    """What computes attention: torch's own kernels (flash, cuDNN or the CPU's), or xformers' on CUDA."""
    compile: bool = False
    """Compile the transformer's blocks with torch.compile: minutes once, then faster steps where kernels are many and small. Changes frames by rounding."""
    gpus_per_video: int = 1
    """Processes that make each video together, with a GPU each: the two halves of guidance apart, and their frames and patches in parts."""
    text_encoder: str = "with-model"
    """Where the text encoder works: on the model's device in the model's dtype, on the CPU (in bf16), or there in 8 bits, which takes half of that and changes embeddings a little."""

    def __post_init__(self) -> None:
        if self.gpus_per_video < 1:
            raise ValueError(f"--gpus-per-video is {self.gpus_per_video}; it must be at least 1.")

    def arguments(self) -> list[str]:
        """On a command line whose parser ``add_arguments`` prepared; what is left at its default is left out."""
        said = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                flag = f"--{field.name.replace('_', '-')}"
                said += [flag] if value is True else [flag, str(value)]
        return said

    @property
    def words(self) -> str:
        """For the System page."""
        extra = {"compiled": self.compile, f"{self.gpus_per_video} processes a video": self.gpus_per_video > 1, f"text encoder {self.text_encoder}": self.text_encoder != "with-model"}
        return ", ".join([f"{self.attention} attention", *(words for words, holds in extra.items() if holds)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of Compute."""
    parser.add_argument("--attention", choices=ATTENTION, default=Compute.attention, help="what computes attention: torch's own kernels, or xformers' on CUDA")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks: minutes once, then faster steps on a GPU; changes frames by rounding")
    parser.add_argument("--gpus-per-video", type=int, default=Compute.gpus_per_video, metavar="N", help="processes that make each video together, a GPU each: the two halves of guidance apart, and their frames and patches in parts")
    parser.add_argument("--text-encoder", choices=TEXT_ENCODER, default=Compute.text_encoder, help="where the text encoder works: on the model's device, on the CPU in bf16, or there in 8 bits")


def from_arguments(arguments: argparse.Namespace) -> Compute:
    """What was said on a command line. Raises ValueError."""
    return Compute(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Compute)})

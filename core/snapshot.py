"""A denoising that was stopped between two steps: all that the rest of it depends on, in memory and in a file."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .files import replacing
from .types import RequestError

if TYPE_CHECKING:
    from .schedulers import Sampler
    from .step_cache import StepCache

Generators = torch.Generator | Sequence[torch.Generator] | None


class SnapshotError(RuntimeError):
    """A snapshot's file is not there, not whole, or of something else; the denoising has to start from the beginning."""


@dataclass(frozen=True)
class Snapshot:
    """What ``MiraPipeline`` goes on from. A loop that carries more from step to step has to keep that here too."""

    step: int
    """Model evaluations that are done."""
    state: Tensor
    """The solver's ``[B, C, T, h, w]``."""
    noise: Tensor
    """x_T of unit variance, which kept frames are noised by."""
    start_latents: Tensor | None
    """What the clip starts from ``[B, C, T', h, w]``."""
    context: Tensor
    """The text ``[B or 2 B, L, D]`` in the transformer's dtype."""
    solver: dict[str, Any]
    """``Sampler.history``."""
    generators: list[Tensor]
    """The state of every generator."""
    cache: dict[str, Any] | None
    """``StepCache.history``, where steps are spared."""
    arguments: dict[str, Any]
    """Of the call, by name: those that the steps follow."""

    @classmethod
    def take(cls, step: int, state: Tensor, noise: Tensor, start_latents: Tensor | None, context: Tensor, solver: Sampler, generators: Generators, cache: StepCache | None, arguments: dict[str, Any]) -> Snapshot:
        """As things stand; later steps do not change it."""
        return cls(step, state.clone(), noise, start_latents, context, solver.history(), [generator.get_state() for generator in _each(generators)], None if cache is None else cache.history(), arguments)

    @property
    def num_bytes(self) -> int:
        """What its file takes, or a little more: of the solver's history there are a few tensors like the state."""
        tensors = [value for value in (*vars(self).values(), *(self.cache or {}).values()) if isinstance(value, Tensor)]
        return 2**20 + sum(value.nbytes for value in tensors) + 4 * self.state.nbytes

    def restore(self, solver: Sampler, generators: Generators, cache: StepCache | None) -> None:
        """Put what was made as it was at first where it was."""
        solver.restore(self.solver)
        for generator, state in zip(_each(generators), self.generators, strict=True):
            generator.set_state(state)
        if cache is not None and self.cache is not None:
            cache.restore(self.cache)

    def checked(self, shape: tuple[int, ...], arguments: dict[str, Any]) -> Snapshot:
        """Itself. Raises RequestError when it is of a clip of another ``shape``, or of a call with other ``arguments``, whose steps are not those that it was taken between."""
        if self.state.shape != shape:
            raise RequestError("resume", f"The snapshot is of latents {tuple(self.state.shape)}; this request has {shape}. Resume with the request that it was taken from.")
        for name, value in self.arguments.items():
            if arguments[name] != value:
                raise RequestError("resume", f"The snapshot was taken with {name} {value!r}; this request has {arguments[name]!r}. Resume with the request that it was taken from, or begin anew.")
        return self

    def to(self, device: torch.device) -> Snapshot:
        """Its tensors on ``device``; what the solver keeps on the CPU stays there, what it has on an accelerator goes from one to another."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **moved, solver=_between_accelerators(self.solver, device))

    def save(self, path: str | Path, of: str, notes: dict[str, Any] | None = None) -> None:
        """Write it, whole or not at all, with ``of``, what it belongs to, and ``notes``, plain values to have back. Raises WriteError."""
        with replacing(path) as part:
            torch.save({"of": of, "notes": notes or {}, **vars(self)}, part)

    @classmethod
    def load(cls, path: str | Path, of: str, device: torch.device | str) -> tuple[Snapshot, dict[str, Any]]:
        """The one in ``path``, and its notes, if it belongs to ``of``; what was on an accelerator comes to ``device``. Raises SnapshotError."""
        try:
            found = torch.load(path, weights_only=True, map_location=lambda storage, place: storage if place == "cpu" else storage.to(device=torch.device(device)))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise SnapshotError(f"{path} cannot be read: {error}") from error
        if found.pop("of", None) != of or "arguments" not in found:  # which older versions did not keep
            raise SnapshotError(f"{path} is of another request, model or version.")
        notes = found.pop("notes")
        return cls(**found), notes


def _between_accelerators(value: Any, device: torch.device | str) -> Any:
    """``value``, with the tensors in it that are on an accelerator on ``device``, if that is one."""
    if isinstance(value, dict):
        return {name: _between_accelerators(each, device) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_between_accelerators(each, device) for each in value)
    moves = isinstance(value, Tensor) and value.device.type != "cpu" and torch.device(device).type != "cpu"
    return value.to(device) if moves else value


def _each(generators: Generators) -> list[torch.Generator]:
    return [generators] if isinstance(generators, torch.Generator) else list(generators or ())

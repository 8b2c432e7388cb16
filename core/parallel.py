"""Several processes make one video: the two halves of guidance apart, and each half's tokens in parts.

Dynamic sequence parallelism (Zhao et al. 2024, arXiv:2403.10266): spatial blocks look within a frame, so each process has some frames; temporal
blocks look along time, so each has some patches of all frames; one all-to-all leads from one to the other. Everything else (text, noise, the sampler)
is the same in all of them, so that all are at the same latents after every step.

The process that was asked for the video leads. Its helpers are child processes, ``python -m core.parallel``, that load the same model; what they are to
join in comes through their standard input, and when that closes they exit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .device import ResourceError
from .types import GenerationCancelled, GenerationError, RequestError

if TYPE_CHECKING:
    from .pipeline import MiraPipeline
    from .snapshot import Snapshot

log = logging.getLogger(__name__)

TIMEOUT = datetime.timedelta(minutes=10)
"""After which a process that does not answer is given up."""


class CrewStopped(Exception):
    """The leader does not go on with this video."""


class Sequence:
    """The tokens of a forward in parts, one for each process of ``group``; this one is number ``rank`` of ``size``."""

    def __init__(self, group: dist.ProcessGroup):
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)

    def parts(self, count: int) -> list[int]:
        """How many of ``count`` things each process has: as even as can be."""
        return [len(part) for part in torch.arange(count).tensor_split(self.size)]

    def own(self, values: Tensor, dim: int) -> Tensor:
        """This process's part of what all of them have."""
        return values.tensor_split(self.size, dim)[self.rank]

    def to_patches(self, tokens: Tensor, num_frames: int, patches: list[int]) -> Tensor:
        """B t N D of some frames -> B T n D of some patches, ``patches[r]`` of them in process r."""
        pieces = self._swap(tokens.split(patches, 2), [(frames, patches[self.rank]) for frames in self.parts(num_frames)])
        return torch.cat(pieces, 1)

    def to_frames(self, tokens: Tensor, patches: list[int]) -> Tensor:
        """The way back."""
        frames = self.parts(tokens.shape[1])
        return torch.cat(self._swap(tokens.split(frames, 1), [(frames[self.rank], count) for count in patches]), 2)

    def gather(self, own: Tensor, count: int, dim: int) -> Tensor:
        """All parts along ``dim``, ``count`` long in all, in every process."""
        shapes = [(*own.shape[:dim], part, *own.shape[dim + 1 :]) for part in self.parts(count)]
        wholes = [own.contiguous() if rank == self.rank else own.new_empty(shape) for rank, shape in enumerate(shapes)]
        for rank, part in enumerate(wholes):
            dist.broadcast(part, dist.get_global_rank(self.group, rank), self.group)
        return torch.cat(wholes, dim)

    def _swap(self, pieces: tuple[Tensor, ...], wanted: list[tuple[int, int]]) -> list[Tensor]:
        """Give piece r [B, t, n, D] to process r, and get one of ``wanted[r]`` = (frames, patches) of it."""
        batch, _, _, dim = pieces[0].shape
        sizes = [batch * frames * patches * dim for frames, patches in wanted]
        received = pieces[0].new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat([piece.reshape(-1) for piece in pieces]), sizes, [piece.numel() for piece in pieces], self.group)
        return [part.view(batch, *shape, dim) for part, shape in zip(received.split(sizes), wanted)]


class Crew:
    """The processes of one video, seen from number ``rank`` of ``size``. All of them make one, in the same order.

    With guidance and an even number, each half of them makes one of the two predictions.
    """

    def __init__(self, rank: int, size: int, address: str, device: torch.device):
        self.rank, self.size, self.helpers = rank, size, []
        with _standard_output_to_error():  # gloo tells of its connections
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=TIMEOUT)
            half = size // 2
            self._everyone, self._control = dist.group.WORLD, dist.new_group(backend="gloo")
            self._halves = [dist.new_group(range(half)), dist.new_group(range(half, size))] if size % 2 == 0 else []
            pairs = [dist.new_group([rank, rank + half]) for rank in range(half)] if self._halves else []
            self._pair = pairs[rank % half] if pairs else None
        self.branch: int | None = None
        """Which of guidance's two predictions this process makes; None where it makes both or there is but one."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @contextlib.contextmanager
    def denoising(self, pipe: MiraPipeline, snapshot: Snapshot, call: dict[str, Any], guided: bool) -> Iterator[None]:
        """Within it, all processes are at the steps after ``snapshot`` of a call with these arguments. Raises CrewStopped in helpers of a leader that raised."""
        self.branch = self.rank // (self.size // 2) if guided and self._halves else None
        group = self._everyone if self.branch is None else self._halves[self.branch]
        sequence = Sequence(group) if 1 < dist.get_world_size(group) <= _divisible(pipe, snapshot.noise.shape, call["window_frames"]) else None
        if sequence is not None and pipe.transformer.config.window_attn == "frame":
            raise RequestError("gpus_per_video", f"{pipe.model_name or 'This model'} looks at whole clips in its temporal blocks, so its tokens cannot be parted: it uses 2 processes a video, for the two halves of guidance, and no more ({self.size} were asked for, guidance is {'on' if guided else 'off'}).")
        if self.leads:
            for helper in self.helpers:
                with contextlib.suppress(OSError):  # it has ended, and the first exchange will say so
                    pickle.dump((str(pipe.model_name), str(pipe.data_dir), pipe.transformer.dtype, pipe.compute, pipe.weights, pipe.loras, pipe.economy, call | {"resume": snapshot.to("cpu")}), helper.stdin)
                    helper.stdin.flush()
        pipe.transformer.sequence = sequence
        try:
            yield
        except (GenerationCancelled, GenerationError):  # between two steps, and the second in all processes
            if self.leads:
                self._go_on(False)
            raise
        except CrewStopped:
            raise
        except BaseException as error:  # at any place: helpers may wait for a part that does not come
            if not self.leads:
                raise
            time.sleep(0.2)  # a connection is lost a little before a process has ended
            ended = any(helper.poll() is not None for helper in self.helpers)
            self.close(0)
            pipe.crew = None
            if ended:
                raise RuntimeError(f"One of the {self.size} processes that made this video has ended; its last words are in the log. Try again, or with fewer GPUs a video.") from error
            raise
        finally:
            pipe.transformer.sequence, self.branch = None, None

    def step(self) -> None:
        """Between two steps: whether the leader goes on. Raises CrewStopped in helpers when it does not."""
        if not self._go_on(True):
            raise CrewStopped

    def exchange(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Both predictions of guidance, of which each half of the processes has made one."""
        both = [torch.empty_like(prediction) for _ in range(2)]
        dist.all_gather(both, prediction.contiguous(), self._pair)
        return both[0], both[1]

    def close(self, patience: float = 10) -> None:
        """End the helpers, by force after ``patience`` seconds."""
        for helper in self.helpers:
            with contextlib.suppress(OSError):
                helper.stdin.close()
        for helper in self.helpers:
            try:
                helper.wait(patience)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()
        dist.destroy_process_group()

    def _go_on(self, going: bool) -> bool:
        flag = torch.tensor([going], dtype=torch.uint8)
        dist.broadcast(flag, 0, self._control)
        return bool(flag)


def _divisible(pipe: MiraPipeline, shape: torch.Size, window_frames: int | None) -> int:
    """In how many parts the tokens of a clip of latents [B, C, T, H, W] can go: in spatial blocks by frames, in temporal ones by patches or rows of windows."""
    frames, p, window = min(shape[2], window_frames or shape[2]), pipe.transformer.config.patch_size, pipe.transformer.config.window_attn
    rows, columns = (side // p for side in shape[-2:])
    return min(frames, rows // window[0] if isinstance(window, (tuple, list)) else rows * columns)


@contextlib.contextmanager
def _standard_output_to_error() -> Iterator[None]:
    """Also of what is not Python."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def form_crew(count: int, device: torch.device) -> Crew:
    """The leader's crew of ``count`` processes, whose helpers are started now. Raises ResourceError for more GPUs than there are."""
    there = torch.cuda.device_count()
    if device.type == "cuda" and count > there:
        raise ResourceError(f"{count} GPUs a video were asked for, and this machine has {there}. Ask for at most {there}.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    root = Path(__file__).resolve().parents[1]
    helpers = []
    for rank in range(1, count):
        place = f"cuda:{((device.index or 0) + rank) % there}" if device.type == "cuda" else str(device)
        command = [sys.executable, "-m", "core.parallel", "--rank", str(rank), "--size", str(count), "--address", address, "--device", place]
        helpers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}))
    crew = Crew(0, count, address, device)
    crew.helpers = helpers
    return crew


def help_along(crew: Crew, device: torch.device) -> None:
    """Join in every denoising that the leader tells of, until standard input closes."""
    from .checkpoints import load_pipeline

    pipe, loaded = None, None
    while True:
        try:
            model, data_dir, dtype, compute, weights, loras, economy, call = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if loaded != (model, dtype, compute):
            pipe, loaded = load_pipeline(model, device, dtype, text_encoder=False, data_dir=data_dir, compute=compute), (model, dtype, compute)
            pipe.set_progress_bar_config(disable=True)
        pipe.use_weights(weights)
        pipe.use_loras(loras)
        pipe.crew = crew
        pipe.spare(dataclasses.replace(economy, turns_on=economy.turns_on and str(device)))  # on its own GPU, not on the leader's
        batch_size, generators = len(call["resume"].noise), [torch.Generator() for _ in call["resume"].generators]
        try:
            pipe(prompt_embeds=torch.zeros(batch_size, 1, 1), generator=generators if len(generators) == batch_size else generators[0], output_type="latent", **call)
        except CrewStopped:
            log.info("the video was given up")
        except GenerationError:  # as in the leader, which says so, to the user and to this process
            with contextlib.suppress(CrewStopped):
                crew.step()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m core.parallel", description="A helper of a process that makes videos; started by it.")
    for name, kind in (("rank", int), ("size", int), ("address", str), ("device", torch.device)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)
    help_along(Crew(args.rank, args.size, args.address, args.device), args.device)


if __name__ == "__main__":
    main()

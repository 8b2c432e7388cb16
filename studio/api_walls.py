"""Endpoints for videos that are looked at together: grids, drafts and comparisons; and for the user's own presets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from core.presets import PRESETS
from core.types import GenerationRequest, RequestError

from .api_settings import Settings
from .comparison import MOST, Timeline, Work, parting
from .library import Video
from .services import Services
from .walls import Wall, parse_axis

WAIT_SECONDS = 0.1
"""Between two looks at what is measured or written."""


def endpoints(services: Services, read: Callable[[Settings], GenerationRequest]) -> tuple[Callable[..., Any], ...]:
    """The functions; ``read`` makes the request of what a client gives."""
    walls, queue = services.walls, services.queue

    def grid(request: Settings, axes: dict[str, str]) -> dict[str, Any]:
        """Queue a video for every combination of settings, to be looked at as a table; as wall tells.

        Args:
            request: Settings that all of them share, as for enqueue.
            axes: One to three settings that vary, each with its values: {"guidance_scale": "2..8:2", "prompt": "red, blue"}. Of a prompt the first value is what is replaced.
        """
        return wall(walls.enqueue_grid(read(request), [parse_axis(field, str(values)) for field, values in axes.items()]))

    def drafts(request: Settings, count: int = 8, steps: int = 6) -> dict[str, Any]:
        """Queue quick tries of a prompt from many seeds; as wall tells.

        Args:
            request: Settings of the full run, as for enqueue; the first draft has its seed.
            count: How many drafts.
            steps: Denoising steps of each, fewer than the full run's.
        """
        return wall(walls.enqueue_drafts(read(request), count, steps))

    def make_full(id: str, picked: list[str]) -> dict[str, list[str]]:
        """Queue drafts with all their steps, from the same initial noise.

        Args:
            id: The id that drafts gave.
            picked: Ids of requests among them.

        Returns:
            {"ids": [...]} of the new requests.
        """
        return {"ids": walls.enqueue_full(id, picked)}

    def wall(id: str) -> dict[str, Any]:
        """A grid or drafts: its axes, and how each of its requests stands, row after row.

        Args:
            id: What grid or drafts gave.
        """
        found = walls.require(id)
        return {"id": id, "axes": {axis.field: list(axis.values) for axis in found.axes}, "requests": _cells(found)}

    def _cells(found: Wall) -> list[dict[str, Any]]:
        jobs = [(id, queue.get(id)) for id in found.cells]
        return [{"id": id, "state": job.state if job else "removed", "video": job.video if job else None} for id, job in jobs]

    async def compare(ids: list[str]) -> dict[str, Any]:
        """How much two to four videos differ, frame by frame under one clock, and what is measured on each.

        Args:
            ids: The videos; each is compared with the first.

        Returns:
            fps and num_frames of the clock, differences (mean, of 0 to 1, for each video after the first), parts_at, the first frame at which any differs visibly, and measures of each video.
        """
        videos = _videos(ids)
        timeline = Timeline.of(videos)
        services.comparisons.forget_failures()
        series = await made(lambda: services.comparisons.differences(videos))
        measures = await made(lambda: services.comparisons.measures(videos))
        return {"fps": timeline.fps, "num_frames": timeline.num_frames, "differences": series, "parts_at": parting(series), "measures": measures}

    async def export_comparison(ids: list[str]) -> dict[str, str]:
        """Write two to four videos side by side, labelled with what differs.

        Args:
            ids: The videos, in their order.

        Returns:
            {"video": ...}, the path of the mp4.
        """
        videos = _videos(ids)
        services.comparisons.export(videos)
        return {"video": str(await made(lambda: services.comparisons.exported(videos)))}

    def _videos(ids: Sequence[str]) -> list[Video]:
        if not 2 <= len(ids) <= MOST or len(set(ids)) < len(ids):
            raise RequestError("ids", f"Two to {MOST} different videos are compared; these are {len(ids)}.")
        found = [(id, services.library.get(id)) for id in ids]
        for id, video in found:
            if video is None:
                raise RequestError("ids", f"There is no video {id!r}.")
        return [video for _, video in found]

    def list_presets() -> dict[str, Any]:
        """Presets by name: those of the models, which a request can name as "preset", and own ones, whose settings a request can take over."""
        models = {name: {"label": preset.label, "models": list(preset.models), "height": preset.height, "width": preset.width, "num_frames": preset.num_frames} for name, preset in PRESETS.items()}
        return {"models": models, "own": services.own_presets.to_dict()}

    def save_preset(name: str, request: Settings) -> dict[str, Any]:
        """Keep settings as a preset of your own, in the place of one of that name; as list_presets tells.

        Args:
            name: What it is called.
            request: The settings, as for enqueue; prompt and seed are not kept.
        """
        services.own_presets.save(name, read({"prompt": "any", **request}).resolved(services.data_dir))
        return list_presets()

    def delete_preset(name: str) -> dict[str, Any]:
        """Take a preset of your own away; as list_presets tells.

        Args:
            name: What it is called.
        """
        services.own_presets.delete(name)
        return list_presets()

    return grid, drafts, make_full, wall, compare, export_comparison, list_presets, save_preset, delete_preset


async def made(look: Callable[[], Work | None]) -> Any:
    """The result of work in the background, once it is there. Raises RequestError with its words where it failed."""
    while (work := look()) is None or not work.done:
        await asyncio.sleep(WAIT_SECONDS)
    if work.error:
        raise RequestError("ids", work.error)
    return work.result

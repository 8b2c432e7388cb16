"""Endpoints for files: videos as a zip, a gif or a plain copy, what a video's file tells, and files that are brought."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.types import GenerationRequest

from .api_settings import File, uploaded
from .api_walls import made
from .downloads import file_facts, write_gif, write_plain, write_zip
from .services import Services
from .tabs.form import request_in


def endpoints(services: Services) -> tuple[Callable[..., Any], ...]:
    """The functions. The files that they make lie in the data folder's ``exports`` until the studio starts anew."""
    library = services.library

    def zip_videos(ids: list[str], settings: bool = True) -> dict[str, str]:
        """Pack videos into one zip, under their prompts' names.

        Args:
            ids: The videos.
            settings: Whether the files keep the prompts and settings that are in them.

        Returns:
            {"file": ...}, the path of the zip.
        """
        return {"file": str(write_zip([library.require_file(id) for id in ids], services.exports, settings))}

    def gif(id: str) -> dict[str, str]:
        """Write a video as a gif that carries its settings.

        Args:
            id: The video's id.

        Returns:
            {"file": ...}, the path of the gif.
        """
        return {"file": str(write_gif(library.require_file(id), services.exports))}

    def plain_copy(id: str) -> dict[str, str]:
        """Copy a video without the prompt and settings that its file carries; the pictures are the same bits.

        Args:
            id: The video's id.

        Returns:
            {"file": ...}, the path of the mp4.
        """
        return {"file": str(write_plain(library.require_file(id), services.exports))}

    async def smooth_copy(id: str) -> dict[str, str]:
        """Copy a video with frames put in between, for smooth playback.

        Args:
            id: The video's id.

        Returns:
            {"file": ..., "made_with": ...}: the path of the mp4, and what put them in between.
        """
        video = library.require_file(id)
        services.comparisons.forget_failures()
        file, made_with = await made(lambda: services.comparisons.smoothed(video))
        return {"file": file, "made_with": made_with}

    async def details(id: str) -> dict[str, Any]:
        """All that is known of a video.

        Args:
            id: The video's id.

        Returns:
            facts, what its file tells, in words, and measures, what is measured on it: motion, flicker, sharpness ...
        """
        video = library.require_file(id)
        services.comparisons.forget_failures()
        (measures,) = await made(lambda: services.comparisons.measures([video]))
        return {"facts": dict(file_facts(video)), "measures": measures}

    def settings_in(file: File) -> dict[str, Any]:
        """The settings that a video, gif or png made here carries, for enqueue.

        Args:
            file: The file; with gradio_client, handle_file of its path.
        """
        request: GenerationRequest = request_in(str(uploaded(file)), services.data_dir)
        return request.to_dict()

    def bring_picture(file: File) -> dict[str, str]:
        """Keep a png, jpeg or webp for clips to start from.

        Args:
            file: The picture; with gradio_client, handle_file of its path.

        Returns:
            {"start_from": ...}: what to put into a request, beside "start_frames" 1, or a "strength" by which it is changed.
        """
        return {"start_from": str(services.keep_source(uploaded(file)))}

    return zip_videos, gif, plain_copy, smooth_copy, details, settings_in, bring_picture

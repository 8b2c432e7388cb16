"""What clients and tools give: a request's settings, and files."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Literal, TypedDict

from gradio.utils import get_upload_folder

from core.types import GenerationRequest, RequestError

Settings = TypedDict("Settings", typing.get_type_hints(GenerationRequest), total=False)
"""The fields of GenerationRequest, none of them required."""


class FileMark(TypedDict):
    """What tells Gradio, its clients and MCP that this is a file: it is uploaded, or fetched, before the endpoint is called."""

    _type: Literal["gradio.FileData"]


class File(TypedDict):
    """What ``gradio_client.handle_file`` makes of a path or an address; to an MCP client it is an address."""

    path: str
    meta: FileMark


def uploaded(file: File) -> Path:
    """The file that was uploaded. Raises RequestError for a path of the client's own choice."""
    path = Path(str(file.get("path", ""))).resolve() if isinstance(file, dict) else None
    if path is None or not path.is_relative_to(Path(get_upload_folder()).resolve()) or not path.is_file():
        raise RequestError("file", "A file must be uploaded with the call: gradio_client.handle_file(PATH) does that.")
    return path

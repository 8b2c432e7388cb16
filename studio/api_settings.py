"""What describes a request to clients and tools."""

from __future__ import annotations

import typing
from typing import TypedDict

from core.types import GenerationRequest

Settings = TypedDict("Settings", typing.get_type_hints(GenerationRequest), total=False)
"""The fields of GenerationRequest, none of them required."""

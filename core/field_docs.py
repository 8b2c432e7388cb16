"""The documentation of a dataclass's fields: the string that stands below each of them. No torch here."""

from __future__ import annotations

import ast
import inspect
import textwrap


def field_docs(cls: type) -> dict[str, str]:
    """Field name to the text of the string literal below it, on one line; fields without one are left out."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    docs = {}
    for field, below in zip(definition.body, definition.body[1:]):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
        if isinstance(field, ast.AnnAssign) and is_text:
            docs[field.target.id] = " ".join(below.value.value.split())
    return docs

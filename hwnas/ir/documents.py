"""Reads a space of any kind from its JSON form. A new kind of space is one line in `READERS`."""

from collections.abc import Callable, Mapping
from typing import Any

from hwnas.errors import InputError
from hwnas.ir import cells, space
from hwnas.ir.steps import Space

READERS: dict[str, Callable[[Mapping[str, Any]], Space]] = {
    space.SCHEMA: space.search_space_from_dict,
    cells.SCHEMA: cells.cell_space_from_dict,
}


def space_from_dict(document: Any) -> Space:
    """Reads the form that a space's `to_dict` writes; a user's file of layers may leave the schema out.

    Raises:
        InputError: The document is not a space, or the space is not valid.
    """
    schema = document.get("schema", space.SCHEMA) if isinstance(document, Mapping) else None
    if schema not in tuple(READERS):
        found = f"has schema {schema!r}" if isinstance(document, Mapping) else f"is {str(document)[:80]!r}"
        raise InputError(f"A space must be a mapping of schema {' or '.join(map(repr, READERS))}, but this one {found}.")
    return READERS[schema](document)

"""An architecture: one option for every decision of a space, and the file that holds it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hwnas.errors import InputError
from hwnas.files import read_json, write_json

SCHEMA = "hwnas.architecture/1"  # 1: 2026-11, first


@dataclass(frozen=True, eq=True)
class Architecture:
    """A path through a search space. Made by a space or a trellis, which check it; immutable and hashable.

    Attributes:
        space: Name of the space.
        space_hash: Hash of the space's content; the name alone would let a changed space pass.
        choices: Decision name to option name, in the space's order (read-only).
    """

    space: str
    space_hash: str
    choices: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", MappingProxyType(dict(self.choices)))

    def __hash__(self) -> int:
        return hash((self.space_hash, frozenset(self.choices.items())))  # equality ignores the order

    def __reduce__(self) -> tuple[Any, ...]:  # a read-only mapping cannot be copied to another process as it is
        return Architecture, (self.space, self.space_hash, dict(self.choices))

    def __str__(self) -> str:
        return " ".join(self.choices.values())

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "space": self.space, "space_hash": self.space_hash, "choices": dict(self.choices)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the architecture file."""
        return write_json(path, self.to_dict())


def architecture_from_dict(document: Any, source: str = "the architecture") -> Architecture:
    """Reads the JSON form; whether the choices exist is checked by the space (`SearchSpace.check`).

    Raises:
        InputError: The document is not an architecture of a known schema.
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise InputError(f"An architecture file has schema {SCHEMA!r}, but {source} has {found!r}: export or search again.")
    texts = (document.get("space"), document.get("space_hash"))
    choices = document.get("choices")
    if not (all(isinstance(text, str) for text in texts) and isinstance(choices, dict)
            and all(isinstance(option, str) for option in choices.values())):
        raise InputError(f"An architecture file has 'space', 'space_hash' and 'choices' {{decision: option}}, but {source} "
                         "lacks one of them: export or search again.")
    return Architecture(document["space"], document["space_hash"], choices)


def load_architecture(path: str | os.PathLike[str]) -> Architecture:
    """Reads an architecture file.

    Raises:
        InputError: The file is missing, truncated, or not an architecture.
    """
    return architecture_from_dict(read_json(path, "architecture file"), str(path))

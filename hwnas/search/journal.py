"""The journal of a search: each score is on disk as soon as it is known, so that a killed search loses almost nothing.

One JSON document a line: a header that says what was searched and how, then one line for each scored architecture.
Searches are deterministic, so a rerun asks for the same architectures in the same order; those that the journal
remembers are not evaluated again.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwnas.errors import InputError
from hwnas.files import first_difference, write_atomic
from hwnas.ir.architecture import Architecture
from hwnas.ir.steps import Space
from hwnas.search.result import Candidate

SCHEMA = "hwnas.search/1"  # 1: 2026-11, first


class Journal:
    """An append-only file of scores.

    Args:
        path: The file, `history.jsonl` by custom.
        context: What the scores depend on besides the architecture (hashes of the weights, the data, the table). A
            journal with another context is not resumed.
        overwrite: Starts afresh instead of resuming.
    """

    def __init__(self, path: str | os.PathLike[str], context: Mapping[str, Any] | None = None, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._context = dict(context or {})
        self._overwrite = overwrite

    def begin(self, space: Space, search: Mapping[str, Any]) -> dict[Architecture, float]:
        """Starts the file, or opens the one that an interrupted run left.

        Args:
            space: The space that is searched.
            search: What defines the search: method, seed, configuration, constraint.

        Returns:
            The scores that are already known.

        Raises:
            InputError: The file is of another search (the message names the key that differs) or is damaged.
        """
        header = json.loads(_line({"schema": SCHEMA, "space": space.name, "space_hash": space.hash, **search,
                                   "context": self._context}))
        if self._overwrite or not self.path.exists():
            write_atomic(self.path, _line(header))
            return {}
        found, scores, length = _read(self.path, space)
        difference = first_difference(found, header)
        if difference:
            raise InputError(f"A search resumes only from its own journal, but {self.path} {_told(difference)}: pass --overwrite "
                             "to start again, or choose another output folder.")
        if length < self.path.stat().st_size:
            os.truncate(self.path, length)  # the line that was being written when the last run was killed
        return scores

    def record(self, candidates: Sequence[Candidate]) -> None:
        """Appends candidates; they are on the disk when this returns."""
        lines = "".join(_line({"choices": dict(candidate.architecture.choices), "score": candidate.score,
                               "cost": candidate.cost, "generation": candidate.generation}) for candidate in candidates)
        with open(self.path, "ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


def load_scores(path: str | os.PathLike[str], space: Space, context: Mapping[str, Any]) -> dict[Architecture, float]:
    """Reads the scores of an earlier search, whatever its constraint was, for use with another one.

    Args:
        path: The journal.
        space: The space that it is of.
        context: What the scores must depend on besides the architecture.

    Raises:
        InputError: The journal is missing, damaged, or of another space or context.
    """
    header, scores, _ = _read(Path(path), space)
    wanted = {"schema": SCHEMA, "space_hash": space.hash, "context": json.loads(_line(context))}
    difference = first_difference({key: header.get(key) for key in wanted}, wanted)
    if difference:
        raise InputError(f"Scores hold only for the space and the evaluator that gave them, but {path} {_told(difference)}: "
                         "search without them.")
    return scores


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, allow_nan=False) + "\n"


def _read(path: Path, space: Space) -> tuple[dict[str, Any], dict[Architecture, float], int]:
    """Header, scores, and how many bytes are whole lines; what follows the last line break was never finished."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"The search journal {path} cannot be read ({error.strerror}): check the path.") from None
    length = content.rfind(b"\n") + 1
    lines = content[:length].split(b"\n")[:-1]
    header = _parse(path, 1, lines[0] if lines else b"")
    if header.get("schema") != SCHEMA:
        raise InputError(f"A search journal starts with a header of schema {SCHEMA!r}, but {path} does not: pass --overwrite "
                         "to replace it, or choose another output folder.")
    if header.get("space_hash") != space.hash:
        return header, {}, length  # the lines would not fit this space; the caller names the difference
    return header, dict(_score(path, number, line, space) for number, line in enumerate(lines[1:], 2)), length


def _score(path: Path, number: int, line: bytes, space: Space) -> tuple[Architecture, float]:
    document = _parse(path, number, line)
    score, choices = document.get("score"), document.get("choices")
    if not isinstance(score, float) or not math.isfinite(score) or not isinstance(choices, dict):
        raise _damaged(path, number)
    try:
        return space.architecture(choices), score
    except (InputError, TypeError):
        raise _damaged(path, number) from None


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        raise _damaged(path, number) from None
    if not isinstance(document, dict):
        raise _damaged(path, number)
    return document


def _damaged(path: Path, number: int) -> InputError:
    return InputError(f"Every line of a search journal is one whole JSON document, but line {number} of {path} is damaged: "
                      "restore the file, or pass --overwrite to start again.")


def _told(difference: tuple[str, Any, Any]) -> str:
    key, found, wanted = difference
    return f"has {key} {found!r} and this search has {wanted!r}"

"""Finds a space: a published name, a Python file's attribute, or a YAML/JSON file; with precisions as options if asked for.

The YAML form is the space's own JSON form plus three conveniences for layers: `repeat` makes several layers of one
description, `first` overrides fields of the first of them, and `grid` spells out the product of lists as options:

    - name: stage1
      repeat: 3
      first: {stride: 2}
      grid: {kind: mbconv, out_channels: 24, kernel: [3, 5], expansion: [3, 6]}
      options: {skip: {kind: identity}}       # optional, beside the grid; not for a `first` with overrides
"""

import hashlib
import importlib.util
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hwnas.errors import InputError
from hwnas.files import read_yaml
from hwnas.ir.documents import space_from_dict
from hwnas.ir.space import SearchSpace
from hwnas.ir.steps import Space
from hwnas.spaces import SPACES
from hwnas.spaces.bit_widths import PRECISIONS, with_precisions


def load_space(reference: str) -> Space:
    """Loads a space by `NAME`, `file.py:attribute`, `file.yaml` or `file.json`.

    `+PRECISION` after any of these, as in `mobile-cpu+int8+fp32` or `spos-blocks-channels-cpu+w1_a2+w4_a4+fp32`, makes each
    option a choice between these precisions as well.

    An attribute may be a space or a function without arguments that returns one. A Python file is run as it is:
    load only files that you trust.

    Raises:
        InputError: Unknown name, unreadable file, or an invalid space.
    """
    if reference in SPACES:
        return SPACES[reference]()
    plain, *precisions = reference.split("+")
    if precisions and (plain in SPACES or set(precisions) <= set(PRECISIONS)):
        space = load_space(plain)
        if not isinstance(space, SearchSpace):
            raise InputError(f"Precisions are options of a space of layers, but {plain!r} is one of cells: leave them out.")
        return with_precisions(space, precisions)
    path_text, _, attribute = reference.rpartition(":")
    if path_text.endswith(".py"):
        return _load_python(Path(path_text), attribute)
    if reference.endswith((".yaml", ".yml", ".json")):
        return _load_yaml(Path(reference))
    raise InputError(f"A space is one of {', '.join(SPACES)}, or file.py:attribute, or file.yaml, but got {reference!r}.")


def run_file(path: Path) -> ModuleType:
    """Runs a user's Python file once: what blocks and spaces of their own come from.

    Raises:
        InputError: The file cannot be read, or raises.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"The Python file {path} cannot be read ({error.strerror}): check the path.") from None
    identity = hashlib.sha256(f"{path.resolve()}\n".encode() + content).hexdigest()[:12]
    name = f"hwnas_user_{path.stem}_{identity}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"A Python file's name ends in .py, but that of {path} does not: rename it.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # as import does: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # the user's own code: whatever it raises is theirs to see in one sentence
        del sys.modules[name]
        if isinstance(error, InputError) or not isinstance(error, Exception):
            raise
        raise InputError(f"The file {path} must load, but raised {type(error).__name__}: {error}.") from error
    return module


def _load_python(path: Path, attribute: str) -> Space:
    module = run_file(path)
    try:
        value = getattr(module, attribute)
        space = value() if callable(value) else value
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The space {path}:{attribute} must load, but raised {type(error).__name__}: {error}.") from error
    if not isinstance(space, Space):
        raise InputError(f"{path}:{attribute} must be a hwnas.SearchSpace (or CellSpace), but is {type(space).__name__}.")
    return space


def _load_yaml(path: Path) -> Space:
    document = read_yaml(path, "space file")
    if isinstance(document, Mapping) and isinstance(document.get("layers"), list):
        document = {**document, "layers": [layer for entry in document["layers"] for layer in _expand(entry)]}
    return space_from_dict(document)


def _expand(entry: Any) -> list[Any]:
    """One layer entry with `repeat`, `first` and `grid` to plain layer documents."""
    if not isinstance(entry, Mapping) or not {"repeat", "first", "grid"} & set(entry):
        return [entry]
    unknown = set(entry) - {"name", "repeat", "first", "grid", "options", "block", "after", "where_fits"}
    repeat, first = entry.get("repeat", 1), entry.get("first", {})
    if unknown or not isinstance(repeat, int) or not 1 <= repeat <= 1000 or not isinstance(first, Mapping):
        raise InputError(f"Layer {entry.get('name')!r} takes name, block or options or grid, repeat (1 to 1000), first (a "
                         f"mapping), after and where_fits, but has {str(dict(entry))[:160]}.")
    layers = []
    for index in range(repeat):
        overrides = first if index == 0 else {}
        layer: dict[str, Any] = {"name": entry.get("name") if repeat == 1 else f"{entry.get('name')}_{index + 1}"}
        if "block" in entry:
            layer["block"] = {**entry["block"], **overrides} if isinstance(entry["block"], Mapping) else entry["block"]
        options = dict(_grid_options({**entry["grid"], **overrides})) if isinstance(entry.get("grid"), Mapping) else {}
        if not overrides and isinstance(entry.get("options"), Mapping):
            options |= entry["options"]
        if options:
            layer["options"] = options
        layers.append(layer | {key: entry[key] for key in ("after", "where_fits") if key in entry})
    return layers


def _grid_options(grid: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    axes = {key: value for key, value in grid.items() if isinstance(value, list)}
    fixed = {key: value for key, value in grid.items() if key not in axes}
    options = []
    for values in itertools.product(*axes.values()):
        name = "_".join(f"{key[0]}{value}".replace(".", "p") for key, value in zip(axes, values, strict=True))
        options.append((name or "only", {**fixed, **dict(zip(axes, values, strict=True))}))
    if len({name for name, _ in options}) < len(options):  # two axes with one initial: spell the names out
        options = [("_".join(f"{key}-{document[key]}".replace(".", "p") for key in axes), document)
                   for _, document in options]
    return options

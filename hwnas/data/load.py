"""One line of text to a dataset: `SOURCE[:PATH][?OPTION=VALUE&...]`."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwnas.data.cifar import load_cifar10
from hwnas.data.dataset import Dataset
from hwnas.data.digits import load_digits
from hwnas.data.glyphs import load_glyphs
from hwnas.data.idx import load_idx
from hwnas.data.imagefolder import load_imagefolder
from hwnas.data.npz import load_npz
from hwnas.data.request import Request
from hwnas.errors import InputError


@dataclass(frozen=True)
class _Source:
    """How a source is loaded: `load([path,] request, **options)`, each option with the function that reads its text."""

    load: Callable[..., Dataset]
    takes_path: bool
    options: dict[str, Callable[[str], Any]] = field(default_factory=dict)


_SOURCES = {
    "glyphs": _Source(load_glyphs, takes_path=False, options={"classes": int, "difficulty": float}),
    "digits": _Source(load_digits, takes_path=False),
    "imagefolder": _Source(load_imagefolder, takes_path=True),
    "npz": _Source(load_npz, takes_path=True, options={"layout": str}),
    "idx": _Source(load_idx, takes_path=True),
    "cifar10": _Source(load_cifar10, takes_path=True),
}
# Options of every source, each with the argument of `load_dataset` that says the same.
_COMMON_OPTIONS = {
    "size": "image_size",
    "channels": "channels",
    "train": "train",
    "validation": "validation",
    "test": "test",
}


def load_dataset(
    spec: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads or generates a dataset of three disjoint sets; the same arguments always give the same bytes.

    Sources: `glyphs` (generated), `digits`, `imagefolder:PATH`, `npz:PATH`, `idx:PATH` (MNIST family) and
    `cifar10:PATH` (binary version). A set that a source lacks is split off its training images by class: validation
    takes 10 % of them, or validation and test 15 % each where both are split off.

    Options follow a question mark, `glyphs?size=64&difficulty=0.8`. Every source knows `size`, `channels`, `train`,
    `validation` and `test`, which say the same as the arguments below; glyphs knows `classes` and `difficulty`, npz
    `layout`.

    Args:
        spec: Source, path and options.
        image_size: Height and width in pixels; None: 32 for glyphs and digits, 224 for imagefolder, else as stored.
        channels: 1 (grey) or 3 (RGB); None: 3 for glyphs and imagefolder, else as stored.
        train: Number of training images; None: all that there are (12,000 for glyphs).
        validation: Number of validation images; None: all, or the share above (2,000 for glyphs).
        test: Number of test images; None: likewise.
        seed: Seed of the splits and of generated images.

    Raises:
        InputError: The spec, an argument or a file is not usable; the message says which and what to do.
        UnavailableError: The source needs a package that is not installed.
    """
    name, path, options = _parse(spec)
    source = _SOURCES[name]
    arguments: dict[str, int | None] = {
        "image_size": image_size,
        "channels": channels,
        "train": train,
        "validation": validation,
        "test": test,
    }
    for option, argument in _COMMON_OPTIONS.items():
        if option not in options:
            continue
        value = _read_option(int, option, options.pop(option))
        if arguments[argument] not in (None, value):
            raise InputError(
                f"{argument} is {arguments[argument]}, but the dataset {spec!r} says {option}={value}: leave one of them out."
            )
        arguments[argument] = value
    own = {option: _read_option(source.options[option], option, text) for option, text in options.items()}
    request = Request(**arguments, seed=seed)
    return source.load(path, request, **own) if path is not None else source.load(request, **own)


def _parse(spec: str) -> tuple[str, Path | None, dict[str, str]]:
    """Source, path and the text of each option, all known to exist."""
    head, _, query = spec.rpartition("?") if "?" in spec else (spec, "", "")
    name, _, location = head.partition(":")
    if name not in _SOURCES:
        raise InputError(f"A dataset is one of {', '.join(_SOURCES)}, but {spec!r} names {name!r}: use one of those.")
    source = _SOURCES[name]
    if bool(location) != source.takes_path:
        rule = f"{name} needs a path, {name}:PATH" if source.takes_path else f"{name} takes no path"
        raise InputError(f"{rule}, but the dataset is {spec!r}: {'add' if source.takes_path else 'remove'} it.")
    options: dict[str, str] = {}
    known = (*_COMMON_OPTIONS, *source.options)
    for item in query.split("&") if query else ():
        option, equals, text = item.partition("=")
        if option not in known or not equals:
            raise InputError(
                f"The options of {name} are {', '.join(known)}, written ?OPTION=VALUE&OPTION=VALUE, but {spec!r} has "
                f"{item!r}: use those."
            )
        if option in options:
            raise InputError(f"An option is given once, but {spec!r} has {option} twice: remove one.")
        options[option] = text
    return name, Path(os.path.expanduser(location)) if location else None, options


def _read_option(read: Callable[[str], Any], option: str, text: str) -> Any:
    try:
        return read(text)
    except ValueError:
        kind = "a whole number" if read is int else "a number"
        raise InputError(f"{option} must be {kind}, but is {text!r}: correct it.") from None

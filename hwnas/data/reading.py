"""Reading the files of published sets: bounded, and with one clear sentence when a file is missing or damaged."""

import gzip
import os
import zlib
from pathlib import Path
from typing import IO

from hwnas.errors import InputError

_CHUNK = 1 << 20


def existing_folder(path: Path, what: str) -> Path:
    """Returns the path if it is a folder.

    Raises:
        InputError: It is not.
    """
    if not path.is_dir():
        state = "a file" if path.exists() else "missing"
        raise InputError(f"{what} is read from a folder, but {path} is {state}: check the path.")
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"{what} is read from a folder, but {path} may not be read: change its permissions.")
    return path


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file, through gzip if its name ends in .gz.

    Raises:
        InputError: It cannot be opened.
    """
    try:
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise InputError(f"The file {path} cannot be opened ({error.strerror}): check the path.") from None


def read_exactly(file: IO[bytes], count: int, path: Path) -> bytes:
    """Reads a number of bytes, in steps, so that a header that promises too much costs no memory.

    Raises:
        InputError: The file ends early or cannot be read.
    """
    parts = []
    left = count
    while left:
        part = read_some(file, min(left, _CHUNK), path)
        if not part:
            raise InputError(f"{path} is truncated: {count} bytes should follow, and {count - left} do; fetch it again.")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def read_some(file: IO[bytes], count: int, path: Path) -> bytes:
    """Reads up to a number of bytes; none at the file's end.

    Raises:
        InputError: The file cannot be read, or its compressed stream is damaged or truncated.
    """
    try:
        return file.read(count)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): it is damaged or truncated; fetch it again.") from None

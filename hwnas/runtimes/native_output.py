"""What native libraries print: past Python's `sys.stdout`, where results and JSON documents belong."""

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STDOUT = 1
_STDERR = 2


@contextmanager
def captured_stdout() -> Iterator[Callable[[], str]]:
    """Keeps all that is printed in the meantime, by whatever thread, from standard output.

    Yields:
        A function that returns what was printed so far.
    """
    _flush()
    saved = os.dup(_STDOUT)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), _STDOUT)

        def printed() -> str:
            _flush()
            return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")

        try:
            yield printed
        finally:
            _flush()
            os.dup2(saved, _STDOUT)
            os.close(saved)


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Drops what native libraries remark meanwhile, by whatever thread: on the processor, or on a delegate of theirs."""
    saved = os.dup(_STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDERR)
    try:
        yield
    finally:
        os.dup2(saved, _STDERR)
        os.close(nowhere)
        os.close(saved)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)  # C has a buffer of its own, which would otherwise surface later

"""A program's files on the disk, for runtimes that cannot load them from memory."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hwnas.errors import UnavailableError
from hwnas.runtimes.base import Program


@contextmanager
def files_on_disk(program: Program, names: Sequence[str]) -> Iterator[Path]:
    """Writes files of a program into a private folder, which is removed in the end.

    Args:
        program: The program.
        names: Which of its files.

    Yields:
        The folder.

    Raises:
        UnavailableError: There is no space for them.
    """
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hwnas-")))
            for name in names:
                (folder / name).write_bytes(program.files[name])
        except OSError as error:
            raise UnavailableError(f"Models are loaded from files in {tempfile.gettempdir()}, but that cannot be written "
                                   f"({error.strerror}): free some space there, or set TMPDIR to another folder.") from None
        yield folder

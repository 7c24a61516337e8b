"""The operating system's own account of which agents there are."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def processes(mark: str, command: str = "") -> list[int]:
    """Who has a text in the environment and another in the command."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                if mark.encode() in (folder / "environ").read_bytes() and command.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # it has just ended, or is another user's
                continue
    return sorted(found)


def agents(mark: str) -> list[int]:
    """The agents among them, without their guards."""
    return processes(mark, "from hwnas.profiling.agent import")


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signals a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)

"""The guard: starts an agent, and sees to it that neither the agent nor its files outlive the profiler.

It is a process of its own, since an agent that hangs or crashes in native code can do nothing any more, and since the profiler
may be killed, or be at the other end of a connection that drops. It waits in the kernel while the agent measures, so that it
costs nothing. Needs the standard library only.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

PREFIX = "hwnas-agent."
"""What the names of its folders begin with."""

_GRACE_S = 0.5  # for an agent that is idle to end by itself
_CONNECTION_BROKEN = 255  # ssh would take it for its own status


def main(arguments: Sequence[str]) -> int:
    """Runs an agent until it ends, or until nobody is left at the other end of standard input.

    Args:
        arguments: The agent's.

    Returns:
        The agent's exit status; above 128 that of a signal, as shells have it.
    """
    return guard(arguments, tempfile.mkdtemp(prefix=PREFIX))


def guard(arguments: Sequence[str], folder: str) -> int:
    """Runs an agent as `main` does.

    Args:
        arguments: The agent's.
        folder: Where its temporary files go; is removed in the end.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        agent = subprocess.Popen([*module_command("hwnas.profiling.agent"), *arguments], start_new_session=True,
                                 env={**os.environ, "TMPDIR": folder})
        try:
            threading.Thread(target=_kill_when_abandoned, args=(agent,), daemon=True).start()
            status = agent.wait()
        finally:
            _kill(agent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return min(128 - status if status < 0 else status, _CONNECTION_BROKEN - 1)


def module_command(module: str) -> list[str]:
    """The command that calls a module's `main` with the arguments that follow, in a Python that finds modules as this one does.

    As `python -m` it would look into the current folder first, where anything may lie.
    """
    path = [os.path.abspath(entry) for entry in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; from {module} import main; sys.exit(main(sys.argv[1:]))"]


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _kill_when_abandoned(agent: "subprocess.Popen[bytes]") -> None:
    hangup = select.poll()
    hangup.register(0, getattr(select, "POLLRDHUP", 0))  # besides the end of a pipe, that of a socket
    hangup.poll()
    with suppress(subprocess.TimeoutExpired):
        agent.wait(_GRACE_S)
    _kill(agent)


def _kill(agent: "subprocess.Popen[bytes]") -> None:
    """Kills an agent and whatever it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()

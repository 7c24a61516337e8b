"""The agent: the process beside the runtime, on this machine or another, that measures what the profiler sends.

It needs Python, numpy and the runtime, and nothing of hwnas but `SHIPPED`. It is a process of its own because runtimes keep
global state, and because a runtime that crashes on a model must not take the profiler with it. It ends when its input ends; the
`hwnas.profiling.guard` above it sees to what it cannot see to itself.

Messages, each answered by one: `environment` (describes the machine and takes the anchor's place in it), `anchor` (a program to
keep, before anything else that needs the runtime), `measure` (a program and a plan), `availability` (of any runtime) and, to
agents of the profiler's own machine, `prepare` (a model to convert into the cache). An answer has the result, or `error` with the
kind and the words.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hwnas.errors import HwnasError, InputError, UnavailableError
from hwnas.profiling.environment import environment_fingerprint
from hwnas.profiling.protocol import GREETING, READY, Message, ProtocolError, Stream, program_of
from hwnas.profiling.session import run_session
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RUNTIMES
from hwnas.runtimes.base import Program, Runtime, RuntimeConfig, described, machine_fault
from hwnas.runtimes.onnx_model import ONNX_FILE

SHIPPED = ("__init__.py", "errors.py", "latency/__init__.py", "latency/sessions.py",
           *(f"profiling/{name}.py" for name in ("__init__", "agent", "environment", "guard", "protocol", "session", "timing")),
           "runtimes/*.py")
"""What has to be on a device, relative to the package."""


class Agent:
    """Answers messages for one runtime.

    Args:
        runtime: What it runs.
        config: How.
    """

    def __init__(self, runtime: Runtime, config: RuntimeConfig) -> None:
        self._runtime, self._config = runtime, config
        self._anchor: Program | None = None
        self._answers: dict[str, Callable[[Message], dict[str, Any]]] = {
            "environment": self._environment, "anchor": self._keep_anchor, "measure": self._measure, "prepare": self._prepare,
            "availability": self._availability}

    def answer(self, message: Message) -> dict[str, Any]:
        """The answer to a message; a refusal is an answer, too."""
        try:
            return self._answers[str(message.content.get("op"))](message)
        except Exception as error:  # the agent goes on, whatever came and whatever the runtime made of it
            return refusal(error)

    def _environment(self, message: Message) -> dict[str, Any]:
        return {"environment": environment_fingerprint(self._runtime, self._config, batch_size=int(message.content["batch_size"]),
                                                       anchor=str(message.content["anchor"]))}

    def _keep_anchor(self, message: Message) -> dict[str, Any]:
        found = self._runtime.can_load()
        if not found.available:
            raise UnavailableError(f"{self._runtime.name} is not usable there: {found.reason}.")
        self._anchor = program_of(message)
        return {}

    def _measure(self, message: Message) -> dict[str, Any]:
        if self._anchor is None:
            raise ProtocolError("there is no anchor yet")
        plan, program = TimingPlan(**message.content["plan"]), program_of(message)
        try:
            return {"session": asdict(run_session(self._runtime, self._config, program, self._anchor, plan))}
        except (HwnasError, OSError):
            raise
        except Exception as error:  # runtimes raise what they like, often only when the model runs
            raise machine_fault(self._runtime, error) or InputError(
                f"{self._runtime.name} cannot run the model ({described(error)}): check it with onnx.checker, or choose another "
                "runtime.") from None

    def _prepare(self, message: Message) -> dict[str, Any]:
        self._runtime.prepare(message.files[ONNX_FILE], self._config)
        return {}

    def _availability(self, message: Message) -> dict[str, Any]:
        return {"availability": asdict(RUNTIMES[str(message.content["runtime"])].can_load())}


def refusal(error: Exception) -> dict[str, Any]:
    """The answer that says why there is none."""
    if isinstance(error, InputError | UnavailableError):
        return {"error": {"kind": type(error).__name__, "message": str(error)}}
    message = f"The agent failed ({described(error)}): see to that there."
    return {"error": {"kind": UnavailableError.__name__, "message": message}}


def pin(count: int, cpus: list[int] | None = None) -> None:
    """Confines this process, and all threads that it will have, to as many processors as a call has threads.

    A thread that the scheduler moves leaves its caches behind. The last ones are taken: the first often serves interrupts, and
    on phones the last are the fast ones.

    Args:
        count: Threads of an inference.
        cpus: Which ones instead.

    Raises:
        InputError: A processor is not there, or not for this process.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    missing = sorted(set(cpus or ()) - set(usable))
    if missing:
        raise InputError(f"Processors must be among {usable}, but {missing} are asked for: choose others with --cpus.")
    if usable:
        os.sched_setaffinity(0, cpus or usable[-count:])


def main(arguments: list[str]) -> int:
    """Serves one runtime on standard input and output until the input ends.

    Args:
        arguments: Runtime, threads, precision and, if it matters, processors ("2,3").
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the profiler is asked to stop, and ends this by closing the input
    stream = _take_streams()
    stream.send_bytes(f"\n{GREETING}{READY}\n".encode())  # a login script may not have ended its last line
    try:
        agent = _open_agent(*arguments)
    except Exception as error:
        stream.send(Message(refusal(error)))
        return 2
    stream.send(Message({}))
    try:
        while True:
            stream.send(Message(agent.answer(stream.receive())))
    except ProtocolError:
        return 0  # the profiler has ended


def _take_streams() -> Stream:
    """Standard input and output, and leaves others in their places: native libraries print and read what they like."""
    stream = Stream(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return stream


def _open_agent(name: str, threads: str, precision: str, cpus: str = "") -> Agent:
    runtime, config = RUNTIMES[name], RuntimeConfig(int(threads), precision)
    pin(config.threads, [int(cpu) for cpu in cpus.split(",")] if cpus else None)  # before the runtime starts any thread
    return Agent(runtime, config)

"""Models are converted before anything is timed: beside a timing a converter would spoil it, and converters that take seconds
would take most of a profile one after another.

They run in agents on this machine, wherever the device is, one on each processor, and end before the first timing begins. What
they make stays in the cache of `hwnas.runtimes.conversion`, where measuring finds it. A model for which the time was short is
prepared in the same way when its turn to be measured comes, with some that follow: a converter that hangs or crashes must not
take the profiler with it. Only what was converted before, and had to make room on a small disk, is converted in its process.
"""

import os
import selectors
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from hwnas.errors import InputError, UnavailableError
from hwnas.profiling.device import AgentCrashError, AgentKilledError, Launch, Link, Patience, crash_of, killed_twice, launch_here
from hwnas.profiling.protocol import Message, ProtocolError
from hwnas.runtimes.base import Runtime, RuntimeConfig
from hwnas.runtimes.conversion import ConvertingRuntime
from hwnas.runtimes.onnx_model import ONNX_FILE

_MOST_AGENTS = 8  # each may hold a compiler, which takes about a gigabyte of memory
_LONGEST_S = 150.0  # for a conversion; a `Converter` itself waits for less
_SHARE = 0.5  # of the time; then no other conversion begins

Models = Mapping[str, Callable[[], bytes]]
Outcome = tuple[str, str | AgentCrashError | UnavailableError | None]


def prepare_ahead(runtime: Runtime, config: RuntimeConfig, models: Models, deadline: float, launch: Launch = launch_here,
                  patience: Patience | None = None) -> Generator[tuple[str, str | None], None, None]:
    """Converts models on all processors that this process may use; does nothing for a runtime that has nothing to convert.

    The last conversion begins when half of the time is over, so that something can be measured, too. A model that fails, whatever
    the reason, is tried once more with nothing beside it: memory may have been short.

    Args:
        runtime: Whose models these are.
        config: How they will run.
        models: What makes the ONNX bytes, by key.
        deadline: When the time is over, on the monotonic clock.
        launch: Starts an agent with the given arguments.
        patience: How long to wait for an agent to start, and for a conversion.

    Yields:
        The key of each model that is done, in no particular order, and why the runtime does not run it, if so.

    Raises:
        UnavailableError: The converter does not work here, or there is no room for what it makes.
    """
    if not isinstance(runtime, ConvertingRuntime):
        return
    now = time.monotonic()
    until = now + _SHARE * (deadline - now)
    arguments = (runtime.name, str(config.threads), config.precision)
    patience = patience or Patience(session_s=_LONGEST_S)
    workers = [_Worker(launch, [*arguments, *cpu], patience, deadline) for cpu in _processors()]
    failed: list[str] = []
    try:
        for key, outcome in _convert(workers, models, models, until):
            if outcome is None:
                yield key, None
            else:
                failed.append(key)
        _close(workers)
        for key, outcome in _convert(workers[:1], models, failed, deadline):
            if isinstance(outcome, UnavailableError):
                raise outcome
            if isinstance(outcome, AgentCrashError):
                if time.monotonic() >= deadline:
                    continue  # it was not given its time
                if isinstance(outcome, AgentKilledError):
                    raise killed_twice(f"{runtime.name} {outcome} when it converted the model")
                outcome = (f"{runtime.name} {outcome} when it converted the model, twice: choose another runtime, or leave the "
                           "block out.")
            yield key, outcome
    except ProtocolError:
        return  # no agent starts here: measuring will say why
    finally:
        _close(workers)


def _convert(workers: Sequence["_Worker"], models: Models, keys: Iterable[str], until: float) -> Iterator[Outcome]:
    for key in keys:
        if time.monotonic() >= until:
            break
        try:
            model = models[key]()  # while the others are at work
        except InputError:
            continue  # measuring will say so
        while not (idle := [worker for worker in workers if worker.key is None]):
            yield from _finished(workers)
        idle[0].begin(key, model)
    while any(worker.key is not None for worker in workers):
        yield from _finished(workers)


def _finished(workers: Iterable["_Worker"]) -> Iterator[Outcome]:
    """Waits until a model or more are done."""
    busy = [worker for worker in workers if worker.key is not None]
    with selectors.DefaultSelector() as selector:
        for worker in busy:
            selector.register(worker, selectors.EVENT_READ)
        ready = {key.fileobj for key, _ in selector.select(min(worker.gives_up for worker in busy) - time.monotonic())}
    for worker in busy:
        if worker in ready or time.monotonic() >= worker.gives_up:
            yield worker.finish()


class _Worker:
    """An agent that converts one model at a time, started with the first.

    Args:
        launch: Starts it.
        arguments: What it is told.
        patience: How long to wait for it.
        deadline: When nothing is waited for any more.

    Attributes:
        key: What it is at work on; None while it is idle.
        gives_up: When that has taken too long.
    """

    def __init__(self, launch: Launch, arguments: Sequence[str], patience: Patience, deadline: float) -> None:
        self._launch, self._arguments, self._patience, self._deadline = launch, arguments, patience, deadline
        self._link: Link | None = None
        self.key: str | None = None
        self.gives_up = deadline

    def fileno(self) -> int:
        """What becomes readable when it is done."""
        assert self._link is not None
        return self._link.stream.fileno()

    def begin(self, key: str, model: bytes) -> None:
        """Has it convert a model.

        Raises:
            ProtocolError: It does not start.
        """
        if self._link is None:
            self._link = self._launch(self._arguments)
            self._link.greet(min(self._deadline, time.monotonic() + self._patience.start_s))
        self.key, self.gives_up = key, min(self._deadline, time.monotonic() + self._patience.session_s)
        with suppress(ProtocolError):  # what it ended of is said in place of its answer
            self._link.stream.send(Message({"op": "prepare"}, {ONNX_FILE: model}), self.gives_up)

    def finish(self) -> Outcome:
        """The model that it was at work on, and why it is not converted, if so."""
        assert self._link is not None and self.key is not None
        key, self.key = self.key, None
        try:
            self._link.receive(self.gives_up)
        except InputError as error:
            return key, str(error)
        except UnavailableError as error:
            return key, error
        except ProtocolError as error:
            link, self._link = self._link, None
            return key, crash_of(link.close()[0], error)
        return key, None

    def hang_up(self) -> None:
        """Has it end."""
        self.key = None
        if self._link is not None:
            self._link.hang_up()

    def close(self) -> None:
        """Waits until it has ended."""
        if self._link is not None:
            link, self._link = self._link, None
            link.close()


def _close(workers: Iterable[_Worker]) -> None:
    for worker in workers:
        worker.hang_up()  # all first, so that they end side by side
    for worker in workers:
        worker.close()


def _processors() -> list[list[str]]:
    """For each agent, the argument that confines it to a processor of its own, where the system can do that."""
    if hasattr(os, "sched_getaffinity"):
        return [[str(cpu)] for cpu in sorted(os.sched_getaffinity(0))[:_MOST_AGENTS]]
    return [[]] * min(os.cpu_count() or 1, _MOST_AGENTS)

"""A device to measure on: a runtime with its agent, on this machine or on another that is reached over ssh.

Models are made ready here, where the converters are; the agent loads and times them. An agent that crashes on a model, or does
not answer, is started once more and tried again. A device that was reached and then is not has a few attempts to come back.
"""

import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import metadata
from signal import SIGKILL, Signals
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from hwnas.errors import HwnasError, InputError, UnavailableError
from hwnas.profiling.environment import compare_environments
from hwnas.profiling.guard import module_command
from hwnas.profiling.protocol import GREETING, READY, EndError, Message, ProtocolError, SilenceError, Stream, program_message
from hwnas.profiling.session import SessionSamples, read_session
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RUNTIMES, load_runtime
from hwnas.runtimes.base import Availability, MachineFaultError, Program, Runtime, RuntimeConfig, with_converter

_LOGIN_LINES = 1000  # of a login script, before the agent's greeting
_CLOSING_S = 10.0  # for an agent to end and to clean up, before what leads to it is killed
_LAST_WORDS = 200  # characters
# What is said of a machine that was never reached.
_REMOTE_NEEDS = ("it takes a login by ssh without a password, and Python 3.11 or newer there with numpy and the runtime, which "
                 "?python=COMMAND names if it is not python3")
_ERRORS: Mapping[str, type[HwnasError]] = {error.__name__: error for error in (InputError, UnavailableError, MachineFaultError)}

T = TypeVar("T")


class UnreachedError(Exception):
    """No agent could be started, or the way to it broke down: this says nothing about the model."""


class AgentCrashError(Exception):
    """The agent's process ended, or did not answer."""


class AgentKilledError(AgentCrashError):
    """Something else than the model ended the agent's process: mostly the system, when memory is short."""


class TimeOverError(Exception):
    """The time was over before there was an answer: this says nothing about the model."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a device, and how often to try.

    Attributes:
        start_s: For an agent to start, with what its runtime has to import.
        session_s: For a session, beyond what is timed; a builder of engines may take minutes.
        attempts: At a model on which the agent crashes or hangs; the first may have been the machine's fault.
        retry_s: Before each further attempt to reach a device that was reached before.
    """

    start_s: float = 120.0
    session_s: float = 300.0
    attempts: int = 2
    retry_s: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Anchor:
    """The yardstick that models are timed in turn with, as the runtime's `prepare` takes it.

    Attributes:
        model: Its bytes.
        sha256: Identity of its network.
    """

    model: bytes = field(repr=False)
    sha256: str


@dataclass(frozen=True)
class Link:
    """A started agent.

    Attributes:
        process: Its guard, or the program that leads to it.
        stream: Messages to it.
        errors: What it and that program print.
        opening: Goes to it before any message.
        lost: Whether an exit status means that the connection broke down.
    """

    process: "subprocess.Popen[bytes]"
    stream: Stream
    errors: IO[bytes]
    opening: bytes
    lost: Callable[[int], bool]

    def greet(self, deadline: float) -> None:
        """Waits until the agent is there.

        Raises:
            UnavailableError: It says why it will never be.
            ProtocolError: It does not come.
        """
        with suppress(ProtocolError):  # what it ended of is said in place of its greeting
            self.stream.send_bytes(self.opening, deadline)
        for _ in range(_LOGIN_LINES):
            line = self.stream.receive_line(deadline).decode(errors="replace")
            if line == GREETING + READY:
                self.receive(deadline)
                return
            if line.startswith(GREETING):
                raise UnavailableError(line.removeprefix(GREETING))
        raise ProtocolError("the agent's greeting did not come")

    def ask(self, question: Message, deadline: float) -> Mapping[str, Any]:
        """The answer to a message.

        Raises:
            InputError, UnavailableError: The agent refuses.
            ProtocolError: The agent has ended, or fails to answer.
        """
        self.stream.send(question, deadline)
        return self.receive(deadline)

    def receive(self, deadline: float) -> Mapping[str, Any]:
        """An answer, as `ask` returns it."""
        content = self.stream.receive(deadline).content
        if "error" in content:
            error = content["error"]
            try:
                refusal = _ERRORS[error["kind"]](str(error["message"]))
            except (KeyError, TypeError):
                raise ProtocolError("the agent's refusal is malformed") from None
            raise refusal
        return content

    def hang_up(self) -> None:
        """Has the agent end, without waiting for it."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def close(self) -> tuple[int, str]:
        """Ends the agent, and returns its exit status and its last words."""
        self.hang_up()
        try:
            status = self.process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        with self.errors:
            return status, _last_words(self.errors)


Launch = Callable[[Sequence[str]], Link]


class Device:
    """A runtime to measure on; agents are started when they are needed, and end with `close` or the `with` block.

    Args:
        runtime: The runtime, whose models are made ready here.
        config: Threads and precision.
        launch: Starts an agent with the given arguments.
        where: What to call the machine in messages; empty for this one.
        cpus: Which processors to use, instead of the last ones.
        patience: How long to wait, and how often to try.
        anchor: The yardstick; None for the small one of `hwnas.profiling.anchor`.
    """

    def __init__(self, runtime: Runtime, config: RuntimeConfig, launch: Launch, where: str = "", cpus: Sequence[int] = (),
                 patience: Patience | None = None, anchor: Anchor | None = None) -> None:
        self.runtime, self.config, self.where = runtime, config, where
        self.name = f"{where}/{runtime.name}" if where else runtime.name
        self._launch, self._cpus, self._patience = launch, tuple(cpus), patience or Patience()
        self._anchor = anchor or load_anchor()
        self._link: Link | None = None
        self._has_measured = False
        self._reached = False
        self._described: tuple[Message, dict[str, Any]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def environment(self, batch_size: int) -> dict[str, Any]:
        """The fingerprint of the machine and of the runtime there; from now on, agents elsewhere are refused.

        Args:
            batch_size: Images a call.

        Raises:
            InputError: The runtime lacks the precision.
            UnavailableError: The device cannot be reached, or the runtime is not usable there.
        """
        question = Message({"op": "environment", "batch_size": batch_size, "anchor": self._anchor.sha256})
        try:
            environment = self._ask(question, self._patience.start_s, _read_environment)
        except AgentCrashError as error:
            raise UnavailableError(f"{self.name} {error} when it was asked what it is: reinstall it there.") from None
        self._described = question, environment
        version = with_converter(environment["runtime_version"], self.runtime.can_prepare().version)
        return environment | {"runtime_version": version, "hwnas_version": _hwnas_version()}

    def measure(self, model: bytes | Program, plan: TimingPlan, deadline: float = math.inf) -> SessionSamples:
        """One fresh session of an ONNX model, or of a program that was prepared before.

        Args:
            model: The model, or the program.
            plan: How it is timed.
            deadline: When to give it up, on the monotonic clock.

        Raises:
            InputError: The runtime refuses the model, or crashes or hangs on it every time.
            UnavailableError: The device cannot be reached any more, is another one now, or lacks what every model needs.
            TimeOverError: It was given up.
        """
        start = time.perf_counter()
        program = model if isinstance(model, Program) else self.runtime.prepare(model, self.config)
        question = program_message({"op": "measure", "plan": asdict(plan)}, program)
        timeout_s = self._patience.session_s + plan.max_seconds + plan.max_warmup_seconds
        try:
            session = self._ask(question, timeout_s, lambda answer: read_session(answer["session"]), deadline)
        except AgentKilledError as error:
            raise killed_twice(f"{self.name} {error} on the model") from None
        except AgentCrashError as error:
            raise InputError(f"{self.name} {error} on the model, {self._patience.attempts} times: choose another runtime, or "
                             "leave the block out.") from None
        finally:
            self._has_measured = True
        return replace(session, total_s=round(time.perf_counter() - start, 3))

    def renew(self) -> None:
        """Has the next session run in a fresh process."""
        if self._has_measured:
            self.close()

    def close(self) -> None:
        """Ends the agent; the device may be used again."""
        if self._link is not None:
            link, self._link = self._link, None
            link.close()

    def _ask(self, question: Message, timeout_s: float, read: Callable[[Mapping[str, Any]], T], deadline: float = math.inf) -> T:
        for attempt in range(1, self._patience.attempts + 1):
            try:
                return self._ask_reached(question, timeout_s, read, deadline)
            except AgentCrashError:
                if time.monotonic() >= deadline:
                    raise TimeOverError from None
                if attempt == self._patience.attempts:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _ask_reached(self, question: Message, timeout_s: float, read: Callable[[Mapping[str, Any]], T], deadline: float) -> T:
        for delay_s in (*self._patience.retry_s, None):
            try:
                link = self._link or self._start(deadline)
                with self._conversing(link):
                    return _read(read, link.ask(question, min(deadline, time.monotonic() + timeout_s)))
            except UnreachedError as error:
                if not self._reached:
                    needs = _REMOTE_NEEDS if self.where else "see 'hwnas devices'"
                    raise UnavailableError(f"{self.name} cannot be reached ({error}): {needs}.") from None
                if time.monotonic() + (delay_s or 0.0) >= deadline:
                    raise TimeOverError from None
                if delay_s is None:
                    raise UnavailableError(f"{self.name} cannot be reached any more ({error}): what was measured is kept; "
                                           "repeat the command when it is back.") from None
                time.sleep(delay_s)
        raise AssertionError("the last attempt returns or raises")

    def _start(self, until: float) -> Link:
        cpus = [",".join(map(str, self._cpus))] if self._cpus else []
        anchor = self._prepared_anchor
        link = self._launch([self.runtime.name, str(self.config.threads), self.config.precision, *cpus])
        self._link, self._has_measured = link, False
        deadline = min(until, time.monotonic() + self._patience.start_s)
        with self._conversing(link, starting=True):
            link.greet(deadline)
            link.ask(anchor, deadline)
            if self._described is not None:
                self._require_the_same(_read(_read_environment, link.ask(self._described[0], deadline)), self._described[1])
        self._reached = True
        return link

    @contextmanager
    def _conversing(self, link: Link, starting: bool = False) -> Iterator[None]:
        """Leaves no agent in an unknown state behind: whatever ends a conversation but a proper answer ends the agent.

        Args:
            link: The agent.
            starting: Whether it is not yet in use; then a refusal ends it, too.

        Raises:
            UnreachedError: The connection broke down, or the agent ended while it was starting.
            AgentCrashError: The agent ended, or was ended since it did not answer properly.
        """
        try:
            yield
        except ProtocolError as error:
            self._link = None
            raise _end(link, error, starting) from None
        except BaseException as error:
            if starting or not isinstance(error, HwnasError):
                self.close()
            raise

    @cached_property
    def _prepared_anchor(self) -> Message:
        return program_message({"op": "anchor"}, self.runtime.prepare(self._anchor.model, self.config))

    def _require_the_same(self, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        """A name may lead to several machines, and a machine may be changed while it is measured."""
        differences = compare_environments(before, now)
        if differences:
            listed = "; ".join(f"{key} was {old!r} and is {new!r}" for key, old, new in differences)
            raise UnavailableError(f"{self.name} must stay the same while it is measured, but {listed}: what was measured is "
                                   "kept; repeat the command when it is as it was.")


def open_device(device: str, config: RuntimeConfig, cpus: Sequence[int] = (), anchor: str | None = None) -> Device:
    """A device by its name: a runtime of this machine, or `ssh://user@host/runtime`.

    Args:
        device: The name.
        config: Threads and precision.
        cpus: Which processors to use, instead of the last ones.
        anchor: The name of the yardstick, of `hwnas.profiling.anchor`; None for the small one.

    Raises:
        InputError: There is no such runtime, or the address is malformed.
        UnavailableError: What this machine's half of the runtime needs is missing.
    """
    if "://" in device:
        from hwnas.profiling.ssh import open_ssh_device

        return open_ssh_device(device, config, cpus, anchor=anchor)
    return Device(load_runtime(device), config, launch_here, cpus=cpus, anchor=load_anchor(anchor))


def list_runtimes(launch: Launch, where: str, patience: Patience | None = None) -> dict[str, Availability]:
    """Whether each runtime can be measured on another machine: loaded there, and its models prepared here.

    A runtime that crashes when it is imported takes its agent with it, not the list.

    Args:
        launch: Starts an agent there with the given arguments.
        where: What to call the machine in messages.
        patience: How long to wait, for each runtime.

    Raises:
        UnavailableError: The machine cannot be reached, or has no Python for an agent.
    """
    config, wait_s = RuntimeConfig(), (patience or Patience()).start_s
    found: dict[str, Availability] = {}
    while missing := [name for name in RUNTIMES if name not in found]:
        link = launch([missing[0], str(config.threads), config.precision])
        asked = None
        try:
            link.greet(time.monotonic() + wait_s)
            for asked in missing:
                answer = link.ask(Message({"op": "availability", "runtime": asked}), time.monotonic() + wait_s)
                found[asked] = _with_preparation(RUNTIMES[asked], _read(_read_availability, answer))
        except ProtocolError as error:
            end = _end(link, error, starting=asked is None)
            if asked is None or isinstance(end, UnreachedError):
                raise UnavailableError(f"{where} cannot be reached ({end}): {_REMOTE_NEEDS}.") from None
            remedy = "free some memory there" if isinstance(end, AgentKilledError) else "reinstall it"
            found[asked] = Availability(False, reason=f"it {end} when it was imported; {remedy}")
        except BaseException:
            link.close()
            raise
        else:
            link.close()
    return found


def _with_preparation(runtime: Runtime, there: Availability) -> Availability:
    """What a runtime is worth that another machine has, to a profiler on this one."""
    here = runtime.can_prepare()
    if not there.available:
        return there
    if not here.available:
        return Availability(False, reason=f"models for it cannot be prepared on this machine: {here.reason}")
    return replace(there, version=with_converter(str(there.version), here.version))


def _read_availability(answer: Mapping[str, Any]) -> Availability:
    found = answer["availability"]
    version, reason = (None if found[key] is None else str(found[key]) for key in ("version", "reason"))
    return Availability(bool(found["available"]), version, reason)


def launch_here(arguments: Sequence[str]) -> Link:
    """Starts an agent on this machine."""
    return start_agent([*module_command("hwnas.profiling.guard"), *arguments])


def start_agent(command: Sequence[str], opening: bytes = b"", lost: Callable[[int], bool] = lambda status: False) -> Link:
    """Starts a program that leads to an agent, out of reach of the terminal's Ctrl-C.

    Args:
        command: The program.
        opening: What goes to it before any message.
        lost: Whether an exit status means that the connection broke down.

    Raises:
        UnavailableError: It does not start.
    """
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - the link closes it; a pipe that nobody reads would fill up
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
                                   start_new_session=True)
    except OSError as error:
        errors.close()
        raise UnavailableError(f"The program {command[0]} is needed but does not start ({error.strerror}): install it.") from None
    assert process.stdin is not None and process.stdout is not None  # both are pipes
    return Link(process, Stream(process.stdout.fileno(), process.stdin.fileno()), errors, opening, lost)


def load_anchor(name: str | None = None) -> Anchor:
    """An anchor by its name; the small one for None."""
    from hwnas.profiling.anchor import SMALL_ANCHOR, anchor_model, anchor_sha256  # needs onnx, which not every device has

    return Anchor(anchor_model(name or SMALL_ANCHOR), anchor_sha256(name or SMALL_ANCHOR))


def _read(read: Callable[[Mapping[str, Any]], T], answer: Mapping[str, Any]) -> T:
    try:
        return read(answer)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise ProtocolError("the agent's answer is malformed") from None


def _read_environment(answer: Mapping[str, Any]) -> dict[str, Any]:
    environment = dict(answer["environment"])
    return environment | {"runtime_version": str(environment["runtime_version"])}


def _end(link: Link, error: ProtocolError, starting: bool) -> UnreachedError | AgentCrashError:
    """Closes a link on which a conversation failed, and says what that means.

    Args:
        link: The agent.
        error: What came of the conversation.
        starting: Whether the agent was not yet in use.
    """
    status, words = link.close()
    if link.lost(status):
        return UnreachedError(words or str(error))
    crash = crash_of(status, error)
    if starting:
        return UnreachedError(f"its agent {crash}" + (f": {words}" if words else ""))
    return crash


def crash_of(status: int, error: ProtocolError) -> AgentCrashError:
    """What became of an agent that ended, or had to be; a signal's number comes negative, or from a guard with 128 added."""
    if isinstance(error, SilenceError):
        return AgentCrashError("hung")
    number = -status if status < 0 else status - 128
    if not isinstance(error, EndError) or status == 0:
        return AgentCrashError(f"failed ({error})")
    if number == SIGKILL:
        return AgentKilledError("was killed (SIGKILL)")
    return AgentCrashError(f"crashed ({Signals(number).name})" if number in set(Signals) else f"ended with status {status}")


def killed_twice(what: str) -> MachineFaultError:
    """The error to raise when an agent was killed in each attempt.

    Args:
        what: Who it was, and at what.
    """
    return MachineFaultError(f"{what}, every time, most likely because memory was short: free some there and repeat the command; "
                            "what was measured is kept.")


def _last_words(errors: IO[bytes]) -> str:
    """The last line of what was printed."""
    errors.seek(max(0, errors.seek(0, 2) - 10 * _LAST_WORDS))
    lines = ["".join(filter(str.isprintable, line)).strip() for line in errors.read().decode(errors="replace").splitlines()]
    return next((line[:_LAST_WORDS] for line in reversed(lines) if line), "")


def _hwnas_version() -> str | None:
    try:
        return metadata.version("hwnas")
    except metadata.PackageNotFoundError:  # run from a source tree
        return None

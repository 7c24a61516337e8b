"""The contract between hwnas and an inference runtime: describe yourself, compile an ONNX model, run it.

To compile is two steps, which may happen on two machines. `prepare` reads the model and converts it: the host's half, which
needs onnx and any converters. `load` takes the result on the device, where it needs the standard library, numpy and the
runtime's own package, and nothing else.

A runtime is one short file with a class that extends `Runtime` below and makes `Executable`s, one line in
`hwnas.runtimes.RUNTIMES`, and it inherits the contract suite in tests/runtimes. It imports its package inside its methods, so
that a machine that lacks the package can still list the runtime, with the reason and the remedy.
"""

import importlib
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from hwnas.errors import HwnasError, InputError, UnavailableError

Setting = str | int | float | bool

_SHORT_OF_MEMORY = re.compile(r"bad.?alloc|out of ?memory|insufficient memory|(?:not|n't|failed to|unable to) alloc",
                              re.IGNORECASE)


@dataclass(frozen=True)
class RuntimeConfig:
    """How a model is executed.

    Args:
        threads: Threads that one inference may use.
        precision: Arithmetic of the floating-point layers, one of the runtime's `precisions`. A quantised model
            carries its integer layers itself.

    Raises:
        InputError: `threads` is not a positive whole number.
    """

    threads: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 1:
            raise InputError(f"threads must be a whole number of at least 1, but got {self.threads!r}.")


@dataclass(frozen=True)
class Availability:
    """Whether a runtime is usable here; when not, `reason` says why and which command changes that."""

    available: bool
    version: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a model; the shape is fixed, since a latency belongs to one shape."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Program:
    """A model in the form that its runtime loads: all that travels to a device.

    Attributes:
        files: Contents by name.
        inputs: What goes in, in the model's order.
        outputs: What comes out, in the model's order.
    """

    files: Mapping[str, bytes] = field(repr=False)
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Bound:
    """One inference on buffers already in place: call it to run, as often as wanted. This is what gets timed.

    Args:
        infer: Runs once and returns when the results are complete (on a GPU too).
        read_outputs: Copies the results of the latest run.
    """

    infer: Callable[[], object]
    read_outputs: Callable[[], dict[str, np.ndarray]]

    def __call__(self) -> None:
        self.infer()


class Executable(Protocol):
    """A compiled model; not used after `close`."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs once; the results belong to the caller.

        Raises:
            InputError: Names, shapes or dtypes are not those of `inputs`.
        """
        ...

    def bind(self, inputs: Mapping[str, np.ndarray]) -> Bound:
        """Copies the inputs into buffers of its own and prepares runs on them with the smallest call overhead.

        Raises:
            InputError: Names, shapes or dtypes are not those of `inputs`.
        """
        ...

    def close(self) -> None:
        """Frees what the runtime holds; may be called twice."""
        ...


class Runtime(Protocol):
    """An inference runtime on one kind of device; runtimes inherit what both halves together are."""

    name: str
    precisions: tuple[str, ...]

    def can_prepare(self) -> Availability:
        """Says whether `prepare` works here, with the converter's name and version if there is one; never raises.

        It always does where the runtime itself reads ONNX.
        """
        return Availability(True)

    @abstractmethod
    def can_load(self) -> Availability:
        """Says whether `load` works here, with the runtime's version; never raises."""
        ...

    def availability(self) -> Availability:
        """Says whether the runtime is usable here on its own, for both halves; never raises."""
        found = self.can_load()
        if not found.available:
            return found
        converter = self.can_prepare()
        if not converter.available:
            return converter
        return replace(found, version=with_converter(str(found.version), converter.version))

    @abstractmethod
    def settings(self, config: RuntimeConfig) -> dict[str, Setting]:
        """Everything but the version that decides the latency of a compiled model, under the runtime's own names.

        Exactly what `load` uses; for an accelerator also the device's name and driver. Needs no package.

        Raises:
            InputError: The runtime lacks the precision.
        """
        ...

    @abstractmethod
    def prepare(self, model: bytes | Path, config: RuntimeConfig) -> Program:
        """Reads an ONNX model, given as its bytes or its file, and converts it.

        Raises:
            InputError: The model is malformed, of open shape or not supported, or the runtime lacks the precision.
            UnavailableError: The converter does not work here.
        """
        ...

    @abstractmethod
    def load(self, program: Program, config: RuntimeConfig) -> Executable:
        """Loads what `prepare` made for the same configuration, here or on another machine.

        Raises:
            InputError: The runtime refuses the program, or lacks the precision.
            UnavailableError: This machine cannot execute the precision.
        """
        ...

    def clock_mhz(self) -> int | None:
        """How fast the accelerator runs at this moment; None where there is none, or where it does not tell; never raises."""
        return None

    def compile(self, model: bytes | Path, config: RuntimeConfig) -> Executable:
        """Prepares and loads an ONNX model, given as its bytes or its file.

        Raises:
            InputError: The model is malformed, not supported or of open shape, or the runtime lacks the precision.
            UnavailableError: This machine cannot execute the precision.
        """
        return self.load(self.prepare(model, config), config)


def with_converter(version: str, converter: str | None) -> str:
    """A runtime's version together with that of its converter, if there is one.

    Args:
        version: As `can_load` gives it.
        converter: As `can_prepare` gives it.
    """
    return version if converter is None else f"{version} ({converter})"


def probe_package(package: str, install: str) -> Availability:
    """Imports a runtime's package and reports what came of it.

    Args:
        package: The module to import.
        install: The command that installs it.
    """
    try:
        version = importlib.import_module(package).__version__
    except ModuleNotFoundError as error:
        if error.name == package.partition(".")[0]:
            return Availability(False, reason=f"{package} is not installed; run: {install}")
        return Availability(False, reason=f"{package} lacks its own dependency {error.name}; run: {install}")
    except Exception as error:  # a broken native library may raise anything; listing the runtimes must survive it
        why = f"{type(error).__name__}: {one_line(error)}"
        return Availability(False, reason=f"{package} is installed but does not import ({why}); reinstall it: {install}")
    return Availability(True, version=version)


def check_precision(runtime: Runtime, config: RuntimeConfig) -> None:
    """Refuses a precision that the runtime does not have.

    Raises:
        InputError: With the precisions that it does have.
    """
    if config.precision not in runtime.precisions:
        known = ", ".join(runtime.precisions)
        raise InputError(f"{runtime.name} does not run in {config.precision!r}: choose one of {known}.")


def check_inputs(expected: tuple[TensorInfo, ...], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the given arrays in the model's order, contiguous, after checking them against the model.

    Raises:
        InputError: A name is missing or unknown, or a shape or dtype differs.
    """
    names = [tensor.name for tensor in expected]
    if set(given) != set(names):
        raise InputError(f"The model's inputs are {sorted(names)}, but got {sorted(given)}: give each by its name.")
    arrays = {}
    for tensor in expected:
        array = given[tensor.name]
        if not isinstance(array, np.ndarray) or array.shape != tensor.shape or array.dtype != tensor.dtype:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"Input {tensor.name!r} must be a {tensor.dtype} array {tensor.shape}, but got {got}.")
        arrays[tensor.name] = np.asarray(array, order="C")
    return arrays


class MachineFaultError(UnavailableError):
    """The machine lacked memory or a package for a model; whether it would at another time is not known."""


def machine_fault(runtime: Runtime, error: Exception) -> MachineFaultError | None:
    """What to raise of an error that may say nothing about the model that was at work; None of any other.

    Native libraries have no type of error for a lack of memory, only words.
    """
    if not isinstance(error, MemoryError | ImportError) and not _SHORT_OF_MEMORY.search(str(error)):
        return None
    return MachineFaultError(f"{runtime.name} lacks memory or a package where it runs ({described(error)}): free some memory, "
                             "or reinstall it.")


def compile_refusal(runtime: Runtime, error: Exception) -> HwnasError:
    """The error to raise when a runtime's own compiler refuses a model that is valid ONNX as far as it was read."""
    return machine_fault(runtime, error) or InputError(
        f"{runtime.name} cannot compile the model ({one_line(error)}): export it for an older opset, or check it with "
        "onnx.checker."
    )


def described(error: Exception) -> str:
    """An error's type and message as one short line."""
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: Exception) -> str:
    """A native library's error message as one short line, without the lines that only name its own source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith("Exception from "))
    return text if len(text) <= 300 else f"{text[:297]}..."

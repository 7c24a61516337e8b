"""The few parts of CUDA that running an engine takes: memory, a stream, and a graph that replays recorded work.

Every call is checked. What is allocated is freed with the object that holds it. Needs the package cuda-bindings.
"""

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from hwnas.errors import UnavailableError


class Stream:
    """Work that the GPU does in order."""

    def __init__(self) -> None:
        cuda = _cuda()
        self._stream = check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.handle = int(self._stream)
        weakref.finalize(self, cuda.cudaStreamDestroy, self._stream)

    def wait(self) -> None:
        """Returns when all work is done."""
        check(_cuda().cudaStreamSynchronize(self._stream))

    def record(self, work: Callable[[], None]) -> "Graph":
        """Makes a graph of the work that a function puts on this stream; nothing runs yet."""
        cuda = _cuda()
        check(cuda.cudaStreamBeginCapture(self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        try:
            work()
        finally:  # whatever happened, the stream must leave its recording state
            ended = cuda.cudaStreamEndCapture(self._stream)
        graph = check(ended)
        try:
            return Graph(self, check(cuda.cudaGraphInstantiate(graph, 0)))
        finally:
            cuda.cudaGraphDestroy(graph)


class Graph:
    """Recorded work: one call starts all of its kernels."""

    def __init__(self, stream: Stream, executable: Any) -> None:
        cuda = _cuda()
        self._stream = stream
        self._executable = executable
        self._launch, self._synchronize = cuda.cudaGraphLaunch, cuda.cudaStreamSynchronize
        weakref.finalize(self, cuda.cudaGraphExecDestroy, executable)

    def run(self) -> None:
        """Runs once and returns when the results are complete."""
        check(self._launch(self._executable, self._stream.handle))
        check(self._synchronize(self._stream.handle))


class DeviceArray:
    """An array in the GPU's memory."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, stream: Stream) -> None:
        cuda = _cuda()
        self._shape, self._dtype = shape, dtype
        self._stream = stream
        self._bytes = math.prod(shape) * dtype.itemsize
        self.address = check(cuda.cudaMalloc(self._bytes))
        weakref.finalize(self, cuda.cudaFree, self.address)

    def write(self, array: np.ndarray) -> None:
        """Copies a contiguous array of the same shape and dtype to the GPU."""
        self._copy(self.address, array.ctypes.data, "cudaMemcpyHostToDevice")

    def read(self) -> np.ndarray:
        """Copies to an array of the caller's own."""
        array = np.empty(self._shape, self._dtype)
        self._copy(array.ctypes.data, self.address, "cudaMemcpyDeviceToHost")
        return array

    def _copy(self, target: int, source: int, kind: str) -> None:
        cuda = _cuda()
        check(cuda.cudaMemcpyAsync(target, source, self._bytes, cuda.cudaMemcpyKind[kind], self._stream.handle))
        self._stream.wait()


def check(result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, after a look at its status.

    Raises:
        UnavailableError: The call failed.
    """
    status, *values = result
    if int(status):
        cuda = _cuda()
        name, text = (describe(status)[1].decode() for describe in (cuda.cudaGetErrorName, cuda.cudaGetErrorString))
        raise UnavailableError(f"The GPU must do what it is asked, but reported {name} ({text}): see `nvidia-smi` for what else "
                               "occupies it, and start anew.")
    return values[0] if values else None


def _cuda() -> Any:
    from cuda.bindings import runtime

    return runtime

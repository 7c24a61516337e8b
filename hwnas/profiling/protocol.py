"""How a profiler talks to the agent beside the runtime that it measures: messages over a pair of byte streams.

A message is one line of JSON, followed by the bytes of the files that the line announces. Nothing but the standard library and
numpy is needed, and no message is ever executed or unpickled. Both sides may be anything but honest: whatever arrives, it is a
message or a `ProtocolError`.
"""

import json
import math
import os
import re
import selectors
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwnas.runtimes.base import Program, TensorInfo

# Begins the line before the first message: READY, or why there is no agent. What a login script prints before it is skipped.
GREETING = "hwnas-agent: "
READY = "ready"

_MAX_LINE_BYTES = 1 << 26  # far beyond any honest message, far below any memory
_MAX_FILES_BYTES = 1 << 32
_CHUNK_BYTES = 1 << 20
_LONGEST_WAIT_S = 86400.0  # of one system call, which takes no more than some weeks
_DTYPE = re.compile(r"[<>|][biufcOSUV][0-9]{0,4}")


class ProtocolError(Exception):
    """What the other side said is no message, or it did not say one; the subclasses tell why."""


class EndError(ProtocolError):
    """The other side ended."""


class SilenceError(ProtocolError):
    """The other side said, or took, nothing for too long."""


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        content: What it says.
        files: Bytes by name.
    """

    content: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


class Stream:
    """Messages over two file descriptors, with a limit on how long to wait; deadlines are on the monotonic clock.

    Args:
        read_fd: Where the other side's messages arrive.
        write_fd: Where messages to it go; becomes non-blocking, so that a side that does not read cannot hold this one.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._buffer = bytearray()
        os.set_blocking(write_fd, False)

    def fileno(self) -> int:
        """What becomes readable when the other side says something, or ends."""
        return self._read_fd

    def send(self, message: Message, deadline: float = math.inf) -> None:
        """Sends a message.

        Raises:
            EndError: The other side has ended.
            SilenceError: It does not read.
        """
        sizes = {name: len(content) for name, content in message.files.items()}
        self.send_bytes(json.dumps({**message.content, "files": sizes}).encode() + b"\n", deadline)
        for content in message.files.values():
            self.send_bytes(content, deadline)

    def send_bytes(self, content: bytes, deadline: float = math.inf) -> None:
        """Sends bytes outside of any message.

        Raises:
            EndError: The other side has ended.
            SilenceError: It does not read.
        """
        rest = memoryview(content)
        while rest:
            _wait(self._write_fd, selectors.EVENT_WRITE, deadline)
            try:
                rest = rest[os.write(self._write_fd, rest[:_CHUNK_BYTES]):]
            except BlockingIOError:
                continue
            except OSError as error:
                raise EndError(f"the connection ended ({error.strerror})") from None

    def receive(self, deadline: float = math.inf) -> Message:
        """Waits for a message.

        Raises:
            ProtocolError: What came is no message.
            EndError: The other side has ended.
            SilenceError: Not all of it came in time.
        """
        line = self.receive_line(deadline)
        try:
            content = json.loads(line)
            sizes = _checked_sizes(content.pop("files"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ProtocolError(f"what came is no message ({line[:80]!r})") from None
        return Message(content, {name: self._take(size, deadline) for name, size in sizes.items()})

    def receive_line(self, deadline: float = math.inf) -> bytes:
        """Waits for a line, without its end.

        Raises:
            ProtocolError: The line has no end.
            EndError: The other side has ended.
            SilenceError: It did not come in time.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > _MAX_LINE_BYTES:
                raise ProtocolError("a message's line has no end")
            self._fill(deadline)
        line = bytes(self._buffer[:end])
        del self._buffer[:end + 1]
        return line

    def _take(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            self._fill(deadline)
        content = bytes(self._buffer[:size])
        del self._buffer[:size]
        return content

    def _fill(self, deadline: float) -> None:
        _wait(self._read_fd, selectors.EVENT_READ, deadline)
        try:
            content = os.read(self._read_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise EndError(f"the connection ended ({error.strerror})") from None
        if not content:
            raise EndError("the connection ended")
        self._buffer += content


def _wait(descriptor: int, event: int, deadline: float) -> None:
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(descriptor, event)
        except (OSError, ValueError) as error:
            raise EndError(f"the connection ended ({error})") from None
        if not selector.select(min(max(0.0, deadline - time.monotonic()), _LONGEST_WAIT_S)) and time.monotonic() >= deadline:
            raise SilenceError("it did not answer in time")


def _checked_sizes(sizes: Any) -> dict[str, int]:
    if not all(type(size) is int and size >= 0 for size in sizes.values()) or sum(sizes.values()) > _MAX_FILES_BYTES:
        raise ValueError("sizes of files must be whole numbers from 0 on, and not too large")
    return dict(sizes)


def program_message(content: Mapping[str, Any], program: Program) -> Message:
    """A message that carries a program."""
    ends = {name: [[tensor.name, list(tensor.shape), tensor.dtype.str] for tensor in tensors]
            for name, tensors in (("inputs", program.inputs), ("outputs", program.outputs))}
    return Message({**content, **ends}, program.files)


def program_of(message: Message) -> Program:
    """The program that a message carries.

    Raises:
        ProtocolError: It is malformed.
    """
    try:
        inputs, outputs = (tuple(_tensor_info(*tensor) for tensor in message.content[end]) for end in ("inputs", "outputs"))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ProtocolError("a program's inputs or outputs are malformed") from None
    return Program(message.files, inputs, outputs)


def _tensor_info(name: Any, shape: Any, dtype: Any) -> TensorInfo:
    if not isinstance(name, str) or not all(type(size) is int and size >= 0 for size in shape) or not _DTYPE.fullmatch(dtype):
        raise ValueError("a tensor has a name, a shape and a type")
    return TensorInfo(name, tuple(shape), np.dtype(dtype))

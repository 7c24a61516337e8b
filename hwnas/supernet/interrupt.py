"""A Ctrl-C that waits for the end of a step, so that no step is cut in half."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt(once: bool = True) -> Iterator[threading.Event]:
    """Turns Ctrl-C into an event.

    Args:
        once: The second interrupts as usual. Under `torchrun`, which passes on the signal that its children have got already,
            none does; it ends by force what does not stop by itself.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield event
        return
    previous = signal.getsignal(signal.SIGINT) or signal.SIG_DFL  # None: set by other than Python

    def note(number: int, frame: FrameType | None) -> None:
        event.set()
        if once:
            signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)

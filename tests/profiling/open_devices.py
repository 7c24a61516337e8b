"""Devices that stay open: a round starts a fresh agent anyway, and what is refused before the first can do with the last one."""

import functools
from contextlib import ExitStack

from hwnas.profiling.device import Device, open_device
from hwnas.runtimes import RuntimeConfig

_OPEN = ExitStack()


@functools.cache
def device_of(name: str, config: RuntimeConfig) -> Device:
    return _OPEN.enter_context(open_device(name, config))


def close_devices() -> None:
    _OPEN.close()
    device_of.cache_clear()

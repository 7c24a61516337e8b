"""No agent is left behind."""

import pytest

from tests.profiling.open_devices import close_devices


@pytest.fixture(scope="module", autouse=True)
def closed_devices():
    yield
    close_devices()

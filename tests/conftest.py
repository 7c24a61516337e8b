"""Settings for the whole suite."""

import gc
import os
import signal

from hypothesis import settings

# Two processes share two cores in the suite, and frameworks start a thread for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it runs in the background ignore Ctrl-C, which everything that the tests start would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: shared machines pause a process for longer than hypothesis' default of 200 ms. The suite's examples are always
# the same, so that a change is judged by what it changed; `make fuzz` looks for new ones.
settings.register_profile("hwnas", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("fuzz", deadline=None, print_blob=True, max_examples=100)
settings.load_profile(os.environ.get("HWNAS_HYPOTHESIS", "hwnas"))


def pytest_collection_modifyitems(items):
    """The commands of the documentation first: a page is one long test, and at the end the other process would wait for it."""
    items.sort(key=lambda item: "test_docs.py::test_commands_run" not in item.nodeid)


def pytest_collection_finish():
    """What is imported by now stays: without this a garbage collection takes longer than most tests."""
    gc.collect()
    gc.freeze()

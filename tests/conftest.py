"""Settings for the whole suite."""

import os

from hypothesis import settings

# Two processes share two cores in the suite, and frameworks start a thread for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Shared machines pause a process for longer than hypothesis' default of 200 ms.
settings.register_profile("hwnas", deadline=None)
settings.load_profile("hwnas")

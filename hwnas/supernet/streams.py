"""Random streams as pure functions of (seed, purpose, index): what makes a resumed run exact without stored generators."""

import zlib

import numpy as np


def stream_seed(seed: int, purpose: str, index: int) -> int:
    """A 63-bit seed for one use of randomness, independent of every other purpose and index.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for ("paths", "augmentation", ...).
        index: Which draw, the training step for example.
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index])
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1

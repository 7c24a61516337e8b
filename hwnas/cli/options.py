"""Checks of arguments that several verbs share and that must be told before anything is loaded."""

import math

from hwnas.errors import InputError


def check_budgets(*max_latency_ms: float | None) -> None:
    """A budget may be too small for any network, which is an answer; infinity and NaN are slips.

    Raises:
        InputError: One is not finite.
    """
    for budget in max_latency_ms:
        if budget is not None and not math.isfinite(budget):
            raise InputError(f"A latency budget is a finite number of milliseconds, but is {budget}: give one, or none at all "
                             "where there is no limit.")

"""Checks of arguments that several verbs share and that must be told before anything is loaded."""

import math

from hwnas.errors import InputError

_MOST_PROCESSORS = 4096


def check_budgets(*max_latency_ms: float | None) -> None:
    """A budget may be too small for any network, which is an answer; infinity and NaN are slips.

    Raises:
        InputError: One is not finite.
    """
    for budget in max_latency_ms:
        if budget is not None and not math.isfinite(budget):
            raise InputError(f"A latency budget is a finite number of milliseconds, but is {budget}: give one, or none at all "
                             "where there is no limit.")


def processors(text: str | None) -> tuple[int, ...]:
    """Processor numbers from "2,3" or "4-7"; none at all for None.

    Raises:
        InputError: It is something else.
    """
    if text is None:
        return ()
    try:
        ranges = [[int(number) for number in part.split("-")] for part in text.split(",")]
        found = tuple(number for first, *last in ranges for number in range(first, (last or [first])[-1] + 1))
    except ValueError:
        found = ()
    if not found or len(found) > _MOST_PROCESSORS or min(found) < 0:
        raise InputError(f"Processors are numbers such as 2,3 or 4-7, but got {text!r}: see 'lscpu --extended'.")
    return found

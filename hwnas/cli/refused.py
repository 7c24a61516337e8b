"""What the verbs that read a table say of the blocks that its runtime refuses."""

from typing import TYPE_CHECKING

from hwnas.cli.console import say

if TYPE_CHECKING:
    from hwnas.latency.table import LatencyTable


def warn_of_refused(table: "LatencyTable") -> None:
    """One line on stderr about what is refused, and so left out; nothing where nothing is."""
    from hwnas.latency.summary import refusal_warning

    warning = refusal_warning(table)
    if warning is not None:
        say(f"Note: {warning}")

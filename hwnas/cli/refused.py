"""What the verbs that make or read a table say of what its runtime refuses."""

from typing import TYPE_CHECKING

from hwnas.cli.console import say

if TYPE_CHECKING:
    from hwnas.latency.table import LatencyTable


def warn_of_refused(table: "LatencyTable") -> None:
    """One line on stderr about blocks that are refused, and so left out; nothing where none is."""
    from hwnas.latency.summary import refusal_warning

    warning = refusal_warning(table)
    if warning is not None:
        say(f"Note: {warning}")


def warn_of_refused_networks(table: "LatencyTable") -> None:
    """One line on stderr about whole networks that are refused though their blocks are not; nothing where none is."""
    from hwnas.latency.summary import refused_networks_warning

    warning = refused_networks_warning(table)
    if warning is not None:
        say(f"Warning: {warning}")

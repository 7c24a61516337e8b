"""Prints what docs/networks.md says of docs/networks.json: python tools/list_networks.py

The page names the command that measures that file and draws the picture.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from hwnas.cli.console import ms, quantity

ROOT = Path(__file__).parent.parent
COLUMNS = ("network", "top-1", "measured", "95 % interval", "MACs")
_ALIKE = 1.05  # the larger figure of two that are alike over the smaller, at most


def markdown(document: Mapping[str, Any]) -> str:
    """The networks on the front of a ranking, and the pairs of which MACs say least.

    Args:
        document: What `hwnas networks --device D --output FILE` writes.
    """
    there, networks = document["environment"], document["networks"]
    judged = [one for one in networks if one["top1"] is not None]
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(
        (one["name"], f"{one['top1']:.1f} %", f"{ms(one['latency_ms'])} ms", f"{ms(one['lower_ms'])} to {ms(one['upper_ms'])}",
         quantity(one["macs"])) for one in networks if one["on_front"])]
    alike = f"alike (within {100 * (_ALIKE - 1):.0f} %)"
    return "\n".join([
        f"{there['device']}, {there['runtime']} {there['runtime_version']}, {there['precision']}, {there['threads']} "
        f"thread{'s' if there['threads'] > 1 else ''}. {len(networks)} networks were timed; of the {len(judged)} whose accuracy "
        "was published, no other is both faster and more accurate than one of these:", "",
        *(f"| {' | '.join(row)} |" for row in rows), "",
        "What MACs do not say, of the same networks:", "",
        f"- MACs {alike}, latency least alike: {_compared(least_alike(judged, alike='macs', unlike='latency_ms'))}",
        f"- latency {alike}, MACs least alike: {_compared(least_alike(judged, alike='latency_ms', unlike='macs'))}"])


def least_alike(networks: Sequence[Mapping[str, Any]], *, alike: str, unlike: str
                ) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Of the pairs alike in one figure, the one furthest apart in another, its larger one first; None where none is alike."""
    pairs = [(one, other) for one, other in permutations(networks, 2) if 1 / _ALIKE <= one[alike] / other[alike] <= _ALIKE]
    return max(pairs, key=lambda pair: float(pair[0][unlike] / pair[1][unlike]), default=None)


def _compared(pair: tuple[Mapping[str, Any], Mapping[str, Any]] | None) -> str:
    if pair is None:
        return "no pair"
    one, other = pair
    return (f"{one['name']} has {one['macs'] / other['macs']:.2f} times the MACs of {other['name']} and takes "
            f"{one['latency_ms'] / other['latency_ms']:.2f} times as long")


if __name__ == "__main__":
    print(markdown(json.loads((ROOT / "docs" / "networks.json").read_text())))

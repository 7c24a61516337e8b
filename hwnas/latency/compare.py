"""Two tables beside each other, and one table against what it has to be."""

from dataclasses import dataclass
from statistics import median

import numpy as np

from hwnas.errors import VerificationError
from hwnas.ir.steps import Space
from hwnas.latency.correlation import rank_correlation
from hwnas.latency.seams import cost_model
from hwnas.latency.summary import block_costs, block_counts, estimate_error, refused_networks_warning
from hwnas.latency.table import HeldOut, LatencyTable

# A table is additive, its blocks' costs adding up to a network's, when on networks that no fit has seen it is no further off
# than this on average, and ranks them at least so well.
ADDITIVE_MEAN_ERROR = 0.05
ADDITIVE_SPEARMAN = 0.9
_ENOUGH_HELD_OUT = 19  # fewer networks bear no 95 % interval
# The 95th percentile of sessions over the 5th, both of which 'hwnas table show' prints: most tables in latency_tables are within
# 1.1, and all within 1.15 but for the few that stand out, above 1.25.
_STEADY_ANCHOR = 1.2
_GOOD_ESTIMATES = 0.1  # networks average out the errors of their blocks, but those of alike blocks are alike


@dataclass(frozen=True)
class Change:
    """An entry that two tables have.

    Attributes:
        workload: Block and input shape.
        before: In the first table, in the difference's unit.
        after: In the second.
        beyond_intervals: Whether the two 95 % intervals lie apart; None where one is unknown.
    """

    workload: str
    before: float
    after: float
    beyond_intervals: bool | None

    @property
    def relative(self) -> float:
        """After over before, less one."""
        return self.after / self.before - 1


@dataclass(frozen=True)
class TableDifference:
    """What distinguishes two tables.

    Attributes:
        unit: `ratio` where both have the same anchor, else `ms`.
        only_in_first: Workloads that the second table lacks.
        only_in_second: Workloads that the first table lacks.
        common: Workloads that both have, in the first table's order.
    """

    unit: str
    only_in_first: tuple[str, ...]
    only_in_second: tuple[str, ...]
    common: tuple[Change, ...]

    @property
    def changed(self) -> tuple[Change, ...]:
        """Those whose intervals lie apart, the largest change first."""
        beyond = [change for change in self.common if change.beyond_intervals]
        return tuple(sorted(beyond, key=lambda change: -abs(np.log(change.after / change.before))))

    @property
    def median_change(self) -> float | None:
        """Median relative change of the common entries; None without any."""
        return median(change.relative for change in self.common) if self.common else None

    @property
    def spearman(self) -> float | None:
        """Whether both tables rank the common entries alike; None where that cannot be said."""
        return rank_correlation([change.before for change in self.common], [change.after for change in self.common])


def compare_tables(first: LatencyTable, second: LatencyTable) -> TableDifference:
    """Compares two tables entry by entry, of whatever spaces and environments.

    Ratios are compared where both are to the same anchor, milliseconds elsewhere; these move with the clock.
    """
    same_anchor = first.anchor.sha256 == second.anchor.sha256
    scales = (1.0, 1.0) if same_anchor else (first.anchor_ms, second.anchor_ms)
    common = tuple(
        Change(key, entry.ratio * scales[0], second.entries[key].ratio * scales[1],
               _lie_apart(_scaled(entry.ratio_ci, scales[0]), _scaled(second.entries[key].ratio_ci, scales[1])))
        for key, entry in first.entries.items() if key in second.entries)
    return TableDifference("ratio" if same_anchor else "ms", tuple(key for key in first.entries if key not in second.entries),
                           tuple(key for key in second.entries if key not in first.entries), common)


_Ends = tuple[float, float] | None


def _scaled(ends: _Ends, scale: float) -> _Ends:
    return None if ends is None else (ends[0] * scale, ends[1] * scale)


def _lie_apart(first: _Ends, second: _Ends) -> bool | None:
    if first is None or second is None:
        return None
    return first[1] < second[0] or second[1] < first[0]


def is_additive(held_out: HeldOut) -> bool | None:
    """Whether the blocks' costs add up to those of networks that no fit has seen; None where too few were measured to say."""
    if held_out.networks < 3:
        return None
    return held_out.mean_error <= ADDITIVE_MEAN_ERROR and held_out.spearman >= ADDITIVE_SPEARMAN


def require_complete(table: LatencyTable, space: Space | None = None) -> None:
    """Refuses a table that cannot predict every network of its space.

    Args:
        table: The table.
        space: The space that it has to be of; its own when None.

    Raises:
        VerificationError: It is of another space, or lacks a block.
    """
    if space is not None and space.hash != table.search_space.hash:
        asked = space.measured_parts
        known = sum(workload in table.entries for workload in asked)
        raise VerificationError(
            f"A table must be of the space that is asked for, but it is of {table.space!r} ({table.search_space.hash[:12]}), "
            f"{space.name!r} is {space.hash[:12]}, and it has {known} of that one's {len(asked)} blocks: profile that space.")
    missing = table.missing_workloads()
    if missing:
        raise VerificationError(
            f"A table must have every block of its space, but {len(missing)} of {len(missing) + len(table.entries)} of "
            f"{table.space!r} are missing, the first being {missing[0]}: complete it with "
            f"'hwnas profile --device {table.environment.get('runtime')} --space ...'.")


def table_warnings(table: LatencyTable) -> list[str]:
    """What a user of a whole table should know: one sentence each, the gravest first."""
    warnings, held_out, effort = [], cost_model(table).held_out, table.effort
    if effort is not None and not effort.complete:
        warnings.append(f"Only {effort.sessions} of {effort.planned_sessions} planned sessions were measured: the same 'hwnas "
                        "profile' command completes the table.")
    refused = refused_networks_warning(table)
    if refused is not None:
        warnings.append(refused)
    imported = sum(entry.label == "imported" for entry in table.entries.values())
    if imported:
        warnings.append(f"{imported} entries were imported: neither their sessions nor their environment are known.")
    error = estimate_error(table)
    if error is not None and error > _GOOD_ESTIMATES:
        warnings.append(f"{block_counts(table)['estimated']} of {len(table.entries)} blocks are estimated, and estimates are off "
                        f"by {100 * error:.0f} % in the median: measure more, by the same 'hwnas profile' with more --blocks.")
    if held_out.networks == 0:
        warnings.append("No network has judged the table, so its interval is a guess and no promise can be made on it.")
    elif held_out.networks < _ENOUGH_HELD_OUT:
        warnings.append(f"Only {held_out.networks} networks judge the table; a 95 % interval needs {_ENOUGH_HELD_OUT}.")
    if is_additive(held_out) is False:
        warnings.append(
            f"The blocks do not add up: on networks that no fit has seen, the mean error is {100 * held_out.mean_error:.1f} % "
            f"(at most {100 * ADDITIVE_MEAN_ERROR:.0f} %) and the rank correlation {held_out.spearman:.3f} "
            f"(at least {ADDITIVE_SPEARMAN}).")
    low_ms, high_ms = table.anchor.spread_ms
    if high_ms > _STEADY_ANCHOR * low_ms:
        warnings.append(
            f"The anchor took {low_ms:.3g} to {high_ms:.3g} ms (5th to 95th percentile of its sessions; more than "
            f"{_STEADY_ANCHOR} times as long), so the machine was not alone or changed its clock: ratios survive that mostly, "
            "and 'hwnas table judge' tells whether the table holds.")
    noisy = [row for row in block_costs(table) if row.label == "noisy"]
    if noisy:
        worst = max(noisy, key=lambda row: row.relative_ci or 0.0)
        warnings.append(f"{len(noisy)} of {len(table.entries)} entries are noisy; the worst, {worst.workload}, is known to "
                        f"± {100 * (worst.relative_ci or 0.0):.1f} %.")
    return warnings

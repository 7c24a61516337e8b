"""Judges a finished table in another hour: networks that nothing has seen, measured here and now.

A profile ends with networks that judge it, but they share its hour, and a machine has ratios of its own for hours. Such a sitting
shows whether the table's word still holds. Kept in the table, it joins the interval; it never joins the fit, so the next one is
judged by the same predictions.
"""

import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np

from hwnas.errors import InputError
from hwnas.files import locked
from hwnas.ir.grid import Floats
from hwnas.latency.compare import require_complete
from hwnas.latency.correlation import rank_correlation
from hwnas.latency.seams import LatencyModel, cost_model
from hwnas.latency.table import COVERAGE, LatencyTable, NetworkRecord, SittingRecord, load_table
from hwnas.profiling.device import Device
from hwnas.profiling.environment import require_same_environment
from hwnas.profiling.profiler import ProfilePlan, Workload, plan_networks
from hwnas.profiling.rounds import Progress, RoundsPlan, measure_rounds, open_journal, without_disturbed

JOURNAL_SCHEMA = "hwnas.judging-journal/1"
JUDGING = RoundsPlan(min_sessions=5, max_sessions=5, max_minutes=10.0)
_IMPLAUSIBLE = 0.01  # an interval that covers as it says would hold for so few networks less often than this


@dataclass(frozen=True)
class Judgement:
    """What a sitting says of the table that it judges.

    Attributes:
        table: As it was before.
        sitting: What was measured.
        refused: Why the device does not run a network, by key.
    """

    table: LatencyTable
    sitting: SittingRecord
    refused: dict[str, str]

    @cached_property
    def errors(self) -> Floats:
        """Measured over predicted, less one, of each network; (networks,)."""
        return self._costs.errors(self.sitting.networks)

    @property
    def departure(self) -> float:
        """The median of the errors: how much slower than predicted the device is now."""
        return float(np.median(self.errors))

    @property
    def covered(self) -> int:
        """For how many networks the table's interval held."""
        return int((np.abs(self.errors) <= self._costs.held_out.interval).sum())

    @property
    def spearman(self) -> float | None:
        """Rank correlation of prediction and measurement; None where it is not defined."""
        predicted = self._costs.predicted_ratios(self.sitting.networks)
        return rank_correlation(predicted.tolist(), [record.ratio for record in self.sitting.networks])

    @property
    def holds(self) -> bool:
        """Whether so few networks within the interval could be chance; one-sided, at 1 %."""
        count = len(self.errors)
        chance = math.fsum(math.comb(count, held) * COVERAGE**held * (1 - COVERAGE)**(count - held)
                           for held in range(self.covered + 1))
        return chance > _IMPLAUSIBLE

    @cached_property
    def _costs(self) -> LatencyModel:
        return cost_model(self.table)


def judge_table(path: str | os.PathLike[str], device: Device, *, networks: int = 20, plan: RoundsPlan | None = None,
                seed: int | None = None, keep: bool = False, progress: Progress | None = None) -> Judgement:
    """Measures networks that the table has not seen; continues what an earlier call began.

    Args:
        path: The table's.
        device: The table's.
        networks: How many, spread over the space's range of MACs; those that the table knows stand in where there are no others.
        plan: How much of each; `JUDGING` when None. Networks without a session when its time is over do not judge.
        seed: Chooses the networks; None for others in every sitting that is kept.
        keep: Whether they join the table.
        progress: As of `hwnas.profiling.rounds.measure_rounds`.

    Raises:
        VerificationError: The table lacks a block.
        InputError: The environment is another one than the table's, a value is out of range, or nothing could be measured.
        UnavailableError: The device cannot be reached, or not any more; what was measured is kept.
    """
    if networks < 1:
        raise InputError(f"A table is judged by 1 network or more, but got {networks}.")
    path, plan = Path(path), plan or JUDGING
    with locked(path, "latency table"):
        table = load_table(path)
        require_complete(table)
        batch_size = int(table.environment["batch_size"])
        environment = device.environment(batch_size)
        require_same_environment(table.environment, environment, f"the table {path}")
        seed = len(table.sittings) + 1 if seed is None else seed
        chosen = unseen_networks(table, networks, batch_size, seed)
        journal = path.with_name(path.name + ".judging")
        refused: dict[str, str] = {}
        header = {"schema": JOURNAL_SCHEMA, "space_hash": table.search_space.hash, "seed": seed, "networks": networks,
                  "environment": environment}
        measured = open_journal(journal, header, refused=refused)
        measure_rounds({workload.key: workload.model for workload in chosen}, measured, journal, device, plan, seed=seed,
                       progress=progress, refused=refused)
        counted = without_disturbed(measured, plan, lambda key: 1)
        records = tuple(NetworkRecord(choices=workload.choices, role="held_out",
                                      sessions=tuple(session.ratios for session in counted[workload.key]))
                        for workload in chosen if counted.get(workload.key))
        if not records:
            raise InputError("A table needs at least one network to judge it, but none was measured: "
                             + next(iter(refused.values()), "raise --max-minutes."))
        anchor_ms = median(session.anchor_ms for sessions in measured.values() for session in sessions)
        sitting = SittingRecord(measured_utc=datetime.now(UTC).isoformat(timespec="seconds"), anchor_ms=anchor_ms,
                                networks=records)
        if keep:
            table.with_sitting(sitting).save(path)
        journal.unlink()
    return Judgement(table, sitting, refused)


def unseen_networks(table: LatencyTable, count: int, batch_size: int, seed: int) -> list[Workload]:
    """Networks spread over the space's range, first of all those that the table has not measured."""
    known = [*table.networks, *(record for sitting in table.sittings for record in sitting.networks)]
    seen = {tuple(sorted(record.choices.items())) for record in known}
    plan = ProfilePlan(fit_networks=0, held_out_networks=count + len(seen))
    drawn = plan_networks(table.search_space, plan, batch_size, seed, table.refused)
    fresh = [workload for workload in drawn if tuple(sorted(workload.choices.items())) not in seen]
    spread = [fresh[index] for index in np.linspace(0, len(fresh) - 1, min(count, len(fresh))).round().astype(int)]
    return [*spread, *(workload for workload in drawn if workload not in fresh)][:count]

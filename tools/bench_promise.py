"""Whether promises are kept, and what they cost: many budgets on several runtimes, from search to certified artefact, and later.

    python tools/bench_promise.py --goal --output docs/promise.json
    python tools/bench_promise.py --tables latency_tables/*/mnn*/mobile-cpu.json --budgets 3

For every table and each of --budgets budgets:

1. the network of the largest score is searched among those whose promised latency is within the budget. No training: the score
   is MACs, times a random factor for each option, in place of an accuracy. Each budget has a score of its own, and lies between
   the fastest network and the one that this score would choose without a budget: beyond that it would ask for nothing;
2. it is exported as a verified artefact of random weights;
3. it is certified as `hwnas export` does, one fresh session after the other, until the test decides; where that fails, it joins
   the calibration and the search goes again, as in `hwnas compile`, --rounds times at most;
4. when everything is certified, so some time later, every promised artefact is verified and timed again, in fresh processes. A
   promise counts as broken when the quantile of this second measurement is above the budget, by however little; how many the test
   itself shows broken is told besides.

Sessions of different networks share a process, at most sixteen; those of one network never do, so that its sessions are
independent. Every session is on disk before the next begins: the same command goes on where a run was killed.

Run it on a quiet machine: nothing else may compute meanwhile.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import stats

from hwnas.errors import HwnasError, InfeasibleError
from hwnas.export.artifact import export_network
from hwnas.export.certify import Certification, CertificationPlan
from hwnas.export.manifest import MANIFEST_FILE
from hwnas.files import write_json
from hwnas.ir.architecture import Architecture
from hwnas.ir.costs import MacsCost
from hwnas.ir.steps import Edge, Step
from hwnas.ir.trellis import Trellis
from hwnas.latency.table import LatencyTable, NetworkRecord, load_table
from hwnas.lower.weights import random_weights
from hwnas.pipeline.compile import next_constraint
from hwnas.pipeline.measure import Target, read_model, target_of_table
from hwnas.profiling.rounds import Measured, RoundsPlan, measure_rounds, open_journal, read_preparing_s

SCHEMA, JOURNAL_SCHEMA = "hwnas.promise/1", "hwnas.promise-journal/1"
TABLES = Path(__file__).parents[1] / "latency_tables"
SPACES = ("mobile-cpu", "spos-cpu")
POSITIONS = 0.05, 0.95  # of the first and the last budget between the fastest network and the one chosen without a budget
SPREAD = 2.0  # the random factor of an option's score is at most this, and at least one over it

LEAST_PROMISES, LEAST_RUNTIMES, LEAST_BUDGET_USE = 100, 3, 0.95

# Every session counts, however the machine was: what disturbs it would disturb a user, too.
SESSIONS = RoundsPlan(max_anchor_change=float("inf"), max_minutes=24 * 60)

Bar = Callable[[int, int, str], None]


@dataclass
class Attempt:
    """A network that was exported for a budget: one round of the closed loop.

    Attributes:
        name: Unique within the table; the artefact's folder.
        architecture: The network.
        limit_ms: Predicted latency that the search might use.
        predicted_ms: Predicted latency, as the table was then.
        certification: What the test said; None before it was asked.
        certified_ms: Median over the sessions of the test.
    """

    name: str
    architecture: Architecture
    limit_ms: float
    predicted_ms: float
    certification: Certification | None = None
    certified_ms: float | None = None

    @property
    def kept(self) -> bool:
        return self.certification is not None and self.certification.verdict == "kept"


@dataclass
class Promise:
    """A budget, and what became of it.

    Attributes:
        budget_ms: The budget.
        attempts: The networks that were exported for it; the last one may be certified.
        remeasured_ms: The quantile over sessions of the second measurement, if there was one.
        again: What the test says of the second measurement alone.
    """

    budget_ms: float
    attempts: list[Attempt] = field(default_factory=list)
    remeasured_ms: float | None = None
    again: Certification | None = None

    @property
    def promised(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].kept

    @property
    def broken(self) -> bool:
        return self.promised and self.remeasured_ms is not None and self.remeasured_ms > self.budget_ms


@dataclass(frozen=True)
class Bench:
    """One table's part of the benchmark.

    Attributes:
        table: As it was profiled.
        target: The device, now.
        folder: For journals and artefacts.
        plan: What is certified.
        budgets: In ms.
        rounds: Of search and certification, for each budget.
        seed: Of scores, weights and the order of sessions.
    """

    table: LatencyTable
    target: Target
    folder: Path
    plan: CertificationPlan
    budgets: tuple[float, ...]
    rounds: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.target.device} {self.table.space}"

    def promise(self, bar: Bar) -> list[Promise]:
        """Searches, exports and certifies, all budgets side by side; what failed in a round refines the table for the next."""
        promises = [Promise(budget) for budget in self.budgets]
        measured = self._open_journal("certify")
        table = self.table
        for number in range(1, self.rounds + 1):
            attempts = {}
            for index, promise in enumerate(promises):
                found = None if promise.promised else self._search(table, promise, index, number)
                if found is not None:
                    promise.attempts.append(found)
                    attempts[found.name] = promise
            if not attempts:
                break
            self._certify(attempts, measured, bar)
            table = table.with_networks([
                NetworkRecord(choices=dict(promise.attempts[-1].architecture.choices), role="exported",
                              sessions=tuple(session.ratios for session in measured[name]))
                for name, promise in attempts.items() if not promise.promised])
        return promises

    def remeasure(self, promises: Sequence[Promise], sessions: int, bar: Bar) -> None:
        """Times what was promised once more, from the files, after verifying them."""
        kept = {promise.attempts[-1].name: promise for promise in promises if promise.promised}
        measured = self._open_journal("remeasure")
        models = {name: self._model(name) for name in kept}
        self._measure(models, measured, "remeasure", dict.fromkeys(kept, sessions), bar)
        for name, promise in kept.items():
            latencies = self._latencies(measured[name][:sessions])
            promise.remeasured_ms = float(np.quantile(latencies, self.plan.quantile))
            promise.again = self.plan.judge(latencies, promise.budget_ms)

    def _search(self, table: LatencyTable, promise: Promise, index: int, number: int) -> Attempt | None:
        """The best network within what may still be promised, as an artefact; None where nothing is left to try."""
        failed = {one.architecture: one.certification.certifiable_ms for one in promise.attempts if one.certification}
        try:
            constraint = next_constraint(table, promise.budget_ms, failed)
        except InfeasibleError:  # cannot be for a budget within the range
            return None
        if constraint is None:
            return None
        trellis = Trellis(table.search_space, table)
        architecture = trellis.best(random_scores(self.seed + index), max_cost=constraint.search_limit)
        prediction = table.predict(architecture)
        attempt = Attempt(f"b{index:02}-r{number}", architecture, constraint.search_limit, prediction.latency_ms)
        if not (self.folder / attempt.name / MANIFEST_FILE).is_file():
            network = table.search_space.network(architecture)
            images = np.random.default_rng(self.seed).standard_normal((8, *network.input_shape)).astype(np.float32)
            export_network(network, random_weights(network, self.seed), self.folder / attempt.name, images=images,
                           name=f"{table.space} {attempt.name}", architecture=architecture, budget_ms=promise.budget_ms,
                           prediction=prediction, batch_size=self.target.batch_size)
        return attempt

    def _certify(self, attempts: Mapping[str, Promise], measured: Measured, bar: Bar) -> None:
        """Adds sessions to all that are undecided, one each in turn, until none is."""
        models = {name: self._model(name) for name in attempts}
        for count in range(self.plan.needed, self.plan.most + 1):
            due = {name: model for name, model in models.items() if not self._decided(attempts[name], measured.get(name, ()))}
            if not due:
                break
            self._measure(due, measured, "certify", dict.fromkeys(due, count), bar)
        for name, promise in attempts.items():
            attempt, latencies = promise.attempts[-1], self._latencies(measured[name])
            attempt.certification = self.plan.judge(latencies, promise.budget_ms)
            attempt.certified_ms = median(latencies[:attempt.certification.observations])

    def _model(self, name: str) -> bytes:
        """An artefact's ONNX, after verifying it."""
        model = read_model(self.folder / name)
        if not isinstance(model, bytes):
            raise AssertionError("artefacts of this benchmark are ONNX")
        return model

    def _decided(self, promise: Promise, sessions: Sequence[Any]) -> bool:
        latencies = self._latencies(sessions)
        return bool(latencies) and self.plan.judge(latencies, promise.budget_ms).verdict != "undecided"

    def _latencies(self, sessions: Sequence[Any]) -> list[float]:
        return [self.target.latency_ms(session) for session in sessions]

    def _open_journal(self, name: str) -> Measured:
        header = {"schema": JOURNAL_SCHEMA, "table_sha256": self.table.to_dict()["content_sha256"], "seed": self.seed,
                  "plan": asdict(self.plan), "budgets": list(self.budgets), "environment": self.target.environment}
        self.folder.mkdir(parents=True, exist_ok=True)
        return open_journal(self._journal(name), header)

    def _journal(self, name: str) -> Path:
        return self.folder / f"{name}.journal"

    def _measure(self, models: Mapping[str, bytes], measured: Measured, journal: str, sessions: Mapping[str, int],
                 bar: Bar) -> None:
        with self.target.open() as device:
            measure_rounds({name: partial(bytes, model) for name, model in models.items()}, measured, self._journal(journal),
                           device, SESSIONS, sessions={name: (count, count) for name, count in sessions.items()}, seed=self.seed,
                           progress=bar)

    @property
    def minutes(self) -> float:
        """What preparing and all sessions took, conversions and starts of processes included, in whatever run they were taken."""
        spent_s = 0.0
        for name in ("certify", "remeasure"):
            measured = self._open_journal(name)
            spent_s += sum(session.total_s for sessions in measured.values() for session in sessions)
            spent_s += read_preparing_s(self._journal(name))
        return spent_s / 60


def random_scores(seed: int) -> Callable[[Step, Edge], float]:
    """MACs, times a random factor for each option of a decision: what an accuracy might prefer."""
    def score(step: Step, edge: Edge) -> float:
        words = [seed, *f"{step.name}/{edge.option}".encode()]
        return MacsCost().edge_cost(edge) * float(SPREAD ** np.random.default_rng(words).uniform(-1, 1))
    return score


def spread_budgets(table: LatencyTable, count: int, seed: int) -> tuple[float, ...]:
    """Budgets in ms of four digits, each within the range in which it matters to its score and can be promised."""
    trellis = Trellis(table.search_space, table)
    low = trellis.min_cost()
    ends = [trellis.cost(trellis.best(random_scores(seed + index))) for index in range(count)]
    return tuple(float(f"{(low + position * (end - low)) * (1 + table.held_out.interval):.4g}")
                 for position, end in zip(np.linspace(*POSITIONS, count), ends, strict=True))


def describe(bench: Bench, promises: Sequence[Promise]) -> dict[str, Any]:
    """Everything that the benchmark says of a table."""
    rows = [{"budget_ms": promise.budget_ms, "promised": promise.promised, "broken": promise.broken,
             "remeasured_ms": promise.remeasured_ms,
             "budget_use": promise.remeasured_ms and promise.remeasured_ms / promise.budget_ms,
             "again": promise.again and asdict(promise.again),
             "attempts": [vars(attempt) | {"architecture": str(attempt.architecture),
                                           "certification": attempt.certification and asdict(attempt.certification)}
                          for attempt in promise.attempts]}
            for promise in promises]
    tests = [attempt.certification for promise in promises for attempt in promise.attempts if attempt.certification]
    return {"runtime": bench.table.environment["runtime"], "version": bench.table.environment["runtime_version"],
            "space": bench.table.space, "interval": bench.table.held_out.interval, **count_promises(rows),
            "first_round": sum(promise.promised and len(promise.attempts) == 1 for promise in promises),
            "sessions_per_test": float(np.mean([test.observations for test in tests])) if tests else None,
            "minutes": bench.minutes, "promises": rows}


def count_promises(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that are asked for, over budgets of one table or of several."""
    uses = [row["budget_use"] for row in rows if row["promised"]]
    return {"budgets": len(rows), "promised": sum(row["promised"] for row in rows), "broken": sum(row["broken"] for row in rows),
            "shown_broken": sum(row["promised"] and row["again"]["verdict"] == "broken" for row in rows),
            "not_certifiable": sum(not row["promised"] for row in rows),
            "budget_use": median(uses) if uses else None, "least_budget_use": min(uses, default=None)}


def summarise(tables: Sequence[Mapping[str, Any]], plan: CertificationPlan) -> dict[str, Any]:
    """All tables together, and whether each part of the goal is met."""
    total = count_promises([row for table in tables for row in table["promises"]])
    runtimes = len({table["runtime"] for table in tables if table["promised"]})
    allowed = allowed_broken(total["promised"], plan.confidence)
    goal = {"promises": {"goal": f"at least {LEAST_PROMISES}", "figure": total["promised"],
                         "met": total["promised"] >= LEAST_PROMISES},
            "runtimes": {"goal": f"at least {LEAST_RUNTIMES}", "figure": runtimes, "met": runtimes >= LEAST_RUNTIMES},
            "broken": {"goal": f"at most {allowed}", "figure": total["broken"], "met": total["broken"] <= allowed},
            "median budget use": {"goal": f"at least {100 * LEAST_BUDGET_USE:g} %", "figure": say_share(total["budget_use"]),
                                  "met": (total["budget_use"] or 0) >= LEAST_BUDGET_USE}}
    return {**total, "runtimes": runtimes, "allowed_broken": allowed, "minutes": sum(table["minutes"] for table in tables),
            "goal": goal}


def allowed_broken(promised: int, confidence: float) -> int:
    """The most broken promises that do not show, at the confidence, that more than one minus it of all promises are broken."""
    return int(stats.binom.ppf(confidence, promised, 1 - confidence))


def say_share(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


COLUMNS = ("runtime", "space", "budgets", "promised", "in the first round", "broken", "not certifiable", "median budget use",
           "least", "predictions that held", "median departure", "sessions a test", "minutes")


def departures(row: Mapping[str, Any]) -> list[float]:
    """Of the promised networks: later measurement over what the table had predicted, minus 1."""
    return [one["remeasured_ms"] / one["attempts"][-1]["predicted_ms"] - 1 for one in row["promises"] if one["promised"]]


def predictions_held(row: Mapping[str, Any]) -> int:
    """Of how many promised networks the later measurement is within the prediction's 95 % interval."""
    return sum(abs(departure) <= row["interval"] for departure in departures(row))


def say_predictions(row: Mapping[str, Any]) -> tuple[str, str]:
    """How many held, and by how much the later measurements departed."""
    found = departures(row)
    return str(predictions_held(row)), f"{100 * median(found):+.1f} %" if found else ""


def lines(tables: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A line for every table, and one for all."""
    for row in tables:
        yield (row["runtime"], row["space"], str(row["budgets"]), str(row["promised"]), str(row["first_round"]),
               str(row["broken"]), str(row["not_certifiable"]), say_share(row["budget_use"]), say_share(row["least_budget_use"]),
               *say_predictions(row), "" if row["sessions_per_test"] is None else f"{row['sessions_per_test']:.1f}",
               f"{row['minutes']:.1f}")
    yield ("all", "", str(total["budgets"]), str(total["promised"]), str(sum(row["first_round"] for row in tables)),
           f"{total['broken']} (of {total['allowed_broken']} allowed)", str(total["not_certifiable"]),
           say_share(total["budget_use"]), say_share(total["least_budget_use"]), str(sum(map(predictions_held, tables))), "", "",
           f"{total['minutes']:.1f}")


def markdown(tables: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> str:
    """The same for the documentation."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *lines(tables, total)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def show(console: Console, tables: Sequence[Mapping[str, Any]], total: Mapping[str, Any], plan: CertificationPlan,
         with_goal: bool) -> None:
    """Prints what was found."""
    view = Table(*COLUMNS, title=f"Promises: {plan.claim}", title_justify="left")
    for line in lines(tables, total):
        view.add_row(*line)
    console.print(view)
    console.print(f"Of the second measurements, the test itself shows {total['shown_broken']} broken.")
    if with_goal:
        verdict = Table("part", "goal", "figure", "verdict", title="The goal", title_justify="left")
        for part, found in total["goal"].items():
            verdict.add_row(part, found["goal"], str(found["figure"]), "met" if found["met"] else "not met")
        console.print(verdict)


def find_targets(paths: Sequence[Path], console: Console) -> Iterator[tuple[LatencyTable, Target]]:
    """The tables whose device, runtime and versions are here, as they were when they were measured."""
    for path in paths:
        table = load_table(path)
        try:
            yield table, target_of_table(table)
        except HwnasError as error:
            console.print(f"left out: {path}: {error}", soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", type=Path,
                        default=sorted(path for space in SPACES for path in TABLES.rglob(f"{space}.json")))
    parser.add_argument("--budgets", type=int, default=9, help="for each table")
    parser.add_argument("--rounds", type=int, default=3, help="of search and certification, for each budget")
    parser.add_argument("--quantile", type=float, default=CertificationPlan.quantile)
    parser.add_argument("--confidence", type=float, default=CertificationPlan.confidence)
    parser.add_argument("--sessions", type=int, default=7, help="of the second measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/promise"))
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--goal", action="store_true", help="print each part of the goal, met or not")
    arguments = parser.parse_args()
    plan = CertificationPlan(arguments.quantile, arguments.confidence)
    console = Console(width=170)
    console.print(str(plan))
    benches = [Bench(table, target, arguments.folder / target.device / table.space, plan,
                     spread_budgets(table, arguments.budgets, arguments.seed), arguments.rounds, arguments.seed)
               for table, target in find_targets(arguments.tables, console)]
    if not benches:
        parser.error("no table was measured on this machine: profile one with 'hwnas profile', and name it with --tables")
    with Progress(console=Console(stderr=True)) as progress:
        promises = [bench.promise(_bar(progress, bench, "certify")) for bench in benches]
        for bench, made in zip(benches, promises, strict=True):
            bench.remeasure(made, arguments.sessions, _bar(progress, bench, "measure again"))
    tables = [describe(bench, made) for bench, made in zip(benches, promises, strict=True)]
    total = summarise(tables, plan)
    show(console, tables, total, plan, arguments.goal)
    if arguments.output:
        write_json(arguments.output, {"schema": SCHEMA, "plan": asdict(plan) | {"most": plan.most, "needed": plan.needed},
                                      "sessions": arguments.sessions, "total": total, "tables": tables})
        print(markdown(tables, total))


def _bar(progress: Progress, bench: Bench, what: str) -> Bar:
    task = progress.add_task(f"{bench.name}: {what}")
    return lambda done, total, key: progress.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()

"""The whole pipeline from one configuration: profile, train, search, export, certify, and again until the promise is kept.

Every stage leaves its files in the output folder and finds what an earlier run left there, so that an interrupted run
continues, and another budget reuses table, supernet and scores:

    OUTPUT/table.json                    the latency table
    OUTPUT/supernet/                     the trained supernet; of darts, fbnet and proxyless OUTPUT/<budget>ms/supernet-<table>/
    OUTPUT/<budget>ms/search-<limit>ms-<table>/  a search; each round has a limit on predictions, and a table, of its own
    OUTPUT/<budget>ms/artifact/          the artefact
    OUTPUT/<budget>ms/rounds.json        how every round ended, written after each
    OUTPUT/<budget>ms/summary.json       what came out, beside the space's smallest, largest and a random network
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from hwnas.data import Dataset, load_dataset
from hwnas.errors import InfeasibleError, InputError
from hwnas.export.certify import CertificationPlan
from hwnas.export.manifest import Manifest
from hwnas.files import locked, write_json
from hwnas.ir.architecture import Architecture
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.latency.seams import LatencyModel, SeamTable, cost_model
from hwnas.latency.table import LatencyTable, NetworkRecord, load_table
from hwnas.lower.onnx import to_onnx
from hwnas.pipeline.budget import latency_budget
from hwnas.pipeline.config import CompileConfig
from hwnas.pipeline.constraint import Constraint, latency_constraint
from hwnas.pipeline.export import export_from_supernet, test_accuracy
from hwnas.pipeline.measure import Target, load_target, measure_artifact, target_of_table
from hwnas.pipeline.search import SearchSettings, search_supernet
from hwnas.profiling.profiler import ProfilePlan, profile_space
from hwnas.search.evolution import EvolutionConfig
from hwnas.supernet.config import TrainConfig
from hwnas.supernet.evaluate import check_dataset
from hwnas.supernet.methods import find_method
from hwnas.supernet.train import load_supernet, train_supernet

Bar = Callable[[int, int, str], None]
Stage = Callable[[str], AbstractContextManager[Bar]]  # opens a progress bar with a title

SUMMARY_SCHEMA = "hwnas.summary/1"
ROUNDS_SCHEMA = "hwnas.rounds/1"


@dataclass(frozen=True)
class NetworkReport:
    """One line of the final table: predicted and measured latency in ms, top-1 on the test set, MACs, parameters."""

    name: str
    architecture: dict[str, str]
    predicted_ms: float
    predicted_lower_ms: float
    predicted_upper_ms: float
    measured_ms: float
    accuracy: float
    macs: int
    parameters: int


@dataclass(frozen=True)
class RoundReport:
    """One search and export, and what the test said of it.

    Attributes:
        number: Counts from 1.
        limit_ms: Predicted latency that the search might use.
        predicted_ms: Predicted latency of what it found.
        measured_ms: Measured latency of that.
        certifiable_ms: The least budget that the same measurement would have shown kept.
        verdict: `kept`, `broken` or `undecided`.
        observations: Fresh sessions of the test.
        above: How many of them were above the budget.
        budget_use: Measured latency over the budget: far below 1, the limit was stricter than it had to be.
    """

    number: int
    limit_ms: float
    predicted_ms: float
    measured_ms: float
    certifiable_ms: float
    verdict: str
    observations: int
    above: int
    budget_use: float

    def __str__(self) -> str:
        return (f"Round {self.number}: searched within {self.limit_ms:.4g} ms, found {self.predicted_ms:.4g} ms, measured "
                f"{self.measured_ms:.4g} ms or {100 * self.budget_use:.1f} % of the budget; {self.verdict}, with {self.above} of "
                f"{self.observations} sessions above it.")


@dataclass(frozen=True)
class CompileSummary:
    """What a compilation found.

    Attributes:
        artifact: The artefact's folder.
        budget_ms: The budget.
        promised: The budget was met by the upper end of the prediction.
        verdict: `kept`: that the latency is within the budget was shown by a test.
        quantile: Of latency over fresh sessions that the test was of.
        confidence: Of the test.
        observations: Fresh sessions that it took.
        above: How many of them were above the budget.
        budget_use: Measured latency over the budget.
        rounds: Searches until the promise was kept.
        history: Every round.
        feasible_range_ms: Predicted latency of the space's fastest and slowest network.
        held_out: The table's error on networks that no fit has seen.
        networks: The winner first, then what it is compared with.
    """

    artifact: str
    budget_ms: float
    promised: bool
    verdict: str
    quantile: float
    confidence: float
    observations: int
    above: int
    budget_use: float
    rounds: int
    history: tuple[RoundReport, ...]
    feasible_range_ms: tuple[float, float]
    held_out: dict[str, float]
    networks: tuple[NetworkReport, ...]


def compile_space(config: CompileConfig, space: Space, output: str | os.PathLike[str], stage: Stage,
                  overwrite: bool = False, say: Callable[[str], None] = lambda text: None) -> CompileSummary:
    """Runs the pipeline, or what is left of it.

    Args:
        config: What to do.
        space: The configuration's space, loaded.
        output: The folder; whatever an earlier run of the same configuration left in it is used.
        stage: Opens a progress bar.
        overwrite: Discard supernet and searches of another configuration in that folder.
        say: Is told what is to be shown, and how every round ended.

    Raises:
        InfeasibleError: No network meets the budget, or none was found of which that can be shown.
        InputError: Space, data, table and device do not fit together, the folder holds the results of another configuration, or
            another process is at work in it.
        UnavailableError: The device cannot be reached, or its runtime is not usable there.
        VerificationError: The exported model does not compute what PyTorch computes.
    """
    root = Path(output)
    train = TrainConfig(**config.train.model_dump(), seed=config.seed)
    find_method(train.method)  # refuses an unknown one before anything is loaded
    plan = config.export.certification()
    _refuse_known_impossible(config, space, root)
    with stage("data") as bar:
        bar(0, 1, config.data)
        dataset = load_dataset(config.data, seed=config.seed)
        bar(1, 1, f"{len(dataset.train)} training images, {dataset.num_classes} classes")
    check_dataset(dataset, space.input_shape, space.classes)  # before minutes of measuring
    given, profile = _given_table(config, space), config.profile
    if given is None:
        target = load_target(config.device, profile.threads, profile.precision, profile.batch_size)
        target = target.for_inputs((profile.batch_size, *space.input_shape))
    else:
        target = target_of_table(given, config.device)
    with locked(root / "compile", "compilation"):  # which makes the folder: what cannot work has been refused by now
        table = _profiled(config, space, root, stage, target) if given is None else _as_taught(given, root)
        target = replace(target, anchor_ms=table.anchor_ms)
        budget_ms = _budget_ms(config, table)
        latency_constraint(cost_model(table), budget_ms)  # an impossible budget ends here, before anything is trained
        folder, supernet_dir, budget = root / f"{budget_ms:.6g}ms", root / "supernet", None
        if find_method(train.method).needs_budget:  # the supernet is one for the budget, and for the table as it was profiled
            profiled = _as_profiled(table)
            supernet_dir = folder / f"supernet-{profiled.to_dict()['content_sha256'][:8]}"
            budget = latency_budget(profiled, budget_ms, train.method, say)
        with stage("train") as bar:
            train_supernet(space, dataset, supernet_dir, train, budget=budget,
                           data_source={"spec": config.data, "seed": config.seed}, overwrite=overwrite,
                           progress=lambda done, total, loss, speed: bar(done, total, f"loss {loss:.3f}, {speed:.0f} images/s"))
        run = _Run(config, plan, root, folder, dataset, supernet_dir, target, budget_ms, stage, overwrite, say)
        return run.execute(table)


@dataclass(frozen=True)
class _Run:
    """Search, export and measurement for one budget."""

    config: CompileConfig
    plan: CertificationPlan
    root: Path
    folder: Path
    dataset: Dataset
    supernet_dir: Path
    target: Target
    budget_ms: float
    stage: Stage
    overwrite: bool
    say: Callable[[str], None]

    def execute(self, table: LatencyTable) -> CompileSummary:
        plan = self.plan
        self.say(f"To be shown for {self.budget_ms:g} ms: {plan}.")
        costs = cost_model(table)
        failed = known_failures(costs, plan, self.budget_ms)
        history: list[RoundReport] = []
        while len(history) < self.config.export.rounds:
            constraint = next_constraint(costs, self.budget_ms, failed)
            if constraint is None:
                break
            best = self._search(table, constraint)
            manifest, record = self._certified(costs, best)
            report = _round_report(len(history) + 1, constraint, manifest)
            history.append(report)
            self.say(str(report))
            write_json(self.folder / "rounds.json", {
                "schema": ROUNDS_SCHEMA, "budget_ms": self.budget_ms, "quantile": plan.quantile, "confidence": plan.confidence,
                "rounds": [asdict(one) for one in history]})
            if report.verdict == "kept":
                trellis = Trellis(costs.search_space, costs)
                summary = CompileSummary(
                    str(self._artifact), self.budget_ms, constraint.promised, report.verdict, plan.quantile, plan.confidence,
                    report.observations, report.above, report.budget_use, len(history), tuple(history),
                    (trellis.min_cost(), trellis.max_cost()), asdict(costs.held_out),
                    tuple(self._reports(trellis, costs, constraint, best, report.measured_ms)))
                write_json(self.folder / "summary.json", {"schema": SUMMARY_SCHEMA, **asdict(summary)})
                return summary
            table = table.with_networks([record])
            table.save(self.root / "table.json")
            costs = cost_model(table)
            failed[best] = report.certifiable_ms
        raise InfeasibleError(f"No network was found of which {plan.claim} can be shown for {self.budget_ms:g} ms, in "
                              f"{len(history)} round(s); the nearest of all that failed, now or before, could be promised for "
                              f"{min(failed.values()):.4g} ms: raise the budget or export.rounds.")

    @property
    def _artifact(self) -> Path:
        return self.folder / "artifact"

    def _certified(self, costs: LatencyModel, best: Architecture) -> tuple[Manifest, NetworkRecord]:
        """Exports what a search found and has its budget tested: the manifest, and what the calibration may learn from it."""
        (self.folder / "summary.json").unlink(missing_ok=True)  # it is of the artefact that is replaced
        artifact = export_from_supernet(
            self.supernet_dir, best, self._artifact, dataset=self.dataset, budget_ms=self.budget_ms,
            prediction=costs.predict(best), calibration_images=self.config.search.calibration_images,
            batch_size=self.target.batch_size, overwrite=True)
        with self.stage("certify") as bar:
            manifest, measurement = measure_artifact(
                artifact.directory, self.target, plan=self.plan,
                progress=lambda done, total: bar(done, total, "the artefact"))
        sessions = tuple(session.ratios for session in measurement.sessions)
        return manifest, NetworkRecord(choices=dict(best.choices), sessions=sessions, role="exported")

    def _search(self, table: LatencyTable, constraint: Constraint) -> Architecture:
        settings = self.config.search
        half = settings.population // 2
        evolution = EvolutionConfig(settings.population, settings.generations, settings.parents, half,
                                    settings.population - half, settings.mutation_probability, self.config.seed)
        name = f"search-{constraint.search_limit:.6g}ms-{table.to_dict()['content_sha256'][:8]}"
        with self.stage("search") as bar:
            result = search_supernet(
                self.supernet_dir, table.search_space, constraint, self.folder / name,
                SearchSettings(settings.method, evolution, settings.validation_images, settings.calibration_images,
                               settings.batch_norm, self.config.train.device),
                dataset=self.dataset, earlier=sorted(self.root.glob("*ms/search-*/history.jsonl")), overwrite=self.overwrite,
                progress=lambda done, total, best: bar(done, total, f"best {100 * best.score:.1f} % at {best.cost:.3g} ms"))
        return result.best.architecture

    def _reports(self, trellis: Trellis, costs: LatencyModel, constraint: Constraint, best: Architecture,
                 measured_ms: float) -> Iterator[NetworkReport]:
        """The winner, and what it is worth comparing with, all with inherited weights."""
        random = trellis.sample(1, max_cost=constraint.search_limit, seed=self.config.seed)[0]
        rows = {"winner": best, "random within budget": random, "smallest": trellis.cheapest(), "largest": trellis.dearest()}
        supernet, _ = load_supernet(self.supernet_dir)
        accuracies = test_accuracy(supernet, list(rows.values()), self.dataset, self.config.search.calibration_images)
        with self.stage("compare") as bar:
            for index, ((name, architecture), accuracy) in enumerate(zip(rows.items(), accuracies, strict=True)):
                network, prediction = supernet.space.network(architecture), costs.predict(architecture)
                if name != "winner":
                    model = to_onnx(network, batch_size=self.target.batch_size).SerializeToString()
                    measured_ms = self.target.milliseconds(self.target.measure(model, self.config.export.sessions))["latency_ms"]
                yield NetworkReport(name, dict(architecture.choices), prediction.latency_ms, prediction.lower_ms,
                                    prediction.upper_ms, measured_ms, accuracy, network.macs, network.parameters)
                bar(index + 1, len(rows), name)


def next_constraint(table: LatencyModel, budget_ms: float, failed: Mapping[Architecture, float]) -> Constraint | None:
    """What the next search may use, after networks of which the budget could not be shown joined the table's calibration.

    One more network hardly moves a calibration, so that alone would find the same network again. What a network would have to be
    promised for beyond the budget is therefore taken off the limit as well, as a share of what the table predicts of it *now*: as
    far as the calibration has learned from it, it is not taken off twice. So a network that failed is above the limit, but for
    the fastest, to which the limit goes down before giving up.

    Args:
        table: The table, the failed networks among its own.
        budget_ms: The budget.
        failed: What each network that failed could have been promised for, in ms.

    Returns:
        The constraint; None when the fastest network has failed, or is predicted above the budget by now.

    Raises:
        InfeasibleError: Even the fastest network is predicted above the budget, and none has failed yet.
    """
    trellis = Trellis(table.search_space, table)
    if failed and not trellis.feasible(budget_ms):
        return None
    constraint = latency_constraint(table, budget_ms)
    limits = [table.predict(one).latency_ms * budget_ms / certifiable_ms for one, certifiable_ms in failed.items()]
    limit = min([constraint.search_limit, *limits])
    if not trellis.feasible(limit):
        if trellis.cheapest() in failed:
            return None
        limit = trellis.min_cost()
    return replace(constraint, search_limit=limit)


def known_failures(table: LatencyModel, plan: CertificationPlan, budget_ms: float) -> dict[Architecture, float]:
    """The networks that failed a budget before, as `next_constraint` takes them: tested until one passes, any would at last.

    A table has the sessions of all that failed, whatever the budget was, so each is judged anew. What it predicts above this
    budget by now is out of reach already.
    """
    measured = table.table if isinstance(table, SeamTable) else table
    failed: dict[Architecture, float] = {}
    for record in measured.usable_networks:
        if record.role == "exported":
            found = plan.judge([median(ratios) * measured.anchor_ms for ratios in record.sessions], budget_ms)
            architecture = table.search_space.architecture(record.choices)
            if (found.verdict == "broken" or (found.verdict == "undecided" and found.observations == plan.most)) and (
                    table.predict(architecture).latency_ms <= budget_ms):
                failed[architecture] = max(found.certifiable_ms, failed.get(architecture, 0.0))
    return failed


def _round_report(number: int, constraint: Constraint, manifest: Manifest) -> RoundReport:
    found = manifest.measurement
    if (found is None or found.certifiable_ms is None or found.observations is None or found.above is None
            or manifest.predicted_ms is None):
        raise AssertionError("an artefact with a budget and a prediction has just been certified")
    return RoundReport(number, constraint.search_limit, manifest.predicted_ms, found.latency_ms, found.certifiable_ms,
                       found.verdict, found.observations, found.above, found.latency_ms / constraint.limit)


def _given_table(config: CompileConfig, space: Space) -> LatencyTable | None:
    """The configuration's own table, if it names one."""
    if config.profile.table is None:
        return None
    table = load_table(config.profile.table)
    if table.search_space.hash != space.hash:
        raise InputError(f"The table {config.profile.table} must be of the space {space.name!r}, but is of {table.space!r} "
                         "with another content: profile the space or leave profile.table out.")
    if table.environment.get("runtime") != config.device.rpartition("/")[2]:
        raise InputError(f"The table {config.profile.table} must be of the device {config.device!r}, but is of "
                         f"{table.environment.get('runtime')!r}: change device, or leave profile.table out.")
    return table


def _as_taught(given: LatencyTable, root: Path) -> LatencyTable:
    """A given table, with what exports have taught it in this folder."""
    path = root / "table.json"
    if path.exists():
        taught = load_table(path)
        before = replace(taught, networks=taught.networks[:len(given.networks)], sittings=given.sittings)
        if before.to_dict()["content_sha256"] == given.to_dict()["content_sha256"]:
            return replace(taught, sittings=max(given.sittings, taught.sittings, key=len))  # either may have been judged since
    return given


def _profiled(config: CompileConfig, space: Space, root: Path, stage: Stage, target: Target) -> LatencyTable:
    """A measured table.

    Raises:
        InputError: The time was over before there was an entry for every block.
    """
    settings = config.profile
    with stage("profile") as bar:
        plan = ProfilePlan(min_sessions=settings.sessions, max_sessions=max(settings.sessions, ProfilePlan.max_sessions),
                           max_minutes=settings.max_minutes, blocks=settings.blocks)
        with target.open() as device:
            table = profile_space(space, device, root / "table.json", batch_size=settings.batch_size, plan=plan, progress=bar)
    if missing := table.missing_workloads():
        raise InputError(f"A table needs every block, but the time was over before {len(missing):,} of "
                         f"{len(space.measured_parts):,} were measured: run the same command again, which goes on, raise "
                         "profile.max_minutes, or have some measured and the others estimated with profile.blocks.")
    return table


def _refuse_known_impossible(config: CompileConfig, space: Space, root: Path) -> None:
    """Tells at once, before data are loaded, when a table that is already there shows that the budget cannot be met."""
    path = config.profile.table or root / "table.json"
    if config.max_latency_ms is not None and path.exists():
        table = load_table(path)
        if table.search_space.hash == space.hash and not table.missing_workloads():
            latency_constraint(cost_model(table), config.max_latency_ms)


def _as_profiled(table: LatencyTable) -> LatencyTable:
    """The table without what exports and other hours have taught it: a rerun finds the same one."""
    return replace(table, networks=tuple(record for record in table.networks if record.role != "exported"), sittings=())


def _budget_ms(config: CompileConfig, table: LatencyTable) -> float:
    """The budget in ms; a position in the achievable range is rounded up to three digits, to be quoted and typed again."""
    if config.max_latency_ms is not None:
        return config.max_latency_ms
    assert config.latency_position is not None  # the configuration has one of the two
    costs = cost_model(_as_profiled(table))
    trellis = Trellis(costs.search_space, costs)
    low, high = trellis.min_cost(), trellis.max_cost()
    budget = low + config.latency_position * (high - low)
    unit = 10.0 ** (math.floor(math.log10(budget)) - 2)
    return float(f"{math.ceil(budget / unit) * unit:.6g}")



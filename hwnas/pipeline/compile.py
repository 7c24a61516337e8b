"""The whole pipeline from one configuration: profile, train, search, export, measure, and again until the promise holds.

Every stage leaves its files in the output folder and finds what an earlier run left there, so that an interrupted run
continues, and another budget reuses table, supernet and scores:

    OUTPUT/table.json                    the latency table
    OUTPUT/supernet/                     the trained supernet
    OUTPUT/<budget>ms/search-<limit>ms-<table>/  a search; each round has a limit on predictions, and a table, of its own
    OUTPUT/<budget>ms/artifact/          the artefact
    OUTPUT/<budget>ms/summary.json       what came out, beside the space's smallest, largest and a random network
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hwnas.data import Dataset, load_dataset
from hwnas.errors import InfeasibleError, InputError
from hwnas.files import write_json
from hwnas.ir.architecture import Architecture
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.latency.table import LatencyTable, NetworkRecord, load_table
from hwnas.lower.onnx import to_onnx
from hwnas.pipeline.config import CompileConfig
from hwnas.pipeline.constraint import Constraint, latency_constraint
from hwnas.pipeline.export import export_from_supernet, test_accuracy
from hwnas.pipeline.measure import Target, measure_artifact, target_of_table
from hwnas.pipeline.search import SearchSettings, search_supernet
from hwnas.profiling.device import open_device
from hwnas.profiling.profiler import ProfilePlan, profile_space
from hwnas.runtimes.base import RuntimeConfig
from hwnas.search.evolution import EvolutionConfig
from hwnas.supernet.config import TrainConfig
from hwnas.supernet.evaluate import check_dataset
from hwnas.supernet.train import load_supernet, train_supernet

Bar = Callable[[int, int, str], None]
Stage = Callable[[str], AbstractContextManager[Bar]]  # opens a progress bar with a title

SUMMARY_SCHEMA = "hwnas.summary/1"


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
class CompileSummary:
    """What a compilation found.

    Attributes:
        artifact: The artefact's folder.
        budget_ms: The budget.
        promised: The budget was met by the upper end of the prediction.
        verdict: `kept` or `broken`: the measured latency against the budget.
        rounds: Searches until the promise held.
        feasible_range_ms: Predicted latency of the space's fastest and slowest network.
        held_out: The table's error on networks that no fit has seen.
        networks: The winner first, then what it is compared with.
    """

    artifact: str
    budget_ms: float
    promised: bool
    verdict: str
    rounds: int
    feasible_range_ms: tuple[float, float]
    held_out: dict[str, float]
    networks: tuple[NetworkReport, ...]


def compile_space(config: CompileConfig, space: Space, output: str | os.PathLike[str], stage: Stage,
                  overwrite: bool = False) -> CompileSummary:
    """Runs the pipeline, or what is left of it.

    Args:
        config: What to do.
        space: The configuration's space, loaded.
        output: The folder; whatever an earlier run of the same configuration left in it is used.
        stage: Opens a progress bar.
        overwrite: Discard supernet and searches of another configuration in that folder.

    Raises:
        InfeasibleError: No network meets the budget, or none was found whose measured latency does.
        InputError: Space, data, table and device do not fit together, or the folder holds the results of another configuration.
        VerificationError: The exported model does not compute what PyTorch computes.
    """
    root = Path(output)
    train = TrainConfig(**config.train.model_dump(), seed=config.seed)
    _refuse_known_impossible(config, space, root)
    with stage("data") as bar:
        bar(0, 1, config.data)
        dataset = load_dataset(config.data, seed=config.seed)
        bar(1, 1, f"{len(dataset.train)} training images, {dataset.num_classes} classes")
    check_dataset(dataset, space.input_shape, space.classes)  # before minutes of measuring
    table = _table(config, space, root, stage)
    target = target_of_table(table, config.device)
    budget_ms = _budget_ms(config, table)
    latency_constraint(table, budget_ms)  # an impossible budget ends here, before anything is trained
    supernet_dir = root / "supernet"
    with stage("train") as bar:
        train_supernet(space, dataset, supernet_dir, train, data_source={"spec": config.data, "seed": config.seed},
                       overwrite=overwrite, progress=lambda done, total, loss, speed: bar(
                           done, total, f"loss {loss:.3f}, {speed:.0f} images/s"))
    run = _Run(config, root, root / f"{budget_ms:.6g}ms", dataset, supernet_dir, target, budget_ms, stage, overwrite)
    return run.execute(table)


@dataclass(frozen=True)
class _Run:
    """Search, export and measurement for one budget."""

    config: CompileConfig
    root: Path
    folder: Path
    dataset: Dataset
    supernet_dir: Path
    target: Target
    budget_ms: float
    stage: Stage
    overwrite: bool

    def execute(self, table: LatencyTable) -> CompileSummary:
        nearest = limit = math.inf
        for number in range(1, self.config.export.rounds + 1):
            constraint = latency_constraint(table, self.budget_ms)
            constraint = replace(constraint, search_limit=min(limit, constraint.search_limit))
            best = self._search(table, constraint)
            artifact = export_from_supernet(
                self.supernet_dir, best, self.folder / "artifact", dataset=self.dataset, budget_ms=self.budget_ms,
                prediction=table.predict(best), calibration_images=self.config.search.calibration_images,
                batch_size=self.target.batch_size, overwrite=True)
            with self.stage("measure") as bar:
                manifest, measurement = measure_artifact(artifact.directory, self.target, self.config.export.sessions,
                                                         lambda done, total: bar(done, total, "the artefact"))
            assert manifest.measured_ms is not None and manifest.measurement is not None  # just recorded
            if manifest.measured_ms <= self.budget_ms:
                trellis = Trellis(table.search_space, table)
                summary = CompileSummary(str(artifact.directory), self.budget_ms, constraint.promised,
                                         manifest.measurement.verdict, number, (trellis.min_cost(), trellis.max_cost()),
                                         asdict(table.held_out),
                                         tuple(self._reports(trellis, table, constraint, best, manifest.measured_ms)))
                write_json(self.folder / "summary.json", {"schema": SUMMARY_SCHEMA, **asdict(summary)})
                return summary
            nearest = min(nearest, manifest.measured_ms)
            sessions = tuple(session.ratios for session in measurement.sessions)
            table = table.with_networks([NetworkRecord(choices=dict(best.choices), sessions=sessions, role="exported")])
            table.save(self.root / "table.json")
            # One more point hardly moves the calibration: what this network overran by is taken off the limit as well, down
            # to the fastest network, which is tried before giving up.
            limit = max(constraint.search_limit * self.budget_ms / manifest.measured_ms,
                        Trellis(table.search_space, table).min_cost())
        raise InfeasibleError(f"No network was found that measures within {self.budget_ms:g} ms in {number} "
                              f"rounds; the nearest measures {nearest:.3f} ms: raise the budget or export.rounds.")

    def _search(self, table: LatencyTable, constraint: Constraint) -> Architecture:
        settings = self.config.search
        half = settings.population // 2
        evolution = EvolutionConfig(settings.population, settings.generations, settings.parents, half,
                                    settings.population - half, settings.mutation_probability, self.config.seed)
        name = f"search-{constraint.search_limit:.6g}ms-{table.to_dict()['content_sha256'][:8]}"
        with self.stage("search") as bar:
            result = search_supernet(
                self.supernet_dir, table.search_space, constraint, self.folder / name,
                SearchSettings(settings.method, evolution, settings.validation_images, settings.calibration_images),
                dataset=self.dataset, earlier=sorted(self.root.glob("*ms/search-*/history.jsonl")), overwrite=self.overwrite,
                progress=lambda done, total, best: bar(done, total, f"best {100 * best.score:.1f} % at {best.cost:.3g} ms"))
        return result.best.architecture

    def _reports(self, trellis: Trellis, table: LatencyTable, constraint: Constraint, best: Architecture,
                 measured_ms: float) -> Iterator[NetworkReport]:
        """The winner, and what it is worth comparing with, all with inherited weights."""
        random = trellis.sample(1, max_cost=constraint.search_limit, seed=self.config.seed)[0]
        rows = {"winner": best, "random within budget": random, "smallest": trellis.cheapest(), "largest": trellis.dearest()}
        supernet, _ = load_supernet(self.supernet_dir)
        accuracies = test_accuracy(supernet, list(rows.values()), self.dataset, self.config.search.calibration_images)
        with self.stage("compare") as bar:
            for index, ((name, architecture), accuracy) in enumerate(zip(rows.items(), accuracies, strict=True)):
                network, prediction = supernet.space.network(architecture), table.predict(architecture)
                if name != "winner":
                    model = to_onnx(network, batch_size=self.target.batch_size).SerializeToString()
                    measured_ms = self.target.milliseconds(self.target.measure(model, self.config.export.sessions))["latency_ms"]
                yield NetworkReport(name, dict(architecture.choices), prediction.latency_ms, prediction.lower_ms,
                                    prediction.upper_ms, measured_ms, accuracy, network.macs, network.parameters)
                bar(index + 1, len(rows), name)


def _table(config: CompileConfig, space: Space, root: Path, stage: Stage) -> LatencyTable:
    """The configuration's own table, or a measured one."""
    if config.profile.table is not None:
        table = load_table(config.profile.table)
        if table.search_space.hash != space.hash:
            raise InputError(f"The table {config.profile.table} must be of the space {space.name!r}, but is of {table.space!r} "
                             "with another content: profile the space or leave profile.table out.")
        if table.environment.get("runtime") != config.device.rpartition("/")[2]:
            raise InputError(f"The table {config.profile.table} must be of the device {config.device!r}, but is of "
                             f"{table.environment.get('runtime')!r}: change device, or leave profile.table out.")
        return table
    settings = config.profile
    with stage("profile") as bar:
        plan = ProfilePlan(min_sessions=settings.sessions, max_sessions=max(settings.sessions, ProfilePlan.max_sessions),
                           max_minutes=settings.max_minutes)
        with open_device(config.device, RuntimeConfig(settings.threads, settings.precision)) as device:
            return profile_space(space, device, root / "table.json", batch_size=settings.batch_size, plan=plan, progress=bar)


def _refuse_known_impossible(config: CompileConfig, space: Space, root: Path) -> None:
    """Tells at once, before data are loaded, when a table that is already there shows that the budget cannot be met."""
    path = config.profile.table or root / "table.json"
    if config.max_latency_ms is not None and path.exists():
        table = load_table(path)
        if table.search_space.hash == space.hash and not table.missing_workloads():
            latency_constraint(table, config.max_latency_ms)


def _budget_ms(config: CompileConfig, table: LatencyTable) -> float:
    """The budget in ms; a position in the achievable range is rounded up to three digits, to be quoted and typed again.

    The range is that of the table as it was profiled, so that a rerun finds the same budget after exports refined the table.
    """
    if config.max_latency_ms is not None:
        return config.max_latency_ms
    assert config.latency_position is not None  # the configuration has one of the two
    profiled = replace(table, networks=tuple(record for record in table.networks if record.role != "exported"))
    trellis = Trellis(table.search_space, profiled)
    low, high = trellis.min_cost(), trellis.max_cost()
    budget = low + config.latency_position * (high - low)
    unit = 10.0 ** (math.floor(math.log10(budget)) - 2)
    return float(f"{math.ceil(budget / unit) * unit:.6g}")



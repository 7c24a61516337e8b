"""One trained network, int8 where it pays on a device: profile, score, choose, export, certify; again until the budget is kept.

Precisions are chosen on validation images, by the very model that is exported in the target's own runtime. Everything is kept in
the output folder: an interrupted run continues, and another budget reuses table and scores.

    OUTPUT/quantize.json           which network the folder is of
    OUTPUT/table.json              the latency table of the network's space of precisions
    OUTPUT/scores/                 what each scored network makes of the images, by content
    OUTPUT/front.json              the front of divergence from the float network over predicted latency
    OUTPUT/<budget>ms/artifact/    the artefact; without a budget, the folder is OUTPUT/fastest
    OUTPUT/<budget>ms/summary.json what came out, beside all of the network in fp32 and in int8
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from hwnas.data import Split, load_dataset
from hwnas.errors import InfeasibleError, InputError
from hwnas.export.certify import CertificationPlan
from hwnas.export.manifest import MANIFEST_FILE, MeasurementRecord
from hwnas.files import first_difference, locked, read_json, write_json
from hwnas.ir.architecture import Architecture
from hwnas.ir.space import SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.seams import SeamTable
from hwnas.latency.summary import refused_blocks
from hwnas.latency.table import SCHEMA as TABLE_SCHEMA
from hwnas.latency.table import LatencyTable, NetworkRecord
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import Weights
from hwnas.pipeline.compile import RoundReport, Stage, known_failures, next_constraint
from hwnas.pipeline.constraint import Constraint
from hwnas.pipeline.export import Exportable, retrained_network, supernet_path
from hwnas.pipeline.measure import Target, measure_artifact
from hwnas.pipeline.paired_accuracy import AccuracyDifference, compare_accuracy
from hwnas.pipeline.precision import (
    Evaluation,
    PrecisionEvaluator,
    calibrate_by_method,
    precision_model,
    precision_space,
    single_changes,
    uniform_precision,
    weights_of,
)
from hwnas.profiling.device import Device
from hwnas.profiling.profiler import ProfilePlan, profile_space
from hwnas.profiling.rounds import Measured, Progress, RoundsPlan, discard, measure_rounds, open_journal
from hwnas.search.result import Candidate
from hwnas.search.result import Progress as SearchProgress
from hwnas.search.sensitivity import FrontConfig, pareto_front, search_front
from hwnas.supernet.run import read_run_document

RUN_SCHEMA = "hwnas.quantize/1"  # 1: 2026-11, first
FRONT_SCHEMA = "hwnas.precision-front/1"
SUMMARY_SCHEMA = "hwnas.quantize-summary/1"
RUN_FILE, TABLE_FILE, FRONT_FILE, SUMMARY_FILE = "quantize.json", "table.json", "front.json", "summary.json"
UNIFORM = ("fp32", "int8")
MOST_ROUNDS = 3  # of choice, export and certification, unless a plan says otherwise
PLAN = ProfilePlan(fit_networks=32, held_out_networks=19, min_sessions=2, max_sessions=2, held_out_sessions=3)
"""How a precision space is profiled: its table is of one network, and small."""

_LEVEL = 0.05


# What a table, a calibration and a front are made of; tools/bench_mixed_precision.py joins them in another way.


def choose_calibration(evaluators: Mapping[str, PrecisionEvaluator], space: SearchSpace) -> tuple[str, dict[str, Evaluation]]:
    """The calibration method with which all of the network in int8 stays nearest to the float one.

    Args:
        evaluators: One for the weights of each method.
        space: The precision space.

    Returns:
        The method of the least divergence, and how all-int8 networks score by method.

    Raises:
        InputError: The runtime does not run int8.
    """
    architecture, found = uniform_precision(space, "int8"), {}
    for method, evaluator in evaluators.items():
        try:
            found[method] = evaluator.evaluate(architecture)
        except InputError as error:
            raise InputError(f"Precisions are chosen among what the runtime runs, but it refuses the network in int8 "
                             f"({str(error).rstrip('. ')}): choose another device, or export the network as it is.") from None
    return min(found, key=lambda method: found[method].divergence), found


def profile_precisions(space: SearchSpace, device: Device, path: Path, *, batch_size: int = 1, plan: ProfilePlan = PLAN,
                       restart: bool = False, progress: Progress | None = None) -> LatencyTable:
    """The latency table of a precision space: its blocks, networks at random, and those that change precision once at most.

    The last join the fit; they are measured once all else is. Continues what an earlier call began.

    Args:
        space: As `precision_space` makes it.
        device: Where to measure.
        path: The table's file; journals lie beside it until it is complete.
        batch_size: Images a call.
        plan: How much to measure.
        restart: Discards what is there.
        progress: Called with (sessions done, sessions planned, what was measured), for each of the two parts.

    Raises:
        InputError: As `profile_space`; or the time was over before every block was measured, or the device refuses a block.
        UnavailableError: The device cannot be reached.
    """
    journal, deadline = _changes_journal(path), time.monotonic() + 60 * plan.max_minutes
    if restart:
        journal.unlink(missing_ok=True)
    table = profile_space(space, device, path, batch_size=batch_size, plan=plan, restart=restart, progress=progress)
    if table.missing_workloads():
        raise InputError(f"Every block of {space.name!r} must be measured before precisions are chosen, but the time was over: "
                         "repeat the command, which continues, or raise --max-minutes.")
    for block, reason in refused_blocks(table).items():
        raise InputError(f"Every layer must run in each precision, but {device.name} refuses {block} ({reason.rstrip('. ')}): "
                         "choose another device.")
    new = _missing_changes(space, table)
    if not new or table.effort is None or not table.effort.complete:  # what is drawn is not settled, or the time is over
        return table
    least, most = plan.sessions("fit")
    models = {str(one): to_onnx(space.network(one), batch_size=batch_size).SerializeToString() for one in new}
    minutes = max(0.0, deadline - time.monotonic()) / 60
    sessions = measure_models(device, models, journal, replace(plan, min_sessions=least, max_sessions=most, max_minutes=minutes),
                              batch_size=batch_size, progress=progress)
    table = table.with_networks([NetworkRecord(choices=dict(one.choices), role="fit",
                                               sessions=tuple(session.ratios for session in sessions[str(one)]))
                                 for one in new if str(one) in sessions])
    table.save(path)
    journal.unlink()
    return table


def measure_models(device: Device, models: Mapping[str, bytes], journal: Path, plan: RoundsPlan, *, batch_size: int = 1,
                   progress: Progress | None = None) -> Measured:
    """Fresh sessions of ONNX models, in rounds, so that a drift of the machine falls on all alike.

    Args:
        device: Where.
        models: ONNX bytes by key.
        journal: Keeps every session; the same models continue from it.
        plan: How much.
        batch_size: Images a call, for the fingerprint.
        progress: Called with (sessions done, sessions planned, key).

    Raises:
        InputError: The journal is of other models, or the device refuses one.
        UnavailableError: The device cannot be reached.
    """
    digest = hashlib.sha256("".join(map(_model_sha256, models.values())).encode()).hexdigest()
    measured = open_journal(journal, {"schema": "hwnas.mixed-precision-journal/1", "models": digest,
                                      "environment": device.environment(batch_size)})
    measure_rounds({key: partial(bytes, model) for key, model in models.items()}, measured, journal, device, plan,
                   progress=progress)
    return measured


def _changes_journal(path: Path) -> Path:
    return path.with_name(f"{path.stem}-changes.journal")


def _missing_changes(space: SearchSpace, table: LatencyTable) -> list[Architecture]:
    known = [dict(record.choices) for record in table.networks]
    return [one for one in single_changes(space) if dict(one.choices) not in known]


def _model_sha256(content: bytes) -> str:
    """Of a model, whichever version of hwnas made it."""
    model = onnx.ModelProto.FromString(content)
    model.ClearField("producer_version")
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


@dataclass(frozen=True)
class PrecisionFront:
    """What a search of a precision space found.

    Attributes:
        history: Every network that was scored; scores are negative divergences from the float network.
        members: Those of it that none beats in both predicted latency and score, the fastest first; the float network is the
            last.
    """

    history: tuple[Candidate, ...]
    members: tuple[Candidate, ...]


def search_precisions(costs: SeamTable, evaluator: PrecisionEvaluator, config: FrontConfig | None = None,
                      progress: SearchProgress | None = None) -> PrecisionFront:
    """Finds the front of divergence from the float network over predicted latency, from both uniform networks on.

    What int8 costs in accuracy is less than some thousand images can tell; in divergence they can.
    """
    space = costs.table.search_space
    assert isinstance(space, SearchSpace)  # or there would be no seams
    result = search_front(Trellis(costs.search_space, costs), evaluator, [uniform_precision(space, name) for name in UNIFORM],
                          config, progress=progress)
    return PrecisionFront(result.history, tuple(pareto_front(result.history)))


def known_to_be_less_accurate(difference: AccuracyDifference) -> bool:
    """Whether a network is less accurate than another by McNemar's exact test, two-sided, at 5 %."""
    return difference.difference < 0 and difference.p_value < _LEVEL


def int8_layers(architecture: Architecture) -> int:
    """How many layers of a network of a precision space are in int8."""
    return sum(option.endswith("_int8") for option in architecture.choices.values())


# The verb.


@dataclass(frozen=True)
class QuantizeSettings:
    """What is wanted of a network.

    Attributes:
        max_latency_ms: The budget; None for the fastest network that is not known to be less accurate than fp32.
        calibration_images: Training images that the scales of int8 come from, at most.
        validation_images: How many score a choice; None for all.
        max_minutes: Of profiling.
        sessions: Fresh sessions of what is measured without a budget.
        certification: The test of the budget, and how many rounds of choice, export and test there may be.

    Raises:
        InputError: A value is out of range.
    """

    max_latency_ms: float | None = None
    calibration_images: int = 512
    validation_images: int | None = None
    max_minutes: float = 30.0
    sessions: int = 5
    certification: CertificationPlan = field(default_factory=partial(CertificationPlan, rounds=MOST_ROUNDS))

    def __post_init__(self) -> None:
        if self.max_latency_ms is not None and not self.max_latency_ms > 0:
            raise InputError(f"A measured latency can only be within a budget above 0 ms, but the budget is "
                             f"{self.max_latency_ms:g} ms.")
        if self.validation_images is not None and self.validation_images < 1:
            raise InputError(f"validation_images must be at least 1, but is {self.validation_images}.")


@dataclass(frozen=True)
class FrontMember:
    """A network of the front.

    Attributes:
        choices: Layer to option; the option names the precision.
        int8_layers: How many are in int8.
        predicted_ms: By the table.
        predicted_lower_ms: Of its 95 % interval.
        predicted_upper_ms: Likewise.
        validation_accuracy: Of the model in its runtime, 0 to 1.
        divergence: Of its class probabilities from the float network's, in nats, on the validation images.
        against_fp32: Its validation accuracy minus that of all-fp32, with 95 % interval and McNemar's p-value.
    """

    choices: dict[str, str]
    int8_layers: int
    predicted_ms: float
    predicted_lower_ms: float
    predicted_upper_ms: float
    validation_accuracy: float
    divergence: float
    against_fp32: AccuracyDifference


@dataclass(frozen=True)
class QuantizedReport:
    """A line of the final comparison.

    Attributes:
        name: `chosen`, `fp32` or `int8`.
        choices: Layer to option.
        int8_layers: How many are in int8.
        predicted_ms: By the table.
        measured_ms: In fresh sessions.
        accuracy: Of the model in its runtime on the test set, 0 to 1.
        against_fp32: Its test accuracy minus that of all-fp32.
    """

    name: str
    choices: dict[str, str]
    int8_layers: int
    predicted_ms: float
    measured_ms: float
    accuracy: float
    against_fp32: AccuracyDifference


@dataclass(frozen=True)
class QuantizeSummary:
    """What came out.

    Attributes:
        artifact: The artefact's folder.
        layers: How many layers have a precision.
        calibration: Method that chose the scales.
        budget_ms: The budget, if there was one.
        promised: The budget was met by the upper end of the prediction; None without a budget.
        verdict: `kept`, or `no budget`.
        quantile: Of the test.
        confidence: Of the test.
        history: Every round of choice, export and certification; empty without a budget.
        feasible_range_ms: Predicted latency of the fastest and the slowest choice of precisions.
        held_out: The table's error on networks that no fit has seen.
        front: What could be chosen.
        networks: The chosen one first, then what it is compared with.
    """

    artifact: str
    layers: int
    calibration: str
    budget_ms: float | None
    promised: bool | None
    verdict: str
    quantile: float
    confidence: float
    history: tuple[RoundReport, ...]
    feasible_range_ms: tuple[float, float]
    held_out: dict[str, float]
    front: tuple[FrontMember, ...]
    networks: tuple[QuantizedReport, ...]


def trained_network(folder: str | os.PathLike[str], architecture: Architecture | None = None, *, data: str | None = None,
                    name: str = "") -> Exportable:
    """The float network to start from.

    Args:
        folder: What `retrain` or `train` left.
        architecture: Which path of a supernet; of a retrained network, what it should be.
        data: Where its data are, as for `hwnas train --data`; None for where they were.
        name: Put after that of the space.

    Raises:
        InputError: Folder, architecture and data do not fit together, or a supernet has no architecture.
    """
    is_network = (Path(folder) / "network.json").exists()
    if not is_network and architecture is None:
        raise InputError(f"Precisions are those of one network, but {os.fspath(folder)} holds none that was retrained: give the "
                         "folder of a retrain, or a supernet's with --architecture.")
    dataset = None
    if data is not None:
        source = read_run_document(Path(folder), "network" if is_network else "supernet").get("data_source")
        dataset = load_dataset(data, seed=int(source.get("seed", 0)) if isinstance(source, dict) else 0)
    if architecture is None or is_network:
        return retrained_network(folder, architecture, name=name, dataset=dataset)
    return supernet_path(folder, architecture, name=name, dataset=dataset)


def quantize_network(found: Exportable, target: Target, output: str | os.PathLike[str], settings: QuantizeSettings, stage: Stage,
                     *, overwrite: bool = False, say: Callable[[str], None] = lambda text: None) -> QuantizeSummary:
    """Chooses a precision for each layer of a trained network, and leaves the artefact.

    Of the front of divergence over predicted latency it takes, within a budget, the network nearest to the float one whose
    prediction promises it; without one, the fastest that is not known to be less accurate than fp32, by
    `known_to_be_less_accurate`.

    Args:
        found: The network, as `trained_network` gives it.
        target: The device, not yet on any table's milliseconds.
        output: The folder; whatever an earlier run of the same network left in it is used.
        settings: What is wanted.
        stage: Opens a progress bar.
        overwrite: Discard what another network, or a measurement elsewhere, left in the folder.
        say: Is told what is to be shown, how every round ended, and what is still to be measured.

    Raises:
        InfeasibleError: No choice of precisions meets the budget, or none was found of which that can be shown.
        InputError: The network has no data or no layers in order, the runtime does not run int8, or the folder is of another
            network or device.
        UnavailableError: The device cannot be reached, or its runtime cannot score networks here.
        VerificationError: The exported model does not compute what PyTorch computes.
    """
    if found.dataset is None or found.architecture is None or found.space is None:
        raise InputError("int8 is calibrated on real images, but a network of random weights was trained on none: give one that "
                         "was trained.")
    space = precision_space(found.space, found.architecture)
    target = target.for_inputs((target.batch_size, *space.input_shape))
    validation = _first(found.dataset.validation, settings.validation_images)
    root, runtime = Path(output), str(target.environment["runtime"])
    with locked(root / RUN_FILE, "quantisation"):
        _begin(root, space, found.weights, overwrite)
        scorer = partial(PrecisionEvaluator, space, dataset=found.dataset, runtime=runtime, config=target.config,
                         scores=root / "scores")  # on this machine, wherever the device is
        with stage("calibrate") as bar:
            calibrated = calibrate_by_method(space, found.weights, found.dataset, settings.calibration_images)
            evaluator = scorer(weights=found.weights, split=validation)
            evaluators = {method: evaluator.with_weights(weights) for method, weights in calibrated.items()}
            method, _ = choose_calibration(evaluators, space)
            bar(1, 1, f"by {method}")
        with stage("profile") as bar, target.open() as device:
            table = profile_precisions(space, device, root / TABLE_FILE, batch_size=target.batch_size,
                                       plan=replace(PLAN, max_minutes=settings.max_minutes), progress=bar)
        if _missing_changes(space, table):
            say("The time was over before everything was measured, so predictions are less sure: the same command completes the "
                "table first.")
        run = _Run(found, space, calibrated[method], method, evaluators[method],
                   partial(scorer, weights=calibrated[method], split=found.dataset.test),
                   replace(target, anchor_ms=table.anchor_ms), root, settings, stage, say)
        return run.fastest(table) if settings.max_latency_ms is None else run.within(table, settings.max_latency_ms)


def _first(split: Split, images: int | None) -> Split:
    if images is not None and images > len(split):
        raise InputError(f"validation_images must be at most {len(split)}, as many as there are, but is {images}.")
    return split if images is None else Split(split.images[:images], split.labels[:images])


def _begin(root: Path, space: SearchSpace, weights: Weights, overwrite: bool) -> None:
    """Claims a folder for a network, or finds that it is this network's."""
    wanted = {"schema": RUN_SCHEMA, "space": space.name, "space_hash": space.hash,
              "network_sha256": _weights_sha256(weights_of(space.network(uniform_precision(space, "fp32")), weights))}
    path = root / RUN_FILE
    if path.exists() and not overwrite:
        difference = first_difference(read_json(path, "quantisation"), wanted)
        if difference is not None:
            raise InputError(f"A folder is of one network, but in {path} the {difference[0] or 'document'} is {difference[1]!r} "
                             f"and here it is {difference[2]!r}: choose another --output, or pass --overwrite.")
        return
    if overwrite:
        _discard(root)  # before the folder is this network's: a kill in between leaves nothing to mix
    write_json(path, wanted)


def _weights_sha256(weights: Weights) -> str:
    """Of names and values, which no version of a file format touches."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.asarray(weights[name], "<f4")
        digest.update(repr((name, array.shape)).encode() + array.tobytes())
    return digest.hexdigest()


def _discard(root: Path) -> None:
    """Deletes what an earlier network left, but for scores, which are kept by content."""
    discard(root / TABLE_FILE, TABLE_SCHEMA, "latency table")
    for journal in (root / f"{TABLE_FILE}.journal", _changes_journal(root / TABLE_FILE)):
        journal.unlink(missing_ok=True)
    if (root / RUN_FILE).exists():  # else what is called so is somebody else's
        (root / FRONT_FILE).unlink(missing_ok=True)
        for folder in (*root.glob("[0-9]*ms"), root / "fastest"):
            (folder / SUMMARY_FILE).unlink(missing_ok=True)
            if (folder / "artifact" / MANIFEST_FILE).is_file():
                shutil.rmtree(folder / "artifact")
            with suppress(OSError):  # with anything else in it
                folder.rmdir()


@dataclass(frozen=True)
class _Run:
    """What follows once a network is calibrated and its space profiled.

    Attributes:
        found: The float network.
        space: Its space of precisions.
        weights: Those of every network of that space.
        method: That calibrated them.
        evaluator: Of validation images.
        make_tester: Makes the evaluator of test images, which nothing is chosen by.
        target: The device, in the table's milliseconds.
        root: The folder.
        settings: What is wanted.
        stage: Opens a progress bar.
        say: Is told how every round ended.
    """

    found: Exportable
    space: SearchSpace
    weights: Mapping[str, NDArray[np.floating]]
    method: str
    evaluator: PrecisionEvaluator
    make_tester: Callable[[], PrecisionEvaluator]
    target: Target
    root: Path
    settings: QuantizeSettings
    stage: Stage
    say: Callable[[str], None]

    def fastest(self, table: LatencyTable) -> QuantizeSummary:
        """Without a budget."""
        costs, folder = SeamTable(table), self.root / "fastest"
        members = self._search(costs)
        best = next(self.space.architecture(one.choices) for one in members if not known_to_be_less_accurate(one.against_fp32))
        measured, _ = self._measured(costs, best, folder, None)
        return self._summary(costs, members, best, measured, folder, None, ())

    def within(self, table: LatencyTable, budget_ms: float) -> QuantizeSummary:
        """Within a budget, and again with what was measured until that is shown to be kept."""
        plan, folder = self.settings.certification, self.root / f"{budget_ms:.6g}ms"
        self.say(f"To be shown for {budget_ms:g} ms: {plan}.")
        costs = SeamTable(table)
        failed = known_failures(costs, plan, budget_ms)
        history: list[RoundReport] = []
        while len(history) < plan.rounds:
            constraint = next_constraint(costs, budget_ms, failed)
            if constraint is None:
                break
            members = self._search(costs)
            chosen = [one for one in members if one.predicted_ms <= constraint.search_limit][-1]
            best = self.space.architecture(chosen.choices)
            measured, record = self._measured(costs, best, folder, budget_ms)
            history.append(_round_report(len(history) + 1, constraint, chosen.predicted_ms, measured))
            self.say(str(history[-1]))
            if history[-1].verdict == "kept":
                return self._summary(costs, members, best, measured, folder, constraint, tuple(history))
            table = table.with_networks([record])
            table.save(self.root / TABLE_FILE)
            costs = SeamTable(table)
            failed[best] = history[-1].certifiable_ms
        raise InfeasibleError(f"No choice of precisions was found of which {plan.claim} can be shown for {budget_ms:g} ms, in "
                              f"{len(history)} round(s); the nearest of all that failed, now or before, could be promised for "
                              f"{min(failed.values()):.4g} ms: raise the budget, or search for another network.")

    def _search(self, costs: SeamTable) -> tuple[FrontMember, ...]:
        """The front, the fastest first; also written to its file."""
        with self.stage("search") as bar:
            front = search_precisions(costs, self.evaluator, progress=lambda done, planned, _: bar(done, planned, ""))
        fp32 = self.evaluator.evaluate(uniform_precision(self.space, "fp32"))
        members = tuple(self._member(costs, one, fp32) for one in front.members)
        write_json(self.root / FRONT_FILE, {
            "schema": FRONT_SCHEMA, "space": self.space.name, "environment": costs.table.environment,
            "calibration": self.method, "images": fp32.correct.size, "evaluations": len(front.history),
            "held_out": asdict(costs.held_out), "members": [asdict(one) for one in members]})
        return members

    def _member(self, costs: SeamTable, one: Candidate, fp32: Evaluation) -> FrontMember:
        evaluation, prediction = self.evaluator.evaluate(one.architecture), costs.predict(one.architecture)
        return FrontMember(dict(one.architecture.choices), int8_layers(one.architecture), one.cost, prediction.lower_ms,
                           prediction.upper_ms, evaluation.accuracy, evaluation.divergence,
                           compare_accuracy(evaluation.correct, fp32.correct))

    def _measured(self, costs: SeamTable, best: Architecture, folder: Path, budget_ms: float | None
                  ) -> tuple[MeasurementRecord, NetworkRecord]:
        """Exports a choice and measures it, against the budget if there is one: the verdict, and what the table may learn."""
        (folder / SUMMARY_FILE).unlink(missing_ok=True)  # it is of the artefact that is replaced
        network = self.space.network(best)
        chosen = replace(self.found, network=network, weights=weights_of(network, self.weights), architecture=best,
                         space=self.space, prediction=costs.predict(best), accuracy=self._tester.evaluate(best).accuracy,
                         name=f"{self.found.name}, {int8_layers(best)} of {len(self.space.decisions)} layers in int8")
        artifact = chosen.export(folder / "artifact", budget_ms=budget_ms, batch_size=self.target.batch_size, overwrite=True)
        with self.stage("measure" if budget_ms is None else "certify") as bar:
            manifest, measurement = measure_artifact(
                artifact.directory, self.target, self.settings.sessions, lambda done, total: bar(done, total, "the artefact"),
                self.settings.certification)
        assert manifest.measurement is not None  # that is what it is for
        sessions = tuple(session.ratios for session in measurement.sessions)
        return manifest.measurement, NetworkRecord(choices=dict(best.choices), sessions=sessions, role="exported")

    def _summary(self, costs: SeamTable, members: tuple[FrontMember, ...], best: Architecture, measured: MeasurementRecord,
                 folder: Path, constraint: Constraint | None, history: tuple[RoundReport, ...]) -> QuantizeSummary:
        trellis, plan = Trellis(costs.search_space, costs), self.settings.certification
        summary = QuantizeSummary(
            str(folder / "artifact"), len(self.space.decisions), self.method, constraint.limit if constraint else None,
            constraint.promised if constraint else None, measured.verdict, plan.quantile, plan.confidence, history,
            (trellis.min_cost(), trellis.max_cost()), asdict(costs.held_out), members,
            self._reports(costs, best, measured.latency_ms))
        write_json(folder / SUMMARY_FILE, {"schema": SUMMARY_SCHEMA, **asdict(summary)})
        return summary

    def _reports(self, costs: SeamTable, best: Architecture, measured_ms: float) -> tuple[QuantizedReport, ...]:
        """The chosen network, and both uniform ones, which are measured as well."""
        rows = {"chosen": best} | {name: uniform_precision(self.space, name) for name in UNIFORM}
        measured, fp32 = {best: measured_ms}, self._tester.evaluate(rows["fp32"])
        reports = []
        with self.stage("compare") as bar:
            for index, (name, one) in enumerate(rows.items()):
                if one not in measured:
                    model = precision_model(self.space, one, self.weights, self.target.batch_size)
                    measured[one] = self.target.milliseconds(self.target.measure(model, self.settings.sessions))["latency_ms"]
                evaluation = self._tester.evaluate(one)
                reports.append(QuantizedReport(
                    name, dict(one.choices), int8_layers(one), costs.predict(one).latency_ms, measured[one], evaluation.accuracy,
                    compare_accuracy(evaluation.correct, fp32.correct)))
                bar(index + 1, len(rows), name)
        return tuple(reports)

    @cached_property
    def _tester(self) -> PrecisionEvaluator:
        return self.make_tester()


def _round_report(number: int, constraint: Constraint, predicted_ms: float, found: MeasurementRecord) -> RoundReport:
    assert found.certifiable_ms is not None and found.observations is not None and found.above is not None  # it had a budget
    return RoundReport(number, constraint.search_limit, predicted_ms, found.latency_ms, found.certifiable_ms, found.verdict,
                       found.observations, found.above, found.latency_ms / constraint.limit)

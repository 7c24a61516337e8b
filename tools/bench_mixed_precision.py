"""Mixed precision on the CPU: int8 or fp32 for each layer of one network, against all of it in either.

    python tools/bench_mixed_precision.py --architecture examples/thin_start.json --output docs/mixed-precision.json \
        --picture docs/mixed-precision.svg

Trains a network (or finds it in --folder), calibrates it in each of the known ways, profiles its space of precisions, searches
the front of divergence from the float network over predicted latency, and then measures the front's members and both uniform
networks in turn, as the models that are exported. What is chosen is chosen on validation images; the accuracies that count are
those of test images.
Everything in --folder is kept, and the same command goes on from there.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hwnas.data import Dataset, Split, load_dataset
from hwnas.files import write_atomic, write_json
from hwnas.ir.architecture import Architecture, load_architecture
from hwnas.ir.space import SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.seams import SeamTable
from hwnas.latency.sessions import combine_sessions
from hwnas.pipeline.paired_accuracy import AccuracyDifference, accuracy_interval, compare_accuracy
from hwnas.pipeline.precision import (
    PrecisionEvaluator,
    calibrate_by_method,
    precision_model,
    precision_space,
    uniform_precision,
)
from hwnas.pipeline.quantize import (
    UNIFORM,
    PrecisionFront,
    choose_calibration,
    int8_layers,
    known_to_be_less_accurate,
    measure_models,
    profile_precisions,
    search_precisions,
)
from hwnas.profiling.device import open_device
from hwnas.profiling.profiler import ProfilePlan
from hwnas.profiling.rounds import RoundsPlan
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RuntimeConfig
from hwnas.search.evolution import EvolutionConfig, search_evolution
from hwnas.search.result import Candidate
from hwnas.search.sensitivity import FrontConfig, pareto_front
from hwnas.spaces.load import load_space
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.retrain import load_network_weights, train_network

SCHEMA = "hwnas.mixed-precision/1"
DEFAULT_OPTION = "k3_e6"
_SAME_IMAGES = 200  # on which the batch of one, as exported, must agree with the batches that scored

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Member:
    """A network whose real model was measured and scored on test images.

    Attributes:
        name: `fp32`, `int8` or `mixed`.
        architecture: Of the precision space.
        int8_layers: How many of its decisions are int8.
        predicted_ms: By the table with seams.
        ratio: Measured latency over that of the all-fp32 model.
        ratio_ci: 95 % interval over sessions, of this model's own scatter.
        measured_ms: On the table's milliseconds.
        validation: Accuracy on validation images.
        correct: Which test images it gets right.
    """

    name: str
    architecture: Architecture
    int8_layers: int
    predicted_ms: float
    ratio: float
    ratio_ci: tuple[float, float]
    measured_ms: float
    validation: float
    correct: np.ndarray

    @property
    def test(self) -> float:
        return float(self.correct.mean())


def trained(space: SearchSpace, architecture: Architecture, dataset: Dataset, arguments: argparse.Namespace, bar: Progress
            ) -> Weights:
    """The network's weights, from --folder where it was trained before."""
    network = space.network(architecture)
    config = LoopConfig(epochs=arguments.epochs, batch_size=arguments.batch_size, learning_rate=arguments.learning_rate,
                        schedule="cosine", warmup_steps=50, threads=arguments.train_threads)
    task = bar.add_task("training", total=None)
    train_network(network, dataset, arguments.folder / "network", config,
                  progress=lambda step, total, *_: bar.update(task, completed=step, total=total))
    return load_network_weights(arguments.folder / "network", network)


def spread_members(front: PrecisionFront, count: int) -> list[Architecture]:
    """Some members of the front, evenly spaced."""
    kept = np.unique(np.linspace(0, len(front.members) - 1, min(count, len(front.members))).round().astype(int))
    return [front.members[index].architecture for index in kept]


def compare_searches(trellis: Trellis, evaluator: PrecisionEvaluator, history: Sequence[Candidate], budgets: int
                     ) -> dict[str, Any]:
    """Evolution under as many budgets and with as many evaluations, against the search by sensitivities."""
    each = max(4, len(history) // budgets)
    config = EvolutionConfig(population=max(2, each // 4), generations=4, parents=4, crossover=each // 8, mutation=each // 8)
    evolved: list[Candidate] = []
    for budget in np.linspace(trellis.min_cost(), trellis.max_cost(), budgets + 1)[1:].tolist():
        evolved += search_evolution(trellis, evaluator, budget, config).history
    bounds = trellis.min_cost(), trellis.max_cost()
    worst = min(one.score for one in (*history, *evolved))
    return {name: {"evaluations": len({one.architecture for one in found}),
                   "area": area_under(pareto_front(found), bounds, worst)}
            for name, found in (("sensitivity", list(history)), ("evolution", evolved))}


def area_under(front: Sequence[Candidate], bounds: tuple[float, float], worst: float) -> float:
    """What a front dominates, as a share of the box from the cheapest to the dearest network and from the worst score to 0."""
    low, high = bounds
    costs = [*(one.cost for one in front), high]
    area = sum((costs[index + 1] - costs[index]) * (one.score - worst) for index, one in enumerate(front))
    return area / max((high - low) * -worst, 1e-30)


def run(runtime: str, space: SearchSpace, weights: Mapping[str, Weights], dataset: Dataset, arguments: argparse.Namespace,
        bar: Progress) -> dict[str, Any]:
    """Everything on one runtime."""
    folder, seconds, start = arguments.folder, {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = round(time.perf_counter() - start, 1), time.perf_counter()

    def teller(name: str) -> Callable[[int, int], None]:
        task = bar.add_task(f"{runtime}: {name}", total=None)
        return lambda done, total: bar.update(task, completed=done, total=total)

    uniform = {name: uniform_precision(space, name) for name in UNIFORM}
    evaluators = {method: PrecisionEvaluator(space, found, dataset, dataset.validation, runtime=runtime)
                  for method, found in weights.items()}
    method, all_int8 = choose_calibration(evaluators, space)
    evaluator = evaluators[method]
    lap("calibration")
    with open_device(runtime, RuntimeConfig()) as device:
        told = teller("profiling")
        table = profile_precisions(space, device, folder / f"{runtime}.json", plan=ProfilePlan(
            fit_networks=arguments.fit_networks, held_out_networks=arguments.held_out_networks, min_sessions=2, max_sessions=2,
            held_out_sessions=arguments.held_out_sessions, max_minutes=arguments.max_minutes),
            progress=lambda done, total, _: told(done, total))
        costs = SeamTable(table)
        lap("profiling")
        searching, measuring = teller("searching"), teller("measuring the front")
        front = search_precisions(costs, evaluator, FrontConfig(arguments.budgets, arguments.rounds),
                                  lambda done, planned, _: searching(done, planned))
        searches = compare_searches(Trellis(costs.search_space, costs), evaluator, front.history, arguments.budgets
                                    ) if arguments.evolution else {}
        lap("search")
        chosen = list(dict.fromkeys([*uniform.values(), *spread_members(front, arguments.members)]))
        models = {str(one): precision_model(space, one, weights[method]) for one in chosen}
        digest = hashlib.sha256(b"".join(models.values())).hexdigest()[:12]  # other members, another journal
        sessions = measure_models(device, models, folder / f"{runtime}-{digest}.journal", RoundsPlan(
            min_sessions=arguments.sessions, max_sessions=arguments.sessions, timing=TimingPlan(max_seconds=1.0)),
            progress=lambda done, total, _: measuring(done, total))
        lap("measuring the front")
    members = judge(chosen, uniform, costs, evaluator, models, sessions, space, weights[method], dataset, runtime)
    lap("test images")
    methods = {name: {"validation_accuracy": found.accuracy, "divergence": found.divergence} for name, found in all_int8.items()}
    return {"runtime": runtime, "version": table.environment["runtime_version"], "method": method, "methods": methods,
            "layers": len(space.decisions), "table": describe_table(costs), "evaluations": len(front.history),
            "searches": searches, "history": [describe(one, evaluator) for one in front.history],
            "members": [describe_member(member, members) for member in members], "claims": claims(members),
            "seconds": seconds}


def judge(chosen: Sequence[Architecture], uniform: dict[str, Architecture], costs: SeamTable, evaluator: PrecisionEvaluator,
          models: dict[str, bytes], sessions: dict[str, list[Any]], space: SearchSpace, weights: Weights, dataset: Dataset,
          runtime: str) -> list[Member]:
    """The members with all their figures, the fastest first."""
    tester = PrecisionEvaluator(space, weights, dataset, dataset.test, runtime=runtime)
    some = Split(dataset.test.images[:_SAME_IMAGES], dataset.test.labels[:_SAME_IMAGES])
    single = PrecisionEvaluator(space, weights, dataset, some, runtime=runtime, batch_size=1)
    baseline = median(median(one.ratios) for one in sessions[str(uniform["fp32"])])
    names = {architecture: name for name, architecture in uniform.items()}
    members = []
    for one, prediction in zip(chosen, costs.predict_many(chosen), strict=True):
        statistics = combine_sessions(sessions[str(one)])
        evaluation = tester.evaluate(one)
        exported = single.evaluate_model(models[str(one)])
        if (exported.predicted != evaluation.predicted[:len(some)]).any():
            raise SystemExit(f"The model as exported and the one that was scored disagree on test images: {one}")
        low, high = statistics.ratio_ci
        members.append(Member(names.get(one, "mixed"), one, int8_layers(one), prediction.latency_ms, statistics.ratio / baseline,
                              (low / baseline, high / baseline), statistics.ratio * costs.table.anchor_ms,
                              evaluator.evaluate(one).accuracy, evaluation.correct))
    return sorted(members, key=lambda member: member.ratio)


def describe_table(costs: SeamTable) -> dict[str, Any]:
    table = costs.table
    return {"blocks": len(table.entries), "networks": len(table.networks), "effort": table.effort and table.effort.model_dump(),
            "additive": dict(vars(table.held_out)), "with_seams": dict(vars(costs.held_out)),
            "seams": len(costs.search_space.seams)}


def describe(candidate: Candidate, evaluator: PrecisionEvaluator) -> dict[str, Any]:
    evaluation = evaluator.evaluate(candidate.architecture)
    return {"choices": dict(candidate.architecture.choices), "predicted_ms": candidate.cost, "round": candidate.generation,
            "validation_accuracy": evaluation.accuracy, "divergence": evaluation.divergence}


def describe_member(member: Member, members: Sequence[Member]) -> dict[str, Any]:
    fp32, int8 = (next(one for one in members if one.name == name) for name in UNIFORM)
    return {"name": member.name, "choices": dict(member.architecture.choices), "int8_layers": member.int8_layers,
            "predicted_ms": member.predicted_ms, "measured_ms": member.measured_ms, "ratio_to_fp32": member.ratio,
            "ratio_ci": member.ratio_ci, "validation_accuracy": member.validation, "test_accuracy": member.test,
            "test_interval": accuracy_interval(member.correct),
            "against_fp32": vars(compare_accuracy(member.correct, fp32.correct)),
            "against_int8": vars(compare_accuracy(member.correct, int8.correct))}


def claims(members: Sequence[Member]) -> dict[str, Any]:
    """What may be said of mixed networks, by test images and measured latency; None where nothing may."""
    fp32, int8 = (next(one for one in members if one.name == name) for name in UNIFORM)
    mixed = [member for member in members if member.name == "mixed"]

    def best(fits: Callable[[Member, AccuracyDifference, AccuracyDifference], bool]) -> dict[str, Any] | None:
        for member in mixed:  # the fastest first
            if fits(member, compare_accuracy(member.correct, fp32.correct), compare_accuracy(member.correct, int8.correct)):
                return {"int8_layers": member.int8_layers, "ratio_to_fp32": member.ratio,
                        "ratio_to_int8": member.ratio / int8.ratio, "test_accuracy": member.test}
        return None

    def faster(one: Member, other: Member) -> bool:
        return one.ratio_ci[1] < other.ratio_ci[0]

    return {
        "faster than fp32, not known to be less accurate (p < 0.05)":
            best(lambda one, to_fp32, _: faster(one, fp32) and not known_to_be_less_accurate(to_fp32)),
        "faster than fp32, at least as accurate":
            best(lambda one, to_fp32, _: faster(one, fp32) and to_fp32.difference >= 0),
        "faster than fp32, more accurate than int8 (p < 0.05)":
            best(lambda one, _, to_int8: faster(one, fp32) and to_int8.difference > 0 and to_int8.p_value < 0.05),
        "faster than int8, at least as accurate":
            best(lambda one, _, to_int8: faster(one, int8) and to_int8.difference >= 0),
        "faster than fp32 and than int8, not known to be less accurate than either (p < 0.05)":
            best(lambda one, to_fp32, to_int8: faster(one, fp32) and faster(one, int8)
                 and not known_to_be_less_accurate(to_fp32) and not known_to_be_less_accurate(to_int8)),
    }


def show(console: Console, row: dict[str, Any]) -> None:
    """Prints what was found on a runtime."""
    chosen, table = row["methods"][row["method"]], row["table"]
    others = ", ".join(f"{name} {figures['divergence']:.5f}" for name, figures in row["methods"].items())
    console.print(f"[bold]{row['runtime']} {row['version']}[/bold]: {row['layers']} layers, {row['evaluations']} networks "
                  f"scored; calibrated by {row['method']} (divergence of all-int8: {others}; accuracy "
                  f"{chosen['validation_accuracy']:.4f})", soft_wrap=True)
    for name in ("additive", "with_seams"):
        found = table[name]
        console.print(f"  table {name.replace('_', ' ')}: on {found['networks']} held-out networks, mean error "
                      f"{100 * found['mean_error']:.2f} %, largest {100 * found['max_error']:.1f} %, Spearman "
                      f"{found['spearman']:.3f}")
    errors = [abs(one["measured_ms"] / one["predicted_ms"] - 1) for one in row["members"]]
    console.print(f"  members below: predicted {100 * np.mean(errors):.2f} % off on average, {100 * max(errors):.1f} % at most")
    for name, found in row["searches"].items():
        console.print(f"  search by {name}: {found['evaluations']} evaluations, area {found['area']:.4f}")
    view = Table(title_justify="left")
    for column in ("network", "int8 layers", "predicted ms", "measured ms", "over fp32", "validation", "test", "test 95 %",
                   "minus fp32", "p", "minus int8", "p"):
        view.add_column(column, justify="left" if column == "network" else "right")
    for one in row["members"]:
        low, high = one["test_interval"]
        differences = [text for key in ("against_fp32", "against_int8") for text in (
            f"{100 * one[key]['difference']:+.2f} %", f"{one[key]['p_value']:.3f}")]
        view.add_row(one["name"], f"{one['int8_layers']}/{row['layers']}", f"{one['predicted_ms']:.3f}",
                     f"{one['measured_ms']:.3f}", f"{one['ratio_to_fp32']:.3f}", f"{100 * one['validation_accuracy']:.2f} %",
                     f"{100 * one['test_accuracy']:.2f} %", f"{100 * low:.1f} to {100 * high:.1f}", *differences)
    console.print(view)
    for claim, found in row["claims"].items():
        said = "none" if found is None else (
            f"{found['int8_layers']} layers in int8, {found['ratio_to_fp32']:.3f} of fp32's latency, "
            f"{found['ratio_to_int8']:.3f} of int8's, test {100 * found['test_accuracy']:.2f} %")
        console.print(f"  {claim}: {said}", soft_wrap=True)
    console.print("  seconds: " + ", ".join(f"{name} {value}" for name, value in row["seconds"].items()))


def markdown(document: Mapping[str, Any]) -> str:
    """What docs/export.md quotes: the members of each runtime's front, and what may be said of them."""
    parts = []
    for row in document["rows"]:
        lines = [f"{row['runtime']} {row['version']}, {row['layers']} layers, {document['images']['test']} test images:", "",
                 "| network | int8 layers | latency over fp32 | test accuracy | 95 % | minus fp32 (p) | minus int8 (p) |",
                 "| --- | --- | --- | --- | --- | --- | --- |"]
        for one in row["members"]:
            low, high = one["test_interval"]
            differences = [f"{100 * one[key]['difference']:+.2f} % ({one[key]['p_value']:.3f})"
                           for key in ("against_fp32", "against_int8")]
            lines.append(f"| {one['name']} | {one['int8_layers']} | {one['ratio_to_fp32']:.3f} | "
                         f"{100 * one['test_accuracy']:.2f} % | {100 * low:.1f} to {100 * high:.1f} | "
                         f"{' | '.join(differences)} |")
        alone, seams = row["table"]["additive"], row["table"]["with_seams"]
        lines += ["", f"The table, on {seams['networks']} held-out networks: mean error {100 * alone['mean_error']:.2f} % "
                      f"without terms for changes of precision, {100 * seams['mean_error']:.2f} % with them.", ""]
        lines += [*(f"- {claim}: " + ("none" if found is None else (
            f"{found['int8_layers']} layers in int8, {found['ratio_to_fp32']:.3f} of fp32's latency and "
            f"{found['ratio_to_int8']:.3f} of int8's, {100 * found['test_accuracy']:.2f} %"))
            for claim, found in row["claims"].items())]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Test accuracy over measured latency, one panel for every runtime."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "hwnas"  # the same bytes for the same figures
    figure, panels = plt.subplots(1, len(rows), figsize=(5.5 * len(rows), 4), squeeze=False, constrained_layout=True)
    styles = {"fp32": ("s", "tab:blue"), "int8": ("D", "tab:red"), "mixed": ("o", "tab:green")}
    for panel, row in zip(panels[0], rows, strict=True):
        for name, (marker, colour) in styles.items():
            members = [one for one in row["members"] if one["name"] == name]
            accuracy = np.array([100 * one["test_accuracy"] for one in members])
            errors = 100 * np.array([one["test_interval"] for one in members]).reshape(-1, 2).T
            latency = np.array([one["measured_ms"] for one in members])
            sides = np.array([[one["measured_ms"] * (1 - one["ratio_ci"][0] / one["ratio_to_fp32"]),
                               one["measured_ms"] * (one["ratio_ci"][1] / one["ratio_to_fp32"] - 1)] for one in members])
            panel.errorbar(latency, accuracy, yerr=np.abs(errors - accuracy), xerr=np.abs(sides.reshape(-1, 2).T), fmt=marker,
                           color=colour, ecolor="0.8", label={"mixed": "mixed, as searched"}.get(name, f"all {name}"), zorder=3)
            for one, x, y in zip(members, latency, accuracy, strict=True):
                panel.annotate(str(one["int8_layers"]), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7)
        panel.set(title=f"{row['runtime']} {row['version']}", xlabel="measured latency, ms (1 thread, batch 1)",
                  ylabel="test accuracy, %")
        panel.legend(fontsize=8)
    figure.suptitle("Numbers: layers in int8. Bars: 95 % intervals, of each on its own", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png", metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    write_atomic(path, content.getvalue())


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="mobile-cpu")
    parser.add_argument("--architecture", type=Path, help=f"an architecture file; {DEFAULT_OPTION} everywhere otherwise")
    parser.add_argument("--data", default="glyphs?train=8000&validation=4000&test=20000&difficulty=0.4")
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime-cpu"])
    parser.add_argument("--folder", type=Path, default=Path("runs/mixed-precision"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--train-threads", type=int)
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument("--fit-networks", type=int, default=32)
    parser.add_argument("--held-out-networks", type=int, default=19)
    parser.add_argument("--held-out-sessions", type=int, default=3)
    parser.add_argument("--max-minutes", type=float, default=3.0, help="of profiling, for each runtime")
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--members", type=int, default=10, help="of the front, at most, that are measured")
    parser.add_argument("--sessions", type=int, default=6, help="of every model that is measured")
    parser.add_argument("--evolution", action="store_true", help="also search by evolution with as many evaluations")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path, help=".svg or .png")
    return parser.parse_args(arguments)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(given)
    console = Console(width=170)
    space = load_space(arguments.space)
    if not isinstance(space, SearchSpace):
        raise SystemExit(f"Precisions are chosen for layers in order, but {arguments.space} is a space of cells.")
    if arguments.architecture:
        architecture = load_architecture(arguments.architecture)
    else:
        architecture = space.architecture({decision.name: DEFAULT_OPTION for decision in space.decisions})
    dataset = load_dataset(arguments.data)
    with Progress(console=Console(stderr=True)) as bar:
        start = time.perf_counter()
        weights = trained(space, architecture, dataset, arguments, bar)
        console.print(f"trained (or found) in {time.perf_counter() - start:.0f} s")
        precisions = precision_space(space, architecture)
        found = calibrate_by_method(precisions, weights, dataset, arguments.calibration_images)
        rows = [run(runtime, precisions, found, dataset, arguments, bar) for runtime in arguments.runtimes]
    for row in rows:
        show(console, row)
    if arguments.output:
        document = {"schema": SCHEMA, "space": arguments.space, "choices": dict(architecture.choices), "data": arguments.data,
                    "images": {"validation": len(dataset.validation), "test": len(dataset.test)}, "rows": rows}
        write_json(arguments.output, json.loads(json.dumps(document, default=float)))
    if arguments.picture:
        draw(rows, arguments.picture)


if __name__ == "__main__":
    main()

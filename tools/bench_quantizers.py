"""Our int8 against that of ONNX Runtime's quantiser and of NNCF, on the runtimes that run each.

    python tools/bench_quantizers.py --output docs/quantizers.json

Trains the networks (or finds them in --folder), has each quantiser make an int8 model of each from the same calibration images,
in a process of its own, and compares the models: accuracy on test images with McNemar's test, latency over fp32 in fresh
sessions of all models in turn, seconds and memory of calibration, and how many of the layers that compute run in integer
kernels. Everything in --folder is kept, and the same command goes on from there.

NNCF is no part of this product: where it is not installed, its rows are left out. Run it on a quiet machine, on Linux.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hwnas.data import Dataset, load_dataset
from hwnas.files import read_json, write_atomic, write_json
from hwnas.ir.network import Network
from hwnas.ir.space import SearchSpace
from hwnas.latency.sessions import combine_sessions
from hwnas.lower.calibrate import METHODS, calibrate
from hwnas.lower.onnx import to_onnx
from hwnas.pipeline.paired_accuracy import accuracy_interval, compare_accuracy
from hwnas.pipeline.precision import precision_space, uniform_precision
from hwnas.profiling.device import open_device
from hwnas.profiling.rounds import RoundsPlan, measure_rounds, open_journal
from hwnas.profiling.session import SessionSamples
from hwnas.runtimes import Program, RuntimeConfig, load_runtime
from hwnas.runtimes.onnx_model import ONNX_FILE, read_onnx
from hwnas.spaces.load import load_space
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.retrain import load_network_weights, train_network

SCHEMA, JOURNAL_SCHEMA = "hwnas.quantizers/1", "hwnas.quantizers-journal/1"
NETWORKS = ("mobile-cpu:k3_e6", "spos-cpu:xception")
RUNTIMES = ("onnxruntime-cpu", "openvino-cpu")
FLOAT, OURS = "fp32", "ours mse"  # what the others are compared with; the second is what `hwnas export --precision int8` makes

# Layers that compute, as the two runtimes call them in the graphs that they run; the others move or convert data.
_ONNX_INTEGER = "QLinear", "QGemm", "MatMulInteger", "ConvInteger"
_ONNX_COMPUTES = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add", "Mul", "Sum", "Relu", "Clip",
                  "Sigmoid", "HardSigmoid", "HardSwish", "QuickGelu", "GlobalAveragePool", "AveragePool", "MaxPool")
_OPENVINO_COMPUTES = "Convolution", "FullyConnected", "MatMul", "Eltwise", "Math", "Pooling", "Reduce", "Subgraph"

Files = dict[str, bytes]


@dataclass(frozen=True)
class Subject:
    """A trained network, as each quantiser wants it.

    Attributes:
        network: With the quantisers of our int8.
        weights: In full precision.
        model: ONNX of the network in full precision, for a batch of one.
        images: For calibration, normalised, (N, C, H, W).
    """

    network: Network
    weights: Mapping[str, NDArray[np.float32]]
    model: bytes
    images: NDArray[np.float32]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(to_onnx(self.network, seed=0).SerializeToString())  # our quantisers' places
        digest.update(self.model)
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


def quantize_ours(subject: Subject, method: str) -> Files:
    """As `hwnas export --precision int8` does, with any of its calibration methods."""
    weights = calibrate(subject.network, subject.weights, subject.images, method)
    return {ONNX_FILE: to_onnx(subject.network, weights).SerializeToString()}


def quantize_onnxruntime(subject: Subject, method: str) -> Files:
    """As ONNX Runtime's guide recommends for x86 with VNNI, after the pre-processing that it recommends."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(subject.images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._rest, None)
            return None if image is None else {"images": image[None]}

    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        prepared, made = Path(folder, "prepared.onnx"), Path(folder, ONNX_FILE)
        quant_pre_process(onnx.load_from_string(subject.model), prepared)
        quantize_static(prepared, made, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        calibrate_method=CalibrationMethod[method])
        return {ONNX_FILE: made.read_bytes()}


def quantize_nncf_onnx(subject: Subject, tuned: bool) -> Files:
    """NNCF on an ONNX model."""
    import onnx

    nncf: Any = importlib.import_module("nncf")
    images = nncf.Dataset(subject.images[:, None], lambda image: {"images": image})
    model = nncf.quantize(onnx.load_from_string(subject.model), images, **_nncf_options(nncf, subject, tuned))
    return {ONNX_FILE: model.SerializeToString()}


def quantize_nncf_openvino(subject: Subject, tuned: bool) -> Files:
    """NNCF on OpenVINO's own form of a model."""
    import openvino

    nncf: Any = importlib.import_module("nncf")
    model = nncf.quantize(openvino.Core().read_model(subject.model), nncf.Dataset(subject.images[:, None]),
                          **_nncf_options(nncf, subject, tuned))
    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        openvino.save_model(model, Path(folder, "model.xml"), compress_to_fp16=False)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _nncf_options(nncf: Any, subject: Subject, tuned: bool) -> dict[str, Any]:
    """Its defaults; or what may suit CPUs better.

    That is u8 whatever the sign, one scale for all channels of what depthwise convolutions read, and the extremes over all
    images in place of the mean of each image's, which clips.
    """
    if not tuned:
        return {"subset_size": len(subject.images)}
    advanced: Any = importlib.import_module("nncf.quantization.advanced_parameters")
    ranges: Any = importlib.import_module("nncf.quantization.range_estimator")
    return {"subset_size": len(subject.images), "preset": nncf.QuantizationPreset.MIXED,
            "advanced_parameters": advanced.AdvancedQuantizationParameters(
                activations_quantization_params=advanced.QuantizationParameters(per_channel=False),
                activations_range_estimator_params=ranges.RangeEstimatorParametersSet.MINMAX)}


QUANTIZERS: Mapping[str, Callable[[Subject], Files]] = {
    **{f"ours {method}": partial(quantize_ours, method=method) for method in METHODS},
    **{f"onnxruntime {method.lower()}": partial(quantize_onnxruntime, method=method)
       for method in ("MinMax", "Percentile", "Entropy")},
    "nncf onnx": partial(quantize_nncf_onnx, tuned=False),
    "nncf onnx tuned": partial(quantize_nncf_onnx, tuned=True),
    "nncf openvino": partial(quantize_nncf_openvino, tuned=False),
    "nncf openvino tuned": partial(quantize_nncf_openvino, tuned=True),
}
"""Name, whose first word is the package's, to what makes the files of an int8 model."""

_IMPORTED: Mapping[str, Sequence[str]] = {  # before the clock starts
    "ours": (),
    "onnxruntime": ("onnxruntime.quantization.shape_inference",),
    "nncf": ("nncf.onnx.quantization.quantize_model", "nncf.openvino.quantization.quantize_model"),
}


def find_quantizers() -> tuple[list[str], str]:
    """Names of those that are installed, and a word on what is not."""
    if importlib.util.find_spec("nncf") is not None:
        return list(QUANTIZERS), ""
    return ([name for name in QUANTIZERS if not name.startswith("nncf")],
            "NNCF is not installed, so its rows are left out: pip install nncf, in an environment of its own.")


def quantize_here(name: str, subject: Subject) -> tuple[Files, dict[str, Any]]:
    """Quantises in this process, which has done nothing else: the files, seconds, and MiB beyond what was there before."""
    os.environ["NNCF_CI"] = "1"  # it reports its use to its makers otherwise
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for module in _IMPORTED[name.split()[0]]:
            importlib.import_module(module)
        before, start = _memory_mib("VmRSS"), time.perf_counter()
        files = QUANTIZERS[name](subject)
        seconds = time.perf_counter() - start
    return files, {"seconds": round(seconds, 1), "peak_mib": round(_memory_mib("VmHWM") - before)}


def quantize_all(names: Sequence[str], subject: Subject, folder: Path, told: Callable[[int, int], None]
                 ) -> dict[str, tuple[Files, dict[str, Any]]]:
    """The models of all quantisers, from the folder where they were made before; each in a fresh process."""
    found = {}
    for index, name in enumerate(names):
        place = folder / name.replace(" ", "-")
        record, source = place / "record.json", [subject.sha256, _version(name)]
        if not record.is_file() or read_json(record, "record").get("source") != source:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
                files, costs = pool.submit(quantize_here, name, subject).result()
            for file, content in files.items():
                write_atomic(place / file, content)
            write_json(record, {"source": source, "files": list(files), **costs})
        kept = read_json(record, "record")
        found[name] = ({file: (place / file).read_bytes() for file in kept["files"]},
                       {key: kept[key] for key in ("seconds", "peak_mib")})
        told(index + 1, len(names))
    return found


def as_program(files: Files, model: bytes) -> Program:
    """What a runtime loads; inputs and outputs are those of the float model."""
    program = read_onnx(files.get(ONNX_FILE, model)).as_program()
    return program if ONNX_FILE in files else Program(files, program.inputs, program.outputs)


def count_kernels(runtime: str, program: Program, config: RuntimeConfig) -> tuple[int, int]:
    """How many of the layers that compute do so in integers, and how many there are, in the graph that the runtime makes."""
    kinds = list(_onnxruntime_layers(program) if runtime == "onnxruntime-cpu" else _openvino_layers(program, config))
    return sum(kinds), len(kinds)


def _onnxruntime_layers(program: Program) -> Iterator[bool]:
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # it warns that the graph it writes is for this machine alone
        options.optimized_model_filepath = str(Path(folder, ONNX_FILE))
        onnxruntime.InferenceSession(program.files[ONNX_FILE], options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    for node in nodes:
        is_integer = node.op_type.startswith(_ONNX_INTEGER)
        if is_integer or node.op_type in _ONNX_COMPUTES:
            yield is_integer


def _openvino_layers(program: Program, config: RuntimeConfig) -> Iterator[bool]:
    import openvino

    core, runtime = openvino.Core(), load_runtime("openvino-cpu")
    files = program.files
    model = core.read_model(files[ONNX_FILE]) if ONNX_FILE in files else core.read_model(
        files["model.xml"], openvino.Tensor(np.frombuffer(files["model.bin"], np.uint8)))
    for node in core.compile_model(model, "CPU", runtime.settings(config)).get_runtime_model().get_ordered_ops():
        layer, precision = (node.rt_info[key].astype(str) for key in ("layerType", "runtimePrecision"))
        if layer in _OPENVINO_COMPUTES:
            yield precision in ("u8", "i8")


def logits_of(runtime: str, program: Program, images: NDArray[np.float32], config: RuntimeConfig) -> NDArray[np.float64]:
    """(N, classes), image by image, as the model is used."""
    (given,), (made,) = program.inputs, program.outputs
    with closing(load_runtime(runtime).load(program, config)) as executable:
        return np.concatenate([executable.run({given.name: image[None]})[made.name] for image in images]).astype(np.float64)


def divergence(reference: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    """Mean Kullback-Leibler divergence of class probabilities, in nats: tells models apart that get the same images right."""
    expected, found = (each - np.logaddexp.reduce(each, axis=1, keepdims=True) for each in (reference, logits))
    return float((np.exp(expected) * (expected - found)).sum(axis=1).mean())


def measure(runtime: str, programs: Mapping[str, Program], folder: Path, arguments: argparse.Namespace,
            told: Callable[[int, int], None]) -> dict[str, list[SessionSamples]]:
    """Fresh sessions of every model, in rounds, so that a drift of the machine falls on all alike."""
    digest = hashlib.sha256()
    for name, program in programs.items():
        for content in (name.encode(), *program.files.values()):
            digest.update(hashlib.sha256(content).digest())
    journal = folder / f"{runtime}-{digest.hexdigest()[:12]}.journal"
    models: dict[str, Callable[[], Any]] = {name: partial(_itself, program) for name, program in programs.items()}
    with open_device(runtime, RuntimeConfig()) as device:
        measured = open_journal(journal, {"schema": JOURNAL_SCHEMA, "environment": device.environment(1)})
        plan = RoundsPlan(min_sessions=arguments.sessions, max_sessions=arguments.sessions)
        measure_rounds(models, measured, journal, device, plan, progress=lambda done, total, _: told(done, total))
    return measured


def compare(runtime: str, programs: Mapping[str, Program], costs: Mapping[str, dict[str, Any]], dataset: Dataset,
            sessions: Mapping[str, Sequence[SessionSamples]], told: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """A row for every model, the fastest first."""
    images, labels = dataset.normalise(dataset.test.images), dataset.test.labels
    logits = {}
    for name, program in programs.items():
        logits[name] = logits_of(runtime, program, images, RuntimeConfig())
        told(len(logits), len(programs))
    correct = {name: found.argmax(axis=1) == labels for name, found in logits.items()}
    baseline = median(median(one.ratios) for one in sessions[FLOAT])
    rows = []
    for name, program in programs.items():
        statistics = combine_sessions(sessions[name])
        integer, layers = count_kernels(runtime, program, RuntimeConfig())
        rows.append({"name": name, **costs.get(name, {"seconds": None, "peak_mib": None}), "integer_layers": integer,
                     "layers": layers, "bytes": sum(map(len, program.files.values())),
                     "ratio_to_fp32": statistics.ratio / baseline,
                     "ratio_ci": [bound / baseline for bound in statistics.ratio_ci],
                     "test_accuracy": float(correct[name].mean()), "test_interval": accuracy_interval(correct[name]),
                     "divergence": divergence(logits[FLOAT], logits[name]),
                     "against_fp32": vars(compare_accuracy(correct[name], correct[FLOAT])),
                     "against_ours": vars(compare_accuracy(correct[name], correct[OURS]))})
    return sorted(rows, key=lambda row: row["ratio_to_fp32"])


def claims(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Which quantisers of others beat ours, each beyond doubt by its own figure."""
    ours = next(row for row in rows if row["name"] == OURS)
    others = [row for row in rows if not row["name"].startswith("ours") and row["name"] != FLOAT]

    def names(fits: Callable[[Mapping[str, Any]], bool]) -> list[str]:
        return [row["name"] for row in others if fits(row)]

    return {"faster than ours (intervals apart)": names(lambda row: row["ratio_ci"][1] < ours["ratio_ci"][0]),
            "slower than ours (intervals apart)": names(lambda row: row["ratio_ci"][0] > ours["ratio_ci"][1]),
            "more accurate than ours (p < 0.05)": names(lambda row: row["against_ours"]["difference"] > 0 and
                                                        row["against_ours"]["p_value"] < 0.05),
            "less accurate than ours (p < 0.05)": names(lambda row: row["against_ours"]["difference"] < 0 and
                                                        row["against_ours"]["p_value"] < 0.05)}


def make_subject(space: SearchSpace, option: str, dataset: Dataset, folder: Path, arguments: argparse.Namespace,
                 told: Callable[[int, int], None]) -> Subject:
    """The trained network, from the folder where it was trained before."""
    architecture = space.architecture({decision.name: option for decision in space.decisions})
    network = space.network(architecture)
    config = LoopConfig(epochs=arguments.epochs, batch_size=64, learning_rate=0.2, schedule="cosine", warmup_steps=50)
    train_network(network, dataset, folder / "network", config, progress=lambda step, total, *_: told(step, total))
    weights = load_network_weights(folder / "network", network)
    precisions = precision_space(space, architecture, ("int8",))
    quantized = precisions.network(uniform_precision(precisions, "int8"))
    images = dataset.normalise(dataset.train.images[:arguments.calibration_images])
    return Subject(quantized, weights, to_onnx(network, weights).SerializeToString(), images)


def run(network: str, names: Sequence[str], dataset: Dataset, arguments: argparse.Namespace, bar: Progress
        ) -> list[dict[str, Any]]:
    """Everything for one network, a document for every runtime."""
    def teller(what: str) -> Callable[[int, int], None]:
        task = bar.add_task(f"{network}: {what}", total=None)
        return lambda done, total: bar.update(task, completed=done, total=total)

    space_name, _, option = network.rpartition(":")
    space = load_space(space_name)
    if not isinstance(space, SearchSpace):
        raise SystemExit(f"Networks are of layers in order, but {space_name} is a space of cells.")
    folder = arguments.folder / space.name
    subject = make_subject(space, option, dataset, folder, arguments, teller("training"))
    made = quantize_all(names, subject, folder, teller("quantising"))
    programs = {FLOAT: as_program({ONNX_FILE: subject.model}, subject.model)}
    programs |= {name: as_program(files, subject.model) for name, (files, _) in made.items()}
    documents = []
    for runtime in arguments.runtimes:
        runnable = {name: program for name, program in programs.items()
                    if ONNX_FILE in program.files or runtime == "openvino-cpu"}
        sessions = measure(runtime, runnable, folder, arguments, teller(f"measuring on {runtime}"))
        rows = compare(runtime, runnable, {name: costs for name, (_, costs) in made.items()}, dataset, sessions,
                       teller(f"test images on {runtime}"))
        documents.append({"network": network, "runtime": runtime, "version": load_runtime(runtime).availability().version,
                          "rows": rows, "claims": claims(rows)})
    return documents


def show(console: Console, document: Mapping[str, Any]) -> None:
    """Prints the models of one network on one runtime."""
    view = Table(title=f"{document['network']} on {document['runtime']} {document['version']}", title_justify="left")
    for column in ("quantiser", "calibration s", "MiB", "integer layers", "over fp32", "95 %", "divergence", "test", "minus fp32",
                   "p", "minus ours", "p"):
        view.add_column(column, justify="left" if column == "quantiser" else "right")
    for row in document["rows"]:
        low, high = row["ratio_ci"]
        differences = [text for key in ("against_fp32", "against_ours") for text in (
            f"{100 * row[key]['difference']:+.2f} %", f"{row[key]['p_value']:.3f}")]
        calibration = ("", "") if row["seconds"] is None else (f"{row['seconds']:.1f}", f"{row['peak_mib']}")
        view.add_row(row["name"], *calibration, f"{row['integer_layers']}/{row['layers']}", f"{row['ratio_to_fp32']:.3f}",
                     f"{low:.3f} to {high:.3f}", f"{row['divergence']:.5f}", f"{100 * row['test_accuracy']:.2f} %", *differences)
    console.print(view)
    for claim, found in document["claims"].items():
        console.print(f"  {claim}: {', '.join(found) or 'none'}", soft_wrap=True)


def markdown(document: Mapping[str, Any]) -> str:
    """What docs/export.md quotes: a table for every network and runtime."""
    versions = ", ".join(f"{name} {version}" for name, version in document["quantizers"].items() if name != "ours")
    parts = [f"{document['calibration_images']} calibration images, {document['test_images']} test images; {versions}."]
    for one in document["networks"]:
        columns = ("quantiser", "calibration", "integer layers", "latency over fp32", "divergence", "test accuracy",
                   "minus fp32 (p)", "minus ours (p)")
        lines = [f"{one['network']} on {one['runtime']} {one['version']}:", "", f"| {' | '.join(columns)} |",
                 f"|{' --- |' * len(columns)}"]
        for row in one["rows"]:
            calibration = "" if row["seconds"] is None else f"{row['seconds']:.1f} s, {row['peak_mib']} MiB"
            low, high = row["ratio_ci"]
            differences = [f"{100 * row[key]['difference']:+.2f} % ({row[key]['p_value']:.3f})"
                           for key in ("against_fp32", "against_ours")]
            cells = (row["name"], calibration, f"{row['integer_layers']} of {row['layers']}",
                     f"{row['ratio_to_fp32']:.3f} ({low:.3f} to {high:.3f})", f"{row['divergence']:.4f}",
                     f"{100 * row['test_accuracy']:.2f} %", *differences)
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *(f"- {claim}: {', '.join(found) or 'none'}" for claim, found in one["claims"].items())]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="SPACE:OPTION",
                        help="one option everywhere")
    parser.add_argument("--data", default="glyphs?train=8000&validation=4000&test=8000&difficulty=0.4")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--folder", type=Path, default=Path("runs/quantizers"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--calibration-images", type=int, default=128)
    parser.add_argument("--sessions", type=int, default=5, help="of every model that is measured")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args(arguments)


def main(given: Sequence[str] | None = None) -> None:
    arguments = parse(given)
    console = Console(width=170)
    names, missing = find_quantizers()
    if missing:
        console.print(missing, soft_wrap=True)
    dataset = load_dataset(arguments.data)
    with Progress(console=Console(stderr=True)) as bar:
        documents = [document for network in arguments.networks for document in run(network, names, dataset, arguments, bar)]
    for document in documents:
        show(console, document)
    if arguments.output:
        write_json(arguments.output, json.loads(json.dumps(
            {"schema": SCHEMA, "data": arguments.data, "calibration_images": arguments.calibration_images,
             "test_images": len(dataset.test), "quantizers": {name.split()[0]: _version(name) for name in names},
             "networks": documents}, default=float)))


def _version(quantizer: str) -> str:
    return importlib.metadata.version({"ours": "hwnas"}.get(package := quantizer.split()[0], package))


def _itself(program: Program) -> Program:
    return program


def _memory_mib(field: str) -> float:
    """`VmRSS`: in memory now; `VmHWM`: at the most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()

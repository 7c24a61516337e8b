"""`quantize` on a network of four layers and a real runtime: all sixteen mixes of precisions can be looked at."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from math import comb
from pathlib import Path

import onnx
import pytest

from hwnas.data import load_dataset
from hwnas.export.verify import verify_artifact
from hwnas.files import sha256_file
from hwnas.latency.seams import SeamTable
from hwnas.latency.table import EntryRecord, NetworkRecord, load_table
from hwnas.lower.calibrate import METHODS
from hwnas.pipeline.precision import PrecisionEvaluator, calibrate_by_method, precision_space, uniform_precision
from hwnas.pipeline.quantize import search_precisions, trained_network
from tests.cli.command import Outcome, hwnas, refused
from tests.cli.conftest import DATA, DEVICE, QUICK
from tests.pipeline.samples import all_networks

ROOT = Path(__file__).parent.parent.parent
LAYERS = ["stem", "body", "tail", "head"]
SESSIONS = ("--sessions", 1, "--confidence", 0.5)  # at which the first three sessions decide, in three rounds


def quantize(network: Path, output: Path, *arguments: object) -> Outcome:
    return hwnas("quantize", "--weights", network, "--device", DEVICE, "--output", output, *SESSIONS, *arguments)


def journal_lines(path: Path) -> list[dict[str, object]]:
    """Whole lines after the header."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True)[1:] if line.endswith("\n")]


@pytest.fixture(scope="module")
def killed(network, tmp_path_factory):
    """A first run with a quick plan, killed while it profiles: its folder, and what is to be kept."""
    folder = tmp_path_factory.mktemp("killed") / "int8"
    program = textwrap.dedent(f"""
        from hwnas.pipeline import quantize
        from tests.cli.conftest import QUICK
        from tests.cli.test_quantize import quantize as command
        quantize.PLAN = QUICK
        command({str(network)!r}, {str(folder)!r})
    """)
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    journal = folder / "table.json.journal"
    try:
        deadline = time.monotonic() + 240
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
            assert child.poll() is None and time.monotonic() < deadline, "the profile ended, or never began"
            time.sleep(0.001)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL and not (folder / "table.json").exists()
    scores = {path.name: path.stat().st_mtime_ns for path in (folder / "scores").iterdir()}
    return folder, journal_lines(journal), scores


@pytest.fixture(scope="module")
def scored():
    """What the search of `finished` scored."""
    return []


@pytest.fixture(scope="module")
def finished(killed, network, scored):
    """The same command again."""
    def watched(*arguments, **named):
        front = search_precisions(*arguments, **named)
        scored.extend(one.architecture for one in front.history)
        return front

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hwnas.pipeline.quantize.search_precisions", watched)
        patch.setattr("hwnas.pipeline.quantize.PLAN", QUICK)
        done = quantize(network, killed[0], "--json")
    assert done.code == 0, done.err
    return killed[0], done.json


@pytest.fixture(scope="module")
def precisions(network):
    found = trained_network(network)
    return precision_space(found.space, found.architecture)


@pytest.fixture
def output(precisions_table, tmp_path):
    """A folder in which the profile is done, quickly."""
    (tmp_path / "out").mkdir()
    shutil.copy(precisions_table, tmp_path / "out" / "table.json")
    return tmp_path / "out"


def imagined(path, precisions, layer_ms):
    """Replaces a table by one in which a layer takes `layer_ms(int8)` and nothing else counts."""
    table = load_table(path)
    entries = {}
    for step in precisions.steps:
        for edge in step.edges:
            ratio = layer_ms("quantized" in edge.workload) / table.anchor_ms
            entries[edge.workload] = EntryRecord(sessions=((ratio,),), label="ok")
    records = []
    for one in all_networks(precisions):
        ratio = sum(entries[edge.workload].ratio for edge in precisions.path(one))
        records += [NetworkRecord(choices=dict(one.choices), sessions=((ratio,),), role=role)
                    for role in ("fit", "held_out", "held_out")]
    made = replace(table, entries=entries, networks=tuple(records))
    made.save(path)
    return SeamTable(made)


# A whole run, and the one that a kill interrupted


def test_a_killed_run_goes_on_where_it_was(killed, finished):
    folder, lines, scores = killed
    assert len(lines) >= 3 and len(scores) >= 3  # one for each way to calibrate
    table = load_table(folder / "table.json")
    kept = {session for record in (*table.entries.values(), *table.networks) for session in record.sessions}
    assert {tuple(line["ratios"]) for line in lines} <= kept
    assert all((folder / "scores" / name).stat().st_mtime_ns == when for name, when in scores.items())
    assert sorted(path.name for path in folder.iterdir()) == ["fastest", "front.json", "quantize.json", "scores", "table.json"]
    assert sorted(path.name for path in (folder / "fastest").iterdir()) == ["artifact", "summary.json"]


def test_the_front_is_that_of_all_that_was_scored(finished, scored, network, precisions):
    """Each scored again without what the run kept, and judged by brute force."""
    folder, summary = finished
    dataset, costs = load_dataset(DATA), SeamTable(load_table(folder / "table.json"))
    weights = calibrate_by_method(precisions, trained_network(network).weights, dataset)[summary["calibration"]]
    evaluator = PrecisionEvaluator(precisions, weights, dataset, dataset.validation)
    every = {str(one): (evaluator.evaluate(one), costs.predict(one).latency_ms) for one in all_networks(precisions)}
    document = json.loads((folder / "front.json").read_text())
    assert document["members"] == summary["front"] and document["images"] == 60 and document["calibration"] in METHODS
    fp32 = evaluator.evaluate(uniform_precision(precisions, "fp32"))
    for member in summary["front"]:
        evaluation, predicted = every[str(precisions.architecture(member["choices"]))]
        assert member["predicted_ms"] == pytest.approx(predicted) and member["predicted_upper_ms"] > member["predicted_ms"]
        assert (member["validation_accuracy"], member["divergence"]) == (evaluation.accuracy, evaluation.divergence)
        assert member["int8_layers"] == sum(name.endswith("_int8") for name in member["choices"].values())
        gained, lost = (int((first & ~second).sum()) for first, second in (
            (evaluation.correct, fp32.correct), (fp32.correct, evaluation.correct)))
        assert member["against_fp32"]["difference"] == pytest.approx((gained - lost) / 60)
        tail = sum(comb(gained + lost, count) for count in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
        assert member["against_fp32"]["p_value"] == pytest.approx(min(1.0, 2 * tail))
    assert len(set(scored)) == document["evaluations"] >= 10  # all-fp32, all-int8, and each with any one layer changed
    found = [every[str(one)] for one in scored]
    best = [str(one) for one in scored if not any(
        predicted <= every[str(one)][1] and evaluation.divergence <= every[str(one)][0].divergence
        and (predicted, evaluation.divergence) != (every[str(one)][1], every[str(one)][0].divergence)
        for evaluation, predicted in found)]
    assert {str(precisions.architecture(member["choices"])) for member in summary["front"]} == set(best)


def test_the_fastest_that_is_not_known_to_be_less_accurate_is_taken(finished):
    _, summary = finished
    acceptable = [one for one in summary["front"]
                  if one["against_fp32"]["difference"] >= 0 or one["against_fp32"]["p_value"] >= 0.05]
    chosen, fp32, int8 = summary["networks"]
    assert chosen["choices"] == min(acceptable, key=lambda one: one["predicted_ms"])["choices"]
    assert [row["name"] for row in summary["networks"]] == ["chosen", "fp32", "int8"]
    assert (fp32["int8_layers"], int8["int8_layers"], summary["layers"]) == (0, 4, 4)
    assert fp32["against_fp32"]["difference"] == 0 and min(row["measured_ms"] for row in summary["networks"]) > 0
    assert (summary["verdict"], summary["budget_ms"], summary["promised"], summary["history"]) == ("no budget", None, None, [])


def test_the_same_command_again_measures_only_the_result(finished, network):
    folder, summary = finished
    kept = {path: sha256_file(path) for path in [*(folder / "scores").iterdir(), folder / "table.json"]}
    done = quantize(network, folder)
    assert done.code == 0 and "McNemar" in done.out and f"Artefact: {folder / 'fastest' / 'artifact'}" in done.out
    assert {path: sha256_file(path) for path in [*(folder / "scores").iterdir(), folder / "table.json"]} == kept
    assert json.loads((folder / "fastest" / "summary.json").read_text())["front"] == summary["front"]


# What is made


def test_a_mixed_artefact_says_so_layer_by_layer(network, output, precisions, tmp_path):
    """On a table in which int8 is fast, with a budget between all-fp32 and all-int8 that any machine keeps."""
    imagined(output / "table.json", precisions, lambda is_int8: 100.0 if is_int8 else 250.0)
    done = quantize(network, output, "--max-latency-ms", 700)
    assert done.code == 0 and "The promise is kept" in done.out, done.err
    summary = json.loads((output / "700ms" / "summary.json").read_text())
    (only,) = summary["history"]
    assert only["limit_ms"] == pytest.approx(700 / (1 + summary["held_out"]["interval"]), rel=1e-4)
    within = [one for one in summary["front"] if one["predicted_ms"] <= only["limit_ms"]]
    chosen = summary["networks"][0]
    assert chosen["choices"] == min(within, key=lambda one: one["divergence"])["choices"]
    assert 2 <= chosen["int8_layers"] <= 4 and summary["verdict"] == "kept" and summary["promised"]
    assert only["verdict"] == "kept" and only["predicted_ms"] == pytest.approx(chosen["predicted_ms"])
    manifest = verify_artifact(summary["artifact"]).manifest
    assert manifest.architecture["choices"] == chosen["choices"] and list(chosen["choices"]) == LAYERS
    assert f"{chosen['int8_layers']} of 4 layers in int8" in manifest.name
    assert manifest.accuracy == chosen["accuracy"] and manifest.budget_ms == 700 and manifest.measurement.verdict == "kept"
    model = onnx.load(Path(summary["artifact"]) / "model.onnx")
    integer = {tensor.name.split("/")[0] for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8
               and len(tensor.dims) == 4}
    assert integer == {layer for layer, option in chosen["choices"].items() if option.endswith("_int8")}
    assert hwnas("verify", summary["artifact"], "--json").json["verified"]
    timed = hwnas("bench", summary["artifact"], "--table", output / "table.json", "--sessions", 1, "--json")
    assert timed.code == 0 and timed.json["latency_ms"] > 0


def test_a_path_of_a_supernet(supernet, architecture, output):
    done = quantize(supernet, output, "--architecture", architecture, "--validation-images", 40, "--json")
    assert done.code == 0, done.err
    assert verify_artifact(done.json["artifact"]).manifest.classes and len(done.json["networks"]) == 3
    assert json.loads((output / "front.json").read_text())["images"] == 40


# Budgets that cannot be kept


def test_an_absurd_budget_names_the_range(network, output):
    message = refused(quantize(network, output, "--max-latency-ms", 1e-6), 3)
    assert "fastest" in message and "slowest" in message
    assert not list(output.glob("*/artifact"))


def test_what_breaks_its_promise_is_learned_and_the_nearest_named(network, output, precisions):
    """Every network takes far more than the table says."""
    before = imagined(output / "table.json", precisions, lambda is_int8: 1e-6 if is_int8 else 2e-6).table
    done = quantize(network, output, "--max-latency-ms", 7e-6)
    assert "the nearest of all that failed" in refused(done, 3)
    rounds = [line for line in done.err.splitlines() if line.startswith("Round ")]
    assert 1 <= len(rounds) <= 3 and all("broken" in line for line in rounds)
    after = load_table(output / "table.json")
    learned = after.networks[len(before.networks):]
    assert after.networks[:len(before.networks)] == before.networks
    assert len(learned) == len(rounds) and {record.role for record in learned} == {"exported"}
    assert all(record.ratio * after.anchor_ms > 7e-6 for record in learned)
    assert not list(output.glob("*/summary.json"))
    for _ in range(2):  # what failed is not tested until it passes
        refused(quantize(network, output, "--max-latency-ms", 7e-6), 3)
    tested = [tuple(record.choices.items()) for record in load_table(output / "table.json").networks[len(before.networks):]]
    assert len(tested) == len(set(tested))


# Mistakes


def test_a_folder_is_of_one_network(finished, supernet, architecture, precisions_table, tmp_path):
    folder, _ = finished
    before = {path: sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    assert "--overwrite" in refused(quantize(supernet, folder, "--architecture", architecture))
    assert {path: sha256_file(path) for path in folder.rglob("*") if path.is_file()} == before


def test_overwrite_begins_anew(network, output):
    (output / "quantize.json").write_text("{}")
    (output / "table-changes.journal").write_text("torn")
    for name in ("front.json", "fastest/summary.json", "fastest/artifact/manifest.json", "7ms/artifact/manifest.json",
                 "9ms/notes"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("of another network")
    assert "--overwrite" in refused(quantize(network, output))
    done = quantize(network, output, "--overwrite", "--max-minutes", 0)
    assert "--max-minutes" in refused(done) and json.loads((output / "quantize.json").read_text())["network_sha256"]
    assert {one.name for one in output.iterdir()} == {"quantize.json", "scores", "table.json.journal", "9ms"}


def test_an_interruption_promises_no_more_than_the_same_command_does(network, tmp_path, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("hwnas.pipeline.quantize.trained_network", interrupted)
    for arguments, told in (((), "what was done is kept, and the same command continues."),
                            (("--overwrite",), "Interrupted: what was done is kept.")):
        done = quantize(network, tmp_path / "out", *arguments)
        assert done.code == 130 and done.err.strip().endswith(told)


@pytest.mark.parametrize(("arguments", "code", "word"), [
    (("--precision", "fp7"), 2, "fp7"), (("--device", "abacus"), 2, "abacus"), (("--weights", "gone"), 2, "--architecture"),
    (("--data", "nothing"), 2, "dataset"), (("--data", "digits?size=16&train=30"), 2, "train"),
    (("--max-latency-ms", "nan"), 2, "finite"), (("--max-latency-ms", 0), 2, "above 0"), (("--confidence", 2), 2, "confidence"),
    (("--validation-images", 61), 2, "at most 60"), (("--threads", 0), 2, "threads"), (("--cpus", "many"), 2, "many"),
    (("--architecture", "gone.json"), 2, "gone.json"), (("--device", "ssh://nobody@localhost:1/onnxruntime-cpu"), 5, "reached"),
], ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "")
def test_what_cannot_work_is_told_before_anything_is_made(arguments, code, word, network, tmp_path):
    assert word in refused(quantize(network, tmp_path / "out", *arguments), code)
    assert list(tmp_path.iterdir()) == []


def test_a_supernet_is_many_networks(supernet, tmp_path):
    assert "--architecture" in refused(quantize(supernet, tmp_path / "out"))


def test_a_network_that_does_not_say_what_it_was_trained_on(network, tmp_path):
    copy = shutil.copytree(network, tmp_path / "network")
    document = json.loads((copy / "network.json").read_text())
    del document["data_source"]
    (copy / "network.json").write_text(json.dumps(document))
    assert "which data" in refused(quantize(copy, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_runtime_without_int8(network, tmp_path):
    pytest.importorskip("ncnn")
    done = hwnas("quantize", "--weights", network, "--device", "ncnn-cpu", "--output", tmp_path / "out")
    assert "refuses the network in int8" in refused(done) and not (tmp_path / "out" / "table.json").exists()


def test_two_at_once(network, output):
    holder = subprocess.Popen([sys.executable, "-c", (
        "import sys, time\nfrom hwnas.files import locked\n"
        f"with locked({str(output / 'quantize.json')!r}, 'quantisation'):\n    print('held', flush=True); time.sleep(60)")],
        stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert f"process {holder.pid}" in refused(quantize(network, output, "--max-latency-ms", 1e-6))
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()

"""Every verb: it helps, and with --json it prints the one document that scripts rely on."""

import json
import shutil

import pytest

from hwnas.cli import VERBS
from hwnas.ir.architecture import load_architecture
from hwnas.latency.table import load_table
from tests.cli.command import hwnas, hwnas_process
from tests.cli.conftest import DATA, DEVICE

SEARCH = ("--population", 4, "--generations", 1, "--parents", 2, "--calibration-images", 40, "--json")

# A verb's arguments, and the keys of its document (of every element, where it is a list) that the interface promises.
JSON = {
    "devices": (lambda made: (), {"name", "available", "reason", "runtime_version"}),
    "spaces": (lambda made: (), {"name", "decisions", "size", "input_shape", "macs_min", "macs_max", "blocks"}),
    "networks": (lambda made: (), {"name", "macs", "parameters", "published", "parameters_by_kind", "note"}),
    "profile": (lambda made: ("--device", DEVICE, "--space", made("space"), "--output", made("table")),
                {"table", "entries", "noisy", "missing", "anchor_ms", "held_out"}),
    "kit build": (lambda made: ("--device", DEVICE, "--space", made("atom"), "--output", made("tmp_path") / "kit",
                                "--fit-networks", 1, "--held-out-networks", 1),
                  {"kit", "blocks", "networks", "refused", "sessions", "size_bytes"}),
    "kit collect": (lambda made: (made("measured_kit")[0], "--output", made("tmp_path") / "collected.json"),
                    {"table", "entries", "noisy", "missing", "refused", "missing_sessions", "anchor_ms", "held_out"}),
    "table show": (lambda made: (made("table"),), {"file", "space", "environment", "anchor", "entries", "calibration", "held_out",
                                                   "additive", "costliest"}),
    "table diff": (lambda made: (made("table"), made("table")),
                   {"environment", "only_in_first", "only_in_second", "common", "changed", "median_change", "spearman"}),
    "table check": (lambda made: (made("table"), "--space", made("space"), "--device", DEVICE),
                    {"table", "complete", "additive", "held_out", "warnings"}),
    "table judge": (lambda made: (shutil.copy(made("table"), made("tmp_path") / "judged.json"), "--networks", 2, "--sessions", 1,
                                  "--keep"),
                    {"table", "networks", "median_error", "interval", "covered", "holds", "interval_with_it", "kept"}),
    "table export": (lambda made: (made("table"), "--format", "csv", "--output", made("tmp_path") / "table.csv"),
                     {"table", "output", "format", "entries", "constant_ms"}),
    "table import": (lambda made: (_exported(made("table"), made("tmp_path") / "table.csv"), "--format", "hwnasbench-csv",
                                   "--unit", "ms", "--column", "isolated_ms", "--space", made("space"), "--device", "a device",
                                   "--output", made("tmp_path") / "imported.json"),
                     {"table", "entries", "names", "unused", "first_unused"}),
    "predict": (lambda made: ("--table", made("table"), "--architecture", made("architecture")),
                {"architecture", "latency_ms", "lower_ms", "upper_ms"}),
    "feasible": (lambda made: ("--table", made("table"), "--max-latency-ms", 1000),
                 {"space", "device", "size", "feasible_range_ms", "budgets"}),
    "train": (lambda made: ("--space", made("space"), "--data", DATA, "--epochs", 1, "--batch-size", 40, "--threads", 1,
                            "--output", made("supernet")),
              {"output", "steps", "epoch_losses", "seconds", "images_per_second", "already_trained"}),
    "search": (lambda made: ("--supernet", made("supernet"), "--table", made("table"), "--max-latency-ms", 1000, "--output",
                             made("tmp_path") / "search", *SEARCH[:-1]),
               {"output", "best", "score", "cost", "unit", "evaluations", "seconds", "exhaustive"}),
    "retrain": (lambda made: ("--architecture", made("architecture"), "--weights", made("supernet"), "--epochs", 1,
                              "--batch-size", 40, "--threads", 1, "--output", made("tmp_path") / "network"),
                {"output", "steps", "epoch_losses", "seconds", "images_per_second", "already_trained", "test_accuracy"}),
    "export": (lambda made: ("--architecture", made("architecture"), "--weights", made("supernet"), "--table", made("table"),
                             "--max-latency-ms", 1000, "--sessions", 1, "--output", made("tmp_path") / "artifact"),
               {"artifact", "schema", "files", "budget_ms", "predicted_ms", "measured_ms", "parity_max_abs", "accuracy"}),
    "quantize": (lambda made: ("--weights", made("network"), "--device", DEVICE, "--sessions", 1,
                               "--output", _with_table(made("precisions_table"), made("tmp_path") / "int8")),
                 {"artifact", "layers", "calibration", "budget_ms", "promised", "verdict", "quantile", "confidence", "history",
                  "feasible_range_ms", "held_out", "front", "networks"}),
    "verify": (lambda made: (made("artifact"),), {"artifact", "verified", "files", "extra_files", "max_abs", "tolerance"}),
    "bench": (lambda made: (made("artifact") / "model.onnx", "--device", DEVICE, "--sessions", 1),
              {"path", "device", "latency_ms", "lower_ms", "upper_ms", "ratio", "anchor_ms", "sessions", "environment"}),
    "compile": (lambda made: (made("config"), "--output", made("tmp_path") / "compiled"),
                {"artifact", "budget_ms", "promised", "verdict", "rounds", "feasible_range_ms", "held_out", "networks"}),
}


def _exported(table, path):
    assert hwnas("table", "export", table, "--format", "csv", "--output", path).code == 0
    return path


def _with_table(table, folder):
    folder.mkdir()
    shutil.copy(table, folder / "table.json")
    return folder


def test_every_verb_has_a_case_here():
    assert set(JSON) == set(VERBS), "a new verb needs a line in JSON above: its arguments and the keys of its document"


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb):
    done = hwnas(*verb.split(), "--help")
    assert done.code == 0 and done.err == ""
    assert done.out.startswith(f"Usage: hwnas {verb} ") and "--json" in done.out and "<function" not in done.out


def test_help_of_all_tells_every_verb_whole():
    done = hwnas("--help")
    assert done.code == 0 and all(f"\n  {verb.split()[0]} " in done.out for verb in VERBS)
    assert "...\n" not in done.out.split("Commands:")[1]


@pytest.mark.parametrize("verb", JSON)
def test_json_is_one_document_and_nothing_else(verb, request):
    arguments, keys = JSON[verb]
    done = hwnas(*verb.split(), *arguments(request.getfixturevalue), "--json")
    assert done.code == 0, done.err
    document = done.json
    for one in document if isinstance(document, list) else [document]:
        assert keys <= set(one), keys - set(one)
    assert not isinstance(document, list) or document


@pytest.mark.parametrize("verb", ("export", "bench", "verify"))
def test_native_libraries_do_not_write_into_the_document(verb, request, tmp_path):
    """They print past sys.stdout, which only a process of its own shows."""
    arguments = (("--space", request.getfixturevalue("space"), "--random", 1, "--output", tmp_path / "new") if verb == "export"
                 else JSON[verb][0](request.getfixturevalue))
    done = hwnas_process(verb, *arguments, "--json")
    assert done.code == 0, done.err
    assert JSON[verb][1] <= set(done.json)


@pytest.mark.parametrize("verb", ("devices", "spaces", "predict", "feasible", "train", "verify", "profile", "table show",
                                  "table diff", "table check", "table judge", "table export", "table import",
                                  "kit build", "kit collect"))
def test_people_get_a_table_that_fits_their_terminal(verb, request, monkeypatch):
    monkeypatch.setattr("hwnas.cli.console.stdout.width", 100)
    done = hwnas(*verb.split(), *JSON[verb][0](request.getfixturevalue))
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) >= 3 and max(map(len, lines[1:])) <= 100
    assert not done.out.startswith("\n") and not done.out.endswith("\n\n")


def test_figures_are_exact_and_consistent(table, latencies):
    spaces = {name: hwnas("spaces", name, "--json").json[0] for name in ("spos", "proxyless")}
    assert spaces["spos"]["size"] == 4**20 and spaces["proxyless"]["size"] == 6**6 * 7**15
    found = hwnas("feasible", "--table", table, "--max-latency-ms", 1000, "--max-latency-ms", 1e-6, "--json").json
    assert found["size"] == 4 and [row["count"] for row in found["budgets"]] == [4, 0]
    assert found["feasible_range_ms"] == pytest.approx(latencies, rel=1e-6)
    for row in hwnas("predict", "--table", table, "--random", 20, "--json").json:
        assert row["lower_ms"] <= row["latency_ms"] <= row["upper_ms"]
        assert latencies[0] * 0.999 <= row["latency_ms"] <= latencies[1] * 1.001


def test_a_file_is_predicted_as_the_network_that_it_names(table, architecture):
    (row,) = hwnas("predict", "--table", table, "--architecture", architecture, "--json").json
    assert row["architecture"] == json.loads(architecture.read_text())
    assert row["latency_ms"] == pytest.approx(load_table(table).predict(load_architecture(architecture)).latency_ms)


def test_a_search_leaves_what_the_interface_says(supernet, tmp_path):
    done = hwnas("search", "--supernet", supernet, "--max-macs", 10**9, "--output", tmp_path / "search", *SEARCH)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "search" / "result.json").read_text())
    assert {"method", "constraints", "evaluations", "seconds", "best"} <= set(result)
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    assert best["schema"] == "hwnas.architecture/1" and best == done.json["best"]
    assert len((tmp_path / "search" / "history.jsonl").read_text().splitlines()) >= done.json["evaluations"]

"""What people get wrong: each mistake has its exit code and one sentence, and damages nothing."""

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest

from hwnas.ir.block import block_network
from hwnas.latency.table import AnchorRecord, EntryRecord, LatencyTable, load_table
from hwnas.spaces.load import load_space
from tests.cli.command import hwnas, hwnas_process, refused
from tests.cli.conftest import DATA, DEVICE

TRAIN = ("--data", DATA, "--epochs", 1, "--batch-size", 40, "--threads", 1)
SEARCH = ("--population", 2, "--generations", 1, "--parents", 2)


# Usage

@pytest.mark.parametrize("arguments", [
    (), ("compyle",), ("spaces", "--jason"), ("profile", "--device", DEVICE), ("predict", "--table"), ("verify",),
    ("predict", "--table", "t.json", "--random", "many"), ("feasible", "--table", "t.json", "--max-latency-ms", "soon"),
    ("bench", "m.onnx", "--device", DEVICE, "--sessions", "0"),
    ("profile", "--device", DEVICE, "--space", "spos", "--max-minutes", "nan"),
], ids=" ".join)
def test_wrong_usage(arguments):
    done = hwnas(*arguments)
    assert done.code == 2 and "Traceback" not in done.err
    assert done.out == "" and ("Usage: hwnas" in done.err if not arguments else done.error)


@pytest.mark.parametrize("arguments, word", [
    (("spaces", "spas"), "spas"),
    (("profile", "--device", "onnxruntime-gpu", "--space", "spos"), "onnxruntime-gpu"),
    (("profile", "--device", DEVICE, "--space", "spos", "--threads", "0"), "threads"),
    (("profile", "--device", DEVICE, "--space", "spos", "--precision", "int3"), "int3"),
    (("predict", "--table", "t.json"), "--random"),
    (("bench", "m.onnx"), "--device"),
    (("bench", "m.onnx", "--device", "abacus"), "abacus"),
    (("bench", "m.onnx", "--table", "t.json", "--threads", "2"), "--threads"),
    (("search", "--supernet", "s", "--output", "o"), "--max-macs"),
    (("search", "--supernet", "s", "--output", "o", "--table", "t.json"), "--max-latency-ms"),
    (("search", "--supernet", "s", "--output", "o", "--max-macs", "5", "--max-parameters", "5"), "--max-parameters"),
    (("export", "--output", "o"), "--random"),
    (("export", "--output", "o", "--space", "spos", "--weights", "w"), "--random"),
    (("export", "--output", "o", "--space", "spos", "--random", "1", "--format", "pickle"), "pickle"),
    (("export", "--output", "o", "--space", "spos", "--random", "1", "--max-latency-ms", "1"), "--table"),
    (("train", "--space", "spos", "--data", "imagenet", "--output", "o"), "imagenet"),
    (("train", "--space", "spos", "--data", "digits", "--output", "o", "--method", "magic"), "magic"),
    (("train", "--space", "spos", "--data", "digits", "--output", "o", "--epochs", "0"), "epochs"),
    (("train", "--space", "spos", "--data", "digits", "--output", "o", "--ranges", "fixed"), "fixed"),
    (("train", "--space", "spos", "--data", "digits", "--output", "o", "--max-macs", "5", "--max-bitops", "5"), "--max-bitops"),
])
def test_arguments_that_make_no_sense(arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert word in refused(hwnas(*arguments))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [
    ("spaces", "gone.yaml"), ("profile", "--device", DEVICE, "--space", "gone.yaml"),
    ("predict", "--table", "gone.json", "--random", 1),
    ("feasible", "--table", "gone.json"), ("search", "--supernet", "gone", "--output", "o", "--max-macs", 10), ("verify", "gone"),
    ("bench", "gone", "--device", DEVICE), ("compile", "gone.yaml", "--output", "o"), ("spaces", "gone.py:space"),
], ids=lambda arguments: arguments[0])
def test_files_that_are_not_there(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "gone" in refused(hwnas(*arguments))
    assert list(tmp_path.iterdir()) == []


# Budgets

def _least(message):
    return re.search(r"at least ([\d.]+)", message)[1]


def test_an_infeasible_budget_names_the_range_and_its_minimum_works(table, supernet, tmp_path):
    done = hwnas("feasible", "--table", table, "--max-latency-ms", 1e-6)
    assert done.code == 3 and "fastest" in done.error and "slowest" in done.error
    least = _least(done.error)
    assert least in done.error.split("fastest")[1]
    assert hwnas("feasible", "--table", table, "--max-latency-ms", least).code == 0
    title = re.search(r": ([\d.]+) to ([\d.]+) ms", done.out)
    assert hwnas("feasible", "--table", table, "--max-latency-ms", title[1]).code == 0
    search = ("search", "--supernet", supernet, "--table", table, "--output", tmp_path / "search", *SEARCH, "--max-latency-ms")
    assert refused(hwnas(*search, 1e-6), 3) == done.error
    retried = hwnas(*search, least)
    assert retried.code == 0 and "only the prediction" in retried.err  # the fastest network's upper end is above


@pytest.mark.parametrize("option, unit", [("--max-macs", "MACs"), ("--max-parameters", "parameters"), ("--max-bitops", "BitOps")])
def test_infeasible_counts_likewise(option, unit, supernet, tmp_path):
    search = ("search", "--supernet", supernet, "--output", tmp_path / "search", *SEARCH, option)
    message = refused(hwnas(*search, 10), 3)
    assert unit in message
    assert hwnas(*search, _least(message)).code == 0


@pytest.mark.timeout(60)
def test_infeasible_is_told_at_once_however_large_the_space(tmp_path):
    """2e17 networks, which nobody could look at one by one."""
    space = load_space("proxyless")
    edges = {edge.workload: edge for step in space.steps for edge in step.edges if edge.block.kind != "identity"}
    entries = {key: EntryRecord(sessions=((block_network(edge.block, edge.input_shape).macs / 1e7,),), label="ok")
               for key, edge in edges.items()}
    path = tmp_path / "table.json"
    LatencyTable(space, {"runtime": DEVICE}, AnchorRecord(name="a", sha256="0" * 64, sessions_ms=(1.0,)), entries, ()).save(path)
    assert hwnas("feasible", "--table", path, "--max-latency-ms", 1).code == 3


@pytest.mark.parametrize("budget, code", [("nan", 2), ("inf", 2), ("-inf", 2), ("-1", 3), ("0", 3), ("1e-320", 3), ("1e300", 0)])
def test_absurd_budgets(budget, code, table, supernet, space, tmp_path, config):
    for verb, *others in (("feasible",), ("search", "--supernet", supernet, "--output", tmp_path / "search", *SEARCH)):
        for style in ((), ("--json",)):
            done = hwnas(verb, "--table", table, *others, "--max-latency-ms", budget, *style)
            assert done.code == code, done
            assert code == 0 or done.error
    if code != 0:
        assert not (tmp_path / "search").exists()
        export = ("export", "--space", space, "--random", 1, "--table", table, "--max-latency-ms", budget, "--sessions", 1)
        done = hwnas(*export, "--output", tmp_path / "artifact")
        assert done.code in (2, 4) and (done.code == 2 or budget == "1e-320")
        assert hwnas("compile", config, "--output", tmp_path / "compiled", "--max-latency-ms", budget).code in (2, 3)


def test_a_budget_that_the_measurement_breaks_is_told_after_the_document(space, table, latencies, tmp_path):
    done = hwnas("export", "--space", space, "--random", 1, "--table", table, "--max-latency-ms", latencies[0] / 100,
                 "--sessions", 1, "--output", tmp_path / "artifact", "--json")
    assert done.code == 4 and done.json["measurement"]["verdict"] == "broken"
    assert "measured latency" in done.error


# Damaged and foreign files

def _damage(path, how):
    text = path.read_text()
    path.write_text(text[:len(text) // 2] if how == "truncated" else how(text))


@pytest.mark.parametrize("how", ["truncated", lambda text: text.replace('"threads": 1', '"threads": 2')],
                         ids=["truncated", "edited"])
def test_damaged_table(how, table, space, tmp_path):
    path = shutil.copy(table, tmp_path / "table.json")
    _damage(path, how)
    assert path.read_bytes() != table.read_bytes()
    before = path.read_bytes()
    for arguments in (("predict", "--random", 1, "--table"), ("feasible", "--max-latency-ms", 1, "--table"),
                      ("profile", "--device", DEVICE, "--space", space, "--output"), ("bench", "m.onnx", "--table"),
                      ("export", "--space", space, "--random", 1, "--output", tmp_path / "a", "--table"),
                      ("search", "--supernet", "s", "--output", tmp_path / "s", "--max-latency-ms", 1, "--table")):
        assert str(path) in refused(hwnas(*arguments, path))
        assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize("how", ["truncated", lambda text: text.replace("wide", "huge"), lambda text: "[]",
                                 lambda text: text.replace('"space_hash": "', '"space_hash": "f'), lambda text: "[" * 100_000],
                         ids=["truncated", "option", "list", "hash", "nested"])
def test_damaged_architecture(how, table, architecture, supernet, tmp_path):
    path = shutil.copy(architecture, tmp_path / "architecture.json")
    _damage(path, how)
    before = path.read_bytes()
    refused(hwnas("predict", "--table", table, "--architecture", path))
    refused(hwnas("export", "--architecture", path, "--weights", supernet, "--output", tmp_path / "artifact"))
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["architecture.json"]


@pytest.mark.parametrize("how", [lambda text: text + "\nlatency_budget: 3\n", lambda text: text.replace("1000", "-1000"),
                                 lambda text: text + "\n\t- :\n", lambda text: "- 1",
                                 lambda text: text.replace("space:", "spice:"),
                                 lambda text: text.replace("sessions: 1", "sessions: yes")],
                         ids=["unknown", "range", "yaml", "list", "missing", "type"])
def test_damaged_config(how, config, tmp_path):
    path = shutil.copy(config, tmp_path / "compile.yaml")
    _damage(path, how)
    before = path.read_bytes()
    assert str(path) in refused(hwnas("compile", path, "--output", tmp_path / "out"))
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["compile.yaml"]


def test_a_file_of_the_wrong_kind_is_named_as_what_it_is(table, architecture, config):
    assert "hwnas.architecture/1" in refused(hwnas("predict", "--table", architecture, "--random", 1))
    assert "hwnas.latency-table/4" in refused(hwnas("predict", "--table", table, "--architecture", table))
    refused(hwnas("bench", table, "--device", DEVICE))
    refused(hwnas("compile", table, "--output", "never"))
    refused(hwnas("verify", config.parent / "supernet"))


@pytest.mark.parametrize("key, value", [("device", "Abacus 3000"), ("runtime_version", "0.1.0"), ("architecture", "pdp11"),
                                        ("setting.graph_optimization_level", "ORT_DISABLE_ALL")])
def test_a_table_of_another_environment(key, value, table, space, artifact, tmp_path):
    loaded = load_table(table)
    path = tmp_path / "table.json"
    replace(loaded, environment={**loaded.environment, key: value}).save(path)
    before = path.read_bytes()
    for arguments in (("bench", artifact, "--table"), ("profile", "--device", DEVICE, "--space", space, "--output"),
                      ("export", "--space", space, "--random", 1, "--output", tmp_path / "artifact", "--table")):
        message = refused(hwnas(*arguments, path))
        assert f"{key} is {value!r}" in message and message.count(" there ") == 1
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["table.json"]


def test_a_table_is_not_continued_with_other_settings_or_another_space(table, space, atom, tmp_path):
    path = shutil.copy(table, tmp_path / "table.json")
    before = path.read_bytes()
    profile = ("profile", "--device", DEVICE, "--output", path)
    assert "threads is 1 there and 2 here" in refused(hwnas(*profile, "--space", space, "--threads", 2))
    assert "batch_size is 1 there and 3 here" in refused(hwnas(*profile, "--space", space, "--batch-size", 3))
    assert "'atom'" in refused(hwnas(*profile, "--space", atom))
    assert path.read_bytes() == before


def test_a_table_of_another_space(table, architecture, supernet, tmp_path):
    refused(hwnas("export", "--space", "spos-cpu", "--random", 1, "--table", table, "--output", tmp_path / "artifact"))
    assert list(tmp_path.iterdir()) == []


# Artefacts

@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "run.py"])
def test_a_changed_artefact_is_not_verified(name, artifact, tmp_path):
    copy = shutil.copytree(artifact, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert name in refused(hwnas("verify", copy, "--json"), 4)
    assert name in refused(hwnas("bench", copy, "--device", DEVICE), 4)
    (copy / name).unlink()
    assert name in refused(hwnas("verify", copy), 4)


def test_an_edited_manifest_is_refused(artifact, tmp_path):
    copy = shutil.copytree(artifact, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"macs": 1}))
    assert "it was edited" in refused(hwnas("verify", copy))


# Outputs

def test_outputs_that_cannot_be_written(space, supernet, config, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    for arguments in (("profile", "--device", DEVICE, "--space", space, "--output", blocked / "table.json"),
                      ("profile", "--device", DEVICE, "--space", space, "--output", tmp_path),
                      ("train", "--space", space, *TRAIN, "--output", blocked),
                      ("search", "--supernet", supernet, "--max-macs", 10**9, *SEARCH, "--output", blocked),
                      ("export", "--space", space, "--random", 1, "--output", blocked),
                      ("export", "--space", space, "--random", 1, "--output", blocked / "artifact"),
                      ("compile", config, "--output", blocked)):
        refused(hwnas(*arguments))
        assert blocked.read_text() == "mine" and [one.name for one in tmp_path.iterdir()] == ["file"], arguments


def test_the_output_of_another_run_is_kept(space, artifact, supernet, tmp_path):
    before = (artifact / "manifest.json").read_bytes()
    assert "--overwrite" in refused(hwnas("export", "--space", space, "--random", 2, "--output", artifact))
    assert (artifact / "manifest.json").read_bytes() == before
    before = (supernet / "supernet.json").read_bytes()
    refused(hwnas("train", "--space", space, *TRAIN, "--seed", 7, "--output", supernet))
    assert (supernet / "supernet.json").read_bytes() == before
    search = ("search", "--supernet", supernet, "--output", tmp_path / "search", *SEARCH)
    assert hwnas(*search, "--max-macs", 10**9).code == 0
    before = (tmp_path / "search" / "result.json").read_bytes()
    assert "--overwrite" in refused(hwnas(*search, "--max-macs", 10**8, "--seed", 1))
    assert (tmp_path / "search" / "result.json").read_bytes() == before
    assert hwnas(*search, "--max-macs", 10**8, "--seed", 1, "--overwrite").code == 0


# What is missing, and what is broken

def test_an_unavailable_runtime(monkeypatch, space, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    profile = ("profile", "--device", "openvino-cpu", "--space", space, "--output", tmp_path / "table.json")
    assert "pip install openvino" in refused(hwnas(*profile), 5)
    assert list(tmp_path.iterdir()) == []
    row = next(one for one in hwnas("devices", "--json").json if one["name"] == "openvino-cpu")
    assert not row["available"] and "pip install openvino" in row["reason"] and row["runtime_version"] is None


def test_a_missing_package_is_named_with_its_command(monkeypatch, space, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [one for one in sys.modules if one.startswith(("hwnas.supernet", "hwnas.data.augment", "hwnas.pipeline.search"))]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'hwnas[train]'" in refused(hwnas("train", "--space", space, *TRAIN, "--output", tmp_path / "s"), 5)


def test_a_defect_says_that_it_is_one(monkeypatch):
    def broken(name):
        return 1 / 0

    monkeypatch.setattr("hwnas.spaces.load.load_space", broken)
    assert "ZeroDivisionError" in refused(hwnas("spaces", "spos"), 1)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux'")
def test_a_full_disk_is_no_defect():
    with open("/dev/full", "w") as full:
        done = hwnas_process("spaces", "spos", "--json", stdout=full)
    assert done.code == 1 and "No space left" in done.error and "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [("--debug", "spaces", "nope"), ("spaces", "nope", "--debug"),
                                       ("spaces", "--debug", "nope")])
def test_debug_shows_the_traceback_wherever_it_stands(arguments):
    done = hwnas(*arguments)
    assert done.code == 2 and "Traceback" in done.err and "InputError" in done.err and done.error


def test_a_real_process_exits_likewise(table):
    done = hwnas_process("feasible", "--table", table, "--max-latency-ms", 1e-6, "--json")
    assert done.code == 3 and done.json["budgets"][0]["count"] == 0 and done.err.count("\n") == 1

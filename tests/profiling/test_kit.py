"""Kits: built, measured by an interpreter that has numpy and the runtime only, killed, tampered with, and made into tables."""

import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
import venv
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import InputError, UnavailableError
from hwnas.files import content_sha256
from hwnas.ir.blocks import ConvBlock, Head, Identity, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.summary import refused_networks
from hwnas.latency.table import load_table
from hwnas.profiling.kit import _PACKAGES, build_kit, collect_kit
from hwnas.profiling.kit_runner import load_kit, pack_program, unpack_program
from hwnas.profiling.profiler import ProfilePlan, plan_blocks, plan_networks
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RUNTIMES
from hwnas.runtimes.base import Availability, Program, RuntimeConfig, TensorInfo
from hwnas.runtimes.onnxruntime import OnnxRuntimeCpu
from hwnas.spaces.load import load_space

pytest.importorskip("onnxruntime")

RUNTIME = "onnxruntime-cpu"
SPACE = SearchSpace("carried", (3, 16, 16), (
    Fixed("stem", Stem(4)),
    Decision("first", {"k1": ConvBlock(8, 1, 2), "k3": ConvBlock(8, 3, 2)}),
    Decision("second", {"conv": ConvBlock(8), "skip": Identity()}),
    Fixed("head", Head(4)),
))
# No session is ever disturbed or repeated, so that what is there can be counted.
PLAN = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=2, fit_sessions=None, held_out_networks=1, held_out_sessions=None,
                   max_anchor_change=1e9, timing=TimingPlan(sample_ms=0.05, min_pairs=3, max_pairs=3, max_seconds=0.05,
                                                            warmup_pairs=1, max_warmup_seconds=0.001))
BLOCKS, NETWORKS = 5, 3
SESSIONS = BLOCKS + NETWORKS
NOT_THERE = ("onnx", "pydantic", "yaml", "psutil", "typer", "torch", "pnnx", "hwnas")


def interpreter(folder, *packages):
    """A Python that has these packages and no others."""
    venv.create(folder, symlinks=True)
    (there,) = folder.glob("lib/python*/site-packages")
    for package in packages:
        here = Path(find_spec(package).origin).parent
        for path in (here, here.with_name(f"{package}.libs")):
            if path.is_dir():
                (there / path.name).symlink_to(path)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return interpreter(tmp_path_factory.mktemp("bare") / "venv", "numpy", "onnxruntime")


def start(python, kit, *arguments):
    """Starts a kit's script as its user does: from another folder, with nothing set for Python."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.Popen([python, kit / "run.py", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, cwd="/", env=environment)


def measure(python, kit, *arguments, code=0):
    """Runs a kit to its end; returns what it told."""
    process = start(python, kit, *arguments)
    out, err = process.communicate()
    assert process.returncode == code, (out, err)
    if code:
        assert err.startswith("Error: ") and err.endswith(".\n") and "Traceback" not in err
    return err if code else out


def rows_of(kit):
    """The header, and the other whole lines of the results."""
    lines = (kit / "results.jsonl").read_bytes().split(b"\n")[:-1]
    header, *rows = map(json.loads, lines)
    return header, rows


def write_rows(kit, *rows):
    (kit / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_manifest(kit, change, signed=True):
    path = kit / "kit.json"
    document = json.loads(path.read_text())
    change(document)
    if signed:
        document["content_sha256"] = content_sha256(document)
    path.write_text(json.dumps(document))
    return document


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A kit that nobody has measured; no test changes it."""
    folder = tmp_path_factory.mktemp("built") / "kit"
    told = []
    return folder, build_kit(SPACE, RUNTIME, folder, plan=PLAN, seed=3, progress=lambda *row: told.append(row)), told


@pytest.fixture(scope="module")
def finished(built, bare, tmp_path_factory):
    """The same, measured; no test changes it either."""
    folder = tmp_path_factory.mktemp("finished") / "kit"
    shutil.copytree(built[0], folder)
    return folder, measure(bare, folder)


@pytest.fixture
def kit(built, tmp_path):
    return Path(shutil.copytree(built[0], tmp_path / "kit"))


@pytest.fixture
def measured(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "measured"))


# What is built


def test_a_kit_has_what_the_profiler_would_measure(built):
    folder, said, told = built
    document = json.loads((folder / "kit.json").read_text())
    planned = [*plan_blocks(SPACE, 1), *plan_networks(SPACE, PLAN, 1, 3)]
    assert [(row["key"], row["role"], row.get("choices", {})) for row in document["workloads"]] == [
        (one.key, one.role, one.choices) for one in planned]
    assert (said.blocks, said.networks, said.sessions, said.refused) == (BLOCKS, NETWORKS, SESSIONS, {})
    assert said.size_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert [row[:2] for row in told] == [(done, SESSIONS) for done in range(1, SESSIONS + 1)]
    for row, one in zip(document["workloads"], planned, strict=True):
        content = (folder / "programs" / row["program"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["program"] and document["programs"][row["program"]] == len(content)
        assert unpack_program(content) == OnnxRuntimeCpu().prepare(one.model(), RuntimeConfig())
    assert {path.name for path in (folder / "programs").iterdir()} == set(document["programs"])
    assert {path.name for path in folder.iterdir()} == {"kit.json", "run.py", "README.md", "hwnas.zip", "programs"}


def test_a_network_names_its_blocks(built):
    kit = load_kit(built[0])
    for workload in kit.workloads:
        path = SPACE.path(SPACE.architecture(workload.choices)) if workload.choices else []
        assert set(workload.blocks) == {edge.workload for edge in path if not edge.block.is_free}
    assert any(len(workload.blocks) == 3 for workload in kit.workloads) and any(len(one.blocks) == 4 for one in kit.workloads)


def test_what_to_install_is_known_of_every_runtime():
    assert set(_PACKAGES) == set(RUNTIMES)
    assert all("onnx" in _PACKAGES[name].split() for name in ("torch-cpu", "torch-cuda"))  # they translate it themselves


def test_the_readme_says_what_to_install_run_and_bring_back(built):
    text = (built[0] / "README.md").read_text()
    for words in ("pip install numpy onnxruntime", "Python 3.11", "python run.py", "8 sessions", "results.jsonl",
                  "hwnas kit collect"):
        assert words in text


def test_an_old_python_can_read_the_script(built):
    ast.parse((built[0] / "run.py").read_text(), feature_version=(3, 4))


class Picky(OnnxRuntimeCpu):
    """Refuses whatever has a kernel of 1, which its converter finds out."""

    name = "picky-cpu"

    def can_prepare(self):
        return Availability(True, version="converter 7")

    def prepare(self, model, config):
        import onnx

        kernels = [tuple(attribute.ints) for node in onnx.load_from_string(model).graph.node
                   for attribute in node.attribute if attribute.name == "kernel_shape"]
        if kernels == [(1, 1)]:
            raise InputError("picky-cpu cannot run the model.")
        return super().prepare(model, config)


def test_what_the_converter_refuses_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "picky-cpu", Picky())
    monkeypatch.setitem(_PACKAGES, "picky-cpu", "picky")
    said = build_kit(SPACE, "picky-cpu", tmp_path / "kit", plan=PLAN)
    kit = load_kit(tmp_path / "kit")
    (refused,) = said.refused
    assert "kernel=1" in refused and said.refused[refused] == "picky-cpu cannot run the model."
    assert said.blocks == BLOCKS - 1 and said.networks == 2  # of the four, those without it
    assert all(workload.choices.get("first") != "k1" for workload in kit.workloads) and kit.converter == "converter 7"


class Choosy(Picky):
    """Refuses certain models."""

    def __init__(self, *models):
        self.models = models

    def prepare(self, model, config):
        if model in self.models:
            raise InputError("picky-cpu cannot run the model.")
        return OnnxRuntimeCpu.prepare(self, model, config)


def test_a_network_that_the_converter_refuses_has_another_in_its_place(tmp_path, monkeypatch):
    """Of four networks there are, three are planned: one is left to take the place of one."""
    planned = plan_networks(SPACE, PLAN, 1, 0)
    monkeypatch.setitem(_PACKAGES, "picky-cpu", "picky")
    for count in (1, 2):
        bad = {one.key: "picky-cpu cannot run the model." for one in planned[:count]}
        monkeypatch.setitem(RUNTIMES, "picky-cpu", Choosy(*(one.model() for one in planned[:count])))
        said = build_kit(SPACE, "picky-cpu", tmp_path / str(count), plan=PLAN)
        assert said.refused == bad and said.refused_blocks == 0 and (said.blocks, said.networks) == (BLOCKS, NETWORKS + 1 - count)
        kit = load_kit(tmp_path / str(count))
        assert kit.refused == bad and not set(bad) & {one.key for one in kit.workloads}


def test_a_failure_leaves_nothing_and_harms_nothing(tmp_path):
    def interrupt(done, total, key):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_kit(SPACE, RUNTIME, tmp_path / "kit", plan=PLAN, progress=interrupt)
    assert not list(tmp_path.iterdir())
    build_kit(SPACE, RUNTIME, tmp_path / "kit", plan=PLAN)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        build_kit(SPACE, RUNTIME, tmp_path / "kit", plan=PLAN, seed=1, overwrite=True, progress=interrupt)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_only_a_kit_is_replaced_and_only_when_asked(kit, tmp_path):
    (kit / "results.jsonl").write_text("what was measured")
    with pytest.raises(InputError, match="pass --overwrite"):
        build_kit(SPACE, RUNTIME, kit, plan=PLAN)
    assert (kit / "results.jsonl").exists()
    build_kit(SPACE, RUNTIME, kit, plan=PLAN, overwrite=True)
    assert not (kit / "results.jsonl").exists() and load_kit(kit).header["seed"] == 0
    other = tmp_path / "letters"
    other.mkdir()
    build_kit(SPACE, RUNTIME, other, plan=PLAN)  # empty: that is nobody's
    (other / "kit.json").unlink()
    with pytest.raises(InputError, match=r"no kit\.json"):
        build_kit(SPACE, RUNTIME, other, plan=PLAN, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"kit", "letters"}


@pytest.mark.parametrize(("arguments", "error", "words"), [
    ({"runtime": "abacus"}, InputError, "no runtime 'abacus'"), ({"seed": -1}, InputError, "seed"),
    ({"config": RuntimeConfig(1, "int3")}, InputError, "'int3'"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_bad_arguments_are_refused(arguments, error, words, tmp_path):
    with pytest.raises(error, match=words):
        build_kit(SPACE, **{"runtime": RUNTIME, "output": tmp_path / "kit", "plan": PLAN} | arguments)
    assert not list(tmp_path.iterdir())


def test_a_missing_converter_is_said(tmp_path, monkeypatch):
    class Lacking(Picky):
        def can_prepare(self):
            return Availability(False, reason="its converter is not installed; run: pip install it")

    monkeypatch.setitem(RUNTIMES, "picky-cpu", Lacking())
    with pytest.raises(UnavailableError, match="pip install it"):
        build_kit(SPACE, "picky-cpu", tmp_path / "kit", plan=PLAN)


TENSORS = st.builds(TensorInfo, st.text(max_size=5), st.lists(st.integers(1, 9), max_size=4).map(tuple),
                    st.sampled_from(["<f4", "<i8", "|u1"]).map(np.dtype))


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=5), st.binary(max_size=50), max_size=4), st.lists(TENSORS, max_size=2).map(tuple),
       st.lists(TENSORS, max_size=2).map(tuple))
def test_programs_are_packed_without_loss(files, inputs, outputs):
    program = Program(files, inputs, outputs)
    packed = pack_program(program)
    assert unpack_program(packed) == program
    for damaged in (packed + b"x", packed[1:], b""):
        with pytest.raises(InputError, match="must be as hwnas packed it"):
            unpack_program(damaged)


# What is measured, and what comes of it


def test_the_interpreter_is_bare(bare):
    code = "import importlib.util as u, sys; sys.exit(' '.join(n for n in sys.argv[1:] if u.find_spec(n)))"
    done = subprocess.run([bare, "-I", "-c", code, *NOT_THERE], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.strip() == ""


def test_clocks_are_collected(measured, tmp_path):
    """As an accelerator's kit has them; an older one's rows have none."""
    results = measured / "results.jsonl"
    header, *lines = results.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    clocked = [row for row in rows if "ratios" in row]
    assert clocked and all(row.pop("clocks_mhz") == [] for row in clocked)  # of a CPU
    clocked[0]["clocks_mhz"] = [1980, 1755]
    results.write_text(header + "".join(json.dumps(row) + "\n" for row in rows))
    assert collect_kit(measured, tmp_path / "table.json").table.anchor.clocks_mhz == (1980, 1755)


def test_the_table_is_made_of_what_was_recorded(finished, tmp_path):
    folder, told = finished
    header, rows = rows_of(folder)
    collected = collect_kit(folder, tmp_path / "table.json")
    table = load_table(tmp_path / "table.json")
    recorded = {row["key"]: (tuple(row["ratios"]),) for row in rows}
    assert len(rows) == len(recorded) == SESSIONS and all(len(sessions[0]) == 3 for sessions in recorded.values())
    assert {key: entry.sessions for key, entry in table.entries.items()} == {
        one.key: recorded[one.key] for one in plan_blocks(SPACE, 1)}
    assert {(record.role, record.sessions) for record in table.networks} == {
        (one.role, recorded[one.key]) for one in plan_networks(SPACE, PLAN, 1, 3)}
    assert sorted(table.anchor.sessions_ms) == sorted(row["anchor_ms"] for row in rows)
    assert table.environment == header["environment"] and table.environment["runtime"] == RUNTIME
    assert table.calibration.networks == 2 and table.held_out.networks == 1 and not table.refused
    assert (table.effort.sessions, table.effort.planned_sessions, table.effort.complete) == (SESSIONS, SESSIONS, True)
    assert table.effort.minutes == round(sum(row["total_s"] for row in rows) / 60, 6)
    assert (collected.missing_sessions, collected.left_out, collected.path) == (0, 0, tmp_path / "table.json")
    assert all(table.predict(one).latency_ms > 0 for one in Trellis(SPACE).sample(4, seed=0))
    assert "8/8 sessions (100 %)" in told and "Everything is measured: bring back results.jsonl." in told


def test_a_kit_of_some_blocks_makes_a_table_with_estimates(bare, tmp_path):
    space, plan = load_space("fbnet-cpu"), replace(PLAN, blocks=24)
    said = build_kit(space, RUNTIME, tmp_path / "kit", plan=plan, seed=3)
    assert said.blocks == 24
    measure(bare, tmp_path / "kit")
    table = collect_kit(tmp_path / "kit", tmp_path / "table.json").table
    measured = {key for key, entry in table.entries.items() if entry.is_measured}
    assert measured == {one.key for one in plan_blocks(space, 1, 24, 3)} and set(table.entries) == set(space.measured_parts)
    assert table.effort.complete and not table.missing_workloads() and table.held_out.networks == 1


def test_blocks_come_first_and_the_rest_in_another_order(finished):
    _, rows = rows_of(finished[0])
    planned = [one.key for one in load_kit(finished[0]).workloads]
    order = [row["key"] for row in rows]
    assert sorted(order[:BLOCKS]) == sorted(planned[:BLOCKS]) and order[:BLOCKS] != planned[:BLOCKS]


def test_a_measured_kit_is_left_as_it_is(measured, bare):
    before = (measured / "results.jsonl").read_bytes()
    assert "Everything is measured" in measure(bare, measured)
    assert (measured / "results.jsonl").read_bytes() == before
    measure(bare, measured, "--restart", "--max-minutes", 0)
    assert len((measured / "results.jsonl").read_bytes().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_what_was_measured_survives_an_end_at_any_moment(number, kit, bare):
    """It comes as soon as three sessions are there; after the kill, the next line is half written."""
    results = kit / "results.jsonl"
    process = start(bare, kit)
    deadline = time.monotonic() + 120
    while not (results.exists() and results.read_bytes().count(b"\n") >= 4):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number) and "Traceback" not in err
    kept = results.read_bytes()
    kept = kept[:kept.rfind(b"\n") + 1]
    with open(results, "ab") as file:
        file.write(b'{"key": "conv(out')
    partial = collect_kit(kit, kit / "partial.json")
    assert partial.missing_sessions == SESSIONS - (kept.count(b"\n") - 1)
    with open(results, "ab") as file:
        file.write(b'{"key": "conv(out')
    assert "Everything is measured" in measure(bare, kit)
    assert results.read_bytes().startswith(kept) and len(rows_of(kit)[1]) == SESSIONS
    assert collect_kit(kit, kit / "table.json").table.effort.complete


def test_a_part_of_the_results_makes_a_table_that_says_so(measured, tmp_path):
    header, rows = rows_of(measured)
    write_rows(measured, header, *rows[:3])
    collected = collect_kit(measured, tmp_path / "table.json")
    effort = collected.table.effort
    assert (effort.sessions, effort.planned_sessions, effort.complete) == (3, SESSIONS, False)
    assert collected.missing_sessions == SESSIONS - 3 and len(collected.table.missing_workloads()) == BLOCKS - 3
    with pytest.raises(InputError, match="pass --overwrite"):
        collect_kit(measured, tmp_path / "table.json")
    write_rows(measured, header, *rows)
    assert collect_kit(measured, tmp_path / "table.json", overwrite=True).table.effort.complete


def test_time_that_is_over_ends_it_in_order(kit, bare):
    told = measure(bare, kit, "--max-minutes", 0)
    assert f"{SESSIONS} session(s) to go: the same command continues" in told
    with pytest.raises(InputError, match="at least one measurement"):
        collect_kit(kit, kit / "table.json")
    assert not (kit / "table.json").exists()


def spoil_program(kit, which):
    """Has the runtime refuse the program of the first workload of that kind."""
    programs = kit / "programs"

    def spoil(document):
        row = next(row for row in document["workloads"] if which in row["key"])
        program = unpack_program((programs / row["program"]).read_bytes())
        content = pack_program(Program(dict.fromkeys(program.files, b"no model"), program.inputs, program.outputs))
        row["program"] = hashlib.sha256(content).hexdigest()
        document["programs"][row["program"]] = len(content)
        (programs / row["program"]).write_bytes(content)

    change_manifest(kit, spoil)


def test_a_refused_block_is_survived(kit, bare):
    """Its program is not what the runtime takes; nothing with it in it is tried."""
    spoil_program(kit, "kernel=1")
    told = measure(bare, kit)
    (key,) = {row["key"] for row in rows_of(kit)[1] if "refused" in row}
    assert f"Left out: {key}: onnxruntime-cpu " in told and "Everything is measured" in told
    collected = collect_kit(kit, kit / "table.json")
    without = [one for one in load_kit(kit).workloads if one.choices.get("first") == "k3"]
    assert set(collected.table.refused) == {key} and len(collected.table.entries) == BLOCKS - 1
    assert len(collected.table.networks) == len(without) == NETWORKS - collected.left_out and collected.left_out
    assert collected.table.effort.complete and not collected.table.missing_workloads()


def test_a_refused_network_is_survived_and_told(kit, bare):
    spoil_program(kit, "network ")
    told = measure(bare, kit)
    (key,) = {row["key"] for row in rows_of(kit)[1] if "refused" in row}
    assert key.startswith("network ") and f"Left out: {key}: onnxruntime-cpu " in told and "Everything is measured" in told
    collected = collect_kit(kit, kit / "table.json")
    table = load_table(kit / "table.json")
    assert set(table.refused) == {key} and len(table.entries) == BLOCKS and table.effort.complete
    assert list(refused_networks(table)) == [key.removeprefix("network ")] and collected.missing_sessions == 0
    assert len(table.networks) == NETWORKS - 1 and collected.left_out == 1


def test_what_the_converter_refused_is_refused_in_the_table(measured, tmp_path):
    def refuse(document):
        index = next(index for index, row in enumerate(document["workloads"]) if "kernel=1" in row["key"])
        document["refused"][document["workloads"][index]["key"]] = "its converter gave up."
        document["workloads"] = [
            row | {"blocks": [block - (block > index) for block in row.get("blocks", ())]}
            for row in document["workloads"] if row is not document["workloads"][index] and index not in row.get("blocks", ())]

    header, rows = rows_of(measured)
    header["kit"] = change_manifest(measured, refuse)["content_sha256"]
    keys = {one.key for one in load_kit(measured).workloads}
    write_rows(measured, header, *(row for row in rows if row["key"] in keys))
    table = collect_kit(measured, tmp_path / "table.json").table
    assert list(table.refused.values()) == ["its converter gave up."] and len(table.entries) == BLOCKS - 1
    assert table.effort.complete and not table.missing_workloads()


def test_results_may_lie_elsewhere(measured, tmp_path):
    (measured / "results.jsonl").rename(tmp_path / "phone.jsonl")
    shutil.rmtree(measured / "programs")  # all that the table needs is the manifest
    collected = collect_kit(measured, tmp_path / "table.json", results=tmp_path / "phone.jsonl")
    assert collected.table.effort.complete


def test_models_are_converted_before_they_travel(tmp_path):
    """ncnn's converter is here, its runtime there."""
    pytest.importorskip("ncnn")
    runtime = RUNTIMES["ncnn-cpu"]
    if not runtime.can_prepare().available:
        pytest.skip("no converter for ncnn")
    python = interpreter(tmp_path / "venv", "numpy", "ncnn")
    build_kit(SPACE, "ncnn-cpu", tmp_path / "kit", plan=PLAN)
    measure(python, tmp_path / "kit")
    table = collect_kit(tmp_path / "kit", tmp_path / "table.json").table
    assert table.environment["runtime_version"] == runtime.availability().version
    assert "pnnx" in table.environment["runtime_version"] and len(table.entries) == BLOCKS and table.effort.complete


# What is refused


@pytest.mark.parametrize(("packages", "words"), [((), "pip install numpy"), (("numpy",), "pip install onnxruntime")],
                         ids=["numpy", "runtime"])
def test_what_the_device_lacks_is_said(packages, words, kit, tmp_path):
    assert words in measure(interpreter(tmp_path / "venv", *packages), kit, code=5)
    assert not (kit / "results.jsonl").exists()


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_a_damaged_program_is_not_loaded(damage, kit, bare):
    path = max((kit / "programs").iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "changed" else content[:-1])
    if damage == "missing":
        path.unlink()
    said = measure(bare, kit, code=4)
    assert path.name in said and "copy" in said
    assert not (kit / "results.jsonl").exists()


@pytest.mark.parametrize(("change", "signed", "words"), [
    (lambda document: document["plan"].update(min_sessions=9), False, "does not match its own hash"),
    (lambda document: document.update(schema="hwnas.kit/99"), True, "has schema 'hwnas.kit/1'"),
    (lambda document: document.pop("workloads"), True, "workloads"),
    (lambda document: document["workloads"][0].update(program="../../kit.json"), True, "a program is not listed"),
    (lambda document: document["workloads"][0].update(role="judge"), True, "a role is not known"),
    (lambda document: document.update(threads="many"), True, "threads"),
], ids=["edited", "schema", "incomplete", "program", "role", "threads"])
def test_a_manifest_that_was_edited_is_refused(change, signed, words, measured, bare):
    change_manifest(measured, change, signed)
    assert words in measure(bare, measured, code=2)
    with pytest.raises(InputError, match=words):
        collect_kit(measured, measured / "table.json")
    assert not (measured / "table.json").exists()


def test_a_kit_without_a_manifest_is_refused(measured, bare):
    (measured / "kit.json").unlink()
    assert "cannot be read" in measure(bare, measured, code=2)
    with pytest.raises(InputError, match="cannot be read"):
        collect_kit(measured, measured / "table.json")


def test_a_kit_of_other_blocks_is_refused(measured):
    """As of an hwnas that cuts spaces in another way: its samples would be taken for other blocks'."""
    change_manifest(measured, lambda document: document["workloads"][0].update(key="stem(else)"))
    with pytest.raises(InputError, match="the hwnas that built it"):
        collect_kit(measured, measured / "table.json")


def _other_kit(header, rows):
    header["kit"] = "0" * 64


def _other_device(header, rows):
    rows.insert(2, json.loads(json.dumps(header)))
    rows[2]["environment"]["device"] = "a faster one"


def _other_runtime(header, rows):
    header["environment"]["threads"] = 4


def _other_block(header, rows):
    rows[0]["key"] = "conv(of another kit)"


def _no_samples(header, rows):
    rows[0]["ratios"] = []


def _negative(header, rows):
    rows[0]["ratios"][0] = -1


def _no_key(header, rows):
    del rows[0]["key"]


def _no_device(header, rows):
    del header["environment"]["device"]


@pytest.mark.parametrize(("change", "words"), [
    (_other_kit, "is of another"), (_other_device, "'a faster one'"), (_other_runtime, "threads"),
    (_other_block, "of another kit"), (_no_samples, "no samples"), (_negative, "not a positive number"), (_no_key, "'key'"),
    (_no_device, "device"),
], ids=lambda value: value.__name__.strip("_") if callable(value) else "")
def test_results_of_another_origin_are_refused(change, words, measured):
    header, rows = rows_of(measured)
    change(header, rows)
    write_rows(measured, header, *rows)
    with pytest.raises(InputError, match=words):
        collect_kit(measured, measured / "table.json")
    assert not (measured / "table.json").exists()


@pytest.mark.parametrize(("content", "words"), [
    (None, "cannot be read"), (b"", "begin with the device's environment"), (b'{"schema": "hwnas', "begin with the device"),
    (b"\xff\xfe\n", "begin with the device"), (b"[]\n[]\n", "begin with the device"),
], ids=["missing", "empty", "torn", "binary", "json"])
def test_what_is_no_result_is_refused(content, words, kit):
    if content is not None:
        (kit / "results.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=words):
        collect_kit(kit, kit / "table.json")


def test_garbage_among_the_results_is_refused(measured):
    path = measured / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"\x00\x00\x00\n", *lines[3:]]))
    with pytest.raises(InputError, match="a line cannot be read"):
        collect_kit(measured, measured / "table.json")


def test_a_device_that_changed_is_not_measured_on(measured, bare):
    header, rows = rows_of(measured)
    header["environment"]["runtime_version"] = "0.1"
    write_rows(measured, header, *rows[:3])
    before = (measured / "results.jsonl").read_bytes()
    said = measure(bare, measured, code=2)
    assert "runtime_version is '0.1'" in said and "--restart" in said
    assert (measured / "results.jsonl").read_bytes() == before
    measure(bare, measured, "--restart", "--max-minutes", 0)
    assert rows_of(measured)[0]["environment"]["runtime_version"] != "0.1"


def test_a_table_is_not_written_over_something_else(measured, tmp_path):
    (tmp_path / "letter.json").write_text('{"dear": "reader"}')
    with pytest.raises(InputError, match="is something else"):
        collect_kit(measured, tmp_path / "letter.json", overwrite=True)
    assert (tmp_path / "letter.json").read_text() == '{"dear": "reader"}'


@pytest.mark.parametrize("arguments", [("--max-minutes", "-1"), ("--max-minutes", "nan"), ("--cpus", "a,b"), ("--what",)])
def test_bad_options_are_refused(arguments, kit, bare):
    process = start(bare, kit, *arguments)
    _, err = process.communicate()
    assert process.returncode == 2 and err.startswith("usage: run.py") and "Traceback" not in err


def test_a_processor_that_is_not_there_is_refused(kit, bare):
    assert "--cpus" in measure(bare, kit, "--cpus", 4095, code=2)

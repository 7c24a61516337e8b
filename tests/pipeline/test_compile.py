"""The whole pipeline on a tiny configuration, on a real runtime; budgets are so wide that no neighbour breaks them."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from hwnas.errors import InfeasibleError, InputError
from hwnas.export.certify import CertificationPlan
from hwnas.export.verify import verify_artifact
from hwnas.files import sha256_file
from hwnas.ir.architecture import load_architecture
from hwnas.ir.documents import space_from_dict
from hwnas.ir.trellis import Trellis
from hwnas.latency.table import EntryRecord, NetworkRecord, SittingRecord, load_table
from hwnas.pipeline.compile import _as_taught, _budget_ms, compile_space, known_failures, next_constraint
from hwnas.pipeline.config import load_config
from hwnas.profiling.anchor import anchor_model
from hwnas.profiling.device import open_device
from hwnas.profiling.profiler import ProfilePlan, plan_workloads, profile_space
from hwnas.profiling.rounds import RoundsPlan
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RuntimeConfig, load_runtime
from hwnas.spaces.load import load_space
from tests.pipeline.samples import all_networks, make_table

SPACE = """
name: four
input_shape: [1, 16, 16]
layers:
  - {name: stem, block: {kind: stem, out_channels: 4}}
  - name: down
    options:
      k3: {kind: mbconv, out_channels: 8, kernel: 3, expansion: 2, stride: 2}
      k5: {kind: mbconv, out_channels: 8, kernel: 5, expansion: 4, stride: 2}
  - name: more
    options:
      conv: {kind: conv, out_channels: 8}
      skip: {kind: identity}
  - {name: head, block: {kind: head, classes: 10}}
"""
CONFIG = {
    "space": "four.yaml", "data": "digits?size=16&train=200&validation=60&test=50", "max_latency_ms": 1000.0,
    "profile": {"sessions": 1},
    "train": {"epochs": 2, "batch_size": 32, "threads": 1},
    "search": {"population": 4, "generations": 2, "parents": 2, "validation_images": 40, "calibration_images": 64},
    "export": {"sessions": 1, "rounds": 2, "confidence": 0.5},  # at which the first two sessions decide
}
BLOCKS = 5
QUICK = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=2, fit_sessions=1, held_out_networks=2, held_out_sessions=1,
                    timing=TimingPlan(
    sample_ms=0.1, min_pairs=6, max_pairs=6, max_seconds=0.1, max_warmup_seconds=0.01))


class Stages(list):
    """Opens progress bars and keeps what they are told: (title, calls)."""

    @contextmanager
    def __call__(self, title):
        calls = []
        self.append((title, calls))
        yield lambda *call: calls.append(call)

    @property
    def titles(self):
        return [title for title, _ in self]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the user's configuration and space are."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "four.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def configure(folder):
    def write(**changes):
        document = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
        (folder / "config.yaml").write_text(yaml.safe_dump(document))
        return load_config(folder / "config.yaml")
    return write


def compile_into(output, config, **arguments):
    stages = Stages()
    return compile_space(config, load_space(config.space), output, stages, **arguments), stages


@pytest.fixture(scope="module")
def compiled(configure, tmp_path_factory):
    """A first run after a quick profile: output folder, summary, stages."""
    output = tmp_path_factory.mktemp("out") / "deep"
    config = configure()
    with open_device(config.device, RuntimeConfig()) as device:
        profile_space(load_space(config.space), device, output / "table.json", plan=QUICK)
    return output, *compile_into(output, config)


@pytest.fixture
def output(compiled, tmp_path):
    """A copy of the first run's folder that a test may go on in."""
    return shutil.copytree(compiled[0], tmp_path / "out")


def fingerprints(*places):
    return {file: (sha256_file(file), file.stat().st_mtime_ns)
            for place in places for file in sorted([place] if place.is_file() else place.rglob("*")) if file.is_file()}


# A first run


def test_every_stage_leaves_its_files(compiled):
    output, summary, stages = compiled
    assert stages.titles == ["data", "profile", "train", "search", "certify", "compare"]
    assert sorted(path.name for path in output.iterdir()) == ["1000ms", "supernet", "table.json"]
    assert sorted(path.name for path in (output / "supernet").iterdir()) == ["supernet.json", "supernet.safetensors"]
    (search,) = (output / "1000ms").glob("search-*")
    assert {path.name for path in (output / "1000ms").iterdir()} == {"artifact", "rounds.json", "summary.json", search.name}
    table = load_table(output / "table.json")
    assert len(table.entries) == BLOCKS and len(table.networks) == 4 and not table.missing_workloads()
    assert summary.artifact == str(output / "1000ms" / "artifact")


def test_bars_reach_their_ends(compiled):
    for title, calls in compiled[2]:
        if title != "profile":  # which was done already
            assert calls and calls[-1][0] == calls[-1][1], title


def test_the_artefact_verifies(compiled):
    output, summary, _ = compiled
    report = verify_artifact(summary.artifact)
    manifest = report.manifest
    assert report.extra_files == ()
    assert manifest.budget_ms == 1000 and manifest.measurement.verdict == "kept" and 0 < manifest.measured_ms < 1000
    table = load_table(output / "table.json")
    best = table.search_space.architecture(manifest.architecture["choices"])
    (search,) = (output / "1000ms").glob("search-*")
    assert load_architecture(search / "best.json") == best
    prediction = table.predict(best)
    assert (manifest.predicted_ms, manifest.predicted_lower_ms, manifest.predicted_upper_ms) == pytest.approx(
        (prediction.latency_ms, prediction.lower_ms, prediction.upper_ms))


def test_the_artefact_runs_elsewhere_with_the_same_numbers(compiled):
    model = Path(compiled[1].artifact) / "model.onnx"
    with np.load(model.parent / "golden.npz", allow_pickle=False) as golden:
        images, expected = golden["images"], golden["logits"]
    outputs = []
    for name in ("onnxruntime-cpu", "openvino-cpu"):
        executable = load_runtime(name).compile(model, RuntimeConfig())
        (info,) = executable.inputs
        outputs.append(np.concatenate([next(iter(executable.run({info.name: image[None]}).values())) for image in images]))
        executable.close()
    assert np.abs(outputs[0] - outputs[1]).max() <= 1e-4
    assert np.abs(outputs[0] - expected).max() <= 1e-4
    assert np.ptp(expected, axis=1).min() > 1e-3  # not all the same


def test_the_summary_compares_the_winner(compiled):
    output, summary, _ = compiled
    document = json.loads((output / "1000ms" / "summary.json").read_text())
    table = load_table(output / "table.json")
    space, trellis = table.search_space, Trellis(table.search_space, table)
    rows = {row["name"]: row for row in document["networks"]}
    assert [row["name"] for row in document["networks"]] == ["winner", "random within budget", "smallest", "largest"]
    assert rows["smallest"]["architecture"] == dict(trellis.cheapest().choices)
    assert rows["largest"]["architecture"] == dict(trellis.dearest().choices)
    for row in rows.values():
        architecture = space.architecture(row["architecture"])
        network = space.network(architecture)
        assert (row["macs"], row["parameters"]) == (network.macs, network.parameters)
        assert row["predicted_lower_ms"] <= row["predicted_ms"] <= row["predicted_upper_ms"] <= 1000
        assert row["predicted_ms"] == pytest.approx(trellis.cost(architecture))
        assert row["measured_ms"] > 0 and 0 <= row["accuracy"] <= 1
    manifest = verify_artifact(summary.artifact).manifest
    assert rows["winner"]["accuracy"] == manifest.accuracy and rows["winner"]["measured_ms"] == manifest.measured_ms
    assert (document["verdict"], document["rounds"], document["promised"], document["budget_ms"]) == ("kept", 1, True, 1000)
    assert (document["quantile"], document["confidence"], document["observations"], document["above"]) == (0.5, 0.5, 2, 0)
    assert document["budget_use"] == pytest.approx(manifest.measured_ms / 1000)
    (only,) = document["history"]
    assert json.loads((output / "1000ms" / "rounds.json").read_text())["rounds"] == [only]
    assert (only["number"], only["verdict"], only["observations"], only["above"]) == (1, "kept", 2, 0)
    assert only["measured_ms"] == manifest.measured_ms <= only["certifiable_ms"] and only["predicted_ms"] <= only["limit_ms"]
    assert document["feasible_range_ms"] == [trellis.min_cost(), trellis.max_cost()]
    assert document["held_out"]["networks"] == 2
    assert document["artifact"] == summary.artifact and len(summary.networks) == 4


# Later runs


def test_the_same_command_again_finds_everything(compiled, output, configure):
    kept = fingerprints(output / "table.json", output / "supernet", *output.glob("*/search-*/history.jsonl"))
    summary, stages = compile_into(output, configure())
    assert fingerprints(*kept) == kept
    assert summary.networks[0].architecture == compiled[1].networks[0].architecture
    assert summary.networks[0].accuracy == compiled[1].networks[0].accuracy
    assert dict(stages)["profile"] == []
    (search,) = (output / "1000ms").glob("search-*")
    (before,) = (compiled[0] / "1000ms").glob("search-*")
    assert (search / "best.json").read_bytes() == (before / "best.json").read_bytes()
    verify_artifact(summary.artifact)


def test_another_budget_reuses_table_supernet_and_scores(compiled, output, configure):
    kept = fingerprints(output / "table.json", output / "supernet", output / "1000ms")
    (journal,) = (output / "1000ms").glob("search-*/history.jsonl")
    header, *lines = journal.read_text().splitlines()
    journal.write_text("\n".join([header, *(json.dumps(json.loads(line) | {"score": 0.123456}) for line in lines)]) + "\n")
    summary, _ = compile_into(output, configure(max_latency_ms=500.0))
    del kept[journal]
    assert fingerprints(*kept) == kept
    (again,) = (output / "500ms").glob("search-*/history.jsonl")
    scores = [json.loads(line)["score"] for line in again.read_text().splitlines()[1:]]
    assert scores == [0.123456] * 4  # each of the space's networks was known
    assert summary.budget_ms == 500 and verify_artifact(output / "500ms" / "artifact").manifest.budget_ms == 500


def test_another_configuration_in_the_folder_is_refused(output, configure):
    kept = fingerprints(output)
    with pytest.raises(InputError, match=r"config\.epochs"):
        compile_into(output, configure(train={**CONFIG["train"], "epochs": 3}))
    with pytest.raises(InputError, match="threads"):
        compile_into(output, configure(profile={"sessions": 1, "threads": 2}))
    with pytest.raises(InputError, match=r"config\.population"):
        compile_into(output, configure(search={**CONFIG["search"], "population": 5}))
    assert {file: kept[file] for file in kept if "artifact" not in str(file)} == {
        file: found for file, found in fingerprints(output).items() if "artifact" not in str(file)}


def test_an_infeasible_budget_ends_before_training(compiled, configure, tmp_path):
    shutil.copy(compiled[0] / "table.json", tmp_path)
    with pytest.raises(InfeasibleError, match="fastest"):
        compile_into(tmp_path, configure(max_latency_ms=1e-6))
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_it_goes_on_with_an_unfinished_profile(configure, tmp_path):
    """More sessions than a profile takes on its own, of which all but one are in the journal."""
    config = configure(profile={"sessions": 7, "max_minutes": 1e-9}, max_latency_ms=1e-6)
    with pytest.raises(InputError, match="time was over"):
        compile_into(tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json.journal"]
    keys = [one.key for one in plan_workloads(load_space(config.space), ProfilePlan(), 1, 0)]
    with open_device(config.device, RuntimeConfig()) as device:
        anchor_ms = device.measure(anchor_model(), RoundsPlan().timing).anchor_ms
    lines = [json.dumps({"key": key, "ratios": [1.0, 1.0, 1.0], "anchor_ms": anchor_ms}) + "\n" for key in keys for _ in range(7)]
    with open(tmp_path / "table.json.journal", "a") as file:
        file.writelines(lines[1:])
    stages = Stages()
    with pytest.raises(InfeasibleError):
        compile_space(configure(profile={"sessions": 7}, max_latency_ms=1e-6), load_space(config.space), tmp_path, stages)
    assert dict(stages)["profile"] == [(63, 63, keys[0])]
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
    assert {len(entry.sessions) for entry in load_table(tmp_path / "table.json").entries.values()} == {7}


def test_a_profile_that_time_was_over_for_says_what_to_do(configure, tmp_path):
    """Two blocks are in the journal; with as many as can estimate the others, it would go on."""
    config = configure(profile={"sessions": 1, "max_minutes": 1e-9})
    with pytest.raises(InputError, match="time was over"):
        compile_into(tmp_path, config)
    keys = [one.key for one in plan_workloads(load_space(config.space), ProfilePlan(), 1, 0)]
    with open(tmp_path / "table.json.journal", "a") as file:
        file.writelines(json.dumps({"key": key, "ratios": [1.0], "anchor_ms": 1.0}) + "\n" for key in keys[:2])
    with pytest.raises(InputError, match=f"before {BLOCKS - 2} of {BLOCKS} were measured: .* again, .* profile.blocks"):
        compile_into(tmp_path, config)


def test_a_differentiable_supernet_is_of_its_budget_and_of_the_table_as_it_was_profiled(compiled, configure, tmp_path):
    """What an export taught the table since makes it no other. All networks are far faster than the table says."""
    table = optimistic(load_table(compiled[0] / "table.json"), 1e5, 5)
    table.save(tmp_path / "table.json")
    low, high = Trellis(table.search_space, table).min_cost(), Trellis(table.search_space, table).max_cost()
    budgets = [float(f"{low + share * (high - low):.4g}") for share in (0.5, 0.7)]
    changes = {"train": {**CONFIG["train"], "method": "fbnet"}, "search": {**CONFIG["search"], "method": "dnas"}}
    compile_into(tmp_path, configure(**changes, max_latency_ms=budgets[0]))
    (supernet,) = tmp_path.glob("*/supernet*")
    kept = fingerprints(supernet)
    known = table.networks[0]
    table.with_networks([known.model_copy(update={"sessions": ((1.01 * known.ratio,),), "role": "exported"})]).save(
        tmp_path / "table.json")
    for budget in budgets:
        summary, _ = compile_into(tmp_path, configure(**changes, max_latency_ms=budget))
        assert summary.verdict == "kept" and fingerprints(supernet) == kept
    assert {path.relative_to(tmp_path) for path in tmp_path.glob("**/supernet*/")} == {
        Path(f"{budget:.6g}ms", supernet.name) for budget in budgets}


def test_two_at_once(output, configure):
    kept = fingerprints(output)
    holder = subprocess.Popen([sys.executable, "-c", (
        "import time\nfrom hwnas.files import locked\n"
        f"with locked({str(output / 'compile')!r}, 'compilation'):\n    print('held', flush=True); time.sleep(60)")],
        stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} is at work"):
            compile_into(output, configure())
        (output / "compile.lock").unlink()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert fingerprints(output) == kept


# What is checked before minutes of measuring


@pytest.mark.parametrize(("changes", "word"), [
    ({"train": {"method": "magic"}}, "method"), ({"data": "digits?size=8"}, "shape"), ({"data": "nothing"}, "dataset"),
    ({"data": "glyphs?size=16&channels=1&classes=4&train=20&validation=10&test=10"}, "classes"),
    ({"device": "abacus"}, "abacus"), ({"profile": {"precision": "fp7"}}, "fp7"),
    ({"profile": {"table": "missing.json"}}, "missing.json"),
])
def test_what_cannot_work_is_told_at_once(configure, tmp_path, changes, word):
    with pytest.raises(InputError, match=word):
        compile_into(tmp_path / "out", configure(**changes))
    assert not (tmp_path / "out").exists()


# A table of one's own


def test_a_given_table_is_used(compiled, folder, configure, tmp_path):
    """Seen by the range that it names."""
    table = load_table(compiled[0] / "table.json")
    replace(table, anchor=table.anchor.model_copy(update={"sessions_ms": (1e6,)})).save(folder / "mine.json")
    config = configure(profile={"table": "mine.json"})
    stages = Stages()
    with pytest.raises(InfeasibleError, match=r"the fastest is \d{5,}"):
        compile_space(config, load_space(config.space), tmp_path, stages)
    assert not stages.titles and not list(tmp_path.iterdir())  # told before anything is loaded


def test_a_given_table_must_fit(compiled, folder, configure, tmp_path):
    table = load_table(compiled[0] / "table.json")
    document = table.search_space.to_dict()
    document["layers"][0]["block"]["out_channels"] = 6
    replace(table, search_space=space_from_dict(document), entries={}, networks=()).save(folder / "other.json")
    with pytest.raises(InputError, match="space"):
        compile_into(tmp_path / "out", configure(profile={"table": "other.json"}))
    table.save(folder / "mine.json")
    with pytest.raises(InputError, match="device"):
        compile_into(tmp_path / "out", configure(profile={"table": "mine.json"}, device="openvino-cpu"))
    replace(table, environment={**table.environment, "device": "something else"}).save(folder / "far.json")
    with pytest.raises(InputError, match="something else"):
        compile_into(tmp_path / "out", configure(profile={"table": "far.json"}))
    assert not (tmp_path / "out").exists()


def test_what_exports_taught_a_given_table_is_found_again(tmp_path):
    given, other = make_table(), make_table(error=0.2)
    assert _as_taught(given, tmp_path) is given
    given.with_networks([given.networks[0].model_copy(update={"role": "exported"})]).save(tmp_path / "table.json")
    assert [record.role for record in _as_taught(given, tmp_path).networks][len(given.networks):] == ["exported"]
    assert _as_taught(other, tmp_path) is other  # of which that is not the continuation
    sitting = SittingRecord(measured_utc="2026-11-22T00:00:00+00:00", anchor_ms=1.0, networks=given.judging_networks[:2])
    judged = _as_taught(given.with_sitting(sitting), tmp_path)  # since it was used
    assert judged.sittings == (sitting,) and judged.networks[-1].role == "exported"
    judged.save(tmp_path / "table.json")  # or judged where it was used
    assert _as_taught(given, tmp_path) == judged


# Promises that do not hold


def optimistic(table, share, held_out):
    """The same table as if everything ran in a share of its time, fitted on six records so that one more moves little."""
    entries = {key: EntryRecord(sessions=tuple(tuple(share * ratio for ratio in session) for session in entry.sessions),
                                label=entry.label) for key, entry in table.entries.items()}
    plain = replace(table, entries=entries, networks=())
    ratios = [prediction.latency_ms / table.anchor_ms for prediction in plain.predict_many(all_networks(table.search_space))]
    template = table.networks[0]
    records = [template.model_copy(update={"choices": dict(one.choices), "sessions": ((ratio,),), "role": role})
               for one, ratio in zip(all_networks(table.search_space), ratios, strict=True)
               for role in ["fit", "fit", *["held_out"] * held_out]]
    return plain.with_networks(records)


@pytest.mark.parametrize("held_out", [5, 0], ids=["promised", "not promised"])
def test_a_broken_promise_refines_the_table_and_searches_again(compiled, output, configure, held_out):
    """Everything takes fifty times what the table says, so no round can keep the budget; the fastest ends it."""
    table = optimistic(load_table(output / "table.json"), 0.02, held_out)
    table.save(output / "table.json")
    trellis = Trellis(table.search_space, table)
    budget = float(f"{1.3 * trellis.min_cost():.6g}")  # without held-out networks, a promise takes twice the prediction
    folder, said = output / f"{budget:.6g}ms", []
    folder.mkdir()
    (folder / "summary.json").write_text("of an artefact that was kept")
    with pytest.raises(InfeasibleError, match=r"p50 of latency .* 50 % .* in [12] round\(s\); the nearest of all that failed"):
        compile_into(output, configure(max_latency_ms=budget), say=said.append)
    rounds = json.loads((output / f"{budget:.6g}ms" / "rounds.json").read_text())["rounds"]
    assert len(said) == len(rounds) + 1 and "2 fresh sessions if none is above" in said[0]
    assert all(f"Round {number}: " in said[number] and "broken, with 2 of 2 sessions" in said[number]
               for number in range(1, len(rounds) + 1))
    assert all(one["verdict"] == "broken" and one["budget_use"] > 1 for one in rounds)
    assert all(after["limit_ms"] < before["limit_ms"] for before, after in itertools.pairwise(rounds))
    refined = load_table(output / "table.json")
    exported = [record for record in refined.networks if record.role == "exported"]
    assert len(exported) == len(rounds) and refined.networks[:-len(rounds)] == table.networks
    assert all(record.ratio * table.anchor_ms > budget for record in exported)
    searches = list((output / f"{budget:.6g}ms").glob("search-*"))
    assert len(searches) == len(rounds) and all((search / "result.json").is_file() for search in searches)
    assert not (output / f"{budget:.6g}ms" / "summary.json").exists()
    manifest = verify_artifact(output / f"{budget:.6g}ms" / "artifact").manifest
    assert manifest.measurement.verdict == "broken" and manifest.measured_ms > budget
    for _ in range(2):  # a network that failed is not tested until it passes
        with pytest.raises(InfeasibleError):
            compile_into(output, configure(max_latency_ms=budget))
    tested = [tuple(record.choices.items()) for record in load_table(output / "table.json").networks if record.role == "exported"]
    assert len(tested) == len(set(tested)) >= len(rounds)


SLOW = """
name: uneven
input_shape: [1, 16, 16]
layers:
  - {name: stem, block: {kind: stem, out_channels: 8}}
  - name: body
    options:
      light: {kind: identity}
      heavy: {kind: mbconv, out_channels: 8, kernel: 7, expansion: 60}
  - {name: head, block: {kind: head, classes: 10}}
"""


def test_the_second_round_keeps_what_the_first_broke(folder, configure, tmp_path):
    """The table says that a slow network is fast, and the search likes it best."""
    (folder / "uneven.yaml").write_text(SLOW)
    config = configure(space="uneven.yaml", search={**CONFIG["search"], "population": 2, "generations": 1, "parents": 1})
    space = load_space(config.space)
    with open_device(config.device, RuntimeConfig()) as device:
        true = profile_space(space, device, tmp_path / "table.json", plan=replace(QUICK, min_sessions=3, max_sessions=3))
    light, heavy = (space.architecture({"body": option}) for option in ("light", "heavy"))
    measured_ms = {record.choices["body"]: record.ratio * true.anchor_ms for record in true.networks}
    (slow,) = {edge.workload for step in space.steps for edge in step.edges if "mbconv" in edge.workload}
    lie = true.entries[slow].model_copy(update={"sessions": ((1e-4,),)})
    table = optimistic(replace(true, entries={**true.entries, slow: lie}), 1.0, 5)
    table.save(tmp_path / "table.json")
    fast_ms = max(measured_ms["light"], Trellis(space, table).max_cost())
    assert measured_ms["heavy"] > 4 * fast_ms  # so that a budget between the two is far from both
    budget = float(f"{math.sqrt(fast_ms * measured_ms['heavy']):.6g}")
    compile_into(tmp_path, config)  # leaves scores
    (journal,) = (tmp_path / "1000ms").glob("search-*/history.jsonl")
    header, *lines = (json.loads(line) for line in journal.read_text().splitlines())
    known = [row | {"score": 0.9 if row["choices"]["body"] == "heavy" else 0.1} for row in lines]
    journal.write_text("".join(json.dumps(row) + "\n" for row in (header, *known)))
    summary, _ = compile_into(tmp_path, config.model_copy(update={"max_latency_ms": budget}))
    assert [row.verdict for row in summary.history] == ["broken", "kept"] and summary.rounds == 2
    assert summary.networks[0].architecture == dict(light.choices) and 0 < summary.budget_use < 1
    assert summary.history[1].limit_ms < summary.history[0].limit_ms
    refined = load_table(tmp_path / "table.json")
    assert [dict(record.choices) for record in refined.networks if record.role == "exported"] == [dict(heavy.choices)]


# The next limit


def test_what_failed_is_out_of_reach_and_the_rest_is_not():
    """Every network fails by 5 % in turn, after the table has or has not learned what it takes."""
    table = make_table(error=0.02)
    space, budget = table.search_space, 1.02 * Trellis(table.search_space, table).max_cost()
    assert next_constraint(table, budget, {}).search_limit == table.promise_budget(budget)
    for one in all_networks(space):
        constraint = next_constraint(table, budget, {one: 1.05 * budget})
        predicted = table.predict(one).latency_ms
        if one == Trellis(space, table).cheapest():
            assert constraint is None
        else:
            assert constraint.search_limit == pytest.approx(max(predicted / 1.05, Trellis(space, table).min_cost()))
            assert constraint.search_limit < predicted and constraint.limit == budget and constraint.costs is table


def test_what_the_calibration_has_learned_is_not_taken_off_twice():
    """A table that predicts of a failed network exactly what it measured leaves the others all that it promises on."""
    table = make_table(error=0.0)
    dearest = Trellis(table.search_space, table).dearest()
    latency = table.predict(dearest).latency_ms
    budget = 0.95 * latency
    assert next_constraint(table, budget, {dearest: latency}).search_limit == pytest.approx(table.promise_budget(budget))
    assert next_constraint(table, budget, {dearest: 1.05 * latency}).search_limit == pytest.approx(budget / 1.05)


def test_a_budget_that_the_refined_table_cannot_reach_ends_the_rounds():
    table = make_table()
    trellis = Trellis(table.search_space, table)
    with pytest.raises(InfeasibleError):
        next_constraint(table, 0.9 * trellis.min_cost(), {})
    assert next_constraint(table, 0.9 * trellis.min_cost(), {trellis.dearest(): 100.0}) is None


def test_what_failed_before_is_known_from_the_tables_sessions():
    """On a table that many networks keep from moving."""
    table, plan = make_table(error=0.0), CertificationPlan(rounds=3)
    networks = all_networks(table.search_space)
    latencies = [table.predict(one).latency_ms for one in networks]
    table = table.with_networks([NetworkRecord(choices=dict(one.choices), sessions=((latency,),), role="fit")
                                 for one, latency in zip(networks, latencies, strict=True)] * 4)
    budget = 1.1 * max(latencies)
    above, below = 1.1 * budget, 0.9 * budget
    broken, undecided, few, kept, fitted = sorted(networks, key=lambda one: -table.predict(one).latency_ms)[:5]
    sessions = {broken: [above] * 6, undecided: [below, above] * (plan.most // 2), few: [above] * 2, kept: [below] * 6}
    table = table.with_networks([
        *(NetworkRecord(choices=dict(one.choices), sessions=tuple((ms / table.anchor_ms,) for ms in found), role="exported")
          for one, found in sessions.items()),
        NetworkRecord(choices=dict(fitted.choices), sessions=((above,),) * 6, role="fit")])
    assert max(table.predict(one).latency_ms for one in sessions) < budget
    assert known_failures(table, plan, budget) == pytest.approx({broken: above, undecided: above})
    assert set(known_failures(table, plan, 0.999 * below)) <= {broken, undecided, kept}
    assert known_failures(table, plan, 0.5 * min(latencies)) == {}  # out of reach


# Budgets as a position


@pytest.mark.parametrize("position", [0.0, 0.1, 0.35, 0.9, 1.0])
def test_a_position_is_a_budget_of_three_digits(compiled, configure, position):
    table = load_table(compiled[0] / "table.json")
    trellis = Trellis(table.search_space, table)
    exact = trellis.min_cost() + position * (trellis.max_cost() - trellis.min_cost())
    budget = _budget_ms(configure(max_latency_ms=None, latency_position=position), table)
    assert exact <= budget <= 1.0101 * exact and float(f"{budget:.3g}") == budget
    assert trellis.feasible(budget)
    refined = table.with_networks([table.networks[0].model_copy(update={"sessions": ((100.0,),), "role": "exported"})])
    assert refined.predict(trellis.cheapest()) != table.predict(trellis.cheapest())
    assert _budget_ms(configure(max_latency_ms=None, latency_position=position), refined) == budget

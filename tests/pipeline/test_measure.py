"""Measuring finished models: figures, verdicts, and machines that are not the table's."""

import json
import shutil
from dataclasses import replace

import pytest

from hwnas.errors import InputError, UnavailableError, VerificationError
from hwnas.export.certify import CertificationPlan
from hwnas.export.manifest import load_manifest
from hwnas.export.verify import verify_artifact
from hwnas.latency.table import AnchorRecord, LatencyTable
from hwnas.pipeline.export import export_random
from hwnas.pipeline.measure import load_target, measure_artifact, model_target, read_model, target_of_table
from hwnas.profiling.anchor import ANCHORS, LARGE_ANCHOR, SMALL_ANCHOR, anchor_model, anchor_sha256
from hwnas.profiling.measure import Measurement
from hwnas.profiling.session import SessionSamples
from tests.pipeline.samples import make_space, make_table


def table_of_this_machine(**changes):
    here = load_target("onnxruntime-cpu").environment
    table = make_table()
    return LatencyTable(table.search_space, {**here, **changes},
                        AnchorRecord(name="anchor", sha256="0" * 64, sessions_ms=(2.0, 3.0, 9.0)), table.entries, table.networks)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_random(make_space(), 3, tmp_path_factory.mktemp("export") / "artifact").directory


@pytest.fixture
def artifact(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "artifact")


MEASUREMENT = Measurement(tuple(SessionSamples((ratio,), anchor_ms) for ratio, anchor_ms in ((2.0, 0.5), (2.1, 0.4), (1.9, 0.6))))


def test_a_tables_milliseconds_are_ratios_times_its_anchor():
    target = target_of_table(table_of_this_machine())
    figures = target.milliseconds(MEASUREMENT)
    low, high = MEASUREMENT.ratio_ci
    assert figures == pytest.approx({"latency_ms": 2.0 * 3.0, "lower_ms": 3 * low, "upper_ms": 3 * high, "ratio": 2.0,
                                     "ratio_lower": low, "ratio_upper": high})
    assert low < 2 < high


def test_without_a_table_the_anchor_of_the_measurement_counts():
    figures = load_target("onnxruntime-cpu").milliseconds(MEASUREMENT)
    assert figures["latency_ms"] == pytest.approx(2.0 * 0.5)


@pytest.mark.parametrize("name", ANCHORS)
def test_a_table_is_met_with_its_own_anchor(name):
    target = target_of_table(table_of_this_machine(anchor=anchor_sha256(name)))
    assert target.environment["anchor"] == anchor_sha256(name)
    assert 0.5 < target.measure(anchor_model(name), 1).ratio < 2  # of the other it would be less than 1/10, or more than 10


@pytest.mark.parametrize("name", ANCHORS)
def test_a_file_is_timed_with_the_anchor_for_its_input(name, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(anchor_model(name))
    target = model_target(path, "onnxruntime-cpu")
    assert (target.anchor, target.environment["anchor"]) == (name, anchor_sha256(name))
    with pytest.raises(InputError, match="missing"):
        model_target(tmp_path / "missing.onnx", "onnxruntime-cpu")


def test_inputs_choose_the_anchor():
    target = load_target("onnxruntime-cpu")
    assert target.environment["anchor"] == anchor_sha256(SMALL_ANCHOR) != anchor_sha256(LARGE_ANCHOR)
    large = target.for_inputs((1, 3, 224, 224))
    assert large.environment == target.environment | {"anchor": anchor_sha256(LARGE_ANCHOR)}
    assert large.for_inputs((1, 3, 32, 32)).environment == target.environment


@pytest.mark.parametrize("key", ["device", "runtime_version", "anchor", "setting.execution_mode", "architecture"])
def test_the_table_of_another_machine_is_refused(key):
    with pytest.raises(InputError, match=f"{key} is 'something else'"):
        target_of_table(table_of_this_machine(**{key: "something else"}))


@pytest.mark.parametrize("change", [{"threads": None}, {"threads": "many"}, {"runtime": "abacus"}, {"precision": "fp7"},
                                    {"batch_size": []}, {"threads": 0}, {"affinity": "x"}, {"affinity": "99999"}])
def test_an_environment_that_names_no_target_is_refused(change):
    with pytest.raises(InputError):
        target_of_table(table_of_this_machine(**change))


def test_an_environment_without_a_key_is_refused():
    table = table_of_this_machine()
    for key in ("runtime", "threads", "precision", "batch_size", "affinity"):
        environment = {name: value for name, value in table.environment.items() if name != key}
        with pytest.raises(InputError, match=key):
            target_of_table(replace(table, environment=environment))


def test_targets_that_are_not_here():
    with pytest.raises((InputError, UnavailableError)):
        load_target("abacus")
    with pytest.raises(InputError, match="fp7"):
        load_target("onnxruntime-cpu", precision="fp7")
    with pytest.raises(InputError, match="threads"):
        load_target("onnxruntime-cpu", threads=0)


@pytest.mark.parametrize(("budget_ms", "verdict", "above"), [(1000.0, "kept", 0), (1e-6, "broken", 2)])
def test_a_budget_is_certified(budget_ms, verdict, above, tmp_path):
    """Two sessions are the fewest that show anything at 75 %; at the second of these two alike, the test stops."""
    plan, told = CertificationPlan(confidence=0.75), []
    folder = export_random(make_space(), 3, tmp_path / "artifact", table=make_table(), budget_ms=budget_ms).directory
    target = target_of_table(table_of_this_machine())
    manifest, measurement = measure_artifact(folder, target, 1, lambda *done: told.append(done), plan)
    record = manifest.measurement
    assert (record.verdict, record.observations, record.above) == (verdict, 2, above)
    assert (record.quantile, record.confidence) == (0.5, 0.75)
    assert told == [(1, 10), (2, 2)] and len(measurement.sessions) == len(record.sessions) == 2
    latencies = sorted(target.latency_ms(session) for session in measurement.sessions)
    assert record.certifiable_ms == latencies[1] and manifest.measured_ms == pytest.approx(sum(latencies) / 2)
    assert verify_artifact(folder).manifest == manifest


def test_a_session_is_its_median_in_the_tables_milliseconds():
    session = SessionSamples((2.0, 9.0, 1.0), 0.5)
    assert target_of_table(table_of_this_machine()).latency_ms(session) == pytest.approx(2.0 * 3.0)
    assert load_target("onnxruntime-cpu").latency_ms(session) == pytest.approx(2.0 * 0.5)


def test_a_measured_artefact_says_so_and_still_verifies(artifact):
    told = []
    before = load_manifest(artifact)
    manifest, measurement = measure_artifact(artifact, load_target("onnxruntime-cpu"), 1, lambda *done: told.append(done))
    assert load_manifest(artifact) == manifest and verify_artifact(artifact).manifest == manifest
    assert told == [(1, 1)] and len(measurement.sessions) == 1
    assert before.measured_ms is None and manifest.measured_ms == pytest.approx(measurement.ratio * measurement.anchor_ms)
    record = manifest.measurement
    assert record.quantile is record.confidence is record.observations is record.above is record.certifiable_ms is None
    assert record.verdict == "no budget" and record.environment["runtime"] == "onnxruntime-cpu"
    assert record.sessions == tuple(session.ratios for session in measurement.sessions)
    assert record.lower_ms < record.latency_ms < record.upper_ms
    assert manifest.files == before.files


def test_a_measurement_is_not_of_what_took_the_artefacts_place(artifact):
    def replace_it(done, total):
        export_random(make_space(), 4, artifact, overwrite=True)

    with pytest.raises(InputError, match="another by now"):
        measure_artifact(artifact, load_target("onnxruntime-cpu"), 1, replace_it)
    assert load_manifest(artifact).measurement is None and verify_artifact(artifact)


def test_a_model_is_read_from_a_file_or_an_artefact(artifact):
    content = (artifact / "model.onnx").read_bytes()
    assert read_model(artifact) == content == read_model(artifact / "model.onnx")


def test_what_is_no_model_is_refused(artifact, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_model(tmp_path / "missing.onnx")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError):
        read_model(tmp_path / "folder")
    with open(artifact / "model.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(VerificationError):
        read_model(artifact)


def test_a_random_export_repeats_but_for_its_date(exported, tmp_path):
    again = export_random(make_space(), 3, tmp_path / "again").directory
    assert (again / "model.onnx").read_bytes() == (exported / "model.onnx").read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (exported, again)]
    assert manifests[0]["architecture"] == manifests[1]["architecture"] and manifests[0]["accuracy"] is None
    other = export_random(make_space(), 4, tmp_path / "other").directory
    assert (other / "model.onnx").read_bytes() != (exported / "model.onnx").read_bytes()


def test_a_random_export_with_a_table_is_predicted(tmp_path):
    table = make_table()
    manifest = export_random(make_space(), 3, tmp_path / "a", table=table, budget_ms=4.0).manifest
    prediction = table.predict(make_space().architecture(manifest.architecture["choices"]))
    assert (manifest.predicted_ms, manifest.predicted_lower_ms, manifest.predicted_upper_ms, manifest.budget_ms) == (
        prediction.latency_ms, prediction.lower_ms, prediction.upper_ms, 4.0)
    with pytest.raises(InputError):
        export_random(make_space(), 3, tmp_path / "b", table=make_table(make_space(classes=11)))
    assert not (tmp_path / "b").exists()

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch

from hwnas.errors import InputError, UnavailableError, VerificationError
from hwnas.export.artifact import export_network, record_measurement
from hwnas.export.manifest import load_manifest
from hwnas.export.parity import check_parity, run_model
from hwnas.export.verify import verify_artifact
from hwnas.ir.blocks import ConvBlock
from hwnas.ir.network import build_network
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import random_weights
from tests.export.conftest import ARCHITECTURE, IMAGES, NETWORK, SPACE, WEIGHTS

MEASURED = {"latency_ms": 4.1, "lower_ms": 4.0, "upper_ms": 4.2, "ratio": 2.05, "ratio_lower": 2.0, "ratio_upper": 2.1,
            "sessions": [[2.0, 2.1], [2.05, 2.06]], "environment": {"runtime": "onnxruntime-cpu", "threads": 1}}


@pytest.fixture(scope="module")
def reference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        return to_torch(NETWORK, WEIGHTS).eval()(torch.tensor(IMAGES)).numpy()


def test_the_folder_holds_what_the_interface_promises(exported):
    assert sorted(path.name for path in exported.directory.iterdir()) == ["golden.npz", "manifest.json", "model.onnx", "run.py"]
    document = json.loads((exported.directory / "manifest.json").read_text())
    assert document["schema"] == "hwnas.artifact/2"
    for name, record in document["files"].items():
        content = (exported.directory / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (record["sha256"], record["size_bytes"])
    assert {key: document[key] for key in ("budget_ms", "predicted_ms", "predicted_lower_ms", "predicted_upper_ms", "measured_ms",
                                           "measurement", "accuracy", "macs", "parameters")} == {
        "budget_ms": 5.0, "predicted_ms": 4.0, "predicted_lower_ms": 3.8, "predicted_upper_ms": 4.2, "measured_ms": None,
        "measurement": None, "accuracy": 0.75, "macs": NETWORK.macs, "parameters": NETWORK.parameters}
    assert document["architecture"] == ARCHITECTURE.to_dict()
    assert document["parity_max_abs"] <= document["parity_tolerance"]
    assert document["versions"]["onnx"] == onnx.__version__ and document["versions"]["torch"] == torch.__version__


def test_the_golden_outputs_are_those_of_pytorch(exported, reference):
    with np.load(exported.directory / "golden.npz", allow_pickle=False) as golden:
        np.testing.assert_array_equal(golden["images"], IMAGES)
        np.testing.assert_allclose(golden["logits"], reference, atol=1e-6)
        assert golden["labels"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_the_model_names_its_architecture(exported):
    properties = {item.key: item.value for item in onnx.load(exported.model_path).metadata_props}
    assert json.loads(properties["architecture"]) == ARCHITECTURE.to_dict()
    assert properties["space_hash"] == SPACE.hash


def test_openvino_agrees_with_the_model_file(exported, reference):
    compiled = openvino.Core().compile_model(exported.model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = np.concatenate([compiled([image[None]])[0] for image in IMAGES])
    np.testing.assert_allclose(logits, reference, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_any_fixed_batch_size_gives_the_same_numbers(tmp_path, reference, batch_size):
    artifact = export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES, batch_size=batch_size)
    np.testing.assert_allclose(run_model(artifact.model_path.read_bytes(), IMAGES), reference, atol=1e-4)
    assert artifact.manifest.input_shape == (batch_size, 3, 12, 12)
    assert verify_artifact(artifact.directory).parity.max_abs <= 1e-4
    assert _run_script(artifact.directory).returncode == 0


def test_the_script_needs_only_numpy_and_onnxruntime(artifact, reference, tmp_path):
    done = _run_script(artifact)
    assert done.returncode == 0, done.stderr
    assert "agrees" in done.stdout
    assert done.stdout.splitlines()[0].split()[1:] == [str(label) for label in reference.argmax(axis=1)]
    np.save(tmp_path / "images.npy", IMAGES[2:5])
    done = _run_script(artifact, str(tmp_path / "images.npy"))
    assert done.stdout.split()[1:] == [str(label) for label in reference[2:5].argmax(axis=1)]


def test_the_script_reports_a_difference(artifact):
    with np.load(artifact / "golden.npz") as golden:
        arrays = dict(golden)
    np.savez(artifact / "golden.npz", **arrays | {"logits": arrays["logits"] + 0.01})
    done = _run_script(artifact)
    assert done.returncode == 1 and "DIFFERS" in done.stdout


def test_an_existing_folder_is_kept_without_overwrite(artifact):
    before = (artifact / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        export_network(NETWORK, WEIGHTS, artifact, images=IMAGES)
    assert (artifact / "manifest.json").read_bytes() == before
    export_network(NETWORK, WEIGHTS, artifact, images=IMAGES, name="second", overwrite=True)
    assert verify_artifact(artifact).manifest.name == "second"
    assert [path.name for path in artifact.parent.iterdir()] == [artifact.name]


def test_a_lost_race_leaves_the_winners_artefact(artifact, tmp_path, monkeypatch):
    """Another run's takes the place between the two renames."""
    rename, other = os.rename, shutil.copytree(artifact, tmp_path / "other")
    winner = other.stat().st_ino

    def race(source, destination):
        rename(source, destination)
        if Path(destination).suffix == ".old":
            rename(other, artifact)

    monkeypatch.setattr("os.rename", race)
    with pytest.raises(InputError, match="meanwhile"):
        export_network(NETWORK, WEIGHTS, artifact, images=IMAGES, overwrite=True)
    assert list(tmp_path.iterdir()) == [artifact] and artifact.stat().st_ino == winner and verify_artifact(artifact)


def test_overwrite_replaces_nothing_but_artefacts(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="Only an artefact is replaced"):
        export_network(NETWORK, WEIGHTS, tmp_path, images=IMAGES, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    export_network(NETWORK, WEIGHTS, tmp_path / "empty", images=IMAGES)
    assert verify_artifact(tmp_path / "empty").extra_files == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["stem/conv.weight", "body/se_reduce.bias", "head/classifier.weight"])
def test_weights_that_are_not_finite_are_refused(tmp_path, name, value):
    array = WEIGHTS[name].copy()
    array.flat[0] = value
    with pytest.raises(VerificationError, match=name):
        export_network(NETWORK, WEIGHTS | {name: array}, tmp_path / "a", images=IMAGES)
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    huge = {name: np.full(WEIGHTS[name].shape, 3e38, np.float32) for name in ("head/classifier.weight", "head/classifier.bias")}
    with pytest.raises(VerificationError, match="NaN or infinity"):
        export_network(NETWORK, WEIGHTS | huge, tmp_path / "a", images=IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [
    {"images": IMAGES[:, :2]}, {"images": IMAGES[:0]}, {"images": IMAGES.astype(np.float64)}, {"images": IMAGES * np.nan},
    {"labels": [1]}, {"classes": ["one"]}, {"preprocessing": {"size": [1, 1]}}, {"accuracy": 1.5}, {"budget_ms": -1.0},
    {"batch_size": 0}])
def test_arguments_that_do_not_fit_are_refused(tmp_path, change):
    with pytest.raises(InputError):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", **{"images": IMAGES, **change})
    assert not list(tmp_path.iterdir())


def test_a_network_without_a_classifier_is_refused(tmp_path):
    network = build_network((3, 12, 12), [("block", ConvBlock(4))])
    with pytest.raises(InputError, match="head"):
        export_network(network, random_weights(network), tmp_path / "a", images=IMAGES)


def test_without_torch_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnavailableError, match=r"pip install 'hwnas\[train\]'"):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES)
    assert not list(tmp_path.iterdir())


def test_a_model_that_computes_something_else_is_not_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr("hwnas.export.making.to_onnx",
                        lambda network, weights, **arguments: to_onnx(network, random_weights(network, 99), **arguments))
    with pytest.raises(VerificationError, match=r"differ by .*; the first layer that departs is 'stem/conv'\."):
        export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES)
    assert not list(tmp_path.iterdir())


STEPS = ("making.to_onnx", "making.run_program", "artifact.write_atomic", "artifact.save_manifest", "artifact._replace")


def test_a_kill_at_any_step_leaves_nothing_that_looks_finished(tmp_path):
    """SIGKILL just before each step, every time in a process of its own: no clean-up code runs."""
    script = textwrap.dedent(f"""
        import os, pathlib, signal
        import onnxruntime, torch
        import hwnas.lower.torch
        from hwnas.export import artifact, making
        from tests.export.conftest import IMAGES, NETWORK, WEIGHTS
        torch.set_num_threads(1)
        for step in {STEPS}:
            child = os.fork()
            if child == 0:
                module, _, name = step.partition(".")
                setattr(globals()[module], name, lambda *arguments, **named: os.kill(os.getpid(), signal.SIGKILL))
                artifact.export_network(NETWORK, WEIGHTS, pathlib.Path({str(tmp_path)!r}) / step / "a", images=IMAGES)
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(STEPS), done.stderr
    for step in STEPS:
        left = list((tmp_path / step).iterdir())
        assert len(left) == 1 and left[0].name.startswith(".")
        assert step == "artifact._replace" or not (left[0] / "manifest.json").exists()
    export_network(NETWORK, WEIGHTS, tmp_path / STEPS[0] / "a", images=IMAGES)
    assert verify_artifact(tmp_path / STEPS[0] / "a")


def test_a_measurement_joins_the_manifest(artifact):
    record_measurement(artifact, MEASURED, "holds")
    manifest = load_manifest(artifact)
    assert manifest.measured_ms == 4.1
    assert manifest.measurement.verdict == "holds" and manifest.measurement.sessions == ((2.0, 2.1), (2.05, 2.06))
    assert manifest.predicted_ms == 4.0 and manifest.preprocessing.mean == (0.5, 0.5, 0.5)
    assert verify_artifact(artifact)
    with pytest.raises(InputError, match="ratio"):
        record_measurement(artifact, {**MEASURED, "ratio": -1}, "holds")
    assert load_manifest(artifact) == manifest


@pytest.mark.parametrize("wrong", [[[np.nan]], [[np.inf]], [[1.001]], [[1.0, 1.0]]])
def test_parity_sees_every_kind_of_difference(wrong):
    with pytest.raises(VerificationError):
        check_parity(np.array([[1.0]], np.float32), np.array(wrong, np.float32), "a test")


def test_parity_scales_with_the_outputs():
    parity = check_parity(np.array([[1000.0, -1000.0]], np.float32), np.array([[1000.05, -1000.0]], np.float32), "a test")
    assert parity.tolerance == pytest.approx(0.1) and parity.max_abs == pytest.approx(0.05, rel=1e-2)
    assert parity.top1_agreement == 1.0


def _run_script(folder, *arguments):
    """Runs the artefact's own script in a process that refuses to import hwnas, torch and onnx."""
    guard = ("import runpy, sys; sys.modules.update(dict.fromkeys(('hwnas', 'torch', 'onnx', 'pydantic')));"
             f"sys.argv = ['run.py', *{list(arguments)!r}]; runpy.run_path({str(folder / 'run.py')!r}, run_name='__main__')")
    return subprocess.run([sys.executable, "-c", guard], cwd=folder, capture_output=True, text=True, timeout=60)

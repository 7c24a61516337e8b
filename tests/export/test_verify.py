import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwnas.errors import HwnasError, InputError, VerificationError
from hwnas.export.verify import verify_artifact
from hwnas.files import content_sha256, sha256_file
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import random_weights
from tests.export.conftest import NETWORK

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                    max_leaves=6)


def edit_manifest(folder, change):
    """Edits the manifest as a forger would: the hashes are made to match."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    document["content_sha256"] = content_sha256(document)
    path.write_text(json.dumps(document))


def forge_file(folder, name, content):
    """Replaces a file and makes the manifest match."""
    (folder / name).write_bytes(content)
    record = {"sha256": sha256_file(folder / name), "size_bytes": len(content)}
    edit_manifest(folder, lambda document: document["files"].update({name: record}))


def test_a_sound_artefact_verifies(artifact):
    report = verify_artifact(artifact)
    assert report.parity.max_abs <= report.parity.tolerance and report.parity.top1_agreement == 1.0
    assert report.extra_files == ()


def test_extra_files_are_reported(artifact):
    (artifact / "notes.txt").write_text("mine")
    assert verify_artifact(artifact).extra_files == ("notes.txt",)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "run.py"])
@pytest.mark.parametrize("position", [0, 0.3, 0.7, -1])
def test_one_flipped_bit_is_found(artifact, name, position):
    content = bytearray((artifact / name).read_bytes())
    content[int(position * len(content)) if position >= 0 else -1] ^= 1
    (artifact / name).write_bytes(content)
    with pytest.raises(VerificationError, match=f"{name}.*SHA-256"):
        verify_artifact(artifact)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "run.py"])
def test_a_missing_linked_or_truncated_file_is_found(artifact, name):
    content = (artifact / name).read_bytes()
    (artifact / name).write_bytes(content[:-1])
    with pytest.raises(VerificationError, match=f"{name} must have {len(content)} bytes"):
        verify_artifact(artifact)
    (artifact / name).unlink()
    with pytest.raises(VerificationError, match=f"{name} is missing"):
        verify_artifact(artifact)
    (artifact.parent / "elsewhere").write_bytes(content)
    (artifact / name).symlink_to(artifact.parent / "elsewhere")
    with pytest.raises(VerificationError, match="link"):
        verify_artifact(artifact)


def test_a_truncated_manifest_is_refused_at_every_length(artifact):
    content = (artifact / "manifest.json").read_bytes().rstrip()
    for length in range(0, len(content), 97):
        (artifact / "manifest.json").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"manifest\.json"):
            verify_artifact(artifact)
    (artifact / "manifest.json").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        verify_artifact(artifact)


@pytest.mark.parametrize(("key", "value"), [("budget_ms", 50.0), ("measured_ms", 1.0), ("accuracy", 0.99), ("name", "other")])
def test_an_edited_manifest_is_refused(artifact, key, value):
    document = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps(document | {key: value}))
    with pytest.raises(InputError, match="edited"):
        verify_artifact(artifact)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/hostname", "..", ".", "a/b", "a\\b", ".hidden", "", "manifest.json"])
def test_a_file_name_cannot_leave_the_folder(artifact, name):
    edit_manifest(artifact, lambda document: document["files"].update({name: document["files"]["run.py"]}))
    with pytest.raises(InputError):
        verify_artifact(artifact)


@pytest.mark.parametrize("change", [
    lambda document: document.pop("macs"), lambda document: document.update(surplus=1),
    lambda document: document.update(schema="hwnas.artifact/1"), lambda document: document.update(accuracy=2),
    lambda document: document["files"].pop("model.onnx"), lambda document: document["files"]["run.py"].update(sha256="x")])
def test_the_manifest_has_one_form(artifact, change):
    edit_manifest(artifact, change)
    with pytest.raises(InputError):
        verify_artifact(artifact)


def test_other_weights_are_found_by_their_numbers(artifact):
    """Hashes cannot find this: the forger has recomputed them."""
    forge_file(artifact, "model.onnx", to_onnx(NETWORK, random_weights(NETWORK, 77)).SerializeToString())
    with pytest.raises(VerificationError, match="differ by"):
        verify_artifact(artifact)


@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_external_data_is_refused(artifact, where):
    model = onnx.load(artifact / "model.onnx")
    tensor = model.graph.initializer[0]
    if where == "attribute":
        node = onnx.helper.make_node("Constant", [], ["constant"], value=tensor)
        model.graph.node.insert(0, node)
        tensor = model.graph.node[0].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    forge_file(artifact, "model.onnx", model.SerializeToString())
    with pytest.raises(VerificationError, match=r"external data at '\.\./\.\./secret'"):
        verify_artifact(artifact)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07"])
def test_a_model_that_is_none_is_refused(artifact, content):
    forge_file(artifact, "model.onnx", content)
    with pytest.raises(VerificationError, match=r"model\.onnx"):
        verify_artifact(artifact)


def test_a_model_of_another_input_shape_is_refused(artifact):
    forge_file(artifact, "model.onnx", to_onnx(NETWORK, batch_size=2).SerializeToString())
    with pytest.raises(VerificationError, match="input"):
        verify_artifact(artifact)


@pytest.mark.parametrize("arrays", [
    {}, {"images": np.zeros((1, 3, 12, 12), np.float32)},
    {"images": np.zeros((1, 3, 12, 12)), "logits": np.zeros((1, 5), np.float32)},
    {"images": np.zeros((2, 3, 12, 12), np.float32), "logits": np.zeros((1, 5), np.float32)},
    {"images": np.zeros((0, 3, 12, 12), np.float32), "logits": np.zeros((0, 5), np.float32)},
    {"images": np.zeros((1, 3, 9, 9), np.float32), "logits": np.zeros((1, 5), np.float32)},
    {"images": np.zeros((1, 3, 12, 12), np.float32), "logits": np.full((1, 5), np.nan, np.float32)},
    {"images": np.array([{"run": "code"}]), "logits": np.zeros((1, 5), np.float32)}])
def test_golden_data_that_cannot_be_are_refused(artifact, tmp_path, arrays):
    np.savez(tmp_path / "golden.npz", **arrays)
    forge_file(artifact, "golden.npz", (tmp_path / "golden.npz").read_bytes())
    with pytest.raises(VerificationError):
        verify_artifact(artifact)


def test_verification_needs_no_torch(artifact):
    script = ("import sys; sys.modules['torch'] = None; from hwnas.export.verify import verify_artifact;"
              f"print(verify_artifact({str(artifact)!r}).parity.top1_agreement)")
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout == "1.0\n", done.stderr


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_manifest_gets_past_or_raises_anything_else(exported, data):
    """One value anywhere is replaced, hashes made to match: either it is harmless, or the refusal is one of hwnas' own."""
    document = json.loads((exported.directory / "manifest.json").read_text())
    parent = document
    while True:
        key = data.draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
        if not isinstance(parent[key], (dict, list)) or not parent[key] or data.draw(st.booleans()):
            break
        parent = parent[key]
    parent[key] = data.draw(JSON)
    folder = exported.directory.parent / "fuzzed"
    folder.mkdir(exist_ok=True)
    for name in ("model.onnx", "golden.npz", "run.py"):
        if not (folder / name).exists():
            (folder / name).write_bytes((exported.directory / name).read_bytes())
    if data.draw(st.booleans()):
        document["content_sha256"] = content_sha256(document)
    (folder / "manifest.json").write_text(json.dumps(document))
    try:
        verify_artifact(folder)
    except HwnasError as error:
        assert str(error)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_a_manifest_give_an_input_error(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes", numbered=True)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError):
        verify_artifact(folder)

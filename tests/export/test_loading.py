"""Whatever an artefact has become, loading it gives the artefact or one of hwnas' own errors, and runs nothing."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import HwnasError, VerificationError
from hwnas.export.formats import FORMATS
from hwnas.export.loading import load_artifact
from hwnas.export.manifest import load_manifest
from hwnas.export.verify import bisect_artifact, verify_artifact
from hwnas.files import content_sha256, sha256_file

FILES = ("model.onnx", "golden.npz", "run.py", "manifest.json")


@pytest.fixture(scope="module")
def fuzzed(exported, tmp_path_factory):
    """A folder that every example fills anew."""
    return tmp_path_factory.mktemp("fuzzed")


def fill(folder, exported, name, content):
    for other in FILES:
        (folder / other).write_bytes((exported.directory / other).read_bytes())
    (folder / name).write_bytes(content)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A truncated, cut, doubled or bit-flipped copy."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice([1, 4, 64, len(data)]))
        match rng.randrange(4):
            case 0:
                del data[start:end]
            case 1:
                data[start:start] = data[start:end][:10_000]
            case 2:
                data[start:end] = rng.randbytes(end - start)
            case _:
                if start < len(data):
                    data[start] ^= 1 << rng.randrange(8)
    return bytes(data)


@settings(max_examples=100)
@given(rng=st.randoms(use_true_random=False), name=st.sampled_from(FILES))
def test_mutated_files_are_found_by_their_hashes(exported, fuzzed, rng, name):
    original = (exported.directory / name).read_bytes()
    content = mutated(original, rng)
    fill(fuzzed, exported, name, content)
    try:
        load_artifact(fuzzed)
    except HwnasError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        assert content == original or (name == "manifest.json" and json.loads(content) == json.loads(original))


@settings(max_examples=100)
@given(rng=st.randoms(use_true_random=False), name=st.sampled_from(("model.onnx", "golden.npz")))
def test_mutated_files_with_matching_hashes_raise_nothing_else(exported, fuzzed, rng, name):
    """As a forger would leave them. What ONNX Runtime is given is a valid model by then."""
    fill(fuzzed, exported, name, mutated((exported.directory / name).read_bytes(), rng))
    document = json.loads((fuzzed / "manifest.json").read_text())
    document["files"][name] = {"sha256": sha256_file(fuzzed / name), "size_bytes": (fuzzed / name).stat().st_size}
    document["content_sha256"] = content_sha256(document)
    (fuzzed / "manifest.json").write_text(json.dumps(document))
    for check in (verify_artifact, bisect_artifact):
        try:
            check(fuzzed)
        except HwnasError as error:
            assert str(error)


@settings(max_examples=60)
@given(st.sampled_from(sorted(FORMATS)), st.sampled_from(["fp32", "fp16", "bf16", "int3"]))
def test_a_manifest_that_claims_another_format_is_refused(exported, fuzzed, name, precision):
    """Its files are not those of that format."""
    fill(fuzzed, exported, "run.py", (exported.directory / "run.py").read_bytes())
    document = json.loads((fuzzed / "manifest.json").read_text()) | {"format": name, "precision": precision}
    document["content_sha256"] = content_sha256(document)
    (fuzzed / "manifest.json").write_text(json.dumps(document))
    if (name, precision) == ("onnx", "fp32"):
        assert load_manifest(fuzzed).format == "onnx"
        return
    with pytest.raises(HwnasError):
        load_manifest(fuzzed)


def test_an_artefact_is_read_once(artifact):
    """What was hashed is what is run, whatever happens to the folder meanwhile."""
    loaded = load_artifact(artifact)
    (artifact / "model.onnx").write_bytes(b"something else")
    assert loaded.program().files["model.onnx"] != b"something else"
    with pytest.raises(VerificationError):
        load_artifact(artifact)

"""The anchor: sound, small, and the same for ever."""

import numpy as np
import onnx
from onnx import numpy_helper

from hwnas.profiling.anchor import ANCHOR_NAME, anchor_model, anchor_sha256, build_anchor
from hwnas.runtimes import RuntimeConfig, load_runtime

# Every table ever measured holds this pair. If the test fails, mend what changed the network; a new anchor takes a new name.
IDENTITY = ("mobile-64/1", "7f8b9ab844866fe1c2a5502a3d210ce25750818452fd3188f45ebfd7bc8c6099")


def test_its_identity_never_changes():
    assert (ANCHOR_NAME, anchor_sha256()) == IDENTITY


def test_it_is_a_sound_model_of_one_image():
    model = onnx.load_from_string(anchor_model())
    onnx.checker.check_model(model, full_check=True)
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 64, 64]
    assert [size.dim_value for size in model.graph.output[0].type.tensor_type.shape.dim] == [1, 10]


def test_it_is_small():
    assert len(anchor_model()) < 1 << 20
    assert 5e6 < build_anchor().macs < 10e6


def test_its_bytes_repeat():
    assert anchor_model.__wrapped__() == anchor_model.__wrapped__()


def test_no_weight_or_output_is_a_denormal():
    """Denormal numbers run at another speed on some processors."""
    for tensor in onnx.load_from_string(anchor_model()).graph.initializer:
        values = np.abs(numpy_helper.to_array(tensor).astype(np.float64))
        assert np.isfinite(values).all() and not ((values > 0) & (values < np.finfo(np.float32).tiny)).any(), tensor.name
    executable = load_runtime("onnxruntime-cpu").compile(anchor_model(), RuntimeConfig())
    images = np.random.default_rng(1).standard_normal(executable.inputs[0].shape).astype(np.float32)
    (logits,) = executable.run({executable.inputs[0].name: images}).values()
    assert np.isfinite(logits).all() and np.abs(logits).max() > 1e-6 and np.ptp(logits) > 0

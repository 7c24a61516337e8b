"""The anchors: sound, as large as they should be, and the same for ever."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hwnas.profiling.anchor import ANCHORS, LARGE_ANCHOR, SMALL_ANCHOR, anchor_for, anchor_model, anchor_name, anchor_sha256
from hwnas.profiling.device import Anchor, load_anchor
from hwnas.runtimes import RuntimeConfig, load_runtime

# Every table ever measured holds one of these pairs. If the test fails, mend what changed the network; a new anchor takes a new
# name.
IDENTITIES = {"mobile-64/1": "7f8b9ab844866fe1c2a5502a3d210ce25750818452fd3188f45ebfd7bc8c6099",
              "mobile-224/1": "ffdd4efb6bb700220bb2e193cf42ab349500819a3ddccc3f2549f0e4f6291916"}
SIDES = {"mobile-64/1": 64, "mobile-224/1": 224}

each_anchor = pytest.mark.parametrize("name", ANCHORS)


def test_their_identities_never_change():
    assert {name: anchor_sha256(name) for name in ANCHORS} == IDENTITIES
    assert {name: anchor_name(sha256) for name, sha256 in IDENTITIES.items()} == {name: name for name in ANCHORS}
    assert anchor_name("something else") is None and anchor_name(None) is None


@each_anchor
def test_it_is_a_sound_model_of_one_image(name):
    model = onnx.load_from_string(anchor_model(name))
    onnx.checker.check_model(model, full_check=True)
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, SIDES[name], SIDES[name]]
    assert [size.dim_value for size in model.graph.output[0].type.tensor_type.shape.dim] == [1, 10]


@pytest.mark.parametrize(("name", "most_bytes", "macs"), [(SMALL_ANCHOR, 1 << 20, (5e6, 10e6)),
                                                          (LARGE_ANCHOR, 5 << 20, (200e6, 300e6))])
def test_it_is_as_large_as_what_it_is_timed_with(name, most_bytes, macs):
    assert len(anchor_model(name)) < most_bytes
    assert macs[0] < ANCHORS[name]().macs < macs[1]


@pytest.mark.parametrize(("shape", "name"), [((1, 3, 32, 32), SMALL_ANCHOR), ((1, 3, 224, 224), LARGE_ANCHOR),
                                             ((1, 3, 64, 64), SMALL_ANCHOR), ((16, 3, 64, 64), LARGE_ANCHOR),
                                             ((1, 224, 224, 3), LARGE_ANCHOR), ((1, 3, 127, 128), SMALL_ANCHOR),
                                             ((1, 3, 128, 128), LARGE_ANCHOR), ((), SMALL_ANCHOR)])
def test_what_goes_into_a_call_chooses_it(shape, name):
    assert anchor_for(shape) == name


def test_a_device_has_the_one_that_is_named():
    assert load_anchor() == Anchor(anchor_model(SMALL_ANCHOR), IDENTITIES[SMALL_ANCHOR])
    assert load_anchor(LARGE_ANCHOR) == Anchor(anchor_model(LARGE_ANCHOR), IDENTITIES[LARGE_ANCHOR])


@each_anchor
def test_its_bytes_repeat(name):
    assert anchor_model.__wrapped__(name) == anchor_model.__wrapped__(name)


@each_anchor
def test_no_weight_or_output_is_a_denormal(name):
    """Denormal numbers run at another speed on some processors."""
    for tensor in onnx.load_from_string(anchor_model(name)).graph.initializer:
        values = np.abs(numpy_helper.to_array(tensor).astype(np.float64))
        assert np.isfinite(values).all() and not ((values > 0) & (values < np.finfo(np.float32).tiny)).any(), tensor.name
    executable = load_runtime("onnxruntime-cpu").compile(anchor_model(name), RuntimeConfig())
    images = np.random.default_rng(1).standard_normal(executable.inputs[0].shape).astype(np.float32)
    (logits,) = executable.run({executable.inputs[0].name: images}).values()
    assert np.isfinite(logits).all() and np.abs(logits).max() > 1e-6 and np.ptp(logits) > 0

"""The first layer that departs is found, whichever it is."""

import random

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from hwnas.errors import InputError, VerificationError
from hwnas.export.artifact import export_network
from hwnas.export.bisect import first_departure, sample_layers
from hwnas.export.formats import FormatOptions
from hwnas.export.verify import bisect_artifact
from hwnas.ir.network import INPUT
from hwnas.ir.trellis import Trellis
from hwnas.lower.onnx import to_onnx
from hwnas.spaces.load import load_space
from tests.export.conftest import IMAGES, NETWORK, WEIGHTS
from tests.export.test_verify import forge_file

SPACE = load_space("darts-cpu")
CELLS = SPACE.network(Trellis(SPACE).sample(1, seed=1)[0])  # with branches that join again


def departed(network, broken):
    """Nodes that depend on a broken one."""
    found = set()
    for node in network.nodes:
        if node.name == broken or found.intersection(node.inputs):
            found.add(node.name)
    return found


@given(st.randoms(use_true_random=False))
def test_the_broken_layer_is_found_across_branches(rng: random.Random):
    network = rng.choice([NETWORK, CELLS])
    reaching = [node.name for node in network.nodes if network.output in departed(network, node.name)]
    broken = rng.choice(reaching)
    bad = departed(network, broken)
    asked = []

    def departs(part):
        asked.append(part.output)
        return part.output in bad

    assert first_departure(network, departs) == broken
    assert len(asked) == len(set(asked)) and INPUT not in asked


def test_few_parts_are_tried_of_a_deep_network():
    chain = [node.name for node in NETWORK.nodes]
    asked = []

    def departs(part):
        asked.append(part.output)
        return chain.index(part.output) >= chain.index("tail/depthwise_conv")

    assert first_departure(NETWORK, departs) == "tail/depthwise_conv"
    assert len(asked) <= 2 * np.log2(len(chain)) + 2


def test_layers_of_a_sound_artefact_agree(artifact):
    assert bisect_artifact(artifact) is None


@pytest.mark.parametrize("name", ["stem/conv", "body/se_expand", "tail/depthwise_conv", "head/classifier"])
def test_another_weight_is_traced_to_its_layer(artifact, name):
    """The forger has recomputed the hashes."""
    model = onnx.load(artifact / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == f"{name}.weight":
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    forge_file(artifact, "model.onnx", model.SerializeToString())
    departure = bisect_artifact(artifact)
    assert departure.layer == ("logits" if name == "head/classifier" else name) and departure.max_abs > departure.tolerance


def test_not_a_number_departs(artifact):
    model = onnx.load(artifact / "model.onnx")
    tensor = next(one for one in model.graph.initializer if one.name == "tail/expand_conv.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.nan), tensor.name))
    forge_file(artifact, "model.onnx", model.SerializeToString())
    assert bisect_artifact(artifact).layer == "tail/expand_conv"


def test_other_layers_are_told(artifact):
    model = onnx.load(artifact / "model.onnx")
    for node in model.graph.node:
        node.output[:] = [name.replace("body/", "else/") for name in node.output]
        node.input[:] = [name if ".weight" in name or ".bias" in name else name.replace("body/", "else/") for name in node.input]
    forge_file(artifact, "model.onnx", model.SerializeToString())
    with pytest.raises(VerificationError, match="else/"):
        bisect_artifact(artifact)


def test_layers_are_kept_of_onnx_alone(tmp_path):
    artifact = export_network(NETWORK, WEIGHTS, tmp_path / "a", images=IMAGES, options=FormatOptions("litert"))
    with pytest.raises(InputError, match="as onnx"):
        bisect_artifact(artifact.directory)


def test_samples_are_of_every_layer_in_order():
    model = to_onnx(NETWORK, WEIGHTS, batch_size=2)
    layers = sample_layers(model, IMAGES[:1])
    assert list(layers.names) == [node.output[0] for node in model.graph.node]
    assert layers.samples.shape == (len(layers.names), 16) and (np.abs(layers.samples).max(axis=1) <= layers.scales).all()

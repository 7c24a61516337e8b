"""The ONNX lowering: a valid, minimal, deterministic graph whose every shape is the network's."""

import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings

from hwnas.errors import InputError
from hwnas.ir.block import block_network
from hwnas.ir.blocks import ConvBlock, Head, MBConv, ShuffleUnit, Stem
from hwnas.ir.layers import BatchNorm, ChannelSlice, Concat, Conv
from hwnas.ir.network import Network, NetworkBuilder, Value, build_network
from hwnas.lower.onnx import OPSET, to_onnx
from hwnas.lower.weights import random_weights
from tests.lower.networks import BLOCK_SHAPE, BLOCKS, PRIMITIVES, network_of, networks
from tests.lower.test_parity import assert_close, images_for, run_onnxruntime

MIXED = build_network((3, 32, 32), [
    ("stem", Stem(8)), ("gated", MBConv(8, 5, 3, se_ratio=0.25, activation="silu")), ("shuffle", ShuffleUnit(8)),
    ("head", Head(5, 16, dropout=0.2))])


def check(network: Network, model: onnx.ModelProto, batch: int | str = 1) -> None:
    """Full validity, no node or constant without a reader, and the network's shape wherever a name is the network's."""
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    shapes = {info.name: [dim.dim_value or dim.dim_param for dim in info.type.tensor_type.shape.dim]
              for info in [*inferred.graph.value_info, *inferred.graph.output]}
    by_name = {node.name: node for node in network.nodes}
    for node in model.graph.node:
        for tensor in node.output:
            name = node.name if tensor in ("logits", "features") else tensor
            if name in by_name:
                shape = by_name[name].shape
                assert shapes[tensor] == ([batch, shape.channels] if name in network.vectors else [batch, *shape]), name
            else:
                assert len(shapes[tensor]) >= 2
    (result,) = model.graph.output
    assert result.name == ("logits" if network.output in network.vectors else "features")
    assert shapes[result.name][1:] == list(network.output_shape)[:len(shapes[result.name]) - 1]
    read = {name for node in model.graph.node for name in node.input} | {result.name}
    assert all(read.intersection(node.output) for node in model.graph.node)
    assert {constant.name for constant in model.graph.initializer} <= read
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names) and all(names)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_every_primitive_is_a_valid_graph(name: str) -> None:
    check(PRIMITIVES[name], to_onnx(PRIMITIVES[name]))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_a_valid_graph(name: str) -> None:
    network = block_network(BLOCKS[name], BLOCK_SHAPE)
    check(network, to_onnx(network, batch_size=3), 3)


@settings(max_examples=30, deadline=None)
@given(networks())
def test_random_networks_are_valid_graphs(network: Network) -> None:
    check(network, to_onnx(network))


@settings(max_examples=30, deadline=None)
@given(networks())
def test_nothing_that_inference_does_not_need_is_left(network: Network) -> None:
    operators = Counter(node.op_type for node in to_onnx(network).graph.node)
    assert not {"BatchNormalization", "Dropout", "Identity", "Constant", "Cast", "Shape"} & set(operators)
    assert operators["Conv"] == sum(isinstance(node.layer, Conv) for node in network.nodes)


def test_the_graph_reads_as_the_network() -> None:
    graph = to_onnx(MIXED).graph
    assert [(node.op_type, node.name) for node in graph.node] == [
        ("Conv", "stem/conv"), ("Relu", "stem/act"),
        ("Conv", "gated/expand_conv"), ("Sigmoid", "gated/expand_act/sigmoid"), ("Mul", "gated/expand_act"),
        ("Conv", "gated/depthwise_conv"), ("Sigmoid", "gated/depthwise_act/sigmoid"), ("Mul", "gated/depthwise_act"),
        ("GlobalAveragePool", "gated/se_pool"), ("Conv", "gated/se_reduce"), ("Relu", "gated/se_reduce_act"),
        ("Conv", "gated/se_expand"), ("Sigmoid", "gated/se_gate"), ("Mul", "gated/se_scale"),
        ("Conv", "gated/project_conv"), ("Add", "gated/add"),
        ("Reshape", "shuffle/shuffle/matrix"), ("Transpose", "shuffle/shuffle/transpose"), ("Reshape", "shuffle/shuffle"),
        ("Split", "shuffle/shuffle/split"), ("Conv", "shuffle/pointwise1_conv"), ("Relu", "shuffle/pointwise1_act"),
        ("Conv", "shuffle/depthwise_conv"), ("Conv", "shuffle/pointwise2_conv"), ("Relu", "shuffle/pointwise2_act"),
        ("Concat", "shuffle/concat"), ("Conv", "head/conv"), ("Relu", "head/act"),
        ("GlobalAveragePool", "head/global_pool"), ("Flatten", "head/classifier/flatten"), ("Gemm", "head/classifier")]
    ends = [(value.name, [dim.dim_value for dim in value.type.tensor_type.shape.dim]) for value in (*graph.input, *graph.output)]
    assert ends == [("images", [1, 3, 32, 32]), ("logits", [1, 5])]


def test_a_network_without_work_is_one_identity() -> None:
    for name in ("nothing", "dropout alone"):
        assert [node.op_type for node in to_onnx(PRIMITIVES[name]).graph.node] == ["Identity"]


def test_slices_that_partition_become_one_split_and_others_stay() -> None:
    def operators(name: str) -> list[str]:
        return [node.op_type for node in to_onnx(PRIMITIVES[name]).graph.node]
    assert operators("slices that partition") == ["Split", "Concat"]
    assert operators("slices that overlap") == ["Slice", "Slice", "Concat"]
    assert operators("slices that leave some") == ["Slice", "Slice", "Concat"]
    assert operators("slices that leave the last") == ["Slice", "Slice", "Concat"]


def test_a_dead_end_is_left_out() -> None:
    model = to_onnx(PRIMITIVES["dead end"])
    assert [node.name for node in model.graph.node] == ["conv"]
    assert [constant.name for constant in model.graph.initializer] == ["conv.weight"]


def test_a_folded_and_an_unfolded_batch_norm_agree() -> None:
    """A second reader of the convolution keeps the batch norm from being folded; the weights are the same by name."""
    def unfolded(net: NetworkBuilder, x: Value) -> Value:
        conv = net.add("conv", Conv(5, (3, 3), bias=True), x)
        both = net.add("both", Concat(), net.add("bn", BatchNorm(), conv), conv)
        return net.add("bn_part", ChannelSlice(0, 5), both)

    folded = network_of(lambda net, x: net.add("bn", BatchNorm(), net.add("conv", Conv(5, (3, 3), bias=True), x)))
    kept = network_of(unfolded)
    weights = random_weights(folded)
    assert set(weights) == set(kept.weight_shapes)
    models = [to_onnx(network, weights, batch_size=2) for network in (folded, kept)]
    assert [[node.op_type for node in model.graph.node] for model in models] == [
        ["Conv"], ["Conv", "BatchNormalization", "Concat", "Slice"]]
    results = [run_onnxruntime(model.SerializeToString(), images_for(folded)) for model in models]
    assert_close(results[0], results[1])


def test_folding_rounds_once() -> None:
    """Folded in float64 and stored in float32: no folded weight is more than half a unit in the last place off."""
    network = PRIMITIVES["conv with bias, bn"]
    weights = random_weights(network)
    exact = {name: array.astype(np.longdouble) for name, array in weights.items()}
    scale = exact["bn.weight"] / np.sqrt(exact["bn.running_var"] + np.longdouble(1e-3))
    stored = {constant.name: onnx.numpy_helper.to_array(constant) for constant in to_onnx(network, weights).graph.initializer}
    for name, value in {"conv.weight": exact["conv.weight"] * scale[:, None, None, None],
                        "conv.bias": (exact["conv.bias"] - exact["bn.running_mean"]) * scale + exact["bn.bias"]}.items():
        assert np.all(np.abs(stored[name] - value) <= 0.501 * np.spacing(np.abs(stored[name])))


def test_a_dynamic_batch_takes_any_number_of_images() -> None:
    weights = random_weights(MIXED)
    model = to_onnx(MIXED, weights, dynamic_batch=True)
    check(MIXED, model, "batch")
    images = images_for(MIXED, 5)
    whole = run_onnxruntime(model.SerializeToString(), images)
    single = to_onnx(MIXED, weights).SerializeToString()
    for index in range(5):
        assert_close(whole[index:index + 1], run_onnxruntime(single, images[index:index + 1]))
    assert run_onnxruntime(model.SerializeToString(), images[:1]).shape == (1, 5)


@pytest.mark.parametrize("opset", range(14, 24))
def test_other_opsets_give_the_same_numbers(opset: int) -> None:
    weights = random_weights(MIXED)
    model = to_onnx(MIXED, weights, opset=opset)
    check(MIXED, model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    images = images_for(MIXED, 1)
    expected = run_onnxruntime(to_onnx(MIXED, weights).SerializeToString(), images)
    assert_close(run_onnxruntime(model.SerializeToString(), images), expected)


def test_the_default_is_read_by_older_runtimes() -> None:
    model = to_onnx(MIXED)
    assert (model.ir_version, model.opset_import[0].version) == (8, OPSET)
    assert model.producer_name == "hwnas" and model.producer_version


def test_metadata_travels_with_the_model() -> None:
    model = to_onnx(MIXED, metadata={"space": "spos", "architecture": "a b c"})
    assert {entry.key: entry.value for entry in model.metadata_props} == {"space": "spos", "architecture": "a b c"}


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert to_onnx(MIXED, seed=3).SerializeToString() == to_onnx(MIXED, seed=3).SerializeToString()
    assert to_onnx(MIXED, seed=3).SerializeToString() != to_onnx(MIXED, seed=4).SerializeToString()
    assert to_onnx(MIXED, random_weights(MIXED, 3)).SerializeToString() == to_onnx(MIXED, seed=3).SerializeToString()


def test_weights_of_double_precision_are_stored_as_floats() -> None:
    weights = {name: array.astype(np.float64) for name, array in random_weights(MIXED).items()}
    model = to_onnx(MIXED, weights)
    check(MIXED, model)
    assert model.SerializeToString() == to_onnx(MIXED, seed=0).SerializeToString()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weights = random_weights(MIXED)
    weights["gated/expand_bn.weight"][1] = value
    with pytest.raises(InputError, match=r"gated/expand_bn\.weight"):
        to_onnx(MIXED, weights)


@pytest.mark.parametrize(("arguments", "word"), [({"batch_size": 0}, "0"), ({"opset": 13}, "13"), ({"opset": 999}, "999")])
def test_arguments_out_of_range_are_refused(arguments: dict[str, int], word: str) -> None:
    with pytest.raises(InputError, match=word):
        to_onnx(MIXED, **arguments)  # type: ignore[arg-type]


def test_no_torch_is_loaded() -> None:
    program = ("import sys; from hwnas.lower.onnx import to_onnx; from hwnas.ir.blocks import Stem; "
               "from hwnas.ir.block import block_network; to_onnx(block_network(Stem(8), (3, 8, 8))); "
               "sys.exit('torch' in sys.modules)")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_only_convolutions_own_batch_norms_are_folded() -> None:
    network = build_network((3, 8, 8), [("a", ConvBlock(4, activation=None)), ("b", ConvBlock(4))])
    names = {constant.name for constant in to_onnx(network).graph.initializer}
    assert names == {"a/conv.weight", "a/conv.bias", "b/conv.weight", "b/conv.bias"}
    assert {node.op_type for node in to_onnx(PRIMITIVES["bn"]).graph.node} == {"BatchNormalization"}

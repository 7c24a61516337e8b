"""Blocks of few bits: which layers are added where, what stays the same, and bit operations against counts by hand."""

import json

import pytest

from hwnas.errors import InputError
from hwnas.ir.block import Block, block_network
from hwnas.ir.blocks import (
    BasicBlock,
    ConvBlock,
    Head,
    Identity,
    MBConv,
    PoolOperation,
    Sequence,
    ShuffleUnit,
    Stem,
    block_from_dict,
)
from hwnas.ir.costs import BitOpsCost
from hwnas.ir.layers import Conv, Linear, Quantize, Round
from hwnas.ir.network import build_network
from hwnas.ir.quantized import HalfPrecision, Quantized, has_convolutions, is_non_negative
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, SearchSpace

SHAPE = TensorShape(8, 8, 8)
EXAMPLES = [
    Quantized(MBConv(8), 2, 4), Quantized(MBConv(8), 4, 2), Quantized(MBConv(8), 2, 4, False),
    Quantized(MBConv(8), 2, 4, integer=True), Quantized(MBConv(8, 5), 2, 4),
    Quantized(Sequence((MBConv(8), ConvBlock(8))), 8, 8), HalfPrecision(MBConv(8)),
    HalfPrecision(MBConv(8), "bf16"), Sequence((Quantized(MBConv(8), 2, 4), HalfPrecision(ConvBlock(4))))]


def quantizers(block: Block) -> dict[str, tuple[int, bool]]:
    """Bits and sign of every quantiser, by what it reads."""
    return {node.inputs[0].removeprefix("block/"): (node.layer.bits, node.layer.signed)
            for node in block_network(block, SHAPE).nodes if isinstance(node.layer, Quantize)}


def test_every_convolution_reads_a_quantiser_and_a_tensor_has_one() -> None:
    network = block_network(Quantized(BasicBlock(16, stride=2), 3, 4), SHAPE)
    nodes = {node.name: node for node in network.nodes}
    assert [(name, type(node.layer).__name__) for name, node in nodes.items()][:3] == [
        ("block/input_quantize", "Quantize"), ("block/first_conv", "Conv"), ("block/first_bn", "BatchNorm")]
    convolutions = [node for node in network.nodes if isinstance(node.layer, Conv)]
    assert len(convolutions) == 3 and {node.layer.weight_format for node in convolutions} == {"int3"}
    assert [node.inputs[0] for node in convolutions] == [
        "block/input_quantize", "block/first_act_quantize", "block/input_quantize"]  # the shortcut shares the input's
    assert nodes["block/add"].inputs == ("block/shortcut_bn", "block/second_bn")  # sums stay in full precision


@pytest.mark.parametrize(("block", "expected"), [
    (Quantized(MBConv(8), 4, 4), {"input": True, "expand_act": False, "depthwise_act": False}),
    (Quantized(MBConv(8), 4, 4, signed_input=False), {"input": False, "expand_act": False, "depthwise_act": False}),
    (Quantized(MBConv(8, activation="hardswish"), 4, 4), {"input": True, "expand_act": True, "depthwise_act": True}),
    (Quantized(MBConv(8, se_ratio=0.25), 4, 4), {
        "input": True, "expand_act": False, "se_pool": False, "se_reduce_act": False, "se_scale": False}),
    (Quantized(ShuffleUnit(8), 4, 4), {"entering": True, "pointwise1_act": False, "depthwise_bn": True}),
    (Quantized(ShuffleUnit(8), 4, 4, False), {"entering": False, "pointwise1_act": False, "depthwise_bn": True}),
    (Quantized(MBConv(8), 4, 4, integer=True), {
        "input": True, "expand_act": False, "depthwise_act": False, "project_bn": True}),
    (Quantized(MBConv(8, activation="silu"), 4, 4, integer=True), {
        "input": True, "expand_bn": True, "expand_act": True, "depthwise_bn": True, "depthwise_act": True, "project_bn": True}),
], ids=lambda value: value.signature if isinstance(value, Block) else "")
def test_signs_follow_what_produced_a_tensor(block: Block, expected: dict[str, bool]) -> None:
    assert quantizers(block) == {name: (4, signed) for name, signed in expected.items()}


def test_a_block_is_the_same_alone_and_in_a_network() -> None:
    block = Quantized(ConvBlock(8), 2, 2)
    alone = block_network(block, SHAPE)
    after_relu = build_network(SHAPE, [("before", ConvBlock(8)), ("block", block)])
    assert [node.layer for node in after_relu.nodes[3:]] == [node.layer for node in alone.nodes]


def test_a_classifier_and_full_precision_stay_as_they_are() -> None:
    head = block_network(Quantized(Head(10, 16), 2, 2), SHAPE)
    assert [type(node.layer) for node in head.nodes if not isinstance(node.layer, Conv)].count(Quantize) == 1
    assert isinstance(head.nodes[-1].layer, Linear) and head.nodes[-1].inputs == ("block/global_pool",)
    assert block_network(Quantized(MBConv(8), 32, 32), SHAPE) == block_network(MBConv(8), SHAPE)
    assert quantizers(Quantized(MBConv(8), 2, 32)) == {}


def test_half_precision_rounds_what_convolutions_read() -> None:
    network = block_network(HalfPrecision(BasicBlock(8), "bf16"), SHAPE)
    rounded = [node.inputs[0] for node in network.nodes if node.layer == Round("bf16")]
    assert rounded == ["input", "block/first_act"]
    assert {node.layer.weight_format for node in network.nodes if isinstance(node.layer, Conv)} == {"bf16"}


@pytest.mark.parametrize("block", [BasicBlock(16, stride=2), MBConv(8, se_ratio=0.25), ShuffleUnit(8), Head(10, 16)],
                         ids=lambda block: block.kind)
def test_counts_are_those_of_the_block_but_for_one_scale_a_quantiser(block: Block) -> None:
    plain = block_network(block, SHAPE)
    for changed in (Quantized(block, 2, 3), Quantized(block, 8, 8, integer=True), HalfPrecision(block)):
        network = block_network(changed, SHAPE)
        scales = sum(isinstance(node.layer, Quantize) for node in network.nodes)
        assert network.macs == plain.macs and network.output_shape == plain.output_shape
        assert network.parameters_by_kind == {**plain.parameters_by_kind, "quantizers": scales}
        assert network.parameters == plain.parameters + scales
        assert {node.name for node in plain.nodes} <= {node.name for node in network.nodes}


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.signature)
def test_blocks_survive_json(block: Block) -> None:
    document = json.loads(json.dumps(block.to_dict()))
    again = block_from_dict(document)
    assert again == block and hash(again) == hash(block) and again.to_dict() == document


def test_signatures_tell_everything_apart() -> None:
    assert EXAMPLES[0].signature == (
        "quantized(mbconv(out_channels=8, kernel=3, expansion=6.0, stride=1, se_ratio=0.0, activation=relu6, residual=None), "
        "weight_bits=2, activation_bits=4, signed_input=True, integer=False)")
    assert len({block.signature for block in [*EXAMPLES, MBConv(8)]}) == len(EXAMPLES) + 1


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Quantized(MBConv(8), 9, 4), ["weight_bits", "1 to 8, or 32", "9"]),
    (lambda: Quantized(MBConv(8), 4, 16), ["activation_bits", "16"]),
    (lambda: Quantized(MBConv(8), 0, 4), ["weight_bits", "0"]),
    (lambda: Quantized(MBConv(8), 2.5, 4), ["weight_bits", "whole number", "2.5"]),
    (lambda: Quantized(MBConv(8), 2, 4, "yes"), ["signed_input", "true or false", "'yes'"]),
    (lambda: Quantized("mbconv", 2, 4), ["quantized", "block", "'mbconv'"]),
    (lambda: HalfPrecision(MBConv(8), "fp8"), ["half_precision", "fp16 or bf16", "'fp8'"]),
    (lambda: HalfPrecision(MBConv(8), "int8"), ["fp16 or bf16", "'int8'"]),
    (lambda: Quantize(9, True), ["1 to 8", "9"]),
    (lambda: Round("fp32"), ["fp16 or bf16", "'fp32'"]),
    (lambda: Conv(8, weight_format="int9"), ["weight format", "'int9'", "int8"]),
    (lambda: block_network(Quantized(Quantized(MBConv(8), 2, 2), 4, 4), SHAPE), ["full precision", "'quantized'"]),
    (lambda: block_network(HalfPrecision(Quantized(MBConv(8), 32, 2)), SHAPE), ["full precision", "'quantized'"]),
    (lambda: block_network(Quantized(ConvBlock(8, groups=3), 2, 2), SHAPE), ["quantized", "3 groups"]),
    (lambda: block_from_dict({"kind": "quantized", "weight_bits": 2, "activation_bits": 2}), ["quantized", "'block'"]),
    (lambda: block_from_dict({"kind": "quantized", "block": {"kind": "mbcnov"}, "weight_bits": 2, "activation_bits": 2}),
     ["mbcnov", "mbconv"]),
])
def test_what_cannot_be_is_refused(make, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("layer", "lowest", "highest"), [
    (Quantize(1, False), 0, 1), (Quantize(1, True), -1, 1), (Quantize(2, False), 0, 3), (Quantize(2, True), -2, 1),
    (Quantize(4, True), -8, 7), (Quantize(8, False), 0, 255), (Quantize(8, True), -128, 127)])
def test_a_quantisers_range(layer: Quantize, lowest: int, highest: int) -> None:
    assert (layer.lowest, layer.highest) == (lowest, highest)


@pytest.mark.parametrize(("block", "after_positive", "after_any"), [
    (Identity(), True, False), (ConvBlock(8), True, True), (ConvBlock(8, activation=None), False, False),
    (ConvBlock(8, activation="hardswish"), False, False), (MBConv(8), False, False), (BasicBlock(8), True, True),
    (ShuffleUnit(8), True, False), (PoolOperation("max"), True, False), (Stem(8, pool=True), True, True),
    (Quantized(ConvBlock(8), 2, 2), True, True), (Head(4), False, False)], ids=repr)
def test_which_outputs_are_never_negative(block: Block, after_positive: bool, after_any: bool) -> None:
    assert (is_non_negative(block, SHAPE, True), is_non_negative(block, SHAPE, False)) == (after_positive, after_any)


def test_which_blocks_have_convolutions() -> None:
    assert [has_convolutions(block, SHAPE) for block in (MBConv(8), Head(4, 8), Head(4), Identity())] == [
        True, True, False, False]


def test_bit_operations_by_hand() -> None:
    """A 1x1 convolution from 8 to 8 channels at 8x8 is 4096 multiply-accumulates; the classifier adds 80."""
    conv = ConvBlock(8, 1)
    network = build_network(SHAPE, [("a", conv), ("b", Quantized(conv, 2, 3)), ("c", Quantized(conv, 1, 32)),
                                    ("d", Quantized(conv, 32, 4)), ("e", HalfPrecision(conv)), ("head", Head(10))])
    few = 4096 * (2 * 3 + 1 * 32 + 32 * 4 + 16 * 16)
    assert BitOpsCost().network_cost(network) == few
    assert BitOpsCost(count_full_precision=True).network_cost(network) == few + (4096 + 80) * 32 * 32


def test_bit_operations_are_additive_over_a_space() -> None:
    space = SearchSpace("bits", SHAPE, (
        Decision("a", {"w1": Quantized(BasicBlock(8), 1, 2), "w4": Quantized(BasicBlock(8), 4, 4), "full": BasicBlock(8)}),
        Decision("b", {"w2": Sequence((Quantized(MBConv(8), 2, 2), MBConv(8))), "skip": Identity()})))
    for cost in (BitOpsCost(), BitOpsCost(True)):
        for choices in ({"a": "w1", "b": "w2"}, {"a": "w4", "b": "skip"}, {"a": "full", "b": "w2"}):
            path = space.architecture(choices)
            assert sum(cost.edge_cost(edge) for edge in space.path(path)) == cost.network_cost(space.network(path))

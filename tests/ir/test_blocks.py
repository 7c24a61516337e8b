"""Blocks against published counts: whole networks to the last MAC and weight, and single blocks of the papers' tables."""

import dataclasses
import json

import pytest

from hwnas.errors import InputError
from hwnas.ir.block import block_network
from hwnas.ir.blocks import (
    BLOCKS,
    Block,
    ConvBlock,
    Head,
    Identity,
    MBConv,
    Resolution,
    SeparableConv,
    Sequence,
    ShuffleUnit,
    Stem,
    block_from_dict,
)
from hwnas.ir.cell_operations import (
    CellHead,
    DilatedOperation,
    FactorizedConvolution,
    FactorizedReduction,
    PoolOperation,
    PreactivatedConv,
    SeparableOperation,
    UnpaddedStem,
)
from hwnas.ir.mobile_blocks import FBNetBlock, MnasNetLayer, PooledHead
from hwnas.ir.network import Network, build_network
from hwnas.ir.quantized import HalfPrecision, Quantized
from hwnas.ir.residual_blocks import BasicBlock, Bottleneck
from hwnas.ir.shape import TensorShape

# Single Path One-Shot (arXiv 1904.00420), the authors' released space: output width, blocks, resolution of the input.
SPOS_STAGES = ((64, 4, 112), (160, 4, 56), (320, 8, 28), (640, 4, 14))


def choice_block(choice: int, out_channels: int, stride: int, mid_channels: int | None = None) -> ShuffleUnit:
    kernel, xception = (3, True) if choice == 3 else ((3, 5, 7)[choice], False)
    return ShuffleUnit(out_channels, kernel, stride, mid_channels, xception)


def single_path_network(choices: str, mid_channels: str = "") -> Network:
    """Stem, 20 choice blocks (0 to 2: kernel 3, 5, 7; 3: Xception) and head of Single Path One-Shot at 224x224."""
    mids: list[int | None] = [int(mid) for mid in mid_channels.split()] or [None] * 20
    blocks: list[tuple[str, Block]] = [("stem", Stem(16))]
    picks = iter(zip(choices.split(), mids, strict=True))
    for stage, (width, depth, _) in enumerate(SPOS_STAGES):
        for index in range(depth):
            choice, mid = next(picks)
            blocks.append((f"stage{stage}_{index}", choice_block(int(choice), width, 1 if index else 2, mid)))
    return build_network((3, 224, 224), [*blocks, ("head", Head(1000, 1024, dropout=0.1, bias=False))])


def mobilenet_v2() -> Network:
    """MobileNetV2 1.0x at 224x224 (arXiv 1801.04381, table 2)."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    bottlenecks = [(f"stage{stage}_{index}", MBConv(width, 3, expansion, stride if index == 0 else 1))
                   for stage, (expansion, width, depth, stride) in enumerate(stages) for index in range(depth)]
    return build_network((3, 224, 224), [("stem", Stem(32, activation="relu6")), *bottlenecks,
                                         ("head", Head(1000, 1280, "relu6", dropout=0.2))])


@pytest.mark.parametrize(("choices", "mids", "macs", "weights", "batch_norm"), [
    # The released block search: published as 323M, 3.5M.
    ("2 1 0 1 2 0 2 0 2 0 2 3 0 0 0 0 3 2 3 3", "", 322_918_720, 3_529_312, 29_152),
    # The released block and channel search: published as 328M, 3.4M. Widths are floor(base * scale), unrounded.
    ("0 0 3 1 1 1 0 0 2 0 2 1 1 0 2 0 2 1 3 2", "44 38 25 38 48 112 64 80 96 192 256 192 160 224 256 160 320 384 320 256",
     327_857_920, 3_407_035, 25_544),
    # Its block ids at the full width: published as 319M, 3.3M.
    ("0 0 3 1 1 1 0 0 2 0 2 1 1 0 2 0 2 1 3 2", "", 318_729_024, 3_320_544, None),
    # Uniform networks.
    ("0 " * 20, "", 295_842_496, 3_132_448, 3_154_880 - 3_132_448),
    ("1 " * 20, "", 313_654_976, 3_189_536, 3_211_968 - 3_189_536),
    ("2 " * 20, "", 340_373_696, 3_275_168, 3_297_600 - 3_275_168),
    ("3 " * 20, "", 358_825_920, 3_830_400, 3_870_816 - 3_830_400),
])
def test_single_path_one_shots_published_networks(choices: str, mids: str, macs: int, weights: int,
                                                  batch_norm: int | None) -> None:
    network = single_path_network(choices, mids)
    counts = network.parameters_by_kind
    assert (network.macs, counts["weights"], counts["biases"]) == (macs, weights, 0)
    assert batch_norm is None or counts["batch_norm"] == batch_norm
    assert network.parameters == sum(counts.values())


@pytest.mark.parametrize(("width", "in_channels", "resolution", "stride", "counts"), [
    # MACs and weights of the choices 3x3, 5x5, 7x7, Xception at the full width.
    (64, 16, 112, 2, ((13_396_992, 2_736), (15_805_440, 3_504), (19_418_112, 4_656), (13_146_112, 4_192))),
    (64, 64, 56, 1, ((7_325_696, 2_336), (8_931_328, 2_848), (11_339_776, 3_616), (12_343_296, 3_936))),
    (160, 64, 56, 2, ((26_304_768, 18_192), (28_111_104, 20_496), (30_820_608, 23_952), (20_296_192, 25_888))),
    (160, 160, 28, 1, ((10_599_680, 13_520), (11_603_200, 14_800), (13_108_480, 16_720), (16_746_240, 21_360))),
    (320, 160, 28, 2, ((30_670_080, 79_680), (31_673_600, 84_800), (33_178_880, 92_480), (21_199_360, 108_160))),
    (320, 320, 14, 1, ((10_317_440, 52_640), (10_819_200, 55_200), (11_571_840, 59_040), (15_899_520, 81_120))),
    (640, 320, 14, 2, ((30_387_840, 312_960), (30_889_600, 323_200), (31_642_240, 338_560), (20_634_880, 421_120))),
    (640, 640, 7, 1, ((10_176_320, 207_680), (10_427_200, 212_800), (10_803_520, 220_480), (15_476_160, 315_840))),
])
def test_single_path_one_shots_choice_blocks(width: int, in_channels: int, resolution: int, stride: int,
                                             counts: tuple[tuple[int, int], ...]) -> None:
    for choice, (macs, weights) in enumerate(counts):
        network = block_network(choice_block(choice, width, stride), TensorShape(in_channels, resolution, resolution))
        assert (network.macs, network.parameters_by_kind["weights"]) == (macs, weights)
        assert network.output_shape == (width, resolution // stride, resolution // stride)


def test_mobilenet_v2() -> None:
    network = mobilenet_v2()
    assert network.macs == 300_774_272
    assert network.parameters == 3_504_872
    assert network.output_shape == (1000, 1, 1)


def test_a_gate_is_a_fraction_of_the_blocks_input_width() -> None:
    """MnasNet's rule: 16 input channels and a ratio of 0.25 give 4, whatever the hidden width."""
    network = block_network(MBConv(24, 3, 6, se_ratio=0.25), TensorShape(16, 8, 8))
    assert network.weight_shapes["block/se_reduce.weight"] == (4, 96, 1, 1)
    assert network.weight_shapes["block/se_expand.bias"] == (96,)


@pytest.mark.parametrize(("block", "adds"), [
    (MBConv(16), True), (MBConv(16, residual=True), True), (MBConv(16, residual=False), False), (MBConv(16, stride=2), False),
    (MBConv(24), False)])
def test_a_residual_is_added_where_shapes_allow_unless_told(block: MBConv, adds: bool) -> None:
    names = [node.name for node in block_network(block, TensorShape(16, 8, 8)).nodes]
    assert ("block/add" in names) == adds


def test_no_expansion_convolution_at_an_expansion_of_one() -> None:
    names = [node.name for node in block_network(MBConv(8, expansion=1), TensorShape(8, 8, 8)).nodes]
    assert names == ["block/depthwise_conv", "block/depthwise_bn", "block/depthwise_act", "block/project_conv",
                     "block/project_bn", "block/add"]


@pytest.mark.parametrize(("block", "shape", "words"), [
    (MBConv(16, residual=True), (8, 8, 8), ["8x8x8", "16x8x8"]),
    (MBConv(8, stride=2, residual=True), (8, 8, 8), ["8x8x8", "8x4x4"]),
    (ShuffleUnit(16), (8, 8, 8), ["8 channels", "16"]),
    (ShuffleUnit(7), (7, 8, 8), ["even", "7"]),
    (ShuffleUnit(8, stride=2), (8, 8, 8), ["widen", "8 to 8"]),
    (ConvBlock(8, groups=3), (8, 8, 8), ["3 groups", "8 input"]),
    (Stem(8, 7, 2), (3, 1, 1), ["stride 2", "1x1"]),
])
def test_shapes_that_a_block_cannot_take_are_refused(block: Block, shape: tuple[int, int, int], words: list[str]) -> None:
    if not words:  # padding keeps even one pixel
        assert block_network(block, TensorShape(*shape)).output_shape == (8, 1, 1)
        return
    with pytest.raises(InputError) as error:
        build_network(shape, [("here", block)])
    assert all(word in str(error.value) for word in ["'here'", block.kind, *words])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: ConvBlock(8, 4), ["conv", "kernel", "odd", "4"]),
    (lambda: ConvBlock(0), ["conv", "out_channels", "0"]),
    (lambda: ConvBlock(-8), ["out_channels", "-8"]),
    (lambda: ConvBlock(8.5), ["out_channels", "whole number", "8.5"]),
    (lambda: ConvBlock(True), ["out_channels", "True"]),
    (lambda: ConvBlock("8"), ["out_channels", "'8'"]),
    (lambda: ConvBlock(8, stride=0), ["stride", "0"]),
    (lambda: ConvBlock(8, activation="gelu"), ["activation", "'gelu'", "relu6"]),
    (lambda: MBConv(8, expansion=0.5), ["mbconv", "expansion", "0.5"]),
    (lambda: MBConv(8, expansion=float("nan")), ["expansion", "nan"]),
    (lambda: MBConv(8, expansion=float("inf")), ["expansion", "inf"]),
    (lambda: MBConv(8, residual="yes"), ["residual", "'yes'"]),
    (lambda: MBConv(8, se_ratio=-0.25), ["se_ratio", "-0.25"]),
    (lambda: Head(10, dropout=1), ["dropout", "below 1"]),
    (lambda: Head(1 << 40), ["classes"]),
    (lambda: ShuffleUnit(8, mid_channels=0), ["mid_channels", "0"]),
])
def test_values_that_no_block_can_have_are_refused(make, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert all(word in str(error.value) for word in words)


EXAMPLES = [Identity(), ConvBlock(8, 5, 2, 2, None), Stem(8, pool=True), Head(10, 32, "silu", 0.5, False), SeparableConv(8),
            MBConv(24, 5, 2.5, 2, 0.25, "hardswish", True), ShuffleUnit(64, 7, 2, 19, True, "relu6"),
            Resolution(24), Sequence((ConvBlock(8), Sequence((MBConv(8),)), Quantized(ConvBlock(4), 2, 4))),
            SeparableOperation(8, 5, 2, 3), DilatedOperation(8, 5, 2), PoolOperation("avg", 5, 2, 8, True),
            PoolOperation("max"), FactorizedConvolution(8, 3, 2), PreactivatedConv(8, 3, 2, 2), FactorizedReduction(8),
            UnpaddedStem(8, 5, 1), CellHead(10, 0.5, None), BasicBlock(8, 5, 2, "relu6"), Bottleneck(12, 5, 2, 2, "silu"),
            FBNetBlock(8, 5, 3, 2, 2, False, None), MnasNetLayer(8, "conv", 5, 2, 0.25, "pool", "relu6"), PooledHead(5, 12),
            Quantized(MBConv(8, se_ratio=0.25), 4, 2, False, True), HalfPrecision(Sequence((ConvBlock(8),)), "bf16")]


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.kind)
def test_a_block_survives_json(block: Block) -> None:
    again = block_from_dict(json.loads(json.dumps(block.to_dict())))
    assert again == block and hash(again) == hash(block) and again.signature == block.signature


def test_the_examples_leave_no_kind_out() -> None:
    assert {block.kind for block in EXAMPLES} == set(BLOCKS)


def test_equal_blocks_have_equal_signatures_and_others_do_not() -> None:
    assert MBConv(8, expansion=6).signature == MBConv(8, expansion=6.0).signature
    for block in EXAMPLES:
        for field in dataclasses.fields(block):
            value = getattr(block, field.name)
            other: object = not value if isinstance(value, bool) else value + 2 if isinstance(value, int) else None
            if other is not None and field.name != "groups":
                assert dataclasses.replace(block, **{field.name: other}).signature != block.signature


@pytest.mark.parametrize(("document", "words"), [
    (None, ["mapping", "None"]), ([], ["mapping"]), ("mbconv", ["'mbconv'"]), ({}, ["kind"]),
    ({"kind": "transformer"}, ["transformer", "mbconv"]), ({"kind": ["conv"]}, ["['conv']"]),
    ({"kind": "conv"}, ["conv", "'out_channels'"]), ({"kind": "conv", "channels": 8}, ["'channels'", "out_channels"]),
    ({"kind": "conv", "out_channels": "8"}, ["out_channels", "'8'"]), ({"kind": "identity", 3: 4}, ["identity", "3"]),
])
def test_documents_that_are_no_block_are_refused(document: object, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        block_from_dict(document)
    assert all(word in str(error.value) for word in words)

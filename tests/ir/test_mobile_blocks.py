"""FBNet's and MnasNet's blocks: counts by hand, what is added where, and one numerical result in PyTorch and ONNX Runtime."""

import json
from typing import Any

import pytest

from hwnas.errors import InputError
from hwnas.ir.block import Block, block_network
from hwnas.ir.blocks import MBConv, block_from_dict
from hwnas.ir.mobile_blocks import FBNetBlock, MnasNetLayer
from hwnas.ir.shape import TensorShape
from tests.lower.test_parity import assert_parity

ADDING = {("pool", 1), ("pool", 2), ("identity", 1)}  # skip and stride, at equal widths
FBNET_E1 = FBNetBlock(16, 3, 1)
MNASNET = [MnasNetLayer(16, operation, 5, stride, se_ratio, skip) for operation in ("conv", "dwconv", "mbconv3", "mbconv6")
           for stride in (1, 2) for se_ratio in (0, 0.25) for skip in ("pool", "identity", "none")]


def names(block: Block, channels: int = 16) -> list[str]:
    return [node.name.removeprefix("block/") for node in block_network(block, TensorShape(channels, 8, 8)).nodes]


@pytest.mark.parametrize(("block", "weights", "macs"), [
    (FBNET_E1, 256 + 144 + 256, 656 * 64),  # as JunrQ/NAS lists it
    (FBNetBlock(16, 3, 1, expand_always=False), 144 + 256, 400 * 64),
    (FBNetBlock(16, 3, 1, groups=2), 128 + 144 + 128, 400 * 64),
    (FBNetBlock(24, 5, 1, 2, groups=2), 16 * 8 + 16 * 25 + 24 * 8, 128 * 64 + (400 + 192) * 16),
    (FBNetBlock(24, 5, 1, 2, groups=2, expand_always=False), 16 * 25 + 24 * 8, (400 + 192) * 16),
    (FBNetBlock(24, 3, 6, 2), 16 * 96 + 96 * 9 + 96 * 24, 1536 * 64 + (864 + 2304) * 16),
    (MnasNetLayer(24, "conv", 5, 2), 16 * 24 * 25, 9600 * 16),
    (MnasNetLayer(24, "dwconv", 5, 2), 16 * 25 + 16 * 24, (400 + 384) * 16),
    (MnasNetLayer(24, "mbconv3", 3, 2), 16 * 48 + 48 * 9 + 48 * 24, 768 * 64 + (432 + 1152) * 16),
    # The gate's width is a quarter of the 16 input channels, whatever it gates: 24 channels, or 96 hidden ones.
    (MnasNetLayer(24, "conv", 3, 1, 0.25), 16 * 24 * 9 + 2 * 4 * 24, 3456 * 64 + 192),
    (MnasNetLayer(24, "mbconv6", 3, 1, 0.25), 16 * 96 + 96 * 9 + 96 * 24 + 2 * 4 * 96, 4704 * 64 + 768),
])
def test_counts_at_16_channels_and_8x8_pixels(block: Block, weights: int, macs: int) -> None:
    network = block_network(block, TensorShape(16, 8, 8))
    assert (network.parameters_by_kind["weights"], network.macs) == (weights, macs)


def test_groups_shuffle_before_the_depthwise_convolution_with_and_without_the_first_convolution() -> None:
    depthwise = ["shuffle", "depthwise_conv", "depthwise_bn", "depthwise_act", "project_conv", "project_bn", "add"]
    assert names(FBNetBlock(16, 3, 1, groups=2)) == ["expand_conv", "expand_bn", "expand_act", *depthwise]
    assert names(FBNetBlock(16, 3, 1, groups=2, expand_always=False)) == depthwise
    assert "shuffle" not in names(FBNET_E1)


@pytest.mark.parametrize(("block", "adds"), [
    (FBNET_E1, True), (FBNetBlock(16, 3, 1, 2), False), (FBNetBlock(24, 3, 1), False),
    *((MnasNetLayer(width, operation, 5, stride, 0, skip), width == 16 and (skip, stride) in ADDING)
      for operation in ("conv", "dwconv", "mbconv6") for width in (16, 24) for stride in (1, 2)
      for skip in ("pool", "identity", "none"))])
def test_what_goes_around_a_block(block: Block, adds: bool) -> None:
    pools = isinstance(block, MnasNetLayer) and block.skip == "pool"
    assert ("add" in names(block), "skip_pool" in names(block)) == (adds, adds and pools)


@pytest.mark.parametrize("skip", [None, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("operation", "expansion"), [("dwconv", 1), ("mbconv3", 3), ("mbconv6", 6)])
def test_an_inverted_residual_of_mnasnet_is_mobilenets(operation: str, expansion: int, stride: int, skip: bool | None) -> None:
    layer = MnasNetLayer(16, operation, 5, stride, 0.25, "identity" if skip is None else "none")
    shape = TensorShape(16, 9, 8)
    assert block_network(layer, shape) == block_network(MBConv(16, 5, expansion, stride, 0.25, "relu", skip), shape)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: MnasNetLayer(16, "mbconv9"), ["mnasnet_layer", "operation", "mbconv3", "'mbconv9'"]),
    (lambda: MnasNetLayer(16, skip="max"), ["skip", "identity", "'max'"]),
    (lambda: MnasNetLayer(16, 3), ["operation", "name", "3"]),
    (lambda: FBNetBlock(16, groups=0), ["fbnet_block", "groups", "0"]),
    (lambda: FBNetBlock(16, expand_always=1), ["expand_always", "true or false", "1"]),
    (lambda: block_network(FBNetBlock(16, groups=3), TensorShape(16, 8, 8)), ["3 groups", "16 input"]),
])
def test_blocks_that_cannot_be_are_refused(make: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("block", [FBNetBlock(24, 5, 3, 2, 2, False, "relu6"),
                                   MnasNetLayer(24, "conv", 5, 2, 0.25, "pool", None)], ids=lambda block: block.kind)
def test_a_block_survives_json(block: Block) -> None:
    again = block_from_dict(json.loads(json.dumps(block.to_dict())))
    assert again == block and again.signature == block.signature


@pytest.mark.parametrize("block", [
    *(FBNetBlock(16, 5, expansion, stride, groups, always) for expansion, groups in ((1, 1), (1, 2), (3, 1))
      for stride in (1, 2) for always in (True, False)), *MNASNET], ids=lambda block: block.signature)
def test_both_lowerings_compute_the_same(block: Block) -> None:
    assert_parity(block_network(block, TensorShape(16, 9, 10)))

"""ResNets against torchvision's parameter counts and against arithmetic that knows nothing of blocks."""

import pytest

from hwnas.errors import InputError
from hwnas.ir.block import block_network
from hwnas.ir.network import Network
from hwnas.ir.residual_blocks import BasicBlock, Bottleneck
from hwnas.ir.shape import TensorShape
from hwnas.spaces.resnet import NETWORKS, build_resnet, resnet_blocks

NETWORK = {network.name: network for network in NETWORKS}
TORCHVISION_PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032}
SIDES = (56, 28, 14, 7)


def macs_of(network: Network, part: str) -> int:
    return sum(node.macs for node in network.nodes if part in node.name)


@pytest.mark.parametrize(("depth", "macs", "weights", "batch_norm"), [
    (18, 1_814_073_344, 11_678_912, 9_600),
    (34, 3_663_761_408, 21_779_648, 17_024),
    (50, 4_089_184_256, 25_502_912, 53_120),
])
def test_counts(depth, macs, weights, batch_norm):
    network = NETWORK[f"resnet-{depth}"].network
    assert network.macs == macs
    assert network.parameters_by_kind.items() >= {"weights": weights, "batch_norm": batch_norm, "biases": 1000}.items()
    assert network.parameters == weights + batch_norm + 1000 == TORCHVISION_PARAMETERS[depth]
    assert network.parameters == NETWORK[f"resnet-{depth}"].published.parameters
    assert network.output_shape == (1000, 1, 1)


@pytest.mark.parametrize(("depth", "stages"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))])
def test_basic_networks_by_hand(depth, stages):
    widths = (64, 128, 256, 512)
    inner, projections = 0, 0
    for stage, (width, blocks, side) in enumerate(zip(widths, stages, SIDES, strict=True)):
        inner += (2 * blocks - (stage > 0)) * 9 * width * width * side**2  # every 3x3 but a widening one
        if stage:
            inner += 9 * width // 2 * width * side**2
            projections += width // 2 * width * side**2
    network = build_resnet(depth)
    assert macs_of(network, "shortcut_conv") == projections == 19_267_584
    assert macs_of(network, "first_conv") + macs_of(network, "second_conv") == inner
    assert macs_of(network, "stem") == 49 * 3 * 64 * 112**2 == 118_013_952
    assert network.macs == 118_013_952 + inner + projections + 512_000
    assert inner == {18: 1_676_279_808, 34: 3_525_967_872}[depth]


def test_resnet_50_by_hand():
    """Table 1 of the paper with the stride in the 3x3 convolution: its 1x1 before works at the input's resolution."""
    macs, weights, channels, batch_norm = 118_013_952 + 2_048_000, 9_408 + 2_048_000, 64, 2 * 64
    moved_stride = 0
    side_before = 56
    for inner, blocks, side in zip((64, 128, 256, 512), (3, 4, 6, 3), SIDES, strict=True):
        for index in range(blocks):
            out = 4 * inner
            reduce, middle, expand = channels * inner, 9 * inner * inner, inner * out
            project = channels * out if index == 0 else 0
            reduce_side = side_before if index == 0 else side
            macs += reduce * reduce_side**2 + (middle + expand + project) * side**2
            weights += reduce + middle + expand + project
            batch_norm += 2 * (2 * inner + out + (out if project else 0))
            moved_stride += reduce * (reduce_side**2 - side**2)
            channels = out
        side_before = side
    network = build_resnet(50)
    assert (network.macs, network.parameters_by_kind["weights"], network.parameters_by_kind["batch_norm"]) == (
        macs, weights, batch_norm)
    assert f"{macs:,} - {moved_stride:,} = {macs - moved_stride:,}" in NETWORK["resnet-50"].note


def test_resnet_34_without_projections_is_what_the_paper_prints():
    macs = build_resnet(34).macs
    assert f"{macs:,} - {19_267_584:,} = {macs - 19_267_584:,}" in NETWORK["resnet-34"].note
    assert round((macs - 19_267_584) / 1e9, 1) == 3.6 == NETWORK["resnet-34"].published.macs / 1e9


def test_a_shortcut_is_projected_only_where_the_shape_changes():
    for block, projected in ((BasicBlock(64), False), (BasicBlock(64, stride=2), True), (BasicBlock(128), True),
                             (Bottleneck(64), False), (Bottleneck(64, stride=2), True), (Bottleneck(256), True)):
        names = [node.name for node in block_network(block, TensorShape(64, 8, 8)).nodes]
        assert ("block/shortcut_conv" in names) == projected
        assert names[-2:] == ["block/add", "block/act"]


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="multiple of reduction, but are 65 and 4"):
        Bottleneck(65)


def test_the_networks_are_their_blocks():
    names = [name for name, _ in resnet_blocks(18)]
    assert names == ["stem", *(f"stage{stage}_{index}" for stage in (1, 2, 3, 4) for index in (1, 2)), "head"]
    assert build_resnet(18, classes=10).parameters == TORCHVISION_PARAMETERS[18] - 990 * 513


def test_an_unknown_depth_is_refused():
    with pytest.raises(InputError, match="18, 34, 50, but got 20"):
        build_resnet(20)

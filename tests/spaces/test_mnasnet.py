"""MnasNet: the released networks to the last MAC and weight, and a space whose every block has the paper's 432 options."""

import itertools

import pytest

from hwnas.ir.blocks import Sequence
from hwnas.ir.costs import MacsCost
from hwnas.ir.mobile_blocks import MnasNetLayer
from hwnas.ir.trellis import Trellis
from hwnas.spaces.mnasnet import NETWORKS, block_options, build_mnasnet

REFERENCES = {network.name: network.network for network in NETWORKS}
SPACE = build_mnasnet()


@pytest.mark.parametrize(("name", "macs", "weights", "batch_norm", "biases", "total"), [
    ("mnasnet-a1", 311_579_072, 3_848_312, 33_488, 5_238, 3_887_038),
    ("mnasnet-b1", 314_415_872, 4_344_392, 37_920, 1_000, 4_383_312),
    ("mnasnet-small", 68_339_184, 2_009_736, 16_928, 3_600, 2_030_264),
])
def test_the_released_networks(name: str, macs: int, weights: int, batch_norm: int, biases: int, total: int) -> None:
    network = REFERENCES[name]
    counts = network.parameters_by_kind
    assert (network.macs, counts["weights"], counts["batch_norm"], counts["biases"]) == (macs, weights, batch_norm, biases)
    assert network.parameters == total


def test_what_the_gates_of_a1_cost() -> None:
    nodes = REFERENCES["mnasnet-a1"].nodes
    assert sum(node.macs for node in nodes if "/se_" in node.name) == 311_579_072 - 311_325_344


@pytest.mark.parametrize(("name", "stages"), [
    ("mnasnet-a1", (2, 3, 3, 4, 4, 4, 5, 6, 6)), ("mnasnet-b1", (2, 2, 3, 3, 4, 4, 5, 6, 6, 6)),
    ("mnasnet-small", (3, 4, 4, 4, 5, 5, 5, 6, 6))])
def test_where_the_released_networks_add_inputs(name: str, stages: tuple[int, ...]) -> None:
    added = [node.name for node in REFERENCES[name].nodes if node.name.endswith("/add")]
    assert [int(node[len("stage")]) for node in added] == list(stages)


def test_every_block_has_432_different_options() -> None:
    assert SPACE.size == 432**7
    for decision in SPACE.decisions:
        assert len(set(decision.options.values())) == 4 * 2 * 2 * 3 * 3 * 3 == 432


@pytest.mark.parametrize(("number", "widths", "layers"), [
    (1, {12, 16, 20}, {1, 2, 3}), (2, {18, 24, 30}, {1, 2, 3}), (3, {24, 32, 40}, {2, 3, 4}), (4, {48, 64, 80}, {3, 4, 5}),
    (5, {72, 96, 120}, {2, 3, 4}), (6, {120, 160, 200}, {2, 3, 4}), (7, {240, 320, 400}, {1, 2, 3})])
def test_options_are_relative_to_mobilenet_v2(number: int, widths: set[int], layers: set[int]) -> None:
    found = set()
    for block in SPACE.decisions[number - 1].options.values():
        assert isinstance(block, Sequence)
        first, *others = block.blocks
        assert isinstance(first, MnasNetLayer)
        assert first.stride == (2 if number in (2, 3, 4, 6) else 1)
        assert all(isinstance(layer, MnasNetLayer) and layer.stride == 1 for layer in others)
        assert len({(layer.out_channels, layer.operation, layer.kernel, layer.se_ratio, layer.skip)  # type: ignore[attr-defined]
                    for layer in block.blocks}) == 1
        found.add((first.operation, first.kernel, first.se_ratio, first.skip, first.out_channels, len(block.blocks)))
    assert found == set(itertools.product(("conv", "dwconv", "mbconv3", "mbconv6"), (3, 5), (0.0, 0.25),
                                          ("pool", "identity", "none"), widths, layers))


def test_a_path_of_the_space_counts_as_the_released_network_where_they_agree() -> None:
    """A1 with the 120 channels that the space has in place of its 112 in the fifth block differs in blocks 5 and 6 alone."""
    chosen = ("dwconv_k3_none_w16_n1", "mbconv6_k3_identity_w24_n2", "mbconv3_k5_se_identity_w40_n3",
              "mbconv6_k3_identity_w80_n4", "mbconv6_k3_se_identity_w120_n2", "mbconv6_k5_se_identity_w160_n3",
              "mbconv6_k3_identity_w320_n1")
    names = [decision.name for decision in SPACE.decisions]
    network = SPACE.network(SPACE.architecture(dict(zip(names, chosen, strict=True))))
    released = REFERENCES["mnasnet-a1"]

    def macs(nodes, prefix: str) -> list[int]:
        counts = {stage: sum(node.macs for node in nodes if node.name.startswith(f"{prefix}{stage}")) for stage in range(1, 8)}
        return [counts[stage] for stage in (1, 2, 3, 4, 7)]

    assert macs(network.nodes, "block") == macs(released.nodes, "stage")
    assert network.output_shape == released.output_shape


def test_the_range_of_the_space_contains_the_released_networks() -> None:
    trellis = Trellis(SPACE, MacsCost())
    assert sum(len(step.edges) for step in SPACE.steps) == 1 + 432 * (1 + 6 * 3) + 3
    assert trellis.min_cost() < REFERENCES["mnasnet-b1"].macs < trellis.max_cost()
    for architecture in trellis.sample(3, seed=0):
        assert SPACE.network(architecture).macs == trellis.cost(architecture)


def test_names_say_what_an_option_is() -> None:
    options = block_options(32, 3, 2)
    layer = MnasNetLayer(40, "mbconv3", 5, 2, 0.25, "pool")
    assert options["mbconv3_k5_se_pool_w40_n2"] == Sequence((layer, MnasNetLayer(40, "mbconv3", 5, 1, 0.25, "pool")))

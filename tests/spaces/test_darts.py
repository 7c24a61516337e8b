"""DARTS: published networks to the last weight, exact sizes, and deriving cells against every way to choose them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import InputError
from hwnas.ir.cells import CellSpace
from hwnas.ir.genotype import Genotype
from hwnas.ir.layers import Conv, Pool
from hwnas.ir.network import Network
from hwnas.spaces.darts import (
    NETWORKS,
    OPERATIONS,
    SEARCH_OPERATIONS,
    V1,
    V2,
    architecture_of,
    build_darts,
    build_darts_cifar,
    build_darts_cpu,
    derive,
)

CPU = build_darts_cpu()
REFERENCES = {network.name: network.network for network in NETWORKS}
KINDS = ("normal", "reduction")


@pytest.mark.parametrize(("name", "macs", "weights", "batch_norm", "biases"), [
    ("darts-v2-cifar", 528_359_040, 3_308_940, 40_392, 10), ("darts-v1-cifar", 500_987_520, 3_132_036, 37_368, 10),
    ("darts-v2", 529_911_552, 4_681_416, 36_336, 1_000), ("darts-v1", 505_864_704, 4_475_784, 33_648, 1_000)])
def test_published_cells_have_the_exact_counts(name: str, macs: int, weights: int, batch_norm: int, biases: int) -> None:
    kinds = REFERENCES[name].parameters_by_kind
    assert (REFERENCES[name].macs, kinds["weights"], kinds["batch_norm"], kinds["biases"]) == (macs, weights, batch_norm, biases)


@pytest.mark.parametrize("space", [CPU, build_darts(), build_darts_cifar(8, 3)], ids=lambda space: space.name)
def test_the_size_is_that_of_both_cells(space: CellSpace) -> None:
    """States 2 to 5 choose 1, 3, 6 and 10 pairs of sources, and seven operations on each of the eight edges."""
    assert 1 * 3 * 6 * 10 * 7**8 == 1_037_664_180
    assert space.size == 1_037_664_180**2


def shapes(network: Network, *names: str) -> list[tuple[int, ...]]:
    nodes = {node.name: node for node in network.nodes}
    return [tuple(nodes[name].shape) for name in names]


def test_reductions_stand_at_a_third_and_two_thirds() -> None:
    cifar, mobile = REFERENCES["darts-v2-cifar"], REFERENCES["darts-v2"]
    assert shapes(cifar, "stem/bn", "cell6/concat", "cell7/concat", "cell14/concat", "cell20/concat") == [
        (108, 32, 32), (144, 32, 32), (288, 16, 16), (576, 8, 8), (576, 8, 8)]
    assert shapes(mobile, "stem1/2/bn", "stem2/bn", "cell4/concat", "cell5/concat", "cell10/concat", "cell14/concat") == [
        (48, 56, 56), (48, 28, 28), (192, 28, 28), (384, 14, 14), (768, 7, 7), (768, 7, 7)]
    for network, reductions in ((cifar, {"cell7", "cell14"}), (mobile, {"cell5", "cell10"})):
        pooling = {node.name.split("/")[0] for node in network.nodes if isinstance(node.layer, Pool)}
        assert pooling == reductions  # of the published cells, only the reduction cell has pools


def test_the_first_cell_of_the_imagenet_network_reduces_its_previous_input() -> None:
    inputs = {node.name: node.inputs for node in REFERENCES["darts-v2"].nodes}
    assert inputs["cell1/previous/conv1"] == ("cell1/previous/act",) and inputs["cell1/previous/act"] == ("stem1/2/bn",)
    assert inputs["cell1/current/act"] == inputs["cell2/previous/act"] == ("stem2/bn",)
    assert inputs["cell1/state2_1_sep_conv_3x3/act1"] == ("cell1/previous/bn",)  # state 0 is the output before the input
    cifar = {node.name: node.inputs for node in REFERENCES["darts-v2-cifar"].nodes}
    assert cifar["cell1/previous/act"] == cifar["cell1/current/act"] == ("stem/bn",)
    assert "cell8/previous/shift" in cifar and "cell9/previous/shift" not in cifar


def test_operations_are_the_seven_of_the_paper() -> None:
    assert SEARCH_OPERATIONS == ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5",
                                 "dil_conv_3x3", "dil_conv_5x5")
    network = CPU.network(architecture_of(CPU, {kind: Genotype(tuple(
        (("dil_conv_5x5", 0), ("sep_conv_5x5", 1)) for _ in range(4)), (2, 3, 4, 5)) for kind in KINDS}))
    depthwise = {(node.layer.kernel, node.layer.dilation, node.layer.padding) for node in network.nodes
                 if isinstance(node.layer, Conv) and node.layer.groups > 1}
    assert depthwise == {((5, 5), 2, (4, 4)), ((5, 5), 1, (2, 2))}


# The path of given cells


@pytest.mark.parametrize("cells", [V1, V2])
def test_the_path_of_a_cell_makes_that_cell(cells: dict[str, Genotype]) -> None:
    made = CPU.genotypes(architecture_of(CPU, cells))
    for kind in KINDS:
        assert [set(node) for node in made[kind].nodes] == [set(node) for node in cells[kind].nodes]
        assert made[kind].concat == cells[kind].concat
    assert CPU.network(architecture_of(CPU, cells)).macs == CPU.skeleton.network(cells).macs


NODE = (("skip_connect", 0), ("skip_connect", 1))


@pytest.mark.parametrize(("nodes", "concat", "words"), [
    (((("skip_connect", 0), ("skip_connect", 0)), NODE, NODE, NODE), (2, 3, 4, 5), ["'normal'", "different states"]),
    ((NODE, (("skip_connect", 1), ("skip_connect", 1)), NODE, NODE), (2, 3, 4, 5), ["'normal_3_inputs'", "'1-1'"]),
    ((NODE, NODE, NODE, NODE, NODE), (2, 3, 4, 5), ["'normal'"]), ((NODE, NODE, NODE), (2, 3, 4), ["'normal_5_inputs'"]),
    ((NODE, NODE, NODE, NODE), (2, 3, 4), ["'normal'", "concatenates"]),
    ((NODE, NODE, (*NODE, NODE[0]), NODE), (2, 3, 4, 5), ["'normal'", "state 4", "3"]),
    ((NODE[:1], NODE, NODE, NODE), (2, 3, 4, 5), ["'normal'", "state 2", "1"]),
    (((("none", 0), ("skip_connect", 1)), NODE, NODE, NODE), (2, 3, 4, 5), ["'normal_2_first'", "'none'"]),
])
def test_cells_that_are_not_of_the_space_are_refused(nodes: tuple, concat: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        architecture_of(CPU, {"normal": Genotype(nodes, concat), "reduction": V2["reduction"]})
    assert all(word in str(error.value) for word in words)


def test_a_missing_cell_is_refused() -> None:
    with pytest.raises(InputError, match="'reduction_2_first'"):
        architecture_of(CPU, {"normal": V2["normal"]})


# Deriving

EDGES = [(state, source) for state in range(2, 6) for source in range(state)]


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def strongest_pairs(table: np.ndarray) -> list[set[tuple[str, int]]]:
    """For every state the best of all pairs of edges with all pairs of operations."""
    weight = {(state, source, name): table[row, column] for row, (state, source) in enumerate(EDGES)
              for column, name in enumerate(SEARCH_OPERATIONS) if name != "none"}
    return [max(({(one, first), (other, second)} for first, second in itertools.combinations(range(state), 2)
                 for one in OPERATIONS for other in OPERATIONS),
                key=lambda pairs, state=state: sum(weight[state, source, name] for name, source in pairs))
            for state in range(2, 6)]


@pytest.mark.parametrize("seed", range(6))
def test_a_derived_cell_is_the_strongest_of_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tables = {kind: softmax(generator.standard_normal((14, 8)) * 2) for kind in KINDS}
    cells = CPU.genotypes(derive(CPU, tables))
    for kind in KINDS:
        assert [set(node) for node in cells[kind].nodes] == strongest_pairs(tables[kind])


def test_none_never_counts_however_strong() -> None:
    tables = {kind: np.random.default_rng(1).random((14, 8)) for kind in KINDS}
    strong = {kind: np.concatenate([np.full((14, 1), 50.0), table[:, 1:]], axis=1) for kind, table in tables.items()}
    assert derive(CPU, strong) == derive(CPU, tables)


@pytest.mark.parametrize("cells", [V1, V2])
def test_the_published_cells_come_back(cells: dict[str, Genotype]) -> None:
    tables = {kind: np.zeros((14, 8)) for kind in KINDS}
    for kind, table in tables.items():
        for state, node in enumerate(cells[kind].nodes, 2):
            for name, source in node:
                table[EDGES.index((state, source)), SEARCH_OPERATIONS.index(name)] = 1
    assert derive(CPU, tables) == architecture_of(CPU, cells)
    assert derive(CPU, {kind: table.tolist() for kind, table in tables.items()}) == architecture_of(CPU, cells)


def test_among_equals_the_first_wins() -> None:
    """As in the released code: a stable sort of the edges, and an operation must be stronger to replace one before it."""
    nodes = ((("max_pool_3x3", 0), ("max_pool_3x3", 1)),) * 4
    for cell in CPU.genotypes(derive(CPU, {kind: np.full((14, 8), 0.125) for kind in KINDS})).values():
        assert cell == Genotype(nodes, (2, 3, 4, 5))
    table = np.zeros((14, 8))
    table[EDGES.index((5, 4)), 4] = table[EDGES.index((5, 2)), 5] = table[EDGES.index((5, 3)), 3] = 0.5
    cells = CPU.genotypes(derive(CPU, {kind: table for kind in KINDS}))
    assert cells["normal"].nodes[3] == (("sep_conv_5x5", 2), ("skip_connect", 3))


@given(st.integers(0, 2**32 - 1))
def test_only_the_order_of_weights_matters(seed: int) -> None:
    table = np.random.default_rng(seed).random((14, 8))
    weights = {kind: table for kind in KINDS}
    assert derive(CPU, weights) == derive(CPU, {kind: table**3 / 7 for kind in KINDS})


@pytest.mark.parametrize(("reduction", "words"), [
    (np.zeros((14, 7)), "(14, 7)"), (np.zeros((13, 8)), "(13, 8)"), (np.zeros(112), "(112,)"), ([], "(0,)"),
    (np.full((14, 8), np.nan), "not finite"), (np.full((14, 8), np.inf), "not finite"), ([[1.0], [1.0, 2.0]], "unequal length"),
    ("weights", "no numbers"), (None, "()"),
])
def test_weights_of_another_form_are_refused(reduction: object, words: str) -> None:
    with pytest.raises(InputError) as error:
        derive(CPU, {"normal": np.zeros((14, 8)), "reduction": reduction})  # type: ignore[dict-item]
    assert words in str(error.value) and "'reduction'" in str(error.value) and "(14, 8)" in str(error.value)


def test_missing_weights_are_refused() -> None:
    with pytest.raises(InputError, match="those of 'reduction' are missing"):
        derive(CPU, {"normal": np.zeros((14, 8))})

"""Genotypes: what is refused, the JSON form, and cells against the sums and concatenations written out."""

import json

import pytest

from hwnas.errors import InputError
from hwnas.ir.blocks import Block, Identity
from hwnas.ir.cell_operations import PoolOperation, PreactivatedConv
from hwnas.ir.genotype import Genotype, build_cell
from hwnas.ir.layers import Add, Concat
from hwnas.ir.network import NetworkBuilder
from hwnas.ir.shape import TensorShape

GENOTYPE = Genotype(((("conv", 0), ("skip", 1)), (("pool", 2),), (("skip", 3), ("conv", 2), ("skip", 0))), (1, 4, 3))
NODE = (("conv", 0),)


def operation(name: str, source: int) -> Block:
    return {"conv": PreactivatedConv(4), "skip": Identity(), "pool": PoolOperation("max")}[name]


def test_json_gives_the_same_genotype() -> None:
    again = Genotype.from_dict(json.loads(json.dumps(GENOTYPE.to_dict())))
    assert again == GENOTYPE and hash(again) == hash(GENOTYPE)


@pytest.mark.parametrize(("nodes", "concat", "words"), [
    ((), (0,), ["nodes", "()"]), ((NODE, ()), (2,), ["state 3", "()"]), ((NODE,), (), ["concat", "()"]), ("ab", (0,), ["'ab'"]),
    (((("conv", 2),),), (2,), ["State 2", "0 to 1", "('conv', 2)"]), ((NODE, (("conv", -1),)), (2,), ["State 3", "-1"]),
    (((("conv", True),),), (2,), ["State 2", "True"]), (((("", 0),),), (2,), ["State 2", "('', 0)"]),
    (((("conv",),),), (2,), ["State 2", "('conv',)"]), ((("conv", 0),), (2,), ["State 2", "'conv'"]),
    (((("conv", 0, 1),),), (2,), ["State 2"]), ((NODE,), (3,), ["0 to 2", "3"]), ((NODE,), (2, -1), ["-1"]),
    ((NODE,), ("2",), ["'2'"]),
])
def test_what_is_no_cell_is_refused(nodes: object, concat: object, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        Genotype(nodes, concat)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("document", [None, [], {"nodes": [NODE]}, {"nodes": [NODE], "concat": [2], "more": 1}])
def test_documents_that_are_no_genotype_are_refused(document: object) -> None:
    with pytest.raises(InputError, match="'nodes' and 'concat'"):
        Genotype.from_dict(document)


def test_a_cell_is_wired_as_its_genotype_says() -> None:
    net = NetworkBuilder(TensorShape(4, 6, 6))
    other = PoolOperation("avg").build(net.scoped("other"), net.input)
    network = net.build(build_cell(net.scoped("cell"), GENOTYPE, (net.input, other), operation))
    inputs = {node.name: node.inputs for node in network.nodes}
    assert inputs["cell/state2_1_conv/act"] == ("input",)
    assert inputs["cell/state2"] == ("cell/state2_1_conv/bn", "other/pool")
    assert inputs["cell/state3_1_pool/pool"] == ("cell/state2",)  # one term needs no sum, and an identity no node
    assert inputs["cell/state4_2_conv/act"] == ("cell/state2",)
    assert inputs["cell/state4"] == ("cell/state3_1_pool/pool", "cell/state4_2_conv/bn", "input")
    assert inputs["cell/concat"] == ("other/pool", "cell/state4", "cell/state3_1_pool/pool")
    assert network.output_shape == (12, 6, 6)
    assert sum(isinstance(node.layer, Add | Concat) for node in network.nodes) == 3


def test_a_cell_of_one_state_concatenates_nothing() -> None:
    net = NetworkBuilder(TensorShape(4, 6, 6))
    genotype = Genotype([[["conv", 1]]], [2])
    assert build_cell(net, genotype, (net.input, net.input), operation).name == "state2_1_conv/bn"


def test_states_that_do_not_fit_are_refused() -> None:
    net = NetworkBuilder(TensorShape(3, 6, 6))
    with pytest.raises(InputError, match="4x6x6 and 3x6x6"):
        build_cell(net, GENOTYPE, (net.input, net.input), operation)

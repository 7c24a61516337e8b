"""The one-shot space: its exact size, and cells and skeleton as described."""

import math

import pytest

from hwnas.errors import InputError
from hwnas.ir.cells import CellSpace
from hwnas.ir.layers import Conv, Pool
from hwnas.ir.network import Network, Node
from hwnas.spaces.one_shot import OPERATIONS, build_one_shot, build_one_shot_cpu

ONE_SHOT = build_one_shot()


def one_or_two(count: int) -> int:
    return count + math.comb(count, 2)


@pytest.mark.parametrize(("space", "blocks", "size"), [
    (ONE_SHOT, 4, 3 * 28 * 6 * 28 * 10 * 28 * 15 * 28), (build_one_shot_cpu(), 3, 3 * 28 * 6 * 28 * 10 * 28)])
def test_size_is_one_or_two_inputs_and_operations_for_every_block(space: CellSpace, blocks: int, size: int) -> None:
    """A choice block reads among the cell's two inputs and the choice blocks before it, and one of them the cell before: every
    other cell would have no reader otherwise."""
    assert math.prod(one_or_two(2 + block) * one_or_two(7) for block in range(blocks)) == size
    assert space.size == size - math.prod(one_or_two(1 + block) * one_or_two(7) for block in range(blocks))
    assert ONE_SHOT.size == 1_548_933_120


def test_no_cell_is_without_a_reader() -> None:
    choices = {name: option for number, inputs in enumerate(("1", "3", "1+5", "7"), 1)
               for name, option in ((f"block{number}_inputs", inputs), (f"block{number}_operations", "identity"))}
    with pytest.raises(InputError, match=r"'block4_inputs' .* may only choose 0, 0\+1, 0\+3, 0\+5, 0\+7 after"):
        ONE_SHOT.architecture(choices)
    network = ONE_SHOT.skeleton.network({"cell": ONE_SHOT.kinds["cell"].genotype(choices)})  # half of the cells
    assert {node.name.split("/")[0] for node in network.nodes} == {"stem", "cell2", "cell4", "cell6", "cell8", "head"}
    assert ONE_SHOT.architecture({**choices, "block4_inputs": "0+7"}).choices["block1_inputs"] == "1"


def network_of(space: CellSpace, *blocks: tuple[str, str]) -> dict[str, Node]:
    choices: dict[str, str] = {}
    for number, (inputs, operations) in enumerate(blocks, 1):
        choices |= {f"block{number}_inputs": inputs, f"block{number}_operations": operations}
    network: Network = space.network(space.architecture(choices))
    return {node.name: node for node in network.nodes}


def test_a_cell_is_wired_as_chosen() -> None:
    nodes = network_of(ONE_SHOT, ("0+1", "identity"), ("0", "separable_5x5+max_pool_3x3"), ("3+5", "conv_1x7_7x1"),
                       ("7", "identity+avg_pool_3x3"))
    inputs = {name: node.inputs for name, node in nodes.items()}
    cell = "cell2"
    assert inputs[f"{cell}/state2_1_project/act"] == ("cell1/concat",)  # state 0 is the cell's input
    assert inputs[f"{cell}/state2_2_project/act"] == ("stem/act",)  # and state 1 the output before it
    assert inputs[f"{cell}/state2"] == (f"{cell}/state2_1_project/bn", f"{cell}/state2_2_project/bn")
    assert inputs[f"{cell}/state5_2_max_pool_3x3/pool"] == (f"{cell}/state4_1_project/bn",)
    assert inputs[f"{cell}/state6_1_project/act"] == (f"{cell}/state2",)  # block 1 passes its sum on
    assert inputs[f"{cell}/state9"] == (f"{cell}/state8_1_project/bn", f"{cell}/state9_2_avg_pool_3x3/pool")
    assert inputs[f"{cell}/concat"] == (f"{cell}/state2", f"{cell}/state5", f"{cell}/state7_1_conv_1x7_7x1/column_bn",
                                        f"{cell}/state9")
    assert isinstance(nodes[f"{cell}/state9_2_avg_pool_3x3/pool"].layer, Pool)


def test_eight_cells_in_three_groups() -> None:
    nodes = network_of(ONE_SHOT, *[("0+1", "identity")] * 4)
    shapes = [tuple(nodes[f"cell{number}/concat"].shape) for number in range(1, 9)]
    assert shapes == [(128, 32, 32)] * 3 + [(256, 16, 16)] * 3 + [(512, 8, 8)] * 2
    # Both inputs are reduced before a cell that halves the resolution, and the older one before the cell after it.
    assert {name.split("/bn")[0] for name in nodes if name.endswith(("current/bn", "previous/bn"))} == {
        "cell4/current", "cell4/previous", "cell5/previous", "cell7/current", "cell7/previous", "cell8/previous"}
    names = network_of(ONE_SHOT, *[("0", "identity")] * 4)  # what reads no older one reduces none
    assert {name.split("/bn")[0] for name in names if name.endswith(("current/bn", "previous/bn"))} == {
        "cell4/current", "cell7/current"}


def test_operations_are_the_seven_of_the_paper() -> None:
    assert list(OPERATIONS) == ["identity", "separable_3x3", "separable_5x5", "separable_7x7", "conv_1x7_7x1", "max_pool_3x3",
                                "avg_pool_3x3"]
    nodes = network_of(ONE_SHOT, ("0", "separable_7x7"), ("0", "conv_1x7_7x1"), ("0", "identity"), ("0", "identity"))
    convolutions = [(node.layer.kernel, node.layer.groups) for name, node in nodes.items()
                    if isinstance(node.layer, Conv) and name.startswith("cell1/state") and "project" not in name]
    assert convolutions == [((7, 7), 32), ((1, 1), 1)] * 2 + [((1, 7), 1), ((7, 1), 1)]


def test_the_cpu_space_has_as_many_classes_as_asked() -> None:
    assert (build_one_shot_cpu().classes, build_one_shot_cpu(5).classes, ONE_SHOT.classes) == (36, 5, 10)

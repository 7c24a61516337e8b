"""Once-for-all's spaces: exact sizes, the skeleton of the released code, and depth and resolution as choices."""

import itertools
import math

import pytest

from hwnas.errors import InputError
from hwnas.ir.costs import MacsCost
from hwnas.ir.layers import Activation, Conv
from hwnas.ir.space import SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.spaces.ofa import build_ofa_cpu, build_ofa_mobilenet_v2, build_ofa_mobilenet_v3

V3 = build_ofa_mobilenet_v3()
LARGE = pytest.mark.parametrize("space", [V3, build_ofa_mobilenet_v2()], ids=lambda space: space.name)


def choices(space: SearchSpace, block: str, depth: int, resolution: str) -> dict[str, str]:
    """The same block everywhere, units of one depth."""
    return {decision.name: resolution if decision.name == "resolution" else
            block if int(decision.name[-1]) <= depth else "skip" for decision in space.decisions}


@LARGE
def test_size_is_that_of_the_paper_for_every_resolution(space: SearchSpace) -> None:
    assert (9**2 + 9**3 + 9**4) ** 5 == 21_758_655_492_572_485_851  # "more than 10^19"
    assert space.size == (9**2 + 9**3 + 9**4) ** 5 * 25
    assert list(space.decisions[0].options)[::24] == ["r128", "r224"]
    fixed = Trellis(space).restrict({"resolution": ["r224"]})
    assert fixed.count() == (9**2 + 9**3 + 9**4) ** 5


def test_every_network_of_the_cpu_space_is_counted_once() -> None:
    space = build_ofa_cpu()
    names = [decision.name for decision in space.decisions]
    rows = list(itertools.product(*(decision.options for decision in space.decisions)))
    networks = {space.network(space.architecture(dict(zip(names, row, strict=True)))) for row in rows}
    assert space.size == len(rows) == len(networks) == 2 * (4 * 5) ** 2


@LARGE
def test_a_skipped_block_is_followed_by_skipped_blocks_alone(space: SearchSpace) -> None:
    names = choices(space, "k3_e3", 2, "r160")
    space.architecture(names)
    space.architecture({**names, "unit2_3": "k5_e6"})
    with pytest.raises(InputError) as error:
        space.architecture({**names, "unit2_4": "k5_e6"})
    assert str(error.value) == (f"Decision 'unit2_4' of space '{space.name}' may only choose skip after the decisions before it, "
                                "but the architecture chooses 'k5_e6'.")
    for one in Trellis(space).sample(200, seed=4):
        skipped = [[one.choices[f"unit{unit}_{block}"] == "skip" for block in (3, 4)] for unit in range(1, 6)]
        assert [True, False] not in skipped
        assert all(one.choices[f"unit{unit}_{block}"] != "skip" for unit in range(1, 6) for block in (1, 2))


@LARGE
@pytest.mark.parametrize("resolution", [128, 132, 224])
def test_the_network_takes_images_of_the_chosen_resolution(space: SearchSpace, resolution: int) -> None:
    network = space.network(space.architecture(choices(space, "k7_e4", 3, f"r{resolution}")))
    assert network.input_shape == (3, resolution, resolution)
    assert network.nodes[0].name == "stem/conv" and network.output_shape == (1000, 1, 1)
    assert Trellis(space, MacsCost()).cost(space.architecture(choices(space, "k7_e4", 3, f"r{resolution}"))) == network.macs


def test_the_skeleton_is_that_of_the_released_code() -> None:
    """`ofa_mbv3.py`: widths, strides, activations and gates by unit; two to four blocks."""
    network = V3.network(V3.architecture(choices(V3, "k7_e6", 4, "r224")))
    nodes = {node.name: node for node in network.nodes}
    units = [("24", "56x56", "relu", False), ("40", "28x28", "relu", True), ("80", "14x14", "hardswish", False),
             ("112", "14x14", "hardswish", True), ("160", "7x7", "hardswish", True)]
    assert str(nodes["first/add"].shape) == "16x112x112" and nodes["stem/act"].layer == Activation("hardswish")
    for number, (width, resolution, activation, has_gate) in enumerate(units, 1):
        assert str(nodes[f"unit{number}_1/project_bn"].shape) == f"{width}x{resolution}"
        assert f"unit{number}_1/add" not in nodes
        for block in (2, 3, 4):
            assert str(nodes[f"unit{number}_{block}/add"].shape) == f"{width}x{resolution}"
        for block in (1, 2, 3, 4):
            assert nodes[f"unit{number}_{block}/depthwise_act"].layer == Activation(activation)
            assert (f"unit{number}_{block}/se_scale" in nodes) == has_gate
    assert str(nodes["last/act"].shape) == "960x7x7" and nodes["head/classifier"].input_shapes == ((1280, 1, 1),)


def by_hand(resolution: int, kernel: int, expansion: int, depth: int) -> int:
    """Multiply-accumulates of `ofa-mobilenet-v3` with one block everywhere."""
    size = -(-resolution // 2)
    total = 16 * 3 * 9 * size**2 + (16 * 9 + 16 * 16) * size**2
    width = 16
    for out, stride, gate in ((24, 2, 0), (40, 2, 1), (80, 2, 0), (112, 1, 1), (160, 2, 1)):
        for block in range(depth):
            after = -(-size // stride) if block == 0 else size
            hidden = width * expansion
            total += width * hidden * size**2 + hidden * (kernel**2 + out) * after**2
            total += gate * 2 * hidden * max(1, width // 4)
            width, size = out, after
    return total + 160 * 960 * size**2 + 960 * 1280 + 1280 * 1000  # pooled before it widens


@pytest.mark.parametrize(("resolution", "kernel", "expansion", "depth"), [(128, 3, 3, 2), (172, 5, 4, 3), (224, 7, 6, 4)])
def test_costs_are_those_written_out(resolution: int, kernel: int, expansion: int, depth: int) -> None:
    architecture = V3.architecture(choices(V3, f"k{kernel}_e{expansion}", depth, f"r{resolution}"))
    assert V3.network(architecture).macs == by_hand(resolution, kernel, expansion, depth)


def test_the_smallest_and_largest_networks_are_the_extremes_of_every_dimension() -> None:
    trellis = Trellis(V3, MacsCost())
    assert (trellis.min_cost(), trellis.max_cost()) == (by_hand(128, 3, 3, 2), by_hand(224, 7, 6, 4))
    assert dict(trellis.cheapest().choices) == choices(V3, "k3_e3", 2, "r128")
    assert dict(trellis.dearest().choices) == choices(V3, "k7_e6", 4, "r224")


def test_the_mobilenet_v2_variant_has_its_widths() -> None:
    space = build_ofa_mobilenet_v2()
    network = space.network(space.architecture(choices(space, "k3_e6", 2, "r224")))
    widths = [node.layer.out_channels for node in network.nodes
              if isinstance(node.layer, Conv) and node.name.endswith("_2/project_conv")]
    assert widths == [24, 40, 80, 96, 192]
    assert {node.layer.function for node in network.nodes if isinstance(node.layer, Activation)} == {"relu6"}
    assert math.prod(network.input_shape) == 3 * 224 * 224

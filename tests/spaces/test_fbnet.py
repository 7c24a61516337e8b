"""FBNet: the published vectors give the published counts, to the last MAC and weight."""

import pytest

from hwnas.ir.network import Network
from hwnas.spaces import SPACES
from hwnas.spaces.fbnet import NETWORKS, build_fbnet, build_fbnet_cpu

# Layer, width, stride, and what FBNet-A, -B and -C choose there.
LAYERS = """
 1  16 1 skip     k3_e1 k3_e1
 2  24 2 k3_e3    k3_e6 k3_e6
 3  24 1 k3_e1    k5_e1 skip
 4  24 1 skip     k3_e1 k3_e1
 5  24 1 skip     k3_e1 k3_e1
 6  32 2 k5_e6    k5_e6 k5_e6
 7  32 1 k3_e3    k5_e3 k5_e3
 8  32 1 k5_e1    k3_e6 k5_e6
 9  32 1 k3_e3    k5_e6 k3_e6
10  64 2 k5_e6    k5_e6 k5_e6
11  64 1 k5_e3    k5_e1 k5_e3
12  64 1 k5_e1_g2 skip  k5_e6
13  64 1 k5_e6    k5_e3 k5_e6
14 112 1 k3_e6    k5_e6 k5_e6
15 112 1 k5_e1_g2 k3_e1 k5_e6
16 112 1 k5_e3    k5_e1 k5_e6
17 112 1 k3_e1_g2 k5_e3 k5_e3
18 184 2 k5_e6    k5_e6 k5_e6
19 184 1 k5_e6    k5_e1 k5_e6
20 184 1 k5_e3    k5_e6 k5_e6
21 184 1 k5_e6    k5_e6 k5_e6
22 352 1 k5_e6    k3_e6 k3_e6
"""
ROWS = [line.split() for line in LAYERS.strip().splitlines()]
REFERENCES = {network.name: network for network in NETWORKS}


def network_of(letter: str, last_channels: int) -> Network:
    space = build_fbnet(last_channels)
    return space.network(space.architecture({f"layer{row[0]}": row[3 + "abc".index(letter)] for row in ROWS}))


@pytest.mark.parametrize(("name", "macs", "weights", "batch_norm", "printed"), [
    # What the release prints (in millions): the count and its average pool of 49 positions, and the weights.
    ("fbnet-a", 244_452_664, 4_270_288, 33_296, (244.52636, 4.27029)),
    ("fbnet-b", 291_004_424, 4_766_672, 33_696, (291.10164, 4.76667)),
    ("fbnet-c", 378_136_224, 5_525_424, 44_240, (378.23344, 5.52542)),
])
def test_the_released_networks(name: str, macs: int, weights: int, batch_norm: int, printed: tuple[float, float]) -> None:
    network = REFERENCES[name].network
    counts = network.parameters_by_kind
    assert (network.macs, counts["weights"], counts["batch_norm"], counts["biases"]) == (macs, weights, batch_norm, 1000)
    assert network.parameters == weights + batch_norm + 1000
    last = next(node for node in network.nodes if node.name == "head/conv").shape
    assert (round((macs + last.elements) / 1e6, 5), round(weights / 1e6, 5)) == printed
    assert last == (1504 if name == "fbnet-a" else 1984, 7, 7)


@pytest.mark.parametrize(("name", "last_channels", "macs", "weights", "batch_norm"), [
    ("fbnet-a-paper", 1504, 249_921_848, 4_286_480, 33_984),
    ("fbnet-b-paper", 1984, 296_614_728, 4_778_640, 33_408),
    ("fbnet-c-paper", 1984, 384_960_160, 5_526_832, 44_368),  # 5,572,200 in all, as timm's fbnetc_100
])
def test_the_papers_networks_are_paths_of_the_space(name: str, last_channels: int, macs: int, weights: int,
                                                    batch_norm: int) -> None:
    network = REFERENCES[name].network
    counts = network.parameters_by_kind
    assert (network.macs, counts["weights"], counts["batch_norm"], counts["biases"]) == (macs, weights, batch_norm, 1000)
    assert network.parameters == weights + batch_norm + 1000
    assert network == network_of(name[6], last_channels)
    make = REFERENCES[name].architecture
    assert make is not None
    architecture = make()
    assert SPACES[architecture.space]().network(architecture) == network


@pytest.mark.parametrize(("letter", "last_channels", "without_classifier", "weights"), [
    ("a", 1504, 248_417_848, 4_286_480), ("b", 1984, 294_630_728, 4_778_640), ("b", 1504, None, 4_129_680),
    ("c", 1984, 382_976_160, 5_526_832), ("c", 1504, 374_697_120, 4_877_872)])
def test_the_other_counts_of_the_notes(letter: str, last_channels: int, without_classifier: int | None, weights: int) -> None:
    network = network_of(letter, last_channels)
    assert network.parameters_by_kind["weights"] == weights
    assert without_classifier in (None, network.macs - 1000 * last_channels)


@pytest.mark.parametrize(("letter", "last_channels", "layers", "printed"), [
    ("a", 1504, (13,), (249.4, 4.3)), ("b", 1984, (9,), (295.6, 4.8)), ("b", 1504, (9,), (286.8, 4.1)),
    ("c", 1984, (8, 15), (383.0, 5.5)), ("c", 1504, (8, 15), (374.2, 4.9))])
def test_two_3x3_convolutions_for_one_5x5_give_what_the_release_printed_first(
        letter: str, last_channels: int, layers: tuple[int, ...], printed: tuple[float, float]) -> None:
    """Its Caffe2 models FBNet-A, -B, -B1, -C and -C1: 18 multiplications for 25 at every depthwise output of some layers."""
    network = network_of(letter, last_channels)
    saved = sum(7 * node.shape.elements for node in network.nodes
                if node.name in [f"layer{layer}/depthwise_conv" for layer in layers])
    weights = network.parameters_by_kind["weights"]
    assert (round((network.macs - saved) / 1e6, 1), round(weights / 1e6, 1)) == printed


def test_the_space_has_nine_options_in_each_of_22_layers_of_the_published_shape() -> None:
    space = build_fbnet()
    assert space.size == 9**22
    assert [decision.name for decision in space.decisions] == [f"layer{row[0]}" for row in ROWS]
    resolution = 112
    for step, (_, width, stride, *_) in zip(space.steps[1:-1], ROWS, strict=True):
        resolution //= int(stride)
        assert step.outputs == ((int(width), resolution, resolution),)
        assert len(step.options) == 9
    assert space.hash == build_fbnet(1984).hash != build_fbnet(1504).hash


def test_skip_is_free_only_where_it_keeps_the_shape() -> None:
    space = build_fbnet()
    network = space.network(space.architecture({decision.name: "skip" for decision in space.decisions}))
    kept = [node.name for node in network.nodes if node.name.startswith("layer")]
    assert kept == [f"layer{layer}/{part}" for layer in (2, 6, 10, 14, 18, 22) for part in ("conv", "bn", "act")]
    fixed = 16 * 27 * 112**2 + 352 * 1984 * 7**2 + 1984 * 1000
    assert network.macs - fixed == (16 * 24 * 56**2 + 24 * 32 * 28**2 + 32 * 64 * 14**2 + 64 * 112 * 14**2 + 112 * 184 * 7**2
                                    + 184 * 352 * 7**2)


def test_the_small_space_has_the_same_options() -> None:
    space = build_fbnet_cpu()
    assert space.size == 9**8
    assert all(list(decision.options) == list(build_fbnet().decisions[0].options) for decision in space.decisions)
    assert build_fbnet_cpu(10).steps[-1].outputs == ((10, 1, 1),)
    assert "CPU-sized" in space.description


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_notes_hold_the_count(network) -> None:
    assert f"{network.network.macs:,}" in network.note

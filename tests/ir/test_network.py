"""A built network holds what its output depends on, and nothing else."""

from hwnas.ir.layers import Add, BatchNorm, Conv
from hwnas.ir.network import NetworkBuilder
from hwnas.ir.shape import TensorShape


def test_what_the_output_does_not_depend_on_is_left_out_and_counts_nothing() -> None:
    """A chain of two layers that nothing reads, and one that the output reads although a dead one does, too."""
    net = NetworkBuilder(TensorShape(6, 9, 8))
    conv = net.add("conv", Conv(4), net.input)
    net.add("unused_bn", BatchNorm(), net.add("unused", Conv(7), conv))
    network = net.build(net.add("sum", Add(), conv, net.add("other", Conv(4), net.input)))
    assert [node.name for node in network.nodes] == ["conv", "other", "sum"]
    assert (network.macs, network.parameters) == (2 * 6 * 4 * 72, 2 * 6 * 4)
    assert set(network.weight_shapes) == {"conv.weight", "other.weight"}
    assert network.graph().out_degree("conv") == 1


def test_a_network_whose_output_is_its_input_has_no_layers() -> None:
    net = NetworkBuilder(TensorShape(3, 4, 4))
    net.add("unused", Conv(7), net.input)
    network = net.build(net.input)
    assert network.nodes == () and network.output_shape == (3, 4, 4) and network.macs == 0

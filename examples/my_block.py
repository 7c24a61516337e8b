"""A block of one's own, and a space that chooses between its kernels. See docs/new-space.md.

    hwnas spaces examples/my_block.py:space
"""

from dataclasses import dataclass

import hwnas
from hwnas.ir.block import conv_bn_act
from hwnas.ir.blocks import BLOCKS
from hwnas.ir.layers import Add, Concat
from hwnas.ir.network import NetworkBuilder, Value


@dataclass(frozen=True)
class Ghost(hwnas.Block):
    """Half of the channels by a 1x1 convolution, the other half from those by a depthwise one (GhostNet, arXiv 1911.11907)."""

    kind = "ghost"
    out_channels: int
    kernel: int = 3

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        half = self.out_channels // 2
        primary = conv_bn_act(net, "primary_", x, half, kernel=1, stride=1, groups=1, activation="relu")
        cheap = conv_bn_act(net, "cheap_", primary, half, self.kernel, stride=1, groups=half, activation="relu")
        y = net.add("concat", Concat(), primary, cheap)
        return net.add("add", Add(), x, y) if y.shape == x.shape else y


BLOCKS[Ghost.kind] = Ghost  # files hold a space as JSON: this is how one that has the block is read again

space = hwnas.SearchSpace("ghosts", (3, 16, 16), (
    hwnas.Fixed("stem", hwnas.Stem(16)),
    hwnas.Decision("ghost", {f"k{kernel}": Ghost(24, kernel) for kernel in (3, 5)}),
    hwnas.Decision("conv", {f"k{kernel}": hwnas.ConvBlock(24, kernel) for kernel in (1, 3)}),
    hwnas.Fixed("head", hwnas.Head(classes=36)),
))

"""Blocks of searched mobile networks: FBNet's (Wu et al., arXiv 1812.03443) and MnasNet's (Tan et al., arXiv 1807.11626)."""

from dataclasses import dataclass

from hwnas.errors import InputError
from hwnas.ir.block import Block, conv_bn_act, squeeze_excite
from hwnas.ir.layers import Activation, Add, ChannelShuffle, Conv, Dropout, GlobalAveragePool, Linear, Pool
from hwnas.ir.network import NetworkBuilder, Value

_EXPANSIONS = {"conv": None, "dwconv": 1, "mbconv3": 3, "mbconv6": 6}
_SKIPS = ("pool", "identity", "none")


@dataclass(frozen=True)
class FBNetBlock(Block):
    """FBNet's candidate (sec. 3.1): pointwise, depthwise and linear pointwise convolution, and the input where shapes allow.

    Attributes:
        out_channels: Output width.
        kernel: Depthwise kernel size.
        expansion: Hidden width over input width.
        stride: Of the depthwise convolution.
        groups: Of both pointwise convolutions; with more than one, the channels are shuffled before the depthwise convolution.
        expand_always: Keeps the first pointwise convolution at expansion 1, as the paper's figures count. The released
            networks (facebookresearch/mobile-vision) leave it out there, but not the shuffle.
        activation: After the first two convolutions.
    """

    kind = "fbnet_block"
    out_channels: int
    kernel: int = 3
    expansion: int = 6
    stride: int = 1
    groups: int = 1
    expand_always: bool = True
    activation: str | None = "relu"

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        hidden = x.channels * self.expansion
        y = x
        if self.expand_always or self.expansion != 1:
            y = conv_bn_act(net, "expand_", y, hidden, 1, 1, self.groups, self.activation)
        if self.groups > 1:
            y = net.add("shuffle", ChannelShuffle(self.groups), y)
        y = conv_bn_act(net, "depthwise_", y, hidden, self.kernel, self.stride, hidden, self.activation)
        y = conv_bn_act(net, "project_", y, self.out_channels, 1, 1, self.groups, None)
        return net.add("add", Add(), x, y) if y.shape == x.shape else y


@dataclass(frozen=True)
class MnasNetLayer(Block):
    """The layer that MnasNet's blocks repeat (sec. 4.1): an operation, a channel gate, and a way around both.

    Attributes:
        out_channels: Output width.
        operation: `conv` (with activation), `dwconv` (depthwise, then linear pointwise), or the inverted residuals `mbconv3`
            and `mbconv6`, whose number is the hidden width over the input width.
        kernel: Of the full or depthwise convolution.
        stride: Likewise.
        se_ratio: Squeeze-and-excitation width over the *input* width, after the full or depthwise convolution; 0 for none.
        skip: What is added to the result: the input where shapes allow (`identity`), the input after a 3x3 average pool of
            the layer's stride where widths allow (`pool`), or nothing (`none`).
        activation: After every convolution but a linear one.
    """

    kind = "mnasnet_layer"
    out_channels: int
    operation: str = "mbconv6"
    kernel: int = 3
    stride: int = 1
    se_ratio: float = 0.0
    skip: str = "identity"
    activation: str | None = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("operation", tuple(_EXPANSIONS)), ("skip", _SKIPS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{self.kind}: {name} must be one of {', '.join(allowed)}, but is {getattr(self, name)!r}")

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        expansion = _EXPANSIONS[self.operation]
        if expansion is None:
            y = conv_bn_act(net, "", x, self.out_channels, self.kernel, self.stride, 1, self.activation)
            return self._add_skip(net, x, self._gated(net, x, y))
        hidden = x.channels * expansion
        y = x if expansion == 1 else conv_bn_act(net, "expand_", x, hidden, 1, 1, 1, self.activation)
        y = conv_bn_act(net, "depthwise_", y, hidden, self.kernel, self.stride, hidden, self.activation)
        y = self._gated(net, x, y)
        return self._add_skip(net, x, conv_bn_act(net, "project_", y, self.out_channels, 1, 1, 1, None))

    def _gated(self, net: NetworkBuilder, x: Value, y: Value) -> Value:
        return squeeze_excite(net, y, max(1, int(x.channels * self.se_ratio))) if self.se_ratio else y

    def _add_skip(self, net: NetworkBuilder, x: Value, y: Value) -> Value:
        if self.skip == "pool" and x.channels == y.channels:
            x = net.add("skip_pool", Pool("avg", 3, self.stride, 1), x)
        return net.add("add", Add(), x, y) if self.skip != "none" and x.shape == y.shape else y


@dataclass(frozen=True)
class PooledHead(Block):
    """MobileNetV3's last layers (arXiv 1905.02244, sec. 5.1): pooled before they widen, so the wide convolution sees one pixel.

    Global average pool, 1x1 convolution without batch norm, activation, dropout, classifier.
    """

    kind = "pooled_head"
    classes: int
    channels: int
    activation: str = "hardswish"
    dropout: float = 0.0

    def build(self, net: NetworkBuilder, x: Value) -> Value:
        x = net.add("global_pool", GlobalAveragePool(), x)
        x = net.add("conv", Conv(self.channels), x)
        x = net.add("act", Activation(self.activation), x)
        if self.dropout:
            x = net.add("dropout", Dropout(self.dropout), x)
        return net.add("classifier", Linear(self.classes), x)

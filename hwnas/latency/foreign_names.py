"""What other tools call our blocks in their latency tables.

Each function gives, for one block at its input shape, the names whose latencies add up to it, alternatives in the order in which
they are tried; none for a block that the tool does not have. Activations are not part of any name, but for hard swish in
once-for-all's.

- once-for-all and ProxylessNAS: `expanded_conv-input:112x112x16-output:56x56x24-expand:3-kernel:5-stride:2-idskip:0`
  (mit-han-lab/once-for-all, `ofa/nas/efficiency_predictor/latency_lookup_table.py` and `ofa/tutorial/latency_table.py`;
  mit-han-lab/proxylessnas, `search/utils/latency_estimator.py`). `expand` is the ratio in ProxylessNAS's tables, and the hidden
  width in those whose names end in `-se:0-hs:1`.
- HW-NAS-Bench's table of FBNet's space: `ConvBlock_H112_W112_Cin16_Cout24_exp6_kernel3_stride2_group1`
  (GATECH-EIC/HW-NAS-Bench, `hw_nas_bench_api/hw_nas_bench_api.py`, `fbnet_get_metrics`).
- FBNet and ChamNet: records of int8 operators without names (facebookresearch/mobile-vision, `runtime_lut/code/lut_schema.py`),
  so they get names here. A convolution is called alike with and without its ReLU, which QNNPACK fuses; the authors' own look-up
  (`runtime_lut/code/api.py`) takes the one for the other.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hwnas.ir.block import Part
from hwnas.ir.blocks import ConvBlock, Head, MBConv, Stem
from hwnas.ir.layers import Activation, Add, BatchNorm, ChannelShuffle, Conv, Dropout, GlobalAveragePool, Linear
from hwnas.ir.mobile_blocks import FBNetBlock
from hwnas.ir.shape import TensorShape

Recipe = tuple[str, ...]
"""Names whose latencies add up to one block."""

_WHOLE_ARGUMENT = re.compile(r'name: "(\w+)"\s+i: (\d+)')  # of an operator, as protobuf prints it


def ofa_names(part: Part) -> Iterator[Recipe]:
    """Once-for-all's and ProxylessNAS's names of a block."""
    x, y = part.input_shape, part.network.output_shape
    residual = _inverted_residual(part)
    if residual is not None and residual.groups == 1 and residual.expands == (residual.expansion != 1):
        start = f"expanded_conv-{_ends(x, y)}"
        rest = f"kernel:{residual.kernel}-stride:{residual.stride}-idskip:{residual.adds:d}"
        hard_swish = residual.activation == "hardswish"
        yield (f"{start}-expand:{round(x.channels * residual.expansion)}-{rest}-se:{residual.gated:d}-hs:{hard_swish:d}",)
        if not residual.gated and not hard_swish:
            yield (f"{start}-expand:{residual.expansion:g}-{rest}",)
    match part.block:
        case Stem(kernel=3, pool=False):
            yield (f"Conv-{_ends(x, y)}",)
        case ConvBlock(kernel=1, stride=1, groups=1):
            yield (f"{'Conv_2' if x[1:] == (1, 1) else 'Conv_1'}-{_ends(x, y)}",)
        case Head(classes=classes, channels=channels):
            wide = x if channels is None else x._replace(channels=channels)
            pooled = TensorShape(wide.channels, 1, 1)
            mix = () if channels is None else (f"Conv_1-{_ends(x, wide)}",)
            yield (*mix, f"Logits-input:{_hwc(wide)}-output:{classes}")
            yield (*mix, f"AvgPool2D-{_ends(wide, pooled)}", f"Logits-input:{_hwc(pooled)}-output:{classes}")


def _ends(x: TensorShape, y: TensorShape) -> str:
    return f"input:{_hwc(x)}-output:{_hwc(y)}"


def _hwc(shape: TensorShape) -> str:
    return f"{shape.height}x{shape.width}x{shape.channels}"


def hw_nas_bench_names(part: Part) -> Iterator[Recipe]:
    """HW-NAS-Bench's names of a block."""
    x, y = part.input_shape, part.network.output_shape
    residual = _inverted_residual(part)
    if residual is not None and residual.expands and not residual.gated and residual.adds == (x == y):
        yield (f"ConvBlock_{_sizes(x, y.channels)}_exp{residual.expansion:g}_kernel{residual.kernel}_stride{residual.stride}"
               f"_group{residual.groups}",)
    match part.block:
        case Stem(kernel=kernel, stride=stride, pool=False):
            yield (_conv_norm(x, y.channels, kernel, stride),)
        case ConvBlock(kernel=kernel, stride=stride, groups=groups):
            yield (_conv_norm(x, y.channels, kernel, stride, groups),)
            if kernel == 1 and groups == 1 and x != y:
                yield (f"Skip_{_sizes(x, y.channels)}_stride{stride}",)
        case Head(classes=classes, channels=channels):
            wide = x if channels is None else x._replace(channels=channels)
            mix = () if channels is None else (_conv_norm(x, wide.channels, 1, 1),)
            yield (*mix, f"AvgP_{_sizes(wide, wide.channels)}_kernel{x.height}_stride1", f"FC_Cin{wide.channels}_Cout{classes}")


def _sizes(x: TensorShape, out_channels: int) -> str:
    return f"H{x.height}_W{x.width}_Cin{x.channels}_Cout{out_channels}"


def _conv_norm(x: TensorShape, out_channels: int, kernel: int, stride: int, groups: int = 1) -> str:
    return f"ConvNorm_{_sizes(x, out_channels)}_kernel{kernel}_stride{stride}_group{groups}"


@dataclass(frozen=True)
class _InvertedResidual:
    """What other tools' names say of a block of pointwise, depthwise and pointwise convolution.

    Attributes:
        expansion: Hidden width over input width.
        kernel: Of the depthwise convolution.
        stride: Likewise.
        groups: Of the pointwise convolutions.
        expands: Whether there is a first pointwise convolution.
        gated: Whether there is squeeze-and-excitation.
        adds: Whether the input is added.
        activation: After the first two convolutions.
    """

    expansion: float
    kernel: int
    stride: int
    groups: int
    expands: bool
    gated: bool
    adds: bool
    activation: str | None


def _inverted_residual(part: Part) -> _InvertedResidual | None:
    block = part.block
    adds = any(isinstance(node.layer, Add) for node in part.network.nodes)
    if isinstance(block, MBConv):
        return _InvertedResidual(block.expansion, block.kernel, block.stride, 1, block.expansion != 1, bool(block.se_ratio), adds,
                                 block.activation)
    if isinstance(block, FBNetBlock):
        return _InvertedResidual(block.expansion, block.kernel, block.stride, block.groups,
                                 block.expand_always or block.expansion != 1, False, adds, block.activation)
    return None


def operator_name(record: Mapping[str, Any]) -> str | None:
    """A name for an operator that our blocks may have; None for another."""
    texts = record.get("op_args")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    arguments = dict(_WHOLE_ARGUMENT.findall("\n".join(texts)))
    kernel, stride, groups = (arguments.get(key, "1") for key in ("kernel", "stride", "group"))
    match record["op_type"], record.get("input_shapes"):
        case "Int8Conv" | "Int8ConvRelu", [[1, int(h), int(w), int(c)], [int(out), int(across), int(down), int()], *_]:
            return _conv_name((c, h, w), out, (across, down), stride, arguments.get("pad", "0"), groups)
        case "Int8Sum" | "Int8Add", [[1, int(h), int(w), int(c)], *_]:
            return f"sum of {c}x{h}x{w}"
        case "Int8ChannelShuffle", [[1, int(h), int(w), int(c)]]:
            return f"channel shuffle of {c}x{h}x{w}, {groups} groups"
        case "Int8AveragePool", [[1, int(h), int(w), int(c)]]:
            return f"average pool of {c}x{h}x{w}, kernel {kernel}"
        case "Int8FC", [[1, *_, int(c)], [int(out), int()], *_]:
            return f"linear {c} to {out}"
    return None


def operators(part: Part) -> Iterator[Recipe]:
    """The int8 operators of a block: batch norm is folded into convolutions and ReLU fused with them."""
    names = []
    for node in part.network.nodes:
        x = node.input_shapes[0]
        match node.layer:
            case Conv(dilation=1, weight_format="fp32") as conv:
                names.append(_conv_name(x, conv.out_channels, conv.kernel, conv.stride, conv.padding[0], conv.groups))
            case Add():
                names.append(f"sum of {x}")
            case ChannelShuffle(groups=groups):
                names.append(f"channel shuffle of {x}, {groups} groups")
            case GlobalAveragePool():
                names.append(f"average pool of {x}, kernel {x.height}")
            case Linear(out_features=out):
                names.append(f"linear {x.channels} to {out}")
            case BatchNorm() | Dropout() | Activation(function="relu" | "relu6"):
                pass
            case _:
                return
    yield tuple(names)


def _conv_name(x: tuple[int, int, int], out_channels: int, kernel: tuple[int, int], stride: object, padding: object,
               groups: object) -> str:
    return (f"convolution {x[0]}x{x[1]}x{x[2]} to {out_channels}, kernel {kernel[0]}x{kernel[1]}, stride {stride}, "
            f"padding {padding}, {groups} groups")

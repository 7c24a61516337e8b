"""Rounding that trains, in torch: forward as in `lower.quantize` and in the ONNX model, backward as if it were not there.

The straight-through estimator of Bengio et al. (arXiv 1308.3432). An activation quantiser also learns its scale (LSQ, Esser et
al., arXiv 1902.08153): inside the clipping range the input's gradient is passed (eq. 5) and the scale's sees the rounding
error, outside none is passed and the scale's sees the end of the range (eq. 3), times 1 / sqrt(elements of one image *
largest multiple) (sec. 2.2). Departures: the steps of the weights are functions of the weights, not learned; one signed bit
is -scale or scale.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hwnas.ir.layers import FORMAT_BITS, Quantize
from hwnas.lower.weights import initial_scale

_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Quantizer(nn.Module):
    """Rounds activations (N, C, H, W) to whole multiples of a learned scale."""

    def __init__(self, layer: Quantize) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.full((1,), initial_scale(layer)))

    def forward(self, x: Tensor) -> Tensor:
        layer, scale = self.layer, self.scale.abs()
        scale = _straight_through(scale * (x[0].numel() * layer.highest) ** -0.5, scale.detach())
        ratio = (x / scale).clamp(layer.lowest, layer.highest)
        with torch.no_grad():
            multiples = ratio.round() if layer.bits > 1 or not layer.signed else torch.where(ratio < 0, -1.0, 1.0).to(ratio)
        return _straight_through(ratio, multiples) * scale

    def extra_repr(self) -> str:
        return repr(self.layer)


class QuantizedConv(nn.Conv2d):
    """Convolution with weights rounded to a format; gradients pass the rounding unchanged."""

    def __init__(self, weight_format: str, in_channels: int, out_channels: int, kernel: tuple[int, int], stride: int,
                 padding: tuple[int, int], dilation: int, groups: int, bias: bool, device: Any = None) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias, device=device)
        self.weight_format = weight_format

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _straight_through(self.weight, quantize_weight(self.weight, self.weight_format)), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_format={self.weight_format}"


class RoundToHalf(nn.Module):
    """Rounds activations to the numbers of `fp16` or `bf16`."""

    def __init__(self, format: str) -> None:
        super().__init__()
        self.format = format

    def forward(self, x: Tensor) -> Tensor:
        return _straight_through(x, _round_to_half(x.detach(), self.format))

    def extra_repr(self) -> str:
        return self.format


@torch.no_grad()
def quantize_weight(weight: Tensor, format: str) -> Tensor:
    """A convolution's weights as a format has them, back in their own precision; see `lower.quantize`.

    Args:
        weight: (out_channels, in_channels / groups, height, width).
        format: One of `FORMAT_BITS`.
    """
    bits = FORMAT_BITS[format]
    if bits >= 16:
        return _round_to_half(weight, format) if bits == 16 else weight
    size = weight.abs()
    if bits == 1:
        mean = size.mean((1, 2, 3), keepdim=True)
        return torch.where(weight < 0, -mean, mean)
    step = size.amax((1, 2, 3), keepdim=True) / ((1 << bits - 1) - 1)
    return torch.round(weight / torch.where(step > 0, step, 1)) * step


def _round_to_half(x: Tensor, format: str) -> Tensor:
    return x.to(_HALVES[format]).to(x.dtype)


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of `x`, exactly."""
    return rounded + (x - x.detach())

"""Rounding that trains, in torch: forward as in `lower.quantize` and in the ONNX model, backward as if it were not there.

The straight-through estimator of Bengio et al. (arXiv 1308.3432). An activation quantiser also learns its scale (LSQ, Esser et
al., arXiv 1902.08153): inside the clipping range the input's gradient is passed (eq. 5) and the scale's sees the rounding
error, outside none is passed and the scale's sees the end of the range (eq. 3), times 1 / sqrt(elements of one image *
largest multiple) (sec. 2.2). Departures: the steps of the weights are functions of the weights, not learned; one signed bit
is -scale or scale.

Or the scale follows statistics, and only the input has a gradient (`follow_statistics`). A training batch calls for the scale
whose multiples reach three standard deviations: of a bell curve with the batch's mean square, or, without a sign, of one whose
positive half has it, as after ReLU (the half-wave Gaussian of HWGQ-Net, Cai et al., arXiv 1702.00953). The scale is a moving
average of that, and fixed at evaluation (Jacob et al., arXiv 1712.05877, sec. 3.1). Departures: Jacob et al. average extremes, to
which few bits would lose their resolution; HWGQ-Net's steps are those of least error for a power of 1.

A batch is rounded with the scale from before it. Processes begin a step with one scale, and their scales are averaged when it
ends; within it (micro-batches, further paths) each follows its own images.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hwnas.ir.layers import FORMAT_BITS, Quantize
from hwnas.lower.weights import initial_scale

_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_MOMENTUM = 0.1  # of a scale that follows statistics: batch norm's


class Quantizer(nn.Module):
    """Rounds activations (N, C, H, W) to whole multiples of a scale.

    Attributes:
        is_learned: The scale has a gradient; otherwise it follows the activations in training mode.
        track_running_stats: False stops a scale that follows, as it stops a batch norm's statistics.
    """

    def __init__(self, layer: Quantize) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.full((1,), initial_scale(layer)))
        self.is_learned = self.track_running_stats = True

    def forward(self, x: Tensor) -> Tensor:
        layer, scale = self.layer, self.scale.abs()
        if self.is_learned:
            scale = _straight_through(scale * (x[0].numel() * layer.highest) ** -0.5, scale.detach())
        elif self.training and self.track_running_stats:
            self._follow(x)
        ratio = (x / scale).clamp(layer.lowest, layer.highest)
        with torch.no_grad():
            multiples = ratio.round() if layer.bits > 1 or not layer.signed else torch.where(ratio < 0, -1.0, 1.0).to(ratio)
        return _straight_through(ratio, multiples) * scale

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        """Moves the scale towards what a batch calls for; nothing but zeros call for none."""
        root_mean_square = torch.linalg.vector_norm(x, dtype=self.scale.dtype) * x.numel() ** -0.5
        moved = self.scale.abs().lerp(initial_scale(self.layer) * root_mean_square, _MOMENTUM)
        self.scale.copy_(torch.where(root_mean_square > 0, moved, self.scale))

    def extra_repr(self) -> str:
        return repr(self.layer)


def follow_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Has all quantisers of a network or supernet take their scales from statistics instead of learning them.

    Returns:
        The scales by name: no gradient reaches them, and in training mode every batch moves those that it meets.
    """
    scales = {}
    for name, each in module.named_modules():
        if isinstance(each, Quantizer):
            each.is_learned = False
            if each.scale is not None:  # as it is where parts of a supernet share weights that are kept elsewhere
                scales[f"{name}.scale"] = each.scale.requires_grad_(False)
    return scales


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

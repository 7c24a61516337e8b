"""Batch-norm statistics of one network, recomputed on training images (Guo et al., arXiv 1904.00420, sec. 3.4).

The statistics that a supernet gathers while it trains are a mixture over all paths and fit none of them. The paper takes a
fixed number of images; here batches are added until the statistics settle, up to as many as the caller gives.
"""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hwnas.lower.straight_through import QuantizedConv, quantize_weight
from hwnas.lower.torch import NetworkModule


@torch.no_grad()
def recalibrate_batch_norm(module: nn.Module, batches: Iterable[Tensor], tolerance: float = 0.01) -> int:
    """Replaces a network's batch-norm statistics by plain averages over batches, from scratch; weights stay as they are.

    Give it a network of its own (`extract`), not a supernet, whose stored statistics would change for all other paths.

    Args:
        module: The network, changed in place; each module's training flag is left as it was.
        batches: Normalised training images, (N, C, H, W) each, without augmentation.
        tolerance: Stop when a batch moves the averages by less than this: root mean square over all channels, means
            relative to the standard deviation, variances to themselves.

    Returns:
        Number of batches used.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    modes = {each: each.training for each in module.modules()}
    momenta = [norm.momentum for norm in norms]
    count = 0
    try:
        module.eval()  # dropout is off while the statistics are taken, as it is when they are used
        for norm in norms:
            norm.running_mean.zero_()  # type: ignore[union-attr]
            norm.running_var.fill_(1)  # type: ignore[union-attr]
            norm.train()
        before = _statistics(norms)
        for count, images in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = 1 / count  # makes the moving average a cumulative one
            module(images)
            after = _statistics(norms)
            if count > 1 and _change(before, after) < tolerance:
                break
            before = after
    finally:
        for each, mode in modes.items():
            each.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return count


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """All running means and variances of a network or supernet, by name, not copied."""
    return {name: buffer for name, buffer in module.named_buffers() if name.endswith(("running_mean", "running_var"))}


def _statistics(norms: list[_BatchNorm]) -> tuple[Tensor, Tensor]:
    """All running means and variances, (channels,) each."""
    if not norms:
        return torch.zeros(0), torch.zeros(0)
    means, variances = ([getattr(norm, name) for norm in norms] for name in ("running_mean", "running_var"))
    return torch.cat(means), torch.cat(variances)


def _change(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> float:
    mean_before, variance_before = before
    mean, variance = after
    floor = variance + 1e-12  # channels that never vary count as settled
    moved = torch.cat(((mean - mean_before) ** 2 / floor, ((variance - variance_before) / floor) ** 2))
    return float(moved.mean().sqrt()) if moved.numel() else 0.0


def fold_batch_norm(module: NetworkModule) -> None:
    """Folds batch norms into the convolutions before them, in place: less work at inference, and no more training.

    A batch norm that follows something else, or a convolution that something else reads too, stays as it is.
    """
    readers = Counter([module.network.output, *(source for node in module.network.nodes for source in node.inputs)])
    for node in module.network.nodes:
        source = node.inputs[0]
        conv, norm = module._modules.get(source), module._modules[node.name]
        if isinstance(norm, _BatchNorm) and isinstance(conv, nn.Conv2d) and readers[source] == 1:
            if isinstance(conv, QuantizedConv):  # its weights are rounded as they are, not as the batch norm scales them
                conv.weight = nn.Parameter(quantize_weight(conv.weight, conv.weight_format))
                conv.weight_format = "fp32"
            module._modules[source] = fuse_conv_bn_eval(conv, norm)
            module._modules[node.name] = nn.Identity()

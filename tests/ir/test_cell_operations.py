"""Operations of cells against PyTorch's functions, written out one by one; odd and even resolutions, both strides."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from hwnas.errors import InputError
from hwnas.ir.block import block_network
from hwnas.ir.blocks import Block, block_from_dict
from hwnas.ir.cell_operations import (
    DilatedOperation,
    FactorizedConvolution,
    FactorizedReduction,
    PoolOperation,
    PreactivatedConv,
    SeparableOperation,
)
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import random_weights

torch.set_num_threads(1)

Arrays = dict[str, torch.Tensor]


def norm(x: torch.Tensor, w: Arrays, name: str) -> torch.Tensor:
    return F.batch_norm(x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"])


def depthwise(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int, dilation: int = 1) -> torch.Tensor:
    return F.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation, groups=x.shape[1])


def separable(x: torch.Tensor, w: Arrays, stride: int) -> torch.Tensor:
    x = norm(F.conv2d(depthwise(F.relu(x), w["depthwise1.weight"], stride, 2), w["pointwise1.weight"]), w, "bn1")
    return norm(F.conv2d(depthwise(F.relu(x), w["depthwise2.weight"], 1, 2), w["pointwise2.weight"]), w, "bn2")


def dilated(x: torch.Tensor, w: Arrays, stride: int) -> torch.Tensor:
    return norm(F.conv2d(depthwise(F.relu(x), w["depthwise.weight"], stride, 4, 2), w["pointwise.weight"]), w, "bn")


def max_pool(x: torch.Tensor, w: Arrays, stride: int) -> torch.Tensor:
    return norm(F.conv2d(F.max_pool2d(x, 5, stride, 2), w["project.weight"]), w, "project_bn")


def average_pool(x: torch.Tensor, w: Arrays, stride: int) -> torch.Tensor:
    return norm(F.avg_pool2d(x, 3, stride, 1, count_include_pad=False), w, "bn")


def plain(x: torch.Tensor, w: Arrays, stride: int) -> torch.Tensor:
    return norm(F.conv2d(F.relu(x), w["conv.weight"], stride=stride, padding=2, dilation=2), w, "bn")


def factorized(x: torch.Tensor, w: Arrays, stride: int) -> torch.Tensor:
    x = norm(F.conv2d(F.relu(x), w["row.weight"], stride=stride, padding=(0, 3)), w, "row_bn")
    return norm(F.conv2d(F.relu(x), w["column.weight"], padding=(3, 0)), w, "column_bn")


def reduction(x: torch.Tensor, w: Arrays, stride: int) -> torch.Tensor:
    x = F.relu(x)
    first = F.conv2d(x, w["conv1.weight"], stride=stride)
    second = F.conv2d(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:], w["conv2.weight"], stride=stride)
    return norm(torch.cat([first, second], 1), w, "bn")


CASES: list[tuple[Block, Callable[[torch.Tensor, Arrays, int], torch.Tensor], int]] = [
    *((SeparableOperation(8, 5, stride), separable, stride) for stride in (1, 2)),
    *((DilatedOperation(8, 5, stride), dilated, stride) for stride in (1, 2)),
    *((PoolOperation("max", 5, stride, 8), max_pool, stride) for stride in (1, 2)),
    *((PoolOperation("avg", 3, stride, 6, batch_norm=True), average_pool, stride) for stride in (1, 2)),
    *((PreactivatedConv(8, 3, stride, 2), plain, stride) for stride in (1, 2)),
    *((FactorizedConvolution(8, 7, stride), factorized, stride) for stride in (1, 2)),
    (FactorizedReduction(8), reduction, 2), (FactorizedReduction(7), reduction, 2),
]


@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize(("block", "reference", "stride"), CASES, ids=lambda value: getattr(value, "signature", ""))
def test_an_operation_computes_what_it_says(block: Block, reference: Callable[[torch.Tensor, Arrays, int], torch.Tensor],
                                            stride: int, size: int) -> None:
    network = block_network(block, (6, size, size - 1))
    weights = random_weights(network)
    images = torch.randn(2, *network.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(images, {name.removeprefix("block/"): torch.from_numpy(a) for name, a in weights.items()}, stride)
        torch.testing.assert_close(to_torch(network, weights).eval()(images), expected, rtol=1e-4, atol=1e-5)
    assert block_from_dict(block.to_dict()) == block


def test_a_pool_projects_only_where_the_width_changes() -> None:
    assert block_network(PoolOperation("max", out_channels=6), (6, 8, 8)).parameters == 0
    assert block_network(PoolOperation("max", out_channels=7), (6, 8, 8)).parameters == 6 * 7 + 2 * 7


def test_an_odd_width_is_shared_out_with_the_smaller_half_first() -> None:
    shapes = block_network(FactorizedReduction(27), (6, 9, 9)).weight_shapes
    assert (shapes["block/conv1.weight"][0], shapes["block/conv2.weight"][0]) == (13, 14)


def test_what_no_operation_can_do_is_refused() -> None:
    with pytest.raises(InputError, match="'min'"):
        block_network(PoolOperation("min"), (6, 8, 8))
    with pytest.raises(InputError, match="at least 2"):
        block_network(FactorizedReduction(1), (6, 8, 8))

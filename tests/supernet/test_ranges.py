"""Ranges that follow statistics in training: what moves the scales, and that they survive interruption, ranks and extraction."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.data import Dataset
from hwnas.ir.blocks import Head, Stem
from hwnas.ir.costs import BitOpsCost
from hwnas.ir.layers import Quantize
from hwnas.ir.network import Network
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.lower.straight_through import Quantizer, follow_statistics
from hwnas.lower.torch import to_torch
from hwnas.spaces.bit_widths import with_precisions
from hwnas.spaces.spos import channel_options
from hwnas.supernet import (
    build_supernet,
    evaluate_module,
    extract,
    extract_weights,
    load_network_weights,
    load_supernet,
    train_network,
    train_supernet,
)
from hwnas.supernet.batches import Feed
from hwnas.supernet.batchnorm import running_statistics
from hwnas.supernet.checkpoint import load_checkpoint
from hwnas.supernet.config import TrainConfig
from hwnas.supernet.differentiable import Darts, Differentiable, FBNet, differentiable_task
from hwnas.supernet.distributed import Group
from hwnas.supernet.loop import run_loop
from hwnas.supernet.retrain import network_task
from tests.supernet.loop_samples import plain_network, plain_task
from tests.supernet.samples import CLASSES, interrupt
from tests.supernet.test_distributed import two

CONFIG = TrainConfig(epochs=2, batch_size=16, learning_rate=0.05, max_shift=1, seed=3, threads=1, ranges="statistics")

RANKS = """
import dataclasses, sys
from pathlib import Path
import torch
from hwnas.lower.torch import to_torch
from hwnas.supernet import distributed
from hwnas.supernet.loop import run_loop
from hwnas.supernet.retrain import network_task
from tests.supernet.loop_samples import plain_task
from tests.supernet.samples import tiny_dataset
from tests.supernet.test_ranges import CONFIG, network, rounding_first

torch.set_num_threads(1)
with distributed.joined("cpu") as group:
    for seconds in (0.0, 1e9):
        module = to_torch(network())
        run_loop(network_task(module, 0.1), tiny_dataset(), dataclasses.replace(CONFIG, checkpoint_seconds=seconds), {},
                 Path(sys.argv[1]) / str(seconds), group=group)
        print(sum(each.double().abs().sum().item() for each in module.parameters()))
    model = rounding_first()
    run_loop(plain_task(model), tiny_dataset(), CONFIG, {}, Path(sys.argv[1]) / "first", group=group)
    print(model[0].scale.item())
"""


def bits_space() -> SearchSpace:
    """Blocks, widths and bit-widths jointly."""
    units = channel_options(16, 2, ("shuffle_3x3", "xception"), (6, 10))
    space = SearchSpace("blocks", (3, 16, 16), (Fixed("stem", Stem(8)), Decision("block", units), Fixed("head", Head(CLASSES))))
    return with_precisions(space, ("w1_a1", "w2_a4", "fp32"))


def network() -> Network:
    space = bits_space()
    return space.network(space.architecture({"block": "shuffle_3x3_x10_w2_a4"}))


def rounding_first() -> nn.Sequential:
    """A network whose quantiser reads the images."""
    return nn.Sequential(Quantizer(Quantize(4, signed=True)), *plain_network())


def scales(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if name.endswith("scale")}


def test_scales_move_and_nothing_else_moves_them(dataset: Dataset, tmp_path) -> None:
    module = to_torch(network())
    before = scales(module)
    run_loop(network_task(module, 0.1), dataset, dataclasses.replace(CONFIG, ema_decay=0.5), {}, tmp_path)
    assert len(before) == 4 and all(scales(module)[name] != scale for name, scale in before.items())
    stored = load_checkpoint(tmp_path)[1]
    assert stored["optimizers"] and not any(name.endswith("scale") for name in stored["optimizers"])
    for name, scale in scales(module).items():  # the moving average of weights takes them along
        assert stored["average"][name] == scale != stored["weights"][name]


def test_every_micro_batch_moves_a_scale(dataset: Dataset, tmp_path) -> None:
    """By the formula, in numpy."""
    config = dataclasses.replace(CONFIG, accumulation=2)
    model = rounding_first()
    expected = float(model[0].scale.detach())
    run_loop(plain_task(model), dataset, config, {}, tmp_path)
    feed = Feed(dataset, config, Group(), torch.device("cpu"))
    for batch in feed.batches(0, 20):
        for index in range(2):
            images = feed.part(batch, index)[0].double().numpy()
            expected = 0.9 * expected + 0.1 * 3 * np.sqrt(np.mean(images**2)) / 8
    assert float(model[0].scale) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in what PyTorch imports for compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++")
def test_a_compiled_network_moves_the_same_scales_and_running_statistics(dataset: Dataset, tmp_path) -> None:
    found = []
    for compiled in (False, True):
        module = to_torch(network())
        before = scales(module)
        config = dataclasses.replace(CONFIG, accumulation=2, learning_rate=1e-9, compile=compiled)  # keeps last bits from growing
        run_loop(network_task(module, 0.1), dataset, config, {}, tmp_path / str(compiled))
        assert all(scales(module)[name] != scale for name, scale in before.items())
        found.append(scales(module) | running_statistics(module))
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_network_learns_and_resumes_to_the_bit(dataset: Dataset, tmp_path) -> None:
    config = dataclasses.replace(CONFIG, epochs=6)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_network(network(), dataset, whole, config)
    module = to_torch(network(), load_network_weights(whole, network()))
    assert evaluate_module(module, dataset, dataset.validation.images, dataset.validation.labels) > 0.6  # chance is 0.25
    with pytest.raises(KeyboardInterrupt):
        train_network(network(), dataset, cut, config, progress=lambda step, *_: interrupt() if step == 23 else None)
    train_network(network(), dataset, cut, config)
    assert (cut / "network.safetensors").read_bytes() == (whole / "network.safetensors").read_bytes()


@pytest.mark.parametrize("sharing", ["options", "channels", "elastic"])
def test_a_supernet_resumes_to_the_bit_and_its_networks_have_its_scales(dataset: Dataset, tmp_path, sharing: str) -> None:
    space, config = bits_space(), dataclasses.replace(CONFIG, sharing=sharing)
    initial = build_supernet(space, config.seed, sharing)
    train_supernet(space, dataset, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train_supernet(space, dataset, tmp_path / "cut", config, progress=lambda step, *_: interrupt() if step == 7 else None)
    train_supernet(space, dataset, tmp_path / "cut", config)
    supernet, _ = load_supernet(tmp_path / "whole")
    other, _ = load_supernet(tmp_path / "cut")
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in supernet.state_dict().items())
    moved = [name for name, scale in scales(supernet).items() if scale != scales(initial)[name]]
    assert len(moved) > len(scales(supernet)) / 2
    images = torch.from_numpy(dataset.normalise(dataset.validation.images[:16]))
    supernet = supernet.to(memory_format=torch.contiguous_format)  # that of networks that are taken out: equal sums
    for path in Trellis(space).sample(4, seed=0):
        weights = extract_weights(supernet, path)
        own = [float(array[0]) for name, array in weights.items() if name.endswith("scale")]
        assert set(own) <= {float(scale) for scale in scales(supernet).values()}
        assert torch.equal(extract(supernet, path)(images), supernet(images, path))
    assert all(torch.equal(scale, scales(supernet)[name]) for name, scale in scales(other).items())  # questions move nothing


@pytest.mark.parametrize("settings", [Darts(unrolled=True), FBNet()], ids=repr)
def test_updates_of_the_architecture_leave_scales_alone(dataset: Dataset, settings: Differentiable) -> None:
    supernet = build_supernet(bits_space()).train()
    moving = follow_statistics(supernet)
    cost = BitOpsCost(count_full_precision=True)
    task = differentiable_task(supernet, settings, CONFIG, cost, 0.8 * Trellis(supernet.space, cost).max_cost(), 20)
    assert task.outer is not None
    sgd = torch.optim.SGD([each for each in supernet.parameters() if each.requires_grad], 0.05, momentum=0.9)
    batch = torch.from_numpy(dataset.normalise(dataset.train.images[:8])), torch.from_numpy(dataset.train.labels[:8])
    before = scales(supernet)
    task.outer.update(19, batch, batch, sgd)
    assert moving and all(torch.equal(scale, before[name]) for name, scale in moving.items())
    task.backward(19, *batch)
    assert any(not torch.equal(scale, before[name]) for name, scale in moving.items())


def test_two_processes_agree_to_the_bit_whenever_they_save(dataset: Dataset, tmp_path) -> None:
    """And move a scale by the mean of what their halves of a batch call for: the formula, in numpy."""
    children = two(RANKS, str(tmp_path))
    try:
        told = [child.communicate(timeout=200) for child in children]
    finally:
        for child in children:
            child.kill()
    first, second = (out.split() for out, _ in told)
    assert len(first) == 3 and first == second, told
    assert first[0] == first[1]  # saved in every step, and only at the end

    feeds = [Feed(dataset, CONFIG, Group(rank, 2), torch.device("cpu")) for rank in (0, 1)]
    expected = float(rounding_first()[0].scale.detach())
    for batches in zip(*(feed.batches(0, 20) for feed in feeds), strict=True):
        halves = [feed.part(batch, 0)[0].double().numpy() for feed, batch in zip(feeds, batches, strict=True)]
        expected = 0.9 * expected + 0.1 * np.mean([3 * np.sqrt(np.mean(half**2)) / 8 for half in halves])
    assert float(first[2]) == pytest.approx(expected, rel=1e-5)

"""Training with a few paths in a step: whose gradients add up, what the largest network teaches, and resuming."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.blocks import Head
from hwnas.ir.costs import MacsCost
from hwnas.ir.space import Fixed
from hwnas.supernet.build import build_supernet
from hwnas.supernet.loop import run_loop
from hwnas.supernet.paths import fair_paths, sandwich_paths, uniform_paths
from hwnas.supernet.single_path import (
    Fair,
    Sandwich,
    SinglePath,
    fairnas_task,
    sandwich_task,
    single_path_task,
    spos_task,
)
from tests.supernet.samples import CLASSES, CONFIG, interrupt

SMOOTHING = 0.1


@pytest.fixture
def supernet(space):
    """In double precision, so that sums compare; without dropout, so that computing twice gives the same."""
    plain = dataclasses.replace(space, layers=(*space.layers[:-1], Fixed("head", Head(CLASSES, 24))))
    supernet = build_supernet(plain, seed=2).double().train()
    for module in supernet.modules():  # residual branches that start at zero would have no gradients
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return supernet


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(12, 3, 16, 16, dtype=torch.float64, generator=generator),
            torch.randint(CLASSES, (12,), generator=generator))


def hard_loss(logits, labels):
    """Cross-entropy with smoothed labels, written out."""
    targets = torch.full_like(logits, SMOOTHING / CLASSES)
    targets[torch.arange(len(labels)), labels] += 1 - SMOOTHING
    return soft_loss(logits, targets)


def soft_loss(logits, probabilities):
    return -(probabilities * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()


def gradients(supernet, losses):
    """Of every parameter, the sum of the losses' gradients, each loss computed on a copy of its own; None for no part."""
    total = {name: None for name, _ in supernet.named_parameters()}
    for loss in losses:
        alone = copy.deepcopy(supernet)
        for (name, parameter), gradient in zip(alone.named_parameters(), torch.autograd.grad(
                loss(alone), list(alone.parameters()), allow_unused=True), strict=True):
            assert parameter.grad is None
            if gradient is not None:
                total[name] = gradient if total[name] is None else total[name] + gradient
    return total


def assert_same(supernet, expected):
    compared = 0
    for name, parameter in supernet.named_parameters():
        assert (parameter.grad is None) == (expected[name] is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)
            compared += 1
    assert compared


@pytest.mark.parametrize("make", [uniform_paths, fair_paths, sandwich_paths])
def test_gradients_are_the_sum_over_the_steps_paths_and_reach_no_other(supernet, batch, make):
    images, labels = batch
    paths = make(supernet.space, 1)
    losses = [lambda alone, row=row: hard_loss(alone(images, row), labels) for row in paths(3)]
    expected = gradients(supernet, losses)
    values = [loss(copy.deepcopy(supernet)).item() for loss in losses]
    loss = single_path_task(supernet, paths, SMOOTHING).backward(3, images, labels)
    assert loss.item() == pytest.approx(sum(values), rel=1e-12) and not loss.requires_grad
    assert_same(supernet, expected)
    on_paths = {id(parameter) for row in paths(3) for _, module in supernet.modules_on(row)
                for parameter in module.parameters()}
    assert {id(each) for each in supernet.parameters() if each.grad is not None} == on_paths
    if make is uniform_paths:
        assert len(on_paths) < len(list(supernet.parameters()))


def test_in_place_distillation_is_the_hand_written_computation(supernet, batch):
    images, labels = batch
    paths = sandwich_paths(supernet.space, 1, random=1)
    largest, *others = paths(0)
    teacher = copy.deepcopy(supernet)(images, largest).detach().softmax(1)
    expected = gradients(supernet, [
        lambda alone: hard_loss(alone(images, largest), labels),
        *(lambda alone, row=row: soft_loss(alone(images, row), teacher) for row in others)])
    loss = single_path_task(supernet, paths, SMOOTHING, distill=True).backward(0, images, labels)
    assert_same(supernet, expected)

    again = copy.deepcopy(supernet)
    values = [hard_loss(again(images, largest), labels), *(soft_loss(again(images, row), teacher) for row in others)]
    assert loss.item() == pytest.approx(sum(each.item() for each in values), rel=1e-12)
    # Had the teacher learnt from its pupils, its own gradient would be another one: the comparison above can tell.
    undetached = hard_loss(again(images, largest), labels) + soft_loss(
        again(images, others[0]), again(images, largest).softmax(1))
    own = next(module for name, module in supernet.modules_on(largest) if name == "last")
    name = next(name for name, parameter in supernet.named_parameters() if parameter is next(own.parameters()))
    leaked, = torch.autograd.grad(undetached, [dict(again.named_parameters())[name]])
    assert not torch.allclose(leaked, expected[name], rtol=1e-3)


def test_losses_are_scaled_before_their_gradients_are_computed(supernet, batch):
    paths = sandwich_paths(supernet.space, 1)
    losses, unscaled = [], []
    for factor in (1.0, 1024.0):
        task = single_path_task(copy.deepcopy(supernet), paths, SMOOTHING, distill=True)
        task.loss_scale.factor = factor
        losses.append(task.backward(0, *batch))
        unscaled.append([each.grad / factor for each in task.model.parameters() if each.grad is not None])
    assert torch.equal(*losses)
    torch.testing.assert_close(*unscaled)


def test_only_the_largest_network_has_dropout(space, batch):
    images, labels = batch
    supernet = build_supernet(space).train()
    was_on = []
    for module in supernet.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, *_: was_on.append(module.training))
    for distill, expected in ((True, [True, False, False, False]), (False, [True] * 4)):
        was_on.clear()
        single_path_task(supernet, sandwich_paths(space, 0), 0.0, distill).backward(0, images.float(), labels)
        assert was_on == expected
        assert all(module.training for module in supernet.modules())


def test_errors_name_the_paths_and_after_a_failure_the_one_that_failed(supernet, batch):
    images, labels = batch
    paths = fair_paths(supernet.space, 0)
    task = single_path_task(supernet, paths, SMOOTHING)
    named = [str(each) for each in supernet.space.architectures(paths(4))]
    assert task.describe(4) == f"paths {', '.join(named)}"
    _, module = next((name, module) for name, module in supernet.modules_on(paths(4)[1]) if name == "width")
    next(module.parameters()).data.fill_(float("nan"))
    assert not task.backward(4, images, labels).isfinite()
    assert task.describe(4) == f"path {named[1]}"
    single = uniform_paths(supernet.space, 0)
    assert single_path_task(supernet, single, SMOOTHING).describe(4) == (
        f"path {supernet.space.architectures(single(4))[0]}")


def test_a_budget_limits_the_paths_that_are_trained(supernet, batch):
    images, labels = batch
    space, config = supernet.space, dataclasses.replace(CONFIG, seed=9)
    macs = {str(each): space.network(each).macs
            for each in space.architectures(np.argwhere(np.ones([len(each.options) for each in space.decisions])))}
    budget = sorted(macs.values())[4]
    task = spos_task(supernet, SinglePath(max_cost=budget), config, MacsCost())
    described = {task.describe(step).removeprefix("path ") for step in range(200)}
    assert described == {name for name, each in macs.items() if each <= budget}
    assert task.backward(0, images, labels) > 0
    everything = spos_task(supernet, SinglePath(), config)
    assert {everything.describe(step).removeprefix("path ") for step in range(400)} == macs.keys()
    with pytest.raises(InputError, match="need costs"):
        spos_task(supernet, SinglePath(max_cost=budget), config)
    with pytest.raises(InfeasibleError, match="raise the budget"):
        spos_task(supernet, SinglePath(max_cost=1), config, MacsCost())
    with pytest.raises(InputError, match="random_paths must be at least 0"):
        Sandwich(random_paths=-1)


@pytest.mark.parametrize("method", ["fairnas", "sandwich"])
def test_training_learns_and_resumes_to_the_bit(space, dataset, tmp_path, method):
    config = dataclasses.replace(CONFIG, epochs=3, learning_rate=0.03)

    def task():
        supernet = build_supernet(space, config.seed)
        return fairnas_task(supernet, Fair(), config) if method == "fairnas" else sandwich_task(supernet, Sandwich(), config)

    def stop(step, *_):
        if step == 13:
            interrupt()

    whole, broken = task(), task()
    state = run_loop(whole, dataset, config, {}, tmp_path / "whole")
    assert state.epoch_losses[-1] < state.epoch_losses[0]
    with pytest.raises(KeyboardInterrupt):
        run_loop(broken, dataset, config, {}, tmp_path / "broken", stop)
    resumed = task()
    run_loop(resumed, dataset, config, {}, tmp_path / "broken")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name

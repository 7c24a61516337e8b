"""Path dropout: its schedule and rates, ghost batches with paths of their own, and an L2 term of retained paths alone."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, SeparableConv, Stem
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.supernet import SupernetEvaluator, build_supernet
from hwnas.supernet.cells import term_name
from hwnas.supernet.one_shot import OneShot, ghost_batches, mix_retained, one_shot_task, retained_paths, summed_paths
from tests.supernet.cell_spaces import darts_like, one_shot_like
from tests.supernet.samples import CLASSES, CONFIG, tiny_dataset, tiny_space

HALF = OneShot(final_dropout_rate=0.3, ghost_batch_size=4)
STEPS = 101


def layered() -> SearchSpace:
    """Two layers whose options give one shape."""
    return SearchSpace("sums", TensorShape(3, 16, 16), (
        Fixed("stem", Stem(8)),
        Decision("one", {"skip": Identity(), "conv": ConvBlock(8, 3), "separable": SeparableConv(8, 3)}),
        Decision("two", {"k3": ConvBlock(12, 3, 2), "k5": ConvBlock(12, 5, 2)}),
        Fixed("head", Head(CLASSES, 16))))


SPACES = {"darts-like": darts_like, "one-shot-like": one_shot_like, "layered": layered}
every_space = pytest.mark.parametrize("name", SPACES)


def batch(size=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 16, 16, generator=generator), torch.randint(CLASSES, (size,), generator=generator)


def task_for(supernet, settings=HALF, **changes):
    return one_shot_task(supernet, settings, dataclasses.replace(CONFIG, **changes), STEPS)


def gradients(supernet, task, step, images, labels):
    supernet.zero_grad(set_to_none=True)
    loss = task.backward(step, images, labels)
    return loss, {name: parameter.grad for name, parameter in supernet.named_parameters() if parameter.grad is not None}


def gradients_by_name(loss, parameters):
    """Of the parameters that a loss depends on."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


# Which paths


def test_the_rate_rises_linearly_from_nothing_to_the_kth_root():
    settings = OneShot(final_dropout_rate=0.05)
    for paths in (1, 2, 7):
        rates = [settings.dropout_rate(paths, step, STEPS) for step in range(STEPS)]
        assert rates[0] == 0 and rates[-1] == pytest.approx(0.05 ** (1 / paths))
        assert np.diff(rates) == pytest.approx(np.full(STEPS - 1, rates[-1] / (STEPS - 1)))
    assert OneShot(final_dropout_rate=0.0).dropout_rate(7, STEPS - 1, STEPS) == 0


@pytest.mark.parametrize("paths", [1, 2, 5])
@pytest.mark.parametrize("step", [0, 50, 100])
def test_paths_are_dropped_at_the_rate_and_never_all(paths, step):
    draws = 4000
    counts = np.zeros(paths)
    for ghost in range(draws):
        (kept,) = retained_paths([[("path", number) for number in range(paths)]], HALF, 7, step, STEPS, ghost)
        assert kept
        counts[[number for _, number in kept]] += 1
    rate = 0.3 ** (1 / paths) * step / 100
    dropped = rate - rate**paths / paths  # the survivor of a draw that would drop all is any of them
    deviation = np.sqrt(dropped * (1 - dropped) / draws)
    assert np.abs(1 - counts / draws - dropped).max() <= 4.5 * deviation


def test_paths_are_a_function_of_seed_step_and_ghost_batch():
    sums = summed_paths(build_supernet(darts_like()))
    found = {(seed, step, ghost): str(retained_paths(sums, HALF, seed, step, STEPS, ghost))
             for seed in (0, 1) for step in (90, 91) for ghost in (0, 1)}
    assert len(set(found.values())) == len(found)
    assert all(str(retained_paths(sums, HALF, seed, step, STEPS, ghost)) == drawn
               for (seed, step, ghost), drawn in found.items())


def test_every_term_of_every_state_can_be_dropped():
    space = darts_like()
    sums = summed_paths(build_supernet(space))
    assert [list(map(tuple, paths)) for paths in sums] == [[(operation, source) for operation, source in terms]
                                                           for kind in space.kinds.values() for terms in kind.possible_terms]
    assert [len(paths) for paths in summed_paths(build_supernet(layered()))] == [1, 3, 2, 1]


@pytest.mark.parametrize(("images", "size", "expected"), [
    (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 5]), (5, 4, [5]), (3, 4, [3]), (2, 2, [2]), (7, 2, [2, 2, 3])])
def test_a_batch_is_cut_into_ghost_batches_of_at_least_two(images, size, expected):
    cut = list(ghost_batches(images, size))
    assert [one.stop - one.start for one in cut] == expected
    assert [index for one in cut for index in range(one.start, one.stop)] == list(range(images))


# What they compute


@every_space
def test_without_dropout_all_options_are_added_up(name):
    supernet = build_supernet(SPACES[name](), seed=2).eval()
    images, _ = batch()
    with torch.inference_mode():
        got = mix_retained(supernet, images, summed_paths(supernet))
        modules = dict(supernet._modules)
        if name == "layered":
            x = modules["stem/stem"](images)
            x = x + modules["one/conv"](x) + modules["one/separable"](x)
            expected = modules["head/head"](modules["two/k3"](x) + modules["two/k5"](x))
        else:
            before = last = modules["stem"](images)
            for cell in supernet.space.skeleton.cells:
                states = [modules.get(f"{cell.name}/{which}", lambda x: x)(x)
                          for which, x in (("current", last), ("previous", before))]
                states = states[::-1] if supernet.space.skeleton.previous_first else states
                for state, terms in enumerate(supernet.space.kinds[cell.kind].possible_terms, 2):
                    computed = [modules.get(term_name(cell, state, term), lambda x: x)(states[term[1]]) for term in terms]
                    states.append(torch.stack(computed).sum(0))
                before, last = last, torch.cat([states[state] for state in supernet.space.kinds[cell.kind].concat], 1)
            expected = modules["head"](last)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


@every_space
@pytest.mark.parametrize("size", [8, 10, 9])
def test_loss_and_gradients_are_the_means_over_ghost_batches_each_with_its_own_paths(name, size):
    supernet = build_supernet(SPACES[name](), seed=1).double()
    images, labels = batch(size)
    images = images.double()
    task = task_for(supernet, weight_decay=0.0, label_smoothing=0.1)
    loss, got = gradients(supernet, task, 80, images, labels)
    parameters = dict(supernet.named_parameters())
    expected, total = {}, 0.0
    cuts = {8: (0, 4, 8), 10: (0, 4, 8, 10), 9: (0, 4, 9)}[size]
    for ghost, (start, stop) in enumerate(itertools.pairwise(cuts)):
        kept = retained_paths(summed_paths(supernet), HALF, CONFIG.seed, 80, STEPS, ghost)
        part = functional.cross_entropy(mix_retained(supernet, images[start:stop], kept), labels[start:stop],
                                        label_smoothing=0.1) * (stop - start) / size
        total += float(part.detach())
        for key, gradient in gradients_by_name(part, parameters).items():
            expected[key] = expected.get(key, 0) + gradient
    assert float(loss) == pytest.approx(total) and not loss.requires_grad
    assert got.keys() == expected.keys()
    assert all(torch.allclose(got[key], expected[key], rtol=1e-6, atol=1e-9) for key in got)


@every_space
def test_weights_decay_in_proportion_to_the_images_whose_paths_use_them(name):
    decay, size = 0.01, 10
    supernet = build_supernet(SPACES[name](), seed=1).double()
    images, labels = batch(size)
    _, plain = gradients(supernet, task_for(supernet, weight_decay=0.0), 100, images.double(), labels)
    task = task_for(supernet, weight_decay=decay)
    assert not task.decays_weights  # or the optimiser would decay them once more
    _, decayed = gradients(supernet, task, 100, images.double(), labels)
    assert decayed.keys() == plain.keys()
    shares = {}
    for ghost, share in enumerate((0.4, 0.4, 0.2)):
        kept = retained_paths(summed_paths(supernet), HALF, CONFIG.seed, 100, STEPS, ghost)
        parameters = dict(supernet.named_parameters())
        for key in gradients_by_name(mix_retained(supernet, images.double(), kept).sum(), parameters):
            shares[key] = shares.get(key, 0) + share
    assert {round(share, 6) for share in shares.values()} > {1.0, 0.4}  # some weights on every path, some on few
    for key, gradient in plain.items():
        parameter = parameters[key].detach()
        expected = decay * shares[key] * parameter if parameter.ndim > 1 else torch.zeros_like(parameter)
        assert torch.allclose(decayed[key] - gradient, expected, rtol=1e-6, atol=1e-10), key


def test_the_scale_of_a_loss_is_that_of_its_weight_decay_too():
    supernet = build_supernet(layered()).double()
    images, labels = batch()
    task = task_for(supernet, weight_decay=0.3)
    _, once = gradients(supernet, task, 40, images.double(), labels)
    task.loss_scale.factor = 256.0
    loss, scaled = gradients(supernet, task, 40, images.double(), labels)
    assert float(loss) < 10  # is told as it is
    assert all(torch.allclose(scaled[name], 256 * gradient) for name, gradient in once.items())


def test_nothing_reaches_what_every_ghost_batch_drops():
    supernet = build_supernet(darts_like())
    images, labels = batch(8)
    _, got = gradients(supernet, task_for(supernet, weight_decay=0.1), 100, images, labels)
    kept = set()
    for ghost in (0, 1):
        drawn = iter(retained_paths(summed_paths(supernet), HALF, CONFIG.seed, 100, STEPS, ghost))
        for kind, each in supernet.space.kinds.items():
            for state, terms in enumerate([next(drawn) for _ in each.possible_terms], 2):
                kept |= {term_name(cell, state, term) for cell in supernet.space.skeleton.cells if cell.kind == kind
                         for term in terms}
    touched = {key.split(".")[0] for key in got if "@" in key}
    dropped = {key.split(".")[0] for key in supernet.state_dict() if "@" in key} - kept
    assert touched <= kept and dropped and touched


def test_gradients_that_are_there_are_added_to():
    supernet = build_supernet(one_shot_like()).double()
    images, labels = batch(8)
    task = task_for(supernet)
    _, once = gradients(supernet, task, 50, images.double(), labels)
    once = {key: gradient.clone() for key, gradient in once.items()}
    task.backward(50, images.double(), labels)
    assert all(torch.allclose(supernet.get_parameter(key).grad, 2 * gradient) for key, gradient in once.items())


def test_ghost_batches_have_batch_norm_statistics_of_their_own():
    supernet = build_supernet(darts_like(), seed=1)
    images, labels = batch(8)
    images[4:] = 3 * images[4:] + 1
    stem = supernet._modules["stem"]
    conv, norm = stem._modules["block/conv"], stem._modules["block/bn"]
    with torch.no_grad():
        means, variances = [], []
        for part in (images[:4], images[4:]):
            outputs = conv(part)
            means.append(outputs.mean((0, 2, 3)))
            variances.append(outputs.var((0, 2, 3)))
    task_for(supernet).backward(10, images, labels)
    moved = [0.09 * first + 0.1 * second for first, second in (means, variances)]  # two moves with momentum 0.1
    assert torch.allclose(norm.running_mean, moved[0], atol=1e-5)
    assert torch.allclose(norm.running_var, 0.81 + moved[1], rtol=1e-4)
    assert not torch.allclose(means[0], means[1], atol=0.1)


def test_it_learns_and_its_networks_score_with_batch_statistics():
    supernet, dataset = build_supernet(one_shot_like(), seed=0), tiny_dataset(train=64)
    images = torch.from_numpy(dataset.normalise(dataset.train.images))
    labels = torch.from_numpy(dataset.train.labels)
    task = one_shot_task(supernet, OneShot(0.05, 32), CONFIG, 30)
    optimizer = torch.optim.SGD(supernet.parameters(), 0.1, momentum=0.9)
    losses = []
    for step in range(30):
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(task.backward(step, images, labels)))
        optimizer.step()
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    scores = SupernetEvaluator(supernet, dataset, batch_statistics=True)(Trellis(supernet.space).sample(4, seed=0))
    assert np.mean(scores) > 0.5  # chance is 0.25


# What is refused


def test_options_of_several_shapes_cannot_be_added_up():
    with pytest.raises(InputError, match="those of 'width' give 8x4x4 and 12x4x4"):
        one_shot_task(build_supernet(tiny_space()), HALF, CONFIG, STEPS)


@pytest.mark.parametrize("settings", [{"final_dropout_rate": -0.1}, {"final_dropout_rate": 1.0}, {"ghost_batch_size": 1}])
def test_settings_that_cannot_train_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        OneShot(**settings)


def test_errors_can_say_what_a_step_computed():
    assert task_for(build_supernet(layered())).describe(50) == "all operations, 50% of the final path dropout"

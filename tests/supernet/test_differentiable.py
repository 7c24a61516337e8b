"""Differentiable search against brute force: unrolled gradients, limits of mixtures, enumerated gates, and whole runs."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.costs import MacsCost
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.table import load_table
from hwnas.spaces import SPACES
from hwnas.supernet import differentiable
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.differentiable import Darts, Differentiable, FBNet, Proxyless, differentiable_task
from hwnas.supernet.latency_loss import Additive, Multiplicative
from hwnas.supernet.layered import LayeredSupernet
from hwnas.supernet.loop import run_loop
from tests.supernet.samples import CLASSES, tiny_dataset, tiny_space
from tests.supernet.test_distribution import conditional_space

ROOT = Path(__file__).parents[2]
CONFIG = LoopConfig(epochs=4, batch_size=16, learning_rate=0.05, warmup_steps=2, max_shift=1, seed=5, threads=1)
STEPS = 100


def row_space() -> SearchSpace:
    """One width, so that all ways can search it."""
    options = {"k3": MBConv(8, 3, 2), "k5": MBConv(8, 5, 2), "conv": ConvBlock(8), "skip": Identity()}
    return SearchSpace("row", TensorShape(3, 16, 16), (
        Fixed("stem", Stem(8)), Decision("one", options), Decision("two", options), Decision("three", options),
        Fixed("head", Head(CLASSES, dropout=0.1))))


def middle(space, share: float = 0.5) -> float:
    trellis = Trellis(space, MacsCost())
    return (1 - share) * trellis.min_cost() + share * trellis.max_cost()


def make(settings, space=None, config=CONFIG, steps=STEPS, logits=None):
    space = space or row_space()
    supernet = LayeredSupernet(space, 1).train()
    task = differentiable_task(supernet, settings, config, MacsCost(), middle(space), steps)
    if logits is not None:
        with torch.no_grad():
            supernet.architecture.logits.copy_(torch.as_tensor(logits))
    return supernet, task


def way_of(task):
    return task.outer.update.__self__.way


def batch_of(space, seed: int = 0, size: int = 8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *space.input_shape, generator=generator), torch.arange(size) % CLASSES


def sgd_of(supernet):
    weights = [each for name, each in supernet.named_parameters() if name != "architecture.logits"]
    return torch.optim.SGD([{"params": weights, "weight_decay": 1e-2}], lr=0.05, momentum=0.9)


# Mixtures


@pytest.mark.parametrize("space", [tiny_space(), row_space(), SPACES["ofa-cpu"](CLASSES)], ids=lambda space: space.name)
def test_a_huge_logit_gives_the_single_path(space):
    supernet, _ = make(Darts(latency=Additive()), space)
    images, _ = batch_of(space)
    for row in Trellis(space).sample_indices(5, seed=1):
        with torch.no_grad():
            supernet.architecture.logits.zero_()
            for decision, choice in zip(space.decisions, row, strict=True):
                supernet.architecture.logits[supernet.architecture.pieces[decision.name].start + choice] = 80.0
            torch.manual_seed(0)
            mixed = supernet.mix(images, supernet.architecture.flow().mixture())
            torch.manual_seed(0)
            torch.testing.assert_close(mixed, supernet(images, row), rtol=1e-4, atol=1e-5)


def test_a_mixture_is_the_mean_in_each_state():
    """By hand on a space in which widths part and meet again."""
    space = SearchSpace("diamond", TensorShape(3, 8, 8), (
        Decision("width", {"narrow": ConvBlock(4), "wide": ConvBlock(8), "point": ConvBlock(8, 1)}),
        Fixed("meet", ConvBlock(6)), Fixed("head", Head(CLASSES))))
    supernet, _ = make(Darts(latency=Additive()), space, logits=[0.3, -0.2, 0.9])
    images, _ = batch_of(space)
    narrow, wide, point = torch.tensor([0.3, -0.2, 0.9]).softmax(0)
    part = supernet._modules
    upper = part["meet/conv@4x8x8"](part["width/narrow"](images))
    lower = part["meet/conv@8x8x8"]((wide * part["width/wide"](images) + point * part["width/point"](images)) / (wide + point))
    expected = part["head/head"](narrow * upper + (wide + point) * lower)
    torch.testing.assert_close(supernet.mix(images, supernet.architecture.flow().mixture()), expected)


def test_gradients_of_a_mixture_against_finite_differences():
    space = tiny_space()
    supernet, _ = make(Darts(latency=Additive()), space, logits=np.linspace(-1, 1, 8))
    supernet.double()
    images, labels = batch_of(space)
    images = images.double()

    def loss(logits):
        torch.manual_seed(0)
        return functional.cross_entropy(supernet.mix(images, supernet.architecture.flow(logits).mixture()), labels)

    logits = supernet.architecture.logits
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    for index in range(len(logits)):
        ends = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[index] += sign * 1e-5
            ends.append(float(loss(moved).detach()))
        assert float(gradient[index]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-8)


def mixed_weights(task, step: int, purpose: str = "weights"):
    flow = way_of(task).flow(step, purpose)
    return [{key: float(torch.as_tensor(how.weight).detach()) for key, how in step.items()} for step in flow.mixture()]


def test_cold_gumbel_samples_are_one_hot_and_the_same_in_all_states():
    space = tiny_space()
    supernet, task = make(FBNet(Additive(), temperature=1e-4, last_temperature=1e-4), space)
    chosen = set()
    for step in range(20):
        taken = way_of(task).flow(step, "weights").taken.exp().detach()
        mass = dict(zip(((position, edge.source, edge.option) for position, edges in enumerate(supernet.architecture.edges)
                         for edge in edges), taken.tolist(), strict=True))
        assert all(share == pytest.approx(0, abs=1e-6) or share == pytest.approx(1, abs=1e-6) for share in mass.values())
        noise = way_of(task).rng("gumbel noise of weights", step).gumbel(size=8)
        row = [int(noise[piece].argmax()) for piece in supernet.architecture.pieces.values()]
        path = [option for (position, _, option), share in mass.items() if share > 0.5 and space.steps[position].is_decision]
        assert path == row
        chosen.add(tuple(row))
    assert len(chosen) > 5


def test_hot_gumbel_samples_are_uniform():
    _, task = make(FBNet(Additive(), temperature=1e6, last_temperature=1e6))
    for weighed in mixed_weights(task, 3):
        np.testing.assert_allclose(list(weighed.values()), 1 / len(weighed), atol=1e-4)


def test_gumbel_samples_follow_the_softmax():
    """The largest weight of a sample is that of an option as often as its probability says: chi-square."""
    logits = np.random.default_rng(0).normal(0, 1, 12)
    supernet, task = make(FBNet(Additive()), logits=logits)
    counts = np.zeros(4)
    for step in range(1500):
        weighed = mixed_weights(task, step % STEPS + STEPS * (step // STEPS))[1]
        counts[max(weighed, key=weighed.get)[1]] += 1
    expected = supernet.architecture.probabilities()["one"] * counts.sum()
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_gumbel_noise_is_a_function_of_seed_step_and_purpose():
    _, task = make(FBNet(Additive()))
    _, again = make(FBNet(Additive()))
    _, other = make(FBNet(Additive()), config=dataclasses.replace(CONFIG, seed=6))
    assert mixed_weights(task, 3) == mixed_weights(again, 3)
    samples = [mixed_weights(task, 3), mixed_weights(task, 4), mixed_weights(task, 3, "architecture"), mixed_weights(other, 3)]
    assert all(one != two for one, two in itertools.combinations(samples, 2))


def test_temperature_falls_as_in_the_paper():
    settings = FBNet()
    for epoch in (0, 1, 45, 89):
        assert settings.temperature_at(epoch / 90) == pytest.approx(5.0 * math.exp(-0.045 * epoch))


# Second order


def smooth_space() -> SearchSpace:
    options = {"a": ConvBlock(4, 3, activation="silu"), "b": ConvBlock(4, 1, activation="silu"), "skip": Identity()}
    return SearchSpace("smooth", TensorShape(3, 6, 6), (
        Fixed("stem", ConvBlock(4, activation="silu")), Decision("one", options), Decision("two", options),
        Fixed("head", Head(CLASSES))))


class Mixing(nn.Module):
    def __init__(self, supernet, labels_smoothed: float):
        super().__init__()
        self.supernet, self.smoothing = supernet, labels_smoothed

    def forward(self, images, labels, logits):
        outputs = self.supernet.mix(images, self.supernet.architecture.flow(logits).mixture())
        return functional.cross_entropy(outputs, labels, label_smoothing=self.smoothing)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_second_order_gradient_is_that_of_the_unrolled_step(steps_before, monkeypatch):
    """Against autograd through the step itself, momentum and weight decay included."""
    monkeypatch.setattr(differentiable, "_EPSILON", 1e-4)
    space = smooth_space()
    supernet, task = make(Darts(latency=Additive(0.0), unrolled=True), space, logits=np.linspace(-1, 1, 6))
    supernet.double()
    optimizer = sgd_of(supernet)
    inner, outer = [(images.double(), labels) for images, labels in (batch_of(space, 1), batch_of(space, 2))]
    for step in range(steps_before):
        optimizer.zero_grad()
        task.backward(step, *inner)
        optimizer.step()
    optimizer.zero_grad()

    logits = supernet.architecture.logits
    mixing = Mixing(supernet, CONFIG.label_smoothing)
    weights = {name: each for name, each in mixing.named_parameters() if not name.endswith("logits")}
    gradients = torch.autograd.grad(mixing(*inner, logits), list(weights.values()), create_graph=True)
    moved = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        momentum = optimizer.state[weight]["momentum_buffer"] if steps_before else torch.zeros_like(weight)
        moved[name] = weight - 0.05 * (0.9 * momentum + gradient + 1e-2 * weight)
    loss = torch.func.functional_call(mixing, moved, (*outer, logits))
    (expected,) = torch.autograd.grad(loss, logits)
    first_order = torch.autograd.grad(mixing(*outer, logits), logits)[0]

    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    cost = supernet.architecture.expected_cost()
    found = way_of(task).step(0, inner, outer, optimizer, cost)
    torch.testing.assert_close(found.cross_entropy, loss.detach())
    torch.testing.assert_close(found.cross_entropy_gradient, expected, rtol=1e-5, atol=1e-9)
    assert not torch.allclose(first_order, expected, rtol=1e-2)  # the test could tell
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items() if "running" not in name)


def test_the_finite_difference_of_the_paper_is_close_in_single_precision():
    space = smooth_space()
    supernet, task = make(Darts(latency=Additive(0.0), unrolled=True), space, logits=np.linspace(-1, 1, 6))
    inner, outer = batch_of(space, 1), batch_of(space, 2)
    single = way_of(task).step(0, inner, outer, sgd_of(supernet), supernet.architecture.expected_cost())
    supernet.double()
    doubles = [(images.double(), labels) for images, labels in (inner, outer)]
    exact = way_of(task).step(0, *doubles, sgd_of(supernet), supernet.architecture.expected_cost())
    difference = (single.cross_entropy_gradient - exact.cross_entropy_gradient).norm() / exact.cross_entropy_gradient.norm()
    assert float(difference) < 1e-2


# Binary gates


def test_pairs_are_drawn_by_probability_without_replacement():
    """Pairs, the active one of each, and the paths of the weights, by chi-square."""
    logits = np.random.default_rng(4).normal(0, 1, 12)
    supernet, task = make(Proxyless(Additive()), logits=logits)
    p = supernet.architecture.probabilities()["one"]
    pairs = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    paths = np.zeros(4)
    for step in range(4000):
        taken, _ = way_of(task).draw(step)
        pairs[taken[1].active.option, taken[1].other.option] += 1
        paths[way_of(task).path(step)[0]] += 1
    expected = {(one, two): p[one] * p[two] * (1 / (1 - p[one]) + 1 / (1 - p[two])) * p[one] / (p[one] + p[two])
                for one, two in pairs}
    assert sum(expected.values()) == pytest.approx(1)
    assert stats.chisquare(list(pairs.values()), [4000 * share for share in expected.values()]).pvalue > 1e-3
    assert stats.chisquare(paths, 4000 * p).pvalue > 1e-3


def gate_space(count: int) -> SearchSpace:
    options = {"a": ConvBlock(4), "b": ConvBlock(4, 1), "c": ConvBlock(4, 5)}
    return SearchSpace("gate", TensorShape(3, 6, 6), (Decision("only", dict(list(options.items())[:count])),))


@pytest.mark.parametrize("count", [2, 3])
def test_expected_gradient_of_gates_is_the_exact_one(count, monkeypatch):
    """A loss that is linear in the output: the gradient of its mean over options, for two options from every single draw."""
    space = gate_space(count)
    supernet, task = make(Proxyless(Additive()), space, logits=np.linspace(-0.5, 0.7, count))
    way = way_of(task)
    images, _ = batch_of(space)
    direction = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(way, "loss", lambda outputs, labels: (outputs * direction).sum() / 100)
    losses = np.array([float((supernet(images, [option]).detach() * direction).sum() / 100) for option in range(count)])
    p = supernet.architecture.probabilities()["only"]
    pairs = list(itertools.combinations(range(count), 2))
    chances = np.array([p[one] * p[two] * (1 / (1 - p[one]) + 1 / (1 - p[two])) if count > 2 else 1.0 for one, two in pairs])
    seen = np.zeros((len(pairs), count))
    for step in range(30):
        found = way.step(step, (images, direction), (images, direction), sgd_of(supernet), supernet.architecture.expected_cost())
        pair = tuple(sorted(found.pairs[0].tolist()))
        share = p[pair[0]] / (p[pair[0]] + p[pair[1]])
        expected = np.zeros(count)
        expected[list(pair)] = share * (1 - share) * (losses[pair[0]] - losses[pair[1]]) * np.array([1, -1])
        np.testing.assert_allclose(found.cross_entropy_gradient.numpy(), expected, rtol=1e-4, atol=1e-6)
        seen[pairs.index(pair)] = found.cross_entropy_gradient.numpy()
    exact = p * (losses - p @ losses)
    mean = (chances[:, None] * seen).sum(0)
    if count == 2:
        np.testing.assert_allclose(mean, exact, rtol=1e-4)
    else:  # each pair counts in proportion to its own chance, so the direction is that of a descent
        assert mean @ exact > 0.9 * np.linalg.norm(mean) * np.linalg.norm(exact)


def test_gradient_of_gates_against_finite_differences():
    """Of the loss with respect to the gates themselves, in a row of decisions."""
    supernet, task = make(Proxyless(Additive()), logits=np.random.default_rng(2).normal(0, 1, 12))
    supernet.double()
    images, labels = batch_of(supernet.space)
    images = images.double()
    way, logits = way_of(task), supernet.architecture.logits
    taken, numbers = way.draw(7)

    def loss(gates):
        torch.manual_seed(0)
        return way.loss(supernet.mix(images, differentiable._gated(taken, gates)), labels)

    gates = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    slopes = np.zeros((3, 2))
    for place in np.ndindex(3, 2):
        ends = []
        for sign in (1, -1):
            moved = gates.clone()
            moved[place] += sign * 1e-5
            ends.append(float(loss(moved).detach()))
        slopes[place] = (ends[0] - ends[1]) / 2e-5
    two_way = logits[torch.from_numpy(numbers)].softmax(1).detach().numpy()
    expected = np.zeros(12)
    expected[numbers] = two_way * (slopes - (two_way * slopes).sum(1, keepdims=True))  # eq. 4
    torch.manual_seed(0)
    found = way.step(7, None, (images, labels), None, supernet.architecture.expected_cost())
    np.testing.assert_allclose(found.cross_entropy_gradient.numpy(), expected, rtol=1e-4, atol=1e-9)


def test_gates_open_exactly_and_compute_the_active_path():
    supernet, task = make(Proxyless(Additive()))
    taken, _ = way_of(task).draw(1)
    gates = differentiable._Gate.apply(torch.tensor([[0.3, 0.7]] * 3, requires_grad=True))
    assert gates.tolist() == [[1.0, 0.0]] * 3
    images, _ = batch_of(supernet.space)
    torch.manual_seed(0)
    mixed = supernet.mix(images, differentiable._gated(taken, gates))
    torch.manual_seed(0)
    path = [edges.active.option for edges, step in zip(taken, supernet.space.steps, strict=True) if step.is_decision]
    torch.testing.assert_close(mixed, supernet(images, path), rtol=0, atol=0)


def test_an_update_shifts_probability_within_pairs_alone():
    supernet, task = make(Proxyless(Additive()), logits=np.random.default_rng(2).normal(0, 1, 12))
    batch = batch_of(supernet.space)
    for step in range(30, 34):
        before = np.concatenate(list(supernet.architecture.probabilities().values()))
        _, numbers = way_of(task).draw(step)
        task.outer.update(step, batch, batch, sgd_of(supernet))
        after = np.concatenate(list(supernet.architecture.probabilities().values()))
        others = np.setdiff1d(np.arange(12), numbers)
        np.testing.assert_allclose(after[others], before[others], atol=1e-6)
        assert (np.abs(after[numbers] - before[numbers]) > 1e-4).all()


def test_gates_take_conditions_but_not_shapes_that_differ():
    """In elastic depth the options of a state lead to different states of one shape; widths cannot be compared."""
    with pytest.raises(InputError, match="'resolution' of space 'ofa-cpu' differ: search it with fbnet"):
        make(Proxyless(Additive()), SPACES["ofa-cpu"](CLASSES))
    with pytest.raises(InputError, match="'width' of space 'tiny'"):
        make(Proxyless(Additive()), tiny_space())
    options = {"k3": MBConv(8, 3, 2), "k5": MBConv(8, 5, 2), "skip": Identity()}
    depth = SearchSpace("depth", TensorShape(3, 16, 16), (
        Fixed("stem", Stem(8)), Decision("one", options),
        Decision("two", options, after={"k3": ("k3", "k5"), "k5": ("k3", "k5")}), Fixed("head", Head(CLASSES))))
    supernet, task = make(Proxyless(Additive()), depth)
    batch = batch_of(depth)
    for step in range(10):
        figures = task.outer.update(step, batch, batch, sgd_of(supernet))
    assert all(map(math.isfinite, figures.values()))


# Updates


WAYS = {"darts": Darts(), "darts-2": Darts(unrolled=True), "fbnet": FBNet(), "proxyless": Proxyless()}


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_updates_move_the_logits_and_steps_the_weights(settings):
    supernet, task = make(settings)
    optimizer, batch = sgd_of(supernet), batch_of(supernet.space)
    for step in range(2):
        before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
        figures = task.outer.update(step, batch, batch_of(supernet.space, 1), optimizer)
        after = supernet.state_dict()
        assert [name for name in before if not torch.equal(before[name], after[name])] == ["architecture.logits"]
        assert all(each.grad is None for each in supernet.parameters())
        assert {"cross_entropy", "expected_MACs", "entropy", "collapse"} <= set(figures)
        before = {name: tensor.clone() for name, tensor in after.items()}
        task.backward(step, *batch)
        assert supernet.architecture.logits.grad is None
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(before["architecture.logits"], supernet.state_dict()["architecture.logits"])
        assert not torch.equal(before["stem/stem.block/conv.weight"], supernet.state_dict()["stem/stem.block/conv.weight"])


def test_the_deviation_is_logged_where_it_is_led():
    logits = np.random.default_rng(3).normal(0, 1, 12)
    supernet, task = make(Darts(learning_rate=1e-9), logits=logits)
    space, batch = supernet.space, batch_of(supernet.space)
    early, late = (task.outer.update(step, batch, batch, sgd_of(supernet)) for step in (0, STEPS - 1))
    assert "deviation_MACs" not in early
    shares = np.exp(logits).reshape(3, 4) / np.exp(logits).reshape(3, 4).sum(1, keepdims=True)
    rows = np.array(list(itertools.product(range(4), repeat=3)))
    weights = shares[range(3), rows].prod(1)
    costs = Trellis(space, MacsCost()).costs_of(rows)
    deviation = math.sqrt(weights @ (costs - weights @ costs) ** 2)
    assert late["deviation_MACs"] == pytest.approx(deviation, rel=1e-3)


def test_rates_reach_and_settings_are_checked():
    _, task = make(Darts(), steps=400)
    assert task.outer.optimizer.param_groups[0]["lr"] == pytest.approx(10 / 400)
    _, task = make(FBNet(learning_rate=0.01, warmup=0.5))
    assert task.outer.optimizer.param_groups[0]["lr"] == 0.01 and task.outer.first_epoch == 2
    for change, message in (({"learning_rate": 0.0}, "learning_rate"), ({"share": 1.0}, "share"), ({"warmup": 1.0}, "warmup"),
                            ({"weight_decay": math.nan}, "weight_decay"), ({"temperature": 0.0}, "Temperatures")):
        with pytest.raises(InputError, match=message):
            FBNet(**change)


def test_a_target_out_of_reach_is_refused():
    space = row_space()
    with pytest.raises(InfeasibleError, match="cheapest"):
        differentiable_task(LayeredSupernet(space), Darts(), CONFIG, MacsCost(), 1.0, STEPS)


# Runs


def run(settings, folder, target_share=0.4, epochs=8, space=None, progress=None, recorded=None):
    space = space or row_space()
    config = dataclasses.replace(CONFIG, epochs=epochs, checkpoint_seconds=0.0 if progress else 30.0)
    dataset = tiny_dataset()
    steps = int(len(dataset.train) * (1 - settings.share)) // config.batch_size * epochs
    supernet = LayeredSupernet(space, 1)
    target = middle(space, target_share)
    task = differentiable_task(supernet, settings, config, MacsCost(), target, steps)
    if recorded is not None:
        def update(*arguments):
            recorded.append(task.outer.update(*arguments))
            return recorded[-1]
        recording = dataclasses.replace(task, outer=dataclasses.replace(task.outer, update=update))
    run_loop(task if recorded is None else recording, dataset, config, {"test": 1}, folder, progress)
    return supernet, target


@pytest.mark.parametrize("share", [0.15, 0.6])
@pytest.mark.parametrize("settings", [Darts(), FBNet(), Proxyless()], ids=["darts", "fbnet", "proxyless"])
def test_target_mode_hits_its_target_and_stays(settings, share, tmp_path):
    recorded: list[dict[str, float]] = []
    supernet, target = run(settings, tmp_path, share, recorded=recorded)
    costs = np.array([figures["expected_MACs"] for figures in recorded])
    late = costs[int(0.6 * len(costs)):]
    assert np.abs(late / target - 1).max() < 0.02
    assert float(supernet.architecture.expected_cost().detach()) == pytest.approx(target, rel=0.02)
    found = supernet.architecture.most_probable(target)
    assert Trellis(supernet.space, MacsCost()).cost(found) <= target


@pytest.mark.parametrize(("name", "settings", "share", "images"), [
    ("mobile-cpu", Darts(), 0.35, 40), ("mobile-cpu", FBNet(), 0.35, 24), ("mobile-cpu", Proxyless(), 0.15, 80),
    ("spos-cpu", Darts(), 0.7, 40), ("spos-cpu", FBNet(), 0.15, 24), ("spos-cpu", Proxyless(), 0.35, 80),
], ids=lambda value: type(value).__name__ if isinstance(value, Differentiable) else None)
def test_target_mode_on_a_published_space_and_its_measured_table(name, settings, share, images, tmp_path):
    """Real steps on the whole space with few and small images; the budget is also what the network that is taken needs."""
    table = load_table(ROOT / "latency_tables" / "amd-epyc-26-2-1" / "onnxruntime-cpu-fp32-1t" / f"{name}.json")
    trellis = Trellis(table.search_space, table)
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=2)
    target = trellis.min_cost() + share * (trellis.max_cost() - trellis.min_cost())
    supernet = LayeredSupernet(table.search_space, 1)
    steps = (images - int(settings.share * images)) // config.batch_size
    task = differentiable_task(supernet, settings, config, table, target, steps)
    run_loop(task, tiny_dataset(train=images), config, {"test": 1}, tmp_path)
    assert float(supernet.architecture.expected_cost().detach()) == pytest.approx(target, rel=0.02)
    assert 0.85 * target < trellis.cost(supernet.architecture.most_probable(target)) <= target


def test_target_mode_where_widths_and_conditions_differ(tmp_path):
    for space in (tiny_space(), conditional_space()):
        supernet, target = run(FBNet(), tmp_path / space.name, 0.3, epochs=5, space=space)
        assert float(supernet.architecture.expected_cost().detach()) == pytest.approx(target, rel=0.02)


@pytest.mark.parametrize("losses", [
    (Additive(0.0), Additive(20.0)), (Multiplicative(beta=0.0), Multiplicative(beta=15.0, per_unit=1e-4)),
], ids=["additive", "multiplicative"])
def test_a_higher_rate_makes_faster_networks(losses, tmp_path):
    costs = []
    for number, latency in enumerate(losses):
        supernet, _ = run(Darts(latency=latency), tmp_path / str(number), epochs=4)
        costs.append(float(supernet.architecture.expected_cost().detach()))
    assert costs[1] < 0.8 * costs[0]


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
def test_a_killed_run_ends_as_one_that_was_not(settings, tmp_path):
    class Killed(Exception):
        pass

    def kill(done, total, loss, speed):
        if done == 5:
            raise Killed

    whole, _ = run(settings, tmp_path / "whole", epochs=2)
    with pytest.raises(Killed):
        run(settings, tmp_path / "killed", epochs=2, progress=kill)
    resumed, _ = run(settings, tmp_path / "killed", epochs=2)
    state = resumed.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.state_dict().items())
    assert whole.architecture.logits.abs().max() > 0

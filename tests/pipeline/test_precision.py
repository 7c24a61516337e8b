"""One small trained network in every mix of precisions: against PyTorch, against its float self, and every mix scored."""

import itertools
import json

import numpy as np
import pytest
import torch

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Resolution, Stem
from hwnas.ir.cell_operations import PoolOperation
from hwnas.ir.costs import BitOpsCost
from hwnas.ir.quantized import Quantized
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.lower.onnx import to_onnx
from hwnas.lower.torch import to_torch
from hwnas.lower.weights import random_weights
from hwnas.pipeline.export import Exportable
from hwnas.pipeline.precision import (
    PrecisionEvaluator,
    calibrate_by_method,
    calibrate_precisions,
    precision_model,
    precision_space,
    single_changes,
    uniform_precision,
    weights_of,
)
from hwnas.runtimes import RuntimeConfig
from hwnas.search.result import Candidate
from hwnas.search.sensitivity import FrontConfig, pareto_front, search_front
from hwnas.spaces.load import load_space
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.evaluate import evaluate_module
from hwnas.supernet.retrain import load_network_weights, train_network

SPACE = SearchSpace("digits", (1, 16, 16), (
    Fixed("stem", Stem(8)), Decision("wide", {"mb": MBConv(12, 3, 3), "conv": ConvBlock(12)}),
    Fixed("pool", PoolOperation("max", 3, 2)), Decision("depth", {"mb": MBConv(12, 3, 2), "skip": Identity()}),
    Decision("last", {"mb": MBConv(12, 3, 2), "skip": Identity()}), Fixed("body", ConvBlock(16)), Fixed("head", Head(10, 24))))
ARCHITECTURE = SPACE.architecture({"wide": "mb", "depth": "skip", "last": "mb"})
LAYERS = ["stem", "wide", "last", "body", "head"]


def every(space):
    names = [decision.name for decision in space.decisions]
    return [space.architecture(dict(zip(names, options, strict=True)))
            for options in itertools.product(*(decision.options for decision in space.decisions))]


@pytest.fixture(scope="module")
def float_weights(tmp_path_factory, dataset):
    folder, network = tmp_path_factory.mktemp("network"), SPACE.network(ARCHITECTURE)
    train_network(network, dataset, folder, LoopConfig(epochs=30, batch_size=32, learning_rate=0.1, max_shift=1, threads=1))
    return load_network_weights(folder, network)


@pytest.fixture(scope="module")
def precisions():
    return precision_space(SPACE, ARCHITECTURE)


@pytest.fixture(scope="module")
def weights(precisions, float_weights, dataset):
    return calibrate_precisions(precisions, float_weights, dataset, images=128)


@pytest.fixture(scope="module")
def evaluator(precisions, weights, dataset):
    return PrecisionEvaluator(precisions, weights, dataset, dataset.validation)


def test_every_layer_with_convolutions_is_a_choice(precisions):
    assert [decision.name for decision in precisions.decisions] == LAYERS
    assert list(precisions.decisions[1].options) == ["mb_int8", "mb_fp32"]
    assert list(precisions.decisions[0].options) == ["stem_int8", "stem_fp32"]
    assert [layer.name for layer in precisions.layers if isinstance(layer, Fixed)] == ["pool"]
    assert precisions.size == 32
    other = precision_space(SPACE, SPACE.architecture(dict(ARCHITECTURE.choices) | {"wide": "conv"}))
    assert other.name != precisions.name and precisions.name.endswith("+int8+fp32")


def test_all_in_fp32_is_the_network_itself(precisions, float_weights, weights):
    architecture = uniform_precision(precisions, "fp32")
    network = SPACE.network(ARCHITECTURE)
    assert precisions.network(architecture) == network
    assert precision_model(precisions, architecture, weights) == to_onnx(network, float_weights).SerializeToString()


def test_networks_of_at_most_one_change(precisions):
    expected = [one for one in every(precisions) if sum(
        before[-4:] != now[-4:] for before, now in itertools.pairwise(one.choices.values())) <= 1]
    found = single_changes(precisions)
    assert len(found) == len(set(found)) == 2 * len(LAYERS) and set(found) == set(expected)


def test_only_signed_images_cost_a_bit(precisions):
    """What follows a ReLU, and a pool after it, is counted without a sign."""
    network = precisions.network(uniform_precision(precisions, "int8"))
    signed = {node.name: node.layer.signed for node in network.nodes if node.name.endswith("_quantize")}
    assert signed["stem/input_quantize"] and not signed["wide/input_quantize"]


def test_a_searched_resolution_is_the_one_that_was_chosen():
    space = SearchSpace("sizes", (3, 32, 32), (Decision("size", {"r24": Resolution(24), "r32": Resolution(32)}),
                                               Fixed("stem", Stem(8)), Fixed("head", Head(5))))
    architecture = space.architecture({"size": "r24"})
    found = precision_space(space, architecture)
    assert found.input_shape == (3, 24, 24) and len(found.decisions) == 1
    assert found.network(uniform_precision(found, "fp32")) == space.network(architecture)


def test_a_searched_resolution_is_what_images_are_brought_to(dataset):
    """The network of 12x12 on images of 16x16, as PyTorch computes it and as it is exported."""
    space = SearchSpace("sizes", (1, 16, 16), (Decision("size", {"r12": Resolution(12), "r16": Resolution(16)}), *SPACE.layers))
    architecture = space.architecture({"size": "r12", **ARCHITECTURE.choices})
    network, small = space.network(architecture), precision_space(space, architecture)
    floats = random_weights(network)
    weights = calibrate_by_method(small, floats, dataset, images=32)["minmax"]
    found = PrecisionEvaluator(small, weights, dataset, dataset.validation).evaluate(uniform_precision(small, "fp32"))
    images = torch.from_numpy(dataset.normalise(dataset.validation.images))
    with torch.inference_mode():
        logits = to_torch(network, floats).eval()(torch.nn.functional.interpolate(images, (12, 12), mode="bilinear"))
    np.testing.assert_array_equal(found.predicted, logits.argmax(1))
    made = Exportable(network, floats, "small", architecture, None, dataset, 0.1, space).in_int8(32)
    assert made.network.input_shape == (1, 12, 12) and 0 <= made.accuracy <= 1


def test_other_scales_share_the_float_network(precisions, float_weights, weights, dataset, evaluator, monkeypatch):
    int8 = uniform_precision(precisions, "int8")
    first = PrecisionEvaluator(precisions, float_weights, dataset, dataset.validation)
    expected, computed, logits = evaluator.evaluate(int8).divergence, [], PrecisionEvaluator._logits
    monkeypatch.setattr(PrecisionEvaluator, "_logits", lambda self, model: computed.append(model) or logits(self, model))
    coarse = {name: 2 * array if name.endswith(".scale") else array for name, array in weights.items()}
    assert first.with_weights(weights).evaluate(int8).divergence == expected
    assert first.with_weights(coarse).evaluate(int8).divergence != expected
    assert len(computed) == 2  # neither of them the float network


def test_every_mix_is_computed_as_pytorch_computes_it(precisions, weights, dataset, evaluator):
    """Values near the middle of two steps may go either way, and then a few logits end a step beside."""
    images = torch.from_numpy(dataset.normalise(dataset.validation.images))
    for architecture in every(precisions):
        network = precisions.network(architecture)
        module = to_torch(network, weights_of(network, weights)).eval()
        with torch.inference_mode():
            logits = module(images).numpy()
        found = evaluator._logits(precision_model(precisions, architecture, weights, 20))
        off = np.abs(found - logits) / np.ptp(logits)
        assert off.mean() < 1e-3 and off.max() < 0.03, architecture
        sure = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0] > 0.05 * np.ptp(logits)
        np.testing.assert_array_equal(evaluator.evaluate(architecture).predicted[sure], logits.argmax(axis=1)[sure])


@pytest.mark.parametrize("runtime", ["onnxruntime-cpu", "openvino-cpu"])
def test_scores_are_those_of_the_model_that_is_exported(runtime, precisions, weights, dataset):
    """A batch of one, and batches of which the last is not full."""
    batched = PrecisionEvaluator(precisions, weights, dataset, dataset.validation, runtime=runtime, batch_size=13)
    for architecture in every(precisions)[::5]:
        exported = batched.evaluate_model(precision_model(precisions, architecture, weights))
        found = batched.evaluate(architecture)
        np.testing.assert_array_equal(exported.predicted, found.predicted)
        assert exported.divergence == pytest.approx(found.divergence, rel=1e-3, abs=1e-6)


def test_scores_of_the_float_network(precisions, float_weights, dataset, evaluator):
    found = evaluator.evaluate(uniform_precision(precisions, "fp32"))
    module = to_torch(SPACE.network(ARCHITECTURE), float_weights)
    expected = evaluate_module(module, dataset, dataset.validation.images, dataset.validation.labels)
    assert found.accuracy == expected > 0.5
    assert found.divergence == pytest.approx(0, abs=1e-9)


def test_the_divergence_is_that_of_class_probabilities(precisions, weights, dataset, evaluator):
    images = torch.from_numpy(dataset.normalise(dataset.validation.images))
    int8, plain = (uniform_precision(precisions, name) for name in ("int8", "fp32"))
    models = [precision_model(precisions, one, weights, len(images)) for one in (plain, int8)]
    first, second = (torch.distributions.Categorical(logits=torch.from_numpy(evaluator._logits(model))) for model in models)
    expected = float(torch.distributions.kl_divergence(first, second).mean())
    assert evaluator.evaluate(int8).divergence == pytest.approx(expected, rel=1e-6)
    assert evaluator([int8, plain]) == [-evaluator.evaluate(int8).divergence, -evaluator.evaluate(plain).divergence]


def test_the_search_finds_the_exhaustive_front(precisions, evaluator):
    """With bit operations as costs, and every mix scored by its real model."""
    trellis = Trellis(precisions, BitOpsCost(count_full_precision=True))
    found = every(precisions)
    costs = trellis.costs_of(precisions.indices(found)).tolist()
    truth = pareto_front([Candidate(one, evaluator([one])[0], cost, 0) for one, cost in zip(found, costs, strict=True)])
    references = [uniform_precision(precisions, name) for name in ("fp32", "int8")]
    result = search_front(trellis, evaluator, references, FrontConfig(budgets=50, rounds=4))
    front = pareto_front(result.history)
    assert len(truth) < result.evaluations < precisions.size
    reach = max(-one.score for one in truth)
    for one in truth:  # each member, or one that is as good but for a hundredth of what int8 costs
        assert any(other.cost <= one.cost and other.score >= one.score - 0.01 * reach for other in front)


def test_other_precisions(precisions, float_weights, dataset):
    halves = precision_space(SPACE, ARCHITECTURE, ("int8", "bf16"))
    assert halves.size == 32
    found = calibrate_precisions(halves, float_weights, dataset, images=64)
    scored = PrecisionEvaluator(halves, found, dataset, dataset.validation).evaluate(uniform_precision(halves, "bf16"))
    assert 0 < scored.divergence < 0.01
    with pytest.raises(InputError, match="precision 'fp32'"):
        uniform_precision(halves, "fp32")


def test_spaces_that_have_no_precisions_to_choose():
    cells = load_space("darts")
    with pytest.raises(InputError, match="space of cells"):
        precision_space(cells, cells.any_architecture)
    with pytest.raises(InputError, match="fp64"):
        precision_space(SPACE, ARCHITECTURE, ("fp64", "fp32"))
    with pytest.raises(InputError, match="must be of the space"):
        precision_space(SearchSpace("other", (1, 8, 8), SPACE.layers), ARCHITECTURE)
    few = SearchSpace("few", (1, 16, 16), (Decision("a", {"q": Quantized(Stem(8), 4, 4)}), Fixed("head", Head(5))))
    with pytest.raises(InputError, match="full precision"):
        precision_space(few, few.any_architecture)
    none = SearchSpace("none", (1, 16, 16), (Decision("a", {"pool": PoolOperation("max", 3, 2)}), Fixed("head", Head(5))))
    with pytest.raises(InputError, match="has none"):
        precision_space(none, none.any_architecture)


def test_mistakes(precisions, float_weights, weights, dataset):
    with pytest.raises(InputError, match="at least 16 images"):
        calibrate_precisions(precisions, float_weights, dataset, images=3)
    with pytest.raises(InputError, match="calibrate the network"):
        precision_model(precisions, uniform_precision(precisions, "int8"), float_weights)
    with pytest.raises(InputError, match="There is no runtime"):
        PrecisionEvaluator(precisions, weights, dataset, dataset.validation, runtime="abacus")
    colour = SearchSpace("other", (3, 16, 16), SPACE.layers)
    with pytest.raises(InputError, match="number of channels, 3, but have 1"):
        PrecisionEvaluator(precision_space(colour, colour.architecture(dict(ARCHITECTURE.choices))), weights, dataset,
                           dataset.validation)


def test_every_method_calibrates_as_it_does_alone(precisions, float_weights, dataset):
    found = calibrate_by_method(precisions, float_weights, dataset, images=64)
    assert len(found) == 3
    for method, weights in found.items():
        alone = calibrate_precisions(precisions, float_weights, dataset, images=64, method=method)
        assert set(weights) == set(alone)
        for name, array in weights.items():
            np.testing.assert_array_equal(array, alone[name])


def test_scores_outlive_their_process(precisions, weights, dataset, evaluator, tmp_path, monkeypatch):
    """Seen by a score that was changed on the disk; what is damaged, or of anything else, is computed."""
    def make(split=dataset.validation, **others):
        return PrecisionEvaluator(precisions, weights, dataset, split, scores=tmp_path, **others)

    one = uniform_precision(precisions, "int8")
    found = make().evaluate(one)
    expected = evaluator.evaluate(one)
    (path,) = tmp_path.iterdir()
    document = json.loads(path.read_text())
    again = make().evaluate(one)
    for evaluation in (found, again):
        assert evaluation.divergence == expected.divergence
        np.testing.assert_array_equal(evaluation.correct, expected.correct)
    path.write_text(json.dumps(document | {"divergence": 7.0}))
    assert make().evaluate(one).divergence == 7.0
    assert make(dataset.test).evaluate(one).divergence != 7.0
    assert make(config=RuntimeConfig(threads=2)).evaluate(one).divergence == expected.divergence
    assert len(list(tmp_path.iterdir())) == 3
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("hwnas.pipeline.precision.read_processor", lambda: "another processor")
        assert make().evaluate(one).divergence == expected.divergence
    assert len(list(tmp_path.iterdir())) == 4
    for damage in ("", "[]", "{}", json.dumps(document | {"predicted": [1, 2]}), json.dumps(document | {"predicted": "many"}),
                   path.read_text().replace("7.0", "NaN")):
        path.write_text(damage)
        assert make().evaluate(one).divergence == expected.divergence

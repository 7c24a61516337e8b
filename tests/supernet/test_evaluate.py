"""Scores: pure functions of weights, data and architecture, equal to a plain computation on the extracted network."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.data.dataset import Split
from hwnas.errors import InputError, VerificationError
from hwnas.lower.torch import to_torch
from hwnas.supernet import (
    SupernetEvaluator,
    build_supernet,
    evaluate_module,
    extract,
    inherited_weights,
    recalibrate_batch_norm,
)
from hwnas.supernet.evaluate import recalibrated
from tests.supernet.samples import tiny_dataset


@pytest.fixture(scope="module")
def supernet(space):
    return build_supernet(space, seed=2)


@pytest.fixture(scope="module")
def architectures(space):
    return space.architectures(np.array([[0, 0, 0], [1, 1, 1], [2, 2, 0], [1, 0, 1], [0, 2, 1]]))


def poisoned(split):
    """The same images with labels that are all wrong."""
    return Split(split.images, (split.labels + 1) % 4)


def accuracy_by_hand(supernet, architecture, dataset, split, calibration):
    module = extract(supernet, architecture)
    train = [torch.from_numpy(dataset.normalise(dataset.train.images[i:i + 80])) for i in range(0, calibration, 80)]
    recalibrate_batch_norm(module, train)
    with torch.inference_mode():
        predicted = module.eval()(torch.from_numpy(dataset.normalise(split.images))).argmax(1).numpy()
    return float((predicted == split.labels).mean())


def test_a_score_is_the_validation_accuracy_of_the_recalibrated_network(supernet, architectures, dataset):
    scores = SupernetEvaluator(supernet, dataset)(architectures)
    expected = [accuracy_by_hand(supernet, each, dataset, dataset.validation, 160) for each in architectures]
    assert scores == pytest.approx(expected, abs=1e-9)
    assert len(set(scores)) > 1


def test_scores_do_not_depend_on_order_or_history(supernet, architectures, dataset):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    evaluator = SupernetEvaluator(supernet, dataset)
    together = evaluator(architectures)
    assert evaluator(architectures[::-1])[::-1] == together
    assert [SupernetEvaluator(supernet, dataset)([each])[0] for each in architectures] == together
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())
    assert supernet.training and all(parameter.grad is None for parameter in supernet.parameters())


def test_stored_statistics_do_not_matter(space, supernet, architectures, dataset):
    other = build_supernet(space, seed=2)
    for name, tensor in other.state_dict().items():
        if "running" in name:
            tensor.fill_(17.0)
    assert SupernetEvaluator(other, dataset)(architectures) == SupernetEvaluator(supernet, dataset)(architectures)


def test_only_validation_images_score(supernet, architectures, dataset):
    scores = SupernetEvaluator(supernet, dataset)(architectures)
    hidden = dataclasses.replace(dataset, train=poisoned(dataset.train), test=poisoned(dataset.test))
    assert SupernetEvaluator(supernet, hidden)(architectures) == scores
    no_test = dataclasses.replace(dataset, test=None)
    assert SupernetEvaluator(supernet, no_test)(architectures) == scores
    shown = dataclasses.replace(dataset, validation=poisoned(dataset.validation))
    assert SupernetEvaluator(supernet, shown)(architectures) != scores


def test_a_part_of_the_validation_images_is_the_same_for_all(supernet, architectures, dataset):
    part = Split(dataset.validation.images[:40], dataset.validation.labels[:40])
    scores = SupernetEvaluator(supernet, dataset, validation_images=40)(architectures)
    assert scores == SupernetEvaluator(supernet, dataclasses.replace(dataset, validation=part))(architectures)


def test_the_batch_size_does_not_change_the_accuracy(supernet, architectures, dataset):
    assert (SupernetEvaluator(supernet, dataset, batch_size=7)(architectures)
            == SupernetEvaluator(supernet, dataset, batch_size=1000)(architectures))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_outputs_that_are_not_finite_name_the_architecture(space, architectures, dataset):
    broken = build_supernet(space)
    with torch.no_grad():
        for name, tensor in broken.state_dict().items():
            if name.endswith("classifier.weight"):
                tensor.fill_(3e38)
    with pytest.raises(VerificationError, match=f"Architecture {architectures[1]}: .*NaN or infinity"):
        SupernetEvaluator(broken, dataset)([architectures[1]])


def test_every_calibration_image_counts_as_much_as_another(supernet, architectures, dataset):
    """129 images are no batch of 128 and one of a single image, which would weigh as much."""
    found = recalibrated(supernet, architectures[0], dataset, calibration_images=129)
    expected = extract(supernet, architectures[0])
    images = torch.from_numpy(dataset.normalise(dataset.train.images[:129]))
    recalibrate_batch_norm(expected, [images[:65], images[65:]])
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"validation_images": 0}, {"validation_images": 81}, {"calibration_images": 0},
                                       {"calibration_images": 1}, {"batch_size": 0}])
def test_numbers_out_of_range_are_refused(supernet, dataset, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        SupernetEvaluator(supernet, dataset, **arguments)


def test_images_of_another_shape_are_refused(supernet):
    dataset = tiny_dataset()
    smaller = dataclasses.replace(dataset, train=Split(dataset.train.images[:, :, :8], dataset.train.labels))
    with pytest.raises(InputError, match="3x16x16, but those of noise are 3x8x16"):
        SupernetEvaluator(supernet, smaller)


def test_inherited_weights_are_those_that_were_scored(space, supernet, architectures, dataset):
    for architecture in architectures:
        network = space.network(architecture)
        module = to_torch(network, inherited_weights(supernet, architecture, dataset))
        score = evaluate_module(module, dataset, dataset.validation.images, dataset.validation.labels)
        assert score == SupernetEvaluator(supernet, dataset)([architecture])[0]


def test_evaluate_module_counts_correct_answers(dataset):
    class Oracle(nn.Module):
        """Knows the labels of the first 60 images and is wrong on the others."""

        seen = 0

        def forward(self, images):
            labels = dataset.validation.labels[self.seen:self.seen + len(images)]
            right = np.arange(self.seen, self.seen + len(images)) < 60
            self.seen += len(images)
            return nn.functional.one_hot(torch.from_numpy(np.where(right, labels, (labels + 1) % 4)), 4).float()

    assert evaluate_module(Oracle(), dataset, dataset.validation.images, dataset.validation.labels, 32) == 60 / 80


def test_every_layer_is_left_in_its_mode(dataset):
    frozen = nn.BatchNorm2d(3)
    model = nn.Sequential(frozen, nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    frozen.eval()
    evaluate_module(model, dataset, dataset.validation.images, dataset.validation.labels)
    assert [each for each in model.modules() if not each.training] == [frozen]


# Statistics of the evaluation batches


def test_batch_statistics_are_those_of_the_batches(supernet, architectures, dataset):
    scores = SupernetEvaluator(supernet, dataset, batch_statistics=True, batch_size=30)(architectures)
    for architecture, score in zip(architectures, scores, strict=True):
        module = extract(supernet, architecture)
        images = torch.from_numpy(dataset.normalise(dataset.validation.images))
        module.eval()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.train()
        with torch.inference_mode():
            predicted = torch.cat([module(part) for part in images.split([27, 27, 26])]).argmax(1).numpy()
        assert score == pytest.approx((predicted == dataset.validation.labels).mean(), abs=1e-9)
    assert scores != SupernetEvaluator(supernet, dataset)(architectures)


def test_batch_statistics_read_neither_stored_statistics_nor_training_images(space, supernet, architectures, dataset):
    scores = SupernetEvaluator(supernet, dataset, batch_statistics=True)(architectures)
    other = build_supernet(space, seed=2)
    for name, tensor in other.state_dict().items():
        if "running" in name:
            tensor.fill_(17.0)
    black = dataclasses.replace(dataset, train=Split(np.zeros_like(dataset.train.images), dataset.train.labels))
    evaluator = SupernetEvaluator(other, black, batch_statistics=True)
    assert evaluator(architectures[::-1])[::-1] == scores
    assert all((tensor == 17).all() for name, tensor in other.state_dict().items() if "running" in name)


def test_batch_statistics_of_one_image_are_refused(supernet, dataset):
    with pytest.raises(InputError, match="5 validation images in batches of at most 2 leave one alone"):
        SupernetEvaluator(supernet, dataset, batch_statistics=True, validation_images=5, batch_size=2)
    with pytest.raises(InputError, match="raise validation_images"):
        SupernetEvaluator(supernet, dataset, batch_statistics=True, validation_images=1)

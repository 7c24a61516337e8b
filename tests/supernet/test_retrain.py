"""A single network trains, resumes and is read back through the same loop; a teacher may help."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from hwnas.errors import InputError
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import SearchSpace
from hwnas.lower.torch import to_torch
from hwnas.supernet import build_supernet, evaluate_module, extract_weights, load_network_weights, train_network
from hwnas.supernet.distill import Distillation
from hwnas.supernet.evaluate import recalibrated
from hwnas.supernet.paths import largest_network
from hwnas.supernet.retrain import network_task
from tests.supernet.samples import CONFIG, interrupt, tiny_space

CONFIG = dataclasses.replace(CONFIG, epochs=6)


@pytest.fixture(scope="module")
def architecture(space):
    return space.architectures(np.array([[1, 1, 1]]))[0]


def test_it_learns_and_resumes_to_the_bit(space, dataset, architecture, tmp_path):
    network = space.network(architecture)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = train_network(network, dataset, whole, CONFIG)
    assert result.epoch_losses[-1] < result.epoch_losses[0]
    module = to_torch(network, load_network_weights(whole, network))
    assert evaluate_module(module, dataset, dataset.validation.images, dataset.validation.labels) > 0.6  # chance is 0.25

    with pytest.raises(KeyboardInterrupt):
        train_network(network, dataset, broken, CONFIG,
                      progress=lambda step, *_: interrupt() if step == 23 else None)
    train_network(network, dataset, broken, CONFIG)
    assert (broken / "network.safetensors").read_bytes() == (whole / "network.safetensors").read_bytes()
    assert train_network(network, dataset, whole, CONFIG).already_trained


def test_it_starts_from_inherited_weights(space, dataset, architecture, tmp_path):
    network = space.network(architecture)
    weights = extract_weights(build_supernet(space, 5), architecture)
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-9, weight_decay=0.0)
    train_network(network, dataset, tmp_path, config, weights=weights)
    trained = load_network_weights(tmp_path, network)
    for name, array in weights.items():
        if "running" not in name:
            np.testing.assert_allclose(trained[name], array, atol=1e-6)
    with pytest.raises(InputError, match="initial_weights_sha256 was"):
        train_network(network, dataset, tmp_path, config)


def test_what_belongs_to_another_network_is_refused(space, dataset, architecture, tmp_path):
    network, other = (space.network(each) for each in (architecture, space.architectures(np.array([[0, 0, 0]]))[0]))
    config = dataclasses.replace(CONFIG, epochs=1)
    train_network(network, dataset, tmp_path, config)
    with pytest.raises(InputError, match="network_sha256 was"):
        train_network(other, dataset, tmp_path, config)
    with pytest.raises(InputError, match="saved for this architecture"):
        load_network_weights(tmp_path, other)
    with pytest.raises(InputError, match="saved for this architecture"):
        train_network(network, dataset, tmp_path / "new", config, weights=extract_weights(
            build_supernet(space), space.architectures(np.array([[0, 0, 0]]))[0]))


@pytest.fixture(scope="module")
def teacher(space, dataset):
    """The largest network of a supernet, as it would be taken after training."""
    return recalibrated(build_supernet(space, 7), largest_network(space), dataset)


def test_it_learns_from_a_teacher_by_the_hand_written_loss(space, dataset, architecture, teacher):
    module = to_torch(space.network(architecture), seed=1).train()
    images = torch.from_numpy(dataset.normalise(dataset.train.images[:12]))
    labels = torch.from_numpy(dataset.train.labels[:12])
    plain, soft = copy.deepcopy(module), copy.deepcopy(teacher).eval()
    teacher = copy.deepcopy(teacher).train()  # as it may well arrive
    before = copy.deepcopy(teacher.state_dict())

    torch.manual_seed(0)
    loss = network_task(module, 0.2, teacher, Distillation(0.25, 3.0)).backward(0, images, labels)
    torch.manual_seed(0)  # the teacher draws no dropout, so the pupil's is the same
    logits = plain(images)
    targets = torch.full((12, 4), 0.05).scatter(1, labels[:, None], 0.85)
    expected = -(0.75 * targets * logits.log_softmax(1)).sum(1).mean() - (
        0.25 * 9 * (soft(images) / 3).softmax(1).detach() * (logits / 3).log_softmax(1)).sum(1).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(dict(module.named_parameters())[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)
    assert teacher.training and all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_sees_the_images_at_its_own_resolution(space, dataset, architecture):
    network = space.network(architecture)
    smaller = SearchSpace("small", TensorShape(3, 10, 10), space.layers)
    teacher = to_torch(smaller.network(smaller.any_architecture), seed=2).eval()
    seen = []
    teacher.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    images = torch.from_numpy(dataset.normalise(dataset.train.images[:4]))
    network_task(to_torch(network).train(), 0.0, teacher).backward(0, images, torch.zeros(4, dtype=torch.long))
    expected = torch.nn.functional.interpolate(images, (10, 10), mode="bilinear", align_corners=False)
    assert len(seen) == 1 and torch.equal(seen[0], expected)


def test_a_taught_run_resumes_to_the_bit_and_only_with_its_teacher(space, dataset, architecture, teacher, tmp_path):
    network = space.network(architecture)
    config = dataclasses.replace(CONFIG, epochs=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_network(network, dataset, whole, config, teacher=teacher)
    train_network(network, dataset, tmp_path / "alone", config)
    taught = (whole / "network.safetensors").read_bytes()
    assert taught != (tmp_path / "alone" / "network.safetensors").read_bytes()

    with pytest.raises(KeyboardInterrupt):
        train_network(network, dataset, broken, config, teacher=teacher,
                      progress=lambda step, *_: interrupt() if step == 7 else None)
    other = copy.deepcopy(teacher)
    next(other.parameters()).data[0] += 1e-3
    for folder in (whole, broken):
        for wrong, key in (({"teacher": other}, r"distillation\.teacher_weights_sha256 was"), ({}, "distillation was"),
                           ({"teacher": teacher, "distillation": Distillation(0.9)}, r"distillation\.weight was")):
            with pytest.raises(InputError, match=key):
                train_network(network, dataset, folder, config, **wrong)
    train_network(network, dataset, broken, config, teacher=copy.deepcopy(teacher), distillation=Distillation())
    assert (broken / "network.safetensors").read_bytes() == taught
    assert train_network(network, dataset, whole, config, teacher=teacher).already_trained


def test_the_last_bits_of_recalibrated_statistics_make_no_other_run(space, dataset, architecture, teacher, tmp_path):
    """They depend on the number of threads, with which a run may be continued."""
    network, config = space.network(architecture), dataclasses.replace(CONFIG, epochs=1)
    weights, teacher = extract_weights(build_supernet(space, 5), architecture), copy.deepcopy(teacher)
    train_network(network, dataset, tmp_path, config, weights=weights, teacher=teacher)
    weights = {name: np.nextafter(array, np.float32(2)) if name.endswith(".running_var") else array
               for name, array in weights.items()}
    for name, buffer in teacher.named_buffers():
        if name.endswith(".running_var"):
            buffer *= 1 + 2**-23
    assert train_network(network, dataset, tmp_path, config, weights=weights, teacher=teacher).already_trained
    name = next(name for name in weights if name.endswith(".weight"))
    with pytest.raises(InputError, match="initial_weights_sha256 was"):
        train_network(network, dataset, tmp_path, config, weights=weights | {name: np.nextafter(weights[name], np.float32(2))},
                      teacher=teacher)


def test_a_teacher_that_does_not_fit_is_refused(space, dataset, architecture, tmp_path):
    network = space.network(architecture)
    other = tiny_space(classes=5)
    with pytest.raises(InputError, match="an output for each class"):
        train_network(network, dataset, tmp_path, CONFIG, teacher=to_torch(other.network(other.any_architecture)))
    anything = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5))
    with pytest.raises(InputError, match=r"4 logits for each of 16 images, but gives the shape \(16, 5\)"):
        train_network(network, dataset, tmp_path, CONFIG, teacher=anything)
    with pytest.raises(InputError, match="needs a teacher"):
        train_network(network, dataset, tmp_path, CONFIG, distillation=Distillation())


def test_any_module_may_teach(space, dataset, architecture, tmp_path):
    torch.manual_seed(0)
    anything = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    config = dataclasses.replace(CONFIG, epochs=4)
    result = train_network(space.network(architecture), dataset, tmp_path, config, teacher=anything,
                           distillation=Distillation(weight=1.0, temperature=2.0))
    assert result.epoch_losses[-1] < result.epoch_losses[0]

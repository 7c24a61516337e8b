"""A single network trains, resumes and is read back through the same loop."""

import dataclasses

import numpy as np
import pytest

from hwnas.errors import InputError
from hwnas.lower.torch import to_torch
from hwnas.supernet import build_supernet, evaluate_module, extract_weights, load_network_weights, train_network
from tests.supernet.samples import CONFIG, interrupt

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

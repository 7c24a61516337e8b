"""The supernet computes exactly the networks of its space, one path at a time."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from hwnas.errors import InputError
from hwnas.supernet import build_supernet, extract, extract_weights
from tests.supernet.samples import tiny_space


def all_architectures(space):
    counts = [range(len(decision.options)) for decision in space.decisions]
    return space.architectures(np.array(list(itertools.product(*counts))))


@pytest.fixture(scope="module")
def used(space):
    """A supernet whose weights and batch-norm statistics are none of the initial ones."""
    supernet = build_supernet(space, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in supernet.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            else:
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return supernet.eval()


def test_extraction_of_every_path_equals_the_supernet(space, used):
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for architecture in all_architectures(space):
        weights = extract_weights(used, architecture)
        network = space.network(architecture)
        assert {name: array.shape for name, array in weights.items()} == network.weight_shapes
        module = extract(used, architecture)
        assert not module.training
        with torch.inference_mode():
            assert torch.equal(module(images), used(images, architecture)), architecture


def test_option_indices_are_the_same_path(space, used):
    images = torch.randn(2, 3, 16, 16)
    architectures = all_architectures(space)
    with torch.inference_mode():
        for architecture, row in zip(architectures, space.indices(architectures), strict=True):
            assert torch.equal(used(images, row), used(images, architecture))


def test_an_extracted_network_shares_nothing(space, used):
    architecture = all_architectures(space)[0]
    before = {name: tensor.clone() for name, tensor in used.state_dict().items()}
    module = extract(used, architecture)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(9)
    for array in extract_weights(used, architecture).values():
        array.fill(9)
    assert all(torch.equal(before[name], tensor) for name, tensor in used.state_dict().items())


def test_gradients_reach_the_path_and_nothing_else(space):
    supernet = build_supernet(space)
    for architecture in all_architectures(space):
        supernet.zero_grad(set_to_none=True)
        functional.cross_entropy(supernet(torch.randn(4, 3, 16, 16), architecture), torch.arange(4)).backward()
        touched = {name for name, parameter in supernet.named_parameters() if parameter.grad is not None}
        shapes, expected = [*space.steps[0].inputs], set()
        shape = shapes[0]
        for step, (layer, block) in zip(space.steps, space.blocks(architecture), strict=True):  # follows the path by its shapes
            edge = next(edge for edge in step.edges if edge.block == block and edge.input_shape == shape)
            suffix = f"@{shape}" if len(step.inputs) > 1 else ""
            expected |= {name for name, _ in supernet.named_parameters()
                         if name.startswith(f"{layer}/{step.options[edge.option]}{suffix}.")}
            shape = step.outputs[edge.target]
        assert touched == expected


def test_names_are_readable_and_tell_input_shapes_apart(space):
    names = {name.split(".")[0] for name in build_supernet(space).state_dict()}
    assert "stem/stem" in names and "width/wide" in names and "head/head" in names
    assert {"depth/conv@8x4x4", "depth/conv@12x4x4", "last/k5@8x4x4", "last/k5@12x4x4"} <= names
    assert not any(name.startswith("depth/skip") for name in names)


def test_initial_weights_follow_from_the_seed_and_differ_between_edges(space):
    first, second, other = (build_supernet(space, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem/stem.block/conv.weight"], other["stem/stem.block/conv.weight"])
    kernel, block = "block/depthwise_conv.weight", "last/k5@12x4x4"
    assert not torch.equal(first[f"{block}.{kernel}"][:16], first[f"last/k5@8x4x4.{kernel}"])


@pytest.mark.parametrize("path", [[0, 0], [0, 0, 0, 0], [0, 3, 0], [-1, 0, 0], [0.0, 1.0, 0.0]])
def test_a_path_that_is_not_of_the_space_is_refused(space, path):
    with pytest.raises(InputError, match="one option index for each decision"):
        build_supernet(space)(torch.zeros(1, 3, 16, 16), path)


def test_an_architecture_of_another_space_is_refused(space):
    other = tiny_space(classes=7)
    with pytest.raises(InputError, match="use the space that it was made for"):
        extract(build_supernet(space), all_architectures(other)[0])

"""The names that users import. A failure here means that users' code breaks: keep the old name, or change this on purpose."""

import hwnas


def test_every_public_name_is_there():
    assert set(hwnas.__all__) == set(hwnas._HOME_OF)
    for name in hwnas.__all__:
        assert getattr(hwnas, name).__module__.startswith("hwnas."), name


def test_unknown_names_are_refused():
    assert not hasattr(hwnas, "to_tensorflow")


def test_the_documented_session():
    """What the interface promises in Python, in one go."""
    space = hwnas.load_space("mobile-cpu")
    assert space.size == 7**8
    trellis = hwnas.Trellis(space)
    assert trellis.count() == space.size
    (architecture,) = trellis.sample(1, seed=0)
    network = space.network(architecture)
    assert network.macs > 0 and network.parameters > 0 and network.output_shape == (36, 1, 1)
    assert len(hwnas.to_onnx(network, seed=0).SerializeToString()) > 4 * network.parameters_by_kind["weights"]
    assert sum(parameter.numel() for parameter in hwnas.to_torch(network).parameters()) == network.parameters

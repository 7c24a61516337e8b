"""ProxylessNAS: the released networks' counts, and the spaces."""

import pytest

from hwnas.ir.blocks import Identity, MBConv
from hwnas.spaces.proxyless import NETWORKS, build_proxyless, build_proxyless_tiny

NETWORK = {network.name: network for network in NETWORKS}


@pytest.mark.parametrize(("name", "macs", "weights", "batch_norm"), [
    ("proxyless-mobile", 320_427_584, 4_045_016, 34_496),
    ("proxyless-mobile-1.4", 580_883_408, 6_809_288, 47_280),
    ("proxyless-gpu", 465_260_160, 7_073_328, 45_520),
    ("proxyless-cpu", 439_243_864, 4_325_560, 35_088),
])
def test_counts(name, macs, weights, batch_norm):
    network = NETWORK[name].network
    assert network.macs == macs
    assert network.parameters_by_kind.items() >= {"weights": weights, "batch_norm": batch_norm, "biases": 1000}.items()
    assert network.parameters == weights + batch_norm + 1000
    assert network.output_shape == (1000, 1, 1)


def test_no_network_is_left_out():
    assert len(NETWORKS) == len(NETWORK) == 4


def test_published_figures_are_the_counts():
    mobile = NETWORK["proxyless-mobile"]
    weights = mobile.network.parameters_by_kind["weights"]
    assert (round(mobile.network.macs / 1e6), round(weights / 1e6, 1)) == (320, 4.0)
    assert f"{weights:,}" in mobile.note and f"{mobile.network.parameters:,}" in mobile.note
    assert round(NETWORK["proxyless-gpu"].network.macs / 1e6) == 465


@pytest.mark.parametrize(("build", "size", "decisions"), [
    (build_proxyless, 6**6 * 7**15, 21), (build_proxyless_tiny, 7**8, 8)])
def test_sizes(build, size, decisions):
    space = build()
    assert (space.size, len(space.decisions)) == (size, decisions)


def test_a_committed_space_keeps_its_content():
    assert build_proxyless().hash == "7886511af33c67fdda36541069489c4aef77f759ea468a3077e7c45afc33b78f"


def test_the_tiny_space_chooses_among_the_same_candidates():
    candidates = {name: (block.kernel, block.expansion) for name, block in build_proxyless().decisions[0].options.items()}
    assert list(candidates.values()) == [(3, 3), (5, 3), (7, 3), (3, 6), (5, 6), (7, 6)]
    for decision in build_proxyless_tiny().decisions:
        options = dict(decision.options)
        assert options.pop("skip") == Identity()
        assert {name: (block.kernel, block.expansion) for name, block in options.items()} == candidates
        assert all(isinstance(block, MBConv) and block.stride == 1 for block in options.values())
    assert build_proxyless_tiny(classes=10).layers[-1].block.classes == 10

"""Keys of whole networks: read back as they were written, and told from all others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.ir.trellis import Trellis
from hwnas.latency.refusals import network_key, network_of
from hwnas.spaces.load import load_space
from tests.latency.test_table import _space


@pytest.mark.parametrize("name", ["mobile-cpu", "darts-cpu", "mobile-cpu+int8+fp32"])
def test_a_key_is_read_back(name):
    space = load_space(name)
    for network in Trellis(space).sample(5):
        assert network_of(space, network_key(network)) == network


def test_what_is_no_network_of_the_space():
    space = _space()
    key = network_key(Trellis(space).cheapest())
    assert network_of(space, key) is not None
    others = (*space.measured_parts, key.removeprefix("network "), f"{key} conv", key.rpartition(" ")[0], f"{key}x", f" {key}",
              "", "network", "network ", network_key(Trellis(load_space("mobile-cpu")).cheapest()))
    for other in others:
        assert network_of(space, other) is None, other


@given(st.text())
def test_any_text_is_taken(text):
    for key in (text, f"network {text}"):
        network = network_of(_space(), key)
        assert network is None or network_key(network) == key

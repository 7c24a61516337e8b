"""The benchmark's schemes: against made-up latencies whose makings are known, and against MACs, which are additive."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwnas.ir.costs import MacsCost
from hwnas.ir.network import build_network
from hwnas.ir.trellis import Trellis
from hwnas.latency.table import load_table
from hwnas.spaces.load import load_space

ROOT = Path(__file__).parents[2]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


schemes = load_tool("schemes")


@pytest.fixture(scope="module")
def networks():
    """Real networks of a real table; tests put their own latencies in place of the measured ones."""
    table = load_table(ROOT / "latency_tables/amd-epyc-26-2-1/openvino-cpu-fp32-1t/mobile-cpu.json")
    return schemes.read_networks(table)


def _errors(networks, truth, scheme, noise=0.0, spoil=()):
    """Relative errors on held-out networks of a scheme fitted on noisy sessions of a known truth."""
    generator = np.random.default_rng(0)
    sessions = [value * (1 + noise * generator.standard_normal(2)) for value in truth]
    for row in spoil:
        sessions[row][0] *= 1.5
    known = replace(networks, sessions=sessions)
    fit, held_out = networks.rows("fit"), networks.rows("held_out")
    predicted = schemes.SCHEMES[scheme](known, fit, [sessions[row] for row in fit])
    return np.abs(predicted[held_out] / truth[held_out] - 1)


@pytest.mark.parametrize("scheme", [name for name in schemes.SCHEMES if name not in ("sum", "networks only")])
def test_a_line_is_found_exactly(networks, scheme):
    truth = 0.1 + networks.counts @ (0.8 * networks.isolated + 0.01)
    assert _errors(networks, truth, scheme).max() < 1e-3


def test_counts_are_those_of_the_paths(networks):
    depth = networks.counts.sum(axis=1)
    assert (networks.pairs.sum(axis=1) == depth - 1).all() and (networks.kinds.sum(axis=1) == depth - 1).all()


def test_boundaries_find_what_pairs_cost(networks):
    """A cost of some kinds next to each other is no sum of blocks."""
    extra = np.random.default_rng(1).normal(0, 0.05, networks.kinds.shape[1])
    truth = 0.1 + networks.counts @ networks.isolated + networks.kinds @ extra
    line, found = _errors(networks, truth, "line"), _errors(networks, truth, "boundaries")
    assert found.mean() < 0.4 * line.mean()


def test_weighed_sessions_survive_bad_ones(networks):
    truth = 0.1 + networks.counts @ (0.8 * networks.isolated)
    spoil = networks.rows("fit")[::8]
    assert _errors(networks, truth, "shared + weighed", 0.005, spoil).mean() < 0.3 * _errors(
        networks, truth, "shared", 0.005, spoil).mean()


@pytest.mark.parametrize("name", ["mobile-cpu", "spos-cpu"])
def test_hosts_leave_exactly_the_block_where_cost_is_additive(name):
    """With MACs and a constant for each call as the latency, the costs in hosts add up to the network, its one call included."""
    space = load_space(name)
    call = 1e6
    ratios = {key: network.macs + call for key, network in schemes.host_networks(space).items()}
    costs = schemes.host_costs(space, ratios)
    for architecture in Trellis(space, MacsCost()).sample(5, seed=0):
        blocks = [part.workload for edge in space.path(architecture) for part in edge.parts if not part.block.is_free]
        assert sum(costs[block] for block in blocks) == pytest.approx(space.network(architecture).macs + call)


def test_a_refused_host_leaves_its_blocks_out():
    space = load_space("mobile-cpu")
    ratios = dict.fromkeys(schemes.host_networks(space), 1.0)
    shape = list(space.measured_parts.values())[-1].input_shape
    del ratios[f"host @ {shape}"]
    left = schemes.host_costs(space, ratios)
    missing = set(space.measured_parts) - set(left)
    assert missing and all(str(shape) in (str(part.input_shape), str(part.network.output_shape))
                           for part in space.measured_parts.values() if part.workload in missing)


def test_hosts_are_networks_of_their_own():
    space = load_space("mobile-cpu")
    part = list(space.measured_parts.values())[3]
    host = schemes.host_networks(space)[part.workload]
    assert host.output_shape == part.network.output_shape
    assert len(host.nodes) == len(build_network(part.input_shape, [("block", part.block)]).nodes) + 2 * 3

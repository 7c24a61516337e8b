"""The benchmark of context: its arithmetic on made-up costs, what it measures, and all of it on a tiny space."""

import json
from dataclasses import replace
from itertools import combinations
from statistics import median

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.lower.onnx import to_onnx
from hwnas.profiling.device import open_device
from hwnas.profiling.rounds import RoundsPlan
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RuntimeConfig
from hwnas.spaces.load import load_space
from tests.pipeline.samples import make_space
from tests.tools.test_schemes import load_tool

bench = load_tool("bench_context")
PLAN = RoundsPlan(1, 1, timing=TimingPlan(sample_ms=0.2, min_pairs=6, max_pairs=6, max_seconds=0.1, max_warmup_seconds=0.01))


def no_bar(done, total, key):
    assert 0 < done <= total and key


# The arithmetic, on costs that are known


def made_up(call, costs):
    """Chains of blocks of which each costs what it costs inside, and at its ends a call and a rest."""
    return {f"b{index}": bench.split_costs({length: call + rest + length * inside for length in bench.LENGTHS}, call)
            for index, (inside, rest) in enumerate(costs)}


def test_known_costs_are_recovered():
    splits = made_up(0.05, [(0.5, 0.1), (1.0, -0.02), (0.2, 0.0)])
    for split, (inside, rest) in zip(splits.values(), [(0.5, 0.1), (1.0, -0.02), (0.2, 0.0)], strict=True):
        assert (split.inside, split.rest, split.call) == pytest.approx((inside, rest, 0.05))
    row = bench.describe(splits)
    assert row["alone_over_inside"] == pytest.approx({"median": 0.25, "least": 0.03, "most": 0.30})
    assert row["call"] == pytest.approx({"median": 0.10, "least": 0.05, "most": 0.25})
    assert row["rest"] == pytest.approx({"median": 0.0, "least": -0.02, "most": 0.2})


def test_what_caches_held_is_in_the_rest():
    """Only the block alone finds everything in the caches; four and sixteen in a row do not."""
    split = bench.split_costs({1: 0.05 + 0.7, 4: 0.05 + 4.0, 16: 0.05 + 16.0}, 0.05)
    assert split.shares == pytest.approx({"alone_over_inside": -0.25, "call": 0.05, "rest": -0.3})


def test_a_block_that_costs_nothing_inside_is_counted_as_lost():
    row = bench.describe(made_up(0.05, [(0.5, 0.1), (-0.001, 0.0)]))
    assert (len(row["blocks"]), row["lost"]) == (1, 1)
    with pytest.raises(InputError, match="quiet machine"):
        bench.describe(made_up(0.05, [(0.0, 0.0)]))


def test_the_table_for_the_documentation_is_even():
    rows = [{"runtime": "r", "space": space, **bench.describe(made_up(0.05, [(0.5, 0.1), (1.0, -0.02)]))} for space in "st"]
    text = bench.markdown(rows)
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert text.splitlines()[2:] == [f"| r | {space} | 2 | +16.5 % | +7.5 % | +9.0 % | -2.0 % to +20.0 % |" for space in "st"]
    assert len(bench.markdown([]).splitlines()) == 2


# What is measured


@pytest.mark.parametrize("name, shapes", [("mobile-cpu", 3), ("spos", 4)])
def test_blocks_are_spread_over_the_shapes_they_keep(name, shapes):
    parts = bench.spread_parts(load_space(name))
    assert len({part.workload for part in parts}) == len(parts) == 2 * shapes
    assert len({part.input_shape for part in parts}) == shapes
    assert all(part.network.output_shape == part.input_shape for part in parts)
    for lighter, heavier in zip(parts[::2], parts[1::2], strict=True):
        assert lighter.input_shape == heavier.input_shape and lighter.network.macs < heavier.network.macs
    few = bench.spread_parts(load_space(name), 2)
    assert len({part.input_shape for part in few}) == len(few) == 2


def test_a_space_without_such_blocks_is_refused():
    widths = Decision("width", {"narrow": ConvBlock(8), "wide": ConvBlock(16)})
    with pytest.raises(InputError, match="keep its shape"):
        bench.spread_parts(SearchSpace("short", (3, 16, 16), (Fixed("stem", Stem(4)), widths, Fixed("head", Head(10)))))


def test_chains_repeat_the_work_and_share_no_weights():
    """So no runtime has two layers to make one of."""
    part = bench.spread_parts(load_space("mobile-cpu"))[0]
    networks = bench.chain_networks([part])
    (call, *chains) = networks.values()
    assert [network.macs for network in chains] == [length * part.network.macs for length in bench.LENGTHS]
    assert call.macs == 0 and call.parameters == 0
    weights = [numpy_helper.to_array(one) for one in to_onnx(chains[-1]).graph.initializer]
    assert len(weights) == bench.LENGTHS[-1] * len(to_onnx(chains[0]).graph.initializer)
    assert not any(np.array_equal(one, other) for one, other in combinations(weights, 2))


def test_the_call_does_next_to_nothing():
    model = to_onnx(bench.call_network())
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = [session.run(None, {"images": np.full((1, 1, 1, 1), value, np.float32)})[0].item() for value in (-2.0, 3.0)]
    assert values == [0.0, 3.0] and len(model.graph.node) == 1


# All of it, on a real runtime


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    with open_device("onnxruntime-cpu", RuntimeConfig(threads=1)) as device:
        return bench.measure(make_space(), device, folder, PLAN, no_bar), folder


def test_the_split_adds_up(found):
    row, _ = found
    assert len(row["blocks"]) + row["lost"] == len(bench.spread_parts(make_space())) and row["refused"] == 0
    for block in row["blocks"]:
        times = {length: median(row["sessions"][f"{length} x {block['workload']}"]) for length in bench.LENGTHS}
        assert block["alone"] == times[1] and 12 * block["inside"] == pytest.approx(times[16] - times[4])
        assert block["alone_over_inside"] == pytest.approx(block["call"] + block["rest"])
        assert block["inside"] * (1 + block["call"] + block["rest"]) == pytest.approx(block["alone"])
        assert block["call_ratio"] == median(row["sessions"][bench.CALL])
    assert 0 < median(row["sessions"][bench.CALL]) < min(
        median(sessions) for key, sessions in row["sessions"].items() if key.startswith("16 x "))
    json.dumps(row, allow_nan=False)
    assert bench.markdown([row]).splitlines()[2].startswith("| onnxruntime-cpu | digits |")


def test_a_second_run_measures_nothing_again(found):
    row, folder = found
    (journal,) = folder.rglob("*.context")
    before = journal.read_bytes()
    with open_device("onnxruntime-cpu", RuntimeConfig(threads=1)) as device:
        again = bench.measure(make_space(), device, folder, PLAN, no_bar)
    assert again == row and journal.read_bytes() == before


def test_without_time_nothing_is_said(tmp_path):
    with open_device("onnxruntime-cpu", RuntimeConfig(threads=1)) as device:
        assert bench.measure(make_space(), device, tmp_path, replace(PLAN, max_minutes=0.0), no_bar) is None

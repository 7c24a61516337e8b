"""Rows of a table: they add up to the table's own predictions."""

from dataclasses import replace

import pytest

from hwnas.ir.trellis import Trellis
from hwnas.latency.estimates import estimate_blocks
from hwnas.latency.refusals import network_key
from hwnas.latency.sessions import combine_ratios
from hwnas.latency.summary import (
    block_costs,
    block_counts,
    estimate_error,
    excluded_options,
    held_out_document,
    layer_costs,
    measured_networks,
    refusal_warning,
    refused_blocks,
    refused_networks,
    refused_networks_warning,
)
from hwnas.latency.table import EntryRecord
from hwnas.spaces.load import load_space
from tests.latency.test_table import _space, _table


def test_layers_span_the_fastest_and_the_slowest_network():
    """Widths vary in this space, so the cheapest option of every layer need not follow the one before: a bound, not more."""
    table = _table(noise=0.02)
    trellis, layers = Trellis(table.search_space, table), layer_costs(table)
    assert [layer.name for layer in layers] == [step.name for step in table.search_space.steps]
    low, high = (table.constant + sum(pick(getattr(option, end) for option in layer.options) for layer in layers)
                 for pick, end in ((min, "low_ms"), (max, "high_ms")))
    assert low <= trellis.min_cost() * (1 + 1e-6) and high >= trellis.max_cost() * (1 - 1e-6)
    body = next(layer for layer in layers if layer.name == "body")
    costs = {option.name: {table.edge_cost(edge) for edge in table.search_space.steps[2].edges
                           if table.search_space.steps[2].options[edge.option] == option.name} for option in body.options}
    assert {option.name: (option.low_ms, option.high_ms) for option in body.options} == {
        name: (min(found), max(found)) for name, found in costs.items()}
    assert any(option.low_ms < option.high_ms for option in body.options)
    assert body.mean_ms == pytest.approx(sum(option.low_ms + option.high_ms for option in body.options) / 6)


def test_an_incomplete_table_shows_what_it_has():
    whole = _table(networks=0)
    first = next(iter(whole.entries))
    table = replace(whole, entries={key: entry for key, entry in whole.entries.items() if key != first})
    stem, width, *_ = layer_costs(table)
    assert stem.options == () and stem.mean_ms == 0 and len(width.options) == 2
    assert len(block_costs(table)) == len(whole.entries) - 1


def test_networks_are_judged_as_the_table_judges_them():
    table = _table(noise=0.05)
    networks = measured_networks(table)
    errors = [abs(network.error) for network in networks if network.role == "held_out"]
    assert sum(errors) / len(errors) == pytest.approx(table.held_out.mean_error)
    assert max(errors) == pytest.approx(table.held_out.max_error)
    found = held_out_document(table)
    assert found["within_5_percent"] == pytest.approx(table.held_out.within_5_percent)
    assert found["within_2_percent"] <= found["within_5_percent"] <= found["within_10_percent"]
    assert found["within_10_percent"] == pytest.approx(sum(error <= 0.1 for error in errors) / len(errors))


def test_blocks_of_a_space_and_others():
    table = _table(noise=0.02)
    parts = _space().measured_parts
    rows = {row.workload: row for row in block_costs(table)}
    assert set(rows) == set(parts) == set(table.entries)
    row = next(iter(rows.values()))
    low, high = combine_ratios(table.entries[row.workload].sessions).ratio_ci
    assert row.relative_ci == pytest.approx((high - low) / (2 * row.ratio)) and row.sessions == 3
    imported = EntryRecord(sessions=((1.0,),), label="imported")
    other = replace(table, entries={**table.entries, "odd @ 1x1x1": imported})
    assert block_costs(other)[-1].latency_ms is None and block_costs(other)[-1].relative_ci is None


def test_options_that_are_refused_are_left_out():
    """In this space `conv` is reached at one width in `tail`, and `body` at two."""
    table = _table()
    steps = {step.name: step for step in table.search_space.steps}
    wide = next(edge.workload for edge in steps["body"].edges if edge.option == 1 and edge.input_shape.channels == 16)
    tail = next(edge.workload for edge in steps["tail"].edges if edge.option == 0)
    refused = replace(table, refused={wide: " It\n crashes. ", tail: "It is too large.", "odd @ 1x1x1": "It is odd."})
    found = excluded_options(refused)
    assert found[0] == ("body", "k5", "It crashes, for some of its inputs") and found[-1] == ("tail", "conv", "It is too large")
    assert set(refused_blocks(refused)) == {wide, tail}
    text = refusal_warning(refused)
    assert "\n" not in text and text.startswith(f"2 of {len(table.entries)} blocks are refused by onnxruntime-cpu; options with "
                                                "them are left out: body k5 (It crashes, for some of its inputs), ")
    assert text.endswith("tail conv (It is too large).") and len(found) <= 3
    costs = {layer.name: [option.name for option in layer.options] for layer in layer_costs(refused)}
    assert costs["tail"] == ["skip"] and costs["body"] == ["k3", "k5", "plain"]
    assert {row.workload: row.latency_ms for row in block_costs(refused)}[tail] is None
    trellis = Trellis(table.search_space, refused)
    possible = {str(one) for one in trellis.sample(500)}
    assert len(possible) == trellis.count() and not any(one.endswith("conv") for one in possible)
    # Only what can be used is judged.
    assert 0 < len(measured_networks(refused)) < len(table.networks)


def test_at_most_three_refused_options_are_named():
    table = _table(networks=0)
    refused = replace(table, refused=dict.fromkeys(table.entries, "It is " + 90 * "very " + "slow."))
    text = refusal_warning(refused)
    options = sum(len(step.options) for step in table.search_space.steps) - 1  # the identity takes no time and is never refused
    assert text.count("(It is very") == 3 and text.endswith(f", and {options - 3} more.") and len(text) < 600
    assert len(excluded_options(refused)) == options and refusal_warning(table) is None


def test_whole_networks_that_are_refused_are_no_blocks():
    """Nothing about blocks, options and predictions changes; a network with a refused block is that block's matter."""
    table = _table(noise=0.02)
    space = table.search_space
    blocks = {one: {part.workload for edge in space.path(one) for part in edge.parts if not part.block.is_free}
              for one in (space.architecture(record.choices) for record in table.networks)}
    first, *others = blocks
    second = next(one for one in others if blocks[first] - blocks[one])
    refused = replace(table, refused={network_key(first): " It\n crashes. ", network_key(second): "It is too large."})
    assert refused_networks(refused) == {str(first): " It\n crashes. ", str(second): "It is too large."}
    text = refused_networks_warning(refused)
    assert "\n" not in text and text.startswith("onnxruntime-cpu refuses 2 whole network(s) though it runs each of their blocks, "
                                                f"the first being {first} (It crashes): ")
    assert refused_blocks(refused) == {} and excluded_options(refused) == [] and refusal_warning(refused) is None
    assert refused.missing_workloads() == [] and refused.held_out == table.held_out and refused.calibration == table.calibration
    assert Trellis(space, refused).count() == space.size and refused.predict(first) == table.predict(first)
    assert block_costs(refused) == block_costs(table) and layer_costs(refused) == layer_costs(table)

    block = min(blocks[first] - blocks[second])
    both = replace(refused, refused={**refused.refused, block: "It is odd."})
    assert set(refused_networks(both)) == {str(second)} and set(refused_blocks(both)) == {block}
    assert refused_networks_warning(table) is None and refused_networks(table) == {}


def test_blocks_are_counted_by_label():
    table = _table(load_space("fbnet-cpu"), networks=0)
    assert estimate_error(table) is None
    first, second, third, *rest = table.entries
    labels = {first: "estimated", second: "noisy"}
    entries = {key: entry.model_copy(update={"label": labels.get(key, entry.label)}) for key, entry in table.entries.items()
               if key != rest[-1]}
    counted = replace(table, entries=entries, refused={third: "It crashes."})
    assert block_counts(counted) == {"ok": len(rest), "noisy": 1, "imported": 0, "estimated": 1, "refused": 1, "missing": 1}
    parts = {key: part for key, part in table.search_space.measured_parts.items() if key in entries and key != first}
    expected = estimate_blocks(parts, {key: entries[key].ratio for key in parts}).typical_error
    assert estimate_error(counted) == expected > 0
    few = dict(list(entries.items())[:10])
    assert estimate_error(replace(table, entries=few)) is None  # too few to say

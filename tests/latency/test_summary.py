"""Rows of a table: they add up to the table's own predictions."""

from dataclasses import replace

import pytest

from hwnas.ir.trellis import Trellis
from hwnas.latency.summary import block_costs, held_out_document, layer_costs, measured_networks, measured_parts
from tests.latency.test_table import _space, _table


def _no_interval(entry):
    return None


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
    assert len(block_costs(table, _no_interval)) == len(whole.entries) - 1


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
    parts = measured_parts(_space())
    rows = {row.workload: row for row in block_costs(table, lambda entry: (0.8 * entry.ratio, 1.1 * entry.ratio))}
    assert set(rows) == set(parts) == set(table.entries)
    row = next(iter(rows.values()))
    assert row.relative_ci == pytest.approx(0.15) and row.sessions == 3
    other = replace(table, entries={**table.entries, "odd @ 1x1x1": table.entries[row.workload]})
    assert block_costs(other, _no_interval)[-1].latency_ms is None and block_costs(other, _no_interval)[-1].relative_ci is None

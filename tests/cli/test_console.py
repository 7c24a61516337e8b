"""How figures and tables are written for people."""

import io
from contextlib import redirect_stdout

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.cli import console
from tests.cli.command import hwnas


@given(st.floats(1e-6, 1e6))
def test_a_latency_keeps_four_digits_and_no_exponent(value):
    text = console.ms(value)
    assert "e" not in text and abs(float(text) - value) <= value * 5.001e-4


@given(st.floats(1e-6, 1e6), st.floats(1, 10))
def test_the_ends_of_a_range_are_budgets_that_work(low, factor):
    least, _, most, unit = console.ms_range(low, low * factor).split()
    assert unit == "ms" and low <= float(least) <= low * 1.0011 and low * factor <= float(most)


@pytest.mark.parametrize("value, text", [(0.0, "0"), (0.0066981, "0.006698"), (0.12, "0.1200"), (7.25, "7.250"),
                                         (123.456, "123.5"), (98765.4, "98765"), (1e300, "1e+300")])
def test_latencies(value, text):
    assert console.ms(value) == text


@pytest.mark.parametrize("number, text", [(0, "0"), (13760, "13,760"), (1_260_000, "1.26 M"), (4_100_000_000, "4,100.00 M")])
def test_quantities(number, text):
    assert console.quantity(number) == text


@pytest.mark.parametrize("number, text", [(8, "8"), (3_630_312, "3,630,312"), (6**6 * 7**15, "2.215e+17"),
                                          (10**400, "1.000e+400")])
def test_sizes_of_spaces(number, text):
    assert console.big(number) == text


@pytest.mark.parametrize("share, text", [(0, "0.0 %"), (1, "100.0 %"), (0.125, "12.5 %"), (2e-9, "2.0e-07 %")])
def test_shares(share, text):
    assert console.percent(share) == text


def test_figures_are_flush_right_and_words_left():
    lines = _printed(lambda: console.print_table("Title", ("name", "ms", "range", "version"), [
        ("a", "1.5", "1.2 to 1.9", "1.31.1"), ("longer", "10.25", "9 to 11", "2026.4.1-abc")]))
    assert lines[0] == "Title"
    assert [line.rstrip() for line in lines[3:]] == ["a         1.5  1.2 to 1.9  1.31.1",
                                                     "longer  10.25     9 to 11  2026.4.1-abc"]


def test_brackets_and_colons_are_printed_as_they_are():
    """They would be markup to rich, and a path that holds them would lose a part of itself."""
    lines = _printed(lambda: console.print_facts("[bold]t", [("file", "/tmp/[red]a/:smile:.json")]))
    assert lines[0] == "[bold]t" and lines[1].rstrip() == "file  /tmp/[red]a/:smile:.json"


def test_only_the_title_is_printed_where_there_are_no_rows():
    assert _printed(lambda: console.print_table("Nothing", ("a",), [])) == ["Nothing"]


@pytest.mark.parametrize("note, text", [
    ("mbconv(out_channels=24, kernel=5, expansion=3.0, stride=2, se_ratio=0.0, activation=relu, residual=None) @ 12x8x8",
     "mbconv 24 k5 e3 s2 @ 12x8x8"),
    ("head(classes=36, channels=128, activation=relu, dropout=0.0, bias=True) @ 48x8x8", "head 36 @ 48x8x8"),
    ("identity() @ 16x32x32", "identity @ 16x32x32"), ("network k3 k5", "network k3 k5"), ("loss 2.3 (high)", "loss 2.3 (high)"),
    ("x" * 60, "x" * 43 + "…")])
def test_notes_are_short(note, text):
    assert console._shortened(note) == text


def test_a_space_beyond_floating_point_can_be_listed(tmp_path):
    """7 ** 500 networks."""
    path = tmp_path / "deep.yaml"
    path.write_text("{name: deep, input_shape: [4, 8, 8], layers: [{name: l, repeat: 500, grid: {kind: conv, out_channels: 4, "
                    "kernel: [1, 3, 5, 7, 9, 11, 13]}}]}")
    done = hwnas("spaces", path)
    assert done.code == 0 and "e+422" in done.out, done.err
    assert hwnas("spaces", path, "--json").json[0]["size"] == 7**500


def _printed(action):
    stream = io.StringIO()
    with redirect_stdout(stream):
        action()
    return stream.getvalue().splitlines()

"""The benchmark's judgement on made-up members, and its picture."""

import json

import numpy as np

from hwnas.ir.architecture import Architecture
from hwnas.search.result import Candidate
from tests.tools.test_schemes import load_tool

bench = load_tool("bench_mixed_precision")

IMAGES = 4000


def member(name, ratio, wrong, layers=0, spread=0.01):
    """Gets the images wrong whose numbers are below `wrong`."""
    return bench.Member(name, Architecture("space", "0" * 64, {"a": f"k_{name}"}), layers, ratio, ratio,
                        (ratio * (1 - spread), ratio * (1 + spread)), ratio / 2, 0.9, np.arange(IMAGES) >= wrong)


FP32, INT8 = member("fp32", 1.0, 200), member("int8", 0.7, 280, 10)


def claims(*mixed):
    return list(bench.claims(sorted([FP32, INT8, *mixed], key=lambda one: one.ratio)).values())


def test_a_network_between_both_is_claimed_for_what_it_is():
    found = claims(member("mixed", 0.75, 204, 8))
    assert [one is not None for one in found] == [True, False, True, False, False]
    assert found[0] == {"int8_layers": 8, "ratio_to_fp32": 0.75, "ratio_to_int8": 0.75 / 0.7, "test_accuracy": 1 - 204 / IMAGES}


def test_a_network_that_beats_both_is_claimed_everywhere():
    assert all(one is not None for one in claims(member("mixed", 0.6, 190, 8)))


def test_of_two_the_faster_is_claimed():
    assert claims(member("mixed", 0.8, 200, 7), member("mixed", 0.75, 204, 8))[0]["int8_layers"] == 8


def test_nothing_is_claimed_of_what_is_not_told_apart():
    assert claims(member("mixed", 0.99, 200, spread=0.02), member("mixed", 0.695, 280, spread=0.02))[1] is None
    assert claims(member("mixed", 0.695, 280, 9, spread=0.02))[3] is None
    assert claims(member("mixed", 0.9, 279, 3))[2] is None


def test_a_network_faster_than_both_may_be_as_accurate_as_either():
    assert claims(member("mixed", 0.65, 204, 9))[4]["int8_layers"] == 9
    assert claims(member("mixed", 0.65, 260, 9))[4] is None  # less accurate than fp32, though not than int8
    assert claims(member("mixed", 0.75, 204, 9))[4] is None and claims(member("mixed", 0.695, 204, 9, spread=0.02))[4] is None


def test_the_area_is_what_a_front_dominates():
    front = [Candidate(FP32.architecture, score, cost, 0) for score, cost in ((-1.0, 1.0), (-0.5, 2.0), (0.0, 3.0))]
    assert bench.area_under(front, (1.0, 4.0), -1.0) == (0 + 0.5 + 1.0) / 3


def test_figures_are_json_and_are_drawn(tmp_path):
    members = [INT8, member("mixed", 0.8, 210, 7), FP32]
    row = {"runtime": "somewhere", "version": "1", "members": [bench.describe_member(one, members) for one in members]}
    json.dumps(row, allow_nan=False)
    assert row["members"][1]["against_fp32"]["difference"] == -10 / IMAGES
    for suffix in ("svg", "png"):
        bench.draw([row], tmp_path / f"front.{suffix}")
        bench.draw([row, row], tmp_path / f"fronts.{suffix}")
    content = (tmp_path / "front.svg").read_bytes()
    bench.draw([row], tmp_path / "front.svg")
    assert (tmp_path / "front.svg").read_bytes() == content
